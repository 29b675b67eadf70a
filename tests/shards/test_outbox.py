"""The outbox: what was committed is published once, in order, whatever ends in between."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest
import trio
import trio.testing

from shards.database import Connection, Database, open_database
from shards.errors import LogCorrupt, OutboxFull
from shards.outbox import OUTBOX_SCHEMA, Outbox, renew_epoch
from shards.testing import real_env

Clock = trio.testing.MockClock
SCHEMA = [OUTBOX_SCHEMA, "CREATE TABLE effect(x);"]


class Fabric:
    """A log that takes its time and knows what it was given: duplicates by (epoch, sequence)."""

    def __init__(self, delay_s: float = 0.01) -> None:
        self.delay_s = delay_s
        self.log: dict[tuple[int, int], tuple[str, bytes, bytes]] = {}
        self.calls: list[tuple[str, bytes, int, int]] = []
        self.duplicates = 0
        self.in_flight: dict[bytes, int] = {}
        self.in_flight_max = 0

    async def publish(
        self,
        topic: str,
        payloads: Sequence[bytes],
        *,
        key: bytes,
        epoch: int | None = None,
        sequence: int | None = None,
    ) -> None:
        assert epoch is not None
        assert sequence is not None
        assert key not in self.in_flight, "two calls of one key side by side may overtake each other"
        self.in_flight[key] = sequence
        self.in_flight_max = max(self.in_flight_max, len(self.in_flight))
        self.calls.append((topic, key, sequence, len(payloads)))
        try:
            await trio.sleep(self.delay_s)
            for i, payload in enumerate(payloads):
                self.duplicates += (epoch, sequence + i) in self.log
                self.log.setdefault((epoch, sequence + i), (topic, key, payload))
            await trio.sleep(self.delay_s)
        finally:
            del self.in_flight[key]

    def payloads(self, key: bytes) -> list[bytes]:
        return [payload for (_, k, payload) in self.log.values() if k == key]


@pytest.fixture
async def database(tmp_path: Path) -> AsyncIterator[Database]:
    async with open_database(real_env(threads=False), tmp_path / "a.db", migrations=SCHEMA) as database:
        yield database


async def left(database: Database) -> int:
    return (await database.read(lambda tx: tx.execute("SELECT count(*) FROM outbox")))[0][0]


async def put(database: Database, outbox: Outbox, *messages: tuple[str, bytes, bytes]) -> None:
    for message in messages:
        await database.write(lambda tx, message=message: outbox.put(tx, *message))


async def test_what_was_put_is_published_and_forgotten(
    autojump_clock: Clock, database: Database, nursery: trio.Nursery
) -> None:
    outbox, fabric = Outbox(database), Fabric()
    await put(database, outbox, ("t/a", b"k", b"1"), ("t/a", b"k", b"2"))
    await nursery.start(outbox.run, fabric)
    await put(database, outbox, ("t/a", b"k", b"3"))
    await trio.sleep(1)
    assert fabric.payloads(b"k") == [b"1", b"2", b"3"]
    assert await left(database) == 0
    statistics = outbox.statistics()
    assert (statistics.waiting, statistics.in_flight, statistics.published) == (0, 0, 3)


async def test_what_waits_is_counted_from_the_start(
    autojump_clock: Clock, database: Database, nursery: trio.Nursery
) -> None:
    for _ in range(2):
        outbox = Outbox(database)
        await put(database, outbox, *[("t/a", b"k%d" % i, b"x") for i in range(5)])
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as inner:
                await inner.start(outbox.run, Fabric())
                assert outbox.statistics().waiting == 5
                await trio.sleep(1)
                assert outbox.statistics().waiting == 0
                scope.cancel()


async def test_a_row_and_its_cause_come_and_go_together(
    autojump_clock: Clock, database: Database, nursery: trio.Nursery
) -> None:
    outbox, fabric = Outbox(database), Fabric()
    await nursery.start(outbox.run, fabric)

    def effect_then_fault(tx: Connection) -> None:
        tx.execute("INSERT INTO effect VALUES(1)")
        outbox.put(tx, "t/a", b"k", b"never")
        raise ValueError

    with pytest.raises(ValueError):
        await database.write(effect_then_fault)
    await put(database, outbox, ("t/a", b"k", b"once"))
    await trio.sleep(1)
    assert list(fabric.log.values()) == [("t/a", b"k", b"once")]


async def test_order_within_a_key_holds_over_topics_and_keys_go_side_by_side(
    autojump_clock: Clock, database: Database, nursery: trio.Nursery
) -> None:
    outbox, fabric = Outbox(database), Fabric()
    messages = [(f"t/{i % 3}", b"k%d" % (i % 5), b"%d" % i) for i in range(100)]
    await put(database, outbox, *messages)
    await nursery.start(outbox.run, fabric)
    await trio.sleep(10)
    for k in range(5):
        assert fabric.payloads(b"k%d" % k) == [p for (_, key, p) in messages if key == b"k%d" % k]
    assert fabric.in_flight_max == 5


async def test_rows_of_one_key_and_topic_share_a_call(
    autojump_clock: Clock, database: Database, nursery: trio.Nursery
) -> None:
    outbox, fabric = Outbox(database), Fabric()
    await put(database, outbox, *[("t/a", b"k", b"%d" % i) for i in range(100)])
    await nursery.start(outbox.run, fabric)
    await trio.sleep(1)
    assert [n for (_, _, _, n) in fabric.calls] == [64, 36]


async def test_a_drain_cut_anywhere_is_taken_up_without_a_double(
    autojump_clock: Clock, database: Database, tmp_path: Path
) -> None:
    fabric = Fabric()
    messages = [("t/a", b"k%d" % (i % 3), b"%d" % i) for i in range(60)]
    await put(database, Outbox(database), *messages)
    for cut_at_s in (0.001, 0.015, 0.021, 0.05, 0.09, 0.2, 5):
        with trio.move_on_after(cut_at_s):
            await Outbox(database).run(fabric)
    assert await left(database) == 0
    for k in range(3):
        assert fabric.payloads(b"k%d" % k) == [p for (_, key, p) in messages if key == b"k%d" % k]
    assert len(fabric.log) == 60
    assert fabric.duplicates > 0, "the cuts fell where nothing was in flight: the test shows nothing"


async def test_only_an_acknowledged_prefix_is_deleted(
    autojump_clock: Clock, database: Database, nursery: trio.Nursery
) -> None:
    outbox = Outbox(database)
    stuck = trio.Event()

    class Stuck(Fabric):
        async def publish(self, topic, payloads, *, key, epoch=None, sequence=None):  # type: ignore[no-untyped-def]
            if key == b"stuck":
                await stuck.wait()
            await super().publish(topic, payloads, key=key, epoch=epoch, sequence=sequence)

    fabric = Stuck()
    await put(database, outbox, ("t", b"a", b"1"), ("t", b"stuck", b"2"), ("t", b"a", b"3"))
    await nursery.start(outbox.run, fabric)
    await trio.sleep(1)
    assert fabric.payloads(b"a") == [b"1", b"3"]
    assert await left(database) == 2
    stuck.set()
    await trio.sleep(1)
    assert await left(database) == 0


async def test_a_full_outbox_refuses_and_takes_the_effect_back(
    autojump_clock: Clock, database: Database
) -> None:
    outbox = Outbox(database, capacity=3)
    await put(database, outbox, *[("t", b"k", b"x")] * 3)

    def effect(tx: Connection) -> None:
        tx.execute("INSERT INTO effect VALUES(1)")
        outbox.put(tx, "t", b"k", b"y")

    with pytest.raises(OutboxFull):
        await database.write(effect)
    assert await database.read(lambda tx: tx.execute("SELECT * FROM effect")) == []


async def test_the_window_bounds_what_is_in_memory(
    autojump_clock: Clock, database: Database, nursery: trio.Nursery
) -> None:
    outbox, fabric = Outbox(database), Fabric()

    def many(tx: Connection) -> None:
        for i in range(3000):
            outbox.put(tx, "t", b"%d" % i, b"x")

    await database.write(many)
    await nursery.start(outbox.run, fabric)
    await trio.sleep(10)
    assert fabric.in_flight_max <= 1024
    assert len(fabric.log) == 3000
    assert await left(database) == 0


async def test_ids_and_the_epoch_survive_and_a_renewed_epoch_is_another(
    autojump_clock: Clock, database: Database
) -> None:
    fabric = Fabric()
    for _ in range(2):
        await put(database, Outbox(database), ("t", b"k", b"x"))
        with trio.move_on_after(1):
            await Outbox(database).run(fabric)
    await database.write(lambda tx: renew_epoch(tx, b"\xff" * 8))
    await put(database, Outbox(database), ("t", b"k", b"x"))
    with trio.move_on_after(1):
        await Outbox(database).run(fabric)
    (epoch1, sequence1), (epoch2, sequence2), (epoch3, sequence3) = fabric.log
    assert (sequence1, sequence2, sequence3) == (1, 2, 3), (
        "a row id came twice: it would be taken for a double"
    )
    assert epoch1 == epoch2 != epoch3
    assert epoch3 < 2**63


async def test_a_flipped_bit_is_noticed_before_it_is_published(
    autojump_clock: Clock, database: Database
) -> None:
    outbox, fabric = Outbox(database), Fabric()
    await put(database, outbox, ("t", b"k", b"pay 100"))
    await database.write(lambda tx: tx.execute("UPDATE outbox SET payload = ?", (b"pay 900",)))
    with pytest.RaisesGroup(LogCorrupt):
        await outbox.run(fabric)
    assert fabric.log == {}


async def test_an_outbox_has_one_drain(
    autojump_clock: Clock, database: Database, nursery: trio.Nursery
) -> None:
    outbox = Outbox(database)
    await nursery.start(outbox.run, Fabric())
    with pytest.raises(trio.BusyResourceError):
        await outbox.run(Fabric())
