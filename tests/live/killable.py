"""The daemon as it is shipped, in an `Env` that can end it at a named place or make its disk misbehave.

A program: it imports everything once and forks a life for each line on its standard input, so that a life costs
what the shard costs and not what Python's imports do.  In comes `{"config", "notify", "kill"?, "disk"?}`, out go
`{"pid"}` and, when that life is over, `{"exit"}`.  Nothing of the shard is replaced but the environment's fault
points and, where `disk` names a control file, SQLite's file system: what that file says (`block`, `EIO`, `ENOSPC`)
happens at the next sync or write of the Log.
"""

from __future__ import annotations

import ctypes
import errno
import itertools
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import apsw
import attrs

import bridged.__main__ as program
from shards import system_env
from shards.env import Env

ROOMS = ("irc", "xmpp", "echo")
PR_SET_PDEATHSIG = 1
LOG = "log.db-wal"
"""Only the Log's commits misbehave: the others wait behind it or go on."""


def die_with_parent() -> None:
    """However the test ends, nothing of ours outlives it."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def killer(point: str, visit: int, record: str) -> Callable[[str], bool]:
    """A fault point that is deadly: at the visit-th visit of `point` the process is killed, and a file says so."""
    visits = itertools.count(1)

    def maybe(name: str) -> bool:
        if name == point and next(visits) == visit:
            Path(record).write_text(name)
            os.kill(os.getpid(), signal.SIGKILL)
        return False

    return maybe


class FaultyDisk(apsw.VFS):
    """The system's file system, but for what the control file says."""

    name = "faulty"

    def __init__(self, control: str) -> None:
        self.control = control
        super().__init__(self.name, "")

    def xOpen(self, name: Any, flags: list[int]) -> FaultyFile:
        return FaultyFile(name, flags, self.control)


class FaultyFile(apsw.VFSFile):
    """One file of it."""

    def __init__(self, name: Any, flags: list[int], control: str) -> None:
        super().__init__("", name, flags)
        path = name if isinstance(name, str) or name is None else name.filename()
        self.is_log = str(path).endswith(LOG)
        self.control = control

    def xWrite(self, data: bytes, offset: int) -> None:
        if self.is_log and self._fault() == "ENOSPC":
            raise apsw.FullError(os.strerror(errno.ENOSPC))
        super().xWrite(data, offset)

    def xSync(self, flags: int) -> None:
        if self.is_log:
            while self._fault() == "block":
                time.sleep(0.02)
            if self._fault() == "EIO":
                raise apsw.IOError(os.strerror(errno.EIO))
        super().xSync(flags)

    def _fault(self) -> str:
        try:
            with open(self.control) as file:
                return file.read()
        except FileNotFoundError:
            return ""


def live(order: dict[str, Any]) -> int:
    """One life of the daemon; returns its exit code."""
    os.environ.update(order.get("environ", {}))

    disk = FaultyDisk(order["disk"]) if "disk" in order else None

    def env() -> Env:
        made = system_env()
        kill = order.get("kill")
        if kill is not None:
            made = attrs.evolve(made, maybe=killer(kill["point"], kill["visit"], kill["record"]))
        if disk is not None:
            made = attrs.evolve(made, vfs=disk.name)
        return made

    vars(program)["system_env"] = env  # the seed of everything that a life touches
    return program.main(["run", order["config"]])


def main() -> None:
    """Serve lives until the input ends."""
    die_with_parent()
    for room in ROOMS:
        import_module(f"bridged.connectors.{room}.connector")
    for line in sys.stdin:
        order = json.loads(line)
        pid = os.fork()
        if pid == 0:
            die_with_parent()
            log = os.open(order["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
            os.dup2(log, 1)
            os.dup2(log, 2)
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            code = 70
            try:
                code = live(order)
            except BaseException:
                import traceback

                traceback.print_exc()
            finally:
                os._exit(code)
        print(json.dumps({"pid": pid}), flush=True)
        _, status = os.waitpid(pid, 0)
        print(json.dumps({"exit": os.waitstatus_to_exitcode(status)}), flush=True)


if __name__ == "__main__":
    main()
