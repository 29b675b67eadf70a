"""One TOML file a shard, read, checked and made into values: all faults at once, each by its path.

`load_config` composes what the tables (`tables`), the connectors' own settings and the checks between them say; a
`Config` that exists can be used.  Who is enrolled with which grants, and where files lie, is computed here as data.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import attrs

from bridged.config import checks
from bridged.config.members import Member, connector_member, members_of
from bridged.config.structure import Fault, structure, structure_connector, unknown_key
from bridged.config.tables import (
    ConnectorSettings,
    Conversation,
    ConversationTable,
    Fabric,
    Gateway,
    Link,
    Pkcs11,
    Policy,
    Shard,
    Telemetry,
    TlsFiles,
    Vault,
    is_loopback,
    split_address,
)
from bridged.errors import ConfigError

__all__ = [
    "Config",
    "ConnectorSettings",
    "Conversation",
    "Fabric",
    "Gateway",
    "Link",
    "Member",
    "Pkcs11",
    "Policy",
    "Shard",
    "Telemetry",
    "TenantPaths",
    "TlsFiles",
    "Vault",
    "connector_member",
    "is_loopback",
    "load_config",
    "parse_config",
    "split_address",
]

# Ours.
SOCKET_NAME = "fabric.sock"
TABLES: Mapping[str, type] = {
    "shard": Shard,
    "fabric": Fabric,
    "gateway": Gateway,
    "telemetry": Telemetry,
    "vault": Vault,
    "policy": Policy,
}
LISTS = ("connector", "conversation")

T = TypeVar("T")


@attrs.frozen(kw_only=True)
class TenantPaths:
    """Where one tenant's files lie.  Each file has one owner (the room in its name)."""

    state: Path
    core: Path
    vault: Path
    audit: Path
    blobs: Path
    keys: Path
    """Private keys of the members that run inside."""

    def outbox(self, service: str, instance: str) -> Path:
        """Of a connector that runs outside."""
        return self.state / f"outbox-{service}-{instance}.db"


@attrs.frozen(kw_only=True)
class Config:
    """A shard's configuration, complete and consistent.  All paths are absolute."""

    path: Path
    shard: Shard
    fabric: Fabric
    gateway: Gateway | None
    telemetry: Telemetry | None
    vault: Vault
    policy: Policy
    connectors: Mapping[str, tuple[ConnectorSettings, ...]]
    """Tenant -> the settings of its connectors."""
    conversations: tuple[Conversation, ...]

    @property
    def name(self) -> str:
        return self.shard.name

    @property
    def is_region(self) -> bool:
        """Several tenants may live here; their files then lie in directories of their own."""
        return self.shard.tenants is not None

    @property
    def tenants(self) -> tuple[str, ...]:
        return self.shard.tenants or (self.shard.name,)

    @property
    def state(self) -> Path:
        """The shard's own directory: log.db, broker.key, lock."""
        return self.shard.state

    @property
    def runtime(self) -> Path:
        return self.shard.runtime or self.shard.state / "run"

    @property
    def endpoint(self) -> Path:
        """The fabric's socket."""
        return self.runtime / SOCKET_NAME

    @property
    def tcp(self) -> tuple[str, ...]:
        """The fabric's endpoints beside it, `tcp://HOST:PORT`."""
        return tuple(endpoint for endpoint in self.fabric.listen if endpoint != "ipc")

    def paths(self, tenant: str) -> TenantPaths:
        """Where the tenant's files lie: in `state` itself, in a region in `state/TENANT`."""
        state = self.state / tenant if self.is_region else self.state
        return TenantPaths(
            state=state,
            core=state / "core.db",
            vault=state / "vault.db",
            audit=state / "audit.db",
            blobs=state / "blobs",
            keys=state / "keys",
        )

    def members(self, tenant: str) -> list[Member]:
        """Who is enrolled for the tenant, in the order in which they start."""
        return members_of(tenant, self.connectors[tenant], has_gateway=self.gateway is not None)

    def connector(self, name: str, tenant: str | None = None) -> ConnectorSettings | None:
        """The settings of `SERVICE/INSTANCE`; without a tenant only where one tenant alone has it."""
        found = [
            settings
            for owner, all_of_them in self.connectors.items()
            for settings in all_of_them
            if f"{settings.service}/{settings.instance}" == name and tenant in (None, owner)
        ]
        return found[0] if len(found) == 1 else None

    def conversations_of(self, tenant: str) -> list[Conversation]:
        return [conversation for conversation in self.conversations if conversation.tenant == tenant]

    def files(self) -> list[tuple[str, Path]]:
        """Every file that the configuration names, with the path of the key: for `check`."""
        named: list[tuple[str, Path]] = []
        if self.gateway is not None and self.gateway.tls is not None:
            named += [
                ("$.gateway.tls.cert", self.gateway.tls.cert),
                ("$.gateway.tls.key", self.gateway.tls.key),
            ]
        for all_of_them in self.connectors.values():
            for settings in all_of_them:
                tls = getattr(settings, "tls", None)
                for key in _file_keys(tls):
                    where = f"{settings.service}/{settings.instance}: tls.{key}"
                    named.append((where, Path(getattr(tls, key))))
        return named


def load_config(path: Path) -> Config:
    """Read and check a shard's file.

    Raises:
        ConfigError: `.faults` are all that is wrong, as (path, what); no value is quoted.
    """
    try:
        data = path.read_bytes()
    except OSError as exc:
        raise ConfigError(
            [("$", f"{path} cannot be read: {exc.strerror}")],
            hint="`bridgectl init DIR` makes a shard with its configuration",
        ) from exc
    return parse_config(data, path.absolute())


def parse_config(data: bytes, path: Path) -> Config:
    """The same for bytes that were read; relative paths in them are beside `path`.  Raises ConfigError."""
    try:
        document = tomllib.loads(data.decode())
    except UnicodeDecodeError as exc:
        raise ConfigError([("$", "is not UTF-8")]) from exc
    except (tomllib.TOMLDecodeError, RecursionError) as exc:
        # Only the place of the fault: the text around it may be anything.
        raise ConfigError([("$", f"is no TOML: {exc}")], hint="https://toml.io/en/v1.0.0") from exc
    return _Reader(document, path).read()


class _Reader:
    """One pass over a document, gathering faults."""

    def __init__(self, document: Mapping[str, Any], path: Path) -> None:
        self._document = document
        self._path = path
        self._faults: list[Fault] = []

    def read(self) -> Config:
        document, faults = self._document, self._faults
        known = [*TABLES, *LISTS]
        faults += [(f"$.{key}", unknown_key(key, known)) for key in document if key not in known]
        faults += checks.hidden_secrets(document, "$")
        shard = self._table("shard", Shard, None)
        fabric = self._table("fabric", Fabric, {})
        gateway = self._table("gateway", Gateway, None) if "gateway" in document else None
        telemetry = self._table("telemetry", Telemetry, None) if "telemetry" in document else None
        vault = self._table("vault", Vault, {})
        policy = self._table("policy", Policy, {})
        connectors = [
            (f"$.connector[{number}]", structure_connector(table, f"$.connector[{number}]"))
            for number, table in enumerate(self._list("connector"))
        ]
        conversations = [
            (f"$.conversation[{number}]", structure(table, ConversationTable, f"$.conversation[{number}]"))
            for number, table in enumerate(self._list("conversation"))
        ]
        for _, (_, wrong) in connectors:
            faults += wrong
        for _, (_, wrong) in conversations:
            faults += wrong
        if shard is not None:
            shard = self._absolute(shard)
            faults += checks.endpoint_faults((shard.runtime or shard.state / "run") / SOCKET_NAME)
        faults += checks.release_faults(
            fabric or Fabric(), gateway, telemetry, vault or Vault(), policy or Policy()
        )
        faults += checks.listen_faults(fabric or Fabric(), gateway, telemetry)
        if shard is None or fabric is None or vault is None or policy is None:
            raise ConfigError(_sorted(faults))
        by_tenant = self._by_tenant(
            shard, [(path, made) for path, (made, _) in connectors if made is not None]
        )
        resolved = self._resolved(
            shard, [(path, made) for path, (made, _) in conversations if made is not None], by_tenant
        )
        if faults:
            raise ConfigError(_sorted(faults))
        return Config(
            path=self._path,
            shard=shard,
            fabric=fabric,
            gateway=self._absolute_gateway(gateway),
            telemetry=telemetry,
            vault=vault,
            policy=policy,
            connectors={
                tenant: tuple(self._absolute_tls(settings) for _, settings in placed)
                for tenant, placed in by_tenant.items()
            },
            conversations=tuple(resolved),
        )

    def _table(self, key: str, kind: type[T], default: object) -> T | None:
        value = self._document.get(key, default)
        if value is None:
            self._faults.append((f"$.{key}", f"the table [{key}] is required"))
            return None
        made, wrong = structure(value, kind, f"$.{key}")
        self._faults += wrong
        return made

    def _list(self, key: str) -> Sequence[object]:
        value = self._document.get(key, [])
        if isinstance(value, list):
            return value
        self._faults.append((f"$.{key}", f"must be a list of tables: write [[{key}]]"))
        return ()

    def _by_tenant(self, shard: Shard, placed: Sequence[checks.Placed]) -> dict[str, list[checks.Placed]]:
        tenants = shard.tenants or (shard.name,)
        by_tenant: dict[str, list[checks.Placed]] = {tenant: [] for tenant in tenants}
        for path, settings in placed:
            tenant, wrong = checks.tenant_of(settings.tenant, tenants, shard.tenants is not None, path)
            self._faults += wrong
            if tenant is not None:
                by_tenant[tenant].append((path, settings))
        self._faults += checks.connector_faults(by_tenant)
        return by_tenant

    def _resolved(
        self,
        shard: Shard,
        placed: Sequence[tuple[str, ConversationTable]],
        connectors: Mapping[str, Sequence[checks.Placed]],
    ) -> list[Conversation]:
        tenants = shard.tenants or (shard.name,)
        found: list[tuple[str, Conversation]] = []
        for path, table in placed:
            tenant, wrong = checks.tenant_of(table.tenant, tenants, shard.tenants is not None, path)
            self._faults += wrong
            if tenant is not None:
                conversation, wrong = checks.resolve(table, tenant, connectors[tenant], path)
                self._faults += wrong
                found.append((path, conversation))
        self._faults += checks.conversation_faults(found)
        return [conversation for _, conversation in found]

    def _absolute(self, shard: Shard) -> Shard:
        runtime = None if shard.runtime is None else self._beside(shard.runtime)
        return attrs.evolve(shard, state=self._beside(shard.state), runtime=runtime)

    def _absolute_gateway(self, gateway: Gateway | None) -> Gateway | None:
        if gateway is None or gateway.tls is None:
            return gateway
        tls = TlsFiles(cert=self._beside(gateway.tls.cert), key=self._beside(gateway.tls.key))
        return attrs.evolve(gateway, tls=tls)

    def _absolute_tls(self, settings: ConnectorSettings) -> ConnectorSettings:
        tls: Any = getattr(settings, "tls", None)
        changes = {key: str(self._beside(Path(getattr(tls, key)))) for key in _file_keys(tls)}
        if not changes:
            return settings
        evolved: ConnectorSettings = attrs.evolve(settings, tls=attrs.evolve(tls, **changes))  # type: ignore[misc]
        return evolved

    def _beside(self, path: Path) -> Path:
        return self._path.parent / path


def _file_keys(tls: object) -> list[str]:
    return [key for key in ("ca", "cert", "key") if getattr(tls, key, None) is not None]


def _sorted(faults: Sequence[Fault]) -> list[Fault]:
    return sorted(dict.fromkeys(faults))
