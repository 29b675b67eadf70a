"""The message store: messages, their edits, reactions and redactions, and a page of history.

Every function works inside a transaction of the caller's.  Nothing is ever found by a bare id: a message is looked
up in a conversation of the tenant, so that what names a message of another room finds nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import attrs

from shards.database import Connection

# Ours.
EXCERPT_CHARACTERS = 80
HISTORY_MAX = 200
"""Messages in one page of history."""
OFFSET_END = 2**62
"""Beyond every offset."""

# Statements are constants: a value from outside is always a bound parameter.
COLUMNS = (
    "m.id, m.conversation, m.offset, m.message_id, m.trace_id, m.channel, m.sender, m.sender_name,"
    " m.kind, m.text, m.html, m.reply_to, m.at_ms, m.edits, m.redacted"
)
_BY_ID = f"SELECT {COLUMNS} FROM message m WHERE m.tenant = ? AND m.message_id = ? AND m.conversation = ?"
_BY_ROW = f"SELECT {COLUMNS} FROM message m WHERE m.id = ? AND m.tenant = ? AND m.conversation = ?"
_MATCHING = " AND m.id IN (SELECT rowid FROM message_text WHERE message_text MATCH ?)"
_PAGE = {
    (bound, is_search): (
        f"SELECT {COLUMNS} FROM message m WHERE m.tenant = ? AND m.conversation = ?"
        f" AND m.offset {bound} ?{_MATCHING if is_search else ''}"
        f" ORDER BY m.offset {order}, m.id {order} LIMIT ?"
    )
    for bound, order in (("<", "DESC"), ("<=", "DESC"), (">", "ASC"))
    for is_search in (False, True)
}


@attrs.frozen(kw_only=True, slots=True)
class Said:
    """What somebody said, before it is stored."""

    conversation: str
    channel: int | None
    """Row of the channel where it was said; None for a client."""
    sender: str
    """`msgr://identity/…`"""
    name: str
    kind: str
    text: str
    html: str | None
    at_ms: int
    edits: int = 0
    redacted: bool = False


@attrs.frozen(slots=True)
class Message:
    """A stored message."""

    id: int
    conversation: str
    offset: int | None
    """Of its event on `bridge/core/event`; None until the fabric has acknowledged that."""
    message_id: str
    trace_id: str
    channel: int | None
    sender: str
    name: str
    kind: str
    text: str
    html: str | None
    reply_to: int | None
    at_ms: int
    edits: int
    redacted: int


@attrs.frozen(kw_only=True, slots=True)
class ReactionChange:
    """One sender's reactions to a message, after and before."""

    emojis: tuple[str, ...]
    added: tuple[str, ...]
    removed: tuple[str, ...]


def excerpt(text: str) -> str:
    """The beginning of a text on one line, for those who must be shown what a reply or reaction is about."""
    line = " ".join(text[: 4 * EXCERPT_CHARACTERS].split())
    return line if len(line) <= EXCERPT_CHARACTERS else line[: EXCERPT_CHARACTERS - 1].rstrip() + "…"


def search_terms(query: str) -> str:
    """A person's words as an FTS5 query: each word quoted, all must occur, the last may be unfinished."""
    words = ['"' + word.replace('"', '""') + '"' for word in query.replace("\0", " ").split()]
    return " ".join(words) + "*" if words else '""'


class MessageStore:
    """The messages of one tenant."""

    def __init__(self, tenant: str) -> None:
        self.tenant = tenant

    # -- writing ----------------------------------------------------------------------------------------------

    def add(
        self,
        tx: Connection,
        said: Said,
        *,
        message_id: str,
        trace_id: str,
        reply_to: Message | None,
    ) -> Message:
        """Store a message; the reply must be of the same conversation.  `announce` follows in the same transaction."""
        assert reply_to is None or reply_to.conversation == said.conversation
        reply_row = None if reply_to is None else reply_to.id
        tx.execute(
            "INSERT INTO message (tenant, conversation, message_id, trace_id, channel, sender,"
            " sender_name, kind, text, html, reply_to, at_ms, edits, redacted)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                self.tenant,
                said.conversation,
                message_id,
                trace_id,
                said.channel,
                said.sender,
                said.name,
                said.kind,
                said.text,
                said.html,
                reply_row,
                said.at_ms,
                said.edits,
                int(said.redacted),
            ),
        )
        row = tx.last_rowid()
        if said.text:
            tx.execute("INSERT INTO message_text (rowid, text) VALUES (?, ?)", (row, said.text))
        return Message(
            row,
            said.conversation,
            None,
            message_id,
            trace_id,
            said.channel,
            said.sender,
            said.name,
            said.kind,
            said.text,
            said.html,
            reply_row,
            said.at_ms,
            said.edits,
            int(said.redacted),
        )

    def announce(self, tx: Connection, message: int, event: int) -> None:
        """The message's event is that row of the outbox."""
        tx.execute("UPDATE message SET event = ? WHERE id = ?", (event, message))

    def published(self, tx: Connection, rows: Iterable[tuple[int, int]]) -> None:
        """Record (outbox row, offset) of events that the fabric has acknowledged."""
        tx.executemany("UPDATE message SET offset = ?2 WHERE event = ?1 AND offset IS NULL", rows)

    def is_unpublished(self, tx: Connection, conversation: str) -> bool:
        """Does the conversation hold a message whose event is still on its way?"""
        return bool(
            tx.one(
                "SELECT 1 FROM message WHERE tenant = ? AND conversation = ? AND offset IS NULL LIMIT 1",
                (self.tenant, conversation),
            )
        )

    def edit(
        self, tx: Connection, message: Message, *, text: str, html: str | None, trace_id: str, at_ms: int
    ) -> Message:
        """Give the message a new text; what it said before is kept in `earlier`."""
        tx.execute(
            "INSERT INTO earlier (message, edit, trace_id, text, html, at_ms) VALUES (?, ?, ?, ?, ?, ?)",
            (message.id, message.edits, trace_id, message.text, message.html, at_ms),
        )
        self._unindex(tx, message)
        tx.execute(
            "UPDATE message SET text = ?, html = ?, edits = edits + 1 WHERE id = ?", (text, html, message.id)
        )
        if text:
            tx.execute("INSERT INTO message_text (rowid, text) VALUES (?, ?)", (message.id, text))
        return attrs.evolve(message, text=text, html=html, edits=message.edits + 1)

    def redact(self, tx: Connection, message: Message) -> Message:
        """Take the message's texts away, earlier ones included; that it was there stays."""
        self._unindex(tx, message)
        tx.execute("DELETE FROM earlier WHERE message = ?", (message.id,))
        tx.execute("DELETE FROM reaction WHERE message = ?", (message.id,))
        tx.execute("UPDATE message SET text = '', html = NULL, redacted = 1 WHERE id = ?", (message.id,))
        return attrs.evolve(message, text="", html=None, redacted=1)

    def react(
        self, tx: Connection, message: Message, *, sender: str, name: str, emojis: Iterable[str], at_ms: int
    ) -> ReactionChange:
        """Make `emojis` the sender's whole set of reactions to the message."""
        wanted = tuple(dict.fromkeys(emojis))
        held = [
            row[0]
            for row in tx.execute(
                "SELECT emoji FROM reaction WHERE message = ? AND sender = ? ORDER BY at_ms, emoji",
                (message.id, sender),
            )
        ]
        added = tuple(emoji for emoji in wanted if emoji not in held)
        removed = tuple(emoji for emoji in held if emoji not in wanted)
        for emoji in removed:
            tx.execute(
                "DELETE FROM reaction WHERE message = ? AND sender = ? AND emoji = ?",
                (message.id, sender, emoji),
            )
        for emoji in added:
            tx.execute(
                "INSERT INTO reaction (message, sender, emoji, name, at_ms) VALUES (?, ?, ?, ?, ?)",
                (message.id, sender, emoji, name, at_ms),
            )
        return ReactionChange(emojis=wanted, added=added, removed=removed)

    def _unindex(self, tx: Connection, message: Message) -> None:
        if message.text:  # an external-content index must be told what it had indexed
            tx.execute(
                "INSERT INTO message_text (message_text, rowid, text) VALUES ('delete', ?, ?)",
                (message.id, message.text),
            )

    # -- reading ----------------------------------------------------------------------------------------------

    def by_id(self, tx: Connection, conversation: str, message_id: str) -> Message | None:
        """The message of that conversation, else None."""
        row = tx.one(_BY_ID, (self.tenant, message_id, conversation))
        return None if row is None else Message(*row)

    def conversation_of(self, tx: Connection, message_id: str) -> str | None:
        """Where a message was said; what a caller may do with it is for the caller to check."""
        row = tx.one(
            "SELECT conversation FROM message WHERE tenant = ? AND message_id = ?", (self.tenant, message_id)
        )
        return None if row is None else row[0]

    def address_of(self, tx: Connection, row: int) -> tuple[str, str]:
        """(conversation, message id) of a row that is there."""
        found = tx.one("SELECT conversation, message_id FROM message WHERE id = ?", (row,))
        assert found is not None
        return found[0], found[1]

    def address_of_trace(self, tx: Connection, trace_id: str) -> tuple[str, str] | None:
        """(conversation, message id) of what a trace id is about, None where there is no message."""
        row = tx.one(
            "SELECT conversation, message_id FROM message WHERE tenant = ?1 AND trace_id = ?2"
            " UNION ALL SELECT m.conversation, m.message_id FROM delivery d JOIN message m ON m.id = d.message"
            " WHERE d.tenant = ?1 AND d.trace_id = ?2 LIMIT 1",
            (self.tenant, trace_id),
        )
        return None if row is None else (row[0], row[1])

    def by_row(self, tx: Connection, conversation: str, row: int | None) -> Message | None:
        """The message in that row, if it is of that conversation."""
        if row is None:
            return None
        found = tx.one(_BY_ROW, (row, self.tenant, conversation))
        return None if found is None else Message(*found)

    def has_trace(self, tx: Connection, trace_id: str) -> bool:
        """Does a message or an intent live under that trace id?"""
        return bool(
            tx.one(
                "SELECT 1 WHERE EXISTS (SELECT 1 FROM message WHERE tenant = ?1 AND trace_id = ?2)"
                " OR EXISTS (SELECT 1 FROM delivery WHERE tenant = ?1 AND trace_id = ?2)",
                (self.tenant, trace_id),
            )
        )

    def history(
        self,
        tx: Connection,
        conversation: str,
        *,
        before: int | None = None,
        after: int | None = None,
        around: int | None = None,
        limit: int = 50,
        query: str | None = None,
    ) -> list[Message]:
        """A page of published messages in the order of their offsets; without a bound the newest.

        Args:
            before: Only offsets below it, the nearest.
            after: Only offsets above it, the nearest.
            around: Half of the page up to and with it, half beyond.
            query: Only messages with all these words.
        """
        limit = max(1, min(limit, HISTORY_MAX))
        if around is not None:
            upto = self._page(tx, conversation, "<=", around, limit - limit // 2, query)
            return upto + self._page(tx, conversation, ">", around, limit // 2, query)
        if after is not None:
            return self._page(tx, conversation, ">", after, limit, query)
        return self._page(tx, conversation, "<", OFFSET_END if before is None else before, limit, query)

    def _page(
        self, tx: Connection, conversation: str, bound: str, offset: int, limit: int, query: str | None
    ) -> list[Message]:
        terms = () if query is None else (search_terms(query),)
        rows = tx.execute(_PAGE[bound, query is not None], (self.tenant, conversation, offset, *terms, limit))
        messages = [Message(*row) for row in rows]
        return messages if bound == ">" else messages[::-1]

    def reactions(self, tx: Connection, messages: Sequence[int]) -> dict[int, list[tuple[str, str, str]]]:
        """Message row -> (emoji, sender, name), in the order in which they came."""
        found: dict[int, list[tuple[str, str, str]]] = {}
        for message in messages:
            rows = tx.execute(
                "SELECT emoji, sender, name FROM reaction WHERE message = ? ORDER BY at_ms, sender, emoji",
                (message,),
            )
            if rows:
                found[message] = [(emoji, sender, name) for emoji, sender, name in rows]
        return found
