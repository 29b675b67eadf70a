"""A token bucket that learns what the platform really allows.  Pure: the time is an argument.

`take` says how long to wait before so many units may be sent; it never refuses and never sleeps.  Takes are booked
in the order in which they come, so a caller that waits as it was told is in line.  What a platform refuses lowers
the rate (`learn`), and quiet time lets it climb back: additive increase, multiplicative decrease, as TCP does.
"""

from __future__ import annotations

import attrs

# Ours.
BACK_OFF = 0.5
"""What a refusal leaves of the rate."""
RECOVERY_S = 60.0
"""So long without a refusal brings a tenth of the configured rate back."""
RATE_SHARE_MIN = 0.01
"""Never below this share of the configured rate: a bucket that stood still could not learn any more."""


@attrs.frozen(kw_only=True)
class Statistics:
    """What the bucket is doing, for `throttle` envelopes and `status`."""

    rate: float
    """Units a second now."""
    rate_configured: float
    burst: float
    tokens: float
    """Below zero: that many are booked ahead."""
    refusals: int
    paused_s: float
    """How long it still stands still."""


class TokenBucket:
    """`burst` units at once, `rate` a second after that."""

    def __init__(self, rate: float, burst: float) -> None:
        if rate <= 0 or burst < 1:
            raise ValueError("a bucket has a rate above 0 and a burst of at least 1")
        self._configured = rate
        self._rate = rate
        self._burst = burst
        self._tokens = burst
        self._at: float | None = None
        self._paused_until = float("-inf")
        self._raised_at = float("-inf")
        self._refusals = 0

    def take(self, now: float, n: float = 1) -> float:
        """Book `n` units and return the seconds to wait before they are sent; 0 is at once.

        Args:
            now: Monotonic seconds.  A clock that goes back is taken as standing still.
            n: More than a whole burst is allowed and waits its time.
        """
        self._refill(now)
        self._tokens -= n
        return max(0.0, -self._tokens / self._rate) + self._standing(now)

    def give_back(self, now: float, n: float = 1) -> None:
        """What was booked is not sent after all."""
        self._refill(now)
        self._tokens = min(self._burst, self._tokens + n)

    def learn(self, now: float, *, refused: bool, retry_after: float | None = None) -> float:
        """The platform's verdict on what was sent; returns how long to keep still.

        Args:
            refused: It asked for patience.
            retry_after: For so many seconds, where it says so; else one unit's time at the new rate.
        """
        self._refill(now)
        if not refused:
            return 0.0
        self._refusals += 1
        if now >= self._paused_until:  # one flood, one lesson: what was already on its way is refused with it
            self._rate = max(self._rate * BACK_OFF, self._configured * RATE_SHARE_MIN)
        pause = 1 / self._rate if retry_after is None else max(0.0, retry_after)
        self._paused_until = max(self._paused_until, now + pause)
        self._raised_at = self._paused_until
        self._tokens = min(self._tokens, 1.0)  # the platform's bucket was empty, whatever ours said
        self._at = self._paused_until  # nothing fills it up while it stands still
        return self._paused_until - now

    def wait_s(self, now: float) -> float:
        """How long a unit would wait now; books nothing."""
        self._refill(now)
        return max(
            0.0, (1 - self._tokens) / self._rate if self._tokens < 1 else 0.0, self._paused_until - now
        )

    def statistics(self, now: float) -> Statistics:
        """What the bucket is doing."""
        self._refill(now)
        return Statistics(
            rate=self._rate,
            rate_configured=self._configured,
            burst=self._burst,
            tokens=self._tokens,
            refusals=self._refusals,
            paused_s=self._standing(now),
        )

    def _standing(self, now: float) -> float:
        return max(0.0, self._paused_until - now)

    def _refill(self, now: float) -> None:
        if self._at is None:
            self._at = now
        if now <= self._at:
            return
        if self._rate < self._configured:
            steps = int((now - self._raised_at) / RECOVERY_S)
            if steps > 0:
                self._rate = min(self._configured, self._rate + steps * self._configured / 10)
                self._raised_at += steps * RECOVERY_S
        self._tokens = min(self._burst, self._tokens + (now - self._at) * self._rate)
        self._at = now
