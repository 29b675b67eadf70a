"""What feeds subscriptions from the log: one task a consumer group, one a plain tail.

A feed reads where its position is, from memory or from disk, and hands on what credit allows.  So the slowest
consumer delays itself alone, and what it has not asked for stays on disk.
"""

from __future__ import annotations

import abc
from collections import deque
from collections.abc import Callable, Sequence
from typing import NoReturn

import attrs
import msgspec
import trio

from shards import wire
from shards.broker.outlet import Cutter, Outlet
from shards.errors import LogFull, OffsetTrimmed, ShardsError
from shards.groups import WAIT, Group, Progress
from shards.log import Log
from shards.record import BatchProof
from shards.store import DeadRow, GroupRow, Run, put_dead

STEP_RUNS = 128
"""Runs that a feed handles before it lets others go on."""
STEP_RECORDS = 512
JOURNAL_LINGER_S = 0.1
"""A group that reads the whole journal reads it for the record: nobody waits for it, so it is given in bulk."""
FULL_RETRY_S = 1.0
"""A dead letter waits for room on the disk."""


class Feed(abc.ABC):
    """Something that reads the journal for subscribers."""

    def __init__(self, log: Log, tenant: str, topics: tuple[str, ...] | None) -> None:
        self.log = log
        self.tenant = tenant
        self.topics = topics
        self.topic_set = None if topics is None else frozenset(topics)
        self.scope = trio.CancelScope()
        self.trimmed = 0
        """How often retention had taken what was to be read next."""
        self._wake = trio.Event()
        self._page: Sequence[Run] = ()
        """The last page from disk: what of it had to wait is soon asked for again."""

    @property
    @abc.abstractmethod
    def scan(self) -> int:
        """The journal position to be read next."""

    @abc.abstractmethod
    async def run(self) -> None:
        """Feed until cancelled."""

    @abc.abstractmethod
    def listeners(self) -> list[Outlet]:
        """Who should get an ephemeral record now."""

    def wake(self) -> None:
        """Something may be possible that was not."""
        self._wake.set()

    async def read(self, position: int) -> tuple[list[Run], int]:
        """Runs of this feed's topics from `position` on, and the position up to which that was all.

        Raises:
            OffsetTrimmed: Retention has taken `position`.
        """
        if position < self.log.first:
            raise OffsetTrimmed("retention has taken what was to come next", first=self.log.first)
        runs = self.log.tail(position, limit=STEP_RUNS)
        if runs is None:
            page = await self.log.page(position, tenant=self.tenant, topics=self.topics)
            self._page = page.runs
            return page.runs, page.next
        topics = self.topic_set
        tenant = self.tenant
        mine = [run for run in runs if run.tenant == tenant and (topics is None or run.topic in topics)]
        return mine, runs[-1].end if runs else self.log.head

    def run_in_memory(self, position: int) -> Run | None:
        """The run that holds this record, if the log or this feed has it in memory."""
        if position < self.log.first:
            return None
        runs = self.log.tail(position, limit=1) or self._page
        return next((run for run in runs if run.position <= position < run.end), None)

    async def run_from_disk(self, position: int) -> Run | None:
        """The run that holds this record; None where retention has taken it."""
        try:
            page = await self.log.page(position, limit_bytes=1, tenant=self.tenant, topics=self.topics)
        except OffsetTrimmed:
            return None
        return next((run for run in page.runs if run.position <= position < run.end), None)


class TailFeed(Feed):
    """A plain subscription: in journal order from a position on, as far as its credit goes."""

    def __init__(
        self,
        log: Log,
        tenant: str,
        topics: tuple[str, ...] | None,
        outlet: Outlet,
        *,
        position: int,
        stop: int,
        records: int,
        octets: int,
        ended: Callable[[wire.Frame], None],
    ) -> None:
        super().__init__(log, tenant, topics)
        self.outlet = outlet
        self._position = position
        self._stop = stop
        self._records = records
        self._octets = octets
        self._ended = ended

    @property
    def scan(self) -> int:
        return self._position

    def listeners(self) -> list[Outlet]:
        return [self.outlet] if self._stop == wire.NEVER else []

    def credit(self, records: int, octets: int) -> None:
        """The subscriber can take so much more."""
        self._records += records
        self._octets += octets
        self.wake()

    async def run(self) -> None:
        while True:
            self._wake = trio.Event()
            if self._position >= self._stop:
                self._ended(wire.Ended(self.outlet.request, self._stop))
                return
            if self._records <= 0 or self._octets <= 0 or self._position >= self.log.head:
                await self._wake.wait()
                continue
            await trio.lowlevel.checkpoint()
            try:
                runs, end = await self.read(self._position)
            except OffsetTrimmed as exc:
                self.trimmed += 1
                nak = wire.Nak(self.outlet.request, wire.Code.TRIMMED, wire.NO_RETRY, str(exc.first))
                self._ended(nak)
                return
            if all([self._give(run) for run in runs]):
                self._position = max(self._position, min(end, self._stop))
            self.outlet.flush()

    def _give(self, run: Run) -> bool:
        """Hand on what credit and `stop` allow of the run; False when something of it is left for later."""
        sizes = wire.batch_sizes(run.body)
        for position in range(max(run.position, self._position), min(run.end, self._stop)):
            if self._records <= 0 or self._octets <= 0:
                return False
            index = position - run.position
            self.outlet.add(run, index)
            self._records -= 1
            self._octets -= sizes[index]
            self._position = position + 1
        return True


@attrs.frozen
class _Death:
    """A record on its way to the dead letters."""

    position: int
    key: int
    code: str
    reason: str


class GroupFeed(Feed):
    """A consumer group: the journal through its state machine to its members."""

    def __init__(
        self,
        log: Log,
        tenant: str,
        name: str,
        topics: tuple[str, ...] | None,
        machine: Group,
        *,
        epoch: int,
        cutter: Cutter,
        changed: Callable[[GroupFeed], None],
    ) -> None:
        super().__init__(log, tenant, topics)
        self.name = name
        self.machine = machine
        self.epoch = epoch
        self.outlets: dict[int, Outlet] = {}
        self.is_running = False
        self.dead = 0
        self._cutter = cutter
        self._changed = changed
        self._deaths: deque[_Death] = deque()
        self._at: Run | None = None

    @property
    def scan(self) -> int:
        return self.machine.scan

    def listeners(self) -> list[Outlet]:
        """One member: an ephemeral record is for the group, not for each in it."""
        return [next(iter(self.outlets.values()))] if self.outlets else []

    def row(self) -> GroupRow:
        """What is stored of the group."""
        progress = self.machine.progress()
        return GroupRow(
            tenant=self.tenant,
            name=self.name,
            topics=self.topics,
            position=progress.position,
            epoch=self.epoch,
            state=progress.encode(),
        )

    # What members do; plain functions, called by the input loop

    def join(self, outlet: Outlet, *, records: int, octets: int) -> None:
        self.epoch += 1
        self.outlets[outlet.member] = outlet
        self.machine.join(outlet.member, records=records, octets=octets)
        self._note()

    def leave(self, member: int, *, fell: bool) -> None:
        if self.outlets.pop(member, None) is not None:
            self.machine.leave(member, fell=fell, now=trio.current_time())
            self._note()

    def done(self, member: int, spans: tuple[tuple[int, int], ...]) -> None:
        self.machine.done(member, spans, trio.current_time())
        self._note()

    def release(self, member: int, spans: tuple[tuple[int, int], ...], delay_s: float) -> None:
        now = trio.current_time()
        self.machine.release(member, spans, ready_at=now + delay_s if delay_s else 0.0, now=now)
        self._note()

    def bury(self, member: int, position: int, code: str, reason: str) -> None:
        """The member gives the record up; it counts as in flight until the dead letter is on disk."""
        key = self.machine.held_key(member, position)
        if key is not None and all(death.position != position for death in self._deaths):
            self._deaths.append(_Death(position, key, code, reason))
            self.wake()

    def seek(self, topics: tuple[str, ...] | None, start: int, stop: int) -> None:
        """Raises ShardsError when too many seeks run one over another."""
        self.machine.seek(topics, start, stop)
        self._deaths.clear()
        self._note()

    def set_position(self, position: int) -> None:
        self.machine.set_position(position)
        self._deaths.clear()
        self._note()

    def expire(self) -> None:
        """Called now and then: take back what made no progress."""
        before = self.machine.in_flight
        self.machine.expire(trio.current_time())
        if self.machine.in_flight != before:
            self._note()

    def _note(self) -> None:
        self._changed(self)
        self.wake()

    # The task

    async def run(self) -> NoReturn:
        while True:
            self._wake = trio.Event()
            moved = await self._bury_dead()
            moved = await self._give_waiting() or moved
            moved = await self._refill() or moved
            moved = await self._scan_on() or moved
            if moved:
                self._changed(self)
                await trio.lowlevel.checkpoint()
                continue
            with trio.move_on_at(self.machine.next_ready_at()):
                await self._wake.wait()
            if self.topics is None:
                await trio.sleep(JOURNAL_LINGER_S)

    async def _give_waiting(self) -> bool:
        """Deliver what waited for its key, its member or its time."""
        machine = self.machine
        given = 0
        while given < STEP_RECORDS:
            delivery = machine.next_ready(trio.current_time())
            if delivery is None:
                break
            given += 1
            position = delivery.position
            run = self._at
            if run is None or not run.position <= position < run.end:
                run = self.run_in_memory(position)
                if run is None:
                    self._flush()  # never sleep on what is assigned: it might be given back meanwhile
                    run = await self.run_from_disk(position)
                self._at = run
            if not machine.holds(delivery.member, position):
                continue  # while the disk was read the member left or the group was moved
            index = position - run.position if run is not None else 0
            key = run.keys[index] if run is not None else delivery.key
            if run is None or not machine.is_wanted(position, key, run.topic):
                self.trimmed += run is None
                machine.finish(position, key, trio.current_time())
                continue
            machine.charge(position, len(run.body) // run.n)
            self.outlets[delivery.member].add(run, index, delivery.attempt)
        self._flush()
        return given > 0

    async def _refill(self) -> bool:
        refills = self.machine.refills()
        for wanted in refills:
            found = await self.log.positions(
                self.tenant, self.topics, wanted.key, wanted.start, wanted.stop, wanted.limit
            )
            self.machine.refill(wanted, found)
        return bool(refills)

    async def _scan_on(self) -> bool:
        """Offer what lies at the scan, as far as anybody can take it."""
        machine = self.machine
        start = machine.scan
        if start >= self.log.head or not machine.can_scan():
            return False
        generation = machine.generation
        try:
            runs, end = await self.read(start)
        except OffsetTrimmed as exc:
            self.trimmed += 1
            machine.advance(exc.first)
            return True
        if machine.generation != generation:
            return True
        now = trio.current_time()
        if all(self._offer(run, now) for run in runs):
            machine.advance(end)
        self._flush()
        return machine.scan > start

    def _flush(self) -> None:
        for outlet in self.outlets.values():
            outlet.flush()

    def _offer(self, run: Run, now: float) -> bool:
        machine, outlets, topic = self.machine, self.outlets, run.topic
        each = len(run.body) // run.n
        first = max(machine.scan, run.position)
        if first > machine.scan:
            machine.advance(first)
        for index in range(first - run.position, run.n):
            if not machine.can_scan():
                return False
            member = machine.offer(run.position + index, run.keys[index], topic, each, now)
            if member == WAIT:
                return False
            if member is not None:
                outlets[member].add(run, index)
        return True

    async def _bury_dead(self) -> bool:
        while self.machine.exhausted:
            position, key = self.machine.exhausted.popleft()
            self._deaths.append(_Death(position, key, "attempts", "its consumer fell every time it had this"))
        deaths = list(self._deaths)
        if not deaths:
            return False
        generation = self.machine.generation
        runs = [
            (death, self.run_in_memory(death.position) or await self.run_from_disk(death.position))
            for death in deaths
        ]
        rows = [self._dead_row(death, run) for death, run in runs if run is not None]
        try:
            if rows:
                await self.log.database.write(lambda tx: [put_dead(tx, row) for row in rows])
        except LogFull:
            await trio.sleep(FULL_RETRY_S)
            return True
        self.dead += len(rows)
        if self.machine.generation == generation:  # else a seek has cleared them, and they come again
            for death in deaths:
                self._deaths.popleft()
                self.machine.finish(death.position, death.key, trio.current_time())
        return True

    def _dead_row(self, death: _Death, run: Run) -> DeadRow:
        index = death.position - run.position
        batch, tree = self._cutter.open(run)
        return DeadRow(
            tenant=self.tenant,
            group=self.name,
            position=death.position,
            topic=run.topic,
            offset=run.offset + index,
            key=run.keys[index],
            principal=run.principal,
            code=death.code,
            reason=death.reason,
            attempts=self.machine.attempt(death.position),
            at_ms=run.at_ms,
            payload=batch.payloads[index],
            proof=encode_proof(tree.proof(index)),
        )


def new_machine(
    progress: Progress, topics: tuple[str, ...] | None, *, attempts: int, visibility_s: float
) -> Group:
    """The state machine of a group; of the whole journal where it names no topics."""
    return Group(progress, whole=topics is None, attempts_max=attempts, visibility_s=visibility_s)


class _Proof(msgspec.Struct, frozen=True, array_like=True):
    signature: bytes
    root: bytes
    n: int
    index: int
    path: tuple[bytes, ...]


def encode_proof(proof: BatchProof) -> bytes:
    """A proof as it is kept with a dead letter."""
    return msgspec.msgpack.encode(_Proof(proof.signature, proof.root, proof.n, proof.index, proof.path))


def decode_proof(data: bytes) -> BatchProof:
    """Raises ShardsError where the bytes are not of `encode_proof`."""
    try:
        found = msgspec.msgpack.decode(data, type=_Proof)
    except msgspec.MsgspecError as exc:
        raise ShardsError("a dead letter's proof is damaged") from exc
    return BatchProof(
        signature=found.signature, root=found.root, n=found.n, index=found.index, path=found.path
    )
