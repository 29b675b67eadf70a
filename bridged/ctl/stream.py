"""The commands that listen: `send --wait` and `tail`."""

from __future__ import annotations

from typing import Any

import trio

from bridged.ctl.output import FAILED, REFUSED, CtlError
from bridged.ctl.session import SOCKET_WITHIN_S, Session
from bridged.envelope import Envelope
from bridged.errors import EnvelopeError
from bridged.requests import ask
from bridged.schema import DeliveryState
from shards.client import Subscription
from shards.record import Record

EVENTS = "bridge/core/event"
_GOOD = frozenset({"delivered", "unknown"})
_FINAL = frozenset(state.value for state in DeliveryState if state.is_final)


async def send(s: Session) -> None:
    """Say something; with --wait until every channel has its final state."""
    payload: dict[str, Any] = {"conversation": s.args.conversation, "text": s.args.text}
    if s.args.identity:
        identity = s.args.identity
        payload["identity"] = identity if "://" in identity else f"msgr://identity/msgr/{identity}"
    async with s.client() as client:
        if not s.args.wait:
            answer = await ask(s.env, client, "core", "send", payload, patience_s=SOCKET_WITHIN_S)
            s.out.value(_told(answer), answer["trace_id"])
            return
        async with client.subscribe([EVENTS], group=None, start="latest") as events:
            answer = await ask(s.env, client, "core", "send", payload, patience_s=SOCKET_WITHIN_S)
            states: dict[str, str] = {}
            with trio.move_on_after(s.args.timeout) as scope:
                await _settle(s, events, answer["trace_id"], states)
    s.out.value({**_told(answer), "deliveries": states}, answer["trace_id"])
    if scope.cancelled_caught:
        raise CtlError(
            f"not settled within {s.args.timeout:g} s: "
            + ", ".join(f"{channel} {state}" for channel, state in states.items() if state not in _FINAL),
            code="timeout",
            hint=f"it goes on without us; `bridgectl trace {answer['trace_id']}` shows how",
        )
    bad = {channel: state for channel, state in states.items() if state not in _GOOD}
    if bad:
        raise CtlError(
            ", ".join(f"{channel}: {state}" for channel, state in bad.items()),
            hint=f"bridgectl trace {answer['trace_id']}",
            status=REFUSED if "denied" in bad.values() else FAILED,
        )


def _told(answer: dict[str, Any]) -> dict[str, Any]:
    return {"trace_id": answer["trace_id"], "message_id": answer["message_id"]}


async def _settle(s: Session, events: Subscription, trace_id: str, states: dict[str, str]) -> None:
    """Follow one trace until its message event was seen and every channel of it is final."""
    announced = False
    while not announced or any(state not in _FINAL for state in states.values()):
        for record in await events.receive():
            payload = _event(record)
            if payload is None or payload.get("trace_id") != trace_id:
                continue
            if payload.get("event") == "message":
                announced = True
                for row in payload.get("deliveries", ()):
                    states.setdefault(row["channel"], row["state"])
            elif payload.get("event") == "status" and payload.get("channel"):
                states[payload["channel"]] = payload["status"]
                s.out.note(f"{payload['channel']}: {payload['status']}")


async def tail(s: Session) -> None:
    """Events as they happen, or the raw envelopes of a topic."""
    topic = s.args.topic or EVENTS
    async with s.client() as client, client.subscribe([topic], group=None, start="latest") as events:
        s.out.note(f"listening on {topic}; Ctrl-C ends it")
        while True:
            for record in await events.receive():
                _show(s, record)


def _show(s: Session, record: Record) -> None:
    if s.args.topic:
        text = record.payload.decode("utf-8", "replace")
        s.out.line(
            {"topic": record.topic, "offset": record.offset, "principal": record.principal, "envelope": text},
            f"{record.offset:>8}  {record.principal}  {text}",
        )
        return
    payload = _event(record)
    if payload is None or s.args.conversation not in (None, payload.get("conversation")):
        return
    event, at = payload.get("event"), payload.get("at", "")
    if event == "message":
        said = f"<{payload['sender']['name']}> {payload['text']}"
    elif event == "connector":
        at = payload.get("since", at)
        said = f"{payload.get('service')}/{payload.get('instance')} {payload.get('state')} {payload.get('detail', '')}"
    elif event == "status":
        said = f"{payload.get('channel') or '-'}: {payload.get('status')}"
    else:
        said = f"{payload.get('sender', {}).get('name', '')} {payload.get('text', '')}".strip()
    s.out.line(
        {"offset": record.offset, **payload},
        f"{record.offset:>8}  {at}  {payload.get('conversation', '-')}  {event}: {said}",
    )


def _event(record: Record) -> dict[str, Any] | None:
    try:
        return Envelope.decode(record.payload).payload
    except EnvelopeError:
        return None
