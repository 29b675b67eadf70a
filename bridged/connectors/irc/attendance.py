"""In which channels we want to be, and in which we are.  Pure."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator

import attrs

from bridged.connectors.irc.names import Support

# Ours.
RETRY_S = 30.0
RETRY_S_MAX = 600.0
REJOIN_S = 5.0
"""After a kick: at once would be rude, and is what flood bots do."""
CLOSED = frozenset({"403", "473", "474", "475", "476", "477", "520"})
"""Refusals that patience alone does not end: a message for the channel fails meanwhile."""

_WORDS = {
    "403": "no such channel",
    "405": "too many channels",
    "437": "the channel is unavailable for now",
    "471": "the channel is full",
    "473": "the channel is invite-only: invite the bridge",
    "474": "the bridge is banned there",
    "475": "the channel has a key",
    "476": "no name of a channel",
    "477": "the channel wants a registered nick: give the connector a credential",
}


@attrs.define(eq=False)
class Place:
    """One channel where we want to be."""

    name: str
    is_in: bool = False
    numeric: str | None = None
    """Why not, when the server has said so."""
    text: str = ""
    ask_at: float = -math.inf
    delay_s: float = RETRY_S

    @property
    def trouble(self) -> str | None:
        """One sentence for an operator; None when all is well, or not known yet."""
        if self.is_in or (self.numeric is None and not self.text):
            return None
        return f"{self.name}: {_WORDS.get(self.numeric or '', self.text)}"


class Attendance:
    """The wanted channels of one connection."""

    def __init__(self, support: Support) -> None:
        self._support = support
        self._places: list[Place] = []

    def __iter__(self) -> Iterator[Place]:
        return iter(self._places)

    def get(self, name: str) -> Place | None:
        folded = self._support.fold(name)
        return next((place for place in self._places if self._support.fold(place.name) == folded), None)

    def want(self, name: str) -> Place:
        """Want to be there, from now on."""
        place = self.get(name)
        if place is None:
            place = Place(name)
            self._places.append(place)
        return place

    def want_only(self, names: Collection[str]) -> list[str]:
        """Want to be there and nowhere else; the names of channels to leave."""
        for name in names:
            self.want(name)
        wanted = {self._support.fold(name) for name in names}
        gone = [place for place in self._places if self._support.fold(place.name) not in wanted]
        self._places = [place for place in self._places if place not in gone]
        return [place.name for place in gone if place.is_in]

    def due(self, now: float) -> list[str]:
        """Channels to ask for now; an unanswered question is asked again later."""
        names = []
        for place in self._places:
            if not place.is_in and now >= place.ask_at:
                place.ask_at = now + place.delay_s
                names.append(place.name)
        return names

    @property
    def deadline(self) -> float:
        return min((place.ask_at for place in self._places if not place.is_in), default=math.inf)

    def joined(self, name: str) -> None:
        place = self.get(name)
        if place is not None:
            place.is_in, place.numeric, place.text, place.delay_s = True, None, "", RETRY_S

    def refused(self, name: str, numeric: str, text: str, now: float) -> None:
        """Not let in: asked again, less and less often."""
        place = self.get(name)
        if place is not None and not place.is_in:
            place.numeric, place.text = numeric, text or numeric
            place.ask_at = now + place.delay_s
            place.delay_s = min(place.delay_s * 2, RETRY_S_MAX)

    def expelled(self, name: str, by: str, reason: str, now: float) -> None:
        """Put out: back after a moment."""
        place = self.get(name)
        if place is not None:
            place.is_in, place.numeric = False, None
            place.text = f"put out by {by} ({reason})" if reason else f"put out by {by}"
            place.ask_at = now + REJOIN_S

    @property
    def troubles(self) -> list[str]:
        return [place.trouble for place in self._places if place.trouble is not None]
