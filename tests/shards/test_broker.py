"""The broker over real ipc sockets: records, tenants, grants, ephemeral records, and trouble."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path

import attrs
import pytest
import trio

from shards import merkle, system_env
from shards.broker import Limits, Principal, open_broker
from shards.client import Request, open_client
from shards.errors import NotGranted, OffsetTrimmed, RequestFailed, ShardsError, StorageFailed, Unreachable
from shards.grant import Grant
from shards.testing import Fault, World
from shards.testing.fabric import ALL_GRANTS, Fabric, consume, open_fabric, receive, settle, wait_until

TOPIC = "bridge/irc/x/inbound"
EDITS = "bridge/irc/x/edit"
ASK = "bridge/core/send"


@pytest.fixture
async def fabric() -> AsyncIterator[Fabric]:
    async with open_fabric(system_env(inside=False)) as fabric:
        yield fabric


async def test_a_record_arrives_as_it_was_published_and_proves_its_publisher(fabric: Fabric) -> None:
    async with fabric.client("irc", *ALL_GRANTS) as irc, fabric.client("core", *ALL_GRANTS) as core:
        published = await irc.publish(TOPIC, [b"one", b"two", b"three"], key=b"#ops")
        assert (published.offset, published.position, published.duplicate) == (0, 0, False)
        records = await consume(core, "core", 3, [TOPIC])
        assert [(r.topic, r.offset, r.position, r.payload, r.attempt) for r in records] == [
            (TOPIC, 0, 0, b"one", 1),
            (TOPIC, 1, 1, b"two", 1),
            (TOPIC, 2, 2, b"three", 1),
        ]
        assert {record.principal for record in records} == {"irc"}
        for record in records:
            assert record.proof is not None
            merkle.verify_one(record.payload, record.proof, irc.identity.signing_public)


async def test_a_record_of_a_mebibyte_crosses_and_a_larger_one_is_refused(fabric: Fabric) -> None:
    async with fabric.client("a", *ALL_GRANTS) as client:
        body = bytes(range(256)) * 4096
        await client.publish(TOPIC, [body, b"small", body], key=b"k")
        assert [record.payload for record in await consume(client, "g", 3, [TOPIC])] == [body, b"small", body]
        with pytest.raises(ShardsError, match="at most"):
            await client.publish(TOPIC, [body + b"!"], key=b"k")
        with pytest.raises(ShardsError):
            await client.publish("bridge//x", [b""], key=b"k")


async def test_an_edit_never_overtakes_its_message_though_its_topic_is_another(fabric: Fabric) -> None:
    async with fabric.client("a", *ALL_GRANTS) as client:
        for number in range(40):
            topic = TOPIC if number % 2 == 0 else EDITS
            await client.publish(topic, [b"%d" % number], key=b"k%d" % (number % 3))
        records = await consume(client, "g", 40, (TOPIC, EDITS))
        by_key: dict[int, list[int]] = defaultdict(list)
        for record in records:
            by_key[record.key].append(record.position)
        assert all(positions == sorted(positions) for positions in by_key.values())
        assert sorted(record.position for record in records) == list(range(40))


async def test_the_same_sequence_is_the_same_record(fabric: Fabric) -> None:
    async with fabric.client("a", *ALL_GRANTS) as client:
        first = await client.publish(TOPIC, [b"1", b"2"], key=b"k", epoch=7, sequence=10)
        again = await client.publish(TOPIC, [b"1", b"2"], key=b"k", epoch=7, sequence=10)
        assert again.duplicate and (again.offset, again.position) == (first.offset, first.position)
        # An outbox that composes its batches anew after a crash: half of it is known, half is not.
        mixed = await client.publish(TOPIC, [b"2", b"3"], key=b"k", epoch=7, sequence=11)
        assert mixed.position == first.position + 1
        assert [r.payload for r in await consume(client, "g", 3, [TOPIC])] == [b"1", b"2", b"3"]
        assert await client.head() == 3


# -- tenants and grants -----------------------------------------------------------------------------------


async def test_two_tenants_share_nothing_on_any_verb(fabric: Fabric) -> None:
    """The same names in both: topic, group, principal, key, epoch, trace id.  Neither sees anything of the other."""
    async with (
        fabric.client("core", *ALL_GRANTS) as acme,
        fabric.client("core", *ALL_GRANTS, tenant="beta") as beta,
        trio.open_nursery() as nursery,
    ):
        clients = {"acme": acme, "beta": beta}

        async def answer(request: Request) -> bytes:
            return f"{request.tenant} answers {request.principal} of {request.tenant}".encode()

        await nursery.start(partial(acme.respond, [ASK], answer))
        with pytest.raises(RequestFailed) as absent:
            await beta.request(ASK, b"?", deadline=trio.current_time() + 5, trace_id="t")
        with pytest.raises(RequestFailed) as nothing:
            await beta.request("bridge/core/nothing", b"?", deadline=trio.current_time() + 5, trace_id="t2")
        assert (absent.value.code, str(absent.value)) == (nothing.value.code, str(nothing.value))
        await nursery.start(partial(beta.respond, [ASK], answer))
        for name, client in clients.items():
            await client.publish(TOPIC, [name.encode()], key=b"k", epoch=1, sequence=1)
        for name, client in clients.items():
            body = await client.request(ASK, b"?", deadline=trio.current_time() + 5, trace_id="same")
            assert body.decode() == f"{name} answers core of {name}"
            assert [r.payload for r in await consume(client, "g", 1, [TOPIC])] == [name.encode()]
            async with client.replay([TOPIC]) as pages:
                assert [r.payload async for page in pages for r in page] == [name.encode()]
            async with client.replay(None) as pages:
                assert [r.payload async for page in pages for r in page] == [name.encode()]
            assert [topic.topic for topic in fabric.broker.topics(name)] == [TOPIC]
        await settle(fabric, "g")
        await acme.seek("g", [TOPIC], from_position=0)
        await trio.sleep(0.02)
        assert {g.lag > 0 for g in fabric.broker.groups("acme")} == {True}
        assert {g.lag for g in fabric.broker.groups("beta")} == {0}
        async with beta.subscribe([TOPIC], group=None, start="latest") as listening:
            await acme.publish_ephemeral(TOPIC, b"typing", key=b"k")
            await beta.publish_ephemeral(TOPIC, b"mine", key=b"k")
            assert [r.payload for r in await receive(listening, 1)] == [b"mine"]
        nursery.cancel_scope.cancel()


async def test_what_is_not_granted_is_refused_on_every_verb(fabric: Fabric) -> None:
    async with fabric.client("a", "publish bridge/irc/x/inbound") as client:
        await client.publish(TOPIC, [b"granted"], key=b"k")
        with pytest.raises(NotGranted):
            await client.publish(EDITS, [b"no"], key=b"k")
        with pytest.raises(NotGranted):
            async with client.subscribe([TOPIC], group="g"):
                pass
        with pytest.raises(NotGranted):
            async with client.replay([TOPIC]):
                pass
        with pytest.raises(NotGranted):
            await client.respond([ASK], answer_nothing)
        with pytest.raises(RequestFailed) as failed:
            await client.request(ASK, b"", deadline=trio.current_time() + 5, trace_id="t")
        assert failed.value.code == "capability_denied"
        with pytest.raises(NotGranted):
            await client.seek("g", [TOPIC], from_position=0)
        await client.publish_ephemeral(EDITS, b"dropped", key=b"k")
        assert await client.head() == 1
        await fabric.broker.grant("a", Grant.parse("publish bridge/irc/x/edit"))
        await client.publish(EDITS, [b"now"], key=b"k")
        await fabric.broker.ungrant("a", Grant.parse("publish bridge/irc/x/edit"))
        with pytest.raises(NotGranted):
            await client.publish(EDITS, [b"no more"], key=b"k")
    assert fabric.broker.statistics().faults == 0


async def answer_nothing(request: Request) -> bytes:
    return b""


async def test_a_grant_taken_back_ends_what_stood_on_it(fabric: Fabric) -> None:
    grants = "subscribe bridge/irc/x/inbound", "respond bridge/core/send"
    async with fabric.client("a", *grants) as client, trio.open_nursery() as nursery:
        ended: list[type[BaseException]] = []

        async def respond(task_status: trio.TaskStatus[None]) -> None:
            try:
                await client.respond([ASK], answer_nothing, task_status=task_status)
            except NotGranted as exc:
                ended.append(type(exc))

        await nursery.start(respond)
        async with client.subscribe([TOPIC], group="g") as subscription:
            for grant in grants:
                await fabric.broker.ungrant("a", Grant.parse(grant))
            with trio.fail_after(5), pytest.raises(NotGranted):
                await subscription.receive()
        await wait_until(lambda: ended == [NotGranted])


# -- ephemeral --------------------------------------------------------------------------------------------


async def test_ephemeral_records_pass_and_leave_no_trace(fabric: Fabric) -> None:
    async with fabric.client("a", *ALL_GRANTS) as client:
        async with (
            client.subscribe([TOPIC], group="g") as member,
            client.subscribe([TOPIC], group=None, start="latest") as tail,
        ):
            await client.publish_ephemeral(TOPIC, b"typing", key=b"k")
            for subscription in (member, tail):
                (record,) = await receive(subscription, 1)
                assert (record.payload, record.offset, record.position, record.principal) == (
                    b"typing",
                    -1,
                    -1,
                    "a",
                )
                await subscription.done([record])
        assert await client.head() == 0
        assert fabric.broker.topics("acme") == []


async def test_of_many_ephemeral_records_that_wait_the_newest_of_each_key_is_left() -> None:
    async with open_fabric(system_env(inside=False), limits=Limits(passing=4)) as fabric:
        async with fabric.client("a", *ALL_GRANTS) as client:
            async with client.subscribe([TOPIC], group=None, start="latest"):
                (peer,) = fabric.broker._core._peers.values()
                (opened,) = peer.subscriptions.values()
                peer._sealed = b"stands for a full socket"
                for number in range(20):
                    opened.outlet.pass_on(TOPIC, number % 10, b"%d" % number)
                assert list(opened.outlet._passing.values()) == [b"16", b"17", b"18", b"19"]
                assert fabric.broker.statistics().shed == 16
                peer._sealed = None
                opened.outlet._passing.clear()


# -- trouble ----------------------------------------------------------------------------------------------


async def test_an_overloaded_broker_keeps_the_order() -> None:
    limits = Limits(publish_frames=3)
    async with (
        open_fabric(system_env(inside=False), limits=limits) as fabric,
        fabric.client("a", *ALL_GRANTS) as client,
    ):
        async with trio.open_nursery() as nursery:
            for number in range(20):
                payload = [b"%d" % number + bytes(30_000)]
                nursery.start_soon(partial(client.publish, TOPIC, payload, key=b"k"))
                if number % 3 == 0:
                    await trio.lowlevel.checkpoint()
        records = await consume(client, "g", 20, [TOPIC])
        assert [r.position for r in records] == list(range(20))
        assert len({record.payload for record in records}) == 20
        assert fabric.broker.statistics().overloaded > 0


async def test_retention_that_overtakes_a_reader_is_named(fabric: Fabric) -> None:
    async with fabric.client("a", *ALL_GRANTS) as client:
        await client.publish(TOPIC, [b"old"], key=b"k")
        await client.publish(TOPIC, [b"new"], key=b"k")
        assert await fabric.broker.trim(before=1) == 1
        with pytest.raises(OffsetTrimmed) as trimmed:
            async with client.replay([TOPIC]) as pages:
                async for _ in pages:
                    pass
        assert trimmed.value.first == 1
        with pytest.raises(OffsetTrimmed):
            async with client.replay([TOPIC], from_offset=0) as pages:
                pass
        async with client.replay([TOPIC], from_offset=1) as pages:
            assert [r.payload async for page in pages for r in page] == [b"new"]
        assert [r.payload for r in await consume(client, "g", 1, [TOPIC])] == [b"new"]


async def test_a_storage_that_fails_ends_the_broker_and_nothing_is_acknowledged(tmp_path: Path) -> None:
    world = World(1)
    with world:
        host = world.host("shard")
        acknowledged = []
        with pytest.raises(ExceptionGroup) as group:
            async with open_fabric(host.env(), tmp_path) as fabric, fabric.client("a", *ALL_GRANTS) as client:
                await client.publish(TOPIC, [b"kept"], key=b"k")
                acknowledged.append(1)
                host.disk.fault = Fault(at=1, kinds=frozenset({"sync"}))
                with trio.fail_after(10):
                    await client.publish(TOPIC, [b"lost"], key=b"k")
                    acknowledged.append(2)
        assert group.group_contains(StorageFailed)
        assert acknowledged == [1]


async def test_two_brokers_in_one_process_know_nothing_of_each_other() -> None:
    async with (
        open_fabric(system_env(inside=False), shard="one") as one,
        open_fabric(system_env(), shard="two") as two,
    ):
        identity = await one.enroll("a", *ALL_GRANTS)
        async with one.connect(identity) as client:
            await client.publish(TOPIC, [b"1"], key=b"k")
        with pytest.raises(NotGranted):
            async with open_client(
                one.env, two.endpoint, identity, server_public=two.broker.server_public, shard="two"
            ):
                pass
        with pytest.raises((NotGranted, Unreachable)):
            async with open_client(
                one.env,
                two.endpoint,
                identity,
                server_public=one.broker.server_public,
                shard="one",
                connect_timeout_s=0.3,
            ):
                pass
        assert two.broker.head() == 0


async def test_a_principal_without_sound_keys_or_name_is_refused(fabric: Fabric) -> None:
    sound = Principal(
        name="a", tenant="acme", noise_public=b"n" * 32, signing_public=b"s" * 32, lease_public=b"l" * 32
    )
    for changes in ({"noise_public": b"short"}, {"name": ""}, {"tenant": "a\nb"}):
        with pytest.raises(ShardsError):
            await fabric.broker.enroll(attrs.evolve(sound, **changes))


async def test_an_address_that_is_none_is_named(tmp_path: Path) -> None:
    for address in ("127.0.0.1:1", "tcp://:1", "tcp://h:port", "tcp://h:99999"):
        with pytest.raises(ShardsError, match="no tcp address"):
            async with open_broker(
                system_env(inside=False),
                state=tmp_path,
                endpoint=str(tmp_path / "run" / "s"),
                shard="s",
                tcp=[address],
            ):
                pass
