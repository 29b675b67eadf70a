"""The one door to the world: wall clock, randomness, threads, files and sockets are handed in as an `Env`.

The monotonic clock and sleep are Trio's own (`trio.current_time`, `trio.sleep_until`), which a `MockClock`
replaces; everything else that could differ between two runs comes from here.  `shards.system_env()` makes the
real one, `shards.testing` a simulated one; lint refuses the bare calls elsewhere.
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Protocol, TypeVar

import attrs
import trio

T = TypeVar("T")


class Frames(Protocol):
    """A message socket: the four verbs that the fabric needs of its transport.

    A frame is (peer, bytes): on the listening side `peer` is the routing id of the link, on the
    connecting side it is b"".
    """

    async def receive(self, limit: int = 64) -> list[tuple[bytes, bytes]]:
        """Wait for at least one frame, then return what is there, at most `limit`.  Always a checkpoint.

        Returns nothing when there is no frame but `lost()` has something new to tell.
        """
        ...

    def send_nowait(self, peer: bytes, frame: bytes) -> bool:
        """Send, or return False where the peer is full or gone; never waits."""
        ...

    def cut(self, peer: bytes) -> None:
        """Shut that one peer's connection down; its neighbours notice nothing."""
        ...

    def lost(self) -> list[bytes]:
        """Peers whose connection has ended since the last call."""
        ...

    async def aclose(self) -> None: ...


class RunSync(Protocol):
    """`trio.to_thread.run_sync`, or a direct call in a simulation."""

    def __call__(self, fn: Callable[..., T], /, *args: Any) -> Awaitable[T]: ...


@attrs.frozen(kw_only=True)
class Env:
    """What a shard may know of the outside.  All fields are required: nothing has a hidden default."""

    wall: Callable[[], float]
    """Seconds since 1970-01-01 UTC.  For people and records, never for order or deadlines."""
    random: random.Random
    """Jitter and choices.  Never keys."""
    token_bytes: Callable[[int], bytes]
    """Key material, nonces, ids."""
    run_sync: RunSync
    """The door for blocking work."""
    threads: bool
    """May a database start its writer thread?  False: the writer is a task and runs inline."""
    vfs: str | None
    """SQLite VFS by name; None is the system's.  A Python VFS forces one connection (EXCLUSIVE locking)."""
    bind: Callable[[str], Awaitable[Frames]]
    """Listen on an ipc path; the router side."""
    connect: Callable[[str], Awaitable[Frames]]
    """Connect to an ipc path or `tcp://HOST:PORT`; the dealer side, a fresh routing id each time."""
    open_tcp_stream: Callable[[str, int], Awaitable[trio.abc.Stream]]
    open_tcp_listeners: Callable[[str, int], Awaitable[Sequence[trio.abc.Listener[trio.abc.Stream]]]]
    """(host, port) -> listeners; port 0 lets the system choose."""
    maybe: Callable[[str], bool]
    """Fault point by name: always False in production, seeded in a simulation.  Also where a test may end the
    process: what is visited is named `FILE.commit`, `outbox.publish`, `irc.written` and so on."""
