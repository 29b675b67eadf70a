"""Times as envelopes write them: UTC, whole milliseconds, always three digits and a `Z`.  Pure."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

import msgspec

from bridged.errors import EnvelopeError

# Ours.
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
"""The `occurred_at` of an envelope that had none and whose time of arrival nobody told."""

_TIME = re.compile(
    r"([0-9]{4}-[0-9]{2}-[0-9]{2})[Tt]([0-9]{2}:[0-9]{2}:[0-9]{2})(?:\.([0-9]{1,9}))?([Zz]|[+-][0-9]{2}:[0-9]{2})"
)
_NAIVE = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}[Tt ][0-9:.]+")
_write = msgspec.json.Encoder().encode


def parse_time(text: str, field: str = "occurred_at") -> datetime:
    """RFC 3339 with an offset, to nine fraction digits -> UTC, cut (not rounded) to whole milliseconds.

    Raises:
        EnvelopeError: `invalid_field`; a time without an offset is nobody's time and is refused.
    """
    if len(text) == 24 and text[4:8:3] == "--" and text[10:20:9] == "T." and text[23] == "Z":  # our own form
        try:
            return datetime.fromisoformat(text)
        except ValueError as exc:
            raise EnvelopeError("invalid_field", f"{field} is no time: {text}", field=field) from exc
    match = _TIME.fullmatch(text)
    if match is None:
        what = "has no UTC offset" if _NAIVE.fullmatch(text) else "is no RFC 3339 time"
        raise EnvelopeError("invalid_field", f"{field} {what}: {text!a:.60}", field=field)
    day, clock, fraction, offset = match.groups()
    milliseconds = f"{fraction or '':0<3.3}"
    try:
        moment = datetime.fromisoformat(f"{day}T{clock}.{milliseconds}{offset.upper()}")
        return moment if offset in "Zz" else moment.astimezone(UTC)
    except (ValueError, OverflowError) as exc:
        raise EnvelopeError("invalid_field", f"{field} is no time: {text!a:.60}", field=field) from exc


def format_time(moment: datetime) -> str:
    """`YYYY-MM-DDTHH:MM:SS.mmmZ`, cut to whole milliseconds."""
    if moment.tzinfo is not UTC:
        moment = moment.astimezone(UTC)
    text = _write(moment).decode()  # `"2026-11-24T08:00:01.007000Z"`; twenty times faster than isoformat
    return text[1:24] + "Z" if text[20] == "." else text[1:20] + ".000Z"


def from_ms(milliseconds: int) -> datetime:
    """Milliseconds since 1970 -> UTC."""
    return EPOCH + timedelta(milliseconds=milliseconds)


def to_ms(moment: datetime) -> int:
    """Milliseconds since 1970, cut."""
    return (moment - EPOCH) // timedelta(milliseconds=1)
