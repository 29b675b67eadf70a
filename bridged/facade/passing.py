"""What passes: typing and receipts from the networks, shown while they last and never kept."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NoReturn

import trio

from bridged.envelope import new_envelope, topic_for
from bridged.facade.core import Core
from bridged.facade.directory import Channel
from bridged.facade.events import EVENT_TOPIC, moment, person
from bridged.facade.inbound import Inbound, Refused
from bridged.facade.intents import Speaker
from bridged.facade.outbound import Outbound
from bridged.schema import Receipt, Typing
from shards.client import Client
from shards.record import Record

PASSING_ACTIONS = ("typing_event", "receipt_event")


class Passing:
    """The facade's ear for what is not logged."""

    def __init__(
        self,
        core: Core,
        client: Client,
        inbound: Inbound,
        outbound: Outbound,
        connectors: Sequence[tuple[str, str]],
    ) -> None:
        self._core = core
        self._client = client
        self._inbound = inbound
        self._outbound = outbound
        self._topics = [
            topic_for(service, action, instance)
            for service, instance in connectors
            for action in PASSING_ACTIONS
        ]

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
            await self._outbound.pass_typing(speaker, channel.conversation, channel, event.is_typing)
        else:
            await self._pass_receipt(speaker, channel, event, examined.envelope.trace_id)

    async def _pass_receipt(
        self, speaker: Speaker, channel: Channel, receipt: Receipt, trace_id: str
    ) -> None:
        conversation = channel.conversation
        assert conversation is not None
        message = await self._core.read(
            lambda tx: self._core.messages.by_remote(tx, conversation, channel.row, receipt.remote_id)
        )
        if message is None:
            return
        now_s = self._core.env.wall()
        payload = {
            "event": "receipt",
            "conversation": conversation,
            "channel": channel.ref,
            "sender": person(speaker.ref, speaker.name),
            "message_id": message.message_id,
            "kind": "read" if receipt.is_read else "delivered",
            "at": moment(int(now_s * 1000)),
        }
        envelope = new_envelope(
            "core",
            "event",
            payload,
            now=now_s,
            trace_id=trace_id,
            metadata={"tenant": self._core.tenant},
        )
        await self._client.publish_ephemeral(EVENT_TOPIC, envelope.encode(), key=conversation.encode())
