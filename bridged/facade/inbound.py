"""From the networks: every record of every connector, checked, applied in one transaction a batch, then done.

A record is checked (whose signature, whose topic, whose channel) and decided on before the transaction; in it go
the message, its dedupe key, the connector's cursor, the record's own position, and in the outbox the
acknowledgement, the canonical event and every relayed intent with its decision.  Only after the commit is the
broker told that it is done; so a crash anywhere in between brings records again, and a record that comes again
changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import NoReturn

import attrs
import trio

from bridged.envelope import Envelope, TopicName, format_time, new_envelope, parse_topic, topic_for
from bridged.errors import BridgeError, EnvelopeError
from bridged.facade.arrivals import (
    Arrival,
    apply_edit,
    apply_gap,
    apply_message,
    apply_reaction,
    apply_redaction,
)
from bridged.facade.core import Core, DirectoryMoved, Turn
from bridged.facade.directory import Channel, Directory
from bridged.facade.events import BRIDGE, BRIDGE_NAME
from bridged.facade.intents import Speaker
from bridged.facade.progress import Progress
from bridged.facade.reports import (
    apply_membership,
    apply_state,
    apply_status,
    apply_throttle,
    tell_dead_letter,
)
from bridged.facade.verdicts import Judge, Question, judge_rooms
from bridged.facade.warrants import Warrant, Warrants
from bridged.schema import (
    DeliveryStatus,
    Edit,
    Gap,
    InboundEvent,
    Membership,
    Message,
    Reaction,
    Redaction,
    StateUpdate,
    Throttle,
    ack_for,
    read_inbound,
)
from shards.client import Client, Subscription
from shards.errors import LogError, OutboxFull, RequestFailed
from shards.record import Record

GROUP = "facade"

# Ours.
CREDIT_RECORDS = 256
FULL_PAUSE_S = 0.5
"""While the outbox is full nothing more is taken in; the log keeps it."""
KEYS_PAUSE_S = 0.5
"""While the fabric cannot say who a principal is."""

_SPOKEN_ACTIONS = {
    "irc": ("inbound_message",),
    "xmpp": ("inbound_stanza",),
    "matrix": ("inbound_event", "inbound_message"),
    "telegram": ("inbound_update",),
}
_COMMON_ACTIONS = (
    "edit_event",
    "redaction_event",
    "reaction_event",
    "membership",
    "gap_event",
    "delivery_status",
    "throttle",
    "state_update",
)
INBOUND_ACTIONS = tuple(
    dict.fromkeys((*(action for actions in _SPOKEN_ACTIONS.values() for action in actions), *_COMMON_ACTIONS))
)
ACK_ACTIONS = ("ack_update", "ack_sync", "ack_offset", "ack_receipt")
_EXACT_ACKS = frozenset({"xmpp"})
"""Services whose acknowledgements are not cumulative.          Wire contract, 7 (b)."""


def inbound_topics(connectors: Sequence[tuple[str, str]]) -> list[str]:
    """The logged topics on which these (service, instance) tell what happens."""
    return [
        topic_for(service, action, instance)
        for service, instance in connectors
        for action in (*_SPOKEN_ACTIONS.get(service, ("inbound_message",)), *_COMMON_ACTIONS)
    ]


@attrs.frozen(kw_only=True)
class Examined:
    """A record that may say what it says."""

    record: Record
    envelope: Envelope
    topic: TopicName
    warrant: Warrant
    event: InboundEvent

    @property
    def instance(self) -> str:
        assert self.topic.instance is not None
        return self.topic.instance


@attrs.frozen(kw_only=True)
class Refused:
    """A record that may not, or that nobody understands: a dead letter."""

    record: Record
    topic: TopicName
    trace_id: str
    code: str
    reason: str


@attrs.frozen
class _Plan:
    examined: Examined
    arrival: Arrival
    is_applied: bool
    """False: our own echo, or of a channel that is linked to nothing; only its cursor counts."""


Outcome = _Plan | Refused


class Inbound:
    """The facade's reading side."""

    def __init__(
        self,
        core: Core,
        client: Client,
        *,
        warrants: Warrants,
        judge: Judge,
        connectors: Sequence[tuple[str, str]],
    ) -> None:
        self._core = core
        self._client = client
        self._warrants = warrants
        self._judge = judge
        self._topics = inbound_topics(connectors)
        self._progress = Progress(core.tenant)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> NoReturn:
        """Read for ever, from the facade's own position."""
        start = await self._core.read(self._progress.settled)
        async with self._client.subscribe(
            self._topics, group=GROUP, start=start, credit_records=CREDIT_RECORDS
        ) as subscription:
            task_status.started()
            while True:
                await self.take(subscription, await subscription.receive())

    async def take(self, subscription: Subscription, records: Sequence[Record]) -> None:
        """Apply one batch, then tell the broker."""
        refused = await self.apply(records)
        by_position = {one.record.position: one for one in refused}
        done = [record for record in records if record.position not in by_position]
        for one in refused:
            await subscription.dead(one.record, code=one.code, reason=one.reason)
        if done:
            await subscription.done(done)

    async def apply(self, records: Sequence[Record]) -> list[Refused]:
        """Apply records in one transaction; returns those that are dead letters.

        Where one of them alone cannot be applied (a bug of ours, whatever it held), it becomes a dead letter and
        the others are applied without it.
        """
        examined = [await self.examine(record) for record in records]
        try:
            return await self._commit(examined)
        except LogError:
            raise
        except Exception as exc:
            if len(examined) == 1:
                return [await self._bury(examined[0], exc)]
        refused: list[Refused] = []
        for record in records:
            refused += await self.apply([record])
        return refused

    async def _bury(self, one: Examined | Refused, exc: Exception) -> Refused:
        """A fault over one record, turned into a dead letter; no value of it is quoted."""
        letter = Refused(
            record=one.record,
            topic=one.topic,
            trace_id=one.envelope.trace_id if isinstance(one, Examined) else one.trace_id,
            code="internal",
            reason=f"the facade failed over it: {type(exc).__name__}",
        )
        await self._commit([letter])
        return letter

    # -- before the transaction -------------------------------------------------------------------------------

    async def examine(self, record: Record) -> Examined | Refused:
        topic = parse_topic(record.topic)
        trace_id = f"{record.topic.replace('/', '.')}:{record.offset}"[-128:]
        try:
            warrant = await self._check(record, topic)
            envelope = Envelope.decode(
                record.payload,
                received_at=record.at_ms / 1000,
                salt=f"{record.topic}\0{record.offset}".encode(),
            )
            trace_id = envelope.trace_id
            if (envelope.service, envelope.action) != (topic.service, topic.action):
                raise EnvelopeError("bad_envelope", "service or action are not the topic's")
            event = read_inbound(envelope, tenant=self._core.tenant)
        except EnvelopeError as exc:
            return Refused(record=record, topic=topic, trace_id=trace_id, code=exc.code, reason=str(exc))
        return Examined(record=record, envelope=envelope, topic=topic, warrant=warrant, event=event)

    async def _check(self, record: Record, topic: TopicName) -> Warrant:
        while True:
            try:
                return await self._warrants.check(record, topic)
            except RequestFailed:  # the record stays in the log until somebody can say whose it is
                await trio.sleep(KEYS_PAUSE_S)

    def _plan(self, directory: Directory, one: Examined | Refused) -> Outcome:
        """What is to be done with the record, decided on this directory."""
        if isinstance(one, Refused):
            return one
        event = one.event
        ref = getattr(event, "channel", None)
        channel = None if ref is None else directory.channel(ref)
        if channel is not None and channel.instance != one.instance and not isinstance(event, DeliveryStatus):
            return Refused(
                record=one.record,
                topic=one.topic,
                trace_id=one.envelope.trace_id,
                code="capability_denied",
                reason="the channel is carried by another connector",
            )
        arrival = Arrival(
            record=one.record,
            envelope=one.envelope,
            service=one.topic.service,
            instance=one.instance,
            channel=None,
        )
        if isinstance(event, Throttle):
            return _Plan(one, attrs.evolve(arrival, channel=_throttled(directory, event)), True)
        if not isinstance(event, Message | Edit | Redaction | Reaction | Gap | Membership):
            return _Plan(one, arrival, True)
        if channel is None or channel.conversation is None:
            return _Plan(one, arrival, False)
        sender = event.member if isinstance(event, Membership) else getattr(event, "sender", None)
        if sender is not None and sender.ref in self._warrants.accounts:
            return _Plan(one, arrival, False)
        return _Plan(one, self._decided(directory, arrival, channel, event), True)

    def _decided(
        self, directory: Directory, arrival: Arrival, channel: Channel, event: InboundEvent
    ) -> Arrival:
        """The arrival with a verdict for every other room."""
        assert channel.conversation is not None
        action = _POLICY_ACTIONS.get(type(event))
        if action is None:
            return attrs.evolve(arrival, channel=channel)
        sender = getattr(event, "sender", None)
        speaker = (
            Speaker(ref=BRIDGE, name=BRIDGE_NAME)
            if sender is None
            else Speaker(ref=sender.ref, name=sender.name)
        )
        question = Question(
            speaker=speaker,
            conversation=channel.conversation,
            action=action if sender is not None else "notice",
            origin=channel,
            client=None,
            target=None,
            text=getattr(event, "text", ""),
        )
        rooms = directory.rooms(channel.conversation, but=channel.row)
        return attrs.evolve(
            arrival, channel=channel, rooms=judge_rooms(self._judge, directory, question, rooms)
        )

    # -- in the transaction -----------------------------------------------------------------------------------

    async def _commit(self, examined: Sequence[Examined | Refused]) -> list[Refused]:
        while True:
            directory = self._core.directory
            plans = [self._plan(directory, one) for one in examined]
            try:
                await self._core.write(directory, partial(self._apply_all, plans))
            except DirectoryMoved:
                await self._core.reload()
                continue
            except OutboxFull:
                await trio.sleep(FULL_PAUSE_S)
                continue
            return [plan for plan in plans if isinstance(plan, Refused)]

    def _apply_all(self, plans: Sequence[Outcome], turn: Turn) -> None:
        settled = self._progress.settled(turn.tx)
        acks: dict[tuple[str, str], tuple[Envelope, dict[str, object]]] = {}
        for plan in plans:
            if isinstance(plan, Refused):
                if self._progress.refuse(turn.tx, plan.record.position):
                    tell_dead_letter(
                        turn,
                        plan.record,
                        service=plan.topic.service,
                        instance=plan.topic.instance or "",
                        trace_id=plan.trace_id,
                        code=plan.code,
                        reason=plan.reason,
                    )
                continue
            position = plan.examined.record.position
            is_new = self._progress.take(turn.tx, position, settled=settled)
            self._apply_one(turn, plan, is_new)
            self._acknowledge(plan.examined, acks)
        for (topic, _), (envelope, payload) in acks.items():
            key = str(envelope.payload.get("channel", "")).encode() or topic.encode()
            turn.tell_last(topic, key, _ack_envelope(envelope, topic, payload, turn))

    def _apply_one(self, turn: Turn, plan: _Plan, is_new: bool) -> None:
        event, arrival = plan.examined.event, plan.arrival
        # What has no identity of its own counts by its place in the journal; the rest is known by its keys.
        if plan.is_applied and (is_new or isinstance(event, Message | Edit | Redaction | Reaction)):
            _APPLY[type(event)](turn, arrival, event)
        cursor = getattr(event, "cursor", None)
        if cursor is not None:
            at = getattr(event, "at", plan.examined.envelope.occurred_at)
            self._progress.move_cursor(
                turn.tx,
                service=arrival.service,
                instance=arrival.instance,
                stream=cursor.stream,
                value=cursor.value,
                at=format_time(at),
                position=arrival.record.position,
            )

    def _acknowledge(
        self, examined: Examined, acks: dict[tuple[str, str], tuple[Envelope, dict[str, object]]]
    ) -> None:
        ack = ack_for(examined.envelope)
        if ack is None:
            return
        action, payload = ack
        service, instance = examined.topic.service, examined.instance
        topic = topic_for(service, action, instance)
        # An ordered stream needs the last of a batch only.
        which = (
            examined.envelope.trace_id
            if service in _EXACT_ACKS
            else str(examined.envelope.payload.get("channel", ""))
        )
        acks[topic, which] = (examined.envelope, payload)


_POLICY_ACTIONS: Mapping[type, str] = {
    Message: "send",
    Edit: "edit",
    Redaction: "delete",
    Reaction: "react",
    Gap: "notice",
}

_APPLY: Mapping[type, Callable[..., None]] = {
    Message: apply_message,
    Edit: apply_edit,
    Redaction: apply_redaction,
    Reaction: apply_reaction,
    Gap: apply_gap,
    Membership: apply_membership,
    DeliveryStatus: apply_status,
    Throttle: apply_throttle,
    StateUpdate: apply_state,
}


def _throttled(directory: Directory, throttle: Throttle) -> Channel | None:
    """The linked channel that waits, where it is one that waits."""
    try:
        channel = directory.channel(throttle.key) if throttle.scope == "chat" else None
    except BridgeError:
        return None
    return channel if channel is not None and channel.conversation is not None else None


def _ack_envelope(envelope: Envelope, topic: str, payload: dict[str, object], turn: Turn) -> Envelope:
    """The acknowledgement of an envelope, under its trace id."""
    metadata: dict[str, object] = {"tenant": turn.tenant}
    if "user_id" in envelope.metadata:
        metadata["user_id"] = envelope.metadata["user_id"]
    return new_envelope(
        envelope.service,
        topic.rpartition("/")[2],
        payload,
        now=turn.now_s,
        trace_id=envelope.trace_id,
        metadata=metadata,
    )
