"""The true client library against the fake, over sockets: what works here works because the fake speaks XMPP."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
import trio_asyncio
from slixmpp import ClientXMPP
from trio_asyncio import aio_as_trio

from bridged.peers.xmpp import XmppServer, open_xmpp_server
from shards.env import Env

ROOM = "ops@muc.localhost"
PLUGINS = [
    "0030",
    "0045",
    "0184",
    "0198",
    "0199",
    "0280",
    "0308",
    "0313",
    "0333",
    "0359",
    "0424",
    "0444",
    "0461",
]
EVENTS = [
    "session_start",
    "session_resumed",
    "disconnected",
    "failed_all_auth",
    "message",
    "groupchat_message",
    "stanza_acked",
    "sm_failed",
    "message_correction",
    "reactions",
    "carbon_received",
]


class Slix:
    def __init__(self, name: str, srv: XmppServer, *, password: str = "", resource: str = "one") -> None:
        jid = f"{name}@localhost/{resource}"
        self.x: Any = ClientXMPP(jid, password or f"pw-{name}", ssl_context=srv.client_context())
        self.srv = srv
        self.x.enable_direct_tls, self.x.enable_starttls = False, True
        for plugin in PLUGINS:
            self.x.register_plugin(f"xep_{plugin}")
        tx, self.rx = trio.open_memory_channel[tuple[str, Any]](math.inf)
        for name_ in EVENTS:
            self.x.add_event_handler(name_, lambda data, n=name_: tx.send_nowait((n, data)))

    async def event(self, *names: str) -> Any:
        with trio.fail_after(10):
            while True:
                name, data = await self.rx.receive()
                if name in names:
                    return data

    def connect(self, *, direct: bool = False) -> None:
        self.x.enable_direct_tls, self.x.enable_starttls = direct, not direct
        host, port = self.srv.direct_address if direct else self.srv.address
        self.x.connect(host, port)

    async def start(self, *, direct: bool = False) -> None:
        self.connect(direct=direct)
        await self.event("session_start")
        self.x.send_presence()
        await aio_as_trio(self.x.get_roster())

    async def join(self, nick: str) -> None:
        await aio_as_trio(self.x.plugin["xep_0045"].join_muc_wait(ROOM, nick, maxstanzas=20))
        if self.srv.rooms.find(ROOM).locked:  # type: ignore[union-attr]
            form = self.x.plugin["xep_0004"].make_form(ftype="submit")
            await aio_as_trio(self.x.plugin["xep_0045"].set_room_config(ROOM, form))


@asynccontextmanager
async def slix(name: str, srv: XmppServer, **options: Any) -> AsyncIterator[Slix]:
    client = Slix(name, srv, **options)
    try:
        yield client
    finally:
        with trio.move_on_after(3) as scope:
            scope.shield = True
            await aio_as_trio(client.x.disconnect(wait=1))
        client.x.cancel_connection_attempt()
        client.x.abort()
        if client.x._run_out_filters:
            client.x._run_out_filters.cancel()


@pytest.fixture
async def srv(env: Env) -> AsyncIterator[XmppServer]:
    async with trio_asyncio.open_loop(), open_xmpp_server(env, host="127.0.0.1") as server:
        server.add_user("bridge", "pw-bridge")
        yield server


@pytest.mark.parametrize("direct", [False, True])
@pytest.mark.parametrize("mechanism", ["SCRAM-SHA-1", "SCRAM-SHA-256"])
async def test_login(env: Env, direct: bool, mechanism: str) -> None:
    async with (
        trio_asyncio.open_loop(),
        open_xmpp_server(env, host="127.0.0.1", mechanisms=(mechanism,)) as srv,
    ):
        srv.add_user("bridge", "pw-bridge")
        async with slix("bridge", srv) as client:
            await client.start(direct=direct)
            assert client.x.boundjid.full == "bridge@localhost/one"


async def test_a_wrong_password_is_refused(srv: XmppServer) -> None:
    async with slix("bridge", srv, password="wrong") as client:
        client.connect()
        await client.event("failed_all_auth")


async def test_a_room_carries_both_ways(srv: XmppServer) -> None:
    alice = await srv.person("alice")
    await alice.join(ROOM)
    async with slix("bridge", srv) as client:
        await client.start()
        await client.join("bridge")
        said = await alice.say(ROOM, "hi")
        message = await client.event("groupchat_message")
        assert (message["body"], message["mucnick"]) == ("hi", "alice")
        assert message["stanza_id"]["id"] == said
        client.x.send_message(mto=ROOM, mbody="hello", mtype="groupchat")
        heard = await alice.receive()
        assert (heard.sender, heard.text, heard.kind) == ("bridge", "hello", "message")


async def test_edit_reaction_retraction_and_reply(srv: XmppServer) -> None:
    alice = await srv.person("alice")
    await alice.join(ROOM)
    async with slix("bridge", srv) as client:
        await client.start()
        await client.join("bridge")
        said = await alice.say(ROOM, "teh")
        await alice.edit(ROOM, alice.last_id(), "the")
        await alice.react(ROOM, said, ["👍", "🎉"])
        await alice.say(ROOM, "yes", reply_to=said, author=f"{ROOM}/alice")
        await alice.retract(ROOM, said)
        corrected = await client.event("message_correction")
        assert corrected["replace"]["id"] == "alice-2" or corrected["replace"]["id"].startswith("alice-")
        reacted = await client.event("reactions")
        assert reacted["reactions"]["values"] == {"👍", "🎉"}
        replied = await client.event("groupchat_message")
        assert (replied["body"], replied["reply"]["id"]) == ("yes", said)


async def test_a_cut_is_resumed_and_nothing_is_lost(srv: XmppServer) -> None:
    alice = await srv.person("alice")
    await alice.join(ROOM)
    async with slix("bridge", srv) as client:
        await client.start()
        await client.join("bridge")
        srv.faults.cut("bridge@localhost")
        await client.event("disconnected")
        for number in range(5):
            await alice.say(ROOM, f"while away {number}")
        await alice.say("bridge@localhost", "and to you")
        client.connect()
        await client.event("session_resumed")
        texts: list[str] = []
        while len(texts) < 6:
            texts.append((await client.event("message"))["body"])
        assert texts == [f"while away {n}" for n in range(5)] + ["and to you"]


async def test_the_archive_pages(srv: XmppServer) -> None:
    alice = await srv.person("alice")
    await alice.join(ROOM)
    for number in range(25):
        await alice.say(ROOM, str(number))
    async with slix("bridge", srv) as client:
        await client.start()
        await client.join("bridge")

        async def pages() -> list[str]:
            found = client.x.plugin["xep_0313"].iterate(jid=ROOM, rsm={"max": 10})
            return [m["mam_result"]["forwarded"]["stanza"]["body"] async for m in found]

        assert await aio_as_trio(pages()) == [str(n) for n in range(25)]


async def test_the_reply_dropped_after_the_effect_comes_after_the_resume(srv: XmppServer) -> None:
    alice = await srv.person("alice")
    await alice.join(ROOM)
    async with slix("bridge", srv) as client:
        await client.start()
        await client.join("bridge")
        srv.faults.drop_next_reply("bridge@localhost", then="cut")
        client.x.send_message(mto=ROOM, mbody="once", mtype="groupchat")
        assert (await alice.receive()).text == "once"
        await client.event("disconnected")
        client.connect()
        await client.event("session_resumed")
        assert (await client.event("groupchat_message"))["body"] == "once"
        assert alice.heard_now() == []


async def test_carbons_between_two_resources(srv: XmppServer) -> None:
    alice = await srv.person("alice")
    async with slix("bridge", srv) as one, slix("bridge", srv, resource="two") as two:
        await one.start()
        await two.start()
        await aio_as_trio(two.x.plugin["xep_0280"].enable())
        await alice.say("bridge@localhost/one", "psst")
        assert (await one.event("message"))["body"] == "psst"
        carbon = await two.event("carbon_received")
        assert carbon["carbon_received"]["body"] == "psst"


async def test_stop_and_start(srv: XmppServer) -> None:
    alice = await srv.person("alice")
    await alice.join(ROOM)
    async with slix("bridge", srv) as client:
        await client.start()
        await client.join("bridge")
        await srv.stop()
        await client.event("disconnected")
        await alice.say(ROOM, "missed")
        await srv.start()
        client.connect()
        await client.event("session_start")
        client.x.send_presence()
        await client.join("bridge")
        assert (await client.event("groupchat_message"))["body"] == "missed"
