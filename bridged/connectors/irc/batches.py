"""Lines that belong together: the open batches of one connection.          IRCv3 batch, labeled-response.  Pure."""

from __future__ import annotations

import attrs

from bridged.connectors.irc.wire import IrcLine
from bridged.errors import Disconnected

# Ours.
BATCHES_MAX = 64
BATCH_LINES_MAX = 500

# Specification constants.
MULTILINE = "draft/multiline"
SPLITS = frozenset({"netsplit", "netjoin"})
PLAYBACKS = frozenset({"chathistory", "draft/chathistory", "znc.in/playback"})


@attrs.define(eq=False)
class Batch:
    """One batch from its opening line on."""

    kind: str
    opening: IrcLine
    lines: list[IrcLine] = attrs.field(factory=list)
    """Of a multiline message: its parts."""

    @property
    def label(self) -> str | None:
        return self.opening.tags.get("label") or None

    @property
    def text(self) -> str:
        """Of a multiline message: the whole."""
        text = ""
        for number, part in enumerate(self.lines):
            joint = "" if number == 0 or "draft/multiline-concat" in part.tags else "\n"
            text += joint + part[1]
        return text


class Batches:
    """The open batches, by their references."""

    def __init__(self) -> None:
        self._open: dict[str, Batch] = {}

    def take(self, line: IrcLine) -> Batch | None:
        """A BATCH line: opens one, or ends the one that is returned.

        Raises:
            Disconnected: The server opens them and never ends them.
        """
        reference = line[0][1:]
        if line[0].startswith("+") and reference:
            if len(self._open) >= BATCHES_MAX:
                raise Disconnected("the server opens batches and never ends them")
            self._open[reference] = Batch(line[1].lower(), line)
            return None
        return self._open.pop(reference, None)

    def keeps(self, line: IrcLine) -> bool:
        """Is it a part of a multiline message?  Then it is kept for that; what is too much falls away."""
        batch = self._open.get(line.tags.get("batch", ""))
        if batch is None or batch.kind != MULTILINE or line.command not in ("PRIVMSG", "NOTICE"):
            return False
        if len(batch.lines) < BATCH_LINES_MAX:
            batch.lines.append(line)
        return True

    def around(self, line: IrcLine) -> list[Batch]:
        """The batches that a line is in, innermost first."""
        found: list[Batch] = []
        batch = self._open.get(line.tags.get("batch", ""))
        while batch is not None and batch not in found:
            found.append(batch)
            batch = self._open.get(batch.opening.tags.get("batch", ""))
        return found

    def label(self, line: IrcLine) -> str | None:
        """The line's own label, or that of a batch which it is in."""
        labels = (line.tags.get("label"), *(batch.label for batch in self.around(line)))
        return next(filter(None, labels), None)

    def is_playback(self, line: IrcLine) -> bool:
        """Is it told again by the server's history?"""
        return any(batch.kind in PLAYBACKS for batch in self.around(line))

    def is_split(self, line: IrcLine) -> bool:
        """Is it a quit by netsplit that the server has marked as one?"""
        return any(batch.kind == "netsplit" for batch in self.around(line))
