"""Getting into a room and being put out of it: presences read, requests built.  Pure.                 XEP-0045"""

from __future__ import annotations

import attrs

from bridged.connectors.xmpp.jid import Jid, JidError, parse_jid
from bridged.connectors.xmpp.seen import statuses
from bridged.connectors.xmpp.stanza import (
    DATA_FORM,
    MUC,
    MUC_OWNER,
    MUC_ROOMCONFIG,
    MUC_USER,
    Element,
    StanzaError,
    child,
    child_text,
    children,
    element,
    form,
    presence,
    read_error,
)

# Specification constants (XEP-0045, section 15.6).
SELF = 110
CREATED = 201
BANNED = 301
NICK_CHANGED = 303
KICKED = 307
NOT_A_MEMBER = 321
MEMBERS_ONLY = 322
SHUTDOWN = 332
LOST = 333

# Ours.
WISHES = {
    "muc#roomconfig_persistentroom": "1",
    "muc#roomconfig_enablearchiving": "1",
    "muc#roomconfig_enablelogging": "1",
    "{http://prosody.im/protocol/muc}roomconfig_enablearchiving": "1",
    "mam": "1",
}
"""What a room of ours should be, as far as its form knows the field."""

_FOR_GOOD = {BANNED: "banned", NOT_A_MEMBER: "no member any more", MEMBERS_ONLY: "for members only now"}
_FOR_NOW = {KICKED: "kicked", SHUTDOWN: "the rooms' server is going down", LOST: "lost by the room"}
_ERRORS_FOR_GOOD = frozenset(
    {
        "forbidden",
        "registration-required",
        "not-authorized",
        "gone",
        "not-allowed",
        "jid-malformed",
        "conflict",
    }
)


@attrs.frozen
class Joined:
    """We are in."""

    nick: str
    is_new: bool
    """The room did not exist and is locked until its owner, we, has set it up."""
    is_owner: bool


@attrs.frozen
class NotJoined:
    """We were not let in."""

    error: StanzaError

    @property
    def is_final(self) -> bool:
        """Can only somebody else change that?"""
        return self.error.condition in _ERRORS_FOR_GOOD


@attrs.frozen
class Gone:
    """We are out."""

    reason: str
    is_final: bool


@attrs.frozen(kw_only=True)
class Moved:
    """Somebody else came or went."""

    nick: str
    is_present: bool
    change: str
    """join | leave | kick | nick"""
    by: str | None = None
    reason: str | None = None


def join_request(occupant: Jid) -> Element:
    """Ask to be let in, without the room's own history: the archive has it, with ids."""
    history = element("history", MUC, attributes={"maxstanzas": "0"})
    return presence(str(occupant), element("x", MUC, history))


def own_form(answer: Element | None) -> Element:
    """The set-up of a room of ours: what we wish and its form knows; empty where there is no form."""
    query = child(answer, "query", MUC_OWNER) if answer is not None else None
    offered = child(query, "x", DATA_FORM) if query is not None else None
    known = (
        {part.get("var") for part in children(offered, "field", DATA_FORM)} if offered is not None else set()
    )
    fields = {key: value for key, value in WISHES.items() if key in known}
    return element("query", MUC_OWNER, form(MUC_ROOMCONFIG, fields))


def read_presence(stanza: Element, nick: str) -> Joined | NotJoined | Gone | Moved | None:
    """What a presence from a room means for whoever is in it as `nick`; None for nothing."""
    error = read_error(stanza)
    if error is not None:
        return NotJoined(error)
    try:
        who = parse_jid(stanza.get("from", "")).resource
    except JidError:
        return None
    user = child(stanza, "x", MUC_USER)
    if not who or user is None:
        return None
    codes = statuses(stanza)
    item = child(user, "item", MUC_USER)
    if stanza.get("type") is None:
        if SELF in codes:
            is_owner = item is not None and item.get("affiliation") == "owner"
            return Joined(who, CREATED in codes, is_owner)
        return Moved(nick=who, is_present=True, change="join")
    if stanza.get("type") != "unavailable":
        return None
    by, reason = _cause(item)
    if NICK_CHANGED in codes:
        return None if SELF in codes or who == nick else Moved(nick=who, is_present=False, change="leave")
    if SELF in codes or who == nick:
        return _gone(codes, user, reason)
    is_put_out = bool(codes & {BANNED, KICKED, NOT_A_MEMBER, MEMBERS_ONLY})
    change = "kick" if is_put_out and LOST not in codes else "leave"
    return Moved(nick=who, is_present=False, change=change, by=by, reason=reason)


def _gone(codes: frozenset[int], user: Element, reason: str | None) -> Gone:
    said = f" ({reason})" if reason else ""
    if child(user, "destroy", MUC_USER) is not None:
        return Gone(f"the room was destroyed{said}", True)
    for code, word in _FOR_GOOD.items():
        if code in codes:
            return Gone(word + said, True)
    # A kick for a lost connection carries both codes, and means the loss.
    for code in (LOST, SHUTDOWN, KICKED):
        if code in codes:
            return Gone(_FOR_NOW[code] + said, False)
    return Gone(f"out of the room{said}", False)


def _cause(item: Element | None) -> tuple[str | None, str | None]:
    if item is None:
        return None, None
    actor = child(item, "actor", MUC_USER)
    reason = child_text(item, "reason", MUC_USER)
    return actor.get("nick") if actor is not None else None, reason[:300] if reason else None
