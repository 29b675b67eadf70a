"""Formatted text between networks: a small tree, read from and written to HTML and XEP-0393 styling.  Pure.

Nothing here raises and nothing drops a text: what cannot be understood stays as it was typed.  The HTML that is
written is a fixed set of elements without attributes (links apart), well-formed XML, with every text escaped; so
`safe_html` makes anybody's HTML fit to be shown.  IRC's codes are IRC's own room.
"""

from __future__ import annotations

import html
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Literal

import attrs

# Ours.
DEPTH_MAX = 32
"""Elements within each other; deeper ones are shown as their text."""
URL_CHARACTERS_MAX = 2048
SCHEMES = ("http", "https", "mailto", "xmpp", "irc", "ircs", "tel", "geo", "matrix", "tg", "msgr")
"""What a link may point to; others are shown as their text, for `javascript:` runs where it is shown."""

_SPACE = " \t\n\r\f"
_SPACES = re.compile("[ \t\n\r\f]+")
# XML 1.0, 2.2: the characters that it has not.
_NO_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_NO_URL = re.compile(r"[\x00-\x20\x7f\"<>\\^`{|}]")
# A name, then attributes whose quoted values may hold anything; no "<" elsewhere, so no start is read twice.
_TAG = re.compile(r"""<(/?)([A-Za-z][A-Za-z0-9:-]*)((?:[^<>"']|"[^"]*"|'[^']*')*)>""")
_ATTRIBUTE = re.compile(r"""([A-Za-z][A-Za-z0-9:-]*)\s*=\s*(?:"([^"]*)"|'([^']*)'|([^\s"'<>=]+))""")

Style = Literal["bold", "italic", "underline", "strike"]


@attrs.frozen
class Text:
    """Characters; `\\n` begins a line."""

    text: str


@attrs.frozen
class Styled:
    """Something in bold, italic, underlined or struck through."""

    style: Style
    children: tuple[Node, ...]


@attrs.frozen
class Code:
    """A word of code within a line."""

    text: str


@attrs.frozen
class Pre:
    """Lines of code."""

    text: str


@attrs.frozen
class Link:
    """A text that points somewhere."""

    url: str
    children: tuple[Node, ...]


@attrs.frozen
class Mention:
    """A person: `msgr://identity/…` and the name that is shown."""

    ref: str
    name: str


@attrs.frozen
class Quote:
    """What somebody else had said; lines of their own."""

    children: tuple[Node, ...]


Inline = Text | Styled | Code | Link | Mention
Node = Text | Styled | Code | Pre | Link | Mention | Quote
Nodes = tuple[Node, ...]


_TAGS: Mapping[Style, str] = {"bold": "strong", "italic": "em", "underline": "u", "strike": "del"}
_STYLES: Mapping[str, Style] = {
    "b": "bold", "strong": "bold", "i": "italic", "em": "italic", "u": "underline", "ins": "underline",
    "s": "strike", "strike": "strike", "del": "strike",
    **{f"h{level}": "bold" for level in range(1, 7)},
}  # fmt: skip
_HEADINGS = frozenset(f"h{level}" for level in range(1, 7))
_BLOCKS = _HEADINGS | {
    "p",
    "div",
    "li",
    "ol",
    "ul",
    "table",
    "tr",
    "hr",
    "section",
    "article",
    "dl",
    "dt",
    "dd",
}
_DIRECTIVES: Mapping[Style, str] = {"bold": "*", "italic": "_", "strike": "~"}
_SPANS: Mapping[str, Style | None] = {"*": "bold", "_": "italic", "~": "strike", "`": None}


# Out.


def plain(nodes: Iterable[Node]) -> str:
    """The text alone; quotations keep their `> `, links show where they lead."""
    return _lines(nodes, _plain)


def to_styling(nodes: Iterable[Node]) -> str:
    """XEP-0393 message styling; what it cannot say is plain."""
    return _lines(nodes, _styling)


def to_html(nodes: Iterable[Node]) -> str:
    """Well-formed XHTML of the elements strong em u del code pre a blockquote br, and nothing else."""
    return "".join(_html(nodes))


def safe_html(text: str) -> str:
    """Anybody's HTML as `to_html` writes it."""
    return to_html(from_html(text))


def _plain(node: Inline) -> str:
    match node:
        case Text(text) | Code(text):
            return text
        case Mention(_, name):
            return name
        case Styled(_, children):
            return plain(children)
        case Link(url, children):
            return _link(url, plain(children))


def _styling(node: Inline) -> str:
    match node:
        case Styled(style, children) if style in _DIRECTIVES:
            mark = _DIRECTIVES[style]
            lines = to_styling(children).split("\n")  # a span ends with its line
            return "\n".join(f"{mark}{line}{mark}" if line.strip() == line != "" else line for line in lines)
        case Styled(_, children):
            return to_styling(children)
        case Code(text):
            return f"`{text}`" if text.strip() == text != "" and "\n" not in text else text
        case Link(url, children):
            return _link(url, to_styling(children))
    return _plain(node)


def _lines(nodes: Iterable[Node], inline: Callable[[Inline], str]) -> str:
    """Blocks on lines of their own, between what `inline` says of the rest."""
    parts: list[str] = []
    last: Node | None = None
    for node in nodes:
        match node:
            case Quote(children):
                part = "\n".join(f"> {line}" for line in _lines(children, inline).split("\n"))
            case Pre(text):
                part = f"```\n{text}\n```" if inline is _styling else text
            case _:
                part = inline(node)
        if last is not None and (isinstance(node, Quote | Pre) or isinstance(last, Quote | Pre)):
            parts.append("\n\n" if isinstance(node, Quote) and isinstance(last, Quote) else "\n")
        parts.append(part)
        last = node
    return "".join(parts)


def _link(url: str, text: str) -> str:
    shown = text.strip()
    if not shown:
        return url
    return text if shown in (url, url.partition(":")[2].lstrip("/")) else f"{text} ({url})"


def _html(nodes: Iterable[Node]) -> Iterator[str]:
    for node in nodes:
        match node:
            case Text(text):
                yield _escape(text).replace("\n", "<br/>")
            case Styled(style, children):
                tag = _TAGS[style]
                yield f"<{tag}>{to_html(children)}</{tag}>"
            case Code(text):
                yield f"<code>{_escape(text)}</code>"
            case Pre(text):
                # a reader takes a first line end away
                yield f"<pre>{chr(10) if text.startswith(chr(10)) else ''}{_escape(text)}</pre>"
            case Link(url, children):
                yield f'<a href="{_escape(url)}">{to_html(children)}</a>'
            case Mention(ref, name):
                yield f'<a href="{_escape(ref)}">{_escape(name)}</a>'
            case Quote(children):
                yield f"<blockquote>{to_html(children)}</blockquote>"


def _escape(text: str) -> str:
    return html.escape(_NO_XML.sub("\ufffd", text))


# In: HTML.


def from_html(text: str) -> Nodes:
    """The tree of somebody's HTML; unknown elements are their content, comments alone are dropped."""
    builder = _Builder()
    position = 0
    while True:
        start = text.find("<", position)
        builder.text(text[position : start if start >= 0 else None])
        if start < 0:
            return builder.finish()
        if text.startswith("<!--", start):
            end = text.find("-->", start + 4)
            if end >= 0:
                position = end + 3
                continue
            builder.text(text[start:])  # never closed, so no comment
            return builder.finish()
        match = _TAG.match(text, start)
        if match is None:
            builder.text("<")
            position = start + 1
            continue
        builder.tag(match[2].lower(), match[3], is_end=match[1] == "/")
        position = match.end()


@attrs.define
class _Frame:
    tag: str
    """"" is the document itself."""
    url: str = ""
    nodes: list[Node] = attrs.field(factory=list)
    number: int = 0
    """Of the last item of a numbered list."""


class _Builder:
    """Elements into nodes; whitespace collapses as in HTML, `at_start` is where a line begins."""

    def __init__(self) -> None:
        self._stack = [_Frame("")]
        self._at_start = True
        self._has_space = False
        self._is_broken = False

    def text(self, raw: str) -> None:
        if not raw:
            return
        text = html.unescape(raw)
        if self._is_raw():
            self._put(text)
            return
        if self._is_broken and not text.strip(_SPACE):
            return
        self._break_if_due(True)
        text = _SPACES.sub(" ", text)
        if (self._at_start or self._has_space) and text.startswith(" "):
            text = text[1:]
        if text:
            self._put(text)

    def tag(self, tag: str, attributes: str, *, is_end: bool) -> None:
        if tag == "br":
            self._line_break()
        elif tag == "img" and not is_end:
            self.text(html.escape(_attribute(attributes, "alt") or _attribute(attributes, "title")))
        elif self._is_raw() and not (is_end and tag == self._stack[-1].tag):
            pass  # code holds text alone
        elif tag in _BLOCKS:
            self._block(tag, is_end)
        elif is_end:
            self._close(tag)
        elif tag in ("td", "th"):
            self.text(" ")
        elif tag == "a":
            self._open("a", _safe_url(_attribute(attributes, "href")))
        elif tag in _STYLES or tag in ("code", "tt", "blockquote", "pre"):
            self._open(tag)

    def finish(self) -> Nodes:
        while len(self._stack) > 1:
            self._pop()
        return _joined(self._stack[0].nodes)

    def _is_raw(self) -> bool:
        return self._stack[-1].tag in ("code", "tt", "pre")

    def _put(self, text: str) -> None:
        self._stack[-1].nodes.append(Text(text))
        self._at_start = text.endswith("\n")
        self._has_space = text.endswith(" ")

    def _line_break(self) -> None:
        self._break_if_due(True)
        self._put("\n")

    def _break_if_due(self, is_due: bool) -> None:
        if self._is_broken and is_due:
            self._is_broken = False
            if not self._at_start:
                self._put("\n")

    def _block(self, tag: str, is_end: bool) -> None:
        """A paragraph, heading or list item: the next text begins a line."""
        if tag in _HEADINGS and is_end:
            self._close(tag)
        self._is_broken = True
        if is_end:
            if tag in ("ol", "ul"):
                self._close(tag)
            return
        if tag in _HEADINGS or tag in ("ol", "ul"):
            self._break_if_due(tag in _HEADINGS)
            self._open(tag)
        elif tag == "li":
            lists = [frame for frame in self._stack if frame.tag in ("ol", "ul")]
            self._break_if_due(True)
            if lists and lists[-1].tag == "ol":
                lists[-1].number += 1
                self._put(f"{lists[-1].number}. ")
            else:
                self._put("• ")

    def _open(self, tag: str, url: str = "") -> None:
        if len(self._stack) > DEPTH_MAX:
            return
        if tag in ("blockquote", "pre"):
            self._is_broken = False
            self._at_start = True
        else:
            self._break_if_due(True)
        self._stack.append(_Frame(tag, url))

    def _close(self, tag: str) -> None:
        if any(frame.tag == tag for frame in self._stack[1:]):
            while self._pop() != tag:
                pass

    def _pop(self) -> str:
        frame = self._stack.pop()
        parent = self._stack[-1].nodes
        children = _joined(frame.nodes)
        if frame.tag in ("ol", "ul") or (not children):
            parent.extend(children)
        elif frame.tag in _STYLES:
            parent.append(Styled(_STYLES[frame.tag], children))
        elif frame.tag in ("code", "tt"):
            parent.append(Code(plain(children)))
        elif frame.tag == "pre":
            text = plain(children).removeprefix("\n")
            parent.extend([Pre(text)] if text else [])
        elif frame.tag == "blockquote":
            parent.append(Quote(children))
        elif frame.url.startswith("msgr://identity/") and all(isinstance(child, Text) for child in children):
            parent.append(Mention(frame.url, plain(children)))
        elif frame.url:
            parent.append(Link(frame.url, children))
        else:
            parent.extend(children)
        if frame.tag in ("blockquote", "pre"):
            self._at_start, self._has_space, self._is_broken = True, False, False
        return frame.tag


def _attribute(attributes: str, name: str) -> str:
    for match in _ATTRIBUTE.finditer(attributes):
        if match[1].lower() == name:
            return html.unescape(match[2] or match[3] or match[4] or "")
    return ""


def _safe_url(url: str) -> str:
    """The address where it may be pointed to, else nothing."""
    url = url.strip(_SPACE)
    scheme = url.partition(":")[0].lower()
    is_fit = scheme in SCHEMES and len(url) <= URL_CHARACTERS_MAX and not _NO_URL.search(url)
    return url if is_fit and ":" in url else ""


def _joined(nodes: Sequence[Node]) -> Nodes:
    """Neighbouring texts as one."""
    joined: list[Node] = []
    for node in nodes:
        if isinstance(node, Text) and joined and isinstance(joined[-1], Text):
            joined[-1] = Text(joined[-1].text + node.text)
        else:
            joined.append(node)
    return tuple(joined)


# In: message styling.


def from_styling(text: str) -> Nodes:
    """The tree of a message in XEP-0393 styling.          XEP-0393, section 5."""
    return _blocks(text.split("\n"), 0)


def _blocks(lines: list[str], depth: int) -> Nodes:
    nodes: list[Node] = []
    number, follows_text = 0, False
    while number < len(lines):
        line = lines[number]
        end = number + 1
        if line.startswith("```"):
            while end < len(lines) and lines[end].rstrip() != "```":
                end += 1
            # what stands behind the first directive (a language, mostly) is text, so it stays
            head = [line[3:]] if line[3:].strip() else []
            nodes.append(Pre("\n".join(head + lines[number + 1 : end])))
            end += 1
        elif line.startswith(">") and depth < DEPTH_MAX:
            while end < len(lines) and lines[end].startswith(">"):
                end += 1
            inner = [quoted[2:] if quoted[1:2] == " " else quoted[1:] for quoted in lines[number:end]]
            nodes.append(Quote(_blocks(inner, depth + 1)))
        else:
            if follows_text:
                nodes.append(Text("\n"))
            nodes.extend(_spans(line))
        follows_text = not line.startswith(("```", ">")) or depth >= DEPTH_MAX
        number = end
    return _joined(nodes)


def _spans(line: str) -> list[Node]:
    """One line's spans; a directive that is never closed is a character like any."""
    nodes: list[Node] = []
    begin = position = 0
    unclosed: set[str] = (
        set()
    )  # what has no end from here has none from further on, so it is not sought again
    while position < len(line):
        mark = line[position]
        close = -1
        if mark in _SPANS and mark not in unclosed and _may_open(line, position):
            close = _closing(line, position)
            if close < 0:
                unclosed.add(mark)
        if close < 0:
            position += 1
            continue
        if begin < position:
            nodes.append(Text(line[begin:position]))
        inside = line[position + 1 : close]
        style = _SPANS[mark]
        nodes.append(Code(inside) if style is None else Styled(style, tuple(_spans(inside))))
        begin = position = close + 1
    if begin < len(line):
        nodes.append(Text(line[begin:]))
    return nodes


def _may_open(line: str, position: int) -> bool:
    before = line[position - 1] if position else " "
    after = line[position + 1 : position + 2]
    return (before.isspace() or (before in _SPANS and before != line[position])) and not (
        after in ("", line[position]) or after.isspace()
    )


def _closing(line: str, position: int) -> int:
    """The nearest directive that ends the span beginning at `position`, or -1."""
    close = line.find(line[position], position + 2)
    while close >= 0 and line[close - 1].isspace():
        close = line.find(line[position], close + 1)
    return close
