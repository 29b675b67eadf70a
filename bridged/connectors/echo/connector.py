"""The echo connector: a platform that is nowhere but here.  For trying out a shard, and for every connector's tests.

Whatever is said in one of its chats is said back by `echo`, so both directions of the whole house are walked without
a network.  What its own kind says is not said back, nor is a notice: two echoes in one conversation would never
stop.  Its ids are made from the idempotency key, so what is delivered twice is the same message twice.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import trio

from bridged.connectors import Capabilities, ConnectorState
from bridged.connectors.desk import Delivered, Desk, Failed, Intent, Outcome, timestamp
from bridged.connectors.echo.settings import Settings
from bridged.refs import ChannelRef, IdentityRef, RefError

# Ours.
TEXT_BYTES_MAX = 65_536
CAPABILITIES = Capabilities(
    edits=True,
    deletes=True,
    replies=True,
    reactions=True,
    typing=False,
    receipts=False,
    formatting=True,
    attachments=False,
    history=False,
    confirms=True,
    text_bytes_max=TEXT_BYTES_MAX,
)


class EchoConnector:
    """One instance; its chats are whatever the conversations call them."""

    service = "echo"

    def __init__(self, settings: Settings, channels: Sequence[str] = ()) -> None:
        self.settings = settings
        self.instance = settings.instance
        self.capabilities = CAPABILITIES
        self.channels = tuple(channels)

    async def run(self, desk: Desk, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Answer until cancelled; there is nothing that could be lost."""
        async with trio.open_nursery() as nursery:
            echo = _Echo(desk, self.settings)
            await nursery.start(desk.outbound, echo.send)
            await desk.state(ConnectorState.RUNNING)
            task_status.started()


class _Echo:
    def __init__(self, desk: Desk, settings: Settings) -> None:
        self._desk = desk
        self._settings = settings

    async def send(self, intent: Intent) -> Outcome:
        """Take one intent and say it back.  Asked a second time it says the same, which is no second message."""
        if len(intent.text.encode()) > TEXT_BYTES_MAX:
            return Failed(code="too_large", message=f"an echo has at most {TEXT_BYTES_MAX} bytes")
        try:
            chat = ChannelRef.parse(intent.channel)
        except RefError as exc:
            return Failed(code="invalid_field", message=str(exc))
        await intent.mark_written()
        answer = self._answer(intent, chat)
        if answer is not None:
            action, payload = answer
            await trio.sleep(self._settings.delay_s)
            await self._desk.publish(action, payload, key=intent.channel.encode())
        return Delivered(remote_id=intent.idempotency_key)

    def _answer(self, intent: Intent, chat: ChannelRef) -> tuple[str, Mapping[str, Any]] | None:
        if intent.sender.service == "echo" or intent.kind == "notice":
            return None
        name = self._settings.name
        sender = IdentityRef(service="echo", pointer=(*chat.pointer, name)).build()
        common: dict[str, Any] = {
            "channel": intent.channel,
            "sender": {"ref": sender, "name": name},
            "sender_identity": sender,
            "timestamp": timestamp(self._desk.env.wall()),
            "id_scope": "server",
        }
        said = {"text": intent.text, "html": intent.html}
        if intent.action == "outbound_message":
            return "inbound_message", {
                **common,
                **said,
                "remote_id": _echo_of(intent.idempotency_key),
                "kind": intent.kind,
                "reply_to": intent.idempotency_key,
            }
        if intent.remote_id is None:  # it never came here, so there is nothing to change
            return None
        match intent.action:
            case "outbound_edit_message":
                remote_id, edit_id = _echo_of(intent.remote_id), _echo_of(intent.idempotency_key)
                return "edit_event", {**common, **said, "remote_id": remote_id, "edit_id": edit_id}
            case "outbound_delete_message":
                return "redaction_event", {**common, "remote_id": _echo_of(intent.remote_id)}
            case "outbound_reaction":
                emojis = list(intent.emojis)
                return "reaction_event", {**common, "remote_id": intent.remote_id, "emojis": emojis}
        return None


def make_connector(settings: Settings, channels: Sequence[str]) -> EchoConnector:
    """The connector of one instance."""
    return EchoConnector(settings, channels)


def _echo_of(remote_id: str) -> str:
    return f"{remote_id}-echo"
