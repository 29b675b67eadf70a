"""Payloads of every origin become one family of values, or an error that names the field."""

from __future__ import annotations

import json
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridged.envelope import Envelope, new_envelope
from bridged.errors import EnvelopeError
from bridged.schema import (
    ERROR_CODES,
    TRANSITIONS,
    DeliveryState,
    DeliveryStatus,
    Edit,
    Fault,
    Gap,
    InboundEvent,
    Membership,
    Message,
    Person,
    Presence,
    Reaction,
    Receipt,
    Redaction,
    StateUpdate,
    Throttle,
    Typing,
    ack_for,
    read_inbound,
)

EXAMPLES = json.loads((Path(__file__).parents[1] / "vectors/wire/examples.json").read_text())["examples"]
OPS = "msgr://channels/acme/bridge/irc/irc.libera.chat/%23ops"
OLA = {"ref": "msgr://identity/bridges/irc/irc.libera.chat/ola", "name": "ola"}
SAID: dict[str, Any] = {
    "channel": OPS,
    "remote_id": "Zx91kT",
    "sender": OLA,
    "sender_identity": OLA["ref"],
    "text": "deploy done",
    "html": None,
    "kind": "action",
    "timestamp": "2026-11-24T08:03:00.250Z",
    "reply_to": None,
    "cursor": {"stream": "#ops", "value": "101"},
    "id_scope": "sender",
}


def read(action: str, payload: dict[str, Any], *, service: str = "irc", **metadata: Any) -> InboundEvent:
    envelope = new_envelope(service, action, payload, now=1.5, trace_id="t1", metadata=metadata)
    return read_inbound(envelope, tenant="acme")


def example(action: str, service: str, nth: int = 0) -> Envelope:
    found = [
        e["envelope"]
        for e in EXAMPLES
        if (e["envelope"]["action"], e["envelope"]["service"]) == (action, service)
    ]
    return Envelope.decode(json.dumps(found[nth]).encode())


def test_a_message_of_ours_says_all_that_was_given() -> None:
    message = read("inbound_message", SAID)
    assert isinstance(message, Message)
    assert message.channel == OPS
    assert message.sender == Person(ref=OLA["ref"], name="ola")
    assert (message.remote_id, message.is_server_id) == ("Zx91kT", False)
    assert (message.text, message.html, message.kind) == ("deploy done", None, "action")
    assert message.at == datetime(2026, 11, 24, 8, 3, 0, 250_000, tzinfo=UTC)
    assert message.cursor is not None and message.cursor.value == "101"


def test_upstream_irc_is_read() -> None:
    message = read_inbound(example("inbound_message", "irc"), tenant="acme")
    assert isinstance(message, Message)
    assert message.channel == OPS
    assert message.sender == Person(ref=OLA["ref"], name="ola")
    assert (message.text, message.kind, message.is_server_id) == ("deploy done", "message", True)


def test_upstream_xmpp_is_read() -> None:
    message = read_inbound(example("inbound_stanza", "xmpp"), tenant="acme")
    assert isinstance(message, Message)
    assert message.channel == "msgr://channels/acme/bridge/xmpp/ola@example.org"
    assert (message.remote_id, message.text, message.kind) == ("1577836800", "hi", "message")
    assert message.sender.name == "ola@example.org"


def test_upstream_telegram_is_read() -> None:
    message = read_inbound(example("inbound_update", "telegram"), tenant="acme")
    assert isinstance(message, Message)
    assert message.channel == "msgr://channels/acme/bridge/telegram/-1001234567890"
    assert message.sender == Person(ref="msgr://identity/bridges/telegram/777000456", name="Ola Nordmann")
    assert (message.remote_id, message.reply_to) == ("514", "498")
    edit = read_inbound(example("inbound_update", "telegram", 1), tenant="acme")
    assert isinstance(edit, Edit)
    assert (edit.remote_id, edit.edit_id, edit.text) == ("12", "90413", "Ping")
    assert edit.sender == Person(ref="msgr://identity/bridges/telegram/777", name="777")


def test_upstream_matrix_is_read_in_its_three_forms() -> None:
    daemon = read_inbound(example("inbound_event", "matrix"), tenant="acme")
    union = read_inbound(example("inbound_event", "matrix", 1), tenant="acme")
    assert isinstance(daemon, Message) and isinstance(union, Message)
    assert daemon.channel == union.channel == "msgr://channels/acme/bridge/matrix/!ops:example.org"
    assert daemon.sender == union.sender
    assert (daemon.text, daemon.html) == ("hi", None)
    assert (union.text, union.html) == ("hi *there*", "hi <em>there</em>")
    with pytest.raises(EnvelopeError) as caught:  # the blueprint's form names no room
        read_inbound(example("inbound_message", "matrix"), tenant="acme")
    assert (caught.value.code, caught.value.field) == ("missing_field", "payload.channel")


def test_a_matrix_reply_is_found_in_its_relation() -> None:
    body = {"body": "yes", "m.relates_to": {"m.in_reply_to": {"event_id": "$q"}}}
    message = read(
        "inbound_event",
        {"event_id": "$a", "room_id": "!r", "sender": "@o:h", "body": body},
        service="matrix",
    )
    assert isinstance(message, Message) and message.reply_to == "$q"


def test_upstream_statuses_and_throttles_are_read() -> None:
    sent = read_inbound(example("delivery_status", "telegram"), tenant="acme")
    assert isinstance(sent, DeliveryStatus)
    assert sent.channel == "msgr://channels/acme/bridge/telegram/-1001234567890"
    assert (sent.state, sent.remote_id, sent.latency_ms) == (DeliveryState.SENT, "512", 184)
    failed = read_inbound(example("delivery_status", "telegram", 1), tenant="acme")
    assert isinstance(failed, DeliveryStatus) and failed.error is not None
    assert (failed.channel, failed.attempt) == (None, 3)
    assert failed.error.to_payload() == {
        "code": "forbidden",
        "message": "You can't write in this chat",
        "retryable": False,
        "native": "CHAT_WRITE_FORBIDDEN",
    }
    throttle = read_inbound(example("throttle", "telegram"), tenant="acme")
    assert throttle == Throttle(
        scope="account", key="acct-7", retry_after_ms=42000, reason="FLOOD_WAIT", queue_depth=17
    )


def test_the_other_events() -> None:
    edit = read("edit_event", {**SAID, "edit_id": "e2"})
    assert isinstance(edit, Edit) and edit.edit_id == "e2"
    redaction = read("redaction_event", {"channel": OPS, "remote_id": "a"})
    assert isinstance(redaction, Redaction) and redaction.sender is None
    assert redaction.at == datetime(1970, 1, 1, 0, 0, 1, 500_000, tzinfo=UTC)
    reaction = read(
        "reaction_event", {"channel": OPS, "remote_id": "a", "sender": OLA, "emojis": ["👍", "👍", "🎉"]}
    )
    assert isinstance(reaction, Reaction) and reaction.emojis == ("👍", "🎉")
    joined = read("membership", {"channel": OPS, "change": "join", "member": OLA})
    assert isinstance(joined, Membership) and joined.member == Person(**OLA)
    gap = read(
        "gap_event",
        {
            "channel": OPS,
            "from": "2026-11-24T08:00:00.000Z",
            "to": "2026-11-24T08:01:00.000Z",
            "reason": "daemon_down",
        },
    )
    assert isinstance(gap, Gap) and (gap.end - gap.begin).total_seconds() == 60
    typing = read("typing_event", {"channel": OPS, "sender": OLA, "typing": False})
    assert isinstance(typing, Typing) and not typing.is_typing
    receipt = read("receipt_event", {"channel": OPS, "sender": OLA, "remote_id": "a"})
    assert isinstance(receipt, Receipt) and receipt.is_read
    assert isinstance(read("presence_event", {"sender": OLA, "show": "away"}), Presence)
    state = read("state_update", {"state": "running", "detail": "", "since": "2026-11-24T08:00:00.000Z"})
    assert isinstance(state, StateUpdate) and state.account is None


def test_the_upstream_roster_is_a_snapshot_of_names() -> None:
    snapshot = read_inbound(example("membership", "irc"), tenant="acme")
    assert isinstance(snapshot, Membership)
    assert (snapshot.change, snapshot.names, snapshot.channel) == ("snapshot", ("ola", "kari"), OPS)


@pytest.mark.parametrize(
    ("change", "code", "field"),
    [
        ({"channel": None}, "missing_field", "payload.channel"),
        ({"channel": 5}, "invalid_field", "payload.channel"),
        ({"channel": "msgr://identity/msgr/x"}, "invalid_field", "payload.channel"),
        ({"channel": OPS.replace("acme", "beta")}, "tenant_mismatch", "payload.channel"),
        ({"channel": "msgr://channels/acme/bridge/xmpp/a@b"}, "invalid_field", "payload.channel"),
        ({"remote_id": None}, "missing_field", "payload.remote_id"),
        ({"remote_id": ""}, "invalid_field", "payload.remote_id"),
        ({"remote_id": "x" * 2000}, "invalid_field", "payload.remote_id"),
        ({"remote_id": ["x"]}, "invalid_field", "payload.remote_id"),
        ({"sender": None, "sender_identity": None}, "missing_field", "payload.sender"),
        ({"sender": {"ref": "msgr://identity/msgr/admin"}}, "invalid_field", "payload.sender.ref"),
        ({"sender": {"ref": "msgr://identity/bridges/xmpp/a@b"}}, "invalid_field", "payload.sender.ref"),
        ({"sender": {"ref": 7}}, "invalid_field", "payload.sender.ref"),
        ({"text": None}, "missing_field", "payload.text"),
        ({"text": 7}, "invalid_field", "payload.text"),
        ({"html": 7}, "invalid_field", "payload.html"),
        ({"kind": 7}, "invalid_field", "payload.kind"),
        ({"timestamp": "yesterday"}, "invalid_field", "payload.timestamp"),
        ({"timestamp": "2026-11-24T08:03:00"}, "invalid_field", "payload.timestamp"),
        ({"reply_to": {}}, "invalid_field", "payload.reply_to"),
        ({"cursor": "101"}, "invalid_field", "payload.cursor"),
        ({"cursor": {"stream": "a", "value": 101}}, "invalid_field", "payload.cursor"),
        ({"id_scope": "planet"}, "invalid_field", "payload.id_scope"),
    ],
)
def test_a_malformed_message_is_refused_by_its_field(change: dict[str, Any], code: str, field: str) -> None:
    with pytest.raises(EnvelopeError) as caught:
        read("inbound_message", SAID | change)
    assert (caught.value.code, caught.value.field) == (code, field)
    assert caught.value.code in ERROR_CODES


@pytest.mark.parametrize(
    ("action", "payload", "code", "field"),
    [
        ("outbound_message", {}, "unknown_action", "action"),
        ("membership", {"channel": OPS, "change": "explode"}, "invalid_field", "payload.change"),
        ("membership", {"channel": OPS, "change": "join", "by": 7}, "invalid_field", "payload.by"),
        ("gap_event", {"channel": OPS}, "missing_field", "payload.from"),
        (
            "gap_event",
            {
                "channel": OPS,
                "from": "2026-11-24T08:01:00Z",
                "to": "2026-11-24T08:00:00Z",
                "reason": "x",
            },
            "invalid_field",
            "payload.to",
        ),
        (
            "reaction_event",
            {"channel": OPS, "remote_id": "a", "sender": OLA},
            "missing_field",
            "payload.emojis",
        ),
        (
            "reaction_event",
            {"channel": OPS, "remote_id": "a", "sender": OLA, "emojis": [1]},
            "invalid_field",
            "payload.emojis",
        ),
        ("typing_event", {"channel": OPS, "sender": OLA, "typing": "yes"}, "invalid_field", "payload.typing"),
        ("delivery_status", {"status": "read"}, "invalid_field", "payload.status"),
        ("delivery_status", {}, "missing_field", "payload.status"),
        ("delivery_status", {"status": "sent", "attempt": -1}, "invalid_field", "payload.attempt"),
        ("delivery_status", {"status": "failed", "error": "x"}, "invalid_field", "payload.error"),
        ("throttle", {"scope": "chat", "key": "k"}, "missing_field", "payload.retry_after_ms"),
        ("state_update", {"state": "", "since": "2026-11-24T08:00:00Z"}, "invalid_field", "payload.state"),
    ],
)
def test_other_malformed_payloads_are_refused_by_their_field(
    action: str, payload: dict[str, Any], code: str, field: str
) -> None:
    with pytest.raises(EnvelopeError) as caught:
        read(action, payload)
    assert (caught.value.code, caught.value.field) == (code, field)


def test_another_tenants_envelope_is_refused() -> None:
    with pytest.raises(EnvelopeError) as caught:
        read("inbound_message", SAID, tenant="beta")
    assert (caught.value.code, caught.value.field) == ("tenant_mismatch", "metadata.tenant")


def test_a_final_state_is_not_lost_for_a_word_outside_the_closed_set() -> None:
    status = read("delivery_status", {"status": "failed", "channel": OPS, "error": {"code": "oops"}})
    assert isinstance(status, DeliveryStatus)
    assert status.error == Fault(code="internal", message="", retryable=False, native="oops")


def test_a_long_name_is_cut_and_not_refused() -> None:
    message = read("inbound_message", SAID | {"sender": OLA | {"name": "o" * 5000}})
    assert isinstance(message, Message) and len(message.sender.name) == 256


def test_states_go_one_way_and_end_once() -> None:
    final = {state for state in DeliveryState if state.is_final}
    assert {state.value for state in final} == {
        "delivered", "unknown", "denied", "failed", "expired", "dead_lettered"
    }  # fmt: skip
    for state in DeliveryState:
        assert not state.may_become(state)
        assert not (state.is_final and any(state.may_become(other) for other in DeliveryState))
    for state, nexts in TRANSITIONS.items():  # no way back: the order of the enum is the order of life
        order = list(DeliveryState)
        assert all(order.index(other) > order.index(state) for other in nexts)
    can_be_unknown = [s for s in DeliveryState if s.may_become(DeliveryState.UNKNOWN)]
    assert can_be_unknown == [DeliveryState.SENT]


def test_acknowledgements_have_the_form_that_the_sender_expects() -> None:
    assert ack_for(example("inbound_update", "telegram")) == (
        "ack_update",
        {"update_id": 90412, "status": "stored", "received_at": "2026-11-24T08:00:11.077Z"},
    )
    assert ack_for(example("inbound_event", "matrix")) == (
        "ack_update",
        {"event_id": "$Kx", "status": "stored"},
    )
    assert ack_for(example("inbound_event", "matrix", 1)) == (
        "ack_sync",
        {"next_batch": "s72_11_4", "stream_position": 0},
    )
    assert ack_for(example("inbound_message", "irc")) == (
        "ack_offset",
        {"network": "irc.libera.chat", "channel": "#ops", "offset": 101, "status": "stored"},
    )
    ack = ack_for(example("inbound_stanza", "xmpp"))
    assert ack is not None and ack[1]["stanza_id"] == "abc-124"
    assert ack_for(new_envelope("echo", "inbound_message", {}, now=0, trace_id="t")) is None


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
KEYS = sorted({*SAID, "edit_id", "emojis", "body", "message", "chat", "chat_id", "room_id", "network",
               "member", "members", "change", "names", "from", "to", "reason", "status", "error", "since",
               "scope", "key", "show", "typing", "update_type", "attempt", "parts"})  # fmt: skip


@given(
    st.sampled_from(["irc", "xmpp", "matrix", "telegram", "echo"]),
    st.sampled_from(
        ["inbound_message", "inbound_event", "inbound_update", "edit_event", "redaction_event",
         "reaction_event", "membership", "gap_event", "typing_event", "receipt_event", "presence_event",
         "delivery_status", "throttle", "state_update"]
    ),
    st.dictionaries(
        st.sampled_from(KEYS),
        json_values | st.sampled_from([OPS, OLA, "2026-11-24T08:00:00Z", "join", "sent", "account", 5]),
        max_size=12,
    ),
)  # fmt: skip
def test_any_payload_gives_an_event_or_an_envelope_error(
    service: str, action: str, payload: dict[str, Any]
) -> None:
    with suppress(EnvelopeError):
        read(action, payload, service=service)


@given(st.sampled_from(sorted(SAID)), json_values)
def test_a_message_with_one_strange_value_gives_a_message_or_an_envelope_error(key: str, value: Any) -> None:
    with suppress(EnvelopeError):
        assert isinstance(read("inbound_message", SAID | {key: value}), Message)
