"""A house in memory for connectors under test: what the fabric, the facade and the vault answer, nothing else."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import attrs
import pytest
import trio

from bridged.connectors.desk import Desk, open_desk
from bridged.envelope import Envelope, format_time, new_envelope, parse_topic
from bridged.vault.lease import seal
from shards.client import Identity
from shards.env import Env
from shards.errors import RequestFailed
from shards.record import Record, key_hash
from shards.testing import real_env

FINAL = {"delivered", "unknown", "failed", "expired", "dead_lettered", "denied"}


class HouseSubscription:
    """A group's member: what it has is done, dead, or comes again."""

    def __init__(self, house: House, group: str | None) -> None:
        self.head = house.position
        self.group = group
        self.send, self._receive = trio.open_memory_channel[Record](10_000)

    async def receive(self) -> list[Record]:
        records = [await self._receive.receive()]
        while True:
            try:
                records.append(self._receive.receive_nowait())
            except trio.WouldBlock:
                return records

    async def done(self, records: Sequence[Record]) -> None:
        await trio.lowlevel.checkpoint()
        for record in records:
            House.current.done.append((record.topic, record.offset))
            House.current.settle(record)

    async def dead(self, record: Record, *, code: str, reason: str) -> None:
        await trio.lowlevel.checkpoint()
        House.current.dead.append((record, code, reason))
        House.current.settle(record)


class House:
    """The fabric as one client of it sees it, with a facade and a vault behind it."""

    current: House

    def __init__(self, identity: Identity, wall: Callable[[], float]) -> None:
        House.current = self
        self.identity = identity
        self.wall = wall
        self.position = 0
        self.published: list[Envelope] = []
        self.passing: list[Envelope] = []
        self.news = trio.Event()
        self.credentials: dict[str, dict[str, str]] = {}
        self.credential_put = trio.Event()
        self.leases: dict[str, str] = {}
        self.lease_s = 3600.0
        self.asked: list[tuple[str, dict[str, Any]]] = []
        self.cursors: dict[str, str] = {}
        self.done: list[tuple[str, int]] = []
        self.dead: list[tuple[Record, str, str]] = []
        self.pending: list[Record] = []
        self.subscriptions: list[HouseSubscription] = []
        self.publish_delay_s = 0.0
        self.refuse_status = 0

    # -- the client's half --------------------------------------------------------------------------------

    async def publish(self, topic: str, payloads: Sequence[bytes], *, key: bytes, **_: Any) -> None:
        await trio.sleep(self.publish_delay_s)
        for payload in payloads:
            envelope = Envelope.decode(payload)
            assert parse_topic(topic).action == envelope.action
            self.position += 1
            self.published.append(envelope)
            if envelope.action == "inbound_message":
                cursor = envelope.payload["cursor"]
                self.cursors[cursor["stream"]] = cursor["value"]
        self._tell()

    async def publish_ephemeral(self, topic: str, payload: bytes, *, key: bytes) -> None:
        await trio.lowlevel.checkpoint()
        self.passing.append(Envelope.decode(payload))
        self._tell()

    async def head(self) -> int:
        await trio.lowlevel.checkpoint()
        return self.position

    async def request(self, topic: str, body: bytes, *, deadline: float, trace_id: str) -> bytes:
        await trio.lowlevel.checkpoint()
        envelope = Envelope.decode(body)
        assert envelope.trace_id == trace_id
        self.asked.append((topic, envelope.payload))
        answer = await getattr(self, topic.replace("bridge/", "").replace("/", "_"))(envelope.payload)
        return json.dumps(answer).encode()

    @asynccontextmanager
    async def subscribe(
        self, topics: Sequence[str], *, group: str | None, **_: Any
    ) -> AsyncIterator[HouseSubscription]:
        subscription = HouseSubscription(self, group)
        self.subscriptions.append(subscription)
        if group is not None:
            for number, record in enumerate(self.pending):
                self.pending[number] = attrs.evolve(record, attempt=record.attempt + 1)
                subscription.send.send_nowait(self.pending[number])
        try:
            yield subscription
        finally:
            self.subscriptions.remove(subscription)

    # -- facade and vault ---------------------------------------------------------------------------------

    async def core_cursor(self, payload: dict[str, Any]) -> dict[str, Any]:
        return {"streams": dict(self.cursors), "at": {}}

    async def core_status(self, payload: dict[str, Any]) -> dict[str, Any]:
        if self.refuse_status:
            self.refuse_status -= 1
            raise RequestFailed("network_down", "the facade is not up")
        states = [self.state_of(item["trace_id"], item["channel"]) for item in payload["items"]]
        return {"states": [None if state is None else {"state": state} for state in states]}

    def state_of(self, trace_id: str, channel: str) -> str | None:
        found = None
        for envelope in self.published:
            of_it = envelope.action == "delivery_status" and envelope.trace_id == trace_id
            if of_it and envelope.payload["channel"] == channel:
                found = envelope.payload["status"]
        return found

    async def vault_checkout(self, payload: dict[str, Any]) -> dict[str, Any]:
        name = payload["credential"]
        if name not in self.credentials:
            with trio.move_on_after(payload["wait_ms"] / 1000):
                await self.credential_put.wait()
        if name not in self.credentials:
            raise RequestFailed("not_found", "no such credential")
        lease_id = f"lease-{len(self.asked)}"
        self.leases[lease_id] = name
        return {
            "sealed": seal(json.dumps(self.credentials[name]).encode(), self.identity.lease_public),
            "lease_id": lease_id,
            "expires_at": self.wall() + self.lease_s,
            "fencing": len(self.leases),
        }

    async def vault_renew(self, payload: dict[str, Any]) -> dict[str, Any]:
        if payload["lease_id"] not in self.leases:
            raise RequestFailed("not_found", "no such lease")
        return {"lease_id": payload["lease_id"], "expires_at": self.wall() + self.lease_s}

    async def vault_release(self, payload: dict[str, Any]) -> dict[str, Any]:
        del self.leases[payload["lease_id"]]
        return {"status": "ok"}

    # -- the test's half ----------------------------------------------------------------------------------

    def put(self, name: str, **fields: str) -> None:
        self.credentials[name] = fields
        self.credential_put.set()

    def intend(
        self,
        channel: str,
        text: str = "",
        *,
        action: str = "outbound_message",
        conversation: str = "ops",
        metadata: dict[str, Any] | None = None,
        **payload: Any,
    ) -> str:
        """Put an intent on the log; its trace id."""
        service, _, instance = self.identity.name.partition("/")
        trace_id = f"{self.position + 1:032x}"
        envelope = new_envelope(
            service,
            action,
            {
                "channel": channel,
                "conversation": conversation,
                "message_id": f"m{self.position}",
                "sender": {"ref": "msgr://identity/bridges/xmpp/ola@x", "name": "ola", "service": "xmpp"},
                "text": text,
                **payload,
            },
            now=self.wall(),
            trace_id=trace_id,
            metadata={"tenant": self.identity.tenant, "idempotency_key": trace_id, **(metadata or {})},
        )
        self.append(f"bridge/{service}/{instance}/{action}", envelope.encode(), conversation.encode())
        return trace_id

    def append(self, topic: str, payload: bytes, key: bytes) -> Record:
        record = Record(
            topic=topic,
            offset=self.position,
            position=self.position,
            key=key_hash(key),
            principal="facade",
            at_ms=int(self.wall() * 1000),
            payload=payload,
            proof=None,
        )
        self.position += 1
        self.pending.append(record)
        for subscription in self.subscriptions:
            if subscription.group is not None:
                subscription.send.send_nowait(record)
        return record

    def settle(self, record: Record) -> None:
        """Acknowledged: it and the earlier ones of its key."""
        self.pending = [
            kept for kept in self.pending if kept.key != record.key or kept.position > record.position
        ]
        self._tell()

    def statuses(self, trace_id: str) -> list[str]:
        return [
            envelope.payload["status"]
            for envelope in self.published
            if envelope.action == "delivery_status" and envelope.trace_id == trace_id
        ]

    def of(self, action: str) -> list[dict[str, Any]]:
        return [envelope.payload for envelope in self.published if envelope.action == action]

    def inbound(self) -> list[tuple[str, str]]:
        return [(payload["sender"]["name"], payload["text"]) for payload in self.of("inbound_message")]

    async def wait(self, condition: Callable[[], object], within_s: float = 600) -> None:
        """Until the condition holds; looked at whenever something happens, and now and then."""
        with trio.fail_after(within_s):
            while not condition():
                self.news = trio.Event()
                with trio.move_on_after(0.2):
                    await self.news.wait()

    async def final(self, trace_id: str) -> str:
        await self.wait(lambda: FINAL & set(self.statuses(trace_id)))
        (status,) = FINAL & set(self.statuses(trace_id))
        return status

    def _tell(self) -> None:
        self.news.set()


@attrs.frozen(kw_only=True)
class Plain:
    """The least that settings are."""

    service: str = "irc"
    instance: str = "lab"


@attrs.define
class Kit:
    """Everything at hand for one test."""

    env: Env
    house: House
    settings: Any = attrs.field(factory=Plain)

    def desk(self) -> Any:
        return open_desk(self.env, self.settings, self.house)  # type: ignore[arg-type]


@pytest.fixture
def kit() -> Kit:
    """A house and an environment; the test asks for the virtual clock itself."""
    env = real_env(threads=False, wall=lambda: 1_764_000_000.0 + trio.current_time())
    identity = Identity.generate("irc/lab", "acme", env.token_bytes)
    return Kit(env=env, house=House(identity, env.wall))


Send = Callable[[Any], Awaitable[Any]]
__all__ = ["Desk", "House", "Kit", "format_time"]
