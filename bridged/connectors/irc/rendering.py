"""What the other networks say, as lines for an IRC channel.  Pure.

One connection speaks for everybody, so each line names its speaker, and no name and no text can make a line that
seems another's: a name holds nothing that could end it, every line of a long text begins with the speaker again,
and lines that begin with `* ` are the bridge's own.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from itertools import islice

import attrs

from bridged.connectors.intent import Failed, Intent, Quoted
from bridged.connectors.irc.formatting import PLAIN, Run, from_html, plain, split
from bridged.connectors.irc.graphemes import graphemes

# Ours.
NAME_BYTES_MAX = 48
EXCERPT_GRAPHEMES = 60
EXCERPT_BYTES_MAX = 160
TEXT_BYTES_MAX = 32_768
"""A longer text would hold a metered channel for minutes: it is refused, and said."""

# Everything that reads as `<` or `>`: the brackets end a name, so nothing like them may stand in one.
_BRACKETS = re.compile(r"[<>‹›«»〈〉⟨⟩❮❯❰❱⟪⟫《》˂˃ᐸᐳ≺≻⪡⪢⧼⧽＜＞﹤﹥⦑⦒⦉⦊𐌂]")
_BLANKS = re.compile(r"\s+")


@attrs.frozen(kw_only=True)
class Rendering:
    """Lines to say, in order; none where there is nothing to show."""

    texts: tuple[str, ...]
    """With the speaker, without CR, LF and NUL, each within its bytes."""
    command: str = "PRIVMSG"
    reply_to: str | None = None
    """The msgid that the first line answers, where the network has it."""
    redact: str | None = None
    """The msgid to take back instead of saying anything."""


def render(intent: Intent, *, bytes_max: int, can_redact: bool = False) -> Rendering | Failed:
    """An intent as lines of at most `bytes_max` bytes of text.

    Args:
        can_redact: Does the network take messages back?

    Returns:
        Failed: There is nothing in it that IRC could show, or too much.
    """
    if len(intent.text.encode(errors="replace")) > TEXT_BYTES_MAX:
        return Failed(
            code="too_large",
            message=f"IRC takes at most {TEXT_BYTES_MAX} bytes of one message; share it as a file",
        )
    name = speaker(intent.sender.name)
    match intent.action:
        case "outbound_message":
            return _message(intent, name, bytes_max)
        case "outbound_edit_message":
            texts = _said(f"<{name}> ", f"<{name}> ✎ corrected: ", _body(intent), bytes_max)
            return Rendering(texts=texts, reply_to=intent.remote_id)
        case "outbound_delete_message":
            if can_redact and intent.remote_id is not None:
                return Rendering(texts=(), redact=intent.remote_id)
            what = (
                intent.target.text if intent.target is not None else intent.text or intent.original_text or ""
            )
            excerpt = _excerpt(what)
            return _note(
                f"* {_word(name)} deleted" + (f": {excerpt}" if excerpt else " a message"), bytes_max
            )
        case "outbound_reaction":
            return _reaction(intent, name, bytes_max)
    return Failed(code="unknown_action", message=f"IRC does not know the action {intent.action}")


def speaker(name: str) -> str:
    """A display name as it stands between `<` and `>`: one line, no control, format or bidi character, no
    bracket or anything like one, at most 48 bytes, never empty."""
    kept = []
    for character in unicodedata.normalize("NFC", name):
        category = unicodedata.category(character)
        if character.isspace() or category in ("Zs", "Zl", "Zp", "Cc"):
            kept.append(" ")
        elif category[0] != "C" and not _is_filler(character):
            kept.append("_" if _BRACKETS.match(character) else character)
    cleaned = _BLANKS.sub(" ", "".join(kept)).strip()
    out = ""
    for cluster in graphemes(cleaned):
        if len((out + cluster).encode()) > NAME_BYTES_MAX:
            break
        out += cluster
    return out.strip() or "?"


def _message(intent: Intent, name: str, bytes_max: int) -> Rendering | Failed:
    body = _body(intent)
    if intent.kind == "action":
        prefix = f"* {_word(name)} "
        texts = _said(prefix, prefix, body, bytes_max)
    else:
        first = f"<{name}> "
        if intent.reply_to is not None:
            quote = f"{first}↪ {_quote(intent.reply_to)} "
            first = quote if len(quote.encode()) <= bytes_max * 3 // 4 else first
        texts = _said(f"<{name}> ", first, body, bytes_max)
    if not texts:
        return Failed(code="unsupported_content", message="there is no text in it that IRC could show")
    return Rendering(
        texts=texts,
        command="NOTICE" if intent.kind == "notice" else "PRIVMSG",
        reply_to=intent.reply_to.remote_id if intent.reply_to is not None else None,
    )


def _reaction(intent: Intent, name: str, bytes_max: int) -> Rendering:
    target = intent.target
    about = _quote(target) if target is not None and (target.name or target.text) else "a message"
    added = list(map(_emoji, intent.added if intent.added or intent.removed else intent.emojis))
    notes = []
    if added:
        notes.append(f"* {_word(name)} reacted {' '.join(added)} to {about}")
    if intent.removed:
        notes.append(f"* {_word(name)} took back {' '.join(map(_emoji, intent.removed))} from {about}")
    texts = [text for note in notes for text in _note(note, bytes_max).texts]
    return Rendering(texts=tuple(texts), reply_to=intent.remote_id)


def _body(intent: Intent) -> list[Run]:
    """The text with its styles; HTML that says anything else than the text does is not believed."""
    text = plain(intent.text)
    if intent.html:
        runs = from_html(intent.html)
        if "".join("".join(run.text for run in runs).split()) == "".join(text.split()):
            return runs
    return [Run(text)]


def _said(prefix: str, first: str, body: Sequence[Run], bytes_max: int) -> tuple[str, ...]:
    """The lines of a text, each behind its speaker; blank lines fall away."""
    texts: list[str] = []
    room = bytes_max - len(prefix.encode())
    for line in _lines(body):
        lead = prefix if texts else first
        pieces = split(line, room, first_max=bytes_max - len(lead.encode()))
        texts.extend((prefix if at else lead) + piece for at, piece in enumerate(pieces))
    return tuple(texts)


def _lines(body: Sequence[Run]) -> list[list[Run]]:
    lines: list[list[Run]] = [[]]
    for run in body:
        first, *rest = run.text.replace("\t", " ").split("\n")
        lines[-1].append(Run(first, run.style))
        lines.extend([Run(text, run.style)] for text in rest)
    return lines


def _note(text: str, bytes_max: int) -> Rendering:
    """A line of the bridge's own; what does not fit into one line is not needed."""
    return Rendering(texts=tuple(split([Run(text, PLAIN)], bytes_max)[:1]))


def _quote(quoted: Quoted) -> str:
    """`irene: "excerpt…"`"""
    excerpt = _excerpt(quoted.text)
    name = _word(speaker(quoted.name))
    return f"{name}: {excerpt}" if excerpt else f"{name}:"


def _excerpt(text: str) -> str:
    """The beginning of a text in quotation marks which it cannot close; \"\" of nothing."""
    line = " ".join(plain(text).split()).replace('"', "'")
    cut, size = "", 0
    for number, cluster in enumerate(graphemes(line)):
        size += len(cluster.encode(errors="replace"))
        if number >= EXCERPT_GRAPHEMES or size > EXCERPT_BYTES_MAX:
            return f'"{cut.rstrip()}…"'
        cut += cluster
    return f'"{cut}"' if cut else ""


def _word(name: str) -> str:
    """A name where no bracket ends it: one word."""
    return name.replace(" ", "_")


def _emoji(text: str) -> str:
    """A reaction as one short word: `:name:` and other texts pass, a sentence does not."""
    return "".join(islice(graphemes("".join(plain(text).split())), 32)) or "?"


def _is_filler(character: str) -> bool:
    """Seen by nobody, though Unicode counts it as a letter or a mark."""
    return (
        character in "\u034f\u115f\u1160\u17b4\u17b5\u3164\uffa0\u2800" or 0xFE00 <= ord(character) <= 0xFE0F
    )
