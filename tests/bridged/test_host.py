"""What systemd hears, and what the kernel is told."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from bridged import host


@pytest.fixture
def systemd(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ear:
        ear.bind(str(tmp_path / "notify"))
        ear.settimeout(1)
        yield ear


def test_systemd_is_told_what_is_said(systemd: socket.socket) -> None:
    environ = {"NOTIFY_SOCKET": systemd.getsockname()}
    assert host.notify("READY=1", environ)
    assert host.status("serving\n 3 members", environ)
    assert systemd.recv(100) == b"READY=1"
    assert systemd.recv(100) == b"STATUS=serving 3 members"


def test_the_abstract_namespace_is_spoken() -> None:
    name = f"bridged-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ear:
        ear.bind("\0" + name)
        ear.settimeout(1)
        assert host.notify("WATCHDOG=1", {"NOTIFY_SOCKET": "@" + name})
        assert ear.recv(100) == b"WATCHDOG=1"


@pytest.mark.parametrize("address", ["", "relative", "/nowhere/at/all", "vsock:2:1"])
def test_without_systemd_nothing_happens(address: str) -> None:
    assert not host.notify("READY=1", {"NOTIFY_SOCKET": address})
    assert not host.notify("READY=1", {})


@pytest.mark.parametrize(
    ("environ", "interval_s"),
    [
        ({}, None),
        ({"WATCHDOG_USEC": "30000000"}, 10.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": str(os.getpid())}, 10.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "1"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "me"}, None),
    ],
)
def test_the_watchdog_is_fed_three_times_within_its_patience(
    environ: dict[str, str], interval_s: float | None
) -> None:
    assert host.watchdog_interval_s(environ) == interval_s


def test_a_protected_process_leaves_no_core_and_cannot_be_read() -> None:
    code = (
        "import resource\n"
        "from bridged import host\n"
        "host.protect_process()\n"
        "print(resource.getrlimit(resource.RLIMIT_CORE)[0], host.is_dumpable())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["0", "False"]
