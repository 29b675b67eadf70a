"""The tools themselves: a checker that is not checked proves nothing."""

from __future__ import annotations

import errno
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio

from shards.database import open_database
from shards.env import Env, Frames
from shards.errors import StorageFailed, Unreachable
from shards.testing import (
    Acked,
    Event,
    Fault,
    Message,
    Network,
    Offered,
    Read,
    Received,
    Refused,
    Trace,
    World,
    cancel_everywhere,
    check_history,
    check_trio,
    run_simulation,
    simulated_env,
)

# ---------------------------------------------------------------- the checker of histories

TENANTS = {"t0 reader": "t0", "t1 reader": "t1"}


def clean_history(r: random.Random) -> list[Event]:
    messages = [
        Message(f"t{p % 2}", f"p{p}", f"c{c}", i) for i in range(6) for p in range(3) for c in range(2)
    ]
    history: list[Event] = [Offered(message) for message in messages]
    history += [Acked(message) for message in messages if r.random() < 0.9]
    offsets: dict[str, int] = {}
    for message in messages:
        reader = f"{message.tenant} reader"
        offsets[reader] = offsets.get(reader, -1) + 1
        history.append(Received(reader, message))
        history.append(Read(reader, "topic", offsets[reader], message))
    return history


def damage(history: list[Event], kind: str, r: random.Random) -> list[Event]:
    acked = {event.message for event in history if isinstance(event, Acked)}
    places = [i for i, event in enumerate(history) if isinstance(event, Received) and event.message in acked]
    reads = [i for i, event in enumerate(history) if isinstance(event, Read)]
    i, k = r.choice(places), r.choice(reads)
    event, read = history[i], history[k]
    assert isinstance(event, Received)
    assert isinstance(read, Read)
    made = list(history)
    match kind:
        case "lost":
            del made[i]
        case "duplicated":
            made.append(event)
        case "unexpected":
            made.append(Received(event.consumer, attrs.evolve(event.message, producer="nobody")))
        case "crossed_tenants":
            made[i] = Received("t1 reader" if event.consumer == "t0 reader" else "t0 reader", event.message)
        case "refused_but_received":
            made.append(Refused(event.message))
        case "reordered":
            same = [
                j
                for j in places
                if j != i
                and attrs.evolve(history[j].message, number=0) == attrs.evolve(event.message, number=0)
            ]
            j = r.choice(same)
            made[i], made[j] = made[j], made[i]
        case "diverged":
            made.append(Read("another", "topic", read.offset, attrs.evolve(read.message, number=99)))
        case "holes":
            made.append(attrs.evolve(read, offset=1000))
        case "doubled_in_log":
            made.append(Read("another", "topic", 1000, read.message))
    return made


def test_the_checker_accepts_what_is_clean_and_finds_every_damage() -> None:
    kinds = [
        "lost",
        "duplicated",
        "unexpected",
        "crossed_tenants",
        "refused_but_received",
        "reordered",
        "diverged",
        "holes",
        "doubled_in_log",
    ]
    for seed in range(60):
        r = random.Random(seed)
        history = clean_history(r)
        verdict = check_history(history, tenant_of=TENANTS, consumers=TENANTS)
        assert verdict.ok, verdict.faults
        for kind in kinds:
            found = check_history(damage(history, kind, r), tenant_of=TENANTS, consumers=TENANTS)
            assert kind in found.faults, (seed, kind, found.faults)


def test_whoever_should_have_had_it_and_has_not_makes_it_lost() -> None:
    message = Message("t", "p", "c", 0)
    history = [Offered(message), Acked(message), Received("a", message)]
    assert check_history(history).ok
    assert check_history(history, consumers=["a", "b"]).lost == [message]


# ---------------------------------------------------------------- determinism

SCRIPT = """
import sys, trio
from shards.testing import Trace, World, run_simulation
seed = int(sys.argv[1])
async def main():
    trace = Trace()
    with World(seed, trace=trace) as world:
        host = world.host("a")
        env = host.env()
        router = await env.bind("/s")
        async def client(i):
            frames = await world.host(f"c{i}").env().connect("/s")
            for j in range(5):
                frames.send_nowait(b"", b"%d" % j)
                await trio.sleep(env.random.random())
        async def serve():
            while True:
                for peer, frame in await router.receive():
                    trace(peer, frame)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve)
            async with trio.open_nursery() as clients:
                for name in {f"{i}" for i in range(20)}:
                    clients.start_soon(client, int(name))
                await trio.sleep(1)
                world.network.cut(world.network.links[0])
            nursery.cancel_scope.cancel()
    return trace.digest, trace.n
SORTED = True
print(run_simulation(seed, main))
"""


def digest(script: str, seed: int, hash_seed: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", script, str(seed)],
        env={"PYTHONHASHSEED": hash_seed, "PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout


def test_one_seed_is_one_history_in_every_process() -> None:
    ordered = SCRIPT.replace('{f"{i}" for i in range(20)}', "sorted({f'{i}' for i in range(20)})")
    first = digest(ordered, 1, "1")
    assert first == digest(ordered, 1, "2")
    assert first != digest(ordered, 2, "1")


def test_an_order_that_hangs_on_hashing_is_seen_in_the_trace() -> None:
    assert digest(SCRIPT, 1, "1") != digest(SCRIPT, 1, "2"), "the test above could not fail"


def test_trio_still_has_what_the_simulation_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    check_trio()
    monkeypatch.delattr("trio._core._run._ALLOW_DETERMINISTIC_SCHEDULING")
    with pytest.raises(RuntimeError, match="pin the version"):
        check_trio()


def test_a_simulation_that_hangs_says_so() -> None:
    with pytest.raises(trio.TooSlowError):
        run_simulation(1, trio.sleep_forever)


def test_virtual_time_costs_nothing() -> None:
    async def main() -> float:
        await trio.sleep(3000)
        return trio.current_time()

    assert run_simulation(1, main) == pytest.approx(3000)


# ---------------------------------------------------------------- cancellation


def test_every_place_is_tried_and_half_done_work_is_found() -> None:
    async def good(attempt: Any) -> None:
        done: list[int] = []

        async def both() -> None:
            await trio.sleep(1)
            with trio.CancelScope(shield=True):
                done.append(1)
                await trio.sleep(1)
                done.append(2)

        await attempt(both)
        assert done in ([], [1, 2])

    async def bad(attempt: Any) -> None:
        done: list[int] = []

        async def both() -> None:
            done.append(1)
            await trio.sleep(1)
            done.append(2)

        await attempt(both)
        assert done in ([], [1, 2])

    assert cancel_everywhere(good) >= 3
    with pytest.raises(AssertionError) as caught:
        cancel_everywhere(bad)
    assert "cancelled at point 2 of" in caught.value.__notes__[0]


# ---------------------------------------------------------------- the disk

SCHEMA = ["CREATE TABLE t(x INTEGER PRIMARY KEY);"]


async def insert(env: Env, *values: int) -> None:
    async with open_database(env, Path("/state/a.db"), migrations=SCHEMA) as database:
        for x in values:
            await database.write(lambda tx, x=x: tx.execute("INSERT INTO t VALUES(?)", (x,)))


async def rows(env: Env) -> list[int]:
    async with open_database(env, Path("/state/a.db"), migrations=SCHEMA) as database:
        return [x for (x,) in await database.read(lambda tx: tx.execute("SELECT x FROM t ORDER BY x"))]


def simulate(fn: Any) -> Any:
    return run_simulation(1, fn)


def test_what_was_acknowledged_outlives_the_power_and_dead_handles_stay_dead() -> None:
    async def main() -> None:
        for seed in range(8):
            with World(seed) as world:
                host = world.host("a")
                acked: list[int] = []

                async def life(env: Env, acked: list[int] = acked) -> None:
                    async with open_database(env, Path("/state/a.db"), migrations=SCHEMA) as database:
                        for x in range(1000):
                            await database.write(lambda tx, x=x: tx.execute("INSERT INTO t VALUES(?)", (x,)))
                            acked.append(x)

                async with trio.open_nursery() as nursery:
                    nursery.start_soon(host.run, life)
                    await trio.sleep(world.random.uniform(0.01, 0.5))
                    host.kill()
                host.start()
                found = await rows(host.env())
                assert found[: len(acked)] == acked
                assert len(found) <= len(acked) + 1

    simulate(main)


def test_a_failed_call_is_the_one_that_was_asked_for() -> None:
    async def main() -> None:
        with World(1) as world:
            host = world.host("a")
            await insert(host.env(), 1)
            fault = host.disk.fault = Fault(at=1, error=errno.EIO, kinds=frozenset({"sync"}))
            with pytest.raises(StorageFailed):
                await insert(host.env(), 2)
            assert fault.fired == "sync"
            host.disk.fault = None
            assert await rows(host.env()) in ([1], [1, 2])

    simulate(main)


def test_two_simulated_envs_share_nothing() -> None:
    async def main() -> None:
        one, other = simulated_env(1), simulated_env(1)
        await insert(one, 1)
        assert await rows(other) == []
        assert one.random.random() == other.random.random()
        assert one.token_bytes(8) == other.token_bytes(8)

    simulate(main)


# ---------------------------------------------------------------- the network


async def linked(world: World) -> tuple[Frames, Frames, bytes]:
    router = await world.host("server").env().bind("/s")
    dealer = await world.host("client").env().connect("/s")
    assert dealer.send_nowait(b"", b"hello")
    ((peer, frame),) = await router.receive()
    assert frame == b"hello"
    return router, dealer, peer


def test_frames_come_in_order_both_ways_whatever_the_delay() -> None:
    async def main() -> None:
        with World(3) as world:
            world.network.faults.delay_s = (0, 1)
            router, dealer, peer = await linked(world)
            sent = [b"%d" % i for i in range(60)]
            for frame in sent:
                assert dealer.send_nowait(b"", frame)
                assert router.send_nowait(peer, frame)
            for frames in (router, dealer):
                got: list[bytes] = []
                while len(got) < 60:
                    got += [frame for _, frame in await frames.receive(7)]
                assert got == sent

    simulate(main)


def test_a_full_link_refuses_and_others_go_on() -> None:
    async def main() -> None:
        with World(3) as world:
            router, _dealer, peer = await linked(world)
            other = await world.host("other").env().connect("/s")
            other.send_nowait(b"", b"hello")
            ((other_peer, _),) = await router.receive()
            accepted = [router.send_nowait(peer, b"x") for _ in range(100)]
            assert accepted == [True] * 72 + [False] * 28
            assert router.send_nowait(other_peer, b"x")

    simulate(main)


def test_a_cut_is_told_to_both_sides_after_what_still_arrives() -> None:
    async def main() -> None:
        arrived: set[int] = set()
        for seed in range(20):
            with World(seed) as world:
                router, dealer, peer = await linked(world)
                for i in range(20):
                    dealer.send_nowait(b"", b"%d" % i)
                world.network.cut(world.network.links[0])
                assert not dealer.send_nowait(b"", b"more")
                got: list[bytes] = []
                while not (lost := router.lost()):
                    got += [frame for _, frame in await router.receive()]
                assert lost == [peer]
                assert got == [b"%d" % i for i in range(len(got))]
                arrived.add(len(got))
                assert await dealer.receive() == []
                assert dealer.lost() == [b""]
                assert not router.send_nowait(peer, b"more")
        assert len(arrived) > 5

    simulate(main)


def test_what_a_partition_holds_arrives_when_it_heals_in_time() -> None:
    async def main() -> None:
        with World(3) as world:
            router, dealer, peer = await linked(world)
            world.network.partition("client", "server")
            assert dealer.send_nowait(b"", b"held")
            with trio.move_on_after(5):
                await router.receive()
                pytest.fail("a frame passed through a partition")
            world.network.heal("client", "server")
            assert await router.receive() == [(peer, b"held")]
            world.network.partition("client", "server")
            await trio.sleep(20)
            world.network.heal("client", "server")
            assert await router.receive() == []
            assert router.lost() == [peer]

    simulate(main)


def test_nobody_there_and_a_dead_host_are_told_apart_from_silence() -> None:
    async def main() -> None:
        with World(3) as world:
            with pytest.raises(Unreachable):
                await world.host("client").env().connect("/s")
            _router, dealer, _peer = await linked(world)
            env = world.host("server").env()
            world.host("server").kill()
            assert await dealer.receive() == []
            assert dealer.lost() == [b""]
            with pytest.raises(Unreachable):
                await world.host("client").env().connect("/s")
            with pytest.raises(OSError, match="was killed"):
                await env.bind("/s")
            world.host("server").start()
            await world.host("server").env().bind("/s")

    simulate(main)


def test_streams_carry_bytes_with_eof_reset_and_back_pressure() -> None:
    async def main() -> None:
        with World(3) as world:
            server, client = world.host("server").env(), world.host("client").env()
            with pytest.raises(OSError, match="refused"):
                await client.open_tcp_stream("irc.example", 6667)
            (listener,) = await server.open_tcp_listeners("irc.example", 6667)
            ours = await client.open_tcp_stream("irc.example", 6667)
            theirs = await listener.accept()
            data = random.Random(1).randbytes(300_000)
            got = bytearray()

            async def send() -> None:
                await ours.send_all(data)
                await ours.send_eof()  # type: ignore[attr-defined]

            async with trio.open_nursery() as nursery:
                nursery.start_soon(send)
                await trio.sleep(10)
                assert len(nursery.child_tasks) == 1, "nobody reads, and all of it was sent"
                while chunk := await theirs.receive_some():
                    got += chunk
            assert got == data
            await theirs.send_all(b"bye")
            assert await ours.receive_some() == b"bye"
            world.network.cut_streams("client")
            with pytest.raises(trio.BrokenResourceError):
                await ours.receive_some()

    simulate(main)


def test_a_closed_socket_ends_its_receiver() -> None:
    async def main() -> None:
        with World(3) as world:
            router, dealer, _peer = await linked(world)

            async def receive() -> None:
                with pytest.raises(trio.ClosedResourceError):
                    await router.receive()

            async with trio.open_nursery() as nursery:
                nursery.start_soon(receive)
                await trio.sleep(1)
                await router.aclose()
            assert await dealer.receive() == []
            assert dealer.lost() == [b""]

    simulate(main)


def test_a_trace_is_one_hash_and_its_last_events() -> None:
    async def main() -> tuple[str, int]:
        trace = Trace(keep=10)
        for i in range(100):
            trace("event", i)
        assert len(trace.events) <= 20
        assert "99" in trace.tail(1)
        return trace.digest, trace.n

    assert simulate(main) == simulate(main)
    assert Network(1).links == []
