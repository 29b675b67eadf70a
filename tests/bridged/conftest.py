"""A whole shard as an operator has it: a directory made by `bridgectl init`, a daemon, and the command line.

The daemon runs in a thread with an event loop of its own, so that `bridgectl` meets it as it does in life: over the
fabric, by its socket.
"""

from __future__ import annotations

import io
import json
import sys
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any, TypeVar
from unittest import mock

import attrs
import pytest
import trio

from bridged import ctl, telemetry
from bridged.config import load_config
from bridged.daemon import Running, open_shard
from shards import system_env

T = TypeVar("T")


@attrs.frozen
class Ended:
    """A command that has ended."""

    code: int
    out: str
    err: str

    def json(self) -> Any:
        """Its stdout as the one JSON value that it must be."""
        assert self.code == 0, self.err
        return json.loads(self.out)

    def error(self) -> dict[str, str]:
        """Its stderr as the one JSON error that it must be."""
        assert self.code != 0, self.out
        value = json.loads(self.err)
        assert set(value) == {"error"} and set(value["error"]) == {"code", "message", "hint"}
        return value["error"]  # type: ignore[no-any-return]

    def says(self, *words: str) -> bool:
        """Is there one line on stderr, and does it hold these words?"""
        assert self.err.endswith("\n") and self.err.count("\n") == 1, self.err
        return all(word in self.err for word in words)


def bridgectl(*argv: object, stdin: str = "", terminal: bool = False) -> Ended:
    """Run the command line in this process."""
    out, err, typed = io.StringIO(), io.StringIO(), io.StringIO(stdin)
    if terminal:
        typed.isatty = lambda: True  # type: ignore[method-assign]
    with redirect_stdout(out), redirect_stderr(err), mock.patch.object(sys, "stdin", typed):
        try:
            code = ctl.main([str(word) for word in argv])
        except SystemExit as exc:
            code = exc.code if isinstance(exc.code, int) else 1
    return Ended(code, out.getvalue(), err.getvalue())


class House:
    """One shard's directory, and its daemon while it runs."""

    def __init__(self, directory: Path, name: str = "acme") -> None:
        self.directory = directory
        self.config = directory / "shard.toml"
        self.state = directory / "state"
        self.daemon: Daemon
        made = bridgectl("init", directory, "--name", name)
        assert made.code == 0, made.err
        text = self.config.read_text()
        self.config.write_text(
            text.replace("127.0.0.1:7471", "127.0.0.1:0").replace("127.0.0.1:7472", "127.0.0.1:0")
        )

    def edit(self, old: str, new: str) -> None:
        """Replace a text of the configuration that is there."""
        text = self.config.read_text()
        assert old in text
        self.config.write_text(text.replace(old, new))

    def ctl(self, *argv: object, stdin: str = "") -> Ended:
        """`bridgectl --config …`"""
        return bridgectl("--config", self.config, *argv, stdin=stdin)

    @property
    def token(self) -> str:
        return (self.directory / "client.token").read_text().strip()

    @contextmanager
    def serving(self) -> Iterator[Daemon]:
        """The daemon, serving."""
        self.daemon = daemon = Daemon(self.config)
        try:
            yield daemon
        finally:
            daemon.stop()


class Daemon:
    """A shard in a thread."""

    def __init__(self, config: Path) -> None:
        self.running: Running
        self._config = config
        self._served = threading.Event()
        self._fault: BaseException | None = None
        self._thread = threading.Thread(target=self._work, name="daemon")
        self._thread.start()
        self._served.wait()
        if self._fault is not None:
            raise self._fault

    def _work(self) -> None:
        try:
            trio.run(self._serve)
        except BaseException as exc:
            self._fault = exc
        finally:
            self._served.set()

    async def _serve(self) -> None:
        self._trio, self._over = trio.lowlevel.current_trio_token(), trio.Event()
        async with open_shard(system_env(), load_config(self._config)) as self.running:
            self._served.set()
            await self._over.wait()

    def do(self, fn: Callable[..., Awaitable[T]], *args: Any) -> T:
        """Run an async function in the daemon's loop."""
        return trio.from_thread.run(fn, *args, trio_token=self._trio)

    def stop(self) -> None:
        """Let it end, and raise what ended it."""
        if self._thread.is_alive():
            trio.from_thread.run_sync(self._over.set, trio_token=self._trio)
        self._thread.join()
        if self._fault is not None:
            raise self._fault


@pytest.fixture(scope="session")
def quiet_logs() -> None:
    """The daemon of a test shares stderr with the command that the test looks at."""
    telemetry.configure(wall=system_env().wall, level="error")


@pytest.fixture
def house(tmp_path: Path, quiet_logs: None) -> House:
    """A fresh shard that has never run."""
    return House(tmp_path / "acme")


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, quiet_logs: None) -> Iterator[House]:
    """A shard that serves, shared by the tests of a module: each leaves it as it was, or only adds."""
    house = House(tmp_path_factory.mktemp("served") / "acme")
    with house.serving():
        yield house


@pytest.fixture
def region(tmp_path: Path, quiet_logs: None) -> tuple[House, dict[str, str]]:
    """A shard of two tenants, acme and beta, each with a lobby and an operator; and a client's token for each."""
    house = House(tmp_path / "hub", "hub")
    text = house.config.read_text()
    head = text[: text.index("# A connector that answers")]
    head = head.replace('name = "hub"', 'name = "hub"\ntenants = ["acme", "beta"]')
    for tenant in ("acme", "beta"):
        head += (
            f'\n[[connector]]\nservice = "echo"\ninstance = "demo"\ntenant = "{tenant}"\n'
            f'[[conversation]]\nname = "lobby"\ntenant = "{tenant}"\n'
            f'channels = ["msgr://channels/{tenant}/bridge/echo/lobby"]\n'
        )
    house.config.write_text(head)
    for old in (house.directory / "keys").iterdir():
        old.unlink()  # of an operator of the tenant "hub", whom the region has not
    for tenant in ("acme", "beta"):
        made = house.ctl("--tenant", tenant, "keys", "new", f"op-{tenant}")
        assert made.code == 0, made.err
    tokens: dict[str, str] = {}
    with house.serving():
        for tenant in ("acme", "beta"):
            words = ["clients", "add", "phone", "--identity", "ola", "--conversation", "lobby", "--json"]
            tokens[tenant] = house.ctl("--key", f"op-{tenant}", *words).json()["token"]
    return house, tokens


@pytest.fixture(name="bridgectl")
def _bridgectl() -> Callable[..., Ended]:
    return bridgectl
