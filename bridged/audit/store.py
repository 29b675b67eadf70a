"""The leaves and the checkpoints of one tenant in `audit.db`: rows that can be added and nothing else.

Triggers refuse every change by way of SQL; what changes the file by another way is found by `verify`, which
recomputes every leaf and holds the tree against the signed checkpoints and against the Log.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from typing import Any

import attrs

from bridged.audit.tree import (
    AuditError,
    Checkpoint,
    Frontier,
    leaf_hash,
    open_checkpoint,
)
from shards.database import Connection
from shards.record import Record

SCHEMA = (
    "CREATE TABLE leaf ("
    " seq INTEGER PRIMARY KEY, position INTEGER NOT NULL UNIQUE, trace_id TEXT NOT NULL,"
    " data BLOB NOT NULL, hash BLOB NOT NULL)",
    "CREATE INDEX leaf_by_trace ON leaf (trace_id)",
    "CREATE TABLE checkpoint (size INTEGER PRIMARY KEY, note TEXT NOT NULL)",
    "CREATE TRIGGER leaf_is_new BEFORE INSERT ON leaf"
    " WHEN NEW.seq IS NOT (SELECT coalesce(max(seq) + 1, 0) FROM leaf)"
    " BEGIN SELECT raise(ABORT, 'leaves are added at the end only'); END",
    "CREATE TRIGGER leaf_stays BEFORE UPDATE ON leaf BEGIN SELECT raise(ABORT, 'a leaf never changes'); END",
    "CREATE TRIGGER leaf_is_kept BEFORE DELETE ON leaf"
    " BEGIN SELECT raise(ABORT, 'a leaf is never removed'); END",
    "CREATE TRIGGER checkpoint_is_new BEFORE INSERT ON checkpoint"
    " WHEN NEW.size <= (SELECT coalesce(max(size), -1) FROM checkpoint)"
    " BEGIN SELECT raise(ABORT, 'checkpoints only grow'); END",
    "CREATE TRIGGER checkpoint_stays BEFORE UPDATE ON checkpoint"
    " BEGIN SELECT raise(ABORT, 'a checkpoint never changes'); END",
    "CREATE TRIGGER checkpoint_is_kept BEFORE DELETE ON checkpoint"
    " BEGIN SELECT raise(ABORT, 'a checkpoint is never removed'); END",
)
MIGRATIONS = (";\n".join(SCHEMA) + ";",)
PAGE = 1024


@attrs.frozen(kw_only=True)
class Leaf:
    """One record of the Log, as the audit log keeps it: who, what, when and a digest, never a text."""

    position: int
    topic: str
    offset: int
    principal: str
    at_ms: int
    octets: int
    digest: str
    """SHA-256 of the payload, hex.  Every envelope has 128 random bits, so the digest tells nothing of the text."""
    trace_id: str

    @classmethod
    def of(cls, record: Record) -> Leaf:
        """The leaf of a record; the trace id is empty where the payload is no envelope."""
        return cls(
            position=record.position,
            topic=record.topic,
            offset=record.offset,
            principal=record.principal,
            at_ms=record.at_ms,
            octets=len(record.payload),
            digest=hashlib.sha256(record.payload).hexdigest(),
            trace_id=_trace_id(record.payload),
        )

    def encode(self) -> bytes:
        """The bytes that are hashed: JSON with sorted keys and no blanks."""
        return json.dumps(attrs.asdict(self), sort_keys=True, separators=(",", ":")).encode()


def _trace_id(payload: bytes) -> str:
    try:
        value: Any = json.loads(payload)
    except ValueError:
        return ""
    found = value.get("trace_id") if isinstance(value, dict) else None
    return found if isinstance(found, str) and len(found) <= 128 else ""


def append(tx: Connection, first: int, leaves: Sequence[Leaf]) -> list[bytes]:
    """Add leaves from sequence number `first` on; returns their hashes."""
    rows, hashes = [], []
    for i, leaf in enumerate(leaves):
        data = leaf.encode()
        hashes.append(leaf_hash(data))
        rows.append((first + i, leaf.position, leaf.trace_id, data, hashes[-1]))
    tx.executemany("INSERT INTO leaf VALUES (?,?,?,?,?)", rows)
    return hashes


def head(tx: Connection) -> tuple[int, int]:
    """(number of leaves, journal position after the last leaf)."""
    row = tx.one("SELECT count(*), coalesce(max(position) + 1, 0) FROM leaf")
    assert row is not None
    return row[0], row[1]


def hashes(tx: Connection) -> list[bytes]:
    """All leaf hashes in order."""
    return [row[0] for row in tx.execute("SELECT hash FROM leaf ORDER BY seq")]


def put_checkpoint(tx: Connection, size: int, note: str) -> None:
    """Keep a signed head; its leaves must be on disk already."""
    tx.execute("INSERT INTO checkpoint VALUES (?,?)", (size, note))


def checkpoints(tx: Connection) -> list[tuple[int, str]]:
    """(size, note), the oldest first."""
    return [(row[0], row[1]) for row in tx.execute("SELECT size, note FROM checkpoint ORDER BY size")]


def by_trace(tx: Connection, trace_id: str) -> list[tuple[int, Leaf]]:
    """(sequence number, leaf) of everything that happened under a trace id."""
    rows = tx.execute("SELECT seq, data FROM leaf WHERE trace_id=? ORDER BY seq", (trace_id,))
    return [(seq, _decode(seq, data)) for seq, data in rows]


def leaves(tx: Connection, first: int, n: int) -> list[tuple[int, Leaf]]:
    """Up to n (sequence number, leaf) from `first` on."""
    rows = tx.execute("SELECT seq, data FROM leaf WHERE seq>=? ORDER BY seq LIMIT ?", (first, n))
    return [(seq, _decode(seq, data)) for seq, data in rows]


def _decode(seq: int, data: bytes) -> Leaf:
    """The leaf, or AuditError: these are no bytes of `Leaf.encode`."""
    try:
        return Leaf(**json.loads(data))
    except (TypeError, ValueError, RecursionError) as exc:
        raise AuditError(f"leaf {seq} was altered") from exc


@attrs.frozen(kw_only=True)
class Verified:
    """What a whole reading of the audit log has shown to hold."""

    size: int
    root: bytes
    checkpoints: int
    signed_size: int
    """Leaves under the last signed checkpoint."""


def verify(tx: Connection, public: bytes) -> Verified:
    """Recompute every leaf and every signed head.

    Raises:
        AuditError: What does not hold, and at which leaf.
    """
    verdict = tx.execute("PRAGMA integrity_check(1)")
    notes = checkpoints(tx)
    wanted = {size: open_checkpoint(str(note), public) for size, note in notes}
    for size, checkpoint in wanted.items():
        if checkpoint.size != size:
            raise AuditError(f"the checkpoint kept for {size} leaves says {checkpoint.size}")
    frontier = Frontier()
    _check_head(frontier, wanted)
    last = -1
    for seq, position, trace_id, data, digest in _rows(tx):
        if seq != frontier.size:
            raise AuditError(f"leaf {frontier.size} is missing")
        if not isinstance(data, bytes) or leaf_hash(data) != digest:
            raise AuditError(f"leaf {seq} was altered")
        leaf = _decode(seq, data)
        if leaf.position != position or leaf.trace_id != trace_id or position <= last:
            raise AuditError(f"leaf {seq} stands at a place that is not its own")
        last = position
        frontier.append(digest)
        _check_head(frontier, wanted)
    if wanted:
        raise AuditError(
            f"leaves are missing: a checkpoint was signed for {max(wanted)}, here are {frontier.size}"
        )
    kept = {row[0] for row in tx.execute("SELECT sql FROM sqlite_schema WHERE sql IS NOT NULL")}
    if kept != set(SCHEMA):
        raise AuditError("the tables or their guards were altered")
    if verdict != [("ok",)]:  # last, since a leaf's number tells more than a page's
        raise AuditError(f"SQLite's own check says: {verdict[0][0]}")
    return Verified(
        size=frontier.size,
        root=frontier.root(),
        checkpoints=len(notes),
        signed_size=notes[-1][0] if notes else 0,
    )


def _check_head(frontier: Frontier, wanted: dict[int, Checkpoint]) -> None:
    checkpoint = wanted.pop(frontier.size, None)
    if checkpoint is not None and checkpoint.root != frontier.root():
        raise AuditError(
            f"the signed checkpoint of {frontier.size} leaves has another root: a leaf was replaced"
        )


def _rows(tx: Connection) -> Iterator[tuple[int, int, str, bytes, bytes]]:
    seq = -1
    while rows := tx.execute(
        "SELECT seq, position, trace_id, data, hash FROM leaf WHERE seq>? ORDER BY seq LIMIT ?", (seq, PAGE)
    ):
        for row in rows:
            seq = row[0]
            yield seq, row[1], row[2], row[3], row[4]
