"""What the fake server knows: users with rosters and archives, their sessions, and what waits for them.  Pure."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

import attrs

from bridged.peers.xmpp.archive import Archive
from bridged.peers.xmpp.xml import Element

if TYPE_CHECKING:
    from bridged.peers.xmpp.connection import Connection

OFFLINE_MAX = 1000
UNACKED_MAX = 10_000
"""Stanzas that a session under XEP-0198 may owe before it is given up."""


@attrs.define(eq=False)
class Contact:
    """One roster item."""

    jid: str
    name: str | None = None
    subscription: str = "none"
    ask: bool = False
    groups: tuple[str, ...] = ()
    approved_them: bool = False


@attrs.define(eq=False)
class Account:
    """One registered user."""

    name: str
    password: str
    jid: str
    roster: dict[str, Contact] = attrs.field(factory=dict)
    archive: Archive = attrs.field(factory=Archive)
    offline: deque[tuple[float, Element]] = attrs.field(factory=lambda: deque(maxlen=OFFLINE_MAX))
    pending: dict[str, Element] = attrs.field(factory=dict)
    """Subscription requests that nobody has answered yet, by who asks."""
    sessions: dict[str, Session] = attrs.field(factory=dict)
    """Resource to session."""

    def available(self) -> list[Session]:
        """Sessions that take messages to the bare address, the highest priority first."""
        found = [s for s in self.sessions.values() if s.presence is not None and s.priority >= 0]
        return sorted(found, key=lambda s: -s.priority)


@attrs.define(eq=False)
class Session:
    """One bound resource: on a connection, asleep under XEP-0198, or a person of the script."""

    account: Account
    resource: str
    deliver: Callable[[Element], None]
    """Takes one stanza; never blocks."""
    connection: Connection | None = None
    presence: Element | None = None
    presence_at: float = 0.0
    priority: int = 0
    wants_roster: bool = False
    has_carbons: bool = False
    has_queried_archive: bool = False
    directed: set[str] = attrs.field(factory=set)
    """To whom presence was sent directly: rooms, strangers."""
    sm_id: str | None = None
    """Set once XEP-0198 is on."""
    sm_resumable: bool = False
    handled: int = 0
    """Stanzas taken from the client since `enable`."""
    sent: int = 0
    """Stanzas sent to the client since `enable`."""
    unacked: deque[tuple[float, Element]] = attrs.field(factory=deque)
    sleeping: bool = False
    gone: bool = False

    @property
    def jid(self) -> str:
        return f"{self.account.jid}/{self.resource}"
