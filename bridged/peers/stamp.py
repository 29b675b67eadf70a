"""Times as protocols write them.  Pure."""

from __future__ import annotations

from datetime import UTC, datetime


def utc(at: float) -> str:
    """Seconds since 1970 as `2026-11-24T08:00:00.000Z`."""
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def utc_seconds(at: float) -> str:
    """Seconds since 1970 as `2026-11-24T08:00:00Z`."""
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def from_utc(text: str) -> float:
    """The inverse of both; a time without a zone is UTC.

    Raises:
        ValueError: The text is no time.
    """
    found = datetime.fromisoformat(text)
    try:
        return (found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp()
    except OverflowError:
        raise ValueError(f"no time of this calendar: {text}") from None


def ctime_inspircd(at: float) -> str:
    """`23:48:17 Nov 24 2026`, as InspIRCd writes it."""
    return datetime.fromtimestamp(at, UTC).strftime("%H:%M:%S %b %d %Y")


def ctime(at: float) -> str:
    """`Tue Nov 24 2026 at 23:49:18 (UTC)`, as ngIRCd writes it."""
    return datetime.fromtimestamp(at, UTC).strftime("%a %b %d %Y at %H:%M:%S (UTC)")


def whowas_time(at: float) -> str:
    """`Tue Nov 24 2026 23:49:29`."""
    return datetime.fromtimestamp(at, UTC).strftime("%a %b %d %Y %H:%M:%S")


def long_time(at: float) -> str:
    """`Tuesday November 24 2026 -- 23:50 UTC`."""
    return datetime.fromtimestamp(at, UTC).strftime("%A %B %d %Y -- %H:%M UTC")
