"""Worlds to run a shard in: the real one without sockets, and (later in this file) one made from a seed."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable
from typing import NoReturn

import attrs
import trio

from shards.env import Env


async def _no_network(*_where: object) -> NoReturn:
    raise OSError("this environment has no network")


def real_env(*, threads: bool = True, **changes: object) -> Env:
    """The system's clock, randomness, threads and files, but no sockets: for storage on a real disk."""
    run_sync: Callable[..., object] = trio.to_thread.run_sync if threads else _inline
    env = Env(
        wall=time.time,
        random=random.Random(),
        token_bytes=os.urandom,
        run_sync=run_sync,  # type: ignore[arg-type]
        threads=threads,
        vfs=None,
        bind=_no_network,
        connect=_no_network,
        open_tcp_stream=_no_network,
        open_tcp_listeners=_no_network,
        maybe=lambda _point: False,
    )
    return attrs.evolve(env, **changes)  # type: ignore[arg-type]


async def _inline(fn: Callable[..., object], *args: object) -> object:
    await trio.lowlevel.checkpoint()
    return fn(*args)
