"""Consumer groups over real ipc sockets: sharing, stuck keys, redelivery, dead letters, seeks."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path

import pytest
import trio

from shards import merkle, system_env, wire
from shards.broker import Limits
from shards.errors import NotGranted, ShardsError
from shards.record import Record
from shards.testing.fabric import (
    ALL_GRANTS,
    Fabric,
    consume,
    open_fabric,
    raw_link,
    receive,
    receive_for,
    settle,
    wait_until,
)

TOPIC = "bridge/irc/x/inbound"
EDITS = "bridge/irc/x/edit"


@pytest.fixture
async def fabric() -> AsyncIterator[Fabric]:
    async with open_fabric(system_env(inside=False)) as fabric:
        yield fabric


async def test_two_members_share_the_keys_and_a_fallen_ones_records_come_again(fabric: Fabric) -> None:
    await fabric.enroll("b", *ALL_GRANTS)
    async with fabric.client("a", *ALL_GRANTS) as one, one.subscribe([TOPIC], group="g") as first:
        async with fabric.client("b") as two, two.subscribe([TOPIC], group="g") as second:
            for number in range(20):
                await one.publish(TOPIC, [b"%d" % number], key=b"k%d" % number)
            mine = await receive_for(first, 0.1)
            theirs = await receive_for(second, 0.1)
            assert mine and theirs and not {r.key for r in mine} & {r.key for r in theirs}
            assert len(mine) + len(theirs) == 20
            await first.done(mine)
        again = await receive_for(first, 0.3)
        assert sorted(r.position for r in again) == sorted(r.position for r in theirs)
        assert {record.attempt for record in again} == {2}


async def test_stuck_keys_stop_nothing_else(fabric: Fabric) -> None:
    async with fabric.client("a", *ALL_GRANTS) as client:
        async with client.subscribe([TOPIC], group="g", credit_records=64) as subscription:
            async with trio.open_nursery() as nursery:
                for number in range(600):
                    key = b"stuck%d" % (number % 20) if number % 2 else b"free%d" % number
                    nursery.start_soon(partial(client.publish, TOPIC, [key], key=key))
            free = 0
            stuck: dict[bytes, list[Record]] = defaultdict(list)
            with trio.fail_after(10):
                while free < 300:
                    for record in await subscription.receive():
                        if record.payload.startswith(b"stuck"):
                            stuck[record.payload].append(record)
                        else:
                            free += 1
                            await subscription.done([record])
                # and now they come loose
                loose = 0
                waiting = [record for records in stuck.values() for record in records]
                while loose < 300:
                    for record in waiting:
                        await subscription.done([record])
                    loose += len(waiting)
                    if loose < 300:
                        waiting = await subscription.receive()
        await settle(fabric, "g")


async def test_released_records_come_again_after_their_delay(fabric: Fabric) -> None:
    async with (
        fabric.client("a", *ALL_GRANTS) as client,
        client.subscribe([TOPIC], group="g") as subscription,
    ):
        await client.publish(TOPIC, [b"1"], key=b"k")
        await client.publish(TOPIC, [b"2"], key=b"other")
        (first, second) = await receive(subscription, 2)
        start = trio.current_time()
        await subscription.release([first], delay_s=0.08, reason="flood control")
        await subscription.done([second])
        (again,) = await receive(subscription, 1)
        assert again.position == first.position and again.attempt == 2
        assert trio.current_time() - start >= 0.08


async def test_a_run_without_progress_is_taken_back() -> None:
    limits = Limits(visibility_s=0.1)
    async with open_fabric(system_env(inside=False), limits=limits) as fabric:
        async with (
            fabric.client("a", *ALL_GRANTS) as client,
            client.subscribe([TOPIC], group="g") as subscription,
        ):
            await client.publish(TOPIC, [b"1"], key=b"k")
            (first,) = await receive(subscription, 1)
            (again,) = await receive(subscription, 1)
            assert (first.position, first.attempt, again.position, again.attempt) == (0, 1, 0, 2)


async def test_dead_letters_are_kept_shown_tried_again_and_dropped(fabric: Fabric) -> None:
    async with (
        fabric.client("a", *ALL_GRANTS) as client,
        client.subscribe([TOPIC], group="g") as subscription,
    ):
        await client.publish(TOPIC, [b"bad", b"good"], key=b"k")
        bad, good = await receive(subscription, 2)
        await subscription.dead(bad, code="bad_envelope", reason="no schema")
        await subscription.done([good])
        await settle(fabric, "g")
        await wait_until(lambda: fabric.broker.groups("acme")[0].dead == 1)
        (letter,) = await fabric.broker.dead_letters("acme", "g")
        assert (letter.code, letter.reason, letter.record.payload) == ("bad_envelope", "no schema", b"bad")
        assert letter.record.proof is not None
        merkle.verify_one(b"bad", letter.record.proof, client.identity.signing_public)
        assert await fabric.broker.dead_letters("beta") == []
        with pytest.raises(ShardsError):
            await fabric.broker.retry("beta", letter.id)
        await fabric.broker.retry("acme", letter.id)
        (again,) = await receive(subscription, 1)
        assert again.position == bad.position
        await subscription.dead(again, code="bad_envelope", reason="still none")
        await settle(fabric, "g")
        (letter,) = await fabric.broker.dead_letters("acme")
        await fabric.broker.drop("acme", letter.id)
        assert await fabric.broker.dead_letters("acme") == []


async def test_a_record_that_fells_every_consumer_becomes_a_dead_letter() -> None:
    async with open_fabric(system_env(inside=False), limits=Limits(attempts=2)) as fabric:
        async with fabric.client("pub", *ALL_GRANTS) as publisher:
            await publisher.publish(TOPIC, [b"poison"], key=b"k")
            await publisher.publish(TOPIC, [b"fine"], key=b"k")
            await fabric.enroll("c", *ALL_GRANTS)
            for _ in range(2):
                session = await raw_link(fabric, "c")
                session.send(wire.Subscribe(1, "g", 0, 0, wire.NEVER, 10, 1 << 20, (TOPIC,)))
                await session.until(wire.Deliver)
                await session.aclose()  # falls without a word
            async with fabric.client("c") as client:
                (record,) = await consume(client, "g", 1, [TOPIC])
                assert record.payload == b"fine"
            (letter,) = await fabric.broker.dead_letters("acme")
            assert (letter.code, letter.record.payload) == ("attempts", b"poison")


async def test_the_whole_journal_is_for_who_holds_the_grant(fabric: Fabric) -> None:
    await fabric.enroll("b", *ALL_GRANTS, tenant="beta")
    async with (
        fabric.client("a", *ALL_GRANTS) as client,
        fabric.client("b", tenant="beta") as other,
        fabric.client("nosy", "subscribe bridge/*/*/*") as nosy,
    ):
        for number in range(10):
            await client.publish(f"bridge/irc/x/a{number % 3}", [b"%d" % number], key=b"k%d" % number)
            await other.publish(TOPIC, [b"foreign"], key=b"k")
        async with client.subscribe(None, group="audit") as subscription:
            records = await receive(subscription, 10)
            await subscription.done(records)
            assert [record.payload for record in records] == [b"%d" % number for number in range(10)]
        with pytest.raises(NotGranted):
            async with nosy.subscribe(None, group="audit"):
                pass


async def test_positions_survive_a_restart_and_a_group_of_other_topics_is_refused(tmp_path: Path) -> None:
    async with open_fabric(system_env(inside=False), tmp_path) as fabric:
        async with fabric.client("a", *ALL_GRANTS) as client:
            await client.publish(TOPIC, [b"1", b"2"], key=b"k")
            await consume(client, "g", 2, [TOPIC])
            await settle(fabric, "g")
            async with client.subscribe([TOPIC], group="g"):
                with pytest.raises(ShardsError, match="other topics"):
                    async with client.subscribe([EDITS], group="g"):
                        pass
        identity = fabric.identities["acme/a"]
    async with open_fabric(system_env(inside=False), tmp_path) as fabric:
        assert [(g.name, g.position, g.lag) for g in fabric.broker.groups("acme")] == [("g", 2, 0)]
        async with fabric.connect(identity) as client:
            await client.publish(TOPIC, [b"3"], key=b"k")
            assert [record.payload for record in await consume(client, "g", 1, [TOPIC])] == [b"3"]
        await wait_until(lambda: [g.members for g in fabric.broker.groups("acme")] == [0])
        await fabric.broker.drop_group("acme", "g")
        assert fabric.broker.groups("acme") == []


async def test_a_seek_needs_its_grant_and_gives_the_records_again(fabric: Fabric) -> None:
    await fabric.enroll("plain", "subscribe bridge/*/*/*")
    async with fabric.client("a", *ALL_GRANTS) as client, fabric.client("plain") as plain:
        await client.publish(TOPIC, [b"%d" % number for number in range(6)], key=b"k")
        await consume(client, "g", 6, [TOPIC])
        await settle(fabric, "g")
        with pytest.raises(NotGranted):
            await plain.seek("g", [TOPIC], from_position=0)
        with pytest.raises(ShardsError, match="no group"):
            await client.seek("absent", [TOPIC], from_position=0)
        await client.seek("g", [TOPIC], from_position=2, to_position=4)
        assert [record.position for record in await consume(client, "g", 2, [TOPIC])] == [2, 3]
        await settle(fabric, "g")
