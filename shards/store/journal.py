"""Segments: the records of one commit, of all topics and tenants, in one row; and the tables derived from them.

One row a commit keeps the rate when traffic is spread over many topics and keys: a table keyed by topic would
dirty a page a record.  What finds a record by topic and offset (`run`), by key (`idx`) or by the sequence of its
publisher (`producer`) is derived, flushed in bulk every few commits, and rebuilt from the tail after a crash.

A segment's `runs` column describes its batches one after the other: a fixed header, then n key hashes.  `digest`
covers the row, `chain` the digest and the chain of the segment before: a flipped bit fails the one, a missing or
foreign row the other.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterable, Mapping, Sequence

import attrs

from shards.database import Connection
from shards.errors import LogCorrupt
from shards.store.rows import get_meta, put_meta
from shards.store.seal import checked, sealed, signed, unsigned

PAGE_SIZE = 16_384
"""Measured: 1.5 to 2 times the rate of 4 KiB, 64 KiB brings nothing more."""
CHAIN_START = bytes(32)

JOURNAL_SCHEMA = """
CREATE TABLE segment(
    pos INTEGER PRIMARY KEY, n INTEGER NOT NULL, at_ms INTEGER NOT NULL, digest BLOB NOT NULL,
    chain BLOB NOT NULL, runs BLOB NOT NULL, body BLOB NOT NULL
) STRICT;
CREATE TABLE topic(
    id INTEGER PRIMARY KEY, tenant TEXT NOT NULL, name TEXT NOT NULL, next_offset INTEGER NOT NULL,
    octets INTEGER NOT NULL, last_at_ms INTEGER NOT NULL, digest BLOB NOT NULL, UNIQUE(tenant, name)
) STRICT;
CREATE TABLE publisher(
    id INTEGER PRIMARY KEY, tenant TEXT NOT NULL, name TEXT NOT NULL, digest BLOB NOT NULL, UNIQUE(tenant, name)
) STRICT;
CREATE TABLE run(
    topic INTEGER NOT NULL, offset INTEGER NOT NULL, pos INTEGER NOT NULL, n INTEGER NOT NULL,
    PRIMARY KEY(topic, offset)
) STRICT, WITHOUT ROWID;
CREATE TABLE idx(
    topic INTEGER NOT NULL, key INTEGER NOT NULL, pos INTEGER NOT NULL, n INTEGER NOT NULL,
    PRIMARY KEY(topic, key, pos)
) STRICT, WITHOUT ROWID;
CREATE TABLE producer(
    publisher INTEGER NOT NULL, epoch INTEGER NOT NULL, sequence INTEGER NOT NULL, n INTEGER NOT NULL,
    offset INTEGER NOT NULL, pos INTEGER NOT NULL, PRIMARY KEY(publisher, epoch, sequence)
) STRICT, WITHOUT ROWID;
CREATE TABLE producer_floor(
    publisher INTEGER NOT NULL, epoch INTEGER NOT NULL, floor INTEGER NOT NULL, digest BLOB NOT NULL,
    PRIMARY KEY(publisher, epoch)
) STRICT, WITHOUT ROWID;
"""

_RUN = struct.Struct(">IIQIIQQ")  # topic, publisher, offset, n, body bytes, epoch, sequence
_SEGMENT = struct.Struct(">QQQQ")  # pos, n, at_ms, bytes of runs
_EDGE = struct.Struct(">Q32s")


@attrs.frozen(kw_only=True, slots=True)
class Batch:
    """What one publisher published together: n records of one topic.  `body` is opaque here."""

    tenant: str
    topic: str
    principal: str
    epoch: int
    """Unsigned, 64 bits: one life of the publisher's counter."""
    sequence: int
    """Of the first record; record i has sequence + i.  Below 2**63."""
    keys: tuple[int, ...] = attrs.field(repr=False)
    """One unsigned 64-bit key hash a record."""
    body: bytes = attrs.field(repr=False)

    @property
    def n(self) -> int:
        return len(self.keys)


@attrs.frozen(kw_only=True, slots=True)
class Run:
    """A batch in the log, as it came: never merged, never cut."""

    tenant: str
    topic: str
    principal: str
    position: int
    """Of its first record."""
    offset: int
    """Of its first record."""
    n: int
    at_ms: int
    epoch: int
    sequence: int
    keys: tuple[int, ...] = attrs.field(repr=False)
    body: bytes = attrs.field(repr=False)

    @property
    def end(self) -> int:
        """The position after its last record."""
        return self.position + self.n


@attrs.frozen(slots=True)
class RunHeader:
    """A run as the `runs` column describes it: numbers for names, and where its body lies."""

    topic: int
    publisher: int
    offset: int
    n: int
    epoch: int
    sequence: int
    keys: tuple[int, ...]
    body_from: int
    body_to: int
    position: int


@attrs.frozen(kw_only=True, slots=True)
class Segment:
    """One row of the journal."""

    pos: int
    n: int
    at_ms: int
    digest: bytes
    chain: bytes
    runs: bytes
    body: bytes

    @property
    def end(self) -> int:
        return self.pos + self.n


# -------------------------------------------------------------------- segments


def pack_run(topic: int, publisher: int, offset: int, batch: Batch) -> bytes:
    """One entry of the `runs` column."""
    n = len(batch.keys)
    header = _RUN.pack(topic, publisher, offset, n, len(batch.body), batch.epoch, batch.sequence)
    return header + struct.pack(f">{n}Q", *batch.keys)


def unpack_runs(pos: int, n: int, runs: bytes) -> list[RunHeader]:
    """The entries of a `runs` column.

    Raises:
        LogCorrupt: It does not describe n records.
    """
    found = []
    at, body_at, position = 0, 0, pos
    try:
        while at < len(runs):
            topic, publisher, offset, count, octets, epoch, sequence = _RUN.unpack_from(runs, at)
            at += _RUN.size
            keys = struct.unpack_from(f">{count}Q", runs, at)
            at += 8 * count
            found.append(
                RunHeader(
                    topic,
                    publisher,
                    offset,
                    count,
                    epoch,
                    sequence,
                    keys,
                    body_at,
                    body_at + octets,
                    position,
                )
            )
            body_at += octets
            position += count
    except struct.error as exc:
        raise corrupt(f"segment {pos} is described badly ({exc})") from exc
    if position != pos + n:
        raise corrupt(f"segment {pos} describes {position - pos} records, not {n}")
    return found


def make_segment(pos: int, n: int, at_ms: int, before: bytes, runs: bytes, body: bytes) -> Segment:
    """A row of the journal, sealed.  `before` is the chain of the segment before it."""
    digest = _segment_digest(pos, n, at_ms, runs, body)
    return Segment(
        pos=pos, n=n, at_ms=at_ms, digest=digest, chain=_link(before, digest), runs=runs, body=body
    )


def check_segment(segment: Segment, before: bytes | None = None) -> Segment:
    """Return the segment, or raise LogCorrupt.  With `before`, the chain is checked too."""
    wanted = _segment_digest(segment.pos, segment.n, segment.at_ms, segment.runs, segment.body)
    if wanted != segment.digest:
        raise corrupt(f"segment {segment.pos} does not match its checksum")
    if before is not None and _link(before, segment.digest) != segment.chain:
        raise corrupt(f"segment {segment.pos} does not follow from the one before it")
    return segment


def put_segment(tx: Connection, segment: Segment) -> None:
    tx.execute(
        "INSERT INTO segment VALUES(?,?,?,?,?,?,?)",
        (
            segment.pos,
            segment.n,
            segment.at_ms,
            segment.digest,
            segment.chain,
            segment.runs,
            segment.body,
        ),
    )


def segments(tx: Connection, start: int, limit: int) -> list[Segment]:
    """Up to `limit` segments with pos >= start, unchecked, in order."""
    rows = tx.execute(
        "SELECT pos, n, at_ms, digest, chain, runs, body FROM segment WHERE pos >= ? ORDER BY pos LIMIT ?",
        (start, limit),
    )
    return [_segment(row) for row in rows]


def last_segment(tx: Connection) -> Segment | None:
    row = tx.one("SELECT pos, n, at_ms, digest, chain, runs, body FROM segment ORDER BY pos DESC LIMIT 1")
    return None if row is None else _segment(row)


def headers_from(tx: Connection, position: int, limit: int) -> list[tuple[int, int, bytes]]:
    """(pos, n, runs) of up to `limit` segments, the first being the one that holds `position`."""
    rows = tx.execute(
        "SELECT pos, n, runs FROM segment WHERE pos >="
        " coalesce((SELECT max(pos) FROM segment WHERE pos <= ?), 0) ORDER BY pos LIMIT ?",
        (position, limit),
    )
    return [(row[0], row[1], row[2]) for row in rows]


def segment_at(tx: Connection, pos: int) -> Segment:
    """The segment that begins at `pos`, checked."""
    found = segments(tx, pos, 1)
    if not found or found[0].pos != pos:
        raise corrupt(f"segment {pos} is missing")
    return check_segment(found[0])


def _segment(row: Sequence[object]) -> Segment:
    pos, n, at_ms, digest, chain, runs, body = row
    return Segment(pos=pos, n=n, at_ms=at_ms, digest=digest, chain=chain, runs=runs, body=body)  # type: ignore[arg-type]


def _segment_digest(pos: int, n: int, at_ms: int, runs: bytes, body: bytes) -> bytes:
    hasher = hashlib.blake2b(_SEGMENT.pack(pos, n, at_ms & (2**64 - 1), len(runs)), digest_size=32)
    hasher.update(runs)
    hasher.update(body)
    return hasher.digest()


def _link(before: bytes, digest: bytes) -> bytes:
    return hashlib.blake2b(before + digest, digest_size=32).digest()


# -------------------------------------------------------------------- names


@attrs.define(slots=True)
class TopicRow:
    """A topic's counters.  As of the last flush; the tail of the journal has the rest."""

    id: int
    tenant: str
    name: str
    next_offset: int = 0
    octets: int = 0
    last_at_ms: int = 0


def topics(tx: Connection) -> list[TopicRow]:
    """All topics of all tenants, checked."""
    rows = tx.execute(
        "SELECT id, tenant, name, next_offset, octets, last_at_ms, digest FROM topic ORDER BY id"
    )
    return [TopicRow(*checked("topic", row)) for row in rows]


def put_topics(tx: Connection, rows: Iterable[TopicRow]) -> None:
    tx.executemany(
        "INSERT OR REPLACE INTO topic VALUES(?,?,?,?,?,?,?)",
        [
            sealed("topic", row.id, row.tenant, row.name, row.next_offset, row.octets, row.last_at_ms)
            for row in rows
        ],
    )


def publishers(tx: Connection) -> dict[tuple[str, str], int]:
    """(tenant, principal) -> number, checked."""
    rows = tx.execute("SELECT id, tenant, name, digest FROM publisher ORDER BY id")
    found = [checked("publisher", row) for row in rows]
    return {(tenant, name): id_ for id_, tenant, name in found}


def put_publisher(tx: Connection, id_: int, tenant: str, name: str) -> None:
    tx.execute("INSERT INTO publisher VALUES(?,?,?,?)", sealed("publisher", id_, tenant, name))


# -------------------------------------------------------------------- derived tables


@attrs.define(slots=True)
class Derived:
    """Rows that a segment adds to the derived tables, collected until the next flush."""

    runs: list[tuple[int, int, int, int]] = attrs.Factory(list)
    idx: list[tuple[int, int, int, int]] = attrs.Factory(list)
    producers: list[tuple[int, int, int, int, int, int]] = attrs.Factory(list)

    def add(self, header: RunHeader) -> None:
        """Add what one run of a stored segment contributes."""
        self._add(header.topic, header.publisher, header)

    def add_run(self, topic: int, publisher: int, run: Run) -> None:
        """The same for a run that is just being stored."""
        self._add(topic, publisher, run)

    def _add(self, topic: int, publisher: int, run: RunHeader | Run) -> None:
        n, position, keys = run.n, run.position, run.keys
        self.runs.append((topic, run.offset, position, n))
        self.producers.append((publisher, signed(run.epoch), run.sequence, n, run.offset, position))
        first = 0
        for i in range(1, n + 1):  # neighbours of one key share a row
            if i == n or keys[i] != keys[first]:
                self.idx.append((topic, signed(keys[first]), position + first, i - first))
                first = i

    def __len__(self) -> int:
        return len(self.idx) + len(self.runs)


def flush(tx: Connection, derived: Derived) -> None:
    """Write the collected rows, sorted, so that each page is touched once."""
    tx.executemany("INSERT INTO run VALUES(?,?,?,?)", sorted(derived.runs))
    tx.executemany("INSERT INTO idx VALUES(?,?,?,?)", sorted(derived.idx))
    tx.executemany("INSERT INTO producer VALUES(?,?,?,?,?,?)", sorted(derived.producers))


def delete_derived(tx: Connection, derived: Derived) -> None:
    """Take the rows of trimmed segments out again, and remember how far each publisher's memory now reaches."""
    tx.executemany("DELETE FROM run WHERE topic = ? AND offset = ?", [row[:2] for row in derived.runs])
    tx.executemany(
        "DELETE FROM idx WHERE topic = ? AND key = ? AND pos = ?", [row[:3] for row in derived.idx]
    )
    floors: dict[tuple[int, int], int] = {}
    for publisher, epoch, sequence, n, _, _ in derived.producers:
        floors[publisher, epoch] = max(sequence + n, floors.get((publisher, epoch), 0))
    for (publisher, epoch), reach in sorted(floors.items()):
        reach = max(reach, producer_floor(tx, publisher, unsigned(epoch)))
        tx.execute(
            "INSERT OR REPLACE INTO producer_floor VALUES(?,?,?,?)",
            sealed("producer_floor", publisher, epoch, reach),
        )
    tx.executemany(
        "DELETE FROM producer WHERE publisher = ? AND epoch = ? AND sequence = ?",
        [row[:3] for row in derived.producers],
    )


def producer_floor(tx: Connection, publisher: int, epoch: int) -> int:
    """Sequences below this were known once, or refused; their places are forgotten."""
    row = tx.one(
        "SELECT publisher, epoch, floor, digest FROM producer_floor WHERE publisher = ? AND epoch = ?",
        (publisher, signed(epoch)),
    )
    return 0 if row is None else int(checked("producer_floor", row)[2])


def producer_next(tx: Connection, publisher: int, epoch: int) -> int:
    """The sequence after the highest known one (as of the last flush)."""
    row = tx.one(
        "SELECT sequence + n FROM producer WHERE publisher = ? AND epoch = ? ORDER BY sequence DESC LIMIT 1",
        (publisher, signed(epoch)),
    )
    return max(int(row[0]) if row else 0, producer_floor(tx, publisher, epoch))


def producer_ranges(
    tx: Connection, publisher: int, epoch: int, start: int, stop: int
) -> list[tuple[int, int, int, int]]:
    """(sequence, n, offset, pos) of the known ranges that touch [start, stop), ascending."""
    rows = tx.execute(
        "SELECT sequence, n, offset, pos FROM producer WHERE publisher = ?1 AND epoch = ?2 AND sequence < ?4"
        " AND sequence >= coalesce((SELECT max(sequence) FROM producer WHERE publisher = ?1 AND epoch = ?2"
        " AND sequence <= ?3), 0) ORDER BY sequence",
        (publisher, signed(epoch), start, stop),
    )
    return [(row[0], row[1], row[2], row[3]) for row in rows if row[0] + row[1] > start]


def key_positions(
    tx: Connection, topic: int, key: int, start: int, stop: int, limit: int
) -> list[tuple[int, int]]:
    """(pos, n) of the flushed stretches of a key in [start, stop), at most `limit` of them."""
    rows = tx.execute(
        "SELECT pos, n FROM idx WHERE topic = ?1 AND key = ?2 AND pos < ?4 AND pos >= coalesce("
        "(SELECT max(pos) FROM idx WHERE topic = ?1 AND key = ?2 AND pos <= ?3), 0) ORDER BY pos LIMIT ?5",
        (topic, signed(key), start, stop, limit + 1),
    )
    return [(row[0], row[1]) for row in rows if row[0] + row[1] > start]


def run_of_offset(tx: Connection, topic: int, offset: int) -> tuple[int, int, int] | None:
    """(offset, pos, n) of the last flushed run of a topic that begins at or before `offset`."""
    row = tx.one(
        "SELECT offset, pos, n FROM run WHERE topic = ? AND offset <= ? ORDER BY offset DESC LIMIT 1",
        (topic, offset),
    )
    return None if row is None else (row[0], row[1], row[2])


def check_derived(tx: Connection, derived: Derived) -> None:
    """Raise LogCorrupt unless every one of these rows is in its table, as it should be."""
    for sql, rows in (
        ("SELECT 1 FROM run WHERE topic = ? AND offset = ? AND pos = ? AND n = ?", derived.runs),
        ("SELECT 1 FROM idx WHERE topic = ? AND key = ? AND pos = ? AND n = ?", derived.idx),
        (
            "SELECT 1 FROM producer WHERE publisher = ? AND epoch = ? AND sequence = ? AND n = ?"
            " AND offset = ? AND pos = ?",
            derived.producers,
        ),
    ):
        for row in rows:
            if tx.one(sql, row) is None:
                raise corrupt(f"a derived row is missing or wrong: {sql.split()[3]} {row}")


def count_derived(tx: Connection, stop: int) -> tuple[int, int, int]:
    """Rows of `run`, `idx` and `producer` for positions below `stop`."""
    counts = tx.one(
        "SELECT (SELECT count(*) FROM run WHERE pos < ?1), (SELECT count(*) FROM idx WHERE pos < ?1),"
        " (SELECT count(*) FROM producer WHERE pos < ?1)",
        (stop,),
    )
    assert counts is not None
    return counts[0], counts[1], counts[2]


def check_floors(tx: Connection) -> int:
    """Check the rows of `producer_floor`; return how many there are."""
    return len([checked("producer_floor", row) for row in tx.execute("SELECT * FROM producer_floor")])


# -------------------------------------------------------------------- edges


def flushed_to(tx: Connection) -> int:
    """Positions below this are in the derived tables."""
    value = get_meta(tx, "flushed")
    return 0 if value is None else int.from_bytes(value, "big")


def put_flushed_to(tx: Connection, position: int) -> None:
    put_meta(tx, "flushed", position.to_bytes(8, "big"))


def first_edge(tx: Connection) -> tuple[int, bytes]:
    """(oldest position left, chain before it)."""
    value = get_meta(tx, "first")
    if value is None:
        return 0, CHAIN_START
    position, chain = _EDGE.unpack(value)
    return position, chain


def trim_slice(tx: Connection, cut: int, limit: int) -> int:
    """Delete up to `limit` of the oldest segments that end at or below `cut`; return the oldest position left.

    The segments must be flushed.  The newest one stays whatever `cut` says: the chain goes on from it.
    """
    rows = tx.execute(
        "SELECT pos, n, chain, runs FROM segment WHERE pos + n <= ? AND pos < (SELECT max(pos) FROM segment)"
        " ORDER BY pos LIMIT ?",
        (cut, limit),
    )
    if not rows:
        return first_edge(tx)[0]
    derived = Derived()
    for pos, n, _, runs in rows:
        for header in unpack_runs(pos, n, runs):
            derived.add(header)
    delete_derived(tx, derived)
    tx.executemany("DELETE FROM segment WHERE pos = ?", [(row[0],) for row in rows])
    first = int(rows[-1][0] + rows[-1][1])
    put_meta(tx, "first", _EDGE.pack(first, rows[-1][2]))
    return first


def cut_for(tx: Connection, *, older_than_ms: int | None, octets_max: int | None) -> int:
    """The position below which retention wants the segments gone."""
    cut = 0
    if older_than_ms is not None:
        row = tx.one("SELECT pos FROM segment WHERE at_ms >= ? ORDER BY pos LIMIT 1", (older_than_ms,))
        last = tx.one("SELECT max(pos) FROM segment")
        cut = row[0] if row else (last[0] if last and last[0] is not None else 0)
    if octets_max is not None:
        row = tx.one(
            "SELECT pos + n FROM (SELECT pos, n, sum(length(runs) + length(body)) OVER (ORDER BY pos DESC) AS total"
            " FROM segment) WHERE total > ? ORDER BY pos DESC LIMIT 1",
            (octets_max,),
        )
        cut = max(cut, row[0] if row else 0)
    return cut


def runs_of(
    segment: Segment, topic_names: Mapping[int, tuple[str, str]], publisher_names: Mapping[int, str]
) -> list[Run]:
    """The runs of a checked segment with names for numbers."""
    found = []
    for header in unpack_runs(segment.pos, segment.n, segment.runs):
        try:
            tenant, topic = topic_names[header.topic]
            principal = publisher_names[header.publisher]
        except KeyError as exc:
            raise corrupt(f"segment {segment.pos} names number {exc}, which nobody has") from exc
        found.append(
            Run(
                tenant=tenant,
                topic=topic,
                principal=principal,
                position=header.position,
                offset=header.offset,
                n=header.n,
                at_ms=segment.at_ms,
                epoch=header.epoch,
                sequence=header.sequence,
                keys=header.keys,
                body=segment.body[header.body_from : header.body_to],
            )
        )
    return found


def corrupt(what: str) -> LogCorrupt:
    return LogCorrupt(
        f"log.db: {what}", hint="Stop the shard, keep the file, restore the last backup (bridgectl restore)."
    )
