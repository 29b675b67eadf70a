"""Trio over ZeroMQ: one frame in, one frame out, and one peer cut alone.  The only room that imports zmq.

`bind_ipc` gives the router's side and `connect` the dealer's; both are `Frames` (`shards.env`).  ZeroMQ
carries frames here and is trusted with nothing else: who speaks is Noise's to say (`shards.link`), what must
not be lost is the log's.

**The edge-trigger rule, once.**  A ZeroMQ socket's FD says that *commands* wait in its mailbox, not that
messages do, and every send, receive and look at EVENTS takes them out.  So: try first; before sleeping look
at EVENTS (which arms the FD anew); and after every send look again if somebody sleeps, for the send may have
eaten the very command that was to wake it.

**Losses.**  The socket's monitor tells of each connection that ended, by file descriptor.  Which peer that
was is known from SRCFD of the peer's first frame; the descriptor is duplicated then, so that `cut` can never
hit another connection that got the same number.  SRCFD is marked deprecated in libzmq: `bind_ipc` tries it
out before it returns and refuses to serve without it.

Both sides stand in this one file, longer than most, since nothing of ZeroMQ may be seen outside of it.
"""

from __future__ import annotations

import abc
import contextlib
import errno
import functools
import itertools
import os
import select
import socket as stdlib_socket
import stat
from collections import deque
from collections.abc import Callable
from pathlib import Path

import attrs
import trio
import zmq
from zmq.utils.monitor import parse_monitor_message

from shards.acceptor import Acceptor, TcpLimits, serve_tcp_acceptor
from shards.env import Frames
from shards.errors import ShardsError, Unreachable
from shards.inside import FRAME_BYTES_MAX, FRAMES_MAX, InsideFrames, check_size, listen_inside, stop_inside

__all__ = ["Acceptor", "TcpLimits", "bind_ipc", "connect", "serve_tcp_acceptor"]

# -- specification constants ------------------------------------------------------------------------------
IPC_PATH_BYTES_MAX = 107
"""sockaddr_un holds 108, the last one 0."""
ROUTING_ID_BYTES = 16
IPC, TCP = "ipc://", "tcp://"

# -- ours -------------------------------------------------------------------------------------------------
RECEIVE_HWM = 8
"""What a peer can make us hold is this many frames; throughput is the same at 1,000."""
SEND_HWM = 64
HANDSHAKE_MS = 5_000
MONITOR_HWM = 100_000
"""A full monitor would stop ZeroMQ's own thread."""
DIRECTORY_MODE = 0o750
SOCKET_MODE = 0o660
SELF_TEST_S = 5.0

_ENDED = (
    zmq.EVENT_DISCONNECTED
    | zmq.EVENT_CLOSED
    | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
    | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
    | zmq.EVENT_HANDSHAKE_FAILED_AUTH
)
_monitor_numbers = itertools.count()


async def bind_ipc(path: str) -> Frames:
    """Listen at `path`: the socket is 0660, its directory 0750 (made when absent).

    Raises:
        ShardsError: The path is too long, its directory is open to others, nothing can be bound there, or
            this libzmq cannot tell which connection a frame came by.
    """
    location = _prepare(path)
    frames = _Router(_new_socket(zmq.ROUTER), location)
    try:
        with trio.fail_after(SELF_TEST_S):
            await frames.test_cut()
    except trio.TooSlowError as exc:
        frames.close()
        raise ShardsError(
            "this libzmq does not tell which connection a frame came by",
            hint=f"install pyzmq with libzmq 4.3 (this is {zmq.zmq_version()})",
        ) from exc
    except BaseException:
        frames.close()
        raise
    return frames


async def connect(endpoint: str, *, token_bytes: Callable[[int], bytes]) -> Frames:
    """Connect to an ipc path or `tcp://HOST:PORT`; returns when the other side speaks ZeroMQ.

    Each call makes a new connection under a fresh routing id, and none connects again by itself: a new
    connection is always a new link.  Waits as long as the caller lets it.

    Raises:
        Unreachable: Nobody listens there, we may not go there, or whoever is there speaks no ZeroMQ.
        ShardsError: The path is too long for a socket.
    """
    addresses = await _tcp_addresses(endpoint) if endpoint.startswith(TCP) else [_ipc_address(endpoint)]
    for number, address in enumerate(addresses, start=1):
        frames = _Dealer(token_bytes, endpoint, address)
        try:
            await frames.wait_connected()
            return frames
        except Unreachable:
            frames.close()
            if number == len(addresses):
                raise
        except BaseException:
            frames.close()
            raise
    raise AssertionError("a name has at least one address")


class _ZmqFrames(abc.ABC):
    """What both sides share: sleeping and waking, the monitor, the end."""

    def __init__(self, socket: zmq.Socket[bytes], events: int) -> None:
        self._socket = socket
        address = f"inproc://monitor-{next(_monitor_numbers)}"
        socket.monitor(address, events)
        self._monitor: zmq.Socket[bytes] = _context().socket(zmq.PAIR)
        self._monitor.setsockopt(zmq.RCVHWM, MONITOR_HWM)
        self._monitor.setsockopt(zmq.LINGER, 0)
        self._monitor.connect(address)
        # One descriptor to sleep on for both sockets: no helper task, no second wait.
        self._epoll = select.epoll()
        for member in (socket, self._monitor):
            self._epoll.register(_option(member, zmq.FD), select.EPOLLIN)
        self._sleeper: trio.CancelScope | None = None
        self._receiving = False
        self._has_news = False
        self._closed = False

    async def receive(self, limit: int = 64) -> list[tuple[bytes, bytes]]:
        """As `Frames.receive`; empty when there is no frame but `lost()` has something new to tell."""
        await trio.lowlevel.checkpoint_if_cancelled()
        if self._receiving:
            raise trio.BusyResourceError("another task is receiving from this socket")
        self._receiving = True
        slept = False
        try:
            while True:
                self._check_open()
                taken = self._take(limit)
                if taken or self._has_news:
                    self._has_news = False
                    break
                slept |= await self._sleep()
        finally:
            self._receiving = False
        # Nothing may be cancelled between taking a frame and returning it.
        if not slept:
            await trio.lowlevel.cancel_shielded_checkpoint()
        return taken

    async def aclose(self) -> None:
        """Drop what is unsent, end all connections, let a task in `receive` raise ClosedResourceError."""
        self.close()
        await trio.lowlevel.checkpoint()

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        trio.lowlevel.notify_closing(self._epoll)
        self._epoll.close()
        if not self._socket.closed:
            self._socket.disable_monitor()
            self._socket.close(0)
        self._monitor.close(0)

    # -- for the two sides --------------------------------------------------------------------------------

    @abc.abstractmethod
    def _take(self, limit: int) -> list[tuple[bytes, bytes]]:
        """Frames that are there, at most `limit`; sets `_has_news` when a loss is to be told."""

    def _send(self, parts: list[bytes]) -> bool:
        self._check_open()
        check_size(parts[-1])
        try:
            self._socket.send_multipart(parts, zmq.DONTWAIT)
            is_sent = True
        except zmq.Again:
            is_sent = False
        except zmq.ZMQError as exc:
            if exc.errno != errno.EHOSTUNREACH:
                raise ShardsError(f"ZeroMQ cannot send: {exc}") from exc
            is_sent = False
        if self._sleeper is not None and _option(self._socket, zmq.EVENTS) & zmq.POLLIN:
            self._wake()
        return is_sent

    def _has_more(self) -> bool:
        """Is there something that no socket tells of?"""
        return False

    def _wake(self) -> None:
        if self._sleeper is not None:
            self._sleeper.cancel()

    async def _sleep(self) -> bool:
        """Sleep until there may be something; False if there is something already."""
        if self._has_more():
            return False
        for member in (self._socket, self._monitor):
            if not member.closed and _option(member, zmq.EVENTS) & zmq.POLLIN:
                return False
        try:
            with trio.CancelScope() as self._sleeper:
                await trio.lowlevel.wait_readable(self._epoll)
        finally:
            self._sleeper = None
        return True

    def _monitor_events(self) -> list[tuple[int, int]]:
        """(event, value) of what happened to connections since the last call."""
        happened: list[tuple[int, int]] = []
        while True:
            try:
                parts = self._monitor.recv_multipart(zmq.DONTWAIT)
            except zmq.Again:
                return happened
            message = parse_monitor_message(parts)
            happened.append((int(message["event"]), int(message["value"])))

    def _check_open(self) -> None:
        if self._closed:
            raise trio.ClosedResourceError("the socket was closed")


@attrs.define(slots=True)
class _Peer:
    fd: int
    handle: stdlib_socket.socket
    """A duplicate of the connection's descriptor."""
    is_cut: bool = False


class _Router(_ZmqFrames):
    """The listening side."""

    def __init__(self, socket: zmq.Socket[bytes], path: str) -> None:
        super().__init__(socket, zmq.EVENT_ACCEPTED | zmq.EVENT_DISCONNECTED)
        self._path = path
        self._peers: dict[bytes, _Peer] = {}
        self._peer_of: dict[int, bytes] = {}
        self._accepted: set[int] = set()
        self._orphans: set[int] = set()
        """Numbers of connections that ended before a frame of theirs was seen, since the queue was last empty."""
        self._ending: dict[bytes, bool] = {}
        """Peers that have ended but may have frames in the queue -> are these to be delivered?"""
        self._lost: list[bytes] = []
        self._early: list[tuple[bytes, bytes]] = []
        self._inside: dict[bytes, InsideFrames] = {}
        """Connections of this process, which cross no socket (`shards.inside`)."""
        self._waiting: dict[bytes, int] = {}
        """Frames of each in `_arrived`."""
        self._arrived: deque[tuple[bytes, bytes]] = deque()
        self._parted: list[bytes] = []
        self._inside_numbers = itertools.count(1)
        try:
            socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
            socket.bind(f"{IPC}{path}")
            os.chmod(path, SOCKET_MODE)
            self._inode = os.stat(path).st_ino
            listen_inside(path, self._accept)
        except (zmq.ZMQError, OSError) as exc:
            super().close()
            raise ShardsError(f"cannot listen at {path}: {exc}", hint="is the directory ours?") from exc

    def send_nowait(self, peer: bytes, frame: bytes) -> bool:
        inside = self._inside.get(peer)
        if inside is None:
            return self._send([peer, frame])
        self._check_open()
        check_size(frame)
        return inside.deliver(frame)

    # -- connections of this process ------------------------------------------------------------------------

    def _accept(self) -> InsideFrames:
        # ZeroMQ's peers choose ids that begin with 1, and its own begin with 0.
        peer = b"\x02inside" + next(self._inside_numbers).to_bytes(9, "big")
        self._inside[peer] = frames = InsideFrames(self, peer)
        self._waiting[peer] = 0
        return frames

    def arrive(self, peer: bytes, frame: bytes) -> bool:
        """As `inside.Listener.arrive`."""
        if self._waiting.get(peer, FRAMES_MAX) >= FRAMES_MAX:
            return False
        self._waiting[peer] += 1
        self._arrived.append((peer, frame))
        self._wake()
        return True

    def part(self, peer: bytes) -> None:
        """As `inside.Listener.part`: what it sent before is still delivered, then it is lost."""
        if self._inside.pop(peer, None) is not None:
            self._parted.append(peer)
            self._wake()

    def _take_inside(self, limit: int) -> list[tuple[bytes, bytes]]:
        taken: list[tuple[bytes, bytes]] = []
        while self._arrived and len(taken) < limit:
            peer, frame = self._arrived.popleft()
            if peer in self._waiting:
                self._waiting[peer] -= 1
                taken.append((peer, frame))
        if self._parted and not self._arrived:
            for peer in self._parted:
                del self._waiting[peer]
            self._lost += self._parted
            self._parted = []
            self._has_news = True
        return taken

    # -- peers ----------------------------------------------------------------------------------------------

    def cut(self, peer: bytes) -> None:
        inside = self._inside.get(peer)
        if inside is not None:
            self._waiting[peer] = 0
            self._arrived = deque(entry for entry in self._arrived if entry[0] != peer)
            inside.end()
            self.part(peer)
            return
        entry = self._peers.get(peer)
        if peer in self._ending:
            self._ending[peer] = False
        if entry is not None:
            entry.is_cut = True  # what it sent before is not delivered any more
            with contextlib.suppress(OSError):
                entry.handle.shutdown(stdlib_socket.SHUT_RDWR)

    def lost(self) -> list[bytes]:
        lost, self._lost = self._lost, []
        return lost

    def _has_more(self) -> bool:
        return bool(self._arrived or self._parted)

    def close(self) -> None:
        if not self._closed:
            super().close()
            stop_inside(self._path, self._accept)
            for inside in self._inside.values():
                inside.end()
            self._inside.clear()
            for entry in self._peers.values():
                entry.handle.close()
            self._peers.clear()
            with contextlib.suppress(OSError):  # libzmq leaves the file; a successor's is not ours to remove
                if os.stat(self._path).st_ino == self._inode:
                    os.unlink(self._path)

    async def test_cut(self) -> None:
        """Be our own first peer, and be cut.  Frames of others meanwhile are kept for `receive`."""
        probe = await connect(self._path, token_bytes=lambda n: b"self-test".ljust(n, b"\0"))
        name = b"\x01" + b"self-test".ljust(ROUTING_ID_BYTES - 1, b"\0")
        try:
            probe.send_nowait(b"", b"\x03\x06")
            while name not in self._peers:
                self._early += await self.receive()
            self.cut(name)
            while not probe.lost():
                await probe.receive()
            while name not in self._lost:
                self._early += await self.receive()
            self._lost.remove(name)
            self._early = [(peer, frame) for peer, frame in self._early if peer != name]
        finally:
            await probe.aclose()

    def _take(self, limit: int) -> list[tuple[bytes, bytes]]:
        taken, self._early = self._early[:limit], self._early[limit:]
        if self._arrived or self._parted:
            taken += self._take_inside((limit + 1) // 2)  # neither kind of peer may starve the other
        self._follow_connections()
        receive = self._socket.recv
        while len(taken) < limit:
            try:
                peer = receive(zmq.DONTWAIT)
            except zmq.Again:
                # A peer's last frames come before the news of its end.
                self._orphans.clear()
                if self._ending:
                    self._lost += self._ending
                    self._ending = {}
                    self._has_news = True
                break
            if peer in self._peers or peer in self._ending:
                frame = receive(zmq.DONTWAIT)
            else:
                frame = self._receive_first(peer)
            if _option(self._socket, zmq.RCVMORE):
                while _option(self._socket, zmq.RCVMORE):
                    receive(zmq.DONTWAIT)
                self.cut(peer)  # one frame is one message here; ZeroMQ sets no bound on parts
            entry = self._peers.get(peer)
            if not entry.is_cut if entry is not None else self._ending[peer]:
                taken.append((peer, frame))
        return taken

    def _receive_first(self, peer: bytes) -> bytes:
        """Take the frame of a peer that we do not know yet, and find out by which connection it came."""
        message = self._socket.recv(zmq.DONTWAIT, copy=False)
        frame = message.bytes
        try:
            fd = int(message.get(zmq.SRCFD))
        except (zmq.ZMQError, ValueError):
            fd = -1
        del message  # a message that is kept would keep the connection's buffer, and so the connection
        self._follow_connections()
        if fd not in self._accepted or fd in self._peer_of:
            # It has ended; in the second case its number is another's by now, whose end we would know of.
            self._ending[peer] = True
            return frame
        handle = self._duplicate(fd)
        if handle is not None and fd in self._orphans:
            # Of two connections that had this number one lives, and nothing tells which: it must come again.
            with contextlib.suppress(OSError):
                handle.shutdown(stdlib_socket.SHUT_RDWR)
            handle.close()
            handle = None
        if handle is None:
            self._ending[peer] = False
        else:
            self._peers[peer] = _Peer(fd, handle)
            self._peer_of[fd] = peer
        return frame

    def _duplicate(self, fd: int) -> stdlib_socket.socket | None:
        """The connection behind `fd`, if that number still is one that was accepted at our path."""
        try:
            copy = os.dup(fd)
        except OSError:
            return None
        try:
            handle = stdlib_socket.socket(fileno=copy)
        except OSError:
            os.close(copy)
            return None
        with contextlib.suppress(OSError):
            if handle.family == stdlib_socket.AF_UNIX and handle.getsockname() == self._path:
                return handle
        handle.close()
        return None

    def _follow_connections(self) -> None:
        for event, fd in self._monitor_events():
            if event == zmq.EVENT_ACCEPTED:
                self._accepted.add(fd)
            elif event == zmq.EVENT_DISCONNECTED:
                self._accepted.discard(fd)
                if fd in self._peer_of:
                    self._end(self._peer_of[fd])
                else:
                    self._orphans.add(fd)

    def _end(self, peer: bytes) -> None:
        entry = self._peers.pop(peer)
        del self._peer_of[entry.fd]
        entry.handle.close()
        self._ending[peer] = not entry.is_cut


class _Dealer(_ZmqFrames):
    """The connecting side: one connection, and when it has ended no other."""

    def __init__(self, token_bytes: Callable[[int], bytes], endpoint: str, address: str) -> None:
        socket = _new_socket(zmq.DEALER)
        # Ids that begin with 0 are ZeroMQ's own.
        socket.setsockopt(zmq.ROUTING_ID, b"\x01" + token_bytes(ROUTING_ID_BYTES - 1))
        socket.setsockopt(zmq.RECONNECT_IVL, -1)
        socket.setsockopt(zmq.IMMEDIATE, 1)
        super().__init__(socket, zmq.EVENT_HANDSHAKE_SUCCEEDED | _ENDED)
        self._endpoint = endpoint
        self._connected = False
        self._ended = False
        self._told = False
        try:
            socket.connect(address)
        except zmq.ZMQError as exc:
            super().close()
            raise Unreachable(f"cannot connect to {endpoint}: {exc}", hint="look at the address") from exc

    async def wait_connected(self) -> None:
        """Until both sides have spoken ZeroMQ; raises Unreachable."""
        while not self._connected:
            self._follow_connection()
            if self._ended:
                raise Unreachable(f"nobody answers at {self._endpoint}", hint="is the shard running?")
            if not self._connected and not await self._sleep():
                await trio.lowlevel.checkpoint()

    def send_nowait(self, peer: bytes, frame: bytes) -> bool:
        return not self._ended and self._send([frame])

    def cut(self, peer: bytes) -> None:
        if not self._ended:
            # Not `disconnect`: that waits for somebody to use the socket again.
            self._ended = self._has_news = True
            self._socket.disable_monitor()
            self._socket.close(0)
            self._wake()

    def lost(self) -> list[bytes]:
        if self._ended and not self._told:
            self._told = True
            return [b""]
        return []

    def _take(self, limit: int) -> list[tuple[bytes, bytes]]:
        self._follow_connection()
        taken: list[tuple[bytes, bytes]] = []
        while len(taken) < limit and not self._socket.closed:
            try:
                parts = self._socket.recv_multipart(zmq.DONTWAIT)
            except zmq.Again:
                break
            if len(parts) != 1:
                self.cut(b"")
                break
            taken.append((b"", parts[0]))
        return taken

    def _follow_connection(self) -> None:
        for event, _ in self._monitor_events():
            if event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
                self._connected = True
            elif event & _ENDED and not self._ended:
                self._ended = True
                self._has_news = True


@functools.cache
def _context() -> zmq.Context[zmq.Socket[bytes]]:
    """One for the process: its one thread moves the bytes of all sockets."""
    return zmq.Context()


def _new_socket(kind: int) -> zmq.Socket[bytes]:
    """A socket with everything set that must be set before it is bound or connected."""
    socket: zmq.Socket[bytes] = _context().socket(kind)
    for option, value in (
        (zmq.LINGER, 0),
        (zmq.MAXMSGSIZE, FRAME_BYTES_MAX),
        (zmq.RCVHWM, RECEIVE_HWM),
        (zmq.SNDHWM, SEND_HWM),
        (zmq.HANDSHAKE_IVL, HANDSHAKE_MS),
        # No ZMTP heartbeats: libzmq 4.3.5 aborts the process (stream_engine_base.cpp:310) when their timer
        # fires on a connection that has ended while our inbound pipe was full.  Links ping each other.
        (zmq.IPV6, 1),
    ):
        socket.setsockopt(option, value)
    return socket


def _option(socket: zmq.Socket[bytes], option: int) -> int:
    value = socket.getsockopt(option)
    assert isinstance(value, int)
    return value


def _check_length(path: str) -> str:
    if len(os.fsencode(path)) > IPC_PATH_BYTES_MAX:
        raise ShardsError(
            f"the socket path has more than {IPC_PATH_BYTES_MAX} bytes: {path}",
            hint="set a shorter `runtime` directory in the configuration",
        )
    return path


def _prepare(path: str) -> str:
    """Check the path and its directory; returns the absolute path."""
    location = Path(path).absolute()
    _check_length(str(location))
    try:
        if not location.parent.exists():
            location.parent.mkdir(mode=DIRECTORY_MODE, parents=True)
            location.parent.chmod(DIRECTORY_MODE)
        mode = stat.S_IMODE(location.parent.stat().st_mode)
    except OSError as exc:
        raise ShardsError(f"cannot use {location.parent}: {exc}", hint="is the directory ours?") from exc
    if mode & 0o007:
        raise ShardsError(
            f"the directory of the socket is open to everybody: {location.parent}",
            hint=f"chmod {DIRECTORY_MODE:04o} {location.parent}",
        )
    return str(location)


async def _tcp_addresses(endpoint: str) -> list[str]:
    """Resolve the name here: libzmq would wait for ever where there is no such name."""
    host, _, port = endpoint.removeprefix(TCP).rpartition(":")
    if not host or not port.isascii() or not port.isdigit() or not 0 < int(port) < 65_536:
        raise Unreachable(f"no address: {endpoint}", hint="write tcp://HOST:PORT")
    try:
        found = await trio.socket.getaddrinfo(
            host.strip("[]"), int(port), type=stdlib_socket.SOCK_STREAM, family=stdlib_socket.AF_UNSPEC
        )
    except OSError as exc:
        raise Unreachable(f"no such host: {endpoint}: {exc}", hint="look at the address") from exc
    return [
        f"{TCP}[{where[0]}]:{port}" if family == stdlib_socket.AF_INET6 else f"{TCP}{where[0]}:{port}"
        for family, _, _, _, where in found
    ]


def _ipc_address(endpoint: str) -> str:
    """ZeroMQ's address for a path; Unreachable where a look at the file system tells already."""
    path = _check_length(str(Path(endpoint.removeprefix(IPC)).absolute()))
    try:
        os.stat(path)
    except FileNotFoundError as exc:
        raise Unreachable(f"there is no socket at {path}", hint="is the shard running?") from exc
    except OSError as exc:
        raise Unreachable(f"the socket {path} cannot be reached: {exc}") from exc
    if not os.access(path, os.W_OK):
        raise Unreachable(f"the socket {path} is not for this user", hint="join the group of the socket")
    return f"{IPC}{path}"
