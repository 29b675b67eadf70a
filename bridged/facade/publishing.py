"""The facade's outbox on its way into the log, with the offsets that its events get there.

The history offset of a message *is* the offset of its event on `bridge/core/event`.  It is known when the log has
acknowledged the event, and is written into `core.db` in the transaction in which the outbox forgets the row: a
crash before it publishes the row again under the same sequence, and the log answers with the same offset.
"""

from __future__ import annotations

from collections.abc import Sequence

from bridged.facade.core import Core
from bridged.facade.events import EVENT_TOPIC
from shards.client import Client
from shards.database import Connection

# Ours.
CALL_BYTES_MAX = 48_000
"""Events of one call: one batch of the log's, so that their offsets are one run."""


class Publishing:
    """What the outbox drains into: the client, and a note of each event's offset."""

    def __init__(self, core: Core, client: Client, *, last_before: int) -> None:
        """Args: last_before: The last outbox row of an earlier life; how those were batched is not known any more."""
        self._core = core
        self._client = client
        self._last_before = last_before
        self._acknowledged: list[tuple[int, int]] = []
        core.outbox.forget_with(self._record)

    def _record(self, tx: Connection, last: int) -> None:
        """Write down the offsets of the events up to outbox row `last`, which is being forgotten."""
        rows, self._acknowledged = self._acknowledged, []
        self._core.record_published(tx, rows)

    async def publish(
        self,
        topic: str,
        payloads: Sequence[bytes],
        *,
        key: bytes,
        epoch: int | None = None,
        sequence: int | None = None,
    ) -> None:
        """As `Client.publish`; returns once the payloads are in the log and their offsets are noted."""
        if topic != EVENT_TOPIC or sequence is None:
            await self._client.publish(topic, payloads, key=key, epoch=epoch, sequence=sequence)
            return
        at = 0
        while at < len(payloads):
            n = self._fitting(payloads[at:], sequence + at)
            first = sequence + at
            published = await self._client.publish(
                topic, payloads[at : at + n], key=key, epoch=epoch, sequence=first
            )
            self._acknowledged += [(first + place, published.offset + place) for place in range(n)]
            at += n

    def _fitting(self, payloads: Sequence[bytes], sequence: int) -> int:
        """How many may go in one call."""
        if sequence <= self._last_before:
            return 1
        n, octets = 1, len(payloads[0])
        while n < len(payloads) and octets + len(payloads[n]) <= CALL_BYTES_MAX:
            octets += len(payloads[n])
            n += 1
        return n
