"""What people on both sides of the bridge see.  Each scenario runs between the fakes and between real servers.

A scenario takes a `Relay`: someone with a plain IRC client in `#ops`, someone with slixmpp in the room `ops`, and
the bridge between them.  It says nothing of how the bridge is made, only of what arrives.
"""

from __future__ import annotations

import itertools
from collections.abc import Awaitable, Callable

import attrs
import trio

from tests.contract.irc_person import IrcPerson
from tests.contract.irc_person import Said as IrcSaid
from tests.contract.shard import BRIDGE, CHANNEL, ROOM
from tests.contract.xmpp_person import Said as XmppSaid
from tests.contract.xmpp_person import XmppPerson

_numbers = itertools.count(1)


@attrs.frozen
class Relay:
    """irene on IRC, alice on XMPP."""

    irc: IrcPerson
    xmpp: XmppPerson

    async def on_irc(self, part: str) -> IrcSaid:
        """The bridge's next line in the channel that has `part` in it."""
        while True:
            heard = await self.irc.receive(sender=BRIDGE, target=CHANNEL)
            if part in heard.text:
                return heard

    async def on_xmpp(self, part: str, *kinds: str) -> XmppSaid:
        """The bridge's next message in the room that has `part` in it."""
        while True:
            heard = await self.xmpp.receive(*kinds, sender=BRIDGE)
            if part in heard.text:
                return heard

    async def quiet(self) -> None:
        """Nothing more of the bridge comes to either side: no echo, no double."""
        mark = word()
        await self.irc.say(CHANNEL, mark)
        await self.on_xmpp(mark)
        mark = word()
        self.xmpp.say(ROOM, mark)
        await self.on_irc(mark)
        await trio.sleep(0.3)
        rest = [
            line for line in await self.irc.barrier() if line.command == "PRIVMSG" and line.nick == BRIDGE
        ]
        assert rest == []


def word() -> str:
    """A word that nobody says twice."""
    return f"w{next(_numbers):05}"


async def irc_to_xmpp(relay: Relay) -> None:
    """A line is read once in the room, with its speaker's name."""
    said = word()
    await relay.irc.say(CHANNEL, f"hello {said}")
    heard = await relay.on_xmpp(said)
    assert relay.irc.nick in heard.text
    await relay.quiet()


async def xmpp_to_irc(relay: Relay) -> None:
    """A message is read once in the channel, with its speaker's name."""
    said = word()
    relay.xmpp.say(ROOM, f"hello {said}")
    heard = await relay.on_irc(said)
    assert f"<{relay.xmpp.nick}>" in heard.text
    await relay.quiet()


async def both_ways_in_order(relay: Relay) -> None:
    """Twenty each way at once: all arrive, once, in order."""
    mark = word()
    for number in range(20):
        await relay.irc.say(CHANNEL, f"{mark} i{number:02}")
        relay.xmpp.say(ROOM, f"{mark} x{number:02}")
    on_xmpp = [(await relay.on_xmpp(mark)).text[-3:] for _ in range(20)]
    on_irc = [(await relay.on_irc(mark)).text[-3:] for _ in range(20)]
    assert on_xmpp == [f"i{n:02}" for n in range(20)]
    assert on_irc == [f"x{n:02}" for n in range(20)]
    await relay.quiet()


async def action(relay: Relay) -> None:
    """`/me` is read as an action, with who acts."""
    said = word()
    await relay.irc.say(CHANNEL, f"\x01ACTION waves {said}\x01")
    assert relay.irc.nick in (await relay.on_xmpp(said)).text
    said = word()
    relay.xmpp.say(ROOM, f"/me waves {said}")
    heard = await relay.on_irc(said)
    assert relay.xmpp.nick in heard.text and "/me" not in heard.text


async def reply(relay: Relay) -> None:
    """An answer is readable where replies do not exist: whom it answers, and what."""
    question, answer = word(), word()
    await relay.irc.say(CHANNEL, f"question {question}")
    asked = await relay.on_xmpp(question)
    relay.xmpp.say(ROOM, f"answer {answer}", reply_to=asked.stanza_id, author=f"{ROOM}/{BRIDGE}")
    heard = await relay.on_irc(answer)
    assert relay.irc.nick in heard.text and question in heard.text


async def edit(relay: Relay) -> None:
    """A correction is read with its new text and its author."""
    old, new = word(), word()
    first = relay.xmpp.say(ROOM, f"teh {old}")
    await relay.on_irc(old)
    relay.xmpp.edit(ROOM, first, f"the {new}")
    assert relay.xmpp.nick in (await relay.on_irc(new)).text


async def react(relay: Relay) -> None:
    """A reaction is read with its emoji, its author and what it is about."""
    said = word()
    await relay.irc.say(CHANNEL, f"like {said}")
    heard = await relay.on_xmpp(said)
    relay.xmpp.react(ROOM, heard.stanza_id, ["👍"])
    line = await relay.on_irc("👍")
    assert relay.xmpp.nick in line.text and said in line.text


async def retract(relay: Relay) -> None:
    """A retraction is told with its author and what it was about."""
    said = word()
    own = await relay.xmpp.echo(relay.xmpp.say(ROOM, f"oops {said}"))
    await relay.on_irc(said)
    relay.xmpp.retract(ROOM, own.stanza_id)
    assert relay.xmpp.nick in (await relay.on_irc(said)).text


async def long_text(relay: Relay) -> None:
    """Three thousand bytes come whole, cut at words, each line with its speaker."""
    words = [word() for _ in range(400)]
    relay.xmpp.say(ROOM, " ".join(words))
    seen: list[str] = []
    while len(seen) < len(words):
        line = (await relay.on_irc("w")).text
        assert line.startswith(f"<{relay.xmpp.nick}>")
        seen += [part for part in line.split() if part.startswith("w") and part[1:].isdecimal()]
    assert seen == words


async def several_lines(relay: Relay) -> None:
    """A text of several lines is several lines, each with its speaker: none can seem another's."""
    first, second = word(), word()
    relay.xmpp.say(ROOM, f"{first}\n<{relay.irc.nick}> {second}")
    assert (await relay.on_irc(first)).text.startswith(f"<{relay.xmpp.nick}>")
    assert (await relay.on_irc(second)).text.startswith(f"<{relay.xmpp.nick}>")


async def hostile_text(relay: Relay) -> None:
    """No text is a command, a stanza or another person's."""
    for text in ("\rQUIT :gone", "\nJOIN #elsewhere", "\u2028PART #ops", "%s {0} \\r\\n"):
        said = word()
        relay.xmpp.say(ROOM, f"{said} {text} {said}")
        await relay.on_irc(said)
    for text in ("<body>&lt;/body>", "]]></message>", "\x02bold\x02 \x0304red", "\u202eright to left"):
        said = word()
        await relay.irc.say(CHANNEL, f"{said} {text}")
        await relay.on_xmpp(said)
    await relay.quiet()


async def nick_change(relay: Relay) -> None:
    """After a new nick the name is new, on both sides."""
    old = relay.irc.nick
    await relay.irc.send("NICK irene2")
    await relay.irc.barrier()
    said = word()
    await relay.irc.say(CHANNEL, said)
    assert "irene2" in (await relay.on_xmpp(said)).text
    await relay.irc.send(f"NICK {old}")
    await relay.irc.barrier()


SCENARIOS: tuple[Callable[[Relay], Awaitable[None]], ...] = (
    irc_to_xmpp, xmpp_to_irc, both_ways_in_order, action, reply, edit, react, retract, long_text, several_lines,
    hostile_text, nick_change,
)  # fmt: skip
