"""From clients: what they want said, edited, taken back, decided and committed before anybody hears of it.

A client's wish is a request.  Who speaks is resolved and the policy decides on a snapshot; then one transaction
holds the intent, the decisions, the message, its event and the intents for every room, and only then the client
gets its answer.  Asking again under the same idempotency key gives the same answer and does nothing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import attrs
import msgspec

from bridged.envelope import Envelope, new_envelope, new_trace_id, topic_for
from bridged.facade.asking import Asking
from bridged.facade.core import Core, DirectoryMoved, Turn
from bridged.facade.deliveries import Standing
from bridged.facade.directory import Channel, Client, Directory
from bridged.facade.events import (
    EVENT_TOPIC,
    delete_event,
    edit_event,
    message_event,
    moment,
    person,
    quotation,
    reaction_event,
)
from bridged.facade.intents import (
    Decided,
    Speaker,
    delete_intent,
    edit_intent,
    message_intent,
    reaction_intent,
)
from bridged.facade.messages import Message, Said
from bridged.facade.verdicts import Judge, Question, Verdict, judge_rooms
from bridged.requests import Question as Request
from bridged.schema import DeliveryState
from shards.client import Client as Fabric
from shards.errors import OutboxFull, RequestFailed

# Ours.
TEXT_BYTES_MAX = 262_144
"""One message.  Platforms take less and connectors split; an envelope holds it with its HTML beside it."""
EMOJIS_MAX = 32
KEY_CHARACTERS_MAX = 256
FULL_RETRY_MS = 1_000

Rooms = Sequence[tuple[Channel, Verdict]]


@attrs.frozen(kw_only=True)
class _Wish:
    """What one request wants, before it is decided."""

    request: Request
    client: Client
    action: str
    """send | edit | delete | react"""
    conversation: str
    text: str

    @property
    def speaker(self) -> Speaker:
        return Speaker(ref=self.client.identity, name=self.client.display)


@attrs.frozen(kw_only=True)
class _Denied:
    reason: str


class Outbound:
    """The requests by which clients speak."""

    def __init__(self, core: Core, fabric: Fabric, asking: Asking, judge: Judge) -> None:
        self._core = core
        self._fabric = fabric
        self._asking = asking
        self._judge = judge

    def handlers(self) -> Mapping[str, Callable[[Request], Any]]:
        """Action -> handler, for `bridged.requests.serve`."""
        return {
            "send": self.send,
            "edit": self.edit,
            "delete": self.delete,
            "react": self.react,
            "typing": self.typing,
            "read": self.read,
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
        wish = _Wish(request=request, client=client, action="send", conversation=conversation, text=text)

        def apply(turn: Turn, trace_id: str, rooms: Rooms) -> tuple[Message, list[Standing]]:
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
                    quoted["remote_id"] = turn.messages.remote_of(
                        turn.tx, conversation, channel.row, replied.id
                    )
                return message_intent(decided, channel, message, reply_to=quoted)

            standings = self._relay(turn, wish, message, trace_id, rooms, draft)
            turn.event(
                message_event(message, channel=None, reply_to=replied, deliveries=turn.shown(standings)),
                key=conversation,
                trace_id=trace_id,
                message=message,
            )
            return message, standings

        return await self._fulfil(wish, apply)

    async def edit(self, request: Request) -> dict[str, Any]:
        """Change the text of one's own message; answers {trace_id, message_id}."""
        client = await self._asking.speaker(request)
        message_id, conversation = await self._place(request, client)
        text, html = _text(request), _html(request)
        wish = _Wish(request=request, client=client, action="edit", conversation=conversation, text=text)

        def apply(turn: Turn, trace_id: str, rooms: Rooms) -> tuple[Message, list[Standing]]:
            message = _own(turn, wish, message_id)
            if (message.text, message.html) == (text, html):
                return message, []
            edited = turn.messages.edit(
                turn.tx, message, text=text, html=html, trace_id=trace_id, at_ms=turn.at_ms
            )

            def draft(decided: Decided, channel: Channel) -> Envelope:
                remote_id = turn.messages.remote_of(turn.tx, conversation, channel.row, edited.id)
                return edit_intent(decided, channel, edited, remote_id=remote_id, original_text=message.text)

            standings = self._relay(turn, wish, edited, trace_id, rooms, draft)
            turn.event(edit_event(edited, **_by(turn, client, trace_id)), key=conversation, trace_id=trace_id)
            return edited, standings

        return await self._fulfil(wish, apply)

    async def delete(self, request: Request) -> dict[str, Any]:
        """Take one's own message back; answers {trace_id, message_id}."""
        client = await self._asking.speaker(request)
        message_id, conversation = await self._place(request, client)
        wish = _Wish(request=request, client=client, action="delete", conversation=conversation, text="")

        def apply(turn: Turn, trace_id: str, rooms: Rooms) -> tuple[Message, list[Standing]]:
            message = _own(turn, wish, message_id)
            turn.messages.redact(turn.tx, message)

            def draft(decided: Decided, channel: Channel) -> Envelope:
                remote_id = turn.messages.remote_of(turn.tx, conversation, channel.row, message.id)
                return delete_intent(decided, channel, message, remote_id=remote_id)

            standings = self._relay(turn, wish, message, trace_id, rooms, draft)
            turn.event(
                delete_event(message, **_by(turn, client, trace_id)), key=conversation, trace_id=trace_id
            )
            return message, standings

        return await self._fulfil(wish, apply)

    async def react(self, request: Request) -> dict[str, Any]:
        """Make `emojis` one's reactions to a message; answers {trace_id, message_id}."""
        client = await self._asking.speaker(request)
        message_id, conversation = await self._place(request, client)
        emojis = _emojis(request)
        wish = _Wish(request=request, client=client, action="react", conversation=conversation, text="")

        def apply(turn: Turn, trace_id: str, rooms: Rooms) -> tuple[Message, list[Standing]]:
            message = turn.messages.by_id(turn.tx, conversation, message_id)
            if message is None or message.redacted:
                raise _no_message()
            change = turn.messages.react(
                turn.tx,
                message,
                sender=client.identity,
                name=client.display,
                emojis=emojis,
                at_ms=turn.at_ms,
            )
            if not change.added and not change.removed:
                return message, []

            def draft(decided: Decided, channel: Channel) -> Envelope:
                remote_id = turn.messages.remote_of(turn.tx, conversation, channel.row, message.id)
                return reaction_intent(decided, channel, message, change, remote_id=remote_id)

            standings = self._relay(turn, wish, message, trace_id, rooms, draft)
            turn.event(
                reaction_event(message, change, **_by(turn, client, trace_id)),
                key=conversation,
                trace_id=trace_id,
            )
            return message, standings

        return await self._fulfil(wish, apply)

    # -- what passes ------------------------------------------------------------------------------------------

    async def typing(self, request: Request) -> dict[str, Any]:
        """Tell that somebody writes; nothing of it is kept."""
        client = await self._asking.speaker(request)
        conversation = request.text("conversation")
        is_typing = request.payload.get("typing", True)
        if not isinstance(is_typing, bool):
            raise RequestFailed("invalid_field", "payload.typing is true or false")
        self._asking.check_entry(client, conversation)
        speaker = Speaker(ref=client.identity, name=client.display)
        await self.pass_typing(speaker, conversation, None, is_typing, client=client.name)
        return {}

    async def pass_typing(
        self,
        speaker: Speaker,
        conversation: str,
        origin: Channel | None,
        is_typing: bool,
        *,
        client: str | None = None,
    ) -> None:
        """Tell clients, and the rooms where the speaker may speak, that somebody writes."""
        directory = self._core.directory
        now_s = self._core.env.wall()
        trace_id = new_trace_id(self._core.env.token_bytes)
        payload = {
            "event": "typing",
            "conversation": conversation,
            "channel": None if origin is None else origin.ref,
            "sender": person(speaker.ref, speaker.name),
            "typing": is_typing,
            "at": moment(int(now_s * 1000)),
        }
        await self._pass(EVENT_TOPIC, conversation, "core", "event", payload, trace_id)
        question = Question(
            speaker=speaker,
            conversation=conversation,
            action="typing",
            origin=origin,
            client=client,
            target=None,
            text="",
        )
        rooms = directory.rooms(conversation, but=None if origin is None else origin.row)
        for channel, verdict in judge_rooms(self._judge, directory, question, rooms):
            if verdict.is_allowed:
                payload = {
                    "channel": channel.ref,
                    "conversation": conversation,
                    "sender": speaker.to_payload(),
                    "typing": is_typing,
                }
                topic = topic_for(channel.service, "typing", channel.instance)
                await self._pass(topic, channel.ref, channel.service, "typing", payload, trace_id)

    async def read(self, request: Request) -> dict[str, Any]:
        """Tell the other clients how far one has read; nothing of it is kept or shown on a network."""
        client = await self._asking.speaker(request)
        message_id, conversation = await self._place(request, client)
        payload = {
            "event": "receipt",
            "conversation": conversation,
            "channel": None,
            "sender": person(client.identity, client.display),
            "message_id": message_id,
            "kind": "read",
            "at": moment(int(self._core.env.wall() * 1000)),
        }
        trace_id = new_trace_id(self._core.env.token_bytes)
        await self._pass(EVENT_TOPIC, conversation, "core", "event", payload, trace_id)
        return {}

    async def _pass(
        self, topic: str, key: str, service: str, action: str, payload: dict[str, Any], trace_id: str
    ) -> None:
        envelope = new_envelope(
            service,
            action,
            payload,
            now=self._core.env.wall(),
            trace_id=trace_id,
            metadata={"tenant": self._core.tenant},
        )
        await self._fabric.publish_ephemeral(topic, envelope.encode(), key=key.encode())

    # -- deciding and committing ------------------------------------------------------------------------------

    async def _place(self, request: Request, client: Client) -> tuple[str, str]:
        """(message id, its conversation), where the client may enter it; else the same answer as for none."""
        message_id = request.text("message_id")
        conversation = await self._core.read(lambda tx: self._core.messages.conversation_of(tx, message_id))
        if conversation is None or not client.may_enter(conversation):
            raise _no_message()
        return message_id, conversation

    async def _fulfil(
        self, wish: _Wish, apply: Callable[[Turn, str, Rooms], tuple[Message, list[Standing]]]
    ) -> dict[str, Any]:
        """Decide, then commit what `apply` does; a denied wish is recorded and refused."""
        key, digest = _key_of(wish.request), _digest_of(wish.request)
        while True:
            directory = self._core.directory
            overall, rooms = self._decide(directory, wish)

            def run(turn: Turn, overall: Verdict = overall, rooms: Rooms = rooms) -> dict[str, Any] | _Denied:
                answer = _answered(turn, wish, key, digest)
                if answer is not None:
                    return answer
                trace_id = wish.request.trace_id
                if turn.messages.has_trace(turn.tx, trace_id):
                    trace_id = new_trace_id(turn.token_bytes)
                detail = {"speaker": wish.client.identity, "principal": wish.request.principal}
                turn.note(
                    trace_id, "intent", wish.action, detail=detail | {"conversation": wish.conversation}
                )
                if not overall.is_allowed:
                    self._deny(turn, wish, trace_id, overall, rooms)
                    return _Denied(reason=overall.reason)
                message, _ = apply(turn, trace_id, rooms)
                answer = {"trace_id": trace_id, "message_id": message.message_id}
                _remember(turn, wish, key, digest, answer)
                return answer

            try:
                outcome = await self._core.write(directory, run)
            except DirectoryMoved:
                await self._core.reload()
                continue
            except OutboxFull as exc:
                raise RequestFailed(
                    "rate_limited", str(exc), hint=exc.hint, retry_after_ms=FULL_RETRY_MS
                ) from exc
            if isinstance(outcome, _Denied):
                raise RequestFailed("policy_denied", outcome.reason)
            return outcome

    def _decide(self, directory: Directory, wish: _Wish) -> tuple[Verdict, Rooms]:
        """One verdict for the conversation itself, and one for each of its rooms."""
        question = Question(
            speaker=wish.speaker,
            conversation=wish.conversation,
            action=wish.action,
            origin=None,
            client=wish.client.name,
            target=None,
            text=wish.text,
        )
        rooms = directory.rooms(wish.conversation)
        return self._judge(question, directory), judge_rooms(self._judge, directory, question, rooms)

    def _deny(self, turn: Turn, wish: _Wish, trace_id: str, overall: Verdict, rooms: Rooms) -> None:
        """Record that the wish was refused; what it said is not kept."""
        turn.decide(trace_id, wish.client.identity, None, overall)
        for channel, _ in rooms:
            standing = Standing(
                trace_id=trace_id,
                channel=channel.row,
                message=None,
                state=DeliveryState.DENIED,
                attempt=0,
                error=overall.to_error(),
            )
            turn.deliveries.open(
                turn.tx,
                trace_id=trace_id,
                channel=channel.row,
                message=None,
                state=standing.state,
                at_ms=turn.at_ms,
                error=standing.error,
            )
            turn.tell_standing(standing, conversation=wish.conversation, message_id=None)

    def _relay(
        self,
        turn: Turn,
        wish: _Wish,
        message: Message,
        trace_id: str,
        rooms: Rooms,
        draft: Callable[[Decided, Channel], Envelope],
    ) -> list[Standing]:
        standings = turn.relay(
            rooms,
            trace_id=trace_id,
            causation_id=None if trace_id == wish.request.trace_id else wish.request.trace_id,
            speaker=wish.speaker,
            message=message,
            draft=draft,
        )
        for standing in standings:
            turn.tell_standing(standing, conversation=message.conversation, message_id=message.message_id)
        return standings


# Private --------------------------------------------------------------------------------------------------------


def _answered(turn: Turn, wish: _Wish, key: str, digest: bytes) -> dict[str, Any] | None:
    """What was answered to this idempotency key before.

    Raises:
        RequestFailed: `duplicate`; it was given to another wish.
    """
    row = turn.tx.one(
        "SELECT digest, answer FROM intent WHERE tenant = ? AND speaker = ? AND key = ?",
        (turn.tenant, wish.client.identity, key),
    )
    if row is None:
        return None
    if row[0] != digest:
        raise RequestFailed("duplicate", "this idempotency key was given to something else")
    return msgspec.json.decode(row[1], type=dict[str, Any])


def _remember(turn: Turn, wish: _Wish, key: str, digest: bytes, answer: Mapping[str, Any]) -> None:
    turn.tx.execute(
        "INSERT INTO intent (tenant, speaker, key, digest, answer, at_ms) VALUES (?, ?, ?, ?, ?, ?)",
        (
            turn.tenant,
            wish.client.identity,
            key,
            digest,
            msgspec.json.encode(answer).decode(),
            turn.at_ms,
        ),
    )


def _key_of(request: Request) -> str:
    """The client's key, else the trace id: a request sent twice is one wish either way."""
    key = request.payload.get("idempotency_key")
    if key is None:
        return f"trace {request.trace_id}"
    if not isinstance(key, str) or not 0 < len(key) <= KEY_CHARACTERS_MAX:
        raise RequestFailed(
            "invalid_field", f"payload.idempotency_key has 1 to {KEY_CHARACTERS_MAX} characters"
        )
    return f"key {key}"


def _digest_of(request: Request) -> bytes:
    wanted = {name: value for name, value in request.payload.items() if name != "idempotency_key"}
    encoded = msgspec.json.encode([request.action, wanted], order="deterministic")
    return hashlib.blake2b(encoded, digest_size=16).digest()


def _own(turn: Turn, wish: _Wish, message_id: str) -> Message:
    """The client's own message.

    Raises:
        RequestFailed: `not_found`, or `forbidden` where it is somebody else's.
    """
    message = turn.messages.by_id(turn.tx, wish.conversation, message_id)
    if message is None or message.redacted:
        raise _no_message()
    if message.sender != wish.client.identity or message.channel is not None:
        raise RequestFailed("forbidden", "only its author may change a message")
    return message


def _no_message() -> RequestFailed:
    return RequestFailed("not_found", "there is no such message")


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
    return html


def _emojis(request: Request) -> list[str]:
    emojis = request.payload.get("emojis")
    if (
        not isinstance(emojis, list)
        or len(emojis) > EMOJIS_MAX
        or not all(isinstance(emoji, str) and 0 < len(emoji) <= 64 for emoji in emojis)
    ):
        raise RequestFailed("invalid_field", f"payload.emojis is a list of at most {EMOJIS_MAX} emojis")
    return list(dict.fromkeys(emojis))
