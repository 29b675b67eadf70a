"""The durable queue between a database's commits and the fabric: what was committed is published, once, in order.

A row joins the outbox inside the transaction of whatever it announces, so neither can exist without the other.
Rows of one key are published one call after the other, rows of different keys side by side.  A row goes only
when it and all before it are acknowledged; what a crash leaves behind is published again under the same
(epoch, sequence = row id), which the log recognises.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import NoReturn, Protocol

import attrs
import trio

from shards.database import Connection, Database
from shards.errors import LogCorrupt, OutboxFull

OUTBOX_SCHEMA = """
CREATE TABLE outbox(
    id INTEGER PRIMARY KEY AUTOINCREMENT,  -- never reused: it is the sequence of the publish
    topic TEXT NOT NULL, key BLOB NOT NULL, payload BLOB NOT NULL, digest BLOB NOT NULL
) STRICT;
CREATE TABLE outbox_epoch(one INTEGER PRIMARY KEY CHECK(one = 1), epoch INTEGER NOT NULL) STRICT;
"""
"""To be put into the migrations of the database that the outbox shall live in."""

WINDOW_ROWS = 1024
"""Rows in memory and in flight; the rest waits on disk."""
CALL_ROWS_MAX = 64
CALL_BYTES_MAX = 262_144
FORGET_DELAY_S = 0.05
"""Deleting may be late (a row sent twice is recognised), so it waits for company."""


class Publisher(Protocol):
    """What the outbox needs of a client."""

    async def publish(
        self,
        topic: str,
        payloads: Sequence[bytes],
        *,
        key: bytes,
        epoch: int | None = None,
        sequence: int | None = None,
    ) -> object:
        """Return when the payloads are durable in the log; reconnect for as long as it takes."""
        ...


@attrs.frozen(kw_only=True)
class OutboxStatistics:
    """Where the outbox stands."""

    waiting: int
    """Rows committed and not yet acknowledged; counted only while `run` runs."""
    in_flight: int
    published: int
    """Rows acknowledged since the start."""


@attrs.frozen(slots=True)
class _Row:
    id: int
    topic: str
    key: bytes
    payload: bytes


class Outbox:
    """One outbox in one database."""

    def __init__(self, database: Database, *, capacity: int = 100_000) -> None:
        self._database = database
        self._capacity = capacity
        self._wake = trio.Event()
        self._committed = 0
        self._loaded = 0
        self._order: deque[int] = deque()
        self._acked: set[int] = set()
        self._lanes: dict[bytes, deque[_Row]] = {}
        self._published = 0
        self._forget_to = 0
        self._forget = trio.Event()
        self._room = trio.Event()
        self._running = False
        self._handed: deque[_Row] = deque()
        """Rows just committed, so that who has caught up need not read them from the disk."""
        self._companion: Callable[[Connection, int], None] | None = None

    def forget_with(self, companion: Callable[[Connection, int], None]) -> None:
        """Have `companion` run in each transaction that deletes acknowledged rows, with the last row's id.

        What must be written about a row before it is gone is written there.
        """
        self._companion = companion

    def put(self, tx: Connection, topic: str, key: bytes, payload: bytes) -> int:
        """Add a row inside the caller's transaction and return its id; it is drained after the commit.

        Raises:
            OutboxFull: `capacity` rows wait already; raise it on, so that the transaction is rolled back.
        """
        edge = tx.one("SELECT (SELECT max(id) FROM outbox) - (SELECT min(id) FROM outbox) + 1")
        if edge is not None and (edge[0] or 0) >= self._capacity:
            raise OutboxFull(
                f"{self._capacity} messages wait to be published",
                hint="The fabric is not reachable or too slow: look at `bridgectl status`.",
            )
        tx.execute(
            "INSERT INTO outbox(topic, key, payload, digest) VALUES(?,?,?,?)",
            (topic, key, payload, _digest(topic, key, payload)),
        )
        row = _Row(tx.last_rowid(), topic, key, payload)
        tx.after_commit(lambda: self._note_committed(row))
        return row.id

    async def run(
        self, client: Publisher, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> NoReturn:
        """Publish what is in the outbox, for ever.  One task an outbox.

        Raises:
            LogCorrupt: A row is not what was put in.
            ShardsError: What `client.publish` raises: a refusal is not for the outbox to swallow.
        """
        if self._running:
            raise trio.BusyResourceError("this outbox is drained by another task already")
        self._running = True
        self._loaded, self._committed = 0, 0
        self._order.clear()
        self._acked.clear()
        self._lanes.clear()
        self._handed.clear()
        try:
            epoch = await self._database.write(self._load_epoch)
            edges = await self._database.read(lambda tx: tx.one("SELECT min(id) - 1, max(id) FROM outbox"))
            if edges is not None and edges[1] is not None:
                self._loaded, committed = edges
                self._committed = max(self._committed, committed)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._forget_published)
                task_status.started()
                while True:
                    await self._load(client, epoch, nursery)
        finally:
            self._running = False

    def wake(self) -> None:
        """Look for rows now.  `put` calls it after its commit; needed only after rows came by other means."""
        self._wake.set()

    def statistics(self) -> OutboxStatistics:
        unloaded = max(0, self._committed - self._loaded) if self._running else 0
        return OutboxStatistics(
            waiting=unloaded + len(self._order) - len(self._acked),
            in_flight=len(self._lanes),
            published=self._published,
        )

    # ---------------------------------------------------------------- draining

    def _note_committed(self, row: _Row) -> None:
        self._committed = max(self._committed, row.id)
        if self._running and len(self._handed) < WINDOW_ROWS:
            self._handed.append(row)
        self._wake.set()

    def _load_epoch(self, tx: Connection) -> int:
        found = tx.one("SELECT epoch FROM outbox_epoch")
        if found is not None:
            return int(found[0])
        return renew_epoch(tx, self._database.env.token_bytes(8))

    async def _load(self, client: Publisher, epoch: int, nursery: trio.Nursery) -> None:
        """Bring waiting rows into the window, each into the lane of its key; wait when there is nothing to do."""
        room = WINDOW_ROWS - len(self._order)
        if room < CALL_ROWS_MAX:
            self._room = trio.Event()
            await self._room.wait()
            return
        self._wake = trio.Event()
        rows = self._take_handed(room) or await self._read(room)
        for row in rows:
            self._loaded = row.id
            self._order.append(row.id)
            lane = self._lanes.get(row.key)
            if lane is None:
                lane = self._lanes[row.key] = deque()
                nursery.start_soon(self._run_lane, client, epoch, row.key, lane)
            lane.append(row)
        self._committed = max(self._committed, self._loaded)
        if not rows or (self._loaded >= self._committed and not self._handed):
            await self._wake.wait()

    def _take_handed(self, room: int) -> list[_Row]:
        """Rows from memory, if they are the very next ones: a rolled-back id leaves a gap, which the disk knows."""
        rows: list[_Row] = []
        last = self._loaded
        while self._handed and len(rows) < room and self._handed[0].id <= last + 1:
            row = self._handed.popleft()
            if row.id == last + 1:
                rows.append(row)
                last = row.id
        if not rows:
            self._handed.clear()
        return rows

    async def _read(self, room: int) -> list[_Row]:
        after = self._loaded
        found = await self._database.read(
            lambda tx: tx.execute(
                "SELECT id, topic, key, payload, digest FROM outbox WHERE id > ? ORDER BY id LIMIT ?",
                (after, room),
            )
        )
        for id_, topic, key, payload, digest in found:
            if _digest(topic, key, payload) != digest:
                raise LogCorrupt(
                    f"{self._database.path.name}: outbox row {id_} does not match its checksum",
                    hint="Stop, keep the file, restore the last backup (bridgectl restore).",
                )
        return [_Row(*row[:4]) for row in found]

    async def _run_lane(self, client: Publisher, epoch: int, key: bytes, lane: deque[_Row]) -> None:
        while lane:
            rows = _run_of(lane)
            payloads = [row.payload for row in rows]
            self._database.env.maybe("outbox.publish")
            await client.publish(rows[0].topic, payloads, key=key, epoch=epoch, sequence=rows[0].id)
            self._database.env.maybe("outbox.published")
            self._note_acked([row.id for row in rows])
        del self._lanes[key]

    def _note_acked(self, ids: list[int]) -> None:
        self._acked.update(ids)
        self._published += len(ids)
        while self._order and self._order[0] in self._acked:
            self._forget_to = self._order.popleft()
            self._acked.discard(self._forget_to)
            self._forget.set()
            self._room.set()

    async def _forget_published(self) -> None:
        while True:
            await self._forget.wait()
            await trio.sleep(FORGET_DELAY_S)
            self._forget = trio.Event()
            self._database.env.maybe("outbox.forget")
            await self._database.write(partial(self._delete_up_to, self._forget_to))

    def _delete_up_to(self, last: int, tx: Connection) -> None:
        if self._companion is not None:
            self._companion(tx, last)
        tx.execute("DELETE FROM outbox WHERE id <= ?", (last,))


def renew_epoch(tx: Connection, random: bytes) -> int:
    """Begin a new epoch: needed when the database goes back in time (a restored backup reuses row ids)."""
    epoch = (
        int.from_bytes(random[:8], "big") >> 2
    )  # fits SQLite's signed integers and the wire's unsigned ones
    tx.execute("INSERT OR REPLACE INTO outbox_epoch VALUES(1, ?)", (epoch,))
    return epoch


def _run_of(lane: deque[_Row]) -> list[_Row]:
    """Take the first rows that may go in one call: one topic, ids without a gap, within the bounds."""
    rows = [lane.popleft()]
    octets = len(rows[0].payload)
    while lane and len(rows) < CALL_ROWS_MAX:
        row = lane[0]
        octets += len(row.payload)
        if row.topic != rows[0].topic or row.id != rows[-1].id + 1 or octets > CALL_BYTES_MAX:
            break
        rows.append(lane.popleft())
    return rows


def _digest(topic: str, key: bytes, payload: bytes) -> bytes:
    header = b"%s\0%d\0" % (topic.encode(), len(key))
    return hashlib.blake2b(header + key + payload, digest_size=16).digest()
