"""Which of our lines the server has dealt with, and how.  Pure.

A server says nothing about a line that went well, unless it echoes or labels. Where it does neither, a PING
behind the line is the barrier: error replies come before its PONG, in the order of the lines (seen on every
server that was measured). One line a target is ever unconfirmed, so an echo needs no text to be recognised.
"""

from __future__ import annotations

from collections.abc import Callable, Collection

import attrs

from bridged.connectors.irc.events import Acked, Event, Message, Pong, Redacted, Refused
from bridged.connectors.irc.names import Support
from bridged.connectors.irc.wire import IrcLine

# Specification constants: error replies to PRIVMSG, NOTICE and REDACT, with the code that we give them.
REFUSALS = {
    "401": "not_found",
    "402": "not_found",
    "403": "not_found",
    "404": "forbidden",
    "405": "remote_rejected",
    "407": "remote_rejected",
    "408": "forbidden",
    "411": "invalid_field",
    "412": "unsupported_content",
    "413": "remote_rejected",
    "414": "remote_rejected",
    "415": "remote_rejected",
    "416": "rate_limited",
    "417": "too_large",
    "421": "remote_rejected",
    "437": "remote_rejected",
    "442": "forbidden",
    "461": "invalid_field",
    "477": "forbidden",
    "482": "forbidden",
    "486": "forbidden",
    "489": "forbidden",
    "492": "forbidden",
    "494": "forbidden",
    "531": "forbidden",
    "573": "forbidden",
    "713": "forbidden",
    "716": "forbidden",
}
PATIENCE = {"263": 10.0, "439": 30.0, "480": 30.0, "RATE_LIMITED": 30.0}
"""Replies that ask to come again later, with the seconds that are waited."""
_WITHOUT_TARGET = frozenset({"263", "411", "412", "417", "421", "461", "RATE_LIMITED"})

# Ours.
CONFIRM_S = 10.0
"""An echo or an acknowledgement that does not come so long is asked for by a PING."""


@attrs.define(kw_only=True, eq=False)
class Ticket:
    """One line, or one multi-line message, that waits for the server's word."""

    target: str
    command: str
    label: str | None
    token: str | None
    """Of the PING behind it."""
    echo: bool
    """An echo is to come."""
    is_written: bool = False
    verdict: Confirmed | Refused | None = None


@attrs.frozen
class Confirmed:
    """The server dealt with it; `msgid` where it said one."""

    msgid: str | None


class Confirmations:
    """The unconfirmed lines of one connection, in the order in which they are written."""

    def __init__(self, support: Support, caps: Collection[str]) -> None:
        self._support = support
        self._caps = caps
        self._open: list[Ticket] = []
        self._count = 0

    @property
    def can_echo(self) -> bool:
        return "echo-message" in self._caps

    @property
    def can_label(self) -> bool:
        return "labeled-response" in self._caps and "batch" in self._caps

    def issue(self, command: str, target: str) -> Ticket:
        """A ticket for a line that is about to be written."""
        self._count += 1
        echo = self.can_echo and command in ("PRIVMSG", "NOTICE")
        ticket = Ticket(
            target=self._support.fold(target),
            command=command,
            label=f"b{self._count}" if self.can_label else None,
            token=None if echo or self.can_label else f"bridged-{self._count}",
            echo=echo,
        )
        self._open.append(ticket)
        return ticket

    def barrier(self, ticket: Ticket) -> IrcLine | None:
        """The PING that asks about the ticket; None where there is one already."""
        if ticket.token is not None:
            return None
        self._count += 1
        ticket.token = f"bridged-{self._count}"
        return IrcLine("PING", (ticket.token,))

    def observe(self, event: Event) -> Ticket | None:
        """Take what the server said; the ticket which it decides, with its verdict in it."""
        if isinstance(event, Message) and event.is_own and not event.is_playback:
            ticket = self._labelled(event.label) or self._first(
                lambda ticket: ticket.echo and ticket.target == self._support.fold(event.target)
            )
            return self._decide(ticket, Confirmed(event.msgid))
        if isinstance(event, Redacted) and event.is_own and event.channel is not None:
            folded = self._support.fold(event.channel)
            ticket = self._first(lambda ticket: ticket.command == "REDACT" and ticket.target == folded)
            return self._decide(ticket, Confirmed(None))
        if isinstance(event, Acked):
            return self._decide(self._labelled(event.label), Confirmed(None))
        if isinstance(event, Pong):
            return self._decide(
                self._first(lambda ticket: ticket.token == event.token), self._after_barrier(event)
            )
        if isinstance(event, Refused) and (event.numeric in REFUSALS or event.numeric in PATIENCE):
            return self._decide(self._refused(event), event)
        if isinstance(event, Refused) and event.label is not None:
            return self._decide(self._labelled(event.label), event)
        return None

    def _after_barrier(self, event: Pong) -> Confirmed | Refused:
        """The barrier came back and no error did: without an echo to be had, that is the confirmation."""
        ticket = self._first(lambda ticket: ticket.token == event.token)
        if ticket is not None and ticket.echo:
            text = "the server took the line and did not send it on"
            return Refused(numeric="no echo", target=ticket.target, text=text, label=None)
        return Confirmed(None)

    def _refused(self, event: Refused) -> Ticket | None:
        if event.label is not None:
            return self._labelled(event.label)
        folded = self._support.fold(event.target)
        ticket = self._first(lambda ticket: ticket.is_written and ticket.target == folded)
        if ticket is None and event.numeric in _WITHOUT_TARGET:
            command = event.target.upper()
            ticket = self._first(
                lambda ticket: (
                    ticket.is_written and (event.numeric not in ("421", "461") or ticket.command == command)
                )
            )
        return ticket

    def _labelled(self, label: str | None) -> Ticket | None:
        return self._first(lambda ticket: ticket.label == label) if label is not None else None

    def _first(self, wanted: Callable[[Ticket], bool]) -> Ticket | None:
        return next(filter(wanted, self._open), None)

    def _decide(self, ticket: Ticket | None, verdict: Confirmed | Refused) -> Ticket | None:
        if ticket is not None:
            ticket.verdict = verdict
            self._open.remove(ticket)
        return ticket
