"""Where each intent stands in each channel, and the trail of what happened under a trace id.

A state moves along `bridged.schema`'s table of legal transitions or not at all; a report that would move it
otherwise (late, doubled, or for an intent that was never given to that connector) changes nothing but the trail.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from typing import Any

import attrs
import msgspec

from bridged.schema import DeliveryState
from shards.database import Connection


@attrs.frozen(kw_only=True, slots=True)
class Standing:
    """One intent in one channel."""

    trace_id: str
    channel: int
    message: int | None
    state: DeliveryState
    attempt: int
    error: dict[str, Any] | None


class Move(enum.Enum):
    """What a report did."""

    MOVED = "moved"
    REPEATED = "repeated"
    """The state was that already."""
    ILLEGAL = "illegal"
    STRANGE = "strange"
    """Nobody gave that intent to that channel."""


class Deliveries:
    """The delivery states of one tenant."""

    def __init__(self, tenant: str) -> None:
        self.tenant = tenant

    def open(
        self,
        tx: Connection,
        *,
        trace_id: str,
        channel: int,
        message: int | None,
        state: DeliveryState,
        at_ms: int,
        error: dict[str, Any] | None = None,
    ) -> None:
        """Begin: `queued`, `held` or, where it was refused, `denied`."""
        tx.execute(
            "INSERT INTO delivery (tenant, trace_id, channel, message, state, attempt, at_ms, error)"
            " VALUES (?, ?, ?, ?, ?, 0, ?, ?)",
            (self.tenant, trace_id, channel, message, state.value, at_ms, _dump(error)),
        )

    def move(
        self,
        tx: Connection,
        *,
        trace_id: str,
        channel: int,
        state: DeliveryState,
        attempt: int,
        at_ms: int,
        error: dict[str, Any] | None,
    ) -> tuple[Move, Standing | None]:
        """Apply a connector's report; returns what it did and where the intent stands now."""
        standing = self.standing(tx, trace_id, channel)
        if standing is None:
            return Move.STRANGE, None
        if standing.state is state:
            return Move.REPEATED, standing
        if not standing.state.may_become(state):
            return Move.ILLEGAL, standing
        tx.execute(
            "UPDATE delivery SET state = ?, attempt = ?, at_ms = ?, error = ?"
            " WHERE tenant = ? AND trace_id = ? AND channel = ?",
            (state.value, attempt, at_ms, _dump(error), self.tenant, trace_id, channel),
        )
        return Move.MOVED, attrs.evolve(standing, state=state, attempt=attempt, error=error)

    def standing(self, tx: Connection, trace_id: str, channel: int) -> Standing | None:
        """Where that intent stands in that channel, or None where it was never given to it."""
        row = tx.one(
            "SELECT trace_id, channel, message, state, attempt, error FROM delivery"
            " WHERE tenant = ? AND trace_id = ? AND channel = ?",
            (self.tenant, trace_id, channel),
        )
        return None if row is None else _standing(row)

    def of_trace(self, tx: Connection, trace_id: str) -> list[Standing]:
        """Every channel of one intent."""
        rows = tx.execute(
            "SELECT trace_id, channel, message, state, attempt, error FROM delivery"
            " WHERE tenant = ? AND trace_id = ? ORDER BY channel",
            (self.tenant, trace_id),
        )
        return [_standing(row) for row in rows]


@attrs.frozen(kw_only=True, slots=True)
class Step:
    """One thing that happened under a trace id."""

    at_ms: int
    kind: str
    """envelope | intent | decision | event | status | dropped"""
    channel: int | None
    word: str
    """The topic, the verdict, the state: what kind of its kind it is."""
    detail: dict[str, Any]


class Trail:
    """What happened, in order, for `trace`.  Never a message's text."""

    def __init__(self, tenant: str) -> None:
        self.tenant = tenant

    def note(
        self,
        tx: Connection,
        trace_id: str,
        *,
        at_ms: int,
        kind: str,
        word: str,
        channel: int | None = None,
        detail: dict[str, Any] | None = None,
    ) -> int:
        """Add a step; returns its number, which for a decision is the decision's id."""
        tx.execute(
            "INSERT INTO trail (tenant, trace_id, at_ms, kind, channel, word, detail)"
            " VALUES (?, ?, ?, ?, ?, ?, ?)",
            (self.tenant, trace_id, at_ms, kind, channel, word, _dump(detail)),
        )
        return tx.last_rowid()

    def read(self, tx: Connection, trace_id: str, *, limit: int = 1000) -> Sequence[Step]:
        """The steps of one trace id, oldest first."""
        rows = tx.execute(
            "SELECT at_ms, kind, channel, word, detail FROM trail"
            " WHERE tenant = ? AND trace_id = ? ORDER BY id LIMIT ?",
            (self.tenant, trace_id, limit),
        )
        return [
            Step(at_ms=at_ms, kind=kind, channel=channel, word=word, detail=_load(detail) or {})
            for at_ms, kind, channel, word, detail in rows
        ]


def _standing(row: Sequence[Any]) -> Standing:
    trace_id, channel, message, state, attempt, error = row
    return Standing(
        trace_id=trace_id,
        channel=channel,
        message=message,
        state=DeliveryState(state),
        attempt=attempt,
        error=_load(error),
    )


def _dump(value: dict[str, Any] | None) -> str | None:
    return msgspec.json.encode(value).decode() if value else None


def _load(text: str | None) -> dict[str, Any] | None:
    return msgspec.json.decode(text, type=dict[str, Any]) if text else None
