"""The bucket never lets more through than its rate, keeps the line, and learns from refusals."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridged.ratelimit import TokenBucket


def test_a_burst_goes_at_once_and_the_rest_at_the_rate() -> None:
    bucket = TokenBucket(rate=2, burst=3)
    assert [bucket.take(100) for _ in range(6)] == [0, 0, 0, 0.5, 1.0, 1.5]


def test_quiet_time_fills_up_to_the_burst_only() -> None:
    bucket = TokenBucket(rate=2, burst=3)
    for _ in range(3):
        bucket.take(0)
    assert [bucket.take(1000) for _ in range(4)] == [0, 0, 0, 0.5]


def test_more_than_a_burst_waits_its_time() -> None:
    bucket = TokenBucket(rate=10, burst=5)
    assert bucket.take(0, 25) == 2.0


def test_a_clock_that_goes_back_gives_nothing_away() -> None:
    bucket = TokenBucket(rate=1, burst=1)
    assert bucket.take(100) == 0
    assert bucket.take(50) == 1
    assert bucket.take(100) == 2


def test_what_is_given_back_is_there_again() -> None:
    bucket = TokenBucket(rate=1, burst=2)
    bucket.take(0, 2)
    bucket.give_back(0)
    assert bucket.wait_s(0) == 0
    assert bucket.take(0) == 0
    assert bucket.wait_s(0) == 1


def test_a_refusal_halves_the_rate_and_stands_still_as_long_as_was_asked() -> None:
    bucket = TokenBucket(rate=4, burst=10)
    bucket.take(0)
    assert bucket.learn(0, refused=True, retry_after=42) == 42
    assert bucket.take(2) == 40
    assert bucket.take(2) == 40.5  # in line, at the new rate
    state = bucket.statistics(2)
    assert (state.rate, state.rate_configured, state.refusals, state.paused_s) == (2, 4, 1, 40)
    assert bucket.wait_s(43) == pytest.approx(0)


def test_refusals_of_one_flood_are_one_lesson() -> None:
    bucket = TokenBucket(rate=8, burst=10)
    for _ in range(5):
        bucket.learn(0, refused=True, retry_after=10)
    assert bucket.statistics(0).rate == 4
    bucket.learn(11, refused=True)
    assert bucket.statistics(11).rate == 2
    assert bucket.learn(11, refused=False) == 0


def test_without_a_time_it_keeps_still_for_one_unit() -> None:
    bucket = TokenBucket(rate=1, burst=1)
    assert bucket.learn(0, refused=True) == 2


def test_the_rate_comes_back_in_quiet_and_never_above_what_was_configured() -> None:
    bucket = TokenBucket(rate=10, burst=1)
    bucket.learn(0, refused=True, retry_after=0)
    assert bucket.statistics(59).rate == 5
    assert bucket.statistics(61).rate == 6
    assert bucket.statistics(121).rate == 7
    assert bucket.statistics(10_000).rate == 10


def test_it_never_stops_for_good() -> None:
    bucket = TokenBucket(rate=1, burst=1)
    for second in range(100):
        bucket.learn(second * 1000.0, refused=True, retry_after=0)
        assert bucket.statistics(second * 1000.0).rate >= 0.01


@pytest.mark.parametrize(("rate", "burst"), [(0, 1), (-1, 1), (1, 0)])
def test_a_bucket_without_rate_or_burst_is_refused(rate: float, burst: float) -> None:
    with pytest.raises(ValueError, match="bucket"):
        TokenBucket(rate=rate, burst=burst)


@given(
    st.floats(0.1, 50),
    st.integers(1, 20),
    st.lists(st.tuples(st.floats(0, 10), st.sampled_from(["take", "refuse", "fine"])), max_size=60),
)
def test_no_window_ever_holds_more_than_burst_and_rate(
    rate: float, burst: int, steps: list[tuple[float, str]]
) -> None:
    bucket = TokenBucket(rate=rate, burst=burst)
    now, sent, still_until = 0.0, [], 0.0
    for pause, what in steps:
        now += pause
        if what == "take":
            at = now + bucket.take(now)
            assert at >= still_until - 1e-6
            sent.append(at)
        else:
            still_until = now + max(
                still_until - now, bucket.learn(now, refused=what == "refuse", retry_after=1.5)
            )
    for i, first in enumerate(sent):
        for j in range(i, len(sent)):
            assert j - i + 1 <= burst + 1 + rate * (sent[j] - first) + 1e-6
