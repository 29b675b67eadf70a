"""The configuration's tables as values, each attribute a key of the file.  Pure.

What a table may hold is checked here, value by value; what must hold between tables is in `checks`.  A connector's
table is its own business: `bridged.connectors.<service>.settings`.
"""

from __future__ import annotations

import ipaddress
import re
from pathlib import Path
from typing import Literal, Protocol, runtime_checkable

import attrs

from bridged.refs import ChannelRef

# Ours.
STOP_SECONDS = 20.0
"""Below the unit's TimeoutStopSec, so that a drain ends before systemd's patience does."""
RESERVED_TENANTS = frozenset({"run", "keys", "blobs", "msgr", "bridges"})
"""Directories under `state`, and words of msgr:// references."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,62}")
_CONVERSATION = re.compile(r"\w[\w.-]{0,63}")
_ADDRESS = re.compile(r"(?:\[([0-9A-Fa-f:.%]+)\]|([^\s:/\[\]]+)):([0-9]{1,5})")
_PIN = re.compile(r"(?:credential|file):.+")
_WEB = re.compile(r"https?://[^\s/?#@]+(?:/[^\s?#]*)?")


def _is_name(_: object, attribute: attrs.Attribute[str], value: str) -> None:
    if not _NAME.fullmatch(value):
        raise ValueError(f"{attribute.name} is 1 to 63 of A-Z a-z 0-9 _ - and begins with a letter or digit")
    if value in RESERVED_TENANTS:
        raise ValueError(f"{value} is a reserved word")


def _are_names(_: object, attribute: attrs.Attribute[tuple[str, ...]], value: tuple[str, ...]) -> None:
    if not value:
        raise ValueError("a region names at least one tenant; without the key the shard is its own tenant")
    for name in value:
        _is_name(None, attribute, name)  # type: ignore[arg-type]  # only the attribute's name is read
    if len(set(value)) != len(value):
        raise ValueError("a tenant stands here twice")


def _is_conversation(_: object, attribute: attrs.Attribute[str], value: str) -> None:
    if not _CONVERSATION.fullmatch(value):
        raise ValueError(f"{attribute.name} is 1 to 64 letters, digits, . _ - and begins with none of . -")


def _is_address(_: object, attribute: attrs.Attribute[str], value: str) -> None:
    split_address(value)


def _is_pin(_: object, attribute: attrs.Attribute[str], value: str) -> None:
    if not _PIN.fullmatch(value):
        raise ValueError("pin is never a value here: credential:NAME or file:PATH says where it lies")


def _is_web(_: object, attribute: attrs.Attribute[str], value: str) -> None:
    if not _WEB.fullmatch(value):
        raise ValueError(f"{attribute.name} is an http:// or https:// address without query and password")


def _are_endpoints(_: object, attribute: attrs.Attribute[tuple[str, ...]], value: tuple[str, ...]) -> None:
    for endpoint in value:
        if endpoint == "ipc":
            continue
        if not endpoint.startswith("tcp://"):
            raise ValueError(f"{attribute.name} holds ipc and tcp://HOST:PORT, nothing else")
        split_address(endpoint.removeprefix("tcp://"))
    if "ipc" not in value:
        raise ValueError(f"{attribute.name} must hold ipc: the shard's own members come that way")
    if len(set(value)) != len(value):
        raise ValueError("an endpoint stands here twice")


def split_address(address: str) -> tuple[str, int]:
    """`HOST:PORT` or `[IPV6]:PORT` -> host and port; port 0 lets the system choose.

    Raises:
        ValueError: It is neither.
    """
    match = _ADDRESS.fullmatch(address)
    if match is None or int(match[3]) > 65535:
        raise ValueError("an address is HOST:PORT or [IPV6]:PORT, for example 127.0.0.1:7471")
    return match[1] or match[2], int(match[3])


def is_loopback(host: str) -> bool:
    """Can nobody but this machine reach it?"""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


@attrs.frozen(kw_only=True)
class Shard:
    """`[shard]`"""

    name: str = attrs.field(validator=_is_name)
    """Also the tenant, unless `tenants` names them."""
    tenants: tuple[str, ...] | None = attrs.field(
        default=None, validator=attrs.validators.optional(_are_names)
    )
    """A region: several tenants in one shard; connectors and conversations then say whose they are."""
    state: Path
    """Log, message store, vault, keys; mode 0700."""
    runtime: Path | None = None
    """Sockets; absent: `run` under `state`."""
    stop_seconds: float = attrs.field(
        default=STOP_SECONDS, validator=[attrs.validators.ge(1), attrs.validators.le(3600)]
    )
    """After SIGTERM the shard drains for so long at most."""


@attrs.frozen(kw_only=True)
class Fabric:
    """`[fabric]`"""

    backend: Literal["shim", "kafka"] = "shim"
    bootstrap: str | None = None
    listen: tuple[str, ...] = attrs.field(default=("ipc",), validator=_are_endpoints)
    """`ipc` is fabric.sock under `runtime`; `tcp://HOST:PORT` beside it, Noise-encrypted like it."""


@attrs.frozen(kw_only=True)
class TlsFiles:
    """A certificate with its key, PEM."""

    cert: Path
    key: Path


@attrs.frozen(kw_only=True)
class Gateway:
    """`[gateway]`; absent: nobody listens for clients."""

    listen: str = attrs.field(validator=_is_address)
    tls: TlsFiles | None = None
    """Required beyond loopback."""
    share: str | None = attrs.field(default=None, validator=attrs.validators.optional(_is_address))
    public_url: str | None = attrs.field(default=None, validator=attrs.validators.optional(_is_web))


@attrs.frozen(kw_only=True)
class Telemetry:
    """`[telemetry]`; absent: no metrics are served."""

    listen: str = attrs.field(validator=_is_address)
    """/metrics, /health and /ready; loopback alone."""
    otlp: str | None = attrs.field(default=None, validator=attrs.validators.optional(_is_web))


@attrs.frozen(kw_only=True)
class Pkcs11:
    """`[vault.pkcs11]`"""

    module: Path
    label: str
    pin: str = attrs.field(validator=_is_pin)
    """`credential:NAME` or `file:PATH`."""


@attrs.frozen(kw_only=True)
class Vault:
    """`[vault]`"""

    token: Literal["soft", "pkcs11"] = "soft"
    pkcs11: Pkcs11 | None = None


@attrs.frozen(kw_only=True)
class Policy:
    """`[policy]`; absent: whom a platform admits to a channel of a conversation may speak in it, nothing else."""

    rules: Path | None = None
    dlp: Path | None = None


@attrs.frozen(kw_only=True)
class Via:
    """A channel with the connector that carries it, where a service has two."""

    ref: str
    via: str | None = None


@attrs.frozen(kw_only=True)
class ConversationTable:
    """`[[conversation]]`, as it is written."""

    name: str = attrs.field(validator=_is_conversation)
    tenant: str | None = None
    channels: tuple[str | Via, ...]


@attrs.frozen(kw_only=True)
class Link:
    """A channel and who carries it."""

    ref: ChannelRef
    service: str
    instance: str

    @property
    def via(self) -> str:
        """`SERVICE/INSTANCE`"""
        return f"{self.service}/{self.instance}"


@attrs.frozen(kw_only=True)
class Conversation:
    """What belongs together, with every question about it answered."""

    name: str
    tenant: str
    links: tuple[Link, ...]


@runtime_checkable
class ConnectorSettings(Protocol):
    """What the `Settings` of every connector have."""

    @property
    def service(self) -> str: ...
    @property
    def instance(self) -> str: ...
    @property
    def runs(self) -> Literal["inside", "outside"]: ...
    @property
    def tenant(self) -> str | None: ...
