"""The vault as a member of the shard: it serves `bridge/vault/*`, and every act is an event before it is an answer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NoReturn

import trio

from bridged.envelope import format_time, from_ms, new_envelope, new_trace_id, topic_for
from bridged.errors import VaultError
from bridged.requests import Question, ask, serve
from bridged.vault.lease import LEASE_S, Lease, check_name, material, seal
from bridged.vault.softtoken import SUITE, SoftToken
from bridged.vault.store import MIGRATIONS, Credentials
from shards.client import Client
from shards.database import Database, open_database
from shards.env import Env
from shards.errors import RequestFailed

EXPIRE_EVERY_S = 60.0


class Vault:
    """One tenant's credentials behind the fabric."""

    def __init__(
        self,
        env: Env,
        client: Client,
        database: Database,
        credentials: Credentials,
        *,
        changed: Callable[[str], None] = lambda name: None,
    ) -> None:
        """`changed` is told the name of every credential that was put."""
        self._env = env
        self._client = client
        self._database = database
        self._credentials = credentials
        self._changed = changed
        self._put = trio.Event()  # replaced at every put: those who wait for a credential look again

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> NoReturn:
        """Serve until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._expire)
            await serve(
                self._client,
                "vault",
                {
                    "checkout": self.checkout,
                    "renew": self.renew,
                    "release": self.release,
                    "put": self.put,
                    "revoke": self.revoke,
                    "rotate": self.rotate,
                    "status": self.status,
                },
                task_status=task_status,
            )

    async def checkout(self, question: Question) -> Mapping[str, Any]:
        """Lend a credential, sealed to the asker's lease key; `wait_ms` waits for one that is not there yet."""
        name = _name(question.text("credential"))
        wait_ms = question.number("wait_ms", default=0, most=600_000)
        wait_until = min(trio.current_time() + wait_ms / 1000, question.deadline - 1.0)
        lease_public = await self._lease_key(question.principal)
        lease_id = self._env.token_bytes(16).hex()
        while True:
            put = self._put
            lent = await self._lend(lease_id, name, question.principal)
            if lent is not None:
                break
            with trio.move_on_at(wait_until) as scope:
                await put.wait()
            if scope.cancelled_caught or trio.current_time() >= wait_until:
                raise RequestFailed(
                    "not_found", f"no credential {name!r} here", hint=f"bridgectl vault put {name}"
                )
        lease, body = lent
        await self._event("checkout", question, lease=lease)
        return {
            "lease_id": lease.lease_id,
            "sealed": seal(body, lease_public),
            "expires_at": _time(lease.expires_at),
            "fencing": lease.fencing,
            "revision": lease.revision,
        }

    async def renew(self, question: Question) -> Mapping[str, Any]:
        """Extend the asker's own lease."""
        lease_id, now = question.text("lease_id"), self._env.wall()
        lease = await self._database.write(
            lambda tx: self._credentials.renew(tx, lease_id, question.principal, now, now + LEASE_S)
        )
        if lease is None:
            raise RequestFailed("session_expired", "the lease is over", hint="check the credential out again")
        await self._event("renew", question, lease=lease)
        return {"lease_id": lease_id, "expires_at": _time(lease.expires_at), "fencing": lease.fencing}

    async def release(self, question: Question) -> Mapping[str, Any]:
        """Give the asker's own lease back; one that is over already is no fault."""
        lease_id = question.text("lease_id")
        if await self._database.write(lambda tx: self._credentials.release(tx, lease_id, question.principal)):
            await self._event("release", question, lease_id=lease_id)
        return {}

    async def put(self, question: Question) -> Mapping[str, Any]:
        """Store a credential; whoever waits for it starts at once."""
        name = _name(question.text("credential"))
        try:
            body = material(question.text("secret").encode())
        except VaultError as exc:
            raise RequestFailed("invalid_field", str(exc)) from None
        now = self._env.wall()
        revision = await self._database.write(
            lambda tx: self._credentials.put(tx, name, body, by=question.principal, now=now)
        )
        await self._event("put", question, credential=name, revision=revision)
        self._put.set()
        self._put = trio.Event()
        self._changed(name)
        return {"credential": name, "revision": revision}

    async def revoke(self, question: Question) -> Mapping[str, Any]:
        """End one lease (`lease_id`) or all of a credential (`credential`)."""
        lease_id, name = question.payload.get("lease_id"), question.payload.get("credential")
        if not isinstance(lease_id, str) and not isinstance(name, str):
            raise RequestFailed("missing_field", "payload.lease_id or payload.credential is required")
        ended = await self._database.write(
            lambda tx: self._credentials.revoke(tx, lease_id=lease_id, name=name)
        )
        for lease in ended:
            await self._event("revoke", question, lease=lease)
        return {"revoked": [lease.lease_id for lease in ended]}

    async def rotate(self, question: Question) -> Mapping[str, Any]:
        """A new data key; every credential is sealed under it."""
        version = await self._database.write(self._credentials.rotate)
        await self._event("rotate", question, key_version=version)
        return {"key_version": version}

    async def status(self, question: Question) -> Mapping[str, Any]:
        """Names, revisions and leases; nothing secret."""
        rows = await self._database.read(self._credentials.list)
        leases = await self._database.read(self._credentials.leases)
        return {
            "token": "soft",
            "suite": SUITE,
            "credentials": [
                {
                    "name": row.name,
                    "revision": row.revision,
                    "put_at": _time(row.put_at),
                    "put_by": row.put_by,
                    "leases": row.leases,
                }
                for row in rows
            ],
            "leases": [_told(lease) for lease in leases],
        }

    async def _lend(self, lease_id: str, name: str, principal: str) -> tuple[Lease, bytes] | None:
        expires_at = self._env.wall() + LEASE_S
        return await self._database.write(
            lambda tx: self._credentials.checkout(tx, lease_id, name, principal, expires_at)
        )

    async def _lease_key(self, principal: str) -> bytes:
        answer = await ask(self._env, self._client, "fabric", "keys", {"op": "get", "name": principal})
        row = answer["key"]
        if row["state"] != "active":
            raise RequestFailed("capability_denied", "no such principal")
        return bytes.fromhex(row["lease_public"])

    async def _event(self, act: str, question: Question, *, lease: Lease | None = None, **facts: Any) -> None:
        """Publish what was done, and wait until it is on disk: an act without a record is not answered."""
        payload = {"act": act, "by": question.principal, **({} if lease is None else _told(lease)), **facts}
        envelope = new_envelope(
            "vault",
            "event",
            payload,
            now=self._env.wall(),
            trace_id=new_trace_id(self._env.token_bytes),
            metadata={"tenant": question.tenant, "causation_id": question.trace_id},
        )
        await self._client.publish(topic_for("vault", "event"), [envelope.encode()], key=b"vault")

    async def _expire(self) -> NoReturn:
        while True:
            await self._database.write(lambda tx: self._credentials.expire(tx, self._env.wall()))
            await trio.sleep(EXPIRE_EVERY_S)


async def run_vault(
    env: Env,
    client: Client,
    *,
    path: Path,
    token: SoftToken,
    changed: Callable[[str], None] = lambda name: None,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> NoReturn:
    """The vault of the client's tenant over `vault.db` at `path`; never returns."""
    tenant = client.identity.tenant
    async with open_database(env, path, migrations=MIGRATIONS) as database:
        credentials = Credentials(tenant, token, env.token_bytes)
        await Vault(env, client, database, credentials, changed=changed).run(task_status=task_status)
    raise AssertionError("unreachable")


def _name(name: str) -> str:
    try:
        return check_name(name)
    except VaultError as exc:
        raise RequestFailed("invalid_field", str(exc)) from None


def _told(lease: Lease) -> dict[str, Any]:
    return {
        "lease_id": lease.lease_id,
        "credential": lease.credential,
        "principal": lease.principal,
        "expires_at": _time(lease.expires_at),
        "fencing": lease.fencing,
        "revision": lease.revision,
    }


def _time(seconds: float) -> str:
    return format_time(from_ms(int(seconds * 1000)))
