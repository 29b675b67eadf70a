"""A small world for the fakes: a wall clock that moves with Trio's, seeded randomness, true listeners."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence

import pytest
import trio

from shards.env import Env
from shards.testing import real_env


class Wall:
    """Today's time at the first look (TLS is checked against the true clock), then as Trio's clock moves."""

    def __init__(self) -> None:
        self._offset: float | None = None

    def __call__(self) -> float:
        if self._offset is None:
            self._offset = time.time() - trio.current_time()
        return self._offset + trio.current_time()


@pytest.fixture
def env() -> Env:
    rng = random.Random(7)

    async def listeners(host: str, port: int) -> Sequence[trio.SocketListener]:
        return await trio.open_tcp_listeners(port, host=host)

    return real_env(
        wall=Wall(),
        random=rng,
        token_bytes=rng.randbytes,
        open_tcp_listeners=listeners,
        open_tcp_stream=trio.open_tcp_stream,
    )
