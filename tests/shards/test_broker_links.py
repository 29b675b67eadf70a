"""Links over real ipc sockets: who gets one, who loses it, and what hostile peers can do."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path

import pytest
import trio

from shards import system_env, wire
from shards.broker import Limits
from shards.client import Identity, Invite, open_client
from shards.errors import NotGranted, ShardsError
from shards.grant import Grant
from shards.testing.fabric import ALL_GRANTS, Fabric, consume, open_fabric, raw_link, wait_until

TOPIC = "bridge/irc/x/inbound"
ASK = "bridge/core/send"


@pytest.fixture
async def fabric() -> AsyncIterator[Fabric]:
    async with open_fabric(system_env(inside=False)) as fabric:
        yield fabric


async def test_an_unknown_key_is_refused(fabric: Fabric) -> None:
    stranger = Identity.generate("stranger", "acme", fabric.env.token_bytes)
    with pytest.raises(NotGranted):
        async with fabric.connect(stranger):
            pass
    assert fabric.broker.statistics().refused == 1
    assert fabric.broker.statistics().hostile == 0


async def test_a_key_enrolled_under_another_name_is_refused_by_the_client(fabric: Fabric) -> None:
    identity = await fabric.enroll("a", *ALL_GRANTS)
    fabric.identities["acme/b"] = Identity(
        name="b",
        tenant="acme",
        noise_private=identity.noise_private,
        signing_private=identity.signing_private,
        lease_private=identity.lease_private,
    )
    with pytest.raises(NotGranted, match="knows this key"):
        async with fabric.client("b"):
            pass
    with pytest.raises(ShardsError, match="another principal"):
        await fabric.enroll("b")


async def test_a_revoked_principal_is_cut_at_once_and_never_comes_back(fabric: Fabric) -> None:
    async with (
        fabric.client("a", *ALL_GRANTS) as client,
        client.subscribe([TOPIC], group="g") as subscription,
    ):
        await fabric.broker.revoke("a")
        assert fabric.broker.statistics().links == 0
        with trio.fail_after(10), pytest.raises(NotGranted):
            await subscription.receive()
        with pytest.raises(NotGranted):
            await client.publish(TOPIC, [b"no"], key=b"k")
    with pytest.raises(ShardsError, match="for good"):
        await fabric.broker.resume("a")
    assert [p.state for p in fabric.broker.principals("acme")] == ["revoked"]


async def test_a_suspended_principal_comes_back_when_it_is_resumed(fabric: Fabric) -> None:
    async with fabric.client("a", *ALL_GRANTS) as client:
        await fabric.broker.suspend("a")
        await wait_until(lambda: not client.is_linked)
        await fabric.broker.resume("a")
        with trio.fail_after(5):
            await client.publish(TOPIC, [b"back"], key=b"k")
    with pytest.raises(ShardsError, match="no principal"):
        await fabric.broker.suspend("absent")


async def test_principals_of_one_name_in_two_tenants_are_told_apart(fabric: Fabric) -> None:
    await fabric.enroll("core", *ALL_GRANTS)
    await fabric.enroll("core", *ALL_GRANTS, tenant="beta")
    with pytest.raises(ShardsError, match="several tenants"):
        await fabric.broker.suspend("core")
    await fabric.broker.suspend("core", tenant="beta")
    assert [p.state for p in fabric.broker.principals("acme")] == ["active"]


async def test_an_invite_enrols_once(fabric: Fabric) -> None:
    offer = await fabric.broker.invite(
        "irc", "acme", [Grant.parse("publish bridge/irc/*/*")], service="irc", instance="x", accounts=["bot"]
    )
    assert "secret" not in repr(offer)
    identity = Identity.generate("irc", "acme", fabric.env.token_bytes)
    invite = Invite(offer.id, offer.secret)
    opened = partial(
        open_client,
        fabric.env,
        fabric.endpoint,
        server_public=fabric.broker.server_public,
        shard=fabric.shard,
    )
    async with opened(identity, invite=invite) as client:
        await client.publish(TOPIC, [b"hello"], key=b"k")
    (row,) = fabric.broker.principals("acme")
    assert row.signing_public == identity.signing_public and row.lease_public == identity.lease_public
    assert (row.service, row.instance, row.accounts) == ("irc", "x", ("bot",))
    async with opened(identity) as client:  # from now on by its key
        assert await client.head() == 1
    thief = Identity.generate("irc", "acme", fabric.env.token_bytes)
    with pytest.raises(NotGranted):
        async with opened(thief, invite=invite):
            pass
    wrong = Invite((await fabric.broker.invite("b", "acme", [])).id, b"x" * 32)
    with pytest.raises(NotGranted):
        async with opened(thief, invite=wrong):
            pass
    assert len(fabric.broker.principals()) == 1


async def test_principals_grants_and_the_key_survive_a_restart(tmp_path: Path) -> None:
    async with open_fabric(system_env(inside=False), tmp_path) as fabric:
        identity = await fabric.enroll("a", *ALL_GRANTS)
        public, rows = fabric.broker.server_public, fabric.broker.principals()
    async with open_fabric(system_env(inside=False), tmp_path) as fabric:
        assert fabric.broker.server_public == public and fabric.broker.principals() == rows
        async with fabric.connect(identity) as client:
            await client.publish(TOPIC, [b"1"], key=b"k")
    (tmp_path / "broker.key").chmod(0o644)
    with pytest.raises(ShardsError, match="read by others"):
        async with open_fabric(system_env(inside=False), tmp_path):
            pass


async def test_tcp_goes_through_its_door(fabric: Fabric) -> None:
    async with open_fabric(system_env(inside=False), tcp=("tcp://127.0.0.1:0",)) as fabric:
        identity = await fabric.enroll("a", *ALL_GRANTS)
        (port,) = fabric.broker.tcp_ports
        async with fabric.connect(identity, endpoint=f"tcp://127.0.0.1:{port}") as client:
            await client.publish(TOPIC, [b"x" * 200_000], key=b"k")
            assert len((await consume(client, "g", 1, [TOPIC]))[0].payload) == 200_000


MALFORMED = [
    b"\x01",
    b"\x63\x00",
    b"\x02\x00\x00\x00",
    b"\x01\x02",
    b"\x11\x00short",
    wire.encode(wire.Welcome("root", "acme", 0))[0],
    wire.encode(wire.Publish(1, TOPIC, 1, 1, b"\xff\xff"))[0],
    wire.encode(wire.Publish(1, TOPIC, 2**63, 1, wire.encode_batch([1], [b""], bytes(64))))[0],
    wire.encode(wire.Subscribe(1, "g", 9, 0, 0, 1, 1, (TOPIC,)))[0],
    wire.encode(wire.Subscribe(1, "g", 0, 0, 0, 1, 1, ()))[0],
    wire.encode(wire.Enroll(bytes(32), bytes(32)))[0],
]


@pytest.mark.parametrize("plaintext", MALFORMED, ids=range(len(MALFORMED)))
async def test_a_malformed_frame_ends_its_link_and_no_other(fabric: Fabric, plaintext: bytes) -> None:
    async with fabric.client("good", *ALL_GRANTS) as good:
        await fabric.enroll("bad", *ALL_GRANTS)
        bad = await raw_link(fabric, "bad")
        bad.send_plain(plaintext)
        bye = await bad.until(wire.Bye)
        assert bye.code == wire.Code.MALFORMED and bye.text
        await bad.wait_lost()
        await bad.aclose()
        await good.publish(TOPIC, [b"unharmed"], key=b"k")
    statistics = fabric.broker.statistics()
    assert (statistics.hostile, statistics.faults) == (1, 0), fabric.broker.faults


async def test_acknowledging_what_nobody_can_hold_is_malformed(fabric: Fabric) -> None:
    await fabric.enroll("bad", *ALL_GRANTS)
    bad = await raw_link(fabric, "bad")
    bad.send(wire.Subscribe(1, "g", 0, 0, wire.NEVER, 10, 1 << 20, (TOPIC,)))
    await bad.until(wire.Subscribed)
    bad.send(wire.Done(1, ((0, 2**32 - 1),)))
    await bad.until(wire.Bye)
    await bad.aclose()


async def test_bytes_of_strangers_cost_nothing_but_their_connection() -> None:
    limits = Limits(half_open=8, handshake_s=0.1)
    async with (
        open_fabric(system_env(inside=False), limits=limits) as fabric,
        fabric.client("good", *ALL_GRANTS) as good,
    ):
        strangers = [await fabric.env.connect(fabric.endpoint) for _ in range(20)]
        for number, frames in enumerate(strangers):
            if number % 2:
                frames.send_nowait(b"", bytes(fabric.env.random.randbytes(200)))
            else:
                hello = b"\x00SHRD\x01\x01\x01\x04test\x00"
                frames.send_nowait(b"", hello)
        await wait_until(lambda: fabric.broker.statistics().half_open == 8)
        await good.publish(TOPIC, [b"unharmed"], key=b"k")
        await wait_until(lambda: fabric.broker.statistics().half_open == 0)
        for frames in strangers:
            with trio.fail_after(5):
                while not frames.lost():
                    await frames.receive()
            await frames.aclose()
        assert fabric.broker.statistics().faults == 0


async def test_a_consumer_that_does_not_read_is_bounded_and_harms_nobody() -> None:
    limits = Limits(link_queue_octets=1 << 20)
    async with open_fabric(system_env(inside=False), limits=limits) as fabric:
        await fabric.enroll("slow", *ALL_GRANTS)
        slow = await raw_link(fabric, "slow")
        # It asks for more than it is allowed to and reads none of it; its pings are to be answered, too.
        slow.send(wire.Subscribe(1, "slow", 0, 0, wire.NEVER, 2**32 - 1, 2**32 - 1, (TOPIC,)))
        async with fabric.client("good", *ALL_GRANTS) as good:
            async with good.subscribe([TOPIC], group="good") as subscription, trio.open_nursery() as nursery:

                async def read() -> None:
                    read_octets = 0
                    while read_octets < 12 << 20:
                        records = await subscription.receive()
                        await subscription.done(records)
                        read_octets += sum(len(record.payload) for record in records)

                nursery.start_soon(read)
                with trio.fail_after(10):
                    for _ in range(12):
                        await good.publish(TOPIC, [bytes(1 << 18)] * 4, key=b"k")
            peers = fabric.broker._core._peers.values()
            assert all(peer._queued <= 1 << 20 for peer in peers)
            assert all(g.in_flight <= 64 for g in fabric.broker.groups("acme"))
        await slow.aclose()


async def test_a_peer_that_asks_and_never_reads_is_ended_as_slow() -> None:
    limits = Limits(link_queue_octets=100_000)
    async with open_fabric(system_env(inside=False), limits=limits) as fabric:
        await fabric.enroll("slow", *ALL_GRANTS)
        slow = await raw_link(fabric, "slow")
        slow.send(wire.Respond(1, 1000, (ASK,)))
        numbers = itertools.count(2)
        with trio.fail_after(10):
            while not fabric.broker.statistics().slow:
                if not slow.session.is_stalled:
                    slow.send(wire.Request(next(numbers), 60_000, ASK, "", bytes(60_000)))
                slow.session._flush()
                await trio.sleep(0.0005)
        await slow.aclose()
