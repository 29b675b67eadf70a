"""The errors of the middle floor, by whose fault they are.  Pure."""

from __future__ import annotations


class ShardsError(Exception):
    """Anything the fabric raises.  `hint` says what an operator can do about it."""

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


class LocalProtocolError(ShardsError):
    """This side broke the protocol: our bug."""


class RemoteProtocolError(ShardsError):
    """The other side broke the protocol.  `reply` is the frame that good manners require, if any."""

    def __init__(self, message: str, *, hint: str = "", reply: bytes | None = None) -> None:
        super().__init__(message, hint=hint)
        self.reply = reply


class NotGranted(ShardsError):
    """The principal has no grant for this; a foreign or absent name gives the same answer."""


class Unreachable(ShardsError):
    """No broker answered in time at the endpoint."""


class RequestFailed(ShardsError):
    """A responder, or the broker for it, answered a request with an error code of the closed set."""

    def __init__(self, code: str, message: str, *, hint: str = "", retry_after_ms: int | None = None) -> None:
        super().__init__(message, hint=hint)
        self.code = code
        self.retry_after_ms = retry_after_ms


class OutboxFull(ShardsError):
    """The local outbox is at its bound; nothing was accepted."""


class LogError(ShardsError):
    """The shard's storage cannot do what it promised."""


class LogCorrupt(LogError):
    """A checksum, chain or schema does not hold: the shard stops, nothing is repaired silently."""


class LogFull(LogError):
    """The disk or the quota is full."""


class StorageFailed(LogError):
    """A commit or fsync failed: nothing on this file may be acknowledged again.  The process ends with 74."""


class OffsetTrimmed(LogError):
    """The wanted records were removed by retention.  `first` is the oldest position that is left."""

    def __init__(self, message: str, *, first: int, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.first = first


class MemberError(ShardsError):
    """A member of a shard fell; the shard survives it and the restart policy decides."""
