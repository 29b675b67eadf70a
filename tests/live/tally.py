"""What was said and what arrived: numbered lines, counted per listener.  Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable
from datetime import UTC, datetime

import attrs

_TOKEN = re.compile(r"\bno\. ([a-z]+)-(\d{5})\b")
_GAP = re.compile(r"between (\d{4}-\d\d-\d\d \d\d:\d\d:\d\d) and (\d{4}-\d\d-\d\d \d\d:\d\d:\d\d) UTC")


def line(speaker: str, number: int) -> str:
    """A line with a number; beyond ASCII, since that is where bytes get lost."""
    return f"hei 漢字 😀 no. {speaker}-{number:05d}"


def token_of(text: str) -> tuple[str, int] | None:
    """(speaker, number) of a numbered line; a quotation before it does not count."""
    found = _TOKEN.findall(text)
    return (found[-1][0], int(found[-1][1])) if found else None


@attrs.frozen
class Gap:
    """A notice that something may be missing, with its times."""

    begin: float
    end: float

    def covers(self, at: float) -> bool:
        """Was it then?  The notice's times are whole seconds, cut off."""
        return self.begin <= at <= self.end + 1


def gap_of(text: str) -> Gap | None:
    """The times of a gap notice."""
    found = _GAP.search(text)
    if found is None:
        return None
    begin, end = (datetime.fromisoformat(word).replace(tzinfo=UTC).timestamp() for word in found.groups())
    return Gap(begin, end)


@attrs.define
class Ear:
    """What one listener heard of the numbered lines."""

    heard: dict[tuple[str, int], int] = attrs.field(factory=dict)
    """Token -> how often."""
    order: list[tuple[str, int]] = attrs.field(factory=list)
    times: dict[tuple[str, int], float] = attrs.field(factory=dict)
    """When first."""
    speakers: dict[tuple[str, int], str] = attrs.field(factory=dict)
    """Who said it, as it was shown: the text before the token, and the network's sender."""
    gaps: list[Gap] = attrs.field(factory=list)

    def hear(self, sender: str, text: str, now: float) -> None:
        gap = gap_of(text)
        if gap is not None:
            self.gaps.append(gap)
        token = token_of(text)
        if token is None:
            return
        self.heard[token] = self.heard.get(token, 0) + 1
        if self.heard[token] == 1:
            self.order.append(token)
            self.times[token] = now
            self.speakers[token] = f"{sender} {text}"

    def missing(self, said: Iterable[tuple[str, int]]) -> list[tuple[str, int]]:
        return [token for token in said if token not in self.heard]

    def doubled(self) -> list[tuple[str, int]]:
        return [token for token, times in self.heard.items() if times > 1]

    def reordered(self) -> list[tuple[str, int]]:
        """Lines that came after a later one of the same speaker."""
        last: dict[str, int] = {}
        out = []
        for speaker, number in self.order:
            if number < last.get(speaker, -1):
                out.append((speaker, number))
            last[speaker] = max(number, last.get(speaker, -1))
        return out
