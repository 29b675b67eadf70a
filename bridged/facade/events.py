"""The canonical events: what happened in a conversation, as clients read it on `bridge/core/event`.  Pure.

The payload of such an envelope is what the WebSocket gives its clients (`interfaces.md`), but for `offset`: that is
the record's own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from bridged.envelope import format_time, from_ms
from bridged.facade.deliveries import Standing
from bridged.facade.messages import Message, ReactionChange, excerpt

# Specification constants (wire contract 4.6).
EVENT_TOPIC = "bridge/core/event"

BRIDGE = "msgr://identity/msgr/bridge"
"""Who speaks when the house itself has something to say."""
BRIDGE_NAME = "bridge"


def person(ref: str, name: str) -> dict[str, Any]:
    """Who it was."""
    return {"ref": ref, "name": name}


def moment(at_ms: int) -> str:
    """`2026-11-24T08:00:00.125Z`"""
    return format_time(from_ms(at_ms))


def quotation(message: Message | None) -> dict[str, Any] | None:
    """What a reply points at; None quotes nothing."""
    if message is None:
        return None
    return {
        "message_id": message.message_id,
        "name": message.name,
        "text": excerpt(message.text),
    }


def message_event(
    message: Message,
    *,
    channel: str | None,
    reply_to: Message | None,
    deliveries: Sequence[tuple[str, str]],
    more: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """A message was said.

    Args:
        channel: Where, as a reference; None for a client's.
        deliveries: (channel, state) of every other room of the conversation.
    """
    payload: dict[str, Any] = {
        "event": "message",
        "conversation": message.conversation,
        "message_id": message.message_id,
        "trace_id": message.trace_id,
        "channel": channel,
        "sender": person(message.sender, message.name),
        "kind": message.kind,
        "text": message.text,
        "reply_to": quotation(reply_to),
        "at": moment(message.at_ms),
        "deliveries": [{"channel": ref, "state": state} for ref, state in deliveries],
    }
    if message.html is not None:
        payload["html"] = message.html
    if message.edits:
        payload["edited"] = True
    if message.redacted:
        payload["redacted"] = True
    return payload | dict(more or {})


def edit_event(
    message: Message, *, trace_id: str, channel: str | None, sender: str, name: str, at_ms: int
) -> dict[str, Any]:
    """A message says something else now."""
    payload = _about(message, "edit", trace_id, channel, sender, name, at_ms)
    payload["text"] = message.text
    if message.html is not None:
        payload["html"] = message.html
    return payload


def delete_event(
    message: Message, *, trace_id: str, channel: str | None, sender: str, name: str, at_ms: int
) -> dict[str, Any]:
    """A message was taken back."""
    return _about(message, "delete", trace_id, channel, sender, name, at_ms)


def reaction_event(
    message: Message,
    change: ReactionChange,
    *,
    trace_id: str,
    channel: str | None,
    sender: str,
    name: str,
    at_ms: int,
) -> dict[str, Any]:
    """Somebody's reactions to a message are now `emojis`."""
    return _about(message, "reaction", trace_id, channel, sender, name, at_ms) | {
        "emojis": list(change.emojis),
        "added": list(change.added),
        "removed": list(change.removed),
    }


def status_event(
    standing: Standing,
    *,
    conversation: str,
    message_id: str | None,
    channel: str | None,
    at_ms: int,
    latency_ms: int | None = None,
) -> dict[str, Any]:
    """An intent stands somewhere else in a channel now."""
    payload: dict[str, Any] = {
        "event": "status",
        "conversation": conversation,
        "trace_id": standing.trace_id,
        "message_id": message_id,
        "channel": channel,
        "status": standing.state.value,
        "attempt": standing.attempt,
        "at": moment(at_ms),
    }
    if latency_ms is not None:
        payload["latency_ms"] = latency_ms
    if standing.error is not None:
        payload["error"] = standing.error
    return payload


def _about(
    message: Message, event: str, trace_id: str, channel: str | None, sender: str, name: str, at_ms: int
) -> dict[str, Any]:
    return {
        "event": event,
        "conversation": message.conversation,
        "message_id": message.message_id,
        "trace_id": trace_id,
        "channel": channel,
        "sender": person(sender, name),
        "at": moment(at_ms),
    }
