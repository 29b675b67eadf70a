"""AUTHENTICATE: PLAIN, EXTERNAL, and SCRAM-SHA-256, which no real server here has (ours, after IRCv3)."""

from __future__ import annotations

import base64
import binascii
from typing import TYPE_CHECKING

import attrs

from bridged.peers.irc.line import Line
from bridged.peers.irc.state import User
from bridged.peers.scram import ScramError, ScramServer

if TYPE_CHECKING:
    from bridged.peers.irc.network import Network

CHUNK_BYTES = 400


@attrs.define
class Exchange:
    """One SASL exchange in progress."""

    mechanism: str
    buffer: str = ""
    scram: ScramServer | None = None
    step: int = 0


def authenticate(net: Network, user: User, line: Line) -> None:
    """Take one AUTHENTICATE line."""
    if not user.has("sasl") or not net.services:
        return  # seen: silence, both without CAP REQ and when services are gone
    word = line.get(0)
    exchange = user.sasl
    if exchange is None:
        _start(net, user, word)
    elif word == "*":
        abort(net, user)
    elif len(word) > CHUNK_BYTES:
        net.numeric(user, "905")
    else:
        exchange.buffer += "" if word == "+" else word
        if len(word) < CHUNK_BYTES:
            _answer(net, user, exchange)


def abort(net: Network, user: User) -> None:
    """End a running exchange with 906."""
    user.sasl = None
    net.numeric(user, "906")


def _start(net: Network, user: User, mechanism: str) -> None:
    if user.account is not None and not user.registered:
        net.numeric(user, "904")  # seen, where the specification has 907; the login stays
    elif mechanism not in net.options.mechanisms:
        net.numeric(user, "908", ",".join(net.options.mechanisms), text=net.dialect.texts["908"])
        net.numeric(user, "904")
    else:
        user.sasl = Exchange(mechanism)
        net.send(user, None, "AUTHENTICATE", "+")


def _answer(net: Network, user: User, exchange: Exchange) -> None:
    """The client's message is complete: go on, succeed or fail."""
    try:
        data = base64.b64decode(exchange.buffer, validate=True)
    except (binascii.Error, ValueError):
        _fail(net, user)
        return
    exchange.buffer = ""
    if exchange.mechanism == "PLAIN":
        parts = data.split(b"\0")
        name = parts[1].decode("utf-8", "replace") if len(parts) == 3 else ""
        account = net.accounts.get(name)
        if account is not None and account.password.encode() == parts[2] and parts[0] in (b"", parts[1]):
            log_in(net, user, name)
        else:
            _fail(net, user)
    elif exchange.mechanism == "EXTERNAL":
        for account in net.accounts.values():
            if user.fingerprint in account.fingerprints and data.decode("utf-8", "replace") in (
                "",
                account.name,
            ):
                log_in(net, user, account.name)
                return
        _fail(net, user)
    else:
        _scram(net, user, exchange, data)


def _scram(net: Network, user: User, exchange: Exchange, data: bytes) -> None:
    def password_of(name: str) -> str | None:
        account = net.accounts.get(name)
        return account.password if account is not None else None

    try:
        if exchange.scram is None:
            token = net.env.token_bytes
            hash_name = "sha1" if exchange.mechanism == "SCRAM-SHA-1" else "sha256"
            exchange.scram = ScramServer(hash_name, password_of, token(18).hex(), token(16))
            reply = exchange.scram.first(data)
        elif exchange.step == 1:
            reply = exchange.scram.final(data)
        else:  # the client acknowledges our signature with an empty message
            log_in(net, user, exchange.scram.username)
            return
    except ScramError:
        _fail(net, user)
        return
    exchange.step += 1
    net.send(user, None, "AUTHENTICATE", base64.b64encode(reply).decode())


def _fail(net: Network, user: User) -> None:
    user.sasl = None
    net.numeric(user, "904")


def log_in(net: Network, user: User, account: str, *, sasl: bool = True) -> None:
    """Give the user an account and tell those who asked to know."""
    user.sasl = None
    user.account = account
    user.services_know = not sasl or not user.registered
    net.numeric(user, "900", user.mask, account, account=account)
    _tell(net, user, account)
    if sasl:
        net.numeric(user, "903")


def log_out(net: Network, user: User) -> None:
    """Take the account away."""
    user.account = None
    net.numeric(user, "901", user.mask)
    _tell(net, user, "*")


def _tell(net: Network, user: User, account: str) -> None:
    for other in [user, *user.server.world.neighbours(user)]:
        if other.has("account-notify"):
            net.send(other, user, "ACCOUNT", account)
