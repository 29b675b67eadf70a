"""One IRC line, bytes to parts and back.  Pure.

The peers' own small parser, so that a mistake in the connector's cannot hide.  Text is UTF-8 with
`surrogateescape`: a server never re-codes what clients send each other, so any bytes pass unchanged.
"""

from __future__ import annotations

from collections.abc import Mapping

import attrs

# Specification: RFC 1459 section 2.3 and the IRCv3 message-tags page.
BODY_BYTES_MAX = 510
"""Bytes of a line without its tags and without CR LF."""
CLIENT_TAGS_BYTES_MAX = 4096
"""What a client may send between `@` and the space, both counted."""
PARAMETERS_MAX = 15

_ESCAPES = {":": ";", "s": " ", "\\": "\\", "r": "\r", "n": "\n"}
_UNESCAPES = {value: key for key, value in _ESCAPES.items()}

NO_TAGS: Mapping[str, str] = {}


@attrs.frozen
class Line:
    """A parsed line; `source` is the prefix without its colon, a tag without a value has ""."""

    command: str
    params: tuple[str, ...] = ()
    source: str | None = None
    tags: Mapping[str, str] = NO_TAGS

    @property
    def nick(self) -> str:
        """The nick (or server name) of the source."""
        return (self.source or "").partition("!")[0]

    def get(self, index: int, default: str = "") -> str:
        """The parameter at `index`, or `default` where the line is shorter."""
        return self.params[index] if index < len(self.params) else default


def decode(data: bytes) -> str:
    """Bytes of the wire as text that `encode` turns back into the same bytes."""
    return data.decode("utf-8", "surrogateescape")


def encode(text: str) -> bytes:
    """Text as bytes of the wire."""
    return text.encode("utf-8", "surrogateescape")


def parse(data: bytes) -> Line | None:
    """Parse one line without its CR LF; None for an empty one.  Any bytes are accepted."""
    return parse_text(decode(data))


def parse_text(text: str) -> Line | None:
    """Like `parse`, of decoded text."""
    tags: Mapping[str, str] = NO_TAGS
    source: str | None = None
    if text.startswith("@"):
        head, _, text = text[1:].partition(" ")
        tags = parse_tags(head)
    text = text.lstrip(" ")
    if text.startswith(":"):
        source, _, text = text[1:].partition(" ")
        text = text.lstrip(" ")
    command, _, rest = text.partition(" ")
    if not command:
        return None
    params: list[str] = []
    while rest := rest.lstrip(" "):
        if rest.startswith(":") or len(params) == PARAMETERS_MAX - 1:
            params.append(rest.removeprefix(":"))
            break
        word, _, rest = rest.partition(" ")
        params.append(word)
    return Line(command.upper(), tuple(params), source, tags)


def parse_tags(text: str) -> dict[str, str]:
    """The tags between `@` and the space; the last of a repeated key counts."""
    tags: dict[str, str] = {}
    for part in text.split(";"):
        key, _, value = part.partition("=")
        if key:
            tags[key] = unescape(value)
    return tags


def unescape(value: str) -> str:
    """A tag's value from its escaped form; a lone backslash at the end vanishes."""
    out: list[str] = []
    characters = iter(value)
    for character in characters:
        if character == "\\":
            following = next(characters, "")
            out.append(_ESCAPES.get(following, following))
        else:
            out.append(character)
    return "".join(out)


def escape(value: str) -> str:
    """A tag's value in its escaped form."""
    return "".join(f"\\{_UNESCAPES[c]}" if c in _UNESCAPES else c for c in value)


def format_tags(tags: Mapping[str, str]) -> str:
    """Tags as they stand on the wire, with `@` and the space; "" for none."""
    if not tags:
        return ""
    return "@" + ";".join(f"{key}={escape(value)}" if value else key for key, value in tags.items()) + " "


def format_body(source: str | None, command: str, params: tuple[str, ...], *, colon: bool = True) -> str:
    """A line without its tags.  `colon`: the last parameter gets one even where it needs none."""
    words = [f":{source}"] if source is not None else []
    words.append(command)
    if params:
        last = params[-1]
        needs = colon or not last or " " in last or last.startswith(":")
        words += [*params[:-1], f":{last}" if needs else last]
    return " ".join(words)


def cut(body: str, *, mark: str = "") -> bytes:
    """A body as bytes, cut at 510 as real servers do: at the byte, also inside a character."""
    data = encode(body)
    if len(data) <= BODY_BYTES_MAX:
        return data
    return data[: BODY_BYTES_MAX - len(mark)] + encode(mark)
