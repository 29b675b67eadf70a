"""A shard as its operator has it: a directory, `bridgectl`, and a daemon that is started, stopped and killed.

Two ways to run the daemon: `bridged run` in a process of its own, or a life of `killable`, which starts faster and
ends where it is told to.  Either says READY=1 on the socket that systemd would give it.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import attrs
import trio

ROOT = Path(__file__).parents[2]
READY_S = 60.0
END_S = 40.0
CTL_S = 90.0
_RUN = (
    "import ctypes, sys; ctypes.CDLL(None).prctl(1, 9);"  # it ends with the test, however that ends
    "from bridged.__main__ import main; sys.exit(main())"
)
_CTL = "import sys; from bridged.ctl import main; sys.exit(main())"
_ENVIRON = {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}


class CtlFailed(AssertionError):
    """A `bridgectl` command ended with something else than 0."""


@attrs.define(eq=False)
class Notices:
    """What the daemon told systemd, with the times on Trio's clock."""

    path: Path
    heard: list[tuple[float, str]] = attrs.field(factory=list)
    news: trio.Event = attrs.field(factory=trio.Event)
    _socket: Any = None

    async def run(self, *, task_status: trio.TaskStatus[None]) -> None:
        with trio.socket.socket(trio.socket.AF_UNIX, trio.socket.SOCK_DGRAM) as listener:
            await listener.bind(str(self.path))
            task_status.started()
            while True:
                text = (await listener.recv(4096)).decode()
                self.heard += [(trio.current_time(), line) for line in text.splitlines()]
                self.news.set()
                self.news = trio.Event()

    def count(self, word: str) -> int:
        return sum(line == word for _, line in self.heard)

    async def wait(self, word: str, after: int) -> None:
        """Until `word` was said more than `after` times."""
        while self.count(word) <= after:
            await self.news.wait()


@attrs.define(eq=False)
class LiveShard:
    """One shard directory and, while it runs, its daemon.  Made by `open_live_shard`."""

    directory: Path
    name: str
    gateway_port: int
    nursery: trio.Nursery
    notices: Notices
    process: subprocess.Popen[bytes] | None = None
    is_killable: bool = False
    life: int | None = None
    """The pid of a killable life."""
    exit_code: int | None = None
    """Of the last daemon; negative: the signal that ended it."""
    ended: trio.Event = attrs.field(factory=trio.Event)

    @property
    def config(self) -> Path:
        return self.directory / "shard.toml"

    @property
    def log_path(self) -> Path:
        return self.directory / "daemon.log"

    def log(self) -> str:
        """What the daemon wrote, for a failing test."""
        return self.log_path.read_text(errors="replace") if self.log_path.exists() else ""

    def states(self, connector: str) -> list[str]:
        """The states that the supervisor reported of a member, in order."""
        rows = [json.loads(line) for line in self.log().splitlines() if line.startswith("{")]
        return [row["state"] for row in rows if row.get("event") == "member" and row["name"] == connector]

    # ---------------------------------------------------------------- bridgectl

    async def ctl(
        self, *words: str, stdin: str = "", ok: bool = True, file_bytes_max: int | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run a command; raises CtlFailed unless it succeeds or `ok` is false.

        Args:
            words: The command and its arguments.
            stdin: What is piped in.
            ok: It must succeed.
            file_bytes_max: No file that it writes may become longer: a full disk.
        """
        limit = f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({file_bytes_max},) * 2); "
        program = ("" if file_bytes_max is None else limit) + _CTL
        command = [sys.executable, "-c", program, "--config", str(self.config), *words]

        def run() -> subprocess.CompletedProcess[str]:
            return subprocess.run(
                command, input=stdin, capture_output=True, text=True, timeout=CTL_S, check=False,
                cwd=ROOT, env={**os.environ, **_ENVIRON},
            )  # fmt: skip

        done = await trio.to_thread.run_sync(run)
        if ok and done.returncode != 0:
            raise CtlFailed(f"bridgectl {' '.join(words)}: {done.returncode}\n{done.stdout}{done.stderr}")
        return done

    async def ctl_json(self, *words: str) -> Any:
        return json.loads((await self.ctl(*words, "--json")).stdout)

    async def history(self, conversation: str) -> list[dict[str, Any]]:
        """Everything that was ever said in a conversation, oldest first."""
        out: list[dict[str, Any]] = []
        before: list[str] = []
        while True:
            page = (await self.ctl_json("history", conversation, "--limit", "200", *before))["messages"]
            page = [row for row in page if not out or row["offset"] < out[0]["offset"]]
            if not page:
                return out
            out = sorted(page, key=lambda row: row["offset"]) + out
            before = ["--before", str(out[0]["offset"])]

    @property
    def token(self) -> str:
        """The first client's."""
        return (self.directory / "client.token").read_text().strip()

    # ---------------------------------------------------------------- the daemon

    async def start(self, *, environ: Mapping[str, str] = {}) -> None:  # read only
        """`bridged run` until it says READY=1."""
        assert self.process is None, "it is up already"
        before = self.notices.count("READY=1")
        with self.log_path.open("ab") as out:
            self.process = subprocess.Popen(
                [sys.executable, "-c", _RUN, "run", str(self.config)],
                stdin=subprocess.DEVNULL, stdout=out, stderr=out, cwd=ROOT,
                env={**os.environ, **_ENVIRON, "NOTIFY_SOCKET": str(self.notices.path), **environ},
            )  # fmt: skip
        self.ended = trio.Event()
        self.nursery.start_soon(self._watch, self.process, self.ended)
        self.must_be_up(is_ready=await self.ready(before))

    async def _watch(self, process: subprocess.Popen[bytes], ended: trio.Event) -> None:
        while process.poll() is None:
            await trio.sleep(0.02)
        self.exit_code, self.process = process.returncode, None
        ended.set()

    async def ready(self, before: int) -> bool:
        """Wait for one more READY=1 than `before`, or for the end; was it READY=1?"""
        with trio.fail_after(READY_S):
            async with trio.open_nursery() as nursery:

                async def stop_waiting_when_it_ends() -> None:
                    await self.ended.wait()
                    nursery.cancel_scope.cancel()

                nursery.start_soon(stop_waiting_when_it_ends)
                await self.notices.wait("READY=1", before)
                nursery.cancel_scope.cancel()
        return self.notices.count("READY=1") > before

    def must_be_up(self, *, is_ready: bool) -> None:
        """Fail with the daemon's own words unless it came up."""
        assert is_ready, f"the daemon ended with {self.exit_code}:\n{self.log()[-3000:]}"

    async def kill(self) -> None:
        """kill -9, and wait until it is gone."""
        self.signal(signal.SIGKILL)
        await self.wait_end()

    async def stop(self) -> int:
        """SIGTERM, as systemd stops it; returns the exit code."""
        self.signal(signal.SIGTERM)
        return await self.wait_end()

    def signal(self, number: int) -> None:
        if self.life is not None:
            os.kill(self.life, number)
        elif self.process is not None:
            self.process.send_signal(number)

    async def wait_end(self, within_s: float = END_S) -> int:
        with trio.fail_after(within_s):
            await self.ended.wait()
        assert self.exit_code is not None
        return self.exit_code

    async def wait_running(self, *names: str, within_s: float = 60.0) -> None:
        """Until these members run, as the log of this daemon says."""
        with trio.fail_after(within_s):
            while not all(self.states(name)[-1:] == ["running"] for name in names):
                assert not self.ended.is_set(), f"the daemon ended:\n{self.log()[-3000:]}"
                await trio.sleep(0.05)


@attrs.define(eq=False)
class Lives:
    """A `killable` program that gives a shard its lives."""

    shard: LiveShard
    process: subprocess.Popen[bytes]
    answers: trio.lowlevel.FdStream
    _tail: bytes = b""

    async def begin(
        self,
        *,
        kill: tuple[str, int] | None = None,
        disk: Path | None = None,
        environ: Mapping[str, str] = {},  # read only
    ) -> None:
        """Start a life and wait for READY=1, or for its end when that comes first."""
        shard = self.shard
        before = shard.notices.count("READY=1")
        order: dict[str, Any] = {
            "config": str(shard.config),
            "log": str(shard.log_path),
            "environ": {"NOTIFY_SOCKET": str(shard.notices.path), **environ},
        }
        if kill is not None:
            self.record.unlink(missing_ok=True)
            order["kill"] = {"point": kill[0], "visit": kill[1], "record": str(self.record)}
        if disk is not None:
            order["disk"] = str(disk)
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(order).encode() + b"\n")
        self.process.stdin.flush()
        shard.life = (await self._answer())["pid"]
        shard.ended = trio.Event()
        shard.nursery.start_soon(self._watch, shard.ended)
        is_ready = await shard.ready(before)
        if kill is None:
            shard.must_be_up(is_ready=is_ready)

    @property
    def record(self) -> Path:
        """Where a life writes at which place it fell."""
        return self.shard.directory / "fell"

    def fell_at(self) -> str | None:
        """The place of the last kill, None where it was not one of ours."""
        return self.record.read_text() if self.record.exists() else None

    async def _watch(self, ended: trio.Event) -> None:
        self.shard.exit_code = (await self._answer())["exit"]
        self.shard.life = None
        ended.set()

    async def _answer(self) -> dict[str, Any]:
        while b"\n" not in self._tail:
            data = await self.answers.receive_some(4096)
            assert data, "the lives' program ended"
            self._tail += data
        line, _, self._tail = self._tail.partition(b"\n")
        return json.loads(line)  # type: ignore[no-any-return]


@asynccontextmanager
async def open_live_shard(config: str, *, name: str = "acme", gateway_port: int) -> AsyncIterator[LiveShard]:
    """Make a shard with `bridgectl init`; the daemon, if one runs at the end, is killed.

    Args:
        config: Everything below `[gateway]` of its configuration: connectors and conversations.
        name: Of the shard and its tenant.
        gateway_port: Where clients come in.
    """
    directory = Path(tempfile.mkdtemp(prefix="live-"))  # short: a socket's path has 107 bytes
    try:
        async with trio.open_nursery() as nursery:
            notices = Notices(directory / "notify")
            shard = LiveShard(directory / name, name, gateway_port, nursery, notices)
            await nursery.start(notices.run)
            await shard.ctl("init", str(shard.directory), "--name", name)
            write_config(shard, config)
            try:
                yield shard
            finally:
                with trio.CancelScope(shield=True):
                    if shard.process is not None or shard.life is not None:
                        await shard.kill()
                nursery.cancel_scope.cancel()
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def write_config(shard: LiveShard, config: str, *, shard_lines: Sequence[str] = ()) -> None:
    """The configuration file anew."""
    lines = [
        "[shard]", f'name = "{shard.name}"', f'state = "{shard.directory / "state"}"', *shard_lines,
        "[gateway]", f'listen = "127.0.0.1:{shard.gateway_port}"', config,
    ]  # fmt: skip
    shard.config.write_text("\n".join(lines) + "\n")


@asynccontextmanager
async def open_lives(shard: LiveShard) -> AsyncIterator[Lives]:
    """Lives for a shard; the last one, if it still runs, is killed."""
    with (shard.directory.parent / "killable.log").open("ab") as errors:
        process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("killable.py"))],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, cwd=ROOT,
            env={**os.environ, **_ENVIRON},
        )  # fmt: skip
    assert process.stdout is not None and process.stdin is not None
    answers = trio.lowlevel.FdStream(os.dup(process.stdout.fileno()))
    try:
        yield Lives(shard, process, answers)
    finally:
        with trio.CancelScope(shield=True):
            if shard.life is not None:
                await shard.kill()
            process.stdin.close()
            process.kill()
            process.wait()
            process.stdout.close()
            await answers.aclose()


# -------------------------------------------------------------------- tables of a configuration


def irc_connector(
    address: tuple[str, int], *, instance: str = "lab", tenant: str = "", nick: str = ""
) -> str:
    return _table(
        "connector", service="irc", instance=instance, network=f"irc.{instance}", server="{}:{}".format(*address),
        tls=False, nick=nick or "acme-bridge", tenant=tenant,
    )  # fmt: skip


def xmpp_connector(
    address: tuple[str, int], ca: Path, *, instance: str = "main", tenant: str = "", user: str = "bridge"
) -> str:
    table = _table(
        "connector", service="xmpp", instance=instance, jid=f"{user}@localhost", server="{}:{}".format(*address),
        credential=f"xmpp/{instance}", nick="acme-bridge", tenant=tenant,
    )  # fmt: skip
    return f'{table}tls = {{ ca = "{ca}" }}\n'


def conversation(name: str, *channels: str, tenant: str = "") -> str:
    return _table("conversation", name=name, channels=list(channels), tenant=tenant)


def irc_channel(name: str = "#ops", *, instance: str = "lab", workspace: str = "acme") -> str:
    return f"msgr://channels/{workspace}/bridge/irc/irc.{instance}/{name.replace('#', '%23')}"


def xmpp_channel(room: str, *, workspace: str = "acme") -> str:
    return f"msgr://channels/{workspace}/bridge/xmpp/{room}"


def _table(kind: str, **values: Any) -> str:
    rows = [f"{key} = {json.dumps(value)}" for key, value in values.items() if value != ""]
    return "\n".join([f"[[{kind}]]", *rows, ""])
