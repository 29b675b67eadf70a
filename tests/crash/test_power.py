"""Power cuts at every change to the disk: with `synchronous=FULL` nothing acknowledged is lost or torn."""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import trio

from shards import database
from shards.database import open_database
from shards.env import Env
from shards.outbox import OUTBOX_SCHEMA, Outbox
from shards.testing import crash_everywhere, disk
from shards.testing.crash import Acknowledge, CrashReport

from . import log_workload

SchemaWorkload = Callable[[Env, Acknowledge], Awaitable[None]]


@pytest.fixture(autouse=True)
def checkpoints_come_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database, "WAL_CHECKPOINT_BYTES", 256 * 1024)


def test_the_log_keeps_what_it_acknowledged_through_any_power_cut() -> None:
    report = crash_everywhere(log_workload.live, log_workload.check, every=4)
    assert report.images > 250
    assert report.acknowledged > 40


def test_the_log_of_a_slow_sender_too() -> None:
    async def one_by_one(env: Env, acknowledge: Acknowledge) -> None:
        async with log_workload.open_log(env, log_workload.PATH) as log:
            for number, batch in enumerate(log_workload.batches(36)):
                acknowledge((number, await log.append_wait(batch)))

    report = crash_everywhere(one_by_one, functools.partial(log_workload.check, n=36), every=9, seed=2)
    assert report.images > 50


def planted(monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    if what == "synchronous=NORMAL":
        prepare = database._prepare

        def careless(env: Env, db: Any, *rest: Any) -> None:
            prepare(env, db, *rest)
            db.execute("PRAGMA synchronous=NORMAL").fetchall()

        monkeypatch.setattr(database, "_prepare", careless)
    elif what == "a disk that lies":
        monkeypatch.setattr(disk._Inode, "sync", lambda self: None)
    else:  # told before the commit
        run_item = database.Database._run_item

        def early(self: Any, db: Any, connection: Any, item: Any) -> None:
            run_item(self, db, connection, item)
            item.then(item.result, item.error)
            item.then = lambda _result, _error: None

        monkeypatch.setattr(database.Database, "_run_item", early)


@pytest.mark.parametrize("what", ["synchronous=NORMAL", "a disk that lies", "told before the commit"])
def test_the_driver_finds_a_planted_fault(monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    planted(monkeypatch, what)
    with pytest.raises(Exception) as caught:
        crash_everywhere(log_workload.live, log_workload.check, every=3)
    assert any("power cut after change" in note for note in caught.value.__notes__)


# ---------------------------------------------------------------- any other schema: an outbox and its cause

OUTBOX_PATH = Path("/state/core.db")
MIGRATIONS = [OUTBOX_SCHEMA, "CREATE TABLE effect(x INTEGER PRIMARY KEY) STRICT;"]


class Fabric:
    """Remembers what was published, for ever: it is another machine."""

    def __init__(self) -> None:
        self.known: dict[tuple[int, int], bytes] = {}

    async def publish(
        self, topic: str, payloads: Any, *, key: bytes, epoch: int | None = None, sequence: int | None = None
    ) -> None:
        await trio.sleep(0.003)
        for i, payload in enumerate(payloads):
            assert self.known.setdefault((epoch or 0, (sequence or 0) + i), payload) == payload
        await trio.sleep(0.003)


def test_an_effect_and_what_it_announces_are_never_apart() -> None:
    async def workload(env: Env, acknowledge: Acknowledge) -> None:
        async with open_database(env, OUTBOX_PATH, migrations=MIGRATIONS) as db:
            outbox = Outbox(db)
            with trio.move_on_after(3600):
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(outbox.run, Fabric())
                    for x in range(12):

                        def effect(tx: database.Connection, x: int = x) -> None:
                            tx.execute("INSERT INTO effect VALUES(?)", (x,))
                            outbox.put(tx, "t/a", b"k%d" % (x % 2), b"%d" % x)

                        await db.write(effect)
                        acknowledge(x)
                    nursery.cancel_scope.cancel()

    async def check(env: Env, acknowledged: list[Any]) -> None:
        async with open_database(env, OUTBOX_PATH, migrations=MIGRATIONS) as db:
            effects = [x for (x,) in await db.read(lambda tx: tx.execute("SELECT x FROM effect ORDER BY x"))]
            assert effects == list(range(len(effects)))
            assert len(effects) >= len(acknowledged)
            waiting = await db.read(lambda tx: tx.execute("SELECT payload FROM outbox ORDER BY id"))
            assert [int(payload) for (payload,) in waiting] == effects[len(effects) - len(waiting) :]
            fabric = Fabric()
            with trio.move_on_after(5):
                await Outbox(db).run(fabric)
            assert sorted(int(payload) for payload in fabric.known.values()) == [
                int(payload) for (payload,) in waiting
            ]

    report: CrashReport = crash_everywhere(workload, check, every=2)
    assert report.images > 100
