"""The connector against a server that speaks XMPP and breaks on command."""

from __future__ import annotations

from typing import Any

import pytest
import trio
import trio.testing

from bridged.connectors import ConnectorState
from bridged.connectors.intent import Delivered, Failed, Quoted, Speaker
from bridged.connectors.xmpp.settings import TlsFiles
from bridged.errors import BadCredentials, Disconnected

ROOM = "ops@muc.localhost"
DIRECT = "msgr://channels/acme/bridge/xmpp/alice@localhost"


async def test_a_line_goes_both_ways(site: Any) -> None:
    alice = await site.server.person("alice")
    await alice.join(ROOM)
    await site.up()
    said_as = await alice.say(ROOM, "hello")
    await site.house.until(lambda: site.house.texts() == ["hello"])
    assert site.house.last("inbound_stanza")["remote_id"] == said_as
    outcome = await site.house.outcome(site.house.say("hi"))
    heard = await alice.receive()
    assert (heard.sender, heard.text) == ("acme-bridge", "<irene> hi")
    assert outcome == Delivered(remote_id=heard.stanza_id)
    assert site.house.states[-1] == (ConnectorState.RUNNING, "1 of 1 chats")


async def test_formatting_crosses_both_ways(site: Any) -> None:
    house, alice = site.house, await site.server.person("alice")
    await alice.join(ROOM)
    await site.up()
    await alice.say(ROOM, "a *b*")
    await house.until(house.texts)
    assert house.last("inbound_stanza")["html"] == "a <strong>b</strong>"
    await house.outcome(house.say("c d", html="c <em>d</em>"))
    assert (await alice.receive()).text == "<irene> c _d_"


async def test_edits_replies_reactions_and_retractions_go_both_ways(site: Any) -> None:
    house, alice = site.house, await site.server.person("alice")
    await alice.join(ROOM)
    await site.up()
    said_as = await alice.say(ROOM, "helo")
    await house.until(lambda: house.texts() == ["helo"])
    native_id = house.last("inbound_stanza")["origin_id"]
    await alice.edit(ROOM, native_id, "hello")
    await alice.react(ROOM, said_as, ["👍"])
    await alice.say(ROOM, "more", reply_to=said_as)
    await alice.retract(ROOM, said_as)
    await house.until(lambda: any(action == "redaction_event" for action, _ in house.published))
    assert house.last("edit_event")["remote_id"] == said_as
    assert house.last("edit_event")["text"] == "hello"
    assert house.last("reaction_event")["emojis"] == ["👍"]
    assert house.last("inbound_stanza")["reply_to"] == said_as
    assert house.last("redaction_event")["remote_id"] == said_as

    outcome = await house.outcome(house.say("one", key="one"))
    ours = await alice.receive()
    about: dict[str, Any] = {
        "remote_id": outcome.remote_id,
        "payload": {"original": {"idempotency_key": "one"}},
    }
    await house.outcome(house.say("two", action="outbound_edit_message", **about))
    edit = await alice.receive({"edit"})
    assert (edit.refers_to, edit.text) == (ours.id, "<irene> two")
    await house.outcome(house.say("", action="outbound_reaction", emojis=("🎉",), added=("🎉",), **about))
    reaction = await alice.receive({"reaction"})
    assert (reaction.refers_to, reaction.emojis) == (ours.stanza_id, ("🎉",))
    quoted = Quoted(message_id="m", remote_id=outcome.remote_id, name="irene", text="two")
    await house.outcome(house.say("three", reply_to=quoted))
    assert (await alice.receive()).refers_to == ours.stanza_id
    await house.outcome(house.say("", action="outbound_delete_message", **about))
    assert (await alice.receive({"retract"})).refers_to == ours.stanza_id


async def test_an_edit_whose_id_nobody_told_us_still_finds_its_message(site: Any) -> None:
    house, alice = site.house, await site.server.person("alice")
    await alice.join(ROOM)
    await site.up()
    await house.outcome(house.say("one", key="one"))
    ours = await alice.receive()
    await site.down()
    await site.up()
    original = {"original": {"idempotency_key": "one"}}
    await house.outcome(house.say("two", action="outbound_edit_message", payload=original))
    assert (await alice.receive({"edit"})).refers_to == ours.id


async def test_one_to_one(site: Any) -> None:
    house, alice = site.house, await site.server.person("alice")
    await site.up(DIRECT)
    outcome = await house.outcome(house.say("psst", channel=DIRECT))
    heard = await alice.receive()
    assert (heard.sender, heard.text) == ("bridge@localhost", "<irene> psst")
    assert outcome == Delivered(remote_id=heard.id)
    await alice.mark("bridge@localhost", heard.id)
    await house.until(lambda: house.passing)
    assert house.passing[-1][1]["remote_id"] == heard.id
    await alice.say("bridge@localhost", "yes?")
    await house.until(lambda: house.texts() == ["yes?"])
    assert house.last("inbound_stanza")["channel"] == DIRECT


async def test_what_was_said_while_we_were_away_comes_in_order_and_once(site: Any) -> None:
    house, alice = site.house, await site.server.person("alice")
    await alice.join(ROOM)
    await site.up()
    await alice.say(ROOM, "before")
    await house.until(lambda: house.texts() == ["before"])
    await site.down()
    for number in range(130):  # more than a page
        await alice.say(ROOM, f"away {number}")
    await site.up()
    await alice.say(ROOM, "after")
    await house.until(lambda: house.texts()[-1] == "after")
    assert house.texts() == ["before", *(f"away {number}" for number in range(130)), "after"]


async def test_what_was_said_since_the_first_join_is_not_lost_with_us(site: Any) -> None:
    """Nobody had spoken yet: where to begin is known all the same."""
    house, alice = site.house, await site.server.person("alice")
    await alice.join(ROOM)
    await alice.say(ROOM, "long ago")
    await site.up()
    await site.down()
    await alice.say(ROOM, "away")
    await site.up()
    await house.until(house.texts)
    assert house.texts() == ["away"]


async def test_a_lost_place_in_the_archive_is_a_gap_that_is_told(site: Any) -> None:
    house, alice = site.house, await site.server.person("alice")
    await alice.join(ROOM)
    await site.up()
    await alice.say(ROOM, "before")
    await house.until(lambda: house.texts() == ["before"])
    await site.down()
    house.wall = 1.0
    await alice.say(ROOM, "lost")
    site.server.faults.expire_archive(ROOM, 2)
    house.wall = 4_000_000_000.0
    await alice.say(ROOM, "kept")
    await site.up()
    await house.until(lambda: house.texts()[-1] == "kept")
    gap = house.last("gap_event")
    assert gap["reason"] == "daemon_down"
    assert gap["from"] < gap["to"]


@pytest.mark.parametrize("then", ["cut", "half_open"])
async def test_a_message_whose_confirmation_was_lost_is_not_said_twice(site: Any, then: str) -> None:
    house, alice = site.house, await site.server.person("alice")
    await alice.join(ROOM)
    await site.up(ping_s=0.3, confirm_s=0.3)
    site.server.faults.drop_next_reply("bridge@localhost", then=then)
    outcome = await house.outcome(house.say("once"))
    await house.outcome(house.say("next"))
    heard = [await alice.receive(), await alice.receive()]
    assert [h.text for h in heard] == ["<irene> once", "<irene> next"]
    assert outcome == Delivered(remote_id=heard[0].stanza_id)
    assert not alice.heard_now()


async def test_a_message_written_by_an_earlier_life_is_looked_up(site: Any) -> None:
    house, alice = site.house, await site.server.person("alice")
    await alice.join(ROOM)
    await site.up()
    await house.outcome(house.say("arrived", key="a"))
    arrived = await alice.receive()
    await site.down()
    # The process died between the write and the final state, and once before the write.
    del house.outcomes["a"]
    house.written.add("b")
    never = house.say("never written", key="b")
    await site.up()
    assert await house.outcome(house.intents[0]) == Delivered(remote_id=arrived.stanza_id)
    await house.outcome(never)
    assert [h.text for h in [await alice.receive(), *alice.heard_now()]] == ["<irene> never written"]


async def test_a_cut_is_resumed_and_nobody_sees_us_leave(site: Any) -> None:
    house, alice = site.house, await site.server.person("alice")
    await alice.join(ROOM)
    await site.up()
    alice.heard_now({"join", "leave"})
    for number in range(3):
        site.server.faults.cut("bridge@localhost")
        await alice.say(ROOM, f"in {number}")
        await site.wait_fall(number + 1)
        await house.outcome(house.say(f"out {number}"))
    await house.until(lambda: len(house.texts()) == 3)
    assert house.texts() == ["in 0", "in 1", "in 2"]
    assert [h.text for h in alice.heard_now()] == ["<irene> out 0", "<irene> out 1", "<irene> out 2"]
    assert not alice.heard_now({"leave"})
    assert all(isinstance(fall, Disconnected) for fall in site.falls)


async def test_a_refused_resumption_is_a_new_session(site: Any) -> None:
    house, alice = site.house, await site.server.person("alice")
    await alice.join(ROOM)
    await site.up()
    site.server.faults.forget_session("bridge@localhost")
    site.server.faults.cut("bridge@localhost")
    await alice.say(ROOM, "in")
    await house.outcome(house.say("out"))
    await house.until(lambda: house.texts() == ["in"])
    assert (await alice.receive()).text == "<irene> out"


async def test_a_server_that_restarts_is_found_again(site: Any) -> None:
    house, alice = site.house, await site.server.person("alice")
    await alice.join(ROOM)
    await site.up()
    await site.server.stop()
    waiting = house.say("kept")
    await site.wait_fall(2)
    await site.server.start()
    await house.outcome(waiting)
    assert (await alice.receive()).text == "<irene> kept"


async def test_a_silent_server_is_lost_and_resumed(site: Any) -> None:
    house, alice = site.house, await site.server.person("alice")
    await alice.join(ROOM)
    await site.up(ping_s=0.3)
    site.server.faults.half_open("bridge@localhost")
    fall = await site.wait_fall()
    assert "answered nothing" in str(fall)
    await house.outcome(house.say("out"))
    assert (await alice.receive()).text == "<irene> out"


async def test_a_kick_is_followed_by_a_return(site: Any) -> None:
    house, alice = site.house, await site.server.person("alice")
    await alice.join(ROOM)
    await site.up()
    site.server.faults.kick(ROOM, "acme-bridge")
    await house.outcome(house.say("back"))
    assert (await alice.receive()).text == "<irene> back"
    assert not site.falls


async def test_a_ban_shuts_that_room_and_nothing_else(site: Any) -> None:
    house, alice = site.house, await site.server.person("alice")
    await alice.join(ROOM)
    await alice.join("dev@muc.localhost")
    dev = "msgr://channels/acme/bridge/xmpp/dev@muc.localhost"
    await site.up(dev, "msgr://channels/acme/bridge/xmpp/" + ROOM)
    site.server.faults.ban(ROOM, "bridge@localhost", "spam")
    await house.until(lambda: "banned" in house.states[-1][1])
    refused = await house.outcome(house.say("no"))
    assert isinstance(refused, Failed)
    assert refused.code == "forbidden"
    await house.outcome(house.say("yes", channel=dev))
    assert (await alice.receive()).text == "<irene> yes"
    assert not site.falls


async def test_a_muted_bridge_is_told_so(site: Any) -> None:
    house, alice = site.house, await site.server.person("alice")
    await alice.join(ROOM)
    await site.up()
    site.server.faults.mute(ROOM, "acme-bridge")
    outcome = await house.outcome(house.say("hi"))
    assert isinstance(outcome, Failed)
    assert (outcome.code, outcome.native) == ("forbidden", "forbidden")


async def test_a_taken_nick_gets_an_underscore_and_its_lines_are_ours_later(site: Any) -> None:
    house, alice = site.house, await site.server.person("alice")
    await alice.join(ROOM, "acme-bridge")
    await site.up()
    await house.outcome(house.say("one"))
    assert (await alice.receive()).sender == "acme-bridge_"
    await site.down()
    await alice.change_nick(ROOM, "alice")
    await site.up()
    await alice.say(ROOM, "two")
    await house.until(lambda: house.texts() == ["two"])


async def test_a_room_of_ours_is_open_and_outlives_us(site: Any) -> None:
    house, alice = site.house, await site.server.person("alice")
    await site.up()
    await house.outcome(house.say("first"))
    await site.down()
    await alice.join(ROOM)
    await alice.say(ROOM, "while away")
    await site.up()
    await house.until(lambda: house.texts() == ["while away"])


async def test_doubled_stanzas_are_published_once(site: Any) -> None:
    house, alice = site.house, await site.server.person("alice")
    await alice.join(ROOM)
    await site.up()
    site.server.faults.duplicate("bridge@localhost")
    await alice.say(ROOM, "one")
    await alice.say(ROOM, "two")
    await house.until(lambda: house.texts()[-1:] == ["two"])
    assert house.texts() == ["one", "two"]


async def test_a_private_word_to_the_bridge_is_answered_that_nobody_reads_it(site: Any) -> None:
    alice = await site.server.person("alice")
    await alice.join(ROOM)
    connector = await site.up()
    await alice.say("bridge@localhost", "psst")
    assert (await alice.receive({"error"})).sender == "bridge@localhost"
    await alice.say(ROOM, "loud")
    await site.house.until(lambda: site.house.texts() == ["loud"])
    assert connector.passed["in no conversation"] == 1


async def test_channels_are_followed_while_connected(site: Any) -> None:
    alice = await site.server.person("alice")
    await alice.join(ROOM)
    connector = await site.up()
    dev = "msgr://channels/acme/bridge/xmpp/dev@muc.localhost"
    connector.set_channels([dev])
    await site.server.wait_occupant("dev@muc.localhost", "acme-bridge")
    await site.house.outcome(site.house.say("hi", channel=dev))
    while "acme-bridge" in site.server.occupants(ROOM):
        await site.server.logged.wait()


@pytest.mark.parametrize(
    "data",
    [
        "<!DOCTYPE x [<!ENTITY a 'b'>]>",
        "<!-- hello -->",
        "<?php ?>",
        "<message><body>",
        "</wrong>",
        "<a>" * 100,
    ],
)
async def test_a_stream_that_breaks_the_rules_ends_and_is_made_anew(site: Any, data: str) -> None:
    house, alice = site.house, await site.server.person("alice")
    await alice.join(ROOM)
    await site.up(ping_s=0.3)
    site.server.faults.garbage(data, "bridge@localhost")
    await alice.say(ROOM, "still here")
    await house.until(lambda: house.texts() == ["still here"])


@pytest.mark.parametrize("condition", ["conflict", "system-shutdown", "policy-violation"])
async def test_a_stream_error_names_itself(site: Any, condition: str) -> None:
    await site.up()
    await trio.testing.wait_all_tasks_blocked(0.05)  # what we have to say is said
    site.server.faults.stream_error("bridge@localhost", condition)
    fall = await site.wait_fall()
    assert condition in str(fall)
    assert ("resource" in fall.hint) == (condition == "conflict")


# -- logging in -------------------------------------------------------------------------------------------


async def test_a_wrong_password_is_not_tried_again_and_never_sent_in_the_clear(site: Any) -> None:
    site.house.password = "wrong"
    site.start({})
    fall = await site.wait_fall()
    assert isinstance(fall, BadCredentials)
    assert "not-authorized" in str(fall)
    assert "vault put" in fall.hint
    await trio.sleep(0.1)
    assert len(site.falls) == 1
    sent = [entry.xml for entry in site.server.log if entry.direction == "in" and "<auth" in entry.xml]
    assert [("PLAIN" in xml, "SCRAM" in xml) for xml in sent] == [(False, True)]


async def test_an_unknown_authority_is_refused(site: Any) -> None:
    site.start({"tls": True})
    fall = await site.wait_fall()
    assert isinstance(fall, Disconnected)
    assert "certificate" in str(fall)


async def test_an_authority_that_cannot_be_read_is_named(site: Any, tmp_path: Any) -> None:
    site.start({"tls": TlsFiles(ca=str(tmp_path / "none.pem"))})
    fall = await site.wait_fall()
    assert isinstance(fall, BadCredentials)
    assert "none.pem" in str(fall)


async def test_direct_tls(site: Any) -> None:
    host, port = site.server.direct_address
    await site.up(server=f"{host}:{port}", direct_tls=True)
    await site.server.wait_occupant(ROOM, "acme-bridge")


async def test_what_another_client_of_the_account_gets_and_says_is_seen(site: Any) -> None:
    house, alice = site.house, await site.server.person("alice")
    await site.up(DIRECT)
    phone = await site.server.person("bridge", resource="phone")
    await alice.say("bridge@localhost/phone", "to the phone")
    await house.until(lambda: house.texts() == ["to the phone"])
    await phone.say("alice@localhost", "from the phone")
    await house.until(lambda: house.texts()[-1] == "from the phone")
    assert house.last("inbound_stanza")["channel"] == DIRECT
    assert house.last("inbound_stanza")["sender"]["ref"] == "msgr://identity/bridges/xmpp/bridge@localhost"


async def test_a_forged_carbon_is_nothing(site: Any) -> None:
    house, alice = site.house, await site.server.person("alice")
    connector = await site.up(DIRECT)
    forged = (
        "<message from='mallory@localhost/x' to='bridge@localhost/bridged.main'>"
        "<received xmlns='urn:xmpp:carbons:2'><forwarded xmlns='urn:xmpp:forward:0'>"
        "<message xmlns='jabber:client' from='alice@localhost/x' to='bridge@localhost' type='chat'>"
        "<body>forged</body></message></forwarded></received></message>"
    )
    site.server.faults.garbage(forged, "bridge@localhost")
    await alice.say("bridge@localhost", "true")
    await house.until(house.texts)
    assert house.texts() == ["true"]
    assert connector.passed["a forged carbon"] == 1


async def test_a_room_that_forgot_us_is_entered_again(site: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bridged.connectors.xmpp.door.SELF_PING_S", 0.1)
    alice = await site.server.person("alice")
    await alice.join(ROOM)
    await site.up()
    site.server.faults.lose_occupant(ROOM, "acme-bridge")
    await alice.say(ROOM, "unheard, but archived")
    await site.server.wait_occupant(ROOM, "acme-bridge")
    await site.house.until(site.house.texts)
    assert not site.falls


async def test_more_than_can_be_held_is_read_from_the_archive(
    site: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bridged.connectors.xmpp.line.HELD_MAX", 5)
    house, alice = site.house, await site.server.person("alice")
    await alice.join(ROOM)
    await site.up()
    for number in range(60):
        await alice.say(ROOM, f"{number}")
    await house.until(lambda: house.texts()[-1:] == ["59"])
    assert house.texts() == [str(number) for number in range(60)]


async def test_several_people_react_through_one_account(site: Any) -> None:
    house, alice = site.house, await site.server.person("alice")
    await alice.join(ROOM)
    await site.up()
    said_as = await alice.say(ROOM, "done")
    for name, emoji in (("irene", "👍"), ("ivan", "🎉")):
        speaker = Speaker(ref=f"msgr://identity/bridges/irc/net/{name}", name=name, service="irc")
        more = {"remote_id": said_as, "emojis": (emoji,), "added": (emoji,), "sender": speaker}
        await house.outcome(house.say("", action="outbound_reaction", **more))
    assert (await alice.receive({"reaction"})).emojis == ("👍",)
    assert (await alice.receive({"reaction"})).emojis == ("👍", "🎉")
