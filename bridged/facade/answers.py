"""What the facade is asked: history, conversations, clients, and what connectors must know when they start."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import trio

from bridged.errors import BridgeError
from bridged.facade.asking import Asking
from bridged.facade.core import Core, Turn
from bridged.facade.deliveries import Standing
from bridged.facade.directory import (
    Channel,
    ClientSeed,
    Conversation,
    Directory,
    DirectoryError,
    Link,
    add_conversation,
    checked_channel,
    client_of_token,
    put_client,
    remove_conversation,
    revoke_client,
)
from bridged.facade.events import moment, person, quotation
from bridged.facade.messages import HISTORY_MAX, Message
from bridged.facade.progress import Progress
from bridged.facade.settling import Settling
from bridged.requests import Question as Request
from shards.database import Connection
from shards.errors import RequestFailed

# Ours.
ITEMS_MAX = 4096
"""Intents in one `status`."""
TOKEN_HASH_BYTES = 32
PUBLISHING_S = 2.0
"""A page of history waits so long for the offset of what was said a moment ago."""


class Answers:
    """The requests by which others read."""

    def __init__(
        self, core: Core, asking: Asking, settling: Settling, connectors: Sequence[tuple[str, str]]
    ) -> None:
        self._core = core
        self._asking = asking
        self._settling = settling
        self._connectors = tuple(connectors)
        self._progress = Progress(core.tenant)

    def handlers(self) -> Mapping[str, Callable[[Request], Any]]:
        """Action -> handler, for `bridged.requests.serve`."""
        return {
            "history": self.history,
            "conversations": self.conversations,
            "clients": self.clients,
            "status": self.status,
            "cursor": self.cursor,
            "trace": self.trace,
        }

    # -- for people -------------------------------------------------------------------------------------------

    async def history(self, request: Request) -> dict[str, Any]:
        """A page of a conversation: {messages, oldest first} by before, after or around an offset, and query."""
        conversation = request.text("conversation")
        self._asking.check_entry(await self._asking.reader(request), conversation)
        bounds = {
            name: request.number(name)
            for name in ("before", "after", "around")
            if request.payload.get(name) is not None
        }
        if len(bounds) > 1:
            raise RequestFailed("invalid_field", "only one of before, after and around can be given")
        limit = request.number("limit", default=50, least=1, most=HISTORY_MAX)
        query = request.payload.get("query")
        if query is not None and not isinstance(query, str):
            raise RequestFailed("invalid_field", "payload.query must be text")
        await self._wait_published(conversation)
        directory = self._core.directory

        def page(tx: Connection) -> list[dict[str, Any]]:
            messages = self._core.messages.history(tx, conversation, limit=limit, query=query, **bounds)
            reactions = self._core.messages.reactions(tx, [message.id for message in messages])
            return [
                self._shown(tx, directory, message, reactions.get(message.id, [])) for message in messages
            ]

        return {"messages": await self._core.read(page)}

    async def _wait_published(self, conversation: str) -> None:
        """What was committed before the question has its offset in the answer, unless the fabric is slow."""
        with trio.move_on_after(PUBLISHING_S):
            while True:
                published = self._core.published
                if not await self._core.read(lambda tx: self._core.messages.is_unpublished(tx, conversation)):
                    return
                await published.wait()

    def _shown(
        self,
        tx: Connection,
        directory: Directory,
        message: Message,
        reactions: Sequence[tuple[str, str, str]],
    ) -> dict[str, Any]:
        replied = self._core.messages.by_row(tx, message.conversation, message.reply_to)
        shown: dict[str, Any] = {
            "offset": message.offset,
            "message_id": message.message_id,
            "trace_id": message.trace_id,
            "channel": directory.ref_of(message.channel),
            "sender": person(message.sender, message.name),
            "kind": message.kind,
            "text": message.text,
            "reply_to": quotation(replied),
            "at": moment(message.at_ms),
            "deliveries": [
                _delivery(directory, standing)
                for standing in self._core.deliveries.of_trace(tx, message.trace_id)
            ],
        }
        if message.html is not None:
            shown["html"] = message.html
        if message.edits:
            shown["edited"] = True
        if message.redacted:
            shown["redacted"] = True
        if reactions:
            shown["reactions"] = [
                {"emoji": emoji, "sender": person(sender, name)} for emoji, sender, name in reactions
            ]
        return shown

    async def trace(self, request: Request) -> dict[str, Any]:
        """What happened under a trace id, in order: {steps, deliveries, message_id, conversation}."""
        trace_id = request.text("trace_id")
        reader = await self._asking.reader(request)
        directory = self._core.directory

        def read(tx: Connection) -> dict[str, Any]:
            address = self._core.messages.address_of_trace(tx, trace_id)
            if reader is not None and (address is None or not reader.may_enter(address[0])):
                raise RequestFailed("not_found", "nothing is known of that trace id")
            steps = self._core.trail.read(tx, trace_id)
            if not steps:
                raise RequestFailed("not_found", "nothing is known of that trace id")
            return {
                "trace_id": trace_id,
                "conversation": None if address is None else address[0],
                "message_id": None if address is None else address[1],
                "steps": [
                    {
                        "at": moment(step.at_ms),
                        "kind": step.kind,
                        "channel": directory.ref_of(step.channel),
                        "word": step.word,
                        "detail": step.detail,
                    }
                    for step in steps
                ],
                "deliveries": [
                    _delivery(directory, standing)
                    for standing in self._core.deliveries.of_trace(tx, trace_id)
                ],
            }

        return await self._core.read(read)

    # -- for operators ----------------------------------------------------------------------------------------

    async def conversations(self, request: Request) -> dict[str, Any]:
        """`list` (of a client, of a connector by service and instance, or all), `add`, `remove`."""
        op = request.text("op", default="list")
        if op == "list":
            return {"conversations": await self._listed(request)}
        await self._need_admin(request)
        name = request.text("name")
        if op == "add":
            conversation = Conversation(name=name, links=self._links(request.payload.get("channels")))
            await self._change(lambda turn: add_conversation(turn.tx, self._core.tenant, conversation))
        elif op == "remove":
            await self._change(lambda turn: remove_conversation(turn.tx, self._core.tenant, name))
        else:
            raise RequestFailed("invalid_field", "payload.op is list, add or remove")
        return {"name": name}

    async def _listed(self, request: Request) -> list[dict[str, Any]]:
        directory = self._core.directory
        warrant = await self._asking.warrant(request)
        if warrant.service is not None:
            mine = (warrant.service, warrant.instance)
            return _conversations(
                directory, lambda channel: (channel.service, channel.instance) == mine, keep_empty=False
            )
        reader = await self._asking.reader(request)
        return [
            shown
            for shown in _conversations(directory, lambda channel: True, keep_empty=True)
            if reader is None or reader.may_enter(shown["name"])
        ]

    def _links(self, channels: object) -> tuple[Link, ...]:
        if not isinstance(channels, list):
            raise RequestFailed("invalid_field", "payload.channels is a list")
        links = []
        for channel in channels:
            ref, via = channel, None
            if isinstance(channel, Mapping):
                ref, via = channel.get("ref"), channel.get("via")
            if not isinstance(ref, str):
                raise RequestFailed("invalid_field", "a channel is a reference, or {ref, via}")
            try:
                service = checked_channel(ref, self._core.tenant).service
            except DirectoryError as exc:
                raise RequestFailed(exc.code, str(exc)) from exc
            links.append(Link(ref=ref, service=service, instance=self._carrier(ref, service, via)))
        return tuple(links)

    def _carrier(self, ref: str, service: str, via: object) -> str:
        """The instance of the one connector that can carry the channel."""
        fitting = [
            instance
            for served, instance in self._connectors
            if served == service and via in (None, f"{served}/{instance}")
        ]
        if len(fitting) != 1:
            raise RequestFailed(
                "invalid_field",
                f"{len(fitting)} connectors could carry {ref}",
                hint='name one: {"ref": "msgr://…", "via": "SERVICE/INSTANCE"}',
            )
        return fitting[0]

    async def clients(self, request: Request) -> dict[str, Any]:
        """`list`, `add`, `revoke`, and for the gateway `authenticate` by a token's hash."""
        op = request.text("op", default="list")
        if op == "authenticate":
            return await self._authenticate(request)
        await self._need_admin(request)
        at_ms = int(self._core.env.wall() * 1000)
        if op == "list":
            return {
                "clients": [
                    {
                        "name": client.name,
                        "identity": client.identity,
                        "display": client.display,
                        "conversations": sorted(client.conversations),
                    }
                    for client in self._core.directory.clients.values()
                ]
            }
        name = request.text("name")
        if op == "add":
            seed = ClientSeed(
                name=name,
                identity=request.text("identity"),
                display=request.text("display", default="") if request.payload.get("display") else "",
                token_hash=_hash(request.payload.get("token_hash")),
                conversations=_names(request.payload.get("conversations")),
            )
            self._check_known(seed.conversations)
            await self._change(lambda turn: put_client(turn.tx, self._core.tenant, seed, at_ms=at_ms))
        elif op == "revoke":
            await self._change(lambda turn: revoke_client(turn.tx, self._core.tenant, name, at_ms=at_ms))
        else:
            raise RequestFailed("invalid_field", "payload.op is list, add, revoke or authenticate")
        return {"name": name}

    def _check_known(self, conversations: Sequence[str]) -> None:
        for name in conversations:
            if name != "*" and name not in self._core.directory.conversations:
                raise RequestFailed("not_found", f"there is no conversation {name!r}")

    async def _authenticate(self, request: Request) -> dict[str, Any]:
        token_hash = _hash(request.payload.get("token_hash"))
        if token_hash is None:
            raise RequestFailed("missing_field", "payload.token_hash is required")
        name = await self._core.read(lambda tx: client_of_token(tx, self._core.tenant, token_hash))
        client = None if name is None else self._core.directory.clients.get(name)
        if client is None:
            raise RequestFailed("capability_denied", "the token is not known, or was revoked")
        conversations = [
            conversation
            for conversation in self._core.directory.conversations
            if client.may_enter(conversation)
        ]
        return {
            "client": client.name,
            "identity": client.identity,
            "display": client.display,
            "conversations": conversations,
            "everywhere": "*" in client.conversations,
        }

    async def _need_admin(self, request: Request) -> None:
        if not await self._asking.is_admin(request):
            raise RequestFailed("capability_denied", "only an operator with the admin role may do that")

    async def _change(self, fn: Callable[[Turn], object]) -> None:
        """Change links or clients, and take the new snapshot."""
        try:
            await self._core.write(None, fn)
        except DirectoryError as exc:
            raise RequestFailed(exc.code, str(exc), hint=exc.hint) from exc
        await self._core.reload()  # who is cancelled before it finds the revision moved, and reloads then

    # -- for connectors ---------------------------------------------------------------------------------------

    async def cursor(self, request: Request) -> dict[str, Any]:
        """How far a connector's streams are stored, with all that was published below `position` counted in."""
        service, instance = request.text("service"), request.text("instance")
        warrant = await self._asking.warrant(request)
        if (warrant.service, warrant.instance) != (service, instance) and not warrant.is_admin:
            raise RequestFailed("capability_denied", "the cursors are another connector's")
        await self._settling.wait_applied(request.number("position", default=0), deadline=request.deadline)
        rows = await self._core.read(lambda tx: self._progress.cursors(tx, service, instance))
        return {
            "streams": {row.stream: row.value for row in rows},
            "at": {row.stream: row.at for row in rows},
        }

    async def status(self, request: Request) -> dict[str, Any]:
        """Where intents stand, in the order of `items`; null for one that was never given to that channel."""
        items = request.payload.get("items")
        if not isinstance(items, list) or len(items) > ITEMS_MAX:
            raise RequestFailed("invalid_field", f"payload.items is a list of at most {ITEMS_MAX}")
        warrant = await self._asking.warrant(request)
        await self._settling.wait_applied(request.number("position", default=0), deadline=request.deadline)
        directory = self._core.directory

        def read(tx: Connection) -> list[dict[str, Any] | None]:
            return [self._state(tx, directory, item) for item in items]

        states = await self._core.read(read)
        if not warrant.is_admin:
            mine = (warrant.service, warrant.instance)
            states = [
                state if state is not None and _carrier_of(directory, state["channel"]) == mine else None
                for state in states
            ]
        return {"states": states}

    def _state(self, tx: Connection, directory: Directory, item: object) -> dict[str, Any] | None:
        if not isinstance(item, Mapping):
            return None
        trace_id, ref = item.get("trace_id"), item.get("channel")
        channel = _channel(directory, ref)
        if channel is None or not isinstance(trace_id, str):
            return None
        standing = self._core.deliveries.standing(tx, trace_id, channel.row)
        if standing is None:
            return None
        shown = _delivery(directory, standing) | {"trace_id": trace_id, "attempt": standing.attempt}
        if standing.message is not None:
            shown["remote_id"] = self._core.names.own(tx, channel.row, standing.message)
        return shown


# Private --------------------------------------------------------------------------------------------------------


def _delivery(directory: Directory, standing: Standing) -> dict[str, Any]:
    shown: dict[str, Any] = {
        "channel": directory.ref_of(standing.channel),
        "state": standing.state.value,
    }
    if standing.error is not None:
        shown["error"] = standing.error
    return shown


def _channel(directory: Directory, ref: object) -> Channel | None:
    if not isinstance(ref, str):
        return None
    try:
        return directory.channel(ref)
    except BridgeError:  # no reference, or another workspace's: the same answer as for a strange one
        return None


def _carrier_of(directory: Directory, ref: object) -> tuple[str, str] | None:
    channel = _channel(directory, ref)
    return None if channel is None else (channel.service, channel.instance)


def _conversations(
    directory: Directory, is_wanted: Callable[[Channel], bool], *, keep_empty: bool
) -> list[dict[str, Any]]:
    found = []
    for name, channels in directory.conversations.items():
        shown = [
            {"channel": channel.ref, "service": channel.service, "instance": channel.instance}
            for channel in channels
            if is_wanted(channel)
        ]
        if shown or keep_empty:
            found.append({"name": name, "origin": directory.origins[name], "channels": shown})
    return found


def _hash(value: object) -> bytes | None:
    """A SHA-256 in hex digits."""
    if value is None:
        return None
    try:
        raw = bytes.fromhex(value) if isinstance(value, str) else b""
    except ValueError:
        raw = b""
    if len(raw) != TOKEN_HASH_BYTES:
        raise RequestFailed("invalid_field", "payload.token_hash is the SHA-256 of the token, in hex digits")
    return raw


def _names(value: object) -> tuple[str, ...]:
    if not isinstance(value, list) or not value or not all(isinstance(name, str) and name for name in value):
        raise RequestFailed("invalid_field", "payload.conversations is a list of names that is not empty")
    return tuple(value)
