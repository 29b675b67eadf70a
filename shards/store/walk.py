"""The proof that a log is what it was: one pass over the journal, a few segments a transaction.

The chain finds what is missing or foreign, the digests what was flipped, and the derived tables are compared row
by row with what the segments say they should hold.
"""

from __future__ import annotations

from shards.database import Connection
from shards.store import journal
from shards.store.journal import TopicRow
from shards.store.rows import check_rows

VERIFY_SEGMENTS = 16


class Walk:
    """One pass over the journal, a few segments a read."""

    def __init__(self) -> None:
        self.first = self.position = self.flushed = self.segments = 0
        self.chain = b""
        self._names: dict[int, TopicRow] = {}
        self._publishers: set[int] = set()
        self._offsets: dict[int, int] = {}
        self._flushed_offsets: dict[int, int] = {}
        self._counts = [0, 0, 0]

    def begin(self, tx: Connection) -> int:
        """Check all small rows; return how many there are."""
        verdict = tx.execute("PRAGMA integrity_check(1)")
        if verdict != [("ok",)]:
            raise journal.corrupt(f"SQLite's own check says: {verdict[0][0]}")
        self.first, self.chain = journal.first_edge(tx)
        self.position = self.first
        self.flushed = journal.flushed_to(tx)
        self._names = {row.id: row for row in journal.topics(tx)}
        publishers = journal.publishers(tx)
        self._publishers = set(publishers.values())
        return check_rows(tx) + journal.check_floors(tx) + len(self._names) + len(publishers)

    def step(self, tx: Connection) -> bool:
        """Check the next segments; True at the end."""
        found = journal.segments(tx, self.position, VERIFY_SEGMENTS)
        for segment in found:
            if segment.pos != self.position:
                raise journal.corrupt(f"segment {segment.pos} stands where {self.position} should")
            self.chain = journal.check_segment(segment, self.chain).chain
            derived = journal.Derived()
            for header in journal.unpack_runs(segment.pos, segment.n, segment.runs):
                self._check_run(segment.pos, header)
                derived.add(header)
            if segment.pos < self.flushed:
                journal.check_derived(tx, derived)
                for i, n in enumerate((len(derived.runs), len(derived.idx), len(derived.producers))):
                    self._counts[i] += n
                self._flushed_offsets.update(self._offsets)
            self.position = segment.end
            self.segments += 1
        return not found

    def end(self, tx: Connection) -> None:
        """Check that nothing is in the derived tables that the journal does not want."""
        if self.position < self.flushed:
            raise journal.corrupt(f"the journal ends at {self.position}, its index at {self.flushed}")
        counts = journal.count_derived(tx, self.flushed)
        if list(counts) != self._counts:
            raise journal.corrupt(f"the derived tables have {counts} rows, the journal wants {self._counts}")
        for id_, offset in self._flushed_offsets.items():
            if self._names[id_].next_offset != offset:
                raise journal.corrupt(f"topic {self._names[id_].name} counts to a wrong offset")

    def _check_run(self, pos: int, header: journal.RunHeader) -> None:
        if header.topic not in self._names or header.publisher not in self._publishers:
            raise journal.corrupt(f"segment {pos} names a topic or publisher that nobody has")
        wanted = self._offsets.get(header.topic, header.offset)
        if header.offset != wanted:
            raise journal.corrupt(f"segment {pos}: offset {header.offset} stands where {wanted} should")
        self._offsets[header.topic] = header.offset + header.n
