"""The bridge between the fakes, and between real servers: the same people, the same scenarios."""

from __future__ import annotations

import ssl
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
import trio_asyncio

from bridged.peers.irc import open_irc_network
from bridged.peers.xmpp import open_xmpp_server
from shards.env import Env
from tests.contract.irc_person import irc_person
from tests.contract.relay_scenarios import SCENARIOS, Relay
from tests.contract.shard import CHANNEL, ROOM, shard
from tests.contract.xmpp_person import xmpp_person
from tests.live import servers


async def carry(tmp_path: Path, irc: tuple[str, int], xmpp: tuple[str, int], ca: Path) -> None:
    """Bring a shard and two people up, and run every scenario."""
    context = ssl.create_default_context(cafile=str(ca))
    async with (
        irc_person(irc, "irene") as irene,
        xmpp_person(xmpp, "alice", context) as alice,
    ):
        await irene.join(CHANNEL)
        await alice.join(ROOM)
        async with shard(tmp_path, irc, xmpp, ca):
            relay = Relay(irene, alice)
            for scenario in SCENARIOS:
                try:
                    await scenario(relay)
                except Exception as exc:
                    exc.add_note(f"in the scenario {scenario.__name__}")
                    raise


@pytest.mark.slow
@pytest.mark.parametrize("flavour", ["inspircd", "ngircd"])
async def test_between_fakes(env: Env, tmp_path: Path, flavour: Any) -> None:
    async with (
        trio_asyncio.open_loop(),
        open_irc_network(env, flavour=flavour, host="127.0.0.1") as net,
        open_xmpp_server(env, host="127.0.0.1") as srv,
    ):
        for name in ("alice", "bridge"):
            srv.add_user(name, f"pw-{name}")
        await carry(tmp_path, net.address, srv.address, srv.write_ca(tmp_path / "ca.pem"))


@pytest.mark.live
@pytest.mark.parametrize("flavour", ["inspircd", "ngircd"])
async def test_between_real_servers(tmp_path: Path, flavour: str) -> None:
    async with AsyncExitStack() as stack:
        irc = await stack.enter_async_context(servers.lab(tmp_path, flavour))
        xmpp = await stack.enter_async_context(servers.prosody(tmp_path))
        await stack.enter_async_context(trio_asyncio.open_loop())
        await carry(tmp_path, irc.address, xmpp.address, xmpp.ca)
