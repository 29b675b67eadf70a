"""What each platform calls a message, and what has been received from it already.

A platform's id is looked up in one channel *and* that channel's conversation, so that a reply, an edit or a reaction
that names something of another room finds nothing (GHSA-c7hh-3v6c-fj4q).  An id that a sender chose counts only
together with that sender.
"""

from __future__ import annotations

from bridged.facade.messages import COLUMNS, Message
from shards.database import Connection

_BY_REMOTE = (
    f"SELECT {COLUMNS}, r.scope FROM remote r JOIN message m ON m.id = r.message"
    " WHERE r.channel = ? AND r.remote_id = ? AND m.tenant = ? AND m.conversation = ?"
)


class RemoteNames:
    """The platforms' ids of one tenant's messages."""

    def __init__(self, tenant: str) -> None:
        self.tenant = tenant

    def learn(
        self, tx: Connection, channel: int, message: int, remote_id: str, *, scope: str = "", part: int = 0
    ) -> bool:
        """Remember a platform's id of a message; False where the id is taken already."""
        tx.execute(
            "INSERT OR IGNORE INTO remote (channel, remote_id, scope, message, part) VALUES (?, ?, ?, ?, ?)",
            (channel, remote_id, scope, message, part),
        )
        return tx.changes() > 0

    def is_held(self, tx: Connection, channel: int, remote_id: str, *scopes: str) -> bool:
        """Does any message hold that id in that channel, in one of the scopes?  Then it is known already."""
        return any(
            tx.one(
                "SELECT 1 FROM remote WHERE channel = ? AND remote_id = ? AND scope = ?",
                (channel, remote_id, scope),
            )
            for scope in dict.fromkeys(scopes)
        )

    def has_name(self, tx: Connection, channel: int, message: int) -> bool:
        """Has the message any name in that channel?"""
        return bool(
            tx.one("SELECT 1 FROM remote WHERE message = ? AND channel = ? LIMIT 1", (message, channel))
        )

    def message(
        self, tx: Connection, conversation: str, channel: int, remote_id: str, *, speaker: str | None = None
    ) -> Message | None:
        """The message of *this conversation* that the platform calls so in that channel, else None.

        An id of the server's is found first, then one that `speaker` chose; without a speaker one that anybody
        chose, but only where it is nobody else's too.
        """
        rows = tx.execute(_BY_REMOTE, (channel, remote_id, self.tenant, conversation))
        of_server = [row for row in rows if row[-1] == ""]
        if of_server:
            return Message(*of_server[0][:-1])
        if speaker is not None:
            rows = [row for row in rows if row[-1] == speaker]
        return Message(*rows[0][:-1]) if len(rows) == 1 else None

    def of(self, tx: Connection, conversation: str, channel: int, message: int) -> str | None:
        """What to call the message in that channel, or None where it has no name there (yet)."""
        row = tx.one(
            "SELECT r.remote_id FROM remote r JOIN message m ON m.id = r.message"
            " WHERE r.message = ? AND r.channel = ? AND m.tenant = ? AND m.conversation = ?"
            " ORDER BY r.part LIMIT 1",
            (message, channel, self.tenant, conversation),
        )
        return None if row is None else row[0]

    def own(self, tx: Connection, channel: int, message: int) -> str | None:
        """What that channel's own platform calls the message; for its connector."""
        row = tx.one(
            "SELECT remote_id FROM remote WHERE message = ? AND channel = ? ORDER BY part LIMIT 1",
            (message, channel),
        )
        return None if row is None else row[0]

    def first_sight(
        self, tx: Connection, channel: int, kind: str, remote_id: str, version: str, scope: str
    ) -> bool:
        """Note an edit, reaction or redaction; False where it has been received before."""
        tx.execute(
            "INSERT OR IGNORE INTO seen (channel, kind, remote_id, version, scope) VALUES (?, ?, ?, ?, ?)",
            (channel, kind, remote_id, version, scope),
        )
        return tx.changes() > 0

    def bury(self, tx: Connection, channel: int, remote_id: str, sender: str) -> None:
        """Note the redaction of a message that has not been received."""
        tx.execute("INSERT OR IGNORE INTO tombstone VALUES (?, ?, ?)", (channel, remote_id, sender))

    def is_buried(self, tx: Connection, channel: int, remote_id: str, sender: str) -> bool:
        """Was it redacted, by its sender or by the platform, before it was received?"""
        return bool(
            tx.one(
                "SELECT 1 FROM tombstone WHERE channel = ? AND remote_id = ? AND sender IN ('', ?)",
                (channel, remote_id, sender),
            )
        )
