"""A task is cancelled at each of its checkpoints in turn: done or not done, never half."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import trio

from shards.database import Connection, Database, open_database
from shards.log import Appended, open_log
from shards.outbox import OUTBOX_SCHEMA, Outbox
from shards.testing import cancel_everywhere, real_env, simulated_env

from . import log_workload
from .test_power import Fabric

MIGRATIONS = [OUTBOX_SCHEMA, "CREATE TABLE effect(x INTEGER) STRICT;"]
PATH = Path("/state/a.db")


def two_rows(tx: Connection) -> None:
    tx.execute("INSERT INTO effect VALUES(1)")
    tx.execute("INSERT INTO effect VALUES(2)")


async def count(database: Database) -> int:
    return (await database.read(lambda tx: tx.execute("SELECT count(*) FROM effect")))[0][0]


def test_database_write() -> None:
    async def scenario(attempt: Any) -> None:
        async with open_database(simulated_env(1), PATH, migrations=MIGRATIONS) as database:
            told: list[None] = []

            async def write() -> None:
                told.append(await database.write(two_rows))

            await attempt(write)
            assert await count(database) == 2 * len(told)
            await database.write(two_rows)

    assert cancel_everywhere(scenario) >= 2


def test_database_write_beside_a_neighbour() -> None:
    async def scenario(attempt: Any) -> None:
        async with open_database(simulated_env(1), PATH, migrations=MIGRATIONS) as database:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(database.write, two_rows)
                await attempt(lambda: database.write(two_rows))
            assert await count(database) in (2, 4)

    assert cancel_everywhere(scenario) >= 2


def test_opening_and_closing_a_database() -> None:
    async def scenario(attempt: Any) -> None:
        env = simulated_env(1)

        async def life() -> None:
            async with open_database(env, PATH, migrations=MIGRATIONS) as database:
                await database.write(two_rows)

        await attempt(life)
        async with open_database(env, PATH, migrations=MIGRATIONS) as database:
            assert await count(database) in (0, 2)

    assert cancel_everywhere(scenario) >= 4


def test_opening_and_closing_with_a_thread_on_a_real_file(tmp_path: Path) -> None:
    number = iter(range(1000))

    async def scenario(attempt: Any) -> None:
        path = tmp_path / f"{next(number)}.db"

        async def life() -> None:
            async with open_database(real_env(), path, migrations=MIGRATIONS) as database:
                await database.write(two_rows)

        await attempt(life)
        async with open_database(real_env(), path, migrations=MIGRATIONS) as database:
            assert await count(database) in (0, 2)

    assert cancel_everywhere(scenario, simulated=False) >= 3


def test_log_append() -> None:
    async def scenario(attempt: Any) -> None:
        async with open_log(simulated_env(1), log_workload.PATH) as log:
            told: list[Appended] = []
            batch, other = log_workload.batches(2)

            async def append() -> None:
                told.append(await log.append_wait(batch))

            await attempt(append)
            assert (log.head > 0) == bool(told)
            again = await log.append_wait(batch)
            assert again.duplicate == bool(told)
            assert (again.position, again.offset) == (0, 0)
            await log.append_wait(other)
            await log.verify()

    assert cancel_everywhere(scenario) >= 2


def test_log_trim_and_verify() -> None:
    async def scenario(attempt: Any) -> None:
        async with open_log(simulated_env(1), log_workload.PATH, ring_bytes=0) as log:
            for batch in log_workload.batches(20):
                await log.append_wait(batch)
            await attempt(lambda: log.trim(before=log.head // 2))
            verified = await log.verify()
            assert verified.first == log.first
            assert await log.trim(before=log.head // 2) > 0
            await log.verify()

    assert cancel_everywhere(scenario) >= 3


def test_outbox_run() -> None:
    async def scenario(attempt: Any) -> None:
        fabric = Fabric()
        async with open_database(simulated_env(1), PATH, migrations=MIGRATIONS) as database:
            outbox = Outbox(database)

            def put(tx: Connection) -> None:
                for x in range(6):
                    outbox.put(tx, "t/a", b"k%d" % (x % 2), b"%d" % x)

            await database.write(put)

            async def drain() -> None:
                with trio.move_on_after(0.2):
                    await outbox.run(fabric)

            await attempt(drain)
            with trio.move_on_after(5):
                await outbox.run(fabric)
            assert list(map(int, sorted(fabric.known.values()))) == list(range(6))
            assert len({sequence for _, sequence in fabric.known}) == 6
            left = await database.read(lambda tx: tx.execute("SELECT count(*) FROM outbox"))
            assert left == [(0,)]

    assert cancel_everywhere(scenario) >= 5
