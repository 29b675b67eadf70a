"""Who is in which channel, and who was only split off.  Pure.

Names alone are kept, of the channels that we are in.  When two servers lose each other, everybody behind the other
one is said to quit with the two servers' names as the reason; they are held as one event, and who is back in
time never left.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

import attrs

from bridged.connectors.irc.events import Event, Moved, Named
from bridged.connectors.irc.names import Support

# Ours.
GATHER_S = 1.0
"""Quits of one split, and joins of one return, are gathered so long."""
MEMBERS_MAX = 50_000
"""Names kept of one channel; beyond it they are not followed."""

_SERVER = r"[A-Za-z0-9*][A-Za-z0-9.*_-]*\.[A-Za-z0-9.*_-]*[A-Za-z0-9*]"
_SPLIT = re.compile(rf"{_SERVER} {_SERVER}")


def is_split(reason: str) -> bool:
    """Is this the reason of a QUIT by netsplit?  Servers put a word before what a person writes there."""
    return _SPLIT.fullmatch(reason) is not None


@attrs.define
class Channel:
    """One channel that we are in."""

    name: str
    members: dict[str, str] = attrs.field(factory=dict)
    """Folded nick -> nick."""
    listing: dict[str, str] | None = None
    """The list that is just being told."""


@attrs.define
class _Split:
    """What one split has done to one channel."""

    channel: str
    reason: str
    lost: dict[str, str]
    """Folded nick -> nick, of those who are not back."""
    until: float
    said_at: float | None
    """When `split` is to be said; None: it was."""
    back: list[str] = attrs.field(factory=list)
    back_said_at: float | None = None


class Channels:
    """The channels of one connection."""

    def __init__(self, support: Support, *, hold_s: float) -> None:
        self._support = support
        self._hold_s = hold_s
        self._channels: dict[str, Channel] = {}
        self._splits: dict[tuple[str, str], _Split] = {}

    def __iter__(self) -> Iterator[Channel]:
        return iter(self._channels.values())

    def get(self, name: str) -> Channel | None:
        return self._channels.get(self._support.fold(name))

    def name(self, name: str) -> str:
        """The channel's name in the case in which it was joined."""
        channel = self.get(name)
        return name if channel is None else channel.name

    def enter(self, name: str) -> None:
        self._channels[self._support.fold(name)] = Channel(name)

    def leave(self, name: str) -> None:
        folded = self._support.fold(name)
        self._channels.pop(folded, None)
        for key in [key for key in self._splits if key[0] == folded]:
            del self._splits[key]

    def list_names(self, name: str, nicks: Sequence[str]) -> None:
        """A part of the list of members (353)."""
        channel = self.get(name)
        if channel is None:
            return
        if channel.listing is None:
            channel.listing = {}
        for nick in nicks:
            if len(channel.listing) < MEMBERS_MAX:
                channel.listing[self._support.fold(nick)] = nick

    def list_ended(self, name: str) -> list[Event]:
        """The list is complete (366)."""
        channel = self.get(name)
        if channel is None or channel.listing is None:
            return []
        channel.members, channel.listing = channel.listing, None
        return [Named(channel.name, tuple(channel.members.values()))]

    def joined(self, name: str, nick: str, now: float, time: str | None) -> list[Event]:
        channel = self.get(name)
        if channel is None:
            return []
        folded = self._support.fold(nick)
        if len(channel.members) < MEMBERS_MAX:
            channel.members[folded] = nick
        for (where, _), split in self._splits.items():
            if where == self._support.fold(name) and folded in split.lost:
                del split.lost[folded]
                if split.said_at is not None:
                    return []  # back before the split was told at all
                split.back.append(nick)
                if split.back_said_at is None:
                    split.back_said_at = now + GATHER_S
                return []
        return [Moved(channel=channel.name, change="join", names=(nick,), time=time)]

    def left(
        self, name: str, nick: str, change: str, *, by: str | None, reason: str, time: str | None
    ) -> list[Event]:
        """Somebody else left, or was kicked."""
        channel = self.get(name)
        if channel is None:
            return []
        channel.members.pop(self._support.fold(nick), None)
        return [
            Moved(channel=channel.name, change=change, names=(nick,), by=by, reason=reason or None, time=time)
        ]

    def quit(self, nick: str, reason: str, now: float, time: str | None, *, split: bool) -> list[Event]:
        """Somebody else left the network, or was split off."""
        events: list[Event] = []
        folded = self._support.fold(nick)
        for where, channel in self._channels.items():
            if channel.members.pop(folded, None) is None:
                continue
            if split and self._hold_s > 0:
                held = self._splits.get((where, reason))
                if held is None or now > held.until:
                    held = _Split(channel.name, reason, {}, 0.0, now + GATHER_S)
                    self._splits[where, reason] = held
                elif held.said_at is None and folded not in held.lost:
                    held.said_at = now + GATHER_S
                held.lost[folded] = nick
                held.until = now + self._hold_s
            else:
                events.append(
                    Moved(
                        channel=channel.name, change="quit", names=(nick,), reason=reason or None, time=time
                    )
                )
        return events

    def renamed(self, old: str, new: str, time: str | None) -> list[Event]:
        events: list[Event] = []
        before, after = self._support.fold(old), self._support.fold(new)
        for channel in self._channels.values():
            if channel.members.pop(before, None) is not None:
                channel.members[after] = new
                events.append(
                    Moved(channel=channel.name, change="nick", names=(old,), new_name=new, time=time)
                )
        return events

    def flush(self) -> None:
        """A batch of a split or of a return has ended: what was gathered is whole."""
        for split in self._splits.values():
            if split.said_at is not None:
                split.said_at = 0.0
            if split.back_said_at is not None:
                split.back_said_at = 0.0

    @property
    def deadline(self) -> float:
        """When `tick` has something to say next."""
        times = [
            time
            for split in self._splits.values()
            for time in (split.said_at, split.back_said_at, split.until)
            if time is not None
        ]
        return min(times, default=float("inf"))

    def tick(self, now: float) -> list[Event]:
        """What is due: splits, returns, and those who did not come back in time."""
        events: list[Event] = []
        for key, split in list(self._splits.items()):
            if split.said_at is not None and now >= split.said_at:
                split.said_at = None
                if split.lost:
                    events.append(self._moved(split, "split", tuple(split.lost.values())))
                else:
                    del self._splits[key]
                    continue
            if split.back_said_at is not None and now >= split.back_said_at:
                split.back_said_at = None
                events.append(self._moved(split, "rejoin", tuple(split.back)))
                split.back.clear()
            if now >= split.until:
                del self._splits[key]
                events.extend(self._moved(split, "quit", (nick,)) for nick in split.lost.values())
            elif not split.lost and split.back_said_at is None and split.said_at is None:
                del self._splits[key]
        return events

    @staticmethod
    def _moved(split: _Split, change: str, names: tuple[str, ...]) -> Moved:
        return Moved(channel=split.channel, change=change, names=names, reason=split.reason)
