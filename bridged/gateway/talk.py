"""One admitted client of the gateway: events out, ops in, until one of the two has had enough.

Everything that is sent goes through one lock, and whoever ends the connection takes it first: so a frame is never
cut in the middle, and the client can read why it was let go.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, NoReturn

import attrs
import trio
from trio_websocket import WebSocketConnection

from bridged.gateway.feed import Event, Feed, Gap
from bridged.gateway.frames import OPS, Goodbye, lagging, no_token, read_frame, read_id
from bridged.requests import ask
from bridged.telemetry import get_logger, traceback_of
from shards.client import Client
from shards.env import Env
from shards.errors import RequestFailed, ShardsError

log = get_logger("gateway")

SEND_WITHIN_S = 10.0
"""A client that takes longer for one frame is lagging."""
TAKE_WITHIN_S = 60.0
"""And is told so if it has taken that frame within this; else its connection is cut without a word."""
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
    digest: str
    """SHA-256 of the token, hex."""
    conversations: frozenset[str] | None
    """None: every conversation."""

    def sees(self, event: Event) -> bool:
        """May the client read this event?"""
        return (
            self.conversations is None or not event.conversation or event.conversation in self.conversations
        )


async def admit(env: Env, door: Door, digest: str) -> Session | None:
    """The client that has this token in the door's tenant; None where nobody has it, whatever the reason.

    Raises:
        RequestFailed: The facade does not answer.
    """
    try:
        row = await ask(env, door.client, "core", "clients", {"op": "authenticate", "token_hash": digest})
    except RequestFailed as exc:
        if exc.code in ("not_found", "forbidden", "capability_denied"):
            return None
        raise
    return Session(
        name=row["client"],
        digest=digest,
        conversations=None if row["everywhere"] else frozenset(row["conversations"]),
    )


class Talk:
    """The conversation with one client."""

    def __init__(self, env: Env, socket: WebSocketConnection, door: Door, session: Session) -> None:
        self.session = session
        self.door = door
        self.is_cut = False
        """A frame went out by half: nothing can be said any more."""
        self._env = env
        self._socket = socket
        self._slots = trio.CapacityLimiter(OPS_IN_FLIGHT_MAX)
        self._turn = trio.Lock()
        self._looked_up = trio.Event()

    async def run(self, offset: int) -> NoReturn:
        """Events from `offset` on, and ops as they come.

        Raises:
            Goodbye: In a group: how it ended, but for the client's own going (ConnectionClosed).
        """
        passing, more = trio.open_memory_channel[Event](PASSING_MAX)

        def heard(event: Event) -> None:
            if self.session.sees(event):
                try:
                    passing.send_nowait(event)
                except trio.WouldBlock:
                    return  # passing things are the first to be shed

        forget = self.door.feed.listen(heard)
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._tell, offset)
                nursery.start_soon(self._pass_on, more)
                nursery.start_soon(self._hear, nursery)
                await self._looked_up.wait()
                await self._end(no_token())
        finally:
            forget()
        raise AssertionError("unreachable")

    def changed(self, session: Session | None) -> None:
        """What the token stands for now; None: nothing any more."""
        if session is None:
            self._looked_up.set()
        else:
            self.session = session

    async def _end(self, goodbye: Goodbye) -> NoReturn:
        """Raise it while nobody else is sending."""
        async with self._turn:
            raise goodbye

    async def _tell(self, offset: int) -> NoReturn:
        while True:
            try:
                events = await self.door.feed.read(offset)
            except Gap as gap:
                await self._send({"event": "gap", "from": gap.first, "to": gap.last})
                offset = gap.next
                continue
            for event in events:
                if self.session.sees(event):
                    await self._send_text(event.data)
                offset = event.offset + 1

    async def _pass_on(self, events: trio.MemoryReceiveChannel[Event]) -> None:
        async for event in events:
            await self._send_text(event.data)

    async def _hear(self, nursery: trio.Nursery) -> NoReturn:
        while True:
            message = await self._socket.get_message()
            try:
                frame = read_frame(message)
                number = read_id(frame)
            except Goodbye as goodbye:
                await self._end(goodbye)
            op = frame.get("op")
            if op not in OPS:
                await self._answer_error(number, "unknown_action", f"ops are {' '.join(OPS)}")
                continue
            token = object()
            await self._slots.acquire_on_behalf_of(token)  # a flood of ops waits in the client's own socket
            nursery.start_soon(self._serve, op, number, frame, token)

    async def _serve(self, op: str, number: str | int, frame: Mapping[str, Any], token: object) -> None:
        try:
            payload = {
                key: value
                for key, value in frame.items()
                if value is not None and key not in ("op", "id", "identity")  # null says what absence says
            }
            payload["client"] = self.session.name
            try:
                answer = await ask(self._env, self.door.client, "core", op, payload)
            except RequestFailed as exc:
                await self._answer_error(number, exc.code, str(exc))
                if exc.code == "capability_denied" and await self._is_gone():
                    self.changed(None)
                return
            except ShardsError:
                raise
            except (
                Exception
            ) as exc:  # what no envelope can hold is the client's fault, and nobody else's trouble
                log.error("fault", action=op, traceback=traceback_of(exc))
                await self._answer_error(number, "invalid_field", f"that {op} cannot be understood")
                return
            answer.pop("status", None)
            await self._send({"id": number, "ok": True, **answer})
        finally:
            self._slots.release_on_behalf_of(token)

    async def _is_gone(self) -> bool:
        return await admit(self._env, self.door, self.session.digest) is None

    async def _answer_error(self, number: str | int, code: str, message: str) -> None:
        await self._send({"id": number, "ok": False, "error": {"code": code, "message": message}})

    async def _send(self, frame: Mapping[str, Any]) -> None:
        await self._send_text(json.dumps(frame, ensure_ascii=False))

    async def _send_text(self, text: str) -> None:
        async with self._turn:
            began_at = trio.current_time()
            self.is_cut = True
            with trio.move_on_after(SEND_WITHIN_S + TAKE_WITHIN_S) as scope:
                await self._socket.send_message(text)
                self.is_cut = False
            if scope.cancelled_caught or trio.current_time() - began_at > SEND_WITHIN_S:
                raise lagging()
