"""The vault over the fabric, in virtual time; and a real shard searched for what it must not hold."""

from __future__ import annotations

import getpass
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from bridged.control import Control
from bridged.requests import ask
from bridged.vault.lease import LEASE_S, unseal
from bridged.vault.member import run_vault
from bridged.vault.softtoken import SoftToken
from shards.broker import Broker, Principal, open_broker
from shards.client import Client, Identity, open_client
from shards.env import Env
from shards.errors import RequestFailed
from shards.grant import Grant, role_grants
from shards.shard import Supervisor
from shards.testing import World, run_simulation

CANARY = "canary-93b1e7d0"
HOLDER = frozenset(Grant("request", "vault", "", action) for action in ("checkout", "renew", "release"))
GRANTS = {
    "control": frozenset({Grant("respond", "fabric", "", "*"), Grant("publish", "fabric", "", "event")}),
    "vault": frozenset(
        {
            Grant("respond", "vault", "", "*"),
            Grant("publish", "vault", "", "event"),
            Grant("request", "fabric", "", "keys"),
        }
    ),
    "irc/main": HOLDER,
    "xmpp/main": HOLDER,
    "op": role_grants("admin"),
}


class Shard:
    def __init__(
        self, env: Env, broker: Broker, identities: dict[str, Identity], clients: dict[str, Client]
    ) -> None:
        self.env, self.broker, self.identities, self.clients = env, broker, identities, clients

    async def ask(self, who: str, action: str, **payload: Any) -> dict[str, Any]:
        return await ask(self.env, self.clients[who], "vault", action, payload, within_s=700)

    def open(self, who: str, answer: dict[str, Any]) -> bytes:
        return unseal(answer["sealed"], self.identities[who].lease_private)["password"].reveal()


@asynccontextmanager
async def open_vault(world: World, tmp_path: Path) -> AsyncIterator[Shard]:
    env = world.host("shard").env()
    token = SoftToken.create(tmp_path / "vault.key", env.token_bytes)
    async with open_broker(env, state=Path("/state"), endpoint="/run/f.sock", shard="acme") as broker:
        identities, clients = {}, {}
        async with trio.open_nursery() as nursery:
            for name, grants in GRANTS.items():
                identity = identities[name] = Identity.generate(name, "acme", env.token_bytes)
                await broker.enroll(
                    Principal(
                        name=name,
                        tenant="acme",
                        noise_public=identity.noise_public,
                        signing_public=identity.signing_public,
                        lease_public=identity.lease_public,
                        grants=grants,
                    )
                )

                async def hold(identity: Identity, *, task_status: trio.TaskStatus[Client]) -> None:
                    async with open_client(
                        env, "/run/f.sock", identity, server_public=broker.server_public, shard="acme"
                    ) as client:
                        task_status.started(client)
                        await trio.sleep_forever()

                clients[name] = await nursery.start(hold, identity)
            control = Control(
                env,
                clients["control"],
                shard="acme",
                broker=broker,
                supervisor=Supervisor(env, lambda status, fault: None),
                describe=dict,
                outsider=lambda service, instance: None,
            )
            await nursery.start(control.run)

            async def vault(*, task_status: trio.TaskStatus[None]) -> None:
                await run_vault(
                    env, clients["vault"], path=Path("/state/vault.db"), token=token, task_status=task_status
                )

            await nursery.start(vault)
            yield Shard(env, broker, identities, clients)
            nursery.cancel_scope.cancel()


def in_world(tmp_path: Path, scenario: Callable[[World, Shard], Any]) -> None:
    async def main() -> None:
        with World(1) as world:
            async with open_vault(world, tmp_path) as shard:
                await scenario(world, shard)

    run_simulation(1, main, deadline_s=4 * LEASE_S)


def test_who_waits_for_a_credential_starts_when_it_is_put(tmp_path: Path) -> None:
    async def scenario(world: World, shard: Shard) -> None:
        answers: dict[str, dict[str, Any]] = {}

        async def wait(who: str) -> None:
            answers[who] = await shard.ask(who, "checkout", credential="irc/main", wait_ms=600_000)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait, "irc/main")
            nursery.start_soon(wait, "xmpp/main")
            await trio.sleep(300)
            assert not answers
            await shard.ask("op", "put", credential="other", secret="x")
            await trio.sleep(1)
            assert not answers
            began = trio.current_time()
            await shard.ask("op", "put", credential="irc/main", secret="hunter2")
        assert trio.current_time() - began < 1
        assert shard.open("irc/main", answers["irc/main"]) == b"hunter2"
        assert {answers[who]["fencing"] for who in answers} == {1, 2}
        with pytest.raises(Exception, match="another key"):
            shard.open("op", answers["irc/main"])

    in_world(tmp_path, scenario)


def test_who_waits_in_vain_is_told_what_to_do(tmp_path: Path) -> None:
    async def scenario(world: World, shard: Shard) -> None:
        for wait_ms in (0, 5000):
            began = trio.current_time()
            with pytest.raises(RequestFailed) as raised:
                await shard.ask("irc/main", "checkout", credential="irc/main", wait_ms=wait_ms)
            assert raised.value.code == "not_found" and raised.value.hint == "bridgectl vault put irc/main"
            assert wait_ms / 1000 <= trio.current_time() - began < wait_ms / 1000 + 1
        for payload in (
            {},
            {"credential": ""},
            {"credential": "a b"},
            {"credential": 7},
            {"credential": "x", "wait_ms": -1},
        ):
            with pytest.raises(RequestFailed) as raised:
                await shard.ask("irc/main", "checkout", **payload)
            assert raised.value.code in ("missing_field", "invalid_field")

    in_world(tmp_path, scenario)


def test_a_lease_is_renewed_ends_in_time_and_can_be_revoked(tmp_path: Path) -> None:
    async def scenario(world: World, shard: Shard) -> None:
        await shard.ask("op", "put", credential="irc/main", secret="hunter2")
        lease = await shard.ask("irc/main", "checkout", credential="irc/main")
        await trio.sleep(LEASE_S - 10)
        await shard.ask("irc/main", "renew", lease_id=lease["lease_id"])
        await trio.sleep(LEASE_S - 10)
        assert len((await shard.ask("op", "status"))["leases"]) == 1
        with pytest.raises(RequestFailed) as raised:  # it is another's
            await shard.ask("xmpp/main", "renew", lease_id=lease["lease_id"])
        assert raised.value.code == "session_expired"
        await trio.sleep(120)
        assert (await shard.ask("op", "status"))["leases"] == []
        with pytest.raises(RequestFailed) as raised:
            await shard.ask("irc/main", "renew", lease_id=lease["lease_id"])
        assert raised.value.code == "session_expired"
        for words in ("lease_id", "credential"):
            lease = await shard.ask("irc/main", "checkout", credential="irc/main")
            told = await shard.ask(
                "op", "revoke", **{words: lease["lease_id"] if words == "lease_id" else "irc/main"}
            )
            assert told["revoked"] == [lease["lease_id"]]
            with pytest.raises(RequestFailed):
                await shard.ask("irc/main", "renew", lease_id=lease["lease_id"])
        assert await shard.ask("irc/main", "release", lease_id=lease["lease_id"]) == {"status": "ok"}
        with pytest.raises(RequestFailed):
            await shard.ask("op", "revoke")

    in_world(tmp_path, scenario)


def test_who_may_not_ask_gets_nothing(tmp_path: Path) -> None:
    async def scenario(world: World, shard: Shard) -> None:
        for action, payload in (
            ("put", {"credential": "irc/main", "secret": "x"}),
            ("status", {}),
            ("rotate", {}),
            ("revoke", {"credential": "irc/main"}),
        ):
            with pytest.raises(RequestFailed) as raised:
                await shard.ask("irc/main", action, **payload)
            assert raised.value.code == "capability_denied"

    in_world(tmp_path, scenario)


def test_every_act_is_an_event_that_holds_no_secret(tmp_path: Path) -> None:
    async def scenario(world: World, shard: Shard) -> None:
        await shard.ask("op", "put", credential="irc/main", secret=CANARY)
        lease = await shard.ask("irc/main", "checkout", credential="irc/main")
        await shard.ask("irc/main", "renew", lease_id=lease["lease_id"])
        await shard.ask("irc/main", "release", lease_id=lease["lease_id"])
        await shard.ask("op", "rotate")
        acts = []
        async with shard.clients["op"].replay(["bridge/vault/event"]) as pages:
            async for records in pages:
                for record in records:
                    assert (
                        CANARY.encode() not in record.payload
                        and lease["sealed"].encode() not in record.payload
                    )
                    acts += [
                        act
                        for act in ("put", "checkout", "renew", "release", "rotate")
                        if f'"act":"{act}"'.encode() in record.payload
                    ]
        assert acts == ["put", "checkout", "renew", "release", "rotate"]

    in_world(tmp_path, scenario)


def test_no_file_of_a_shard_and_no_line_of_its_log_holds_a_secret(
    house: Any, capfd: Any, monkeypatch: Any
) -> None:
    house.edit('instance = "demo"', 'instance = "demo"\nruns = "outside"')
    with house.serving():
        assert house.ctl("vault", "put", "irc/main", stdin=f"{CANARY}\n").code == 0
        monkeypatch.setattr(getpass, "getpass", lambda prompt: f"{CANARY}-typed")
        told = house.ctl("keys", "invite", "echo/demo", "--json").json()
        key = house.directory / "echo.key"
        words = [
            "keys",
            "join",
            key,
            "--name",
            "echo/demo",
            "--server",
            told["server"],
            "--invite",
            told["invite"],
        ]
        assert house.ctl(*words, stdin=told["secret"]).code == 0
        lent = house.ctl("vault", "list", "--json")
        assert "irc/main" in lent.out and CANARY not in lent.out
        house.ctl("vault", "rotate")
        house.ctl("send", "lobby", "hello")
    said = capfd.readouterr()
    secrets = [CANARY.encode(), house.token.encode(), told["secret"].encode()]
    for file in house.state.rglob("*"):
        if file.is_file() and not file.is_socket():
            data = file.read_bytes()
            assert not [secret for secret in secrets if secret in data], file
    assert CANARY not in said.out + said.err


def test_vault_verbs_say_what_is_wrong(served: Any) -> None:
    ended = served.ctl("vault", "put", "irc/main", stdin="\n")
    assert ended.code == 2 and ended.says("empty", "pipe it in")
    ended = served.ctl("vault", "put", "no name", stdin="x")
    assert ended.code == 1 and ended.says("A-Z")
    ended = served.ctl("vault", "put", "irc/main", stdin="x" * 20_000)
    assert ended.code == 1 and ended.says("16384")
    ended = served.ctl("vault", "put", "irc/main", "secret-in-argv")
    assert ended.code == 2
    assert served.ctl("vault", "put", "irc/main", "--json", stdin="x\n").json() == {
        "credential": "irc/main",
        "revision": 1,
    }
    status = served.ctl("vault", "status", "--json").json()
    assert status["token"] == "soft" and status["leases"] == []
    assert served.ctl("vault", "rotate", "--json").json()["key_version"] == 2
    assert served.ctl("vault", "leases").out == "no leases\n"
    ended = served.ctl("vault", "revoke", "nothing")
    assert ended.code == 1 and ended.says("vault leases")


def test_a_shard_without_its_token_says_so(house: Any) -> None:
    (house.state / "keys/vault.key").unlink()
    with house.serving():
        ended = house.ctl("status", "--json").json()
        states = {row["name"]: row for row in ended["members"]}
        assert states["vault"]["state"] != "running" and "vault init" in states["vault"]["detail"]
        assert house.ctl("send", "lobby", "still works", "--wait").code == 0
