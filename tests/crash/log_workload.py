"""One busy life of a shard's log, and what must be true of whatever it leaves behind."""

from __future__ import annotations

import functools
import random
from pathlib import Path
from typing import Any

import trio

from shards import store
from shards.env import Env
from shards.log import Appended, Batch, Log, open_log
from shards.record import key_hash
from shards.testing.crash import Acknowledge

PATH = Path("/state/log.db")
Ack = tuple[int, Appended] | tuple[str, int]


@functools.cache
def batches(n: int, seed: int = 1) -> list[Batch]:
    """Of two tenants, several topics, keys and publishers; every seventh is a repeat of an earlier one."""
    r = random.Random(seed)
    made: list[Batch] = []
    for i in range(n):
        if i % 7 == 6:
            made.append(made[r.randrange(i)])
            continue
        keys = tuple(key_hash(b"%d" % r.randrange(5)) for _ in range(r.randrange(1, 5)))
        made.append(
            Batch(
                tenant=r.choice(["acme", "beta"]),
                topic=f"t/{r.randrange(3)}",
                principal=r.choice("pq"),
                epoch=1,
                sequence=10 * i,
                keys=keys,
                body=r.randbytes(r.randrange(20, 3000)),
            )
        )
    return made


async def live(env: Env, acknowledge: Acknowledge, *, n: int = 40, trim: bool = True) -> None:
    """Append n batches a few at a time, keep a group's position beside them, trim once."""
    async with open_log(env, PATH, ring_bytes=0) as log:
        for number, batch in enumerate(batches(n)):
            log.append(
                batch, lambda appended, error, number=number: told(acknowledge, number, appended, error)
            )
            if number % 3 == 2:
                await log.wait_past(log.head)
                row = store.GroupRow(
                    tenant="acme", name="g", topics=None, position=log.head, epoch=1, state=b"%d" % number
                )
                await log.database.write(lambda tx, row=row: store.put_groups(tx, [row]))
                acknowledge(("group", row.position))
        await log.database.write(lambda tx: None)
        if trim:
            acknowledge(("trim", log.head // 4))
            await log.trim(before=log.head // 4)


def told(acknowledge: Acknowledge, number: int, appended: Appended | None, error: Exception | None) -> None:
    if error is None:
        acknowledge((number, appended))


async def check(env: Env, acknowledged: list[Any], *, n: int = 40) -> None:
    """Nothing acknowledged is missing or elsewhere, nothing is half there, and life goes on."""
    async with open_log(env, PATH, ring_bytes=0) as log:
        await log.verify()
        found = await stored(log)
        wanted = batches(n)
        first_of = {id(batch): i for i, batch in reversed(list(enumerate(wanted)))}
        trimmed = max([0] + [ack[1] for ack in acknowledged if ack[0] == "trim"])
        assert log.first <= trimmed
        for number, appended in [ack for ack in acknowledged if isinstance(ack[0], int)]:
            batch = wanted[number]
            if appended.position < log.first:
                continue
            assert found[appended.position] == (appended.offset, batch), f"batch {number} is not where it was"
            assert appended.duplicate == (first_of[id(batch)] < number)
        # What is there is a prefix of what was asked, each batch once.
        asked = [batch for i, batch in enumerate(wanted) if first_of[id(batch)] == i]
        there = [batch for _, batch in found.values()]
        skipped = next((i for i, batch in enumerate(asked) if there and batch == there[0]), 0)
        assert asked[skipped : skipped + len(there)] == there
        (position,) = [row.position for row in await log.database.read(store.groups)] or [0]
        assert position >= max([0] + [ack[1] for ack in acknowledged if ack[0] == "group"])
        assert position <= log.head, "a group stands beyond what is there"
        for batch in there[:1] + there[-1:]:
            assert (await log.append_wait(batch)).duplicate
        new = await log.append_wait(
            Batch(tenant="acme", topic="new", principal="n", epoch=1, sequence=1, keys=(1,), body=b"x")
        )
        assert (new.offset, new.position) == (0, log.head - 1)


async def stored(log: Log) -> dict[int, tuple[int, Batch]]:
    """Position -> (offset, batch)."""
    found: dict[int, tuple[int, Batch]] = {}
    at = log.first
    while at < log.head:
        page = await log.page(at, limit_bytes=1 << 30)
        at = page.next
        for run in page.runs:
            batch = Batch(
                tenant=run.tenant,
                topic=run.topic,
                principal=run.principal,
                epoch=run.epoch,
                sequence=run.sequence,
                keys=run.keys,
                body=run.body,
            )
            found[run.position] = (run.offset, batch)
    await trio.lowlevel.checkpoint()
    return found
