"""The door for TCP: who gets in, what passes, and that nobody's end is anybody else's."""

import secrets
import socket
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import TypeAlias

import pytest
import trio
import trio.lowlevel
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from noise import KeyPair
from shards import system_env
from shards.acceptor import GREETING, Acceptor, Gate, TcpLimits, ZmtpFault, _Buckets, serve_tcp_acceptor
from shards.env import Frames
from shards.link import Data, Established, Initiator, NeedSend, Responder
from shards.sockets import bind_ipc, connect

SERVER, CLIENT = KeyPair.from_private(b"s" * 32), KeyPair.from_private(b"c" * 32)
READY = b"\4\x1c\5READY\x0bSocket-Type\0\0\0\6DEALER"
Door: TypeAlias = tuple[Acceptor, Frames]


@asynccontextmanager
async def door(path: Path, limits: TcpLimits | None = None) -> AsyncIterator[Door]:
    """A router at path/s behind an acceptor on a free port; nobody reads from the router."""
    router = await bind_ipc(str(path / "s"))
    async with AsyncExitStack() as stack:
        stack.push_async_callback(router.aclose)
        with trio.fail_after(15):
            async with trio.open_nursery() as nursery:
                acceptor = await nursery.start(
                    serve_tcp_acceptor, system_env(), "127.0.0.1", 0, str(path / "s"), limits
                )
                yield acceptor, router
                nursery.cancel_scope.cancel()


async def echo_broker(router: Frames) -> None:
    """As much of a broker as it takes: a link each, and every plaintext sent back."""
    links: dict[bytes, Responder] = {}
    while True:
        for peer, frame in await router.receive():
            if peer not in links:
                links[peer] = Responder(
                    static=SERVER,
                    shard="acme",
                    admit=lambda key: True,
                    psk_for=lambda invite: None,
                    token_bytes=secrets.token_bytes,
                    now=trio.current_time(),
                )
            for event in links[peer].receive_frame(frame, trio.current_time()):
                if isinstance(event, NeedSend):
                    router.send_nowait(peer, event.frame)
                elif isinstance(event, Data):
                    router.send_nowait(peer, links[peer].seal(event.plaintext, trio.current_time()))
        for peer in router.lost():
            links.pop(peer, None)


async def link_over(frames: Frames) -> Initiator:
    link = Initiator(
        static=CLIENT,
        responder_public=SERVER.public,
        shard="acme",
        token_bytes=secrets.token_bytes,
        now=trio.current_time(),
    )
    for event in link.start():
        frames.send_nowait(b"", event.frame)
    while not link.is_established:
        for _, frame in await frames.receive():
            for event in link.receive_frame(frame, trio.current_time()):
                if isinstance(event, NeedSend):
                    frames.send_nowait(b"", event.frame)
                else:
                    assert isinstance(event, Established)
    return link


async def echo(frames: Frames, link: Initiator, plaintext: bytes) -> None:
    assert frames.send_nowait(b"", link.seal(plaintext, trio.current_time()))
    while True:
        for _, frame in await frames.receive():
            assert link.receive_frame(frame, trio.current_time()) == [Data(plaintext)]
            return


async def dial(acceptor: Acceptor) -> Frames:
    return await connect(f"tcp://127.0.0.1:{acceptor.port}", token_bytes=lambda n: b"mine".ljust(n, b"!"))


async def ended(stream: trio.abc.Stream) -> bool:
    """Read to the end; it must come."""
    try:
        while await stream.receive_some(65_536):
            pass
    except trio.BrokenResourceError:
        pass
    return True


async def until(true: Callable[[], bool]) -> None:
    while not true():
        await trio.sleep(0.005)


async def test_a_link_goes_through_under_an_identity_of_the_acceptors_choice(tmp_path: Path) -> None:
    async with door(tmp_path) as (acceptor, router), trio.open_nursery() as nursery:
        frames = await dial(acceptor)
        frames.send_nowait(b"", b"hello")
        ((peer, frame),) = await router.receive()
        assert frame == b"hello" and len(peer) == 16 and b"mine" not in peer
        await frames.aclose()
        assert await router.receive() == [] and router.lost() == [peer]
        nursery.start_soon(echo_broker, router)
        frames = await dial(acceptor)
        link = await link_over(frames)
        assert acceptor.statistics() == {
            "open": 1,
            "half_open": 0,
            "accepted": 2,
            "refused": 0,
            "expired": 0,
            "faults": 0,
            "broken": 0,
        }
        for size in (1, 4_096, 65_519):
            await echo(frames, link, bytes(size))
        await frames.aclose()
        await until(lambda: acceptor.statistics()["open"] == 0)
        nursery.cancel_scope.cancel()


async def test_a_link_that_stands_outlives_the_time_for_handshakes(tmp_path: Path) -> None:
    limits = TcpLimits(handshake_s=0.1)
    async with door(tmp_path, limits) as (acceptor, router), trio.open_nursery() as nursery:
        nursery.start_soon(echo_broker, router)
        frames = await dial(acceptor)
        link = await link_over(frames)
        await trio.sleep(0.2)
        await echo(frames, link, b"still here")
        await frames.aclose()
        nursery.cancel_scope.cancel()


async def test_the_broker_cuts_a_tcp_peer_like_any_other(tmp_path: Path) -> None:
    async with door(tmp_path) as (acceptor, router):
        frames = await dial(acceptor)
        frames.send_nowait(b"", b"hello")
        ((peer, _),) = await router.receive()
        router.cut(peer)
        assert await frames.receive() == [] and frames.lost() == [b""]
        await frames.aclose()


async def test_half_open_connections_are_few_and_short(tmp_path: Path) -> None:
    limits = TcpLimits(handshake_s=0.2, half_open_per_address_max=3, connects_burst=100)
    async with door(tmp_path, limits) as (acceptor, router), AsyncExitStack() as stack:
        for _ in range(5):
            stream = await trio.open_tcp_stream("127.0.0.1", acceptor.port)
            stack.push_async_callback(stream.aclose)
        await until(lambda: acceptor.statistics()["refused"] == 2)
        assert acceptor.statistics()["half_open"] == 3
        await until(lambda: acceptor.statistics()["expired"] == 3)
        assert acceptor.statistics()["half_open"] == acceptor.statistics()["open"] == 0
        async with trio.open_nursery() as nursery:
            nursery.start_soon(echo_broker, router)
            frames = await dial(acceptor)
            await link_over(frames)
            await frames.aclose()
            nursery.cancel_scope.cancel()


async def test_a_flood_of_connects_is_refused_beyond_its_bucket(tmp_path: Path) -> None:
    limits = TcpLimits(connects_burst=5, connects_per_s=0.001)
    async with door(tmp_path, limits) as (acceptor, _):
        for _ in range(12):
            async with await trio.open_tcp_stream("127.0.0.1", acceptor.port):
                pass
        await until(lambda: acceptor.statistics()["refused"] == 7)
        assert acceptor.statistics()["accepted"] == 5


async def test_a_reset_ends_one_connection_and_never_its_neighbours(tmp_path: Path) -> None:
    limits = TcpLimits(connects_burst=1_000, half_open_per_address_max=100)
    async with door(tmp_path, limits) as (acceptor, router), trio.open_nursery() as nursery:
        nursery.start_soon(echo_broker, router)
        frames = await dial(acceptor)
        link = await link_over(frames)
        for said in (b"", GREETING, GREETING + READY, GREETING[:20]):
            for _ in range(5):
                stream = await trio.open_tcp_stream("127.0.0.1", acceptor.port)
                await stream.send_all(said)
                stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                stream.socket.close()  # RST
                await trio.lowlevel.checkpoint()
        await until(lambda: acceptor.statistics()["open"] == 1)
        await echo(frames, link, b"unharmed")
        await frames.aclose()
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    "said",
    [
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"\xff" + bytes(63),
        GREETING[:10] + b"\1" + GREETING[11:],
        GREETING.replace(b"NULL", b"PLAI"),
        GREETING + b"\0\1x",
        GREETING + b"\4\6\5ERROR",
        GREETING + READY.replace(b"DEALER", b"ROUTER"),
        GREETING + READY.replace(b"\0\0\0\6", b"\0\0\0\7"),
        GREETING + READY.replace(b"\x0bSocket", b"\xffSocket"),
        GREETING + READY + b"\1\1x",
        GREETING + READY + b"\2" + (65_601).to_bytes(8, "big"),
        GREETING + READY + b"\2" + (2**63).to_bytes(8, "big"),
        GREETING + READY + b"\0\0",
        GREETING + READY + b"\x10\1x",
        GREETING + READY + b"\4\x0a\x09SUBSCRIBE",
        GREETING + READY + b"\6" + (100).to_bytes(8, "big") + b"\4PING",
    ],
)
async def test_who_says_the_wrong_words_is_closed_and_counted(tmp_path: Path, said: bytes) -> None:
    async with door(tmp_path) as (acceptor, router):
        async with await trio.open_tcp_stream("127.0.0.1", acceptor.port) as stream:
            await stream.send_all(said)
            assert await ended(stream)
        assert acceptor.statistics()["faults"] == 1
        with trio.move_on_after(0.01):
            assert await router.receive() == []  # nothing of it came through


async def test_at_most_4_kib_pass_before_the_handshake_is_done(tmp_path: Path) -> None:
    limits = TcpLimits(handshake_s=0.3)
    async with door(tmp_path, limits) as (acceptor, router):
        async with await trio.open_tcp_stream("127.0.0.1", acceptor.port) as stream:
            await stream.send_all(GREETING + READY)
            frame = b"\0\xfa" + bytes(250)
            with suppress(trio.BrokenResourceError):
                await stream.send_all(frame * 1_000)
            assert await ended(stream)
        passed = 0
        with trio.move_on_after(0.05):
            while True:
                passed += sum(len(frame) + 2 for _, frame in await router.receive())
        assert 3_000 < passed <= 4_096
        assert acceptor.statistics()["expired"] == 1


async def test_where_no_broker_is_the_connection_ends(tmp_path: Path) -> None:
    async with door(tmp_path) as (acceptor, router):
        await router.aclose()
        async with await trio.open_tcp_stream("127.0.0.1", acceptor.port) as stream:
            await stream.send_all(GREETING + READY)
            assert await ended(stream)
        assert acceptor.statistics()["broken"] == 1


def message(body: bytes) -> bytes:
    if len(body) < 256:
        return b"\0" + bytes([len(body)]) + body
    return b"\2" + len(body).to_bytes(8, "big") + body


BODIES = st.lists(
    st.sampled_from([b"\0x", b"\1", b"\2", b"\4" + bytes(300), bytes(1_000), b"\3\1"]), max_size=6
)


@given(bodies=BODIES, cuts=st.lists(st.integers(1, 40), max_size=60), pings=st.booleans())
def test_the_gate_reads_heads_wherever_the_chunks_end(
    bodies: list[bytes], cuts: list[int], pings: bool
) -> None:
    ping = b"\4\x0a\4PING\0\0abc"[:12] if pings else b""
    stream = b"".join(ping + message(body) for body in bodies)
    gate, saw_data = Gate(), False
    for cut in cuts:
        saw_data |= gate.feed(stream[:cut])
        stream = stream[cut:]
    saw_data |= gate.feed(stream)
    assert saw_data == any(body[0] in (2, 4) for body in bodies)
    assert gate.feed(message(b"\2")) is True


@given(st.binary(max_size=300))
def test_any_bytes_pass_the_gate_or_are_a_zmtp_fault(stream: bytes) -> None:
    gate = Gate()
    try:
        gate.feed(stream)
    except ZmtpFault:
        assert stream


def test_a_bucket_refills_with_time_and_addresses_are_forgotten_in_order() -> None:
    buckets = _Buckets(TcpLimits(connects_per_s=2.0, connects_burst=3, addresses_max=2))
    assert [buckets.take("a", 0.0) for _ in range(4)] == [True, True, True, False]
    assert [buckets.take("a", 0.5), buckets.take("a", 0.5)] == [True, False]
    assert [buckets.take("a", 1_000.0) for _ in range(4)] == [True, True, True, False]
    assert buckets.take("b", 1_000.0) and buckets.take("c", 1_000.0)
    assert buckets.take("a", 1_000.0)  # forgotten, so it starts anew
