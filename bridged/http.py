"""A very small HTTP server for machines that look after us: /metrics, /health, /ready.  h11 on Trio.

It answers GET and HEAD on exact paths with what a plain function returns, and nothing else.  Every peer has a
deadline for its request and one for its connection, a bound on what it may send, and a place among few; a broken or
hostile one ends alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NoReturn

import attrs
import h11
import trio

from shards.env import Env

# Ours.
CONNECTIONS_MAX = 32
HEAD_BYTES_MAX = 8192
REQUEST_S = 10.0
"""For one request's head to come, and for its answer to go."""
CONNECTION_S = 300.0
RECEIVE_BYTES = 4096


@attrs.frozen(kw_only=True)
class Response:
    """An answer."""

    status: int = 200
    body: bytes = b""
    content_type: str = "text/plain; charset=utf-8"


Route = Callable[[], Response]


async def serve(
    env: Env,
    host: str,
    port: int,
    routes: Mapping[str, Route],
    *,
    task_status: trio.TaskStatus[int] = trio.TASK_STATUS_IGNORED,
) -> NoReturn:
    """Serve until cancelled; `started` with the port, which the system chose where it was 0.

    Raises:
        OSError: The address cannot be listened on.
    """
    listeners = await env.open_tcp_listeners(host, port)
    server = Server(routes)
    async with trio.open_nursery() as nursery:
        await nursery.start(trio.serve_listeners, server.handle, listeners)
        task_status.started(_port_of(listeners[0], port))
        await trio.sleep_forever()
    raise AssertionError("unreachable")


class Server:
    """The routes, and how many are being served."""

    def __init__(self, routes: Mapping[str, Route]) -> None:
        self._routes = dict(routes)
        self._open = 0

    async def handle(self, stream: trio.abc.Stream) -> None:
        """One connection, from its first byte to its end; never raises for what the peer does."""
        if self._open >= CONNECTIONS_MAX:
            await trio.aclose_forcefully(stream)
            return
        self._open += 1
        try:
            with trio.move_on_after(CONNECTION_S):
                await _Connection(stream, self._routes).run()
        except (trio.BrokenResourceError, trio.ClosedResourceError, h11.ProtocolError):
            pass  # the peer is gone, or was no HTTP
        finally:
            self._open -= 1
            await trio.aclose_forcefully(stream)


class _Connection:
    def __init__(self, stream: trio.abc.Stream, routes: Mapping[str, Route]) -> None:
        self._stream = stream
        self._routes = routes
        self._http = h11.Connection(h11.SERVER, max_incomplete_event_size=HEAD_BYTES_MAX)

    async def run(self) -> None:
        while True:
            with trio.move_on_after(REQUEST_S) as patience:
                if not await self._exchange():
                    return
            if patience.cancelled_caught:
                return
            try:
                self._http.start_next_cycle()
            except h11.LocalProtocolError:
                return

    async def _exchange(self) -> bool:
        """One request and its answer; False at the end of the connection."""
        try:
            event = await self._next_event()
        except h11.RemoteProtocolError as exc:
            if self._http.our_state in (h11.IDLE, h11.SEND_RESPONSE):
                await self._answer(Response(status=exc.error_status_hint, body=b"no request\n"), is_last=True)
            return False
        if not isinstance(event, h11.Request):
            return False
        response = self._respond(event)
        has_body = not isinstance(await self._next_event(), h11.EndOfMessage)
        if has_body:
            response = Response(status=413, body=b"a request has no body here\n")
        await self._answer(response, is_last=has_body, is_head=event.method == b"HEAD")
        return not has_body

    def _respond(self, request: h11.Request) -> Response:
        if request.method not in (b"GET", b"HEAD"):
            return Response(status=405, body=b"GET and HEAD alone\n")
        path = request.target.partition(b"?")[0].decode("latin-1")
        route = self._routes.get(path)
        if route is None:
            return Response(status=404, body=b"no such page\n")
        return route()

    async def _answer(self, response: Response, *, is_last: bool, is_head: bool = False) -> None:
        headers = [
            ("Content-Type", response.content_type),
            ("Content-Length", str(len(response.body))),
            ("Cache-Control", "no-store"),
            ("X-Content-Type-Options", "nosniff"),
        ]
        if response.status == 405:
            headers.append(("Allow", "GET, HEAD"))
        if is_last:
            headers.append(("Connection", "close"))
        data = self._http.send(h11.Response(status_code=response.status, headers=headers)) or b""
        if not is_head:
            data += self._http.send(h11.Data(data=response.body)) or b""
        data += self._http.send(h11.EndOfMessage()) or b""
        await self._stream.send_all(data)

    async def _next_event(self) -> object:
        while (event := self._http.next_event()) is h11.NEED_DATA:
            self._http.receive_data(bytes(await self._stream.receive_some(RECEIVE_BYTES)))
        return event


def _port_of(listener: object, port: int) -> int:
    carrier = getattr(listener, "socket", None)
    return port if carrier is None else int(carrier.getsockname()[1])
