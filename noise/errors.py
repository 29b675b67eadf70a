"""What can go wrong in a Noise conversation, by whose fault it is.

Whatever bytes a peer sends, this package raises one of these and nothing else: a caller fences a
session with a single `except NoiseError`.
"""

from __future__ import annotations


class NoiseError(Exception):
    """Anything this package raises.  After one of them the session it came from must not be used again."""


class PatternError(NoiseError):
    """A protocol name that is malformed or names what is not shipped, or keys that do not fit its pattern."""


class HandshakeError(NoiseError):
    """A handshake message that cannot be right, or one asked for out of turn."""


class DecryptError(NoiseError):
    """An authentication tag does not hold: the bytes were changed, replayed or made under another key."""


class NonceExhausted(NoiseError):
    """2**64 - 1 messages were sent under one key; only a new handshake helps.  Noise rev 34, section 5.1."""
