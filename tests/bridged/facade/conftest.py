"""A facade on a real database, over a fabric that lives in memory: for what its rooms do, not for the fabric."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import attrs
import msgspec
import pytest
import trio
from nacl import bindings

from bridged.envelope import Envelope, new_envelope, topic_for
from bridged.facade import MIGRATIONS, ClientSeed, Conversation, Link
from bridged.facade.answers import Answers
from bridged.facade.asking import Asking
from bridged.facade.core import Core
from bridged.facade.directory import load_directory, seed_clients, sync_file
from bridged.facade.events import EVENT_TOPIC
from bridged.facade.inbound import Inbound, Refused
from bridged.facade.outbound import Outbound
from bridged.facade.passing import Passing
from bridged.facade.publishing import Publishing
from bridged.facade.settling import Settling
from bridged.facade.verdicts import Judge, judge_by_policy
from bridged.facade.warrants import Warrant, Warrants
from bridged.facade.wishes import Wishes
from bridged.requests import Question as Request
from shards.database import open_database
from shards.env import Env
from shards.grant import role_grants
from shards.merkle import sign_batch
from shards.outbox import Outbox
from shards.record import Record, key_hash
from shards.testing import real_env

IRC = "msgr://channels/acme/bridge/irc/irc.lab/%23ops"
XMPP = "msgr://channels/acme/bridge/xmpp/ops@muc.localhost"
OTHER_IRC = "msgr://channels/acme/bridge/irc/irc.lab/%23board"
OTHER_XMPP = "msgr://channels/acme/bridge/xmpp/board@muc.localhost"
OLA = "msgr://identity/msgr/ola"
SPOKEN = {"irc": "inbound_message", "xmpp": "inbound_stanza"}


@attrs.frozen(kw_only=True)
class Published:
    offset: int
    position: int
    duplicate: bool


class Fabric:
    """A log in memory that recognises what was published before."""

    def __init__(self) -> None:
        self.records: list[tuple[str, bytes, bytes]] = []
        self.passing: list[tuple[str, bytes]] = []
        self._offsets: dict[str, int] = {}
        self._known: dict[tuple[int, int], Published] = {}

    async def publish(
        self,
        topic: str,
        payloads: Sequence[bytes],
        *,
        key: bytes,
        epoch: int | None = None,
        sequence: int | None = None,
    ) -> Published:
        await trio.lowlevel.checkpoint()
        assert epoch is not None and sequence is not None
        if (epoch, sequence) in self._known:
            return attrs.evolve(self._known[epoch, sequence], duplicate=True)
        offset, position = self._offsets.get(topic, 0), len(self.records)
        for place, payload in enumerate(payloads):
            self.records.append((topic, key, payload))
            self._known[epoch, sequence + place] = Published(
                offset=offset + place, position=position + place, duplicate=False
            )
        self._offsets[topic] = offset + len(payloads)
        return self._known[epoch, sequence]

    async def publish_ephemeral(self, topic: str, payload: bytes, *, key: bytes) -> None:
        await trio.lowlevel.checkpoint()
        self.passing.append((topic, payload))

    def on(self, topic: str) -> list[Envelope]:
        return [Envelope.decode(payload) for name, _, payload in self.records if name == topic]


class House:
    """A facade's rooms on one `core.db`, without its member's nursery."""

    def __init__(self, core: Core, fabric: Fabric, judge: Judge) -> None:
        self.core = core
        self.fabric = fabric
        self.seeds = {f"{service}/main": bytes([n]) * 32 for n, service in enumerate(("irc", "xmpp"), 1)}
        self.position = 0
        self.counter = itertools.count(1)
        self.warrants = Warrants(self._ask)
        self.settled_at = 2**62
        settling = Settling(core, self._ask_position)
        asking = Asking(core, self.warrants, {"gateway"})
        connectors = [("irc", "main"), ("xmpp", "main")]
        self.inbound = Inbound(
            core,
            fabric,
            warrants=self.warrants,
            judge=judge,
            connectors=connectors,  # type: ignore[arg-type]
        )
        self.outbound = Outbound(core, asking, Wishes(core, judge))  # type: ignore[arg-type]
        self.passing = Passing(core, fabric, asking, self.inbound, judge, connectors)  # type: ignore[arg-type]
        self.answers = Answers(core, asking, settling, connectors)
        self.handlers = {
            **self.outbound.handlers(),
            **self.passing.handlers(),
            **self.answers.handlers(),
        }

    async def _ask(self, name: str) -> Warrant | None:
        service, _, instance = name.partition("/")
        if name in self.seeds:
            public, _ = bindings.crypto_sign_seed_keypair(self.seeds[name])
            return Warrant(
                name=name,
                signing_public=public,
                service=service,
                instance=instance,
                accounts=frozenset({f"msgr://identity/bridges/{service}/irc.lab/acme-bridge"}),
                grants=(),
            )
        if name in ("gateway", "operator", "ola", "kari"):
            grants = tuple(role_grants("admin")) if name == "operator" else ()
            return Warrant(
                name=name,
                signing_public=bytes(32),
                service=None,
                instance=None,
                accounts=frozenset(),
                grants=grants,
            )
        return None

    async def _ask_position(self) -> int:
        return self.settled_at

    # -- what connectors tell ---------------------------------------------------------------------------------

    def record(
        self,
        service: str,
        action: str,
        payload: dict[str, Any],
        *,
        principal: str | None = None,
        trace_id: str | None = None,
        seed: bytes | None = None,
        instance: str = "main",
        raw: bytes | None = None,
    ) -> Record:
        principal = principal or f"{service}/main"
        number = next(self.counter)
        envelope = new_envelope(
            service,
            action,
            payload,
            now=1_764_000_000 + number,
            trace_id=trace_id or f"{number:032x}",
            metadata={"tenant": "acme"},
        )
        body = envelope.encode() if raw is None else raw
        batch = sign_batch([body], seed or self.seeds.get(principal, bytes(32)))
        self.position += 2
        key = str(payload.get("channel", "")).encode()
        return Record(
            topic=topic_for(service, action, instance),
            offset=number,
            position=self.position,
            key=key_hash(key),
            principal=principal,
            at_ms=1_764_000_000_000,
            payload=body,
            proof=batch.proof(0),
        )

    def said(self, channel: str, text: str, remote_id: str, *, who: str = "irene", **more: Any) -> Record:
        service = channel.split("/")[5]
        principal, trace_id = more.pop("principal", None), more.pop("trace_id", None)
        payload = {
            "channel": channel,
            "remote_id": remote_id,
            "sender": person(service, who),
            "text": text,
            "html": None,
            "kind": "message",
            "timestamp": "2026-11-24T08:00:00.125Z",
            "reply_to": None,
            **more,
        }
        return self.record(service, SPOKEN[service], payload, principal=principal, trace_id=trace_id)

    def told(self, channel: str, action: str, *, who: str | None = "irene", **more: Any) -> Record:
        service = channel.split("/")[5]
        trace_id = more.pop("trace_id", None)
        payload: dict[str, Any] = {"channel": channel, "timestamp": "2026-11-24T08:00:01.000Z", **more}
        if who is not None:
            payload["sender"] = person(service, who)
        return self.record(service, action, payload, trace_id=trace_id)

    async def hear(self, *records: Record) -> list[Refused]:
        return await self.inbound.apply(records)

    # -- what clients want ------------------------------------------------------------------------------------

    async def ask(
        self, action: str, *, principal: str = "ola", under: str | None = None, **payload: Any
    ) -> dict[str, Any]:
        """Ask as a principal; `under` is the request's trace id."""
        trace_id = under or f"{next(self.counter):032x}"
        request = Request(
            action=action,
            payload=payload,
            metadata={},
            trace_id=trace_id,
            principal=principal,
            tenant="acme",
            deadline=trio.current_time() + 5,
        )
        answer: dict[str, Any] = dict(await self.handlers[action](request))
        return answer

    # -- what came of it --------------------------------------------------------------------------------------

    async def drain(self) -> None:
        """Publish all that is in the outbox."""
        last = await self.core.read(lambda tx: tx.one("SELECT max(id) FROM outbox"))
        publishing = Publishing(self.core, self.fabric, last_before=(last and last[0]) or 0)  # type: ignore[arg-type]
        async with trio.open_nursery() as nursery:
            await nursery.start(self.core.outbox.run, publishing)
            while (await self.count("outbox")) > 0:
                await trio.sleep(0.01)
            nursery.cancel_scope.cancel()

    async def count(self, table: str) -> int:
        (n,) = (await self.rows(f"SELECT count(*) FROM {table}"))[0]
        return int(n)

    async def rows(self, sql: str, *params: Any) -> list[tuple[Any, ...]]:
        return await self.core.read(lambda tx: tx.execute(sql, params))

    async def outbox(self, action: str | None = None) -> list[Envelope]:
        """What waits to be published, in order."""
        rows = await self.rows("SELECT payload FROM outbox ORDER BY id")
        envelopes = [Envelope.decode(payload) for (payload,) in rows]
        return [one for one in envelopes if action is None or one.action == action]

    async def events(self, kind: str | None = None) -> list[dict[str, Any]]:
        rows = await self.rows("SELECT payload FROM outbox WHERE topic = ? ORDER BY id", EVENT_TOPIC)
        events = [msgspec.json.decode(payload)["payload"] for (payload,) in rows]
        return [event for event in events if kind is None or event["event"] == kind]

    async def dump(self) -> str:
        """Everything in the database but what is allowed to differ after a redelivery."""
        tables = [
            name
            for (name,) in await self.rows(
                "SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite%'"
                " AND name NOT LIKE 'message_text%' AND name NOT IN ('taken') ORDER BY name"
            )
        ]
        digest = hashlib.sha256()
        for table in tables:
            for row in await self.rows(f"SELECT * FROM {table} ORDER BY 1, 2"):
                digest.update(repr((table, row)).encode())
        return digest.hexdigest()


def person(service: str, who: str) -> dict[str, str]:
    place = "irc.lab" if service == "irc" else "ops@muc.localhost"
    return {
        "ref": f"msgr://identity/bridges/{service}/{place}/{who}".replace("localhost/", "localhost%2F"),
        "name": who,
    }


CONVERSATIONS = tuple(
    Conversation(
        name=name,
        links=(
            Link(ref=irc, service="irc", instance="main"),
            Link(ref=xmpp, service="xmpp", instance="main"),
        ),
    )
    for name, irc, xmpp in (("ops", IRC, XMPP), ("board", OTHER_IRC, OTHER_XMPP))
)
CLIENTS = (
    ClientSeed(name="ola", identity=OLA, conversations=("ops",)),
    ClientSeed(name="kari", identity="msgr://identity/msgr/kari", conversations=("board",)),
    ClientSeed(
        name="phone",
        identity="msgr://identity/msgr/per",
        token_hash=hashlib.sha256(b"secret").digest(),
        conversations=("ops",),
    ),
)


@asynccontextmanager
async def open_house(
    path: Path,
    *,
    fabric: Fabric | None = None,
    judge: Judge = judge_by_policy,
    capacity: int = 100_000,
    env: Env | None = None,
) -> AsyncIterator[House]:
    env = env or real_env(threads=False)
    async with open_database(env, path, migrations=MIGRATIONS) as database:

        def prepare(tx: Any) -> None:
            sync_file(tx, "acme", CONVERSATIONS)
            seed_clients(tx, "acme", CLIENTS, at_ms=1)

        await database.write(prepare)
        directory = await database.read(lambda tx: load_directory(tx, "acme"))
        core = Core(env, "acme", database, Outbox(database, capacity=capacity), directory)
        yield House(core, fabric or Fabric(), judge)


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[House]:
    async with open_house(tmp_path / "core.db") as one:
        yield one


@pytest.fixture
def open_one(tmp_path: Path) -> Callable[..., Any]:
    """Opens the same `core.db` again and again, as after a crash."""
    return partial(open_house, tmp_path / "core.db")


@pytest.fixture
def open_any() -> Callable[..., Any]:
    """Opens a house at any path, in any world."""
    return open_house
