"""Bytes <-> IRC lines.  Pure.

After the IRCv3 message format (https://ircv3.net/specs/extensions/message-tags) and RFC 1459, section 2.3.
One type, `IrcLine`, makes bytes, and its constructor refuses CR, LF and NUL: whoever holds a line holds one
line, so that no text of a person can ever become a command.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

import attrs

from bridged.errors import BridgeError

# Specification constants.
LINE_BYTES_MAX = 512
"""Source, command and parameters with CR LF."""
TAGS_BYTES_MAX = 8191
"""What a server may send of tags, with `@` and the blank."""
CLIENT_TAGS_BYTES_MAX = 4096
"""What a client may send of tags, with `@` and the blank."""
PARAMS_MAX = 15

_COMMAND = re.compile(r"[A-Za-z]+|[0-9]{3}")
_TAG_KEY = re.compile(r"\+?(?:[A-Za-z0-9.-]+/)?[A-Za-z0-9-]+")
_UNESCAPE = {":": ";", "s": " ", "\\": "\\", "r": "\r", "n": "\n"}
_ESCAPE = str.maketrans({";": "\\:", " ": "\\s", "\\": "\\\\", "\r": "\\r", "\n": "\\n"})
_NOT_IN_A_LINE = re.compile(r"[\r\n\0]")


class LineFault(BridgeError):
    """Bytes that are no IRC line, or a line that could not be written."""


def _check(line: IrcLine) -> None:
    if not _COMMAND.fullmatch(line.command):
        raise LineFault(f"{line.command!a:.40} is no command")
    if len(line.params) > PARAMS_MAX:
        raise LineFault(f"{len(line.params)} parameters; {PARAMS_MAX} is the most")
    for param in line.params:
        if _NOT_IN_A_LINE.search(param):
            raise LineFault("a parameter holds CR, LF or NUL")
    for param in line.params[:-1]:
        if not param or param[0] == ":" or " " in param:
            raise LineFault(
                f"only the last parameter may be empty, hold a blank or begin with ':': {param!a:.40}"
            )
    if line.source is not None and (
        not line.source or _NOT_IN_A_LINE.search(line.source) or " " in line.source
    ):
        raise LineFault("a source is one word")
    for key, value in line.tags.items():
        if not _TAG_KEY.fullmatch(key):
            raise LineFault(f"{key!a:.40} is no tag's name")
        if "\0" in value:
            raise LineFault("a tag's value holds NUL")


def _params(values: Iterable[str]) -> tuple[str, ...]:
    return tuple(values)


@attrs.frozen
class IrcLine:
    """One line.  The constructor raises `LineFault` for what could not be one line."""

    command: str
    params: tuple[str, ...] = attrs.field(default=(), converter=_params)
    source: str | None = attrs.field(default=None, kw_only=True)
    """`nick!user@host`, a server's name, or None."""
    tags: Mapping[str, str] = attrs.field(factory=dict, kw_only=True, eq=dict)
    """Unescaped values; a tag without one has \"\"."""

    def __attrs_post_init__(self) -> None:
        _check(self)

    def __getitem__(self, index: int) -> str:
        """The parameter, or \"\" where the line has none: no server can make us raise IndexError."""
        try:
            return self.params[index]
        except IndexError:
            return ""

    def encode(self) -> bytes:
        """The line with its CR LF.

        Raises:
            LineFault: It is longer than a client may send: 512 bytes, and 4096 of tags.
        """
        head = ""
        if self.tags:
            head = "@" + ";".join(_tag(key, value) for key, value in self.tags.items()) + " "
            if len(head.encode(errors="replace")) > CLIENT_TAGS_BYTES_MAX:
                raise LineFault(f"tags of more than {CLIENT_TAGS_BYTES_MAX} bytes")
        body = (self.body() + "\r\n").encode(errors="replace")
        if len(body) > LINE_BYTES_MAX:
            raise LineFault(f"{len(body)} bytes; {LINE_BYTES_MAX} is the most")
        return head.encode(errors="replace") + body

    def body(self) -> str:
        """Source, command and parameters without CR LF."""
        words = [] if self.source is None else [f":{self.source}"]
        words.append(self.command)
        words.extend(self.params[:-1])
        if self.params:
            last = self.params[-1]
            plain = last and last[0] != ":" and " " not in last and self.command not in _ALWAYS_COLON
            words.append(last if plain else f":{last}")
        return " ".join(words)

    @classmethod
    def decode(cls, raw: bytes, *, fallback: str | None = None) -> IrcLine:
        """One line without its CR LF.

        Args:
            fallback: Encoding of a line that is not UTF-8; None: broken bytes become U+FFFD.

        Raises:
            LineFault: No line.
        """
        try:
            text = raw.decode("utf-8")
        except UnicodeDecodeError:
            text = raw.decode(fallback, "replace") if fallback else raw.decode("utf-8", "replace")
        tags: dict[str, str] = {}
        if text.startswith("@"):
            head, _, text = text[1:].partition(" ")
            tags = dict(_tags(head))
        text = text.lstrip(" ")
        source = None
        if text.startswith(":"):
            source, _, text = text[1:].partition(" ")
            source = source or None
        head, colon, last = text.lstrip(" ").partition(" :")
        words = [word for word in head.split(" ") if word]
        if not words:
            raise LineFault("a line without a command")
        params = words[1:] + ([last] if colon else [])
        if len(params) > PARAMS_MAX:  # more than the format knows: the rest belongs to the last
            params[PARAMS_MAX - 1 :] = [" ".join(params[PARAMS_MAX - 1 :])]
        return cls(words[0], tuple(params), source=source, tags=tags)


def _tag(key: str, value: str) -> str:
    return f"{key}={value.translate(_ESCAPE)}" if value else key


def _tags(head: str) -> Iterable[tuple[str, str]]:
    """A line's tags; what is no tag is passed over, as the specification asks; of a name the last wins."""
    for item in head.split(";"):
        key, _, value = item.partition("=")
        if _TAG_KEY.fullmatch(key):
            yield key, unescape(value)


def unescape(value: str) -> str:
    """A tag's value as it was meant; a lone backslash at the end falls away."""
    if "\\" not in value:
        return value
    out: list[str] = []
    characters = iter(value)
    for character in characters:
        if character == "\\":
            after = next(characters, "")
            out.append(_UNESCAPE.get(after, after))
        else:
            out.append(character)
    return "".join(out)


# A single word is legal without the colon; old servers and clients read these only with one.
_ALWAYS_COLON = frozenset(
    {"PRIVMSG", "NOTICE", "USER", "PING", "PONG", "QUIT", "PART", "KICK", "TOPIC", "AWAY"}
)


class LineBuffer:
    """Bytes as they come from the socket -> lines as they were meant.  Bounded."""

    def __init__(self) -> None:
        self._rest = bytearray()

    def receive(self, data: bytes) -> list[bytes]:
        """Take bytes, return the whole lines in them without CR LF; LF alone ends a line, too.

        Raises:
            LineFault: A line is longer than any server may send.
        """
        self._rest += data
        *lines, rest = self._rest.split(b"\n")
        self._rest = rest
        if len(rest) > TAGS_BYTES_MAX + LINE_BYTES_MAX:
            raise LineFault(f"a line of more than {TAGS_BYTES_MAX + LINE_BYTES_MAX} bytes")
        return [bytes(line.rstrip(b"\r")) for line in lines if line.rstrip(b"\r")]


@attrs.frozen
class Source:
    """Who a line is from: `nick!user@host` in its parts, or a server's name as `nick`."""

    nick: str
    user: str | None = None
    host: str | None = None

    def __str__(self) -> str:
        text = self.nick
        if self.user is not None:
            text += f"!{self.user}"
        return text if self.host is None else f"{text}@{self.host}"

    @classmethod
    def parse(cls, text: str | None) -> Source:
        nick, _, host = (text or "").partition("@")
        nick, _, user = nick.partition("!")
        return cls(nick, user or None, host or None)
