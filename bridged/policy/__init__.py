"""May this person's words go there?  A pure function of the intent and of who belongs together.  Pure.

This release has one rule and no rule engine: **membership**.  Whom a platform admits to a channel of a conversation
may speak in that conversation, and a client that was added for it may; nothing else may.  Everything that no rule
allows is refused, the unknown included, so a mistake here silences somebody and exposes nobody.
"""

from bridged.policy.decision import (
    ACTIONS,
    VERSION,
    Allow,
    Decision,
    Directory,
    Finding,
    Intent,
    Member,
    Refuse,
    Room,
    Speaker,
    decide,
    inspect,
)

__all__ = [
    "ACTIONS",
    "VERSION",
    "Allow",
    "Decision",
    "Directory",
    "Finding",
    "Intent",
    "Member",
    "Refuse",
    "Room",
    "Speaker",
    "decide",
    "inspect",
]
