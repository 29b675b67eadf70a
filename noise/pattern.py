"""Handshake patterns: the tables of the paper, and how modifiers change them.  Pure.

The tables are written as the paper writes them, one line a message, and read at import.  A pre-message line
stands before `...`; a line that starts with `->` is the initiator's.
"""

from __future__ import annotations

import re

import attrs

from noise.errors import PatternError

# -- specification constants ------------------------------------------------------------------------------
_ONE_WAY = """
N:    <- s ... -> e, es
K:    -> s, <- s ... -> e, es, ss
X:    <- s ... -> e, es, s, ss
"""  # section 7.4
_INTERACTIVE = """
NN:   ... -> e | <- e, ee
NK:   <- s ... -> e, es | <- e, ee
NX:   ... -> e | <- e, ee, s, es
XN:   ... -> e | <- e, ee | -> s, se
XK:   <- s ... -> e, es | <- e, ee | -> s, se
XX:   ... -> e | <- e, ee, s, es | -> s, se
KN:   -> s ... -> e | <- e, ee, se
KK:   -> s, <- s ... -> e, es, ss | <- e, ee, se
KX:   -> s ... -> e | <- e, ee, se, s, es
IN:   ... -> e, s | <- e, ee, se
IK:   <- s ... -> e, es, s, ss | <- e, ee, se
IX:   ... -> e, s | <- e, ee, se, s, es
"""  # section 7.5
_DEFERRED = """
NK1:  <- s ... -> e | <- e, ee, es
NX1:  ... -> e | <- e, ee, s | -> es
X1N:  ... -> e | <- e, ee | -> s | <- se
X1K:  <- s ... -> e, es | <- e, ee | -> s | <- se
XK1:  <- s ... -> e | <- e, ee, es | -> s, se
X1K1: <- s ... -> e | <- e, ee, es | -> s | <- se
X1X:  ... -> e | <- e, ee, s, es | -> s | <- se
XX1:  ... -> e | <- e, ee, s | -> es, s, se
X1X1: ... -> e | <- e, ee, s | -> es, s | <- se
K1N:  -> s ... -> e | <- e, ee | -> se
K1K:  -> s, <- s ... -> e, es | <- e, ee | -> se
KK1:  -> s, <- s ... -> e | <- e, ee, se, es
K1K1: -> s, <- s ... -> e | <- e, ee, es | -> se
K1X:  -> s ... -> e | <- e, ee, s, es | -> se
KX1:  -> s ... -> e | <- e, ee, se, s | -> es
K1X1: -> s ... -> e | <- e, ee, s | -> se, es
I1N:  ... -> e, s | <- e, ee | -> se
I1K:  <- s ... -> e, es, s | <- e, ee | -> se
IK1:  <- s ... -> e, s | <- e, ee, se, es
I1K1: <- s ... -> e, s | <- e, ee, es | -> se
I1X:  ... -> e, s | <- e, ee, s, es | -> se
IX1:  ... -> e, s | <- e, ee, se, s | -> es
I1X1: ... -> e, s | <- e, ee, s | -> se, es
"""  # section 18.1


@attrs.frozen
class Pattern:
    """A handshake pattern with its modifiers applied.                         Sections 7.1 and 9.4."""

    name: str
    initiator_static_known: bool
    """The pre-message has `-> s`: the responder needs the initiator's static key beforehand."""
    responder_static_known: bool
    """The pre-message has `<- s`: the initiator needs the responder's static key beforehand."""
    messages: tuple[tuple[str, ...], ...]
    """Tokens of each message; the even ones are the initiator's."""

    @property
    def is_one_way(self) -> bool:
        """Only the initiator may send after the handshake.                    Section 7.4."""
        return len(self.messages) == 1

    @property
    def psks(self) -> int:
        """How many pre-shared keys it takes."""
        return sum(message.count("psk") for message in self.messages)

    def sends_static(self, *, initiator: bool) -> bool:
        """Must this side have a static key pair of its own?"""
        known = self.initiator_static_known if initiator else self.responder_static_known
        return known or any("s" in message for message in self.messages[0 if initiator else 1 :: 2])


def pattern(name: str) -> Pattern:
    """Find a handshake pattern and apply its modifiers: `XXpsk3`, `NNpsk0+psk2`.   Sections 8.1 and 9.4.

    Raises:
        PatternError: No such pattern, or a modifier that is not shipped or does not fit.
    """
    match = _HANDSHAKE_NAME.fullmatch(name)
    if match is None or match["base"] not in PATTERNS:
        raise PatternError(f"not shipped: pattern {name!r}")
    base = PATTERNS[match["base"]]
    modifiers = match["modifiers"].split("+") if match["modifiers"] else []
    if len(set(modifiers)) != len(modifiers):
        raise PatternError(f"a modifier stands twice in {name!r}")
    messages = [list(message) for message in base.messages]
    for modifier in modifiers:
        if re.fullmatch("psk[0-9]", modifier) is None:
            raise PatternError(f"not shipped: modifier {modifier!r}")
        place = int(modifier.removeprefix("psk"))
        if place > len(messages):
            raise PatternError(f"{match['base']} has {len(messages)} messages: no place for {modifier}")
        if place == 0:  # "psk0" stands at the beginning of the first message, all others at the end of theirs
            messages[0].insert(0, "psk")
        else:
            messages[place - 1].append("psk")
    return attrs.evolve(base, name=name, messages=tuple(map(tuple, messages)))


def _read_table(table: str) -> dict[str, Pattern]:
    patterns = {}
    for line in table.strip().splitlines():
        name, _, rest = line.partition(":")
        before, _, after = rest.partition("...")
        patterns[name] = Pattern(
            name,
            initiator_static_known="-> s" in before,
            responder_static_known="<- s" in before,
            messages=tuple(tuple(re.findall("[es]+", message)) for message in after.split("|")),
        )
    return patterns


_HANDSHAKE_NAME = re.compile("(?P<base>[A-Z0-9]+)(?P<modifiers>[a-z][a-z0-9+]*)?")
PATTERNS = _read_table(_ONE_WAY) | _read_table(_INTERACTIVE) | _read_table(_DEFERRED)
