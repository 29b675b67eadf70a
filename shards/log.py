"""The Log of a shard: appended by the broker, acknowledged after fsync, read from memory at the tail and from
pages behind it.

Batches of all tenants and topics that wait while the last commit runs become one segment.  Offsets and positions
are given inside the transaction; a repeat of (principal, epoch, sequence) is answered with what it got the first
time.  Nothing here blocks the Trio thread: the writer appends, a second connection reads.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import attrs
import trio

from shards.database import GROUP_BYTES_MAX, GROUP_ITEMS_MAX, Connection, Database, open_database
from shards.env import Env
from shards.errors import LocalProtocolError, LogFull, OffsetTrimmed, StorageFailed
from shards.record import check_topic
from shards.store import MIGRATIONS, PAGE_SIZE, journal
from shards.store.appender import Appended, Appender, Group
from shards.store.journal import Batch, Run, TopicRow
from shards.store.walk import Walk

__all__ = [
    "Appended",
    "Batch",
    "Log",
    "LogStatistics",
    "Page",
    "Run",
    "TopicStatistics",
    "Verified",
    "open_log",
]

RING_BYTES = 16 * 1_048_576
"""Newest records kept in memory for those who follow the tail."""
WAITING_BYTES_MAX = 64 * 1_048_576
"""Appended and not yet written; beyond this the disk does not keep up and appends are refused."""
BODY_BYTES_MAX = 2 * 1_048_576
BATCH_RECORDS_MAX = 65_535
NAME_CHARACTERS_MAX = 255
RUN_BYTES = 512
"""What a run costs in memory beside its body, roughly."""
SCAN_SEGMENTS = 64
TRIM_SEGMENTS = 64

AppendThen = Callable[[Appended | None, Exception | None], None]


@attrs.frozen(kw_only=True, slots=True)
class Page:
    """A stretch of the journal."""

    runs: list[Run]
    next: int
    """Where to go on: everything of the filter below it was looked at.  The head at the end."""


@attrs.frozen(kw_only=True, slots=True)
class TopicStatistics:
    """A topic since it began."""

    topic: str
    next_offset: int
    octets: int
    """Of all bodies that were ever appended."""
    last_at_ms: int


@attrs.frozen(kw_only=True, slots=True)
class LogStatistics:
    """The Log since it was opened, and where it stands."""

    head: int
    first: int
    flushed: int
    waiting: int
    waiting_octets: int
    ring_octets: int
    records: int
    octets: int
    duplicates: int
    segments: int


@attrs.frozen(kw_only=True, slots=True)
class Verified:
    """What `Log.verify` looked at."""

    segments: int
    records: int
    rows: int
    first: int
    head: int
    chain: bytes


@attrs.frozen(slots=True)
class _Waiting:
    batch: Batch
    then: AppendThen


@attrs.define(slots=True, eq=False)
class _Turn:
    """One transaction's share: filled by the writer, read on the Trio thread afterwards."""

    taken: list[_Waiting] = attrs.Factory(list)
    group: Group | None = None


class Log:
    """One shard's journal; made by `open_log`."""

    def __init__(self, env: Env, database: Database, ring_bytes: int) -> None:
        self.database = database
        """For the rows of `shards.store` that the broker keeps beside the records."""
        self.head = 0
        """The position that the next record gets, as far as commits have been acknowledged."""
        self.first = 0
        """The oldest position left."""
        self._env = env
        self._appender = Appender()  # the writer's; not touched here
        self._pending: deque[_Waiting] = deque()
        self._pending_octets = 0
        self._scheduled = False
        self._since_items = 0
        self._since_octets = 0
        self._moved = trio.Event()
        database.when_failed(self._wake)
        self._topics: dict[tuple[str, str], TopicRow] = {}
        self._topic_names: dict[int, tuple[str, str]] = {}
        self._publisher_names: dict[int, str] = {}
        self._publishers: set[tuple[str, str]] = set()
        self._ring: list[Run] = []
        self._ring_start = 0
        self._ring_octets = 0
        self._ring_bytes = ring_bytes
        self._flushed = 0
        self._unflushed: list[Run] = []
        self._indexed = 0
        self._index: dict[tuple[str, str, int], list[tuple[int, int]]] = {}
        self._upkeep = trio.Lock()
        self._records = self._octets = self._duplicates = self._segments = 0

    # ---------------------------------------------------------------- append

    def append(self, batch: Batch, then: AppendThen) -> None:
        """Queue a batch for the next commit.  Never blocks.

        Args:
            batch: n records of one topic.
            then: Called on the Trio thread with (Appended, None) once the batch is durable, or (None, error):
                StorageFailed, LogFull.  Calls come in journal order, after `head` has moved.

        Raises:
            LocalProtocolError: The batch is malformed.
            LogFull: 64 MiB wait to be written: the disk does not keep up.
            StorageFailed: The storage failed before.
        """
        self.database.check_open()
        self._check_batch(batch)
        octets = len(batch.body) + 8 * batch.n
        if self._pending_octets + octets > WAITING_BYTES_MAX:
            raise LogFull(
                "too much waits to be written", hint="The disk does not keep up: publish again later."
            )
        # Appended first, then looked whether a turn is due: the writer clears the flag before it takes.
        self._pending.append(_Waiting(batch, then))
        self._pending_octets += octets
        self._since_items += 1
        self._since_octets += octets
        if (
            not self._scheduled
            or self._since_items >= GROUP_ITEMS_MAX
            or self._since_octets >= GROUP_BYTES_MAX
        ):
            self._schedule()

    async def append_wait(self, batch: Batch) -> Appended:
        """Append and wait until it is durable; once begun, shielded from cancellation."""
        await trio.lowlevel.checkpoint_if_cancelled()
        done = trio.Event()
        outcome: list[tuple[Appended | None, Exception | None]] = []

        def then(appended: Appended | None, error: Exception | None) -> None:
            outcome.append((appended, error))
            done.set()

        self.append(batch, then)
        with trio.CancelScope(shield=True):
            await done.wait()
        appended, error = outcome[0]
        if error is not None:
            raise error
        assert appended is not None
        return appended

    def _check_batch(self, batch: Batch) -> None:
        # All of it here, before it is queued: what fails in the writer would take its neighbours along.
        if (batch.tenant, batch.topic) not in self._topics:
            check_topic(batch.topic)
            _check_name("tenant", batch.tenant)
        if (batch.tenant, batch.principal) not in self._publishers:
            _check_name("principal", batch.principal)
            _check_name("tenant", batch.tenant)
        if not isinstance(batch.body, bytes):
            raise LocalProtocolError("a body is bytes")
        if not 0 < batch.n <= BATCH_RECORDS_MAX:
            raise LocalProtocolError(f"a batch has 1 to {BATCH_RECORDS_MAX} records, not {batch.n}")
        if len(batch.body) > BODY_BYTES_MAX:
            raise LocalProtocolError(f"a batch has at most {BODY_BYTES_MAX} bytes, not {len(batch.body)}")
        if not (0 <= batch.epoch < 2**64 and 0 <= batch.sequence < 2**63 - BATCH_RECORDS_MAX):
            raise LocalProtocolError("epoch and sequence are unsigned, the sequence below 2**63")
        if min(batch.keys) < 0 or max(batch.keys) >= 2**64:
            raise LocalProtocolError("a key hash is an unsigned 64-bit integer")

    def _schedule(self) -> None:
        turn = _Turn()
        self._scheduled = True
        self.database.submit(
            partial(self._commit, turn), partial(self._committed, turn), octets=self._since_octets
        )
        self._since_items = self._since_octets = 0

    def _commit(self, turn: _Turn, tx: Connection) -> None:
        """In the writer: take what waits, up to a segment's bounds."""
        self._scheduled = False
        octets = 0
        items_max = 1 if self._env.maybe("log.one_batch_a_commit") else GROUP_ITEMS_MAX
        while self._pending and len(turn.taken) < items_max and octets < GROUP_BYTES_MAX:
            turn.taken.append(self._pending.popleft())
            octets += len(turn.taken[-1].batch.body)
        if turn.taken:
            batches = [waiting.batch for waiting in turn.taken]
            flush_now = self._env.maybe("log.flush_now")
            turn.group = self._appender.append(tx, batches, int(self._env.wall() * 1000), flush_now=flush_now)

    def _committed(self, turn: _Turn, _result: None, error: Exception | None) -> None:
        """On the Trio thread, after the commit returned."""
        if isinstance(error, StorageFailed):
            while self._pending:  # the writer takes nothing any more
                turn.taken.append(self._pending.popleft())
        for item in turn.taken:
            self._pending_octets -= len(item.batch.body) + 8 * item.batch.n
        if error is not None:
            for item in turn.taken:
                item.then(None, error)
            if not turn.taken:  # a neighbour filled the disk before our turn came
                self._scheduled = False
        elif turn.group is not None:
            self._take_in(turn.group)
            for item, appended in zip(turn.taken, turn.group.results, strict=True):
                self._duplicates += appended.duplicate
                item.then(appended, None)
        if self._pending and not self._scheduled:
            self._schedule()

    def _take_in(self, group: Group) -> None:
        """Make a commit visible to readers."""
        for number, tenant, name in group.new_publishers:
            self._publisher_names[number] = name
            self._publishers.add((tenant, name))
        for row in group.new_topics:
            self._note_topic(TopicRow(row.id, row.tenant, row.name))
        for run in group.runs:
            topic = self._topics[run.tenant, run.topic]
            topic.next_offset = run.offset + run.n
            topic.octets += len(run.body)
            topic.last_at_ms = run.at_ms
            self._records += run.n
            self._octets += len(run.body)
            self._ring_octets += len(run.body) + RUN_BYTES
        self._ring += group.runs
        if group.flushed_to > self._flushed:
            self._flushed = group.flushed_to
            self._unflushed = [run for run in self._unflushed if run.position >= self._flushed]
            self._index.clear()
            self._indexed = 0
        self._unflushed += [run for run in group.runs if run.position >= self._flushed]
        while self._ring_octets > self._ring_bytes and self._ring_start < len(self._ring) - 1:
            self._ring_octets -= len(self._ring[self._ring_start].body) + RUN_BYTES
            self._ring_start += 1
        if self._ring_start > 1024 and self._ring_start * 2 > len(self._ring):
            del self._ring[: self._ring_start]
            self._ring_start = 0
        if group.segment is not None:
            self._segments += 1
            self.head = group.segment.end
            self._wake()

    def _wake(self) -> None:
        moved, self._moved = self._moved, trio.Event()
        moved.set()

    def _note_topic(self, row: TopicRow) -> None:
        self._topics[row.tenant, row.name] = row
        self._topic_names[row.id] = (row.tenant, row.name)

    def _load(self, tx: Connection) -> None:
        """Once, before anybody uses the Log."""
        loaded = self._appender.load(tx)
        self.head, self.first, self._flushed = loaded.head, loaded.first, loaded.flushed_to
        for row in loaded.topics:
            self._note_topic(row)
        for (tenant, name), number in loaded.publishers.items():
            self._publisher_names[number] = name
            self._publishers.add((tenant, name))
        self._unflushed = list(loaded.tail)
        self._ring = list(loaded.tail)
        self._ring_octets = sum(len(run.body) + RUN_BYTES for run in loaded.tail)

    # ---------------------------------------------------------------- read

    async def wait_past(self, position: int) -> int:
        """Wait until the head is beyond `position`; return the head.  Always a checkpoint.

        Raises:
            StorageFailed: It never will be.
        """
        await trio.lowlevel.checkpoint()
        while self.head <= position:
            self.database.check_open(writing=False)
            await self._moved.wait()
        return self.head

    def tail(self, position: int, limit: int = 256) -> Sequence[Run] | None:
        """Up to `limit` runs that end beyond `position`, from memory; None when memory does not reach so far back.

        The first may begin before `position`: a run is never cut.
        """
        if position >= self.head:
            return ()
        at = self._ring_index(position)
        return None if at is None else self._ring[at : at + limit]

    async def page(
        self,
        position: int,
        *,
        limit_bytes: int = 262_144,
        tenant: str | None = None,
        topics: Collection[str] | None = None,
    ) -> Page:
        """Runs that end beyond `position`, in journal order, from memory when it reaches, else from disk.

        Raises:
            OffsetTrimmed: Retention has taken `position`.
            LogCorrupt: A segment does not match its checksum.
        """
        await trio.lowlevel.checkpoint()
        if position < self.first:
            raise _trimmed(position, self.first)
        wanted = None if topics is None else frozenset(topics)
        at = self._ring_index(position)
        if at is not None or position >= self.head:
            return self._page_from_ring(len(self._ring) if at is None else at, limit_bytes, tenant, wanted)
        head = self.head
        return await self.database.read(
            lambda tx: self._page_from_disk(tx, position, head, limit_bytes, tenant, wanted)
        )

    async def positions(
        self,
        tenant: str,
        topics: Collection[str] | None,
        key: int,
        start: int,
        stop: int | None,
        limit: int,
    ) -> list[int]:
        """Up to `limit` positions in [start, stop) of the records of one key, ascending, over these topics."""
        await trio.lowlevel.checkpoint()
        end = self.head if stop is None else min(stop, self.head)
        names = [name for t, name in self._topics if t == tenant] if topics is None else sorted(set(topics))
        stretches = [stretch for name in names for stretch in self._indexed_stretches(tenant, name, key)]
        if start < self._flushed:
            ids = [row.id for name in names if (row := self._topics.get((tenant, name))) is not None]
            stretches += await self.database.read(
                lambda tx: [
                    stretch
                    for id_ in ids
                    for stretch in journal.key_positions(tx, id_, key, start, end, limit)
                ]
            )
        found: list[int] = []
        for at, n in sorted(set(stretches)):
            if len(found) >= limit:
                break
            found.extend(range(max(at, start), min(at + n, end)))
        return found[:limit]

    async def position_of(self, tenant: str, topic: str, offset: int) -> int:
        """The position of a topic's record; the head when that record is still to come.

        Raises:
            OffsetTrimmed: Retention has taken it; `first` is the oldest position left.
        """
        await trio.lowlevel.checkpoint()
        row = self._topics.get((tenant, topic))
        if row is None or offset >= row.next_offset:
            return self.head
        for run in self._unflushed:
            if run.topic == topic and run.tenant == tenant and run.offset <= offset < run.offset + run.n:
                return run.position + offset - run.offset
        id_ = row.id
        found = await self.database.read(lambda tx: journal.run_of_offset(tx, id_, offset))
        if found is None or not found[0] <= offset < found[0] + found[2]:
            raise OffsetTrimmed(
                f"offset {offset} of {topic} was removed by retention",
                first=self.first,
                hint="Begin at the oldest position that is left.",
            )
        return found[1] + offset - found[0]

    def topics(self, tenant: str) -> list[TopicStatistics]:
        """A tenant's topics, by name."""
        return [
            TopicStatistics(
                topic=name, next_offset=row.next_offset, octets=row.octets, last_at_ms=row.last_at_ms
            )
            for (owner, name), row in sorted(self._topics.items())
            if owner == tenant
        ]

    def statistics(self) -> LogStatistics:
        return LogStatistics(
            head=self.head,
            first=self.first,
            flushed=self._flushed,
            waiting=len(self._pending),
            waiting_octets=self._pending_octets,
            ring_octets=self._ring_octets,
            records=self._records,
            octets=self._octets,
            duplicates=self._duplicates,
            segments=self._segments,
        )

    def _ring_index(self, position: int) -> int | None:
        """Where in the ring the first run that ends beyond `position` is."""
        if self._ring_start == len(self._ring) or position < self._ring[self._ring_start].position:
            return None
        return bisect_right(self._ring, position, lo=self._ring_start, key=_end)

    def _page_from_ring(
        self, at: int, limit_bytes: int, tenant: str | None, topics: frozenset[str] | None
    ) -> Page:
        runs: list[Run] = []
        octets = 0
        for i in range(at, len(self._ring)):
            run = self._ring[i]
            if octets >= limit_bytes:
                return Page(runs=runs, next=run.position)
            if (tenant is None or run.tenant == tenant) and (topics is None or run.topic in topics):
                runs.append(run)
                octets += len(run.body)
        return Page(runs=runs, next=self.head)

    def _page_from_disk(
        self,
        tx: Connection,
        position: int,
        head: int,
        limit_bytes: int,
        tenant: str | None,
        topics: frozenset[str] | None,
    ) -> Page:
        """In the reader.  Bodies are fetched, and their segments checked, only where the filter holds."""
        runs: list[Run] = []
        octets = 0
        at = position
        for pos, n, packed in journal.headers_from(tx, position, SCAN_SEGMENTS):
            if pos > at:
                raise _trimmed(position, pos)
            if pos >= head or octets >= limit_bytes:
                break
            at = pos + n
            names = [self._topic_names.get(header.topic) for header in journal.unpack_runs(pos, n, packed)]
            if not any(
                name is None  # let the check below say what is wrong
                or ((tenant is None or name[0] == tenant) and (topics is None or name[1] in topics))
                for name in names
            ):
                continue
            segment = journal.segment_at(tx, pos)
            for run in journal.runs_of(segment, self._topic_names, self._publisher_names):
                if (
                    run.end > position
                    and (tenant is None or run.tenant == tenant)
                    and (topics is None or run.topic in topics)
                ):
                    runs.append(run)
                    octets += len(run.body)
        return Page(runs=runs, next=at if at > position else head)

    def _indexed_stretches(self, tenant: str, topic: str, key: int) -> list[tuple[int, int]]:
        """(position, n) of a key among what is not flushed; the index grows when it is asked for."""
        for run in self._unflushed[self._indexed :]:
            for i, hashed in enumerate(run.keys):
                self._index.setdefault((run.tenant, run.topic, hashed), []).append((run.position + i, 1))
        self._indexed = len(self._unflushed)
        return self._index.get((tenant, topic, key), [])

    # ---------------------------------------------------------------- upkeep

    async def trim(
        self, *, before: int | None = None, older_than_ms: int | None = None, octets_max: int | None = None
    ) -> int:
        """Remove whole segments from the old end; return the oldest position left.

        Args:
            before: Remove what lies below this position.
            older_than_ms: Remove what was committed before this wall-clock time.
            octets_max: Remove the oldest until at most so many bytes are left.
        """
        async with self._upkeep:
            await self.database.write(self._appender.flush)
            cut = max(
                before or 0,
                await self.database.read(
                    partial(journal.cut_for, older_than_ms=older_than_ms, octets_max=octets_max)
                ),
            )
            while True:
                first = await self.database.write(partial(journal.trim_slice, cut=cut, limit=TRIM_SEGMENTS))
                if first == self.first:
                    return first
                self.first = first
                while self._ring_start < len(self._ring) and self._ring[self._ring_start].position < first:
                    self._ring_octets -= len(self._ring[self._ring_start].body) + RUN_BYTES
                    self._ring_start += 1

    async def verify(self, progress: Callable[[int, int], None] | None = None) -> Verified:
        """Check every byte that counts: rows, checksums, the chain, offsets without a hole, the derived tables.

        Args:
            progress: Called with (position, head) now and then.

        Raises:
            LogCorrupt: Something does not hold; the message says where.
        """
        async with self._upkeep:
            if self.database.writable:
                await self.database.write(self._appender.flush)
            walk = Walk()
            rows = await self.database.read(walk.begin)
            while not await self.database.read(walk.step):
                if progress is not None:
                    progress(walk.position, self.head)
            await self.database.read(walk.end)
            return Verified(
                segments=walk.segments,
                records=walk.position - walk.first,
                rows=rows,
                first=walk.first,
                head=walk.position,
                chain=walk.chain,
            )


@asynccontextmanager
async def open_log(
    env: Env, path: Path, *, ring_bytes: int = RING_BYTES, read_only: bool = False
) -> AsyncIterator[Log]:
    """Open a shard's `log.db`, or make it; what was appended before the end is durable after it.

    Args:
        ring_bytes: Memory for the newest records.
        read_only: For `verify` and reads on a stopped shard.

    Raises:
        LogCorrupt: The tail of the journal does not hold.
        LogError: As `open_database`.
    """
    async with open_database(
        env, path, migrations=MIGRATIONS, page_size=PAGE_SIZE, read_only=read_only
    ) as database:
        log = Log(env, database, ring_bytes)
        await (database.read if read_only else database.write)(log._load)
        yield log


def _check_name(what: str, name: str) -> None:
    if not (0 < len(name) <= NAME_CHARACTERS_MAX and name.isprintable()):
        raise LocalProtocolError(
            f"a {what} has 1 to {NAME_CHARACTERS_MAX} printable characters: {name!a:.80}"
        )


def _end(run: Run) -> int:
    return run.end


def _trimmed(position: int, first: int) -> OffsetTrimmed:
    return OffsetTrimmed(
        f"position {position} was removed by retention",
        first=first,
        hint="Begin at the oldest position that is left; what lies before it is gone.",
    )
