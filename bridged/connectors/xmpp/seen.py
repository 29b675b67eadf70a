"""What a message stanza says, as one value: every extension that we read, and nothing decided.  Pure.

Whatever a server or a person sends, reading it gives a `Seen` or a `SeenError`; sizes are bounded here.  Who may
say such a thing (a stanza-id, a correction, an occupant-id) is judged in `mapping`.
"""

from __future__ import annotations

import attrs

from bridged.connectors.xmpp.jid import Jid, JidError, parse_jid
from bridged.connectors.xmpp.stanza import (
    CARBONS,
    CHAT_STATES,
    CLIENT,
    CORRECT,
    DELAY,
    ENCRYPTION,
    FALLBACK,
    FORWARD,
    MARKERS,
    MODERATE,
    MUC_USER,
    OCCUPANT_ID,
    REACTIONS,
    RECEIPTS,
    REPLY,
    RETRACT,
    STANZA_ID,
    STYLING,
    Element,
    StanzaError,
    child,
    child_text,
    children,
    local_name,
    read_error,
    read_stamp,
    text_of,
)
from bridged.errors import BridgeError

# Ours.
ID_CHARACTERS_MAX = 1024
TEXT_CHARACTERS_MAX = 65_536
"""A longer body is cut, and says so."""
REACTIONS_MAX = 64
REACTION_CHARACTERS_MAX = 32
SPANS_MAX = 16


class SeenError(BridgeError):
    """A message that cannot be read: it has no usable sender or address."""


@attrs.frozen
class Marker:
    """A receipt or a marker about another message.                                       XEP-0184, XEP-0333"""

    kind: str
    """received | displayed | acknowledged"""
    target: str


@attrs.frozen
class Span:
    """Part of a body that only stands in for something else, in characters.                      XEP-0428"""

    purpose: str
    start: int
    end: int | None
    """None: to the end."""


@attrs.frozen(kw_only=True)
class Seen:
    """One message stanza."""

    sender: Jid
    to: Jid | None
    kind: str
    """Its type: chat | groupchat | normal | headline | error"""
    id: str | None
    origin_id: str | None
    stanza_ids: dict[str, str]
    """By whom (normal form) -> id.  Anybody can write these; only the one of the asked archive counts."""
    occupant_id: str | None
    body: str | None
    subject: str | None
    delayed_at: float | None
    delayed_by: str | None
    replaces: str | None
    reply_to: str | None
    reacts_to: str | None
    reactions: tuple[str, ...]
    retracts: str | None
    is_moderation: bool
    chat_state: str | None
    marker: Marker | None
    wants_receipt: bool
    spans: tuple[Span, ...]
    is_unstyled: bool
    encryption: str | None
    statuses: frozenset[int]
    """Status codes of the room, in a message from the room itself."""
    error: StanzaError | None


@attrs.frozen
class Copy:
    """A carbon: what another of our own clients got or sent.                                      XEP-0280"""

    direction: str
    """received | sent"""
    message: Element


@attrs.frozen
class Archived:
    """One result of an archive.                                                                   XEP-0313"""

    query_id: str
    archive_id: str
    at: float | None
    message: Element


def read_message(stanza: Element) -> Seen:
    """The value of a `<message/>`.

    Raises:
        SeenError: No sender, or a sender that is no JID.
    """
    sender, to = _jid(stanza.get("from")), _jid(stanza.get("to"))
    if sender is None:
        raise SeenError("a message without a sender that can be one")
    reactions = child(stanza, "reactions", REACTIONS)
    retract = child(stanza, "retract", RETRACT)
    delay = child(stanza, "delay", DELAY)
    return Seen(
        sender=sender,
        to=to,
        kind=stanza.get("type", "normal"),
        id=_identifier(stanza.get("id")),
        origin_id=_identifier(_attribute(stanza, "origin-id", STANZA_ID)),
        stanza_ids=_stanza_ids(stanza),
        occupant_id=_identifier(_attribute(stanza, "occupant-id", OCCUPANT_ID)),
        body=_body(child_text(stanza, "body", CLIENT)),
        subject=child_text(stanza, "subject", CLIENT),
        delayed_at=read_stamp(delay.get("stamp")) if delay is not None else None,
        delayed_by=_normal(delay.get("from")) if delay is not None else None,
        replaces=_identifier(_attribute(stanza, "replace", CORRECT)),
        reply_to=_identifier(_attribute(stanza, "reply", REPLY)),
        reacts_to=_identifier(reactions.get("id")) if reactions is not None else None,
        reactions=_reactions(reactions) if reactions is not None else (),
        retracts=_identifier(retract.get("id")) if retract is not None else None,
        is_moderation=retract is not None and child(retract, "moderated", MODERATE) is not None,
        chat_state=next((local_name(part) for part in stanza if part.tag.startswith(_STATE)), None),
        marker=_marker(stanza),
        wants_receipt=child(stanza, "request", RECEIPTS) is not None,
        spans=_spans(stanza),
        is_unstyled=child(stanza, "unstyled", STYLING) is not None,
        encryption=_encryption(stanza),
        statuses=statuses(stanza),
        error=read_error(stanza),
    )


def read_copy(stanza: Element, own: Jid) -> Copy | None:
    """The carbon in a message, if it is one and truly our own server's; None otherwise.  XEP-0280, section 11"""
    for direction in ("received", "sent"):
        outer = child(stanza, direction, CARBONS)
        if outer is not None:
            inner = _forwarded(outer)
            if _jid(stanza.get("from")) != own.bare or inner is None:
                return None
            return Copy(direction, inner[0])
    return None


def is_copy(stanza: Element) -> bool:
    """Does the message claim to be a carbon?"""
    return any(child(stanza, direction, CARBONS) is not None for direction in ("received", "sent"))


def read_archived(stanza: Element, namespace: str) -> Archived | None:
    """The archive's result in a message; whose archive it is, is the caller's to check."""
    result = child(stanza, "result", namespace)
    if result is None:
        return None
    inner = _forwarded(result)
    archive_id = _identifier(result.get("id"))
    if inner is None or archive_id is None:
        return None
    return Archived(result.get("queryid", ""), archive_id, inner[1], inner[0])


def without_spans(body: str, spans: tuple[Span, ...], purpose: str) -> str:
    """The body without what stands in for `purpose`; a span that does not fit the body is none.   XEP-0428"""
    for span in sorted(spans, key=lambda span: -span.start):
        end = len(body) if span.end is None else span.end
        if span.purpose == purpose and 0 <= span.start < end <= len(body):
            body = body[: span.start] + body[end:]
    return body


def statuses(stanza: Element) -> frozenset[int]:
    """The status codes of a room's stanza.                                             XEP-0045, section 15.6"""
    user = child(stanza, "x", MUC_USER)
    codes = () if user is None else tuple(part.get("code", "") for part in children(user, "status", MUC_USER))
    return frozenset(int(code) for code in codes if len(code) == 3 and code.isascii() and code.isdigit())


_STATE = "{" + CHAT_STATES + "}"


def _jid(text: str | None) -> Jid | None:
    try:
        return parse_jid(text) if text else None
    except JidError:
        return None


def _normal(text: str | None) -> str | None:
    jid = _jid(text)
    return None if jid is None else str(jid)


def _identifier(text: str | None) -> str | None:
    return text if text and len(text) <= ID_CHARACTERS_MAX else None


def _attribute(stanza: Element, name: str, namespace: str) -> str | None:
    found = child(stanza, name, namespace)
    return None if found is None else found.get("id")


def _stanza_ids(stanza: Element) -> dict[str, str]:
    ids: dict[str, str] = {}
    for part in children(stanza, "stanza-id", STANZA_ID):
        by, value = _normal(part.get("by")), _identifier(part.get("id"))
        if by is not None and value is not None:
            ids.setdefault(by, value)
    return ids


def _body(text: str | None) -> str | None:
    if text is None or len(text) <= TEXT_CHARACTERS_MAX:
        return text
    cut = len(text) - TEXT_CHARACTERS_MAX
    return f"{text[:TEXT_CHARACTERS_MAX]}… [{cut} characters more]"


def _reactions(found: Element) -> tuple[str, ...]:
    texts = [text_of(part).strip() for part in children(found, "reaction", REACTIONS)]
    kept = dict.fromkeys(text for text in texts if 0 < len(text) <= REACTION_CHARACTERS_MAX)
    return tuple(kept)[:REACTIONS_MAX]


def _marker(stanza: Element) -> Marker | None:
    for kind, namespace in (
        ("received", RECEIPTS),
        ("displayed", MARKERS),
        ("acknowledged", MARKERS),
        ("received", MARKERS),
    ):
        target = _identifier(_attribute(stanza, kind, namespace))
        if target is not None:
            return Marker(kind, target)
    return None


def _spans(stanza: Element) -> tuple[Span, ...]:
    spans: list[Span] = []
    for part in children(stanza, "fallback", FALLBACK):
        purpose = part.get("for", "")
        bodies = list(children(part, "body", FALLBACK))
        if not bodies and not list(part):
            spans.append(Span(purpose, 0, None))
        for body in bodies:
            start, end = _count(body.get("start", "0")), _count(body.get("end", ""))
            if start is not None and (end is not None or "end" not in body.attrib):
                spans.append(Span(purpose, start, end))
    return tuple(spans[:SPANS_MAX])


def _count(text: str) -> int | None:
    return int(text) if text.isascii() and text.isdigit() and len(text) < 10 else None


def _encryption(stanza: Element) -> str | None:
    found = child(stanza, "encryption", ENCRYPTION)
    return None if found is None else (found.get("name") or found.get("namespace") or "unknown")[:64]


def _forwarded(outer: Element) -> tuple[Element, float | None] | None:
    forwarded = child(outer, "forwarded", FORWARD)
    inner = child(forwarded, "message", CLIENT) if forwarded is not None else None
    if forwarded is None or inner is None:
        return None
    delay = child(forwarded, "delay", DELAY)
    return inner, read_stamp(delay.get("stamp")) if delay is not None else None
