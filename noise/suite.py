"""The crypto functions that a Noise protocol is built from: one curve, two ciphers, four hashes.  Pure.

Noise rev 34, section 4 says what each must do and section 12 which names stand for which algorithm.  X25519
is libsodium's (twice as fast as OpenSSL's here), the ciphers are OpenSSL's (four times as fast as libsodium's
through PyNaCl, for small messages), the hashes are hashlib's.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable
from typing import Protocol

import attrs
import nacl.bindings
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305

from noise.errors import DecryptError, HandshakeError, PatternError

# -- specification constants ------------------------------------------------------------------------------
DHLEN = 32
"""Bytes of a 25519 public key and of a shared secret.  Section 12.1."""
KEYLEN = 32
"""Bytes of a cipher key and of a pre-shared key.  Sections 4.2 and 9."""
TAGLEN = 16
"""Bytes that encryption adds.  Section 4.2."""
NONCE_MAX = 2**64 - 1
"""Reserved for rekeying, never used for a message.  Section 4.2."""


@attrs.frozen
class KeyPair:
    """A 25519 key pair; 32 bytes each.                                       Section 12.1."""

    private: bytes = attrs.field(repr=False)
    public: bytes

    @classmethod
    def from_private(cls, private: bytes) -> KeyPair:
        """The pair of a private key.

        Raises:
            PatternError: The key is not 32 bytes.
        """
        if len(private) != DHLEN:
            raise PatternError(f"a 25519 private key has {DHLEN} bytes, not {len(private)}")
        return cls(bytes(private), nacl.bindings.crypto_scalarmult_base(bytes(private)))

    @classmethod
    def generate(cls, token_bytes: Callable[[int], bytes]) -> KeyPair:
        """GENERATE_KEYPAIR() with the caller's source of randomness.         Section 4.1."""
        return cls.from_private(token_bytes(DHLEN))


def dh(key_pair: KeyPair, public: bytes) -> bytes:
    """DH(key_pair, public_key): 32 bytes.                                     Section 4.1.

    Raises:
        HandshakeError: `public` is no point that gives a secret (12.1 allows to refuse an all-zero output).
    """
    if len(public) != DHLEN:
        raise HandshakeError(f"a 25519 public key has {DHLEN} bytes, not {len(public)}")
    try:
        return nacl.bindings.crypto_scalarmult(key_pair.private, public)
    except RuntimeError as exc:  # libsodium's answer to a point of small order
        raise HandshakeError("the peer's public key is a point of small order") from exc


class Aead(Protocol):
    """An AEAD with its key inside, as `cryptography` makes them."""

    def encrypt(self, nonce: bytes, data: bytes, associated_data: bytes | None, /) -> bytes: ...
    def decrypt(self, nonce: bytes, data: bytes, associated_data: bytes | None, /) -> bytes: ...


@attrs.frozen
class Cipher:
    """A cipher function by its Noise name.                                    Sections 4.2, 12.3, 12.4."""

    name: str
    aead: Callable[[bytes], Aead]
    """32-byte key -> AEAD."""
    nonce: Callable[[int], bytes]
    """64-bit counter -> the 96 bits that the cipher takes."""

    def encrypt(self, key: Aead, n: int, ad: bytes, plaintext: bytes) -> bytes:
        """ENCRYPT(k, n, ad, plaintext): 16 bytes longer than the plaintext.   Section 4.2."""
        return key.encrypt(self.nonce(n), plaintext, ad)

    def decrypt(self, key: Aead, n: int, ad: bytes, ciphertext: bytes) -> bytes:
        """DECRYPT(k, n, ad, ciphertext).                                      Section 4.2.

        Raises:
            DecryptError: The tag does not hold.
        """
        try:
            return key.decrypt(self.nonce(n), ciphertext, ad)
        except InvalidTag as exc:
            raise DecryptError("the authentication tag does not hold") from exc

    def rekey(self, key: Aead) -> bytes:
        """REKEY(k): the next 32-byte key.                                     Section 4.2."""
        return self.encrypt(key, NONCE_MAX, b"", bytes(KEYLEN))[:KEYLEN]


@attrs.frozen
class Hash:
    """A hash function by its Noise name.                                      Sections 4.3, 12.5 to 12.8."""

    name: str
    algorithm: str
    """hashlib's name."""
    hashlen: int

    def hash(self, data: bytes) -> bytes:
        """HASH(data): 32 or 64 bytes."""
        return hashlib.new(self.algorithm, data).digest()

    def hmac(self, key: bytes, data: bytes) -> bytes:
        """HMAC-HASH(key, data).  RFC 2104."""
        return hmac.digest(key, data, self.algorithm)

    def hkdf2(self, chaining_key: bytes, input_key_material: bytes) -> tuple[bytes, bytes]:
        """HKDF(chaining_key, input_key_material, 2).                          Section 4.3."""
        temp_key = self.hmac(chaining_key, input_key_material)
        first = self.hmac(temp_key, b"\x01")
        return first, self.hmac(temp_key, first + b"\x02")

    def hkdf3(self, chaining_key: bytes, input_key_material: bytes) -> tuple[bytes, bytes, bytes]:
        """HKDF(chaining_key, input_key_material, 3).                          Section 4.3."""
        temp_key = self.hmac(chaining_key, input_key_material)
        first = self.hmac(temp_key, b"\x01")
        second = self.hmac(temp_key, first + b"\x02")
        return first, second, self.hmac(temp_key, second + b"\x03")


@attrs.frozen
class Suite:
    """The DH, cipher and hash functions of one protocol.                      Section 8."""

    dh: str
    cipher: Cipher
    hash: Hash


def suite(dh: str, cipher: str, hash: str) -> Suite:
    """Find the functions by the names that a protocol name gives them.

    Raises:
        PatternError: One of them is not shipped; the message names it.
    """
    missing = [
        name for name, shipped in ((dh, CURVES), (cipher, CIPHERS), (hash, HASHES)) if name not in shipped
    ]
    if missing:
        raise PatternError(f"not shipped: {', '.join(missing)}")
    return Suite(dh, CIPHERS[cipher], HASHES[hash])


def _nonce_little_endian(n: int) -> bytes:
    return b"\0\0\0\0" + n.to_bytes(8, "little")


def _nonce_big_endian(n: int) -> bytes:
    return n.to_bytes(12, "big")


CURVES = frozenset({"25519"})
CIPHERS = {
    "ChaChaPoly": Cipher("ChaChaPoly", ChaCha20Poly1305, _nonce_little_endian),
    "AESGCM": Cipher("AESGCM", AESGCM, _nonce_big_endian),
}
HASHES = {
    "SHA256": Hash("SHA256", "sha256", 32),
    "SHA512": Hash("SHA512", "sha512", 64),
    "BLAKE2s": Hash("BLAKE2s", "blake2s", 32),
    "BLAKE2b": Hash("BLAKE2b", "blake2b", 64),
}
