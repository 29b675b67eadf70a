"""A broker that serves: opened as a context, steered by typed methods.

These methods are the only control there is; `bridgectl` and provisioning reach them as requests under an
operator's own grants.
"""

from __future__ import annotations

import os
import stat
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import attrs
import trio

from noise import KeyPair
from shards import store, wire
from shards.acceptor import serve_tcp_acceptor
from shards.broker.core import Core
from shards.broker.feeds import decode_proof
from shards.broker.limits import Limits
from shards.broker.principals import Directory, Invite, InviteBody, Principal, State
from shards.broker.statistics import BrokerStatistics, GroupStatistics
from shards.env import Env
from shards.errors import LogError, OffsetTrimmed, ShardsError
from shards.grant import Grant
from shards.log import Log, LogStatistics, TopicStatistics, open_log
from shards.record import Record
from shards.store import DeadRow, InviteRow

KEY_FILE = "broker.key"
LOG_FILE = "log.db"
CLOSE_S = 5.0
"""Storing the groups' positions may take so long when all is ending."""


@attrs.frozen(kw_only=True)
class DeadLetter:
    """A record that a group could not use, kept until an operator decides."""

    id: int
    group: str
    record: Record
    code: str
    reason: str


class Broker:
    """One shard's broker; made by `open_broker`."""

    def __init__(
        self, env: Env, log: Log, core: Core, *, endpoint: str, shard: str, server_public: bytes
    ) -> None:
        self.endpoint = endpoint
        self.shard = shard
        self.server_public = server_public
        """The Noise key that clients pin."""
        self.tcp_ports: tuple[int, ...] = ()
        self._env = env
        self._log = log
        self._core = core

    # -- principals ---------------------------------------------------------------------------------------

    async def enroll(self, principal: Principal) -> None:
        """Insert a principal, or replace the one of its name; links under an older key end.

        Raises:
            ShardsError: A key has not 32 bytes, a name is unfit, or the Noise key is another principal's.
        """
        _check_principal(principal)
        self._core.directory.check_key(principal)
        await self._put(principal)

    async def suspend(self, name: str, *, tenant: str | None = None) -> None:
        """Refuse the principal until it is resumed; its links end at once.  Raises ShardsError: no such one."""
        await self._set_state(name, tenant, "suspended")

    async def resume(self, name: str, *, tenant: str | None = None) -> None:
        """Let a suspended principal in again.  Raises ShardsError: no such one, or it is revoked."""
        await self._set_state(name, tenant, "active")

    async def revoke(self, name: str, *, tenant: str | None = None) -> None:
        """Refuse the principal's key for good; its links end at once.  Raises ShardsError: no such one."""
        await self._set_state(name, tenant, "revoked")

    async def grant(self, name: str, grant: Grant, *, tenant: str | None = None) -> None:
        """Give the principal a grant; it counts at once.  Raises ShardsError: no such one."""
        principal = self._core.directory.by_name(name, tenant)
        await self._put(attrs.evolve(principal, grants=principal.grants | {grant}))

    async def ungrant(self, name: str, grant: Grant, *, tenant: str | None = None) -> None:
        """Take a grant back; what only it allowed ends at once.  Raises ShardsError: no such one."""
        principal = self._core.directory.by_name(name, tenant)
        await self._put(attrs.evolve(principal, grants=principal.grants - {grant}))

    async def invite(
        self,
        name: str,
        tenant: str,
        grants: Iterable[Grant],
        *,
        service: str | None = None,
        instance: str | None = None,
        accounts: Sequence[str] = (),
    ) -> Invite:
        """A one-time secret for a newcomer, good for ten minutes; it brings its own keys."""
        body = InviteBody(tuple(map(str, grants)), service, instance, tuple(accounts))
        invite = Invite(
            id=self._env.token_bytes(9).hex(),
            secret=self._env.token_bytes(32),
            expires_at=self._env.wall() + self._core.limits.invite_s,
            name=name,
            tenant=tenant,
        )
        _check_name(name)
        _check_name(tenant)
        row = InviteRow(
            id=invite.id,
            secret=invite.secret,
            tenant=tenant,
            name=name,
            body=body.encode(),
            expires_s=invite.expires_at,
        )
        await self._log.database.write(lambda tx: store.put_invite(tx, row))
        self._core.directory.put_invite(row)
        return invite

    def principals(self, tenant: str | None = None) -> list[Principal]:
        """All principals, or a tenant's."""
        return self._core.directory.all(tenant)

    async def _set_state(self, name: str, tenant: str | None, state: State) -> None:
        principal = self._core.directory.by_name(name, tenant)
        if principal.state == "revoked" and state != "revoked":
            raise ShardsError(f"{name!r} is revoked for good", hint="enroll it under a new key")
        await self._put(attrs.evolve(principal, state=state))

    async def _put(self, principal: Principal) -> None:
        # A refusal counts before it is on disk, a permission only afterwards.
        if principal.state != "active":
            self._core.directory.put(principal)
            self._core.principal_changed(principal)
        row = principal.to_row()
        await self._log.database.write(lambda tx: store.put_principal(tx, row))
        self._core.directory.put(principal)
        self._core.principal_changed(principal)

    # -- topics and groups --------------------------------------------------------------------------------

    def topics(self, tenant: str) -> list[TopicStatistics]:
        """The tenant's topics, by name."""
        return self._log.topics(tenant)

    def groups(self, tenant: str) -> list[GroupStatistics]:
        """The tenant's consumer groups, by name."""
        head = self._log.head
        return [
            GroupStatistics(
                name=name,
                topics=feed.topics,
                position=feed.machine.position,
                head=head,
                lag=max(0, head - feed.machine.scan) + feed.machine.unfinished,
                in_flight=feed.machine.in_flight,
                dead=feed.dead,
                members=len(feed.outlets),
                late=feed.machine.late,
            )
            for (owner, name), feed in sorted(self._core.readers.groups.items())
            if owner == tenant
        ]

    async def seek(
        self,
        tenant: str,
        group: str,
        topics: Sequence[str] | None,
        *,
        from_position: int,
        to_position: int | None = None,
    ) -> None:
        """Give a group its records of these topics in [from, to) again.

        Raises:
            ShardsError: No such group, it does not read these topics, or too many seeks are still running.
        """
        stop = wire.NEVER if to_position is None else to_position
        self._core.readers.seek(tenant, group, None if topics is None else tuple(topics), from_position, stop)
        await self._core.readers.save_groups_now()

    async def drop_group(self, tenant: str, name: str) -> None:
        """Forget a group without members.  Raises ShardsError where there is none, or it has some."""
        self._core.readers.drop_group(tenant, name)
        await self._log.database.write(lambda tx: store.drop_group(tx, tenant, name))

    async def dead_letters(
        self, tenant: str, group: str | None = None, *, after_id: int = 0, limit: int = 100
    ) -> list[DeadLetter]:
        """Records that groups gave up, oldest first."""
        rows = await self._log.database.read(
            lambda tx: store.dead(tx, tenant, group, after_id=after_id, limit=limit)
        )
        return [_dead_letter(row) for row in rows]

    async def retry(self, tenant: str, id_: int) -> None:
        """Give a dead letter to its group again.

        Raises:
            ShardsError: No such dead letter, or its record is no longer in the log.
        """
        row = await self._dead_row(tenant, id_)
        if row.position < self._log.first:
            raise ShardsError(
                f"dead letter {id_}'s record is no longer in the log",
                hint="its content is still in `bridgectl dlq show`",
            )
        self._core.readers.seek(tenant, row.group, (row.topic,), row.position, row.position + 1)
        await self._core.readers.save_groups_now()
        await self._log.database.write(lambda tx: store.drop_dead(tx, tenant, id_))

    async def drop(self, tenant: str, id_: int) -> None:
        """Delete a dead letter.  Raises ShardsError: no such one."""
        await self._dead_row(tenant, id_)
        await self._log.database.write(lambda tx: store.drop_dead(tx, tenant, id_))

    async def _dead_row(self, tenant: str, id_: int) -> DeadRow:
        row = await self._log.database.read(lambda tx: store.get_dead(tx, tenant, id_))
        if row is None:
            raise ShardsError(f"no dead letter {id_}", hint="bridgectl dlq list")
        return row

    async def trim(
        self, *, before: int | None = None, older_than_ms: int | None = None, octets_max: int | None = None
    ) -> int:
        """Remove the oldest records by position, age or size; returns the oldest position left."""
        return await self._log.trim(before=before, older_than_ms=older_than_ms, octets_max=octets_max)

    def head(self) -> int:
        """The position that the next record gets."""
        return self._log.head

    async def position_of(self, tenant: str, topic: str, offset: int) -> int:
        """Where in the journal a record lies.  Raises OffsetTrimmed where retention has taken it."""
        return await self._log.position_of(tenant, topic, offset)

    async def offset_at(self, tenant: str, topic: str, at_ms: int) -> int:
        """The first offset that was committed at or after that wall time; the next one where there is none.

        The wall clock may have jumped; then the answer is one of the places where it passed that time.
        """
        low, high = 0, next((t.next_offset for t in self._log.topics(tenant) if t.topic == topic), 0)
        while low < high:
            middle = (low + high) // 2
            try:
                position = await self._log.position_of(tenant, topic, middle)
            except OffsetTrimmed:
                low = middle + 1
                continue
            page = await self._log.page(position, limit_bytes=1, tenant=tenant, topics=[topic])
            if page.runs and page.runs[0].at_ms >= at_ms:
                high = middle
            else:
                low = middle + 1
        return low

    async def touch(self) -> None:
        """Commit something: returns when the disk has taken it.  Raises StorageFailed."""
        now = str(int(self._env.wall())).encode()
        await self._log.database.write(lambda tx: store.put_meta(tx, "touched", now))

    def statistics(self) -> BrokerStatistics:
        return self._core.statistics()

    def log_statistics(self) -> LogStatistics:
        return self._log.statistics()

    @property
    def faults(self) -> Sequence[str]:
        """The last faults of our own that cost a link: what, where, whose link; no value of it."""
        return tuple(self._core.faults)


@asynccontextmanager
async def open_broker(
    env: Env,
    *,
    state: Path,
    endpoint: str,
    shard: str,
    tcp: Sequence[str] = (),
    limits: Limits | None = None,
    prepare: Callable[[Broker], Awaitable[None]] | None = None,
) -> AsyncIterator[Broker]:
    """Serve a shard's log at `endpoint` (an ipc path) and at `tcp` addresses ("tcp://HOST:PORT").

    Serving when entered; `prepare` is awaited before the first link is heard, so that whoever it enrols is
    never refused for having come early.  The server's key is made at `state`/broker.key (0600) on first use.

    Raises:
        ShardsError: The endpoint or the key file is unfit.
        LogError: The log cannot be opened.  StorageFailed, in a group, when it fails later.
    """
    addresses = [_host_port(address) for address in tcp]
    static = await env.run_sync(_load_key, state, env.token_bytes)
    async with open_log(env, state / LOG_FILE) as log:
        principals, invites, groups = await log.database.read(
            lambda tx: (store.principals(tx), store.invites(tx), store.groups(tx))
        )
        frames = await env.bind(endpoint)
        try:
            async with trio.open_nursery() as nursery:
                core = Core(
                    env,
                    log,
                    frames,
                    shard=shard,
                    static=static,
                    directory=Directory(map(Principal.from_row, principals), invites, env.wall),
                    groups=groups,
                    limits=limits or Limits(),
                    nursery=nursery,
                )
                broker = Broker(env, log, core, endpoint=endpoint, shard=shard, server_public=static.public)
                if prepare is not None:
                    await prepare(broker)
                for task in (
                    core.serve,
                    core.sweep,
                    core.keep_house,
                    core.readers.save_groups,
                    log.database.wait_failed,
                ):
                    nursery.start_soon(task)
                for host, port in addresses:
                    acceptor = await nursery.start(serve_tcp_acceptor, env, host, port, endpoint)
                    broker.tcp_ports += (acceptor.port,)
                try:
                    yield broker
                finally:
                    core.say_goodbye()
                    with suppress(LogError), trio.move_on_after(CLOSE_S) as scope:
                        scope.shield = True
                        await core.readers.save_groups_now()
                    nursery.cancel_scope.cancel()
        finally:
            with trio.move_on_after(CLOSE_S, shield=True):
                await frames.aclose()


def server_key(state: Path, token_bytes: Callable[[int], bytes]) -> bytes:
    """The public Noise key of the broker whose files lie in `state`; made on first use.

    Raises:
        ShardsError: The file cannot be used.
    """
    return _load_key(state, token_bytes).public


def _load_key(state: Path, token_bytes: Callable[[int], bytes]) -> KeyPair:
    """The broker's Noise key: read, or made and made durable."""
    state.mkdir(mode=0o700, parents=True, exist_ok=True)
    path = state / KEY_FILE
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        _write_key(path, token_bytes(32))
        mode = path.stat().st_mode
    if stat.S_IMODE(mode) & 0o077:
        raise ShardsError(f"{path} can be read by others", hint=f"chmod 600 {path}; then make a new key")
    private = path.read_bytes()
    if len(private) != 32:
        raise ShardsError(f"{path} has not 32 bytes", hint="restore it from a backup: clients pin this key")
    return KeyPair.from_private(private)


def _write_key(path: Path, private: bytes) -> None:
    fresh = path.with_suffix(".new")
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        os.write(descriptor, private)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    fresh.rename(path)
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def _host_port(address: str) -> tuple[str, int]:
    host, _, port = address.removeprefix("tcp://").rpartition(":")
    if not address.startswith("tcp://") or not host or not port.isdecimal() or int(port) > 65_535:
        raise ShardsError(f"{address!r} is no tcp address", hint="write it as tcp://HOST:PORT")
    return host.strip("[]"), int(port)


def _check_name(name: str) -> None:
    if not (0 < len(name.encode()) <= 255 and name.isprintable()):
        raise ShardsError("a principal's name and tenant have 1 to 255 printable characters")


def _check_principal(principal: Principal) -> None:
    _check_name(principal.name)
    _check_name(principal.tenant)
    if {len(principal.noise_public), len(principal.signing_public), len(principal.lease_public)} != {32}:
        raise ShardsError("a principal has three public keys of 32 bytes")


def _dead_letter(row: DeadRow) -> DeadLetter:
    record = Record(
        topic=row.topic,
        offset=row.offset,
        position=row.position,
        key=row.key,
        principal=row.principal,
        at_ms=row.at_ms,
        payload=row.payload,
        proof=decode_proof(row.proof),
        attempt=row.attempts,
    )
    return DeadLetter(id=row.id, group=row.group, record=record, code=row.code, reason=row.reason)
