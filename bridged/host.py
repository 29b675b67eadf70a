"""The machine we run on: what systemd wants to hear, and what the kernel shall not do to us.

Everything here is one datagram or one system call; where there is no systemd, or no such call, nothing happens.
"""

from __future__ import annotations

import ctypes
import os
import resource
import socket
from collections.abc import Mapping

# Specification constants (sd_notify(3), prctl(2)).
PR_SET_DUMPABLE = 4
NOTIFY_BYTES_MAX = 4096

# Ours.
WATCHDOG_SHARE = 3
"""We speak three times within systemd's patience, so that one late commit is no death."""


def notify(state: str, environ: Mapping[str, str] = os.environ) -> bool:
    """Tell systemd; True where somebody was there to be told.

    Args:
        state: `READY=1`, `STOPPING=1`, `RELOADING=1`, `WATCHDOG=1`, `STATUS=…`; several by line ends.
    """
    address = environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return False
    if address.startswith("@"):  # the abstract namespace
        address = "\0" + address[1:]
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as carrier:
            carrier.setblocking(False)
            carrier.connect(address)
            carrier.send(state.encode()[:NOTIFY_BYTES_MAX])
    except OSError:
        return False
    return True


def status(text: str, environ: Mapping[str, str] = os.environ) -> bool:
    """One line for `systemctl status`."""
    return notify("STATUS=" + " ".join(text.split()), environ)


def watchdog_interval_s(environ: Mapping[str, str] = os.environ) -> float | None:
    """How often to say WATCHDOG=1; None where systemd does not watch this process."""
    try:
        patience_us = int(environ.get("WATCHDOG_USEC", ""))
        watched = int(environ.get("WATCHDOG_PID", "") or os.getpid())
    except ValueError:
        return None
    if patience_us <= 0 or watched != os.getpid():
        return None
    return patience_us / 1_000_000 / WATCHDOG_SHARE


def protect_process() -> None:
    """No core dump of our keys, and no other process of this user that reads our memory."""
    _, hard = resource.getrlimit(resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_CORE, (0, hard))
    try:
        prctl = ctypes.CDLL(None, use_errno=True).prctl
    except (OSError, AttributeError):  # no Linux
        return
    prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)


def is_dumpable() -> bool | None:
    """Could the kernel write our memory to a core file?  None where it does not say."""
    try:
        prctl = ctypes.CDLL(None, use_errno=True).prctl
    except (OSError, AttributeError):
        return None
    answer: int = prctl(3, 0, 0, 0, 0)  # PR_GET_DUMPABLE
    return None if answer < 0 else answer != 0
