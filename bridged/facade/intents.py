"""The outbound envelopes: what a connector is asked to do in one channel, once it has been decided.  Pure.

One intent goes to every other channel of a conversation under the same trace id.  What a platform is given to
recognise a repeated delivery is derived from (tenant, channel, trace id, action, part), so two channels never
share it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import attrs

from bridged.envelope import Envelope, new_envelope
from bridged.facade.directory import Channel
from bridged.facade.messages import Message, ReactionChange, excerpt

# Specification constants (wire contract 4.5).
MESSAGE = "outbound_message"
EDIT = "outbound_edit_message"
DELETE = "outbound_delete_message"
REACTION = "outbound_reaction"
TYPING = "typing"
OUTBOUND_ACTIONS = (MESSAGE, EDIT, DELETE, REACTION, TYPING)


@attrs.frozen(kw_only=True, slots=True)
class Speaker:
    """Who speaks or acts."""

    ref: str
    name: str

    @property
    def service(self) -> str:
        """The platform of the identity; `msgr` for people of the house."""
        parts = self.ref.split("/")
        return parts[4] if len(parts) > 4 and parts[3] == "bridges" else "msgr"

    def to_payload(self) -> dict[str, Any]:
        return {"ref": self.ref, "name": self.name, "service": self.service}


@attrs.frozen(kw_only=True, slots=True)
class Decided:
    """What is common to the envelopes of one intent, with the decision that allows this one."""

    tenant: str
    trace_id: str
    now_s: float
    speaker: Speaker
    decision: int
    """Step of the trail."""
    policy_version: str
    causation_id: str | None


def idempotency_key(tenant: str, channel: str, trace_id: str, action: str, part: int = 0) -> str:
    """32 hex digits that name this delivery and no other."""
    fields = (tenant, channel, trace_id, action, str(part))
    joined = b"".join(len(field.encode()).to_bytes(4, "big") + field.encode() for field in fields)
    return hashlib.sha256(joined).hexdigest()[:32]


def target_keys(channel: Channel, text: str) -> dict[str, Any]:
    """How the platform's upstream contract names the target.          Wire contract, 4.1 to 4.4."""
    match channel.service:
        case "irc":
            # `target` is what reactions and deletions are about, so the channel stands in `channel` alone.
            return {"network": channel.pointer[0], "body": text}
        case "xmpp":
            return {"routing": {"to": channel.pointer[-1], "type": "groupchat"}}
        case "matrix":
            return {"room_id": channel.pointer[-1], "message": text}
        case "telegram":
            return {"chat_id": channel.pointer[-1], "message": text}
    return {"chat": channel.pointer[-1]}


def message_intent(
    decided: Decided,
    channel: Channel,
    message: Message,
    *,
    reply_to: Mapping[str, Any] | None,
    more: Mapping[str, Any] | None = None,
) -> Envelope:
    """Say the message there."""
    payload = {
        **_common(decided, channel, message),
        "text": message.text,
        "html": message.html,
        "kind": "notice" if message.kind == "gap" else message.kind,
        "reply_to": None if reply_to is None else dict(reply_to),
        **target_keys(channel, message.text),
        **(more or {}),
    }
    return _envelope(decided, channel, MESSAGE, payload)


def edit_intent(
    decided: Decided, channel: Channel, message: Message, *, remote_id: str | None, original_text: str
) -> Envelope:
    """Show the message's new text there."""
    payload = {
        **_common(decided, channel, message),
        "remote_id": remote_id,
        "original": _original(decided, channel, message),
        "original_text": original_text,
        "text": message.text,
        "html": message.html,
        "kind": message.kind,
        **target_keys(channel, message.text),
    }
    return _envelope(decided, channel, EDIT, payload)


def delete_intent(decided: Decided, channel: Channel, message: Message, *, remote_id: str | None) -> Envelope:
    """Take the message (as it was before) back there."""
    payload = {
        **_common(decided, channel, message),
        "remote_id": remote_id,
        "original": _original(decided, channel, message),
        "text": excerpt(message.text),
        "target": {"message_id": message.message_id, "name": message.name, "text": excerpt(message.text)},
        **target_keys(channel, ""),
    }
    return _envelope(decided, channel, DELETE, payload)


def reaction_intent(
    decided: Decided, channel: Channel, message: Message, change: ReactionChange, *, remote_id: str | None
) -> Envelope:
    """Show the sender's reactions to the message there."""
    payload = {
        **_common(decided, channel, message),
        "remote_id": remote_id,
        "original": _original(decided, channel, message),
        "emojis": list(change.emojis),
        "added": list(change.added),
        "removed": list(change.removed),
        "target": {
            "message_id": message.message_id,
            "remote_id": remote_id,
            "name": message.name,
            "text": excerpt(message.text),
        },
        **target_keys(channel, ""),
    }
    return _envelope(decided, channel, REACTION, payload)


def _common(decided: Decided, channel: Channel, message: Message) -> dict[str, Any]:
    return {
        "channel": channel.ref,
        "conversation": message.conversation,
        "message_id": message.message_id,
        "sender": decided.speaker.to_payload(),
    }


def _original(decided: Decided, channel: Channel, message: Message) -> dict[str, Any]:
    """How the connector may know the message where its remote id is still on its way to us."""
    return {
        "trace_id": message.trace_id,
        "idempotency_key": idempotency_key(decided.tenant, channel.ref, message.trace_id, MESSAGE),
    }


def _envelope(decided: Decided, channel: Channel, action: str, payload: dict[str, Any]) -> Envelope:
    metadata: dict[str, Any] = {
        "tenant": decided.tenant,
        "instance": channel.instance,
        "idempotency_key": idempotency_key(decided.tenant, channel.ref, decided.trace_id, action),
        "decision": decided.decision,
        "policy_version": decided.policy_version,
    }
    if decided.causation_id is not None:
        metadata["causation_id"] = decided.causation_id
    return new_envelope(
        channel.service,
        action,
        payload,
        now=decided.now_s,
        trace_id=decided.trace_id,
        metadata=metadata,
    )
