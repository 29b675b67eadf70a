"""How we prove who we are to an IRC network: the credential, and one SASL exchange.          IRCv3 sasl-3.2.  Pure."""

from __future__ import annotations

import base64
import binascii
from typing import TYPE_CHECKING

import attrs

from bridged import sasl
from bridged.errors import BadCredentials, Disconnected
from bridged.secret import Secret

if TYPE_CHECKING:
    from bridged.connectors.desk import Credential

# Specification constants.
CHUNK_BYTES = 400
"""Of base64 in one AUTHENTICATE; a chunk of exactly so many is followed by another, if only by `+`."""

# Ours.
CHALLENGE_BYTES_MAX = 65_536
PREFERRED = ("SCRAM-SHA-256", "SCRAM-SHA-1", "PLAIN")


@attrs.frozen(kw_only=True)
class Login:
    """What proves who we are."""

    name: str
    """The credential's name in the vault, for what an operator is told."""
    method: str
    """sasl | external | nickserv | server_password"""
    username: str
    password: Secret

    @classmethod
    def from_credential(cls, credential: Credential, *, method: str, nick: str) -> Login:
        """The login that a leased credential makes.

        Raises:
            BadCredentials: The credential has no password, and the method needs one.
        """
        password = credential.password
        if method == "server_password":
            password = credential.get("server_password") or password
        if password is None and method != "external":
            raise BadCredentials(
                f"the credential {credential.name!r} has no password",
                hint=f"`bridgectl vault put {credential.name}`",
            )
        return cls(
            name=credential.name,
            method=method,
            username=credential.username or nick,
            password=password or Secret(b""),
        )


class SaslExchange:
    """One run of one mechanism, in AUTHENTICATE's chunks.

    Args:
        offered: The value of the `sasl` capability: mechanisms by comma; \"\" where the server names none.
        nonce: 18 random bytes or more, for SCRAM.
    """

    def __init__(
        self, login: Login, offered: str, nonce: bytes, *, tried: frozenset[str] = frozenset()
    ) -> None:
        self.offered = offered
        self._login = login
        self._nonce = nonce
        names = [name for name in self._candidates() if name not in tried]
        if not names:
            raise BadCredentials(
                f"the network offers no SASL mechanism that we speak ({offered})",
                hint="the connector speaks SCRAM-SHA-256, SCRAM-SHA-1, PLAIN and EXTERNAL",
            )
        self.mechanism = names[0]
        self._tried = tried | {self.mechanism}
        self._client = _client(self.mechanism, login, nonce)
        self._challenge = ""

    def _candidates(self) -> list[str]:
        if self._login.method == "external":
            return ["EXTERNAL"]
        offered = set(self.offered.upper().split(",")) - {""}
        return [name for name in PREFERRED if name in offered] if offered else ["PLAIN"]

    def answer(self, chunk: str) -> list[str]:
        """The parameters of our AUTHENTICATE lines to one of the server's; none until its chunks are whole.

        Raises:
            Disconnected: The server's part is no such exchange, or it cannot prove that it knows the password.
        """
        if chunk != "+":
            self._challenge += chunk
            if len(self._challenge) > CHALLENGE_BYTES_MAX:
                raise Disconnected("the server's login challenge has no end")
            if len(chunk) == CHUNK_BYTES:
                return []
        try:
            challenge = base64.b64decode(self._challenge, validate=True)
            response = self._client.respond(challenge)
        except (binascii.Error, sasl.SaslError) as exc:
            raise Disconnected(f"the login by {self.mechanism} went wrong: {exc}") from exc
        self._challenge = ""
        return _chunks(response)

    def check_done(self) -> None:
        """The server says that we are logged in: did it prove itself, where the mechanism asks for that?

        Raises:
            Disconnected: It did not.
        """
        if not self._client.is_done:
            raise Disconnected(f"the server ended the login by {self.mechanism} before it proved itself")

    def next_mechanism(self) -> SaslExchange | None:
        """After a refusal of the mechanism itself (908 named others): the next; None when it was the password."""
        names = [name for name in self._candidates() if name not in self._tried]
        if self.mechanism in self.offered.upper().split(",") or not names:
            return None
        return SaslExchange(self._login, self.offered, self._nonce, tried=self._tried)


def _chunks(response: bytes) -> list[str]:
    text = base64.b64encode(response).decode()
    chunks = [text[at : at + CHUNK_BYTES] for at in range(0, len(text), CHUNK_BYTES)]
    if not chunks or len(chunks[-1]) == CHUNK_BYTES:
        chunks.append("+")
    return chunks


def _client(mechanism: str, login: Login, nonce: bytes) -> sasl.Client:
    return sasl.client(mechanism, login.username, login.password, nonce)
