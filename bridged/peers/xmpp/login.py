"""The login of one stream: SASL PLAIN and SCRAM, the server's side (RFC 6120 section 6).  No I/O."""

from __future__ import annotations

import base64
import binascii
from typing import TYPE_CHECKING

from bridged.peers.scram import ScramError, ScramServer
from bridged.peers.xmpp import ns
from bridged.peers.xmpp.state import Account
from bridged.peers.xmpp.xml import Element, el

if TYPE_CHECKING:
    from bridged.peers.xmpp.server import Server

PLAIN_REFUSED = "Unable to authorize you with the authentication credentials you've sent."
PROOF_REFUSED = "The response provided by the client doesn't match the one we calculated."


def failure(condition: str, text: str = "") -> Element:
    """The stream stays open after it: a client may try again."""
    made = el(ns.SASL, "failure", None, el(ns.SASL, condition))
    return made.add(el(ns.SASL, "text", None, text)) if text else made


class Login:
    """Takes SASL elements until one of them brings an account."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._scram: ScramServer | None = None

    def take(self, element: Element) -> tuple[Element, Account | None]:
        """The answer to one element, and the account once the client has proved itself."""
        if element.name == "abort":
            self._scram = None
            return failure("aborted"), None
        if element.name == "auth":
            return self._auth(element.get("mechanism") or "", element.text)
        if element.name == "response" and self._scram is not None:
            scram, self._scram = self._scram, None
            return self._proof(scram, element.text)
        return failure("malformed-request"), None

    def _auth(self, mechanism: str, text: str) -> tuple[Element, Account | None]:
        if mechanism not in self._server.options.mechanisms:
            return failure("invalid-mechanism"), None
        try:
            data = base64.b64decode("" if text == "=" else text, validate=True)
        except (binascii.Error, ValueError):
            return failure("incorrect-encoding"), None
        if mechanism == "PLAIN":
            return self._plain(data)
        token = self._server.env.token_bytes
        hash_name = "sha256" if mechanism.endswith("256") else "sha1"
        scram = ScramServer(hash_name, self._password_of, token(18).hex(), token(16))
        try:
            challenge = scram.first(data)
        except ScramError as exc:
            return failure("not-authorized" if exc.code == "unknown-user" else "malformed-request"), None
        self._scram = scram
        return el(ns.SASL, "challenge", None, base64.b64encode(challenge).decode()), None

    def _plain(self, data: bytes) -> tuple[Element, Account | None]:
        parts = data.split(b"\0")
        name = parts[1].decode("utf-8", "replace") if len(parts) == 3 else ""
        account = self._server.accounts.get(name)
        if account is None or account.password.encode() != parts[2]:
            return failure("not-authorized", PLAIN_REFUSED), None
        return el(ns.SASL, "success"), account

    def _password_of(self, name: str) -> str | None:
        account = self._server.accounts.get(name.casefold())
        return account.password if account is not None else None

    def _proof(self, scram: ScramServer, text: str) -> tuple[Element, Account | None]:
        try:
            final = scram.final(base64.b64decode(text, validate=True))
        except (ScramError, binascii.Error, ValueError):
            return failure("not-authorized", PROOF_REFUSED), None
        account = self._server.accounts[scram.username.casefold()]
        return el(ns.SASL, "success", None, base64.b64encode(final).decode()), account
