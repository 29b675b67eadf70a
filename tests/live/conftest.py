"""What every live test gets: ports of its own, and the environment that the fakes need."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import trio

from shards.env import Env
from shards.testing import real_env
from tests.live import servers


@pytest.fixture
def ports() -> int:
    """The first of 30 free ports: 0 to 11 for IRC, 20 to 22 for Prosody, 25 to 29 for shards and taps."""
    return servers.free_port_base()


@pytest.fixture
def env() -> Env:
    """The true clock and loopback, for fake networks in the test's own process."""

    async def listeners(host: str, port: int) -> Sequence[trio.SocketListener]:
        return await trio.open_tcp_listeners(port, host=host)

    return real_env(open_tcp_listeners=listeners, open_tcp_stream=trio.open_tcp_stream)
