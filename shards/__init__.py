"""The middle floor: moves bytes under a topic, durably and in order, and has no idea what a bridge is.

`system_env()` is the real world for a shard, `open_client` and `Client` are the way into the fabric; see
`docs/fabric.md`.  Names are loaded when they are first used, so that a pure room (`shards.record`, say)
stays free of ZeroMQ and SQLite.
"""

from __future__ import annotations

import random
import secrets
import time
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    import trio

    from shards.client import Client, Identity, open_client
    from shards.env import Env, Frames

__all__ = ["Client", "Env", "Identity", "open_client", "system_env"]

T = TypeVar("T")
_HOMES = {
    "Client": "shards.client",
    "Env": "shards.env",
    "Identity": "shards.client",
    "open_client": "shards.client",
}


def system_env(*, seed: int | None = None, inside: bool = True) -> Env:
    """The real world: the system's clock, randomness, threads, files and sockets.

    Args:
        seed: For jitter and choices that can be told beforehand; keys stay unpredictable.
        inside: Connect to a listener of this process without a socket; False goes by ZeroMQ always.
    """
    import trio

    from shards import sockets
    from shards.env import Env
    from shards.inside import connect_inside

    async def run_sync(fn: Callable[..., T], /, *args: Any) -> T:
        return await trio.to_thread.run_sync(fn, *args)

    async def connect(endpoint: str) -> Frames:
        if inside and (frames := connect_inside(endpoint)) is not None:
            return frames
        return await sockets.connect(endpoint, token_bytes=secrets.token_bytes)

    async def open_tcp_stream(host: str, port: int) -> trio.abc.Stream:
        return await trio.open_tcp_stream(host, port)

    async def open_tcp_listeners(host: str, port: int) -> Sequence[trio.abc.Listener[trio.abc.Stream]]:
        return await trio.open_tcp_listeners(port, host=host)

    return Env(
        wall=time.time,
        random=random.SystemRandom() if seed is None else random.Random(seed),
        token_bytes=secrets.token_bytes,
        run_sync=run_sync,
        threads=True,
        vfs=None,
        bind=sockets.bind_ipc,
        connect=connect,
        open_tcp_stream=open_tcp_stream,
        open_tcp_listeners=open_tcp_listeners,
        maybe=lambda point: False,
    )


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
