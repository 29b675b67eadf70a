"""What a broker tells about itself.  Pure."""

from __future__ import annotations

import attrs

from shards.broker.requests import RequestStatistics


@attrs.frozen(kw_only=True)
class GroupStatistics:
    """Where a consumer group stands."""

    name: str
    topics: tuple[str, ...] | None
    position: int
    """All below is finished."""
    head: int
    lag: int
    """Records that are not finished.  What lies beyond the scan counts whatever its topic, so this is an
    upper bound that is exact when the group has caught up."""
    in_flight: int
    dead: int
    """Dead letters since the start."""
    members: int
    late: int
    """Acknowledgements of records that the member no longer held."""


@attrs.frozen(kw_only=True)
class BrokerStatistics:
    """Counters since the start, and sizes now."""

    links: int
    half_open: int
    refused: int
    """Links that the handshake refused: unknown, suspended or revoked keys, used invites."""
    hostile: int
    """Links that ended because the peer broke the protocol."""
    slow: int
    """Links that ended because the peer did not read."""
    faults: int
    """Links that ended by a fault of our own; see `Broker.faults`."""
    published: int
    duplicates: int
    overloaded: int
    ephemeral: int
    shed: int
    pending_octets: int
    """Published and not yet on disk."""
    requests: RequestStatistics
