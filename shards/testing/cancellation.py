"""Cancel a task at every place where it can be cancelled, one run a place.

Half-done work is what cancellation leaves behind where a durable action is not one step.  The places are counted
in a first run; then the scenario runs again for each of them.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import trio

from shards.testing.simulation import run_simulation


class _CancelAt(trio.abc.Instrument):
    """Cancels just before the victim's k-th step; only counts when k is None."""

    def __init__(self, k: int | None) -> None:
        self.k, self.steps = k, 0
        self.victim: trio.lowlevel.Task | None = None
        self.scope: trio.CancelScope | None = None

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        if task is self.victim:
            self.steps += 1
            if self.steps == self.k and self.scope is not None:
                self.scope.cancel()


Scenario = Callable[[Callable[[Callable[[], Awaitable[Any]]], Awaitable[None]]], Awaitable[None]]


def cancel_everywhere(
    scenario: Scenario, *, seed: int = 0, limit: int = 10_000, simulated: bool = True
) -> int:
    """Run `scenario` once a cancellation point of its victim; return how many points there are.

    The scenario sets its world up, awaits `attempt(fn)` once, and then checks that what it finds is whole;
    `fn` runs in a task of its own and is the one that is cancelled.  An assertion that fails comes out with
    the number of the point in its notes.

    `simulated=False` runs in real time, for a scenario with threads, which a clock that jumps would outrun; the
    number of points may then differ from run to run.

    ```python
    async def scenario(attempt):
        async with open_database(...) as database:
            await attempt(lambda: database.write(two_rows))
            assert await database.read(count) in (0, 2)

    assert cancel_everywhere(scenario) > 3
    ```
    """
    points = _run_once(scenario, None, seed, simulated)
    if points > limit:
        raise ValueError(f"{points} points are too many: make the scenario smaller")
    for k in range(1, points + 1):
        try:
            _run_once(scenario, k, seed, simulated)
        except BaseException as exc:
            exc.add_note(f"cancelled at point {k} of {points}")
            raise
    return points


def _run_once(scenario: Scenario, k: int | None, seed: int, simulated: bool) -> int:
    instrument = _CancelAt(k)
    attempts = 0

    async def attempt(fn: Callable[[], Awaitable[Any]]) -> None:
        nonlocal attempts
        attempts += 1

        async def victim() -> None:
            with trio.CancelScope() as instrument.scope:
                instrument.victim = trio.lowlevel.current_task()
                try:
                    await trio.lowlevel.checkpoint()  # the first point: before anything is done
                    await fn()
                finally:
                    instrument.victim = None

        async with trio.open_nursery() as nursery:  # noqa: ASYNC112 - the victim must be a task of its own
            nursery.start_soon(victim)

    if simulated:
        run_simulation(seed, scenario, attempt, instruments=[instrument])
    else:
        trio.run(scenario, attempt, instruments=[instrument])
    if attempts != 1:
        raise ValueError("a scenario awaits attempt() exactly once")
    return instrument.steps
