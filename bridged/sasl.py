"""The client's half of SASL: PLAIN, EXTERNAL, SCRAM-SHA-1 and SCRAM-SHA-256, without any I/O.  Pure.

`client` makes one exchange; `respond` takes what the server said (b"" to begin) and returns what we say, both
before any transport's encoding.  A login counts only when the server's success came *and* `is_done` is true: with
SCRAM the server proves that it knows the password too, and one that skips the proof is an impostor.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import re
import stringprep
import unicodedata
from typing import Protocol

from bridged.errors import BridgeError
from bridged.secret import Secret

# Specification constants.
MECHANISMS = ("SCRAM-SHA-256", "SCRAM-SHA-1", "EXTERNAL", "PLAIN")
"""What is spoken, strongest first."""
ITERATIONS_MIN = 4096
"""RFC 7677, section 4: fewer make a stolen exchange too cheap to guess from."""
GS2_HEADER = "n,,"
"""No channel binding, no authorisation identity."""

# Ours.
ITERATIONS_MAX = 1_000_000
"""A fraction of a second here; a server that asks for more wants to keep us busy."""

_HASHES = {"SCRAM-SHA-1": "sha1", "SCRAM-SHA-256": "sha256"}
_SERVER_FIRST = re.compile(r"r=([\x21-\x2b\x2d-\x7e]+),s=([A-Za-z0-9+/]+={0,2}),i=([1-9][0-9]{0,9})(?:,.*)?")


class SaslError(BridgeError):
    """The exchange broke: by the server's fault, or because the password has a character that cannot be sent."""


class Client(Protocol):
    """One run of one mechanism."""

    @property
    def is_done(self) -> bool:
        """All of our part is said, and the server proved itself where the mechanism asks for that."""
        ...

    def respond(self, challenge: bytes) -> bytes:
        """What to answer to the server's part.  Raises SaslError."""
        ...


def client(mechanism: str, username: str, password: Secret, nonce: bytes) -> Client:
    """A client of that mechanism.

    Args:
        mechanism: One of `MECHANISMS`.
        nonce: 18 random bytes or more, used once; SCRAM alone needs it.

    Raises:
        SaslError: No such mechanism.
    """
    if mechanism == "PLAIN":
        return Plain(username, password)
    if mechanism == "EXTERNAL":
        return External()
    if mechanism in _HASHES:
        return Scram(_HASHES[mechanism], username, password, nonce)
    raise SaslError(f"no such mechanism: {mechanism!a:.40}", hint=f"we speak {', '.join(MECHANISMS)}")


class Plain:
    """RFC 4616.  Over TLS only; that is the caller's to see to."""

    def __init__(self, username: str, password: Secret) -> None:
        self._username = username
        self._password = password
        self.is_done = False

    def respond(self, challenge: bytes) -> bytes:
        """Our only message: who, and the password."""
        if self.is_done or challenge:
            raise SaslError("PLAIN has no challenges")
        username, password = _utf8(self._username), self._password.reveal()
        if b"\0" in username + password:
            raise SaslError("a name or password with a NUL cannot be sent by PLAIN")
        self.is_done = True
        return b"\0" + username + b"\0" + password


class External:
    """RFC 4422, appendix A: the TLS client certificate has said it all."""

    def __init__(self) -> None:
        self.is_done = False

    def respond(self, challenge: bytes) -> bytes:
        """Nothing: the identity is the one that the certificate stands for."""
        if self.is_done or challenge:
            raise SaslError("EXTERNAL has no challenges")
        self.is_done = True
        return b""


class Scram:
    """RFC 5802 with SHA-1 or (RFC 7677) SHA-256."""

    def __init__(self, hash_name: str, username: str, password: Secret, nonce: bytes) -> None:
        self._hash = hash_name
        self._username = username
        self._password = password
        self._nonce = base64.b64encode(nonce).decode("ascii")
        self._step = 0
        self._client_first_bare = ""
        self._server_signature = b""
        self.is_done = False

    def respond(self, challenge: bytes) -> bytes:
        """client-first, client-final, and an empty answer to the server's proof."""
        self._step += 1
        if self._step == 1:
            return self._first(challenge)
        try:
            text = challenge.decode()
        except UnicodeDecodeError as exc:
            raise SaslError("the server's message is not UTF-8") from exc
        if self._step == 2:
            return self._final(text)
        if self._step == 3:
            return self._check(text)
        raise SaslError("the server goes on after the end")

    def _first(self, challenge: bytes) -> bytes:
        if challenge:
            raise SaslError("in SCRAM the client speaks first")
        name = saslprep(self._username).replace("=", "=3D").replace(",", "=2C")
        self._client_first_bare = f"n={name},r={self._nonce}"
        return (GS2_HEADER + self._client_first_bare).encode()

    def _final(self, server_first: str) -> bytes:
        match = _SERVER_FIRST.fullmatch(server_first)
        if match is None:
            raise SaslError("the server's first message is not SCRAM's")
        nonce, salt, iterations = match[1], _base64(match[2]), int(match[3])
        if not nonce.startswith(self._nonce) or len(nonce) == len(self._nonce):
            raise SaslError("the server's nonce does not continue ours")
        if not ITERATIONS_MIN <= iterations <= ITERATIONS_MAX:
            raise SaslError(
                f"the server asks for {iterations} iterations; {ITERATIONS_MIN} to {ITERATIONS_MAX} are accepted"
            )
        without_proof = f"c={base64.b64encode(GS2_HEADER.encode()).decode()},r={nonce}"
        auth_message = f"{self._client_first_bare},{server_first},{without_proof}".encode()
        password = saslprep(self._password.reveal_text()).encode()
        salted = hashlib.pbkdf2_hmac(self._hash, password, salt, iterations)
        client_key = self._hmac(salted, b"Client Key")
        stored_key = hashlib.new(self._hash, client_key).digest()
        signature = self._hmac(stored_key, auth_message)
        proof = bytes(a ^ b for a, b in zip(client_key, signature, strict=True))
        self._server_signature = self._hmac(self._hmac(salted, b"Server Key"), auth_message)
        return f"{without_proof},p={base64.b64encode(proof).decode()}".encode()

    def _check(self, server_final: str) -> bytes:
        first = server_final.split(",", 1)[0]
        if first.startswith("e="):
            raise SaslError(f"the server refuses: {first[2:]!a:.60}")
        if not first.startswith("v=") or not hmac.compare_digest(_base64(first[2:]), self._server_signature):
            raise SaslError("the server does not know the password: an impostor, or a broken server")
        self.is_done = True
        return b""

    def _hmac(self, key: bytes, message: bytes) -> bytes:
        return hmac.digest(key, message, self._hash)


def saslprep(text: str) -> str:
    """Names and passwords in the one form that both sides hash.          RFC 4013, as a stored string.

    Raises:
        SaslError: A character that is forbidden, not assigned in Unicode 3.2, or mixed directions.
    """
    if text.isascii() and text.isprintable():
        return text
    mapped = "".join(" " if stringprep.in_table_c12(c) else c for c in text if not stringprep.in_table_b1(c))
    prepared = unicodedata.normalize("NFKC", mapped)
    if any(is_forbidden(c) for c in prepared for is_forbidden in _FORBIDDEN):
        raise SaslError(
            "a name or password holds a character that SASLprep forbids",
            hint="control characters, private and newer characters such as emoji cannot be used here",
        )
    if any(map(stringprep.in_table_d1, prepared)):
        ends_are_right_to_left = stringprep.in_table_d1(prepared[0]) and stringprep.in_table_d1(prepared[-1])
        if not ends_are_right_to_left or any(map(stringprep.in_table_d2, prepared)):
            raise SaslError("a name or password mixes writing directions in a way that SASLprep forbids")
    return prepared


_FORBIDDEN = (
    stringprep.in_table_a1,
    stringprep.in_table_c12,
    stringprep.in_table_c21_c22,
    stringprep.in_table_c3,
    stringprep.in_table_c4,
    stringprep.in_table_c5,
    stringprep.in_table_c6,
    stringprep.in_table_c7,
    stringprep.in_table_c8,
    stringprep.in_table_c9,
)


def _utf8(text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError as exc:
        raise SaslError("a name holds half a character") from exc


def _base64(text: str) -> bytes:
    try:
        return base64.b64decode(text.encode("ascii"), validate=True)
    except (UnicodeEncodeError, binascii.Error) as exc:
        raise SaslError("the server's message holds broken base64") from exc
