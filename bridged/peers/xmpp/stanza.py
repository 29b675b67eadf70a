"""Stanzas as servers make and change them: errors, answers, delays, ids.  Pure."""

from __future__ import annotations

from bridged.peers.stamp import utc_seconds
from bridged.peers.xmpp import ns
from bridged.peers.xmpp.xml import Element, Node, el

ERROR_TYPES = {
    "bad-request": "modify", "conflict": "cancel", "feature-not-implemented": "cancel", "forbidden": "auth",
    "gone": "cancel", "internal-server-error": "cancel", "item-not-found": "cancel", "jid-malformed": "modify",
    "not-acceptable": "modify", "not-allowed": "cancel", "not-authorized": "auth", "recipient-unavailable": "wait",
    "registration-required": "auth", "remote-server-timeout": "wait", "resource-constraint": "wait",
    "service-unavailable": "cancel",
}  # fmt: skip
STORED_HINTS = ("store",)


def number(text: str | None) -> int | None:
    """An unsigned number as protocols write them, of at most 19 digits; None for anything else."""
    if text is None or len(text) > 19 or not (text.isascii() and text.isdecimal()):
        return None
    return int(text)


def result(request: Element, *nodes: Node) -> Element:
    """The answer to an IQ."""
    given = {
        "type": "result", "id": request.get("id"), "from": request.get("to"), "to": request.get("from"),
    }  # fmt: skip
    return el(ns.CLIENT, "iq", given, *nodes)


def error(
    request: Element, condition: str, *, kind: str | None = None, text: str | None = None, by: str | None = None,
    inner: Node | None = None,
) -> Element:  # fmt: skip
    """The stanza bounced, without its payload.

    Args:
        request: What is refused.
        condition: The error's name, of RFC 6120 section 8.3.3.
        kind: cancel, modify, auth, wait; the condition's own where None.
        text: For people.
        by: The room that refuses.
        inner: What stands inside the condition (`gone` has a URI).
    """
    reason = el(ns.STANZA_ERRORS, condition)
    if inner is not None:
        reason.add(inner)
    body = el(ns.CLIENT, "error", {"type": kind or ERROR_TYPES[condition], "by": by}, reason)
    if text is not None:
        body.add(el(ns.STANZA_ERRORS, "text", None, text))
    given = {"type": "error", "id": request.get("id"), "from": request.get("to"), "to": request.get("from")}
    return el(ns.CLIENT, request.name, given, body)


def delay(at: float, sender: str) -> Element:
    """XEP-0203."""
    return el(ns.DELAY, "delay", {"stamp": utc_seconds(at), "from": sender})


def stanza_id(value: str, by: str) -> Element:
    """XEP-0359."""
    return el(ns.SID, "stanza-id", {"id": value, "by": by})


def body(message: Element) -> str | None:
    """The text of a message, None where it has no body."""
    return message.text_of(ns.CLIENT, "body")


def has_payload(message: Element, *spaces: str) -> bool:
    """Does the message hold an element of one of these namespaces?"""
    return any(e.space in spaces for e in message.elements())


def is_hinted(message: Element, name: str) -> bool:
    """XEP-0334."""
    return message.find(ns.HINTS, name) is not None


def without_forged_ids(message: Element, by: str) -> Element:
    """A copy without the ids and delays that claim to be the server's own."""
    made = message.copy()
    made.children = [
        c
        for c in made.children
        if not (
            isinstance(c, Element)
            and (
                (c.is_a(ns.SID, "stanza-id") and c.get("by") == by)
                or (c.is_a(ns.DELAY, "delay") and c.get("from") == by)
            )
        )
    ]
    return made
