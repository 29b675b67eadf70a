"""The fakes on loopback, on the true clock: what a contract is tried on where no real server is."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import trio

from shards.env import Env
from shards.testing import real_env


@pytest.fixture
def env() -> Env:
    async def listeners(host: str, port: int) -> Sequence[trio.SocketListener]:
        return await trio.open_tcp_listeners(port, host=host)

    return real_env(open_tcp_listeners=listeners, open_tcp_stream=trio.open_tcp_stream)
