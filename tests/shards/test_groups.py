"""The consumer group: order, runs, stuck keys, redelivery, dead letters, seeks.  No clock, no I/O."""

from __future__ import annotations

import random
from collections import defaultdict

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shards.errors import LogCorrupt, ShardsError
from shards.groups import LANE_WAITING_MAX, PATIENCE_S, WAIT, Group, Progress


class Journal:
    """A journal in memory and the loop that a broker runs over it."""

    def __init__(self, group: Group) -> None:
        self.group = group
        self.records: list[tuple[int, str]] = []
        self.now = 0.0
        self.given: list[tuple[int, int, int]] = []
        """(member, position, attempt), in the order of delivery."""

    def publish(self, *keys: int, topic: str = "t") -> None:
        self.records.extend((key, topic) for key in keys)

    def pump(self) -> list[tuple[int, int, int]]:
        """Deliver all that can go; returns what went."""
        before = len(self.given)
        while True:
            moved = False
            while (delivery := self.group.next_ready(self.now)) is not None:
                moved = True
                key, topic = self.records[delivery.position]
                if not self.group.is_wanted(delivery.position, key, topic):
                    self.group.finish(delivery.position, key, self.now)
                    continue
                self.group.charge(delivery.position, 10)
                self.given.append((delivery.member, delivery.position, delivery.attempt))
            for refill in self.group.refills():
                moved = True
                found = [p for p in range(refill.start, refill.stop) if self.records[p][0] == refill.key]
                self.group.refill(refill, found[: refill.limit])
            while self.group.scan < len(self.records) and self.group.can_scan():
                moved = True
                position = self.group.scan
                key, topic = self.records[position]
                member = self.group.offer(position, key, topic, 10, self.now)
                if member == WAIT:
                    self.now += PATIENCE_S
                    break
                if member is not None:
                    self.given.append((member, position, 1))
            self.group.advance(self.group.scan)
            if not moved:
                return self.given[before:]

    def positions(self) -> list[int]:
        return [position for _, position, _ in self.given]


def group_of(*members: int, records: int = 100, octets: int = 1 << 20, **options: object) -> Journal:
    group = Group(Progress(0), **options)  # type: ignore[arg-type]
    for member in members:
        group.join(member, records=records, octets=octets)
    return Journal(group)


def test_a_run_of_a_key_has_one_member_and_grows_as_it_is_acknowledged() -> None:
    journal = group_of(1, 2)
    journal.publish(*[7] * 10)
    assert [position for _, position, _ in journal.pump()] == [0]
    journal.group.done(journal.given[0][0], [(0, 1)], 0.0)
    second = journal.pump()
    assert [position for _, position, _ in second] == [1, 2] and len({member for member, _, _ in second}) == 1
    journal.group.done(second[0][0], [(2, 1)], 0.0)  # cumulative: 1 with it
    assert [position for _, position, _ in journal.pump()] == [3, 4, 5, 6]
    assert journal.group.position == 3


def test_different_keys_go_to_different_members_at_once() -> None:
    journal = group_of(1, 2)
    journal.publish(1, 2, 3, 4)
    assert sorted(member for member, _, _ in journal.pump()) == [1, 1, 2, 2]


def test_a_hundred_stuck_keys_stop_nothing_else_and_memory_is_bounded() -> None:
    journal = group_of(1, records=256)
    choice = random.Random(3)
    journal.publish(*[choice.randrange(1000) for _ in range(60_000)])
    finished = 0
    while given := journal.pump():
        spans = [(position, 1) for _, position, _ in given if journal.records[position][0] >= 100]
        journal.group.done(1, spans, 0.0)
        finished += len(spans)
    assert finished == sum(1 for key, _ in journal.records if key >= 100)
    assert journal.group.scan == 60_000 and journal.group.in_flight == 200
    assert len(journal.group.progress().open) == 100
    assert journal.group._waiting <= 100 * LANE_WAITING_MAX
    stuck = {key: 0 for key in range(100)}
    while held := [
        (p, 1) for p in list(journal.group._flights)
    ]:  # they come loose: all is found again, in order
        for position, _ in held:
            stuck[journal.records[position][0]] += 1
        journal.group.done(1, held, 0.0)
        journal.pump()
    assert sum(stuck.values()) + finished == 60_000 and journal.group.position == 60_000
    by_key = defaultdict(list)
    for position in journal.positions():
        by_key[journal.records[position][0]].append(position)
    assert all(positions == sorted(set(positions)) for positions in by_key.values())


def test_what_a_fallen_member_held_comes_again_before_what_is_new() -> None:
    journal = group_of(1)
    journal.publish(5, 6, 5, 5)
    journal.pump()
    journal.group.leave(1, fell=True, now=0.0)
    assert journal.pump() == []
    journal.group.join(2, records=10, octets=1000)
    assert journal.pump() == [(2, 0, 2), (2, 1, 2)]
    journal.group.done(1, [(0, 2)], 0.0)  # the fallen one's late word is fenced
    assert journal.group.late == 2 and journal.group.position == 0
    journal.group.done(2, [(0, 2)], 0.0)
    assert journal.pump() == [(2, 2, 1), (2, 3, 1)]


def test_released_records_rest_and_take_the_later_ones_of_their_run_with_them() -> None:
    journal = group_of(1)
    journal.publish(5, 5, 5)
    journal.pump()
    journal.group.done(1, [(0, 1)], 0.0)
    journal.pump()
    journal.group.release(1, [(1, 1)], ready_at=2.0, now=0.0)
    journal.publish(5, 8)
    assert journal.pump() == [(1, 4, 1)]
    assert journal.group.next_ready_at() == 2.0
    journal.now = 2.0
    assert journal.pump() == [(1, 1, 2)]
    journal.group.done(1, [(1, 1)], 2.0)
    assert journal.pump() == [(1, 2, 2), (1, 3, 1)]


def test_a_record_that_fells_its_member_again_and_again_becomes_a_dead_letter() -> None:
    journal = group_of(attempts_max=3)
    journal.publish(5, 5, 6)
    for member in (1, 2, 3):
        journal.group.join(member, records=10, octets=1000)
        journal.pump()
        journal.group.done(member, [(2, 1)], 0.0)
        journal.group.leave(member, fell=True, now=0.0)
    assert list(journal.group.exhausted) == [(0, 5)]
    journal.group.join(4, records=10, octets=1000)
    assert journal.pump() == []  # the key waits until the dead letter is written
    journal.group.finish(0, 5, 0.0)
    assert journal.pump() == [(4, 1, 1)]
    assert journal.group.position == 1


def test_a_member_that_leaves_in_order_gives_no_record_a_bad_name() -> None:
    journal = group_of(attempts_max=2)
    journal.publish(5)
    for member in range(1, 9):
        journal.group.join(member, records=10, octets=1000)
        assert len(journal.pump()) == 1
        journal.group.leave(member, fell=False, now=0.0)
    assert not journal.group.exhausted and journal.group.attempt(0) == 9


def test_a_run_without_progress_goes_to_somebody_else() -> None:
    journal = group_of(1, visibility_s=10.0)
    journal.publish(5)
    journal.pump()
    journal.group.expire(9.0)
    assert journal.group.holds(1, 0)
    journal.group.join(2, records=100, octets=1000)
    journal.group.expire(10.0)
    assert journal.pump() == [(2, 0, 2)]


def test_credit_is_counted_in_records_and_in_bytes() -> None:
    journal = group_of(1, records=3)
    journal.publish(1, 2, 3, 4)
    assert len(journal.pump()) == 3 and not journal.group.can_scan()
    journal = group_of(1, octets=15)
    journal.publish(1, 2, 3, 4)
    assert len(journal.pump()) == 2
    journal.group.done(1, [(0, 1)], 0.0)
    assert len(journal.pump()) == 1


def test_the_whole_journal_is_one_run() -> None:
    journal = group_of(1, 2, whole=True, records=4)
    journal.publish(1, 2, 3, 4, 5, 6, 7)
    first = journal.pump()
    assert [position for _, position, _ in first] == [0, 1, 2, 3]
    owner = first[0][0]
    journal.group.done(owner, [(1, 1)], 0.0)
    assert [position for _, position, _ in journal.pump()] == [4, 5]
    journal.group.leave(owner, fell=True, now=0.0)
    assert [position for _, position, _ in journal.pump()] == [2, 3, 4, 5]
    assert journal.group.progress() == Progress(2)


def test_a_seek_gives_the_chosen_records_again_and_only_them() -> None:
    journal = group_of(1)
    journal.publish(1, 2, 3, topic="a")
    journal.publish(1, 2, 3, topic="b")
    finish_all(journal)
    journal.given.clear()
    journal.group.seek(("b",), 0, 5)
    finish_all(journal)
    assert journal.positions() == [3, 4]
    assert journal.group.progress() == Progress(6)
    journal.group.seek(None, 2, 2**64 - 1)
    journal.given.clear()
    finish_all(journal)
    assert journal.positions() == [2, 3, 4, 5]


def test_a_seek_forgets_nothing_that_was_unfinished() -> None:
    journal = group_of(1)
    journal.publish(1, 2, 1, 2, 3, topic="a")
    journal.pump()
    journal.group.done(1, [(1, 1), (4, 1)], 0.0)
    journal.pump()
    journal.group.done(1, [(3, 1)], 0.0)  # key 1 is stuck at 0
    journal.group.seek(("a",), 4, 5)
    state = journal.group.progress().encode()
    again = Journal(Group(Progress.decode(state)))
    again.records = journal.records
    again.group.join(1, records=9, octets=1000)
    finish_all(again)
    assert sorted(again.positions()) == [0, 2, 4]
    assert again.group.progress() == Progress(5)


def test_too_many_seeks_at_once_are_refused() -> None:
    journal = group_of(1)
    journal.publish(*range(100))
    finish_all(journal)
    with pytest.raises(ShardsError):
        for start in range(20, 30):
            journal.group.seek(("t",), start, 90)


def test_the_consumers_own_position_is_taken_at_its_word() -> None:
    journal = group_of(1)
    journal.publish(1, 2, 3)
    journal.pump()
    journal.group.set_position(2)
    journal.given.clear()
    assert journal.pump() == [(1, 2, 1)]


def test_a_damaged_state_is_named() -> None:
    with pytest.raises(LogCorrupt):
        Progress.decode(b"\xc1")


def finish_all(journal: Journal) -> None:
    while given := journal.pump():
        for member, position, _ in given:
            journal.group.done(member, [(position, 1)], journal.now)


@settings(max_examples=120, deadline=None)
@given(st.integers(0, 2**32), st.booleans())
def test_whatever_members_do_order_holds_and_nothing_is_lost(seed: int, restarts: bool) -> None:
    choice = random.Random(seed)
    journal = group_of(waiting_max=choice.choice((2, 20, 8192)), run_max=choice.choice((1, 4, 64)))
    members: set[int] = set()
    next_member = 1
    holder: dict[int, int] = {}
    finished: set[int] = set()
    last_done: dict[int, int] = {}

    def check(given: list[tuple[int, int, int]]) -> None:
        for member, position, _ in given:
            key = journal.records[position][0]
            others = {m for p, m in holder.items() if journal.records[p][0] == key}
            assert others <= {member}, "a second member got the key"
            holder[position] = member

    for _ in range(150):
        act = choice.random()
        if act < 0.3:
            journal.publish(*[choice.randrange(6) for _ in range(choice.randrange(12))])
        elif act < 0.4 and len(members) < 3:
            journal.group.join(
                next_member, records=choice.choice((1, 3, 50)), octets=choice.choice((25, 10_000))
            )
            members.add(next_member)
            next_member += 1
        elif act < 0.47 and members:
            gone = choice.choice(sorted(members))
            members.discard(gone)
            journal.group.leave(gone, fell=choice.random() < 0.5, now=journal.now)
            holder = {p: m for p, m in holder.items() if m != gone}
        elif act < 0.52 and holder:
            position = choice.choice(sorted(holder))
            key = journal.records[position][0]
            journal.group.release(
                holder[position], [(position, 1)], ready_at=journal.now + choice.random(), now=journal.now
            )
            holder = {p: m for p, m in holder.items() if journal.records[p][0] != key or p < position}
        elif act < 0.55 and restarts:
            state = journal.group.progress().encode()
            journal.group = Group(Progress.decode(state))
            members.clear()
            holder.clear()
        elif holder:
            position = choice.choice(sorted(holder))
            key = journal.records[position][0]
            journal.group.done(holder[position], [(position, 1)], journal.now)
            for p in [p for p in holder if journal.records[p][0] == key and p <= position]:
                del holder[p]
                finished.add(p)
                assert p > last_done.get(key, -1)
                last_done[key] = max(last_done.get(key, -1), p) if p == position else last_done.get(key, -1)
        journal.now += choice.random() / 4
        check(journal.pump())
        assert journal.group.in_flight == len(holder)
    journal.now += 10
    journal.group.join(10**6, records=10, octets=10**6)
    for _ in range(10_000):
        check(journal.pump())
        if not holder:
            break
        for position, member in sorted(holder.items()):
            journal.group.done(member, [(position, 1)], journal.now)
            finished.add(position)
        holder.clear()
    assert finished == set(range(len(journal.records)))
    assert journal.group.progress() == Progress(len(journal.records))
