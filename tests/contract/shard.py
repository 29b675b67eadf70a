"""A shard as a user runs it, between one IRC server and one XMPP server: `bridgectl init`, `bridged run`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import attrs
import trio

ROOT = Path(__file__).parents[2]
UP_S = 30.0
CHANNEL = "#ops"
ROOM = "ops@muc.localhost"
BRIDGE = "lab-bridge"
CONFIG = """
[shard]
name = "lab"
state = "{state}"
runtime = "{runtime}"

[gateway]
listen = "127.0.0.1:0"

[telemetry]
listen = "127.0.0.1:0"

[[connector]]
service = "irc"
instance = "lab"
network = "irc.lab"
server = "{irc}"
tls = false
nick = "lab-bridge"

[[connector]]
service = "xmpp"
instance = "lab"
jid = "bridge@localhost"
server = "{xmpp}"
tls = {{ ca = "{ca}" }}
credential = "xmpp/lab"
nick = "lab-bridge"

[[conversation]]
name = "ops"
channels = [
  "msgr://channels/lab/bridge/irc/irc.lab/%23ops",
  "msgr://channels/lab/bridge/xmpp/ops@muc.localhost",
]
"""


@attrs.define(eq=False)
class Shard:
    """A running shard."""

    config: Path
    process: trio.Process | None = None

    async def ctl(self, *words: str, stdin: bytes = b"") -> str:
        """`bridgectl …`; returns what it printed.

        Raises:
            subprocess.CalledProcessError: It failed; its stderr tells.
        """
        done = await trio.run_process(
            [*_python("bridged.ctl"), "--config", str(self.config), *words],
            stdin=stdin,
            capture_stdout=True,
            capture_stderr=True,
            env=environment(),
        )
        return bytes(done.stdout).decode()

    async def status(self) -> Any:
        return json.loads(await self.ctl("status", "--json"))

    async def start(self) -> None:
        """`bridged run`, and wait until both connectors carry."""
        log = (self.config.parent / "daemon.log").open("ab")
        self.process = await trio.lowlevel.open_process(
            [*_python("bridged"), "run", str(self.config)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=environment(),
        )
        log.close()

    async def wait_running(self) -> None:
        """Wait until every connector says that it runs."""
        with trio.fail_after(UP_S):
            while True:
                try:
                    connectors = (await self.status())["connectors"]
                except (subprocess.CalledProcessError, KeyError, ValueError):
                    connectors = []
                if connectors and all(c["state"] == "running" for c in connectors):
                    return
                await trio.sleep(0.1)  # another process: nothing to wait on

    async def stop(self, *, kill: bool = False) -> None:
        process, self.process = self.process, None
        if process is None:
            return
        with trio.CancelScope(shield=True):
            (process.kill if kill else process.terminate)()
            with trio.move_on_after(15):
                await process.wait()
            if process.returncode is None:
                process.kill()
                await process.wait()

    def log(self) -> str:
        return (self.config.parent / "daemon.log").read_text(errors="replace")


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "default"}


def _python(module: str) -> list[str]:
    if module == "bridged.ctl":
        return [sys.executable, "-c", "import sys; from bridged.ctl import main; sys.exit(main())"]
    return [sys.executable, "-m", module]


@asynccontextmanager
async def shard(
    directory: Path, irc: tuple[str, int], xmpp: tuple[str, int], ca: Path, *, password: str = "pw-bridge"
) -> AsyncIterator[Shard]:
    """A shard that carries `#ops` and the room `ops`, running when the block is entered."""
    home = directory / "shard"
    made = Shard(home / "shard.toml")
    await trio.run_process(
        [*_python("bridged.ctl"), "init", str(home), "--name", "lab"], capture_stdout=True, env=environment()
    )
    runtime = directory / "run"
    text = CONFIG.format(
        state=home / "state",
        runtime=runtime,
        irc="{}:{}".format(*irc),
        xmpp="{}:{}".format(*xmpp),
        ca=ca,
    )
    await trio.Path(made.config).write_text(text)
    await made.start()
    try:
        with trio.fail_after(UP_S):
            while True:
                try:
                    await made.ctl("vault", "put", "xmpp/lab", stdin=password.encode())
                    break
                except subprocess.CalledProcessError:
                    assert made.process is not None and made.process.returncode is None, made.log()
                    await trio.sleep(0.1)  # another process: nothing to wait on
        await made.wait_running()
        yield made
    finally:
        await made.stop()
