"""The writer's half of the Log: offsets, positions, recognition of repeats, the chain, the flush.

It lives in the writer and is touched by nobody else.  All that it keeps can be read back from the database, which
is what it does when it starts, and after anything went wrong.  No Trio here.
"""

from __future__ import annotations

from collections.abc import Sequence

import attrs

from shards.database import Connection
from shards.store import journal
from shards.store.journal import Batch, Derived, Run, Segment, TopicRow

FLUSH_COMMITS = 32
"""Derived rows are written in bulk every so many commits; a crash re-reads as many segments."""
FLUSH_ROWS = 4_096
PRODUCERS_MAX = 16_384
"""Publishers' counters in memory; the table has the rest."""


@attrs.frozen(kw_only=True, slots=True)
class Appended:
    """What became of a batch."""

    offset: int
    """Of its first record; of the original for a repeat; -1 when overlap, or when retention took the original."""
    position: int
    n: int
    duplicate: bool = False
    """All of it was in the log already; nothing was stored."""
    overlap: bool = False
    """Some of it was in the log already, some not; nothing was stored: publish the records one by one."""


@attrs.frozen(kw_only=True, slots=True)
class Group:
    """What one transaction did."""

    results: list[Appended]
    """One a batch, in order."""
    segment: Segment | None
    runs: list[Run]
    new_topics: list[TopicRow]
    new_publishers: list[tuple[int, str, str]]
    flushed_to: int


@attrs.frozen(kw_only=True, slots=True)
class Loaded:
    """What was read back."""

    head: int
    first: int
    flushed_to: int
    topics: list[TopicRow]
    publishers: dict[tuple[str, str], int]
    tail: list[Run]
    """The runs that are not flushed."""


@attrs.define(slots=True)
class _Producer:
    """One epoch of one publisher: what it has published since the last flush, and where it stands."""

    next: int
    recent: list[tuple[int, int, int, int]] = attrs.Factory(list)


class Appender:
    """State of the writer between two transactions."""

    def __init__(self) -> None:
        self._generation: int | None = None
        self._position = 0
        self._chain = journal.CHAIN_START
        self._topics: dict[tuple[str, str], TopicRow] = {}
        self._dirty: dict[int, TopicRow] = {}
        self._publishers: dict[tuple[str, str], int] = {}
        self._producers: dict[tuple[int, int], _Producer] = {}
        self._derived = Derived()
        self._flushed_to = 0
        self._commits = 0

    def append(
        self, tx: Connection, batches: Sequence[Batch], at_ms: int, *, flush_now: bool = False
    ) -> Group:
        """Put the batches into one segment, in order, inside the caller's transaction."""
        if self._generation != tx.generation:
            self.load(tx)
        generation, self._generation = self._generation, None  # void unless we reach the end
        results: list[Appended] = []
        runs: list[Run] = []
        headers: list[bytes] = []
        new_topics: list[TopicRow] = []
        new_publishers: list[tuple[int, str, str]] = []
        start = self._position
        for batch in batches:
            publisher = self._publishers.get((batch.tenant, batch.principal))
            if publisher is None:
                publisher = len(self._publishers) + 1
                self._publishers[batch.tenant, batch.principal] = publisher
                journal.put_publisher(tx, publisher, batch.tenant, batch.principal)
                new_publishers.append((publisher, batch.tenant, batch.principal))
            producer = self._producer(tx, publisher, batch.epoch)
            repeat = self._recognise(tx, publisher, producer, batch)
            if repeat is not None:
                results.append(repeat)
                continue
            topic = self._topics.get((batch.tenant, batch.topic))
            if topic is None:
                topic = TopicRow(len(self._topics) + 1, batch.tenant, batch.topic)
                self._topics[batch.tenant, batch.topic] = topic
                journal.put_topics(tx, [topic])
                new_topics.append(topic)
            run = Run(
                tenant=batch.tenant,
                topic=batch.topic,
                principal=batch.principal,
                position=self._position,
                offset=topic.next_offset,
                n=batch.n,
                at_ms=at_ms,
                epoch=batch.epoch,
                sequence=batch.sequence,
                keys=batch.keys,
                body=batch.body,
            )
            results.append(Appended(offset=run.offset, position=run.position, n=run.n))
            runs.append(run)
            headers.append(journal.pack_run(topic.id, publisher, run.offset, batch))
            self._note(topic, publisher, producer, run)
        segment = None
        if runs:
            segment = journal.make_segment(
                start,
                self._position - start,
                at_ms,
                self._chain,
                b"".join(headers),
                b"".join([run.body for run in runs]) if len(runs) > 1 else runs[0].body,
            )
            journal.put_segment(tx, segment)
            self._chain = segment.chain
            self._commits += 1
            if flush_now or self._commits >= FLUSH_COMMITS or len(self._derived) >= FLUSH_ROWS:
                self._flush(tx)
        self._generation = generation
        return Group(
            results=results,
            segment=segment,
            runs=runs,
            new_topics=new_topics,
            new_publishers=new_publishers,
            flushed_to=self._flushed_to,
        )

    def flush(self, tx: Connection) -> int:
        """Write all derived rows now; return the position up to which they are written."""
        if self._generation != tx.generation:
            self.load(tx)
        generation, self._generation = self._generation, None
        if len(self._derived):
            self._flush(tx)
        self._generation = generation
        return self._flushed_to

    def load(self, tx: Connection) -> Loaded:
        """Read everything back: counters as of the last flush, then the tail of the journal, checked."""
        self._generation = None
        self._topics = {(row.tenant, row.name): row for row in journal.topics(tx)}
        self._publishers = journal.publishers(tx)
        self._producers.clear()
        self._dirty.clear()
        self._derived = Derived()
        self._commits = 0
        self._flushed_to = journal.flushed_to(tx)
        first, self._chain = journal.first_edge(tx)
        self._position = max(first, self._flushed_to)
        tail = journal.segments(tx, self._flushed_to, -1)
        topic_names = {row.id: name for name, row in self._topics.items()}
        publisher_names = {number: name for (_, name), number in self._publishers.items()}
        last = journal.last_segment(tx)
        if not tail and last is not None:
            self._chain = journal.check_segment(last).chain
            if last.end != self._position:
                raise journal.corrupt(f"the journal ends at {last.end}, its index at {self._position}")
        before: bytes | None = None
        runs: list[Run] = []
        for segment in tail:
            if segment.pos != self._position:
                raise journal.corrupt(f"segment {segment.pos} stands where {self._position} should")
            journal.check_segment(segment, before)
            before = self._chain = segment.chain
            for run in journal.runs_of(segment, topic_names, publisher_names):
                runs.append(run)
                topic = self._topics[run.tenant, run.topic]
                if run.offset != topic.next_offset:
                    raise journal.corrupt(
                        f"offset {run.offset} of {run.topic} stands where {topic.next_offset} should"
                    )
                publisher = self._publishers[run.tenant, run.principal]
                self._note(topic, publisher, self._producer(tx, publisher, run.epoch), run)
            self._commits += 1
        self._generation = tx.generation
        return Loaded(
            head=self._position,
            first=first,
            flushed_to=self._flushed_to,
            topics=[attrs.evolve(row) for row in self._topics.values()],
            publishers=dict(self._publishers),
            tail=runs,
        )

    # ---------------------------------------------------------------- inside

    def _note(self, topic: TopicRow, publisher: int, producer: _Producer, run: Run) -> None:
        """Count one stored run."""
        self._position = run.end
        topic.next_offset = run.offset + run.n
        topic.octets += len(run.body)
        topic.last_at_ms = run.at_ms
        self._dirty[topic.id] = topic
        producer.next = max(producer.next, run.sequence + run.n)
        producer.recent.append((run.sequence, run.n, run.offset, run.position))
        self._derived.add_run(topic.id, publisher, run)

    def _producer(self, tx: Connection, publisher: int, epoch: int) -> _Producer:
        producer = self._producers.get((publisher, epoch))
        if producer is None:
            producer = _Producer(journal.producer_next(tx, publisher, epoch))
            self._producers[publisher, epoch] = producer
        return producer

    def _recognise(
        self, tx: Connection, publisher: int, producer: _Producer, batch: Batch
    ) -> Appended | None:
        """None for a new batch, else what is to be answered for one that was here before."""
        start, n = batch.sequence, batch.n
        if start >= producer.next:
            return None
        stop = start + n
        ranges = journal.producer_ranges(tx, publisher, batch.epoch, start, stop)
        ranges += [known for known in producer.recent if known[0] < stop and known[0] + known[1] > start]
        known = sum(min(stop, at + count) - max(start, at) for at, count, _, _ in ranges)
        if known == 0:
            if stop <= journal.producer_floor(tx, publisher, batch.epoch):
                return Appended(offset=-1, position=-1, n=n, duplicate=True)
            return None
        if known < n:
            return Appended(offset=-1, position=-1, n=n, overlap=True)
        at, _, offset, position = min(ranges)
        return Appended(offset=offset + start - at, position=position + start - at, n=n, duplicate=True)

    def _flush(self, tx: Connection) -> None:
        journal.flush(tx, self._derived)
        journal.put_topics(tx, self._dirty.values())
        journal.put_flushed_to(tx, self._position)
        self._flushed_to = self._position
        self._derived = Derived()
        self._dirty.clear()
        self._commits = 0
        if len(self._producers) > PRODUCERS_MAX:
            self._producers.clear()
        for producer in self._producers.values():
            producer.recent.clear()
