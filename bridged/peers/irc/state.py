"""Who is on the fake network, in which channels, as seen from which server.  Pure.

A `World` is what linked servers agree on.  A netsplit makes two worlds of one (`netsplit.py`), so that both
sides go on by themselves, with their own topics, nicks and channels, until the link returns.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import attrs

from bridged.peers.irc.dialect import Dialect

if TYPE_CHECKING:
    from bridged.peers.irc.link import Link
    from bridged.peers.irc.sasl import Exchange

HISTORY_MAX = 1000
"""Messages that a channel remembers."""


@attrs.define(eq=False)
class Batch:
    """A `draft/multiline` batch on its way in."""

    target: str
    command: str = "PRIVMSG"
    lines: list[tuple[str, bool]] = attrs.field(factory=list)
    """(text, is it joined to the line before without a break)."""
    tags: dict[str, str] = attrs.field(factory=dict)
    label: str | None = None


@attrs.define(eq=False)
class Message:
    """A message that a channel remembers for replays."""

    at: float
    source: str
    account: str | None
    command: str
    text: str
    msgid: str
    tags: dict[str, str]
    is_replayed: bool
    """Was +H set when it was said?"""


@attrs.define(eq=False)
class User:
    """A client or a person; before registration `nick` may be None."""

    uid: str
    server: Server
    deliver: Callable[[bytes], None]
    """Takes one whole line with CR LF; never blocks."""
    host: str = "127.0.0.1"
    nick: str | None = None
    user: str = ""
    real: str = ""
    password: str | None = None
    registered: bool = False
    negotiating: bool = False
    capabilities: set[str] = attrs.field(factory=set)
    capability_version: int = 0
    account: str | None = None
    services_know: bool = False
    """Seen: Atheme does not learn of a SASL login after registration, and will not log it out."""
    away: str | None = None
    modes: set[str] = attrs.field(factory=set)
    channels: dict[str, Channel] = attrs.field(factory=dict)
    monitored: dict[str, str] = attrs.field(factory=dict)
    invited: set[str] = attrs.field(factory=set)
    signed_on_at: float = 0.0
    active_at: float = 0.0
    secure: bool = False
    fingerprint: str | None = None
    gone: bool = False
    link: Link | None = None
    """The connection, for those who have one; a person of the script has none."""
    sasl: Exchange | None = None
    batches: dict[str, Batch] = attrs.field(factory=dict)
    """Multi-line messages that the client is still sending, by reference."""
    batch_number: int = 0

    @property
    def shown(self) -> str:
        """The nick as numerics address it."""
        return self.nick or "*"

    @property
    def mask(self) -> str:
        """`nick!user@host`, with the UID where nick or user are not known yet."""
        return f"{self.nick or self.uid}!{self.user or self.uid}@{self.host}"

    @property
    def is_operator(self) -> bool:
        return "o" in self.modes

    def has(self, capability: str) -> bool:
        return capability in self.capabilities


@attrs.define(eq=False)
class Channel:
    """A channel in one world."""

    name: str
    created_at: float
    members: dict[User, set[str]] = attrs.field(factory=dict)
    """The member's prefix modes: letters."""
    flags: set[str] = attrs.field(factory=set)
    parameters: dict[str, str] = attrs.field(factory=dict)
    """Mode letter (k, l, H) to its parameter."""
    lists: dict[str, dict[str, tuple[str, float]]] = attrs.field(factory=dict)
    """List mode to mask to (who set it, when)."""
    topic: str = ""
    topic_by: str = ""
    topic_at: float = 0.0
    side_topics: dict[str, tuple[str, str, float]] = attrs.field(factory=dict)
    """Seen on ngIRCd: after a netsplit each server keeps the topic it had, until one is set anew."""
    history: deque[Message] = attrs.field(factory=lambda: deque(maxlen=HISTORY_MAX))
    """Oldest first."""

    def signs(self, user: User, dialect: Dialect, *, all_of_them: bool) -> str:
        """The member's signs (`@`, `+`), the highest first, or the highest alone."""
        held = self.members.get(user, set())
        text = "".join(
            s for m, s in zip(dialect.prefix_modes, dialect.prefix_signs, strict=True) if m in held
        )
        return text if all_of_them else text[:1]

    def is_at_least(self, user: User, mode: str, dialect: Dialect) -> bool:
        """Does the member hold `mode` or a higher one?"""
        held = self.members.get(user, set())
        return any(m in held for m in dialect.prefix_modes[: dialect.prefix_modes.index(mode) + 1])


@attrs.define(eq=False)
class World:
    """What a set of linked servers agrees on."""

    dialect: Dialect
    users: dict[str, User] = attrs.field(factory=dict)
    """Folded nick to user; a nick is taken from NICK on, before registration ends."""
    channels: dict[str, Channel] = attrs.field(factory=dict)
    servers: list[Server] = attrs.field(factory=list)

    def user(self, nick: str) -> User | None:
        """A registered user by nick."""
        found = self.users.get(self.dialect.fold(nick))
        return found if found is not None and found.registered else None

    def channel(self, name: str) -> Channel | None:
        return self.channels.get(self.dialect.fold(name))

    def registered(self) -> Iterator[User]:
        return (user for user in self.users.values() if user.registered)

    def neighbours(self, user: User) -> list[User]:
        """Everyone else who shares a channel with the user, once each, in order of channels and joins."""
        seen: dict[User, None] = {}
        for channel in user.channels.values():
            seen |= dict.fromkeys(channel.members)
        seen.pop(user, None)
        return list(seen)

    def leave(self, user: User, channel: Channel) -> None:
        """Take the user out of the channel; an empty channel is gone with its topic and modes."""
        channel.members.pop(user, None)
        user.channels.pop(self.dialect.fold(channel.name), None)
        if not channel.members:
            self.channels.pop(self.dialect.fold(channel.name), None)


@attrs.define(eq=False)
class Server:
    """One server of the network."""

    name: str
    sid: str
    started_at: float
    world: World
    messages: int = 0
    """Counts message ids, of refused messages too."""
    uids: int = 0

    def next_uid(self) -> str:
        """`00AAAAAAB` and so on: the server's id and a counter in base 26."""
        number, letters = self.uids, ""
        self.uids += 1
        for _ in range(6):
            number, digit = divmod(number, 26)
            letters = chr(ord("A") + digit) + letters
        return self.sid + letters

    def next_msgid(self) -> str:
        """`SID~start~n`, as InspIRCd makes them."""
        number = self.messages
        self.messages += 1
        return f"{self.sid}~{int(self.started_at)}~{number}"


def matches_mask(mask: str, text: str, fold: Callable[[str], str]) -> bool:
    """Does `text` (a `nick!user@host`) match a mask with `*` and `?`?  Linear in both, without backtracking depth."""
    pattern, subject = fold(mask), fold(text)
    i = j = 0
    star, resume = -1, 0
    while i < len(subject):
        if j < len(pattern) and pattern[j] == "*":
            star, resume, j = j, i, j + 1
        elif j < len(pattern) and pattern[j] in ("?", subject[i]):
            i, j = i + 1, j + 1
        elif star >= 0:
            resume += 1
            i, j = resume, star + 1
        else:
            return False
    return all(c == "*" for c in pattern[j:])
