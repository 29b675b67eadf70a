"""The audit log on the disk: whatever is done to its file is found, or changes nothing that is read."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import apsw
import pytest
import trio
from nacl import bindings

from bridged.audit import store
from bridged.audit.against import compare
from bridged.audit.member import Audit
from bridged.audit.tree import AuditError, open_checkpoint
from bridged.secret import Secret
from shards.database import open_database
from shards.errors import LogError
from shards.log import open_log
from shards.record import Record
from shards.testing import real_env

SEED = b"s" * 32
PUBLIC = bindings.crypto_sign_seed_keypair(SEED)[0]
LEAVES = 12


def record(position: int, text: str = "hello") -> Record:
    payload = f'{{"trace_id":"{position:032x}","text":"{text}"}}'.encode()
    return Record(
        topic="bridge/core/event",
        offset=position,
        position=position,
        key=1,
        principal="facade",
        at_ms=1_000 + position,
        payload=payload,
        proof=None,
    )


class Records:
    """A subscription that gives what it was told to, then nothing more."""

    def __init__(self, *pages: list[Record]) -> None:
        self.pages = list(pages)
        self.finished: list[int] = []

    async def receive(self) -> list[Record]:
        await trio.lowlevel.checkpoint()
        if not self.pages:
            raise EOFError
        return self.pages.pop(0)

    async def done(self, records: list[Record]) -> None:
        self.finished += [one.position for one in records]


async def grow(path: Path, *pages: list[Record], sign: bool = True) -> Records:
    """One life of the audit."""
    records = Records(*pages)
    async with open_database(real_env(), path, migrations=store.MIGRATIONS) as database:
        audit = Audit(database, name="bridged.local/acme/acme", seed=Secret(SEED))
        await audit.open()
        for _ in range(len(pages)):
            with pytest.raises(EOFError):
                await audit.consume(Records(records.pages.pop(0)))  # type: ignore[arg-type]
            if sign:
                await audit.checkpoint()
    return records


async def verify(path: Path) -> store.Verified:
    async with open_database(real_env(), path, migrations=store.MIGRATIONS, read_only=True) as database:
        return await database.read(lambda tx: store.verify(tx, PUBLIC))


def whole(path: Path) -> Path:
    """The database in its one file: nothing left in a write-ahead log."""
    with closing(apsw.Connection(str(path))) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    return path


@pytest.fixture
async def audit_db(tmp_path: Path) -> AsyncIterator[Path]:
    path = tmp_path / "audit.db"
    await grow(path, [record(n) for n in range(5)], [record(n) for n in range(5, LEAVES)])
    yield whole(path)


async def test_it_verifies_and_its_heads_are_signed(audit_db: Path) -> None:
    found = await verify(audit_db)
    assert (found.size, found.checkpoints, found.signed_size) == (LEAVES, 2, LEAVES)
    async with open_database(real_env(), audit_db, migrations=store.MIGRATIONS, read_only=True) as database:
        notes = await database.read(store.checkpoints)
        with pytest.raises(AuditError):
            await database.read(lambda tx: store.verify(tx, b"o" * 32))
    assert open_checkpoint(notes[-1][1], PUBLIC).root == found.root


def contents(path: Path) -> list[Any]:
    """All that is read of the file."""
    with closing(apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READONLY)) as connection:
        rows: list[Any] = []
        for query in (
            "SELECT seq, position, trace_id, data, hash FROM leaf ORDER BY seq",
            "SELECT trace_id, seq FROM leaf INDEXED BY leaf_by_trace ORDER BY trace_id",
            "SELECT size, note FROM checkpoint ORDER BY size",
            "SELECT name, sql FROM sqlite_schema ORDER BY name",
        ):
            rows.append(connection.execute(query).fetchall())
    return rows


async def test_every_flip_of_its_file_is_found_or_changes_nothing(audit_db: Path, tmp_path: Path) -> None:
    good = audit_db.read_bytes()
    before = contents(audit_db)
    used = [at for at, byte in enumerate(good) if byte]  # the rest is free space
    for at in random.Random(7).sample(used, 220):
        data = bytearray(good)
        data[at] ^= 1 << (at % 8)
        audit_db.write_bytes(data)
        try:
            await verify(audit_db)
        except (AuditError, LogError):
            continue
        assert contents(audit_db) == before, f"byte {at} was altered and nobody noticed"


def tamper(path: Path, *statements: str) -> None:
    """What an attacker with the file does: no trigger stops it."""
    with closing(apsw.Connection(str(path))) as connection:
        triggers = connection.execute("SELECT name, sql FROM sqlite_schema WHERE type='trigger'").fetchall()
        for name, _ in triggers:
            connection.execute(f"DROP TRIGGER {name}")
        for statement in statements:
            connection.execute(statement)
        for _, sql in triggers:
            connection.execute(sql)


@pytest.mark.parametrize(
    ("statements", "said"),
    [
        (["DELETE FROM leaf WHERE seq=4"], "leaf 4 is missing"),
        (["DELETE FROM leaf WHERE seq=0"], "leaf 0 is missing"),
        (["DELETE FROM leaf WHERE seq=11"], "leaves are missing"),
        (["DELETE FROM leaf"], "leaves are missing"),
        (["UPDATE leaf SET data=replace(data, 'facade', 'nobody') WHERE seq=4"], "leaf 4 was altered"),
        (["UPDATE leaf SET data='7' WHERE seq=4"], "leaf 4 was altered"),
        (["UPDATE leaf SET data=7 WHERE seq=4"], "leaf 4 was altered"),
        (["UPDATE leaf SET hash=zeroblob(32) WHERE seq=4"], "leaf 4 was altered"),
        (["UPDATE leaf SET position=400 WHERE seq=4"], "leaf 4 stands at a place"),
        (["UPDATE leaf SET trace_id='' WHERE seq=4"], "leaf 4 stands at a place"),
        (["UPDATE leaf SET seq=100 WHERE seq=4", "UPDATE leaf SET seq=4 WHERE seq=5", "UPDATE leaf SET seq=5 WHERE seq=100"], "another root"),
        (["DELETE FROM leaf WHERE seq=4", "UPDATE leaf SET seq=seq-1 WHERE seq>4"], "another root"),
        (["UPDATE checkpoint SET size=11 WHERE size=12"], "says 12"),
        (["UPDATE checkpoint SET note=replace(note, '12', '11')"], "not signed by this key"),
        (["UPDATE checkpoint SET note=7"], "not a signed checkpoint"),
        (["UPDATE checkpoint SET note=''"], "not a signed checkpoint"),
    ],
)  # fmt: skip
async def test_what_was_done_to_it_is_named(audit_db: Path, statements: list[str], said: str) -> None:
    tamper(audit_db, *statements)
    with pytest.raises(AuditError, match=said):
        await verify(audit_db)


async def test_sql_alone_cannot_change_it(audit_db: Path) -> None:
    async with open_database(real_env(), audit_db, migrations=store.MIGRATIONS) as database:
        for statement in (
            "DELETE FROM leaf WHERE seq=4",
            "UPDATE leaf SET trace_id=''",
            "INSERT INTO leaf VALUES (100, 100, '', x'00', x'00')",
            "DELETE FROM checkpoint",
            "UPDATE checkpoint SET note=''",
            "INSERT INTO checkpoint VALUES (3, '')",
        ):
            with pytest.raises(LogError, match="Constraint"):
                await database.write(lambda tx, statement=statement: tx.execute(statement))  # type: ignore[misc]
    assert (await verify(audit_db)).size == LEAVES


async def test_a_crash_between_leaves_and_head_is_mended_by_the_next_life(tmp_path: Path) -> None:
    path = tmp_path / "audit.db"
    await grow(path, [record(n) for n in range(5)])
    await grow(path, [record(n) for n in range(5, 9)], sign=False)  # killed before the head was signed
    found = await verify(path)
    assert (found.size, found.signed_size) == (9, 5)
    await grow(path, [record(9)])
    found = await verify(path)
    assert (found.size, found.signed_size, found.checkpoints) == (10, 10, 2)


async def test_records_that_come_again_have_their_leaf(tmp_path: Path) -> None:
    path = tmp_path / "audit.db"
    await grow(path, [record(n) for n in range(5)])
    await grow(path, [record(n) for n in range(2, 7)], [record(n) for n in range(7)])
    assert (await verify(path)).size == 7


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda rows: rows, None),
        (lambda rows: rows[:3] + rows[4:], "position 3 of the Log has no leaf"),
        (lambda rows: rows[1:], "position 0 of the Log has no leaf"),
        (lambda rows: [*rows, record(LEAVES + 1)], "where the Log has no record"),
        (lambda rows: [*rows[:3], record(3, "other"), *rows[4:]], "leaf 3 says something else"),
        (lambda rows: rows[:-2], None),
    ],
)
async def test_it_is_held_against_the_log(
    tmp_path: Path, change: Callable[[list[Record]], list[Record]], said: str | None, make_log: Any
) -> None:
    rows = [record(n) for n in range(LEAVES)]
    await make_log(tmp_path / "log.db", rows)
    kept = change(rows)
    await grow(tmp_path / "audit.db", kept)
    env = real_env()
    async with (
        open_log(env, tmp_path / "log.db", read_only=True) as log,
        open_database(env, tmp_path / "audit.db", migrations=store.MIGRATIONS, read_only=True) as database,
    ):
        if said is None:
            found = await compare(log, database, "acme", size=len(kept))
            assert (found.compared, found.not_yet_audited) == (len(kept), LEAVES - len(kept))
        else:
            with pytest.raises(AuditError, match=said):
                await compare(log, database, "acme", size=len(kept))
