"""A network in memory: `Frames` and TCP streams with delay, cuts and partitions, all from one seed.

Frames of one link stay in order and none comes twice: beneath is what ZeroMQ gives over a stream.  What it does
not give is kept too: frames in flight when a link dies may be gone, each side learns of the end in its own time,
and nothing is ever said to be delivered.  No task runs here; whoever receives sleeps until the next arrival.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Iterable
from heapq import heappop, heappush

import attrs
import trio

from shards.env import Frames
from shards.errors import ShardsError, Unreachable

FRAMES_IN_FLIGHT_MAX = 72
"""As `shards.sockets`: 64 to be sent and 8 received, per link and direction."""
HEARTBEAT_TIMEOUT_S = 15.0
"""How long a link over a silent partition lives; its death is noticed at the next send, or when it heals."""
STREAM_BYTES_IN_FLIGHT_MAX = 65_536

Trace = Callable[..., None]


@attrs.define
class Faults:
    """What the network does to traffic; change it at any time."""

    delay_s: tuple[float, float] = (0.000_05, 0.002)
    """Each frame takes so long, uniformly."""
    slow: float = 0.02
    """Chance of a frame that takes `slow_s`; those behind it on its link wait too."""
    slow_s: float = 0.2
    cut: float = 0.0
    """Chance, a frame, that its link is cut just then."""


class Network:
    """All hosts and links of one simulated world."""

    def __init__(self, seed: int | str = 0, *, trace: Trace | None = None) -> None:
        self.faults = Faults()
        self.random = random.Random(f"network/{seed}")
        self._trace = trace or (lambda *event: None)
        self._routers: dict[str, _Router] = {}
        self._streams: dict[tuple[str, int], _Listener] = {}
        self._links: dict[int, Link] = {}
        self._stream_pairs: dict[int, tuple[str, str, _Pipe, _Pipe]] = {}
        self._next = 0
        self._partitions: set[frozenset[str]] = set()

    # ---------------------------------------------------------------- what a process does

    async def bind(self, host: str, path: str) -> Frames:
        """Listen; the router side."""
        await trio.lowlevel.checkpoint()
        if path in self._routers:
            raise ShardsError(f"cannot listen at {path}: in use")
        router = self._routers[path] = _Router(self, host, path)
        return router

    async def connect(self, host: str, endpoint: str) -> Frames:
        """Connect; the dealer side.  Raises Unreachable when nobody listens."""
        await trio.sleep(self._delay())
        router = self._routers.get(endpoint)
        if router is not None and self.is_partitioned(host, router.host):
            await trio.sleep(HEARTBEAT_TIMEOUT_S)
            router = None
        if router is None:
            raise Unreachable(f"nobody answers at {endpoint}", hint="is the shard running?")
        self._next += 1
        link = Link(self._next, self, _Dealer(self, host), router)
        self._links[link.number] = link
        self._trace("connect", host, endpoint, link.number)
        return link.dealer

    async def open_tcp_listeners(
        self, host: str, address: str, port: int
    ) -> list[trio.abc.Listener[trio.abc.Stream]]:
        """Listen for streams; port 0 chooses one."""
        await trio.lowlevel.checkpoint()
        if port == 0:
            port = 49_152 + len(self._streams)
        if (address, port) in self._streams:
            raise OSError(98, f"address in use: {address}:{port}")
        listener = self._streams[address, port] = _Listener(self, host, address, port)
        return [listener]

    async def open_tcp_stream(self, host: str, address: str, port: int) -> trio.abc.Stream:
        """Connect a stream.  Raises OSError when nobody listens."""
        await trio.sleep(self._delay())
        listener = self._streams.get((address, port))
        if listener is None or self.is_partitioned(host, listener.host):
            raise OSError(111, f"connection refused: {address}:{port}")
        there, back = _Pipe(self), _Pipe(self)
        self._next += 1
        self._stream_pairs[self._next] = (host, listener.host, there, back)
        listener.offer(SimulatedStream(there, back))
        self._trace("open", host, address, port, self._next)
        return SimulatedStream(back, there)

    # ---------------------------------------------------------------- what a test does

    @property
    def links(self) -> list[Link]:
        """Links that are up, oldest first."""
        return list(self._links.values())

    def cut(self, link: Link) -> None:
        """End one link, as a reset would: some of what is in flight arrives, the rest is gone."""
        link.end("cut")

    def cut_streams(self, host: str) -> None:
        """Reset all streams of a host."""
        for number, (one, other, *pipes) in list(self._stream_pairs.items()):
            if host in (one, other):
                del self._stream_pairs[number]
                for pipe in pipes:
                    pipe.break_()

    def partition(self, one: str, other: str) -> None:
        """Let nothing pass between two hosts, in silence.  Links die when their heartbeat misses it."""
        self._partitions.add(frozenset((one, other)))
        self._trace("partition", one, other)
        for link in self.links:
            if {link.dealer.host, link.router.host} == {one, other}:
                link.silent_since = trio.current_time()

    def heal(self, one: str, other: str) -> None:
        """Let it pass again; what was in flight arrives now, if its link still lives."""
        self._partitions.discard(frozenset((one, other)))
        self._trace("heal", one, other)
        for link in self.links:
            if {link.dealer.host, link.router.host} == {one, other}:
                link.resume()

    def is_partitioned(self, one: str, other: str) -> bool:
        return frozenset((one, other)) in self._partitions

    def drop_host(self, host: str) -> None:
        """A process is gone: nothing of it listens, its links and streams end, and it sends nothing more."""
        for path, router in list(self._routers.items()):
            if router.host == host:
                del self._routers[path]
                router.closed = True
        for where, listener in list(self._streams.items()):
            if listener.host == host:
                del self._streams[where]
        for link in self.links:
            if host in (link.dealer.host, link.router.host):
                link.end("host gone")
        self.cut_streams(host)

    # ---------------------------------------------------------------- inside

    def _delay(self) -> float:
        if self.faults.slow and self.random.random() < self.faults.slow:
            return self.faults.slow_s * self.random.random()
        return self.random.uniform(*self.faults.delay_s)

    def _forget(self, link: Link) -> None:
        self._links.pop(link.number, None)


@attrs.define(slots=True, eq=False)
class _Way:
    """One direction of a link."""

    link: Link
    peer: bytes
    """What the receiver calls the sender."""
    to: _Inbox
    last_at: float = 0.0
    in_flight: int = 0
    held: list[bytes] = attrs.Factory(list)
    """Frames that wait for a partition to heal."""


class Link:
    """One connection between a dealer and a router."""

    def __init__(self, number: int, network: Network, dealer: _Dealer, router: _Router) -> None:
        self.number, self.network, self.dealer, self.router = number, network, dealer, router
        self.routing_id = b"\x01" + number.to_bytes(15, "big")
        self.is_up = True
        self.silent_since: float | None = None
        self.to_router = _Way(self, self.routing_id, router.inbox)
        self.to_dealer = _Way(self, b"", dealer.inbox)
        dealer.link = self
        router.links[self.routing_id] = self

    def send(self, way: _Way, frame: bytes) -> bool:
        if not self.is_up or way.in_flight >= FRAMES_IN_FLIGHT_MAX:
            return False
        network = self.network
        if self.silent_since is not None:
            if trio.current_time() - self.silent_since > HEARTBEAT_TIMEOUT_S:
                self.end("heartbeat")
                return False
            way.in_flight += 1
            way.held.append(frame)
            return True
        if network.faults.cut and network.random.random() < network.faults.cut:
            self.end("cut by chance")
            return False
        way.in_flight += 1
        way.last_at = max(way.last_at, trio.current_time() + network._delay())
        way.to.put(way.last_at, way, frame)
        return True

    def resume(self) -> None:
        since, self.silent_since = self.silent_since, None
        if since is not None and trio.current_time() - since > HEARTBEAT_TIMEOUT_S:
            self.end("heartbeat")
            return
        for way in (self.to_router, self.to_dealer):
            held, way.held = way.held, []
            for frame in held:
                way.last_at = max(way.last_at, trio.current_time() + self.network._delay())
                way.to.put(way.last_at, way, frame)

    def end(self, why: str, *, unheard: _Way | None = None) -> None:
        """Each side gets some of what is in flight, in order, and then the news.

        `unheard` is the direction whose receiver wants no more of it: it cut the link itself.
        """
        if not self.is_up:
            return
        self.is_up = False
        network = self.network
        network._forget(self)
        network._trace("link ends", self.number, why)
        for way in (self.to_router, self.to_dealer):
            keep = 0.0 if way is unheard else network.random.random()
            way.to.end(way, trio.current_time() + network._delay(), keep=keep)


class _Inbox:
    """Arrivals of one socket, of all its links."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, _Way, bytes | None]] = []
        self._number = 0
        self._news = trio.Event()
        self.lost: list[bytes] = []

    def put(self, at: float, way: _Way, frame: bytes | None) -> None:
        self._number += 1
        heappush(self._heap, (at, self._number, way, frame))
        self._news.set()

    def end(self, way: _Way, at: float, *, keep: float) -> None:
        """Drop the later part of a link's frames; None is the news of its end."""
        arriving = sorted(item for item in self._heap if item[2] is way)
        kept = arriving[: int(len(arriving) * keep)]
        dropped = {item[1] for item in arriving[len(kept) :]}
        self._heap = [item for item in self._heap if item[1] not in dropped]
        self._heap.sort()
        self.put(max(at, kept[-1][0] if kept else at), way, None)

    def wake(self) -> None:
        self._news.set()

    async def wait(self, limit: int) -> list[tuple[bytes, bytes]]:
        """Frames that have arrived; empty when there is only news of losses."""
        taken: list[tuple[bytes, bytes]] = []
        while True:
            now = trio.current_time()
            news = False
            while self._heap and self._heap[0][0] <= now and len(taken) < limit:
                _, _, way, frame = heappop(self._heap)
                if frame is None:
                    self.lost.append(way.peer)
                    news = True
                else:
                    way.in_flight -= 1
                    taken.append((way.peer, frame))
            if taken or news:
                return taken
            self._news = trio.Event()
            with trio.move_on_at(self._heap[0][0] if self._heap else float("inf")):
                await self._news.wait()
            if self._closed:
                raise trio.ClosedResourceError("the socket was closed")

    _closed = False

    def close(self) -> None:
        self._closed = True
        self._news.set()


class _MemoryFrames:
    """What both sides share."""

    def __init__(self, network: Network, host: str) -> None:
        self.network, self.host = network, host
        self.inbox = _Inbox()
        self.closed = False
        self._receiving = False

    async def receive(self, limit: int = 64) -> list[tuple[bytes, bytes]]:
        await trio.lowlevel.checkpoint()
        if self._receiving:
            raise trio.BusyResourceError("another task is receiving from this socket")
        if self.closed:
            raise trio.ClosedResourceError("the socket was closed")
        self._receiving = True
        try:
            return await self.inbox.wait(limit)
        finally:
            self._receiving = False

    def lost(self) -> list[bytes]:
        lost, self.inbox.lost = self.inbox.lost, []
        return lost

    def _end(self, links: Iterable[Link]) -> None:
        self.closed = True
        for link in list(links):
            link.end("closed")
        self.inbox.close()


class _Router(_MemoryFrames):
    def __init__(self, network: Network, host: str, path: str) -> None:
        super().__init__(network, host)
        self.path = path
        self.links: dict[bytes, Link] = {}

    def send_nowait(self, peer: bytes, frame: bytes) -> bool:
        link = self.links.get(peer)
        return link is not None and not self.closed and link.send(link.to_dealer, bytes(frame))

    def cut(self, peer: bytes) -> None:
        link = self.links.get(peer)
        if link is not None:
            link.end("cut by the router", unheard=link.to_router)

    async def aclose(self) -> None:
        if self.network._routers.get(self.path) is self:
            del self.network._routers[self.path]
        self._end(self.links.values())
        await trio.lowlevel.checkpoint()


class _Dealer(_MemoryFrames):
    link: Link

    def send_nowait(self, peer: bytes, frame: bytes) -> bool:
        return not self.closed and self.link.send(self.link.to_router, bytes(frame))

    def cut(self, peer: bytes) -> None:
        self.link.end("cut by the dealer", unheard=self.link.to_dealer)

    async def aclose(self) -> None:
        self._end([self.link])
        await trio.lowlevel.checkpoint()


# -------------------------------------------------------------------- streams


class _Pipe:
    """One direction of a stream: bytes that arrive later."""

    def __init__(self, network: Network) -> None:
        self._network = network
        self._chunks: deque[tuple[float, bytes]] = deque()
        self._octets = 0
        self._last_at = 0.0
        self._changed = trio.Event()
        self._ended = False
        self._broken = False

    async def send(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            while self._octets >= STREAM_BYTES_IN_FLIGHT_MAX and not self._broken:
                await self._changed.wait()
            if self._broken:
                raise trio.BrokenResourceError("connection reset")
            part = bytes(view[: STREAM_BYTES_IN_FLIGHT_MAX - self._octets])
            view = view[len(part) :]
            self._octets += len(part)
            self._last_at = max(self._last_at, trio.current_time() + self._network._delay())
            self._chunks.append((self._last_at, part))
            self._notify()

    async def receive(self, limit: int) -> bytes:
        while True:
            now = trio.current_time()
            if self._chunks and self._chunks[0][0] <= now:
                at, chunk = self._chunks.popleft()
                if len(chunk) > limit:
                    self._chunks.appendleft((at, chunk[limit:]))
                    chunk = chunk[:limit]
                self._octets -= len(chunk)
                self._notify()
                return chunk
            if self._broken:
                raise trio.BrokenResourceError("connection reset")
            if self._ended and not self._chunks:
                return b""
            with trio.move_on_at(self._chunks[0][0] if self._chunks else float("inf")):
                await self._changed.wait()

    def end(self) -> None:
        self._ended = True
        self._notify()

    def break_(self) -> None:
        self._broken = True
        self._chunks.clear()
        self._octets = 0
        self._notify()

    def _notify(self) -> None:
        changed, self._changed = self._changed, trio.Event()
        changed.set()


class SimulatedStream(trio.abc.HalfCloseableStream):
    """One end of a TCP connection."""

    def __init__(self, reads: _Pipe, writes: _Pipe) -> None:
        self._reads, self._writes = reads, writes
        self._closed = False
        self._sending = self._receiving = False

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await trio.lowlevel.checkpoint()
        self._check_open()
        if self._sending:
            raise trio.BusyResourceError("another task is sending on this stream")
        self._sending = True
        try:
            await self._writes.send(bytes(data))
        finally:
            self._sending = False
        self._check_open()

    async def wait_send_all_might_not_block(self) -> None:
        await trio.lowlevel.checkpoint()
        self._check_open()

    async def send_eof(self) -> None:
        await trio.lowlevel.checkpoint()
        self._check_open()
        self._writes.end()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        await trio.lowlevel.checkpoint()
        self._check_open()
        if self._receiving:
            raise trio.BusyResourceError("another task is receiving from this stream")
        self._receiving = True
        try:
            data = await self._reads.receive(max_bytes or STREAM_BYTES_IN_FLIGHT_MAX)
        finally:
            self._receiving = False
        self._check_open()
        return data

    async def aclose(self) -> None:
        if not self._closed:
            self._closed = True
            self._writes.end()
            self._reads.break_()
        await trio.lowlevel.checkpoint()

    def _check_open(self) -> None:
        if self._closed:
            raise trio.ClosedResourceError("the stream was closed")


class _Listener(trio.abc.Listener[trio.abc.Stream]):
    def __init__(self, network: Network, host: str, address: str, port: int) -> None:
        self.host = host
        self.socket = _ListenerName(address, port)
        """Has `getsockname()`, as a real one."""
        self._network = network
        self._send, self._receive = trio.open_memory_channel[trio.abc.Stream](float("inf"))

    def offer(self, stream: trio.abc.Stream) -> None:
        self._send.send_nowait(stream)

    async def accept(self) -> trio.abc.Stream:
        return await self._receive.receive()

    async def aclose(self) -> None:
        self._network._streams.pop(self.socket.getsockname(), None)
        await self._receive.aclose()


@attrs.frozen
class _ListenerName:
    address: str
    port: int

    def getsockname(self) -> tuple[str, int]:
        return (self.address, self.port)
