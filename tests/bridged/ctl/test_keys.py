"""Who may talk to a shard: operators' keys, invites, grants, and what happens with the wrong ones."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

ECHO = "msgr://channels/acme/bridge/echo/lobby"


@pytest.fixture(scope="module")
def stranger(tmp_path_factory: pytest.TempPathFactory, served: Any) -> Path:
    """An operator's key of another shard of the same name."""
    other = type(served)(tmp_path_factory.mktemp("other") / "acme")
    return Path(other.directory / "keys/acme.key")


def test_keys_and_grants_are_listed(served: Any) -> None:
    rows = served.ctl("keys", "list", "--json").json()["principals"]
    assert {row["name"] for row in rows} >= {
        "acme",
        "facade",
        "vault",
        "audit",
        "control",
        "gateway",
        "echo/demo",
    }
    assert all(len(row["noise_public"]) == 64 and row["state"] == "active" for row in rows)
    assert "private" not in served.ctl("keys", "list", "--json").out
    (mine,) = served.ctl("grants", "list", "acme", "--json").json()["grants"]
    assert "request bridge/*/*/*" in mine["grants"]
    assert "journal bridge/*/*/*" in served.ctl("grants", "list").out
    ended = served.ctl("grants", "list", "nobody")
    assert ended.code == 1 and ended.says("nobody", "keys list")


def test_the_key_of_another_shard_is_refused(served: Any, stranger: Path) -> None:
    for words in (["status"], ["vault", "list"], ["tail"], ["send", "lobby", "x", "--wait"]):
        ended = served.ctl("--key", stranger, *words)
        assert ended.code == 3 and ended.says("refuses this key", "SIGHUP"), words
    ended = served.ctl("--key", stranger, "topics", "--json")
    assert ended.code == 3 and ended.error()["code"] == "capability_denied"


def test_key_files_that_cannot_be_used(house: Any) -> None:
    key = house.directory / "keys/acme.key"
    ended = house.ctl("--key", "nobody", "status")
    assert ended.code == 1 and ended.says("nobody.key", "keys new")
    key.chmod(0o640)
    ended = house.ctl("status")
    assert ended.code == 1 and ended.says("may be read by others", f"chmod 600 {key}")
    key.chmod(0o600)
    for junk in (
        b"",
        b"junk",
        b"{}",
        key.read_bytes()[:-40],
        key.read_bytes().replace(b'"noise": "', b'"noise": "!'),
    ):
        whole = key.read_bytes()
        key.write_bytes(junk)
        ended = house.ctl("status")
        assert ended.code == 1 and ended.says("key")
        key.write_bytes(whole)
    key.unlink()
    ended = house.ctl("status", "--json")
    assert ended.code == 1 and "keys new" in ended.error()["hint"]


def test_a_new_operator_is_known_after_a_start_and_several_must_be_told_apart(house: Any) -> None:
    made = house.ctl("keys", "new", "eve", "--json").json()
    assert Path(made["key"]).stat().st_mode & 0o077 == 0
    again = house.ctl("keys", "new", "eve")
    assert again.code == 1 and again.says("exists")
    assert house.ctl("keys", "new", "facade").code == 2
    assert house.ctl("keys", "new", "Eve!").code == 1
    with house.serving():
        assert house.ctl("--key", "eve", "status").code == 0
        assert house.ctl("status").code == 0  # the shard's own name wins
        (house.directory / "keys/acme.key").rename(house.directory / "keys/boss.key")
        ended = house.ctl("status")
        assert ended.code == 1 and ended.says("several keys", "--key NAME")


def test_who_is_revoked_stays_out_through_a_restart(house: Any) -> None:
    house.ctl("keys", "new", "eve")
    house.ctl("keys", "new", "ned")
    with house.serving():
        assert house.ctl("keys", "revoke", "eve").code == 0
        assert house.ctl("grants", "revoke", "ned", "--role", "admin").code == 0
        assert house.ctl("--key", "eve", "status").code == 3
    with house.serving():
        ended = house.ctl("--key", "eve", "status")
        assert ended.code == 3 and ended.says("refuses this key")
        ended = house.ctl("--key", "ned", "status", "--json")
        assert ended.code == 3 and ended.error()["code"] == "capability_denied"
        assert "grants" in ended.error()["hint"]
        assert house.ctl("grants", "add", "ned", "--role", "admin").code == 0
        assert house.ctl("--key", "ned", "status").code == 0


def test_grants_count_at_once(served: Any) -> None:
    told = served.ctl("keys", "invite", "probe", "--role", "sync", "--json").json()
    assert join(served, told, "probe", served.directory / "probe.key").code == 0
    key = ["--key", served.directory / "probe.key"]
    assert served.ctl(*key, "topics").code == 3
    assert served.ctl("grants", "add", "probe", "request bridge/fabric/topics").code == 0
    assert served.ctl(*key, "topics").code == 0
    assert served.ctl("grants", "revoke", "probe", "request bridge/fabric/topics").code == 0
    assert served.ctl(*key, "topics").code == 3
    assert served.ctl(*key, "vault", "list").code == 3
    assert served.ctl(*key, "tail", "--topic", "bridge/fabric/event").code == 3


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["grants", "add", "nobody", "--role", "send"], 1, "keys list"),
        (["grants", "add", "acme", "bogus"], 1, "VERB bridge/"),
        (["grants", "add", "acme"], 2, "--role"),
        (["grants", "add", "facade", "--role", "send"], 3, "member of the house"),
        (["grants", "add", "acme", "--role", "king"], 2, "--help"),
        (["keys", "revoke", "nobody"], 1, "keys list"),
        (["keys", "revoke", "facade"], 3, "member of the house"),
        (["keys", "invite", "vault", "--role", "send"], 3, "member of the house"),
        (["keys", "invite", "joe"], 2, "--role"),
        (["keys", "invite", "acme", "--role", "send"], 1, "keys revoke acme"),
        (["keys", "invite", "irc/none"], 1, "outside"),
        (["keys", "invite", "echo/demo"], 1, "outside"),
        (["keys", "invite", "echo/demo", "--role", "send"], 2, "configuration"),
        (["keys"], 2, "VERB"),
        (["keys", "lend", "joe"], 2, "--help"),
        (["frobnicate"], 2, "--help"),
        ([], 2, "--help"),
        (["--colour", "status"], 2, "--help"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_line(served: Any, words: list[str], code: int, said: str) -> None:
    ended = served.ctl(*words)
    assert ended.code == code and ended.says(said)
    ended = served.ctl(*words, "--json")
    assert ended.code == code and ended.error()["message"]


def test_which_shard_must_be_said(bridgectl: Any, monkeypatch: Any, tmp_path: Path) -> None:
    monkeypatch.delenv("BRIDGED_CONFIG", raising=False)
    ended = bridgectl("status")
    assert ended.code == 2 and ended.says("--config FILE", "$BRIDGED_CONFIG", "--shard NAME")
    ended = bridgectl("--shard", "no-such-shard", "status")
    assert ended.code == 78 and ended.says("/etc/bridged/no-such-shard.toml")
    monkeypatch.setenv("BRIDGED_CONFIG", str(tmp_path / "none.toml"))
    assert bridgectl("status").code == 78


def join(house: Any, told: dict[str, str], name: str, file: Path, **changes: str) -> Any:
    told = {**told, **changes}
    words = ["keys", "join", file, "--name", name, "--server", told["server"], "--invite", told["invite"]]
    return house.ctl(*words, stdin=told["secret"] + "\n")


def test_an_invite_lets_one_in_once(served: Any, tmp_path: Path) -> None:
    text = served.ctl("keys", "invite", "guest", "--role", "send", "--role", "sync")
    assert text.code == 0 and all(word in text.out for word in ("server", "invite", "secret", "keys join"))
    told = served.ctl("keys", "invite", "guest", "--role", "send", "--role", "sync", "--json").json()
    assert set(told) == {"name", "invite", "secret", "server", "expires_at"}
    file = tmp_path / "guest.key"
    ended = join(served, told, "guest", file)
    assert ended.code == 0 and file.stat().st_mode & 0o077 == 0
    assert told["secret"] not in file.read_text()
    assert served.ctl("--key", file, "conversations", "list").code == 1  # it reads, but has no identity yet
    assert served.ctl("clients", "add", "guest", "--identity", "guest", "--conversation", "lobby").code == 0
    assert served.ctl("--key", file, "send", "lobby", "hello from outside", "--wait").code == 0
    assert served.ctl("--key", file, "topics").code == 3
    ended = join(served, told, "guest", tmp_path / "second.key")
    assert ended.code == 3 and ended.says("used, expired", "keys invite guest")
    assert served.ctl("keys", "revoke", "guest").code == 0
    assert served.ctl("--key", file, "send", "lobby", "x").code == 3


def test_an_invite_with_a_wrong_word_opens_nothing(served: Any, tmp_path: Path) -> None:
    told = served.ctl("keys", "invite", "mallory", "--role", "admin", "--json").json()
    wrong = "A" * 42 + "E"
    assert join(served, told, "mallory", tmp_path / "1.key", secret=wrong).code == 3
    assert join(served, told, "mallory", tmp_path / "2.key", invite="0" * 18).code == 3
    assert join(served, told, "mallory", tmp_path / "3.key", server=wrong).code in (3, 4)
    ended = join(served, told, "mallory", tmp_path / "4.key", secret="short")
    assert ended.code == 2 and ended.says("the secret", "keys invite")
    assert join(served, told, "oscar", tmp_path / "5.key").code == 3  # the invite is for mallory
    assert "mallory" not in [
        row["name"]
        for row in served.ctl("keys", "list", "--json").json()["principals"]
        if row["state"] == "x"
    ]


def test_join_goes_on_with_the_file_of_an_attempt_that_failed(served: Any, tmp_path: Path) -> None:
    told = served.ctl("keys", "invite", "late", "--role", "sync", "--json").json()
    file = tmp_path / "late.key"
    assert join(served, told, "late", file, secret="A" * 42 + "E").code == 3
    kept = file.read_bytes()
    assert join(served, told, "late", file).code == 0 and file.read_bytes() == kept
    ended = join(served, told, "other", file)
    assert ended.code == 1 and ended.says("somebody else")


def run_connector(house: Any, key: Path) -> subprocess.Popen[str]:
    code = "import sys; from bridged.__main__ import main; sys.exit(main())"
    words = [sys.executable, "-c", code, "connector", str(house.config), "echo/demo", "--key", str(key)]
    return subprocess.Popen(words, stderr=subprocess.PIPE, text=True, env={**os.environ})


def test_a_connector_runs_in_a_process_of_its_own(house: Any) -> None:
    house.edit('instance = "demo"', 'instance = "demo"\nruns = "outside"')
    key = house.directory / "echo.key"
    with house.serving():
        told = house.ctl("keys", "invite", "echo/demo", "--json").json()
        assert join(house, told, "echo/demo", key).code == 0
        with run_connector(house, key) as connector:
            told = house.ctl("send", "lobby", "over there", "--wait", "--timeout", "30", "--json").json()
            assert told["deliveries"] == {ECHO: "delivered"}
            connector.send_signal(signal.SIGTERM)
            connector.communicate(timeout=10)
            assert connector.returncode == 0
    with house.serving():  # the row, with its keys, is still there
        with run_connector(house, key) as connector:
            assert house.ctl("send", "lobby", "again", "--wait", "--timeout", "30").code == 0
            assert house.ctl("keys", "revoke", "echo/demo").code == 0
            deadline = time.monotonic() + 15
            while connector.poll() is None and time.monotonic() < deadline:
                time.sleep(0.1)
            connector.terminate()
            connector.communicate(timeout=10)
        assert house.ctl("send", "lobby", "nobody there", "--wait", "--timeout", "0.5").code == 1
        told = house.ctl("keys", "invite", "echo/demo", "--json").json()
        assert join(house, told, "echo/demo", house.directory / "new.key").code == 0


def test_a_connector_that_the_file_no_longer_names_is_shut_out(house: Any) -> None:
    text = house.config.read_text()
    house.edit('instance = "demo"', 'instance = "demo"\nruns = "outside"')
    named = house.config.read_text()
    key = house.directory / "echo.key"
    with house.serving():
        told = house.ctl("keys", "invite", "echo/demo", "--json").json()
        assert join(house, told, "echo/demo", key).code == 0
    house.config.write_text(text.replace('"demo"', '"other"'))
    with house.serving():
        assert house.ctl("--key", key, "status").code == 3
        rows = {row["name"]: row for row in house.ctl("keys", "list", "--json").json()["principals"]}
        assert rows["echo/demo"]["state"] == "suspended"
    house.config.write_text(named)
    with house.serving():
        rows = {row["name"]: row for row in house.ctl("keys", "list", "--json").json()["principals"]}
        assert rows["echo/demo"]["state"] == "active"
        ended = house.ctl("--key", key, "status")  # in again, though it may not ask that
        assert ended.code == 3 and ended.says("no grant")


def test_keys_of_a_shard_that_does_not_run(house: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr("bridged.ctl.session.SOCKET_WITHIN_S", 0.1)
    assert house.ctl("keys", "list").code == 4  # it has never run, so nobody is enrolled
    house.ctl("keys", "new", "eve")
    with house.serving():
        running = house.ctl("keys", "list", "--json").json()
    assert house.ctl("keys", "list", "--json").json() == running
    assert house.ctl("keys", "revoke", "eve").code == 0
    ended = house.ctl("keys", "revoke", "nobody")
    assert ended.code == 1 and ended.says("nobody", "keys list")
    assert house.ctl("keys", "revoke", "facade").code == 3
    with house.serving():
        assert house.ctl("--key", "eve", "status").code == 3
        assert house.ctl("log", "verify").code == 0


def test_an_invite_is_traded_from_elsewhere(house: Any, tmp_path: Path) -> None:
    house.edit('listen = ["ipc"]', 'listen = ["ipc", "tcp://127.0.0.1:0"]')
    with house.serving() as daemon:
        (port,) = daemon.running.broker.tcp_ports
        told = house.ctl("keys", "invite", "far", "--role", "sync", "--json").json()
        words = ["keys", "join", tmp_path / "far.key", "--name", "far", "--server", told["server"]]
        words += ["--invite", told["invite"], "--endpoint", f"tcp://127.0.0.1:{port}"]
        ended = house.ctl(*words, stdin=told["secret"])
        assert ended.code == 0, ended.err
        ended = house.ctl(*words[:-1], "tcp://127.0.0.1:1", stdin=told["secret"])
        assert ended.code == 4 and ended.says("bridgectl:")
