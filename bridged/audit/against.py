"""The audit log held against the Log: every record has its leaf, every leaf its record.

Positions join the two, so completeness is arithmetic.  What retention has taken from the Log can no longer be
compared; what the audit has not come to yet is counted and no fault.
"""

from __future__ import annotations

import hashlib
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing

import attrs

from bridged.audit import store
from bridged.audit.store import Leaf
from bridged.audit.tree import AuditError
from shards.database import Database
from shards.log import Log
from shards.wire import decode_batch

LEAVES = 1024


@attrs.frozen(kw_only=True)
class Compared:
    """What the comparison has seen."""

    compared: int
    """Records whose leaf says what the Log has."""
    not_yet_audited: int
    """Records after the last leaf."""
    trimmed: int
    """Leaves of records that retention has taken."""


@attrs.frozen(kw_only=True)
class _Fact:
    position: int
    topic: str
    offset: int
    principal: str
    digest: str


async def compare(log: Log, database: Database, tenant: str, *, size: int) -> Compared:
    """Walk both in journal order.

    Args:
        log: Opened after `size` was read, so that it has every record of these leaves.
        size: So many leaves are looked at.

    Raises:
        AuditError: A record without its leaf, a leaf without its record, or one that says something else.
        LogCorrupt: A segment does not match its checksum.
    """
    async with aclosing(_leaves(database, size)) as leaves, aclosing(_facts(log, tenant)) as facts:
        return await _compare(log.first, leaves, facts)


async def _compare(
    first: int, leaves: AsyncIterator[tuple[int, Leaf]], facts: AsyncIterator[_Fact]
) -> Compared:
    compared = waiting = trimmed = 0
    leaf = await anext(leaves, None)
    while leaf is not None and leaf[1].position < first:
        trimmed += 1
        leaf = await anext(leaves, None)
    async for fact in facts:
        if leaf is None:
            waiting += 1
            continue
        seq, kept = leaf
        if kept.position < fact.position:
            raise AuditError(f"leaf {seq} is of position {kept.position}, where the Log has no record")
        if kept.position > fact.position:
            raise AuditError(f"the record at position {fact.position} of the Log has no leaf")
        if _fact_of(kept) != fact:
            raise AuditError(f"leaf {seq} says something else than the Log at position {fact.position}")
        compared += 1
        leaf = await anext(leaves, None)
    if leaf is not None:
        raise AuditError(f"leaf {leaf[0]} is of position {leaf[1].position}, where the Log has no record")
    return Compared(compared=compared, not_yet_audited=waiting, trimmed=trimmed)


def _fact_of(leaf: Leaf) -> _Fact:
    return _Fact(
        position=leaf.position,
        topic=leaf.topic,
        offset=leaf.offset,
        principal=leaf.principal,
        digest=leaf.digest,
    )


async def _leaves(database: Database, size: int) -> AsyncGenerator[tuple[int, Leaf], None]:
    first = 0
    while first < size:
        page = await database.read(lambda tx: store.leaves(tx, first, min(LEAVES, size - first)))  # noqa: B023
        if not page:
            return
        for row in page:
            yield row
        first = page[-1][0] + 1


async def _facts(log: Log, tenant: str) -> AsyncGenerator[_Fact, None]:
    position = log.first
    while position < log.head:
        page = await log.page(position, tenant=tenant)
        for run in page.runs:
            for number, payload in enumerate(decode_batch(run.body).payloads):
                yield _Fact(
                    position=run.position + number,
                    topic=run.topic,
                    offset=run.offset + number,
                    principal=run.principal,
                    digest=hashlib.sha256(payload).hexdigest(),
                )
        position = page.next
