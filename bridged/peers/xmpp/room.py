"""A room and who is in it (XEP-0045).  Pure."""

from __future__ import annotations

from collections.abc import Iterator

import attrs

from bridged.peers.xmpp import ns
from bridged.peers.xmpp.archive import Archive
from bridged.peers.xmpp.stanza import body, has_payload, is_hinted
from bridged.peers.xmpp.xml import Element


@attrs.define(eq=False)
class Occupant:
    """Someone in a room, with one or more resources under one nick."""

    nick: str
    jid: str
    """Bare."""
    role: str
    presences: dict[str, Element] = attrs.field(factory=dict)
    """Full address to the last presence from there."""


@attrs.define(eq=False)
class Room:
    """One room."""

    jid: str
    created_at: float
    occupants: dict[str, Occupant] = attrs.field(factory=dict)
    affiliations: dict[str, str] = attrs.field(factory=dict)
    """Bare address to owner, admin, member or outcast."""
    archive: Archive = attrs.field(factory=Archive)
    subject: Element | None = None
    subject_at: float = 0.0
    config: dict[str, str] = attrs.field(factory=dict)
    locked: bool = False
    tombstone: str | None = None

    def is_set(self, name: str) -> bool:
        """Is a yes-or-no field of the configuration on?"""
        return self.config.get(name, "0") in ("1", "true")

    def affiliation(self, bare: str) -> str:
        return self.affiliations.get(bare, "none")

    def occupant_of(self, full: str) -> Occupant | None:
        """The occupant who is here from this full address."""
        return next((o for o in self.occupants.values() if full in o.presences), None)

    def addresses(self) -> Iterator[tuple[Occupant, str]]:
        """Everyone, once for each resource, in order of joining."""
        for occupant in list(self.occupants.values()):
            for full in list(occupant.presences):
                yield occupant, full


def is_archived(message: Element) -> bool:
    """Does a room message enter the archive?"""
    if is_hinted(message, "no-store") or is_hinted(message, "no-permanent-store"):
        return False
    if body(message) is not None or is_hinted(message, "store"):
        return True
    return has_payload(
        message, ns.REACTIONS, ns.RETRACT, ns.MARKERS, ns.CORRECT, "urn:xmpp:message-retract:0",
        "urn:xmpp:fasten:0", ns.RECEIPTS,
    )  # fmt: skip
