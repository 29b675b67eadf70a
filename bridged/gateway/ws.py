"""The WebSocket gateway: `ws://HOST:PORT/v1`, JSON text frames.          docs/gateway.md

A token speaks as one client and reads only its conversations.  A client that reconnects with `after` gets every
event since, once and in order.  One that does not read is told `lagging`, closed with 4408, and its offset still
works.  The gateway decides nothing: every op is a request to the facade, under the client's name.
"""

from __future__ import annotations

import hashlib
import ssl
from collections.abc import Mapping
from typing import NoReturn

import msgspec
import trio
from trio_websocket import ConnectionClosed, WebSocketConnection, WebSocketRequest, WebSocketServer

from bridged.gateway.feed import Feed
from bridged.gateway.frames import (
    CLOSE_AGAIN,
    CLOSE_FAULT,
    FRAME_BYTES_MAX,
    PATH,
    Goodbye,
    no_token,
    read_frame,
    read_hello,
)
from bridged.gateway.talk import Door, Session, Talk, admit
from bridged.telemetry import get_logger, traceback_of
from shards.client import Client
from shards.env import Env
from shards.errors import ShardsError

log = get_logger("gateway")

HELLO_WITHIN_S = 10.0
FAREWELL_S = 2.0
CONNECTIONS_MAX = 1000
LOOK_UP_EVERY_S = 15.0
"""A token that was revoked is noticed so late at most; at its next op at once."""


class Gateway:
    """All connections of a shard's gateway."""

    def __init__(self, env: Env, doors: Mapping[str, Door]) -> None:
        self._env = env
        self._doors = doors
        self._talks: set[Talk] = set()
        self.connections = 0

    async def handle(self, request: WebSocketRequest) -> None:
        """One connection, from its HTTP request on; nothing that it does reaches another."""
        if request.path.partition("?")[0] != PATH:
            await request.reject(404, body=b"the gateway is at /v1\n")
            return
        if self.connections >= CONNECTIONS_MAX:
            await request.reject(503, body=b"too many connections\n")
            return
        self.connections += 1
        try:
            socket = await request.accept()
            goodbye = await self._converse(socket)
            if goodbye is not None:
                with trio.move_on_after(FAREWELL_S):
                    await _farewell(socket, goodbye)
        finally:
            self.connections -= 1

    async def look_up(self) -> NoReturn:
        """Ask again and again what the tokens of the open connections stand for."""
        while True:
            await trio.sleep(LOOK_UP_EVERY_S)
            found: dict[tuple[str, str], Session | None] = {}
            for talk in list(self._talks):
                key = talk.door.client.identity.tenant, talk.session.digest
                try:
                    if key not in found:
                        found[key] = await admit(self._env, talk.door, talk.session.digest)
                except ShardsError:
                    continue  # who does not answer has not said no
                talk.changed(found[key])

    async def _converse(self, socket: WebSocketConnection) -> Goodbye | None:
        """Talk until it is over; returns what to say at the end, None where nobody can hear it."""
        said: list[Goodbye] = []
        talk: Talk | None = None
        has_left = False
        try:
            talk, offset = await self._greet(socket)
            self._talks.add(talk)
            await talk.run(offset)
        except* ConnectionClosed:
            has_left = True
        except* Goodbye as group:
            said += _leaves(group)
        except* ShardsError:
            said.append(Goodbye(CLOSE_AGAIN, "the shard does not answer; come again"))
        except* Exception as group:  # a bug met by one client must not end the others
            log.error("fault", traceback=traceback_of(group))
            said.append(Goodbye(CLOSE_FAULT, "a fault of ours; come again"))
        finally:
            if talk is not None:
                self._talks.discard(talk)
        has_left = has_left or (talk is not None and talk.is_cut)
        return None if has_left else said[0]

    async def _greet(self, socket: WebSocketConnection) -> tuple[Talk, int]:
        """Hear hello.  Raises Goodbye: none in time, or nobody has that token."""
        with trio.move_on_after(HELLO_WITHIN_S):
            token, after = read_hello(read_frame(await socket.get_message()))
            digest = hashlib.sha256(token.encode()).hexdigest()
            for door in self._doors.values():
                session = await admit(self._env, door, digest)
                if session is not None:
                    offset = door.feed.next if after is None else after + 1
                    return Talk(self._env, socket, door, session), offset
        raise no_token()


def _leaves(group: BaseExceptionGroup[Goodbye]) -> list[Goodbye]:
    found: list[Goodbye] = []
    for exc in group.exceptions:
        found += _leaves(exc) if isinstance(exc, BaseExceptionGroup) else [exc]
    return found


async def _farewell(socket: WebSocketConnection, goodbye: Goodbye) -> None:
    try:
        if goodbye.last is not None:
            await socket.send_message(msgspec.json.encode(goodbye.last).decode())
        await socket.aclose(goodbye.code, goodbye.reason)
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
        nursery.start_soon(gateway.look_up)
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
