"""A protocol by its name, and the paper's three state objects: CipherState, SymmetricState, HandshakeState.

Noise rev 34, sections 5 and 8, function by function under the paper's names.  Pure: no I/O, no clock; the
randomness for ephemeral keys is the caller's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import attrs

from noise.errors import HandshakeError, NonceExhausted, PatternError
from noise.pattern import Pattern, pattern
from noise.suite import DHLEN, KEYLEN, NONCE_MAX, TAGLEN, Aead, Cipher, KeyPair, Suite, dh, suite

# -- specification constants ------------------------------------------------------------------------------
MESSAGE_BYTES_MAX = 65_535
"""A Noise message, handshake or transport.  Section 3."""
NAME_BYTES_MAX = 255
"""A protocol name.  Section 8."""


@attrs.frozen
class Protocol:
    """What a name such as `Noise_IK_25519_ChaChaPoly_SHA256` stands for.      Section 8."""

    name: str
    pattern: Pattern
    suite: Suite


def protocol(name: str) -> Protocol:
    """Read a protocol name.

    Raises:
        PatternError: It is malformed, or names a pattern, modifier or primitive that is not shipped.
    """
    if not name.isascii() or len(name) > NAME_BYTES_MAX:
        raise PatternError(f"a protocol name has at most {NAME_BYTES_MAX} ASCII characters")
    parts = name.split("_")
    if len(parts) != 5 or parts[0] != "Noise":
        raise PatternError(f"a protocol name is Noise_PATTERN_DH_CIPHER_HASH, not {name!r}")
    _, handshake, curve, cipher, hash_ = parts
    return Protocol(name, pattern(handshake), suite(curve, cipher, hash_))


class CipherState:
    """A key and a nonce that counts.                                          Section 5.1."""

    __slots__ = ("_aead", "_cipher", "_n")

    def __init__(self, cipher: Cipher, key: bytes | None = None) -> None:
        """InitializeKey(key); without a key it passes bytes through."""
        self._cipher = cipher
        self._aead: Aead | None = None if key is None else cipher.aead(key)
        self._n = 0

    @property
    def has_key(self) -> bool:
        """HasKey()."""
        return self._aead is not None

    @property
    def nonce(self) -> int:
        """The nonce of the next message, 0 to 2**64 - 1."""
        return self._n

    def set_nonce(self, nonce: int) -> None:
        """SetNonce(nonce): for transports that lose or reorder messages.      Section 11.4.

        Whoever goes back must make sure that no (key, nonce) encrypts two messages.
        """
        if not 0 <= nonce <= NONCE_MAX:
            raise NonceExhausted("a nonce has 64 bits")
        self._n = nonce

    def encrypt_with_ad(self, ad: bytes, plaintext: bytes) -> bytes:
        """Return the ciphertext, 16 bytes longer, and step the nonce.         Section 5.1.

        Args:
            ad: Associated data, any length; the handshake hash during a handshake.
            plaintext: Any length; the caller minds the 65,535 bytes of a message.

        Raises:
            NonceExhausted: 2**64 - 1 messages were sent.
        """
        if self._aead is None:
            return bytes(plaintext)
        if self._n >= NONCE_MAX:
            raise NonceExhausted("no nonce is left under this key: shake hands again")
        ciphertext = self._cipher.encrypt(self._aead, self._n, ad, plaintext)
        self._n += 1
        return ciphertext

    def decrypt_with_ad(self, ad: bytes, ciphertext: bytes) -> bytes:
        """Return the plaintext and step the nonce.                            Section 5.1.

        Raises:
            DecryptError: The tag does not hold.  The nonce has NOT moved.
            NonceExhausted: 2**64 - 1 messages were received.
        """
        if self._aead is None:
            return bytes(ciphertext)
        if self._n >= NONCE_MAX:
            raise NonceExhausted("no nonce is left under this key: shake hands again")
        plaintext = self._cipher.decrypt(self._aead, self._n, ad, ciphertext)
        self._n += 1
        return plaintext

    def rekey(self) -> None:
        """Rekey(): a new key from the old one, which is forgotten; the nonce goes on.   Section 11.3."""
        if self._aead is not None:
            self._aead = self._cipher.aead(self._cipher.rekey(self._aead))


class SymmetricState:
    """The chaining key and the handshake hash.                                Section 5.2."""

    __slots__ = ("_cipher_state", "_ck", "_h", "_suite")

    def __init__(self, protocol: Protocol) -> None:
        """InitializeSymmetric(protocol_name)."""
        self._suite = protocol.suite
        name = protocol.name.encode("ascii")
        hash_ = self._suite.hash
        self._h = name.ljust(hash_.hashlen, b"\0") if len(name) <= hash_.hashlen else hash_.hash(name)
        self._ck = self._h
        self._cipher_state = CipherState(self._suite.cipher)

    @property
    def has_key(self) -> bool:
        return self._cipher_state.has_key

    @property
    def handshake_hash(self) -> bytes:
        """GetHandshakeHash(): binds the channel once the handshake is done.   Sections 5.2, 11.2."""
        return self._h

    def mix_key(self, input_key_material: bytes) -> None:
        """MixKey(input_key_material)."""
        self._ck, temp_k = self._suite.hash.hkdf2(self._ck, input_key_material)
        self._cipher_state = CipherState(self._suite.cipher, temp_k[:KEYLEN])

    def mix_hash(self, data: bytes) -> None:
        """MixHash(data)."""
        self._h = self._suite.hash.hash(self._h + data)

    def mix_key_and_hash(self, input_key_material: bytes) -> None:
        """MixKeyAndHash(input_key_material): for pre-shared keys."""
        self._ck, temp_h, temp_k = self._suite.hash.hkdf3(self._ck, input_key_material)
        self.mix_hash(temp_h)
        self._cipher_state = CipherState(self._suite.cipher, temp_k[:KEYLEN])

    def encrypt_and_hash(self, plaintext: bytes) -> bytes:
        """EncryptAndHash(plaintext)."""
        ciphertext = self._cipher_state.encrypt_with_ad(self._h, plaintext)
        self.mix_hash(ciphertext)
        return ciphertext

    def decrypt_and_hash(self, ciphertext: bytes) -> bytes:
        """DecryptAndHash(ciphertext).

        Raises:
            DecryptError: The tag does not hold.
        """
        plaintext = self._cipher_state.decrypt_with_ad(self._h, ciphertext)
        self.mix_hash(ciphertext)
        return plaintext

    def split(self) -> tuple[CipherState, CipherState]:
        """Split(): (initiator's sending key, responder's sending key)."""
        first, second = self._suite.hash.hkdf2(self._ck, b"")
        cipher = self._suite.cipher
        return CipherState(cipher, first[:KEYLEN]), CipherState(cipher, second[:KEYLEN])


class HandshakeState:
    """One side of a handshake.                                                Section 5.3.

        ours = HandshakeState("Noise_IK_25519_ChaChaPoly_SHA256", initiator=True, s=KeyPair.from_private(key),
                              rs=their_public, token_bytes=secrets.token_bytes)
        send(ours.write_message())
        ours.read_message(receive())
        session = TransportState(ours)

    After any NoiseError the handshake is over: every later call raises HandshakeError.
    """

    def __init__(
        self,
        protocol_name: str | Protocol,
        *,
        initiator: bool,
        token_bytes: Callable[[int], bytes],
        prologue: bytes = b"",
        s: KeyPair | None = None,
        rs: bytes | None = None,
        psks: Sequence[bytes] = (),
    ) -> None:
        """Initialize(handshake_pattern, initiator, prologue, s, e, rs, re).

        Args:
            protocol_name: For instance `Noise_XXpsk3_25519_ChaChaPoly_SHA256`.
            initiator: True for the side that writes the first message.
            token_bytes: n -> n random bytes, for ephemeral keys.
            prologue: Bytes that both sides must agree on; not sent.           Section 6.
            s: Our static key pair, where the pattern has us send or presume one.
            rs: The peer's static public key, where the pattern presumes it.
            psks: Pre-shared keys of 32 bytes, in the order of the pattern.    Section 9.

        Raises:
            PatternError: The name is not shipped, or a key is missing, superfluous or of the wrong size.
        """
        self._protocol = protocol(protocol_name) if isinstance(protocol_name, str) else protocol_name
        shape = self._protocol.pattern
        presumed = shape.responder_static_known if initiator else shape.initiator_static_known
        if s is None and shape.sends_static(initiator=initiator):
            raise PatternError(f"{shape.name} needs a static key pair of this side")
        if presumed != (rs is not None):
            verb = "presumes" if presumed else "does not presume"
            raise PatternError(f"{shape.name} {verb} the peer's static key on this side")
        if rs is not None and len(rs) != DHLEN:
            raise PatternError(f"a static public key has {DHLEN} bytes, not {len(rs)}")
        if len(psks) != shape.psks or any(len(psk) != KEYLEN for psk in psks):
            raise PatternError(f"{shape.name} takes {shape.psks} pre-shared keys of {KEYLEN} bytes")

        self._initiator = initiator
        self._token_bytes = token_bytes
        self._s = s
        self._e: KeyPair | None = None
        self._rs = rs
        self._re: bytes | None = None
        self._psks = list(psks)
        self._index = 0
        self._failed = False
        self._symmetric = SymmetricState(self._protocol)
        self._symmetric.mix_hash(prologue)
        ours = s.public if s is not None else None
        initiator_static, responder_static = (ours, rs) if initiator else (rs, ours)
        if shape.initiator_static_known and initiator_static is not None:
            self._symmetric.mix_hash(initiator_static)
        if shape.responder_static_known and responder_static is not None:
            self._symmetric.mix_hash(responder_static)

    @property
    def protocol(self) -> Protocol:
        return self._protocol

    @property
    def is_initiator(self) -> bool:
        return self._initiator

    @property
    def is_finished(self) -> bool:
        """All messages of the pattern have passed; `TransportState` may take over."""
        return not self._failed and self._index == len(self._protocol.pattern.messages)

    @property
    def is_our_turn(self) -> bool:
        """The next message is ours to write."""
        return not self.is_finished and not self._failed and (self._index % 2 == 0) == self._initiator

    @property
    def remote_static(self) -> bytes | None:
        """The peer's static public key, once it is known.  Proven only by the messages the pattern says."""
        return self._rs

    @property
    def handshake_hash(self) -> bytes:
        """The hash of everything that passed; both sides have the same.       Section 11.2."""
        return self._symmetric.handshake_hash

    def write_message(self, payload: bytes = b"") -> bytes:
        """WriteMessage(payload): the next handshake message, at most 65,535 bytes.   Section 5.3.

        Raises:
            HandshakeError: It is not our turn, the message would be too long, or a DH gave no secret.
        """
        with self._step(ours=True) as tokens:
            parts = [self._write_token(token) for token in tokens]
            parts.append(self._symmetric.encrypt_and_hash(payload))
            message = b"".join(parts)
            if len(message) > MESSAGE_BYTES_MAX:
                raise HandshakeError(f"the message would have {len(message)} bytes: shorten the payload")
            return message

    def read_message(self, message: bytes) -> bytes:
        """ReadMessage(message): the payload of the peer's next message.       Section 5.3.

        Raises:
            HandshakeError: It is not their turn, or the message is too short, too long or has a bad key.
            DecryptError: A tag does not hold: another prologue, key, pre-shared key, or changed bytes.
        """
        with self._step(ours=False) as tokens:
            if len(message) > MESSAGE_BYTES_MAX:
                raise HandshakeError(f"a Noise message has at most {MESSAGE_BYTES_MAX} bytes")
            rest = bytes(message)
            for token in tokens:
                rest = self._read_token(token, rest)
            if self._symmetric.has_key and len(rest) < TAGLEN:
                raise HandshakeError("the handshake message is too short")
            return self._symmetric.decrypt_and_hash(rest)

    def split(self) -> tuple[CipherState, CipherState]:
        """(the cipher we send with, the cipher we receive with).              Section 5.2.

        Raises:
            HandshakeError: The handshake is not finished.
        """
        if not self.is_finished:
            raise HandshakeError("the handshake is not finished")
        first, second = self._symmetric.split()
        return (first, second) if self._initiator else (second, first)

    # -- tokens -------------------------------------------------------------------------------------------

    def _step(self, *, ours: bool) -> _Step:
        if self._failed:
            raise HandshakeError("the handshake has failed before")
        if self.is_finished:
            raise HandshakeError("the handshake is finished")
        if ours != self.is_our_turn:
            raise HandshakeError("it is the peer's turn" if ours else "it is our turn")
        return _Step(self)

    def _write_token(self, token: str) -> bytes:
        if token == "e":
            self._e = KeyPair.generate(self._token_bytes)
            self._mix_ephemeral(self._e.public)
            return self._e.public
        if token == "s":
            assert self._s is not None  # checked at the start
            return self._symmetric.encrypt_and_hash(self._s.public)
        self._mix_secret(token)
        return b""

    def _read_token(self, token: str, message: bytes) -> bytes:
        """Consume what `token` takes of the message; return the rest."""
        if token not in ("e", "s"):
            self._mix_secret(token)
            return message
        size = DHLEN + TAGLEN if token == "s" and self._symmetric.has_key else DHLEN
        if len(message) < size:
            raise HandshakeError("the handshake message is too short")
        part, rest = message[:size], message[size:]
        if token == "e":
            self._re = part
            self._mix_ephemeral(part)
        else:
            self._rs = self._symmetric.decrypt_and_hash(part)
        return rest

    def _mix_ephemeral(self, public: bytes) -> None:
        self._symmetric.mix_hash(public)
        if self._protocol.pattern.psks:  # section 9.2: a psk alone must never fix a key and nonce twice
            self._symmetric.mix_key(public)

    def _mix_secret(self, token: str) -> None:
        if token == "psk":
            self._symmetric.mix_key_and_hash(self._psks.pop(0))
            return
        # "es" is the initiator's e with the responder's s, whoever writes it.  Section 5.3.
        mine, theirs = (token[0], token[1]) if self._initiator else (token[1], token[0])
        key_pair = self._e if mine == "e" else self._s
        public = self._re if theirs == "e" else self._rs
        if key_pair is None or public is None:
            raise PatternError(f"{self._protocol.pattern.name}: {token!r} comes before its keys")
        self._symmetric.mix_key(dh(key_pair, public))


class _Step:
    """One message of a handshake: moves on when it went well, ends the handshake when it did not."""

    def __init__(self, handshake: HandshakeState) -> None:
        self._handshake = handshake

    def __enter__(self) -> tuple[str, ...]:
        handshake = self._handshake
        return handshake._protocol.pattern.messages[handshake._index]

    def __exit__(self, kind: type[BaseException] | None, exc: object, traceback: object) -> None:
        if kind is None:
            self._handshake._index += 1
        else:
            self._handshake._failed = True
