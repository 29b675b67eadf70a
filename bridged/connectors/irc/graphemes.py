"""Text in the pieces that a reader takes for one character.  Pure.

The extended grapheme clusters of Unicode's UAX 29, as far as the standard library's tables reach: combining and
enclosing marks, variation selectors, joined and modified emoji, flags, tag sequences, Hangul syllables.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator

_ZWJ = "\u200d"


def graphemes(text: str) -> Iterator[str]:
    """The clusters of a text, in order; joined they are the text."""
    if text.isascii():
        yield from text
        return
    start = 0
    flags = 0
    for at in range(1, len(text)):
        before, here = text[at - 1], text[at]
        flags = flags + 1 if _is_flag(before) else 0
        if not _joins(before, here, flags):
            yield text[start:at]
            start = at
    if text:
        yield text[start:]


def _joins(before: str, here: str, flags: int) -> bool:
    """Do two neighbours belong together?  `flags`: how many regional indicators end at `before`."""
    if before == "\r" or here == "\r" or before == "\n" or here == "\n":
        return before == "\r" and here == "\n"
    if _extends(here):
        return True
    if before == _ZWJ:
        return ord(here) >= 0x2190 and unicodedata.category(here) in ("So", "Sm", "Sk")
    if _is_flag(here):
        return flags % 2 == 1
    return _hangul_joins(ord(before), ord(here))


def _extends(character: str) -> bool:
    point = ord(character)
    if point < 0x300:
        return False
    return (
        unicodedata.category(character) in ("Mn", "Me", "Mc")
        or point in (0x200C, 0x200D, 0xFF9E, 0xFF9F)
        or 0x1F3FB <= point <= 0x1F3FF
        or 0xE0020 <= point <= 0xE007F
    )


def _is_flag(character: str) -> bool:
    return 0x1F1E6 <= ord(character) <= 0x1F1FF


def _hangul_joins(before: int, here: int) -> bool:
    """Leading + leading, vowel or syllable; vowel + vowel or trailing; trailing + trailing."""
    syllable = 0xAC00 <= before <= 0xD7A3
    open_syllable = syllable and (before - 0xAC00) % 28 == 0
    if 0x1100 <= before <= 0x115F:
        return 0x1100 <= here <= 0x11A7 or 0xAC00 <= here <= 0xD7A3
    if open_syllable or 0x1160 <= before <= 0x11A7:
        return 0x1160 <= here <= 0x11FF
    if syllable or 0x11A8 <= before <= 0x11FF:
        return 0x11A8 <= here <= 0x11FF
    return False
