"""What we know of one chat, a room or a person: who is there, and which message is which.  Pure.

XMPP names one message in several ways: its sender's own id, which corrections use, and the id that the room's
archive gave it, which replies, reactions and retractions use.  `Chat` remembers the pairs, with the author, so
that nobody corrects or retracts another's message.
"""

from __future__ import annotations

import enum
from collections import OrderedDict
from typing import TypeVar

import attrs

from bridged.connectors.xmpp.jid import Jid
from bridged.connectors.xmpp.seen import Seen
from bridged.connectors.xmpp.stanza import MAM, OCCUPANT_ID, STANZA_ID
from bridged.refs import IdentityRef

# Ours.
KNOWN_MAX = 4096
"""Messages remembered a chat; an older one is looked up in the archive."""
OCCUPANTS_MAX = 20_000
OWN_PREFIX = "bridged-"
"""How the ids of what we wrote begin.  Only from our own nick or account does it mean anything."""


_Key = TypeVar("_Key", str, tuple[str, str])


class Kind(enum.Enum):
    ROOM = "room"
    DIRECT = "direct"


@attrs.frozen
class Known:
    """One message that was seen."""

    remote_id: str
    """What the rest of the house calls it."""
    message_id: str | None
    """Its sender's id."""
    author: str
    """Who may correct or retract it: see `Chat.author`."""
    is_server_id: bool = True
    """False: the sender chose `remote_id`."""


@attrs.define(eq=False)
class Chat:
    """One room, or one person, of one account."""

    channel: str
    """`msgr://channels/…`"""
    jid: Jid
    """Bare."""
    kind: Kind
    account: Jid
    """Our own, full."""
    nick: str
    """Our own in the room, as the room says it."""
    features: frozenset[str] = frozenset()
    """What the room's server, or for a person our own, says that it can."""
    is_joined: bool = False
    occupants: set[str] = attrs.field(factory=set)
    _by_author: OrderedDict[tuple[str, str], Known] = attrs.field(factory=OrderedDict, init=False)
    _by_remote: OrderedDict[str, Known] = attrs.field(factory=OrderedDict, init=False)

    @property
    def is_room(self) -> bool:
        return self.kind is Kind.ROOM

    @property
    def archive(self) -> Jid:
        """Who keeps its messages: the room itself, or our own account."""
        return self.jid if self.is_room else self.account.bare

    @property
    def has_archive(self) -> bool:
        return MAM in self.features

    def is_own(self, seen: Seen) -> bool:
        """Did this very account's bridge write it?  Our nick or account, and an id as only we make them."""
        identifier = seen.origin_id or seen.id or ""
        if not identifier.startswith(OWN_PREFIX):
            return False
        if not self.is_room:
            return seen.sender.bare == self.account.bare
        # In an earlier session it may have been with an underscore more, or less.
        return seen.sender.resource.rstrip("_") == self.nick.rstrip("_")

    def stanza_id(self, seen: Seen) -> str | None:
        """The archive's id on a live message.  Trusted from our server and from a room that says it takes
        forged ones out.                                                                 XEP-0359, section 5"""
        if (STANZA_ID if self.is_room else MAM) not in self.features:
            return None
        return seen.stanza_ids.get(str(self.archive))

    def author(self, seen: Seen) -> str:
        """Who a message is by, as far as a later one can prove to be by the same."""
        if not self.is_room:
            return str(seen.sender.bare)
        if seen.occupant_id is not None and OCCUPANT_ID in self.features:
            return "occupant:" + seen.occupant_id
        return str(seen.sender)

    def identity(self, sender: Jid) -> tuple[str, str]:
        """Reference and name of a sender: in a room the occupant with the nick, else the bare JID."""
        jid = sender if self.is_room else sender.bare
        reference = IdentityRef(service="xmpp", pointer=(str(jid),)).build()
        return reference, sender.resource if self.is_room else sender.local or sender.domain

    # -- which message is which ---------------------------------------------------------------------------

    def remember(self, known: Known) -> None:
        """Take note of a message."""
        if known.message_id is not None:
            _keep(self._by_author, (known.author, known.message_id), known)
        _keep(self._by_remote, known.remote_id, known)

    def alias(self, known: Known, message_id: str | None, remote_id: str) -> None:
        """A correction carries ids of its own: they mean the corrected message, too."""
        if message_id is not None:
            _keep(self._by_author, (known.author, message_id), known)
        _keep(self._by_remote, remote_id, known)

    def by_author(self, author: str, message_id: str) -> Known | None:
        """The message to which its author gave that id."""
        return self._by_author.get((author, message_id))

    def own(self, message_id: str) -> Known | None:
        """The message of ours with that id, whatever nick we had then."""
        found = (known for (_, said), known in self._by_author.items() if said == message_id)
        return next(found, None) if message_id.startswith(OWN_PREFIX) else None

    def by_remote(self, remote_id: str) -> Known | None:
        """The message that the house calls so."""
        return self._by_remote.get(remote_id)

    def by_reference(self, identifier: str) -> Known | None:
        """What a reply, reaction or marker means: in a room the room's id, between two people the sender's."""
        if self.is_room:
            return self.by_remote(identifier)
        return (
            self.by_author(str(self.jid), identifier)
            or self.by_author(str(self.account.bare), identifier)
            or self.by_remote(identifier)
        )

    def reference(self, remote_id: str) -> str:
        """The id by which a reply, reaction or retraction of ours means that message."""
        known = self.by_remote(remote_id)
        if self.is_room or known is None or known.message_id is None:
            return remote_id
        return known.message_id

    def forget_author(self, author: str) -> None:
        """Somebody left and the name is free: whoever takes it corrects nothing of the former."""
        for key in [key for key in self._by_author if key[0] == author]:
            del self._by_author[key]
        for remote_id in [r for r, known in self._by_remote.items() if known.author == author]:
            del self._by_remote[remote_id]


def _keep(table: OrderedDict[_Key, Known], key: _Key, value: Known) -> None:
    table[key] = value
    table.move_to_end(key)
    if len(table) > KNOWN_MAX:
        table.popitem(last=False)
