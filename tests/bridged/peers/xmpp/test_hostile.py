"""Whatever clients send, the server goes on: random stanzas out of everything that it knows."""

from __future__ import annotations

import random

import pytest
import trio

from bridged.peers.xmpp import ns
from bridged.peers.xmpp.xml import Element, el, serialize
from shards.env import Env
from tests.bridged.peers.xmpp.test_server import ROOM, online, opened

SPACES = [value for key, value in vars(ns).items() if key.isupper() and isinstance(value, str)]
NAMES = (
    "query bind session enable disable r a resume ping set max after before x item history password invite decline "
    "destroy field value form body subject stanza-id delay replace retract reactions reply result forwarded status "
    "vCard blocklist time prefs metadata flip-page presence message iq error private priority"
)
WORDS = (
    "get set result error chat groupchat normal headline unavailable subscribe subscribed unsubscribe probe 0 1 -1 x "
    "99999999999999999999 alice@localhost alice@localhost/person bridge@localhost @@@ localhost muc.localhost "
    f"{ROOM} {ROOM}/alice {ROOM}/bridge none owner outcast moderator visitor true start end with ids remove "
    "2026-01-01T00:00:00Z 9999999-01-01T00:00:00Z nosuch@muc.localhost/x u@elsewhere.example"
)
VALUES = [*WORDS.split(), "", "9" * 5000]
KEYS = (
    "type to from id h previd resume jid nick role affiliation node var maxstanzas seconds since subscription"
)


def made(rng: random.Random, depth: int) -> Element:
    given = {key: rng.choice(VALUES) for key in rng.sample(KEYS.split(), rng.randrange(5))}
    kids = [made(rng, depth - 1) for _ in range(rng.randrange(3))] if depth else []
    text = [rng.choice(VALUES)] if rng.random() < 0.4 else []
    return el(rng.choice(SPACES[2:]), rng.choice(NAMES.split()), given, *kids, *text)


@pytest.mark.parametrize("seed", range(6))
async def test_random_stanzas_break_nothing(env: Env, autojump_clock: object, seed: int) -> None:
    rng = random.Random(seed)
    async with opened(env, hibernation_s=1.0) as srv:
        alice = await srv.person("alice")
        await alice.join(ROOM)
        for round_ in range(8):
            client, _ = await online(srv, sm=round_ % 2 == 0)
            await client.join()
            try:
                for _ in range(60):
                    stanza = made(rng, 2)
                    stanza.space, stanza.name = ns.CLIENT, rng.choice(("message", "presence", "iq", "iq"))
                    if rng.random() < 0.1:
                        stanza.space, stanza.name = ns.SM, rng.choice(("r", "a", "enable", "resume"))
                    await client.send(serialize(stanza))
                    await trio.testing.wait_all_tasks_blocked()
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                pass
            await trio.aclose_forcefully(client.stream)
            await trio.sleep(2)
        bob = await srv.person("bob")
        await bob.say("alice@localhost", "all is well")
        assert (
            await alice.receive_where(lambda heard: heard.text == "all is well")
        ).sender == "bob@localhost"
