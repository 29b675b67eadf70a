"""What clients want, decided and committed before anybody hears of it."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest
import trio

from bridged.facade.verdicts import Verdict
from shards.errors import RequestFailed

IRC = "msgr://channels/acme/bridge/irc/irc.lab/%23ops"
XMPP = "msgr://channels/acme/bridge/xmpp/ops@muc.localhost"
OLA = "msgr://identity/msgr/ola"


def status(house: Any, trace_id: str, word: str, channel: str = IRC, **more: Any) -> Any:
    service = channel.split("/")[5]
    payload = {"status": word, "channel": channel, "attempt": 1, **more}
    return house.record(service, "delivery_status", payload, trace_id=trace_id)


async def refused(call: Any) -> RequestFailed:
    with pytest.raises(RequestFailed) as caught:
        await call
    return caught.value


async def test_a_client_speaks_to_every_room(house: Any) -> None:
    answer = await house.ask("send", conversation="ops", text="hi", under="b" * 32)
    assert answer["trace_id"] == "b" * 32
    intents = await house.outbox("outbound_message")
    assert {one.payload["channel"] for one in intents} == {IRC, XMPP}
    assert {one.trace_id for one in intents} == {answer["trace_id"]}
    assert len({one.metadata["idempotency_key"] for one in intents}) == 2
    assert intents[0].payload["sender"] == {"ref": OLA, "name": "ola", "service": "msgr"}
    (event,) = await house.events("message")
    assert (event["message_id"], event["channel"]) == (answer["message_id"], None)
    assert [one["status"] for one in await house.events("status")] == ["queued", "queued"]


async def test_asking_again_is_answered_the_same_and_does_nothing(house: Any) -> None:
    first = await house.ask("send", conversation="ops", text="hi", idempotency_key="c-1")
    again = await house.ask("send", conversation="ops", text="hi", idempotency_key="c-1")
    assert again == first
    assert await house.count("message") == 1
    error = await refused(house.ask("send", conversation="ops", text="other", idempotency_key="c-1"))
    assert error.code == "duplicate"
    # The same request sent twice without a key is one wish too: it has one trace id.
    first = await house.ask("send", conversation="ops", text="ho", under="d" * 32)
    assert await house.ask("send", conversation="ops", text="ho", under="d" * 32) == first


async def test_a_stranger_is_denied_recorded_and_nothing_of_it_is_kept(house: Any) -> None:
    error = await refused(
        house.ask("send", principal="kari", conversation="ops", text="xylophone", under="e" * 32)
    )
    assert error.code == "policy_denied"
    assert await house.count("message") == 0
    assert await house.outbox("outbound_message") == []
    states = await house.rows("SELECT state FROM delivery WHERE trace_id = ?", "e" * 32)
    assert states == [("denied",), ("denied",)]
    assert [one["status"] for one in await house.events("status")] == ["denied", "denied"]
    for (value,) in await house.rows("SELECT payload FROM outbox UNION ALL SELECT detail FROM trail"):
        assert "xylophone" not in str(value)


async def test_a_conversation_that_is_not_there_and_one_of_others_look_the_same(house: Any) -> None:
    foreign = await refused(house.ask("history", conversation="board"))
    absent = await refused(house.ask("history", conversation="nowhere"))
    assert foreign.code == absent.code == "not_found"
    assert str(foreign).replace("board", "X") == str(absent).replace("nowhere", "X")
    foreign = await refused(house.ask("send", conversation="board", text="x"))
    absent = await refused(house.ask("send", conversation="nowhere", text="x"))
    assert (foreign.code, str(foreign)) == (absent.code, str(absent))


async def test_only_one_who_may_names_another_identity(house: Any) -> None:
    error = await refused(
        house.ask("send", identity="msgr://identity/msgr/per", conversation="ops", text="x")
    )
    assert error.code == "capability_denied"
    error = await refused(house.ask("send", client="phone", conversation="ops", text="x"))
    assert error.code == "capability_denied"
    await house.ask("send", principal="gateway", client="phone", conversation="ops", text="from the phone")
    await house.ask(
        "send", principal="operator", identity="msgr://identity/msgr/per", conversation="ops", text="for per"
    )
    senders = {one["sender"]["ref"] for one in await house.events("message")}
    assert senders == {"msgr://identity/msgr/per"}


async def test_an_edit_and_a_deletion_by_the_author_alone(house: Any) -> None:
    said = await house.ask("send", conversation="ops", text="helo")
    message_id = said["message_id"]
    await house.hear(status(house, said["trace_id"], "delivered", remote_id="r9"))
    error = await refused(
        house.ask("edit", principal="gateway", client="phone", message_id=message_id, text="x")
    )
    assert error.code == "forbidden"
    edited = await house.ask("edit", message_id=message_id, text="hello")
    intents = {one.payload["channel"]: one for one in await house.outbox("outbound_edit_message")}
    assert intents[IRC].payload["remote_id"] == "r9"
    assert intents[XMPP].payload["remote_id"] is None
    # Where the name is not known yet, the connector can know it by how the message was sent.
    sent = {one.payload["channel"]: one for one in await house.outbox("outbound_message")}
    key = sent[XMPP].metadata["idempotency_key"]
    assert intents[XMPP].payload["original"] == {"trace_id": said["trace_id"], "idempotency_key": key}
    assert edited["message_id"] == message_id
    await house.ask("delete", message_id=message_id)
    assert (await refused(house.ask("edit", message_id=message_id, text="x"))).code == "not_found"
    (event,) = await house.events("delete")
    assert event["message_id"] == message_id


async def test_a_reaction_is_sent_once_and_a_foreign_message_is_no_message(house: Any) -> None:
    await house.hear(house.said(IRC, "hello", "r1"))
    ((message_id,),) = await house.rows("SELECT message_id FROM message")
    await house.ask("react", message_id=message_id, emojis=["👍"])
    await house.ask("react", message_id=message_id, emojis=["👍"])
    intents = await house.outbox("outbound_reaction")
    assert [one.payload["remote_id"] for one in intents] == ["r1", None]
    error = await refused(house.ask("react", principal="kari", message_id=message_id, emojis=["👍"]))
    absent = await refused(house.ask("react", principal="kari", message_id="0" * 20, emojis=["👍"]))
    assert (error.code, str(error)) == (absent.code, str(absent))


async def test_a_reply_quotes_only_its_own_conversation(house: Any) -> None:
    await house.ask("send", principal="kari", conversation="board", text="the merger")
    ((foreign,),) = await house.rows("SELECT message_id FROM message")
    await house.ask("send", conversation="ops", text="re", reply_to=foreign)
    for one in await house.outbox("outbound_message"):
        if one.payload["conversation"] == "ops":
            assert one.payload["reply_to"] is None
            assert "merger" not in str(one.payload)


async def test_history_has_the_offsets_of_the_events_and_every_delivery(house: Any) -> None:
    said = await house.ask("send", conversation="ops", text="one")
    await house.hear(house.said(IRC, "two", "r2"), status(house, said["trace_id"], "sent"))
    await house.hear(status(house, said["trace_id"], "unknown"))
    await house.drain()
    page = (await house.ask("history", conversation="ops"))["messages"]
    assert [message["text"] for message in page] == ["one", "two"]
    events = house.fabric.on("bridge/core/event")
    for message in page:
        event = events[message["offset"]].payload
        assert (event["event"], event["message_id"]) == ("message", message["message_id"])
    states = {one["channel"]: one["state"] for one in page[0]["deliveries"]}
    assert states == {IRC: "unknown", XMPP: "queued"}
    first, second = (message["offset"] for message in page)

    async def texts(**bounds: int) -> list[str]:
        answer = await house.ask("history", conversation="ops", **bounds)
        return [message["text"] for message in answer["messages"]]

    assert await texts(before=second) == ["one"]
    assert await texts(after=first) == ["two"]
    assert await texts(around=first, limit=2) == ["one", "two"]
    assert await texts(limit=1) == ["two"]
    found = await house.ask("history", conversation="ops", query='TW "')
    assert found["messages"] == []
    found = await house.ask("history", conversation="ops", query="tw")
    assert [message["text"] for message in found["messages"]] == ["two"]


async def test_history_waits_for_the_offset_of_what_was_just_said(house: Any, autojump_clock: Any) -> None:
    await house.ask("send", conversation="ops", text="one")
    pages: list[Any] = []

    async def read() -> None:
        pages.append(await house.ask("history", conversation="ops"))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(read)
        await trio.testing.wait_all_tasks_blocked()
        assert pages == []
        await house.drain()
    assert [message["text"] for message in pages[0]["messages"]] == ["one"]


async def test_a_message_decided_under_old_links_is_decided_again(
    open_one: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []

    def judge(question: Any, directory: Any) -> Verdict:
        asked.append(directory.revision)
        is_allowed = directory.clients["ola"].may_enter(question.conversation)
        return Verdict(is_allowed=is_allowed, rule="test", reason="was revoked", policy_version="1")

    async with open_one(judge=judge) as house:
        old = house.core.directory
        await house.ask("clients", principal="operator", op="revoke", name="phone")
        house.core.directory = old  # as if the revocation had come in the middle of the decision
        await house.ask("send", conversation="ops", text="hi")
        assert {old.revision, old.revision + 1} == set(asked)
        assert await house.count("message") == 1


async def test_a_full_outbox_refuses_the_client_and_keeps_nothing(open_one: Any) -> None:
    async with open_one(capacity=6) as house:
        await house.ask("send", conversation="ops", text="hi")
        error = await refused(house.ask("send", conversation="ops", text="ho"))
        assert error.code == "rate_limited" and error.retry_after_ms
        assert await house.count("message") == 1


async def test_clients_and_conversations_change_by_an_operators_word_only(house: Any) -> None:
    token_hash = hashlib.sha256(b"t").hexdigest()
    new = {
        "op": "add",
        "name": "eva",
        "identity": "msgr://identity/msgr/eva",
        "conversations": ["ops"],
        "token_hash": token_hash,
    }
    assert (await refused(house.ask("clients", **new))).code == "capability_denied"
    await house.ask("clients", principal="operator", **new)
    assert (await refused(house.ask("clients", principal="operator", **new))).code == "duplicate"
    who = await house.ask("clients", principal="gateway", op="authenticate", token_hash=token_hash)
    assert (who["client"], who["conversations"]) == ("eva", ["ops"])
    await house.ask("clients", principal="operator", op="revoke", name="eva")
    error = await refused(house.ask("clients", principal="gateway", op="authenticate", token_hash=token_hash))
    assert error.code == "capability_denied"

    channel = "msgr://channels/acme/bridge/irc/irc.lab/%23new"
    made = {"op": "add", "name": "new", "channels": [channel]}
    await house.ask("conversations", principal="operator", **made)
    taken = {"op": "add", "name": "thief", "channels": [IRC]}
    assert (await refused(house.ask("conversations", principal="operator", **taken))).code == "duplicate"
    await house.hear(house.said(channel, "hello", "n1"))
    assert len(await house.events("message")) == 1
    await house.ask("conversations", principal="operator", op="remove", name="new")
    error = await refused(house.ask("conversations", principal="operator", op="remove", name="ops"))
    assert error.code == "forbidden"
    await house.hear(house.said(channel, "nobody hears", "n2"))
    assert len(await house.events("message")) == 1
    listed = await house.ask("conversations", principal="irc/main")
    assert [one["channels"] for one in listed["conversations"]][1] == [
        {"channel": IRC, "service": "irc", "instance": "main"}
    ]


async def test_a_connector_hears_of_its_own_intents_and_only_once_all_is_applied(
    house: Any, autojump_clock: Any
) -> None:
    said = await house.ask("send", conversation="ops", text="hi")
    items = [
        {"trace_id": said["trace_id"], "channel": IRC},
        {"trace_id": said["trace_id"], "channel": XMPP},
        {"trace_id": "f" * 32, "channel": IRC},
        {"trace_id": said["trace_id"], "channel": "nonsense"},
    ]
    await house.hear(status(house, said["trace_id"], "sent", remote_id=None))
    house.settled_at = 3
    states = []

    async def ask() -> None:
        answer = await house.ask("status", principal="irc/main", items=items, position=5)
        states.extend(answer["states"])

    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask)
        await trio.sleep(1)
        assert states == []
        house.settled_at = 5
    assert [state and state["state"] for state in states] == ["sent", None, None, None]
    house.settled_at = 5
    error = await refused(house.ask("status", principal="irc/main", items=items, position=9))
    assert error.code == "timeout"
    error = await refused(house.ask("cursor", principal="irc/main", service="xmpp", instance="main"))
    assert error.code == "capability_denied"


async def test_a_trace_tells_what_happened_in_order(house: Any) -> None:
    record = house.said(IRC, "hello", "r1", trace_id="a" * 32)
    await house.hear(record)
    await house.hear(status(house, "a" * 32, "sent", XMPP))
    await house.hear(status(house, "a" * 32, "delivered", XMPP, remote_id="s1", latency_ms=12))
    trace = await house.ask("trace", trace_id="a" * 32)
    assert [(step["kind"], step["word"]) for step in trace["steps"]] == [
        ("envelope", record.topic),
        ("decision", "allow"),
        ("status", "sent"),
        ("status", "delivered"),
    ]
    assert trace["deliveries"] == [{"channel": XMPP, "state": "delivered"}]
    assert "hello" not in str(trace)
    assert (await refused(house.ask("trace", principal="kari", trace_id="a" * 32))).code == "not_found"


async def test_typing_and_reading_pass_and_leave_nothing(house: Any) -> None:
    said = await house.ask("send", conversation="ops", text="hi")
    rows = await house.count("outbox")
    await house.ask("typing", conversation="ops")
    await house.ask("read", message_id=said["message_id"])
    assert [topic for topic, _ in house.fabric.passing] == [
        "bridge/core/event",
        "bridge/irc/main/typing",
        "bridge/xmpp/main/typing",
        "bridge/core/event",
    ]
    assert await house.count("outbox") == rows
    assert (await refused(house.ask("typing", conversation="board"))).code == "not_found"


@pytest.mark.parametrize(
    ("action", "payload", "code"),
    [
        ("send", {"text": "x"}, "missing_field"),
        ("send", {"conversation": "ops", "text": ""}, "invalid_field"),
        ("send", {"conversation": "ops", "text": "x" * 300_000}, "too_large"),
        ("send", {"conversation": "ops", "text": "x", "kind": "shout"}, "invalid_field"),
        ("send", {"conversation": "ops", "text": "x", "reply_to": 7}, "invalid_field"),
        ("send", {"conversation": "ops", "text": "x", "idempotency_key": ""}, "invalid_field"),
        ("send", {"conversation": "ops", "text": "x", "html": []}, "invalid_field"),
        ("react", {"message_id": "0", "emojis": []}, "not_found"),
        ("edit", {"message_id": "0", "text": "x"}, "not_found"),
        ("history", {"conversation": "ops", "limit": 0}, "invalid_field"),
        ("history", {"conversation": "ops", "before": 1, "after": 2}, "invalid_field"),
        ("trace", {"trace_id": "1"}, "not_found"),
        ("status", {"items": "all"}, "invalid_field"),
    ],
)
async def test_a_bad_request_is_told_what_is_wrong(
    house: Any, action: str, payload: dict[str, Any], code: str
) -> None:
    principal = "irc/main" if action == "status" else "ola"
    assert (await refused(house.ask(action, principal=principal, **payload))).code == code
