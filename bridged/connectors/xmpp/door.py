"""Getting into a room and knowing whether we still are in it; for a person there is always a door."""

from __future__ import annotations

from collections.abc import Callable

import attrs
import trio

from bridged.connectors.xmpp.chat import Chat
from bridged.connectors.xmpp.client import Client, Refused
from bridged.connectors.xmpp.entry import (
    Gone,
    Joined,
    Moved,
    NotJoined,
    join_request,
    own_form,
    read_presence,
)
from bridged.connectors.xmpp.settings import Settings
from bridged.connectors.xmpp.stanza import DISCO_INFO, MUC_OWNER, Element, children, element, iq

# Ours.
ENTRY_S = 20.0
SELF_PING_S = 60.0
NICKS_MAX = 4


@attrs.frozen
class Trouble:
    """Why we are not in a chat, for people."""

    reason: str
    is_final: bool = False
    """Only somebody else can change it."""


class Door:
    """The way into one chat."""

    def __init__(self, chat: Chat, settings: Settings, moved: Callable[[Moved], None]) -> None:
        self._chat = chat
        self._nick = settings.nick
        self._moved = moved
        self._left = trio.Event()
        self._trouble: Trouble | None = None
        self._answers: trio.MemorySendChannel[Joined | NotJoined] | None = None

    def begin(self) -> None:
        """A new session: we are nowhere."""
        self._chat.is_joined = False
        self._chat.occupants.clear()

    async def enter(self, client: Client) -> Trouble | None:
        """Get in.  None when we are."""
        self._left, self._trouble = trio.Event(), None
        try:
            trouble = await (self._join(client) if self._chat.is_room else self._greet(client))
        except Refused as exc:
            trouble = Trouble(str(exc.error))
        self._chat.is_joined = trouble is None
        return trouble

    async def stay(self, client: Client) -> Trouble:
        """Until we are out; why."""
        async with trio.open_nursery() as nursery:
            if self._chat.is_room:
                nursery.start_soon(self._ping, client)
            await self._left.wait()
            nursery.cancel_scope.cancel()
        self._chat.is_joined = False
        return self._trouble or Trouble("out of the room")

    def leave(self, reason: str) -> None:
        """It showed that we are out."""
        self._trouble = self._trouble or Trouble(reason)
        self._left.set()

    def presence(self, stanza: Element) -> None:
        """A presence from the room."""
        match read_presence(stanza, self._chat.nick):
            case Joined() | NotJoined() as answer:
                if isinstance(answer, Joined):
                    self._chat.nick = answer.nick
                    self._chat.occupants.add(answer.nick)
                if self._answers is not None:
                    self._answers.send_nowait(answer)
                    self._answers = None
            case Gone() as gone:
                self._trouble = Trouble(gone.reason, gone.is_final)
                self._left.set()
            case Moved() as moved:
                was_present = moved.nick in self._chat.occupants
                if moved.is_present:
                    self._chat.occupants.add(moved.nick)
                else:
                    self._chat.occupants.discard(moved.nick)
                    self._chat.forget_author(str(self._chat.jid.with_resource(moved.nick)))
                if self._chat.is_joined and was_present != moved.is_present:
                    self._moved(moved)

    async def _greet(self, client: Client) -> Trouble | None:
        # What our own server can is all that there is to know of a person.
        self._chat.features = await _features_of(client, str(client.account.bare))
        return None

    async def _join(self, client: Client) -> Trouble | None:
        for attempt in range(NICKS_MAX):
            answer = await self._ask(client, self._nick + "_" * attempt)
            if not isinstance(answer, NotJoined) or answer.error.condition != "conflict":
                break
        if answer is None:
            return Trouble("no answer from the room")
        if isinstance(answer, NotJoined):
            return Trouble(str(answer.error), answer.is_final)
        if answer.is_new:
            await self._own(client)
        self._chat.features = await _features_of(client, str(self._chat.jid))
        if answer.is_owner and not answer.is_new and "muc_temporary" in self._chat.features:
            await self._own(client)
        return None

    async def _ask(self, client: Client, nick: str) -> Joined | NotJoined | None:
        self._answers, answers = trio.open_memory_channel[Joined | NotJoined](1)
        client.send(join_request(self._chat.jid.with_resource(nick)))
        with trio.move_on_after(ENTRY_S):
            return await answers.receive()
        return None

    async def _own(self, client: Client) -> None:
        """A room of ours: open it, and let it outlive us, so that its archive does."""
        room = str(self._chat.jid)
        try:
            answer = await client.ask(iq(room, "get", element("query", MUC_OWNER)))
            await client.ask(iq(room, "set", own_form(answer)))
        except Refused:
            # It knows no such wish: at least unlock it.
            await client.ask(iq(room, "set", own_form(None)))

    async def _ping(self, client: Client) -> None:
        """A room's server may forget us without a word.                                          XEP-0410"""
        while True:
            await trio.sleep(SELF_PING_S)
            try:
                await client.ping(self._chat.jid.with_resource(self._chat.nick))
            except Refused as exc:
                if exc.error.condition in ("not-acceptable", "item-not-found"):
                    self.leave("the room had forgotten us")


async def _features_of(client: Client, jid: str) -> frozenset[str]:
    try:
        answer = await client.ask(iq(jid, "get", element("query", DISCO_INFO)))
    except Refused:
        return frozenset()
    query = answer.find(f"{{{DISCO_INFO}}}query")
    found = children(query, "feature", DISCO_INFO) if query is not None else ()
    return frozenset(part.get("var", "") for part in found)
