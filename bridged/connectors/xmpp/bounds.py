"""A pull parser for a stream of stanzas that refuses what XMPP forbids, and too much of anything.  Pure."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast
from xml.etree import ElementTree

from bridged.connectors.xmpp.stanza import Element

# Ours.
STANZA_BYTES_MAX = 1_048_576
DEPTH_MAX = 64

_DECLARATION = b"<!DOCTYPE"


class BoundedParser:
    """What slixmpp's stream wants of a pull parser.                                 RFC 6120, section 11.1

    Comments, processing instructions and document types end it, as do a stanza of more than
    `STANZA_BYTES_MAX` bytes and elements deeper than `DEPTH_MAX`.
    """

    def __init__(self) -> None:
        self.stanza_bytes = 0
        """Size of the stanza that ended last; of several in one read the first bears them all."""
        self._pull: ElementTree.XMLPullParser[Any] = ElementTree.XMLPullParser(
            ("start", "end", "comment", "pi")
        )
        self._depth = 0
        self._bytes = 0
        self._tail = b""
        self._is_refused = False

    def feed(self, data: bytes) -> None:
        """Take bytes of the stream; a fault shows in `read_events`."""
        self._bytes += len(data)
        # A declaration may lie across reads.  expat bounds what entities grow to; this refuses them all.
        around = self._tail + data
        if self._bytes > STANZA_BYTES_MAX or _DECLARATION in around:
            self._is_refused = True
            return
        self._tail = around[-(len(_DECLARATION) - 1) :]
        self._pull.feed(data)

    def read_events(self) -> Iterator[tuple[str, Element]]:
        """Starts and ends of elements.  Raises ElementTree.ParseError for what is refused."""
        if not self._is_refused:
            for item in self._pull.read_events():
                event, found = cast(tuple[str, Element], item)
                if event == "start":
                    self._depth += 1
                    self._is_refused = self._depth > DEPTH_MAX
                elif event == "end":
                    self._depth -= 1
                    if self._depth == 1:
                        self.stanza_bytes, self._bytes = self._bytes, 0
                else:
                    self._is_refused = True
                if self._is_refused:
                    break
                yield event, found
        if self._is_refused:
            raise ElementTree.ParseError("the stream holds what XMPP forbids, or too much of it")
