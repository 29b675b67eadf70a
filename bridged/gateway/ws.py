"""The WebSocket gateway: `ws://HOST:PORT/v1`, JSON text frames.          docs/gateway.md

A token speaks as one client and reads only its conversations.  A client that reconnects with `after` gets every
event since, once and in order.  One that does not read is told `lagging`, closed with 4408, and its offset still
works.  The gateway decides nothing: every op is a request to the facade, under the client's name.
"""

from __future__ import annotations

import hashlib
import json
import ssl
from collections.abc import Mapping
from typing import Any, NoReturn

import attrs
import trio
from trio_websocket import ConnectionClosed, WebSocketConnection, WebSocketRequest, WebSocketServer

from bridged.gateway.feed import Event, Feed, Gap
from bridged.requests import ask
from shards.client import Client
from shards.env import Env
from shards.errors import RequestFailed, ShardsError

# Specification constants (docs/gateway.md).
PATH = "/v1"
CLOSE_NORMAL = 1000
CLOSE_BAD_FRAME = 4400
CLOSE_NO_TOKEN = 4401
CLOSE_LAGGING = 4408
CLOSE_AGAIN = 4503
OPS = ("send", "edit", "delete", "react", "typing", "read", "history", "conversations")

# Ours.
FRAME_BYTES_MAX = 262_144
HELLO_WITHIN_S = 10.0
SEND_WITHIN_S = 10.0
"""A client that has not taken a frame for so long is lagging."""
FAREWELL_S = 2.0
CONNECTIONS_MAX = 1000
OPS_IN_FLIGHT_MAX = 16
PASSING_MAX = 64


@attrs.frozen(kw_only=True)
class Door:
    """One tenant's way in: the gateway's fabric client for it and the feed over that."""

    client: Client
    feed: Feed


@attrs.frozen(kw_only=True)
class Session:
    """Who a connection speaks for."""

    name: str
    identity: str
    conversations: frozenset[str] | None
    """None: every conversation."""

    def sees(self, event: Event) -> bool:
        """May the client read this event?"""
        return (
            self.conversations is None or not event.conversation or event.conversation in self.conversations
        )


class Lagging(Exception):
    """The client does not take what it is sent."""


class BadFrame(Exception):
    """The client sent what is no frame of ours."""


class Gateway:
    """All connections of a shard's gateway."""

    def __init__(self, env: Env, doors: Mapping[str, Door]) -> None:
        self._env = env
        self._doors = doors
        self.connections = 0

    async def handle(self, request: WebSocketRequest) -> None:
        """One connection, from its HTTP request on; nothing that it does reaches another."""
        if request.path.partition("?")[0] != PATH:
            await request.reject(404, body=b"the gateway is at /v1\n")
            return
        if self.connections >= CONNECTIONS_MAX:
            await request.reject(503, body=b"too many connections\n")
            return
        socket = await request.accept()
        self.connections += 1
        try:
            await self._converse(socket)
        except* ConnectionClosed:
            pass
        except* Lagging:
            with trio.move_on_after(FAREWELL_S):
                await _farewell(socket, {"event": "lagging"}, CLOSE_LAGGING, "lagging")
        except* BadFrame as group:
            reason = str(group.exceptions[0])[:100]
            with trio.move_on_after(FAREWELL_S):
                await _farewell(socket, None, CLOSE_BAD_FRAME, reason)
        except* ShardsError:
            with trio.move_on_after(FAREWELL_S):
                await _farewell(socket, None, CLOSE_AGAIN, "the shard does not answer; come again")
        finally:
            self.connections -= 1

    async def _converse(self, socket: WebSocketConnection) -> None:
        with trio.move_on_after(HELLO_WITHIN_S) as scope:
            hello = _frame(await socket.get_message())
        found = None if scope.cancelled_caught else await self._admit(hello)
        if found is None:
            await socket.aclose(CLOSE_NO_TOKEN, "say hello with a valid token")
            return
        door, session = found
        after = hello.get("after")
        if after is not None and (not isinstance(after, int) or isinstance(after, bool) or after < -1):
            raise BadFrame("after is the offset of the last event you have")
        connection = _Connection(self._env, socket, door, session)
        await connection.run(door.feed.next if after is None else after + 1)

    async def _admit(self, hello: Mapping[str, Any]) -> tuple[Door, Session] | None:
        """The tenant and client of a token; None where nobody has it, whatever the reason."""
        token = hello.get("token")
        if hello.get("op") != "hello" or not isinstance(token, str) or not 0 < len(token) <= 256:
            return None
        digest = hashlib.sha256(token.encode()).hexdigest()
        for door in self._doors.values():
            try:
                row = await ask(
                    self._env, door.client, "core", "clients", {"op": "authenticate", "token_hash": digest}
                )
            except RequestFailed as exc:
                if exc.code in ("not_found", "forbidden", "capability_denied"):
                    continue
                raise
            return door, Session(
                name=row["client"],
                identity=row["identity"],
                conversations=None if row["everywhere"] else frozenset(row["conversations"]),
            )
        return None


class _Connection:
    """One admitted client."""

    def __init__(self, env: Env, socket: WebSocketConnection, door: Door, session: Session) -> None:
        self._env = env
        self._socket = socket
        self._door = door
        self._session = session
        self._slots = trio.CapacityLimiter(OPS_IN_FLIGHT_MAX)

    async def run(self, offset: int) -> None:
        """Events from `offset` on, and ops as they come, until the client goes."""
        passing, more = trio.open_memory_channel[Event](PASSING_MAX)

        def heard(event: Event) -> None:
            if self._session.sees(event):
                try:
                    passing.send_nowait(event)
                except trio.WouldBlock:
                    return  # passing things are the first to be shed

        forget = self._door.feed.listen(heard)
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._tell, offset)
                nursery.start_soon(self._pass_on, more)
                await self._hear(nursery)
        finally:
            forget()

    async def _tell(self, offset: int) -> NoReturn:
        while True:
            try:
                events = await self._door.feed.read(offset)
            except Gap as gap:
                await self._send({"event": "gap", "from": gap.first, "to": gap.next - 1})
                offset = gap.next
                continue
            for event in events:
                if self._session.sees(event):
                    await self._send_text(event.data)
                offset = event.offset + 1

    async def _pass_on(self, events: trio.MemoryReceiveChannel[Event]) -> None:
        async for event in events:
            await self._send_text(event.data)

    async def _hear(self, nursery: trio.Nursery) -> NoReturn:
        while True:
            frame = _frame(await self._socket.get_message())
            op, number = frame.get("op"), frame.get("id")
            if not isinstance(number, str | int) or isinstance(number, bool) or len(str(number)) > 64:
                raise BadFrame("every op carries an id of at most 64 characters")
            if op not in OPS:
                await self._answer_error(number, "unknown_action", f"ops are {' '.join(OPS)}")
                continue
            token = object()
            await self._slots.acquire_on_behalf_of(token)  # a flood of ops waits in the client's own socket
            nursery.start_soon(self._serve, op, number, frame, token)

    async def _serve(self, op: str, number: str | int, frame: Mapping[str, Any], token: object) -> None:
        try:
            payload = {key: value for key, value in frame.items() if key not in ("op", "id")}
            try:
                answer = await ask(
                    self._env, self._door.client, "core", op, {**payload, "client": self._session.name}
                )
            except RequestFailed as exc:
                await self._answer_error(number, exc.code, str(exc))
                return
            answer.pop("status", None)
            await self._send({"id": number, "ok": True, **answer})
        finally:
            self._slots.release_on_behalf_of(token)

    async def _answer_error(self, number: str | int, code: str, message: str) -> None:
        await self._send({"id": number, "ok": False, "error": {"code": code, "message": message}})

    async def _send(self, frame: Mapping[str, Any]) -> None:
        await self._send_text(json.dumps(frame, ensure_ascii=False))

    async def _send_text(self, text: str) -> None:
        with trio.move_on_after(SEND_WITHIN_S) as scope:
            await self._socket.send_message(text)
        if scope.cancelled_caught:
            raise Lagging


def _frame(message: str | bytes) -> dict[str, Any]:
    if not isinstance(message, str):
        raise BadFrame("frames are JSON text")
    try:
        frame = json.loads(message)
    except (ValueError, RecursionError):
        raise BadFrame("that frame is no JSON") from None
    if not isinstance(frame, dict):
        raise BadFrame("a frame is a JSON object")
    return frame


async def _farewell(
    socket: WebSocketConnection, frame: Mapping[str, Any] | None, code: int, reason: str
) -> None:
    try:
        if frame is not None:
            await socket.send_message(json.dumps(frame))
        await socket.aclose(code, reason)
    except ConnectionClosed:
        return


async def run_gateway(
    env: Env,
    clients: Mapping[str, Client],
    *,
    host: str,
    port: int,
    tls: ssl.SSLContext | None = None,
    task_status: trio.TaskStatus[int] = trio.TASK_STATUS_IGNORED,
) -> NoReturn:
    """Serve every tenant of `clients` at one address; `started()` with the port once it listens."""
    doors = {tenant: Door(client=client, feed=Feed(env, client)) for tenant, client in clients.items()}
    gateway = Gateway(env, doors)
    async with trio.open_nursery() as nursery:
        for door in doors.values():
            await nursery.start(door.feed.run)
        listeners = await env.open_tcp_listeners(host, port)
        server = WebSocketServer(
            gateway.handle,
            [listener if tls is None else trio.SSLListener(listener, tls) for listener in listeners],  # type: ignore[misc, arg-type]  # any listener serves
            max_message_size=FRAME_BYTES_MAX,
            message_queue_size=1,
        )
        running = await nursery.start(server.run)
        task_status.started(running.port)
        await trio.sleep_forever()
    raise AssertionError("unreachable")
