"""What is to be published: coalesced into signed batches, kept until acknowledged, sent again after a lost link.

A record joins the open batch of its topic unless a later batch already holds its key, so records of one key
never change places.  A batch goes at once while few are in flight; after that, company is waited for until an
acknowledgement comes (Nagle without the delay).
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Sequence

import attrs
import trio

from shards import merkle, wire
from shards.errors import LocalProtocolError, LogFull, NotGranted, ShardsError
from shards.record import PAYLOAD_BYTES_MAX

EAGER_BATCHES = 4
"""In flight, before a batch that is not full waits for company."""
WINDOW_BATCHES = 64
WINDOW_OCTETS = 2 << 20
QUEUE_OCTETS = 8 << 20
"""Beyond it `publish` waits before it takes more."""


@attrs.frozen(kw_only=True)
class Published:
    """Where the first record of a publish is, on disk."""

    offset: int
    position: int
    duplicate: bool
    """It had been accepted before, under the same epoch and sequence."""


class Call:
    """One call of `publish`: done when all of its records are acknowledged."""

    __slots__ = ("_first", "error", "event", "waiting")

    def __init__(self, n: int) -> None:
        self.waiting = n
        self.event = trio.Event()
        self.error: ShardsError | None = None
        self._first: Published | None = None

    def acked(self, offset: int, position: int, *, duplicate: bool) -> None:
        if self._first is None or position < self._first.position:
            self._first = Published(offset=offset, position=position, duplicate=duplicate)
        self.waiting -= 1
        if not self.waiting:
            self.event.set()

    def fail(self, error: ShardsError) -> None:
        if self.error is None:
            self.error = error
        self.event.set()

    def result(self) -> Published:
        if self.error is not None:
            raise self.error
        assert self._first is not None
        return self._first


class _Batch:
    __slots__ = ("calls", "epoch", "frame", "keys", "octets", "ordinal", "payloads", "sequence", "topic")

    def __init__(self, topic: str, ordinal: int, epoch: int | None, sequence: int) -> None:
        self.topic = topic
        self.ordinal = ordinal
        self.epoch = epoch
        self.sequence = sequence
        self.keys: list[int] = []
        self.payloads: list[bytes] = []
        self.calls: list[Call] = []
        self.octets = 0
        self.frame: wire.Publish | None = None

    @property
    def is_full(self) -> bool:
        return len(self.keys) >= wire.BATCH_RECORDS_MAX or self.octets >= wire.BATCH_BYTES_SOFT

    def has_room(self, octets: int) -> bool:
        return len(self.keys) < wire.BATCH_RECORDS_MAX and self.octets + octets <= wire.BATCH_BYTES_SOFT

    def add(self, key: int, payload: bytes, call: Call) -> None:
        self.keys.append(key)
        self.payloads.append(payload)
        self.calls.append(call)
        self.octets += len(payload) + 12


class Publisher:
    """The publishing half of a client.  Plain functions: `send` is the link's, or drops the frame."""

    def __init__(
        self,
        *,
        epoch: int,
        seed: bytes,
        numbers: itertools.count[int],
        send: Callable[[wire.Frame], None],
        is_linked: Callable[[], bool],
    ) -> None:
        self._epoch = epoch
        self._seed = seed
        self._numbers = numbers
        self._send = send
        self._is_linked = is_linked
        self._sequence = 1
        self._ordinals = itertools.count()
        self._queue: deque[_Batch] = deque()
        self._open: dict[str, _Batch] = {}
        self._last_of_key: dict[int, int] = {}
        self._flight: dict[int, _Batch] = {}
        self._flight_octets = 0
        self._queued_octets = 0
        self._room = trio.Event()
        self.refused = trio.Event()
        """The broker is overloaded: `resend` after a while."""
        self._holding = False

    @property
    def unacknowledged(self) -> int:
        """Records that were taken and are not on disk, as far as is known."""
        return sum(len(batch.keys) for batch in (*self._queue, *self._flight.values()))

    async def wait_room(self) -> None:
        """Wait while too much is queued."""
        while self._queued_octets > QUEUE_OCTETS:
            if self._room.is_set():
                self._room = trio.Event()
            await self._room.wait()

    def add(
        self, topic: str, payloads: Sequence[bytes], key: int, epoch: int | None, sequence: int | None
    ) -> Call:
        """Queue the payloads as records of one key.

        Raises:
            LocalProtocolError: No payload, one over 1 MiB, or an epoch without a sequence.
        """
        if not payloads or (epoch is None) != (sequence is None):
            raise LocalProtocolError("a publish has at least one payload, and a sequence with an epoch")
        if max(map(len, payloads)) > PAYLOAD_BYTES_MAX:
            raise LocalProtocolError(f"a payload has at most {PAYLOAD_BYTES_MAX} bytes")
        call = Call(len(payloads))
        for index, payload in enumerate(payloads):
            at = 0 if sequence is None else sequence + index
            batch = self._batch_for(topic, key, len(payload) + 12, epoch, at)
            batch.add(key, bytes(payload), call)
            self._last_of_key[key] = batch.ordinal
            self._queued_octets += len(payload) + 12
        self.pump()
        return call

    def withdraw(self, call: Call) -> None:
        """The caller has given up: what of it was not sent is not sent.  Outbox rows stay: they are promised."""
        for batch in self._queue:
            if batch.epoch is None and call in batch.calls:
                kept = [
                    entry
                    for entry in zip(batch.keys, batch.payloads, batch.calls, strict=True)
                    if entry[2] is not call
                ]
                self._queued_octets -= batch.octets
                batch.keys, batch.payloads, batch.calls, batch.octets = [], [], [], 0
                for entry in kept:
                    batch.add(*entry)
                self._queued_octets += batch.octets

    def pump(self) -> None:
        """Send what may go."""
        while self._queue and self._is_linked() and not self._holding:
            batch = self._queue[0]
            busy = len(self._flight)
            if busy >= WINDOW_BATCHES or self._flight_octets >= WINDOW_OCTETS:
                return
            if busy >= EAGER_BATCHES and not batch.is_full and len(self._queue) <= EAGER_BATCHES:
                return
            self._queue.popleft()
            if self._open.get(batch.topic) is batch:
                del self._open[batch.topic]
            if not self._queue:
                self._last_of_key.clear()
            self._queued_octets -= batch.octets
            if batch.keys:
                self._send_batch(batch)
        if self._queued_octets <= QUEUE_OCTETS:
            self._room.set()

    def resend(self) -> None:
        """Send all that is in flight again, in order: after a lost link or an overload."""
        self._holding = False
        for batch in self._flight.values():
            assert batch.frame is not None
            self._send(batch.frame)
        self.pump()

    def acked(self, ack: wire.Acked) -> bool:
        """True when the acknowledgement was of a batch."""
        batch = self._take(ack.request)
        if batch is None:
            return False
        for index, call in enumerate(batch.calls):
            call.acked(ack.offset + index, ack.position + index, duplicate=ack.duplicate)
        self.pump()
        return True

    def refuse(self, nak: wire.Nak) -> bool:
        """True when the refusal was of a batch."""
        if nak.code == wire.Code.OVERLOADED:
            if nak.request in self._flight:
                self._holding = True
                self.refused.set()
                return True
            return False
        batch = self._take(nak.request)
        if batch is None:
            return False
        if nak.code == wire.Code.OVERLAP and len(batch.keys) > 1:
            for index, entry in enumerate(zip(batch.keys, batch.payloads, batch.calls, strict=True)):
                alone = _Batch(batch.topic, batch.ordinal, batch.epoch, batch.sequence + index)
                alone.add(*entry)
                self._send_batch(alone)
            return True
        error = _error_of(nak)
        for call in batch.calls:
            call.fail(error)
        self.pump()
        return True

    def fail_all(self, error: ShardsError) -> None:
        """The client can never be linked again."""
        for batch in (*self._flight.values(), *self._queue):
            for call in batch.calls:
                call.fail(error)
        self._flight.clear()
        self._queue.clear()
        self._open.clear()
        self._queued_octets = 0
        self._room.set()

    def _batch_for(self, topic: str, key: int, octets: int, epoch: int | None, sequence: int) -> _Batch:
        batch = self._open.get(topic)
        if (
            batch is not None
            and batch.has_room(octets)
            and batch.epoch == epoch
            and (epoch is None or batch.sequence + len(batch.keys) == sequence)
            and self._last_of_key.get(key, -1) <= batch.ordinal
        ):
            return batch
        batch = self._open[topic] = _Batch(topic, next(self._ordinals), epoch, sequence)
        self._queue.append(batch)
        return batch

    def _send_batch(self, batch: _Batch) -> None:
        if batch.epoch is None:
            batch.epoch, batch.sequence = self._epoch, self._sequence
            self._sequence += len(batch.keys)
        signature = merkle.sign_batch(batch.payloads, self._seed).signature
        body = wire.encode_batch(batch.keys, batch.payloads, signature)
        request = next(self._numbers)
        batch.frame = wire.Publish(request, batch.topic, batch.epoch, batch.sequence, body)
        self._flight[request] = batch
        self._flight_octets += batch.octets
        self._send(batch.frame)

    def _take(self, request: int) -> _Batch | None:
        batch = self._flight.pop(request, None)
        if batch is not None:
            self._flight_octets -= batch.octets
        return batch


def _error_of(nak: wire.Nak) -> ShardsError:
    if nak.code == wire.Code.NOT_GRANTED:
        return NotGranted(nak.text, hint="bridgectl grants list")
    if nak.code == wire.Code.LOG_FULL:
        return LogFull(nak.text, hint="free disk space or trim the log")
    return ShardsError(nak.text or "the broker refused")
