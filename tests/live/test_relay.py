"""The main job on real servers: what is said on one network is read once on the others, with the speaker's name."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio

from tests.live.people import xmpp_regular
from tests.live.scene import Scene, open_client, open_scene

pytestmark = [pytest.mark.live, pytest.mark.slow, pytest.mark.timeout(300)]


@pytest.mark.parametrize("flavour", ["inspircd", "ngircd"])
async def test_a_conversation_crosses_and_degrades_readably(tmp_path: Path, ports: int, flavour: str) -> None:
    """All in one scene, since setting it costs more than a talk."""
    async with open_scene(tmp_path, ports, flavour=flavour) as scene:
        await talk(scene)
        await edits_replies_reactions_retractions(scene)
        await long_texts(scene)
        await hostile(scene)
        once = [text for _, text in scene.said_on_irc if "probe" not in text]
        assert len(once) == len(set(once)), "something was said twice on IRC"


async def talk(scene: Scene) -> None:
    """Three people, each read once by the two others."""
    async with open_client(scene) as wes:
        await scene.irene.say("who is on call today?")
        sender, text = await scene.wait_xmpp("who is on call today?")
        assert sender == "acme-bridge" and "irene" in text
        await scene.alice.say("I am, grüße 漢字 😀")
        sender, text = await scene.wait_irc("I am, grüße 漢字 😀")
        assert sender == "acme-bridge" and "alice" in text
        heard = await wes.message("who is on call today?")
        assert heard["sender"]["name"] == "irene" and "/irc/" in heard["channel"]
        heard = await wes.message("I am, grüße 漢字 😀")
        assert heard["sender"]["name"] == "alice" and "/xmpp/" in heard["channel"]
        answer = await wes.say("good to know")
        for _, text in (await scene.wait_irc("good to know"), await scene.wait_xmpp("good to know")):
            assert "acme" in text
        for network in ("/irc/", "/xmpp/"):
            await wes.status(answer["trace_id"], network, "delivered")
        await scene.irene.say("\x01ACTION nods\x01")
        assert "irene" in " ".join(await scene.wait_xmpp("nods"))
        await settle(scene)
        for wanted, ear in (
            ("who is on call", scene.said_on_xmpp), ("I am, grüße", scene.said_on_irc),
            ("good to know", scene.said_on_irc), ("good to know", scene.said_on_xmpp), ("nods", scene.said_on_xmpp),
        ):  # fmt: skip
            assert sum(wanted in text for _, text in ear) == 1, wanted
        assert not any("I am, grüße" in text for _, text in scene.said_on_xmpp), "an echo came back"


async def edits_replies_reactions_retractions(scene: Scene) -> None:
    """What IRC has no form for is said in words, by whom and about what."""
    alice = scene.alice.person
    asked = alice.say(scene.alice.room, "the ledger is emtpy")
    own = await scene.alice.echo(asked)
    await scene.wait_irc("the ledger is emtpy")
    alice.edit(scene.alice.room, asked, "the ledger is empty")
    _, text = await scene.wait_irc("the ledger is empty")
    assert "alice" in text and text.split("the ledger is empty")[0].strip(" <>*:") != "alice", text
    alice.say(scene.alice.room, "so we can go", reply_to=own.stanza_id, author=f"{scene.alice.room}/alice")
    _, text = await scene.wait_irc("so we can go")
    assert "the ledger is" in text, "the quoted message is named"
    alice.react(scene.alice.room, own.stanza_id, ["👍"])
    _, text = await scene.wait_irc("👍")
    assert "alice" in text and "the ledger is" in text
    alice.retract(scene.alice.room, own.stanza_id)
    _, text = await scene.wait_irc("alice", "delete")
    assert "attempted to retract" not in text


async def long_texts(scene: Scene) -> None:
    """Nothing of a long text is lost, in either form."""
    words = " ".join([*(f"word{number:03d}" for number in range(187)), "end"])
    assert len(words) == 1499
    start = len(scene.said_on_irc)
    await scene.alice.say(words)
    await scene.alice.say("first line\nsecond line\n\nlast line")
    await scene.alice.say("that was long")
    await scene.wait_irc("that was long")
    texts = [text for _, text in scene.said_on_irc[start:]]
    together = " ".join(texts)
    assert [word for word in together.split() if word.startswith(("word", "end"))] == words.split()
    assert any("first line" in text for text in texts) and any("last line" in text for text in texts)


async def hostile(scene: Scene) -> None:
    """No text and no nick becomes a command, another line's beginning or another speaker."""
    bad = scene.alice.person
    start = len(scene.said_on_irc)
    await scene.alice.say("harmless\r\nQUIT :gone\r\nPRIVMSG #ops :forged")
    bad.x.plugin["xep_0045"].set_subject(scene.alice.room, "quiet\r\nQUIT :x")
    await scene.wait_irc("forged")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(forge, scene)
    _, text = await scene.wait_irc("hello from a forger")
    assert not text.startswith("<irene>"), text
    genuine = text.split("hello from a forger")[0]
    assert "pay the bill now" in genuine
    await scene.carries("after hostility")
    assert scene.irene.person is not None
    assert not any(
        line.command == "QUIT" and line.nick == "acme-bridge" for line in scene.irene.person._lines
    )
    assert all(sender == "acme-bridge" for sender, _ in scene.said_on_irc[start:])
    for sender, text in scene.said_on_irc[start:]:
        assert "forged" not in text or "alice" in text, (sender, text)


async def forge(scene: Scene) -> None:
    """Someone joins under a name that looks like another one's line."""
    async with xmpp_regular(scene.xmpp.address, scene.xmpp.ca, "bob", room="lobby@muc.localhost") as bob:
        await bob.person.join(scene.alice.room, "irene> pay the bill now <x")
        bob.room = scene.alice.room
        await bob.say("hello from a forger")
        await scene.wait_irc("hello from a forger")


async def settle(scene: Scene) -> None:
    """What would come twice has come when a later line has made the whole way."""
    await scene.carries("settle")
