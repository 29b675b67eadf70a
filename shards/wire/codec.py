"""How one field lies on the wire: numbers, texts, topics, spans, acknowledgements.  Pure."""

from __future__ import annotations

import functools
import struct
import typing
from collections.abc import Callable, Sequence
from typing import Annotated, Any

from shards.errors import LocalProtocolError, RemoteProtocolError, ShardsError
from shards.record import check_topic

TOPICS_MAX = 1024
SPANS_MAX = 4096

_SPAN = struct.Struct(">QI")
_ACK = struct.Struct(">QQQB")


class Reader:
    """A cursor over one frame's body that cannot read past its end."""

    __slots__ = ("at", "body")

    def __init__(self, body: bytes) -> None:
        self.body = body
        self.at = 0

    def take(self, n: int) -> bytes:
        end = self.at + n
        if end > len(self.body):
            raise RemoteProtocolError("a frame is shorter than its fields")
        piece = self.body[self.at : end]
        self.at = end
        return piece

    def unpack(self, layout: struct.Struct) -> tuple[Any, ...]:
        at = self.at
        self.at = end = at + layout.size
        if end > len(self.body):
            raise RemoteProtocolError("a frame is shorter than its fields")
        return layout.unpack_from(self.body, at)

    def rest(self) -> bytes:
        piece = self.body[self.at :]
        self.at = len(self.body)
        return piece


class Codec:
    """How one field lies on the wire.  `layout` is its name in the documentation."""

    __slots__ = ("layout", "read", "write")

    def __init__(self, layout: str, write: Callable[[Any], bytes], read: Callable[[Reader], Any]) -> None:
        self.layout = layout
        self.write = write
        self.read = read


def _number(layout: str, packed: str) -> Codec:
    fixed = struct.Struct(">" + packed)

    def write(value: int) -> bytes:
        try:
            return fixed.pack(value)
        except struct.error as exc:
            raise LocalProtocolError(f"{value} does not fit {layout}") from exc

    return Codec(layout, write, lambda reader: reader.unpack(fixed)[0])


def write_text(text: str, *, width: int) -> bytes:
    raw = text.encode()
    if len(raw) >= 1 << 8 * width:
        raise LocalProtocolError("a text is too long for its field")
    return len(raw).to_bytes(width, "big") + raw


def read_text(reader: Reader, *, width: int) -> str:
    raw = reader.take(int.from_bytes(reader.take(width), "big"))
    try:
        return raw.decode()
    except UnicodeDecodeError as exc:
        raise RemoteProtocolError("a text is not UTF-8") from exc


@functools.lru_cache(maxsize=4096)
def _topic(raw: bytes) -> str:
    try:
        return check_topic(raw.decode("ascii"))
    except (UnicodeDecodeError, ShardsError) as exc:
        raise RemoteProtocolError("a topic is malformed") from exc


def read_topic(reader: Reader) -> str:
    return _topic(reader.take(reader.take(1)[0]))


def _write_topics(topics: tuple[str, ...] | None) -> bytes:
    if topics is None:
        return b"\xff\xff"
    if len(topics) > TOPICS_MAX:
        raise LocalProtocolError(f"at most {TOPICS_MAX} topics in one subscription")
    return len(topics).to_bytes(2, "big") + b"".join([write_text(topic, width=1) for topic in topics])


def _read_topics(reader: Reader) -> tuple[str, ...] | None:
    n = int.from_bytes(reader.take(2), "big")
    if n == 0xFFFF:
        return None
    if n > TOPICS_MAX:
        raise RemoteProtocolError("too many topics")
    return tuple([read_topic(reader) for _ in range(n)])


def _write_spans(spans: tuple[tuple[int, int], ...]) -> bytes:
    if len(spans) > SPANS_MAX:
        raise LocalProtocolError(f"at most {SPANS_MAX} spans in one frame")
    return len(spans).to_bytes(2, "big") + b"".join([_SPAN.pack(first, n) for first, n in spans])


def _read_spans(reader: Reader) -> tuple[tuple[int, int], ...]:
    n = int.from_bytes(reader.take(2), "big")
    if n > SPANS_MAX:
        raise RemoteProtocolError("too many spans")
    return tuple(typing.cast("list[tuple[int, int]]", [reader.unpack(_SPAN) for _ in range(n)]))


class Acked(typing.NamedTuple):
    """One accepted request: for a publish where its first record is, else zeros."""

    request: int
    offset: int
    position: int
    duplicate: bool


def _read_acked(reader: Reader) -> tuple[Acked, ...]:
    n = int.from_bytes(reader.take(2), "big")
    return tuple([Acked(a, b, c, d == 1) for a, b, c, d in [reader.unpack(_ACK) for _ in range(n)]])


def _write_acked(acked: tuple[Acked, ...]) -> bytes:
    return len(acked).to_bytes(2, "big") + b"".join([_ACK.pack(*ack) for ack in acked])


U8 = Annotated[int, _number("u8", "B")]
U16 = Annotated[int, _number("u16", "H")]
U32 = Annotated[int, _number("u32", "I")]
U64 = Annotated[int, _number("u64", "Q")]
Text8 = Annotated[
    str,
    Codec("text8", functools.partial(write_text, width=1), functools.partial(read_text, width=1)),
]
Text16 = Annotated[
    str,
    Codec("text16", functools.partial(write_text, width=2), functools.partial(read_text, width=2)),
]
Topic = Annotated[str, Codec("topic", functools.partial(write_text, width=1), read_topic)]
Topics = Annotated[tuple[str, ...] | None, Codec("topics", _write_topics, _read_topics)]
Spans = Annotated[tuple[tuple[int, int], ...], Codec("spans", _write_spans, _read_spans)]
Rest = Annotated[bytes, Codec("rest", bytes, Reader.rest)]
AckList = Annotated[tuple[Acked, ...], Codec("acks", _write_acked, _read_acked)]


def _write_key(key: bytes) -> bytes:
    if len(key) != 32:
        raise LocalProtocolError("a public key has 32 bytes")
    return key


Key32 = Annotated[bytes, Codec("key32", _write_key, lambda reader: reader.take(32))]


def spans_of(positions: Sequence[int]) -> tuple[tuple[int, int], ...]:
    """Ascending positions as (first, n) spans."""
    spans: list[tuple[int, int]] = []
    for position in positions:
        if spans and spans[-1][0] + spans[-1][1] == position:
            spans[-1] = (spans[-1][0], spans[-1][1] + 1)
        else:
            spans.append((position, 1))
    return tuple(spans)
