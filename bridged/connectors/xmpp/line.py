"""One chat's life during one session: get in, catch up from the archive, then carry both ways.

Order is the archive's.  What is said while the archive is still being read is held back, and of what came both
ways the archive's copy counts; so a message is published once and after all that was said before it.  Of a
message of ours the room's own copy is the confirmation; when that was missed, the archive is asked for it, by
the id that the message had in its first life.

A `Line` outlives sessions: what was heard and not yet published when one is lost is published in the next.
"""

from __future__ import annotations

from collections import Counter, OrderedDict, deque
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import attrs
import trio

from bridged.connectors.intent import Delivered, Failed, Intent, Outcome, Retry, Unknown
from bridged.connectors.xmpp.archive import Page, page_query, read_page
from bridged.connectors.xmpp.chat import Chat, Kind, Known
from bridged.connectors.xmpp.client import Client, Refused
from bridged.connectors.xmpp.entry import (
    Gone,
    Joined,
    Moved,
    NotJoined,
    join_request,
    own_form,
    read_presence,
)
from bridged.connectors.xmpp.mapping import (
    Event,
    Passed,
    inbound,
    outbound,
    receipt,
    refused,
    stanza_id_of,
    unknown_reference,
)
from bridged.connectors.xmpp.seen import Archived, Seen, SeenError, read_message
from bridged.connectors.xmpp.settings import Settings
from bridged.connectors.xmpp.stanza import (
    DISCO_INFO,
    MAM,
    MUC_OWNER,
    Element,
    StanzaError,
    children,
    element,
    iq,
    write_stamp,
)

if TYPE_CHECKING:
    from bridged.connectors.desk import Cursor, Desk

# Ours.
HELD_MAX = 2000
"""Messages held back; where there is an archive, more are read from it, else the stream waits."""
SEARCH_PAGES_MAX = 200
"""How far back a message is looked up: 20 000 messages."""
RECENT_PAGES = 10
"""The same for what is only nice to have: the original of a correction."""
PUBLISHED_KEPT = 2048
ENTRY_S = 20.0
ENTRY_WAIT_S = 10.0
RETRY_S = (1.0, 2.0, 4.0, 8.0, 15.0, 30.0)
SHUT_RETRY_S = 300.0
SELF_PING_S = 60.0
NICKS_MAX = 4
ARCHIVE_START = "^"
"""The cursor of an archive that was empty: from its very start."""
NO_ARCHIVE = "-"
"""The cursor of a chat without one: only its time counts."""


@attrs.frozen
class _Held:
    stanza: Element
    seen: Seen
    at: float
    archived_as: str | None = None
    """The archive's own word.  Of a live message its stanza-id is asked when it is published: what the room's
    server can, and so whether to trust it, is not known when the first messages come."""


@attrs.define(eq=False)
class _Pending:
    """A message of ours that waits for its confirmation."""

    done: trio.Event = attrs.field(factory=trio.Event)
    result: Delivered | StanzaError | None = None

    def settle(self, result: Delivered | StanzaError) -> None:
        self.result = result
        self.done.set()


class Line:
    """One chat."""

    def __init__(self, chat: Chat, settings: Settings, passed: Counter[str]) -> None:
        self.chat = chat
        self.trouble = ""
        """Why we are not in it, for people; "" while all is well."""
        self.is_shut = False
        """Only the room's owner can help."""
        self.settled = trio.Event()
        """It is in, or it is known why not."""
        self._settings = settings
        self._passed = passed
        self._position: str | None = None
        """Id of the last message that was published; ARCHIVE_START; None where there is no cursor yet."""
        self._position_at: float | None = None
        self._sessions = 0
        self._is_behind = True
        self._held: deque[_Held | Event] = deque()
        self._published: OrderedDict[str, None] = OrderedDict()
        self._reactions: dict[str, dict[str, tuple[str, ...]]] = {}
        self._pending: dict[str, _Pending] = {}
        self._doubtful: set[str] = set()
        """Ids of what was written, and neither confirmed nor refused."""
        self._wake, self._shrunk, self._room_left = trio.Event(), trio.Event(), trio.Event()
        self._entry: tuple[trio.Event, list[Joined | NotJoined]] | None = None
        self._desk: Desk
        self._client: Client

    # -- one session --------------------------------------------------------------------------------------

    def begin(self) -> None:
        """A new session: nothing of the last one's standing holds any more."""
        self.settled = trio.Event()
        self.chat.is_joined = False
        self.chat.occupants.clear()
        self._pending.clear()

    async def run(self, desk: Desk, client: Client, cursor: Cursor | None) -> None:
        """Keep the chat up for the life of a session; never returns."""
        self._desk, self._client = desk, client
        self.chat.account = client.account
        self._sessions += 1
        if cursor is not None:
            self._position = cursor.value if cursor.value != NO_ARCHIVE else None
            self._position_at = cursor.at
        failures = 0
        while True:
            self._is_behind = True
            trouble = await self._enter()
            if trouble is None:
                failures = 0
                self.trouble, self.is_shut = "", False
                self.settled.set()
                await self._carry()
                self.trouble = self.trouble or "out of the room"
                pause = RETRY_S[0]
            else:
                self.trouble, self.is_shut = trouble
                self.settled.set()
                pause = SHUT_RETRY_S if self.is_shut else RETRY_S[min(failures, len(RETRY_S) - 1)]
                failures += 1
            await trio.sleep(pause)

    async def _enter(self) -> tuple[str, bool] | None:
        """Get in.  None when we are; else why not, and whether that is for good."""
        try:
            return await self._get_in()
        except Refused as exc:
            return f"{self.chat.jid}: {exc.error}", False

    async def _get_in(self) -> tuple[str, bool] | None:
        if self.chat.kind is Kind.DIRECT:
            self.chat.features = await self._features_of(self.chat.account.bare)
            self.chat.is_joined = True
            await self._baseline()
            return None
        for attempt in range(NICKS_MAX):
            answer = await self._ask_in(self._settings.nick + "_" * attempt)
            if isinstance(answer, NotJoined) and answer.error.condition == "conflict":
                continue
            break
        if answer is None:
            return f"{self.chat.jid}: no answer from the room", False
        if isinstance(answer, NotJoined):
            return f"{self.chat.jid}: {answer.error}", answer.is_final
        self._room_left = trio.Event()
        if answer.is_new:
            await self._own()
        self.chat.features = await self._features_of(self.chat.jid)
        if answer.is_owner and "muc_temporary" in self.chat.features:
            await self._own()
        self.chat.is_joined = True
        await self._baseline()
        return None

    async def _ask_in(self, nick: str) -> Joined | NotJoined | None:
        self._entry = (trio.Event(), [])
        came, answers = self._entry
        self._client.send(join_request(self.chat.jid.with_resource(nick)))
        with trio.move_on_after(ENTRY_S):
            await came.wait()
        self._entry = None
        return answers[0] if answers else None

    async def _own(self) -> None:
        """A room of ours: open it, and let it outlive us, so that its archive does."""
        try:
            answer = await self._client.ask(iq(str(self.chat.jid), "get", element("query", MUC_OWNER)))
            await self._client.ask(iq(str(self.chat.jid), "set", own_form(answer)))
        except Refused:
            # Its server knows no such wish: at least unlock it.
            await self._client.ask(iq(str(self.chat.jid), "set", own_form(None)))

    async def _features_of(self, jid: object) -> frozenset[str]:
        try:
            answer = await self._client.ask(iq(str(jid), "get", element("query", DISCO_INFO)))
        except Refused:
            return frozenset()
        query = answer.find(f"{{{DISCO_INFO}}}query")
        found = children(query, "feature", DISCO_INFO) if query is not None else ()
        return frozenset(part.get("var", "") for part in found)

    async def _baseline(self) -> None:
        """Say that we are in, and where in the archive we begin if nobody knows yet."""
        payload: dict[str, Any] = {
            "change": "snapshot",
            "names": sorted(self.chat.occupants | {self.chat.nick}),
        }
        try:
            if self._position is None and self.chat.has_archive:
                page = await self._page(before="", limit=1)
                first = next((found for held in self._held if (found := self._archive_id(held))), None)
                if first is not None:  # said since we came in: begin before it
                    page = await self._page(before=first, limit=1)
                self._position = page.messages[-1].archive_id if page.messages else ARCHIVE_START
        except Refused:
            self.chat.features -= {MAM}
        if self._position is not None:
            payload["cursor"] = {"stream": self.stream, "value": self._position}
        if self.chat.is_room:
            await self._publish_event(Event("membership", self._about_us() | payload))

    async def _carry(self) -> None:
        """Publish what is said, in order, until we are out of the room."""
        async with trio.open_nursery() as nursery:
            if self.chat.is_room:
                nursery.start_soon(self._ping_self)
            nursery.start_soon(self._pump)
            await self._room_left.wait()
            nursery.cancel_scope.cancel()
        self.chat.is_joined = False
        for pending in self._pending.values():
            pending.settle(StanzaError("not-acceptable", "cancel", "put out of the room"))

    async def _pump(self) -> None:
        while True:
            if self._is_behind:
                await self._catch_up()
                continue
            while self._held and not self._is_behind:
                item = self._held[0]
                await self._publish(item)
                if self._held and self._held[0] is item:  # else the archive shall give it again
                    self._held.popleft()
                self._shrunk.set()
            if not self._is_behind:
                self._wake = trio.Event()
                await self._wake.wait()

    async def _ping_self(self) -> None:
        """Are we still in?  A room's server may forget us without a word.                          XEP-0410"""
        while True:
            await trio.sleep(SELF_PING_S)
            try:
                await self._client.ping(self.chat.jid.with_resource(self.chat.nick))
            except Refused as exc:
                if exc.error.condition in ("not-acceptable", "item-not-found"):
                    self.trouble = "the room had forgotten us"
                    self._room_left.set()

    # -- from the platform --------------------------------------------------------------------------------

    @property
    def stream(self) -> str:
        """The name of this chat's cursor."""
        return str(self.chat.jid)

    async def wait_room_for_more(self) -> None:
        """Where no archive could give back what is dropped, the stream waits while too much is held."""
        while len(self._held) >= HELD_MAX and not self.chat.has_archive:
            self._shrunk = trio.Event()
            await self._shrunk.wait()

    def hear(self, stanza: Element, seen: Seen, now: float) -> None:
        """A live message of this chat."""
        if seen.error is not None:
            self._settle(seen, seen.error)
            return
        if self.chat.is_own(seen):
            archive_id = self.chat.stanza_id(seen)
            remote_id = archive_id or seen.origin_id or seen.id or ""
            self._remember_own(seen, remote_id, archive_id is not None)
            self._settle(seen, Delivered(remote_id=remote_id))
            return
        trusted = seen.delayed_by in (
            None,
            str(self.chat.jid),
            str(self.chat.account.bare),
            self.chat.account.domain,
        )
        at = min(seen.delayed_at, now) if seen.delayed_at is not None and trusted else now
        self._hold(_Held(stanza, seen, at))

    def presence(self, stanza: Element, now: float) -> None:
        """A presence from the room."""
        match read_presence(stanza, self.chat.nick):
            case Joined() | NotJoined() as answer:
                if self._entry is not None:
                    self._entry[1].append(answer)
                    self._entry[0].set()
                if isinstance(answer, Joined):
                    self.chat.nick = answer.nick
                    self.chat.occupants.add(answer.nick)
            case Gone() as gone:
                self.trouble, self.is_shut = f"{self.chat.jid}: {gone.reason}", gone.is_final
                self._room_left.set()
            case Moved() as moved:
                known = moved.nick in self.chat.occupants
                if moved.is_present:
                    self.chat.occupants.add(moved.nick)
                else:
                    self.chat.occupants.discard(moved.nick)
                    self.chat.forget_author(str(self.chat.jid.with_resource(moved.nick)))
                if self.chat.is_joined and known != moved.is_present:
                    self._hold(Event("membership", self._membership(moved, now)))

    def _hold(self, item: _Held | Event) -> None:
        if len(self._held) >= HELD_MAX and self.chat.has_archive:
            self._held.clear()
            self._is_behind = True
        else:
            self._held.append(item)
        self._wake.set()

    def _settle(self, seen: Seen, result: Delivered | StanzaError) -> None:
        for identifier in (seen.id, seen.origin_id):
            pending = self._pending.get(identifier or "")
            if pending is not None:
                pending.settle(result)
                return

    def _remember_own(self, seen: Seen, remote_id: str, is_server_id: bool) -> None:
        if seen.body is not None and seen.replaces is None:
            self.chat.remember(Known(remote_id, seen.id, self.chat.author(seen), is_server_id))

    async def _catch_up(self) -> None:
        """Read the archive from the cursor to its end."""
        self._is_behind = False
        if not self.chat.has_archive:
            await self._tell_gap(self._desk.env.wall())
            return
        try:
            await self._read_archive()
        except Refused as exc:
            self._passed[f"the archive refuses: {exc.error.condition}"] += 1
            if isinstance(refused(exc.error), Retry):
                await trio.sleep(RETRY_S[2])
                self._is_behind = True
            else:
                self.chat.features -= {MAM}

    async def _read_archive(self) -> None:
        since: float | None = None
        while True:
            after = None if self._position in (None, ARCHIVE_START) else self._position
            try:
                page = await self._page(after=after, since=since)
            except Refused as exc:
                if exc.error.condition != "item-not-found" or after is None:
                    raise
                # The archive has let go of the place where we were: go on by time, and say it.
                since = self._position_at
                page = await self._page(since=since, limit=1)
                until = page.messages[0].at if page.messages else None
                await self._tell_gap(until or self._desk.env.wall())
                self._position = ARCHIVE_START
                continue
            for archived in page.messages:
                await self._publish_archived(archived)
            if page.is_last:
                return

    async def _publish_archived(self, archived: Archived) -> None:
        try:
            seen = read_message(archived.message)
            if seen.sender.bare not in (self.chat.jid, self.chat.archive):
                raise SeenError("somebody else's message")
        except SeenError:
            self._passed["not of this archive"] += 1
        else:
            at = archived.at if archived.at is not None else self._desk.env.wall()
            if self.chat.is_own(seen):
                self._remember_own(seen, archived.archive_id, True)
            else:
                held = _Held(archived.message, seen, at, archived.archive_id)
                await self._publish(held, is_live=False)
        self._position, self._position_at = archived.archive_id, archived.at
        for copy in [held for held in self._held if self._archive_id(held) == archived.archive_id]:
            self._held.remove(copy)

    def _archive_id(self, held: _Held | Event) -> str | None:
        if isinstance(held, Event):
            return None
        return held.archived_as or self.chat.stanza_id(held.seen)

    async def _publish(self, held: _Held | Event, *, is_live: bool = True) -> None:
        if isinstance(held, Event):
            await self._publish_event(held)
            return
        archive_id = self._archive_id(held)
        if archive_id is not None and archive_id in self._published:
            return
        if unknown_reference(self.chat, held.seen) and self.chat.has_archive:
            with suppress(Refused):  # then it is not shown to be theirs
                await self._search(lambda *_: not unknown_reference(self.chat, held.seen), pages=RECENT_PAGES)
        event = inbound(
            self.chat,
            held.seen,
            held.stanza,
            archive_id=archive_id,
            at=held.at,
            typing=self._settings.typing,
            is_live=is_live,
        )
        if isinstance(event, Passed):
            self._passed[event.reason] += 1
            return
        if not event.is_passing:
            event.payload["cursor"] = {"stream": self.stream, "value": archive_id or NO_ARCHIVE}
            if archive_id is None and self.chat.has_archive:
                del event.payload["cursor"]  # not kept by the archive: it is no place in it
        await self._publish_event(event)
        if not event.is_passing and not self.chat.has_archive:
            self._position_at = held.at
        if archive_id is not None and not event.is_passing:
            self._position, self._position_at = archive_id, held.at
            self._published[archive_id] = None
            if len(self._published) > PUBLISHED_KEPT:
                self._published.popitem(last=False)
        # Only now: a receipt says that we shall not lose it.
        owed = receipt(held.seen, self._client.new_id()) if is_live and not self.chat.is_room else None
        if owed is not None:
            self._client.send(owed)

    async def _publish_event(self, event: Event) -> None:
        key = self.chat.channel.encode()
        if event.is_passing:
            await self._desk.publish_ephemeral(event.action, event.payload, key=key)
        else:
            await self._desk.publish(event.action, event.payload, key=key)

    async def _tell_gap(self, until: float) -> None:
        if self._position_at is None or until <= self._position_at:
            return
        payload = {
            "channel": self.chat.channel,
            "from": write_stamp(self._position_at),
            "to": write_stamp(until),
            "reason": "connection_lost" if self._sessions > 1 else "daemon_down",
        }
        await self._publish_event(Event("gap_event", payload))

    def _about_us(self) -> dict[str, Any]:
        reference, name = self.chat.identity(self.chat.jid.with_resource(self.chat.nick))
        return {
            "channel": self.chat.channel,
            "member": {"ref": reference, "name": name},
            "timestamp": write_stamp(self._desk.env.wall()),
        }

    def _membership(self, moved: Moved, now: float) -> dict[str, Any]:
        reference, name = self.chat.identity(self.chat.jid.with_resource(moved.nick))
        return {
            "channel": self.chat.channel,
            "member": {"ref": reference, "name": name},
            "change": moved.change,
            "by": moved.by,
            "reason": moved.reason,
            "timestamp": write_stamp(now),
        }

    # -- the archive --------------------------------------------------------------------------------------

    async def _page(self, *, limit: int = 100, **where: Any) -> Page:
        question = page_query(
            self.chat.archive,
            self.chat.account,
            self._client.new_id(),
            with_jid=None if self.chat.is_room else self.chat.jid,
            limit=limit,
            **where,
        )
        return read_page(*await self._client.ask_archive(question))

    async def _search(
        self, wanted: Callable[[Archived, Seen], bool], *, pages: int = SEARCH_PAGES_MAX
    ) -> tuple[Archived | None, bool]:
        """Go back through the archive; the message, if any, and whether that is sure.

        What is passed on the way is remembered in the chat.
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
                    self.chat.remember(Known(archived.archive_id, seen.id, self.chat.author(seen)))
                if wanted(archived, seen):
                    return archived, True
            if page.is_last:
                return None, True
            before = page.messages[0].archive_id
        return None, False

    # -- to the platform ----------------------------------------------------------------------------------

    async def say(self, intent: Intent) -> Outcome:
        """Do one intent; the next of this chat waits for it."""
        with trio.move_on_after(ENTRY_WAIT_S):
            await self.settled.wait()
        if not self.chat.is_joined:
            if self.is_shut:
                return Failed(code="forbidden", message=self.trouble, native=self.trouble)
            return Retry(RETRY_S[0], self.trouble or f"{self.chat.jid}: not in the room yet")
        identifier = stanza_id_of(intent)
        if intent.was_written or identifier in self._doubtful:
            found = await self._look_up(identifier)
            if found is not None:
                return found
        try:
            stanza = await self._stanza(intent)
        except Refused as exc:
            return refused(exc.error)
        if isinstance(stanza, Failed):
            return stanza
        await intent.mark_written()
        self._pending[identifier] = pending = _Pending()
        try:
            self._client.send(stanza)
            if not self.chat.is_room:
                # Our server has taken it when it answers what came behind it; a refusal comes before.
                with suppress(Refused):
                    await self._client.ping()
                pending.settle(pending.result or Delivered(remote_id=identifier))
            with trio.move_on_after(self._settings.confirm_s):
                await pending.done.wait()
        finally:
            del self._pending[identifier]
        if pending.result is None:
            # The room's own server may be away; ours is watched elsewhere, and the other chats go on.
            self._doubtful.add(identifier)
            return Retry(RETRY_S[-2], f"{self.chat.jid} confirmed nothing for {self._settings.confirm_s:g} s")
        self._doubtful.discard(identifier)
        if isinstance(pending.result, Delivered):
            if not self.chat.is_room and intent.action == "outbound_message":
                self.chat.remember(Known(identifier, identifier, str(self.chat.account.bare), False))
            return pending.result
        if pending.result.condition == "not-acceptable":
            self._room_left.set()
            return Retry(RETRY_S[0], f"{self.chat.jid}: {pending.result}")
        return refused(pending.result)

    async def _look_up(self, identifier: str) -> Outcome | None:
        """Did an earlier life's message arrive?  None: it did not, and may be written."""
        if not self.chat.has_archive:
            return Unknown(f"{self.chat.jid} keeps no archive to look the message up in")
        try:
            found, is_sure = await self._search(lambda _, seen: identifier in (seen.id, seen.origin_id))
        except Refused as exc:
            again = refused(exc.error)
            return again if isinstance(again, Retry) else Unknown(f"{self.chat.jid}: {exc.error}")
        if found is not None:
            return Delivered(remote_id=found.archive_id if self.chat.is_room else identifier)
        return None if is_sure else Unknown(f"not among the last messages of {self.chat.jid}")

    async def _stanza(self, intent: Intent) -> Element | Failed:
        original = intent.payload.get("original")
        key = original.get("idempotency_key") if isinstance(original, dict) else None
        own_id = stanza_id_of(attrs.evolve(intent, idempotency_key=key)) if isinstance(key, str) else None
        if intent.action == "outbound_edit_message":
            return outbound(self.chat, intent, original_id=await self._original_id(intent, own_id))
        if intent.action in ("outbound_delete_message", "outbound_reaction") and intent.remote_id is None:
            # The facade does not know its id here yet; we may.
            known = self.chat.own(own_id) if own_id is not None else None
            if known is not None:
                intent.remote_id = known.remote_id
        if intent.action == "outbound_reaction" and intent.remote_id is not None:
            return outbound(self.chat, intent, original_id=None, reactions=self._react(intent))
        return outbound(self.chat, intent, original_id=None)

    async def _original_id(self, intent: Intent, own_id: str | None) -> str | None:
        """The id that the message had when we wrote it."""
        if intent.remote_id is None:
            return own_id
        known = self.chat.by_remote(intent.remote_id)
        if known is None and self.chat.has_archive:
            await self._search(
                lambda archived, _: archived.archive_id == intent.remote_id, pages=RECENT_PAGES
            )
            known = self.chat.by_remote(intent.remote_id)
        return known.message_id if known is not None else own_id

    def _react(self, intent: Intent) -> tuple[str, ...]:
        """All reactions that stand at a message for us, whose-ever: one account shows them for everybody."""
        assert intent.remote_id is not None
        by_sender = self._reactions.setdefault(intent.remote_id, {})
        by_sender[intent.sender.ref] = intent.emojis
        while len(self._reactions) > PUBLISHED_KEPT:
            del self._reactions[next(iter(self._reactions))]
        return tuple(dict.fromkeys(emoji for emojis in by_sender.values() for emoji in emojis))
