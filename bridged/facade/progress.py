"""How far the facade has read the journal, and the cursors of the platforms' streams.

A record counts as taken once the transaction that applied it has committed.  The group's records come in journal
order per key only, so what is taken is one position below which everything is (`settled`) and the few beyond it,
as the broker keeps it too; both move in the transaction that applies the records.  A record that comes again,
after a crash or by `bridgectl replay`, is recognised here.
"""

from __future__ import annotations

import attrs

from shards.database import Connection

# Ours.
PRUNE_EVERY = 512
"""Positions by which `settled` moves before what lies below it is forgotten."""


@attrs.frozen(kw_only=True, slots=True)
class CursorRow:
    """How far a platform's stream is stored."""

    stream: str
    value: str
    at: str
    """When the last stored event of the stream was said, `…Z`."""


class Progress:
    """The positions and cursors of one tenant."""

    def __init__(self, tenant: str) -> None:
        self.tenant = tenant

    def settled(self, tx: Connection) -> int:
        """Everything of the facade's topics below this journal position is taken."""
        row = tx.one("SELECT value FROM fact WHERE tenant = ? AND name = 'settled'", (self.tenant,))
        return 0 if row is None else int(row[0])

    def settle(self, tx: Connection, position: int) -> None:
        """The broker says that the group has finished all below; the single positions are not needed then."""
        settled = self.settled(tx)
        if position < settled + PRUNE_EVERY:
            return
        tx.execute(
            "INSERT INTO fact (tenant, name, value) VALUES (?, 'settled', ?)"
            " ON CONFLICT (tenant, name) DO UPDATE SET value = excluded.value",
            (self.tenant, position),
        )
        tx.execute(
            "DELETE FROM taken WHERE tenant = ? AND position < ? AND NOT refused", (self.tenant, position)
        )

    def take(self, tx: Connection, position: int, *, settled: int) -> bool:
        """Count the record at `position` as applied; False where it was before.

        One that was refused and is given again, after `bridgectl dlq retry`, was not applied.
        """
        if position >= settled:
            tx.execute("INSERT OR IGNORE INTO taken VALUES (?, ?, 0)", (self.tenant, position))
            if tx.changes():
                return True
        tx.execute(
            "UPDATE taken SET refused = 0 WHERE tenant = ? AND position = ? AND refused",
            (self.tenant, position),
        )
        return tx.changes() > 0

    def refuse(self, tx: Connection, position: int) -> bool:
        """Count the record at `position` as refused; False where it was taken or refused before."""
        tx.execute("INSERT OR IGNORE INTO taken VALUES (?, ?, 1)", (self.tenant, position))
        return tx.changes() > 0

    def move_cursor(
        self,
        tx: Connection,
        *,
        service: str,
        instance: str,
        stream: str,
        value: str,
        at: str,
        position: int,
    ) -> None:
        """Move a stream's cursor; a record from before the one that moved it last does not move it back."""
        tx.execute(
            "INSERT INTO cursor (tenant, service, instance, stream, value, at, position)"
            " VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT (tenant, service, instance, stream) DO UPDATE SET"
            " value = excluded.value, at = excluded.at, position = excluded.position"
            " WHERE excluded.position > cursor.position",
            (self.tenant, service, instance, stream, value, at, position),
        )

    def cursors(self, tx: Connection, service: str, instance: str) -> list[CursorRow]:
        """All streams of one connector."""
        return [
            CursorRow(stream=stream, value=value, at=at)
            for stream, value, at in tx.execute(
                "SELECT stream, value, at FROM cursor"
                " WHERE tenant = ? AND service = ? AND instance = ? ORDER BY stream",
                (self.tenant, service, instance),
            )
        ]
