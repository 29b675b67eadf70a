"""Trio over ZeroMQ: nothing lost or doubled under cancellation, no sleep with unread frames, one peer cut alone."""

import os
import random
import secrets
import socket
import stat
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path

import pytest
import trio
import trio.lowlevel

from shards import sockets, system_env
from shards.env import Frames
from shards.errors import LocalProtocolError, ShardsError, Unreachable
from shards.inside import FRAMES_MAX, connect_inside
from shards.sockets import FRAME_BYTES_MAX, bind_ipc, connect

Connect = Callable[[], Awaitable[Frames]]
GREETING = b"\xff" + bytes(8) + b"\x7f\3\1" + b"NULL".ljust(20, b"\0") + bytes(32)
READY = b"\4\x1c\5READY\x0bSocket-Type\0\0\0\6DEALER"


@asynccontextmanager
async def listening(path: Path) -> AsyncIterator[tuple[Frames, Connect]]:
    """A router at path/s, and dealers as many as are wanted; all closed at the end."""
    async with AsyncExitStack() as stack:
        router = await bind_ipc(str(path / "s"))
        stack.push_async_callback(router.aclose)

        async def dealer() -> Frames:
            frames = await connect(str(path / "s"), token_bytes=secrets.token_bytes)
            stack.push_async_callback(frames.aclose)
            return frames

        with trio.fail_after(20):
            yield router, dealer


async def receive_one(frames: Frames) -> tuple[bytes, bytes]:
    while True:
        taken = await frames.receive(1)
        if taken:
            return taken[0]


async def lost(frames: Frames) -> list[bytes]:
    while True:
        gone = frames.lost()
        if gone:
            return gone
        await frames.receive()


async def meet(router: Frames, dealer: Frames) -> bytes:
    """Exchange a frame; returns the dealer's routing id."""
    assert dealer.send_nowait(b"", b"hello")
    peer, frame = await receive_one(router)
    assert frame == b"hello"
    return peer


async def test_frames_go_both_ways_and_each_connection_has_an_id_of_its_own(tmp_path: Path) -> None:
    async with listening(tmp_path) as (router, connect_one):
        peers = {}
        for _ in range(3):
            dealer = await connect_one()
            peers[await meet(router, dealer)] = dealer
        assert len(peers) == 3
        for peer, dealer in peers.items():
            assert len(peer) == 16 and peer[0] == 1
            assert router.send_nowait(peer, peer)
            assert await dealer.receive() == [(b"", peer)]


async def test_frames_keep_their_order_and_size(tmp_path: Path) -> None:
    async with listening(tmp_path) as (router, connect_one):
        dealer = await connect_one()
        for n in range(30):
            assert dealer.send_nowait(b"", bytes([n]) * 1_000)
        largest = bytes(FRAME_BYTES_MAX)
        assert dealer.send_nowait(b"", largest)
        frames = [(await receive_one(router))[1] for _ in range(31)]
        assert frames == [bytes([n]) * 1_000 for n in range(30)] + [largest]
        with pytest.raises(LocalProtocolError):
            dealer.send_nowait(b"", largest + b"!")


@pytest.mark.parametrize("naive", [False, True], ids=["ours", "naive"])
async def test_a_send_never_puts_a_sleeping_receiver_to_sleep_for_good(
    tmp_path: Path, naive: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A send takes the command that was to wake the receiver; who only waits for the FD sleeps on."""
    async with listening(tmp_path) as (router, connect_one):
        dealer = await connect_one()
        peer = await meet(router, dealer)
        if naive:
            monkeypatch.setattr(sockets._ZmqFrames, "_wake", lambda self: None)
        for _ in range(1 if naive else 10):
            heard: list[tuple[bytes, bytes]] = []

            async def receiver(heard: list[tuple[bytes, bytes]] = heard) -> None:
                with trio.move_on_after(0.1 if naive else 5):
                    heard += await router.receive()

            async with trio.open_nursery() as nursery:
                nursery.start_soon(receiver)
                await trio.testing.wait_all_tasks_blocked(0.001)
                dealer.send_nowait(b"", b"wake up")
                time.sleep(0.01)
                router.send_nowait(peer, b"a send")
            assert heard == ([] if naive else [(peer, b"wake up")])


async def test_nothing_is_lost_or_doubled_when_receives_are_cancelled(tmp_path: Path) -> None:
    total = 3_000
    choice = random.Random(7)
    async with listening(tmp_path) as (router, connect_one):
        dealer = await connect_one()
        cancelled = 0

        async def patiently(
            frames: Frames, take: Callable[[bytes, bytes], Awaitable[None]], goal: int
        ) -> None:
            nonlocal cancelled
            seen = 0
            while seen < goal:
                taken: list[tuple[bytes, bytes]] = []
                with trio.CancelScope() as scope:
                    dice = choice.random()
                    if dice < 0.3:
                        scope.deadline = trio.current_time() + choice.random() * 3e-4
                    if dice < 0.02:
                        scope.cancel()
                    taken = await frames.receive(choice.randrange(1, 9))
                cancelled += scope.cancelled_caught
                for peer, frame in taken:
                    await take(peer, frame)
                seen += len(taken)

        async def send(frames: Frames, peer: bytes, frame: bytes) -> None:
            while not frames.send_nowait(peer, frame):
                await trio.sleep(0.0005)

        back: list[int] = []

        async def note(_: bytes, frame: bytes) -> None:
            back.append(int(frame))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(patiently, router, lambda peer, frame: send(router, peer, frame), total)
            nursery.start_soon(patiently, dealer, note, total)
            for n in range(total):
                await send(dealer, b"", b"%d" % n)
                if n % 50 == 0:
                    await trio.sleep(0.0002)
        assert back == list(range(total))
        assert cancelled > 5


async def test_a_cancelled_receive_takes_nothing(tmp_path: Path) -> None:
    async with listening(tmp_path) as (router, connect_one):
        dealer = await connect_one()
        assert dealer.send_nowait(b"", b"kept")
        await trio.sleep(0.02)
        with trio.CancelScope() as scope:
            scope.cancel()
            await router.receive()
        assert scope.cancelled_caught
        assert (await receive_one(router))[1] == b"kept"


async def test_only_one_task_receives_and_closing_wakes_it(tmp_path: Path) -> None:
    async with listening(tmp_path) as (router, _):
        async with trio.open_nursery() as nursery:

            async def sleeper() -> None:
                with pytest.raises(trio.ClosedResourceError):
                    await router.receive()

            nursery.start_soon(sleeper)
            await trio.testing.wait_all_tasks_blocked(0.01)
            with pytest.raises(trio.BusyResourceError):
                await router.receive()
            await router.aclose()
        with pytest.raises(trio.ClosedResourceError):
            router.send_nowait(b"x", b"y")
        await router.aclose()


async def test_one_peer_is_cut_and_its_neighbour_never_notices(tmp_path: Path) -> None:
    async with listening(tmp_path) as (router, connect_one):
        victim, neighbour = await connect_one(), await connect_one()
        peer, other = await meet(router, victim), await meet(router, neighbour)
        assert victim.send_nowait(b"", b"sent before the cut, not delivered after it")
        await trio.sleep(0.02)
        router.cut(peer)
        while not (gone := router.lost()):
            assert await router.receive() == []
        assert gone == [peer]
        assert await lost(victim) == [b""]
        assert victim.lost() == [] == router.lost()
        assert not router.send_nowait(peer, b"x") and not victim.send_nowait(b"", b"x")
        assert neighbour.send_nowait(b"", b"still here")
        assert await receive_one(router) == (other, b"still here")
        assert router.send_nowait(other, b"so am I")
        assert await receive_one(neighbour) == (b"", b"so am I")
        router.cut(peer)
        router.cut(b"never seen")


async def test_a_peers_last_frames_come_before_the_news_of_its_end(tmp_path: Path) -> None:
    async with listening(tmp_path) as (router, connect_one):
        dealer = await connect_one()
        peer = await meet(router, dealer)
        for n in range(5):
            assert dealer.send_nowait(b"", b"%d" % n)
        await trio.sleep(0.05)
        await dealer.aclose()
        await trio.sleep(0.05)
        heard: list[bytes] = []
        while not (gone := router.lost()):
            heard += [frame for _, frame in await router.receive(2)]
        assert gone == [peer]
        assert heard == [b"0", b"1", b"2", b"3", b"4"]


async def test_a_number_that_is_used_again_while_we_look_is_never_taken_for_its_former_peer(
    tmp_path: Path,
) -> None:
    async with listening(tmp_path) as (router, connect_one):
        former = set()
        for _ in range(10):  # each connection gets the number that the one before it had
            dealer = await connect_one()
            former.add(await meet(router, dealer))
            await dealer.aclose()
        last = await connect_one()
        peer = await meet(router, last)
        gone: set[bytes] = set()
        while gone != former:
            gone.update(await lost(router))
        for name in former:
            router.cut(name)
        assert router.send_nowait(peer, b"alive")
        assert await receive_one(last) == (b"", b"alive")


async def test_a_number_that_was_used_again_unseen_never_leaves_a_peer_in_doubt(tmp_path: Path) -> None:
    """Nobody looked while connections came and went: then the last of them may have to come again."""
    async with listening(tmp_path) as (router, connect_one):
        for _ in range(10):
            dealer = await connect_one()
            dealer.send_nowait(b"", b"hello")
            await trio.sleep(0.002)
            await dealer.aclose()
        last = await connect_one()
        last.send_nowait(b"", b"last")
        peers: set[bytes] = set()
        gone: set[bytes] = set()
        with trio.move_on_after(0.1):
            while True:
                peers.update(peer for peer, _ in await router.receive(3))
                gone.update(router.lost())
        for name in gone:
            assert not router.send_nowait(name, b"x")
        for name in peers - gone:
            assert router.send_nowait(name, b"x")
        heard = await served(last)
        assert bool(heard) != bool(last.lost())  # served, or told: never neither
        again = await connect_one()
        assert router.send_nowait(await meet(router, again), b"x")


async def served(frames: Frames) -> list[tuple[bytes, bytes]]:
    with trio.move_on_after(0.05):
        return await frames.receive()
    return []


async def test_a_listener_that_ends_is_known_at_once_and_nobody_reconnects(tmp_path: Path) -> None:
    async with listening(tmp_path) as (router, connect_one):
        dealer = await connect_one()
        await meet(router, dealer)
        await router.aclose()
        with trio.fail_after(1):
            assert await lost(dealer) == [b""]
        again = await bind_ipc(str(tmp_path / "s"))
        with trio.move_on_after(0.1):
            await again.receive()
            raise AssertionError("the old connection came back by itself")
        await again.aclose()


async def test_a_dealer_cuts_its_own_connection(tmp_path: Path) -> None:
    async with listening(tmp_path) as (router, connect_one):
        dealer = await connect_one()
        peer = await meet(router, dealer)
        dealer.cut(b"")
        assert await lost(dealer) == [b""]
        assert await lost(router) == [peer]


async def test_a_full_peer_is_refused_and_the_others_are_served(tmp_path: Path) -> None:
    async with listening(tmp_path) as (router, connect_one):
        slow, quick = await connect_one(), await connect_one()
        slow_peer, quick_peer = await meet(router, slow), await meet(router, quick)
        accepted = 0
        with trio.fail_after(10):
            while router.send_nowait(slow_peer, bytes(60_000)):
                accepted += 1
                await trio.lowlevel.checkpoint()
        assert accepted < 200
        assert router.send_nowait(quick_peer, b"quick")
        assert await receive_one(quick) == (b"", b"quick")


def raw_peer(path: Path) -> socket.socket:
    """Somebody who speaks ZeroMQ by hand."""
    peer = socket.socket(socket.AF_UNIX)
    peer.connect(str(path / "s"))
    peer.sendall(GREETING + READY)
    heard = b""
    while b"READY" not in heard:  # who sends frames before is cut by ZeroMQ
        heard += peer.recv(1_000)
    return peer


def is_closed(peer: socket.socket) -> bool:
    peer.settimeout(2)
    try:
        while peer.recv(65_536):
            pass
    except ConnectionResetError:
        return True
    except TimeoutError:
        return False
    return True


@pytest.mark.parametrize(
    "bytes_",
    [
        b"\2" + (FRAME_BYTES_MAX + 1).to_bytes(8, "big") + bytes(1_000),
        b"\2" + (2**62).to_bytes(8, "big"),
        b"GET / HTTP/1.1\r\n\r\n" * 10,
    ],
    ids=["oversize", "enormous", "not a frame"],
)
async def test_a_stranger_who_sends_too_much_is_cut_by_zeromq(tmp_path: Path, bytes_: bytes) -> None:
    async with listening(tmp_path) as (router, connect_one):
        neighbour = await connect_one()
        peer = await meet(router, neighbour)
        with raw_peer(tmp_path) as stranger:
            stranger.sendall(b"\0\1x")
            name, _ = await receive_one(router)
            with suppress(BrokenPipeError):
                stranger.sendall(bytes_)
            assert await lost(router) == [name]
            assert await trio.to_thread.run_sync(is_closed, stranger)
        assert router.send_nowait(peer, b"unharmed")


async def test_a_multipart_message_is_dropped_and_its_sender_cut(tmp_path: Path) -> None:
    async with listening(tmp_path) as (router, _):
        with raw_peer(tmp_path) as stranger:
            stranger.sendall(b"\0\1x" + b"\1\1a" * 50 + b"\0\1z")
            name, frame = await receive_one(router)
            assert frame == b"x"
            assert await lost(router) == [name]


async def test_a_flood_while_nobody_reads_stays_in_the_kernel(tmp_path: Path) -> None:
    async with listening(tmp_path) as (_, _):
        with raw_peer(tmp_path) as stranger:
            stranger.settimeout(0.2)
            frame = b"\2" + (65_000).to_bytes(8, "big") + bytes(65_000)
            pushed = 0
            with suppress(TimeoutError):
                while pushed < 64_000_000:
                    pushed += await trio.to_thread.run_sync(stranger.send, frame)
            assert pushed < 3_000_000


async def test_the_socket_and_its_directory_are_for_owner_and_group(tmp_path: Path) -> None:
    path = tmp_path / "run" / "s"
    frames = await bind_ipc(str(path))
    assert stat.S_IMODE(path.stat().st_mode) == 0o660
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o750
    await frames.aclose()
    assert not path.exists()


async def test_a_directory_that_is_open_to_all_is_refused_with_what_to_do(tmp_path: Path) -> None:
    os.chmod(tmp_path, 0o755)
    with pytest.raises(ShardsError, match="open to everybody") as caught:
        await bind_ipc(str(tmp_path / "s"))
    assert caught.value.hint.startswith("chmod 0750")


async def test_a_path_that_no_socket_can_have_is_refused_on_both_sides(tmp_path: Path) -> None:
    path = str(tmp_path / ("x" * 108))
    for attempt in (lambda: bind_ipc(path), lambda: connect(path, token_bytes=secrets.token_bytes)):
        with pytest.raises(ShardsError, match="107 bytes") as caught:
            await attempt()
        assert "runtime" in caught.value.hint


def is_there(path: str) -> bool:
    return os.path.exists(path)


async def test_a_stale_socket_file_is_taken_over_and_a_successors_is_left_alone(tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(path)
    first = await bind_ipc(path)
    os.unlink(path)
    second = await bind_ipc(path)
    await first.aclose()
    assert is_there(path)
    await second.aclose()
    assert not is_there(path)


async def test_where_nobody_listens_is_unreachable_at_once(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(tmp_path / "stale"))
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
    for endpoint in (
        str(tmp_path / "none"),
        f"ipc://{tmp_path / 'stale'}",
        f"tcp://127.0.0.1:{port}",
        "tcp://nowhere.invalid:1",
        "tcp://127.0.0.1",
        "tcp://127.0.0.1:0",
        "tcp://[::1",
    ):
        with trio.fail_after(5), pytest.raises(Unreachable):
            await connect(endpoint, token_bytes=secrets.token_bytes)


async def test_a_cancelled_connect_leaves_nothing_behind(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(str(tmp_path / "silent"))
        silent.listen()
        before = len(os.listdir("/proc/self/fd"))
        for _ in range(5):
            with trio.move_on_after(0.02) as scope:
                await connect(str(tmp_path / "silent"), token_bytes=secrets.token_bytes)
            assert scope.cancelled_caught
        await trio.sleep(0.05)
        assert len(os.listdir("/proc/self/fd")) <= before + 2


async def test_without_srcfd_it_refuses_to_serve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sockets._Router, "_duplicate", lambda self, fd: None)
    monkeypatch.setattr(sockets, "SELF_TEST_S", 0.1)
    with pytest.raises(ShardsError, match="which connection") as caught:
        await bind_ipc(str(tmp_path / "s"))
    assert "libzmq" in caught.value.hint


async def test_the_real_environment_opens_all_its_doors(tmp_path: Path) -> None:
    env = system_env(seed=1)
    assert env.random.random() == random.Random(1).random()
    assert abs(env.wall() - time.time()) < 5
    assert len(env.token_bytes(32)) == 32
    assert await env.run_sync(max, 1, 2) == 2
    assert env.threads and env.vfs is None and not env.maybe("anything")
    router = await env.bind(str(tmp_path / "s"))
    dealer = await env.connect(str(tmp_path / "s"))
    await meet(router, dealer)
    await dealer.aclose()
    await router.aclose()
    (listener,) = await env.open_tcp_listeners("127.0.0.1", 0)
    async with listener, await env.open_tcp_stream("127.0.0.1", listener.socket.getsockname()[1]):  # type: ignore[attr-defined]
        pass


async def test_a_connection_of_this_process_crosses_no_socket_and_behaves_like_one_that_does(
    tmp_path: Path,
) -> None:
    path = str(tmp_path / "s")
    async with listening(tmp_path) as (router, dealer):
        near, far = connect_inside(path), await dealer()
        assert near is not None
        for number in range(100):  # bounded, and nobody is starved
            assert near.send_nowait(b"", b"near %d" % number) is (number < FRAMES_MAX)
        assert far.send_nowait(b"", b"far")
        seen: dict[bytes, list[bytes]] = {}
        while sum(map(len, seen.values())) < FRAMES_MAX + 1:
            for peer, frame in await router.receive(3):
                seen.setdefault(peer, []).append(frame)
        (ours,) = [peer for peer, frames in seen.items() if len(frames) > 1]
        assert seen[ours] == [b"near %d" % n for n in range(FRAMES_MAX)]

        assert router.send_nowait(ours, b"back")
        router.cut(ours)
        assert not router.send_nowait(ours, b"gone")
        assert await near.receive() == [(b"", b"back")]
        assert await near.receive() == []
        assert near.lost() == [b""]
        assert not near.send_nowait(b"", b"gone")
        await router.receive()
        assert router.lost() == [ours]

        second = connect_inside(path)
        assert second is not None
        second.send_nowait(b"", b"last words")
        await second.aclose()
        ((peer, frame),) = await router.receive()
        assert frame == b"last words" and router.lost() in ([], [peer])
    assert connect_inside(path) is None
