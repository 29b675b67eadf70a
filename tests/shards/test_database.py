"""The one door to SQLite: what a caller may believe after `write` returned."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio

from shards.database import Connection, Database, lock_state, open_database
from shards.env import Env
from shards.errors import LocalProtocolError, LogCorrupt, LogError, LogFull, StorageFailed
from shards.testing import real_env

SCHEMA = "CREATE TABLE t(x INTEGER PRIMARY KEY, y TEXT UNIQUE); CREATE TABLE u(x);"


@pytest.fixture(params=["thread", "inline"])
def env(request: pytest.FixtureRequest) -> Env:
    return real_env(threads=request.param == "thread")


@pytest.fixture
async def database(env: Env, tmp_path: Path) -> AsyncIterator[Database]:
    async with open_database(env, tmp_path / "state" / "a.db", migrations=[SCHEMA]) as database:
        yield database


def insert(x: int, y: str = "") -> object:
    return lambda tx: tx.execute("INSERT INTO t VALUES(?,?)", (x, y or f"y{x}"))


def rows(tx: Connection) -> list[int]:
    return [x for (x,) in tx.execute("SELECT x FROM t ORDER BY x")]


async def test_what_was_written_is_read_by_the_other_connection(database: Database) -> None:
    await database.write(insert(1))
    assert await database.read(rows) == [1]


async def test_the_settings_that_durability_rests_on_hold(database: Database) -> None:
    def settings(tx: Connection) -> list[object]:
        return [tx.execute(f"PRAGMA {name}")[0][0] for name in ("journal_mode", "synchronous", "temp_store")]

    assert await database.write(lambda tx: settings(tx)) == ["wal", 2, 2]


async def test_files_are_for_their_owner_alone(database: Database) -> None:
    await database.write(insert(1))
    for path in database.path.parent.iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path
    assert stat.S_IMODE(database.path.parent.stat().st_mode) == 0o700


async def test_an_exception_takes_back_its_own_work_and_no_neighbours(database: Database) -> None:
    def bad(tx: Connection) -> None:
        tx.execute("INSERT INTO t VALUES(7,'seven')")
        raise ValueError("mine")

    results: list[object] = []

    async def call(fn: object) -> None:
        try:
            await database.write(fn)
        except ValueError as exc:
            results.append(str(exc))

    async with trio.open_nursery() as nursery:
        for fn in (insert(1), bad, insert(2)):
            nursery.start_soon(call, fn)
    assert results == ["mine"]
    assert await database.read(rows) == [1, 2]


async def test_a_broken_constraint_is_its_callers_alone(database: Database) -> None:
    await database.write(insert(1))
    with pytest.raises(LogError, match="Constraint"):
        await database.write(insert(1))
    await database.write(insert(2))
    assert await database.read(rows) == [1, 2]


async def test_what_waits_together_is_committed_together(database: Database) -> None:
    async with trio.open_nursery() as nursery:
        for x in range(100):
            nursery.start_soon(database.write, insert(x))
    statistics = database.statistics()
    assert statistics.items == 100
    assert statistics.commits < 60
    assert statistics.waiting == 0


async def test_submitted_work_is_told_in_order_after_its_commit(database: Database) -> None:
    told: list[int] = []
    for x in range(20):
        database.submit(insert(x), lambda _result, error, x=x: told.append(x if error is None else -1))
    await database.write(insert(99))
    assert told == list(range(20))


async def test_a_cancelled_writer_gets_its_result_when_it_had_begun(database: Database) -> None:
    with trio.CancelScope() as scope:

        async def cancel() -> None:
            scope.cancel()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(cancel)
            await database.write(insert(1))
    assert await database.read(rows) == [1]


async def test_a_writer_that_is_cancelled_before_writes_nothing(database: Database) -> None:
    with trio.CancelScope() as scope:
        scope.cancel()
        await database.write(insert(1))
    assert await database.read(rows) == []


async def test_a_read_cannot_write(database: Database) -> None:
    with pytest.raises(LogError):
        await database.read(insert(1))
    await database.write(insert(2))
    assert await database.read(rows) == [2]


async def test_what_was_queued_is_committed_before_the_file_closes(env: Env, tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    async with open_database(env, path, migrations=[SCHEMA]) as database:
        for x in range(50):
            database.submit(insert(x), lambda _result, _error: None)
    with pytest.raises(LocalProtocolError):
        await database.write(insert(99))
    async with open_database(env, path, migrations=[SCHEMA], read_only=True) as database:
        assert await database.read(rows) == list(range(50))
        with pytest.raises(LocalProtocolError):
            await database.write(insert(99))


async def test_the_bodys_exception_comes_out_as_it_is(env: Env, tmp_path: Path) -> None:
    with pytest.raises(KeyError, match="mine"):
        async with open_database(env, tmp_path / "a.db", migrations=[SCHEMA]):
            raise KeyError("mine")


async def test_migrations_run_once_and_a_newer_file_is_refused(env: Env, tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    more = [SCHEMA, "CREATE TABLE v(z); INSERT INTO v VALUES(1);"]
    for migrations in ([SCHEMA], more, more):
        async with open_database(env, path, migrations=migrations):
            pass
    async with open_database(env, path, migrations=more) as database:
        assert await database.read(lambda tx: tx.execute("SELECT z FROM v")) == [(1,)]
    with pytest.raises(LogError, match="schema 2, this program knows 1") as caught:
        async with open_database(env, path, migrations=[SCHEMA]):
            pass
    assert "newer" in caught.value.hint


async def test_a_migration_that_fails_leaves_the_old_schema(env: Env, tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    async with open_database(env, path, migrations=[SCHEMA]):
        pass
    with pytest.raises(LogError):
        async with open_database(env, path, migrations=[SCHEMA, "CREATE TABLE v(z); CREATE TABLE t(x);"]):
            pass
    async with open_database(env, path, migrations=[SCHEMA]) as database:
        assert await database.read(lambda tx: tx.execute("SELECT 1 FROM sqlite_schema WHERE name='v'")) == []


async def test_a_file_that_is_no_database_is_named(env: Env, tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    path.write_bytes(b"this is no database, and it is long enough" * 200)
    with pytest.raises(LogCorrupt, match=r"a\.db"):
        async with open_database(env, path, migrations=[SCHEMA]):
            pass


async def test_a_missing_file_is_named_when_opened_to_read(env: Env, tmp_path: Path) -> None:
    with pytest.raises(LogError, match="does not exist"):
        async with open_database(env, tmp_path / "a.db", migrations=[SCHEMA], read_only=True):
            pass


async def test_a_full_quota_refuses_one_and_stays_alive(database: Database) -> None:
    await database.write(lambda tx: tx.execute("PRAGMA max_page_count=6"))
    with pytest.raises(LogFull):
        await database.write(lambda tx: tx.execute("INSERT INTO u VALUES(zeroblob(100000))"))
    await database.write(insert(1))
    assert await database.read(rows) == [1]


async def test_a_failed_commit_is_the_end_for_everyone(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(group: object) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(database, "_commit", fail)
    with pytest.raises(StorageFailed, match="Input/output error"):
        await database.write(insert(1))
    monkeypatch.undo()
    with pytest.raises(StorageFailed):
        await database.write(insert(2))
    with pytest.raises(StorageFailed):
        await database.read(rows)
    with pytest.raises(StorageFailed):
        await database.wait_failed()
    assert database.failed is not None


async def test_the_write_ahead_log_stays_short(database: Database) -> None:
    for _ in range(8):
        await database.write(lambda tx: tx.execute("INSERT INTO u VALUES(zeroblob(1000000))"))
    assert (database.path.parent / "a.db-wal").stat().st_size < 5_000_000


def test_a_state_directory_has_one_owner_and_the_second_is_told_who(tmp_path: Path) -> None:
    holder = (
        "import sys; from pathlib import Path; from shards.database import lock_state\n"
        "with lock_state(Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", holder, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        assert process.stdout.readline() == "held\n"
        with pytest.raises(LogError, match=f"process {process.pid}"), lock_state(tmp_path):
            pass
        process.kill()
        process.stdin.close()
    with lock_state(tmp_path):
        assert (tmp_path / "lock").read_text() == f"{os.getpid()}\n"
