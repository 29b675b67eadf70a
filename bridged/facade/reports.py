"""What connectors report beside what is said: deliveries, members, throttles, their own state.

Everything here runs inside one turn; nothing blocks.  A report that is not legal, or not the reporter's to make,
changes nothing but the trail.
"""

from __future__ import annotations

from typing import Any

from bridged.envelope import to_ms
from bridged.facade.arrivals import Arrival
from bridged.facade.core import Turn
from bridged.facade.deliveries import Move, Standing
from bridged.facade.events import moment, person
from bridged.schema import DeliveryState, DeliveryStatus, Membership, StateUpdate, Throttle
from shards.record import Record


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
        "scope": throttle.scope,
        "key": throttle.key,
        "retry_after_ms": throttle.retry_after_ms,
        "reason": throttle.reason,
        "at": moment(turn.at_ms),
    }
    if arrival.channel is not None:
        payload |= {"conversation": arrival.conversation, "channel": arrival.ref}
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
    has_name = turn.names.has_name(turn.tx, standing.channel, standing.message)
    for part, name in enumerate(names, start=1 if has_name else 0):
        turn.names.learn(turn.tx, standing.channel, standing.message, name, part=part)


def _instance_key(arrival: Arrival) -> str:
    return f"{arrival.service}/{arrival.instance}"
