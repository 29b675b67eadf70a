"""The states of a delivery, and the closed set of reasons why one (or anything else) did not happen.  Pure."""

from __future__ import annotations

import enum
from collections.abc import Mapping

# Specification constants (wire contract 4.5).
ERROR_CODES = frozenset(
    {
        "bad_envelope",
        "schema_unsupported",
        "missing_field",
        "invalid_field",
        "unknown_action",
        "tenant_mismatch",
        "capability_denied",
        "policy_denied",
        "not_linked",
        "session_expired",
        "reauth_required",
        "banned",
        "rate_limited",
        "network_down",
        "remote_rejected",
        "forbidden",
        "not_found",
        "too_large",
        "unsupported_content",
        "duplicate",
        "timeout",
        "internal",
    }
)
"""Why something was refused or failed.  A closed set: other words are never sent."""


class DeliveryState(enum.Enum):
    """Where one intent stands in one channel.  `read` is a receipt and no state."""

    ACCEPTED = "accepted"
    HELD = "held"
    QUEUED = "queued"
    SENT = "sent"
    """Written to the platform, or about to be: said before the first byte."""
    DELIVERED = "delivered"
    """The platform's server confirmed."""
    UNKNOWN = "unknown"
    """Written, and nobody can tell afterwards what became of it."""
    DENIED = "denied"
    FAILED = "failed"
    EXPIRED = "expired"
    DEAD_LETTERED = "dead_lettered"

    @property
    def is_final(self) -> bool:
        """Nothing comes after it; every intent reaches exactly one such state in each channel."""
        return not TRANSITIONS[self]

    def may_become(self, other: DeliveryState) -> bool:
        """Is the step legal?  Staying is no step."""
        return other in TRANSITIONS[self]


TRANSITIONS: Mapping[DeliveryState, frozenset[DeliveryState]] = {
    DeliveryState.ACCEPTED: frozenset(
        {DeliveryState.HELD, DeliveryState.QUEUED, DeliveryState.DENIED, DeliveryState.EXPIRED}
    ),
    DeliveryState.HELD: frozenset({DeliveryState.QUEUED, DeliveryState.DENIED, DeliveryState.EXPIRED}),
    # Not `unknown`: what was never written is known not to have arrived.
    DeliveryState.QUEUED: frozenset(
        {
            DeliveryState.SENT,
            DeliveryState.DELIVERED,
            DeliveryState.FAILED,
            DeliveryState.EXPIRED,
            DeliveryState.DEAD_LETTERED,
        }
    ),
    DeliveryState.SENT: frozenset(
        {
            DeliveryState.DELIVERED,
            DeliveryState.UNKNOWN,
            DeliveryState.FAILED,
            DeliveryState.EXPIRED,
            DeliveryState.DEAD_LETTERED,
        }
    ),
    DeliveryState.DELIVERED: frozenset(),
    DeliveryState.UNKNOWN: frozenset(),
    DeliveryState.DENIED: frozenset(),
    DeliveryState.FAILED: frozenset(),
    DeliveryState.EXPIRED: frozenset(),
    DeliveryState.DEAD_LETTERED: frozenset(),
}
"""accepted -> [held] -> queued -> sent -> exactly one final state; the documentation draws it from here."""
