"""The frames: one class a type, and the class *is* the layout.  Pure.

The fields of a class in their order, each with the codec that its annotation names, are the bytes; so
`docs/fabric.md` and this file cannot drift (a test reads both).  What does not decode to exactly its last
byte is a `RemoteProtocolError`, whatever the bytes.
"""

from __future__ import annotations

import enum
import typing
from typing import ClassVar

import msgspec

from shards.errors import LocalProtocolError, RemoteProtocolError
from shards.wire.codec import (
    U8,
    U16,
    U32,
    U64,
    AckList,
    Codec,
    Key32,
    Reader,
    Rest,
    Spans,
    Text8,
    Text16,
    Topic,
    Topics,
)

# Specification constants (frames.md).
NOISE_PLAINTEXT_BYTES_MAX = 65_519  # a Noise message of 65,535 bytes without its tag
FRAME_HEADER_BYTES = 2
FRAME_BODY_BYTES_MAX = NOISE_PLAINTEXT_BYTES_MAX - FRAME_HEADER_BYTES
CHAIN_FRAMES_MAX = 17  # one envelope of 1 MiB and its headers
MORE = 1

# Ours.
CHAIN_BYTES_MAX = CHAIN_FRAMES_MAX * FRAME_BODY_BYTES_MAX
NEVER = 2**64 - 1
"""A position that no journal reaches: "no end" in SUBSCRIBE and SEEK."""
NO_RETRY = 2**32 - 1
"""In `retry_ms`: trying again does not help."""


class Code(enum.IntEnum):
    """Why something was refused: the closed set of NAK and BYE."""

    NOT_GRANTED = 1
    """No grant, or a name of another tenant, or no such name: the three cannot be told apart."""
    MALFORMED = 2
    OVERLOADED = 3
    """A bound of the broker is reached; again after `retry_ms`."""
    OVERLAP = 4
    """Part of the batch was accepted before under its sequence numbers: send the records one by one."""
    LOG_FULL = 5
    TRIMMED = 6
    """Retention has taken the wanted records; `text` is the oldest position left."""
    LIMIT = 7
    """Too many subscriptions, groups, topics or open requests."""
    CONFLICT = 8
    """The group exists with other topics and members, or a seek runs into another."""
    REVOKED = 9
    """The principal was suspended or revoked, or has another key now."""
    CLOSING = 10
    SPENT = 11
    """The invite was used or has expired."""

    @property
    def word(self) -> str:
        return self.name.lower()


class Start(enum.IntEnum):
    """Where a subscription begins; EARLIEST and LATEST only when its group has no position."""

    EARLIEST = 0
    LATEST = 1
    POSITION = 2
    """At `at`; a group's position is set to it."""
    OFFSET = 3
    """`at` is an offset of the one topic; for plain tails."""
    RESUME = 4
    """As POSITION, but for a group `at` counts only where it has no position: after a lost link."""


class Frame(msgspec.Struct, frozen=True, gc=False):
    """Base of all frames: `TYPE` is the first byte, `CHAINS` says whether the body may go on."""

    TYPE: ClassVar[int] = 0
    CHAINS: ClassVar[bool] = False


class Publish(Frame, frozen=True):
    """Client: append `batch` (layout below) to `topic`.  Record i has the number `sequence` + i."""

    TYPE: ClassVar[int] = 1
    CHAINS: ClassVar[bool] = True
    request: U64
    topic: Topic
    epoch: U64
    sequence: U64
    batch: Rest


class Ack(Frame, frozen=True):
    """Broker: these are done; a publish is on disk.  Many requests in one frame."""

    TYPE: ClassVar[int] = 2
    acked: AckList


class Nak(Frame, frozen=True):
    """Broker: refused, or a subscription ended; nothing of it was kept."""

    TYPE: ClassVar[int] = 3
    request: U64
    code: U8
    retry_ms: U32
    text: Text16


class Subscribe(Frame, frozen=True):
    """Client: deliver these topics in journal order.  Group "": a plain tail; topics null: the journal."""

    TYPE: ClassVar[int] = 4
    CHAINS: ClassVar[bool] = True
    request: U64
    group: Text8
    start: U8
    at: U64
    stop: U64
    credit_records: U32
    credit_bytes: U32
    topics: Topics


class Subscribed(Frame, frozen=True):
    """Broker: the subscription stands; it goes on at `position`, the journal's head is `head`."""

    TYPE: ClassVar[int] = 5
    request: U64
    position: U64
    head: U64


class Deliver(Frame, frozen=True):
    """Broker: runs of records, in journal order but for what comes again.  `runs`: see `Run`."""

    TYPE: ClassVar[int] = 6
    CHAINS: ClassVar[bool] = True
    request: U64
    runs: Rest


class Done(Frame, frozen=True):
    """Client: the member has finished these positions; earlier ones of the same key with them."""

    TYPE: ClassVar[int] = 7
    request: U64
    spans: Spans


class Release(Frame, frozen=True):
    """Client: given back, to be delivered again after `delay_ms`."""

    TYPE: ClassVar[int] = 8
    request: U64
    delay_ms: U32
    reason: Text16
    spans: Spans


class Dead(Frame, frozen=True):
    """Client: this record goes to the group's dead letters and counts as done."""

    TYPE: ClassVar[int] = 9
    request: U64
    position: U64
    code: Text8
    reason: Text16


class Credit(Frame, frozen=True):
    """Client: so much more may be delivered on a plain tail (a group's credit comes back with DONE)."""

    TYPE: ClassVar[int] = 10
    request: U64
    records: U32
    bytes_: U32


class Request(Frame, frozen=True):
    """Client: ask whoever responds to `topic`."""

    TYPE: ClassVar[int] = 11
    CHAINS: ClassVar[bool] = True
    request: U64
    deadline_ms_left: U32
    topic: Topic
    trace_id: Text8
    body: Rest


class Call(Frame, frozen=True):
    """Broker to a responder: a request, stamped with who asks."""

    TYPE: ClassVar[int] = 12
    CHAINS: ClassVar[bool] = True
    call: U64
    deadline_ms_left: U32
    topic: Topic
    principal: Text8
    tenant: Text8
    trace_id: Text8
    body: Rest


class Reply(Frame, frozen=True):
    """Responder to broker under the call's number, broker to client under the request's; code "": success."""

    TYPE: ClassVar[int] = 13
    CHAINS: ClassVar[bool] = True
    request: U64
    code: Text8
    retry_ms: U32
    text: Text16
    body: Rest


class Respond(Frame, frozen=True):
    """Client: give me the requests of these topics, at most `concurrency` at once."""

    TYPE: ClassVar[int] = 14
    CHAINS: ClassVar[bool] = True
    request: U64
    concurrency: U16
    topics: Topics


class Ephemeral(Frame, frozen=True):
    """Client: pass this on to who listens now; memory only, no acknowledgement, shed first."""

    TYPE: ClassVar[int] = 15
    topic: Topic
    key: U64
    payload: Rest


class Seek(Frame, frozen=True):
    """Client: give the group the records of these topics in [start, stop) again."""

    TYPE: ClassVar[int] = 16
    CHAINS: ClassVar[bool] = True
    request: U64
    group: Text8
    start: U64
    stop: U64
    topics: Topics


class Ping(Frame, frozen=True):
    """Either side: are you there?"""

    TYPE: ClassVar[int] = 17
    token: U64


class Pong(Frame, frozen=True):
    """The answer; the broker's carries the position that the next record will get (a client's: 0)."""

    TYPE: ClassVar[int] = 18
    token: U64
    head: U64


class Bye(Frame, frozen=True):
    """Either side: the link ends now, and why."""

    TYPE: ClassVar[int] = 19
    code: U8
    text: Text16


class Enroll(Frame, frozen=True):
    """Client, first frame of a link made with an invite: the other two public keys."""

    TYPE: ClassVar[int] = 20
    signing: Key32
    lease: Key32


class Welcome(Frame, frozen=True):
    """Broker, first frame of every link: whom it takes the client for."""

    TYPE: ClassVar[int] = 21
    principal: Text8
    tenant: Text8
    head: U64


class Close(Frame, frozen=True):
    """Client: no more under this number (a subscription, a responder, a request)."""

    TYPE: ClassVar[int] = 22
    request: U64


class Ended(Frame, frozen=True):
    """Broker: the subscription has reached its `stop`; all below `position` was delivered."""

    TYPE: ClassVar[int] = 23
    request: U64
    position: U64


FRAMES: tuple[type[Frame], ...] = (
    Publish,
    Ack,
    Nak,
    Subscribe,
    Subscribed,
    Deliver,
    Done,
    Release,
    Dead,
    Credit,
    Request,
    Call,
    Reply,
    Respond,
    Ephemeral,
    Seek,
    Ping,
    Pong,
    Bye,
    Enroll,
    Welcome,
    Close,
    Ended,
)


def layout_of(frame: type[Frame]) -> tuple[tuple[str, Codec], ...]:
    """The fields of a frame in wire order, with their codecs."""
    hints = typing.get_type_hints(frame, include_extras=True)
    return tuple((name, hints[name].__metadata__[0]) for name in frame.__struct_fields__)


_WRITERS = {frame: tuple((name, codec.write) for name, codec in layout_of(frame)) for frame in FRAMES}
_READERS = {frame.TYPE: (frame, tuple(codec.read for _, codec in layout_of(frame))) for frame in FRAMES}


def encode(frame: Frame) -> list[bytes]:
    """The plaintexts that carry the frame: one, or a chain where its type allows it.

    Raises:
        LocalProtocolError: A field does not fit its layout, or the frame its limit.
    """
    body = b"".join([write(getattr(frame, name)) for name, write in _WRITERS[type(frame)]])
    kind = frame.TYPE
    if len(body) <= FRAME_BODY_BYTES_MAX:
        return [bytes((kind, 0)) + body]
    if not frame.CHAINS or len(body) > CHAIN_BYTES_MAX:
        raise LocalProtocolError(f"{type(frame).__name__} of {len(body)} bytes is too large")
    more, last = bytes((kind, MORE)), bytes((kind, 0))
    cuts = range(0, len(body), FRAME_BODY_BYTES_MAX)
    pieces = [more + body[at : at + FRAME_BODY_BYTES_MAX] for at in cuts]
    pieces[-1] = last + pieces[-1][FRAME_HEADER_BYTES:]
    return pieces


def decode_body(kind: int, body: bytes) -> Frame:
    """One whole body as its frame.

    Raises:
        RemoteProtocolError: Unknown type, fields that do not fit, or bytes left over.
    """
    entry = _READERS.get(kind)
    if entry is None:
        raise RemoteProtocolError(f"unknown frame type {kind}")
    frame, readers = entry
    reader = Reader(body)
    fields = [read(reader) for read in readers]
    if reader.at != len(body):
        raise RemoteProtocolError(f"{frame.__name__} has {len(body) - reader.at} bytes too many")
    return frame(*fields)


class Assembly:
    """Joins chained frames of one link; at most one chain is open, and it is bounded."""

    __slots__ = ("_kind", "_pieces", "_size")

    def __init__(self) -> None:
        self._kind = 0
        self._pieces: list[bytes] = []
        self._size = 0

    def feed(self, plaintext: bytes) -> Frame | None:
        """The frame that this plaintext completes, or None in the middle of a chain.

        Raises:
            RemoteProtocolError: The bytes are no frame; the link must end.
        """
        if len(plaintext) < FRAME_HEADER_BYTES:
            raise RemoteProtocolError("a frame has at least a type and flags")
        kind, flags = plaintext[0], plaintext[1]
        if flags & ~MORE:
            raise RemoteProtocolError("unknown flags")
        body = plaintext[FRAME_HEADER_BYTES:]
        if self._pieces:
            if kind != self._kind:
                raise RemoteProtocolError("a frame of another type inside a chain")
            self._size += len(body)
            if self._size > CHAIN_BYTES_MAX or len(self._pieces) >= CHAIN_FRAMES_MAX:
                raise RemoteProtocolError("a chain is too long")
            self._pieces.append(body)
            if flags:
                return None
            body = b"".join(self._pieces)
            self._pieces = []
        elif flags:
            entry = _READERS.get(kind)
            if entry is None or not entry[0].CHAINS:
                raise RemoteProtocolError(f"frames of type {kind} do not chain")
            self._kind, self._size, self._pieces = kind, len(body), [body]
            return None
        return decode_body(kind, body)
