"""The bounds of a broker, all in one place.  Pure.

Whatever a peer does, its cost is bounded by these.  A client that keeps to its credit and its publish window
never meets one.
"""

from __future__ import annotations

import attrs


@attrs.frozen(kw_only=True)
class Limits:
    """Bounds; the defaults serve a shard of some hundred links in 100 MiB."""

    links: int = 1024
    half_open: int = 64
    """Links whose handshake is not done; one more is told BUSY."""
    handshake_s: float = 5.0
    link_queue_octets: int = 8 << 20
    """What waits for a peer that does not read; beyond it the link ends with SLOW."""
    subscriptions: int = 64
    """Per link; responders count too."""
    requests: int = 256
    """Per link, unanswered."""
    publish_frames: int = 256
    publish_octets: int = 8 << 20
    """Unacknowledged, per link."""
    publish_octets_total: int = 48 << 20
    """The log refuses more at 64 MiB, and then order could not be kept."""
    topics: int = 10_000
    groups: int = 512
    """Per tenant."""
    credit_records: int = 16_384
    credit_octets: int = 4 << 20
    """Per subscription, whatever it asks for."""
    passing: int = 256
    """Ephemeral records that wait for one subscription, one a key; the oldest is shed."""
    attempts: int = 32
    """How often a record may fell its member before it becomes a dead letter."""
    visibility_s: float = 600.0
    """A run without progress for so long goes to another member."""
    answers: int = 10_000
    answers_octets: int = 32 << 20
    answers_s: float = 600.0
    calls_octets: int = 64 << 20
    """Bodies of unanswered requests, of all links."""
    calls_waiting: int = 256
    """Requests that wait for a free responder, per topic."""
    invite_s: float = 600.0
    group_save_s: float = 0.25
    """Positions are stored so late at most; what is lost by a crash is delivered again."""
