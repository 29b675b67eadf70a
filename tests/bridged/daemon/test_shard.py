"""The whole process: signals, exit codes, what lies on the disk, and a shard that serves two tenants."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

MAIN = "import sys; from bridged.__main__ import main; sys.exit(main())"


@contextmanager
def notified(path: Path) -> Iterator[socket.socket]:
    """systemd's end of sd_notify."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as heard:
        heard.bind(str(path))
        heard.settimeout(20)
        yield heard


def run(house: Any, *words: str, notify: Path | None = None) -> subprocess.Popen[str]:
    env = dict(os.environ)
    if notify is not None:
        env["NOTIFY_SOCKET"] = str(notify)
    command = [sys.executable, "-c", MAIN, *(words or ("run", str(house.config)))]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=env)


def test_it_says_ready_reloads_and_stops_when_told(house: Any, tmp_path: Path) -> None:
    with notified(tmp_path / "n.sock") as heard, run(house, notify=tmp_path / "n.sock") as daemon:
        assert b"READY=1" in heard.recv(4096)
        assert house.ctl("send", "lobby", "hello", "--wait").code == 0
        house.ctl("keys", "new", "eve")
        assert house.ctl("--key", "eve", "status").code == 3
        daemon.send_signal(signal.SIGHUP)
        assert b"RELOADING=1" in heard.recv(4096)
        assert b"READY=1" in heard.recv(4096)
        assert house.ctl("--key", "eve", "status").code == 0
        daemon.send_signal(signal.SIGTERM)
        assert b"STOPPING=1" in heard.recv(4096)
        _, said = daemon.communicate(timeout=10)
    assert daemon.returncode == 0
    assert '"event":"serving"' in said and '"event":"stopped"' in said and "hello" not in said


def test_a_kill_loses_nothing_that_was_said(house: Any) -> None:
    sent = []
    for number in range(2):
        with run(house) as daemon:
            deadline = time.monotonic() + 20
            while house.ctl("status").code != 0 and time.monotonic() < deadline:
                time.sleep(0.1)
            told = house.ctl("send", "lobby", f"n{number}", "--json").json()
            sent.append(told["message_id"])
            daemon.kill()
            daemon.communicate()
    with house.serving():
        house.ctl("send", "lobby", "last", "--wait")
        messages = house.ctl("history", "lobby", "--json").json()["messages"]
        mine = [m["message_id"] for m in messages if m["channel"] is None]
        assert mine[:2] == sent and len(mine) == 3
        echoes = [m["text"] for m in messages if m["channel"] is not None]
        assert sorted(set(echoes)) == sorted(echoes)  # none twice
        assert house.ctl("audit", "verify").code == 0 and house.ctl("log", "verify").code == 0


def test_what_it_cannot_start_with_is_said_with_its_exit_code(house: Any) -> None:
    with house.serving(), run(house) as second:
        _, said = second.communicate(timeout=20)
        assert second.returncode == 1 and "is in use by process" in said
    for words in (
        ["run", str(house.directory / "none.toml")],
        ["connector", str(house.config), "irc/none", "--key", "x"],
    ):
        with run(house, *words) as daemon:
            _, said = daemon.communicate(timeout=20)
        assert daemon.returncode in (1, 78) and said.startswith("bridged: ") and "Traceback" not in said
    house.edit('token = "soft"', 'token = "wax"\ncolour = 1')
    with run(house) as daemon:
        _, said = daemon.communicate(timeout=20)
    assert daemon.returncode == 78 and "$.vault.token" in said and "$.vault.colour" in said


def test_a_damaged_log_ends_the_start_and_is_named(house: Any) -> None:
    with house.serving():
        house.ctl("send", "lobby", "hello", "--wait")
    log = house.state / "log.db"
    log.write_bytes(log.read_bytes()[:20_000])
    with run(house) as daemon:
        _, said = daemon.communicate(timeout=20)
    assert daemon.returncode in (1, 74) and "log.db" in said and "Traceback" not in said


def test_files_are_its_users_alone(house: Any) -> None:
    with house.serving():
        house.ctl("send", "lobby", "hello", "--wait")
    for file in house.state.rglob("*"):
        if file.is_file():
            assert file.stat().st_mode & 0o077 == 0, file


def test_operators_of_two_tenants_see_their_own(region: tuple[Any, dict[str, str]]) -> None:
    house, _ = region
    with house.serving():
        assert house.ctl("--key", "op-acme", "send", "lobby", "of acme", "--as", "ola", "--wait").code == 0
        for words in (
            ["history", "lobby"],
            ["topics"],
            ["groups"],
            ["keys", "list"],
            ["clients", "list"],
            ["status"],
        ):
            mine = house.ctl("--key", "op-acme", *words, "--json")
            theirs = house.ctl("--key", "op-beta", *words, "--json")
            assert mine.code == theirs.code == 0, words
            assert "of acme" not in theirs.out and "op-acme" not in theirs.out, words
        trace_id = house.ctl("--key", "op-acme", "history", "lobby", "--json").json()["messages"][0][
            "trace_id"
        ]
        foreign = house.ctl("--key", "op-beta", "trace", trace_id, "--json").error()
        absent = house.ctl("--key", "op-beta", "trace", "0" * 32, "--json").error()
        assert foreign == absent
        assert house.ctl("--key", "op-beta", "keys", "revoke", "op-acme").code == 1
        assert len(house.ctl("audit", "verify", "--json").json()["tenants"]) == 2
