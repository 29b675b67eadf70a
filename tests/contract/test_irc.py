"""The same scenarios on the fake IRC servers and on the real ones."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from bridged.peers.irc import open_irc_network
from shards.env import Env
from tests.contract.irc_scenarios import SCENARIOS, Place, netsplit, sasl
from tests.live import servers

Scenario = Callable[[Place], Awaitable[None]]


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.__name__)
@pytest.mark.parametrize("flavour", ["inspircd", "ngircd"])
async def test_fake(env: Env, flavour: Any, scenario: Scenario) -> None:
    async with open_irc_network(env, flavour=flavour, host="127.0.0.1") as net:
        await scenario(Place(net.address, flavour))


@pytest.mark.live
@pytest.mark.parametrize("flavour", ["inspircd", "ngircd"])
async def test_real(tmp_path: Path, flavour: str) -> None:
    """All of them on one server, since a start costs more than a scenario."""
    async with servers.lab(tmp_path, flavour) as server:
        for scenario in SCENARIOS:
            await scenario(Place(server.address, flavour))


async def test_fake_services(env: Env) -> None:
    async with open_irc_network(env, host="127.0.0.1") as net:
        net.faults.services(up=True)
        await sasl(Place(net.address, "inspircd"))


async def test_fake_netsplit(env: Env) -> None:
    async with open_irc_network(env, host="127.0.0.1", servers=2) as net:
        await netsplit(Place(net.addresses[0], "inspircd", net.addresses[1]))


@pytest.mark.live
async def test_real_services(tmp_path: Path) -> None:
    async with servers.inspircd(tmp_path, services=True) as server:
        await server.wait_services()
        await sasl(Place(server.address, "inspircd"))


@pytest.mark.live
async def test_real_netsplit(tmp_path: Path) -> None:
    async with servers.inspircd(tmp_path, linked=True) as server:
        second = (server.host, int(server.told["inspircd-b"]["ports"]["plain"]))
        await netsplit(Place(server.address, "inspircd", second))
