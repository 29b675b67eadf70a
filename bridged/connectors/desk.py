"""The desk at which a connector sits: all that it needs of the house, and nothing of any platform.

Credentials by lease, cursors, publishing in envelopes, its own state, and the outbound queue.  A connector
never talks to the fabric itself, so the rules that hold for all of them (nothing lost, nothing doubled, no
secret in a record) are kept in one place.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any, Protocol

import attrs
import trio

from bridged.connectors import Connector, ConnectorState
from bridged.connectors.delivery import deliver
from bridged.connectors.intent import (
    Delivered,
    Failed,
    Intent,
    Outcome,
    Quoted,
    Retry,
    Speaker,
    Unknown,
    seconds,
    timestamp,
)
from bridged.envelope import Envelope, new_envelope, new_trace_id, topic_for
from bridged.errors import (
    BadCredentials,
    Banned,
    ConnectorError,
    Disconnected,
    EnvelopeError,
    LeaseExpired,
    VaultError,
)
from bridged.secret import Secret
from bridged.vault.lease import unseal
from shards.errors import RequestFailed, ShardsError

if TYPE_CHECKING:
    from shards.client import Client
    from shards.env import Env

# Ours.
REQUEST_S = 10.0
CREDENTIAL_POLL_S = 60.0
"""One question to the vault that may be held until the credential is put."""
CREDENTIAL_PAUSE_S = 1.0
"""Between two questions, where the vault answers at once that it has none."""
RENEW_AT = 2 / 3
"""Of a lease's life."""
STATE_S = 2.0
"""Saying a last state may take so long when all is ending."""


class Settings(Protocol):
    """What every connector's settings have."""

    @property
    def service(self) -> str: ...
    @property
    def instance(self) -> str: ...


@attrs.frozen(kw_only=True)
class Cursor:
    """How far a platform's stream is safely in the message store."""

    stream: str
    value: str
    at: float | None
    """Seconds since 1970 of the last stored event of the stream."""


class Credential:
    """Material lent by the vault: fields by name, each a `Secret`.

    Gone when the lease is over: reading it then raises `LeaseExpired`.
    """

    def __init__(
        self, name: str, fields: Mapping[str, Secret], *, lease_id: str = "", fencing: int = 0
    ) -> None:
        self.name = name
        self.lease_id = lease_id
        self.fencing = fencing
        """Grows with every checkout of the name: the younger holder wins."""
        self._fields: dict[str, Secret] | None = dict(fields)

    def __repr__(self) -> str:
        return f"Credential({self.name!r})"

    def get(self, field: str) -> Secret | None:
        """The field, or None where the credential has none of that name.

        Raises:
            LeaseExpired: The lease is over; lease it again.
        """
        if self._fields is None:
            raise LeaseExpired(
                f"the lease of {self.name!r} is over", hint="it is leased anew at the next login"
            )
        return self._fields.get(field)

    @property
    def username(self) -> str | None:
        value = self.get("username")
        return None if value is None else value.reveal_text()

    @property
    def password(self) -> Secret | None:
        return self.get("password")

    @property
    def is_live(self) -> bool:
        return self._fields is not None

    def forget(self) -> None:
        """Drop the material."""
        self._fields = None


class Desk:
    """One connector's place in the house.  Made by `open_desk`."""

    def __init__(
        self,
        *,
        env: Env,
        settings: Settings,
        client: Client,
        nursery: trio.Nursery,
        told: Callable[[ConnectorState, str], None] = lambda state, detail: None,
    ) -> None:
        self.env = env
        self.settings = settings
        self.client = client
        self.tenant: str = client.identity.tenant
        self.principal: str = client.identity.name
        self.service: str = settings.service
        self.instance: str = settings.instance
        self._nursery = nursery  # open_desk's own, which outlives every use of it here
        self._told = told
        self._state: tuple[ConnectorState, str] | None = None
        self._leases: dict[str, Credential] = {}

    # -- what came from the platform ----------------------------------------------------------------------

    def topic(self, action: str) -> str:
        """This instance's topic of that action."""
        return topic_for(self.service, action, self.instance)

    def envelope(
        self,
        action: str,
        payload: Mapping[str, Any],
        *,
        trace_id: str | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> Envelope:
        """The payload in this connector's envelope; a fresh trace where none is given."""
        return new_envelope(
            self.service,
            action,
            dict(payload),
            now=self.env.wall(),
            trace_id=trace_id or new_trace_id(self.env.token_bytes),
            metadata={"tenant": self.tenant, "instance": self.instance, **(metadata or {})},
        )

    async def publish(
        self,
        action: str,
        payload: Mapping[str, Any],
        *,
        key: bytes,
        trace_id: str | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> None:
        """Publish on this instance's topic; returns when the record is on disk.

        Args:
            key: What it must stay in order with: the channel's reference, or the account.
        """
        envelope = self.envelope(action, payload, trace_id=trace_id, metadata=metadata)
        await self.client.publish(self.topic(action), [envelope.encode()], key=key)

    async def publish_all(self, action: str, payloads: Sequence[Mapping[str, Any]], *, key: bytes) -> None:
        """Publish several of one key at once, in their order; returns when all are on disk."""
        envelopes = [self.envelope(action, payload).encode() for payload in payloads]
        await self.client.publish(self.topic(action), envelopes, key=key)

    async def publish_ephemeral(self, action: str, payload: Mapping[str, Any], *, key: bytes) -> None:
        """Typing, presence, receipts: never waited for, the first to be shed."""
        envelope = self.envelope(action, payload)
        await self.client.publish_ephemeral(self.topic(action), envelope.encode(), key=key)

    async def state(self, state: ConnectorState, detail: str = "", *, account: str | None = None) -> None:
        """Publish where the connector stands; saying the same again says nothing.

        Args:
            detail: One sentence for an operator, no secret and no text of a message in it.
        """
        if self._state == (state, detail):
            return
        self._state = (state, detail)
        self._told(state, detail)
        payload: dict[str, Any] = {
            "state": state.value,
            "detail": detail,
            "since": timestamp(self.env.wall()),
        }
        if account is not None:
            payload["account"] = account
        await self.publish("state_update", payload, key=(account or self.instance).encode())

    async def cursors(self) -> dict[str, Cursor]:
        """The facade's cursors of this instance, with all that this principal ever published counted in."""
        answer = await self.ask(
            "core",
            "cursor",
            {"service": self.service, "instance": self.instance, "position": await self.client.head()},
        )
        streams, at = answer.get("streams") or {}, answer.get("at") or {}
        return {
            stream: Cursor(stream=stream, value=str(value), at=seconds(at.get(stream)))
            for stream, value in streams.items()
        }

    async def ask(
        self, service: str, action: str, payload: Mapping[str, Any], *, within_s: float = REQUEST_S
    ) -> dict[str, Any]:
        """A request to a member of the house: envelope out, bare JSON object back.

        Raises:
            RequestFailed: The member, or the broker for it, said no; `code` is of the closed set.
        """
        trace_id = new_trace_id(self.env.token_bytes)
        envelope = new_envelope(
            service,
            action,
            dict(payload),
            now=self.env.wall(),
            trace_id=trace_id,
            metadata={"tenant": self.tenant, "instance": self.instance},
        )
        body = await self.client.request(
            topic_for(service, action),
            envelope.encode(),
            deadline=trio.current_time() + within_s,
            trace_id=trace_id,
        )
        try:
            answer = json.loads(body)
        except ValueError:
            answer = None
        if not isinstance(answer, dict):
            raise RequestFailed("internal", f"{service}/{action} answered something that is no JSON object")
        error = answer.get("error")
        if isinstance(error, dict):
            raise RequestFailed(str(error.get("code", "internal")), str(error.get("message", "")))
        return answer

    # -- what is lent -------------------------------------------------------------------------------------

    async def lease(self, name: str) -> Credential:
        """Lend the credential of that name; renewed until the desk closes, then given back.

        Waits, in the state `waiting_credential`, until the vault has it, and goes on at once when it is put.

        Raises:
            BadCredentials: The vault refuses this connector, or sealed the answer to another key.
        """
        held = self._leases.get(name)
        if held is not None and held.is_live:
            return held
        may_wait = False
        while True:
            asked_at = trio.current_time()
            try:
                answer = await self.ask(
                    "vault",
                    "checkout",
                    {"credential": name, "wait_ms": int(CREDENTIAL_POLL_S * 1000) if may_wait else 0},
                    within_s=CREDENTIAL_POLL_S + REQUEST_S,
                )
            except RequestFailed as exc:
                if exc.code not in _VAULT_LATER:
                    raise BadCredentials(
                        f"the vault refuses the credential {name!r}: {exc.code}",
                        hint=f"see `bridgectl grants list` for {self.principal}",
                    ) from exc
                detail = (
                    f"`bridgectl vault put {name}` and it starts at once"
                    if exc.code == "not_found"
                    else f"the vault cannot answer for {name!r} ({exc.code})"
                )
                await self.state(ConnectorState.WAITING_CREDENTIAL, detail)
                if may_wait:  # a vault that answers without waiting is not asked in a circle
                    await trio.sleep_until(asked_at + CREDENTIAL_PAUSE_S)
                may_wait = True
                continue
            credential, left_s = _unseal(name, answer, self.client.identity.lease_private, self.env.wall())
            self._leases[name] = credential
            self._nursery.start_soon(self._keep, credential, left_s)
            return credential

    async def _keep(self, credential: Credential, left_s: float) -> None:
        """Renew one lease until it is over.  Deadlines are monotonic: a jump of the wall clock moves none."""
        while True:
            expires_at = trio.current_time() + left_s
            await trio.sleep(left_s * RENEW_AT)
            while True:
                try:
                    answer = await self.ask("vault", "renew", {"lease_id": credential.lease_id})
                except RequestFailed as exc:
                    if exc.code not in _VAULT_LATER - {"not_found"}:
                        credential.forget()
                        raise Disconnected(
                            f"the lease of {credential.name!r} was taken back ({exc.code})",
                            hint=f"`bridgectl vault put {credential.name}` lends a new one",
                        ) from exc
                    if trio.current_time() >= expires_at:
                        credential.forget()  # the login goes on; the next one leases anew
                        return
                    await trio.sleep(CREDENTIAL_PAUSE_S)
                    continue
                left_s = _seconds_left(answer, self.env.wall())
                break

    async def _release(self) -> None:
        for credential in self._leases.values():
            if credential.is_live:
                credential.forget()
                with suppress(ShardsError):
                    await self.ask("vault", "release", {"lease_id": credential.lease_id}, within_s=STATE_S)

    # -- what goes to the platform ------------------------------------------------------------------------

    async def outbound(
        self,
        send: Callable[[Intent], Awaitable[Outcome]],
        *,
        concurrency: int = 16,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Hand every intent of this instance to `send`; never returns.  See `bridged.connectors.delivery`.

        Args:
            send: One intent, in order per channel, several channels at once.  It calls `mark_written` right
                before its first native write, and returns how it ended; it raises a `ConnectorError` when the
                platform is lost, and the intent then comes again.  With `was_written` it must not write again
                before it has looked the message up; where it cannot, it returns `Unknown`.
            concurrency: Channels at once.
        """
        await deliver(self, send, concurrency=concurrency, task_status=task_status)

    async def listen(
        self,
        actions: Sequence[str],
        handle: Callable[[Envelope], Awaitable[None]],
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Hand the passing things (`typing`, `mark_read`, …) of this instance to `handle`; never returns.

        Nothing of it is remembered, kept in order or given again; what is no envelope is passed over.
        """
        topics = [self.topic(action) for action in actions]
        async with self.client.subscribe(topics, group=None, start="latest") as subscription:
            task_status.started()
            while True:
                for record in await subscription.receive():
                    try:
                        envelope = Envelope.decode(record.payload)
                    except EnvelopeError:
                        continue
                    await handle(envelope)


@asynccontextmanager
async def open_desk(
    env: Env,
    settings: Settings,
    client: Client,
    *,
    told: Callable[[ConnectorState, str], None] = lambda state, detail: None,
) -> AsyncIterator[Desk]:
    """A desk over a connected client; on the way out all leases are given back.

    `told` hears every state that is published.
    """
    async with trio.open_nursery() as nursery:
        desk = Desk(env=env, settings=settings, client=client, nursery=nursery, told=told)
        try:
            yield desk
        finally:
            nursery.cancel_scope.cancel()
            with trio.move_on_after(STATE_S, shield=True):
                await desk._release()


async def attend(
    env: Env,
    connector: Connector,
    settings: Settings,
    client: Client,
    *,
    told: Callable[[ConnectorState, str], None] = lambda state, detail: None,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """One attempt of a connector at a desk of its own; its states are published, its fall passed on.

    Raises:
        ConnectorError: The platform was lost (alone or in an exception group); whether and when to try again
            is the supervisor's.
    """
    async with open_desk(env, settings, client, told=told) as desk:
        await desk.state(ConnectorState.STARTING)
        try:
            await connector.run(desk, task_status=task_status)
        except (ConnectorError, BaseExceptionGroup) as exc:
            fault = fall_of(exc)
            if fault is not None:
                given_up = isinstance(fault, BadCredentials | Banned)
                state = ConnectorState.STOPPED if given_up else ConnectorState.BACKING_OFF
                detail = f"{fault}: {fault.hint}" if fault.hint else str(fault)
                with trio.move_on_after(STATE_S), suppress(ShardsError):
                    await desk.state(state, detail)  # noqa: ASYNC120 - being cancelled is the graver news
            raise


def fall_of(exc: BaseException) -> ConnectorError | None:
    """The `ConnectorError` that an exception (group) is about: of several the one that is not retried."""
    if isinstance(exc, ConnectorError):
        return exc
    if not isinstance(exc, BaseExceptionGroup):
        return None
    falls = [fault for fault in map(fall_of, exc.exceptions) if fault is not None]
    final = [fault for fault in falls if isinstance(fault, BadCredentials | Banned)]
    return next(iter(final + falls), None)


_VAULT_LATER = frozenset({"not_found", "timeout", "network_down", "rate_limited", "internal"})


def _seconds_left(answer: Mapping[str, Any], wall_s: float) -> float:
    expires_at = seconds(answer.get("expires_at"))
    if expires_at is None:
        raise RequestFailed("internal", "the vault's answer has no expires_at")
    return max(expires_at - wall_s, 0.0)


def _unseal(
    name: str, answer: Mapping[str, Any], lease_private: bytes, wall_s: float
) -> tuple[Credential, float]:
    """Open a checkout's answer; nothing of the material is ever in an error's text."""
    sealed = answer.get("sealed")
    lease_id = answer.get("lease_id")
    if not isinstance(sealed, str) or not isinstance(lease_id, str):
        raise BadCredentials(
            f"the vault's answer for {name!r} is no lease", hint="is the vault of this version?"
        )
    try:
        fields = unseal(sealed, lease_private)
    except VaultError as exc:
        raise BadCredentials(
            f"the lease of {name!r} is sealed to another key than this connector's",
            hint="enrol the connector anew: `bridgectl keys invite`",
        ) from exc
    fencing = answer.get("fencing")
    credential = Credential(
        name, fields, lease_id=lease_id, fencing=fencing if isinstance(fencing, int) else 0
    )
    return credential, _seconds_left(answer, wall_s)


__all__ = [
    "Credential",
    "Cursor",
    "Delivered",
    "Desk",
    "Failed",
    "Intent",
    "Outcome",
    "Quoted",
    "Retry",
    "Settings",
    "Speaker",
    "Unknown",
    "attend",
    "fall_of",
    "open_desk",
    "seconds",
    "timestamp",
]
