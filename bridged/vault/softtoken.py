"""The key-encryption key in a file: the token of a shard without an HSM.

It protects backups and a stolen database; who can read the key file can read the credentials.  The suite is
`soft-xchacha`: XChaCha20-Poly1305 with the associated data that names what was wrapped.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from nacl import bindings
from nacl.exceptions import CryptoError

from bridged.errors import TokenUnavailable, VaultError
from bridged.secret import Secret

SUITE = "soft-xchacha"
KEY_BYTES = 32
_NONCE_BYTES = bindings.crypto_aead_xchacha20poly1305_ietf_NPUBBYTES
_MAGIC = b"bridged-soft-token-v1\n"


class SoftToken:
    """Wraps and unwraps data keys; the key itself never leaves this object."""

    def __init__(self, key: Secret, token_bytes: Callable[[int], bytes]) -> None:
        self._key = key
        self._token_bytes = token_bytes

    @classmethod
    def create(cls, path: Path, token_bytes: Callable[[int], bytes]) -> SoftToken:
        """Make a new key file, 0600.

        Raises:
            VaultError: There is one already; it is never overwritten, since the credentials depend on it.
        """
        try:
            fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        except FileExistsError as exc:
            raise VaultError(
                f"{path} exists", hint="a token is made once; the credentials are sealed under it"
            ) from exc
        except OSError as exc:
            raise VaultError(
                f"{path}: {exc.strerror}", hint="the directory must exist and be writable"
            ) from exc
        with os.fdopen(fd, "wb") as file:
            file.write(_MAGIC + token_bytes(KEY_BYTES).hex().encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
        return cls.open(path, token_bytes)

    @classmethod
    def open(cls, path: Path, token_bytes: Callable[[int], bytes]) -> SoftToken:
        """Read the key file.

        Raises:
            TokenUnavailable: It is missing, readable by others, or not a token.
        """
        try:
            mode = path.stat().st_mode
            text = path.read_bytes()
        except OSError as exc:
            raise TokenUnavailable(
                f"{path}: {exc.strerror}", hint="`bridgectl vault init` makes a token"
            ) from exc
        if mode & 0o077:
            raise TokenUnavailable(f"{path} may be read by others", hint=f"chmod 600 {path}")
        body = text.removeprefix(_MAGIC).strip()
        try:
            key = bytes.fromhex(body.decode("ascii"))
        except ValueError:
            key = b""
        if not text.startswith(_MAGIC) or len(key) != KEY_BYTES:
            raise TokenUnavailable(f"{path} is not a soft token", hint="restore it from the backup")
        return cls(Secret(key), token_bytes)

    def wrap(self, data_key: bytes, context: bytes) -> bytes:
        """Seal a data key; `context` must be given again to unwrap."""
        nonce = self._token_bytes(_NONCE_BYTES)
        return nonce + bindings.crypto_aead_xchacha20poly1305_ietf_encrypt(
            data_key, context, nonce, self._key.reveal()
        )

    def unwrap(self, wrapped: bytes, context: bytes) -> bytes:
        """The data key.

        Raises:
            VaultError: It was wrapped by another token, for another context, or has been altered.
        """
        try:
            return bindings.crypto_aead_xchacha20poly1305_ietf_decrypt(
                wrapped[_NONCE_BYTES:], context, wrapped[:_NONCE_BYTES], self._key.reveal()
            )
        except CryptoError as exc:
            raise VaultError(
                "a data key does not open under this token", hint="is this the token the vault was made with?"
            ) from exc
