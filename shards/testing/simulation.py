"""Run a program so that a seed decides everything: the scheduler, the clock, and whatever takes the seed.

Trio's own hooks do it: a mock clock that jumps when all tasks sleep, and the deterministic scheduling that exists
for Hypothesis.  Both names are private to Trio, so they are checked before each run; Trio is pinned.
"""

from __future__ import annotations

import gc
import hashlib
import random
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import trio
import trio.testing
from trio._core import _run

T = TypeVar("T")

DEADLOCK_S = 3_600.0
"""Of virtual time, by default; a simulation that lasts longer hangs."""


class Trace:
    """Everything that happened, as one hash; the last events are kept to be read."""

    def __init__(self, *, keep: int = 2_000) -> None:
        self._hash = hashlib.sha256()
        self._keep = keep
        self.events: list[tuple[Any, ...]] = []
        self.n = 0

    def __call__(self, *event: Any) -> None:
        stamped = (round(trio.current_time(), 9), *event)
        self._hash.update(repr(stamped).encode())
        self.n += 1
        self.events.append(stamped)
        if len(self.events) > 2 * self._keep:
            del self.events[: self._keep]

    @property
    def digest(self) -> str:
        return self._hash.hexdigest()

    def tail(self, n: int = 40) -> str:
        """The last events, a line each."""
        return "\n".join(repr(event) for event in self.events[-n:])


def check_trio() -> None:
    """Raise RuntimeError unless this Trio can be scheduled from a seed."""
    if not isinstance(getattr(_run, "_ALLOW_DETERMINISTIC_SCHEDULING", None), bool) or not isinstance(
        getattr(_run, "_r", None), random.Random
    ):
        raise RuntimeError(
            f"Trio {trio.__version__} has no deterministic scheduling: pin the version that has"
        )


def run_simulation(
    seed: int | str,
    async_fn: Callable[..., Awaitable[T]],
    *args: Any,
    deadline_s: float = DEADLOCK_S,
    instruments: list[trio.abc.Instrument] | None = None,
) -> T:
    """`trio.run(async_fn, *args)` in virtual time, scheduled by the seed.

    Args:
        seed: Decides in which order tasks that could run do run.
        async_fn: Should take all else that is random from the same seed (`World`).
        deadline_s: Of virtual time.

    Raises:
        trio.TooSlowError: It was not done by the deadline: it hangs, or is busy for ever.
        RuntimeError: This Trio cannot be scheduled from a seed.
    """
    check_trio()

    async def main() -> T:
        with trio.fail_after(deadline_s):
            return await async_fn(*args)

    was_allowed = _run._ALLOW_DETERMINISTIC_SCHEDULING
    state = _run._r.getstate()
    collecting = gc.isenabled()
    vars(_run)["_ALLOW_DETERMINISTIC_SCHEDULING"] = True  # "final" to everybody but its test harnesses
    _run._r.seed(seed)
    gc.disable()  # finalisers of async generators run when it pleases the collector
    try:
        return trio.run(
            main,
            clock=trio.testing.MockClock(autojump_threshold=0),
            instruments=instruments or [],
        )
    finally:
        vars(_run)["_ALLOW_DETERMINISTIC_SCHEDULING"] = was_allowed
        _run._r.setstate(state)
        if collecting:
            gc.enable()
