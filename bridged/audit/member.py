"""The audit as a member: it reads the whole journal of its tenant and writes one leaf a record.

Nobody calls it, so nobody can forget to.  It holds the `journal` grant; its own position is the last leaf's, so
completeness is arithmetic: every record of the tenant has exactly one leaf.
"""

from __future__ import annotations

from pathlib import Path
from typing import NoReturn

import trio

from bridged.audit import store
from bridged.audit.tree import Checkpoint, Frontier, sign_checkpoint
from bridged.secret import Secret
from shards.client import Client, Subscription
from shards.database import Database, open_database
from shards.env import Env

GROUP = "audit"
CHECKPOINT_EVERY_S = 1.0
CREDIT_RECORDS = 1024


def origin(shard: str, tenant: str) -> str:
    """The name under which this log signs its checkpoints."""
    return f"bridged.local/{shard}/{tenant}"


class Audit:
    """One tenant's audit log, growing."""

    def __init__(self, database: Database, *, name: str, seed: Secret) -> None:
        self._database = database
        self._name = name
        self._seed = seed
        self._frontier = Frontier()
        self._signed = 0
        self._next = 0
        """The journal position after the last leaf's."""

    async def open(self) -> int:
        """Read the tree's edge; returns the journal position to go on from."""
        hashes, (_, position), notes = await self._database.read(
            lambda tx: (store.hashes(tx), store.head(tx), store.checkpoints(tx))
        )
        self._frontier = Frontier(hashes)
        self._signed = notes[-1][0] if notes else 0
        self._next = position
        return position

    async def consume(self, subscription: Subscription) -> NoReturn:
        """One leaf a record, in journal order; acknowledged after the leaves are on disk."""
        while True:
            records = await subscription.receive()
            # What a replay gives again has its leaf.
            leaves = [store.Leaf.of(record) for record in records if record.position >= self._next]
            first = self._frontier.size
            hashes = await self._database.write(lambda tx: store.append(tx, first, leaves))  # noqa: B023
            for leaf in hashes:
                self._frontier.append(leaf)
            if leaves:
                self._next = leaves[-1].position + 1
            await subscription.done(records)

    async def checkpoint(self) -> None:
        """Sign the head, if it has grown.  Its leaves are on disk: the frontier moves after the commit."""
        size, root = self._frontier.size, self._frontier.root()
        if size == self._signed:
            return
        note = sign_checkpoint(Checkpoint(origin=self._name, size=size, root=root), self._seed.reveal())
        await self._database.write(lambda tx: store.put_checkpoint(tx, size, note))
        self._signed = size

    async def sign(self) -> NoReturn:
        """A checkpoint a second, while there is something new."""
        while True:
            await trio.sleep(CHECKPOINT_EVERY_S)
            await self.checkpoint()


async def run_audit(
    env: Env,
    client: Client,
    *,
    path: Path,
    name: str,
    seed: Secret,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> NoReturn:
    """The audit of the client's tenant over `audit.db` at `path`; never returns."""
    async with open_database(env, path, migrations=store.MIGRATIONS) as database:
        audit = Audit(database, name=name, seed=seed)
        position = await audit.open()
        async with (
            client.subscribe(
                None, group=GROUP, start=position, credit_records=CREDIT_RECORDS
            ) as subscription,
            trio.open_nursery() as nursery,
        ):
            task_status.started()
            nursery.start_soon(audit.sign)
            await audit.consume(subscription)
    raise AssertionError("unreachable")
