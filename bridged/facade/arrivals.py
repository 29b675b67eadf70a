"""What each thing that a connector tells does to the message store, and whom it is told to.

Everything here runs inside one turn; nothing blocks.  An arrival that was applied before, that is our own echo or
that speaks of what nobody here knows changes nothing, and its trail says why.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import attrs

from bridged.envelope import Envelope, new_trace_id, to_ms
from bridged.facade.core import Turn
from bridged.facade.deliveries import Move, Standing
from bridged.facade.directory import Channel
from bridged.facade.events import (
    BRIDGE,
    BRIDGE_NAME,
    delete_event,
    edit_event,
    message_event,
    moment,
    person,
    quotation,
    reaction_event,
)
from bridged.facade.gaps import gap_text
from bridged.facade.intents import (
    Decided,
    Speaker,
    delete_intent,
    edit_intent,
    message_intent,
    reaction_intent,
)
from bridged.facade.messages import Message as Stored
from bridged.facade.messages import Said
from bridged.facade.verdicts import Verdict
from bridged.schema import (
    DeliveryState,
    DeliveryStatus,
    Edit,
    Gap,
    Membership,
    Message,
    Person,
    Reaction,
    Redaction,
    StateUpdate,
    Throttle,
)
from shards.record import Record

Rooms = Sequence[tuple[Channel, Verdict]]


@attrs.frozen(kw_only=True)
class Arrival:
    """One record of a connector, checked and decided on."""

    record: Record
    envelope: Envelope
    service: str
    instance: str
    channel: Channel | None
    """Linked to a conversation; None where the event has no channel or nobody linked it."""
    rooms: Rooms = ()
    """The other channels of the conversation, with the verdicts."""

    @property
    def conversation(self) -> str:
        assert self.channel is not None and self.channel.conversation is not None
        return self.channel.conversation

    @property
    def row(self) -> int:
        assert self.channel is not None
        return self.channel.row

    @property
    def ref(self) -> str:
        assert self.channel is not None
        return self.channel.ref


# Spoken ---------------------------------------------------------------------------------------------------------


def apply_message(turn: Turn, arrival: Arrival, said: Message) -> None:
    """Store what was said and relay it, once."""
    row, sender = arrival.row, said.sender.ref
    scope = "" if said.is_server_id else sender
    if turn.messages.is_held(turn.tx, row, said.remote_id, scope, sender):
        return
    is_buried = turn.messages.is_buried(turn.tx, row, said.remote_id, sender)
    _say(
        turn,
        arrival,
        Said(
            conversation=arrival.conversation,
            channel=row,
            sender=sender,
            name=said.sender.name,
            kind=said.kind,
            text="" if is_buried else said.text,
            html=None if is_buried else said.html,
            at_ms=to_ms(said.at),
            redacted=is_buried,
        ),
        remote_ids=[(said.remote_id, scope), *_aliases(arrival, said, scope)],
        reply_to=said.reply_to,
    )


def apply_edit(turn: Turn, arrival: Arrival, edit: Edit) -> None:
    """Change a message of the same author; an edit of what was never received is said as a message."""
    sender = edit.sender.ref
    if not turn.messages.first_sight(turn.tx, arrival.row, "edit", edit.remote_id, edit.edit_id, sender):
        return
    message = turn.messages.by_remote(
        turn.tx, arrival.conversation, arrival.row, edit.remote_id, speaker=sender
    )
    if message is None:
        # Nothing may be lost, so the words are said; under the sender's own scope, so that nobody can take the id
        # of somebody else's message that is yet to come.
        _say(
            turn,
            arrival,
            Said(
                conversation=arrival.conversation,
                channel=arrival.row,
                sender=sender,
                name=edit.sender.name,
                kind="message",
                text=edit.text,
                html=edit.html,
                at_ms=to_ms(edit.at),
                edits=1,
            ),
            remote_ids=[(edit.remote_id, sender), (edit.edit_id, sender)],
            reply_to=None,
        )
        return
    if not _is_author(turn, arrival, message, edit.sender):
        return
    if message.text == edit.text and message.html == edit.html:
        return
    trace_id, causation_id = _trace_of(turn, arrival)
    edited = turn.messages.edit(
        turn.tx, message, text=edit.text, html=edit.html, trace_id=trace_id, at_ms=to_ms(edit.at)
    )
    turn.messages.name_remote(
        turn.tx, arrival.row, message.id, edit.edit_id, scope="" if edit.is_server_id else sender, part=1
    )

    def draft(decided: Decided, channel: Channel) -> Envelope:
        remote_id = turn.messages.remote_of(turn.tx, edited.conversation, channel.row, edited.id)
        return edit_intent(decided, channel, edited, remote_id=remote_id, original_text=message.text)

    _relay(turn, arrival, edit.sender, edited, trace_id, causation_id, draft)
    turn.event(
        edit_event(
            edited,
            trace_id=trace_id,
            channel=arrival.ref,
            sender=sender,
            name=edit.sender.name,
            at_ms=to_ms(edit.at),
        ),
        key=edited.conversation,
        trace_id=trace_id,
    )


def apply_redaction(turn: Turn, arrival: Arrival, redaction: Redaction) -> None:
    """Take a message back: by its author, or by the platform where the message was said on it."""
    by = redaction.sender
    if arrival.envelope.payload.get("by") == "moderator":
        by = None
    scope = "" if by is None else by.ref
    if not turn.messages.first_sight(turn.tx, arrival.row, "redaction", redaction.remote_id, "", scope):
        return
    message = turn.messages.by_remote(
        turn.tx,
        arrival.conversation,
        arrival.row,
        redaction.remote_id,
        speaker=None if by is None else by.ref,
    )
    if message is None:
        turn.messages.bury(turn.tx, arrival.row, redaction.remote_id, scope)
        return
    if message.redacted:
        return
    if by is None and message.channel != arrival.row:
        # A room's moderators rule over their room's copy, not over what was said elsewhere.
        turn.note(
            arrival.envelope.trace_id, "dropped", "moderation of what was said elsewhere", channel=arrival.row
        )
        return
    if by is not None and not _is_author(turn, arrival, message, by):
        return
    actor = by or Person(ref=BRIDGE, name="moderator")
    trace_id, causation_id = _trace_of(turn, arrival)
    turn.messages.redact(turn.tx, message)

    def draft(decided: Decided, channel: Channel) -> Envelope:
        remote_id = turn.messages.remote_of(turn.tx, message.conversation, channel.row, message.id)
        return delete_intent(decided, channel, message, remote_id=remote_id)

    _relay(turn, arrival, actor, message, trace_id, causation_id, draft)
    turn.event(
        delete_event(
            message,
            trace_id=trace_id,
            channel=arrival.ref,
            sender=actor.ref,
            name=actor.name,
            at_ms=to_ms(redaction.at),
        ),
        key=message.conversation,
        trace_id=trace_id,
    )


def apply_reaction(turn: Turn, arrival: Arrival, reaction: Reaction) -> None:
    """Set the sender's reactions to a message."""
    sender = reaction.sender
    version = f"{to_ms(reaction.at)} {' '.join(reaction.emojis)}"
    if not turn.messages.first_sight(
        turn.tx, arrival.row, "reaction", reaction.remote_id, version, sender.ref
    ):
        return
    message = turn.messages.by_remote(turn.tx, arrival.conversation, arrival.row, reaction.remote_id)
    if message is None or message.redacted:
        turn.note(
            arrival.envelope.trace_id, "dropped", "reaction to no message of this room", channel=arrival.row
        )
        return
    change = turn.messages.react(
        turn.tx,
        message,
        sender=sender.ref,
        name=sender.name,
        emojis=reaction.emojis,
        at_ms=to_ms(reaction.at),
    )
    if not change.added and not change.removed:
        return
    trace_id, causation_id = _trace_of(turn, arrival)

    def draft(decided: Decided, channel: Channel) -> Envelope:
        remote_id = turn.messages.remote_of(turn.tx, message.conversation, channel.row, message.id)
        return reaction_intent(decided, channel, message, change, remote_id=remote_id)

    _relay(turn, arrival, sender, message, trace_id, causation_id, draft)
    turn.event(
        reaction_event(
            message,
            change,
            trace_id=trace_id,
            channel=arrival.ref,
            sender=sender.ref,
            name=sender.name,
            at_ms=to_ms(reaction.at),
        ),
        key=message.conversation,
        trace_id=trace_id,
    )


def apply_gap(turn: Turn, arrival: Arrival, gap: Gap) -> None:
    """Tell the other rooms, with both times."""
    assert arrival.channel is not None
    begin, end = to_ms(gap.begin), to_ms(gap.end)
    if not turn.messages.first_sight(turn.tx, arrival.row, "gap", str(begin), str(end), ""):
        return
    span = {"from": moment(begin), "to": moment(end), "reason": gap.reason}
    _say(
        turn,
        arrival,
        Said(
            conversation=arrival.conversation,
            channel=arrival.row,
            sender=BRIDGE,
            name=BRIDGE_NAME,
            kind="gap",
            text=gap_text(arrival.channel, gap.begin, gap.end, gap.reason),
            html=None,
            at_ms=turn.at_ms,
        ),
        remote_ids=[],
        reply_to=None,
        more={"gap": span},
    )


# Told -----------------------------------------------------------------------------------------------------------


def apply_status(turn: Turn, arrival: Arrival, status: DeliveryStatus) -> None:
    """Move an intent's state in the reporting connector's own channel, if the step is legal."""
    standing = _reported(turn, arrival, status)
    error = None if status.error is None else status.error.to_payload()
    if standing is None:
        turn.note(status.trace_id, "dropped", "status of no intent", detail={"state": status.state.value})
        return
    move, standing = turn.deliveries.move(
        turn.tx,
        trace_id=status.trace_id,
        channel=standing.channel,
        state=status.state,
        attempt=status.attempt,
        at_ms=turn.at_ms,
        error=error,
    )
    assert standing is not None
    if move is not Move.MOVED:
        if move is Move.ILLEGAL:
            detail = {"state": status.state.value, "stays": standing.state.value}
            turn.note(status.trace_id, "dropped", "no legal step", channel=standing.channel, detail=detail)
        return
    detail_of: dict[str, Any] = {"attempt": status.attempt, "principal": arrival.record.principal}
    for key, value in (("latency_ms", status.latency_ms), ("remote_id", status.remote_id), ("error", error)):
        if value is not None:
            detail_of[key] = value
    turn.note(status.trace_id, "status", standing.state.value, channel=standing.channel, detail=detail_of)
    if standing.message is None:
        return
    _learn_names(turn, standing, status)
    address = turn.messages.address_of(turn.tx, standing.message)
    turn.tell_standing(standing, conversation=address[0], message_id=address[1], latency_ms=status.latency_ms)


def apply_membership(turn: Turn, arrival: Arrival, membership: Membership) -> None:
    """Tell clients who came and went."""
    payload: dict[str, Any] = {
        "event": "membership",
        "conversation": arrival.conversation,
        "channel": arrival.ref,
        "trace_id": arrival.envelope.trace_id,
        "change": membership.change,
        "member": None
        if membership.member is None
        else person(membership.member.ref, membership.member.name),
        "at": moment(to_ms(membership.at)),
    }
    if membership.names is not None:
        payload["names"] = list(membership.names)
    for key, value in (("by", membership.by), ("reason", membership.reason)):
        if value is not None:
            payload[key] = value
    turn.event(payload, key=arrival.conversation, trace_id=arrival.envelope.trace_id)


def apply_throttle(turn: Turn, arrival: Arrival, throttle: Throttle) -> None:
    """Tell who waits, and how long."""
    payload: dict[str, Any] = {
        "event": "throttle",
        "service": arrival.service,
        "instance": arrival.instance,
        "conversation": None if arrival.channel is None else arrival.conversation,
        "channel": None if arrival.channel is None else arrival.ref,
        "scope": throttle.scope,
        "key": throttle.key,
        "retry_after_ms": throttle.retry_after_ms,
        "reason": throttle.reason,
        "at": moment(turn.at_ms),
    }
    if throttle.queue_depth is not None:
        payload["queue_depth"] = throttle.queue_depth
    turn.note(
        arrival.envelope.trace_id,
        "throttle",
        throttle.reason,
        channel=None if arrival.channel is None else arrival.row,
        detail={"retry_after_ms": throttle.retry_after_ms},
    )
    turn.event(payload, key=_instance_key(arrival), trace_id=arrival.envelope.trace_id)


def apply_state(turn: Turn, arrival: Arrival, update: StateUpdate) -> None:
    """Tell where a connector stands."""
    payload: dict[str, Any] = {
        "event": "connector",
        "service": arrival.service,
        "instance": arrival.instance,
        "state": update.state,
        "detail": update.detail,
        "since": moment(to_ms(update.since)),
    }
    if update.account is not None:
        payload["account"] = update.account
    turn.event(payload, key=_instance_key(arrival), trace_id=arrival.envelope.trace_id)


def tell_dead_letter(
    turn: Turn, record: Record, *, service: str, instance: str, trace_id: str, code: str, reason: str
) -> None:
    """Tell operators that a record could not be used; what it held is not quoted."""
    letter = {
        "topic": record.topic,
        "offset": record.offset,
        "position": record.position,
        "principal": record.principal,
        "code": code,
        "reason": reason,
    }
    turn.note(trace_id, "dropped", code, detail=letter)
    payload = {
        "event": "connector",
        "service": service,
        "instance": instance,
        "dead_letter": letter,
        "at": moment(turn.at_ms),
    }
    turn.event(payload, key=f"{service}/{instance}", trace_id=trace_id)


# Private --------------------------------------------------------------------------------------------------------


def _say(
    turn: Turn,
    arrival: Arrival,
    said: Said,
    *,
    remote_ids: Sequence[tuple[str, str]],
    reply_to: str | None,
    more: dict[str, Any] | None = None,
) -> None:
    trace_id, causation_id = _trace_of(turn, arrival)
    replied = None
    if reply_to is not None:
        replied = turn.messages.by_remote(turn.tx, said.conversation, arrival.row, reply_to)
    message = turn.add_message(said, trace_id=trace_id, reply_to=replied)
    for part, (remote_id, scope) in enumerate(dict.fromkeys(remote_ids)):
        turn.messages.name_remote(turn.tx, arrival.row, message.id, remote_id, scope=scope, part=part)

    def draft(decided: Decided, channel: Channel) -> Envelope:
        quoted = quotation(replied)
        if replied is not None and quoted is not None:
            quoted["remote_id"] = turn.messages.remote_of(
                turn.tx, message.conversation, channel.row, replied.id
            )
        return message_intent(decided, channel, message, reply_to=quoted, more=more)

    standings: list[Standing] = []
    if not message.redacted:
        sender = Person(ref=said.sender, name=said.name)
        standings = _relay(turn, arrival, sender, message, trace_id, causation_id, draft)
    turn.event(
        message_event(
            message,
            channel=arrival.ref,
            reply_to=replied,
            deliveries=turn.shown(standings),
            more=more,
        ),
        key=message.conversation,
        trace_id=trace_id,
        message=message,
    )


def _relay(
    turn: Turn,
    arrival: Arrival,
    sender: Person,
    message: Stored,
    trace_id: str,
    causation_id: str | None,
    draft: Callable[[Decided, Channel], Envelope],
) -> list[Standing]:
    record = arrival.record
    turn.note(
        trace_id,
        "envelope",
        record.topic,
        channel=arrival.row,
        detail={"principal": record.principal, "position": record.position, "offset": record.offset},
    )
    return turn.relay(
        arrival.rooms,
        trace_id=trace_id,
        causation_id=causation_id,
        speaker=Speaker(ref=sender.ref, name=sender.name),
        message=message,
        draft=draft,
    )


def _trace_of(turn: Turn, arrival: Arrival) -> tuple[str, str | None]:
    """The arrival's trace id, or a fresh one caused by it where that already names something else."""
    trace_id = arrival.envelope.trace_id
    if not turn.messages.has_trace(turn.tx, trace_id):
        return trace_id, None
    return new_trace_id(turn.token_bytes), trace_id


def _aliases(arrival: Arrival, said: Message, scope: str) -> list[tuple[str, str]]:
    """Further names of a message: what its sender called it, where the server has named it too."""
    origin_id = arrival.envelope.payload.get("origin_id")
    if scope == "" and isinstance(origin_id, str) and 0 < len(origin_id) <= 1024:
        return [(origin_id, said.sender.ref)]
    return []


def _is_author(turn: Turn, arrival: Arrival, message: Stored, actor: Person) -> bool:
    """May the actor change the message?  Only its author may, in the room where it was said."""
    if message.redacted:
        return False
    if message.sender == actor.ref and message.channel == arrival.row:
        return True
    turn.note(
        arrival.envelope.trace_id,
        "dropped",
        "not the author",
        channel=arrival.row,
        detail={"actor": actor.ref, "message_id": message.message_id},
    )
    return False


def _reported(turn: Turn, arrival: Arrival, status: DeliveryStatus) -> Standing | None:
    """The intent that the status is about, if it was given to the connector that says it."""
    if status.channel is not None:
        channel = turn.directory.channel(status.channel)
        if channel is None or (channel.service, channel.instance) != (arrival.service, arrival.instance):
            return None
        return turn.deliveries.standing(turn.tx, status.trace_id, channel.row)
    mine = [
        standing
        for standing in turn.deliveries.of_trace(turn.tx, status.trace_id)
        if (channel := turn.directory.rows.get(standing.channel)) is not None
        and (channel.service, channel.instance) == (arrival.service, arrival.instance)
    ]
    return mine[0] if len(mine) == 1 else None


def _learn_names(turn: Turn, standing: Standing, status: DeliveryStatus) -> None:
    """What the platform calls what we delivered: replies to it, and its echo, come under these names."""
    if standing.message is None or status.state is DeliveryState.FAILED:
        return
    names = list(dict.fromkeys(name for name in (status.remote_id, *status.parts) if name))
    if not names:
        return
    has_name = turn.messages.has_name(turn.tx, standing.channel, standing.message)
    for part, name in enumerate(names, start=1 if has_name else 0):
        turn.messages.name_remote(turn.tx, standing.channel, standing.message, name, part=part)


def _instance_key(arrival: Arrival) -> str:
    return f"{arrival.service}/{arrival.instance}"
