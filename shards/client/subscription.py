"""Records as they come: in journal order, with credit, surviving lost links."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Literal

import trio

from shards import merkle, wire
from shards.errors import LocalProtocolError, NotGranted, OffsetTrimmed, ShardsError
from shards.record import Record

CREDIT_OCTETS = 1 << 20
PASSING_MAX = 256
"""Ephemeral records that wait to be taken, one a key; the oldest is shed."""
SETTLED_MAX = 4096
SETTLED_S = 5.0
"""What was done so shortly before a link was lost may come again: then it is done again, and not shown."""
REASON_BYTES_MAX = 1000


class Subscription:
    """A consumer group's member, or a plain tail.  Made by `Client.subscribe`.

    Records of one key come in order, and no other member of the group has any of that key meanwhile.  `done`
    acknowledges a record and with it the earlier ones of its key.  One task at a time may `receive`.
    """

    def __init__(
        self,
        number: int,
        topics: tuple[str, ...] | None,
        *,
        group: str | None,
        start: wire.Start,
        at: int,
        stop: int,
        credit_records: int,
        send: Callable[[wire.Frame], None],
        kick: Callable[[Subscription], None],
        fence: Callable[[Subscription], int],
    ) -> None:
        self.number = number
        self.group = group
        self.head = 0
        """The journal's head when the subscription was made: records below it are backlog."""
        self.position = 0
        """Where it began."""
        self._topics = topics
        self._start = start
        self._at = at
        self._stop = stop
        self._credit = credit_records
        self._send = send
        self._kick = kick
        self._fence = fence
        self._fences: dict[int, tuple[int, int]] = {}
        """Released keys: the position from which, and the token whose answer shows that the broker heard of it."""
        self._made = trio.Event()
        self._wake = trio.Event()
        self._buffer: deque[Record] = deque()
        self._passing: OrderedDict[tuple[str, int], Record] = OrderedDict()
        self._done: list[int] = []
        self._held_back: list[Record] = []
        self._recent: OrderedDict[int, float] = OrderedDict()
        self._settled: set[int] = set()
        self._error: ShardsError | None = None
        self._is_ended = False
        self._is_receiving = False

    # What the application calls

    async def receive(self) -> list[Record]:
        """At least one record, in journal order.

        Raises:
            NotGranted: The grant was taken back, or the key.
            OffsetTrimmed: A plain tail was so slow that retention overtook it.
            trio.EndOfChannel: A replay has reached its end.
            trio.BusyResourceError: Another task is receiving.
        """
        if self._is_receiving:
            raise trio.BusyResourceError("another task is receiving from this subscription")
        self._is_receiving = True
        try:
            await trio.lowlevel.checkpoint()
            while not self._buffer and not self._passing:
                if self._error is not None:
                    raise self._error
                if self._is_ended:
                    raise trio.EndOfChannel
                self._wake = trio.Event()
                await self._wake.wait()
        finally:
            self._is_receiving = False
        records = list(self._buffer)
        self._buffer.clear()
        if records and self.group is None:
            self._at = records[-1].position + 1
            self._start = wire.Start.POSITION
            octets = sum(len(record.payload) for record in records)
            self._send(wire.Credit(self.number, len(records), octets))
        records.extend(self._passing.values())
        self._passing.clear()
        return records

    async def done(self, records: Sequence[Record]) -> None:
        """Acknowledge; returns when that is queued.  Of a plain tail or an ephemeral record: nothing to do."""
        await trio.lowlevel.checkpoint()
        self._note_done(records)

    async def release(self, records: Sequence[Record], *, delay_s: float = 0, reason: str = "") -> None:
        """Give records back: they come again after the delay, with `attempt` + 1.

        The later records of the same keys come again with them.  Those that `receive` has not returned yet are
        held back here; on those that it has, do not work.
        """
        await trio.lowlevel.checkpoint()
        if not self._positions(records):
            return
        self.flush_done()
        keys = {record.key for record in records if record.position >= 0}
        held_back = [record for record in self._buffer if record.key in keys]
        self._buffer = deque(record for record in self._buffer if record.key not in keys)
        self._give_back([*records, *held_back], delay_s, reason)
        token = self._fence(self)
        for record in records:
            _, first = self._fences.get(record.key, (0, record.position))
            if record.position >= 0:
                self._fences[record.key] = token, min(first, record.position)

    async def dead(self, record: Record, *, code: str, reason: str) -> None:
        """Put the record to the group's dead letters; it counts as done."""
        await trio.lowlevel.checkpoint()
        if self._positions([record]):
            self.flush_done()
            self._send(wire.Dead(self.number, record.position, code, _short(reason)))

    def __aiter__(self) -> AsyncIterator[list[Record]]:
        return self

    async def __anext__(self) -> list[Record]:
        try:
            return await self.receive()
        except trio.EndOfChannel:
            raise StopAsyncIteration from None

    # What the client calls

    async def wait_made(self) -> None:
        """Until the broker has said SUBSCRIBED, or refused."""
        await self._made.wait()
        if self._error is not None:
            raise self._error

    def ask(self) -> None:
        """Send SUBSCRIBE: at first, and again on every new link."""
        if self._error is not None or self._is_ended:
            return
        if self._made.is_set():
            self._prepare_again()
        self._send(
            wire.Subscribe(
                self.number,
                self.group or "",
                self._start,
                self._at,
                self._stop,
                self._credit,
                CREDIT_OCTETS,
                self._topics,
            )
        )

    def subscribed(self, frame: wire.Subscribed) -> None:
        if not self._made.is_set():
            self.head, self.position = frame.head, frame.position
            if self.group is not None:
                # Once made, the group's own position counts; this one only if the broker had no time to keep it.
                self._start, self._at = wire.Start.RESUME, frame.position
            elif self._start is not wire.Start.POSITION:
                self._start, self._at = wire.Start.POSITION, frame.position
            self._made.set()

    def deliver(self, frame: wire.Deliver) -> None:
        """Raises RemoteProtocolError where the runs are malformed."""
        for form, run in wire.decode_runs(frame.runs):
            if form is wire.Form.EPHEMERAL:
                item = run.items[0]
                self._passing[run.topic, item.key] = _record(run, item, None)
                self._passing.move_to_end((run.topic, item.key))
                if len(self._passing) > PASSING_MAX:
                    self._passing.popitem(last=False)
            elif form is wire.Form.WHOLE:
                self._take_whole(run)
            else:
                for item in run.items:
                    self._take(_record(run, item, run))
        if self._held_back:
            self._give_back(self._held_back, 0, "")
            self._held_back = []
        self._wake.set()

    def fenced(self, token: int) -> None:
        """The broker has heard all that was said before this token."""
        self._fences = {key: fence for key, fence in self._fences.items() if fence[0] > token}

    def ended(self) -> None:
        self._is_ended = True
        self._wake.set()

    def fail(self, error: ShardsError) -> None:
        """Over for good: what is buffered may still be taken."""
        self._error = error
        self._made.set()
        self._wake.set()

    def refuse(self, nak: wire.Nak) -> None:
        if nak.code == wire.Code.TRIMMED and nak.text.isdecimal():
            first = int(nak.text)
            hint = "begin at the oldest position that is left"
            self.fail(OffsetTrimmed("retention has taken what was to come next", first=first, hint=hint))
        elif nak.code == wire.Code.NOT_GRANTED:
            self.fail(NotGranted(nak.text, hint="bridgectl grants list"))
        else:
            self.fail(ShardsError(nak.text, hint="bridgectl groups"))

    def flush_done(self) -> None:
        """Send what was acknowledged since the last time, in as few frames as it takes."""
        positions, self._done = self._done, []
        for spans in _frames_of(positions):
            self._send(wire.Done(self.number, spans))

    # Inside

    def _take_whole(self, run: wire.Run) -> None:
        batch = wire.decode_batch(run.body)
        tree = merkle.batch_of(batch.payloads, batch.signature)
        for index, payload in enumerate(batch.payloads):
            self._take(
                Record(
                    topic=run.topic,
                    offset=run.offset + index,
                    position=run.position + index,
                    key=batch.keys[index],
                    principal=run.principal,
                    at_ms=run.at_ms,
                    payload=payload,
                    proof=tree.proof(index),
                )
            )

    def _take(self, record: Record) -> None:
        fence = self._fences.get(record.key)
        if fence is not None:
            # The link keeps its order: later records of the key that come before the answer were sent before the
            # release.  The released one itself can only come anew, and what follows it does too.
            if record.position > fence[1]:
                self._held_back.append(record)
                return
            del self._fences[record.key]
        if self._settled and record.position in self._settled:
            self._settled.discard(record.position)
            self._note_done([record])
        else:
            self._buffer.append(record)

    def _give_back(self, records: Sequence[Record], delay_s: float, reason: str) -> None:
        delay_ms = max(0, min(int(delay_s * 1000), 2**32 - 1))
        for spans in _frames_of(self._positions(records)):
            self._send(wire.Release(self.number, delay_ms, _short(reason), spans))

    def _note_done(self, records: Sequence[Record]) -> None:
        positions = self._positions(records)
        if not positions:
            return
        now = trio.current_time()
        for position in positions:
            self._recent[position] = now
        while len(self._recent) > SETTLED_MAX:
            self._recent.popitem(last=False)
        self._done.extend(positions)
        self._kick(self)

    def _positions(self, records: Sequence[Record]) -> list[int]:
        if self.group is None:
            return []
        return [record.position for record in records if record.position >= 0]

    def _prepare_again(self) -> None:
        """A new link: the broker gives the group's records anew, a tail goes on after what came."""
        if self.group is None:
            if self._buffer:
                self._start, self._at = wire.Start.POSITION, self._buffer[-1].position + 1
            return
        self._buffer.clear()
        self._done.clear()
        self._fences.clear()
        since = trio.current_time() - SETTLED_S
        self._settled = {position for position, at in self._recent.items() if at >= since}


def _record(run: wire.Run, item: wire.Item, cut: wire.Run | None) -> Record:
    is_logged = cut is not None
    return Record(
        topic=run.topic,
        offset=run.offset + item.index if is_logged else -1,
        position=run.position + item.index if is_logged else -1,
        key=item.key,
        principal=run.principal,
        at_ms=run.at_ms,
        payload=item.payload,
        proof=run.proof(item) if is_logged else None,
        attempt=item.attempt,
    )


def _frames_of(positions: list[int]) -> list[tuple[tuple[int, int], ...]]:
    spans = wire.spans_of(sorted(set(positions)))
    return [spans[at : at + wire.SPANS_MAX] for at in range(0, len(spans), wire.SPANS_MAX)]


def _short(reason: str) -> str:
    return reason.encode()[:REASON_BYTES_MAX].decode(errors="ignore")


def start_of(start: Literal["earliest", "latest"] | int) -> tuple[wire.Start, int]:
    """The wire's start of a subscription.  Raises LocalProtocolError where it is none."""
    if start == "earliest":
        return wire.Start.EARLIEST, 0
    if start == "latest":
        return wire.Start.LATEST, 0
    if isinstance(start, int) and start >= 0:
        return wire.Start.POSITION, start
    raise LocalProtocolError('a subscription starts at "earliest", "latest" or a position')
