"""The Noise Protocol Framework, revision 34 (Trevor Perrin, noiseprotocol.org/noise.html).

All fundamental patterns, one-way, interactive and deferred, with `psk` modifiers, over 25519, ChaChaPoly and
AESGCM, SHA256, SHA512, BLAKE2s and BLAKE2b.  Not shipped: curve 448 and the `fallback` modifier.  The package
does no I/O and reads no clock; `python -m noise FILE…` checks it against test vectors.
"""

from noise.errors import DecryptError, HandshakeError, NoiseError, NonceExhausted, PatternError
from noise.pattern import PATTERNS, Pattern
from noise.state import MESSAGE_BYTES_MAX, CipherState, HandshakeState, Protocol, SymmetricState, protocol
from noise.suite import KeyPair
from noise.transport import PLAINTEXT_BYTES_MAX, TransportState

__all__ = [
    "MESSAGE_BYTES_MAX",
    "PATTERNS",
    "PLAINTEXT_BYTES_MAX",
    "CipherState",
    "DecryptError",
    "HandshakeError",
    "HandshakeState",
    "KeyPair",
    "NoiseError",
    "NonceExhausted",
    "Pattern",
    "PatternError",
    "Protocol",
    "SymmetricState",
    "TransportState",
    "protocol",
]
