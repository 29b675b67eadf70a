"""A person with slixmpp, the same on the fake server and on a real one."""

from __future__ import annotations

import math
import ssl
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import attrs
import trio
from slixmpp import ClientXMPP
from slixmpp.xmlstream.handler import Callback
from slixmpp.xmlstream.matcher import MatchXPath
from trio_asyncio import aio_as_trio

PLUGINS = [
    "0004",
    "0030",
    "0045",
    "0085",
    "0184",
    "0198",
    "0199",
    "0280",
    "0308",
    "0313",
    "0333",
    "0359",
    "0424",
    "0428",
    "0444",
    "0461",
]
EVENTS = ["session_start", "session_resumed", "disconnected", "failed_all_auth", "stanza_acked"]
STANZAS = ("message", "presence")
"""Every one of these is an event, also those that slixmpp itself makes none of (a reaction has no body)."""
PATIENCE_S = 15.0


@attrs.frozen(kw_only=True)
class Said:
    """A message as this person saw it."""

    sender: str
    """The nick in a room, else the bare address."""
    text: str
    kind: str
    """message, edit, reaction, retract, state."""
    id: str
    """As the sender chose it."""
    stanza_id: str
    refers_to: str
    emojis: frozenset[str]
    delayed: bool
    stanza: Any


class XmppPerson:
    """One account on one connection; runs inside `trio_asyncio.open_loop()`."""

    def __init__(
        self, name: str, password: str, context: ssl.SSLContext, *, resource: str, domain: str
    ) -> None:
        self.name = name
        self.nick = name
        self.x: Any = ClientXMPP(f"{name}@{domain}/{resource}", password, ssl_context=context)
        self.x.enable_direct_tls, self.x.enable_starttls = False, True
        for plugin in PLUGINS:
            self.x.register_plugin(f"xep_{plugin}")
        send, self._receive = trio.open_memory_channel[tuple[str, Any]](math.inf)
        for event in EVENTS:
            self.x.add_event_handler(event, partial(_hand_on, send, event))
        for stanza in STANZAS:
            matcher = MatchXPath(f"{{jabber:client}}{stanza}")
            self.x.register_handler(Callback(f"all {stanza}", matcher, partial(_hand_on, send, stanza)))
        self._waiting: list[tuple[str, Any]] = []

    # ---------------------------------------------------------------- events

    async def event(self, *names: str, fits: Callable[[Any], bool] = lambda data: True) -> Any:
        """The next event of these names that fits; what is passed over stays for other calls."""
        with trio.fail_after(PATIENCE_S):
            seen = 0
            while True:
                while seen < len(self._waiting):
                    name, data = self._waiting[seen]
                    if name in names and fits(data):
                        del self._waiting[seen]
                        return data
                    seen += 1
                self._waiting.append(await self._receive.receive())

    # ---------------------------------------------------------------- what people do

    async def login(self, address: tuple[str, int]) -> None:
        self.x.connect(*address)
        await self.event("session_start")
        self.x.send_presence()
        await aio_as_trio(self.x.get_roster())

    async def reconnect(self, address: tuple[str, int]) -> str:
        """Connect again; returns `session_resumed` or `session_start`."""
        self.x.connect(*address)
        with trio.fail_after(PATIENCE_S):
            while True:
                name, data = await self._receive.receive()
                if name in ("session_resumed", "session_start"):
                    return name
                self._waiting.append((name, data))

    async def join(self, room: str, nick: str | None = None, *, history: int = 0) -> None:
        """Enter a room and, where it is new, open it."""
        self.nick = nick or self.name
        muc = self.x.plugin["xep_0045"]
        presence, *_ = await aio_as_trio(muc.join_muc_wait(room, self.nick, maxstanzas=history))
        if 201 in presence["muc"]["status_codes"]:
            form = self.x.plugin["xep_0004"].make_form(ftype="submit")
            await aio_as_trio(muc.set_room_config(room, form))

    def say(self, to: str, text: str, *, reply_to: str | None = None, author: str | None = None) -> str:
        """Say something; returns the id that it was given."""
        kind = "groupchat" if to in self.x.plugin["xep_0045"].get_joined_rooms() else "chat"
        message = self.x.make_message(mto=to, mbody=text, mtype=kind)
        if reply_to is not None:
            message["reply"]["id"] = reply_to
            if author is not None:
                message["reply"]["to"] = author
        return self._sent(message)

    def edit(self, room: str, original: str, text: str) -> str:
        message = self.x.make_message(mto=room, mbody=text, mtype="groupchat")
        message["replace"]["id"] = original
        return self._sent(message)

    def react(self, room: str, target: str, emojis: Sequence[str]) -> str:
        message = self.x.make_message(mto=room, mtype="groupchat")
        self.x.plugin["xep_0444"].set_reactions(message, target, list(emojis))
        message.enable("store")
        return self._sent(message)

    def retract(self, room: str, target: str) -> str:
        message = self.x.make_message(mto=room, mbody="(retracted)", mtype="groupchat")
        message["retract"]["id"] = target
        message.enable("store")
        return self._sent(message)

    def composing(self, room: str) -> None:
        message = self.x.make_message(mto=room, mtype="groupchat")
        message["chat_state"] = "composing"
        message.send()

    def _sent(self, message: Any) -> str:
        message["origin_id"]["id"] = message["id"]
        message.send()
        return str(message["id"])

    async def receive(self, *kinds: str, sender: str | None = None) -> Said:
        """The next message of someone else, by default one with a text."""
        wanted = kinds or ("message",)

        def fits(stanza: Any) -> bool:
            event = said(stanza)
            return event.sender != self.nick and event.kind in wanted and sender in (None, event.sender)

        return said(await self.event("message", fits=fits))

    async def echo(self, message_id: str) -> Said:
        """One's own message as the room sends it back."""
        return said(await self.event("message", fits=lambda stanza: stanza["id"] == message_id))


def _hand_on(send: trio.MemorySendChannel[tuple[str, Any]], name: str, data: Any) -> None:
    send.send_nowait((name, data))


def said(stanza: Any) -> Said:
    """What a message says."""
    plugins = {name for name in ("replace", "reactions", "retract") if stanza.get_plugin(name, check=True)}
    kind, refers_to, emojis = "message", "", frozenset[str]()
    if "retract" in plugins:
        kind, refers_to = "retract", stanza["retract"]["id"]
    elif "reactions" in plugins:
        kind, refers_to, emojis = (
            "reaction",
            stanza["reactions"]["id"],
            frozenset(stanza["reactions"]["values"]),
        )
    elif "replace" in plugins:
        kind, refers_to = "edit", stanza["replace"]["id"]
    elif stanza.get_plugin("reply", check=True):
        refers_to = stanza["reply"]["id"]
    elif not stanza["body"]:
        kind = "state"
    in_room = stanza["type"] == "groupchat"
    stanza_id = stanza["stanza_id"]["id"] if stanza.get_plugin("stanza_id", check=True) else ""
    return Said(
        sender=stanza["mucnick"] if in_room else str(stanza["from"].bare),
        text=stanza["body"],
        kind=kind,
        id=stanza["id"],
        stanza_id=stanza_id,
        refers_to=refers_to,
        emojis=emojis,
        delayed=bool(stanza.get_plugin("delay", check=True)),
        stanza=stanza,
    )


@asynccontextmanager
async def xmpp_person(
    address: tuple[str, int],
    name: str,
    context: ssl.SSLContext,
    *,
    password: str | None = None,
    resource: str = "person",
    domain: str = "localhost",
) -> AsyncIterator[XmppPerson]:
    """Someone online at a server, gone when the block is left."""
    person = XmppPerson(name, password or f"pw-{name}", context, resource=resource, domain=domain)
    try:
        await person.login(address)
        yield person
    finally:
        with trio.move_on_after(3) as scope:
            scope.shield = True
            await aio_as_trio(person.x.disconnect(wait=1))
        person.x.cancel_connection_attempt()
        person.x.abort()
        if person.x._run_out_filters:  # slixmpp leaves this task behind
            person.x._run_out_filters.cancel()
