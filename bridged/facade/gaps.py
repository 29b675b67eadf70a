"""What is told of a gap: that something was said which nobody here has heard.  Pure."""

from __future__ import annotations

from datetime import datetime

from bridged.envelope import format_time
from bridged.facade.directory import Channel

_WHY = {
    "daemon_down": "the bridge was not running",
    "connection_lost": "the connection was lost",
}


def gap_text(channel: Channel, begin: datetime, end: datetime, reason: str) -> str:
    """One line for the other rooms, with both times and no word of what was said."""
    where = " on ".join(reversed(channel.pointer))
    why = _WHY.get(reason, "the bridge could not listen")
    return (
        f"Gap: between {_shown(begin)} and {_shown(end)} UTC {why};"
        f" what was said in {where} ({channel.service}) meanwhile did not arrive here."
    )


def _shown(moment: datetime) -> str:
    text = format_time(moment)
    return f"{text[:10]} {text[11:19]}"
