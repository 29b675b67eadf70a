"""The same scenarios on the fake XMPP server and on Prosody."""

from __future__ import annotations

import ssl
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import trio_asyncio

from bridged.peers.xmpp import open_xmpp_server
from shards.env import Env
from tests.contract.xmpp_scenarios import SCENARIOS, Place
from tests.live import servers

Scenario = Callable[[Place], Awaitable[None]]


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.__name__)
async def test_fake(env: Env, scenario: Scenario) -> None:
    async with trio_asyncio.open_loop(), open_xmpp_server(env, host="127.0.0.1") as srv:
        for name in ("alice", "bob", "bridge"):
            srv.add_user(name, f"pw-{name}")
        await scenario(Place(srv.address, srv.client_context()))


@pytest.mark.live
async def test_real(tmp_path: Path) -> None:
    """All of them on one server, since a start costs more than a scenario."""
    async with servers.prosody(tmp_path) as server, trio_asyncio.open_loop():
        context = ssl.create_default_context(cafile=str(server.ca))
        for scenario in SCENARIOS:
            await scenario(Place(server.address, context))
