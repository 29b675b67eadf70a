"""A chat's archive: where we are in it, reading on, and looking something up."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from typing import TYPE_CHECKING, Any

import attrs

from bridged.connectors.xmpp.archive import PAGE_MESSAGES, Page, page_query, read_page
from bridged.connectors.xmpp.chat import Chat, Known
from bridged.connectors.xmpp.client import Client, Refused
from bridged.connectors.xmpp.seen import Archived, Seen, SeenError, read_message

if TYPE_CHECKING:
    from bridged.connectors.desk import Cursor

# Ours.
SEARCH_PAGES_MAX = 200
"""How far back a message of ours is looked up: 20 000 messages."""
RECENT_PAGES = 10
"""The same for what is only nice to have: the original of a correction."""
START = "^"
"""The cursor of an archive that was empty: from its very start."""
NO_ARCHIVE = "-"
"""The cursor of a chat without one: only its time counts."""


@attrs.frozen
class Lost:
    """The archive has let go of the place where we were: what lay between the times is gone."""

    begin: float | None
    end: float | None
    """None: nothing is left at all, up to now."""


class History:
    """The archive of one chat, in every session."""

    def __init__(self, chat: Chat) -> None:
        self._chat = chat
        self._client: Client
        self.position: str | None = None
        """Id of the last message that was published, or START; None where nobody has begun yet."""
        self.position_at: float | None = None
        """When that was said, or the last message of a chat without an archive."""

    def begin(self, client: Client, cursor: Cursor | None) -> None:
        """A new session, with what the message store knows."""
        self._client = client
        if cursor is not None:
            self.position = cursor.value if cursor.value != NO_ARCHIVE else None
            self.position_at = cursor.at

    def move(self, archive_id: str, at: float | None) -> None:
        """So far it is published."""
        self.position, self.position_at = archive_id, at

    async def begin_at_end(self, heard: Callable[[], str | None]) -> None:
        """Where nobody has begun yet: begin at the end, but before the first that was heard live.

        Raises:
            Refused: There is no archive for us.
        """
        if self.position is not None:
            return
        page = await self._page(before="", limit=1)
        first = heard()
        if first is not None:
            page = await self._page(before=first, limit=1)
        self.position = page.messages[-1].archive_id if page.messages else START

    async def news(self) -> AsyncGenerator[Archived | Lost, None]:
        """All that was archived behind the position, oldest first; whoever takes it moves the position.

        Raises:
            Refused: There is no archive for us, or not now.
        """
        since: float | None = None
        while True:
            after = None if self.position in (None, START) else self.position
            try:
                page = await self._page(after=after, since=since)
            except Refused as exc:
                if exc.error.condition != "item-not-found" or after is None:
                    raise
                since = self.position_at
                page = await self._page(since=since, limit=1)
                yield Lost(since, page.messages[0].at if page.messages else None)
                self.position = START
                continue
            for archived in page.messages:
                yield archived
            if page.is_last:
                return

    async def search(
        self, wanted: Callable[[Archived, Seen], bool], *, pages: int = SEARCH_PAGES_MAX
    ) -> tuple[Archived | None, bool]:
        """Go back from the end; the message, if any, and whether the answer is sure.

        What is passed on the way is remembered in the chat.  Raises Refused as `news`.
        """
        before = ""
        for _ in range(pages):
            page = await self._page(before=before)
            for archived in reversed(page.messages):
                try:
                    seen = read_message(archived.message)
                except SeenError:
                    continue
                if seen.body is not None and seen.replaces is None:
                    self._chat.remember(Known(archived.archive_id, seen.id, self._chat.author(seen)))
                if wanted(archived, seen):
                    return archived, True
            if page.is_last:
                return None, True
            before = page.messages[0].archive_id
        return None, False

    async def _page(self, *, limit: int = PAGE_MESSAGES, **where: Any) -> Page:
        question = page_query(
            self._chat.archive,
            self._chat.account,
            self._client.new_id(),
            with_jid=None if self._chat.is_room else self._chat.jid,
            limit=limit,
            **where,
        )
        return read_page(*await self._client.ask_archive(question))
