"""A small world for the fakes: wall clock on Trio's, seeded randomness, true listeners."""

from __future__ import annotations

import random

import pytest
import trio

from shards.env import Env
from shards.testing import real_env

STARTED_AT = 1_795_564_097.0


@pytest.fixture
def env() -> Env:
    rng = random.Random(7)

    async def listeners(host: str, port: int) -> object:
        return await trio.open_tcp_listeners(port, host=host)

    return real_env(
        wall=lambda: STARTED_AT + trio.current_time(),
        random=rng,
        token_bytes=rng.randbytes,
        open_tcp_listeners=listeners,
        open_tcp_stream=trio.open_tcp_stream,
    )
