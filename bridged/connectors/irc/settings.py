"""The `[[connector]]` table of `service = "irc"`.  Pure; `bridged.config` imports it alone."""

from __future__ import annotations

import codecs
import re
from typing import Literal

import attrs

# Ours.
PORT_TLS = 6697
PORT_PLAIN = 6667

_INSTANCE = re.compile(r"[A-Za-z0-9._-]{1,64}")
# No more than a server's own rules would let pass anyway; NICKLEN is learnt at the connection.
_NICK = re.compile(r"[A-Za-z\[\]\\`_^{|}][A-Za-z0-9\[\]\\`_^{|}-]{0,63}")
_IDENT = re.compile(r"[A-Za-z0-9._-]{1,32}")


def _instance(_: object, attribute: attrs.Attribute[str], value: str) -> None:
    if not _INSTANCE.fullmatch(value) or value == "reply":
        raise ValueError(f"{attribute.name} is 1 to 64 of A-Z a-z 0-9 . _ - (and not the word reply)")


def _nick(_: object, attribute: attrs.Attribute[str], value: str) -> None:
    if not _NICK.fullmatch(value):
        raise ValueError(
            f"{attribute.name} must be an IRC nickname: letters, digits and []\\`_^{{|}}-, no digit first"
        )


def _nicks(_: object, attribute: attrs.Attribute[tuple[str, ...]], value: tuple[str, ...]) -> None:
    for nick in value:
        if not _NICK.fullmatch(nick):
            raise ValueError(f"{attribute.name} holds {nick!r}, which is no IRC nickname")


def _ident(_: object, attribute: attrs.Attribute[str], value: str) -> None:
    if not _IDENT.fullmatch(value):
        raise ValueError(f"{attribute.name} is 1 to 32 of A-Z a-z 0-9 . _ -")


def _plain_line(_: object, attribute: attrs.Attribute[str], value: str) -> None:
    if not value or len(value.encode()) > 200 or any(c < " " for c in value):
        raise ValueError(f"{attribute.name} is one line of 1 to 200 bytes without control characters")


def _server(_: object, attribute: attrs.Attribute[str], value: str) -> None:
    split_server(value, tls=True)


def _network(_: object, attribute: attrs.Attribute[str], value: str) -> None:
    if not value or len(value) > 255 or any(c <= " " or c == "/" for c in value):
        raise ValueError(
            f"{attribute.name} is the network's name in msgr:// references: no blanks and no '/'"
        )


def _encoding(_: object, attribute: attrs.Attribute[str], value: str) -> None:
    try:
        codecs.lookup(value)
        fits = codecs.decode(b"a\xe9", value).startswith("a")
    except (LookupError, UnicodeError, TypeError, AttributeError):
        fits = False
    if not fits:
        raise ValueError(f"{attribute.name} must name a one-byte text encoding, such as cp1252 or koi8-r")


@attrs.frozen(kw_only=True)
class TlsFiles:
    """`tls = { ca = "PATH" }`: trust this authority alone; `cert` and `key` show a client certificate."""

    ca: str | None = None
    cert: str | None = None
    key: str | None = None


@attrs.frozen(kw_only=True)
class Settings:
    """One connection to one IRC network."""

    service: Literal["irc"] = "irc"
    instance: str = attrs.field(validator=_instance)
    runs: Literal["inside", "outside"] = "inside"
    tenant: str | None = None
    network: str = attrs.field(validator=_network)
    """The network's name in msgr:// references."""
    server: str = attrs.field(validator=_server)
    """`HOST:PORT`, `[IPV6]:PORT`, or `HOST` alone: then 6697, without TLS 6667."""
    tls: bool | TlsFiles = True
    nick: str = attrs.field(validator=_nick)
    alt_nicks: tuple[str, ...] = attrs.field(default=(), validator=_nicks)
    """Tried in turn while `nick` is taken; after them `nick` with a number."""
    ident: str = attrs.field(default="bridge", validator=_ident)
    realname: str = attrs.field(default="Msgr bridge", validator=_plain_line)
    credential: str | None = None
    """Name in the vault: username and password for SASL, or `server_password`.  Absent: no login."""
    login: Literal["sasl", "external", "nickserv", "server_password"] = "sasl"
    """How the credential is used; `external` is SASL with the client certificate of `tls`."""
    encoding: str | None = attrs.field(default=None, validator=attrs.validators.optional(_encoding))
    """Read lines that are not UTF-8 in this encoding; absent: broken bytes show as U+FFFD."""
    ping_s: float = attrs.field(default=30.0, validator=[attrs.validators.ge(1), attrs.validators.le(600)])
    """Ask for a sign of life after so long a silence; as long again without one ends the connection."""
    netsplit_s: float = attrs.field(
        default=60.0, validator=[attrs.validators.ge(0), attrs.validators.le(3600)]
    )
    """Who was split off and returns within this time never left."""

    @property
    def address(self) -> tuple[str, int]:
        """Host and port to connect to."""
        return split_server(self.server, tls=self.tls is not False)


def split_server(server: str, *, tls: bool) -> tuple[str, int]:
    """`HOST:PORT`, `[IPV6]:PORT` or `HOST` -> host and port.

    Raises:
        ValueError: It is none of these, or the port is not 1 to 65 535.
    """
    match = re.fullmatch(r"(?:\[([0-9A-Fa-f:.%]+)\]|([^\s:/\[\]]+))(?::([0-9]{1,5}))?", server)
    if match is None:
        raise ValueError("server is HOST:PORT, for example irc.libera.chat:6697")
    port = int(match[3]) if match[3] else PORT_TLS if tls else PORT_PLAIN
    if not 0 < port < 65536:
        raise ValueError("server has a port outside 1 to 65535")
    return match[1] or match[2], port
