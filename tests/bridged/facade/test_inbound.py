"""What the networks tell, applied once."""

from __future__ import annotations

from typing import Any

import attrs
import pytest

IRC = "msgr://channels/acme/bridge/irc/irc.lab/%23ops"
XMPP = "msgr://channels/acme/bridge/xmpp/ops@muc.localhost"
OTHER_IRC = "msgr://channels/acme/bridge/irc/irc.lab/%23board"
IRENE = "msgr://identity/bridges/irc/irc.lab/irene"


async def test_a_line_reaches_the_other_room_and_the_clients(house: Any) -> None:
    assert await house.hear(house.said(IRC, "hello", "r1")) == []
    (intent,) = await house.outbox("outbound_message")
    assert intent.payload["channel"] == XMPP
    assert intent.payload["sender"] == {"ref": IRENE, "name": "irene", "service": "irc"}
    assert intent.payload["text"] == "hello"
    assert intent.payload["routing"] == {"to": "ops@muc.localhost", "type": "groupchat"}
    (event,) = await house.events("message")
    assert event["trace_id"] == intent.trace_id
    assert event["channel"] == IRC
    assert event["deliveries"] == [{"channel": XMPP, "state": "queued"}]


async def test_every_intent_has_its_decision_before_it(house: Any) -> None:
    await house.hear(house.said(IRC, "hello", "r1"))
    (intent,) = await house.outbox("outbound_message")
    rows = await house.rows(
        "SELECT kind, word FROM trail WHERE id = ? AND trace_id = ?",
        intent.metadata["decision"],
        intent.trace_id,
    )
    assert rows == [("decision", "allow")]


async def test_the_same_record_and_the_same_message_are_applied_once(house: Any) -> None:
    record = house.said(IRC, "hello", "r1")
    await house.hear(record)
    before = await house.dump()
    await house.hear(record)  # the broker gives it again
    assert await house.dump() == before
    await house.hear(house.said(IRC, "hello", "r1"))  # the connector tells it again
    assert await house.count("message") == 1
    assert len(await house.outbox("outbound_message")) == 1


async def test_a_sender_chosen_id_counts_only_with_its_sender(house: Any) -> None:
    await house.hear(
        house.said(XMPP, "one", "x", who="alice", id_scope="sender"),
        house.said(XMPP, "two", "x", who="bob", id_scope="sender"),
        house.said(XMPP, "one", "x", who="alice", id_scope="sender"),
    )
    assert [event["text"] for event in await house.events("message")] == ["one", "two"]


async def test_our_own_delivery_is_recognised_when_it_comes_back(house: Any) -> None:
    await house.hear(house.said(IRC, "hello", "r1"))
    (intent,) = await house.outbox("outbound_message")
    await house.hear(
        house.record(
            "xmpp",
            "delivery_status",
            {"status": "sent", "channel": XMPP, "attempt": 1},
            trace_id=intent.trace_id,
        ),
        house.record(
            "xmpp",
            "delivery_status",
            {"status": "delivered", "channel": XMPP, "attempt": 1, "remote_id": "s1", "parts": ["s1", "s2"]},
            trace_id=intent.trace_id,
        ),
        house.said(XMPP, "hello", "s1", who="acme-bridge"),
        house.said(XMPP, "hello", "s2", who="acme-bridge"),
    )
    assert await house.count("message") == 1
    assert [event["status"] for event in await house.events("status")] == ["sent", "delivered"]


async def test_what_the_bridge_itself_says_on_a_network_is_no_message(house: Any) -> None:
    await house.hear(house.said(IRC, "hello", "r1", who="acme-bridge"))
    assert await house.count("message") == 0


async def test_an_edit_changes_the_message_and_names_it_in_each_room(house: Any) -> None:
    await house.hear(house.said(IRC, "helo", "r1"))
    (intent,) = await house.outbox("outbound_message")
    await house.hear(
        house.record(
            "xmpp",
            "delivery_status",
            {"status": "delivered", "channel": XMPP, "attempt": 1, "remote_id": "s1"},
            trace_id=intent.trace_id,
        ),
        house.told(IRC, "edit_event", remote_id="r1", edit_id="e1", text="hello"),
        house.told(IRC, "edit_event", remote_id="r1", edit_id="e1", text="hello"),
    )
    (edit,) = await house.outbox("outbound_edit_message")
    assert (edit.payload["remote_id"], edit.payload["text"]) == ("s1", "hello")
    assert edit.payload["original_text"] == "helo"
    (event,) = await house.events("edit")
    assert event["text"] == "hello"
    assert await house.rows("SELECT text, edits FROM message") == [("hello", 1)]
    assert await house.rows("SELECT text FROM earlier") == [("helo",)]


async def test_only_the_author_may_edit(house: Any) -> None:
    await house.hear(
        house.said(IRC, "pay 10", "r1"),
        house.told(IRC, "edit_event", who="mallory", remote_id="r1", edit_id="e1", text="pay 1000"),
    )
    assert await house.rows("SELECT text FROM message") == [("pay 10",)]
    assert await house.outbox("outbound_edit_message") == []
    assert ("not the author",) in await house.rows("SELECT word FROM trail WHERE kind = 'dropped'")


async def test_an_edit_before_its_message_is_said_and_the_message_then_adds_nothing(house: Any) -> None:
    await house.hear(house.told(IRC, "edit_event", remote_id="r1", edit_id="e1", text="hello"))
    await house.hear(house.said(IRC, "helo", "r1"))
    assert await house.rows("SELECT text, edits FROM message") == [("hello", 1)]
    assert [one.payload["text"] for one in await house.outbox("outbound_message")] == ["hello"]


async def test_an_edit_of_the_unknown_cannot_suppress_somebody_elses_message(house: Any) -> None:
    await house.hear(
        house.told(IRC, "edit_event", who="mallory", remote_id="r1", edit_id="e1", text="nothing to see")
    )
    await house.hear(house.said(IRC, "the truth", "r1"))
    assert [event["text"] for event in await house.events("message")] == ["nothing to see", "the truth"]


async def test_a_redaction_takes_the_text_out_of_every_place(house: Any) -> None:
    await house.hear(
        house.said(IRC, "xylophone", "r1"),
        house.told(IRC, "edit_event", remote_id="r1", edit_id="e1", text="xylophones"),
        house.told(IRC, "redaction_event", remote_id="r1"),
    )
    (intent,) = await house.outbox("outbound_delete_message")
    assert intent.payload["text"] == "xylophones"
    assert await house.rows("SELECT text, redacted FROM message") == [("", 1)]
    assert await house.count("earlier") == 0
    assert await house.rows("SELECT count(*) FROM message_text('xylophone*')") == [(0,)]
    assert len(await house.events("delete")) == 1


async def test_a_redaction_before_its_message_keeps_it_unsaid(house: Any) -> None:
    await house.hear(house.told(IRC, "redaction_event", remote_id="r1"))
    await house.hear(house.said(IRC, "oops", "r1"))
    assert await house.outbox("outbound_message") == []
    (event,) = await house.events("message")
    assert (event["text"], event["redacted"]) == ("", True)


async def test_strangers_cannot_redact_and_moderators_only_their_own_room(house: Any) -> None:
    await house.hear(
        house.said(IRC, "hello", "r1"), house.told(IRC, "redaction_event", who="mallory", remote_id="r1")
    )
    (intent,) = await house.outbox("outbound_message")
    await house.hear(
        house.record(
            "xmpp",
            "delivery_status",
            {"status": "delivered", "channel": XMPP, "attempt": 1, "remote_id": "s1"},
            trace_id=intent.trace_id,
        ),
        house.told(XMPP, "redaction_event", who=None, remote_id="s1", by="moderator"),
    )
    assert await house.rows("SELECT text FROM message") == [("hello",)]
    await house.hear(house.told(IRC, "redaction_event", who=None, remote_id="r1"))
    assert await house.rows("SELECT redacted FROM message") == [(1,)]


async def test_reactions_are_the_senders_whole_set(house: Any) -> None:
    await house.hear(
        house.said(IRC, "hello", "r1"),
        house.told(IRC, "reaction_event", who="bob", remote_id="r1", emojis=["👍", "🎉"]),
        house.told(
            IRC, "reaction_event", who="bob", remote_id="r1", emojis=["🎉"], timestamp="2026-11-24T08:00:02Z"
        ),
    )
    first, second = await house.outbox("outbound_reaction")
    assert (first.payload["added"], first.payload["removed"]) == (["👍", "🎉"], [])
    assert (second.payload["emojis"], second.payload["removed"]) == (["🎉"], ["👍"])
    assert second.payload["target"]["text"] == "hello"
    assert await house.rows("SELECT emoji FROM reaction") == [("🎉",)]


async def test_a_reply_is_shown_in_the_other_room_by_its_name_there(house: Any) -> None:
    await house.hear(house.said(XMPP, "question?", "s1", who="alice"))
    await house.hear(house.said(XMPP, "answer", "s2", who="bob", reply_to="s1"))
    intent = (await house.outbox("outbound_message"))[1]
    assert intent.payload["reply_to"]["name"] == "alice"
    assert intent.payload["reply_to"]["text"] == "question?"
    assert intent.payload["reply_to"]["remote_id"] is None


async def test_a_gap_is_told_in_the_other_room_with_both_times_and_no_text(house: Any) -> None:
    await house.hear(house.said(IRC, "confidential", "r1"))
    gap = {"from": "2026-11-24T08:00:03.000Z", "to": "2026-11-24T08:00:23.000Z", "reason": "daemon_down"}
    record = house.told(IRC, "gap_event", who=None, **gap)
    await house.hear(record)
    await house.hear(record)
    intents = await house.outbox("outbound_message")
    assert len(intents) == 2
    notice = intents[1].payload
    assert notice["channel"] == XMPP and notice["kind"] == "notice"
    assert "08:00:03" in notice["text"] and "08:00:23" in notice["text"]
    assert "confidential" not in notice["text"]
    assert (await house.events("message"))[1]["gap"] == gap


async def test_a_cursor_moves_with_what_it_stands_for_and_never_back(house: Any) -> None:
    first = house.said(IRC, "one", "r1", cursor={"stream": "#ops", "value": "1"})
    await house.hear(first)
    await house.hear(house.said(IRC, "two", "r2", cursor={"stream": "#ops", "value": "2"}))
    await house.hear(first)
    answer = await house.ask("cursor", principal="irc/main", service="irc", instance="main", position=0)
    assert answer == {"streams": {"#ops": "2"}, "at": {"#ops": "2026-11-24T08:00:00.125Z"}}


async def test_a_channel_that_is_linked_to_nothing_moves_the_cursor_and_leaves_nothing(house: Any) -> None:
    elsewhere = "msgr://channels/acme/bridge/irc/irc.lab/%23private"
    await house.hear(house.said(elsewhere, "not ours", "r1", cursor={"stream": "s", "value": "9"}))
    assert await house.count("message") == 0
    assert await house.rows("SELECT value FROM cursor") == [("9",)]


async def test_names_that_differ_in_case_are_one_channel(house: Any) -> None:
    await house.hear(house.said("msgr://channels/acme/bridge/irc/IRC.lab/%23OPS", "hello", "r1"))
    assert len(await house.outbox("outbound_message")) == 1


async def test_acks_are_cumulative_for_irc_and_exact_for_xmpp(house: Any) -> None:
    lines = [house.said(IRC, str(n), f"r{n}", network="irc.lab", target="#ops", offset=n) for n in range(3)]
    stanzas = [house.said(XMPP, str(n), f"s{n}", who="alice", stanza_id=f"s{n}") for n in range(3)]
    await house.hear(*lines, *stanzas)
    assert [one.payload["offset"] for one in await house.outbox("ack_offset")] == [2]
    assert [one.payload["stanza_id"] for one in await house.outbox("ack_receipt")] == ["s0", "s1", "s2"]


async def test_two_messages_under_one_trace_id_are_told_apart(house: Any) -> None:
    await house.hear(
        house.said(IRC, "one", "r1", trace_id="a" * 32), house.said(IRC, "two", "r2", trace_id="a" * 32)
    )
    first, second = await house.outbox("outbound_message")
    assert first.trace_id == "a" * 32
    assert second.trace_id != first.trace_id
    assert second.metadata["causation_id"] == "a" * 32


@pytest.mark.parametrize(
    ("forge", "code"),
    [
        (lambda house: house.said(IRC, "x", "r1", principal="xmpp/main"), "capability_denied"),
        (lambda house: house.said(IRC, "x", "r1", principal="nobody"), "capability_denied"),
        (lambda house: house.record("irc", "inbound_message", {}, seed=b"\7" * 32), "bad_envelope"),
        (lambda house: house.record("irc", "inbound_message", {}, raw=b"{"), "bad_envelope"),
        (lambda house: house.record("irc", "inbound_message", {"channel": IRC}), "missing_field"),
        (
            lambda house: house.said(IRC.replace("/acme/", "/beta/"), "x", "r1"),
            "tenant_mismatch",
        ),
        (
            lambda house: house.record("irc", "inbound_message", {"channel": IRC}, instance="other"),
            "capability_denied",
        ),
        (
            lambda house: house.record("irc", "edit_event", {"channel": XMPP}),
            "invalid_field",
        ),
    ],
)
async def test_a_forged_or_broken_record_is_a_dead_letter_and_an_event(
    house: Any, forge: Any, code: str
) -> None:
    bad = forge(house)
    refused = await house.hear(house.said(IRC, "before", "a"), bad, house.said(IRC, "after", "b"))
    assert [(one.record, one.code) for one in refused] == [(bad, code)]
    assert [event["text"] for event in await house.events("message")] == ["before", "after"]
    (event,) = await house.events("connector")
    assert event["dead_letter"]["code"] == code
    assert event["dead_letter"]["position"] == bad.position


async def test_a_record_over_which_we_fail_is_a_dead_letter_and_its_neighbours_live(
    house: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    add = house.core.messages.add

    def fail(tx: Any, said: Any, **more: Any) -> Any:
        if said.text == "poison":
            raise ZeroDivisionError
        return add(tx, said, **more)

    monkeypatch.setattr(house.core.messages, "add", fail)
    refused = await house.hear(
        house.said(IRC, "one", "a"), house.said(IRC, "poison", "b"), house.said(IRC, "two", "c")
    )
    assert [one.code for one in refused] == ["internal"]
    assert "poison" not in refused[0].reason
    assert [event["text"] for event in await house.events("message")] == ["one", "two"]


async def test_states_throttles_and_members_become_events(house: Any) -> None:
    await house.hear(
        house.record(
            "irc", "state_update", {"state": "running", "detail": "", "since": "2026-11-24T08:00:00Z"}
        ),
        house.record(
            "irc", "throttle", {"scope": "chat", "key": IRC, "retry_after_ms": 900, "reason": "flood"}
        ),
        house.told(IRC, "membership", who=None, change="join", member={"ref": IRENE, "name": "irene"}),
    )
    kinds = [event["event"] for event in await house.events()]
    assert kinds == ["connector", "throttle", "membership"]
    assert (await house.events("throttle"))[0]["conversation"] == "ops"


@pytest.mark.parametrize("first", ["delivered", "unknown", "failed"])
async def test_a_final_state_stays(house: Any, first: str) -> None:
    await house.hear(house.said(IRC, "hello", "r1"))
    (intent,) = await house.outbox("outbound_message")

    def status(word: str) -> Any:
        payload = {"status": word, "channel": XMPP, "attempt": 1}
        return house.record("xmpp", "delivery_status", payload, trace_id=intent.trace_id)

    await house.hear(status("sent"), status(first), status("delivered"), status("failed"), status("sent"))
    assert [event["status"] for event in await house.events("status")] == ["sent", first]
    assert await house.rows("SELECT state FROM delivery") == [(first,)]


async def test_a_status_counts_only_from_the_connector_that_has_the_channel(house: Any) -> None:
    await house.hear(house.said(IRC, "hello", "r1"))
    (intent,) = await house.outbox("outbound_message")
    forged = house.record(
        "irc",
        "delivery_status",
        {"status": "delivered", "channel": IRC, "attempt": 1},
        trace_id=intent.trace_id,
    )
    await house.hear(forged)
    assert await house.rows("SELECT state FROM delivery") == [("queued",)]


async def test_markup_of_a_stranger_is_built_anew(house: Any) -> None:
    html = '<b onclick="x()">hi</b><script>evil()</script>'
    await house.hear(house.said(IRC, "hi", "r1", html=html))
    await house.ask("send", conversation="ops", text="hi", html=html)
    for one in await house.outbox("outbound_message"):
        assert one.payload["html"].startswith("<strong>hi</strong>")
        assert "<script" not in one.payload["html"] and "onclick" not in one.payload["html"]


async def test_a_dead_letter_that_is_tried_again_counts_as_never_applied(
    house: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    await house.hear(house.said(IRC, "hello", "r1"))
    (intent,) = await house.outbox("outbound_message")
    payload = {"status": "sent", "channel": XMPP, "attempt": 1}
    record = house.record("xmpp", "delivery_status", payload, trace_id=intent.trace_id)
    with monkeypatch.context() as broken:
        broken.setattr(house.core.deliveries, "move", lambda *args, **more: 1 / 0)
        assert len(await house.hear(record)) == 1
        assert len(await house.hear(record)) == 1  # given again before the broker knew
    assert len(await house.events("connector")) == 1
    assert await house.hear(record) == []  # `bridgectl dlq retry`, with the fault mended
    assert await house.rows("SELECT state FROM delivery") == [("sent",)]


async def test_typing_on_a_network_passes_to_clients_and_to_the_other_room(house: Any) -> None:
    record = attrs.evolve(house.told(IRC, "typing_event", typing=True), offset=-1, position=-1, proof=None)
    await house.passing.take(record)
    assert [topic for topic, _ in house.fabric.passing] == ["bridge/core/event", "bridge/xmpp/main/typing"]
    forged = attrs.evolve(record, principal="xmpp/main")
    await house.passing.take(forged)
    assert len(house.fabric.passing) == 2
    await house.hear(house.said(IRC, "hello", "r1"))
    receipt = house.told(IRC, "receipt_event", who="bob", remote_id="r1", kind="read")
    await house.passing.take(attrs.evolve(receipt, offset=-1, position=-1, proof=None))
    assert len(house.fabric.passing) == 3
    assert await house.count("message") == 1
