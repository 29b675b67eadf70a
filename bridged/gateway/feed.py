"""What happened in a tenant's conversations, in order: one tail of `bridge/core/event` that all its clients share.

The newest events stand in a bounded ring; who is behind it reads pages of the Log until it has caught up.  So a
client costs no queue of its own, however slow it is.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import attrs
import trio

from bridged.envelope import Envelope
from bridged.errors import EnvelopeError
from bridged.requests import ask
from shards.client import Client
from shards.env import Env
from shards.errors import OffsetTrimmed
from shards.record import Record

# Specification constants (wire contract 4.6).
EVENTS = "bridge/core/event"
PASSING = "bridge/core/passing"
"""Typing and receipts, ephemeral."""

# Ours.
RING_EVENTS = 4096
PAGE_EVENTS = 256


@attrs.frozen(kw_only=True, slots=True)
class Event:
    """One event, ready to be sent."""

    offset: int
    conversation: str
    data: str
    """The JSON text of the WebSocket frame, with its offset."""
    passing: bool = False
    """Typing and receipts: no offset, never given again."""


class Gap(Exception):
    """Events that the client asked for and nobody has: `first` to `last`.  Go on at `next`."""

    def __init__(self, first: int, last: int, *, next_: int) -> None:
        super().__init__(f"events {first} to {last} are gone")
        self.first = first
        self.last = last
        self.next = next_


class Feed:
    """One tenant's events.  `run` keeps it; `read` is what a client's task calls."""

    def __init__(self, env: Env, client: Client) -> None:
        self._env = env
        self._client = client
        self._ring: deque[Event] = deque(maxlen=RING_EVENTS)
        self._moved = trio.Event()
        self._listeners: set[Callable[[Event], None]] = set()
        self.next = 0
        """The offset that the next event will get, as far as is known here."""

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> NoReturn:
        """Follow the topic until cancelled."""
        topics = [EVENTS, PASSING]
        async with self._client.subscribe(topics, group=None, start="latest") as subscription:
            self.next = await self._end()
            task_status.started()
            while True:
                for record in await subscription.receive():
                    self._take(record)
                self._moved.set()
                self._moved = trio.Event()
        raise AssertionError("unreachable")

    async def _end(self) -> int:
        """The offset after the last event on disk."""
        answer = await ask(self._env, self._client, "fabric", "topics", {"topic": EVENTS})
        return max((int(row["next_offset"]) for row in answer["topics"]), default=0)

    def _take(self, record: Record) -> None:
        event = to_event(record)
        if event is None:
            return
        if event.passing:
            for listener in tuple(self._listeners):
                listener(event)
        elif event.offset >= self.next:
            self._ring.append(event)
            self.next = event.offset + 1

    def listen(self, listener: Callable[[Event], None]) -> Callable[[], None]:
        """Tell `listener` every passing event; returns the function that ends it."""
        self._listeners.add(listener)
        return lambda: self._listeners.discard(listener)

    async def read(self, offset: int) -> Sequence[Event]:
        """The events from `offset` on, at least one; waits for it.

        Raises:
            Gap: Retention has taken some, or the shard was restored to a time before them; go on at its `next`.
        """
        await trio.lowlevel.checkpoint()
        if offset > self.next:
            raise Gap(self.next, offset - 1, next_=self.next)
        while True:
            if self._ring and offset >= self._ring[0].offset:
                found = [event for event in self._ring if event.offset >= offset][:PAGE_EVENTS]
                if found:
                    return found
            elif offset < self.next:
                page = await self._page(offset)
                if page:
                    return page
            await self._moved.wait()

    async def _page(self, offset: int) -> Sequence[Event]:
        out: list[Event] = []
        try:
            async with self._client.replay([EVENTS], from_offset=offset) as pages:
                async for records in pages:
                    out.extend(event for event in map(to_event, records) if event is not None)
                    if len(out) >= PAGE_EVENTS:
                        break
        except OffsetTrimmed as exc:
            oldest = await self._oldest(exc.first)  # noqa: ASYNC120 - being cancelled is the graver news
            raise Gap(offset, oldest - 1, next_=oldest) from exc
        return out

    async def _oldest(self, position: int) -> int:
        """The offset of the oldest event that the Log still has, at or after that position of the journal."""
        while True:
            try:
                async with self._client.replay([EVENTS], from_position=position) as pages:
                    async for records in pages:
                        return records[0].offset
                return self.next
            except OffsetTrimmed as exc:  # retention goes on
                position = exc.first


def to_event(record: Record) -> Event | None:
    """The WebSocket frame of a record; None where it is no event of ours."""
    try:
        payload: dict[str, Any] = Envelope.decode(record.payload).payload
    except EnvelopeError:
        return None
    if "event" not in payload:
        return None
    if record.offset < 0:
        return Event(
            offset=-1,
            conversation=str(payload.get("conversation", "")),
            data=json.dumps(payload),
            passing=True,
        )
    frame = {"event": payload["event"], "offset": record.offset, **payload}
    return Event(
        offset=record.offset,
        conversation=str(payload.get("conversation", "")),
        data=json.dumps(frame, ensure_ascii=False),
    )
