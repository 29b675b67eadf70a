"""Speaking in one chat: one message at a time, each confirmed, refused, or looked up before it is said again.

Of a message to a room the room's own copy is the confirmation; of one to a person, that our server has answered
what came behind it.  What was written and is in doubt (the confirmation did not come, an earlier life wrote it) is
looked up in the archive by the id that the message has in every life.
"""

from __future__ import annotations

from contextlib import suppress

import attrs
import trio

from bridged.connectors.intent import Delivered, Failed, Intent, Outcome, Retry, Unknown
from bridged.connectors.xmpp.chat import Chat, Known
from bridged.connectors.xmpp.client import Client, Refused
from bridged.connectors.xmpp.history import RECENT_PAGES, History
from bridged.connectors.xmpp.mapping import outbound, refused, stanza_id_of
from bridged.connectors.xmpp.seen import Seen
from bridged.connectors.xmpp.stanza import Element, StanzaError

# Ours.
AGAIN_S = 1.0
DOUBT_S = 10.0
REACTIONS_KEPT = 2048


@attrs.define(eq=False)
class _Pending:
    done: trio.Event = attrs.field(factory=trio.Event)
    result: Delivered | StanzaError | None = None


class Voice:
    """Our voice in one chat, in every session."""

    def __init__(self, chat: Chat, history: History, confirm_s: float) -> None:
        self._chat = chat
        self._history = history
        self._confirm_s = confirm_s
        self._pending: dict[str, _Pending] = {}
        self._doubtful: set[str] = set()
        self._reactions: dict[str, dict[str, tuple[str, ...]]] = {}

    async def say(self, intent: Intent, client: Client) -> Outcome:
        """Do one intent; the chat's next waits for it.

        Raises:
            Disconnected: The session was lost.
        """
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
        result = await self._write(identifier, stanza, client)
        if result is None:
            # The room's own server may be away.  Ours is watched elsewhere, and the other chats go on.
            self._doubtful.add(identifier)
            return Retry(DOUBT_S if self._chat.is_joined else AGAIN_S, f"{self._chat.jid} confirmed nothing")
        if isinstance(result, StanzaError):
            outcome = refused(result)
            if result.condition.startswith("remote-server"):
                self._doubtful.add(identifier)
            return Retry(AGAIN_S, str(result)) if result.condition == "not-acceptable" else outcome
        self._doubtful.discard(identifier)
        if not self._chat.is_room and intent.action == "outbound_message":
            self._chat.remember(Known(identifier, identifier, str(self._chat.account.bare), False))
        return result

    def heard(self, seen: Seen, remote_id: str, *, is_server_id: bool) -> None:
        """A copy of a message of ours: the confirmation, if one is waited for."""
        if seen.body is not None and seen.replaces is None:
            self._chat.remember(Known(remote_id, seen.id, self._chat.author(seen), is_server_id))
        self._settle(seen, Delivered(remote_id=remote_id))

    def refuse(self, seen: Seen, error: StanzaError) -> bool:
        """An error about a message; is it one of ours that is waited for?"""
        return self._settle(seen, error)

    def fall_silent(self) -> None:
        """We are out of the room: what is not confirmed now is in doubt."""
        for pending in self._pending.values():
            pending.done.set()

    async def _write(
        self, identifier: str, stanza: Element, client: Client
    ) -> Delivered | StanzaError | None:
        self._pending[identifier] = pending = _Pending()
        try:
            client.send(stanza)
            if not self._chat.is_room:
                with suppress(Refused):  # an answer, too; a refusal of what came before it has come before
                    await client.ping()
                return pending.result or Delivered(remote_id=identifier)
            with trio.move_on_after(self._confirm_s):
                await pending.done.wait()
            return pending.result
        finally:
            del self._pending[identifier]

    def _settle(self, seen: Seen, result: Delivered | StanzaError) -> bool:
        for identifier in (seen.id, seen.origin_id):
            pending = self._pending.get(identifier or "")
            if pending is not None:
                pending.result = result
                pending.done.set()
                return True
        return False

    async def _look_up(self, identifier: str) -> Outcome | None:
        """Did it arrive?  None: it did not, and may be written."""
        if not self._chat.has_archive:
            return Unknown(f"{self._chat.jid} keeps no archive to look the message up in")
        try:
            found, is_sure = await self._history.search(
                lambda _, seen: identifier in (seen.id, seen.origin_id)
            )
        except Refused as exc:
            again = refused(exc.error)
            return again if isinstance(again, Retry) else Unknown(f"{self._chat.jid}: {exc.error}")
        if found is not None:
            self._doubtful.discard(identifier)
            return Delivered(remote_id=found.archive_id if self._chat.is_room else identifier)
        return None if is_sure else Unknown(f"not among the last messages of {self._chat.jid}")

    async def _stanza(self, intent: Intent) -> Element | Failed:
        if intent.action == "outbound_message":
            return outbound(self._chat, intent, original_id=None)
        original = intent.payload.get("original")
        key = original.get("idempotency_key") if isinstance(original, dict) else None
        own_id = stanza_id_of(attrs.evolve(intent, idempotency_key=key)) if isinstance(key, str) else None
        if intent.action == "outbound_edit_message":
            return outbound(self._chat, intent, original_id=await self._original_id(intent.remote_id, own_id))
        if intent.remote_id is None and own_id is not None:
            # The facade does not know its id here yet; we may.
            known = self._chat.own(own_id)
            intent.remote_id = known.remote_id if known is not None else None
        reactions: tuple[str, ...] = ()
        if intent.action == "outbound_reaction" and intent.remote_id is not None:
            reactions = self._react(intent.remote_id, intent.sender.ref, intent.emojis)
        return outbound(self._chat, intent, original_id=None, reactions=reactions)

    async def _original_id(self, remote_id: str | None, own_id: str | None) -> str | None:
        """The id that the message had when we wrote it."""
        if remote_id is None:
            return own_id
        known = self._chat.by_remote(remote_id)
        if known is None and own_id is None and self._chat.has_archive:
            await self._history.search(
                lambda archived, _: archived.archive_id == remote_id, pages=RECENT_PAGES
            )
            known = self._chat.by_remote(remote_id)
        return known.message_id if known is not None else own_id

    def _react(self, remote_id: str, sender: str, emojis: tuple[str, ...]) -> tuple[str, ...]:
        """All that stand at a message for us, whose-ever: one account shows them for everybody."""
        by_sender = self._reactions.setdefault(remote_id, {})
        by_sender[sender] = emojis
        while len(self._reactions) > REACTIONS_KEPT:
            del self._reactions[next(iter(self._reactions))]
        return tuple(dict.fromkeys(emoji for theirs in by_sender.values() for emoji in theirs))
