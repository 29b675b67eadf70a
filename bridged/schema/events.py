"""What a connector can tell, as one family of values whatever the network.  Pure."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import attrs

from bridged.schema.delivery import DeliveryState

# Specification constants (wire contract 4.5).
KINDS = ("message", "action", "notice")
CHANGES = ("join", "leave", "quit", "kick", "nick", "split", "rejoin", "snapshot")
EPHEMERAL_ACTIONS = frozenset({"typing_event", "receipt_event", "presence_event"})
"""Never logged: memory only, shed first."""


@attrs.frozen(kw_only=True, slots=True)
class Person:
    """Somebody on a network."""

    ref: str
    """`msgr://identity/bridges/…`, canonical."""
    name: str
    """As their network shows them."""


@attrs.frozen(kw_only=True, slots=True)
class Cursor:
    """How far a platform's stream has been read, in the platform's own words."""

    stream: str
    value: str


@attrs.frozen(kw_only=True, slots=True)
class Message:
    """Somebody said something."""

    channel: str
    """`msgr://channels/…`, canonical."""
    remote_id: str
    sender: Person
    text: str
    html: str | None
    kind: str
    """message | action | notice"""
    at: datetime
    reply_to: str | None
    """The remote id of what is answered."""
    is_server_id: bool
    """False: the sender chose `remote_id`, and it counts only together with that sender."""
    cursor: Cursor | None


@attrs.frozen(kw_only=True, slots=True)
class Edit:
    """A message says something else now."""

    channel: str
    remote_id: str
    """Of the message."""
    edit_id: str
    """Of this edit; the same edit received twice has the same."""
    sender: Person
    text: str
    html: str | None
    at: datetime
    is_server_id: bool
    cursor: Cursor | None


@attrs.frozen(kw_only=True, slots=True)
class Redaction:
    """A message was taken back, by `sender` or, where that is None, by the platform."""

    channel: str
    remote_id: str
    sender: Person | None
    at: datetime
    is_server_id: bool
    cursor: Cursor | None


@attrs.frozen(kw_only=True, slots=True)
class Reaction:
    """The sender's reactions to a message are now exactly these."""

    channel: str
    remote_id: str
    sender: Person
    emojis: tuple[str, ...]
    at: datetime
    is_server_id: bool
    cursor: Cursor | None


@attrs.frozen(kw_only=True, slots=True)
class Membership:
    """Who is in a channel changed; a `snapshot` lists all in `names`."""

    channel: str
    change: str
    """join | leave | quit | kick | nick | split | rejoin | snapshot"""
    member: Person | None
    names: tuple[str, ...] | None
    by: str | None
    reason: str | None
    at: datetime
    cursor: Cursor | None = None
    """Where a stream begins for us: what was said before our first join is none of ours."""


@attrs.frozen(kw_only=True, slots=True)
class Gap:
    """What was said between the two times was not heard and cannot be fetched."""

    channel: str
    begin: datetime
    end: datetime
    reason: str
    """daemon_down | connection_lost"""


@attrs.frozen(kw_only=True, slots=True)
class Typing:
    """Somebody writes, or has stopped."""

    channel: str
    sender: Person
    is_typing: bool


@attrs.frozen(kw_only=True, slots=True)
class Receipt:
    """Somebody's client has received, or the person has read, all up to a message."""

    channel: str
    sender: Person
    remote_id: str
    is_read: bool


@attrs.frozen(kw_only=True, slots=True)
class Presence:
    """Somebody is there, away, gone."""

    sender: Person
    show: str
    status: str | None


@attrs.frozen(kw_only=True, slots=True)
class Fault:
    """Why a delivery did not happen."""

    code: str
    """Of `ERROR_CODES`."""
    message: str
    retryable: bool
    native: str | None
    """The platform's own word for it."""

    def to_payload(self) -> dict[str, Any]:
        """As it stands in envelopes and in answers."""
        payload = {"code": self.code, "message": self.message, "retryable": self.retryable}
        return payload if self.native is None else payload | {"native": self.native}


@attrs.frozen(kw_only=True, slots=True)
class DeliveryStatus:
    """How far the intent `trace_id` got in a channel."""

    trace_id: str
    channel: str | None
    """None only from upstream parties, who may not say it."""
    state: DeliveryState
    attempt: int
    remote_id: str | None
    parts: tuple[str, ...]
    """Remote ids of all parts, where it took several."""
    idempotency_key: str | None
    latency_ms: int | None
    error: Fault | None


@attrs.frozen(kw_only=True, slots=True)
class Throttle:
    """The platform, or our pacing for it, asks for patience."""

    scope: str
    """account | chat | network | shard"""
    key: str
    retry_after_ms: int
    reason: str
    queue_depth: int | None


@attrs.frozen(kw_only=True, slots=True)
class StateUpdate:
    """Where a connector stands."""

    state: str
    detail: str
    since: datetime
    account: str | None


InboundEvent = (
    Message
    | Edit
    | Redaction
    | Reaction
    | Membership
    | Gap
    | Typing
    | Receipt
    | Presence
    | DeliveryStatus
    | Throttle
    | StateUpdate
)
