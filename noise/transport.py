"""What a handshake leaves behind: two ciphers, one for each direction.  Pure."""

from __future__ import annotations

from noise.errors import DecryptError, HandshakeError
from noise.state import MESSAGE_BYTES_MAX, CipherState, HandshakeState
from noise.suite import TAGLEN

# -- specification constants ------------------------------------------------------------------------------
PLAINTEXT_BYTES_MAX = MESSAGE_BYTES_MAX - TAGLEN
"""What one transport message can carry.  Noise rev 34, sections 3 and 4.2."""


class TransportState:
    """Encrypts what we send and decrypts what we receive, in strict order.    Sections 5.2 and 11.3.

    In a one-way pattern the responder cannot send and the initiator cannot receive.
    """

    __slots__ = ("_handshake_hash", "_receiving", "_remote_static", "_sending")

    def __init__(self, handshake: HandshakeState) -> None:
        """Split the handshake.

        Raises:
            HandshakeError: It is not finished.
        """
        sending, receiving = handshake.split()
        one_way = handshake.protocol.pattern.is_one_way
        self._sending: CipherState | None = None if one_way and not handshake.is_initiator else sending
        self._receiving: CipherState | None = None if one_way and handshake.is_initiator else receiving
        self._remote_static = handshake.remote_static
        self._handshake_hash = handshake.handshake_hash

    @property
    def remote_static(self) -> bytes | None:
        """The peer's static public key; None where the pattern has none."""
        return self._remote_static

    @property
    def handshake_hash(self) -> bytes:
        """The same on both sides of this session and of no other: for channel binding.   Section 11.2."""
        return self._handshake_hash

    @property
    def sending(self) -> CipherState:
        """Raises HandshakeError on the responder's side of a one-way pattern."""
        if self._sending is None:
            raise HandshakeError("the responder of a one-way pattern cannot send")
        return self._sending

    @property
    def receiving(self) -> CipherState:
        """Raises HandshakeError on the initiator's side of a one-way pattern."""
        if self._receiving is None:
            raise HandshakeError("the initiator of a one-way pattern cannot receive")
        return self._receiving

    def encrypt(self, plaintext: bytes, ad: bytes = b"") -> bytes:
        """The next message to send.

        Args:
            plaintext: 0 to 65,519 bytes.
            ad: Associated data: not sent, must be the same at the peer.

        Raises:
            HandshakeError: The plaintext is too long, or the pattern lets us not send.
            NonceExhausted: Only a new handshake helps.
        """
        if len(plaintext) > PLAINTEXT_BYTES_MAX:
            raise HandshakeError(f"a transport message carries at most {PLAINTEXT_BYTES_MAX} bytes")
        return self.sending.encrypt_with_ad(ad, plaintext)

    def decrypt(self, message: bytes, ad: bytes = b"") -> bytes:
        """The plaintext of the next message received.

        Args:
            message: 16 to 65,535 bytes.
            ad: Associated data, as the sender gave it.

        Raises:
            DecryptError: The tag does not hold, or the size is impossible.  The nonce has not moved.
            HandshakeError: The pattern lets us not receive.
            NonceExhausted: Only a new handshake helps.
        """
        if not TAGLEN <= len(message) <= MESSAGE_BYTES_MAX:
            raise DecryptError(
                f"a transport message has {TAGLEN} to {MESSAGE_BYTES_MAX} bytes, not {len(message)}"
            )
        return self.receiving.decrypt_with_ad(ad, message)
