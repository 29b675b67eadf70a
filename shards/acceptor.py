"""The door for TCP: checks, counts and limits strangers before a byte of theirs reaches ZeroMQ.

libzmq's parser has no authentication in front of it (Noise is inside the frames), so no ZeroMQ socket is
bound to a network.  This acceptor speaks the first words of ZMTP 3.1 itself, makes the connection to the
broker's ipc socket only for who has said them well, under an identity of its own choosing, and from then on
splices, looking at the frame heads that pass: no multipart messages, no oversized frames, no commands but
heartbeats.  Until the broker has let the link stand (its first data frame goes by) a connection has five
seconds and 4 KiB.

The first words on each connection (rfc.zeromq.org/spec/23 and 37):

    client    greeting 64 bytes · READY{Socket-Type: DEALER, ...}
    acceptor  greeting 64 bytes · READY{Socket-Type: ROUTER}
"""

from __future__ import annotations

import ipaddress
import struct
from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping
from typing import Final

import attrs
import trio

from shards.env import Env
from shards.link import KIND_DATA, KIND_REKEY

# -- specification constants ------------------------------------------------------------------------------
GREETING = b"\xff\0\0\0\0\0\0\0\1\x7f\3\1" + b"NULL".ljust(20, b"\0") + bytes(32)
MORE, LONG, COMMAND = 1, 2, 4
HEARTBEATS = (b"\4PING", b"\4PONG")

# -- ours -------------------------------------------------------------------------------------------------
FRAME_BYTES_MAX = 65_600
CHUNK_BYTES = 131_072


@attrs.frozen(kw_only=True)
class TcpLimits:
    """What strangers may cost."""

    connections_max: int = 1_024
    half_open_max: int = 128
    half_open_per_address_max: int = 16
    handshake_s: float = 5.0
    handshake_bytes: int = 4_096
    connects_per_s: float = 10.0
    """Of one address (an IPv6 /64 is one), in the long run."""
    connects_burst: int = 30
    addresses_max: int = 4_096
    """So many addresses are remembered; the one unheard of longest is forgotten first."""


class ZmtpFault(Exception):
    """The other side of a connection breaks ZMTP, or uses a part of it that is not for it."""


class Gate:
    """Follows one direction of a ZMTP 3 stream after READY, frame head by frame head.  Pure."""

    def __init__(self) -> None:
        self._head = bytearray()
        self._left = 0

    def feed(self, chunk: bytes | bytearray) -> bool:
        """Look at the bytes that are about to pass; True when the head of a Noise data frame was among them.

        Raises:
            ZmtpFault: They must not pass.
        """
        saw_data = False
        place = 0
        head = self._head
        while place < len(chunk):
            if self._left:
                step = min(self._left, len(chunk) - place)
                self._left -= step
                place += step
                continue
            head.append(chunk[place])
            place += 1
            size, first = self._read_head(head)
            if first is not None:
                saw_data |= first in (KIND_DATA, KIND_REKEY)
                self._left = size
                head.clear()
        return saw_data

    def _read_head(self, head: bytearray) -> tuple[int, int | None]:
        """(bytes of the frame still to come, first byte of its body) once the head is complete, else (0, None)."""
        flags = head[0]
        if flags & ~(LONG | COMMAND):
            raise ZmtpFault("a multipart message" if flags & MORE else "an unknown frame flag")
        body_at = 9 if flags & LONG else 2
        if len(head) < body_at:
            return 0, None
        size = int.from_bytes(head[1:body_at], "big")
        looked = len(head) - body_at
        if flags & COMMAND:
            if flags & LONG or size < len(HEARTBEATS[0]):
                raise ZmtpFault("a command that is no heartbeat")
            if looked < len(HEARTBEATS[0]):
                return 0, None
            if bytes(head[body_at:]) not in HEARTBEATS:
                raise ZmtpFault("a command that is no heartbeat")
            return size - looked, -1
        if not 0 < size <= FRAME_BYTES_MAX:
            raise ZmtpFault(f"a frame of {size} bytes")
        if not looked:
            return 0, None
        return size - looked, head[body_at]


class _Buckets:
    """A token bucket an address, for so many addresses.  Pure."""

    def __init__(self, limits: TcpLimits) -> None:
        self._limits = limits
        self._levels: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def take(self, address: str, now: float) -> bool:
        limits = self._limits
        level, at = self._levels.pop(address, (float(limits.connects_burst), now))
        level = min(limits.connects_burst, level + (now - at) * limits.connects_per_s)
        self._levels[address] = (level - 1 if level >= 1 else level, now)
        while len(self._levels) > limits.addresses_max:
            self._levels.popitem(last=False)
        return level >= 1


class Acceptor:
    """A door that is open; `serve_tcp_acceptor` makes it."""

    def __init__(self, env: Env, ipc_path: str, limits: TcpLimits, port: int) -> None:
        self.port: Final = port
        self._ipc_path = ipc_path
        self._token_bytes = env.token_bytes
        self._limits = limits
        self._buckets = _Buckets(limits)
        self._half_open: Counter[str] = Counter()
        self._open = 0
        self._counts: Counter[str] = Counter()

    def statistics(self) -> Mapping[str, int]:
        """`open` and `half_open` now; `accepted`, `refused`, `expired`, `faults` and `broken` since the start."""
        return {
            "open": self._open,
            "half_open": self._half_open.total(),
            **{name: self._counts[name] for name in ("accepted", "refused", "expired", "faults", "broken")},
        }

    async def handle(self, stream: trio.abc.Stream) -> None:
        """Serve one connection to its end; whatever it does, it harms no other."""
        address = _address_of(stream)
        try:
            if not self._may_enter(address):
                self._counts["refused"] += 1
                return
            self._counts["accepted"] += 1
            self._open += 1
            half_open = _HalfOpen(self._half_open, address)
            try:
                with trio.CancelScope(deadline=trio.current_time() + self._limits.handshake_s) as scope:
                    await self._splice(stream, half_open, scope)
                if scope.cancelled_caught:
                    self._counts["expired"] += 1
            finally:
                half_open.leave()
                self._open -= 1
        except* ZmtpFault:
            self._counts["faults"] += 1
        except* (OSError, EOFError, trio.BrokenResourceError, trio.ClosedResourceError):
            self._counts["broken"] += 1
        finally:
            await trio.aclose_forcefully(stream)

    def _may_enter(self, address: str) -> bool:
        limits = self._limits
        return (
            self._buckets.take(address, trio.current_time())
            and self._open < limits.connections_max
            and self._half_open.total() < limits.half_open_max
            and self._half_open[address] < limits.half_open_per_address_max
        )

    async def _splice(self, tcp: trio.abc.Stream, half_open: _HalfOpen, scope: trio.CancelScope) -> None:
        await tcp.send_all(GREETING + _ready(b"ROUTER"))
        rest_up = await _first_words(tcp, b"DEALER")
        ipc = await trio.open_unix_socket(self._ipc_path)
        try:
            # Ids that begin with 0 are ZeroMQ's own.
            await ipc.send_all(GREETING + _ready(b"DEALER", b"\x01" + self._token_bytes(15)))
            rest_down = await _first_words(ipc, b"ROUTER")

            def stand() -> None:
                scope.deadline = float("inf")
                half_open.leave()

            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._up, tcp, ipc, rest_up, half_open, nursery.cancel_scope)
                nursery.start_soon(_down, ipc, tcp, rest_down, stand, nursery.cancel_scope)
        finally:
            await trio.aclose_forcefully(ipc)

    async def _up(
        self,
        tcp: trio.abc.Stream,
        ipc: trio.abc.Stream,
        chunk: bytes | bytearray,
        half_open: _HalfOpen,
        ends: trio.CancelScope,
    ) -> None:
        gate = Gate()
        budget = self._limits.handshake_bytes
        while True:
            if chunk:
                if not half_open.has_left:
                    budget -= len(chunk)
                    if budget < 0:
                        raise ZmtpFault("too many bytes before the handshake was done")
                gate.feed(chunk)
                await ipc.send_all(chunk)
            if not half_open.has_left and budget == 0:
                await half_open.left.wait()
            size = CHUNK_BYTES if half_open.has_left else min(budget, CHUNK_BYTES)
            chunk = await tcp.receive_some(size)
            if not chunk:
                ends.cancel()
                return


async def _down(
    ipc: trio.abc.Stream,
    tcp: trio.abc.Stream,
    chunk: bytes | bytearray,
    stand: Callable[[], None],
    ends: trio.CancelScope,
) -> None:
    gate = Gate()
    stands = False
    while True:
        if chunk:
            if not stands and gate.feed(chunk):
                stands = True  # from here on what the broker says need not be looked at
                stand()
            await tcp.send_all(chunk)
        chunk = await ipc.receive_some(CHUNK_BYTES)
        if not chunk:
            ends.cancel()
            return


class _HalfOpen:
    """One place among the half-open connections of an address."""

    def __init__(self, places: Counter[str], address: str) -> None:
        self._places = places
        self._address = address
        self.left = trio.Event()
        places[address] += 1

    @property
    def has_left(self) -> bool:
        return self.left.is_set()

    def leave(self) -> None:
        if not self.left.is_set():
            self.left.set()
            self._places[self._address] -= 1
            if not self._places[self._address]:
                del self._places[self._address]


async def serve_tcp_acceptor(
    env: Env,
    host: str,
    port: int,
    ipc_path: str,
    limits: TcpLimits | None = None,
    *,
    task_status: trio.TaskStatus[Acceptor] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Splice TCP connections at (host, port) to the broker's socket at `ipc_path`, until cancelled.

    `task_status.started` gets the Acceptor when it listens; its `port` is the one that port 0 became.
    """
    listeners = await env.open_tcp_listeners(host, port)
    acceptor = Acceptor(env, ipc_path, limits or TcpLimits(), _port_of(listeners[0], port))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.serve_listeners, acceptor.handle, list(listeners))
        task_status.started(acceptor)


async def _first_words(stream: trio.abc.Stream, socket_type: bytes) -> bytes:
    """Read a greeting and READY of that socket type; returns what came after them.

    Raises:
        ZmtpFault: It is something else.
        EOFError: The stream ended before.
    """
    heard = bytearray()

    async def hear(size: int) -> None:
        while len(heard) < size:
            chunk = await stream.receive_some(1_024)
            if not chunk:
                raise EOFError
            heard.extend(chunk)

    await hear(1)
    if heard[0] != 0xFF:
        raise ZmtpFault("no ZMTP greeting")
    await hear(64)
    if not heard[9] & 1 or heard[10] != 3 or heard[12:32] != GREETING[12:32]:
        raise ZmtpFault("not ZMTP 3 with the NULL mechanism")
    await hear(66)
    if heard[64] != COMMAND:
        raise ZmtpFault("no READY after the greeting")
    end = 66 + heard[65]
    await hear(end)
    if _properties(bytes(heard[66:end])).get(b"socket-type") != socket_type:
        raise ZmtpFault(f"the peer is no {socket_type.decode()}")
    return bytes(heard[end:])


def _properties(command: bytes) -> dict[bytes, bytes]:
    """The metadata of a READY command, names in lower case."""
    if command[:6] != b"\5READY":
        raise ZmtpFault("no READY after the greeting")
    found: dict[bytes, bytes] = {}
    rest = command[6:]
    while rest:
        name_end = 1 + rest[0]
        if len(rest) < name_end + 4:
            raise ZmtpFault("READY is malformed")
        (size,) = _U32.unpack_from(rest, name_end)
        end = name_end + 4 + size
        if len(rest) < end:
            raise ZmtpFault("READY is malformed")
        found[rest[1:name_end].lower()] = rest[name_end + 4 : end]
        rest = rest[end:]
    return found


def _ready(socket_type: bytes, identity: bytes = b"") -> bytes:
    properties = b"".join(
        bytes((len(name),)) + name + _U32.pack(len(value)) + value
        for name, value in ((b"Socket-Type", socket_type), (b"Identity", identity))
    )
    command = b"\5READY" + properties
    return bytes((COMMAND, len(command))) + command


def _address_of(stream: trio.abc.Stream) -> str:
    """Whom to count this connection with: an IPv4 address or an IPv6 /64; "" where there is none."""
    if not isinstance(stream, trio.SocketStream):
        return ""
    try:
        address = ipaddress.ip_address(stream.socket.getpeername()[0].partition("%")[0])
    except (OSError, ValueError, IndexError, TypeError):
        return ""
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is not None:
            return str(address.ipv4_mapped)
        return str(ipaddress.IPv6Network((address, 64), strict=False))
    return str(address)


def _port_of(listener: trio.abc.Listener[trio.abc.Stream], default: int) -> int:
    return int(listener.socket.getsockname()[1]) if isinstance(listener, trio.SocketListener) else default


_U32 = struct.Struct(">I")
