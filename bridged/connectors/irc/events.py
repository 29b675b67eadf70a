"""What a session sees happen, in the network's own terms.  Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import attrs

from bridged.connectors.irc.wire import Source


@attrs.frozen(kw_only=True)
class Registered:
    """Logged in, and welcome: channels may be joined."""

    nick: str
    account: str | None
    caps: frozenset[str]


@attrs.frozen(kw_only=True)
class Message:
    """A line that somebody said."""

    kind: str
    """message | notice | action"""
    source: Source
    target: str
    """As the server wrote it: a channel, a channel with a status prefix, or a nick."""
    channel: str | None
    """The channel meant, in the case in which it was joined; None for a private line."""
    text: str
    tags: Mapping[str, str]
    msgid: str | None
    account: str | None
    time: str | None
    """Server time, as it came."""
    label: str | None
    is_own: bool
    is_playback: bool
    """Old: told again by the server's history."""


@attrs.frozen(kw_only=True)
class Tagged:
    """A TAGMSG: a reaction, its withdrawal, or typing."""

    source: Source
    channel: str | None
    what: str
    """react | unreact | typing"""
    value: str
    """The emoji; for typing active | paused | done."""
    msgid: str | None
    """What is reacted to."""
    account: str | None
    time: str | None
    is_own: bool


@attrs.frozen(kw_only=True)
class Redacted:
    """A message was taken back."""

    source: Source
    channel: str | None
    msgid: str
    reason: str
    time: str | None
    is_own: bool


@attrs.frozen
class Joined:
    """We are in the channel."""

    channel: str


@attrs.frozen
class Named:
    """Who is in the channel: the whole list."""

    channel: str
    names: tuple[str, ...]


@attrs.frozen(kw_only=True)
class Expelled:
    """We are out of the channel without having asked."""

    channel: str
    by: str
    reason: str


@attrs.frozen(kw_only=True)
class NotJoined:
    """The server does not let us in."""

    channel: str
    numeric: str
    text: str


@attrs.frozen(kw_only=True)
class Moved:
    """Somebody else came, went or took another name; `names` holds several when a server's split moved them."""

    channel: str
    change: str
    """join | leave | quit | kick | nick | split | rejoin"""
    names: tuple[str, ...]
    by: str | None = None
    new_name: str | None = None
    reason: str | None = None
    time: str | None = None


@attrs.frozen
class Pong:
    """The answer to our PING: all that was written before it has been dealt with."""

    token: str
    label: str | None


@attrs.frozen
class Acked:
    """The server did as the labelled line asked and has nothing to say about it."""

    label: str


@attrs.frozen(kw_only=True)
class Refused:
    """An error reply."""

    numeric: str
    """Of a standard reply its code word."""
    target: str
    text: str
    label: str | None
    params: Sequence[str] = ()


Event = (
    Registered
    | Message
    | Tagged
    | Redacted
    | Joined
    | Named
    | Expelled
    | NotJoined
    | Moved
    | Pong
    | Acked
    | Refused
)
