"""Envelopes from connectors, ours and upstream's, made into events.          Wire contract, section 4.  Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bridged.envelope import Envelope, format_time
from bridged.errors import EnvelopeError
from bridged.schema.delivery import ERROR_CODES, DeliveryState
from bridged.schema.events import (
    CHANGES,
    KINDS,
    DeliveryStatus,
    Edit,
    Fault,
    Gap,
    InboundEvent,
    Membership,
    Message,
    Presence,
    Reaction,
    Receipt,
    Redaction,
    StateUpdate,
    Throttle,
    Typing,
)
from bridged.schema.form import LIST_MAX, NAME_CHARACTERS_MAX, Form


def read_inbound(envelope: Envelope, *, tenant: str) -> InboundEvent:
    """What a connector tells, in whichever form it tells it.          Wire contract, section 4.

    Args:
        envelope: As decoded; whether its sender may say it is for the caller to check.
        tenant: The workspace; channels and metadata must be of it.

    Raises:
        EnvelopeError: `unknown_action`, `missing_field`, `invalid_field` or `tenant_mismatch`, with the field.
    """
    said = envelope.metadata.get("tenant")
    if said is not None and said != tenant:
        raise EnvelopeError("tenant_mismatch", "the envelope is of another tenant", field="metadata.tenant")
    form = Form(envelope, tenant)
    match envelope.action:
        case "inbound_message" | "inbound_stanza" | "inbound_event" | "inbound_update":
            return _message(form)
        case "edit_event":
            return _edit(form)
        case "redaction_event":
            return Redaction(
                channel=form.channel(),
                remote_id=form.id("remote_id"),
                sender=form.person() if form.get("sender") is not None else None,
                at=form.time(),
                is_server_id=form.is_server_id(),
                cursor=form.cursor(),
            )
        case "reaction_event":
            return Reaction(
                channel=form.channel(),
                remote_id=form.id("remote_id"),
                sender=form.person(),
                emojis=tuple(dict.fromkeys(form.texts("emojis"))),
                at=form.time(),
                is_server_id=form.is_server_id(),
                cursor=form.cursor(),
            )
        case "membership" | "channel_member_update":
            return _membership(form)
        case "gap_event":
            begin, end = form.time("from"), form.time("to")
            if end < begin:
                raise form.invalid("to", "lies before payload.from")
            return Gap(channel=form.channel(), begin=begin, end=end, reason=form.text("reason"))
        case "typing_event":
            return Typing(channel=form.channel(), sender=form.person(), is_typing=form.flag("typing", True))
        case "receipt_event":
            kind = form.maybe("kind") or "read"
            return Receipt(
                channel=form.channel(),
                sender=form.person(),
                remote_id=form.id("remote_id"),
                is_read=kind == "read",
            )
        case "presence_event":
            return Presence(sender=form.person(), show=form.text("show"), status=form.maybe("status"))
        case "delivery_status":
            return _delivery_status(form)
        case "throttle":
            return Throttle(
                scope=form.one_of("scope", ("account", "chat", "network", "shard")),
                key=form.id("key"),
                retry_after_ms=form.number("retry_after_ms"),
                reason=form.maybe("reason") or "",
                queue_depth=form.maybe_number("queue_depth"),
            )
        case "state_update":
            return StateUpdate(
                state=form.text("state"),
                detail=form.maybe("detail") or "",
                since=form.time("since"),
                account=form.maybe("account"),
            )
    raise EnvelopeError("unknown_action", f"nobody reads the action {envelope.action!a:.80}", field="action")


def ack_for(envelope: Envelope) -> tuple[str, dict[str, Any]] | None:
    """The acknowledgement that the sender's contract expects: (action, payload).          Wire contract, 7.

    It moves the sender's cursor and has no effect that anybody on the network could see.  None where the payload
    names nothing that could be acknowledged.
    """
    payload, at = envelope.payload, format_time(envelope.occurred_at)
    match envelope.service:
        case "telegram" if "update_id" in payload:
            return "ack_update", {"update_id": payload["update_id"], "status": "stored", "received_at": at}
        case "matrix" if "next_batch" in payload:
            position = payload.get("stream_position", 0)
            return "ack_sync", {"next_batch": payload["next_batch"], "stream_position": position}
        case "matrix" if "event_id" in payload:
            return "ack_update", {"event_id": payload["event_id"], "status": "stored"}
        case "irc" if "network" in payload and "offset" in payload:
            named = payload.get("channel")
            is_ref = not isinstance(named, str) or named.startswith("msgr:")
            return "ack_offset", {
                "network": payload["network"],
                "channel": payload.get("target") if is_ref else named,
                "offset": payload["offset"],
                "status": "stored",
            }
        case "xmpp" if "stanza_id" in payload:
            return "ack_receipt", {
                "stanza_id": payload["stanza_id"],
                "status": "stored",
                "received_at": at,
            }
    return None


# Private.


def _message(form: Form) -> Message | Edit:
    if (
        "edit" in (form.maybe("update_type") or "").lower()
    ):  # Telegram tells edits as updates of another class
        return _edit(form)
    kind = form.maybe("kind") or "message"
    return Message(
        channel=form.channel(),
        remote_id=form.id("remote_id", "message_id", "event_id", "archive_id", "stanza_id", "update_id"),
        sender=form.person(),
        text=form.body(),
        html=form.html(),
        kind=kind if kind in KINDS else "message",  # privmsg, chat, groupchat: the network's own words
        at=form.time(),
        reply_to=form.reply_to(),
        is_server_id=form.is_server_id(),
        cursor=form.cursor(),
    )


def _edit(form: Form) -> Edit:
    return Edit(
        channel=form.channel(),
        remote_id=form.id("remote_id", "message_id", "event_id"),
        edit_id=form.id("edit_id", "update_id"),
        sender=form.person(),
        text=form.body(),
        html=form.html(),
        at=form.time(),
        is_server_id=form.is_server_id(),
        cursor=form.cursor(),
    )


def _membership(form: Form) -> Membership:
    names = form.maybe_texts("names")
    members = form.get("members")
    if names is None and isinstance(members, list):  # [{"nick", "modes"}], the upstream-style snapshot
        names = tuple(
            str(member.get("nick") or member.get("name") or "")[:NAME_CHARACTERS_MAX]
            for member in members[:LIST_MAX]
            if isinstance(member, Mapping)
        )
    return Membership(
        channel=form.channel(),
        change=form.one_of("change", CHANGES),
        member=form.person("member") if form.get("member") is not None else None,
        names=names,
        by=form.name_of("by"),
        reason=form.maybe("reason"),
        at=form.time(),
        cursor=form.cursor(),
    )


def _delivery_status(form: Form) -> DeliveryStatus:
    word = form.text("status")
    try:
        state = DeliveryState(word)
    except ValueError:
        raise form.invalid("status", f"is no delivery state: {word!a:.40}") from None
    error = form.get("error")
    fault = None
    if error is not None:
        if not isinstance(error, Mapping):
            raise form.invalid("error", "must be an object")
        code, native = error.get("code"), error.get("native")
        fault = Fault(
            # A final state is never lost for a word in it: what is outside the closed set is `internal`.
            code=code if code in ERROR_CODES else "internal",
            message=str(error.get("message") or ""),
            retryable=error.get("retryable") is True,
            native=str(native) if native is not None else None if code in ERROR_CODES else str(code),
        )
    has_channel = form.get("channel") is not None or form.get("chat") is not None
    return DeliveryStatus(
        trace_id=form.envelope.trace_id,
        channel=form.channel() if has_channel else None,
        state=state,
        attempt=form.maybe_number("attempt") or 1,
        remote_id=form.maybe_id("remote_id"),
        parts=form.maybe_texts("parts") or (),
        idempotency_key=form.maybe("idempotency_key"),
        latency_ms=form.maybe_number("latency_ms"),
        error=fault,
    )
