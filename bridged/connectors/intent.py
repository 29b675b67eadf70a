"""What a connector is asked to do on its platform, and how it can end.  Pure.

An `Intent` has been decided already: it is done, or it fails, or nobody can know; it is never argued with.
Refusal, throttling and doubt are values (`Outcome`); only the loss of the platform itself is raised.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, datetime
from typing import Any

import attrs

from bridged.envelope import Envelope, format_time
from bridged.errors import EnvelopeError

OUTBOUND_ACTIONS = (
    "outbound_message",
    "outbound_edit_message",
    "outbound_delete_message",
    "outbound_reaction",
)
"""Logged actions towards a platform; one list, so that an edit never overtakes its message."""


@attrs.frozen(kw_only=True)
class Speaker:
    """Who spoke, as the other rooms shall see it."""

    ref: str
    name: str
    service: str


@attrs.frozen(kw_only=True)
class Quoted:
    """The message that a reply or a reaction points at."""

    message_id: str | None
    remote_id: str | None
    """Its id in the channel of this intent; None when it never got there."""
    name: str
    text: str


@attrs.frozen(kw_only=True)
class Delivered:
    """The platform's server confirmed."""

    remote_id: str | None = None
    """The platform's id of it; of the first part when it took several."""
    parts: tuple[str, ...] = ()
    """Ids of all parts, when it took several."""


@attrs.frozen
class Unknown:
    """Written, unconfirmed when the connection or the process died, and the platform cannot be asked."""

    reason: str


@attrs.frozen(kw_only=True)
class Failed:
    """Refused for good.  `code` is of the closed set (`bridged.schema.ERROR_CODES`)."""

    code: str
    message: str
    retryable: bool = False
    """May a person try again later?  The house does not."""
    native: str | None = None
    """The platform's own word for it: a numeric, a condition, an error name."""


@attrs.frozen
class Retry:
    """Not taken yet: the same again after so many seconds; the channel's later intents wait behind it."""

    after_s: float
    reason: str
    scope: str = "chat"
    """account | chat | network | shard"""


Outcome = Delivered | Unknown | Failed | Retry


@attrs.define(kw_only=True, eq=False)
class Intent:
    """One thing to do in one channel."""

    action: str
    trace_id: str
    channel: str
    """`msgr://channels/…`"""
    conversation: str
    message_id: str | None
    sender: Speaker
    text: str
    html: str | None
    kind: str
    """message | action | notice"""
    reply_to: Quoted | None
    remote_id: str | None
    """Edits, deletions, reactions: the id in this channel of what they are about, where it is known."""
    original_text: str | None
    target: Quoted | None
    """Reactions and deletions: what they are about, for those who cannot be shown it."""
    emojis: tuple[str, ...]
    added: tuple[str, ...]
    removed: tuple[str, ...]
    idempotency_key: str
    attempt: int
    payload: Mapping[str, Any]
    """The whole payload, with the platform's own keys."""
    was_written: bool = False
    """An earlier life wrote it, or was about to: look it up, or the outcome is `Unknown`."""
    announce: Callable[[], Awaitable[None]] | None = attrs.field(default=None, repr=False)
    """The delivery loop's; a connector calls `mark_written`."""

    async def mark_written(self) -> None:
        """Say `sent`, durably.  Called right before the first native write; further calls do nothing."""
        if self.announce is not None:
            announce, self.announce = self.announce, None
            await announce()


def read_intent(envelope: Envelope, *, attempt: int) -> Intent:
    """The intent that an outbound envelope carries.

    Raises:
        EnvelopeError: A key is missing or of the wrong type; `.field` names it.
    """
    payload = envelope.payload
    sender = _mapping(payload, "sender") or {}
    reference = _text(sender, "ref", "payload.sender.ref", default="")
    name = _text(sender, "name", "payload.sender.name", default="") or reference.rpartition("/")[2] or "?"
    channel = _text(payload, "channel")
    conversation = _text(payload, "conversation", default="")
    key = envelope.metadata.get("idempotency_key")
    return Intent(
        action=envelope.action,
        trace_id=envelope.trace_id,
        channel=channel,
        conversation=conversation,
        message_id=_maybe(payload, "message_id"),
        sender=Speaker(ref=reference, name=name, service=_text(sender, "service", default="")),
        text=_text(payload, "text", default="" if envelope.action != "outbound_message" else None),
        html=_maybe(payload, "html"),
        kind=_maybe(payload, "kind") or "message",
        reply_to=_quoted(payload, "reply_to"),
        remote_id=_maybe(payload, "remote_id"),
        original_text=_maybe(payload, "original_text"),
        target=_quoted(payload, "target"),
        emojis=_texts(payload, "emojis"),
        added=_texts(payload, "added"),
        removed=_texts(payload, "removed"),
        idempotency_key=key if isinstance(key, str) and key else f"{envelope.trace_id}/{channel}",
        attempt=attempt,
        payload=payload,
    )


def timestamp(wall_s: float) -> str:
    """Seconds since 1970 -> `2026-11-24T08:00:00.125Z`, the one form that is emitted."""
    return format_time(datetime.fromtimestamp(wall_s, UTC))


def seconds(value: object) -> float | None:
    """ISO 8601 with an offset, or a number of seconds -> seconds since 1970; None for anything else."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    if isinstance(value, str):
        try:
            at = datetime.fromisoformat(value)
        except ValueError:
            return None
        return at.timestamp() if at.tzinfo is not None else None
    return None


def _text(
    payload: Mapping[str, Any], key: str, path: str | None = None, *, default: str | None = None
) -> str:
    value = payload.get(key)
    path = path or f"payload.{key}"
    if value is None:
        if default is None:
            raise EnvelopeError("missing_field", f"{path} is missing", field=path)
        return default
    if not isinstance(value, str):
        raise EnvelopeError("invalid_field", f"{path} must be text", field=path)
    return value


def _maybe(payload: Mapping[str, Any], key: str) -> str | None:
    return _text(payload, key, default="") or None


def _mapping(payload: Mapping[str, Any], key: str) -> Mapping[str, Any] | None:
    value = payload.get(key)
    if value is not None and not isinstance(value, Mapping):
        raise EnvelopeError("invalid_field", f"payload.{key} must be an object", field=f"payload.{key}")
    return value


def _texts(payload: Mapping[str, Any], key: str) -> tuple[str, ...]:
    value = payload.get(key)
    if value is None:
        return ()
    if not isinstance(value, (list, tuple)) or not all(isinstance(item, str) for item in value):
        raise EnvelopeError("invalid_field", f"payload.{key} must be a list of texts", field=f"payload.{key}")
    return tuple(value)


def _quoted(payload: Mapping[str, Any], key: str) -> Quoted | None:
    value = _mapping(payload, key)
    if value is None:
        return None
    return Quoted(
        message_id=_maybe(value, "message_id"),
        remote_id=_maybe(value, "remote_id"),
        name=_text(value, "name", f"payload.{key}.name", default=""),
        text=_text(value, "text", f"payload.{key}.text", default=""),
    )
