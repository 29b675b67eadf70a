from itertools import pairwise

from shards import restart


def delays(policy: restart.Policy, n: int) -> list[float]:
    crashes: list[float] = [0.0]
    for _ in range(n):
        start = policy.next_start(crashes, 0.0)
        assert start is not None
        crashes.append(start)
    return [round(b - a, 3) for a, b in pairwise(crashes)]


def test_a_lost_connection_backs_off_to_four_seconds_and_later_to_thirty() -> None:
    steps = delays(restart.LOST_CONNECTION, 90)
    assert steps[:6] == [0.5, 1, 2, 4, 4, 4]
    assert steps[-1] == 30
    assert sum(steps[: steps.index(30)]) >= 300


def test_a_lost_connection_never_ends_in_stopped() -> None:
    assert restart.LOST_CONNECTION.next_start([float(i) for i in range(10_000)], 0.5) is not None


def test_jitter_takes_at_most_a_tenth_off() -> None:
    assert restart.LOST_CONNECTION.next_start([10.0], 1.0) == 10.45


def test_bugs_are_given_up_and_hopeless_faults_at_once() -> None:
    assert restart.UNEXPECTED.next_start([0.0] * 4, 0) is not None
    assert restart.UNEXPECTED.next_start([0.0] * 5, 0) is None
    assert restart.HOPELESS.next_start([0.0], 0) is None
