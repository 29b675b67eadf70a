"""One chat's life: get in, catch up from the archive, then publish what is said, in order.

Order is the archive's.  What is said while the archive is still being read is held back, and of what came both
ways the archive's copy counts; so a message is published once and after all that was said before it.

A `Line` outlives sessions: what was heard and not yet published when one is lost is published in the next.
"""

from __future__ import annotations

from collections import Counter, OrderedDict, deque
from contextlib import aclosing, suppress
from typing import TYPE_CHECKING, Any

import attrs
import trio

from bridged.connectors.intent import Failed, Intent, Outcome, Retry
from bridged.connectors.xmpp.chat import Chat
from bridged.connectors.xmpp.client import Client, Refused
from bridged.connectors.xmpp.door import Door, Trouble
from bridged.connectors.xmpp.entry import Moved
from bridged.connectors.xmpp.history import NO_ARCHIVE, RECENT_PAGES, History, Lost
from bridged.connectors.xmpp.mapping import Event, Passed, inbound, receipt, refused, unknown_reference
from bridged.connectors.xmpp.seen import Archived, Seen, SeenError, read_message
from bridged.connectors.xmpp.settings import Settings
from bridged.connectors.xmpp.stanza import MAM, Element, write_stamp
from bridged.connectors.xmpp.voice import Voice

if TYPE_CHECKING:
    from bridged.connectors.desk import Cursor, Desk

# Ours.
HELD_MAX = 2000
"""Held back; where there is an archive, more is read from it, else the stream waits."""
PUBLISHED_KEPT = 2048
ENTRY_WAIT_S = 10.0
RETRY_S = (0.5, 1.0, 2.0, 4.0, 8.0, 15.0, 30.0)
SHUT_RETRY_S = 300.0


@attrs.frozen(eq=False)
class _Held:
    stanza: Element
    seen: Seen
    at: float
    archived_as: str | None = None
    """The archive's own word.  Of a live message its stanza-id is asked when it is published: what the room's
    server can, and so whether to trust it, is not known when the first messages come."""


class Line:
    """One chat."""

    def __init__(self, chat: Chat, settings: Settings, passed: Counter[str]) -> None:
        self.chat = chat
        self.trouble: Trouble | None = None
        self.settled = trio.Event()
        """It is in, or it is known why not."""
        self._typing = settings.typing
        self._passed = passed
        self._door = Door(chat, settings, self._on_moved)
        self._history = History(chat)
        self._voice = Voice(chat, self._history, settings.confirm_s)
        self._held: deque[_Held | Moved] = deque()
        self._published: OrderedDict[str, None] = OrderedDict()
        self._sessions = 0
        self._is_behind = True
        self._grown, self._shrunk = trio.Event(), trio.Event()
        self._desk: Desk
        self._client: Client

    @property
    def stream(self) -> str:
        """The name of this chat's cursor."""
        return str(self.chat.jid)

    def begin(self) -> None:
        """A new session: nothing of the last one's standing holds any more."""
        self.settled = trio.Event()
        self._door.begin()

    async def run(self, desk: Desk, client: Client, cursor: Cursor | None) -> None:
        """Keep the chat up for the life of a session; never returns."""
        self._desk, self._client = desk, client
        self.chat.account = client.account
        self._history.begin(client, cursor)
        self._sessions += 1
        failures = 0
        while True:
            self._is_behind = True
            self.trouble = await self._door.enter(client)
            if self.trouble is None:
                await self._arrive()
                failures = 0
                self.settled.set()
                self.trouble = await self._carry()
                if not self.trouble.is_final:
                    self.settled = trio.Event()
            else:
                self.settled.set()
                failures += 1
            is_final = self.trouble.is_final
            await trio.sleep(SHUT_RETRY_S if is_final else RETRY_S[min(failures, len(RETRY_S) - 1)])

    async def say(self, intent: Intent) -> Outcome:
        """Do one intent; the next of this chat waits for it."""
        with trio.move_on_after(ENTRY_WAIT_S):
            await self.settled.wait()
        if self.chat.is_joined:
            outcome = await self._voice.say(intent, self._client)
            if isinstance(outcome, Retry) and outcome.reason.startswith("not-acceptable"):
                self._door.leave("the room does not know us")
            return outcome
        reason = f"{self.chat.jid}: {self.trouble.reason if self.trouble else 'not in the room yet'}"
        if self.trouble is not None and self.trouble.is_final:
            return Failed(code="forbidden", message=reason)
        return Retry(RETRY_S[1], reason)

    # -- from the platform --------------------------------------------------------------------------------

    def hear(self, stanza: Element, seen: Seen, now: float) -> None:
        """A live message of this chat."""
        if seen.error is not None:
            if not self._voice.refuse(seen, seen.error):
                self._passed[f"an error about nothing: {seen.error.condition}"] += 1
        elif self.chat.is_own(seen):
            archive_id = self.chat.stanza_id(seen)
            remote_id = archive_id or seen.origin_id or seen.id or ""
            self._desk.env.maybe("xmpp.heard")
            self._voice.heard(seen, remote_id, is_server_id=archive_id is not None)
        else:
            account = self.chat.account
            clocks = (None, str(self.chat.jid), str(account.bare), account.domain)
            is_late = seen.delayed_at is not None and seen.delayed_by in clocks
            at = min(seen.delayed_at or now, now) if is_late else now
            self._hold(_Held(stanza, seen, at))

    def presence(self, stanza: Element) -> None:
        """A presence from the room."""
        self._door.presence(stanza)

    async def wait_room_for_more(self) -> None:
        """Where no archive could give back what is dropped, the stream waits while too much is held."""
        while len(self._held) >= HELD_MAX and not self.chat.has_archive:
            self._shrunk = trio.Event()
            await self._shrunk.wait()

    def _on_moved(self, moved: Moved) -> None:
        self._hold(moved)

    def _hold(self, item: _Held | Moved) -> None:
        if len(self._held) >= HELD_MAX and self.chat.has_archive:
            self._held.clear()
            self._is_behind = True
        else:
            self._held.append(item)
        self._grown.set()

    def _archive_id(self, item: _Held | Moved) -> str | None:
        if isinstance(item, Moved):
            return None
        return item.archived_as or self.chat.stanza_id(item.seen)

    # -- to the house -------------------------------------------------------------------------------------

    async def _arrive(self) -> None:
        """Say that we are in, and where in the archive we begin if nobody knows yet."""
        if self.chat.has_archive:
            try:
                await self._history.begin_at_end(
                    lambda: next((found for held in self._held if (found := self._archive_id(held))), None)
                )
            except Refused as exc:
                self._passed[f"the archive refuses: {exc.error.condition}"] += 1
                self.chat.features -= {MAM}
        if self.chat.is_room:
            payload = self._member(self.chat.nick, self._desk.env.wall())
            payload |= {"change": "snapshot", "names": sorted(self.chat.occupants | {self.chat.nick})}
            if self._history.position is not None:
                payload["cursor"] = {"stream": self.stream, "value": self._history.position}
            await self._publish_event(Event("membership", payload))

    async def _carry(self) -> Trouble:
        """Publish what is said, in order, until we are out of the room."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._pump)
            trouble = await self._door.stay(self._client)
            nursery.cancel_scope.cancel()
        self._voice.fall_silent()
        return trouble

    async def _pump(self) -> None:
        while True:
            if self._is_behind:
                await self._catch_up()
            elif self._held:
                item = self._held[0]
                await (self._publish_moved(item) if isinstance(item, Moved) else self._publish(item))
                if self._held and self._held[0] is item:  # else the archive shall give it again
                    self._held.popleft()
                self._shrunk.set()
            else:
                self._grown = trio.Event()
                await self._grown.wait()

    async def _catch_up(self) -> None:
        """Read the archive from the cursor to its end; where there is none, say what may be missing."""
        self._is_behind = False
        if not self.chat.has_archive:
            await self._tell_gap(self._history.position_at, None)
            return
        try:
            async with aclosing(self._history.news()) as news:
                async for item in news:
                    if isinstance(item, Lost):
                        await self._tell_gap(item.begin, item.end)
                    else:
                        await self._publish_archived(item)
        except Refused as exc:
            self._passed[f"the archive refuses: {exc.error.condition}"] += 1
            if isinstance(refused(exc.error), Retry):
                await trio.sleep(RETRY_S[3])
                self._is_behind = True
            else:
                self.chat.features -= {MAM}

    async def _publish_archived(self, archived: Archived) -> None:
        at = archived.at if archived.at is not None else self._desk.env.wall()
        try:
            seen = read_message(archived.message)
            if seen.sender.bare not in (self.chat.jid, self.chat.archive):
                raise SeenError("somebody else's message")
        except SeenError:
            self._passed["not of this archive"] += 1
        else:
            if self.chat.is_own(seen):
                self._voice.heard(seen, archived.archive_id, is_server_id=self.chat.is_room)
            else:
                await self._publish(_Held(archived.message, seen, at, archived.archive_id), is_live=False)
        self._history.move(archived.archive_id, at)
        for copy in [held for held in self._held if self._archive_id(held) == archived.archive_id]:
            self._held.remove(copy)

    async def _publish(self, held: _Held, *, is_live: bool = True) -> None:
        archive_id = self._archive_id(held)
        if archive_id is not None and archive_id in self._published:
            return
        if unknown_reference(self.chat, held.seen) and self.chat.has_archive:
            with suppress(Refused):  # then it is not shown to be theirs
                await self._history.search(
                    lambda *_: not unknown_reference(self.chat, held.seen), pages=RECENT_PAGES
                )
        event = inbound(
            self.chat,
            held.seen,
            held.stanza,
            archive_id=archive_id,
            at=held.at,
            typing=self._typing,
            is_live=is_live,
        )
        if isinstance(event, Passed):
            self._passed[event.reason] += 1
            return
        if not event.is_passing:
            self._mark(event, archive_id)
        await self._publish_event(event)
        if not event.is_passing:
            if archive_id is not None:
                self._history.move(archive_id, held.at)
                self._published[archive_id] = None
                if len(self._published) > PUBLISHED_KEPT:
                    self._published.popitem(last=False)
            elif not self.chat.has_archive:
                self._history.position_at = held.at
        # Only now: a receipt says that we shall not lose it.
        owed = receipt(held.seen, self._client.new_id()) if is_live and not self.chat.is_room else None
        if owed is not None:
            self._client.send(owed)

    def _mark(self, event: Event, archive_id: str | None) -> None:
        """Give the event the cursor that it moves; what an archive did not keep is no place in it."""
        if archive_id is not None or not self.chat.has_archive:
            event.payload["cursor"] = {"stream": self.stream, "value": archive_id or NO_ARCHIVE}

    async def _publish_moved(self, moved: Moved) -> None:
        payload = self._member(moved.nick, self._desk.env.wall())
        payload |= {"change": moved.change, "by": moved.by, "reason": moved.reason}
        await self._publish_event(Event("membership", payload))

    async def _publish_event(self, event: Event) -> None:
        key = self.chat.channel.encode()
        if event.is_passing:
            await self._desk.publish_ephemeral(event.action, event.payload, key=key)
        else:
            await self._desk.publish(event.action, event.payload, key=key)

    async def _tell_gap(self, begin: float | None, end: float | None) -> None:
        end = self._desk.env.wall() if end is None else end
        if begin is None or end <= begin:
            return
        payload = {
            "channel": self.chat.channel,
            "from": write_stamp(begin),
            "to": write_stamp(end),
            "reason": "connection_lost" if self._sessions > 1 else "daemon_down",
        }
        await self._publish_event(Event("gap_event", payload))

    def _member(self, nick: str, at: float) -> dict[str, Any]:
        reference, name = self.chat.identity(self.chat.jid.with_resource(nick))
        member = {"ref": reference, "name": name}
        return {"channel": self.chat.channel, "member": member, "timestamp": write_stamp(at)}
