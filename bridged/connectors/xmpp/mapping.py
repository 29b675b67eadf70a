"""Messages of XMPP to the house's payloads, and intents of the house to stanzas.  Pure.

Inbound, `inbound` says what one message means in its chat: an event to publish, or why there is none.  Outbound,
`outbound` builds the one stanza that an intent becomes.  Both take a `Chat`, which knows what was said before.
"""

from __future__ import annotations

import base64
import hashlib
from typing import Any

import attrs

from bridged.connectors.intent import Failed, Intent, Retry
from bridged.connectors.xmpp.chat import OWN_PREFIX, Chat, Known
from bridged.connectors.xmpp.seen import Seen, without_spans
from bridged.connectors.xmpp.speech import excerpt, has_styling, quoted, shown_name, spoken
from bridged.connectors.xmpp.stanza import (
    CLIENT,
    CORRECT,
    FALLBACK,
    HINTS,
    MARKERS,
    REACTIONS,
    RECEIPTS,
    REPLY,
    RETRACT,
    STANZA_ID,
    STYLING,
    Element,
    StanzaError,
    element,
    message,
    to_xml,
    write_stamp,
    xml_text,
)
from bridged.richtext import Text, from_html, from_styling, to_html, to_styling

# Ours.
STANZA_CHARACTERS_MAX = 65_536
"""A longer stanza is not kept in its payload; what it says is."""
BODY_BYTES_MAX = 60_000
"""Of one message of ours: common servers take stanzas of 64 KiB and more."""
BUSY_S = 5.0
AWAY_S = 15.0


@attrs.frozen
class Event:
    """Something to publish."""

    action: str
    payload: dict[str, Any]
    is_passing: bool = False
    """Ephemeral: never logged, the first to be shed."""


@attrs.frozen
class Passed:
    """Nothing to publish, and why."""

    reason: str


# -- inbound ----------------------------------------------------------------------------------------------


def unknown_reference(chat: Chat, seen: Seen) -> bool:
    """Is this about an earlier message of which we must know the author, and do not?  Then the archive helps."""
    if seen.replaces is not None and seen.body is not None:
        return chat.by_author(chat.author(seen), seen.replaces) is None
    return seen.retracts is not None and not seen.is_moderation and chat.by_reference(seen.retracts) is None


def inbound(
    chat: Chat,
    seen: Seen,
    stanza: Element,
    *,
    archive_id: str | None,
    at: float,
    typing: bool,
    is_live: bool,
) -> Event | Passed:
    """What a message means in its chat; what it is about is remembered there.

    Args:
        archive_id: The archive's own id of it: `Chat.stanza_id`, or the id of the archive's result.
        at: When it was said, seconds since 1970.
        is_live: Not out of an archive; typing and receipts count only then.
    """
    if seen.kind == "error":
        return Passed("error")
    if seen.kind != ("groupchat" if chat.is_room else "chat") and not (
        seen.kind == "normal" and not chat.is_room
    ):
        return Passed("not of this chat's type")
    base, remote_id = _base(chat, seen, archive_id, at)
    if seen.retracts is not None:
        return _retraction(chat, seen, base)
    if not seen.sender.resource and chat.is_room:
        return Passed("from the room itself")
    if seen.reacts_to is not None:
        known = chat.by_reference(seen.reacts_to)
        return Event(
            "reaction_event", base | _about(known, seen.reacts_to) | {"emojis": list(seen.reactions)}
        )
    if seen.body is not None or seen.encryption is not None:
        return _spoken(chat, seen, stanza, base, remote_id)
    if seen.subject is not None:
        return Passed("subject")
    return _passing(chat, seen, base, typing=typing) if is_live else Passed("not live")


def _base(chat: Chat, seen: Seen, archive_id: str | None, at: float) -> tuple[dict[str, Any], str | None]:
    reference, name = chat.identity(seen.sender)
    base = {
        "channel": chat.channel,
        "sender": {"ref": reference, "name": name},
        "sender_identity": reference,
        "timestamp": write_stamp(at),
    }
    return base, archive_id or seen.origin_id or seen.id


def _spoken(
    chat: Chat, seen: Seen, stanza: Element, base: dict[str, Any], remote_id: str | None
) -> Event | Passed:
    if remote_id is None:
        # Neither the archive nor the sender named it: the same bytes at the same time are the same message.
        digest = hashlib.sha256(f"{base['timestamp']}\0{seen.sender}\0{seen.body}".encode()).digest()
        remote_id = base64.b32encode(digest).decode()[:26].lower()
    author = chat.author(seen)
    text, kind = _text(seen)
    html = None if seen.is_unstyled or seen.body is None else styled_html(text)
    if seen.replaces is not None:
        known = chat.by_author(author, seen.replaces)
        if known is not None:
            chat.alias(known, seen.id, remote_id)
            base |= _about(known, "") | {"edit_id": remote_id, "text": text, "html": html, "kind": kind}
            return Event("edit_event", base)
        # Not shown to be theirs: it is said as a message of its own.                   XEP-0308, section 5
    is_server_id = remote_id not in (seen.origin_id, seen.id)
    said = Known(remote_id, seen.id or seen.origin_id, author, is_server_id)
    chat.remember(said)
    if seen.origin_id is not None and seen.origin_id != seen.id:
        chat.alias(said, seen.origin_id, remote_id)
    reply_to = None
    if seen.reply_to is not None:
        answered = chat.by_reference(seen.reply_to)
        reply_to = answered.remote_id if answered is not None else seen.reply_to
    base |= _about(said, "") | {
        "text": text,
        "html": html,
        "kind": kind,
        "reply_to": reply_to,
        "chat": str(chat.jid),
        "type": seen.kind,
        "body": seen.body,
        "stanza_id": remote_id if is_server_id else None,
        "origin_id": seen.origin_id,
        "format": "xml",
    }
    xml = to_xml(stanza)
    if len(xml) <= STANZA_CHARACTERS_MAX:
        base["stanza"] = xml
    return Event("inbound_stanza", base)


def _text(seen: Seen) -> tuple[str, str]:
    """The text as its author meant it, and its kind."""
    if seen.body is None:
        return f"[a message encrypted with {seen.encryption}, which the bridge cannot read]", "notice"
    body = seen.body
    if seen.reply_to is not None:
        body = without_spans(body, seen.spans, REPLY)
    if body.startswith("/me ") and not seen.is_unstyled:
        return body[4:], "action"
    return body, "message"


def styled_html(text: str) -> str | None:
    """The HTML of a text in message styling; None where it has none.                              XEP-0393"""
    nodes = from_styling(text)
    return None if all(isinstance(node, Text) for node in nodes) else to_html(nodes)


def _retraction(chat: Chat, seen: Seen, base: dict[str, Any]) -> Event | Passed:
    assert seen.retracts is not None
    known = chat.by_reference(seen.retracts)
    if seen.is_moderation:
        if not chat.is_room or seen.sender != chat.jid:
            return Passed("a moderation that is not the room's")
        base |= {"sender": None, "sender_identity": None, "by": "moderator"}
    elif known is None or known.author != chat.author(seen):
        return Passed("a retraction of what is not shown to be theirs")
    return Event("redaction_event", base | _about(known, seen.retracts))


def _passing(chat: Chat, seen: Seen, base: dict[str, Any], *, typing: bool) -> Event | Passed:
    if seen.marker is not None:
        known = chat.by_reference(seen.marker.target)
        if known is None and not chat.is_room:
            return Passed("a receipt for nothing that we know")
        kind = "delivered" if seen.marker.kind == "received" else "read"
        about = _about(known, seen.marker.target)
        return Event("receipt_event", base | about | {"kind": kind}, is_passing=True)
    if seen.chat_state is not None:
        if not typing:
            return Passed("typing is off")
        return Event("typing_event", base | {"typing": seen.chat_state == "composing"}, is_passing=True)
    return Passed("nothing to say")


def _about(known: Known | None, identifier: str) -> dict[str, Any]:
    """The message that an event is about, as the house calls it; one that we never saw by the room's id."""
    remote_id, is_server_id = (known.remote_id, known.is_server_id) if known else (identifier, True)
    return {"remote_id": remote_id, "id_scope": "server" if is_server_id else "sender"}


# -- outbound ---------------------------------------------------------------------------------------------


def stanza_id_of(intent: Intent) -> str:
    """The id of the one stanza that an intent becomes, the same in every life of ours."""
    digest = hashlib.sha256(intent.idempotency_key.encode()).digest()
    return OWN_PREFIX + base64.b32encode(digest).decode()[:26].lower()


def outbound(
    chat: Chat, intent: Intent, *, original_id: str | None, reactions: tuple[str, ...] = ()
) -> Element | Failed:
    """The stanza that an intent becomes.

    Args:
        original_id: Of an edit: the id that the corrected message had, None where nobody knows it any more.
        reactions: Of a reaction: all that stand at the message for us, of whomever.
    """
    name = intent.sender.name
    text = xml_text(intent.text if intent.html is None else to_styling(from_html(intent.html)))
    parts: list[Element] = []
    if intent.action == "outbound_message":
        body = spoken(name, text, intent.kind)
        if intent.reply_to is not None:
            prefix = quoted(intent.reply_to.name, xml_text(intent.reply_to.text))
            body = prefix + body
            if intent.reply_to.remote_id is not None:
                parts = _reply(chat.reference(intent.reply_to.remote_id), len(prefix))
    elif intent.action == "outbound_edit_message":
        body = spoken(name, text, intent.kind)
        if original_id is not None:
            parts = [element("replace", CORRECT, attributes={"id": original_id})]
        else:
            body = f"[edited] {body}"
    elif intent.action == "outbound_delete_message":
        about = f": “{excerpt(xml_text(intent.text or intent.original_text or ''))}”"
        body = f"* <{shown_name(name)}> took a message back"
        if intent.remote_id is None:
            body += about if intent.text or intent.original_text else ""
        else:
            target = chat.reference(intent.remote_id)
            parts = [element("retract", RETRACT, attributes={"id": target}), _stands_in(RETRACT)]
    elif intent.action == "outbound_reaction":
        body = _reaction_text(intent)
        if intent.remote_id is not None:
            parts = [_reactions(chat.reference(intent.remote_id), reactions), _stands_in(REACTIONS)]
    else:
        return Failed(code="unknown_action", message=f"XMPP knows no {intent.action}")
    if len(body.encode()) > BODY_BYTES_MAX:
        return Failed(code="too_large", message=f"a message to XMPP has at most {BODY_BYTES_MAX} bytes")
    identifier = stanza_id_of(intent)
    if not chat.is_room and intent.action == "outbound_message":
        parts += [element("request", RECEIPTS), element("markable", MARKERS)]
    if intent.html is None and has_styling(text + name):
        parts.append(element("unstyled", STYLING))
    return message(
        str(chat.jid),
        "groupchat" if chat.is_room else "chat",
        identifier,
        element("body", CLIENT, body),
        *parts,
        element("origin-id", STANZA_ID, attributes={"id": identifier}),
        element("store", HINTS),
    )


def receipt(seen: Seen, identifier: str) -> Element | None:
    """The receipt that a message asks for; None where none is owed.                        XEP-0184, section 5"""
    if not seen.wants_receipt or seen.id is None or seen.kind not in ("chat", "normal"):
        return None
    received = element("received", RECEIPTS, attributes={"id": seen.id})
    return message(str(seen.sender), seen.kind, identifier, received, element("store", HINTS))


def refused(error: StanzaError) -> Failed | Retry:
    """How an intent ends, or goes on, whose stanza was refused."""
    if error.condition in ("remote-server-timeout", "recipient-unavailable"):
        return Retry(AWAY_S, f"the room's server does not answer: {error}")
    if error.kind == "wait" or error.condition in ("resource-constraint", "policy-violation"):
        return Retry(BUSY_S, f"the server asks to wait: {error}", "account")
    code = _CODES.get(error.condition, "remote_rejected")
    return Failed(code=code, message=f"the server refused it: {error}", native=error.condition)


_CODES = {
    "forbidden": "forbidden",
    "not-allowed": "forbidden",
    "not-authorized": "forbidden",
    "registration-required": "forbidden",
    "item-not-found": "not_found",
    "gone": "not_found",
    "remote-server-not-found": "not_found",
    "jid-malformed": "invalid_field",
}


def _reply(identifier: str, prefix: int) -> list[Element]:
    span = element("body", FALLBACK, attributes={"start": "0", "end": str(prefix)})
    return [
        element("reply", REPLY, attributes={"id": identifier}),
        element("fallback", FALLBACK, span, attributes={"for": REPLY}),
    ]


def _stands_in(purpose: str) -> Element:
    return element("fallback", FALLBACK, attributes={"for": purpose})


def _reactions(identifier: str, emojis: tuple[str, ...]) -> Element:
    return element(
        "reactions",
        REACTIONS,
        *(element("reaction", REACTIONS, emoji) for emoji in emojis),
        attributes={"id": identifier},
    )


def _reaction_text(intent: Intent) -> str:
    shown = intent.added or intent.removed or intent.emojis
    emojis = " ".join(excerpt(xml_text(emoji)) for emoji in shown)
    verb = "took back" if intent.removed and not intent.added else "reacted with"
    body = f"* <{shown_name(intent.sender.name)}> {verb} {emojis}"
    if intent.target is None or not intent.target.text:
        return body
    to = f"<{shown_name(intent.target.name)}> " if intent.target.name else ""
    return f"{body} to {to}“{excerpt(xml_text(intent.target.text))}”"
