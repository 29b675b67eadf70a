"""What happens on IRC, as payloads for the house.          Wire contract, sections 4.3 and 4.5.  Pure.

The other direction is in `rendering`.  Ids: the server's msgid where it has one; else a digest of what was said,
by whom, when, which is the same when the server's history tells the line again.
"""

from __future__ import annotations

import base64
import hashlib
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import attrs

from bridged.connectors.intent import seconds, timestamp
from bridged.connectors.irc import formatting
from bridged.connectors.irc.events import Message, Moved, Named, Redacted, Tagged
from bridged.connectors.irc.names import Support
from bridged.connectors.irc.wire import Source
from bridged.refs import ChannelRef, IdentityRef

# Ours.
REACTIONS_KEPT = 4096
IDS_KEPT = 4096
CLOCK_SKEW_S = 300.0
"""A server time further ahead of ours than this is not believed."""


@attrs.frozen(kw_only=True)
class Publication:
    """One payload to publish."""

    action: str
    payload: dict[str, Any]
    key: bytes
    """What it stays in order with: the channel's reference."""
    is_ephemeral: bool = False


class Inbound:
    """The mapper of one connection.

    Args:
        workspace: The tenant.
        network: The network's name in references.
        refs: References of the channels that are bridged, as the configuration writes them.
    """

    def __init__(self, *, workspace: str, network: str, support: Support, refs: Sequence[str] = ()) -> None:
        self._workspace = workspace
        self._network = network
        self._support = support
        self._refs: list[tuple[str, str]] = []
        self._offsets: dict[str, int] = {}
        self._ids: OrderedDict[tuple[bool, str], int] = OrderedDict()
        self._reactions: OrderedDict[tuple[str, str, str], list[str]] = OrderedDict()
        self.set_refs(refs)

    def set_refs(self, refs: Sequence[str]) -> None:
        """Take the references of the bridged channels; those of other networks are passed over."""
        self._refs = []
        for text in refs:
            ref = ChannelRef.parse(text)
            if ref.service == "irc" and ref.pointer[0].lower() == self._network.lower():
                self._refs.append((ref.pointer[1], text))

    @property
    def channels(self) -> list[str]:
        """Names of the bridged channels, as configured."""
        return [name for name, _ in self._refs]

    def reference(self, channel: str) -> str:
        """The channel's reference: as configured, else built."""
        folded = self._support.fold(channel)
        for name, ref in self._refs:
            if self._support.fold(name) == folded:
                return ref
        pointer = (self._network, folded)
        return ChannelRef(workspace=self._workspace, service="irc", pointer=pointer).build()

    def resume(self, channel: str, offset: int) -> None:
        """Go on behind the stored cursor of a channel."""
        stream = self._support.fold(channel)
        self._offsets[stream] = max(offset, self._offsets.get(stream, 0))

    def stream(self, channel: str) -> str:
        """The cursor's stream of a channel."""
        return self._support.fold(channel)

    def forget_playback(self, channel: str) -> None:
        """A channel is joined anew: its history may be told again from the beginning."""
        del channel
        for key in [key for key in self._ids if key[0]]:
            del self._ids[key]

    def person(self, nick: str) -> dict[str, str]:
        """Somebody, by nick.  The reference is folded: one person, however the nick is written."""
        ref = IdentityRef(service="irc", pointer=(self._network, self._support.fold(nick)))
        return {"ref": ref.build(), "name": nick}

    def message(self, event: Message, *, wall: float) -> Publication | None:
        """A line of a channel; None for private lines and our own."""
        if event.channel is None or event.is_own:
            return None
        at = self._time(event.time, wall)
        runs = formatting.parse(event.text)
        text = "".join(run.text for run in runs)
        sender = self.person(event.source.nick)
        offset = self._next_offset(event.channel, at)
        payload: dict[str, Any] = {
            "channel": self.reference(event.channel),
            "remote_id": event.msgid or self._digest(event, at),
            "id_scope": "server",
            "sender": sender,
            "sender_identity": sender["ref"],
            "text": text,
            "html": formatting.to_html(runs),
            "kind": event.kind,
            "timestamp": timestamp(at),
            "reply_to": event.tags.get("+draft/reply") or event.tags.get("+reply") or None,
            "cursor": {"stream": self.stream(event.channel), "value": str(offset)},
            "network": self._network,
            "target": event.channel,
            "nick": event.source.nick,
            "account": event.account,
            "body": text,
            "offset": offset,
            "tags": dict(event.tags),
        }
        if event.is_playback:
            payload["playback"] = True
        return self._publication("inbound_message", payload)

    def tagged(self, event: Tagged, *, wall: float) -> Publication | None:
        """A reaction, or that somebody types."""
        if event.channel is None or event.is_own:
            return None
        sender = self.person(event.source.nick)
        payload: dict[str, Any] = {"channel": self.reference(event.channel), "sender": sender}
        if event.what == "typing":
            payload["typing"] = event.value == "active"
            return self._publication("typing_event", payload, is_ephemeral=True)
        if event.msgid is None:
            return None
        at = self._time(event.time, wall)
        payload |= {
            "remote_id": event.msgid,
            "emojis": self._react(event, sender["ref"]),
            "timestamp": timestamp(at),
        }
        return self._publication("reaction_event", payload)

    def redacted(self, event: Redacted, *, wall: float) -> Publication | None:
        """A message taken back."""
        if event.channel is None or event.is_own or not event.msgid:
            return None
        payload = {
            "channel": self.reference(event.channel),
            "remote_id": event.msgid,
            "sender": self.person(event.source.nick),
            "timestamp": timestamp(self._time(event.time, wall)),
        }
        return self._publication("redaction_event", payload)

    def moved(self, event: Moved, *, wall: float) -> list[Publication]:
        """Who came, went, took another name; a split and a return are one payload each."""
        payload: dict[str, Any] = {
            "channel": self.reference(event.channel),
            "change": event.change,
            "timestamp": timestamp(self._time(event.time, wall)),
        }
        if event.reason:
            payload["reason"] = formatting.strip(event.reason)
        if event.by:
            payload["by"] = event.by
        if event.change in ("split", "rejoin"):
            return [self._publication("membership", payload | {"names": list(event.names)})]
        if event.new_name is not None:
            payload["renamed"] = self.person(event.new_name)
        return [
            self._publication("membership", payload | {"member": self.person(nick)}) for nick in event.names
        ]

    def named(self, event: Named, *, wall: float) -> Publication:
        """Everybody who is in the channel.  From here on we listen, so a later gap begins here at the earliest."""
        offset = self._next_offset(event.channel, wall)
        payload = {
            "channel": self.reference(event.channel),
            "change": "snapshot",
            "names": list(event.names),
            "timestamp": timestamp(wall),
            "cursor": {"stream": self.stream(event.channel), "value": str(offset)},
        }
        return self._publication("membership", payload)

    def gap(self, channel: str, begin: float, end: float, reason: str) -> Publication:
        """What was said between two times (seconds since 1970) was not heard."""
        payload = {
            "channel": self.reference(channel),
            "from": timestamp(min(begin, end)),
            "to": timestamp(end),
            "reason": reason,
        }
        return self._publication("gap_event", payload)

    def _publication(
        self, action: str, payload: dict[str, Any], *, is_ephemeral: bool = False
    ) -> Publication:
        key = payload["channel"].encode()
        return Publication(action=action, payload=payload, key=key, is_ephemeral=is_ephemeral)

    def _time(self, server_time: str | None, wall: float) -> float:
        at = seconds(server_time) if server_time else None
        return wall if at is None or at > wall + CLOCK_SKEW_S or at < 0 else at

    def _next_offset(self, channel: str, at: float) -> int:
        """An increasing number a channel, by its size also the time: milliseconds since 1970."""
        stream = self.stream(channel)
        offset = max(int(at * 1000), self._offsets.get(stream, 0) + 1)
        self._offsets[stream] = offset
        return offset

    def _digest(self, event: Message, at: float) -> str:
        """The id of a line without msgid; equal lines of one millisecond are counted."""
        source = Source(event.source.nick, event.source.user)
        parts = (
            self._network,
            self.stream(event.channel or ""),
            str(int(at * 1000)),
            str(source),
            event.text,
        )
        line = "\0".join(parts)
        key = (event.is_playback, hashlib.sha256(line.encode(errors="replace")).hexdigest())
        counter = self._ids.pop(key, -1) + 1
        self._ids[key] = counter
        while len(self._ids) > IDS_KEPT:
            self._ids.popitem(last=False)
        digest = hashlib.sha256(f"{line}\0{counter}".encode(errors="replace")).digest()
        return base64.b32encode(digest).decode()[:26]

    def _react(self, event: Tagged, sender: str) -> list[str]:
        """The sender's full set on that message, as far as this connection has seen it."""
        key = (event.channel or "", event.msgid or "", sender)
        emojis = self._reactions.pop(key, [])
        if event.what == "react" and event.value not in emojis:
            emojis = [*emojis, event.value]
        elif event.what == "unreact":
            emojis = [emoji for emoji in emojis if emoji != event.value]
        self._reactions[key] = emojis
        while len(self._reactions) > REACTIONS_KEPT:
            self._reactions.popitem(last=False)
        return emojis
