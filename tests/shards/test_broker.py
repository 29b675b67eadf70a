"""The broker over real ipc sockets: grants, tenants, links, groups, requests, and what hostile peers can do."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio

from shards import merkle, system_env, wire
from shards.broker import Limits, Principal, open_broker
from shards.client import Client, Identity, Invite, Request, open_client
from shards.client.session import Session, connect
from shards.errors import (
    NotGranted,
    OffsetTrimmed,
    RequestFailed,
    ShardsError,
    StorageFailed,
    Unreachable,
)
from shards.grant import Grant
from shards.record import Record
from shards.testing import Fault, World
from shards.testing.fabric import Fabric, open_fabric

TOPIC = "bridge/irc/x/inbound"
EDITS = "bridge/irc/x/edit"
ASK = "bridge/core/send"
EVERYTHING = (
    "publish bridge/*/*/*",
    "subscribe bridge/*/*/*",
    "request bridge/*/*/*",
    "respond bridge/*/*/*",
    "journal bridge/*/*/*",
)


@pytest.fixture
async def fabric() -> AsyncIterator[Fabric]:
    async with open_fabric(system_env()) as fabric:
        yield fabric


async def take(client: Client, group: str, n: int, topics: tuple[str, ...] = (TOPIC,)) -> list[Record]:
    """The next n records of a group, acknowledged."""
    records: list[Record] = []
    async with client.subscribe(topics, group=group) as subscription:
        with trio.fail_after(5):
            while len(records) < n:
                got = await subscription.receive()
                await subscription.done(got)
                records += got
    return records


async def settle(fabric: Fabric, group: str) -> None:
    """Until the group has nothing unfinished."""
    with trio.fail_after(5):
        while any(g.lag for g in fabric.broker.groups("acme") if g.name == group):
            await trio.sleep(0.005)


async def wait_until(condition: Any) -> None:
    with trio.fail_after(5):
        while not condition():
            await trio.sleep(0.005)


# -- records ------------------------------------------------------------------------------------------------


async def test_a_record_arrives_as_it_was_published_and_proves_its_publisher(fabric: Fabric) -> None:
    async with fabric.client("irc", *EVERYTHING) as irc, fabric.client("core", *EVERYTHING) as core:
        published = await irc.publish(TOPIC, [b"one", b"two", b"three"], key=b"#ops")
        assert (published.offset, published.position, published.duplicate) == (0, 0, False)
        records = await take(core, "core", 3)
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
    async with fabric.client("a", *EVERYTHING) as client:
        body = bytes(range(256)) * 4096
        await client.publish(TOPIC, [body, b"small", body], key=b"k")
        assert [record.payload for record in await take(client, "g", 3)] == [body, b"small", body]
        with pytest.raises(ShardsError, match="at most"):
            await client.publish(TOPIC, [body + b"!"], key=b"k")
        with pytest.raises(ShardsError):
            await client.publish("bridge//x", [b""], key=b"k")


async def test_an_edit_never_overtakes_its_message_though_its_topic_is_another(fabric: Fabric) -> None:
    async with fabric.client("a", *EVERYTHING) as client:
        for number in range(40):
            topic = TOPIC if number % 2 == 0 else EDITS
            await client.publish(topic, [b"%d" % number], key=b"k%d" % (number % 3))
        records = await take(client, "g", 40, (TOPIC, EDITS))
        by_key: dict[int, list[int]] = defaultdict(list)
        for record in records:
            by_key[record.key].append(record.position)
        assert all(positions == sorted(positions) for positions in by_key.values())
        assert sorted(record.position for record in records) == list(range(40))


async def test_the_same_sequence_is_the_same_record(fabric: Fabric) -> None:
    async with fabric.client("a", *EVERYTHING) as client:
        first = await client.publish(TOPIC, [b"1", b"2"], key=b"k", epoch=7, sequence=10)
        again = await client.publish(TOPIC, [b"1", b"2"], key=b"k", epoch=7, sequence=10)
        assert again.duplicate and (again.offset, again.position) == (first.offset, first.position)
        # An outbox that composes its batches anew after a crash: half of it is known, half is not.
        mixed = await client.publish(TOPIC, [b"2", b"3"], key=b"k", epoch=7, sequence=11)
        assert mixed.position == first.position + 1
        assert [r.payload for r in await take(client, "g", 3)] == [b"1", b"2", b"3"]
        assert await client.head() == 3


# -- consumer groups ----------------------------------------------------------------------------------------


async def test_two_members_share_the_keys_and_a_fallen_ones_records_come_again(fabric: Fabric) -> None:
    await fabric.enroll("b", *EVERYTHING)
    async with fabric.client("a", *EVERYTHING) as one, one.subscribe([TOPIC], group="g") as first:
        async with fabric.client("b") as two, two.subscribe([TOPIC], group="g") as second:
            for number in range(20):
                await one.publish(TOPIC, [b"%d" % number], key=b"k%d" % number)
            mine = await receive_some(first, 0.1)
            theirs = await receive_some(second, 0.1)
            assert mine and theirs and not {r.key for r in mine} & {r.key for r in theirs}
            assert len(mine) + len(theirs) == 20
            await first.done(mine)
        again = await receive_some(first, 0.3)
        assert sorted(r.position for r in again) == sorted(r.position for r in theirs)
        assert {record.attempt for record in again} == {2}


async def receive_some(subscription: Any, seconds: float) -> list[Record]:
    records: list[Record] = []
    with trio.move_on_after(seconds):
        while True:
            records += await subscription.receive()
    return records


async def test_stuck_keys_stop_nothing_else(fabric: Fabric) -> None:
    async with fabric.client("a", *EVERYTHING) as client:
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
        fabric.client("a", *EVERYTHING) as client,
        client.subscribe([TOPIC], group="g") as subscription,
    ):
        await client.publish(TOPIC, [b"1"], key=b"k")
        await client.publish(TOPIC, [b"2"], key=b"other")
        (first, second) = await receive_n(subscription, 2)
        start = trio.current_time()
        await subscription.release([first], delay_s=0.08, reason="flood control")
        await subscription.done([second])
        (again,) = await receive_n(subscription, 1)
        assert again.position == first.position and again.attempt == 2
        assert trio.current_time() - start >= 0.08


async def receive_n(subscription: Any, n: int) -> list[Record]:
    records: list[Record] = []
    with trio.fail_after(5):
        while len(records) < n:
            records += await subscription.receive()
    return records


async def test_a_run_without_progress_is_taken_back() -> None:
    limits = Limits(visibility_s=0.1)
    async with open_fabric(system_env(), limits=limits) as fabric:
        async with (
            fabric.client("a", *EVERYTHING) as client,
            client.subscribe([TOPIC], group="g") as subscription,
        ):
            await client.publish(TOPIC, [b"1"], key=b"k")
            (first,) = await receive_n(subscription, 1)
            (again,) = await receive_n(subscription, 1)
            assert (first.position, first.attempt, again.position, again.attempt) == (0, 1, 0, 2)


async def test_dead_letters_are_kept_shown_tried_again_and_dropped(fabric: Fabric) -> None:
    async with (
        fabric.client("a", *EVERYTHING) as client,
        client.subscribe([TOPIC], group="g") as subscription,
    ):
        await client.publish(TOPIC, [b"bad", b"good"], key=b"k")
        bad, good = await receive_n(subscription, 2)
        await subscription.dead(bad, code="bad_envelope", reason="no schema")
        await subscription.done([good])
        await settle(fabric, "g")
        (letter,) = await fabric.broker.dead_letters("acme", "g")
        assert (letter.code, letter.reason, letter.record.payload) == ("bad_envelope", "no schema", b"bad")
        assert letter.record.proof is not None
        merkle.verify_one(b"bad", letter.record.proof, client.identity.signing_public)
        assert await fabric.broker.dead_letters("beta") == []
        with pytest.raises(ShardsError):
            await fabric.broker.retry("beta", letter.id)
        await fabric.broker.retry("acme", letter.id)
        (again,) = await receive_n(subscription, 1)
        assert again.position == bad.position
        await subscription.dead(again, code="bad_envelope", reason="still none")
        await settle(fabric, "g")
        (letter,) = await fabric.broker.dead_letters("acme")
        await fabric.broker.drop("acme", letter.id)
        assert await fabric.broker.dead_letters("acme") == []


async def test_a_record_that_fells_every_consumer_becomes_a_dead_letter() -> None:
    async with open_fabric(system_env(), limits=Limits(attempts=2)) as fabric:
        async with fabric.client("pub", *EVERYTHING) as publisher:
            await publisher.publish(TOPIC, [b"poison"], key=b"k")
            await publisher.publish(TOPIC, [b"fine"], key=b"k")
            await fabric.enroll("c", *EVERYTHING)
            for _ in range(2):
                session = await raw_session(fabric, "c")
                session.link.send(wire.Subscribe(1, "g", 0, 0, wire.NEVER, 10, 1 << 20, (TOPIC,)))
                await session.until(wire.Deliver)
                await session.link.aclose()  # falls without a word
            async with fabric.client("c") as client:
                (record,) = await take(client, "g", 1)
                assert record.payload == b"fine"
            (letter,) = await fabric.broker.dead_letters("acme")
            assert (letter.code, letter.record.payload) == ("attempts", b"poison")


async def test_the_whole_journal_is_for_who_holds_the_grant(fabric: Fabric) -> None:
    await fabric.enroll("b", *EVERYTHING, tenant="beta")
    async with (
        fabric.client("a", *EVERYTHING) as client,
        fabric.client("b", tenant="beta") as other,
        fabric.client("nosy", "subscribe bridge/*/*/*") as nosy,
    ):
        for number in range(10):
            await client.publish(f"bridge/irc/x/a{number % 3}", [b"%d" % number], key=b"k%d" % number)
            await other.publish(TOPIC, [b"foreign"], key=b"k")
        async with client.subscribe(None, group="audit") as subscription:
            records = await receive_n(subscription, 10)
            await subscription.done(records)
            assert [record.payload for record in records] == [b"%d" % number for number in range(10)]
        with pytest.raises(NotGranted):
            async with nosy.subscribe(None, group="audit"):
                pass


async def test_positions_survive_a_restart_and_a_group_of_other_topics_is_refused(tmp_path: Path) -> None:
    async with open_fabric(system_env(), tmp_path) as fabric:
        async with fabric.client("a", *EVERYTHING) as client:
            await client.publish(TOPIC, [b"1", b"2"], key=b"k")
            await take(client, "g", 2)
            await settle(fabric, "g")
            async with client.subscribe([TOPIC], group="g"):
                with pytest.raises(ShardsError, match="other topics"):
                    async with client.subscribe([EDITS], group="g"):
                        pass
        identity = fabric.identities["acme/a"]
    async with open_fabric(system_env(), tmp_path) as fabric:
        assert [(g.name, g.position, g.lag) for g in fabric.broker.groups("acme")] == [("g", 2, 0)]
        async with fabric.connect(identity) as client:
            await client.publish(TOPIC, [b"3"], key=b"k")
            assert [record.payload for record in await take(client, "g", 1)] == [b"3"]
        await wait_until(lambda: [g.members for g in fabric.broker.groups("acme")] == [0])
        await fabric.broker.drop_group("acme", "g")
        assert fabric.broker.groups("acme") == []


async def test_a_seek_needs_its_grant_and_gives_the_records_again(fabric: Fabric) -> None:
    await fabric.enroll("plain", "subscribe bridge/*/*/*")
    async with fabric.client("a", *EVERYTHING) as client, fabric.client("plain") as plain:
        await client.publish(TOPIC, [b"%d" % number for number in range(6)], key=b"k")
        await take(client, "g", 6)
        await settle(fabric, "g")
        with pytest.raises(NotGranted):
            await plain.seek("g", [TOPIC], from_position=0)
        with pytest.raises(ShardsError, match="no group"):
            await client.seek("absent", [TOPIC], from_position=0)
        await client.seek("g", [TOPIC], from_position=2, to_position=4)
        assert [record.position for record in await take(client, "g", 2)] == [2, 3]
        await settle(fabric, "g")


# -- tenants and grants -------------------------------------------------------------------------------------


async def test_two_tenants_share_nothing_on_any_verb(fabric: Fabric) -> None:
    """The same names in both: topic, group, principal, key, epoch, trace id.  Neither sees anything of the other."""
    async with (
        fabric.client("core", *EVERYTHING) as acme,
        fabric.client("core", *EVERYTHING, tenant="beta") as beta,
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
            assert [r.payload for r in await take(client, "g", 1)] == [name.encode()]
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
            assert [r.payload for r in await receive_n(listening, 1)] == [b"mine"]
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


# -- links --------------------------------------------------------------------------------------------------


async def test_an_unknown_key_is_refused(fabric: Fabric) -> None:
    stranger = Identity.generate("stranger", "acme", fabric.env.token_bytes)
    with pytest.raises(NotGranted):
        async with fabric.connect(stranger):
            pass
    assert fabric.broker.statistics().refused == 1
    assert fabric.broker.statistics().hostile == 0


async def test_a_key_enrolled_under_another_name_is_refused_by_the_client(fabric: Fabric) -> None:
    identity = await fabric.enroll("a", *EVERYTHING)
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
        fabric.client("a", *EVERYTHING) as client,
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
    async with fabric.client("a", *EVERYTHING) as client:
        await fabric.broker.suspend("a")
        await wait_until(lambda: not client.is_linked)
        await fabric.broker.resume("a")
        with trio.fail_after(5):
            await client.publish(TOPIC, [b"back"], key=b"k")
    with pytest.raises(ShardsError, match="no principal"):
        await fabric.broker.suspend("absent")


async def test_principals_of_one_name_in_two_tenants_are_told_apart(fabric: Fabric) -> None:
    await fabric.enroll("core", *EVERYTHING)
    await fabric.enroll("core", *EVERYTHING, tenant="beta")
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
    async with open_fabric(system_env(), tmp_path) as fabric:
        identity = await fabric.enroll("a", *EVERYTHING)
        public, rows = fabric.broker.server_public, fabric.broker.principals()
    async with open_fabric(system_env(), tmp_path) as fabric:
        assert fabric.broker.server_public == public and fabric.broker.principals() == rows
        async with fabric.connect(identity) as client:
            await client.publish(TOPIC, [b"1"], key=b"k")
    (tmp_path / "broker.key").chmod(0o644)
    with pytest.raises(ShardsError, match="read by others"):
        async with open_fabric(system_env(), tmp_path):
            pass


async def test_tcp_goes_through_its_door(fabric: Fabric) -> None:
    async with open_fabric(system_env(), tcp=("tcp://127.0.0.1:0",)) as fabric:
        identity = await fabric.enroll("a", *EVERYTHING)
        (port,) = fabric.broker.tcp_ports
        async with fabric.connect(identity, endpoint=f"tcp://127.0.0.1:{port}") as client:
            await client.publish(TOPIC, [b"x" * 200_000], key=b"k")
            assert len((await take(client, "g", 1))[0].payload) == 200_000


class Raw:
    """A link whose frames a test writes itself."""

    def __init__(self, session: Session) -> None:
        self.link = session
        self.heard: list[wire.Frame] = []

    async def until(self, kind: type[wire.Frame]) -> Any:
        with trio.fail_after(5):
            while True:
                for frame in self.heard:
                    if isinstance(frame, kind):
                        return frame
                await self.receive()

    async def receive(self) -> None:
        for _, raw in await self.link._frames.receive(16):
            for event in self.link._link.receive_frame(raw, trio.current_time()):
                plaintext = getattr(event, "plaintext", None)
                if plaintext is not None and (frame := self.link._assembly.feed(plaintext)) is not None:
                    self.heard.append(frame)

    def send_plain(self, plaintext: bytes) -> None:
        self.link._frames.send_nowait(b"", self.link._link.seal(plaintext, trio.current_time()))

    async def wait_lost(self) -> None:
        with trio.fail_after(5):
            while not self.link._frames.lost():
                await self.receive()


async def raw_session(fabric: Fabric, name: str) -> Raw:
    session, _ = await connect(
        fabric.env,
        fabric.endpoint,
        fabric.identities[f"acme/{name}"],
        server_public=fabric.broker.server_public,
        shard=fabric.shard,
        invite=None,
    )
    return Raw(session)


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
    async with fabric.client("good", *EVERYTHING) as good:
        await fabric.enroll("bad", *EVERYTHING)
        bad = await raw_session(fabric, "bad")
        bad.send_plain(plaintext)
        bye = await bad.until(wire.Bye)
        assert bye.code == wire.Code.MALFORMED and bye.text
        await bad.wait_lost()
        await bad.link.aclose()
        await good.publish(TOPIC, [b"unharmed"], key=b"k")
    statistics = fabric.broker.statistics()
    assert (statistics.hostile, statistics.faults) == (1, 0), fabric.broker.faults


async def test_acknowledging_what_nobody_can_hold_is_malformed(fabric: Fabric) -> None:
    await fabric.enroll("bad", *EVERYTHING)
    bad = await raw_session(fabric, "bad")
    bad.link.send(wire.Subscribe(1, "g", 0, 0, wire.NEVER, 10, 1 << 20, (TOPIC,)))
    await bad.until(wire.Subscribed)
    bad.link.send(wire.Done(1, ((0, 2**32 - 1),)))
    await bad.until(wire.Bye)
    await bad.link.aclose()


async def test_bytes_of_strangers_cost_nothing_but_their_connection() -> None:
    limits = Limits(half_open=8, handshake_s=0.1)
    async with open_fabric(system_env(), limits=limits) as fabric, fabric.client("good", *EVERYTHING) as good:
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
    async with open_fabric(system_env(), limits=limits) as fabric:
        await fabric.enroll("slow", *EVERYTHING)
        slow = await raw_session(fabric, "slow")
        # It asks for more than it is allowed to and reads none of it; its pings are to be answered, too.
        slow.link.send(wire.Subscribe(1, "slow", 0, 0, wire.NEVER, 2**32 - 1, 2**32 - 1, (TOPIC,)))
        async with fabric.client("good", *EVERYTHING) as good:
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
        await slow.link.aclose()


async def test_a_peer_that_asks_and_never_reads_is_ended_as_slow() -> None:
    limits = Limits(link_queue_octets=100_000)
    async with open_fabric(system_env(), limits=limits) as fabric:
        await fabric.enroll("slow", *EVERYTHING)
        slow = await raw_session(fabric, "slow")
        slow.link.send(wire.Respond(1, 1000, (ASK,)))
        numbers = itertools.count(2)
        with trio.fail_after(10):
            while not fabric.broker.statistics().slow:
                if not slow.link.is_stalled:
                    slow.link.send(wire.Request(next(numbers), 60_000, ASK, "", bytes(60_000)))
                slow.link._flush()
                await trio.sleep(0.0005)
        await slow.link.aclose()


# -- requests -----------------------------------------------------------------------------------------------


async def test_a_request_is_answered_by_who_responds(fabric: Fabric) -> None:
    seen: list[Request] = []

    async def answer(request: Request) -> bytes:
        seen.append(request)
        if request.body == b"no":
            raise RequestFailed("policy_denied", "you may not", retry_after_ms=50)
        return b"re: " + request.body

    async with (
        fabric.client("core", "respond bridge/core/*") as core,
        fabric.client("ola", "request bridge/core/*") as ola,
        trio.open_nursery() as nursery,
    ):
        await nursery.start(partial(core.respond, [ASK], answer))
        deadline = trio.current_time() + 5
        assert await ola.request(ASK, b"hi", deadline=deadline, trace_id="t1") == b"re: hi"
        assert (seen[0].principal, seen[0].tenant, seen[0].trace_id, seen[0].topic) == (
            "ola",
            "acme",
            "t1",
            ASK,
        )
        assert 0 < seen[0].deadline - trio.current_time() <= 5.1
        with pytest.raises(RequestFailed) as failed:
            await ola.request(ASK, b"no", deadline=deadline, trace_id="t2")
        assert (failed.value.code, str(failed.value), failed.value.retry_after_ms) == (
            "policy_denied",
            "you may not",
            50,
        )
        large = bytes(900_000)
        assert await ola.request(ASK, large, deadline=deadline, trace_id="t3") == b"re: " + large
        nursery.cancel_scope.cancel()


async def test_the_same_request_gets_the_same_answer_and_another_is_a_duplicate(fabric: Fabric) -> None:
    codes = 0

    async def send_code(request: Request) -> bytes:
        nonlocal codes
        codes += 1
        await trio.sleep(0.02)
        return b"code %d" % codes

    async with fabric.client("core", *EVERYTHING) as core, fabric.client("eve", *EVERYTHING) as eve:
        async with trio.open_nursery() as nursery:
            await nursery.start(partial(core.respond, [ASK], send_code))
            answers: list[bytes] = []

            async def ask(client: Client, body: bytes) -> None:
                answers.append(
                    await client.request(ASK, body, deadline=trio.current_time() + 5, trace_id="t")
                )

            async with trio.open_nursery() as asking:
                for _ in range(3):
                    asking.start_soon(ask, core, b"+47")
            await ask(core, b"+47")
            assert answers == [b"code 1"] * 4
            with pytest.raises(RequestFailed) as failed:
                await ask(core, b"+48")
            assert failed.value.code == "duplicate"
            await ask(eve, b"+47")  # another principal is a stranger to that answer
            assert answers[-1] == b"code 2"
            nursery.cancel_scope.cancel()
    assert fabric.broker.statistics().requests.repeated == 3


async def test_nobody_to_answer_and_a_responder_that_dies_are_told_at_once(fabric: Fabric) -> None:
    async with fabric.client("ola", *EVERYTHING) as ola:
        with pytest.raises(RequestFailed) as failed:
            await ola.request(ASK, b"", deadline=trio.current_time() + 60, trace_id="t0")
        assert failed.value.code == "network_down"
        await fabric.enroll("core", *EVERYTHING)
        core = await raw_session(fabric, "core")
        core.link.send(wire.Respond(1, 8, (ASK,)))
        await core.until(wire.Ack)
        failures: list[RequestFailed] = []

        async def ask() -> None:
            try:
                await ola.request(ASK, b"", deadline=trio.current_time() + 60, trace_id="t1")
            except RequestFailed as exc:
                failures.append(exc)

        with trio.fail_after(2):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(ask)
                await core.until(wire.Call)
                await core.link.aclose()
        assert [failure.code for failure in failures] == ["network_down"]


async def test_a_late_answer_is_dropped_and_counted_but_kept_for_who_asks_again(fabric: Fabric) -> None:
    async with fabric.client("ola", *EVERYTHING) as ola:
        await fabric.enroll("core", *EVERYTHING)
        core = await raw_session(fabric, "core")
        core.link.send(wire.Respond(1, 8, (ASK,)))
        await core.until(wire.Ack)
        with pytest.raises(RequestFailed) as failed:
            await ola.request(ASK, b"sms", deadline=trio.current_time() + 0.05, trace_id="t1")
        assert failed.value.code == "timeout"
        call = await core.until(wire.Call)
        await trio.sleep(0.02)
        core.link.send(wire.Reply(call.call, "", wire.NO_RETRY, "", b"sent"))
        core.link.send(wire.Reply(999, "", wire.NO_RETRY, "", b"to nobody"))
        await wait_until(lambda: fabric.broker.statistics().requests.late == 2)
        assert await ola.request(ASK, b"sms", deadline=trio.current_time() + 5, trace_id="t1") == b"sent"
        await core.link.aclose()


async def test_requests_wait_for_a_free_responder_and_no_longer_than_their_deadline(fabric: Fabric) -> None:
    running = most = 0

    async def slowly(request: Request) -> bytes:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await trio.sleep(0.02)
        running -= 1
        return request.body

    async with fabric.client("a", *EVERYTHING) as client, trio.open_nursery() as nursery:
        await nursery.start(partial(client.respond, [ASK], slowly, concurrency=2))
        answers: list[bytes] = []

        async def ask(number: int) -> None:
            body = b"%d" % number
            deadline = trio.current_time() + 5
            answers.append(await client.request(ASK, body, deadline=deadline, trace_id=f"t{number}"))

        async with trio.open_nursery() as asking:
            for number in range(8):
                asking.start_soon(ask, number)
        assert most == 2 and sorted(answers) == [b"%d" % number for number in range(8)]
        nursery.cancel_scope.cancel()


async def test_a_fault_of_the_handler_is_told_to_the_asker_and_to_its_owner(fabric: Fabric) -> None:
    async def broken(request: Request) -> bytes:
        raise ZeroDivisionError

    async with fabric.client("a", *EVERYTHING) as client:
        codes: list[str] = []

        async def ask() -> None:
            try:
                await client.request(ASK, b"", deadline=trio.current_time() + 5, trace_id="t")
            except RequestFailed as exc:
                codes.append(exc.code)

        with pytest.raises(ExceptionGroup) as group:
            async with trio.open_nursery() as nursery:
                await nursery.start(partial(client.respond, [ASK], broken))
                with trio.CancelScope(shield=True):
                    await ask()
        assert group.group_contains(ZeroDivisionError) and codes == ["internal"]


# -- ephemeral ----------------------------------------------------------------------------------------------


async def test_ephemeral_records_pass_and_leave_no_trace(fabric: Fabric) -> None:
    async with fabric.client("a", *EVERYTHING) as client:
        async with (
            client.subscribe([TOPIC], group="g") as member,
            client.subscribe([TOPIC], group=None, start="latest") as tail,
        ):
            await client.publish_ephemeral(TOPIC, b"typing", key=b"k")
            for subscription in (member, tail):
                (record,) = await receive_n(subscription, 1)
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
    async with open_fabric(system_env(), limits=Limits(passing=4)) as fabric:
        async with fabric.client("a", *EVERYTHING) as client:
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


# -- trouble ------------------------------------------------------------------------------------------------


async def test_an_overloaded_broker_keeps_the_order() -> None:
    limits = Limits(publish_frames=3)
    async with open_fabric(system_env(), limits=limits) as fabric, fabric.client("a", *EVERYTHING) as client:
        async with trio.open_nursery() as nursery:
            for number in range(20):
                payload = [b"%d" % number + bytes(30_000)]
                nursery.start_soon(partial(client.publish, TOPIC, payload, key=b"k"))
                if number % 3 == 0:
                    await trio.lowlevel.checkpoint()
        records = await take(client, "g", 20)
        assert [r.position for r in records] == list(range(20))
        assert len({record.payload for record in records}) == 20
        assert fabric.broker.statistics().overloaded > 0


async def test_retention_that_overtakes_a_reader_is_named(fabric: Fabric) -> None:
    async with fabric.client("a", *EVERYTHING) as client:
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
        assert [r.payload for r in await take(client, "g", 1)] == [b"new"]


async def test_a_storage_that_fails_ends_the_broker_and_nothing_is_acknowledged(tmp_path: Path) -> None:
    world = World(1)
    with world:
        host = world.host("shard")
        acknowledged = []
        with pytest.raises(ExceptionGroup) as group:
            async with open_fabric(host.env(), tmp_path) as fabric, fabric.client("a", *EVERYTHING) as client:
                await client.publish(TOPIC, [b"kept"], key=b"k")
                acknowledged.append(1)
                host.disk.fault = Fault(at=1, kinds=frozenset({"sync"}))
                with trio.fail_after(10):
                    await client.publish(TOPIC, [b"lost"], key=b"k")
                    acknowledged.append(2)
        assert group.group_contains(StorageFailed)
        assert acknowledged == [1]


async def test_two_brokers_in_one_process_know_nothing_of_each_other() -> None:
    async with open_fabric(system_env(), shard="one") as one, open_fabric(system_env(), shard="two") as two:
        identity = await one.enroll("a", *EVERYTHING)
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
        import attrs

        with pytest.raises(ShardsError):
            await fabric.broker.enroll(attrs.evolve(sound, **changes))


async def test_an_address_that_is_none_is_named(tmp_path: Path) -> None:
    for address in ("127.0.0.1:1", "tcp://:1", "tcp://h:port", "tcp://h:99999"):
        with pytest.raises(ShardsError, match="no tcp address"):
            async with open_broker(
                system_env(),
                state=tmp_path,
                endpoint=str(tmp_path / "run" / "s"),
                shard="s",
                tcp=[address],
            ):
                pass
