"""People who stay: they come back when their server does, say numbered lines and keep what they hear.

The drivers are those of `tests.contract`: nothing of the bridge is in them.
"""

from __future__ import annotations

import json
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import Any

import attrs
import trio
from slixmpp.xmlstream.handler import Callback
from slixmpp.xmlstream.matcher import MatchXPath
from trio_asyncio import aio_as_trio
from trio_websocket import ConnectionClosed, HandshakeError, WebSocketConnection, wrap_client_stream

from tests.contract.irc_person import IrcPerson, irc_person
from tests.contract.xmpp_person import Said, XmppPerson, said, xmpp_person

DOMAIN = "localhost"
ROOM = "ops@muc.localhost"
CHANNEL = "#ops"
AGAIN_S = 0.01
"""A person who lost the server tries again at once: they have to be there before the bridge is."""
ANSWER_S = 60.0
JOIN_S = 5.0
HANDSHAKE_S = 5.0

Hear = Callable[[str, str], None]
"""(speaker, text)"""


@attrs.define(eq=False)
class IrcRegular:
    """Someone who is in a channel whenever the server is up."""

    address: tuple[str, int]
    nick: str
    channel: str
    hear: Hear
    person: IrcPerson | None = None
    """While in the channel."""
    found_there: list[list[str]] = attrs.field(factory=list)
    """Who was there, at each entry."""
    changed: trio.Event = attrs.field(factory=trio.Event)

    async def run(self) -> None:
        while True:
            try:
                async with irc_person(self.address, self.nick) as person:
                    self.found_there.append(await person.join(self.channel))
                    self._now(person)
                    await self._listen(person)
            except* (OSError, EOFError, trio.BrokenResourceError, trio.TooSlowError):
                pass
            self._now(None)
            await trio.sleep(AGAIN_S)

    async def _listen(self, person: IrcPerson) -> None:
        while True:
            with suppress(trio.TooSlowError):  # the driver's own patience
                said = await person.receive(target=self.channel)
                self.hear(said.sender, said.text)

    def _now(self, person: IrcPerson | None) -> None:
        self.person = person
        self.changed.set()
        self.changed = trio.Event()

    async def present(self) -> IrcPerson:
        """Wait until they are in the channel."""
        while self.person is None:
            await self.changed.wait()
        return self.person

    async def say(self, text: str) -> bool:
        """False when they could not: the server is down."""
        if self.person is None:
            return False
        try:
            await self.person.say(self.channel, text)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            return False
        return True


@attrs.define(eq=False)
class XmppRegular:
    """Someone in a room, for the life of one session, who keeps all that is said there."""

    person: XmppPerson
    room: str
    hear: Hear = lambda speaker, text: None
    seen: list[Said] = attrs.field(factory=list)

    def __attrs_post_init__(self) -> None:
        matcher = MatchXPath("{jabber:client}message")
        self.person.x.register_handler(Callback("everything", matcher, self._on_stanza))

    def _on_stanza(self, stanza: Any) -> None:
        event = said(stanza)
        self.seen.append(event)
        if event.kind == "message" and event.sender != self.person.nick:
            self.hear(event.sender, event.text)

    async def say(self, text: str) -> bool:
        self.person.say(self.room, text)
        await trio.lowlevel.checkpoint()
        return True

    async def echo(self, message_id: str) -> Said:
        """One's own message as the room sent it back."""
        with trio.fail_after(ANSWER_S):
            while True:
                for event in self.seen:
                    if event.id == message_id:
                        return event
                await trio.sleep(0.02)


@asynccontextmanager
async def xmpp_regular(
    address: tuple[str, int], ca: Any, name: str = "alice", *, room: str = ROOM, resource: str = "person"
) -> AsyncIterator[XmppRegular]:
    """In the room when entered.  Runs inside `trio_asyncio.open_loop()`."""
    context = ssl.create_default_context(cafile=str(ca))
    async with xmpp_person(address, name, context, resource=resource) as person:
        with trio.fail_after(ANSWER_S):
            while True:
                with trio.move_on_after(JOIN_S) as scope:  # a room that is locked refuses in silence
                    await person.join(room)
                if not scope.cancelled_caught:
                    break
        yield XmppRegular(person, room)


@attrs.frozen
class Archived:
    """One message as the room keeps it."""

    nick: str
    text: str
    at: float
    """Seconds since 1970, as exact as the server's stamps."""


async def room_archive(
    address: tuple[str, int], ca: Any, *, room: str = ROOM, name: str = "bob"
) -> list[Archived]:
    """All that a room's archive (XEP-0313) holds: what arrived there, whoever was listening."""
    out: list[Archived] = []
    async with xmpp_regular(address, ca, name, room=room, resource="archive") as reader:
        pages = reader.person.x.plugin["xep_0313"].retrieve(jid=room, iterator=True, rsm={"max": 100})

        async def collect() -> None:
            async for page in pages:
                for result in page["mam"]["results"]:
                    forwarded = result["mam_result"]["forwarded"]
                    stanza = forwarded["stanza"]
                    if stanza["body"]:
                        nick = stanza["from"].resource
                        out.append(Archived(nick, stanza["body"], forwarded["delay"]["stamp"].timestamp()))

        with trio.fail_after(ANSWER_S):
            await aio_as_trio(collect)()
    return out


@attrs.define(eq=False)
class WsPerson:
    """A client of the WebSocket gateway: asks, and keeps every event.  Made by `ws_person`."""

    port: int
    token: str
    events: list[dict[str, Any]] = attrs.field(factory=list)
    last: int | None = None
    """The offset of the last event that carried one."""
    on_event: Callable[[dict[str, Any]], None] = lambda event: None
    patience_s: float = ANSWER_S
    _socket: WebSocketConnection | None = None
    _answers: dict[str, dict[str, Any]] = attrs.field(factory=dict)
    _number: int = 0
    _news: trio.Event = attrs.field(factory=trio.Event)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Connect, again and again, and go on after the last event."""
        is_first = True
        while True:
            try:
                async with self._connect() as socket:
                    hello: dict[str, Any] = {"op": "hello", "token": self.token}
                    if self.last is not None:
                        hello["after"] = self.last
                    await socket.send_message(json.dumps(hello))
                    await socket.send_message(json.dumps({"id": "hello", "op": "conversations"}))
                    async with trio.open_nursery() as nursery:
                        nursery.start_soon(self._read, socket)
                        await self._until(lambda: self._answers.pop("hello", None))
                        self._socket = socket
                        self._wake()
                        if is_first:
                            is_first = False
                            task_status.started()
            except* (OSError, ConnectionClosed, HandshakeError, trio.TooSlowError):
                pass
            self._socket = None
            self._wake()
            await trio.sleep(0.05)

    @asynccontextmanager
    async def _connect(self) -> AsyncIterator[WebSocketConnection]:
        """The library forgets a socket whose handshake fails; here it is closed whatever happens."""
        stream = await trio.open_tcp_stream("127.0.0.1", self.port)
        try:
            async with trio.open_nursery() as nursery:
                with trio.fail_after(
                    HANDSHAKE_S
                ):  # the library waits for ever when the server dies meanwhile
                    socket = await wrap_client_stream(nursery, stream, f"127.0.0.1:{self.port}", "/v1")
                yield socket
                nursery.cancel_scope.cancel()
        finally:
            await trio.aclose_forcefully(stream)

    async def _read(self, socket: WebSocketConnection) -> None:
        while True:
            frame = json.loads(await socket.get_message())
            if "event" not in frame:
                self._answers[frame["id"]] = frame
            else:
                if "offset" in frame:
                    self.last = frame["offset"]
                self.events.append(frame)
                self.on_event(frame)
            self._wake()

    def _wake(self) -> None:
        news, self._news = self._news, trio.Event()
        news.set()

    async def _until(self, look: Callable[[], Any]) -> Any:
        while True:
            found = look()
            if found:
                return found
            await self._news.wait()

    async def ask(self, op: str, **fields: Any) -> dict[str, Any]:
        """One request and its answer; asked again (the same) when the connection was lost meanwhile."""
        self._number += 1
        number = f"n{self._number}"
        with trio.fail_after(self.patience_s):
            while True:
                socket: WebSocketConnection = await self._until(lambda: self._socket)
                with suppress(ConnectionClosed):
                    await socket.send_message(json.dumps({"id": number, "op": op, **fields}))
                    answer = await self._until(partial(self._answer_or_loss, number, socket))
                    if isinstance(answer, dict):
                        return answer
                await trio.sleep(0.02)

    def _answer_or_loss(self, number: str, socket: WebSocketConnection) -> dict[str, Any] | str | None:
        return self._answers.pop(number, None) or ("lost" if self._socket is not socket else None)

    async def say(self, text: str, *, conversation: str = "ops", key: str | None = None) -> dict[str, Any]:
        """Send; returns the answer, which is ok.  The idempotency key is the text, unless given."""
        answer = await self.ask("send", conversation=conversation, text=text, idempotency_key=key or text)
        assert answer["ok"], answer
        return answer

    async def event(
        self, name: str, fits: Callable[[dict[str, Any]], bool] = lambda event: True
    ) -> dict[str, Any]:
        """The first event, of all that were ever heard, that fits."""

        def look() -> dict[str, Any] | None:
            return next((e for e in self.events if e["event"] == name and fits(e)), None)

        with trio.fail_after(ANSWER_S):
            return await self._until(look)  # type: ignore[no-any-return]

    async def status(self, trace_id: str, network: str, state: str) -> dict[str, Any]:
        """That a message has come to this state on a network."""
        wanted = (trace_id, state)
        return await self.event(
            "status",
            lambda event: (event["trace_id"], event["status"]) == wanted and network in event["channel"],
        )

    async def message(self, text: str) -> dict[str, Any]:
        """The message with this text."""
        return await self.event("message", lambda event: event["text"] == text)


@asynccontextmanager
async def ws_person(port: int, token: str, *, last: int | None = None) -> AsyncIterator[WsPerson]:
    """Connected when entered."""
    person = WsPerson(port, token, last=last)
    async with trio.open_nursery() as nursery:
        with trio.fail_after(ANSWER_S):
            await nursery.start(person.run)
        yield person
        nursery.cancel_scope.cancel()


async def say_until(say: Callable[[str], Awaitable[Any]], text: str, heard: Callable[[], bool]) -> None:
    """Say a line, each time with another number, until one was heard: then the way is open."""
    number = 0
    with trio.fail_after(ANSWER_S):
        while not heard():
            number += 1
            await say(f"{text} {number}")
            with trio.move_on_after(1.0):
                while not heard():
                    await trio.sleep(0.02)
