"""The client: what outlives a lost link, what is coalesced, what waits and what is refused."""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import AsyncIterator, Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from shards import system_env, wire
from shards.broker import Limits, open_broker
from shards.client import Client, Identity, Request, Subscription, open_client
from shards.errors import LocalProtocolError, RequestFailed, ShardsError, Unreachable
from shards.record import Record
from shards.testing import World
from shards.testing.fabric import Fabric, open_fabric

TOPIC = "bridge/irc/x/inbound"
EDITS = "bridge/irc/x/edit"
ASK = "bridge/core/send"
EVERYTHING = (
    "publish bridge/*/*/*",
    "subscribe bridge/*/*/*",
    "request bridge/*/*/*",
    "respond bridge/*/*/*",
)


@pytest.fixture
async def fabric() -> AsyncIterator[Fabric]:
    async with open_fabric(system_env(inside=False)) as fabric:
        yield fabric


class Restartable:
    """A broker that a test stops in the middle of anything and starts again on the same files."""

    def __init__(self, fabric: Fabric, nursery: trio.Nursery) -> None:
        self.fabric = fabric
        self._nursery = nursery
        self._scope = trio.CancelScope()
        self._stopped = trio.Event()

    async def start(self) -> None:
        self._scope = trio.CancelScope()
        self._stopped = trio.Event()
        await self._nursery.start(self._run)

    async def stop(self) -> None:
        self._scope.cancel()
        await self._stopped.wait()

    async def _run(self, task_status: trio.TaskStatus[None]) -> None:
        fabric = self.fabric
        with self._scope:
            async with open_broker(
                fabric.env, state=fabric.state, endpoint=fabric.endpoint, shard=fabric.shard
            ) as fabric.broker:
                task_status.started()
                await trio.sleep_forever()
        self._stopped.set()


@pytest.fixture
async def restartable(tmp_path: Path, nursery: trio.Nursery) -> Restartable:
    fabric = Fabric(system_env(inside=False), tmp_path / "state", str(tmp_path / "run" / "s"), "test")
    broker = Restartable(fabric, nursery)
    await broker.start()
    return broker


async def wait_until(condition: Callable[[], Any]) -> None:
    with trio.fail_after(5):
        while not condition():
            await trio.sleep(0.005)


async def read_all(client: Client, *topics: str) -> list[Record]:
    async with client.replay(topics or (TOPIC,)) as pages:
        return [record async for page in pages for record in page]


# -- what outlives a link -----------------------------------------------------------------------------------


async def test_nothing_is_lost_doubled_or_reordered_while_the_broker_is_restarted(
    restartable: Restartable,
) -> None:
    fabric = restartable.fabric
    acknowledged: list[bytes] = []
    async with fabric.client("a", *EVERYTHING) as client, trio.open_nursery() as nursery:

        async def speak(conversation: int) -> None:
            for number in range(40):
                payload = b"%d/%d" % (conversation, number)
                await client.publish((TOPIC, EDITS)[number % 2], [payload], key=b"%d" % conversation)
                acknowledged.append(payload)

        async with trio.open_nursery() as speakers:
            for conversation in range(8):
                speakers.start_soon(speak, conversation)
            for _ in range(3):
                before = len(acknowledged)
                await wait_until(lambda before=before: len(acknowledged) > before + 10)
                await restartable.stop()
                await trio.sleep(0.01)
                await restartable.start()
        assert client.reconnects == 3
        records = await read_all(client, TOPIC, EDITS)
        payloads = [record.payload for record in records]
        assert sorted(payloads) == sorted(acknowledged) and len(set(payloads)) == 320
        spoken: dict[bytes, list[int]] = defaultdict(list)
        for payload in payloads:
            conversation, _, number = payload.partition(b"/")
            spoken[conversation].append(int(number))
        assert all(numbers == list(range(40)) for numbers in spoken.values())
        nursery.cancel_scope.cancel()
    await restartable.stop()


async def test_a_group_goes_on_after_a_restart_and_shows_nothing_done_again(restartable: Restartable) -> None:
    fabric = restartable.fabric
    async with fabric.client("a", *EVERYTHING) as client:
        async with client.subscribe([TOPIC], group="g") as subscription:
            for number in range(10):
                await client.publish(TOPIC, [b"%d" % number], key=b"k%d" % number)
            done: list[int] = []
            held: list[Record] = []
            with trio.fail_after(5):
                while len(done) + len(held) < 10:
                    for record in await subscription.receive():
                        if record.position % 2:
                            held.append(record)
                        else:
                            await subscription.done([record])
                            done.append(record.position)
            await restartable.stop()
            await restartable.start()
            again: list[Record] = []
            with trio.fail_after(5):
                while len(again) < len(held):
                    again += await subscription.receive()
            assert sorted(r.position for r in again) == sorted(r.position for r in held)
            await subscription.done(again)
            await wait_until(lambda: [g.lag for g in fabric.broker.groups("acme")] == [0])
            assert subscription.head == 0
    await restartable.stop()


async def test_a_plain_tail_goes_on_where_it_was(restartable: Restartable) -> None:
    fabric = restartable.fabric
    async with fabric.client("a", *EVERYTHING) as client:
        async with client.subscribe([TOPIC], group=None) as tail:
            seen: list[bytes] = []
            for turn in range(3):
                for number in range(20):
                    await client.publish(TOPIC, [b"%d/%d" % (turn, number)], key=b"k")
                with trio.fail_after(5):
                    while len(seen) < 20 * turn + 10:
                        seen += [record.payload for record in await tail.receive()]
                await restartable.stop()
                await restartable.start()
            with trio.fail_after(5):
                while len(seen) < 60:
                    seen += [record.payload for record in await tail.receive()]
            assert seen == [b"%d/%d" % (turn, number) for turn in range(3) for number in range(20)]
    await restartable.stop()


async def test_a_responder_and_who_waits_for_it_survive_a_restart(restartable: Restartable) -> None:
    fabric = restartable.fabric
    started, proceed = trio.Event(), trio.Event()
    asked = 0

    async def answer(request: Request) -> bytes:
        nonlocal asked
        asked += 1
        started.set()
        await proceed.wait()
        return b"re: " + request.body

    async with (
        fabric.client("core", *EVERYTHING) as core,
        fabric.client("ola", *EVERYTHING) as ola,
        trio.open_nursery() as nursery,
    ):
        await nursery.start(partial(core.respond, [ASK], answer))
        answers: list[bytes | str] = []

        async def ask() -> None:
            # The one link may be back before the other: then nobody responds for a moment.
            while True:
                try:
                    body = await ola.request(ASK, b"hi", deadline=trio.current_time() + 5, trace_id="t")
                    answers.append(body)
                    return
                except RequestFailed as exc:
                    assert exc.code == "network_down"
                    await trio.sleep(0.01)

        async with trio.open_nursery() as asking:
            asking.start_soon(ask)
            await started.wait()
            await restartable.stop()
            proceed.set()
            await restartable.start()
        assert answers == [b"re: hi"] and asked == 2
        nursery.cancel_scope.cancel()
    await restartable.stop()


async def test_a_client_without_a_broker_says_so_in_time(tmp_path: Path) -> None:
    identity = Identity.generate("a", "acme", system_env(inside=False).token_bytes)
    start = trio.current_time()
    with pytest.raises(Unreachable):
        async with open_client(
            system_env(inside=False),
            str(tmp_path / "nothing"),
            identity,
            server_public=identity.noise_public,
            shard="s",
            connect_timeout_s=0.2,
        ):
            pass
    assert trio.current_time() - start < 2


async def test_a_broker_that_falls_silent_is_left_and_found_again(
    autojump_clock: trio.testing.MockClock,
) -> None:
    with World(5) as world:
        shard, home = world.host("shard"), world.host("home")
        async with open_fabric(shard.env()) as fabric:
            identity = await fabric.enroll("a", *EVERYTHING)
            async with open_client(
                home.env(),
                fabric.endpoint,
                identity,
                server_public=fabric.broker.server_public,
                shard=fabric.shard,
            ) as client:
                await client.publish(TOPIC, [b"1"], key=b"k")
                world.network.partition("shard", "home")
                with trio.move_on_after(60):
                    await client.publish(TOPIC, [b"never acknowledged to us"], key=b"k")
                assert not client.is_linked and fabric.broker.statistics().links == 0
                world.network.heal("shard", "home")
                with trio.fail_after(10):
                    await client.publish(TOPIC, [b"2"], key=b"k")
                assert client.reconnects == 1
                assert [r.payload for r in await read_all(client)][-1] == b"2"


# -- publishing ---------------------------------------------------------------------------------------------


async def test_calls_of_one_moment_share_batches_and_keep_their_order(fabric: Fabric) -> None:
    async with fabric.client("a", *EVERYTHING) as client:
        async with trio.open_nursery() as nursery:
            for number in range(300):
                key, topic = b"k%d" % (number % 7), (TOPIC, EDITS)[number % 5 == 0]
                nursery.start_soon(partial(client.publish, topic, [b"%d" % number], key=key))
        records = await read_all(client, TOPIC, EDITS)
        assert sorted(int(record.payload) for record in records) == list(range(300))
        batches = {record.proof.root for record in records if record.proof is not None}
        assert len(batches) < 60


async def test_an_edit_stays_behind_its_message_when_batches_of_two_topics_fill(fabric: Fabric) -> None:
    """White box: records join open batches of their topic only while no later batch holds their key."""
    async with fabric.client("a", *EVERYTHING) as client:
        publisher = client._publisher
        publisher._holding = True
        calls = [
            publisher.add(topic, [payload], key, None, None)
            for topic, payload, key in (
                (TOPIC, b"1", 1),
                (EDITS, b"2", 1),
                (TOPIC, b"3", 2),  # may join the first batch
                (TOPIC, b"4", 1),  # may not: key 1 has been edited since
                (EDITS, b"5", 2),
            )
        ]
        publisher._holding = False
        publisher.pump()
        for call in calls:
            await call.event.wait()
        records = await read_all(client, TOPIC, EDITS)
        assert [record.payload for record in records if record.payload in (b"1", b"2", b"4")] == [
            b"1",
            b"2",
            b"4",
        ]
        assert [record.payload for record in records if record.payload in (b"3", b"5")] == [b"3", b"5"]
        roots = {record.payload: record.proof.root for record in records if record.proof}
        assert roots[b"1"] == roots[b"3"] != roots[b"4"]


async def test_a_cancelled_publish_that_was_not_sent_is_not_sent_later(restartable: Restartable) -> None:
    fabric = restartable.fabric
    async with fabric.client("a", *EVERYTHING) as client:
        await restartable.stop()
        await wait_until(lambda: not client.is_linked)
        with trio.move_on_after(0.02) as scope:
            await client.publish(TOPIC, [b"given up"], key=b"k")
        assert scope.cancelled_caught and client.unacknowledged == 0
        async with trio.open_nursery() as nursery:
            nursery.start_soon(partial(client.publish, TOPIC, [b"kept"], key=b"k"))
            await trio.testing.wait_all_tasks_blocked()
            assert client.unacknowledged == 1
            await restartable.start()
        assert [record.payload for record in await read_all(client)] == [b"kept"]
    await restartable.stop()


async def test_publish_waits_when_too_much_is_queued(restartable: Restartable) -> None:
    fabric = restartable.fabric
    async with fabric.client("a", *EVERYTHING) as client:
        await restartable.stop()
        await wait_until(lambda: not client.is_linked)
        async with trio.open_nursery() as nursery:
            for _ in range(20):
                nursery.start_soon(partial(client.publish, TOPIC, [bytes(1 << 20)], key=b"k"))
            await trio.testing.wait_all_tasks_blocked()
            assert 8 <= client.unacknowledged <= 9
            await restartable.start()
        assert client.unacknowledged == 0 and await client.head() == 20
    await restartable.stop()


async def test_ephemeral_records_wait_for_nobody(restartable: Restartable) -> None:
    fabric = restartable.fabric
    async with fabric.client("a", *EVERYTHING) as client:
        with pytest.raises(LocalProtocolError):
            await client.publish_ephemeral(TOPIC, bytes(70_000), key=b"k")
        await restartable.stop()
        await wait_until(lambda: not client.is_linked)
        with trio.fail_after(1):
            await client.publish_ephemeral(TOPIC, b"typing", key=b"k")
        await restartable.start()


async def test_misuse_is_named(fabric: Fabric) -> None:
    async with fabric.client("a", *EVERYTHING) as client:
        for payloads, numbers in (([], {}), ([b""], {"epoch": 1}), ([b""], {"sequence": 1})):
            with pytest.raises(LocalProtocolError):
                await client.publish(TOPIC, payloads, key=b"k", **numbers)
        for topics, options in (
            ([], {"group": "g"}),
            ([TOPIC], {"group": ""}),
            ([TOPIC], {"group": "g", "credit_records": 0}),
            ([TOPIC], {"group": "g", "start": -1}),
        ):
            with pytest.raises(LocalProtocolError):
                async with client.subscribe(topics, **options):  # type: ignore[arg-type]
                    pass
        with pytest.raises(ShardsError):
            await client.request("no topic", b"", deadline=math.inf, trace_id="t")
        async with trio.open_nursery() as nursery:
            await nursery.start(partial(client.respond, [ASK], nothing))
            with pytest.raises(LocalProtocolError, match="already"):
                await client.respond([ASK], nothing)
            nursery.cancel_scope.cancel()


async def nothing(request: Request) -> bytes:
    return b""


async def test_an_exception_of_the_body_is_raised_as_it_is(fabric: Fabric) -> None:
    with pytest.raises(ZeroDivisionError):
        async with fabric.client("a", *EVERYTHING):
            raise ZeroDivisionError


# -- reading ------------------------------------------------------------------------------------------------


async def test_a_tail_reads_far_more_than_its_credit(fabric: Fabric) -> None:
    async with fabric.client("a", *EVERYTHING) as client:
        for number in range(40):
            await client.publish(TOPIC, [b"%d" % (number * 50 + i) for i in range(50)], key=b"k")
        async with client.subscribe([TOPIC], group=None, credit_records=7) as tail:
            assert tail.head == 2000
            seen: list[int] = []
            with trio.fail_after(5):
                while len(seen) < 2000:
                    records = await tail.receive()
                    assert len(records) <= 7
                    seen += [int(record.payload) for record in records]
            assert seen == list(range(2000))


async def test_a_replay_goes_from_where_to_where_it_was_told(fabric: Fabric) -> None:
    async with fabric.client("a", *EVERYTHING) as client:
        for number in range(10):
            await client.publish((TOPIC, EDITS)[number % 2], [b"%d" % number], key=b"k")

        async def replay(topics: list[str], **where: int) -> list[int]:
            async with client.replay(topics, **where) as pages:  # type: ignore[arg-type]
                return [int(record.payload) async for page in pages for record in page]

        assert await replay([TOPIC, EDITS]) == list(range(10))
        assert await replay([TOPIC, EDITS], from_position=3, to_position=6) == [3, 4, 5]
        assert await replay([EDITS], from_offset=2) == [5, 7, 9]
        assert await replay([EDITS], from_position=99) == []
        assert await replay([EDITS], to_position=2**40) == [1, 3, 5, 7, 9]


async def test_where_a_group_starts_counts_only_once_but_a_position_always(fabric: Fabric) -> None:
    async with fabric.client("a", *EVERYTHING) as client:
        await client.publish(TOPIC, [b"0", b"1", b"2"], key=b"k")
        async with client.subscribe([TOPIC], group="late", start="latest") as subscription:
            await client.publish(TOPIC, [b"3"], key=b"k")
            (record,) = await subscription.receive()
            assert record.payload == b"3"
            await subscription.done([record])
        await wait_until(lambda: fabric.broker.groups("acme")[0].lag == 0)
        async with client.subscribe([TOPIC], group="late", start="earliest") as subscription:
            assert (subscription.position, subscription.head) == (4, 4)
        async with client.subscribe([TOPIC], group="late", start=1) as subscription:
            assert subscription.position == 1
            assert (await subscription.receive())[0].payload == b"1"


async def test_two_tasks_cannot_receive_from_one_subscription(fabric: Fabric) -> None:
    async with (
        fabric.client("a", *EVERYTHING) as client,
        client.subscribe([TOPIC], group="g") as subscription,
    ):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(subscription.receive)
            await trio.testing.wait_all_tasks_blocked()
            with pytest.raises(trio.BusyResourceError):
                await subscription.receive()
            nursery.cancel_scope.cancel()


async def test_acknowledgements_of_one_moment_go_together(fabric: Fabric) -> None:
    async with (
        fabric.client("a", *EVERYTHING) as client,
        client.subscribe([TOPIC], group="g") as subscription,
    ):
        for number in range(50):
            await client.publish(TOPIC, [b"%d" % number], key=b"k%d" % number)
        sent: list[Any] = []
        session = client._session
        assert session is not None
        send = session.send
        session.send = lambda frame: (sent.append(frame), send(frame))[1]  # type: ignore[method-assign]
        records: list[Record] = []
        with trio.fail_after(5):
            while len(records) < 50:
                records += await subscription.receive()
        async with trio.open_nursery() as nursery:
            for record in records:
                nursery.start_soon(subscription.done, [record])
        await wait_until(lambda: fabric.broker.groups("acme")[0].lag == 0)
        assert 1 <= len(sent) <= 3


# -- identity -----------------------------------------------------------------------------------------------


def test_an_identity_shows_no_private_key_and_knows_its_public_ones() -> None:
    identity = Identity.generate("a", "acme", lambda n: bytes([n]) * n)
    assert "noise_private" not in repr(identity) and "\\x20" not in repr(identity)
    publics = {identity.noise_public, identity.signing_public, identity.lease_public}
    assert {len(key) for key in publics} == {32} and identity.noise_public == identity.lease_public
    with pytest.raises(LocalProtocolError):
        Identity(name="a", tenant="t", noise_private=b"short", signing_private=b"", lease_private=b"")


async def test_limits_on_a_link_are_told(fabric: Fabric) -> None:
    limits = Limits(subscriptions=1, groups=1, topics=2, calls_octets=1000)
    async with open_fabric(system_env(inside=False), limits=limits) as fabric:
        async with fabric.client("a", *EVERYTHING) as client, client.subscribe([TOPIC], group="one"):
            with pytest.raises(ShardsError, match="too many subscriptions"):
                async with client.subscribe([TOPIC], group="two"):
                    pass
        async with fabric.client("a") as client:
            with pytest.raises(ShardsError, match="too many groups"):
                async with client.subscribe([TOPIC], group="two"):
                    pass
            for topic in (TOPIC, EDITS, TOPIC):
                await client.publish(topic, [b"fits"], key=b"k")
            with pytest.raises(ShardsError, match="too many topics"):
                await client.publish("bridge/irc/x/third", [b"one too many"], key=b"k")
            async with trio.open_nursery() as nursery:
                await nursery.start(partial(client.respond, [ASK], nothing))
                deadline = trio.current_time() + 5
                with pytest.raises(RequestFailed) as failed:
                    await client.request(ASK, bytes(1001), deadline=deadline, trace_id="t")
                assert failed.value.code == "rate_limited"
                assert await client.request(ASK, bytes(1000), deadline=deadline, trace_id="t") == b""
                nursery.cancel_scope.cancel()


# -- a subscription without a broker ------------------------------------------------------------------------


class Wire:
    """Stands for the link: what a subscription sends, and what it is sent."""

    def __init__(self) -> None:
        self.sent: list[wire.Frame] = []
        self.tokens = itertools.count(100)
        self.subscription = Subscription(
            1,
            (TOPIC,),
            group="g",
            start=wire.Start.EARLIEST,
            at=0,
            stop=wire.NEVER,
            credit_records=10,
            send=self.sent.append,
            kick=lambda subscription: None,
            fence=lambda subscription: next(self.tokens),
        )

    def deliver(self, *positions: int, key: int = 7, attempt: int = 1) -> None:
        items = tuple(wire.Item(position, attempt, key, b"%d" % position, ()) for position in positions)
        run = wire.Run(TOPIC, "p", 0, 0, 0, n=64, root=bytes(32), signature=bytes(64), items=items)
        self.subscription.deliver(wire.Deliver(1, wire.encode_cut(run)))

    def released(self) -> list[int]:
        frames = [frame for frame in self.sent if isinstance(frame, wire.Release)]
        return [first + i for frame in frames for first, n in frame.spans for i in range(n)]

    async def receive(self) -> list[tuple[int, int]]:
        return [(record.position, record.attempt) for record in await self.subscription.receive()]


async def test_what_was_on_its_way_when_its_key_was_released_is_held_back() -> None:
    link = Wire()
    link.deliver(4)
    (record,) = await link.subscription.receive()
    link.deliver(5)
    link.deliver(3, key=8)
    await link.subscription.release([record], delay_s=0.25)
    link.deliver(6)  # sent before the broker heard of the release
    assert await link.receive() == [(3, 1)]
    assert link.released() == [4, 5, 6]
    link.deliver(4, attempt=2)
    link.deliver(5, 6, attempt=2)
    assert await link.receive() == [(4, 2), (5, 2), (6, 2)]


async def test_when_another_member_took_what_was_released_the_next_one_is_taken_after_the_answer() -> None:
    link = Wire()
    link.deliver(4)
    await link.subscription.release(await link.subscription.receive())
    link.subscription.fenced(99)  # the answer to an earlier question
    link.deliver(5)
    assert link.released() == [4, 5]
    link.subscription.fenced(100)
    link.deliver(5, attempt=2)
    assert await link.receive() == [(5, 2)]


async def test_what_was_done_before_the_link_was_lost_is_done_again_and_not_shown() -> None:
    link = Wire()
    link.subscription.subscribed(wire.Subscribed(1, 0, 9))
    link.deliver(1, 2)
    first, second = await link.subscription.receive()
    await link.subscription.done([first])
    link.deliver(3)
    link.subscription.ask()  # a new link: what was buffered is given anew
    link.deliver(1, 2, attempt=2)
    assert await link.receive() == [(2, 2)]
    assert second.position == 2
    link.subscription.flush_done()
    assert link.sent[-1] == wire.Done(1, ((1, 1),))
    ask = [frame for frame in link.sent if isinstance(frame, wire.Subscribe)][-1]
    assert (ask.start, ask.at) == (wire.Start.RESUME, 0)
