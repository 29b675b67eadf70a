"""The errors of the top floor, by whose fault they are.  Pure."""

from __future__ import annotations

from collections.abc import Sequence

from shards.errors import MemberError


class BridgeError(Exception):
    """Anything that `bridged` raises.  `hint` says what an operator can do about it."""

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


class ConfigError(BridgeError):
    """The configuration cannot be used.  `faults` are (path, what is wrong), all of them."""

    def __init__(self, faults: Sequence[tuple[str, str]], *, hint: str = "") -> None:
        super().__init__("; ".join(f"{path}: {what}" for path, what in faults), hint=hint)
        self.faults = tuple(faults)


class EnvelopeError(BridgeError):
    """Bytes that are no acceptable envelope.  `code` is of the closed set (`bridged.schema.ERROR_CODES`)."""

    def __init__(self, code: str, message: str, *, field: str | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.field = field


class VaultError(BridgeError):
    """The vault cannot do what was asked."""


class TokenUnavailable(VaultError):
    """The key token is locked, missing or broken."""


class LeaseExpired(VaultError):
    """The lease is over or revoked; check out again."""


class ConnectorError(MemberError):
    """One connector fell.  The supervisor records it and the restart policy decides; nobody else notices."""


class BadCredentials(ConnectorError):
    """The platform refused the login; only an operator helps.  Not retried until the credential changes."""


class Banned(ConnectorError):
    """The platform shut us out (K-line, ban, closed account); only an operator helps."""


class Disconnected(ConnectorError):
    """The platform's connection ended or could not be made.  Retried for ever."""


class RemoteProtocolFault(ConnectorError):
    """The platform sent what its own specification forbids.  Retried."""
