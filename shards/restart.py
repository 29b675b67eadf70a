"""When a fallen member starts again.  Pure: crashes and a jitter in, an absolute time or None out."""

from __future__ import annotations

from collections.abc import Sequence

import attrs

FOR_EVER = 1 << 62


@attrs.frozen(kw_only=True)
class Policy:
    """The delays of one kind of fault (house.md, walk 3).

    The delay doubles from `first_s` to `fast_s`; after `patience_s` of falling without a stable run it is `slow_s`.
    A run counts as stable after `stable_s`: the caller forgets the crashes before it.
    """

    first_s: float = 0.5
    fast_s: float = 4.0
    patience_s: float = 300.0
    slow_s: float = 30.0
    stable_s: float = 60.0
    attempts: int = FOR_EVER
    """Crashes in a row after which the member is given up."""

    def next_start(self, crashes_at: Sequence[float], jitter: float) -> float | None:
        """When to start again, on the clock of `crashes_at`, or None: given up.

        Args:
            crashes_at: Monotonic times of the crashes in a row, oldest first, at least one.
            jitter: 0 to 1; takes up to a tenth off the delay, so that members do not march in step.
        """
        n = len(crashes_at)
        if n >= self.attempts:
            return None
        last = crashes_at[-1]
        if last - crashes_at[0] >= self.patience_s:
            delay = self.slow_s
        else:
            delay = min(self.first_s * 2.0 ** min(n - 1, 30), self.fast_s)
        return last + delay * (1 - 0.1 * jitter)


LOST_CONNECTION = Policy()
"""A lost connection never ends in `stopped`: 0.5, 1, 2, 4, 4 … s for five minutes, then every 30 s."""

UNEXPECTED = Policy(first_s=0.5, fast_s=30.0, attempts=5)
"""A bug of a member: fenced, and after five in a row the member waits for an operator."""

HOPELESS = Policy(attempts=1)
"""Bad credentials, a ban: nothing that time mends."""
