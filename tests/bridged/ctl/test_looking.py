"""What an operator looks at and mends: status, topics, groups, replay, dlq, members, check, doctor, verify."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import pytest
import trio

from shards import system_env
from shards.log import open_log

INBOUND = "bridge/echo/demo/inbound_message"


def test_status_shows_members_connectors_and_queues(served: Any) -> None:
    served.ctl("send", "lobby", "hello", "--wait")  # so the connector is up, which nobody waits for
    told = served.ctl("status", "--json").json()
    assert told["shard"] == told["tenant"] == "acme"
    assert {row["name"]: row["state"] for row in told["members"]}["facade"] == "running"
    assert [(row["name"], row["state"]) for row in told["connectors"]] == [("echo/demo", "running")]
    assert {row["name"] for row in told["groups"]} >= {"audit", "facade", "echo/demo"}
    text = served.ctl("status").out
    assert "shard acme" in text and "echo/demo  running" in text


def test_without_a_daemon_it_waits_and_says_how_to_start_one(house: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr("bridged.ctl.session.SOCKET_WITHIN_S", 0.1)
    for words in (["status"], ["send", "lobby", "x"], ["tail"], ["keys", "list"], ["vault", "status"]):
        ended = house.ctl(*words)
        assert ended.code == 4 and ended.says("no daemon", f"bridged run {house.config}"), words
    assert house.ctl("topics", "--json").error()["code"] == "network_down"


def test_a_socket_that_nobody_serves(house: Any, monkeypatch: Any) -> None:
    runtime = house.state / "run"
    runtime.mkdir(parents=True)
    with socket.socket(socket.AF_UNIX) as left_behind:
        left_behind.bind(str(runtime / "fabric.sock"))
    ended = house.ctl("status")
    assert ended.code == 4 and ended.says("bridgectl:")


def test_topics_and_groups(served: Any) -> None:
    served.ctl("send", "lobby", "hello", "--wait")
    topics = {row["topic"]: row for row in served.ctl("topics", "--json").json()["topics"]}
    assert topics[INBOUND]["next_offset"] >= 1 and topics[INBOUND]["last_at"].endswith("Z")
    groups = {row["name"]: row for row in served.ctl("groups", "--json").json()["groups"]}
    assert set(groups["facade"]) >= {
        "name",
        "topics",
        "position",
        "head",
        "lag",
        "in_flight",
        "dead",
        "members",
    }
    assert "NEXT_OFFSET" in served.ctl("topics").out and "POSITION" in served.ctl("groups").out


def test_replay_gives_records_again_and_changes_nothing(served: Any) -> None:
    served.ctl("send", "lobby", "once", "--wait")
    before = served.ctl("history", "lobby", "--json", "--limit", "200").json()
    told = served.ctl("replay", "--topic", INBOUND, "--from", "0", "--dry-run", "--json").json()
    assert told["dry_run"] and told["records"] >= 1 and told["group"] == "facade"
    assert served.ctl("replay", "--topic", INBOUND, "--from", "2020-01-01T00:00:00Z").code == 0
    assert served.ctl("send", "lobby", "after", "--wait").code == 0  # comes behind what is given again
    texts = [
        m["message_id"] for m in served.ctl("history", "lobby", "--json", "--limit", "200").json()["messages"]
    ]
    assert texts[: len(before["messages"])] == [m["message_id"] for m in before["messages"]]
    assert len(set(texts)) == len(texts)
    assert served.ctl("replay", "--topic", INBOUND, "--from", "0", "--group", "audit").code == 0
    assert served.ctl("audit", "verify").code == 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--topic", "bridge/none", "--from", "0"], "bridgectl topics"),
        (["--topic", INBOUND, "--from", "0", "--group", "nobody"], "bridgectl groups"),
        (["--topic", INBOUND, "--from", "999999"], "nothing between"),
        (["--topic", INBOUND, "--from", "yesterday"], "2026-11-24T08:00:00Z"),
        (["--topic", "bridge/fabric/event", "--from", "0"], "does not read"),
    ],
)
def test_replay_says_what_is_wrong(served: Any, words: list[str], said: str) -> None:
    served.ctl("send", "lobby", "x", "--wait")
    ended = served.ctl("replay", *words)
    assert ended.code == 1 and ended.says(said)


async def trim(house: Any) -> int:
    """Take the older half of the Log."""
    async with open_log(system_env(), house.state / "log.db") as log:
        return await log.trim(before=log.head // 2)


def test_replay_begins_where_retention_ended(house: Any) -> None:
    with house.serving():
        for _ in range(3):
            house.ctl("send", "lobby", "x", "--wait")
    oldest = trio.run(trim, house)
    assert oldest > 0
    with house.serving():
        told = house.ctl(
            "replay", "--topic", "bridge/fabric/event", "--from", "0", "--dry-run", "--json"
        ).json()
        assert told["from_offset"] > 0
        assert house.ctl("status").code == 0  # a question about what is gone ends nobody
        assert house.ctl("audit", "verify", "--json").json()["trimmed"] == oldest


def test_members_are_restarted_and_resumed(served: Any) -> None:
    assert served.ctl("restart", "echo/demo", "--json").json()["done"] is True
    assert served.ctl("resume", "vault", "--json").json()["done"] is False
    assert served.ctl("send", "lobby", "still there", "--wait").code == 0
    ended = served.ctl("restart", "nobody")
    assert ended.code == 1 and ended.says("nobody", "bridgectl status")


def test_dead_letters_are_listed_shown_and_dropped(served: Any, broken_record: Any) -> None:
    number = broken_record(served)
    rows = served.ctl("dlq", "list", "--json").json()["dead_letters"]
    assert rows[-1]["id"] == number and rows[-1]["code"] and rows[-1]["reason"]
    shown = served.ctl("dlq", "show", number, "--json").json()
    assert shown["group"] == "facade"
    assert "code" in served.ctl("dlq", "show", number).out
    assert served.ctl("dlq", "retry", number).code == 0
    number = served.ctl("dlq", "list", "--json").json()["dead_letters"] or [{"id": broken_record(served)}]
    assert served.ctl("dlq", "drop", number[-1]["id"]).code == 0
    for verb in ("show", "retry", "drop"):
        ended = served.ctl("dlq", verb, "4711")
        assert ended.code == 1 and ended.says("4711", "bridgectl dlq list")
    assert served.ctl("dlq", "show", "seven").code == 2


def test_check_and_doctor_find_nothing_wrong(house: Any) -> None:
    for word in ("check", "doctor"):
        rows = house.ctl(word, "--json").json()["findings"]
        assert {row["state"] for row in rows} <= {"ok", "warning"}
    assert "storage" in house.ctl("doctor").out


def test_check_names_every_fault_of_the_configuration(house: Any) -> None:
    house.edit('token = "soft"', 'token = "wax"\ncolour = "red"')
    house.edit('service = "echo"', 'service = "smoke"')
    for words in (["check"], ["status"]):
        ended = house.ctl(*words)
        assert ended.code == 78 and ended.says("$.vault.token", "$.vault.colour", "$.connector[0].service"), (
            words
        )
    assert house.ctl("check", "--json").error()["code"] == "bad_config"
    house.config.write_text("[shard\n")
    assert house.ctl("check").code == 78
    house.config.unlink()
    ended = house.ctl("check")
    assert ended.code == 78 and ended.says("cannot be read", "bridgectl init")


def test_doctor_tells_how_to_mend_a_bad_configuration(house: Any) -> None:
    house.edit('token = "soft"', 'token = "wax"')
    ended = house.ctl("doctor")
    assert ended.code == 1 and "$.vault.token" in ended.out and ended.says("configuration")


@pytest.mark.parametrize(
    ("path", "what"),
    [("keys/acme.key", "operator's key"), ("state/keys/vault.key", "vault"), ("state", "state")],
)
def test_check_and_doctor_see_what_others_may_read(house: Any, path: str, what: str) -> None:
    place = house.directory / path
    place.chmod(place.stat().st_mode | 0o044)
    for word in ("check", "doctor"):
        ended = house.ctl(word)
        assert ended.code == 1 and ended.says(what) and "chmod" in ended.out


def test_check_sees_missing_and_broken_files(house: Any) -> None:
    (house.directory / "keys/acme.pub").write_text("junk")
    (house.state / "keys/vault.key").unlink()
    ended = house.ctl("check")
    assert ended.code == 1 and ended.says("operators", "vault")
    assert "bridgectl vault init" in ended.out
    assert house.ctl("vault", "init").code == 0
    again = house.ctl("vault", "init")
    assert again.code == 1 and again.says("exists")


def test_check_says_which_platform_cannot_be_reached(house: Any) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
    with house.config.open("a") as file:
        file.write(
            '\n[[connector]]\nservice = "irc"\ninstance = "lab"\nnetwork = "irc.lab"\n'
            f'server = "127.0.0.1:{port}"\ntls = false\nnick = "acme"\n'
        )
    ended = house.ctl("check")
    assert ended.code == 1 and ended.says("irc/lab") and f"127.0.0.1:{port}" in ended.out


def test_log_verify_and_audit_verify_on_a_stopped_shard(house: Any) -> None:
    for words in (
        ["log", "verify"],
        ["audit", "verify"],
        ["audit", "checkpoint"],
        ["audit", "prove", "0" * 32],
    ):
        ended = house.ctl(*words)
        assert ended.code == 1 and ended.says("has never run"), words
    with house.serving():
        trace_id = house.ctl("send", "lobby", "hello", "--wait").out.strip()
    with house.serving():
        pass
    log = house.ctl("log", "verify", "--json").json()
    assert log["verified"] and log["records"] == log["head"]
    audit = house.ctl("audit", "verify", "--json").json()
    assert audit["verified"] and audit["compared"] == audit["size"]
    assert audit["size"] + audit["not_yet_audited"] == log["records"]
    proof = house.ctl("audit", "prove", trace_id, "--json")
    if proof.code == 0:
        assert proof.json()["proofs"] and proof.json()["verifier"].startswith("bridged.local/acme/acme+")
    ended = house.ctl("audit", "prove", "0" * 32)
    assert ended.code == 1 and ended.says("trace")


def flip(path: Path, needle: bytes, at: int = 0) -> None:
    data = bytearray(path.read_bytes())
    place = data.rindex(needle) + at
    data[place] ^= 1
    path.write_bytes(data)


def test_verify_names_the_leaf_and_the_segment_that_was_altered(house: Any) -> None:
    with house.serving():
        house.ctl("send", "lobby", "hello there", "--wait")
    flip(house.state / "audit.db", b'"topic":"bridge/echo/demo/state_update"', 20)
    ended = house.ctl("audit", "verify")
    assert ended.code == 1 and ended.says("leaf", "was altered")
    flip(house.state / "log.db", b"hello there")
    ended = house.ctl("log", "verify")
    assert ended.code == 74 and ended.says("segment", "checksum", "backup")


def test_verify_of_files_that_are_none(house: Any) -> None:
    with house.serving():
        pass
    for name, words in (("audit.db", ["audit", "verify"]), ("log.db", ["log", "verify"])):
        whole = (house.state / name).read_bytes()
        for wrong in (b"junk" * 5000, whole[: len(whole) // 2], b""):
            (house.state / name).write_bytes(wrong)
            ended = house.ctl(*words)
            assert ended.code == 74 and ended.says(name)
        (house.state / name).write_bytes(whole)


def test_audit_verify_makes_no_key_where_there_is_none(house: Any) -> None:
    with house.serving():
        pass
    key = house.state / "keys/audit-acme.key"
    key.unlink()
    ended = house.ctl("audit", "verify")
    assert ended.code == 1 and ended.says(str(key)) and not key.exists()


def test_two_daemons_cannot_have_one_state(house: Any) -> None:
    from shards.errors import LogError

    with house.serving(), pytest.raises(LogError, match="in use"), house.serving():
        pass
