"""Stanzas as values: building and reading the elements of XMPP, by name and namespace.  Pure.

An element is the standard library's `xml.etree.ElementTree.Element` with `{namespace}name` tags.  Text of ours
passes through `xml_text`, so that whatever a person of another network typed is well-formed here; nothing is
ever glued together as text.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from xml.etree import ElementTree
from xml.sax.saxutils import escape, quoteattr

import attrs

Element = ElementTree.Element

# Specification constants.
XML = "http://www.w3.org/XML/1998/namespace"
CLIENT = "jabber:client"
STANZAS = "urn:ietf:params:xml:ns:xmpp-stanzas"
DISCO_INFO = "http://jabber.org/protocol/disco#info"
DATA_FORM = "jabber:x:data"
MUC = "http://jabber.org/protocol/muc"
MUC_USER = "http://jabber.org/protocol/muc#user"
MUC_OWNER = "http://jabber.org/protocol/muc#owner"
MUC_ROOMCONFIG = "http://jabber.org/protocol/muc#roomconfig"
CHAT_STATES = "http://jabber.org/protocol/chatstates"
RECEIPTS = "urn:xmpp:receipts"
PING = "urn:xmpp:ping"
DELAY = "urn:xmpp:delay"
CARBONS = "urn:xmpp:carbons:2"
FORWARD = "urn:xmpp:forward:0"
CORRECT = "urn:xmpp:message-correct:0"
MAM = "urn:xmpp:mam:2"
RSM = "http://jabber.org/protocol/rsm"
MARKERS = "urn:xmpp:chat-markers:0"
HINTS = "urn:xmpp:hints"
STANZA_ID = "urn:xmpp:sid:0"
OCCUPANT_ID = "urn:xmpp:occupant-id:0"
RETRACT = "urn:xmpp:message-retract:1"
MODERATE = "urn:xmpp:message-moderate:1"
REACTIONS = "urn:xmpp:reactions:0"
REPLY = "urn:xmpp:reply:0"
FALLBACK = "urn:xmpp:fallback:0"
STYLING = "urn:xmpp:styling:0"
ENCRYPTION = "urn:xmpp:eme:0"

# What XML 1.0 has no way to write (its production [2] turned round).
_NO_XML = re.compile("[^\t\n\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_STAMP = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(\.\d+)?(Z|[+-]\d\d:\d\d)")


def xml_text(text: str) -> str:
    """The text with every line end as LF, and U+FFFD for each character that XML 1.0 cannot carry."""
    return _NO_XML.sub("\ufffd", text.replace("\r\n", "\n").replace("\r", "\n"))


def xml_attribute(text: str) -> str:
    """The same for an attribute: a parser would make blanks of line ends and tabs, so they are blanks."""
    return xml_text(text).replace("\n", " ").replace("\t", " ")


def element(
    name: str,
    namespace: str,
    *children: Element | str | None,
    attributes: Mapping[str, str | None] | None = None,
) -> Element:
    """An element; None stands for nothing, among attributes and children, and text comes before children."""
    made = Element(f"{{{namespace}}}{name}")
    for key, value in (attributes or {}).items():
        if value is not None:
            made.set(key, xml_attribute(value))
    for child in children:
        if isinstance(child, str):
            made.text = xml_text(child)
        elif child is not None:
            made.append(child)
    return made


def message(to: str, kind: str, identifier: str, *children: Element | None) -> Element:
    """A `<message/>`; `kind` is its type."""
    return element("message", CLIENT, *children, attributes={"to": to, "type": kind, "id": identifier})


def presence(to: str | None, *children: Element | None, kind: str | None = None) -> Element:
    """A `<presence/>`."""
    return element("presence", CLIENT, *children, attributes={"to": to, "type": kind})


def iq(to: str | None, kind: str, payload: Element) -> Element:
    """An `<iq/>` without an id; who sends it gives it one."""
    return element("iq", CLIENT, payload, attributes={"to": to, "type": kind})


def form(form_type: str, fields: Mapping[str, str]) -> Element:
    """A submitted data form; empty where there are no fields.                                     XEP-0004"""
    rows = {"FORM_TYPE": form_type, **fields} if fields else {}
    return element(
        "x",
        DATA_FORM,
        *(
            element("field", DATA_FORM, element("value", DATA_FORM, value), attributes={"var": key})
            for key, value in rows.items()
        ),
        attributes={"type": "submit"},
    )


def form_fields(parent: Element) -> dict[str, str]:
    """The fields of the form in an element, by name, with their first value."""
    found = child(parent, "x", DATA_FORM)
    fields = children(found, "field", DATA_FORM) if found is not None else ()
    return {key: text_of(child(field, "value", DATA_FORM)) for field in fields if (key := field.get("var"))}


def child(parent: Element, name: str, namespace: str) -> Element | None:
    """The first child of that name."""
    return parent.find(f"{{{namespace}}}{name}")


def children(parent: Element, name: str, namespace: str) -> Iterator[Element]:
    """All children of that name."""
    return iter(parent.findall(f"{{{namespace}}}{name}"))


def text_of(found: Element | None) -> str:
    """The text at the start of an element; "" where there is none."""
    return "" if found is None else found.text or ""


def child_text(parent: Element, name: str, namespace: str) -> str | None:
    """The text of the first child of that name; None where there is no such child."""
    found = child(parent, name, namespace)
    return None if found is None else found.text or ""


def local_name(found: Element) -> str:
    """The name without its namespace."""
    return found.tag.rpartition("}")[2]


def read_stamp(text: str | None) -> float | None:
    """Seconds since 1970 of an XMPP date and time; None for anything else.                       XEP-0082"""
    match = _STAMP.fullmatch(text or "")
    if match is None:
        return None
    fraction = (match[2] or ".0")[:7]
    try:
        moment = datetime.fromisoformat(match[1] + fraction.ljust(7, "0") + match[3])
    except ValueError:
        return None
    return moment.astimezone(UTC).timestamp() if moment.year > 1 else None


def write_stamp(seconds: float) -> str:
    """The UTC date and time of seconds since 1970.                                               XEP-0082"""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


@attrs.frozen
class StanzaError:
    """Why a stanza was refused.                                                   RFC 6120, section 8.3"""

    condition: str
    kind: str
    """cancel | continue | modify | auth | wait"""
    text: str = ""

    def __str__(self) -> str:
        return f"{self.condition} ({self.text})" if self.text else self.condition


def read_error(stanza: Element) -> StanzaError | None:
    """The error of a stanza of type `error`; None for any other."""
    if stanza.get("type") != "error":
        return None
    found = child(stanza, "error", CLIENT)
    if found is None:
        return StanzaError("undefined-condition", "cancel")
    condition, text = "undefined-condition", ""
    for part in found:
        if part.tag == f"{{{STANZAS}}}text":
            text = (part.text or "")[:300]
        elif part.tag.startswith(f"{{{STANZAS}}}"):
            condition = local_name(part)
    return StanzaError(condition, found.get("type", "cancel"), text)


def to_xml(stanza: Element) -> str:
    """One stanza as text, each namespace declared where it changes.

    Raises:
        ValueError: A character that XML cannot carry; `element` lets none in.
    """
    text = _written(stanza, "")
    if _NO_XML.search(text):
        raise ValueError("a stanza holds a character that XML cannot carry")
    return text


def _written(part: Element, outer: str) -> str:
    namespace, _, name = part.tag.rpartition("}")
    namespace = namespace[1:]
    opening = [name] if namespace == outer else [name, f"xmlns={quoteattr(namespace)}"]
    for index, (key, value) in enumerate(part.attrib.items()):
        space, _, plain = key.rpartition("}")
        if space == "{" + XML:
            plain = f"xml:{plain}"
        elif space:
            opening.append(f"xmlns:n{index}={quoteattr(space[1:])}")
            plain = f"n{index}:{plain}"
        opening.append(f"{plain}={quoteattr(value)}")
    inner = escape(part.text or "") + "".join(
        _written(inside, namespace) + escape(inside.tail or "") for inside in part
    )
    return f"<{' '.join(opening)}>{inner}</{name}>" if inner else f"<{' '.join(opening)}/>"
