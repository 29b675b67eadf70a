"""Worlds to run a shard in: the real one without sockets, and one made from a seed.

A `World` has hosts; a `Host` is one process with its disk, its randomness and its place on the network, and gives
the `Env` that the shipped classes are built for.  Nothing is replaced but that.  A host can be killed: from that
instant nothing of it reaches the network or the disk, whatever its code still does on its way out.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, NoReturn, TypeVar

import attrs
import trio

from shards.env import Env, Frames, RunSync
from shards.testing.disk import MemoryDisk
from shards.testing.network import Network, Trace

T = TypeVar("T")

WALL_START_S = 1_767_225_600.0
"""2026-01-01T00:00:00Z."""


async def _no_network(*_where: object) -> NoReturn:
    raise OSError("this environment has no network")


async def _run_inline(fn: Callable[..., T], /, *args: Any) -> T:
    await trio.lowlevel.checkpoint()
    return fn(*args)


def real_env(*, threads: bool = True, **changes: Any) -> Env:
    """The system's clock, randomness, threads and files, but no sockets: for storage on a real disk."""
    env = Env(
        wall=time.time,
        random=random.Random(),
        token_bytes=os.urandom,
        run_sync=trio.to_thread.run_sync if threads else _run_inline,
        threads=threads,
        vfs=None,
        bind=_no_network,
        connect=_no_network,
        open_tcp_stream=_no_network,
        open_tcp_listeners=_no_network,
        maybe=lambda _point: False,
    )
    return attrs.evolve(env, **changes)


class World:
    """Hosts and a network, all from one seed.  A context manager: it frees the disks' names at the end."""

    def __init__(self, seed: int | str = 0, *, trace: Trace | None = None, points: float = 0.0) -> None:
        """`points` is the chance, a time, that a fault point (`env.maybe`) is hit."""
        self.seed = seed
        self.trace: Trace = trace or (lambda *event: None)
        self.random = random.Random(f"world/{seed}")
        self.network = Network(seed, trace=self.trace)
        self.points = points
        self.io_delay_s = (0.000_1, 0.004)
        """Blocking work takes so long, half of it before and half after its effect."""
        self.wall_jump_s = 0.0
        """Added to everybody's wall clock."""
        self._hosts: dict[str, Host] = {}

    def host(self, name: str) -> Host:
        """The host of that name, made when it is first asked for."""
        if name not in self._hosts:
            self._hosts[name] = Host(self, name)
        return self._hosts[name]

    def wall(self) -> float:
        return WALL_START_S + trio.current_time() + self.wall_jump_s

    def close(self) -> None:
        for host in self._hosts.values():
            host.disk.close()
        self._hosts.clear()

    def __enter__(self) -> World:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Host:
    """One process of a simulated world."""

    def __init__(self, world: World, name: str) -> None:
        self.world, self.name = world, name
        self.disk = MemoryDisk(f"{world.seed}/{name}")
        self.is_up = True
        self.lives = 1
        self._life = trio.CancelScope()
        self._random = random.Random(f"{world.seed}/{name}")
        self._points = random.Random(f"{world.seed}/{name}/points")
        self._delays = random.Random(f"{world.seed}/{name}/delays")

    def env(self) -> Env:
        """The outside, for the life that runs now.  Calls of an earlier life reach nothing."""
        life = self.lives

        def only_now() -> None:
            if life != self.lives or not self.is_up:
                raise OSError(f"{self.name} was killed")

        async def bind(path: str) -> Frames:
            only_now()
            return await self.world.network.bind(self.name, path)

        async def connect(endpoint: str) -> Frames:
            only_now()
            return await self.world.network.connect(self.name, endpoint)

        async def open_tcp_stream(address: str, port: int) -> trio.abc.Stream:
            only_now()
            return await self.world.network.open_tcp_stream(self.name, address, port)

        async def open_tcp_listeners(address: str, port: int) -> Sequence[trio.abc.Listener[trio.abc.Stream]]:
            only_now()
            return await self.world.network.open_tcp_listeners(self.name, address, port)

        return Env(
            wall=self.world.wall,
            random=self._random,
            token_bytes=self._random.randbytes,
            run_sync=self._run_sync(),
            threads=False,
            vfs=self.disk.vfs,
            bind=bind,
            connect=connect,
            open_tcp_stream=open_tcp_stream,
            open_tcp_listeners=open_tcp_listeners,
            maybe=self._maybe,
        )

    async def run(self, main: Callable[[Env], Any]) -> bool:
        """Run one life of the process; True if it came to its own end, False if it was killed.

        What a killed life raises on its way out is nobody's business; any other exception comes through.
        """
        assert self.is_up, "the host is down: start it first"
        self._life = trio.CancelScope()
        life = self.lives
        try:
            with self._life:
                await main(self.env())
        except Exception:
            if life == self.lives and self.is_up:
                raise
        return life == self.lives and self.is_up

    def kill(self) -> None:
        """Pull the plug: the disk loses what was not synced, the network forgets the host, the code ends."""
        if self.is_up:
            self.world.trace("kill", self.name)
            self.is_up = False
            self.disk.power_off()
            self.world.network.drop_host(self.name)
            self._life.cancel()

    def start(self) -> None:
        """Power again; what the disk holds now is for its seed to say."""
        if not self.is_up:
            self.world.trace("start", self.name)
            self.disk.power_on()
            self.lives += 1
            self.is_up = True

    def _maybe(self, point: str) -> bool:
        return self.world.points > 0 and self._points.random() < self.world.points

    def _run_sync(self) -> RunSync:
        async def run_sync(fn: Callable[..., T], /, *args: Any) -> T:
            low, high = self.world.io_delay_s
            await trio.sleep(self._delays.uniform(low, high) / 2)
            result = fn(*args)
            with trio.CancelScope(shield=True):  # a thread is not called back by a cancellation
                await trio.sleep(self._delays.uniform(low, high) / 2)
            return result

        return run_sync


def simulated_env(seed: int | str = 0, *, name: str = "host", points: float = 0.0) -> Env:
    """One host's outside in a world of its own: memory disk, memory network, no threads.

    For a test that wants to kill, cut or partition, make the `World` itself.
    """
    return World(seed, points=points).host(name).env()
