"""What an XMPP server does, seen by slixmpp.  Each scenario runs on the fake and on a real Prosody."""

from __future__ import annotations

import itertools
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import attrs
import pytest
import trio
from trio_asyncio import aio_as_trio

from tests.contract.xmpp_person import XmppPerson, xmpp_person

_numbers = itertools.count(1)


@attrs.frozen
class Place:
    """A server to try; alice, bob and bridge have accounts there."""

    address: tuple[str, int]
    context: ssl.SSLContext

    def room(self) -> str:
        """A room that no other scenario uses."""
        return f"c{next(_numbers)}@muc.localhost"


@asynccontextmanager
async def two(place: Place) -> AsyncIterator[tuple[XmppPerson, XmppPerson, str]]:
    """alice and bob in a new room."""
    room = place.room()
    async with (
        xmpp_person(place.address, "alice", place.context) as alice,
        xmpp_person(place.address, "bob", place.context) as bob,
    ):
        await alice.join(room)
        await bob.join(room)
        yield alice, bob, room


async def say(place: Place) -> None:
    """A message reaches everyone once, the sender too, with the room's id."""
    async with two(place) as (alice, bob, room):
        sent = alice.say(room, "grüße 🎉  with  spaces ")
        heard = await bob.receive()
        assert (heard.sender, heard.text, heard.id) == ("alice", "grüße 🎉  with  spaces ", sent)
        assert (await alice.echo(sent)).stanza_id == heard.stanza_id != ""


async def reply(place: Place) -> None:
    async with two(place) as (alice, bob, room):
        alice.say(room, "question")
        asked = await bob.receive()
        bob.say(room, "answer", reply_to=asked.stanza_id, author=f"{room}/alice")
        assert (await alice.receive()).refers_to == asked.stanza_id


async def edit(place: Place) -> None:
    """A correction names the first id, and has a stanza-id of its own."""
    async with two(place) as (alice, bob, room):
        first = alice.say(room, "teh")
        heard = await bob.receive()
        alice.edit(room, first, "the")
        corrected = await bob.receive("edit")
        assert (corrected.refers_to, corrected.text) == (first, "the")
        assert corrected.stanza_id not in ("", heard.stanza_id)


async def react(place: Place) -> None:
    """Reactions are the full set each time; an empty one takes them back."""
    async with two(place) as (alice, bob, room):
        alice.say(room, "like me")
        heard = await bob.receive()
        for emojis in (["👍", "🎉"], ["🎉"], []):
            bob.react(room, heard.stanza_id, emojis)
            reaction = await alice.receive("reaction")
            assert (reaction.refers_to, reaction.emojis) == (heard.stanza_id, frozenset(emojis))
            assert reaction.stanza_id


async def retract(place: Place) -> None:
    async with two(place) as (alice, bob, room):
        sent = alice.say(room, "oops")
        own = await alice.echo(sent)
        alice.retract(room, own.stanza_id)
        assert (await bob.receive("retract")).refers_to == own.stanza_id


async def long_text(place: Place) -> None:
    """Fifteen thousand bytes and many lines are one message."""
    async with two(place) as (alice, bob, room):
        text = "\n".join("a line of some length, " * 10 for _ in range(60))
        alice.say(room, text)
        assert (await bob.receive()).text == text


async def hostile_text(place: Place) -> None:
    """Whatever is in a text, it stays one message."""
    async with two(place) as (alice, bob, room):
        for text in (
            "<body>&lt;</body>",
            "]]>",
            "%s {0} \\r\\n",
            "\u202eright to left",
            "a\tb",
            "/me waves",
            "\u2028",
        ):
            alice.say(room, text)
            assert (await bob.receive()).text == text


async def nick_change(place: Place) -> None:
    """Another nick keeps the occupant; a taken one is refused."""
    async with two(place) as (alice, bob, room):
        alice.x.send_presence(pto=f"{room}/bob")
        refused = await alice.event("presence", fits=lambda presence: presence["type"] == "error")
        assert refused["error"]["condition"] == "conflict"
        await aio_as_trio(alice.x.plugin["xep_0045"].set_self_nick(room, "alison", timeout=5))
        alice.nick = "alison"
        alice.say(room, "me again")
        assert (await bob.receive()).sender == "alison"


async def resume(place: Place) -> None:
    """A cut connection is resumed: what was said meanwhile comes, once, in order."""
    async with two(place) as (alice, bob, room):
        bob.x.abort()
        await bob.event("disconnected")
        for number in range(5):
            alice.say(room, str(number))
        await trio.sleep(0.2)
        assert await bob.reconnect(place.address) == "session_resumed"
        assert [(await bob.receive()).text for _ in range(5)] == [str(n) for n in range(5)]


async def archive(place: Place) -> None:
    """The room's archive pages forward from any stanza-id, each message once."""
    async with two(place) as (alice, bob, room):
        ids = []
        for number in range(12):
            ids.append((await alice.echo(alice.say(room, str(number)))).stanza_id)
        mam = bob.x.plugin["xep_0313"]

        async def page(after: str) -> list[str]:
            found = await mam.retrieve(jid=room, rsm={"max": 5, "after": after})
            return [str(m["mam_result"]["id"]) for m in found["mam"]["results"]]

        assert await aio_as_trio(page(ids[0])) == ids[1:6]
        assert await aio_as_trio(page(ids[5])) == ids[6:11]
        assert await aio_as_trio(page(ids[10])) == ids[11:]


async def history(place: Place) -> None:
    """Who joins gets what was said before, marked as delayed, with the same ids."""
    room = place.room()
    async with (
        xmpp_person(place.address, "alice", place.context) as alice,
        xmpp_person(place.address, "bob", place.context) as bob,
    ):
        await alice.join(room)
        said = await alice.echo(alice.say(room, "before you came"))
        await bob.join(room, history=10)
        heard = await bob.receive()
        assert (heard.text, heard.delayed, heard.stanza_id) == ("before you came", True, said.stanza_id)


async def direct(place: Place) -> None:
    """One to one, with the receiver's own id of it."""
    async with (
        xmpp_person(place.address, "alice", place.context) as alice,
        xmpp_person(place.address, "bob", place.context) as bob,
    ):
        alice.say("bob@localhost", "psst")
        heard = await bob.receive()
        assert (heard.sender, heard.text) == ("alice@localhost", "psst")
        assert heard.stanza_id


async def self_ping(place: Place) -> None:
    """A ping to oneself in the room tells whether one is still inside."""
    async with two(place) as (alice, _bob, room):
        await aio_as_trio(alice.x.plugin["xep_0199"].send_ping(f"{room}/alice", timeout=5))
        alice.x.plugin["xep_0045"].leave_muc(room, "alice")
        with pytest.raises(Exception, match="not-acceptable"):
            await aio_as_trio(alice.x.plugin["xep_0199"].send_ping(f"{room}/alice", timeout=5))


SCENARIOS: tuple[Callable[[Place], Awaitable[None]], ...] = (
    say, reply, edit, react, retract, long_text, hostile_text, nick_change, resume, archive, history, direct, self_ping,
)  # fmt: skip
