"""A wire between the bridge and a server on which one can listen: every line, its direction and its time."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

import attrs
import trio


@attrs.frozen
class Crossing:
    """One line as it passed."""

    at: float
    connection: int
    from_bridge: bool
    text: str


@attrs.define(eq=False)
class Tap:
    """Passes bytes on, both ways, and keeps the lines.  Made by `open_tap`."""

    server: tuple[str, int]
    address: tuple[str, int]
    crossings: list[Crossing] = attrs.field(factory=list)
    connections: int = 0
    _to_bridge: trio.SocketStream | None = None
    _writing: trio.Lock = attrs.field(factory=trio.Lock)

    async def inject(self, line: str) -> None:
        """Say a line to the bridge as if the server had said it."""
        assert self._to_bridge is not None, "the bridge is not connected"
        async with self._writing:
            self.crossings.append(Crossing(trio.current_time(), self.connections, False, line))
            await self._to_bridge.send_all(f"{line}\r\n".encode())

    async def serve(self, client: trio.SocketStream) -> None:
        self.connections += 1
        number = self.connections
        try:
            server = await trio.open_tcp_stream(*self.server)
        except OSError:
            await trio.aclose_forcefully(client)
            return
        self._to_bridge = client
        async with client, server, trio.open_nursery() as nursery:
            nursery.start_soon(self._pass, client, server, number, True, nursery.cancel_scope)
            nursery.start_soon(self._pass, server, client, number, False, nursery.cancel_scope)

    async def _pass(
        self,
        source: trio.SocketStream,
        target: trio.SocketStream,
        number: int,
        from_bridge: bool,
        scope: trio.CancelScope,
    ) -> None:
        tail = b""
        try:
            while data := bytes(await source.receive_some(65_536)):
                *lines, tail = (tail + data).split(b"\r\n")
                now = trio.current_time()
                self.crossings += [
                    Crossing(now, number, from_bridge, line.decode("utf-8", "replace")) for line in lines
                ]
                whole = b"".join(line + b"\r\n" for line in lines)
                async with self._writing:
                    await target.send_all(whole)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        scope.cancel()  # one end is gone: so is the other

    def lines(self, *, from_bridge: bool, word: str) -> list[Crossing]:
        """What passed with this command."""
        return [
            crossing
            for crossing in self.crossings
            if crossing.from_bridge == from_bridge and word in crossing.text.split(" ")[:3]
        ]


@asynccontextmanager
async def open_tap(server: tuple[str, int], port: int) -> AsyncIterator[Tap]:
    """Listen on a port of 127.0.0.1 and pass everything on to the server."""
    listeners = await trio.open_tcp_listeners(port, host="127.0.0.1")
    tap = Tap(server, ("127.0.0.1", port))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(partial(trio.serve_listeners, tap.serve, listeners, handler_nursery=nursery))
        try:
            yield tap
        finally:
            nursery.cancel_scope.cancel()
