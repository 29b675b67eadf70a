"""IRC formatting codes <-> styled runs <-> HTML, and runs into lines of so many bytes.  Pure.

Codes after https://modern.ircd.org (formatting).  HTML is read for the few elements that IRC can show; nothing of
a text is ever made markup on the way to HTML, and no control character of a text ever becomes a code.
"""

from __future__ import annotations

import html as html_library
import re
from collections.abc import Iterable, Iterator, Sequence
from html.parser import HTMLParser

import attrs

from bridged.connectors.irc.graphemes import graphemes

# Specification constants.
BOLD, ITALIC, UNDERLINE, STRIKE, MONO, REVERSE, RESET = "\x02", "\x1d", "\x1f", "\x1e", "\x11", "\x16", "\x0f"
COLOUR, HEX_COLOUR = "\x03", "\x04"
PALETTE = (
    "#ffffff", "#000000", "#00007f", "#009300", "#ff0000", "#7f0000", "#9c009c", "#fc7f00",
    "#ffff00", "#00fc00", "#009393", "#00ffff", "#0000fc", "#ff00ff", "#7f7f7f", "#d2d2d2",
)  # fmt: skip
"""Colours 0 to 15 as most clients show them."""

_NAMES = {
    "white": 0, "black": 1, "navy": 2, "green": 3, "red": 4, "maroon": 5, "brown": 5, "purple": 6, "orange": 7,
    "yellow": 8, "lime": 9, "teal": 10, "aqua": 11, "cyan": 11, "blue": 12, "fuchsia": 13, "magenta": 13,
    "gray": 14, "grey": 14, "silver": 15,
}  # fmt: skip
_COLOURS = re.compile(r"([0-9]{1,2})(?:,([0-9]{1,2}))?")
_HEX_COLOURS = re.compile(r"([0-9A-Fa-f]{6})(?:,([0-9A-Fa-f]{6}))?")
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029]")


@attrs.frozen
class Style:
    """How a run looks.  Background and reverse are read past: no other network shows them."""

    bold: bool = False
    italic: bool = False
    underline: bool = False
    strike: bool = False
    mono: bool = False
    colour: int | None = None


PLAIN = Style()


@attrs.frozen
class Run:
    """Neighbouring text of one style."""

    text: str
    style: Style = PLAIN


def parse(text: str) -> list[Run]:
    """IRC text -> runs; control characters that are no codes fall away."""
    runs: list[Run] = []
    style = PLAIN
    kept: list[str] = []

    def close() -> None:
        if kept:
            runs.append(Run("".join(kept), style))
            kept.clear()

    at = 0
    while at < len(text):
        character = text[at]
        at += 1
        toggled = _TOGGLES.get(character)
        if toggled is not None:
            close()
            style = attrs.evolve(style, **{toggled: not getattr(style, toggled)})
        elif character == RESET:
            close()
            style = PLAIN
        elif character == COLOUR:
            close()
            match = _COLOURS.match(text, at)
            colour = int(match[1]) if match else None
            style = attrs.evolve(style, colour=colour if colour is not None and colour < 16 else None)
            at = match.end() if match else at
        elif character == HEX_COLOUR:
            close()
            match = _HEX_COLOURS.match(text, at)
            style = attrs.evolve(style, colour=nearest(match[1]) if match else None)
            at = match.end() if match else at
        elif character == "\t" or not _CONTROL.match(character):
            kept.append(character)
    close()
    return runs


def strip(text: str) -> str:
    """IRC text without its codes."""
    return "".join(run.text for run in parse(text))


def plain(text: str) -> str:
    """A person's text without anything that IRC would take for a code; line ends and tabs stay."""
    return _CONTROL.sub("", text.replace("\r\n", "\n").replace("\r", "\n").replace("\u2028", "\n"))


def to_html(runs: Sequence[Run]) -> str | None:
    """Runs as HTML with everything of the text escaped; None where no run has a style."""
    if all(run.style == PLAIN for run in runs):
        return None
    out: list[str] = []
    for run in runs:
        opened, closed = "", ""
        for name, tag in _TAGS:
            if getattr(run.style, name):
                opened, closed = f"{opened}<{tag}>", f"</{tag}>{closed}"
        if run.style.colour is not None:
            opened, closed = f'{opened}<font color="{PALETTE[run.style.colour]}">', f"</font>{closed}"
        out.append(opened + html_library.escape(run.text, quote=False) + closed)
    return "".join(out)


def from_html(source: str) -> list[Run]:
    """HTML -> runs, for what IRC can show; elements that it cannot are read as their text."""
    reader = _Reader()
    reader.feed(source)
    reader.close()
    return reader.finish()


def encode(runs: Iterable[Run]) -> str:
    """Runs -> IRC text.  The text of a run is taken as it is; `plain` it before."""
    out: list[str] = []
    style = PLAIN
    for run in runs:
        if run.text:
            out.append(_switch(style, run.style, run.text[0]))
            out.append(run.text)
            style = run.style
    return "".join(out)


def split(runs: Sequence[Run], bytes_max: int, *, first_max: int | None = None) -> list[str]:
    """Runs of one line -> IRC texts of at most so many bytes, cut at blanks where that wastes little.

    No grapheme is torn, unless one alone is longer than a line; nothing but blanks at a cut falls away.

    Args:
        first_max: Of the first text, where less room is left there.
    """
    bytes_max = max(bytes_max, 16)
    limit = bytes_max if first_max is None else max(first_max, 16)
    lines: list[str] = []
    line: list[tuple[str, Style]] = []
    size, style = 0, PLAIN
    for piece, wanted in _pieces(runs, min(bytes_max, limit) - 12):
        if line and size + _cost(style, wanted, piece) > limit:
            cut = _cut(line)
            lines.append(_text(line[:cut]))
            limit = bytes_max
            line = line[cut:]
            while line and line[0][0].isspace():
                line.pop(0)
            size, style = _size(line)
            if size + _cost(style, wanted, piece) > limit:  # what was carried over is itself nearly a line
                lines.append(_text(line))
                line, size, style = [], 0, PLAIN
        if not line and piece.isspace():
            continue
        line.append((piece, wanted))
        size, style = size + _cost(style, wanted, piece), wanted
    if line:
        lines.append(_text(line))
    return [text for text in lines if text]


def nearest(rgb: str) -> int:
    """The palette's colour nearest to six hex digits."""
    wanted = _rgb(rgb)
    distances = [
        sum((a - b) ** 2 for a, b in zip(wanted, _rgb(colour[1:]), strict=True)) for colour in PALETTE
    ]
    return distances.index(min(distances))


_TOGGLES: dict[str, str | None] = {
    BOLD: "bold",
    ITALIC: "italic",
    UNDERLINE: "underline",
    STRIKE: "strike",
    MONO: "mono",
}
_ON = (("bold", BOLD), ("italic", ITALIC), ("underline", UNDERLINE), ("strike", STRIKE), ("mono", MONO))
_TAGS = (("bold", "b"), ("italic", "i"), ("underline", "u"), ("strike", "s"), ("mono", "code"))


def _rgb(digits: str) -> tuple[int, int, int]:
    return int(digits[:2], 16), int(digits[2:4], 16), int(digits[4:6], 16)


def _switch(before: Style, after: Style, first: str) -> str:
    """The codes between two styles; `first` is the text's first character."""
    if before == after:
        return ""
    codes = RESET if before != PLAIN else ""
    if after.colour is not None:
        codes += f"{COLOUR}{after.colour:02d}"
        if first[0] == ",":
            codes += BOLD + BOLD  # else the comma would begin a background colour
    return codes + "".join(code for name, code in _ON if getattr(after, name))


def _cost(before: Style, after: Style, piece: str) -> int:
    return len(_switch(before, after, piece).encode()) + len(piece.encode(errors="replace"))


def _pieces(runs: Sequence[Run], bytes_max: int) -> Iterator[tuple[str, Style]]:
    """Graphemes with their styles; one that no line could hold comes in code points."""
    for run in runs:
        for cluster in graphemes(run.text):
            if len(cluster.encode(errors="replace")) <= bytes_max:
                yield cluster, run.style
            else:
                yield from ((point, run.style) for point in cluster)


def _cut(line: Sequence[tuple[str, Style]]) -> int:
    """Where to end a full line: behind its last blank, if that is in its second half."""
    for at in range(len(line), len(line) // 2, -1):
        if line[at - 1][0].isspace():
            return at
    return len(line)


def _text(line: Sequence[tuple[str, Style]]) -> str:
    return encode(Run(piece, style) for piece, style in line).rstrip(" ")


def _size(line: Sequence[tuple[str, Style]]) -> tuple[int, Style]:
    text = encode(Run(piece, style) for piece, style in line)
    return len(text.encode(errors="replace")), line[-1][1] if line else PLAIN


class _Reader(HTMLParser):
    """Collects runs; never fails, whatever the markup."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self._runs: list[Run] = []
        self._open: list[tuple[str, Style]] = []
        self._skip = 0
        self._preformatted = 0

    def finish(self) -> list[Run]:
        """The runs, without line ends at both ends."""
        runs = list(self._runs)
        while runs and not runs[-1].text.strip():
            runs.pop()
        while runs and not runs[0].text.strip():
            runs.pop(0)
        if runs:
            runs[0] = attrs.evolve(runs[0], text=runs[0].text.lstrip())
            runs[-1] = attrs.evolve(runs[-1], text=runs[-1].text.rstrip())
        return runs

    @property
    def _style(self) -> Style:
        return self._open[-1][1] if self._open else PLAIN

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        if tag in _UNSEEN:
            self._skip += 1
        elif tag == "br":
            self._append("\n")
        elif tag in _BLOCKS:
            self._break()
        if tag in _VOID:
            return
        self._preformatted += tag == "pre"
        style = self._style
        if (name := _STYLES.get(tag)) is not None:
            style = attrs.evolve(style, **{name: True})
        elif tag in ("font", "span"):
            values = {key: value or "" for key, value in attributes}
            colour = _colour(values.get("color") or values.get("data-mx-color") or "")
            style = style if colour is None else attrs.evolve(style, colour=colour)
        if len(self._open) < 100:
            self._open.append((tag, style))

    def handle_endtag(self, tag: str) -> None:
        if tag in _UNSEEN:
            self._skip = max(self._skip - 1, 0)
        for at in range(len(self._open) - 1, -1, -1):
            if self._open[at][0] == tag:
                del self._open[at:]
                break
        if tag == "pre":
            self._preformatted = max(self._preformatted - 1, 0)
        if tag in _BLOCKS:
            self._break()

    def handle_data(self, data: str) -> None:
        if not self._skip:
            data = plain(data)
            self._append(data if self._preformatted else re.sub(r"[ \t\n]+", " ", data))

    def _append(self, text: str) -> None:
        if text and not self._skip:
            self._runs.append(Run(text, self._style))

    def _break(self) -> None:
        if self._runs and not self._runs[-1].text.endswith("\n"):
            self._append("\n")


_STYLES = {
    "b": "bold", "strong": "bold", "h1": "bold", "h2": "bold", "h3": "bold", "h4": "bold", "h5": "bold",
    "h6": "bold", "i": "italic", "em": "italic", "cite": "italic", "u": "underline", "ins": "underline",
    "s": "strike", "del": "strike", "strike": "strike", "code": "mono", "tt": "mono", "pre": "mono",
}  # fmt: skip
_BLOCKS = frozenset(
    {
        "p",
        "div",
        "li",
        "ul",
        "ol",
        "blockquote",
        "pre",
        "h1",
        "h2",
        "h3",
        "h4",
        "h5",
        "h6",
        "table",
        "tr",
        "hr",
    }
)
_VOID = frozenset({"br", "hr", "img", "input", "meta", "link"})
_UNSEEN = frozenset({"script", "style", "mx-reply", "head", "title"})


def _colour(value: str) -> int | None:
    value = value.strip().lower()
    if re.fullmatch(r"#[0-9a-f]{6}", value):
        return nearest(value[1:])
    return _NAMES.get(value)
