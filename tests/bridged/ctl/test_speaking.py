"""What an operator says and reads: send, tail, history, trace, conversations, clients."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ECHO = "msgr://channels/acme/bridge/echo/lobby"
CTL = "import sys; from bridged.ctl import main; sys.exit(main())"


def test_send_with_wait_tells_every_channels_final_state(served: Any) -> None:
    told = served.ctl("send", "lobby", "hello", "--wait", "--json").json()
    assert set(told) == {"trace_id", "message_id", "deliveries"} and len(told["trace_id"]) == 32
    assert told["deliveries"] == {ECHO: "delivered"}
    plain = served.ctl("send", "lobby", "hello")
    assert plain.code == 0 and len(plain.out.strip()) == 32


def test_send_to_what_is_not_there_and_as_who_may_not(served: Any) -> None:
    ended = served.ctl("send", "nowhere", "hello")
    assert ended.code == 1 and ended.says("nowhere", "bridgectl conversations list")
    ended = served.ctl("send", "lobby", "hello", "--as", "stranger", "--wait", "--json")
    assert ended.code == 3 and ended.error()["code"] == "policy_denied" and ended.error()["hint"]
    ended = served.ctl("send", "lobby", "", "--json")
    assert ended.code == 1 and ended.error()["code"] == "invalid_field"


def test_send_with_wait_says_what_has_not_settled(house: Any) -> None:
    house.edit('instance = "demo"', 'instance = "demo"\nruns = "outside"')
    with house.serving():
        ended = house.ctl("send", "lobby", "hello", "--wait", "--timeout", "0.5")
        assert ended.code == 1 and ended.says("not settled", ECHO, "queued", "bridgectl trace")
        assert len(ended.out.strip()) == 32  # the message is on its way, so its trace is told
        ended = house.ctl("send", "lobby", "hello", "--wait", "--timeout", "0.5", "--json")
        assert ended.code == 1 and ended.error()["code"] == "timeout"


def test_history_has_its_pinned_shape_and_pages(served: Any) -> None:
    for text in ("one", "two", "three"):
        served.ctl("send", "lobby", text, "--wait")
    messages = served.ctl("history", "lobby", "--json", "--limit", "6").json()["messages"]
    mine = [message for message in messages if message["sender"]["ref"] == "msgr://identity/msgr/acme"]
    assert [message["text"] for message in mine][-3:] == ["one", "two", "three"]
    for message in messages:
        assert {"offset", "message_id", "trace_id", "channel", "sender", "text", "at", "deliveries"} <= set(
            message
        )
    assert mine[-1]["channel"] is None and mine[-1]["deliveries"] == [{"channel": ECHO, "state": "delivered"}]
    offsets = [message["offset"] for message in messages]
    assert offsets == sorted(offsets)
    before = served.ctl("history", "lobby", "--json", "--before", offsets[-1], "--limit", "2").json()[
        "messages"
    ]
    assert [message["offset"] for message in before] == offsets[-3:-1]
    after = served.ctl("history", "lobby", "--json", "--after", offsets[0], "--limit", "2").json()["messages"]
    assert [message["offset"] for message in after] == offsets[1:3]
    around = served.ctl("history", "lobby", "--json", "--around", offsets[2], "--limit", "3").json()[
        "messages"
    ]
    assert offsets[2] in [message["offset"] for message in around]
    assert "three" in served.ctl("history", "lobby").out


def test_history_of_what_is_not_there(served: Any) -> None:
    ended = served.ctl("history", "nowhere")
    assert ended.code == 1 and ended.says("nowhere", "bridgectl conversations list")
    ended = served.ctl("history", "lobby", "--before", "1", "--after", "2", "--json")
    assert ended.code == 2 and ended.error()["code"] == "usage"
    assert served.ctl("history", "lobby", "--limit", "100000").code == 1


def test_trace_shows_intent_decision_states_and_audit_leaves(served: Any) -> None:
    trace_id = served.ctl("send", "lobby", "traced", "--wait").out.strip()
    deadline = time.monotonic() + 5  # the audit follows by a moment
    while True:
        told = served.ctl("trace", trace_id, "--json").json()
        if len(told["audit"]) >= 4 or time.monotonic() > deadline:
            break
    assert [step["kind"] for step in told["steps"]][:2] == ["intent", "decision"]
    assert [step["word"] for step in told["steps"] if step["kind"] == "status"] == ["sent", "delivered"]
    assert told["deliveries"] == [{"channel": ECHO, "state": "delivered"}]
    topics = {leaf["topic"] for leaf in told["audit"]}
    assert {
        "bridge/echo/demo/outbound_message",
        "bridge/echo/demo/delivery_status",
        "bridge/core/event",
    } <= topics
    text = served.ctl("trace", trace_id).out
    assert "decision" in text and "rule=" in text and "{" not in text
    assert "traced" not in text  # a trace says what was done, not what was said


def test_trace_of_an_unknown_id(served: Any) -> None:
    ended = served.ctl("trace", "0" * 32, "--json")
    assert ended.code == 1 and ended.error()["code"] == "not_found" and "history" in ended.error()["hint"]


def test_tail_shows_events_as_they_happen_and_ends_with_ctrl_c(served: Any) -> None:
    words = [
        sys.executable,
        "-c",
        CTL,
        "--config",
        served.config,
        "tail",
        "--conversation",
        "lobby",
        "--json",
    ]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as tail:
        assert tail.stdout is not None
        lines: list[dict[str, Any]] = []
        deadline = time.monotonic() + 20
        while not lines and time.monotonic() < deadline:
            served.ctl("send", "lobby", "listen", "--wait")
            if select_ready(tail.stdout):
                lines.append(json.loads(tail.stdout.readline()))
        tail.send_signal(signal.SIGINT)
        assert tail.wait(10) == 0
    assert lines[0]["conversation"] == "lobby" and isinstance(lines[0]["offset"], int)


def select_ready(stream: Any) -> bool:
    import select

    return bool(select.select([stream], [], [], 0.2)[0])


def test_tail_of_a_topic_that_is_none(served: Any) -> None:
    ended = served.ctl("tail", "--topic", "no topic", "--json")
    assert ended.code == 1 and "topic" in ended.error()["message"]
    ended = served.ctl("tail", "--topic", "a", "--conversation", "b")
    assert ended.code == 2


def test_conversations_are_listed_made_and_ended(served: Any) -> None:
    rows = served.ctl("conversations", "list", "--json").json()["conversations"]
    assert rows[0]["name"] == "lobby" and rows[0]["channels"][0]["channel"] == ECHO
    assert served.ctl("conversations", "add", "attic", "msgr://channels/acme/bridge/echo/attic").code == 0
    assert served.ctl("send", "attic", "up here", "--wait").code == 0
    assert "attic" in served.ctl("conversations", "list").out
    assert served.ctl("conversations", "remove", "attic").code == 0
    assert served.ctl("send", "attic", "gone").code == 1


def test_conversations_that_cannot_be(served: Any) -> None:
    ended = served.ctl("conversations", "add", "bad", "not-a-ref")
    assert ended.code == 1 and ended.says("not-a-ref", "msgr://channels/")
    ended = served.ctl("conversations", "add", "bad", "msgr://channels/acme/bridge/irc/net/%23x")
    assert ended.code == 1 and ended.says("0 connectors", "via")
    ended = served.ctl("conversations", "remove", "lobby")
    assert ended.code != 0 and ended.says("configuration file")


def test_a_client_is_added_and_revoked(served: Any) -> None:
    told = served.ctl(
        "clients", "add", "phone", "--identity", "ola", "--conversation", "lobby", "--json"
    ).json()
    assert set(told) == {"name", "identity", "token"} and told["identity"] == "msgr://identity/msgr/ola"
    rows = served.ctl("clients", "list", "--json").json()["clients"]
    assert {
        "name": "phone",
        "identity": "msgr://identity/msgr/ola",
        "display": "ola",
        "conversations": ["lobby"],
    } in rows
    assert told["token"] not in served.ctl("clients", "list", "--json").out
    assert served.ctl("send", "lobby", "as ola", "--as", "ola", "--wait").code == 0
    assert served.ctl("clients", "revoke", "phone").code == 0
    assert served.ctl("send", "lobby", "as ola", "--as", "ola").code == 3


def test_a_client_that_cannot_be(served: Any) -> None:
    ended = served.ctl("clients", "add", "x", "--identity", "ola", "--conversation", "nowhere")
    assert ended.code == 1 and ended.says("nowhere", "conversations list")
    ended = served.ctl("clients", "revoke", "nobody")
    assert ended.code == 1 and ended.says("nobody", "clients list")
    assert served.ctl("clients", "add", "x", "--identity", "ola").code == 2


def test_init_tells_where_everything_is(tmp_path: Path, bridgectl: Any) -> None:
    made = bridgectl("init", tmp_path / "beta", "--json").json()
    assert made["name"] == "beta" and Path(made["config"]).exists()
    for private in (made["key"], made["token"]):
        assert Path(private).stat().st_mode & 0o077 == 0
    again = bridgectl("init", tmp_path / "beta", "--json")
    assert again.code == 1 and "exists" in again.error()["message"] and again.error()["hint"]
    assert bridgectl("init").code == 2
    bad = bridgectl("init", tmp_path / "x", "--name", "No Name!")
    assert bad.code == 1 and bad.says("No Name!")
    file = tmp_path / "file"
    file.touch()
    assert bridgectl("init", file / "sub").says("Not a directory")
