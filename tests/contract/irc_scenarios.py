"""What an IRC server does, seen by plain clients.  Each scenario runs on the fakes and on the real servers.

A scenario takes a `Place`: where the server is and which it claims to be.  It asserts what both say alike, and
where InspIRCd and ngIRCd differ, what each says.
"""

from __future__ import annotations

import base64
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import attrs
import pytest
import trio

from tests.contract.irc_person import IrcPerson, irc_person

_numbers = itertools.count(1)


@attrs.frozen
class Place:
    """A server to try."""

    address: tuple[str, int]
    flavour: str
    """inspircd or ngircd."""
    second: tuple[str, int] | None = None
    """A server linked to the first."""

    @property
    def is_weak(self) -> bool:
        return self.flavour == "ngircd"


@asynccontextmanager
async def two(place: Place) -> AsyncIterator[tuple[IrcPerson, IrcPerson]]:
    """alice and bob, logged in side by side: InspIRCd takes a second for each."""
    alice = irc_person(place.address, "alice", register=False)
    bob = irc_person(place.address, "bob", register=False)
    async with alice as first, bob as second:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(first.register)
            nursery.start_soon(second.register)
        yield first, second


def channel() -> str:
    """A channel that no other scenario uses."""
    return f"#c{next(_numbers)}"


async def say(place: Place) -> None:
    """A line reaches the other members once, with its id where the server makes ids."""
    room = channel()
    async with two(place) as (alice, bob):
        await alice.join(room)
        await bob.join(room)
        await alice.say(room, "grüße 🎉  with  spaces ")
        heard = await bob.receive()
        expected = "grüße 🎉  with  spaces" + ("" if place.is_weak else " ")
        assert (heard.sender, heard.target, heard.text) == ("alice", room, expected)
        if not place.is_weak:
            assert (await alice.echo()).msgid == heard.msgid != ""
        assert [line for line in await bob.barrier() if line.command == "PRIVMSG"] == []


async def action(place: Place) -> None:
    """`/me` passes as CTCP ACTION."""
    room = channel()
    async with two(place) as (alice, bob):
        await alice.join(room)
        await bob.join(room)
        await alice.say(room, "\x01ACTION waves\x01")
        assert ((await bob.receive()).kind, "waves") == ("action", "waves")


async def confirmation(place: Place) -> None:
    """What confirms a line comes before the PONG of a PING behind it: an echo, or nothing but no error."""
    room = channel()
    async with irc_person(place.address, "alice") as alice:
        await alice.join(room)
        await alice.barrier()
        for text, target in (("to the room", room), ("to nobody", "absent")):
            await alice.say(target, text)
            before = await alice.barrier()
            commands = [line.command for line in before]
            if target == "absent":
                assert commands == ["401"]
            else:
                assert commands == ([] if place.is_weak else ["PRIVMSG"])


async def long_line(place: Place) -> None:
    """A line is cut at 510 bytes with the sender's mask before it."""
    room = channel()
    async with two(place) as (alice, bob):
        await alice.join(room)
        await bob.join(room)
        mask = "alice!~alice@127.0.0.1" if place.is_weak else "alice!alice@127.0.0.1"
        room_for = 510 - len(f":{mask} PRIVMSG {room} :")
        await alice.say(room, "x" * room_for)
        assert (await bob.receive()).text == "x" * room_for
        await alice.say(room, "x" * (room_for + 3))
        cut = (await bob.receive()).text
        assert cut == ("x" * (room_for - 5) + "[CUT]" if place.is_weak else "x" * room_for)


async def several_lines(place: Place) -> None:
    """Twenty lines in one write arrive in order."""
    room = channel()
    async with two(place) as (alice, bob):
        await alice.join(room)
        await bob.join(room)
        await alice.send(*(f"PRIVMSG {room} :{n}" for n in range(20)))
        assert [(await bob.receive()).text for _ in range(20)] == [str(n) for n in range(20)]


async def hostile_text(place: Place) -> None:
    """Whatever is in a text, it stays one message and no command."""
    room = channel()
    texts = [
        ":leading colon",
        "\x0304,12red\x0f \x02bold\x02",
        "%s %n {0} \\r\\n",
        "\u202eright to left",
        "a\tb\x7f",
        "JOIN #x",
    ]
    async with two(place) as (alice, bob):
        await alice.join(room)
        await bob.join(room)
        for text in texts:
            await alice.say(room, text)
            assert (await bob.receive()).text == text


async def reply_and_reaction(place: Place) -> None:
    """Client tags carry replies and reactions where tags are spoken; a weak server refuses the line."""
    room = channel()
    async with two(place) as (alice, bob):
        await alice.join(room)
        await bob.join(room)
        if place.is_weak:
            await bob.send(f"@+draft/reply=x PRIVMSG {room} :no tags here")
            await bob.numeric("421")
            return
        await alice.say(room, "question")
        asked = await bob.receive()
        await bob.send(f"@+draft/reply={asked.msgid} PRIVMSG {room} :answer")
        answer = await alice.receive()
        assert answer.line.tags["+draft/reply"] == asked.msgid
        await bob.send(f"@+draft/react=👍;+draft/reply={asked.msgid} TAGMSG {room}")
        reaction = await alice.wait(lambda line: line.command == "TAGMSG")
        assert (reaction.tags["+draft/react"], reaction.tags["+draft/reply"]) == ("👍", asked.msgid)


async def nick_change(place: Place) -> None:
    """A new nick is told to the channel; a taken one is refused."""
    room = channel()
    async with two(place) as (alice, bob):
        await alice.join(room)
        await bob.join(room)
        await alice.send("NICK bob")
        await alice.numeric("433")
        await alice.send("NICK alison")
        changed = await bob.wait(lambda line: line.command == "NICK")
        assert (changed.nick, changed.params) == ("alice", ("alison",))
        await alice.barrier()
        await alice.say(room, "me again")
        assert (await bob.receive()).sender == "alison"


async def nick_taken_at_login(place: Place) -> None:
    """A taken nick is refused before the welcome; the next good one completes the login."""
    async with (
        irc_person(place.address, "alice"),
        irc_person(place.address, "Alice", register=False) as second,
    ):
        await second.send("NICK Alice", "USER second 0 * :second")
        assert (await second.numeric("433")).params[:2] == ("*", "Alice")
        await second.send("NICK alice_")
        assert (await second.numeric("001")).params[0] == "alice_"


async def leaving(place: Place) -> None:
    """PART, QUIT and a broken connection are told with their reasons."""
    room = channel()
    async with irc_person(place.address, "alice") as alice:
        await alice.join(room)
        async with irc_person(place.address, "bob") as bob:
            await bob.join(room)
            await bob.send(f"PART {room} :so long")
            assert (await alice.wait(lambda line: line.command == "PART")).params == (room, "so long")
            await bob.join(room)
            await bob.send("QUIT :good night")
            left = await alice.wait(lambda line: line.command == "QUIT")
            assert left.params == (('"good night"',) if place.is_weak else ("Quit: good night",))
            with pytest.raises(EOFError):
                await bob.numeric("999")
        async with irc_person(place.address, "carol") as carol:
            await carol.join(room)
        lost = await alice.wait(lambda line: line.command == "QUIT")
        assert lost.params == (("Client closed connection",) if place.is_weak else ("Connection closed",))


async def kick_and_ban(place: Place) -> None:
    """Who is kicked is told why; who is banned does not come back in."""
    room = channel()
    async with two(place) as (alice, bob):
        await alice.join(room)
        await bob.join(room)
        await alice.send(f"KICK {room} bob :enough", f"MODE {room} +b bob!*@*")
        kicked = await bob.wait(lambda line: line.command == "KICK")
        assert (kicked.nick, kicked.params) == ("alice", (room, "bob", "enough"))
        await alice.barrier()
        await bob.say(room, "still here?")
        await bob.numeric("404")
        await bob.send(f"JOIN {room}")
        await bob.numeric("474")


async def moderated(place: Place) -> None:
    """Without a voice one is refused with 404."""
    room = channel()
    async with two(place) as (alice, bob):
        await alice.join(room)
        await bob.join(room)
        await alice.send(f"MODE {room} +m")
        await bob.wait(lambda line: line.command == "MODE")
        await bob.say(room, "may I?")
        await bob.numeric("404")
        await alice.send(f"MODE {room} +v bob")
        await bob.wait(lambda line: line.command == "MODE")
        await bob.say(room, "now I may")
        assert (await alice.receive()).text == "now I may"


async def topic(place: Place) -> None:
    """A topic reaches the members and whoever comes later."""
    room = channel()
    async with two(place) as (alice, bob):
        await alice.join(room)
        await alice.send(f"TOPIC {room} :what we talk about")
        assert (await alice.wait(lambda line: line.command == "TOPIC")).params == (room, "what we talk about")
        await bob.join(room)
        assert (await bob.numeric("332")).params[-1] == "what we talk about"


async def sasl(place: Place) -> None:
    """With services: PLAIN logs in before the welcome; a bad password is 904, and one may try again."""
    async with irc_person(place.address, "sam") as sam:
        await sam.send("PRIVMSG NickServ :REGISTER pw-sam sam@example.com")
        assert (await sam.numeric("900")).params[2] == "sam"
        await sam.send("QUIT")
    async with irc_person(place.address, "sam2", register=False) as sam:
        await sam.send("CAP LS 302", "NICK sam2", "USER sam2 0 * :sam")
        offered = await sam.wait(lambda line: line.command == "CAP")
        assert "sasl=PLAIN,EXTERNAL" in offered.params[-1].split()
        await sam.send("CAP REQ :sasl account-notify")
        await sam.wait(lambda line: line.command == "CAP")
        for password, code in (("wrong", "904"), ("pw-sam", "903")):
            await sam.send("AUTHENTICATE PLAIN")
            assert (await sam.wait(lambda line: line.command == "AUTHENTICATE")).params == ("+",)
            secret = base64.b64encode(f"\0sam\0{password}".encode()).decode()
            await sam.send(f"AUTHENTICATE {secret}")
            await sam.numeric(code)
        assert (await sam.numeric("900")).params[2] == "sam"
        await sam.send("CAP END")
        await sam.numeric("001")
        await sam.send("AUTHENTICATE SCRAM-SHA-512")
        assert (await sam.numeric("908")).params[1] == "PLAIN,EXTERNAL"


async def netsplit(place: Place) -> None:
    """Two servers part: QUIT with both names on either side; they meet again with plain JOINs."""
    assert place.second is not None
    room = channel()
    async with (
        irc_person(place.address, "alice") as alice,
        irc_person(place.address, "oscar") as oscar,
        irc_person(place.second, "bob") as bob,
    ):
        await alice.join(room)
        await bob.join(room)
        await alice.wait(lambda line: line.command == "JOIN" and line.nick == "bob")
        await oscar.send("OPER oper operpw")
        await oscar.numeric("381")
        await oscar.send("SQUIT b.localhost :test")
        lost = await alice.wait(lambda line: line.command == "QUIT")
        assert (lost.nick, lost.params) == ("bob", ("a.localhost b.localhost",))
        lost = await bob.wait(lambda line: line.command == "QUIT")
        assert (lost.nick, lost.params) == ("alice", ("b.localhost a.localhost",))
        await alice.say("bob", "are you there?")
        await alice.numeric("401")
        await oscar.send("CONNECT b.localhost")
        back = await alice.wait(lambda line: line.command == "JOIN" and line.nick == "bob")
        assert back.params[0] == room
        await bob.say(room, "here again")
        assert (await alice.receive()).text == "here again"


SCENARIOS: tuple[Callable[[Place], Awaitable[None]], ...] = (
    say, action, confirmation, long_line, several_lines, hostile_text, reply_and_reaction, nick_change,
    nick_taken_at_login, leaving, kick_and_ban, moderated, topic,
)  # fmt: skip
