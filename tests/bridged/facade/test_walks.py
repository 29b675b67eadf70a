"""The walks of the house over the real broker, log and clients: network to network, client to network, and crashes.

The connectors here are desks with a fake platform behind them; broker, control, facade and the delivery loop are
the shipped ones, in a world from a seed.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio

from bridged.connectors.desk import Delivered, Desk, Intent, open_desk
from bridged.control import Control
from bridged.facade import GRANTS, ClientSeed, Conversation, FacadeSettings, Link, run_facade
from bridged.requests import ask
from shards.broker import Broker, Principal, open_broker
from shards.client import Client, Identity, open_client
from shards.env import Env
from shards.errors import RequestFailed
from shards.grant import Grant, role_grants
from shards.shard import Supervisor
from shards.testing import World, run_simulation

IRC = "msgr://channels/acme/bridge/irc/irc.lab/%23ops"
XMPP = "msgr://channels/acme/bridge/xmpp/ops@muc.localhost"
NAMES = {
    "irc": "msgr://identity/bridges/irc/irc.lab/{}",
    "xmpp": "msgr://identity/bridges/xmpp/ops@muc.localhost%2F{}",
}
SPOKEN = {"irc": "inbound_message", "xmpp": "inbound_stanza"}
HOUSE = {
    "facade": GRANTS,
    "control": {Grant("respond", "fabric", "", "*"), Grant("publish", "fabric", "", "event")},
    "ola": role_grants("send") | role_grants("sync") | role_grants("admin"),
    "kari": role_grants("send") | role_grants("sync"),
}


@attrs.frozen
class Settings:
    service: str
    instance: str = "main"


class Platform:
    """A network that remembers what it was given, through every life of its connector."""

    def __init__(self, service: str) -> None:
        self.service = service
        self.channel = IRC if service == "irc" else XMPP
        self.heard: list[Intent] = []
        self.by_key: dict[str, str] = {}
        self.news = trio.Event()

    async def send(self, intent: Intent) -> Delivered:
        if intent.was_written and intent.idempotency_key in self.by_key:
            return Delivered(remote_id=self.by_key[intent.idempotency_key])
        await intent.mark_written()
        self.heard.append(intent)
        remote_id = f"{self.service}-{len(self.heard)}"
        self.by_key[intent.idempotency_key] = remote_id
        self.news.set()
        self.news = trio.Event()
        await trio.sleep(0.001)
        return Delivered(remote_id=remote_id)

    def texts(self) -> list[str]:
        return [intent.text for intent in self.heard]

    async def wait(self, n: int) -> None:
        while len(self.heard) < n:
            await self.news.wait()


class Shard:
    """A broker and its members in one process."""

    def __init__(self, env: Env, broker: Broker, identities: dict[str, Identity]) -> None:
        self.env = env
        self.broker = broker
        self.identities = identities

    def connect(self, name: str) -> Any:
        return open_client(
            self.env,
            self.broker.endpoint,
            self.identities[name],
            server_public=self.broker.server_public,
            shard="acme",
        )

    @asynccontextmanager
    async def desk(self, service: str) -> AsyncIterator[Desk]:
        async with (
            self.connect(f"{service}/main") as client,
            open_desk(self.env, Settings(service), client) as desk,
        ):
            yield desk

    async def ask(self, client: Client, action: str, **payload: Any) -> dict[str, Any]:
        return await ask(self.env, client, "core", action, payload)


async def say(desk: Desk, text: str, remote_id: str, **more: Any) -> None:
    """One line on the platform, as its connector publishes it."""
    channel = IRC if desk.service == "irc" else XMPP
    payload = {
        "channel": channel,
        "remote_id": remote_id,
        "sender": {"ref": NAMES[desk.service].format("irene"), "name": "irene"},
        "text": text,
        "timestamp": "2026-11-24T08:00:00.000Z",
        **more,
    }
    await desk.publish(SPOKEN[desk.service], payload, key=channel.encode())


@asynccontextmanager
async def open_shard(
    env: Env, state: Path, endpoint: str, identities: dict[str, Identity]
) -> AsyncIterator[Shard]:
    """Broker, control and facade, serving when entered."""
    async with open_broker(env, state=state, endpoint=endpoint, shard="acme") as broker:
        for name in (*HOUSE, "irc/main", "xmpp/main"):
            identity = identities.setdefault(name, Identity.generate(name, "acme", env.token_bytes))
            service = name.partition("/")[0] if "/" in name else None
            grants = HOUSE.get(name) or frozenset(
                {
                    Grant("publish", service or "", "main", "*"),
                    Grant("subscribe", service or "", "main", "*"),
                    Grant("request", "core", "", "cursor"),
                    Grant("request", "core", "", "status"),
                }
            )
            await broker.enroll(
                Principal(
                    name=name,
                    tenant="acme",
                    noise_public=identity.noise_public,
                    signing_public=identity.signing_public,
                    lease_public=identity.lease_public,
                    grants=frozenset(grants),
                    service=service,
                    instance="main" if service else None,
                )
            )
        shard = Shard(env, broker, identities)
        settings = FacadeSettings(
            tenant="acme",
            path=state / "core.db",
            connectors=(("irc", "main"), ("xmpp", "main")),
            conversations=(
                Conversation(
                    name="ops",
                    links=(
                        Link(ref=IRC, service="irc", instance="main"),
                        Link(ref=XMPP, service="xmpp", instance="main"),
                    ),
                ),
            ),
            clients=(ClientSeed(name="ola", identity="msgr://identity/msgr/ola"),),
        )
        async with (
            shard.connect("control") as fabric,
            shard.connect("facade") as core,
            trio.open_nursery() as nursery,
        ):
            control = Control(
                env,
                fabric,
                shard="acme",
                broker=broker,
                supervisor=Supervisor(env, lambda status, fault: None),
                describe=dict,
                outsider=lambda service, instance: None,
            )
            await nursery.start(control.run)
            await nursery.start(run_facade, env, core, settings)
            yield shard
            nursery.cancel_scope.cancel()


def in_world(scenario: Callable[[World], Any], seed: int = 1) -> None:
    """Run a scenario in a world from a seed."""

    async def main() -> None:
        with World(seed) as world:
            await scenario(world)

    run_simulation(seed, main)


def test_a_line_walks_from_network_to_network_and_its_states_come_back() -> None:
    async def scenario(world: World) -> None:
        env = world.host("shard").env()
        far = Platform("xmpp")
        async with (
            open_shard(env, Path("/state"), "/run/f.sock", {}) as shard,
            shard.desk("irc") as irc,
            shard.desk("xmpp") as xmpp,
            shard.connect("ola") as ola,
            trio.open_nursery() as nursery,
        ):
            await nursery.start(xmpp.outbound, far.send)
            await say(irc, "hello", "r1", cursor={"stream": "#ops", "value": "1"})
            await far.wait(1)
            assert far.texts() == ["hello"]
            assert far.heard[0].sender.name == "irene"
            cursors = await irc.cursors()
            assert cursors["#ops"].value == "1"
            while True:
                page = await shard.ask(ola, "history", conversation="ops")
                states = [one["state"] for one in page["messages"][0]["deliveries"]]
                if states == ["delivered"]:
                    break
                await trio.sleep(0.01)
            assert page["messages"][0]["offset"] == 0
            trace = await shard.ask(ola, "trace", trace_id=far.heard[0].trace_id)
            assert [step["kind"] for step in trace["steps"]] == ["envelope", "decision", "status", "status"]
            nursery.cancel_scope.cancel()

    in_world(scenario)


def test_a_client_speaks_to_both_networks_and_reads_what_they_say() -> None:
    async def scenario(world: World) -> None:
        env = world.host("shard").env()
        irc_net, xmpp_net = Platform("irc"), Platform("xmpp")
        async with (
            open_shard(env, Path("/state"), "/run/f.sock", {}) as shard,
            shard.desk("irc") as irc,
            shard.desk("xmpp") as xmpp,
            shard.connect("ola") as ola,
            shard.connect("kari") as kari,
            ola.subscribe(["bridge/core/event"], group=None) as events,
            trio.open_nursery() as nursery,
        ):
            await nursery.start(irc.outbound, irc_net.send)
            await nursery.start(xmpp.outbound, xmpp_net.send)
            said = await shard.ask(ola, "send", conversation="ops", text="hi", idempotency_key="c-1")
            await irc_net.wait(1)
            await xmpp_net.wait(1)
            await shard.ask(ola, "edit", message_id=said["message_id"], text="hi there")
            await irc_net.wait(2)
            await xmpp_net.wait(2)
            assert irc_net.heard[1].action == "outbound_edit_message"
            assert xmpp_net.texts() == ["hi", "hi there"]
            with pytest.raises(RequestFailed) as caught:
                await shard.ask(kari, "send", conversation="ops", text="no")
            assert caught.value.code == "not_linked"
            finals = 0
            offsets = []
            while finals < 4:
                for record in await events.receive():
                    offsets.append(record.offset)
                    finals += b'"status":"delivered"' in record.payload
            assert offsets == list(range(len(offsets)))
            nursery.cancel_scope.cancel()

    in_world(scenario)


@pytest.mark.parametrize("seed", range(3))
def test_nothing_is_lost_or_doubled_when_the_shard_is_killed_again_and_again(seed: int) -> None:
    """The plug is pulled at times from the seed, while both networks talk; each platform forgets nothing."""

    async def scenario(world: World) -> None:
        host = world.host("shard")
        identities: dict[str, Identity] = {}
        nets = {"irc": Platform("irc"), "xmpp": Platform("xmpp")}
        wanted = {service: [f"{service} {n}" for n in range(30)] for service in nets}
        stored: dict[str, int] = {"irc": 0, "xmpp": 0}

        async def talk(desk: Desk) -> None:
            """The platform keeps what its connector has not stored: begin where the cursor stands."""
            cursors = await desk.cursors()
            first = int(cursors["s"].value) + 1 if "s" in cursors else 0
            stored[desk.service] = first
            for n in range(first, 30):
                text = wanted[desk.service][n]
                await say(desk, text, f"{desk.service}{n}", cursor={"stream": "s", "value": str(n)})
                await trio.sleep(0.05)

        async def connector(shard: Shard, service: str) -> None:
            async with shard.desk(service) as desk, trio.open_nursery() as nursery:
                await nursery.start(desk.outbound, nets[service].send)
                await talk(desk)
                await trio.sleep_forever()

        async def life(env: Env) -> None:
            async with (
                open_shard(env, Path("/state"), "/run/f.sock", identities) as shard,
                trio.open_nursery() as nursery,
            ):
                nursery.start_soon(connector, shard, "irc")
                nursery.start_soon(connector, shard, "xmpp")
                await nets["irc"].wait(30)
                await nets["xmpp"].wait(30)
                await trio.sleep(2)  # whatever is doubled comes now
                nursery.cancel_scope.cancel()

        async with trio.open_nursery() as nursery:

            async def pull_the_plug() -> None:
                for _ in range(8):
                    await trio.sleep(world.random.uniform(0.05, 0.5))
                    host.kill()

            nursery.start_soon(pull_the_plug)
            while not await host.run(life):
                host.start()
            nursery.cancel_scope.cancel()
        assert host.lives > 1
        assert nets["xmpp"].texts() == wanted["irc"]
        assert nets["irc"].texts() == wanted["xmpp"]

    in_world(scenario, seed)
