"""`bridge/fabric/*` in envelopes: what `bridgectl` asks of the broker and the supervisor.

Control is data: each request is answered by calling a typed method, under the asker's own principal, and what
changed something is an event on `bridge/fabric/event` before it is answered.  There is no second control API.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn, Protocol

import attrs
import trio

from bridged.envelope import (
    format_time,
    from_ms,
    key_id,
    new_envelope,
    new_trace_id,
    parse_time,
    to_base64url,
    to_ms,
    topic_for,
)
from bridged.errors import EnvelopeError
from bridged.requests import Question, serve
from shards.broker import Broker, Principal
from shards.client import Client
from shards.env import Env
from shards.errors import LogError, OffsetTrimmed, RequestFailed, ShardsError
from shards.grant import Grant, role_grants
from shards.shard import MemberStatus, Supervisor

HOUSE = frozenset({"control", "vault", "audit", "facade", "gateway"})
"""Members without whom a shard does not work; their rows are the configuration's alone."""
EVENTS_WAITING_MAX = 1024


class Outsider(Protocol):
    """A connector that the configuration lets run outside, as `bridged.config.Member`."""

    @property
    def name(self) -> str: ...
    @property
    def grants(self) -> frozenset[Grant]: ...
    @property
    def accounts(self) -> tuple[str, ...]: ...


class Control:
    """The fabric's own answers for one tenant."""

    def __init__(
        self,
        env: Env,
        client: Client,
        *,
        shard: str,
        broker: Broker,
        supervisor: Supervisor,
        describe: Callable[[], Mapping[str, Any]],
        outsider: Callable[[str, str], Outsider | None],
    ) -> None:
        """`describe` adds what only the daemon knows (connectors, addresses, version) to `status`;
        `outsider` is what the configuration says of a connector that runs outside, None: it names none such."""
        self._env = env
        self._client = client
        self._tenant = client.identity.tenant
        self._shard = shard
        self._broker = broker
        self._supervisor = supervisor
        self._describe = describe
        self._outsider = outsider
        self._news, self._to_tell = trio.open_memory_channel[dict[str, Any]](EVENTS_WAITING_MAX)
        self._started = env.wall()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> NoReturn:
        """Serve until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._tell)
            await serve(
                self._client,
                "fabric",
                {
                    "topics": self.topics,
                    "groups": self.groups,
                    "replay": self.replay,
                    "grants": self.grants,
                    "keys": self.keys,
                    "status": self.status,
                    "drain": self.drain,
                    "dlq": self.dlq,
                },
                task_status=task_status,
            )
        raise AssertionError("unreachable")

    def member_changed(self, status: MemberStatus) -> None:
        """Put a member's new state on `bridge/fabric/event`; called by the supervisor's report, never waits."""
        try:
            self._news.send_nowait({"act": "member", **_member(status)})
        except (trio.WouldBlock, trio.BrokenResourceError):
            return  # a thousand changes that nobody could store; the states themselves are in `status`

    # -- answers --------------------------------------------------------------------------------------------

    async def topics(self, question: Question) -> Mapping[str, Any]:
        """Topics with their next offsets; `topic` asks for one."""
        wanted = question.payload.get("topic")
        return {
            "topics": [
                attrs.asdict(row) for row in self._broker.topics(self._tenant) if wanted in (None, row.topic)
            ]
        }

    async def groups(self, question: Question) -> Mapping[str, Any]:
        """Consumer groups: positions, lag, what is in flight, dead letters."""
        return {"groups": [_plain(attrs.asdict(row)) for row in self._broker.groups(self._tenant)]}

    async def replay(self, question: Question) -> Mapping[str, Any]:
        """Move a group back so that it reads a part of its topics again; `dry_run` only says how much that is.

        Payload: `topic`, `group` (default `facade`), `from` and `to`: an offset, or a time `…Z`; `dry_run`.
        """
        topic, group = question.text("topic"), question.text("group", default="facade")
        known = {row.topic: row for row in self._broker.topics(self._tenant)}
        if topic not in known:
            raise RequestFailed("not_found", f"no topic {topic!r} here", hint="bridgectl topics")
        kept = await self._broker.offset_at(self._tenant, topic, 0)  # retention has taken what was before
        first = max(kept, await self._offset(topic, question.payload.get("from", 0)))
        last = question.payload.get("to")
        end = known[topic].next_offset if last is None else await self._offset(topic, last)
        end = min(end, known[topic].next_offset)
        if first >= end:
            raise RequestFailed(
                "invalid_field", "there is nothing between from and to", hint="bridgectl topics"
            )
        with _said("not_found"):
            from_position = await self._broker.position_of(self._tenant, topic, first)
            to_position = await self._broker.position_of(self._tenant, topic, end - 1) + 1
        if not question.payload.get("dry_run"):
            if group not in {row.name for row in self._broker.groups(self._tenant)}:
                raise RequestFailed("not_found", f"no group {group!r} here", hint="bridgectl groups")
            with _said("invalid_field"):
                await self._broker.seek(
                    self._tenant, group, [topic], from_position=from_position, to_position=to_position
                )
            await self._event(question, "replay", topic=topic, group=group, first=first, end=end)
        return {
            "topic": topic,
            "group": group,
            "from_offset": first,
            "to_offset": end,
            "records": end - first,
            "dry_run": bool(question.payload.get("dry_run")),
        }

    async def grants(self, question: Question) -> Mapping[str, Any]:
        """`op` list, add or revoke; `name` and `grant` (`VERB bridge/…`) or `role`."""
        op = question.text("op", default="list")
        if op == "list":
            wanted = question.payload.get("name")
            rows = [p for p in self._broker.principals(self._tenant) if wanted in (None, p.name)]
            return {"grants": [{"name": p.name, "grants": sorted(map(str, p.grants))} for p in rows]}
        if op not in ("add", "revoke"):
            raise RequestFailed("invalid_field", "payload.op is list, add or revoke")
        principal = self._changeable(question.text("name"))
        grants = self._named_grants(question)
        with _said("invalid_field"):
            for grant in grants:
                if op == "add":
                    await self._broker.grant(principal.name, grant, tenant=self._tenant)
                else:
                    await self._broker.ungrant(principal.name, grant, tenant=self._tenant)
        told = sorted(map(str, grants))
        await self._event(question, f"grant_{op}", name=principal.name, grants=told)
        return {"name": principal.name, "grants": told}

    async def keys(self, question: Question) -> Mapping[str, Any]:
        """`op` list or get (the public halves), invite, suspend, resume or revoke."""
        op = question.text("op", default="list")
        if op == "list":
            wanted = question.payload.get("name")
            rows = [p for p in self._broker.principals(self._tenant) if wanted in (None, p.name)]
            return {"principals": [told(p) for p in rows]}
        name = question.text("name")
        if op == "get":
            return {"key": told(self._principal(name))}
        if op == "invite":
            return await self._invite(question, name)
        principal = self._changeable(name)
        acts = {"revoke": self._broker.revoke, "suspend": self._broker.suspend, "resume": self._broker.resume}
        if op not in acts:
            raise RequestFailed("invalid_field", "payload.op is list, get, invite, suspend, resume or revoke")
        with _said("invalid_field"):
            await acts[op](principal.name, tenant=self._tenant)
        await self._event(question, f"key_{op}", name=name)
        return {"name": name, "done": op}

    async def status(self, question: Question) -> Mapping[str, Any]:
        """The shard, its members and the Log at one glance."""
        groups = self._broker.groups(self._tenant)
        return {
            "shard": self._shard,
            "tenant": self._tenant,
            "started": _time(self._started),
            "now": _time(self._env.wall()),
            "members": [_member(status) for status in self._supervisor.statuses()],
            "groups": [
                {"name": g.name, "lag": g.lag, "in_flight": g.in_flight, "dead": g.dead} for g in groups
            ],
            "fabric": _plain(attrs.asdict(self._broker.statistics())),
            **self._describe(),
        }

    async def drain(self, question: Question) -> Mapping[str, Any]:
        """`op` restart (the default) ends the member's present attempt, resume starts a stopped one now."""
        name, op = question.text("member"), question.text("op", default="restart")
        acts = {"restart": self._supervisor.restart, "resume": self._supervisor.resume}
        if op not in acts:
            raise RequestFailed("invalid_field", "payload.op is restart or resume")
        if name not in {status.name for status in self._supervisor.statuses()}:
            raise RequestFailed("not_found", f"no member {name!r} here", hint="bridgectl status")
        done = acts[op](name)
        if done:
            await self._event(question, f"member_{op}", name=name)
        return {"member": name, "done": done}

    async def dlq(self, question: Question) -> Mapping[str, Any]:
        """Dead letters: `op` list, show, retry or drop, by `id`."""
        op = question.text("op", default="list")
        if op == "list":
            rows = await self._broker.dead_letters(self._tenant)
            return {"dead_letters": [_plain(attrs.asdict(row)) for row in rows]}
        number = question.number("id")
        if op == "show":
            rows = [row for row in await self._broker.dead_letters(self._tenant) if row.id == number]
            if not rows:
                raise RequestFailed("not_found", f"no dead letter {number}", hint="bridgectl dlq list")
            return {"dead_letter": _plain(attrs.asdict(rows[0]))}
        acts = {"retry": self._broker.retry, "drop": self._broker.drop}
        if op not in acts:
            raise RequestFailed("invalid_field", "payload.op is list, show, retry or drop")
        with _said("not_found"):
            await acts[op](self._tenant, number)
        await self._event(question, f"dead_{op}", dead_letter=number)
        return {"id": number, "done": op}

    # -- helpers ---------------------------------------------------------------------------------------------

    async def _invite(self, question: Question, name: str) -> Mapping[str, Any]:
        service, instance = question.payload.get("service"), question.payload.get("instance")
        accounts: tuple[str, ...] = ()
        if name in HOUSE:
            raise _of_the_house(name)
        if service is None:
            grants = self._named_grants(question)
        else:
            member = self._outsider(str(service), str(instance))
            if member is None or member.name != name:
                raise RequestFailed(
                    "not_found",
                    f"the configuration names no connector {name} that runs outside",
                    hint='add its table with runs = "outside", and start the shard again',
                )
            grants, accounts = member.grants, member.accounts
        held = next((row for row in self._broker.principals(self._tenant) if row.name == name), None)
        if held is not None and held.state == "active":
            raise RequestFailed(
                "duplicate",
                f"{name} is enrolled already",
                hint=f"`bridgectl keys revoke {name}` first, where it shall have new keys",
            )
        with _said("invalid_field"):
            invite = await self._broker.invite(
                name,
                self._tenant,
                grants,
                service=service or None,
                instance=instance or None,
                accounts=accounts,
            )
        await self._event(question, "key_invite", name=name, invite=invite.id)
        return {
            "name": name,
            "invite": invite.id,
            "secret": to_base64url(invite.secret),
            "server": to_base64url(self._broker.server_public),
            "expires_at": _time(invite.expires_at),
        }

    def _named_grants(self, question: Question) -> frozenset[Grant]:
        roles, texts = question.payload.get("roles", ()), question.payload.get("grants", ())
        if not isinstance(roles, Sequence) or not isinstance(texts, Sequence) or not (roles or texts):
            raise RequestFailed("missing_field", "payload.grants or payload.roles names what may be done")
        try:
            parsed = {Grant.parse(text) for text in texts}
            return frozenset(parsed.union(*(role_grants(role) for role in roles)))
        except (ShardsError, TypeError, AttributeError) as exc:
            raise RequestFailed("invalid_field", str(exc)) from exc

    def _principal(self, name: str) -> Principal:
        for principal in self._broker.principals(self._tenant):
            if principal.name == name:
                return principal
        raise RequestFailed("not_found", f"no principal {name!r} here", hint="bridgectl keys list")

    def _changeable(self, name: str) -> Principal:
        """The principal, unless it is a member of the house."""
        if name in HOUSE:
            raise _of_the_house(name)
        return self._principal(name)

    async def _offset(self, topic: str, value: object) -> int:
        """An offset as it is, a time as the first offset at or after it."""
        if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
            return value
        if isinstance(value, str):
            try:
                at_ms = to_ms(parse_time(value, "from"))
            except EnvelopeError as exc:
                raise RequestFailed(
                    "invalid_field", str(exc), hint="an offset, or a time like 2026-11-24T08:00:00Z"
                ) from exc
            return await self._broker.offset_at(self._tenant, topic, at_ms)
        raise RequestFailed("invalid_field", "from and to are an offset or a time like 2026-11-24T08:00:00Z")

    async def _event(self, question: Question, act: str, **facts: Any) -> None:
        payload = {"act": act, "by": question.principal, **facts}
        await self._publish(payload, causation_id=question.trace_id)

    async def _tell(self) -> NoReturn:
        async for payload in self._to_tell:
            await self._publish(payload)
        raise AssertionError("the channel is never closed")

    async def _publish(self, payload: dict[str, Any], *, causation_id: str | None = None) -> None:
        metadata = {"tenant": self._tenant}
        if causation_id is not None:
            metadata["causation_id"] = causation_id
        envelope = new_envelope(
            "fabric",
            "event",
            payload,
            now=self._env.wall(),
            trace_id=new_trace_id(self._env.token_bytes),
            metadata=metadata,
        )
        await self._client.publish(topic_for("fabric", "event"), [envelope.encode()], key=b"fabric")


@contextmanager
def _said(code: str) -> Iterator[None]:
    """What the broker refuses is the asker's error; a storage that fails is not."""
    try:
        yield
    except OffsetTrimmed as exc:
        raise RequestFailed("not_found", str(exc), hint="retention has taken it") from exc
    except (RequestFailed, LogError):
        raise
    except ShardsError as exc:
        raise RequestFailed(code, str(exc), hint=exc.hint) from exc


def _of_the_house(name: str) -> RequestFailed:
    return RequestFailed(
        "forbidden", f"{name} is a member of the house", hint="its keys and grants are the shard's own"
    )


def told(principal: Principal) -> dict[str, Any]:
    """A principal's row, as `keys list` shows it: nothing private."""
    return {
        "name": principal.name,
        "tenant": principal.tenant,
        "state": principal.state,
        "noise_public": principal.noise_public.hex(),
        "signing_public": principal.signing_public.hex(),
        "lease_public": principal.lease_public.hex(),
        "kid": key_id(principal.signing_public),
        "service": principal.service,
        "instance": principal.instance,
        "accounts": list(principal.accounts),
        "grants": sorted(map(str, principal.grants)),
    }


def _member(status: MemberStatus) -> dict[str, Any]:
    return {
        "name": status.name,
        "state": status.state,
        "since": _time(status.since),
        "detail": status.detail,
        "crashes": status.crashes,
    }


def _plain(value: Any) -> Any:
    """The value with bytes as hexadecimal text: what JSON can carry."""
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(item) for item in value]
    return value


def _time(seconds: float) -> str:
    return format_time(from_ms(int(seconds * 1000)))
