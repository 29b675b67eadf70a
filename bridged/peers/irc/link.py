"""One client's connection: bytes in and out, the flood meter, queues with limits, time-outs, and its faults."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING

import trio

from bridged.peers.irc.line import BODY_BYTES_MAX, CLIENT_TAGS_BYTES_MAX
from bridged.peers.irc.state import User

if TYPE_CHECKING:
    from bridged.peers.irc.network import Network

FINISH_S = 2.0
"""How long a closing connection may take to send its last lines."""


class Link:
    """Reads, paces and answers one client."""

    def __init__(self, net: Network, stream: trio.abc.Stream, number: int) -> None:
        self._net = net
        self._stream = stream
        self._number = number
        self._user: User | None = None
        self._in: deque[bytes] = deque()
        self._in_bytes = 0
        self._in_ready = trio.Event()
        self._tail = b""
        self._skipping = False
        self._out: deque[tuple[float, bytes]] = deque()
        self._out_bytes = 0
        self._out_ready = trio.Event()
        self._finishing = False
        self._scope = trio.CancelScope()
        self._heard_at = trio.current_time()
        self._allowance = float(net.faults.burst)
        self._allowance_at = trio.current_time()
        # Faults, set by `faults.Faults`.
        self.delay_s = 0.0
        self._open = trio.Event()
        """Unset while the connection plays half-open."""
        self._open.set()
        self._drained = trio.Event()
        self.duplicate_next = 0
        self.hold_next = 0
        self._held: list[bytes] = []
        self.drop_reply: str | None = None
        """`nothing`, `reset`, `close` or `half_open`: what follows when the next message's answer is swallowed."""
        self.swallow_pong = False

    @property
    def user(self) -> User:
        assert self._user is not None, "the link has no user before it runs"
        return self._user

    async def run(self, user: User) -> None:
        """Serve the client until either side ends."""
        self._user = user
        self.note("connect")
        ending = "Connection closed"
        try:
            with self._scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._write)
                    nursery.start_soon(self._process)
                    nursery.start_soon(self._watch)
                    await self._read()
                    self.note("eof")
                    nursery.cancel_scope.cancel()
        finally:
            weak = self._net.dialect.name == "ngircd"
            self._net.quit(user, "Client closed connection" if weak else ending, has_error=False)
            await trio.aclose_forcefully(self._stream)

    # ---------------------------------------------------------------- in

    async def _read(self) -> None:
        limit = self._net.options.recvq_bytes
        while True:
            await self._open.wait()
            if self._in_bytes > limit:  # ngIRCd leaves the rest in the socket
                self._drained = trio.Event()
                await self._drained.wait()
            try:
                data = await self._stream.receive_some(65_536)
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                return
            if not data:
                return
            await self._open.wait()
            self._heard_at = trio.current_time()
            self._take(bytes(data))
            if self._in_bytes > limit and self._net.dialect.name == "inspircd":
                self._net.quit(self.user, "RecvQ exceeded")

    def _take(self, data: bytes) -> None:
        *lines, self._tail = (self._tail + data).split(b"\n")
        bound = BODY_BYTES_MAX + CLIENT_TAGS_BYTES_MAX + 2
        if len(self._tail) > 16 * bound:
            self._tail = self._tail[
                : 2 * bound
            ]  # a line without end costs no memory; the rest of it is dropped
        for line in lines:
            self._in.append(line.rstrip(b"\r"))
            self._in_bytes += len(line) + 1
        if lines:
            self._in_ready.set()

    async def _process(self) -> None:
        while True:
            while not self._in:
                self._in_ready = trio.Event()
                await self._in_ready.wait()
            await self._pace()
            if not self._in:
                continue
            data = self._in.popleft()
            self._in_bytes -= len(data) + 1
            self._drained.set()
            self._handle(data)

    async def _pace(self) -> None:
        """Wait until the meter lets one more line pass; a metered InspIRCd may cut instead."""
        faults = self._net.faults
        if faults.lines_per_s == math.inf:
            self._allowance = float(faults.burst)
            self._allowance_at = trio.current_time()
            return
        while True:
            now = trio.current_time()
            gained = (now - self._allowance_at) * faults.lines_per_s
            self._allowance = min(float(faults.burst), self._allowance + gained)
            self._allowance_at = now
            if self._allowance > 1 - 1e-9:
                self._allowance -= 1
                return
            if self._net.options.excess_flood:
                self._net.quit(self.user, "Excess Flood")
                return
            await trio.sleep((1 - self._allowance) / faults.lines_per_s)

    def _handle(self, data: bytes) -> None:
        """Carry out one line; an over-long one as the dialect does."""
        net, user = self._net, self.user
        if user.gone:
            return
        net.note(self._number, user.shown, "in", data)
        if b"\0" in data:
            data = data.replace(b"\0", b"")
        head, _, body = data.partition(b" ") if data[:1] == b"@" else (b"", b"", data)
        if net.dialect.name == "ngircd":
            if len(data) > BODY_BYTES_MAX:
                net.quit(user, "Request too long")
                return
            data = data.rstrip(b" ")
        elif len(head) > CLIENT_TAGS_BYTES_MAX - 1:
            net.numeric(user, "417")
            return
        elif len(body) > BODY_BYTES_MAX:
            data = (head + b" " if head else b"") + body[:BODY_BYTES_MAX]
        command = body.split(b" ", 1)[0].upper()
        if self.swallow_pong and command == b"PING":
            self.swallow_pong = False
            net.without_answers(user, lambda: net.handle(user, data))
            self._after_drop()
        elif self.drop_reply is not None and command in (b"PRIVMSG", b"NOTICE", b"TAGMSG"):
            net.without_answers(user, lambda: net.handle(user, data))
            if user.has("echo-message") or self.drop_reply != "nothing":
                self._after_drop()
            else:
                self.swallow_pong = True
        else:
            net.handle(user, data)

    def _after_drop(self) -> None:
        what, self.drop_reply = self.drop_reply, None
        if what == "reset":
            self.reset()
        elif what == "close":
            self.close()
        elif what == "half_open":
            self.half_open(on=True)

    # ---------------------------------------------------------------- out

    def deliver(self, data: bytes) -> None:
        """Queue one whole line for the client; too many bytes unread end the connection without a word."""
        if self._finishing:
            return
        self._net.note(self._number, self.user.shown, "out", data.removesuffix(b"\r\n"))
        if self.hold_next and b"PRIVMSG" in data:
            self._held.append(data)
            self.hold_next -= 1
            if self.hold_next:
                return
            for held in reversed(self._held):
                self.inject(held)
            self._held.clear()
            return
        self.inject(data)

    def inject(self, data: bytes) -> None:
        """Queue any bytes at all."""
        self._out.append((trio.current_time() + self.delay_s, data))
        self._out_bytes += len(data)
        self._out_ready.set()
        if self._out_bytes > self._net.options.sendq_bytes and not self._finishing:
            self._finishing = True
            weak = self._net.dialect.name == "ngircd"
            self._net.quit(self.user, self.user.shown if weak else "SendQ exceeded", has_error=False)
            self._scope.cancel()

    async def _write(self) -> None:
        while True:
            while not self._out:
                if self._finishing:
                    await self._end()
                    return
                self._out_ready = trio.Event()
                await self._out_ready.wait()
            due, _ = self._out[0]
            if due > trio.current_time():
                await trio.sleep_until(due)
            await self._open.wait()
            chunk = b""
            while self._out and self._out[0][0] <= trio.current_time():
                chunk += self._out.popleft()[1]
            try:
                await self._stream.send_all(chunk)
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                self._scope.cancel()
                return
            self._out_bytes -= len(chunk)

    async def _end(self) -> None:
        """The last line is out: say so and hang up."""
        with trio.move_on_after(FINISH_S):
            if isinstance(self._stream, trio.SSLStream):
                await self._stream.aclose()
            elif isinstance(self._stream, trio.abc.HalfCloseableStream):
                with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
                    await self._stream.send_eof()
        self._scope.cancel()

    def finish(self) -> None:
        """Send what is queued, then close."""
        self._finishing = True
        self._out_ready.set()

    # ---------------------------------------------------------------- time-outs

    async def _watch(self) -> None:
        """Registration time-out, then PING after silence and the end when nothing comes back."""
        options, net, user = self._net.options, self._net, self.user
        until = trio.current_time() + options.registration_s
        while not user.registered:
            if trio.current_time() >= until:
                net.quit(user, "Registration timeout")
                return
            await trio.sleep(min(1.0, options.registration_s))
        while True:
            asked_at = trio.current_time()
            if asked_at < (due := self._heard_at + options.ping_s):
                await trio.sleep_until(due)
                continue
            net.send(user, None, "PING", user.server.name)
            await trio.sleep(options.ping_s)
            if self._heard_at <= asked_at and not self._in:
                net.quit(user, f"Ping timeout: {options.ping_s:g} seconds")
                return

    async def later(self, delay_s: float, act: Callable[[], None]) -> None:
        """Do something after a while."""
        await trio.sleep(delay_s)
        act()

    # ---------------------------------------------------------------- faults

    def note(self, event: str) -> None:
        self._net.note(self._number, self.user.shown, "event", event.encode())

    def half_open(self, *, on: bool) -> None:
        """Stop to read and write, or go on, without closing."""
        self.note("half-open" if on else "open again")
        if on:
            self._open = trio.Event()
        else:
            self._open.set()

    def reset(self) -> None:
        """End the connection with RST where the transport has one."""
        self.note("reset")
        self._finishing = True
        stream = self._stream
        while isinstance(stream, trio.SSLStream):
            stream = stream.transport_stream
        if isinstance(stream, trio.SocketStream):
            stream.setsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
        self._scope.cancel()

    def close(self) -> None:
        """End the connection without a word."""
        self.note("close")
        self._finishing = True
        self._scope.cancel()
