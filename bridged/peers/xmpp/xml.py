"""A small XML tree and a strict incremental parser for streams.  Pure.

Of XML a stream may hold elements, attributes and text: document types, entities of one's own, processing
instructions and comments are refused, and what is too large or too deep is, before it is whole.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Union
from xml.parsers import expat

import attrs

from bridged.peers.xmpp import ns

DEPTH_MAX = 64
ATTRIBUTES_MAX = 64


class XmlRefused(Exception):
    """The stream must end; `condition` is the stream error's name."""

    def __init__(self, condition: str, text: str = "") -> None:
        super().__init__(f"{condition}: {text}" if text else condition)
        self.condition = condition
        self.text = text


@attrs.define(eq=False)
class Element:
    """One element.  Attributes are by local name; those with a namespace as `{ns}name`, `xml:lang` as itself."""

    space: str
    name: str
    attributes: dict[str, str] = attrs.field(factory=dict)
    children: list[Node] = attrs.field(factory=list)

    def get(self, attribute: str) -> str | None:
        return self.attributes.get(attribute)

    def is_a(self, space: str, name: str) -> bool:
        return self.space == space and self.name == name

    def elements(self) -> Iterator[Element]:
        """The children that are elements."""
        return (child for child in self.children if isinstance(child, Element))

    def find(self, space: str, name: str) -> Element | None:
        """The first child of that name."""
        return next((e for e in self.elements() if e.is_a(space, name)), None)

    def find_in(self, space: str) -> Element | None:
        """The first child of that namespace."""
        return next((e for e in self.elements() if e.space == space), None)

    def find_all(self, space: str, name: str) -> list[Element]:
        return [e for e in self.elements() if e.is_a(space, name)]

    @property
    def text(self) -> str:
        """The text directly inside."""
        return "".join(child for child in self.children if isinstance(child, str))

    def text_of(self, space: str, name: str) -> str | None:
        """The text of the first child of that name, None without one."""
        found = self.find(space, name)
        return found.text if found is not None else None

    def add(self, *nodes: Node) -> Element:
        """Append children and return the element itself."""
        self.children.extend(nodes)
        return self

    def copy(self, **attributes: str | None) -> Element:
        """A copy, the children's list its own but the children shared; None takes an attribute away."""
        changed = {**self.attributes, **{k: v for k, v in attributes.items() if v is not None}}
        for key, value in attributes.items():
            if value is None:
                changed.pop(key, None)
        return Element(self.space, self.name, changed, list(self.children))

    def without(self, *names: tuple[str, str]) -> Element:
        """A copy without the children of these (namespace, name)."""
        made = self.copy()
        made.children = [
            c for c in made.children if not (isinstance(c, Element) and (c.space, c.name) in names)
        ]
        return made

    def __str__(self) -> str:
        return serialize(self)


Node = Union[Element, str]  # noqa: UP007  (a forward reference at run time)


def el(space: str, name: str, attributes: Mapping[str, str | None] | None = None, *nodes: Node) -> Element:
    """Make an element; attributes that are None are left out."""
    given = {key: value for key, value in (attributes or {}).items() if value is not None}
    return Element(space, name, given, list(nodes))


def escape_text(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def escape_attribute(text: str) -> str:
    return (
        escape_text(text)
        .replace("'", "&apos;")
        .replace("\t", "&#9;")
        .replace("\n", "&#10;")
        .replace("\r", "&#13;")
    )


def serialize(element: Element, inherited: str = ns.CLIENT) -> str:
    """The element as text, inside a stream whose default namespace is `inherited`."""
    prefix = "stream:" if element.space == ns.STREAM else ""
    parts = [f"<{prefix}{element.name}"]
    inner = inherited
    if not prefix and element.space != inherited:
        parts.append(f" xmlns='{escape_attribute(element.space)}'")
        inner = element.space
    for number, (key, value) in enumerate(element.attributes.items()):
        if key.startswith("{"):
            space, _, local = key[1:].partition("}")
            parts.append(
                f" xmlns:a{number}='{escape_attribute(space)}' a{number}:{local}='{escape_attribute(value)}'"
            )
        else:
            parts.append(f" {key}='{escape_attribute(value)}'")
    if not element.children:
        return "".join(parts) + "/>"
    parts.append(">")
    for child in element.children:
        parts.append(serialize(child, inner) if isinstance(child, Element) else escape_text(child))
    parts.append(f"</{prefix}{element.name}>")
    return "".join(parts)


@attrs.frozen
class Opened:
    """The stream's header."""

    attributes: Mapping[str, str]
    namespace: str


@attrs.frozen
class Closed:
    """The stream's end tag."""


Event = Union[Opened, Element, Closed]  # noqa: UP007


class StreamParser:
    """Bytes in, stream header, whole children and the end out.

    Args:
        bytes_max: What one child may take, counted while it is still unfinished.
    """

    def __init__(self, bytes_max: int) -> None:
        self.bytes_max = bytes_max
        self._parser = expat.ParserCreate(encoding="utf-8", namespace_separator=" ")
        self._parser.buffer_text = True
        self._parser.StartElementHandler = self._start
        self._parser.EndElementHandler = self._end
        self._parser.CharacterDataHandler = self._characters
        self._parser.StartDoctypeDeclHandler = self._refuse
        self._parser.EntityDeclHandler = self._refuse
        self._parser.ProcessingInstructionHandler = self._refuse
        self._parser.CommentHandler = self._refuse
        self._stack: list[Element] = []
        self._depth = 0
        self._fed = 0
        self._child_at = 0
        self._events: list[Event] = []

    def feed(self, data: bytes) -> list[Event]:
        """Take bytes and return what they complete.

        Raises:
            XmlRefused: `not-well-formed`, `restricted-xml` or `policy-violation`; the parser is of no use
                afterwards.  `events_before` has what came before it.
        """
        self._fed += len(data)
        try:
            self._parser.Parse(data, False)
        except expat.ExpatError as exc:
            raise XmlRefused("not-well-formed", expat.errors.messages.get(exc.code, "")) from None
        self._measure(self._fed)
        return self.events_before()

    def events_before(self) -> list[Event]:
        """The events that were not returned yet."""
        events, self._events = self._events, []
        return events

    def _measure(self, at: int) -> None:
        if at - self._child_at > self.bytes_max:
            raise XmlRefused("policy-violation", "stanza-too-big")

    def _start(self, full: str, attributes: dict[str, str]) -> None:
        space, _, name = full.rpartition(" ")
        given: dict[str, str] = {}
        if len(attributes) > ATTRIBUTES_MAX:
            raise XmlRefused("policy-violation", "too many attributes")
        for key, value in attributes.items():
            key_space, _, local = key.rpartition(" ")
            if key_space == ns.XML:
                given[f"xml:{local}"] = value
            else:
                given[f"{{{key_space}}}{local}" if key_space else local] = value
        self._depth += 1
        if self._depth == 1:
            if (space, name) != (ns.STREAM, "stream"):
                raise XmlRefused("invalid-namespace" if name == "stream" else "not-well-formed")
            self._events.append(Opened(given, space))
            self._child_at = self._parser.CurrentByteIndex
            return
        if self._depth > DEPTH_MAX:
            raise XmlRefused("policy-violation", "nested too deeply")
        if not self._stack:
            self._child_at = self._parser.CurrentByteIndex
        element = Element(space, name, given)
        if self._stack:
            self._stack[-1].children.append(element)
        self._stack.append(element)
        self._measure(self._parser.CurrentByteIndex)

    def _end(self, full: str) -> None:
        self._depth -= 1
        if self._depth == 0:
            self._events.append(Closed())
            return
        element = self._stack.pop()
        if not self._stack:
            self._measure_child()
            self._child_at = self._parser.CurrentByteIndex
            self._events.append(element)

    def _measure_child(self) -> None:
        if self._parser.CurrentByteIndex - self._child_at > self.bytes_max:
            raise XmlRefused("policy-violation", "stanza-too-big")

    def _characters(self, text: str) -> None:
        if not self._stack:
            self._child_at = self._parser.CurrentByteIndex  # text between children is nobody's
        else:
            children = self._stack[-1].children
            if children and isinstance(children[-1], str):
                children[-1] += text
            else:
                children.append(text)

    def _refuse(self, *_: object) -> None:
        raise XmlRefused("not-well-formed", "restricted XML")
