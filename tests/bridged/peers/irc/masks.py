"""What no two runs share, masked before two servers' lines are compared."""

from __future__ import annotations

import re
from typing import Any

from bridged.peers.irc.line import Line

UID = re.compile(r"\b00[ABC][A-Z]{6}\b")
STAMP = re.compile(r"\b1\d{9}\b")
CLOCK = re.compile(
    r"\d\d:\d\d:\d\d|\w+ \w+ \d\d 20\d\d -- \d\d:\d\d UTC|\w{3} \w{3} +\d+ 20\d\d(?: at)?|\w{3} \d+ 20\d\d"
)
COUNTS = frozenset(["250", "251", "252", "254", "255", "265", "266", "242", "317"])
SKIPPED = frozenset({"253"})
"""Unknown connections: a matter of timing."""
UNORDERED = frozenset({"353", "319", "730", "731"})


def mask(line: Line) -> tuple[Any, ...] | None:
    """One line without what no two runs share."""
    command = line.command
    if command in SKIPPED or command == "PING":
        return None
    if command == "NOTICE":
        if line.nick in ("NickServ", "SaslServ"):
            return None
        text = line.params[-1]
        if text.startswith("***") or "tatistics" in text:
            return None
    tags = []
    for key, value in sorted(line.tags.items()):
        if key == "inspircd.org/service":
            continue
        tags.append((key, "…" if key in ("time", "msgid", "batch") else value))
    params = [UID.sub("UID", CLOCK.sub("CLOCK", STAMP.sub("STAMP", p))) for p in line.params]
    if command in COUNTS:
        params = [re.sub(r"\d+", "N", p) for p in params]
    if command in UNORDERED:
        params[-1] = " ".join(sorted(re.split("[ ,]+", params[-1].strip())))
    if command == "324":
        params[2] = "".join(sorted(params[2]))
    if command == "CAP" and params[1] in ("NEW", "DEL"):
        params[0] = "…"
    if command == "BATCH":
        params[0] = params[0][:1]
    source = UID.sub("UID", line.source or "")
    return (command, source, *params, *tags)
