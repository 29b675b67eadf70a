"""What passes: typing and receipts, from the networks and from clients, shown while they last and never kept."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

import trio

from bridged.envelope import new_envelope, new_trace_id, topic_for
from bridged.facade.asking import Asking
from bridged.facade.core import Core
from bridged.facade.directory import Channel
from bridged.facade.events import EVENT_TOPIC, moment, person
from bridged.facade.inbound import Inbound, Refused
from bridged.facade.intents import Speaker
from bridged.facade.verdicts import Judge, Question, judge_rooms
from bridged.requests import Question as Request
from bridged.schema import Receipt, Typing
from shards.client import Client
from shards.errors import RequestFailed
from shards.record import Record

PASSING_ACTIONS = ("typing_event", "receipt_event")


class Passing:
    """The facade's ear and voice for what is not logged."""

    def __init__(
        self,
        core: Core,
        client: Client,
        asking: Asking,
        inbound: Inbound,
        judge: Judge,
        connectors: Sequence[tuple[str, str]],
    ) -> None:
        self._core = core
        self._client = client
        self._asking = asking
        self._inbound = inbound
        self._judge = judge
        self._topics = [
            topic_for(service, action, instance)
            for service, instance in connectors
            for action in PASSING_ACTIONS
        ]

    def handlers(self) -> Mapping[str, Callable[[Request], Any]]:
        """Action -> handler, for `bridged.requests.serve`."""
        return {"typing": self.typing, "read": self.read}

    # -- from the networks ------------------------------------------------------------------------------------

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> NoReturn:
        """Pass on for ever."""
        async with self._client.subscribe(self._topics, group=None, start="latest") as subscription:
            task_status.started()
            while True:
                for record in await subscription.receive():
                    await self.take(record)

    async def take(self, record: Record) -> None:
        """Pass on one; what is refused or belongs nowhere is shed without a word."""
        examined = await self._inbound.examine(record)
        if isinstance(examined, Refused):
            return
        event = examined.event
        if not isinstance(event, Typing | Receipt):
            return
        channel = self._core.directory.channel(event.channel)
        if channel is None or channel.conversation is None or channel.instance != examined.instance:
            return
        speaker = Speaker(ref=event.sender.ref, name=event.sender.name)
        if isinstance(event, Typing):
            await self._pass_typing(speaker, channel.conversation, channel, event.is_typing)
        else:
            await self._pass_receipt(speaker, channel, event)

    async def _pass_receipt(self, speaker: Speaker, channel: Channel, receipt: Receipt) -> None:
        conversation = channel.conversation
        assert conversation is not None
        message = await self._core.read(
            lambda tx: self._core.names.message(tx, conversation, channel.row, receipt.remote_id)
        )
        if message is not None:
            kind = "read" if receipt.is_read else "delivered"
            await self._tell_receipt(speaker, conversation, channel.ref, message.message_id, kind)

    # -- from clients -----------------------------------------------------------------------------------------

    async def typing(self, request: Request) -> dict[str, Any]:
        """Tell that somebody writes; nothing of it is kept."""
        client = await self._asking.speaker(request)
        conversation = request.text("conversation")
        is_typing = request.payload.get("typing", True)
        if not isinstance(is_typing, bool):
            raise RequestFailed("invalid_field", "payload.typing is true or false")
        self._asking.check_entry(client, conversation)
        speaker = Speaker(ref=client.identity, name=client.display)
        await self._pass_typing(speaker, conversation, None, is_typing, client=client.name)
        return {}

    async def _pass_typing(
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
        message_id, conversation = await self._asking.message(request, client)
        speaker = Speaker(ref=client.identity, name=client.display)
        await self._tell_receipt(speaker, conversation, None, message_id, "read")
        return {}

    # -- to whoever listens now -------------------------------------------------------------------------------

    async def _tell_receipt(
        self, speaker: Speaker, conversation: str, channel: str | None, message_id: str, kind: str
    ) -> None:
        payload = {
            "event": "receipt",
            "conversation": conversation,
            "channel": channel,
            "sender": person(speaker.ref, speaker.name),
            "message_id": message_id,
            "kind": kind,
            "at": moment(int(self._core.env.wall() * 1000)),
        }
        trace_id = new_trace_id(self._core.env.token_bytes)
        await self._pass(EVENT_TOPIC, conversation, "core", "event", payload, trace_id)

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
        await self._client.publish_ephemeral(topic, envelope.encode(), key=key.encode())
