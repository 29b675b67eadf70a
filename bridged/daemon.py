"""A shard in the foreground: the broker, its members, and what systemd wants to hear.

This is where everything is put together and nothing is decided: the configuration says who the members are, the
supervisor keeps them running, and each reaches the fabric through a client of its own.
"""

from __future__ import annotations

import math
import signal
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn

import attrs
import trio

from bridged import host, http, telemetry
from bridged.audit.member import origin, run_audit
from bridged.config import Config, ConnectorSettings, Member, split_address
from bridged.connectors import Connector, ConnectorState
from bridged.connectors.desk import attend
from bridged.control import HOUSE, Control
from bridged.errors import BadCredentials, Banned, BridgeError, ConfigError
from bridged.facade import ClientSeed, Conversation, FacadeSettings, Link, run_facade
from bridged.gateway.ws import run_gateway
from bridged.keyring import Card, KeyFileError, load_cards, load_key, member_identity, seed_file
from bridged.vault.member import run_vault
from bridged.vault.softtoken import SoftToken
from shards import restart, shard
from shards.broker import Broker, Principal, open_broker
from shards.client import Client, open_client
from shards.database import lock_state
from shards.env import Env
from shards.errors import MemberError, NotGranted, RequestFailed, Unreachable
from shards.grant import role_grants
from shards.shard import MemberStatus, Supervisor

log = telemetry.get_logger("daemon")
Serve = Callable[[Client, trio.TaskStatus[None]], Awaitable[None]]


@attrs.frozen(kw_only=True)
class Running:
    """A shard that serves."""

    config: Config
    broker: Broker
    supervisor: Supervisor
    gateway_port: Callable[[], int | None]


def policy_of(fault: MemberError) -> restart.Policy:
    """Nothing that time mends is not retried; everything else is, for ever."""
    return restart.HOPELESS if isinstance(fault, BadCredentials | Banned) else restart.LOST_CONNECTION


class Daemon:
    """One shard, being put together."""

    def __init__(self, env: Env, config: Config, broker: Broker) -> None:
        self.env = env
        self.config = config
        self.broker = broker
        self.controls: dict[str, Control] = {}
        self.supervisor = Supervisor(env, self._report)
        self.gateway_port: int | None = None
        self._told: dict[tuple[str, str], tuple[ConnectorState, str]] = {}
        """What each connector last said of itself."""

    async def run(self, *, task_status: trio.TaskStatus[Running] = trio.TASK_STATUS_IGNORED) -> NoReturn:
        """Enrol everybody, start the members, keep them running."""
        members: list[shard.Member] = []
        for tenant in self.config.tenants:
            members += await self._members(tenant)
        if self.config.gateway is not None:
            members.append(await self._gateway())
        # who is leaned on first; connectors last
        members.sort(key=lambda member: "/" in member.name.partition(":")[2] or "/" in member.name)
        async with trio.open_nursery() as nursery:
            await nursery.start(self.supervisor.run, members)
            task_status.started(
                Running(
                    config=self.config,
                    broker=self.broker,
                    supervisor=self.supervisor,
                    gateway_port=lambda: self.gateway_port,
                )
            )
            await trio.sleep_forever()
        raise AssertionError("unreachable")

    async def enroll_operators(self) -> None:
        """Every card beside the configuration is an operator: it asks, speaks and reads."""
        for card in self._cards():
            noise, signing, lease = card.publics()
            known = {row.name: row for row in self.broker.principals(card.tenant)}
            if card.tenant not in self.config.tenants or card.name in HOUSE:
                raise KeyFileError(
                    f"the card of {card.name} is none of this shard's", hint=f"remove {card.name}.pub"
                )
            if card.name in known and known[card.name].noise_public == noise:
                continue  # the row decides: what was granted, revoked or shut out since then stays so
            grants = role_grants("admin") | role_grants("send") | role_grants("sync")
            await self.broker.enroll(
                Principal(
                    name=card.name,
                    tenant=card.tenant,
                    noise_public=noise,
                    signing_public=signing,
                    lease_public=lease,
                    grants=grants,
                )
            )

    def _cards(self) -> list[Card]:
        return load_cards(self.config.path.parent / "keys")

    # -- members ----------------------------------------------------------------------------------------------

    async def _members(self, tenant: str) -> list[shard.Member]:
        """The members of one tenant that run inside; whom the file no longer names is suspended."""
        named = self.config.members(tenant)
        known = {row.name: row for row in self.broker.principals(tenant)}
        operators = {card.name for card in self._cards() if card.tenant == tenant}
        by_name = {member.name: member for member in named}
        for name, row in known.items():
            if row.state == "revoked" or row.service is None or name in operators:
                continue
            member = by_name.get(name)
            if member is None:
                await self.broker.suspend(name, tenant=tenant)
            elif member.runs == "outside":  # it has its keys; what it may do stands in the file
                await self.broker.enroll(
                    attrs.evolve(row, grants=member.grants, accounts=member.accounts, state="active")
                )
        serves = self._house(tenant)
        out = []
        for member in named:
            if member.name == "gateway" or member.runs == "outside":
                continue
            serve = serves.get(member.name) or self._connector(tenant, member)
            run = await self._inside(member, serve)
            name = f"{tenant}:{member.name}" if self.config.is_region else member.name
            out.append(
                shard.Member(
                    name=name,
                    run=run,
                    policy=None if member.name == "facade" else policy_of,
                    is_awaited=member.service is None,
                )
            )
        return out

    async def _inside(self, member: Member, serve: Serve) -> shard.Run:
        """Enrol the member and give its attempt a client."""
        path = self.config.paths(member.tenant).keys / f"member-{member.name.replace('/', '-')}.key"
        identity = await self.env.run_sync(
            member_identity, path, member.name, member.tenant, self.env.token_bytes
        )
        row = next((p for p in self.broker.principals(member.tenant) if p.name == member.name), None)
        if row is None or row.state != "revoked" or row.noise_public != identity.noise_public:
            await self.broker.enroll(
                Principal(
                    name=member.name,
                    tenant=member.tenant,
                    noise_public=identity.noise_public,
                    signing_public=identity.signing_public,
                    lease_public=identity.lease_public,
                    grants=member.grants,
                    service=member.service,
                    instance=member.instance,
                    accounts=member.accounts,
                )
            )

        async def run(*, task_status: trio.TaskStatus[None]) -> None:
            try:
                async with open_client(
                    self.env,
                    self.broker.endpoint,
                    identity,
                    server_public=self.broker.server_public,
                    shard=self.config.name,
                ) as client:
                    await serve(client, task_status)
            except* (RequestFailed, Unreachable) as group:
                raise MemberError(f"the house did not answer: {_first(group)}") from group
            except* BridgeError as group:
                exc = _first(group)
                raise MemberError(f"{exc} ({exc.hint})" if exc.hint else str(exc)) from group  # type: ignore[attr-defined]
            except* NotGranted as group:
                if member.service is None:
                    raise
                raise BadCredentials(
                    f"{_first(group)}; where its key was revoked, remove {path} and start the shard: it gets another"
                ) from group

        return run

    def _house(self, tenant: str) -> Mapping[str, Serve]:
        """What each member of the house does with its client."""
        env, paths = self.env, self.config.paths(tenant)

        async def control(client: Client, task_status: trio.TaskStatus[None]) -> None:
            serving = Control(
                env,
                client,
                shard=self.config.name,
                broker=self.broker,
                supervisor=self.supervisor,
                describe=lambda: self._describe(tenant),
                outsider=lambda service, instance: self._outsider(tenant, service, instance),
            )
            self.controls[tenant] = serving
            try:
                await serving.run(task_status=task_status)
            finally:
                del self.controls[tenant]

        async def vault(client: Client, task_status: trio.TaskStatus[None]) -> None:
            token = await env.run_sync(
                SoftToken.open, self.config.state / "keys" / "vault.key", env.token_bytes
            )
            await run_vault(
                env,
                client,
                path=paths.vault,
                token=token,
                changed=lambda name: self._credential_changed(tenant, name),
                task_status=task_status,
            )

        async def audit(client: Client, task_status: trio.TaskStatus[None]) -> None:
            seed = await env.run_sync(
                seed_file, self.config.state / "keys" / f"audit-{tenant}.key", env.token_bytes
            )
            name = origin(self.config.name, tenant)
            await run_audit(env, client, path=paths.audit, name=name, seed=seed, task_status=task_status)

        async def facade(client: Client, task_status: trio.TaskStatus[None]) -> None:
            async with trio.open_nursery() as nursery:
                await nursery.start(run_facade, env, client, self._facade_settings(tenant))
                task_status.started()

        return {"control": control, "vault": vault, "audit": audit, "facade": facade}

    def _facade_settings(self, tenant: str) -> FacadeSettings:
        cards = [card for card in self._cards() if card.tenant == tenant]
        clients: list[ClientSeed] = []
        for card in cards:
            clients.append(ClientSeed(name=card.name, identity=card.identity))
            if card.client_token_sha256 is not None:
                clients.append(
                    ClientSeed(
                        name=f"{card.name}-client",
                        identity=card.identity,
                        token_hash=bytes.fromhex(card.client_token_sha256),
                    )
                )
        return FacadeSettings(
            tenant=tenant,
            path=self.config.paths(tenant).core,
            connectors=tuple((one.service, one.instance) for one in self.config.connectors[tenant]),
            conversations=tuple(
                Conversation(
                    name=one.name,
                    links=tuple(
                        Link(ref=link.ref.build(), service=link.service, instance=link.instance)
                        for link in one.links
                    ),
                )
                for one in self.config.conversations_of(tenant)
            ),
            clients=tuple(clients),
        )

    def _connector(self, tenant: str, member: Member) -> Serve:
        settings = self.config.connector(member.name, tenant)
        assert settings is not None

        def told(state: ConnectorState, detail: str) -> None:
            self._told[tenant, member.name] = state, detail

        return connector_of(self.env, self.config, tenant, settings, told=told)

    async def _gateway(self) -> shard.Member:
        """One gateway for all tenants, with a client for each."""
        assert self.config.gateway is not None
        settings = self.config.gateway
        address, port = split_address(settings.listen)
        tls = None if settings.tls is None else _server_tls(settings.tls.cert, settings.tls.key)
        identities = []
        for tenant in self.config.tenants:
            member = next(m for m in self.config.members(tenant) if m.name == "gateway")
            path = self.config.paths(tenant).keys / "member-gateway.key"
            identity = await self.env.run_sync(
                member_identity, path, member.name, tenant, self.env.token_bytes
            )
            identities.append(identity)
            await self.broker.enroll(
                Principal(
                    name=member.name,
                    tenant=tenant,
                    noise_public=identity.noise_public,
                    signing_public=identity.signing_public,
                    lease_public=identity.lease_public,
                    grants=member.grants,
                )
            )

        async def run(*, task_status: trio.TaskStatus[None]) -> None:
            try:
                async with AsyncExitStack() as stack:
                    clients = {}
                    for identity in identities:
                        clients[identity.tenant] = await stack.enter_async_context(
                            open_client(
                                self.env,
                                self.broker.endpoint,
                                identity,
                                server_public=self.broker.server_public,
                                shard=self.config.name,
                            )
                        )
                    async with trio.open_nursery() as nursery:
                        self.gateway_port = await nursery.start(
                            _serve_gateway, self.env, clients, address, port, tls
                        )
                        task_status.started()
            except* (RequestFailed, Unreachable, OSError) as group:
                raise MemberError(
                    f"the gateway cannot serve at {settings.listen}: {_first(group)}"
                ) from group

        return shard.Member(name="gateway", run=run, policy=policy_of, is_awaited=True)

    def _credential_changed(self, tenant: str, name: str) -> None:
        """Who gave up over a credential that has changed tries again at once."""
        for settings in self.config.connectors[tenant]:
            if getattr(settings, "credential", None) == name:
                member = f"{settings.service}/{settings.instance}"
                self.supervisor.resume(f"{tenant}:{member}" if self.config.is_region else member)

    # -- telling ----------------------------------------------------------------------------------------------

    def _report(self, status: MemberStatus, fault: BaseException | None) -> None:
        tenant = status.name.partition(":")[0] if self.config.is_region else self.config.name
        if status.state in ("backing_off", "stopped"):
            log.warning("member", name=status.name, state=status.state, detail=status.detail)
            if fault is not None and not isinstance(fault, MemberError):
                log.error("fault", name=status.name, traceback=telemetry.traceback_of(fault))
        else:
            log.info("member", name=status.name, state=status.state)
        control = self.controls.get(tenant)
        if control is not None:
            control.member_changed(status)

    def _describe(self, tenant: str) -> Mapping[str, Any]:
        statuses = {status.name: status for status in self.supervisor.statuses()}
        connectors = []
        for settings in self.config.connectors[tenant]:
            name = f"{settings.service}/{settings.instance}"
            status = statuses.get(f"{tenant}:{name}" if self.config.is_region else name)
            state = "starting" if status is None else status.state
            detail = "" if status is None else status.detail
            if settings.runs == "outside":
                state = "outside"
            elif state in ("starting", "running") and (tenant, name) in self._told:
                own, detail = self._told[tenant, name]  # the connector knows more of it than its supervisor
                state = own.value
            connectors.append({"name": name, "runs": settings.runs, "state": state, "detail": detail})
        return {"connectors": connectors, "gateway_port": self.gateway_port}

    def _outsider(self, tenant: str, service: str, instance: str) -> Member | None:
        for member in self.config.members(tenant):
            if member.runs == "outside" and (member.service, member.instance) == (service, instance):
                return member
        return None


async def _serve_gateway(
    env: Env,
    clients: Mapping[str, Client],
    address: str,
    port: int,
    tls: ssl.SSLContext | None,
    *,
    task_status: trio.TaskStatus[int],
) -> None:
    await run_gateway(env, clients, host=address, port=port, tls=tls, task_status=task_status)


def connector_of(
    env: Env,
    config: Config,
    tenant: str,
    settings: ConnectorSettings,
    *,
    told: Callable[[ConnectorState, str], None] = lambda state, detail: None,
) -> Serve:
    """What a connector does with its client.  Its library is imported at the first attempt and not before; the
    connector itself outlives its attempts, since a platform's session may be resumed."""
    made: list[Connector] = []

    async def serve(client: Client, task_status: trio.TaskStatus[None]) -> None:
        if not made:
            room = import_module(f"bridged.connectors.{settings.service}.connector")
            channels = [
                link.ref.build()
                for conversation in config.conversations_of(tenant)
                for link in conversation.links
                if (link.service, link.instance) == (settings.service, settings.instance)
            ]
            made.append(room.make_connector(settings, channels))
        await attend(env, made[0], settings, client, told=told, task_status=task_status)

    return serve


@asynccontextmanager
async def open_shard(env: Env, config: Config) -> AsyncIterator[Running]:
    """A whole shard, serving when entered.

    Raises:
        LogError: The state directory is another daemon's, or its files cannot be used.
        StorageFailed: In a group, when a commit fails later.
    """
    config.state.mkdir(mode=0o700, parents=True, exist_ok=True)
    config.runtime.mkdir(mode=0o750, parents=True, exist_ok=True)
    for tenant in config.tenants:
        config.paths(tenant).keys.mkdir(mode=0o700, parents=True, exist_ok=True)
    with lock_state(config.state):
        async with (
            open_broker(
                env,
                state=config.state,
                endpoint=str(config.endpoint),
                shard=config.name,
                tcp=config.tcp,
                prepare=lambda broker: Daemon(env, config, broker).enroll_operators(),
            ) as broker,
            trio.open_nursery() as nursery,
        ):
            running = await nursery.start(Daemon(env, config, broker).run)
            try:
                yield running
            finally:
                nursery.cancel_scope.cancel()


async def run_shard(env: Env, config: Config) -> None:
    """Serve until SIGTERM or SIGINT; reload the operators on SIGHUP."""
    signals = trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    with signals as received, trio.CancelScope() as scope:
        async with open_shard(env, config) as running, trio.open_nursery() as nursery:
            nursery.start_soon(_stop_when_told, received, running, env, scope)
            nursery.start_soon(_feed_watchdog, running.broker)
            if config.telemetry is not None:
                nursery.start_soon(_serve_telemetry, env, config, running)
            log.info("serving", shard=config.name, endpoint=str(config.endpoint))
            host.notify("READY=1")
            await trio.sleep_forever()
    signal.alarm(0)
    log.info("stopped", shard=config.name)


async def _stop_when_told(
    signals: AsyncIterator[int], running: Running, env: Env, scope: trio.CancelScope
) -> None:
    async for number in signals:
        if number == signal.SIGHUP:
            host.notify("RELOADING=1")
            fresh = Daemon(env, running.config, running.broker)
            await fresh.enroll_operators()
            log.info("reloaded", shard=running.config.name)
            host.notify("READY=1")
            continue
        host.notify("STOPPING=1")
        # Who has not stopped by then is ended as by a power cut, which loses nothing either.
        signal.alarm(math.ceil(running.config.shard.stop_seconds))
        log.info("stopping", shard=running.config.name)
        scope.cancel()
        return


async def _feed_watchdog(broker: Broker) -> None:
    """Say WATCHDOG=1 only after a real commit: a stuck disk silences it as a stuck loop does."""
    interval_s = host.watchdog_interval_s()
    if interval_s is None:
        return
    while True:
        await broker.touch()
        host.notify("WATCHDOG=1")
        await trio.sleep(interval_s)


async def _serve_telemetry(env: Env, config: Config, running: Running) -> None:
    """/metrics for Prometheus, /health for a supervisor, /ready for a load balancer."""
    assert config.telemetry is not None
    address, port = split_address(config.telemetry.listen)
    metrics = telemetry.Metrics()
    broker, supervisor = running.broker, running.supervisor
    metrics.add_source(lambda: telemetry.broker_samples(broker.statistics()))
    for tenant in config.tenants:
        metrics.add_source(lambda tenant=tenant: telemetry.group_samples(tenant, broker.groups(tenant)))  # type: ignore[misc]
    metrics.add_source(
        lambda: telemetry.member_samples(
            (status.name, status.state == "running", status.crashes) for status in supervisor.statuses()
        )
    )

    def ready() -> http.Response:
        down = [status.name for status in supervisor.statuses() if status.state != "running"]
        return http.Response(status=503 if down else 200, body=f"{' '.join(down) or 'ready'}\n".encode())

    routes: dict[str, http.Route] = {
        "/metrics": lambda: http.Response(body=metrics.render(), content_type=telemetry.CONTENT_TYPE),
        "/health": lambda: http.Response(body=b"ok\n"),
        "/ready": ready,
    }
    async with trio.open_nursery() as nursery:
        nursery.start_soon(telemetry.probe_loop, metrics)
        try:
            await http.serve(env, address, port, routes)
        except OSError as exc:
            raise ConfigError(
                [("$.telemetry.listen", f"{config.telemetry.listen}: {exc.strerror or exc}")],
                hint="another address, or end what listens there",
            ) from exc


async def run_connector(env: Env, config: Config, name: str, key: Path) -> None:
    """One connector in a process of its own: a fabric client like any other."""
    loaded = load_key(key)
    tenant = loaded.identity.tenant
    settings = config.connector(name, tenant)
    if settings is None:
        raise ConfigError([("$.connector", f"there is no {name} in {config.path}")])
    serve = connector_of(env, config, tenant, settings)

    async def run(*, task_status: trio.TaskStatus[None]) -> None:
        try:
            async with open_client(
                env,
                str(config.endpoint),
                loaded.identity,
                server_public=loaded.server_public,
                shard=config.name,
            ) as client:
                await serve(client, task_status)
        except* (RequestFailed, Unreachable) as group:
            raise MemberError(f"the house did not answer: {_first(group)}") from group

    def report(status: MemberStatus, fault: BaseException | None) -> None:
        log.info("member", name=status.name, state=status.state, detail=status.detail)

    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(
                Supervisor(env, report).run, [shard.Member(name=name, run=run, policy=policy_of)]
            )
            async for _ in signals:
                nursery.cancel_scope.cancel()


def _server_tls(cert: Path, key: Path) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        context.load_cert_chain(cert, key)
    except OSError as exc:
        raise ConfigError([("$.gateway.tls", f"cannot be loaded: {exc.strerror or exc}")]) from exc
    return context


def _first(exc: BaseException) -> BaseException:
    while isinstance(exc, BaseExceptionGroup):
        exc = exc.exceptions[0]
    return exc
