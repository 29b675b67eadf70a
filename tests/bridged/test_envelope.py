"""Envelopes: what is read, what is refused and with which code, what is written, signed, and on which topic."""

from __future__ import annotations

import json
import math
from contextlib import suppress
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridged.envelope import (
    DEPTH_MAX,
    ENVELOPE_BYTES_MAX,
    EPOCH,
    Envelope,
    TopicName,
    format_time,
    from_base64url,
    from_ms,
    key_id,
    new_envelope,
    new_trace_id,
    parse_time,
    parse_topic,
    portable,
    reply_topic,
    sign_together,
    to_base64url,
    to_ms,
    topic_for,
    verify_ed25519,
)
from bridged.errors import EnvelopeError
from bridged.schema import ERROR_CODES
from shards.record import check_topic

EXAMPLES = json.loads((Path(__file__).parents[1] / "vectors/wire/examples.json").read_text())["examples"]
MINIMAL: dict[str, Any] = {
    "schema": "msgr.bridge.v1",
    "service": "irc",
    "action": "outbound_command",
    "trace_id": "5f0c1d6a0b7f4f0e9d0c2f6f2e1a7b33",
    "occurred_at": "2026-11-24T08:00:00.125Z",
    "metadata": {"user_id": "acct-7", "tenant": "acme"},
    "payload": {"command": "PRIVMSG", "target": "#ops", "arguments": ["deploy finished"], "metadata": {}},
}
SEED = bytes(range(32))


def text(**changes: Any) -> bytes:
    """The minimal envelope with changes; a change to Ellipsis takes the key away."""
    whole = {key: value for key, value in (MINIMAL | changes).items() if value is not ...}
    return json.dumps(whole, ensure_ascii=False, separators=(",", ":")).encode()


def refused(data: bytes) -> tuple[str, str | None]:
    with pytest.raises(EnvelopeError) as caught:
        Envelope.decode(data)
    assert caught.value.code in ERROR_CODES
    return caught.value.code, caught.value.field


# The 43 examples.


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda e: e["topic"] + "-" + e["envelope"]["trace_id"][-2:])
def test_an_example_comes_back_and_fits_its_topic(example: dict[str, Any]) -> None:
    raw = json.dumps(example["envelope"], ensure_ascii=False, indent=1).encode()
    envelope = Envelope.decode(raw)
    again = Envelope.decode(envelope.encode())
    assert again == envelope
    assert json.loads(envelope.encode()) == example["envelope"]
    topic = parse_topic(example["topic"])
    assert (topic.service, topic.action) == (envelope.service, envelope.action)
    assert topic_for(envelope.service, envelope.action, topic.instance) == example["topic"]
    check_topic(example["topic"])
    signed = envelope.sign(SEED)
    assert Envelope.decode(signed.encode()).verify({signed.metadata["sig"]["kid"]: _public()}.get)


def _public() -> bytes:
    from nacl.signing import SigningKey

    return bytes(SigningKey(SEED).verify_key)


# What is read.


def test_there_are_43_examples() -> None:
    assert len(EXAMPLES) == 43


@pytest.mark.parametrize(
    ("written", "means"),
    [
        ("2026-01-02T03:04:05.678Z", "2026-01-02T03:04:05.678Z"),
        ("2026-01-02T03:04:05.678000+00:00", "2026-01-02T03:04:05.678Z"),
        ("2026-01-02T03:04:05+00:00", "2026-01-02T03:04:05.000Z"),
        ("2026-01-02T03:04:05.6Z", "2026-01-02T03:04:05.600Z"),
        ("2026-01-02T03:04:05Z", "2026-01-02T03:04:05.000Z"),
        ("2026-01-02T05:04:05.678+02:00", "2026-01-02T03:04:05.678Z"),
        ("2026-01-01T22:34:05.678-04:30", "2026-01-02T03:04:05.678Z"),
        ("2026-01-02T03:04:05.999999999Z", "2026-01-02T03:04:05.999Z"),
        ("2026-01-02t03:04:05z", "2026-01-02T03:04:05.000Z"),
    ],
)
def test_the_times_of_all_producers_are_read_and_cut_to_milliseconds(written: str, means: str) -> None:
    envelope = Envelope.decode(text(occurred_at=written))
    assert envelope.occurred_at.tzinfo is UTC
    assert format_time(envelope.occurred_at) == means
    assert f'"occurred_at":"{means}"'.encode() in envelope.encode()


@pytest.mark.parametrize(
    "written",
    [
        "2026-01-02T03:04:05", "2026-01-02T03:04:05.678", "2026-01-02 03:04:05Z", "2026-01-02", "",
        "2026-13-02T03:04:05Z", "2026-01-02T24:00:00.000Z", "2026-01-02T23:59:60Z", "2026-W01-1T03:04:05.678Z",
        "2026-01-02T03:04:05,678Z", "0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-14:00", "١٢٣٤-01-02T03:04:05Z",
        "2026-01-02T03:04:05.1234567890Z", "2026-01-02T03:04:05+0200", 1764000000, None, True, [],
    ],
)  # fmt: skip
def test_naive_and_broken_times_are_refused(written: object) -> None:
    assert refused(text(occurred_at=written)) == ("invalid_field", "occurred_at")


@pytest.mark.parametrize(
    "trace_id",
    [
        "0f8fad5b-d9cb-469f-a165-70867728950e",
        "0f8fad5bd9cb469fa16570867728950e",
        "trace",
        "link",
        "a.b_c:d-e",
        "x" * 128,
    ],
)
def test_dashed_undashed_and_opaque_trace_ids_are_kept(trace_id: str) -> None:
    assert Envelope.decode(text(trace_id=trace_id)).trace_id == trace_id


@pytest.mark.parametrize("trace_id", ["", "x" * 129, "a b", "a/b", "å", "a\n", "٣", None, 7, {}])
def test_other_trace_ids_are_refused(trace_id: object) -> None:
    assert refused(text(trace_id=trace_id)) == ("invalid_field", "trace_id")


def test_what_may_be_missing_is_supplied() -> None:
    bare = text(schema=..., trace_id=..., occurred_at=..., metadata=...)
    envelope = Envelope.decode(bare, received_at=1764000000.123)
    assert envelope.schema == "msgr.bridge.v1"
    assert envelope.metadata == {}
    assert format_time(envelope.occurred_at) == "2025-11-24T16:00:00.123Z"
    assert Envelope.decode(bare).occurred_at == EPOCH
    assert len(envelope.trace_id) == 32
    assert Envelope.decode(bare).trace_id == envelope.trace_id  # the same record again is the same trace
    assert Envelope.decode(bare, salt=b"9").trace_id != envelope.trace_id  # another record is another
    Envelope.decode(bare).metadata["x"] = 1
    assert Envelope.decode(bare).metadata == {}


def test_unknown_keys_are_dropped_at_the_top_and_kept_below() -> None:
    envelope = Envelope.decode(text(shard=7, metadata={"odd": [1]}, payload={"odd": {"a": None}}))
    assert "shard" not in json.loads(envelope.encode())
    assert (envelope.metadata, envelope.payload) == ({"odd": [1]}, {"odd": {"a": None}})


def test_the_odd_action_names_of_one_plan_are_read_and_not_written() -> None:
    assert Envelope.decode(text(action="link_account:success")).action == "link_account:success"
    with pytest.raises(EnvelopeError):
        new_envelope("irc", "link_account:success", {}, now=0, trace_id="t")


def test_large_ids_are_read_and_leave_as_strings() -> None:
    envelope = Envelope.decode(text(payload={"access_hash": 1 - 2**63, "id": 2**53 - 1, "n": [2**53]}))
    assert envelope.payload["access_hash"] == 1 - 2**63
    with pytest.raises(EnvelopeError) as caught:
        envelope.canonical()
    assert caught.value.code == "invalid_field"
    assert envelope.sign(SEED).payload == {"access_hash": str(1 - 2**63), "id": 2**53 - 1, "n": [str(2**53)]}
    ours = new_envelope("irc", "x", {"id": 2**53, "t": (1, 2.5)}, now=0, trace_id="t")
    assert ours.payload == {"id": str(2**53), "t": [1, 2.5]}


# What is refused.


@pytest.mark.parametrize(
    ("data", "code", "field"),
    [
        (b"", "bad_envelope", None),
        (b"[]", "bad_envelope", None),
        (b'"text"', "bad_envelope", None),
        (b"null", "bad_envelope", None),
        (b"{", "bad_envelope", None),
        (b"{}", "missing_field", "service"),
        (text() + b"x", "bad_envelope", None),
        (b"\xef\xbb\xbf" + text(), "bad_envelope", None),
        (text().replace(b"#ops", b"\xff\xfe"), "bad_envelope", None),
        (text().replace(b"#ops", b"\xed\xa0\x80"), "bad_envelope", None),
        (text().replace(b"#ops", b"\\ud800"), "bad_envelope", None),
        (text().replace(b'"#ops"', b"NaN"), "bad_envelope", None),
        (text().replace(b'"#ops"', b"Infinity"), "bad_envelope", None),
        (text().replace(b'"#ops"', b"-Infinity"), "bad_envelope", None),
        (text().replace(b'"#ops"', b"1e400"), "invalid_field", "payload"),
        (text().replace(b'"#ops"', b"9" * 5000), "invalid_field", "payload"),
        (text().replace(b'"#ops"', b"[" * 50_000), "bad_envelope", None),
        (text().replace(b'"#ops"', b"[" * 900 + b"]" * 900), "bad_envelope", None),
        (text().replace(b'"#ops"', b'{"a":' * DEPTH_MAX + b"1" + b"}" * DEPTH_MAX), "bad_envelope", None),
        (text(service=""), "invalid_field", "service"),
        (text(action=""), "invalid_field", "action"),
        (text(service=...), "missing_field", "service"),
        (text(action=...), "missing_field", "action"),
        (text(payload=...), "missing_field", "payload"),
        (text(service=None), "invalid_field", "service"),
        (text(service="irc/x"), "invalid_field", "service"),
        (text(service="IRC"), "invalid_field", "service"),
        (text(action="a b"), "invalid_field", "action"),
        (text(action="reply/x"), "invalid_field", "action"),
        (text(payload=[]), "invalid_field", "payload"),
        (text(payload="text"), "invalid_field", "payload"),
        (text(payload=None), "invalid_field", "payload"),
        (text(metadata=[]), "invalid_field", "metadata"),
        (text(metadata=None), "invalid_field", "metadata"),
        (text(schema="msgr.bridge.v2"), "schema_unsupported", "schema"),
        (text(schema="msgr.bridge.v10"), "schema_unsupported", "schema"),
        (text(schema="msgr.bridge"), "schema_unsupported", "schema"),
        (text(schema=""), "schema_unsupported", "schema"),
        (text(schema=1), "invalid_field", "schema"),
    ],
)
def test_what_is_no_envelope_is_refused_with_its_reason(data: bytes, code: str, field: str | None) -> None:
    assert refused(data) == (code, field)


@pytest.mark.parametrize(
    "data",
    [
        text().replace(b'{"schema"', b'{"service":"irc","schema"'),
        text().replace(b'"command":', b'"command":"QUIT","command":'),
        text().replace(b'"command":', b'"comm\\u0061nd":"QUIT","command":'),
        text().replace(b'"metadata":{}', b'"metadata":{"a":{"b":[{"c":1,"c":1}]}}'),
        text(unknown=1).replace(b'"unknown":1', b'"unknown":{"x":1,"x":2}'),
        text().replace(b'"irc"', b'"irc","service":"irc"'),
        text().replace(b'":', b'" : ').replace(b'"target"', b'"x":1,"x":1,"target"'),
    ],
)
def test_duplicate_keys_are_refused_at_any_depth(data: bytes) -> None:
    with pytest.raises(EnvelopeError, match="twice") as caught:
        Envelope.decode(data)
    assert caught.value.code == "bad_envelope"


def test_a_body_may_have_a_mebibyte_and_not_one_byte_more() -> None:
    room = ENVELOPE_BYTES_MAX - len(text(payload={"text": ""}))
    full = text(payload={"text": "x" * room})
    assert len(full) == ENVELOPE_BYTES_MAX
    assert Envelope.decode(full).encode() == full
    assert refused(full + b" ") == ("too_large", None)
    over = new_envelope("irc", "x", {"text": "x" * ENVELOPE_BYTES_MAX}, now=0, trace_id="t")
    with pytest.raises(EnvelopeError) as caught:
        over.encode()
    assert caught.value.code == "too_large"


def test_no_error_quotes_the_body() -> None:
    for data in (text() + b"hunter2", b"hunter2", text(payload="hunter2"), text(metadata=["hunter2"])):
        with pytest.raises(EnvelopeError) as caught:
            Envelope.decode(data)
        assert "hunter2" not in str(caught.value)


# What is written.


def test_all_seven_keys_in_order_with_three_digits_and_z() -> None:
    envelope = new_envelope("irc", "membership", {"å": "😀"}, now=1764000000.5, trace_id="ab" * 16)
    assert (
        envelope.encode()
        == (
            '{"schema":"msgr.bridge.v1","service":"irc","action":"membership","trace_id":"'
            + "ab" * 16
            + '","occurred_at":"2025-11-24T16:00:00.500Z","metadata":{},"payload":{"å":"😀"}}'
        ).encode()
    )


def test_a_trace_id_is_32_lower_hex_digits_and_never_zero() -> None:
    rolls = iter([bytes(16), bytes(range(16))])
    assert new_trace_id(lambda n: next(rolls)[:n]) == bytes(range(16)).hex()


@pytest.mark.parametrize(
    ("payload", "field"),
    [
        ({"a": {"b": [1, math.nan]}}, "payload.a.b[1]"),
        ({"a": math.inf}, "payload.a"),
        ({1: "a"}, "payload"),
        ({"a": b"bytes"}, "payload.a"),
        ({"a": {1, 2}}, "payload.a"),
        ({"a": "\ud800"}, "payload.a"),
        ({"\ud800": 1}, "payload"),
    ],
)
def test_what_json_has_not_is_named_by_its_path(payload: dict[Any, Any], field: str) -> None:
    with pytest.raises(EnvelopeError) as caught:
        new_envelope("irc", "x", payload, now=0, trace_id="t")
    assert (caught.value.code, caught.value.field) == ("invalid_field", field)


def test_a_bottomless_payload_is_refused() -> None:
    loop: dict[str, Any] = {}
    loop["self"] = loop
    with pytest.raises(EnvelopeError, match="deep"):
        portable(loop)


@pytest.mark.parametrize("bad", [{"service": "IRC"}, {"action": "A"}, {"trace_id": ""}, {"trace_id": "a b"}])
def test_names_of_ours_keep_to_the_grammar(bad: dict[str, str]) -> None:
    fields: dict[str, Any] = {"service": "irc", "action": "x", "trace_id": "t"} | bad
    with pytest.raises(EnvelopeError):
        new_envelope(fields["service"], fields["action"], {}, now=0, trace_id=fields["trace_id"])


def test_canonical_json_orders_keys_by_utf16_and_writes_numbers_as_javascript_does() -> None:
    # RFC 8785, 3.2.3: the sorting example, with a key beyond the BMP before one within it.
    names = {"\u20ac": 1, "\r": 2, "\ufb33": 3, "1": 4, "\U0001f600": 5, "\u0080": 6, "\u00f6": 7}
    envelope = new_envelope("irc", "x", names | {"n": [1.0, 1e21, 0.002, -0.0]}, now=0, trace_id="t")
    canonical = envelope.canonical().decode()
    assert canonical.startswith('{"action":"x","metadata":{},"occurred_at":"1970-01-01T00:00:00.000Z",')
    assert (
        '"payload":{"\\r":2,"1":4,"n":[1,1e+21,0.002,0],"\u0080":6,"ö":7,"€":1,"😀":5,"\ufb33":3}'
        in canonical
    )


def test_a_large_double_has_one_text_whoever_wrote_it() -> None:
    as_float = new_envelope("irc", "x", {"n": 9007199254740992.0}, now=0, trace_id="t")
    as_int = as_float.replace(payload={"n": 2**53})
    assert as_float.canonical() == as_int.canonical()
    with pytest.raises(EnvelopeError):
        as_float.replace(payload={"n": 10**400}).canonical()


# Signatures.


def test_a_signature_is_over_the_canonical_form_and_survives_another_writer() -> None:
    signed = Envelope.decode(text()).sign(SEED)
    assert signed.metadata["sig"]["alg"] == "ed25519"
    kid = signed.metadata["sig"]["kid"]
    assert kid == key_id(_public())
    elsewhere = json.dumps(json.loads(signed.encode()), indent=2, sort_keys=True).encode()
    assert Envelope.decode(elsewhere).verify({kid: _public()}.get) == kid
    assert signed.sign(SEED) == signed
    assert verify_ed25519(_public(), signed.signed_bytes(), from_base64url(signed.metadata["sig"]["value"]))


@pytest.mark.parametrize(
    "change",
    [
        {"trace_id": "other"},
        {"payload": {}},
        {"service": "xmpp"},
        {"occurred_at": datetime(2026, 1, 1, tzinfo=UTC)},
    ],
)
def test_a_signature_covers_every_field(change: dict[str, Any]) -> None:
    signed = Envelope.decode(text()).sign(SEED)
    with pytest.raises(EnvelopeError, match="does not fit"):
        signed.replace(**change).verify(lambda kid: _public())


@pytest.mark.parametrize(
    "sig",
    [
        7,
        {},
        {"alg": "none", "kid": "k", "value": ""},
        {"alg": "ed25519", "kid": 5, "value": "x"},
        {"alg": "ed25519", "kid": "k", "value": "!!!"},
        {"alg": "ed25519", "kid": "k", "value": "å"},
        {"alg": "ed25519", "kid": "k", "value": "AAAA"},
        {"alg": "ed25519", "kid": "k", "value": to_base64url(bytes(64))},
    ],
)
def test_broken_signatures_are_refused(sig: object) -> None:
    envelope = Envelope.decode(text(metadata={"sig": sig}))
    with pytest.raises(EnvelopeError) as caught:
        envelope.verify(lambda kid: _public())
    assert (caught.value.code, caught.value.field) == ("bad_envelope", "metadata.sig")


def test_unsigned_and_strangers_envelopes_are_refused() -> None:
    with pytest.raises(EnvelopeError) as caught:
        Envelope.decode(text()).verify(lambda kid: _public())
    assert caught.value.code == "missing_field"
    with pytest.raises(EnvelopeError, match="nobody here has"):
        Envelope.decode(text()).sign(SEED).verify(lambda kid: None)
    assert not verify_ed25519(b"short", b"", bytes(64))


def test_envelopes_signed_together_are_each_provable_alone() -> None:
    plain = [new_envelope("irc", "x", {"n": n}, now=n, trace_id=f"t{n}") for n in range(5)]
    signed = sign_together(plain, SEED)
    for n, envelope in enumerate(signed):
        read = Envelope.decode(json.dumps(json.loads(envelope.encode()), indent=1).encode())
        assert read.metadata["sig"]["alg"] == "ed25519-merkle"
        assert read.verify(lambda kid: _public()) == key_id(_public())
        with pytest.raises(EnvelopeError, match="does not fit"):
            read.replace(payload={"n": n + 1}).verify(lambda kid: _public())
        for key, bad in (("path", [7]), ("n", "5"), ("index", None), ("value", 1), ("root", [])):
            with pytest.raises(EnvelopeError, match="no form"):
                read.replace(metadata={"sig": read.metadata["sig"] | {key: bad}}).verify(
                    lambda kid: _public()
                )
        for key, wrong in (
            ("path", []),
            ("n", 64),
            ("n", 10**6),
            ("index", -1),
            ("value", "AA"),
            ("root", ""),
        ):
            with pytest.raises(EnvelopeError, match="does not fit"):
                read.replace(metadata={"sig": read.metadata["sig"] | {key: wrong}}).verify(
                    lambda kid: _public()
                )


# Topics.


@pytest.mark.parametrize(
    ("topic", "name"),
    [
        ("bridge/irc/inbound_message", TopicName(service="irc", instance=None, action="inbound_message")),
        ("bridge/irc/libera/membership", TopicName(service="irc", instance="libera", action="membership")),
        ("bridge/irc/link_account:success", TopicName(service="irc", instance=None, action="link_account:success")),
        ("bridge/irc/x/reply/t-1", TopicName(service="irc", instance=None, action="x", reply_to="t-1")),
        ("bridge/irc/eu.1/x/reply/t", TopicName(service="irc", instance="eu.1", action="x", reply_to="t")),
        ("bridge/irc/libera/reply", TopicName(service="irc", instance="libera", action="reply")),
        ("observability/logs", TopicName(service="observability", instance=None, action="log")),
    ],
)  # fmt: skip
def test_topics_are_taken_apart(topic: str, name: TopicName) -> None:
    assert parse_topic(topic) == name
    check_topic(topic)


@pytest.mark.parametrize(
    "topic",
    [
        "", "bridge", "bridge/irc", "bridge/irc/", "bridge//x", "bridge/IRC/x", "bridge/i/x", "bridge/irc/X",
        "bridge/irc/reply/x", "bridge/irc/a b/x", "bridge/irc/libera/x/y", "bridge/irc/x/reply/", "bridge/irc/x/reply/a/b",
        "bridge/irc/libera/x/reply/a/b", "bridges/irc/x", "observability/log", "bridge/irc/*/x", "bridge/irc/x\n",
        "bridge/irc/" + "i" * 65 + "/x", "bridge/irc/x/reply/" + "t" * 129, "bridge/irc/x/reply/" + "t" * 240,
    ],
)  # fmt: skip
def test_other_topics_are_refused(topic: str) -> None:
    with pytest.raises(EnvelopeError) as caught:
        parse_topic(topic)
    assert (caught.value.code, caught.value.field) == ("invalid_field", "topic")


def test_topics_are_built() -> None:
    assert topic_for("irc", "membership") == "bridge/irc/membership"
    assert topic_for("irc", "membership", " libera ") == "bridge/irc/libera/membership"
    assert reply_topic("bridge/irc/libera/x", "t:1") == "bridge/irc/libera/x/reply/t:1"
    for instance in ("", "  ", "a/b", "reply", "å", "x" * 65):
        with pytest.raises(EnvelopeError) as caught:
            topic_for("irc", "x", instance)
        assert caught.value.field == "instance"
    with pytest.raises(EnvelopeError):
        reply_topic("bridge/irc/x", "t" * 129)
    with pytest.raises(EnvelopeError):
        topic_for("no/service", "x")


# Properties.

moments = st.datetimes(min_value=datetime(1970, 1, 1), max_value=datetime(2200, 1, 1)).map(
    lambda moment: moment.replace(microsecond=moment.microsecond // 1000 * 1000, tzinfo=UTC)
)
safe = st.integers(-(2**53) + 1, 2**53 - 1)
values = st.recursive(
    st.none()
    | st.booleans()
    | safe
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=8,
)
objects = st.dictionaries(st.text(max_size=6), values, max_size=4)


@given(moments, st.sampled_from([0, 60, -330, 840]))
def test_times_come_back(moment: datetime, offset_minutes: int) -> None:
    assert parse_time(format_time(moment)) == moment
    elsewhere = moment.astimezone(timezone(timedelta(minutes=offset_minutes)))
    assert parse_time(elsewhere.isoformat()) == moment
    assert format_time(elsewhere) == format_time(moment)
    assert from_ms(to_ms(moment)) == moment


@given(st.text(alphabet="0123456789-:.TZtz+W, ", max_size=30))
def test_any_text_is_a_time_or_refused(written: str) -> None:
    with suppress(EnvelopeError):
        moment = parse_time(written)
        assert parse_time(format_time(moment)) == moment


@given(objects, objects, moments)
def test_whatever_is_written_is_read_back(
    metadata: dict[str, Any], payload: dict[str, Any], moment: datetime
) -> None:
    envelope = new_envelope("irc", "x", payload, now=to_ms(moment) / 1000, trace_id="t", metadata=metadata)
    assert envelope.occurred_at == moment
    data = envelope.encode()
    assert Envelope.decode(data) == envelope
    foreign = json.dumps(json.loads(data), sort_keys=True).encode()
    assert Envelope.decode(foreign) == envelope
    assert Envelope.decode(envelope.canonical()).canonical() == envelope.canonical()


@given(objects, st.data())
def test_a_key_written_twice_is_always_found(payload: dict[str, Any], data: st.DataObject) -> None:
    inner = payload | {"k": 1}
    members = [f"{json.dumps(key)}:{json.dumps(value)}" for key, value in inner.items()]
    double = data.draw(st.sampled_from(members))
    members.insert(data.draw(st.integers(0, len(members))), double)
    raw = text(payload={"a": "@"}).replace(b'"@"', ("[{" + ",".join(members) + "}]").encode())
    assert refused(raw)[0] == "bad_envelope"


@given(
    st.binary()
    | st.text().map(str.encode)
    | st.binary(max_size=4).map(lambda b: text()[:-9] + b + text()[-9:])
)
def test_any_bytes_give_an_envelope_or_an_envelope_error(data: bytes) -> None:
    with suppress(EnvelopeError):
        envelope = Envelope.decode(data)
        assert Envelope.decode(envelope.encode()) == envelope


@given(st.data())
def test_any_small_damage_gives_an_envelope_or_an_envelope_error(data: st.DataObject) -> None:
    raw = bytearray(text())
    for _ in range(data.draw(st.integers(1, 3))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    with suppress(EnvelopeError):
        envelope = Envelope.decode(bytes(raw))
        assert Envelope.decode(envelope.encode()) == envelope


@given(st.binary(max_size=80))
def test_base64url_comes_back(data: bytes) -> None:
    assert from_base64url(to_base64url(data)) == data
