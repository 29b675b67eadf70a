"""Two tenants in one shard, and two shards in one process: nothing of one reaches the other.

Both sides bear the same names throughout (conversation, connector, network, channel, credential, idempotency key),
so that whatever is found by its name alone would be found on the wrong side.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio

from bridged.config import load_config
from bridged.daemon import open_shard
from bridged.keyring import load_key
from bridged.peers.irc import IrcNetwork, open_irc_network
from bridged.peers.irc import Person as IrcPerson
from bridged.peers.xmpp import Person as XmppPerson
from bridged.peers.xmpp import XmppServer, open_xmpp_server
from shards import open_client, system_env
from shards.env import Env
from shards.errors import NotGranted, ShardsError
from tests.live.people import CHANNEL, ROOM, WsPerson, say_until, ws_person
from tests.live.shard import (
    LiveShard,
    conversation,
    irc_channel,
    irc_connector,
    open_live_shard,
    write_config,
    xmpp_channel,
    xmpp_connector,
)

pytestmark = [pytest.mark.live, pytest.mark.slow, pytest.mark.timeout(240)]

SIDES = ("acme", "beta")
ABSENT_TRACE = "0" * 32


@attrs.define(eq=False)
class Side:
    """One tenant's networks and people; `heard` is every word that reached any of them."""

    name: str
    irc: IrcNetwork
    xmpp: XmppServer
    irene: IrcPerson
    alice: XmppPerson
    heard: list[str] = attrs.field(factory=list)
    client: WsPerson | None = None

    @property
    def secret(self) -> str:
        """What nobody of the other side may ever see."""
        return f"{self.name}-only"

    async def listen_irc(self) -> None:
        while True:
            self.heard.append((await self.irene.receive()).text)

    async def listen_xmpp(self) -> None:
        while True:
            self.heard.append((await self.alice.receive()).text)

    def has_heard(self, words: str) -> bool:
        return any(words in text for text in self.heard)

    async def wait_heard(self, words: str, times: int = 1) -> None:
        with trio.fail_after(60):
            while sum(words in text for text in self.heard) < times:
                await trio.sleep(0.02)


@asynccontextmanager
async def open_side(env: Env, name: str) -> AsyncIterator[Side]:
    """Two fake networks with a person on each."""
    async with (
        open_irc_network(env, host="127.0.0.1") as irc,
        open_xmpp_server(env, host="127.0.0.1") as xmpp,
    ):
        xmpp.add_user("bridge", f"pw-{name}")
        irene, alice = await irc.person("irene"), await xmpp.person("alice")
        await irene.join(CHANNEL)
        await alice.join(ROOM, "alice")
        side = Side(name, irc, xmpp, irene, alice)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(side.listen_irc)
            nursery.start_soon(side.listen_xmpp)
            yield side
            nursery.cancel_scope.cancel()


def tables(side: Side, ca: Path, *, tenant: str = "") -> str:
    """The connectors and the conversation of one side, and a conversation that only it has."""
    return "\n".join(
        [
            irc_connector(side.irc.address, tenant=tenant),
            xmpp_connector(side.xmpp.address, side.xmpp.write_ca(ca), tenant=tenant),
            conversation(
                "ops",
                irc_channel(CHANNEL, workspace=side.name),
                xmpp_channel(ROOM, workspace=side.name),
                tenant=tenant,
            ),
            conversation(f"{side.secret}-room", irc_channel("#own", workspace=side.name), tenant=tenant),
        ]
    )


async def open_both_ways(side: Side) -> None:
    """Wait until what is said on each network arrives on the other."""
    for say, words in ((irc_say(side), "probe from irc"), (xmpp_say(side), "probe from xmpp")):
        await say_until(say, words, lambda words=words: side.has_heard(words))  # type: ignore[misc]


def irc_say(side: Side) -> Any:
    return lambda text: side.irene.say(CHANNEL, text)


def xmpp_say(side: Side) -> Any:
    return lambda text: side.alice.say(ROOM, text)


async def talk(sides: list[Side]) -> dict[str, str]:
    """Everybody says secrets of their own, at once; returns the trace of one of each side's."""
    traces: dict[str, str] = {}

    async def one(side: Side) -> None:
        assert side.client is not None
        for number in range(10):
            await side.irene.say(CHANNEL, f"{side.secret} i{number}.")
            await side.alice.say(ROOM, f"{side.secret} x{number}.")
            answer = await side.client.say(f"{side.secret} w{number}.", key=f"same-key-{number}")
            traces[side.name] = answer["trace_id"]
        for number in range(10):
            await side.wait_heard(f"{side.secret} i{number}.")
            await side.wait_heard(f"{side.secret} x{number}.")
            await side.wait_heard(f"{side.secret} w{number}.", 2)
            for speaker in "ixw":
                await side.client.message(f"{side.secret} {speaker}{number}.")

    async with trio.open_nursery() as nursery:
        for side in sides:
            nursery.start_soon(one, side)
    return traces


def check_apart(sides: list[Side]) -> None:
    """No word of one side at any ear of the other."""
    for side, other in (sides, reversed(sides)):
        assert side.client is not None
        everything = json.dumps([side.heard, side.client.events], ensure_ascii=False)
        assert side.secret in everything
        assert other.secret not in everything
        assert f"/{other.name}/" not in everything
        assert sum("w0." in text for text in side.heard) == 2, "once on each network"


async def test_two_tenants_in_one_shard(env: Env, ports: int) -> None:
    async with AsyncExitStack() as stack:
        sides = [await stack.enter_async_context(open_side(env, name)) for name in SIDES]
        shard = await stack.enter_async_context(open_live_shard("", gateway_port=ports + 25))
        config = [tables(side, shard.directory / f"{side.name}.pem", tenant=side.name) for side in sides]
        write_config(shard, "\n".join(config), shard_lines=['tenants = ["acme", "beta"]'])
        await shard.ctl("--tenant", "beta", "keys", "new", "boss")
        await shard.start()
        for side, key in zip(sides, ("acme", "boss"), strict=True):
            await shard.ctl("--key", key, "vault", "put", "xmpp/main", stdin=f"pw-{side.name}\n")
            words = ("clients", "add", "wes", "--identity", "wes", "--conversation", "ops", "--json")
            added = json.loads((await shard.ctl("--key", key, *words)).stdout)
            side.client = await stack.enter_async_context(ws_person(shard.gateway_port, added["token"]))
        for side in sides:
            await open_both_ways(side)
        traces = await talk(sides)
        check_apart(sides)
        await ask_for_the_other(shard, sides, traces)
        assert await shard.stop() == 0
        verified = json.loads((await shard.ctl("audit", "verify", "--json")).stdout)
        assert [row["verified"] for row in verified["tenants"]] == [True, True]


async def ask_for_the_other(shard: LiveShard, sides: list[Side], traces: dict[str, str]) -> None:
    """Each operator and client asks for what is the other's: it is answered as what nobody has."""
    acme, beta = sides
    for side, other, key in ((acme, beta, "acme"), (beta, acme, "boss")):
        for words in (
            ("topics",), ("groups",), ("history", "ops"), ("conversations", "list"), ("keys", "list"),
            ("grants", "list"), ("clients", "list"), ("vault", "list"), ("dlq", "list"), ("status",),
            ("trace", traces[side.name]),
        ):  # fmt: skip
            done = await shard.ctl("--key", key, *words, "--json")
            assert other.secret not in done.stdout, words
            assert f"channels/{other.name}/" not in done.stdout, words
        foreign = await shard.ctl("--key", key, "trace", traces[other.name], "--json", ok=False)
        absent = await shard.ctl("--key", key, "trace", ABSENT_TRACE, "--json", ok=False)
        assert foreign.returncode == absent.returncode
        assert _output(foreign).replace(traces[other.name], ABSENT_TRACE) == _output(absent)
        foreign = await shard.ctl("--key", key, "history", f"{other.secret}-room", "--json", ok=False)
        absent = await shard.ctl("--key", key, "history", "no-such-room", "--json", ok=False)
        assert foreign.returncode == absent.returncode != 0
        assert _output(foreign).replace(f"{other.secret}-room", "no-such-room") == _output(absent)
        assert side.client is not None
        answers = []
        for name in (f"{other.secret}-room", "no-such-room"):
            answer = await side.client.ask("send", conversation=name, text="?", idempotency_key=f"to {name}")
            assert answer.pop("id") and not answer["ok"]
            answers.append(json.dumps(answer).replace(name, "NAME"))
        assert answers[0] == answers[1]
        listed = await side.client.ask("conversations")
        assert other.secret not in json.dumps(listed)
        page = await side.client.ask("history", conversation="ops", limit=200)
        assert other.secret not in json.dumps(page) and side.secret in json.dumps(page)


def _output(done: subprocess.CompletedProcess[str]) -> str:
    return done.stdout + done.stderr


async def test_two_shards_in_one_process(env: Env, ports: int) -> None:
    """Here the daemons' own function runs twice, in this process."""
    world = system_env()
    async with AsyncExitStack() as stack:
        sides = [await stack.enter_async_context(open_side(env, name)) for name in SIDES]
        shards: list[LiveShard] = []
        for number, side in enumerate(sides):
            port = ports + 25 + number
            shard = await stack.enter_async_context(open_live_shard("", name=side.name, gateway_port=port))
            write_config(shard, tables(side, shard.directory / "ca.pem"))
            shards.append(shard)
            await stack.enter_async_context(open_shard(world, load_config(shard.config)))
            await shard.ctl("vault", "put", "xmpp/main", stdin=f"pw-{side.name}\n")
            side.client = await stack.enter_async_context(ws_person(port, shard.token))
        for side in sides:
            await open_both_ways(side)
        await talk(sides)
        check_apart(sides)
        for shard, other in (shards, reversed(shards)):
            config, key = load_config(other.config), load_key(shard.directory / "keys" / f"{shard.name}.key")
            with pytest.raises((NotGranted, ShardsError)):
                async with open_client(
                    world,
                    str(config.endpoint),
                    key.identity,
                    server_public=key.server_public,
                    shard=other.name,
                ):
                    pass
            stranger = WsPerson(other.gateway_port, shard.token)
            with trio.move_on_after(1.5) as scope:
                await stranger.run()
            assert scope.cancelled_caught and not stranger.events
