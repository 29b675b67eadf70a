"""The facade's heart: what its rooms share, and one transaction of `core.db` at work.

Whatever the facade says (a canonical event, an intent, an acknowledgement) is put into the outbox by a `Turn`,
inside the transaction that makes it true.  Intents go first, events after them in one run, acknowledgements last:
people's words are what somebody waits for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import attrs
import trio

from bridged.envelope import Envelope, new_envelope, topic_for
from bridged.facade.deliveries import Deliveries, Standing, Trail
from bridged.facade.directory import Channel, Directory, load_directory, read_revision
from bridged.facade.events import EVENT_TOPIC, status_event
from bridged.facade.intents import Decided, Speaker
from bridged.facade.messages import Message, MessageStore, Said
from bridged.facade.names import RemoteNames
from bridged.facade.verdicts import Verdict
from bridged.schema import DeliveryState
from shards.database import Connection, Database
from shards.env import Env
from shards.outbox import Outbox

T = TypeVar("T")

# Ours.
MESSAGE_ID_BYTES = 10


class DirectoryMoved(Exception):
    """What was decided on is not so any more: decide again."""


class Core:
    """What inbound and outbound share.  One a facade."""

    def __init__(
        self, env: Env, tenant: str, database: Database, outbox: Outbox, directory: Directory
    ) -> None:
        self.env = env
        self.tenant = tenant
        self.database = database
        self.outbox = outbox
        self.directory = directory
        self.messages = MessageStore(tenant)
        self.names = RemoteNames(tenant)
        self.deliveries = Deliveries(tenant)
        self.trail = Trail(tenant)
        self.published = trio.Event()
        """Set, and replaced, when messages have got their offsets."""

    def record_published(self, tx: Connection, rows: Sequence[tuple[int, int]]) -> None:
        """Record (outbox row, offset) of events that the log has acknowledged."""

        def tell() -> None:
            published, self.published = self.published, trio.Event()
            published.set()

        self.messages.published(tx, rows)
        tx.after_commit(tell)

    async def write(self, directory: Directory | None, fn: Callable[[Turn], T]) -> T:
        """Run `fn` on a turn in one transaction; returns after its commit.

        Args:
            directory: What the caller has decided on; None where nothing was decided.

        Raises:
            DirectoryMoved: Links or clients have changed since; nothing was written.
            OutboxFull: Too much waits to be published; nothing was written.
        """
        known = directory or self.directory

        def run(tx: Connection) -> T:
            if directory is not None and read_revision(tx, self.tenant) != directory.revision:
                raise DirectoryMoved
            turn = Turn(self, tx, known)
            result = fn(turn)
            turn.close()
            return result

        return await self.database.write(run)

    async def read(self, fn: Callable[[Connection], T]) -> T:
        """Run `fn` in a short reading transaction."""
        return await self.database.read(fn)

    async def reload(self) -> Directory:
        """Take a new snapshot of links and clients."""
        self.directory = await self.database.read(lambda tx: load_directory(tx, self.tenant))
        return self.directory


@attrs.frozen(slots=True)
class _Saying:
    key: bytes
    envelope: Envelope
    message: int | None


class Turn:
    """One transaction, and what is said in it."""

    def __init__(self, core: Core, tx: Connection, directory: Directory) -> None:
        self.tx = tx
        self.tenant = core.tenant
        self.directory = directory
        self.messages = core.messages
        self.names = core.names
        self.deliveries = core.deliveries
        self.trail = core.trail
        self.now_s = core.env.wall()
        self.at_ms = int(self.now_s * 1000)
        self.token_bytes = core.env.token_bytes
        self._outbox = core.outbox
        self._intents: dict[tuple[str, str], list[tuple[str, bytes, bytes]]] = {}
        self._events: list[_Saying] = []
        self._statuses: list[_Saying] = []
        self._last: list[tuple[str, bytes, bytes]] = []

    # -- saying -----------------------------------------------------------------------------------------------

    def event(
        self, payload: dict[str, Any], *, key: str, trace_id: str, message: Message | None = None
    ) -> None:
        """Say on `bridge/core/event` what happened.

        Args:
            key: The conversation, or what else the event must stay in order with.
            message: The stored message that this event announces; it gets the event's offset.
        """
        self._events.append(self._saying(payload, key, trace_id, message))

    def tell_last(self, topic: str, key: bytes, envelope: Envelope) -> None:
        """Say something that nobody waits for: an acknowledgement to a connector."""
        self._last.append((topic, key, envelope.encode()))

    def close(self) -> None:
        """Put what was said into the outbox.  The last thing of a turn.

        The intents of one connector lie together, in their order: neighbours of one topic are published in one go.
        """
        for waiting in self._intents.values():
            for topic, key, payload in waiting:
                self._outbox.put(self.tx, topic, key, payload)
        for saying in (*self._events, *self._statuses):
            row = self._outbox.put(self.tx, EVENT_TOPIC, saying.key, saying.envelope.encode())
            if saying.message is not None:
                self.messages.announce(self.tx, saying.message, row)
        for topic, key, payload in self._last:
            self._outbox.put(self.tx, topic, key, payload)

    def add_message(self, said: Said, *, trace_id: str, reply_to: Message | None) -> Message:
        """Store what was said under a fresh id."""
        return self.messages.add(
            self.tx,
            said,
            message_id=self.token_bytes(MESSAGE_ID_BYTES).hex(),
            trace_id=trace_id,
            reply_to=reply_to,
        )

    def shown(self, standings: Sequence[Standing]) -> list[tuple[str, str]]:
        """(channel reference, state) of each."""
        return [(self.directory.rows[standing.channel].ref, standing.state.value) for standing in standings]

    # -- intents ----------------------------------------------------------------------------------------------

    def relay(
        self,
        verdicts: Sequence[tuple[Channel, Verdict]],
        *,
        trace_id: str,
        causation_id: str | None,
        speaker: Speaker,
        message: Message,
        draft: Callable[[Decided, Channel], Envelope],
    ) -> list[Standing]:
        """Record each room's decision and, where it is allowed, hand the intent to its connector.

        Returns:
            Where the intent stands in each room now.
        """
        standings: list[Standing] = []
        for channel, verdict in verdicts:
            decision = self.decide(trace_id, speaker.ref, channel.row, verdict)
            error = None
            if verdict.is_allowed:
                decided = Decided(
                    tenant=self.tenant,
                    trace_id=trace_id,
                    now_s=self.now_s,
                    speaker=speaker,
                    decision=decision,
                    policy_version=verdict.policy_version,
                    causation_id=causation_id,
                )
                envelope = draft(decided, channel)
                topic = topic_for(channel.service, envelope.action, channel.instance)
                waiting = self._intents.setdefault((channel.service, channel.instance), [])
                waiting.append((topic, message.conversation.encode(), envelope.encode()))
                state = DeliveryState.QUEUED
            else:
                state, error = DeliveryState.DENIED, verdict.to_error()
            self.deliveries.open(
                self.tx,
                trace_id=trace_id,
                channel=channel.row,
                message=message.id,
                state=state,
                at_ms=self.at_ms,
                error=error,
            )
            standings.append(
                Standing(
                    trace_id=trace_id,
                    channel=channel.row,
                    message=message.id,
                    state=state,
                    attempt=0,
                    error=error,
                )
            )
        return standings

    def decide(self, trace_id: str, speaker: str, channel: int | None, verdict: Verdict) -> int:
        """Record a decision; returns its number."""
        detail: dict[str, Any] = {
            "speaker": speaker,
            "rule": verdict.rule,
            "policy_version": verdict.policy_version,
        }
        if verdict.reason:
            detail["reason"] = verdict.reason
        return self.trail.note(
            self.tx,
            trace_id,
            at_ms=self.at_ms,
            kind="decision",
            word="allow" if verdict.is_allowed else "refuse",
            channel=channel,
            detail=detail,
        )

    def tell_standing(
        self,
        standing: Standing,
        *,
        conversation: str,
        message_id: str | None,
        latency_ms: int | None = None,
    ) -> None:
        """Say where an intent stands now; heard after the events that the turn is about."""
        payload = status_event(
            standing,
            conversation=conversation,
            message_id=message_id,
            channel=self.directory.ref_of(standing.channel),
            at_ms=self.at_ms,
            latency_ms=latency_ms,
        )
        self._statuses.append(self._saying(payload, conversation, standing.trace_id, None))

    def _saying(self, payload: dict[str, Any], key: str, trace_id: str, message: Message | None) -> _Saying:
        envelope = new_envelope(
            "core",
            "event",
            payload,
            now=self.now_s,
            trace_id=trace_id,
            metadata={"tenant": self.tenant},
        )
        return _Saying(b"event/" + key.encode(), envelope, None if message is None else message.id)

    def note(
        self,
        trace_id: str,
        kind: str,
        word: str,
        *,
        channel: int | None = None,
        detail: Mapping[str, Any] | None = None,
    ) -> int:
        """Add a step to the trail."""
        return self.trail.note(
            self.tx,
            trace_id,
            at_ms=self.at_ms,
            kind=kind,
            word=word,
            channel=channel,
            detail=dict(detail) if detail else None,
        )
