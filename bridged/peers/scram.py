"""The server's half of SCRAM (RFC 5802, RFC 7677).  Pure; the fakes' own, apart from the clients' half.

One `ScramServer` is one exchange: `first` takes the client's first message and answers the challenge, `final`
takes the client's proof and answers the server's signature.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
from collections.abc import Callable

import attrs

ITERATIONS = 4096


class ScramError(Exception):
    """The client's message breaks the protocol, or its proof is wrong.  `code` is RFC 5802's."""

    def __init__(self, code: str) -> None:
        super().__init__(code)
        self.code = code


@attrs.define
class ScramServer:
    """One exchange with a client."""

    hash_name: str
    """`sha1` or `sha256`."""
    password_of: Callable[[str], str | None]
    """User name to password; None for an unknown user."""
    nonce: str
    salt: bytes
    username: str = ""
    _client_first_bare: str = ""
    _server_first: str = ""
    _header: str = ""
    _salted: bytes = b""
    _expected_nonce: str = ""

    def first(self, message: bytes) -> bytes:
        """Answer `client-first-message` with `server-first-message`.

        Raises:
            ScramError: malformed, channel binding asked for, or the user is unknown.
        """
        text = _text(message)
        flag, _, rest = text.partition(",")
        authorization, _, bare = rest.partition(",")
        if flag not in ("n", "y") or not (authorization == "" or authorization.startswith("a=")):
            raise ScramError("server-does-support-channel-binding" if flag[:2] == "p=" else "other-error")
        fields = _fields(bare)
        if not {"n", "r"} <= set(fields) or "m" in fields:
            raise ScramError("other-error")
        self.username = fields["n"].replace("=2C", ",").replace("=3D", "=")
        password = self.password_of(self.username)
        if password is None:
            raise ScramError("unknown-user")
        self._header = f"{flag},{authorization},"
        self._client_first_bare = bare
        self._salted = hashlib.pbkdf2_hmac(self.hash_name, password.encode(), self.salt, ITERATIONS)
        salt = base64.b64encode(self.salt).decode()
        self._server_first = f"r={fields['r']}{self.nonce},s={salt},i={ITERATIONS}"
        self._expected_nonce = fields["r"] + self.nonce
        return self._server_first.encode()

    def final(self, message: bytes) -> bytes:
        """Answer `client-final-message` with `server-final-message`.

        Raises:
            ScramError: malformed, another nonce or channel binding, or the proof is wrong.
        """
        text = _text(message)
        without_proof, _, proof_text = text.rpartition(",p=")
        fields = _fields(without_proof)
        if fields.get("r") != self._expected_nonce:
            raise ScramError("other-error")
        if _decode(fields.get("c", "")) != self._header.encode():
            raise ScramError("channel-bindings-dont-match")
        proof = _decode(proof_text)
        signed = f"{self._client_first_bare},{self._server_first},{without_proof}".encode()
        client_key = self._hmac(self._salted, b"Client Key")
        stored_key = hashlib.new(self.hash_name, client_key).digest()
        signature = self._hmac(stored_key, signed)
        if len(proof) != len(signature):
            raise ScramError("invalid-proof")
        offered = bytes(a ^ b for a, b in zip(proof, signature, strict=True))
        if not hmac.compare_digest(hashlib.new(self.hash_name, offered).digest(), stored_key):
            raise ScramError("invalid-proof")
        server_signature = self._hmac(self._hmac(self._salted, b"Server Key"), signed)
        return b"v=" + base64.b64encode(server_signature)

    def _hmac(self, key: bytes, data: bytes) -> bytes:
        return hmac.new(key, data, self.hash_name).digest()


def _text(message: bytes) -> str:
    try:
        return message.decode("utf-8")
    except UnicodeDecodeError:
        raise ScramError("invalid-encoding") from None


def _fields(text: str) -> dict[str, str]:
    fields: dict[str, str] = {}
    for part in text.split(","):
        key, equals, value = part.partition("=")
        if len(key) != 1 or not equals:
            raise ScramError("other-error")
        fields[key] = value
    return fields


def _decode(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise ScramError("invalid-encoding") from None
