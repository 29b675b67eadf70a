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
from bridged.facade.deliveries import Standing
from bridged.facade.directory import Channel
from bridged.facade.events import (
    BRIDGE,
    BRIDGE_NAME,
    delete_event,
    edit_event,
    message_event,
    moment,
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
from bridged.richtext import safe_html
from bridged.schema import (
    Edit,
    Gap,
    Message,
    Person,
    Reaction,
    Redaction,
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
    if turn.names.is_held(turn.tx, row, said.remote_id, scope, sender):
        return
    is_buried = turn.names.is_buried(turn.tx, row, said.remote_id, sender)
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
            html=None if is_buried else _html(said.html),
            at_ms=to_ms(said.at),
            redacted=is_buried,
        ),
        remote_ids=[(said.remote_id, scope), *_aliases(arrival, said, scope)],
        reply_to=said.reply_to,
    )


def apply_edit(turn: Turn, arrival: Arrival, edit: Edit) -> None:
    """Change a message of the same author; an edit of what was never received is said as a message."""
    sender = edit.sender.ref
    if not turn.names.first_sight(turn.tx, arrival.row, "edit", edit.remote_id, edit.edit_id, sender):
        return
    message = turn.names.message(turn.tx, arrival.conversation, arrival.row, edit.remote_id, speaker=sender)
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
                html=_html(edit.html),
                at_ms=to_ms(edit.at),
                edits=1,
            ),
            remote_ids=[(edit.remote_id, sender), (edit.edit_id, sender)],
            reply_to=None,
        )
        return
    if not _is_author(turn, arrival, message, edit.sender):
        return
    html = _html(edit.html)
    if (message.text, message.html) == (edit.text, html):
        return
    trace_id, causation_id = _trace_of(turn, arrival)
    edited = turn.messages.edit(
        turn.tx, message, text=edit.text, html=html, trace_id=trace_id, at_ms=to_ms(edit.at)
    )
    turn.names.learn(
        turn.tx, arrival.row, message.id, edit.edit_id, scope="" if edit.is_server_id else sender, part=1
    )

    def draft(decided: Decided, channel: Channel) -> Envelope:
        remote_id = turn.names.of(turn.tx, edited.conversation, channel.row, edited.id)
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
    if not turn.names.first_sight(turn.tx, arrival.row, "redaction", redaction.remote_id, "", scope):
        return
    message = turn.names.message(
        turn.tx,
        arrival.conversation,
        arrival.row,
        redaction.remote_id,
        speaker=None if by is None else by.ref,
    )
    if message is None:
        turn.names.bury(turn.tx, arrival.row, redaction.remote_id, scope)
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
        remote_id = turn.names.of(turn.tx, message.conversation, channel.row, message.id)
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
    if not turn.names.first_sight(turn.tx, arrival.row, "reaction", reaction.remote_id, version, sender.ref):
        return
    message = turn.names.message(turn.tx, arrival.conversation, arrival.row, reaction.remote_id)
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
        remote_id = turn.names.of(turn.tx, message.conversation, channel.row, message.id)
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
    if not turn.names.first_sight(turn.tx, arrival.row, "gap", str(begin), str(end), ""):
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
        replied = turn.names.message(turn.tx, said.conversation, arrival.row, reply_to)
    message = turn.add_message(said, trace_id=trace_id, reply_to=replied)
    for part, (remote_id, scope) in enumerate(dict.fromkeys(remote_ids)):
        turn.names.learn(turn.tx, arrival.row, message.id, remote_id, scope=scope, part=part)

    def draft(decided: Decided, channel: Channel) -> Envelope:
        quoted = quotation(replied)
        if replied is not None and quoted is not None:
            quoted["remote_id"] = turn.names.of(turn.tx, message.conversation, channel.row, replied.id)
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


def _html(html: str | None) -> str | None:
    """A network's HTML, built anew: no markup of a stranger's passes from room to room."""
    return None if html is None else safe_html(html)


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
