"""A house for one connector: what a desk does, in memory, with the facade's cursors and delivery states."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio
import trio.testing

from bridged.connectors import ConnectorState
from bridged.connectors.desk import Credential, Cursor, fall_of
from bridged.connectors.intent import Intent, Outcome, Retry, Speaker
from bridged.connectors.xmpp import client
from bridged.connectors.xmpp.connector import XmppConnector
from bridged.connectors.xmpp.settings import Settings, TlsFiles
from bridged.errors import BadCredentials, ConnectorError
from bridged.peers.authority import Authority
from bridged.peers.xmpp import XmppServer, open_xmpp_server
from bridged.secret import Secret
from shards import system_env

CHANNEL = "msgr://channels/acme/bridge/xmpp/ops@muc.localhost"


@attrs.define(eq=False)
class House:
    """Outlives connectors and desks, as the shard's files do."""

    password: str = "pw-bridge"
    published: list[tuple[str, dict[str, Any]]] = attrs.field(factory=list)
    passing: list[tuple[str, dict[str, Any]]] = attrs.field(factory=list)
    states: list[tuple[ConnectorState, str]] = attrs.field(factory=list)
    outcomes: dict[str, Outcome] = attrs.field(factory=dict)
    written: set[str] = attrs.field(factory=set)
    intents: list[Intent] = attrs.field(factory=list)
    changed: trio.Event = attrs.field(factory=trio.Event)
    wall: float = 1_790_000_000.0
    _cursors: dict[str, Cursor] = attrs.field(factory=dict)

    def desk(self) -> HouseDesk:
        return HouseDesk(self)

    def note(self) -> None:
        self.changed.set()
        self.changed = trio.Event()

    def texts(self, action: str = "inbound_stanza") -> list[str]:
        return [payload["text"] for said, payload in self.published if said == action]

    def last(self, action: str) -> dict[str, Any]:
        return next(payload for said, payload in reversed(self.published) if said == action)

    async def until(self, holds: Callable[[], Any], within_s: float = 10) -> Any:
        with trio.fail_after(within_s):
            while not (value := holds()):
                await self.changed.wait()
            return value

    def say(
        self, text: str, *, key: str | None = None, action: str = "outbound_message", **more: Any
    ) -> Intent:
        intent = make_intent(text, key=key or f"key-{len(self.intents)}", action=action, **more)
        self.intents.append(intent)
        self.note()
        return intent

    async def outcome(self, intent: Intent) -> Outcome:
        return await self.until(lambda: self.outcomes.get(intent.idempotency_key))


def make_intent(text: str, *, key: str = "key", action: str = "outbound_message", **more: Any) -> Intent:
    """An intent as the delivery loop hands it over."""
    fields: dict[str, Any] = {
        "action": action,
        "trace_id": "0" * 32,
        "channel": CHANNEL,
        "conversation": "ops",
        "message_id": None,
        "sender": Speaker(ref="msgr://identity/bridges/irc/net/irene", name="irene", service="irc"),
        "text": text,
        "html": None,
        "kind": "message",
        "reply_to": None,
        "remote_id": None,
        "original_text": None,
        "target": None,
        "emojis": (),
        "added": (),
        "removed": (),
        "idempotency_key": key,
        "attempt": 1,
        "payload": {},
    }
    return Intent(**(fields | more))


class HouseDesk:
    """A desk at that house; its `outbound` is the delivery loop's order, without its queue."""

    tenant, principal, service, instance = "acme", "xmpp-main", "xmpp", "main"

    def __init__(self, house: House) -> None:
        self._house = house
        self.env = self

    def wall(self) -> float:
        return self._house.wall

    def maybe(self, point: str) -> bool:
        return False

    async def lease(self, name: str) -> Credential:
        await trio.lowlevel.checkpoint()
        return Credential(
            name, {"password": Secret(self._house.password.encode())}, lease_id="lease", fencing=1
        )

    async def cursors(self) -> dict[str, Cursor]:
        await trio.lowlevel.checkpoint()
        return dict(self._house._cursors)

    async def publish(self, action: str, payload: Mapping[str, Any], *, key: bytes, **_: Any) -> None:
        await trio.lowlevel.checkpoint()
        self._house.published.append((action, dict(payload)))
        cursor = payload.get("cursor")
        if cursor is not None:
            at = self._house.wall
            self._house._cursors[cursor["stream"]] = Cursor(
                stream=cursor["stream"], value=cursor["value"], at=at
            )
        self._house.note()

    async def publish_ephemeral(self, action: str, payload: Mapping[str, Any], *, key: bytes) -> None:
        await trio.lowlevel.checkpoint()
        self._house.passing.append((action, dict(payload)))
        self._house.note()

    async def state(self, state: ConnectorState, detail: str = "", *, account: str | None = None) -> None:
        await trio.lowlevel.checkpoint()
        if not self._house.states or self._house.states[-1] != (state, detail):
            self._house.states.append((state, detail))
            self._house.note()

    async def outbound(
        self,
        send: Callable[[Intent], Awaitable[Outcome]],
        *,
        concurrency: int = 1,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        task_status.started()
        house = self._house
        while True:
            intent = next((i for i in house.intents if i.idempotency_key not in house.outcomes), None)
            if intent is None:
                await house.changed.wait()
                continue
            intent.was_written = intent.idempotency_key in house.written
            intent.announce = self._announcer(intent)
            outcome = await send(intent)
            if isinstance(outcome, Retry):
                await trio.sleep(outcome.after_s)
                continue
            house.outcomes[intent.idempotency_key] = outcome
            house.note()

    def _announcer(self, intent: Intent) -> Callable[[], Awaitable[None]]:
        async def announce() -> None:
            await trio.lowlevel.checkpoint()
            self._house.written.add(intent.idempotency_key)

        return announce


@pytest.fixture
def house() -> House:
    return House()


@pytest.fixture
def intent() -> Callable[..., Intent]:
    return make_intent


@attrs.define(eq=False)
class Site:
    """A fake server, a house, and the connector between them, kept up as a supervisor would."""

    server: XmppServer
    house: House
    nursery: trio.Nursery
    ca: Path
    settings: Settings
    falls: list[ConnectorError] = attrs.field(factory=list)
    connector: XmppConnector | None = None
    _scope: trio.CancelScope | None = None

    async def up(self, *channels: str, **changes: Any) -> XmppConnector:
        """Start the connector (a fresh object, or the one that was there) and wait until it serves."""
        connector = self._make(channels, changes)
        await self.nursery.start(self._keep)
        return connector

    def start(self, changes: dict[str, Any]) -> None:
        """Start the connector, that it serves or not."""
        self._make((), changes)
        self.nursery.start_soon(self._keep_going)

    def _make(self, channels: tuple[str, ...], changes: dict[str, Any]) -> XmppConnector:
        if self.connector is None:
            settings = attrs.evolve(self.settings, **changes)
            self.connector = XmppConnector(settings, channels or (CHANNEL,))
        return self.connector

    async def _keep_going(self) -> None:
        await self._keep(task_status=trio.TASK_STATUS_IGNORED)

    async def down(self) -> None:
        """As a kill: nothing is said to anybody by the house, and all that was in memory is gone."""
        assert self._scope is not None
        self._scope.cancel()
        self.connector = None
        await trio.testing.wait_all_tasks_blocked(0.01)

    async def wait_fall(self, count: int = 1) -> ConnectorError:
        await self.house.until(lambda: len(self.falls) >= count)
        return self.falls[count - 1]

    async def _keep(self, *, task_status: trio.TaskStatus[None]) -> None:
        assert self.connector is not None
        connector, status = self.connector, task_status
        with trio.CancelScope() as self._scope:
            while True:
                try:
                    async with trio.open_nursery() as nursery:
                        await nursery.start(connector.run, self.house.desk())
                        status.started()
                        status = trio.TASK_STATUS_IGNORED
                except (ConnectorError, BaseExceptionGroup) as exc:
                    fault = fall_of(exc)
                    if fault is None:
                        raise
                    self.falls.append(fault)
                    self.house.note()
                    if isinstance(fault, BadCredentials):
                        return
                await trio.sleep(0.02)


@pytest.fixture(scope="session")
def authority() -> Authority:
    return Authority(now=time.time())


@pytest.fixture
async def site(
    house: House, authority: Authority, tmp_path: Path, nursery: trio.Nursery
) -> AsyncIterator[Site]:
    async with open_xmpp_server(system_env(), host="127.0.0.1", authority=authority) as server:
        server.add_user("bridge", "pw-bridge")
        ca = server.write_ca(tmp_path / "ca.pem")
        host, port = server.address
        settings = Settings(
            instance="main",
            jid="bridge@localhost",
            server=f"{host}:{port}",
            tls=TlsFiles(ca=str(ca)),
            credential="xmpp/main",
            nick="acme-bridge",
        )
        before = client.library_faults.copy()
        yield Site(server, house, nursery, ca, settings)
        nursery.cancel_scope.cancel()
        unexpected = client.library_faults - before
        # Written into a connection that was just lost; our own queue has it.
        unexpected.pop("slixmpp.xmlstream.xmlstream: Exception raised in send queue:", None)
        allowed = ("No appropriate login", "CERT:", "Parse error")
        assert not [fault for fault in unexpected if not any(word in fault for word in allowed)]
