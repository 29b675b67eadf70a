"""Real servers for a test: `async with inspircd(tmp_path) as server`, and stop, start or kill them in the middle.

Each is one `tools/lab up` of its own, so what works here works by hand.  Where the programs are missing, root on
Debian installs them; elsewhere the test is skipped, but never in CI.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio

LAB = Path(__file__).parents[2] / "tools" / "lab"
PORTS = 30
UP_S = 60.0
PROGRAMS = {
    "inspircd": "inspircd", "inspircd-b": "inspircd", "inspircd-metered": "inspircd", "ngircd": "ngircd",
    "prosody": "prosody", "atheme": "atheme-services",
}  # fmt: skip


def free_port_base() -> int:
    """The first of 30 ports of which nobody uses one; spread by process, so that parallel workers seldom meet."""
    for attempt in range(400):
        base = 20_000 + (os.getpid() * 37 + attempt * 101) % 1200 * PORTS
        if all(_is_free(base + offset) for offset in range(PORTS)):
            return base
    raise RuntimeError("no 30 free ports in a row between 20000 and 56000")


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def require(*names: str) -> None:
    """Make sure that the programs of these servers are there, or skip (fail in CI)."""
    require_program(*(PROGRAMS[name] for name in names), "openssl")


def require_program(*wanted: str) -> None:
    """The same for programs that `tools/lab install` knows."""
    path = os.environ.get("PATH", "") + ":/usr/sbin:/usr/local/sbin"
    if all(shutil.which(program, path=path) for program in wanted):
        return
    done = subprocess.run([sys.executable, str(LAB), "install"], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        if os.environ.get("CI"):
            pytest.fail(done.stderr.strip())
        pytest.skip(done.stderr.strip())


@attrs.define(eq=False)
class LabServer:
    """One or more real servers that were started together.

    The first named server's ports are `port` and `tls_port`; `told` has what the lab says of each.
    """

    names: tuple[str, ...]
    directory: Path
    port_base: int
    options: tuple[str, ...] = ()
    told: dict[str, Any] = attrs.field(factory=dict)
    _process: trio.Process | None = None
    host: str = "127.0.0.1"

    @property
    def ports(self) -> dict[str, int]:
        return dict(self.told[self.names[0]]["ports"])

    @property
    def port(self) -> int:
        """IRC: plain.  XMPP: STARTTLS."""
        ports = self.ports
        return ports["starttls"] if "starttls" in ports else ports["plain"]

    @property
    def tls_port(self) -> int:
        """TLS from the first byte."""
        return self.ports["tls"]

    @property
    def address(self) -> tuple[str, int]:
        return self.host, self.port

    @property
    def ca(self) -> Path:
        """The certificate that clients trust."""
        return self.directory / "ca.pem"

    @property
    def is_up(self) -> bool:
        return self._process is not None

    async def start(self) -> None:
        """Start, or come back after `stop` or `kill`, with the same ports and data."""
        assert self._process is None, "it is up already"
        command = [
            sys.executable, str(LAB), "up", *self.names, "--dir", str(self.directory),
            "--port-base", str(self.port_base), *self.options,
        ]  # fmt: skip
        process = await trio.lowlevel.open_process(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        self._process = process
        try:
            with trio.fail_after(UP_S):
                self.told = json.loads(await self._first_line(process))["servers"]
        except BaseException:
            await self._end(process)
            raise

    async def _first_line(self, process: trio.Process) -> bytes:
        assert process.stdout is not None and process.stderr is not None
        line = b""
        while not line.endswith(b"\n"):
            data = await process.stdout.receive_some(4096)
            if not data:
                error = await process.stderr.receive_some(4096)
                raise RuntimeError(error.decode(errors="replace").strip() or "tools/lab ended without a word")
            line += data
        return line

    async def stop(self) -> None:
        """SIGTERM, as an operator stops a server; returns when it is gone."""
        if self._process is not None:
            await self._end(self._process)

    async def kill(self) -> None:
        """SIGKILL: connections break without a word."""
        process = self._process
        assert process is not None, "it is down already"
        for told in self.told.values():
            os.kill(told["pid"], signal.SIGKILL)
        await self._end(process)

    async def _end(self, process: trio.Process) -> None:
        self._process = None
        with trio.CancelScope(shield=True):
            process.terminate()
            with trio.move_on_after(15):
                await process.wait()
            if process.returncode is None:
                process.kill()
                await process.wait()
            for stream in (process.stdout, process.stderr):
                if stream is not None:
                    await stream.aclose()

    async def wait_services(self) -> None:
        """Wait until services are linked and `sasl` is offered."""
        with trio.fail_after(UP_S):
            while b"sasl=" not in await self._capabilities():
                await trio.sleep(0.1)  # another process: nothing to wait on

    async def _capabilities(self) -> bytes:
        async with await trio.open_tcp_stream(*self.address) as stream:
            await stream.send_all(b"CAP LS 302\r\n")
            return bytes(await stream.receive_some(4096))

    def log(self, name: str | None = None) -> str:
        """What a server wrote, for a failing test."""
        return Path(self.told[name or self.names[0]]["log"]).read_text(errors="replace")


@asynccontextmanager
async def lab(
    tmp: Path, *names: str, port_base: int | None = None, options: Sequence[str] = ()
) -> AsyncIterator[LabServer]:
    """Servers by the lab's names, up while the block runs."""
    await trio.to_thread.run_sync(require, *names)
    directory = tmp / "-".join(names)
    server = LabServer(names, directory, free_port_base() if port_base is None else port_base, tuple(options))
    await server.start()
    try:
        yield server
    finally:
        await server.stop()


@asynccontextmanager
async def inspircd(
    tmp: Path,
    port_base: int | None = None,
    *,
    metered: bool = False,
    linked: bool = False,
    services: bool = False,
) -> AsyncIterator[LabServer]:
    """InspIRCd.

    Args:
        tmp: A scratch directory.
        port_base: The first of 30 ports; free ones are found where None.
        metered: Flood control of about one line a second.
        linked: A second server linked to it (`told["inspircd-b"]`).
        services: Atheme, so that SASL is offered.
    """
    names = ["inspircd-metered" if metered else "inspircd"]
    names += ["inspircd-b"] if linked else []
    names += ["atheme"] if services else []
    async with lab(tmp, *names, port_base=port_base) as server:
        yield server


@asynccontextmanager
async def ngircd(tmp: Path, port_base: int | None = None) -> AsyncIterator[LabServer]:
    """ngIRCd, the weak one."""
    async with lab(tmp, "ngircd", port_base=port_base) as server:
        yield server


@asynccontextmanager
async def prosody(
    tmp: Path,
    port_base: int | None = None,
    *,
    users: Sequence[str] = ("alice", "bob", "bridge"),
    hibernation_s: int = 60,
) -> AsyncIterator[LabServer]:
    """Prosody; `users` are `name` (password `pw-NAME`) or `name:password`."""
    options = [word for user in users for word in ("--user", user if ":" in user else f"{user}:pw-{user}")]
    options += ["--hibernation", str(hibernation_s)]
    async with lab(tmp, "prosody", port_base=port_base, options=options) as server:
        yield server
