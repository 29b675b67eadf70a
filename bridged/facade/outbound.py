"""From clients: what they want said, edited, taken back, decided and committed before anybody hears of it.

A client's wish is a request.  Who speaks is resolved and the policy decides on a snapshot; then one transaction
holds the intent, the decisions, the message, its event and the intents for every room, and only then the client
gets its answer.  Asking again under the same idempotency key gives the same answer and does nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from bridged.envelope import Envelope
from bridged.facade.asking import Asking, no_message
from bridged.facade.core import Core, Turn
from bridged.facade.directory import Channel, Client
from bridged.facade.events import delete_event, edit_event, message_event, quotation, reaction_event
from bridged.facade.intents import Decided, delete_intent, edit_intent, message_intent, reaction_intent
from bridged.facade.messages import Message, Said
from bridged.facade.wishes import Rooms, Wish, Wishes
from bridged.requests import Question as Request
from bridged.richtext import safe_html
from shards.errors import RequestFailed

# Ours.
TEXT_BYTES_MAX = 262_144
"""One message.  Platforms take less and connectors split; an envelope holds it with its HTML beside it."""
EMOJIS_MAX = 32


class Outbound:
    """The requests by which clients speak."""

    def __init__(self, core: Core, asking: Asking, wishes: Wishes) -> None:
        self._core = core
        self._asking = asking
        self._wishes = wishes

    def handlers(self) -> Mapping[str, Callable[[Request], Any]]:
        """Action -> handler, for `bridged.requests.serve`."""
        return {
            "send": self.send,
            "edit": self.edit,
            "delete": self.delete,
            "react": self.react,
        }

    # -- what is kept -----------------------------------------------------------------------------------------

    async def send(self, request: Request) -> dict[str, Any]:
        """Say something in a conversation; answers {trace_id, message_id}."""
        client = await self._asking.speaker(request)
        conversation = request.text("conversation")
        text = _text(request)
        html = _html(request)
        kind = request.text("kind", default="message")
        if kind not in ("message", "action", "notice"):
            raise RequestFailed("invalid_field", "payload.kind is message, action or notice")
        reply_to = request.payload.get("reply_to")
        if reply_to is not None and not isinstance(reply_to, str):
            raise RequestFailed("invalid_field", "payload.reply_to is a message id or null")
        if client.may_enter(conversation) and conversation not in self._core.directory.conversations:
            raise RequestFailed(
                "not_found",
                f"there is no conversation {conversation!r}",
                hint="see `bridgectl conversations list`",
            )
        wish = Wish(request=request, client=client, action="send", conversation=conversation, text=text)

        def apply(turn: Turn, trace_id: str, rooms: Rooms) -> Message:
            replied = None if reply_to is None else turn.messages.by_id(turn.tx, conversation, reply_to)
            said = Said(
                conversation=conversation,
                channel=None,
                sender=client.identity,
                name=client.display,
                kind=kind,
                text=text,
                html=html,
                at_ms=turn.at_ms,
            )
            message = turn.add_message(said, trace_id=trace_id, reply_to=replied)

            def draft(decided: Decided, channel: Channel) -> Envelope:
                quoted = quotation(replied)
                if replied is not None and quoted is not None:
                    quoted["remote_id"] = turn.names.of(turn.tx, conversation, channel.row, replied.id)
                return message_intent(decided, channel, message, reply_to=quoted)

            standings = self._wishes.relay(turn, wish, message, trace_id, rooms, draft)
            turn.event(
                message_event(message, channel=None, reply_to=replied, deliveries=turn.shown(standings)),
                key=conversation,
                trace_id=trace_id,
                message=message,
            )
            return message

        return await self._wishes.fulfil(wish, apply)

    async def edit(self, request: Request) -> dict[str, Any]:
        """Change the text of one's own message; answers {trace_id, message_id}."""
        client = await self._asking.speaker(request)
        message_id, conversation = await self._asking.message(request, client)
        text, html = _text(request), _html(request)
        wish = Wish(request=request, client=client, action="edit", conversation=conversation, text=text)

        def apply(turn: Turn, trace_id: str, rooms: Rooms) -> Message:
            message = _own(turn, wish, message_id)
            if (message.text, message.html) == (text, html):
                return message
            edited = turn.messages.edit(
                turn.tx, message, text=text, html=html, trace_id=trace_id, at_ms=turn.at_ms
            )

            def draft(decided: Decided, channel: Channel) -> Envelope:
                remote_id = turn.names.of(turn.tx, conversation, channel.row, edited.id)
                return edit_intent(decided, channel, edited, remote_id=remote_id, original_text=message.text)

            self._wishes.relay(turn, wish, edited, trace_id, rooms, draft)
            turn.event(edit_event(edited, **_by(turn, client, trace_id)), key=conversation, trace_id=trace_id)
            return edited

        return await self._wishes.fulfil(wish, apply)

    async def delete(self, request: Request) -> dict[str, Any]:
        """Take one's own message back; answers {trace_id, message_id}."""
        client = await self._asking.speaker(request)
        message_id, conversation = await self._asking.message(request, client)
        wish = Wish(request=request, client=client, action="delete", conversation=conversation, text="")

        def apply(turn: Turn, trace_id: str, rooms: Rooms) -> Message:
            message = _own(turn, wish, message_id)
            turn.messages.redact(turn.tx, message)

            def draft(decided: Decided, channel: Channel) -> Envelope:
                remote_id = turn.names.of(turn.tx, conversation, channel.row, message.id)
                return delete_intent(decided, channel, message, remote_id=remote_id)

            self._wishes.relay(turn, wish, message, trace_id, rooms, draft)
            turn.event(
                delete_event(message, **_by(turn, client, trace_id)), key=conversation, trace_id=trace_id
            )
            return message

        return await self._wishes.fulfil(wish, apply)

    async def react(self, request: Request) -> dict[str, Any]:
        """Make `emojis` one's reactions to a message; answers {trace_id, message_id}."""
        client = await self._asking.speaker(request)
        message_id, conversation = await self._asking.message(request, client)
        emojis = _emojis(request)
        wish = Wish(request=request, client=client, action="react", conversation=conversation, text="")

        def apply(turn: Turn, trace_id: str, rooms: Rooms) -> Message:
            message = turn.messages.by_id(turn.tx, conversation, message_id)
            if message is None or message.redacted:
                raise no_message()
            change = turn.messages.react(
                turn.tx,
                message,
                sender=client.identity,
                name=client.display,
                emojis=emojis,
                at_ms=turn.at_ms,
            )
            if not change.added and not change.removed:
                return message

            def draft(decided: Decided, channel: Channel) -> Envelope:
                remote_id = turn.names.of(turn.tx, conversation, channel.row, message.id)
                return reaction_intent(decided, channel, message, change, remote_id=remote_id)

            self._wishes.relay(turn, wish, message, trace_id, rooms, draft)
            turn.event(
                reaction_event(message, change, **_by(turn, client, trace_id)),
                key=conversation,
                trace_id=trace_id,
            )
            return message

        return await self._wishes.fulfil(wish, apply)


# Private --------------------------------------------------------------------------------------------------------


def _own(turn: Turn, wish: Wish, message_id: str) -> Message:
    """The client's own message.

    Raises:
        RequestFailed: `not_found`, or `forbidden` where it is somebody else's.
    """
    message = turn.messages.by_id(turn.tx, wish.conversation, message_id)
    if message is None or message.redacted:
        raise no_message()
    if message.sender != wish.client.identity or message.channel is not None:
        raise RequestFailed("forbidden", "only its author may change a message")
    return message


def _by(turn: Turn, client: Client, trace_id: str) -> dict[str, Any]:
    return {
        "trace_id": trace_id,
        "channel": None,
        "sender": client.identity,
        "name": client.display,
        "at_ms": turn.at_ms,
    }


def _text(request: Request) -> str:
    text = request.text("text")
    if len(text.encode("utf-8", "surrogatepass")) > TEXT_BYTES_MAX:
        raise RequestFailed("too_large", f"a message has at most {TEXT_BYTES_MAX} bytes")
    return text


def _html(request: Request) -> str | None:
    html = request.payload.get("html")
    if html is not None and not isinstance(html, str):
        raise RequestFailed("invalid_field", "payload.html is text or null")
    if html is not None and len(html) > TEXT_BYTES_MAX:
        raise RequestFailed("too_large", f"the HTML of a message has at most {TEXT_BYTES_MAX} characters")
    return None if html is None else safe_html(html)


def _emojis(request: Request) -> list[str]:
    emojis = request.payload.get("emojis")
    if (
        not isinstance(emojis, list)
        or len(emojis) > EMOJIS_MAX
        or not all(isinstance(emoji, str) and 0 < len(emoji) <= 64 for emoji in emojis)
    ):
        raise RequestFailed("invalid_field", f"payload.emojis is a list of at most {EMOJIS_MAX} emojis")
    return list(dict.fromkeys(emojis))
