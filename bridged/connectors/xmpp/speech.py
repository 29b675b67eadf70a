"""How people of other networks are heard in an XMPP room, where one account speaks for all of them.  Pure.

    <irene> one line                a message; further lines are indented by two blanks
    * <irene> waves                 an action
    [notice] <irene> text           a notice

Nobody can speak in another's name: a name holds no angle bracket, line end or invisible character, and a line
that does not begin a message begins with the indent, whatever was typed.
"""

from __future__ import annotations

import re
import unicodedata

# Ours.
NAME_CHARACTERS_MAX = 48
EXCERPT_CHARACTERS_MAX = 80
INDENT = "  "

_BRACKETS = str.maketrans(
    {"<": "‹", ">": "›", "＜": "‹", "＞": "›", "〈": "‹", "〉": "›", "⟨": "‹", "⟩": "›"}
)
# Everything that some client or terminal starts a new line at.
_LINE_END = re.compile("\r\n|[\n\r\v\f\x1c\x1d\x1e\x85\u2028\u2029]")
# Overrides turn the order of what follows; isolates and marks, which right-to-left texts need, stay.
_OVERRIDES = re.compile("[\u202a\u202b\u202d\u202e]")
_STYLING = re.compile(r"[*_~`]|^>", re.MULTILINE)


def shown_name(name: str) -> str:
    """The name as it stands between angle brackets; never empty."""
    plain = unicodedata.normalize("NFC", name).translate(_BRACKETS)
    kept = (" " if c.isspace() else c for c in plain if c.isspace() or unicodedata.category(c)[0] != "C")
    words = " ".join("".join(kept).split())
    if len(words) > NAME_CHARACTERS_MAX:
        words = words[: NAME_CHARACTERS_MAX - 1].rstrip() + "…"
    return words or "?"


def spoken(name: str, text: str, kind: str = "message") -> str:
    """The text with its speaker in front; `kind` is message, action or notice."""
    speaker = f"<{shown_name(name)}>"
    opening = {"action": f"* {speaker}", "notice": f"[notice] {speaker}"}.get(kind, speaker)
    first, *others = lines_of(text)
    return "\n".join([f"{opening} {first}", *(INDENT + line if line else INDENT for line in others)])


def lines_of(text: str) -> list[str]:
    """The lines of a text, at least one, without anything that breaks or turns a line inside them."""
    return _LINE_END.split(_OVERRIDES.sub("", text))


def quoted(name: str, text: str) -> str:
    """What a reply answers to, as a quotation for clients that do not know replies; ends with a line end."""
    return f"> <{shown_name(name)}> {excerpt(text)}\n" if name else f"> {excerpt(text)}\n"


def excerpt(text: str) -> str:
    """The beginning of a text, on one line."""
    words = " ".join(" ".join(lines_of(text)).split())
    return words if len(words) <= EXCERPT_CHARACTERS_MAX else words[: EXCERPT_CHARACTERS_MAX - 1] + "…"


def has_styling(text: str) -> bool:
    """Would a client that renders Message Styling perhaps change how this looks?                   XEP-0393"""
    return _STYLING.search(text) is not None
