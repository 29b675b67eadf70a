"""The `[[connector]]` table of `service = "xmpp"`.  Pure; imports nothing heavy."""

from __future__ import annotations

import re
from typing import Literal

import attrs

from bridged.connectors.xmpp.jid import JidError, parse_jid

# Ours.
PORT_STARTTLS = 5222
PORT_DIRECT_TLS = 5223

_INSTANCE = re.compile(r"[A-Za-z0-9._-]{1,64}")
_SERVER = re.compile(r"(?:\[([0-9A-Fa-f:.%]+)\]|([^\s:/\[\]]+))(?::([0-9]{1,5}))?")


def _instance(_: object, attribute: attrs.Attribute[str], value: str) -> None:
    if not _INSTANCE.fullmatch(value) or value == "reply":
        raise ValueError(f"{attribute.name} is 1 to 64 of A-Z a-z 0-9 . _ - (and not the word reply)")


def _account(_: object, attribute: attrs.Attribute[str], value: str) -> None:
    try:
        jid = parse_jid(value)
    except JidError as exc:
        raise ValueError(f"{attribute.name} must be an account, such as bridge@example.org: {exc}") from exc
    if not jid.local or jid.resource:
        raise ValueError(
            f"{attribute.name} must be an account, such as bridge@example.org, without a /resource"
        )


def _tls(_: object, attribute: attrs.Attribute[bool], value: bool | TlsFiles) -> None:
    if value is False:
        raise ValueError(f"{attribute.name} is true or {{ ca = PATH }}: there is no login without TLS")


def _server(_: object, attribute: attrs.Attribute[str | None], value: str | None) -> None:
    if value is not None:
        split_server(value, direct_tls=False)


def _resource(_: object, attribute: attrs.Attribute[str], value: str | None) -> None:
    if value is None:
        return
    try:
        parse_jid("a").with_resource(value)
    except JidError as exc:
        raise ValueError(f"{attribute.name}: {exc}") from exc


@attrs.frozen(kw_only=True)
class TlsFiles:
    """`tls = { ca = "PATH" }`: trust this authority alone."""

    ca: str


@attrs.frozen(kw_only=True)
class Settings:
    """One account on one XMPP server."""

    service: Literal["xmpp"] = "xmpp"
    instance: str = attrs.field(validator=_instance)
    runs: Literal["inside", "outside"] = "inside"
    tenant: str | None = None
    jid: str = attrs.field(validator=_account)
    """The account, a bare JID."""
    server: str | None = attrs.field(default=None, validator=_server)
    """`HOST:PORT`, `[IPV6]:PORT` or `HOST`; absent: what DNS says of the JID's domain, whose the certificate
    must be in any case."""
    tls: bool | TlsFiles = attrs.field(default=True, validator=_tls)
    """True: the system's authorities.  False is refused."""
    direct_tls: bool = False
    """TLS from the first byte (XEP-0368), not STARTTLS."""
    credential: str
    """Name in the vault: `password`."""
    nick: str = attrs.field(validator=_resource)
    """In rooms; while somebody else has it, with an underscore more."""
    resource: str | None = attrs.field(default=None, validator=_resource)
    """Absent: `bridged.INSTANCE`.  It stays the same over restarts, so that the server ends a dead
    predecessor's session when the successor comes."""
    typing: bool = False
    """Tell the house who is typing in the room."""
    ping_s: float = attrs.field(default=30.0, validator=[attrs.validators.ge(0.1), attrs.validators.le(600)])
    """Ask for a sign of life after so long a silence; none in as long again ends the connection."""
    confirm_s: float = attrs.field(
        default=20.0, validator=[attrs.validators.ge(0.1), attrs.validators.le(600)]
    )
    """What a room neither confirms nor refuses for so long is looked up before it is written again."""

    @property
    def address(self) -> tuple[str, int] | None:
        """Host and port to connect to, or None where DNS decides."""
        return None if self.server is None else split_server(self.server, direct_tls=self.direct_tls)

    @property
    def full_jid(self) -> str:
        """The account with the resource that is asked for."""
        return f"{parse_jid(self.jid)}/{self.resource or f'bridged.{self.instance}'}"


def split_server(server: str, *, direct_tls: bool) -> tuple[str, int]:
    """`HOST:PORT`, `[IPV6]:PORT` or `HOST` -> host and port.

    Raises:
        ValueError: It is none of these, or the port is not 1 to 65 535.
    """
    match = _SERVER.fullmatch(server)
    if match is None:
        raise ValueError("server is HOST:PORT, for example xmpp.example.org:5222")
    port = int(match[3]) if match[3] else PORT_DIRECT_TLS if direct_tls else PORT_STARTTLS
    if not 0 < port < 65536:
        raise ValueError("server has a port outside 1 to 65535")
    return match[1] or match[2], port
