"""The decision and the shapes that it needs of its asker.  Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import attrs

# Ours.
VERSION = "membership-1"
"""Stands beside every recorded decision; another rule is another version."""
ACTIONS = frozenset({"send", "edit", "delete", "react", "typing", "notice"})


class Speaker(Protocol):
    """Who speaks or acts."""

    @property
    def ref(self) -> str: ...


class Room(Protocol):
    """A channel of a platform, as the directory knows it."""

    @property
    def ref(self) -> str: ...
    @property
    def conversation(self) -> str | None: ...


class Member(Protocol):
    """A client of the house."""

    @property
    def identity(self) -> str: ...
    def may_enter(self, conversation: str) -> bool: ...


class Directory(Protocol):
    """Who belongs together, at one revision."""

    @property
    def conversations(self) -> Mapping[str, Sequence[Room]]: ...
    @property
    def clients(self) -> Mapping[str, Member]: ...


class Intent(Protocol):
    """What is to be decided: one person, one act, one room."""

    @property
    def speaker(self) -> Speaker: ...
    @property
    def conversation(self) -> str: ...
    @property
    def action(self) -> str: ...
    @property
    def origin(self) -> Room | None:
        """The channel into which a platform has let the speaker; None for a client."""
        ...

    @property
    def client(self) -> str | None:
        """The client's name; None for somebody on a network."""
        ...

    @property
    def target(self) -> Room | None:
        """Where it is to be heard; None asks about the conversation itself."""
        ...


@attrs.frozen(kw_only=True)
class Finding:
    """Something in a text that a rule would have to decide about."""

    detector: str
    excerpt: str = ""
    """Never the finding itself: what kind of thing it is, masked."""


@attrs.frozen
class Allow:
    """It may."""

    rule: str


@attrs.frozen
class Refuse:
    """It may not."""

    rule: str
    reason: str
    """One sentence for the person who is refused; no text of the message in it."""


Decision = Allow | Refuse


def inspect(text: str) -> tuple[Finding, ...]:
    """What the detectors find in a text: nothing in this release, which has none."""
    return ()


def decide(intent: Intent, directory: Directory, findings: Sequence[Finding] = ()) -> Decision:
    """Decide one intent.

    Args:
        findings: From `inspect`.  No rule of this release allows what a detector has found.
    """
    if intent.action not in ACTIONS:
        return Refuse("unknown-action", f"nobody may do {intent.action!a:.40} here")
    rooms = directory.conversations.get(intent.conversation)
    if rooms is None:
        return Refuse("no-conversation", "there is no such conversation")
    if findings:
        return Refuse("finding", f"the text holds what no rule allows to leave: {findings[0].detector}")
    target = intent.target
    if target is not None and not _belongs(target, intent.conversation, rooms):
        return Refuse("no-such-room", "the room does not belong to the conversation")
    if intent.client is not None:
        return _decide_client(intent, directory, intent.client)
    if intent.origin is None:
        return Refuse("no-origin", "nobody has let the speaker in")
    if not _belongs(intent.origin, intent.conversation, rooms):
        return Refuse("not-admitted", "the speaker was let into another conversation than this")
    return Allow("admitted-by-platform")


def _decide_client(intent: Intent, directory: Directory, name: str) -> Decision:
    client = directory.clients.get(name)
    if client is None:
        return Refuse("no-client", "the client is not known, or its access was taken back")
    if intent.origin is not None:
        return Refuse("two-origins", "a client does not speak from a platform's room")
    if client.identity != intent.speaker.ref:
        return Refuse("not-oneself", "a client speaks as its own identity alone")
    if not client.may_enter(intent.conversation):
        return Refuse("not-added", "the client was not added to this conversation")
    return Allow("added-client")


def _belongs(room: Room, conversation: str, rooms: Sequence[Room]) -> bool:
    # Both the room's own word and the directory's: after a link has moved, an old snapshot's room is neither's.
    return room.conversation == conversation and any(room.ref == other.ref for other in rooms)
