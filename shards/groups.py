"""A consumer group: who holds which record, what comes next, and how far the group is.  Pure.

The group reads its topics in journal order (`offer`).  In flight is one *run* of a key at a time: a member may
hold several consecutive records of a key, acknowledged cumulatively, and no other member gets that key before.
A key that cannot go on keeps a short queue of positions in memory and then ONE next position; the rest is
found again in the (topic, key) index (`refills`).  So a hundred stuck keys stop nothing else, and the state to
store is the scan's position and one position for each key that is not finished below it.

A new run begins with a small window that doubles with every acknowledgement: a key that is stuck holds less
than a hundredth of its member's credit, a key that flows soon has `run_max`.  Once a good many records wait,
the scan waits too (`WAIT`) at the next record of a key that flows: that comes soon, and nothing need be looked
up twice; only what makes no progress for `PATIENCE_S` is passed by.  A group of the whole journal is one run.
"""

from __future__ import annotations

import heapq
import math
from collections import OrderedDict, deque
from collections.abc import Collection, Iterable

import attrs
import msgspec

from shards.errors import LogCorrupt, ShardsError

RUN_MAX = 64
LANE_WAITING_MAX = 64
WAITING_MAX = 8192
LANES_MAX = 4000  # so that the stored state stays below 64 KiB
SEEKS_MAX = 4
ATTEMPTS_MAX = 32
VISIBILITY_S = 600.0
PATIENCE_S = 0.02
"""A few round trips."""
AHEAD_MAX = 1024
"""Records that wait, before the scan does."""
WINDOWS_MAX = 4096
"""Keys whose window is remembered after they came to rest."""
WAIT = -1
"""What `offer` says of a record that it did not take: offer it again after the next acknowledgement."""


class Progress(msgspec.Struct, frozen=True, array_like=True):
    """How far a group is: all below `scan` is finished, but of each key in `open` what is at or above it.

    After a seek `before` holds what was finished until then, and the records of `topics` (null: all) in
    [start, stop) count as unfinished again.
    """

    scan: int
    open: dict[int, int] = {}
    before: Progress | None = None
    start: int = 0
    stop: int = 0
    topics: tuple[str, ...] | None = None

    @property
    def position(self) -> int:
        """All below is finished."""
        return min(self.scan, *self.open.values()) if self.open else self.scan

    @property
    def end(self) -> int:
        """From here on nothing was ever looked at."""
        return self.scan if self.before is None else max(self.scan, self.before.end)

    @property
    def depth(self) -> int:
        return 0 if self.before is None else 1 + self.before.depth

    def finished(self, position: int, key: int, topic: str) -> bool:
        if position < self.scan:
            return position < self.open.get(key, self.scan)
        return self.was_finished(position, key, topic)

    def was_finished(self, position: int, key: int, topic: str) -> bool:
        """Of a record at or above `scan`: was it finished before the seek and not sought again?"""
        if self.before is None:
            return False
        if self.start <= position < self.stop and (self.topics is None or topic in self.topics):
            return False
        return self.before.finished(position, key, topic)

    def encode(self) -> bytes:
        return msgspec.msgpack.encode(self)

    @classmethod
    def decode(cls, state: bytes) -> Progress:
        """Raises LogCorrupt where the bytes are not of `encode`."""
        try:
            return msgspec.msgpack.decode(state, type=cls)
        except msgspec.MsgspecError as exc:
            raise LogCorrupt("a group's state does not decode", hint="restore log.db from a backup") from exc


@attrs.define(eq=False)
class Member:
    """One subscriber of the group, with its credit."""

    id: int
    records: int
    octets: int
    in_flight: int = 0
    octets_in_flight: int = 0
    keys: set[int] = attrs.field(factory=set)
    blocked: dict[int, None] = attrs.field(factory=dict)

    @property
    def has_room(self) -> bool:
        return self.in_flight < self.records and self.octets_in_flight < self.octets


class _Lane:
    """What the group knows of one key that is not finished."""

    __slots__ = (
        "avoid",
        "flight",
        "key",
        "member",
        "more_from",
        "ready_at",
        "refill_stop",
        "since",
        "waiting",
        "window",
    )

    def __init__(self, key: int, window: int) -> None:
        self.key = key
        self.member: Member | None = None
        self.flight: deque[int] = deque()
        self.waiting: deque[int] = deque()
        self.more_from: int | None = None
        self.refill_stop: int | None = None
        self.window = window
        self.ready_at = 0.0
        self.since = 0.0
        self.avoid: Member | None = None
        """Who let the run's time pass: anybody else first."""

    @property
    def first(self) -> int | None:
        """The first unfinished position, None when all is finished."""
        if self.flight:
            return self.flight[0]
        if self.waiting:
            return self.waiting[0]
        return self.more_from


class _Flight:
    __slots__ = ("lane", "octets")

    def __init__(self, lane: _Lane, octets: int) -> None:
        self.lane = lane
        self.octets = octets


@attrs.frozen
class Delivery:
    """A record that waited and may go now."""

    member: int
    key: int
    position: int
    attempt: int


@attrs.frozen(eq=False)
class Refill:
    """Positions of one key that the index must name: in [start, stop), at most `limit`."""

    key: int
    start: int
    stop: int
    limit: int
    lane: _Lane


class Group:
    """The state machine of one consumer group.  Times are absolute seconds of the caller's clock."""

    def __init__(
        self,
        progress: Progress,
        *,
        whole: bool = False,
        run_max: int = RUN_MAX,
        waiting_max: int = WAITING_MAX,
        lanes_max: int = LANES_MAX,
        attempts_max: int = ATTEMPTS_MAX,
        visibility_s: float = VISIBILITY_S,
    ) -> None:
        """Args: whole: the group reads the whole journal, as one run."""
        self.whole = whole
        self.late = 0
        """Acknowledgements of records that the member no longer held."""
        self.exhausted: deque[tuple[int, int]] = deque()
        """(position, key) whose member fell too often: the caller writes the dead letter, then calls `finish`."""
        self.generation = 0
        """Steps with every seek: what was read for an older one is to be thrown away."""
        self._run_max = run_max
        self._waiting_max = waiting_max
        self._lanes_max = lanes_max
        self._attempts_max = attempts_max
        self._visibility_s = visibility_s
        self._window = 2**60 if whole else 1
        self._windows: OrderedDict[int, int] = OrderedDict()
        self._retry_at = math.inf
        self._members: dict[int, Member] = {}
        self._lanes: dict[int, _Lane] = {}
        self._flights: dict[int, _Flight] = {}
        self._attempts: dict[int, tuple[int, int]] = {}
        self._runnable: dict[int, None] = {}
        self._hungry: dict[int, None] = {}
        self._delayed: list[tuple[float, int]] = []
        self._waiting = 0
        self._scan = 0
        self._rest: Progress | None = None
        self._load(progress)

    # What the group is

    @property
    def scan(self) -> int:
        """The next journal position to offer."""
        return self._scan

    @property
    def in_flight(self) -> int:
        return len(self._flights)

    @property
    def unfinished(self) -> int:
        """Records below `scan` that are known to be unfinished (a key with more in the index counts one more)."""
        return len(self._flights) + self._waiting + sum(1 for lane in self._lanes.values() if lane.more_from)

    @property
    def members(self) -> Collection[Member]:
        return self._members.values()

    @property
    def position(self) -> int:
        firsts = [first for lane in self._lanes.values() if (first := lane.first) is not None]
        return min(self._scan, *firsts) if firsts else self._scan

    def progress(self) -> Progress:
        """What to store."""
        scan, opened = self._scan, {}
        if self.whole:
            scan = self.position
        else:
            opened = {key: first for key, lane in self._lanes.items() if (first := lane.first) is not None}
        rest = self._rest
        if rest is None:
            return Progress(scan, opened)
        return Progress(scan, opened, rest.before, rest.start, rest.stop, rest.topics)

    def attempt(self, position: int) -> int:
        """How often the record was given out, this time included."""
        return self._attempts.get(position, (1, 0))[0]

    def held_key(self, member: int, position: int) -> int | None:
        """The key of a record that the member has in flight, None where it has not."""
        flight = self._flights.get(position)
        if flight is None or flight.lane.member is None or flight.lane.member.id != member:
            return None
        return flight.lane.key

    def holds(self, member: int, position: int) -> bool:
        return self.held_key(member, position) is not None

    def is_wanted(self, position: int, key: int, topic: str) -> bool:
        """False for a record that was finished before a seek and is not sought again."""
        return self._rest is None or not self._rest.was_finished(position, key, topic)

    # Members

    def join(self, member: int, *, records: int, octets: int) -> None:
        self._members[member] = Member(member, records, octets)
        self._size_windows()

    def leave(self, member: int, *, fell: bool, now: float) -> None:
        """The member is gone; what it held is delivered again.  `fell`: not by its own will."""
        gone = self._members.pop(member, None)
        if gone is None:
            return
        self._size_windows()
        for key in list(gone.keys):
            self._give_back(self._lanes[key], 0, fell=fell, now=now)
        for key in gone.blocked:
            self._runnable[key] = None

    # The scan

    def can_scan(self) -> bool:
        """May the next record be offered?  No while nobody could take one."""
        if len(self._lanes) >= self._lanes_max:
            return False
        if self.whole and (lane := self._lanes.get(0)) is not None:
            return not lane.waiting and (lane.member is None or lane.member.has_room)
        return any(member.has_room for member in self._members.values())

    def offer(self, position: int, key: int, topic: str, octets: int, now: float) -> int | None:
        """The record at the scan: the member to give it to; None: finished already, or parked; or WAIT."""
        self._retry_at = math.inf
        if self._rest is not None and self._rest.was_finished(position, key, topic):
            self._scan = position + 1
            return None
        if self.whole:
            key = 0
        lane = self._lanes.get(key)
        if lane is None:
            lane = self._lanes[key] = _Lane(key, self._windows.pop(key, self._window))
        elif lane.waiting or lane.more_from is not None or lane.ready_at > now:
            self._scan = position + 1
            self._park(lane, position)
            return None
        member = lane.member or self._freest(lane.avoid)
        is_full = len(lane.flight) >= lane.window
        if is_full or member is None or not member.has_room:
            if self._waiting >= AHEAD_MAX and lane.flight and now < lane.since + PATIENCE_S:
                self._retry_at = lane.since + PATIENCE_S
                return WAIT
            self._scan = position + 1
            self._park(lane, position)
            if is_full:
                return None
            if member is None:
                self._runnable[key] = None
            else:
                member.blocked[key] = None
            return None
        self._scan = position + 1
        self._assign(lane, member, position, octets, now)
        return member.id

    def advance(self, position: int) -> None:
        """Nothing of the group's topics lies below `position` that was not offered."""
        self._scan = max(self._scan, position)
        if self._rest is not None and self._scan >= self._rest.end:
            self._rest = None

    # What waited

    def next_ready(self, now: float) -> Delivery | None:
        """A record that waited and can go now; it counts as in flight, its bytes are yet to be charged."""
        while self._delayed and self._delayed[0][0] <= now:
            self._runnable[heapq.heappop(self._delayed)[1]] = None
        while self._runnable:
            key = next(iter(self._runnable))
            lane = self._lanes.get(key)
            if lane is None or lane.ready_at > now or len(lane.flight) >= lane.window:
                del self._runnable[key]
                continue
            if not lane.waiting:
                del self._runnable[key]
                self._want_refill(lane)
                continue
            member = lane.member or self._freest(lane.avoid)
            if member is None:
                return None
            if not member.has_room:
                del self._runnable[key]
                member.blocked[key] = None
                continue
            position = lane.waiting.popleft()
            self._waiting -= 1
            self._assign(lane, member, position, 0, now)
            return Delivery(member.id, key, position, self.attempt(position))
        return None

    def charge(self, position: int, octets: int) -> None:
        """Book the bytes of a record that `next_ready` gave out."""
        flight = self._flights.get(position)
        if flight is not None and flight.lane.member is not None:
            flight.lane.member.octets_in_flight += octets - flight.octets
            flight.octets = octets

    def next_ready_at(self) -> float:
        """When a delay or the scan's patience ends, infinity when there is nothing to wait for."""
        return min(self._retry_at, self._delayed[0][0]) if self._delayed else self._retry_at

    def refills(self, most: int = 16) -> list[Refill]:
        """Keys whose next positions must be read from the index, at most `most` of them."""
        wanted: list[Refill] = []
        if not any(member.has_room for member in self._members.values()):
            return wanted
        while self._hungry and len(wanted) < most:
            key = next(iter(self._hungry))
            del self._hungry[key]
            lane = self._lanes.get(key)
            if lane is None or lane.more_from is None or lane.waiting or lane.refill_stop is not None:
                continue
            limit = max(1, min(LANE_WAITING_MAX, self._waiting_max - self._waiting))
            wanted.append(Refill(key, lane.more_from, self._scan, limit, lane))
            lane.refill_stop = self._scan  # `more_from` stays until the answer: all above it waits there
        return wanted

    def refill(self, wanted: Refill, positions: list[int]) -> None:
        """The index's answer, ascending."""
        lane = wanted.lane
        if self._lanes.get(wanted.key) is not lane or lane.refill_stop is None:
            return
        lane.refill_stop = None
        lane.waiting.extend(positions)
        self._waiting += len(positions)
        if len(positions) >= wanted.limit:
            lane.more_from = positions[-1] + 1
        elif self._scan > wanted.stop:
            lane.more_from = wanted.stop  # what was scanned since may hold more of this key
        else:
            lane.more_from = None
        self._settle(lane)

    # What members say

    def done(self, member: int, spans: Iterable[tuple[int, int]], now: float) -> None:
        """The member finished these; earlier ones of the same run with them."""
        for first, n in spans:
            for position in range(first, first + n):
                flight = self._flights.get(position)
                if flight is None or flight.lane.member is None or flight.lane.member.id != member:
                    self.late += 1
                    continue
                self._finish_through(flight.lane, position, now)

    def release(self, member: int, spans: Iterable[tuple[int, int]], *, ready_at: float, now: float) -> None:
        """Given back, with the later ones of their runs; their keys rest until `ready_at`."""
        for first, n in spans:
            for position in range(first, first + n):
                flight = self._flights.get(position)
                if flight is None or flight.lane.member is None or flight.lane.member.id != member:
                    continue  # given back with an earlier one of its run, or no longer held
                flight.lane.ready_at = max(flight.lane.ready_at, ready_at)
                self._give_back(flight.lane, position, fell=False, now=now)

    def finish(self, position: int, key: int, now: float) -> None:
        """Settle this record alone, whoever holds it: it became a dead letter, or retention took it."""
        lane = self._lanes.get(0 if self.whole else key)
        if lane is None:
            return
        if position in self._flights:
            lane.flight.remove(position)
            self._drop_flight(lane, position)
            lane.since = now
        elif position in lane.waiting:
            lane.waiting.remove(position)
            self._waiting -= 1
            lane.ready_at = 0.0
        self._attempts.pop(position, None)
        self._settle(lane)

    def expire(self, now: float) -> None:
        """Runs without progress for the visibility time go to somebody else."""
        limit = now - self._visibility_s
        for lane in [lane for lane in self._lanes.values() if lane.flight and lane.since <= limit]:
            lane.avoid = lane.member
            self._give_back(lane, 0, fell=True, now=now)

    # Operators

    def seek(self, topics: tuple[str, ...] | None, start: int, stop: int) -> None:
        """The records of `topics` in [start, stop) count as unfinished again.

        Raises:
            ShardsError: Too many seeks are still running one over another.
        """
        progress = self.progress()
        if progress.depth >= SEEKS_MAX:
            raise ShardsError(
                "too many replays of this group are still running", hint="wait for its lag to fall"
            )
        if start >= progress.end:
            return  # what lies there comes anyway
        if topics is None and start <= progress.position and stop >= progress.end:
            self._load(Progress(start))
        else:
            self._load(Progress(min(start, progress.position), {}, progress, start, stop, topics))

    def set_position(self, position: int) -> None:
        """The consumer's own truth: all below is finished, nothing above."""
        self._load(Progress(position))

    # Inside

    def _load(self, progress: Progress) -> None:
        self.generation += 1
        for member in self._members.values():
            member.in_flight = member.octets_in_flight = 0
            member.keys.clear()
            member.blocked.clear()
        for held in (self._lanes, self._flights, self._attempts, self._runnable, self._hungry):
            held.clear()
        self._delayed.clear()
        self.exhausted.clear()
        self._retry_at = math.inf
        self._waiting = 0
        self._scan = progress.scan
        self._rest = progress if progress.before is not None and progress.scan < progress.end else None
        for key, position in progress.open.items():
            lane = self._lanes[key] = _Lane(key, 1)
            lane.more_from = position
            self._hungry[key] = None

    def _freest(self, avoid: Member | None) -> Member | None:
        free = [member for member in self._members.values() if member.has_room]
        if len(free) > 1:
            return max(free, key=lambda member: (member is not avoid, member.records - member.in_flight))
        return free[0] if free else None

    def _assign(self, lane: _Lane, member: Member, position: int, octets: int, now: float) -> None:
        if not lane.flight:
            lane.since = now
        lane.member, lane.avoid = member, None
        lane.flight.append(position)
        member.keys.add(lane.key)
        member.in_flight += 1
        member.octets_in_flight += octets
        self._flights[position] = _Flight(lane, octets)

    def _park(self, lane: _Lane, position: int) -> None:
        if lane.more_from is not None:
            return
        if len(lane.waiting) < LANE_WAITING_MAX and self._waiting < self._waiting_max:
            lane.waiting.append(position)
            self._waiting += 1
        else:
            lane.more_from = position

    def _want_refill(self, lane: _Lane) -> None:
        if lane.more_from is not None and lane.refill_stop is None:
            self._hungry[lane.key] = None

    def _finish_through(self, lane: _Lane, position: int, now: float) -> None:
        while True:
            finished = lane.flight.popleft()
            self._drop_flight(lane, finished)
            self._attempts.pop(finished, None)
            if finished == position:
                break
        lane.since = now
        if not self.whole:
            lane.window = min(lane.window * 2, self._run_max)
        self._settle(lane)

    def _drop_flight(self, lane: _Lane, position: int) -> None:
        flight = self._flights.pop(position)
        member = lane.member
        if member is not None:
            member.in_flight -= 1
            member.octets_in_flight -= flight.octets
            if member.blocked:
                self._runnable.update(member.blocked)
                member.blocked.clear()

    def _give_back(self, lane: _Lane, position: int, *, fell: bool, now: float) -> None:
        """Return the run from `position` on to the front of what waits; the run's head answers for a fall."""
        if fell and lane.flight:
            head = lane.flight[0]
            attempt, falls = self._attempts.get(head, (1, 0))
            self._attempts[head] = (attempt, falls + 1)
            if falls + 1 >= self._attempts_max:
                self.exhausted.append((head, lane.key))
                lane.ready_at = math.inf
        while lane.flight and lane.flight[-1] >= position:
            back = lane.flight.pop()
            self._drop_flight(lane, back)
            attempt, falls = self._attempts.get(back, (1, 0))
            self._attempts[back] = (attempt + 1, falls)
            lane.waiting.appendleft(back)
            self._waiting += 1
        lane.window = self._window
        if math.isfinite(lane.ready_at) and lane.ready_at > now:
            heapq.heappush(self._delayed, (lane.ready_at, lane.key))
        self._settle(lane)

    def _settle(self, lane: _Lane) -> None:
        """After a change: free the key from its member, forget it, or let it go on."""
        if not lane.flight and lane.member is not None:
            lane.member.keys.discard(lane.key)
            lane.member = None
        if lane.waiting:
            self._runnable[lane.key] = None
        elif lane.more_from is not None:
            self._want_refill(lane)
        elif not lane.flight:
            del self._lanes[lane.key]
            self._runnable.pop(lane.key, None)
            if lane.window > self._window:
                self._windows[lane.key] = lane.window
                if len(self._windows) > WINDOWS_MAX:
                    self._windows.popitem(last=False)

    def _size_windows(self) -> None:
        if not self.whole and self._members:
            self._window = max(1, min(member.records for member in self._members.values()) // 128)
