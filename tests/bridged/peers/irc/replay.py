"""Play the client sides of a recorded conversation to the fake, and compare what both servers said.

Compared are parsed lines, connection by connection, in segments between two client writes of that connection,
with what no two runs share (ids, times, UIDs, counters) masked.  Order inside a segment counts.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import attrs
import trio

from bridged.peers.irc import IrcNetwork
from bridged.peers.irc.line import Line, parse

Normal = tuple[Any, ...]

WRITE_S = 0.0005
"""Client lines closer than this were one write."""


def is_pong(record: Record) -> bool:
    """The recorder's own answer to a PING: no step of the scenario."""
    return (
        record.direction == "C"
        and (record.data or b"").startswith(b"PONG :")
        and b"unasked" not in (record.data or b"")
    )


@attrs.frozen
class Record:
    at: float
    who: str
    direction: str
    data: bytes | None
    event: str


def load(path: Path) -> list[Record]:
    """The records of one transcript."""
    records = []
    for text in path.read_text("utf-8").split("\n"):
        if text:
            r = json.loads(text)
            data = bytes.fromhex(r["hex"]) if "hex" in r else r["line"].encode() if "line" in r else None
            records.append(Record(r["t"], r.get("who", ""), r["dir"], data, r.get("event", "")))
    return records


@attrs.define
class Segment:
    """What one connection heard between two of its own writes."""

    sent: list[str]
    note: str
    heard: list[Normal] = attrs.field(factory=list)


def normal(data: bytes, mask: Callable[[Line], Normal | None]) -> Normal | None:
    """A server line as it is compared; None where it is not."""
    line = parse(data)
    return None if line is None else mask(line)


def segments(records: list[Record], mask: Callable[[Line], Normal | None]) -> dict[str, list[Segment]]:
    """The recorded server lines of each connection (`alice#2` is the second one of alice's)."""
    numbers: dict[str, int] = {}
    found: dict[str, list[Segment]] = {}
    last: dict[str, float] = {}
    note = joined = ""
    for record in records:
        if record.direction == "#":
            note = record.event
            continue
        if record.event.startswith("connect"):
            numbers[record.who] = numbers.get(record.who, 0) + 1
        key = f"{record.who}#{numbers.get(record.who, 0)}"
        own = found.setdefault(key, [Segment([], note)])
        if record.data is None:
            if record.event in ("eof", "reset"):
                own[-1].heard.append(("end",))
            continue
        if record.direction == "C":
            if not is_pong(record):
                if not (last.get(key) is not None and record.at - last[key] < WRITE_S and joined == key):
                    own.append(Segment([], note))
                    last[key] = record.at
                own[-1].sent.append(record.data.decode("utf-8", "replace")[:120])
                joined = key
                continue
        elif (line := normal(record.data, mask)) is not None:
            own[-1].heard.append(line)
        joined = ""
    return found


class Player:
    """Plays the client side and collects what the fake answers."""

    def __init__(self, net: IrcNetwork, records: list[Record], mask: Callable[[Line], Normal | None]) -> None:
        self._net = net
        self._records = records
        self._mask = mask
        self._streams: dict[str, trio.abc.Stream] = {}
        self._current: dict[str, str] = {}
        self._numbers: dict[str, int] = {}
        self.found: dict[str, list[Segment]] = {}
        self._note = ""
        self._before: Mapping[tuple[str, str], list[Callable[[], None]]] = {}

    async def play(
        self,
        steps: Mapping[str, Callable[[], None]],
        *,
        server_of: Callable[[str], int] = lambda who: 0,
        before: Mapping[tuple[str, str], list[Callable[[], None]]] | None = None,
    ) -> dict[str, list[Segment]]:
        """Play everything.

        Args:
            steps: Deeds of the lab at a note of the transcript (`services end`).
            before: Deeds before a client's line, by (note, line).
        """
        self._before = before or {}
        started = trio.current_time()
        async with trio.open_nursery() as nursery:
            for group in self._groups():
                first = group[0]
                await trio.sleep_until(started + first.at)
                await trio.testing.wait_all_tasks_blocked()
                if first.direction == "#":
                    self._note = first.event
                    if first.event in steps:
                        steps[first.event]()
                        await trio.testing.wait_all_tasks_blocked()
                    continue
                await self._act(group, nursery, server_of)
            await trio.sleep_until(started + self._records[-1].at + 3)
            nursery.cancel_scope.cancel()
        return self.found

    def _groups(self) -> Iterator[list[Record]]:
        """Client writes: lines of one connection with one time, nothing between them."""
        group: list[Record] = []
        for record in self._records:
            joined = (
                group
                and record.direction == "C"
                and record.data is not None
                and group[-1].data is not None
                and record.who == group[-1].who
                and record.at - group[0].at < WRITE_S
                and is_pong(record) == is_pong(group[0])
            )
            if joined:
                group.append(record)
                continue
            if group:
                yield group
            group = [record] if record.direction in "C#" else []
        if group:
            yield group

    async def _act(self, group: list[Record], nursery: trio.Nursery, server_of: Callable[[str], int]) -> None:
        first = group[0]
        who = first.who
        if first.event.startswith("connect"):
            self._numbers[who] = self._numbers.get(who, 0) + 1
            key = self._current[who] = f"{who}#{self._numbers[who]}"
            self.found[key] = [Segment([], self._note)]
            stream = self._streams[key] = self._net.connect_memory(server_of(who))
            nursery.start_soon(self._listen, key, stream)
            return
        key = self._current[who]
        stream = self._streams[key]
        if first.data is None:
            await trio.aclose_forcefully(stream)
            return
        own = self.found[key]
        for deed in self._before.get((self._note, (first.data or b"").decode("utf-8", "replace")), []):
            deed()
        if not is_pong(first):
            own.append(Segment([(r.data or b"").decode("utf-8", "replace")[:120] for r in group], self._note))
        half = "has no CRLF" in self._note
        self._note = "" if half else self._note
        data = b"\r\n".join(r.data or b"" for r in group) + (b"" if half else b"\r\n")
        try:
            await stream.send_all(data)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            own[-1].heard.append(("not sent",))
        await trio.testing.wait_all_tasks_blocked()

    async def _listen(self, key: str, stream: trio.abc.Stream) -> None:
        tail = b""
        while True:
            try:
                data = await stream.receive_some(65_536)
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                return
            if not data:
                self.found[key][-1].heard.append(("end",))
                return
            *lines, tail = (tail + data).split(b"\r\n")
            for raw in lines:
                found = normal(raw, self._mask)
                if found is not None:
                    self.found[key][-1].heard.append(found)


def differences(
    recorded: dict[str, list[Segment]], played: dict[str, list[Segment]], *, in_any_order: bool = False
) -> list[str]:
    """Every segment that differs, said so that one sees what to mend."""
    out = []
    for key, own in recorded.items():
        other = played.get(key, [])
        for number, segment in enumerate(own):
            heard = other[number].heard if number < len(other) else [("missing",)]
            ours, theirs = settled(segment.heard), settled(heard)
            if in_any_order:
                ours, theirs = sorted(ours, key=repr), sorted(theirs, key=repr)
            if ours != theirs:
                out.append(_difference(key, segment, heard))
    return out


def settled(heard: list[Normal]) -> list[Normal]:
    """Lines whose order real servers leave open, sorted: runs of one command of LOOSE."""
    out: list[Normal] = []
    run: list[Normal] = []
    for item in [*heard, ("",)]:
        if (
            item[0] == "353" and run and run[-1][:5] == item[:5]
        ):  # where a long list is cut is a matter of its order
            words = " ".join(sorted(f"{run[-1][5]} {item[5]}".split()))
            run[-1] = (*item[:5], words, *item[6:])
            continue
        if run and item[0] != run[0][0]:
            out += sorted(run, key=repr) if run[0][0] in LOOSE else run
            run = []
        run.append(item)
    return out


LOOSE = frozenset({"352", "354", "353", "322", "QUIT", "JOIN"})


def _difference(key: str, segment: Segment, heard: list[Normal]) -> str:
    lines = [f"{key} ({segment.note}) C {' | '.join(segment.sent)[:160]}"]
    for sign, have, other in (("-", segment.heard, heard), ("+", heard, segment.heard)):
        rest = list(other)
        for item in have:
            if item in rest:
                rest.remove(item)
            else:
                lines.append(f"   {sign} {item}"[:300])
    if len(lines) == 1:
        lines.append(f"   order: {segment.heard} != {heard}"[:600])
    return "\n".join(lines)
