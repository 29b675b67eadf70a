"""Power cuts, failing disks and cancellations: what was acknowledged lasts, and nothing is there by half."""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bridged.envelope import Envelope
from shards.database import Connection
from shards.env import Env
from shards.errors import StorageFailed
from shards.testing import (
    Fault,
    World,
    cancel_everywhere,
    crash_everywhere,
    fail_everywhere,
    run_simulation,
)

IRC = "msgr://channels/acme/bridge/irc/irc.lab/%23ops"
PATH = Path("/state/core.db")
Acknowledge = Callable[[Any], None]


@pytest.fixture
def workload(open_any: Any) -> Any:
    async def live(env: Env, acknowledge: Acknowledge) -> None:
        """Three lines heard, one edited, one said by a client; each acknowledged when its commit returned."""
        async with open_any(PATH, env=env) as house:
            for n in range(3):
                await house.hear(
                    house.said(IRC, f"line {n}", f"r{n}", cursor={"stream": "s", "value": str(n)})
                )
                acknowledge(f"line {n}")
            await house.hear(house.told(IRC, "edit_event", remote_id="r0", edit_id="e0", text="line zero"))
            acknowledge("line zero")
            await house.ask("send", conversation="ops", text="from ola")
            acknowledge("from ola")

    return live


@pytest.fixture
def check(open_any: Any) -> Any:
    async def look(env: Env, acknowledged: list[str]) -> None:
        async with open_any(PATH, env=env) as house:
            await house.core.read(lambda tx: is_whole(tx, acknowledged))

    return look


def is_whole(tx: Connection, acknowledged: list[str]) -> None:
    """Every acknowledged text is there; each message has its event, its intents, and each intent its decision."""
    said = {text for (text,) in tx.execute("SELECT text FROM message UNION SELECT text FROM earlier")}
    assert said >= set(acknowledged), f"lost: {set(acknowledged) - said}"
    outbox = [Envelope.decode(payload) for (payload,) in tx.execute("SELECT payload FROM outbox ORDER BY id")]
    announced = {one.payload["message_id"] for one in outbox if one.payload.get("event") == "message"}
    assert announced == {message_id for (message_id,) in tx.execute("SELECT message_id FROM message")}
    intents = [one for one in outbox if one.action.startswith("outbound_")]
    for one in intents:
        row = tx.one(
            "SELECT word FROM trail WHERE id = ? AND trace_id = ? AND kind = 'decision'",
            (one.metadata["decision"], one.trace_id),
        )
        assert row == ("allow",), "an intent without its decision"
    assert tx.one("SELECT count(*) FROM delivery") == (len(intents),)
    heard = tx.one("SELECT max(CAST(substr(text, 6) AS INTEGER)) FROM message WHERE channel IS NOT NULL")
    cursor = tx.one("SELECT CAST(value AS INTEGER) FROM cursor")
    if "line 2" in said:
        assert cursor == (2,), f"the cursor is {cursor} and what was heard {heard}"
    assert tx.execute("PRAGMA integrity_check") == [("ok",)]
    tx.execute("SELECT count(*) FROM message_text('line')")


def test_what_was_acknowledged_survives_any_power_cut(workload: Any, check: Any) -> None:
    report = crash_everywhere(workload, check, every=7)
    assert report.acknowledged == 5
    assert report.images > 30


def test_a_disk_that_fails_is_never_taken_for_one_that_wrote(workload: Any, check: Any) -> None:
    report = fail_everywhere(workload, check, error=errno.EIO, sticky=True, kinds=frozenset({"sync"}))
    assert report.images > 5


def test_a_failed_commit_is_no_dead_letter_but_the_end(open_any: Any) -> None:
    async def scenario() -> None:
        with World(1) as world:
            host = world.host("shard")
            async with open_any(PATH, env=host.env()) as house:
                await house.hear(house.said(IRC, "line 0", "r0"))
                host.disk.fault = Fault(at=1, error=errno.EIO, sticky=True, kinds=frozenset({"sync"}))
                for _ in range(2):
                    with pytest.raises(StorageFailed):
                        await house.hear(house.said(IRC, "line 1", "r1"))
                    with pytest.raises(StorageFailed):
                        await house.ask("send", conversation="ops", text="hi")

    run_simulation(1, scenario)


def test_a_cancelled_wish_is_whole_or_was_never_made(open_any: Any, tmp_path: Path) -> None:
    lives = iter(range(10_000))

    async def scenario(attempt: Any) -> None:
        async with open_any(tmp_path / f"core-{next(lives)}.db") as house:
            await attempt(lambda: house.ask("send", conversation="ops", text="hi"))
            await house.core.read(lambda tx: is_whole(tx, []))
            said = await house.ask("send", conversation="ops", text="ho")
            assert said["message_id"]

    assert cancel_everywhere(scenario) >= 2


def test_a_cancelled_batch_is_whole_or_was_never_taken(open_any: Any, tmp_path: Path) -> None:
    lives = iter(range(10_000))

    async def scenario(attempt: Any) -> None:
        async with open_any(tmp_path / f"batch-{next(lives)}.db") as house:
            records = [
                house.said(IRC, f"line {n}", f"r{n}", cursor={"stream": "s", "value": str(n)})
                for n in range(3)
            ]
            await attempt(lambda: house.hear(*records))
            await house.core.read(lambda tx: is_whole(tx, []))
            await house.hear(*records)  # the broker gives them again
            assert await house.count("message") == 3
            assert len(await house.outbox("outbound_message")) == 3

    assert cancel_everywhere(scenario) >= 2
