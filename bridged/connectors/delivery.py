"""The delivery loop, one for all connectors: nothing lost, nothing doubled, in order, or said.

Order is kept per channel, several channels run at once.  Per intent: what the facade knows of it is asked
where it may have been tried before (backlog, a second attempt); `sent` is published before the first native
write, the final state after it, and only then is the record done.  So a record that comes again is either
final (done), or was never written (sent now), or was written by a life that ended before the confirmation:
then the connector looks it up on its platform, or says `unknown`.  A throttled channel waits with its queue;
a lost platform leaves the records where they are.
"""

from __future__ import annotations

import traceback
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
import trio

from bridged.connectors.intent import (
    OUTBOUND_ACTIONS,
    Delivered,
    Failed,
    Intent,
    Outcome,
    Retry,
    Unknown,
    read_intent,
    seconds,
)
from bridged.envelope import Envelope
from bridged.errors import BridgeError, ConnectorError, EnvelopeError
from shards.errors import RequestFailed, ShardsError

if TYPE_CHECKING:
    from bridged.connectors.desk import Desk
    from shards.client import Subscription
    from shards.record import Record

# Ours.
CREDIT_RECORDS = 1024
"""In hand at once.  A metered channel keeps its run in hand: this is also how far it can crowd others out."""
FAULTS_MAX = 3
"""Unexpected exceptions over one intent before it is a dead letter."""
FAULT_PAUSE_S = 1.0
STATUS_PAUSE_S = 0.5
STATUS_WITHIN_S = 30.0
SETTLE_S = 2.0
"""The final state of what was done is still said so long after a cancellation."""
FINISHED_KEPT = 4096
"""Finished records remembered, for those that come again because their `done` was lost with a link."""

_FINAL = frozenset({"delivered", "unknown", "denied", "failed", "expired", "dead_lettered"})


@attrs.define(eq=False)
class _Entry:
    """A record in hand, until it may be acknowledged."""

    record: Record
    is_closed: bool = False
    dead: tuple[str, str] | None = None
    """Code and reason, where it is a dead letter."""


@attrs.define(kw_only=True, eq=False)
class _Job:
    entry: _Entry
    envelope: Envelope
    intent: Intent
    written_at: float | None = None
    faults: int = 0

    @property
    def was_written(self) -> bool:
        return self.written_at is not None or self.intent.was_written


@attrs.frozen
class _Fault:
    """An unexpected exception over this one intent."""

    what: str


async def deliver(
    desk: Desk,
    send: Callable[[Intent], Awaitable[Outcome]],
    *,
    concurrency: int,
    task_status: trio.TaskStatus[None],
) -> None:
    """Run the loop for one connector's life; never returns."""
    topics = [desk.topic(action) for action in OUTBOUND_ACTIONS]
    group = f"{desk.service}/{desk.instance}"
    async with (
        desk.client.subscribe(topics, group=group, credit_records=CREDIT_RECORDS) as subscription,
        trio.open_nursery() as nursery,
    ):
        delivery = _Delivery(desk, send, subscription, nursery, concurrency)
        task_status.started()
        while True:
            await delivery.take(await subscription.receive())


class _Delivery:
    def __init__(
        self,
        desk: Desk,
        send: Callable[[Intent], Awaitable[Outcome]],
        subscription: Subscription,
        nursery: trio.Nursery,
        concurrency: int,
    ) -> None:
        self._desk = desk
        self._send = send
        self._subscription = subscription
        self._nursery = nursery
        self._limiter = trio.CapacityLimiter(concurrency)
        self._lanes: dict[str, deque[_Job]] = {}
        self._entries: dict[tuple[str, int], _Entry] = {}
        self._order: dict[int, deque[_Entry]] = {}
        self._closing = trio.Lock()
        self._finished: OrderedDict[tuple[str, int], None] = OrderedDict()

    async def take(self, records: Sequence[Record]) -> None:
        """Sort records into their channels' lanes, asking first about those that may have been tried."""
        doubtful: list[_Job] = []
        fresh: list[_Job] = []
        for record in records:
            place = (record.topic, record.offset)
            if place in self._finished:
                await self._subscription.done([record])
            elif place in self._entries:
                self._entries[place].record = record  # a new link gave it again; the work on it goes on
            else:
                entry = self._entries[place] = _Entry(record)
                self._order.setdefault(record.key, deque()).append(entry)
                job = await self._read(entry)
                if job is not None:
                    fresh.append(job)
                    if record.attempt > 1 or record.position < self._subscription.head:
                        doubtful.append(job)
        states = dict(zip(map(id, doubtful), await self._states(doubtful), strict=True)) if doubtful else {}
        for job in fresh:
            state = states.get(id(job))
            if state in _FINAL:
                await self._close(job.entry)
                continue
            job.intent.was_written = state == "sent"
            if not job.intent.was_written:
                job.intent.announce = self._announcer(job)
            lane = self._lanes.get(job.intent.channel)
            if lane is None:
                self._lanes[job.intent.channel] = lane = deque()
                self._nursery.start_soon(self._run_lane, job.intent.channel, lane)
            lane.append(job)

    async def _read(self, entry: _Entry) -> _Job | None:
        """The record as a job; what is none is a dead letter with its reason, never dropped in silence."""
        record = entry.record
        envelope: Envelope | None = None
        try:
            envelope = Envelope.decode(record.payload)
            tenant = envelope.metadata.get("tenant", self._desk.tenant)
            if tenant != self._desk.tenant:
                raise EnvelopeError(
                    "tenant_mismatch", "the envelope is another tenant's", field="metadata.tenant"
                )
            return _Job(entry=entry, envelope=envelope, intent=read_intent(envelope, attempt=record.attempt))
        except EnvelopeError as exc:
            channel = envelope.payload.get("channel") if envelope is not None else None
            if envelope is not None and isinstance(channel, str):
                error = _error(exc.code, str(exc))
                await self._say(envelope, channel, "dead_lettered", record.attempt, error=error)
            await self._close(entry, dead=(exc.code, str(exc)))
            return None

    async def _states(self, jobs: Sequence[_Job]) -> list[str | None]:
        """What the facade holds of them, once it has read all that this principal published before."""
        items = [{"trace_id": job.intent.trace_id, "channel": job.intent.channel} for job in jobs]
        while True:
            try:
                answer = await self._desk.ask(
                    "core",
                    "status",
                    {"items": items, "position": await self._desk.client.head()},
                    within_s=STATUS_WITHIN_S,
                )
            except RequestFailed:
                await trio.sleep(STATUS_PAUSE_S)  # without the answer nothing may be written
                continue
            states = answer.get("states")
            if isinstance(states, list) and len(states) == len(items):
                return [_state_of(state) for state in states]
            raise BridgeError("the facade's answer to `status` has not one state an item")

    async def _run_lane(self, channel: str, lane: deque[_Job]) -> None:
        """Do one channel's jobs in order; ends when there are none."""
        while lane:
            job = lane[0]
            async with self._limiter:
                outcome = await self._try(job)
            if isinstance(outcome, Retry):
                await self._throttled(job, outcome, len(lane))
            elif isinstance(outcome, _Fault) and job.faults < FAULTS_MAX:
                await trio.sleep(FAULT_PAUSE_S * job.faults)
            else:
                await self._settle(job, outcome)
                lane.popleft()
        del self._lanes[channel]  # no checkpoint since the lane was seen empty

    async def _try(self, job: _Job) -> Outcome | _Fault | None:
        """One attempt.  None: its time is over, nothing was written."""
        expires_at = seconds(job.envelope.metadata.get("expires_at"))
        if expires_at is not None and expires_at < self._desk.env.wall() and not job.was_written:
            return None
        try:
            return await self._send(job.intent)
        except (ConnectorError, ShardsError):
            raise  # the platform or the fabric is lost: the record comes again
        except Exception as exc:  # a bug of the connector over this one intent stops nothing but it
            job.faults += 1
            job.intent.was_written = job.was_written
            return _Fault(_where(exc))

    async def _throttled(self, job: _Job, retry: Retry, depth: int) -> None:
        payload = {
            "scope": retry.scope,
            "key": job.intent.channel,
            "retry_after_ms": int(retry.after_s * 1000),
            "reason": retry.reason,
            "queue_depth": depth,
        }
        key = job.intent.channel.encode()
        await self._desk.publish("throttle", payload, key=key, trace_id=job.intent.trace_id)
        await trio.sleep(retry.after_s)

    async def _settle(self, job: _Job, outcome: Outcome | _Fault | None) -> None:
        """Say the final state, then be done with the record; a cancellation waits for it a moment."""
        with trio.move_on_after(SETTLE_S, shield=True) as moment:
            await self._conclude(job, outcome)
        if moment.cancelled_caught:  # the fabric is slow or away; said twice is the same as said once
            await trio.lowlevel.checkpoint()
            await self._conclude(job, outcome)

    async def _conclude(self, job: _Job, outcome: Outcome | _Fault | None) -> None:
        self._desk.env.maybe("delivery.conclude")
        status, more = _status(outcome)
        if job.written_at is not None:
            more["latency_ms"] = round((trio.current_time() - job.written_at) * 1000)
        await self._say(job.envelope, job.intent.channel, status, job.entry.record.attempt, **more)
        self._desk.env.maybe("delivery.concluded")
        await self._close(job.entry, dead=("internal", outcome.what) if isinstance(outcome, _Fault) else None)

    async def _close(self, entry: _Entry, *, dead: tuple[str, str] | None = None) -> None:
        """Acknowledge what is finished of a key from its beginning on.

        An acknowledgement counts for the earlier records of its key too, and two channels of one conversation
        share a key: so the one that is further waits for the other here.
        """
        entry.is_closed, entry.dead = True, dead
        async with self._closing:
            order = self._order.get(entry.record.key)
            while order and order[0].is_closed:
                first = order[0]
                if first.dead is not None:
                    code, reason = first.dead
                    await self._subscription.dead(first.record, code=code, reason=reason)
                else:
                    await self._subscription.done([first.record])
                order.popleft()
                self._remember((first.record.topic, first.record.offset))
            if order is not None and not order:
                self._order.pop(entry.record.key, None)

    def _remember(self, place: tuple[str, int]) -> None:
        self._entries.pop(place, None)
        self._finished[place] = None
        while len(self._finished) > FINISHED_KEPT:
            self._finished.popitem(last=False)

    def _announcer(self, job: _Job) -> Callable[[], Awaitable[None]]:
        async def announce() -> None:
            job.written_at = trio.current_time()
            await self._say(job.envelope, job.intent.channel, "sent", job.entry.record.attempt)
            self._desk.env.maybe("delivery.announced")

        return announce

    async def _say(self, envelope: Envelope, channel: str, status: str, attempt: int, **more: Any) -> None:
        payload = {
            "status": status,
            "channel": channel,
            "attempt": attempt,
            "idempotency_key": envelope.metadata.get("idempotency_key"),
            **more,
        }
        await self._desk.publish("delivery_status", payload, key=channel.encode(), trace_id=envelope.trace_id)


def _where(exc: Exception) -> str:
    """An exception without its values: what and where, for a dead letter's reason."""
    place = traceback.extract_tb(exc.__traceback__)[-1]
    return f"unexpected {type(exc).__name__} in {place.name}, {Path(place.filename).name}:{place.lineno}"


def _status(outcome: Outcome | _Fault | None) -> tuple[str, dict[str, Any]]:
    if isinstance(outcome, Delivered):
        more: dict[str, Any] = {"remote_id": outcome.remote_id} if outcome.remote_id is not None else {}
        return "delivered", more | ({"parts": list(outcome.parts)} if outcome.parts else {})
    if isinstance(outcome, Unknown):
        return "unknown", {"error": _error("network_down", outcome.reason)}
    if isinstance(outcome, Failed):
        error = _error(outcome.code, outcome.message, retryable=outcome.retryable)
        return "failed", {"error": error | ({"native": outcome.native} if outcome.native else {})}
    if isinstance(outcome, _Fault):
        return "dead_lettered", {"error": _error("internal", outcome.what)}
    return "expired", {"error": _error("timeout", "its time was over before it could be written")}


def _error(code: str, message: str, *, retryable: bool = False) -> dict[str, Any]:
    return {"code": code, "message": message, "retryable": retryable}


def _state_of(state: object) -> str | None:
    """One item of the facade's answer: the word itself, or an object with it."""
    if isinstance(state, Mapping):
        state = state.get("state", state.get("status"))
    return state if isinstance(state, str) else None
