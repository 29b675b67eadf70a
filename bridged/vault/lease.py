"""A lease: credential material lent for a time.  The half of the vault that others see.  Pure."""

from __future__ import annotations

import base64
import json
import struct
from collections.abc import Mapping

import attrs
from nacl.exceptions import CryptoError
from nacl.public import PrivateKey, PublicKey, SealedBox

from bridged.errors import VaultError
from bridged.secret import Secret

LEASE_S = 3600.0
"""A lease's life; its holder renews it before."""
CREDENTIAL_BYTES_MAX = 16_384
NAME_CHARACTERS = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-/@:")
NAME_LENGTH_MAX = 128


@attrs.frozen(kw_only=True)
class Lease:
    """One lending.  `fencing` grows with every checkout of a name: the younger holder wins."""

    lease_id: str
    credential: str
    principal: str
    expires_at: float
    """Wall clock, seconds since 1970."""
    fencing: int
    revision: int


def check_name(name: str) -> str:
    """The credential's name, or VaultError: 1 to 128 of A-Z a-z 0-9 . _ - / @ :"""
    if not 0 < len(name) <= NAME_LENGTH_MAX or not set(name) <= NAME_CHARACTERS:
        raise VaultError(f"a credential's name is 1 to {NAME_LENGTH_MAX} of A-Z a-z 0-9 . _ - / @ :")
    return name


def material(text: bytes) -> bytes:
    """What an operator typed, as the JSON object that is lent.

    A JSON object of texts is taken as it is (`{"username": …, "password": …}`); anything else is the password,
    without its line ending.

    Raises:
        VaultError: Empty, too long, or not UTF-8.
    """
    if len(text) > CREDENTIAL_BYTES_MAX:
        raise VaultError(f"a credential has at most {CREDENTIAL_BYTES_MAX} bytes")
    try:
        plain = text.decode("utf-8").rstrip("\r\n")
    except UnicodeDecodeError:
        raise VaultError("a credential is UTF-8 text") from None
    if not plain:
        raise VaultError("the credential is empty")
    if plain.startswith("{"):
        try:
            value = json.loads(plain)
        except ValueError:
            value = None
        if isinstance(value, dict) and value and all(isinstance(v, str) for v in value.values()):
            return json.dumps(value).encode()
    return json.dumps({"password": plain}).encode()


def seal(body: bytes, lease_public: bytes) -> str:
    """The material for the holder of that X25519 lease key alone; base64url."""
    return base64.urlsafe_b64encode(SealedBox(PublicKey(lease_public)).encrypt(body)).decode().rstrip("=")


def unseal(sealed: str, lease_private: bytes) -> dict[str, Secret]:
    """The fields of a sealed lease.

    Raises:
        VaultError: It was sealed to another key, or is no lease.
    """
    try:
        data = base64.urlsafe_b64decode(sealed + "=" * (-len(sealed) % 4))
        fields = json.loads(SealedBox(PrivateKey(lease_private)).decrypt(data))
    except (CryptoError, ValueError, TypeError):
        fields = None
    if not isinstance(fields, Mapping):
        raise VaultError("the lease is sealed to another key") from None
    return {str(name): Secret(str(value).encode()) for name, value in fields.items()}


def context(*parts: str | int) -> bytes:
    """Length-prefixed associated data: no two lists of parts give the same bytes."""
    out = b""
    for part in parts:
        data = str(part).encode()
        out += struct.pack(">I", len(data)) + data
    return out
