"""One login to one IRC network, from the first CAP to the last ERROR.  Pure.

Lines and the time go in, events and lines to write come out; what ends the connection is raised.  With a
credential the login has succeeded before the first event, or there is none: nothing is ever said under a name
that the network has not confirmed.

Longer than most rooms: registration, nick, members and messages of one connection hang together by what the
server says of ourselves, and a reader wants them in one place.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

import attrs

from bridged.connectors.irc.batches import MULTILINE, SPLITS, Batch, Batches
from bridged.connectors.irc.channels import Channels, is_split
from bridged.connectors.irc.events import (
    Acked,
    Event,
    Expelled,
    Joined,
    Message,
    NotJoined,
    Pong,
    Redacted,
    Refused,
    Registered,
    Tagged,
)
from bridged.connectors.irc.login import Login, SaslExchange
from bridged.connectors.irc.names import Support
from bridged.connectors.irc.wire import IrcLine, Source
from bridged.errors import BadCredentials, Banned, Disconnected

# Ours.
WANTED = frozenset(
    {
        "account-notify",
        "account-tag",
        "batch",
        "cap-notify",
        "chghost",
        "draft/message-redaction",
        "draft/multiline",
        "echo-message",
        "extended-join",
        "labeled-response",
        "message-tags",
        "multi-prefix",
        "sasl",
        "server-time",
        "setname",
        "standard-replies",
        "userhost-in-names",
    }
)
"""Capabilities that are asked for where they are offered."""
REGISTRATION_S = 60.0
SASL_S = 15.0
REGAIN_S = 30.0
"""While we go by another nick, the wanted one is asked for so often."""
CTCP_PAUSE_S = 5.0
JOIN_BYTES_MAX = 400
VERSION = "bridged"

# Specification constants.
_NOT_JOINED = frozenset({"403", "405", "437", "461", "471", "473", "474", "475", "476", "477", "489", "520"})
_NICK_REFUSED = frozenset({"431", "432", "433", "436", "437"})
_BANNED = re.compile(r"\b[KGZ]-?lined?\b|\bbanned\b|\bauto-?kill|\bAKILL\b", re.IGNORECASE)
_DENIED = re.compile(r"access denied|bad password|password mismatch|invalid password", re.IGNORECASE)
_NO_CHANNEL = re.compile(r"[\x00-\x20,\x7f]")
_MASK = re.compile(r"[^!@ ]+![^!@ ]+@[^!@ ]+")


class Session:
    """The state of one connection.

    Args:
        nick: The wanted one.
        alt_nicks: Tried in turn while it is taken; after them the wanted one with a number.
        login: What proves who we are; None: nothing.
        netsplit_s: How long the split off are held before they count as gone.
        nonce: Random bytes for SCRAM, fresh for every session.
    """

    def __init__(
        self,
        *,
        nick: str,
        alt_nicks: Sequence[str] = (),
        ident: str = "bridge",
        realname: str = "Msgr bridge",
        login: Login | None = None,
        netsplit_s: float = 60.0,
        nonce: bytes = b"",
    ) -> None:
        self.wanted_nick = nick
        self.nick = nick
        self.user: str | None = None
        self.host: str | None = None
        self.account: str | None = None
        self.caps: dict[str, str] = {}
        """Enabled capabilities with the values they were offered with."""
        self.support = Support()
        self.channels = Channels(self.support, hold_s=netsplit_s)
        self.is_registered = False
        self.faults = 0
        """Lines that were none."""
        self._ident = ident
        self._realname = realname
        self._login = login
        self._nonce = nonce
        self._nicks = [*alt_nicks]
        self._nick_number = 0
        self._lines: list[IrcLine] = []
        self._offered: dict[str, str] = {}
        self._asked: set[str] = set()
        self._sasl: SaslExchange | None = None
        self._welcomed = False
        self._give_up_at = math.inf
        self._sasl_until = math.inf
        self._regain_at = math.inf
        self._ctcp_at = -math.inf
        self._batches = Batches()
        self._reason = ""

    # -- in and out -----------------------------------------------------------------------------------------

    def open(self, now: float) -> None:
        """Begin the registration."""
        self._give_up_at = now + REGISTRATION_S
        if self._login is not None and self._login.method == "server_password":
            self._write("PASS", self._login.password.reveal_text())
        self._write("CAP", "LS", "302")
        self._write("NICK", self.nick)
        self._write("USER", self._ident, "0", "*", self._realname)

    def lines(self) -> list[IrcLine]:
        """What is to be written now, ahead of all chat."""
        lines, self._lines = self._lines, []
        return lines

    def receive(self, line: IrcLine, now: float) -> list[Event]:
        """Take one line.

        Raises:
            BadCredentials: The login was refused.
            Banned: The server shut us out.
            Disconnected: The connection is over, or no use.
        """
        if self._batches.keeps(line):
            return []
        if line.command.isdigit():
            return self._numeric(line, now)
        handler = _HANDLERS.get(line.command.upper())
        return handler(self, line, now) if handler is not None else []

    @property
    def deadline(self) -> float:
        """When `tick` is to be called next, on the clock that `receive` is given."""
        return min(self._give_up_at, self._sasl_until, self._regain_at, self.channels.deadline)

    def tick(self, now: float) -> list[Event]:
        """What is due.

        Raises:
            Disconnected: The server took too long to let us in.
        """
        if now >= self._sasl_until:
            raise Disconnected(
                "the server's services do not answer to the login (services down?)",
                hint="it is tried again; nothing is said unauthenticated meanwhile",
            )
        if now >= self._give_up_at:
            raise Disconnected(f"the server did not finish the registration in {REGISTRATION_S:.0f} s")
        if now >= self._regain_at:
            self._regain(now)
        return self.channels.tick(now)

    # -- what others need to know ---------------------------------------------------------------------------

    def fold(self, name: str) -> str:
        return self.support.fold(name)

    def is_me(self, nick: str) -> bool:
        return self.fold(nick) == self.fold(self.nick)

    def source_bytes(self) -> int:
        """How long our own source is at its longest, as others get it: `:nick!user@host ` in bytes."""
        user = self.user if self.user is not None else "~" + self._ident[:10]
        host_bytes = len(self.host.encode()) if self.host is not None else 63
        return len(f":{self.nick}!{user}@ ".encode()) + host_bytes

    def text_bytes(self, command: str, target: str) -> int:
        """How many bytes of text reach the others uncut in one line to that target."""
        return 512 - 2 - self.source_bytes() - len(f"{command} {target} :".encode())

    def join(self, *channels: str) -> None:
        """Ask to be let into channels, few lines for many; `Joined` or `NotJoined` follows for each."""
        names: list[str] = []
        for channel in channels:
            if names and len(",".join([*names, channel]).encode()) > JOIN_BYTES_MAX:
                self._write("JOIN", ",".join(names))
                names = []
            names.append(channel)
        if names:
            self._write("JOIN", ",".join(names))

    def ping(self, token: str) -> None:
        """Ask for a `Pong`."""
        self._write("PING", token)

    def part(self, channel: str) -> None:
        """Leave a channel."""
        self._write("PART", channel)

    def can_join(self, channel: str) -> bool:
        """May the name be written in a JOIN, and does it name one channel here?"""
        return self.support.is_channel(channel) and not _NO_CHANNEL.search(channel)

    # -- registration ---------------------------------------------------------------------------------------

    def _write(self, command: str, *params: str) -> None:
        self._lines.append(IrcLine(command, params))

    def _cap(self, line: IrcLine, now: float) -> list[Event]:
        names = _capabilities(line[-1])
        match line[1].upper():
            case "LS":
                self._offered |= names
                if line[2] != "*":
                    self._ask_for(self._offered, now)
            case "NEW":
                self._offered |= names
                self._ask_for(names, now)
            case "DEL":
                for name in names:
                    self._offered.pop(name, None)
                    self.caps.pop(name, None)
            case "ACK":
                for name in names:
                    self._asked.discard(name.lstrip("-"))
                    if name.startswith("-"):
                        self.caps.pop(name[1:], None)
                    else:
                        self.caps[name] = self._offered.get(name, "")
                self._negotiated(now)
            case "NAK":
                refused = [name for name in names if name in self._asked]
                self._asked -= set(refused)
                if len(refused) > 1:  # one bad name refuses them all: ask for each alone
                    for name in refused:
                        self._asked.add(name)
                        self._write("CAP", "REQ", name)
                self._negotiated(now)
        return []

    def _ask_for(self, offered: dict[str, str], now: float) -> None:
        names = sorted(name for name in WANTED & offered.keys() if name not in self.caps)
        if not self._uses_sasl:
            names = [name for name in names if name != "sasl"]
        elif "sasl" not in self._offered and not self._welcomed:
            raise self._no_services()
        self._asked |= set(names)
        if names:
            self._write("CAP", "REQ", " ".join(names))
        else:
            self._negotiated(now)

    @property
    def _uses_sasl(self) -> bool:
        return self._login is not None and self._login.method in ("sasl", "external")

    def _no_services(self) -> Disconnected:
        return Disconnected(
            "the server offers no SASL, so its services are down",
            hint="it is tried again; nothing is said unauthenticated meanwhile",
        )

    def _negotiated(self, now: float) -> None:
        """All that was asked for is answered: log in, then end the negotiation."""
        if self._asked or self._welcomed or self._sasl is not None:
            return
        if self._login is not None and self._uses_sasl:
            if "sasl" not in self.caps:
                raise self._no_services()
            self._sasl = SaslExchange(self._login, self._offered.get("sasl", ""), self._nonce)
            self._sasl_until = now + SASL_S
            self._write("AUTHENTICATE", self._sasl.mechanism)
        else:
            self._write("CAP", "END")

    def _authenticate(self, line: IrcLine, now: float) -> list[Event]:
        if self._sasl is not None:
            self._sasl_until = now + SASL_S
            for chunk in self._sasl.answer(line[0]):
                self._write("AUTHENTICATE", chunk)
        return []

    def _sasl_ended(self, line: IrcLine, now: float) -> list[Event]:
        if self._sasl is None:
            return []
        if line.command in ("903", "907"):
            self._sasl.check_done()
            self._sasl_until = math.inf
            if not self._welcomed:
                self._write("CAP", "END")
            return []
        if line.command == "908":
            self._sasl.offered = line[1]
            return []
        if line.command == "906":
            raise Disconnected("the server broke the login off")
        following = self._sasl.next_mechanism()
        if following is None:
            raise BadCredentials(
                f"the network refuses the login ({line.command}: {line[-1]})",
                hint=f"`bridgectl vault put {self._login.name if self._login else ''}` with the right password",
            )
        self._sasl = following
        self._write("AUTHENTICATE", self._sasl.mechanism)
        return []

    def _welcome(self, line: IrcLine, now: float) -> list[Event]:
        self._welcomed = True
        self.nick = line[0] or self.nick
        self._learn_mask(line[-1].rpartition(" ")[2])
        if self._uses_sasl and (self._sasl is None or self._sasl_until != math.inf):
            raise self._no_services()  # a server that let us in without the login
        if self._login is not None and self._login.method == "nickserv":
            self._sasl_until = now + SASL_S
            who = self._login.username
            secret = self._login.password.reveal_text()
            self._write("PRIVMSG", "NickServ", f"IDENTIFY {who} {secret}" if who else f"IDENTIFY {secret}")
            return []
        return self._registered(now)

    def _registered(self, now: float) -> list[Event]:
        self._give_up_at = math.inf
        self.is_registered = True
        if not self.is_me(self.wanted_nick):
            self._regain(now)
        return [Registered(nick=self.nick, account=self.account, caps=frozenset(self.caps))]

    def _logged_in(self, line: IrcLine, now: float) -> list[Event]:
        """900 nick mask account :text"""
        self._learn_mask(line[1])
        self.account = line[2] or self.account
        return self._identified(now)

    def _identified(self, now: float) -> list[Event]:
        if self._login is None or self._login.method != "nickserv" or self.is_registered:
            return []
        self._sasl_until = math.inf
        return self._registered(now)

    def _nick_refused(self, line: IrcLine, now: float) -> list[Event]:
        if self._welcomed:
            return []  # the wanted one is still taken
        if self._nicks:
            self.nick = self._nicks.pop(0)
        else:
            self._nick_number += 1
            if self._nick_number > 99:
                raise Disconnected("the server takes none of our nicknames")
            room = self.support.nick_length - len(str(self._nick_number))
            self.nick = f"{self.wanted_nick[: max(room, 1)]}{self._nick_number}"
        self._write("NICK", self.nick)
        return []

    def _regain(self, now: float) -> None:
        """Ask for the wanted nick; with an account its owner takes it from a ghost."""
        self._regain_at = now + REGAIN_S
        if self.account is not None:
            self._write("PRIVMSG", "NickServ", f"REGAIN {self.wanted_nick}")
        self._write("NICK", self.wanted_nick)

    def _learn_mask(self, mask: str) -> None:
        if _MASK.fullmatch(mask):
            source = Source.parse(mask)
            if self.is_me(source.nick):
                self.user, self.host = source.user, source.host

    # -- numerics -------------------------------------------------------------------------------------------

    def _numeric(self, line: IrcLine, now: float) -> list[Event]:
        numeric = line.command
        match numeric:
            case "001":
                return self._welcome(line, now)
            case "005":
                self.support.learn(line.params[1:-1])
            case "353":
                symbols = self.support.prefix_symbols
                nicks = [Source.parse(item.lstrip(symbols)).nick for item in line[-1].split()]
                self.channels.list_names(line[-2], nicks)
            case "366":
                return self.channels.list_ended(line[1])
            case "396":
                self.host = line[1].rpartition("@")[2] or self.host
            case "900":
                return self._logged_in(line, now)
            case "901":
                self.account = None
            case "902" | "903" | "904" | "905" | "906" | "907" | "908":
                return self._sasl_ended(line, now)
            case "463" | "465":
                self._reason = line[-1]
                raise Banned(f"the server shut us out: {line[-1]}", hint="ask the network's operators")
            case "464":
                raise self._password_refused(line[-1])
            case _:
                return self._maybe_refused(line, now)
        return []

    def _password_refused(self, text: str) -> BadCredentials:
        name = self._login.name if self._login is not None else "NAME"
        return BadCredentials(
            f"the server refuses its password: {text}",
            hint=f'`bridgectl vault put {name}`, with login = "server_password" in the connector\'s table',
        )

    def _maybe_refused(self, line: IrcLine, now: float) -> list[Event]:
        numeric = line.command
        if numeric[0] not in "45" or len(line.params) < 2:
            return []
        if not self._welcomed and numeric in _NICK_REFUSED:
            return self._nick_refused(line, now)
        if not self.is_registered and numeric == "421" and line[1].upper() == "CAP":
            if self._uses_sasl:
                raise self._no_services()
            return []
        if not self.is_registered and numeric == "401" and self.fold(line[1]) == "nickserv":
            raise self._no_services()
        events: list[Event] = []
        target = line[1]
        if numeric in _NOT_JOINED and self.support.is_channel(target) and self.channels.get(target) is None:
            events.append(NotJoined(channel=target, numeric=numeric, text=line[-1]))
        return [
            *events,
            Refused(
                numeric=numeric,
                target=target,
                text=line[-1],
                label=self._batches.label(line),
                params=line.params[1:-1],
            ),
        ]

    # -- commands -------------------------------------------------------------------------------------------

    def _ping(self, line: IrcLine, now: float) -> list[Event]:
        self._write("PONG", *line.params)
        return []

    def _pong(self, line: IrcLine, now: float) -> list[Event]:
        return [Pong(line[-1], self._batches.label(line))]

    def _error(self, line: IrcLine, now: float) -> list[Event]:
        text = line[-1]
        # A kill's reason is free text of an operator: only what the server itself says counts as a ban.
        if "killed" not in text.lower() and _BANNED.search(text):
            raise Banned(f"the server shut us out: {text}", hint="ask the network's operators")
        if not self.is_registered and _DENIED.search(text):
            raise self._password_refused(text)
        raise Disconnected(f"the server closed the connection: {text}")

    def _joined(self, line: IrcLine, now: float) -> list[Event]:
        source = Source.parse(line.source)
        name = line[0]
        if not self.is_me(source.nick):
            return self.channels.joined(name, source.nick, now, line.tags.get("time"))
        if source.user is not None:
            self.user, self.host = source.user, source.host
        self.channels.enter(name)
        return [Joined(name)]

    def _part(self, line: IrcLine, now: float) -> list[Event]:
        source = Source.parse(line.source)
        return self._left(line, source.nick, "leave", None, line[1])

    def _kick(self, line: IrcLine, now: float) -> list[Event]:
        return self._left(line, line[1], "kick", Source.parse(line.source).nick, line[2])

    def _left(self, line: IrcLine, nick: str, change: str, by: str | None, reason: str) -> list[Event]:
        name = line[0]
        if not self.is_me(nick):
            return self.channels.left(name, nick, change, by=by, reason=reason, time=line.tags.get("time"))
        channel = self.channels.name(name)
        self.channels.leave(name)
        return [Expelled(channel=channel, by=by or nick, reason=reason)]

    def _quit(self, line: IrcLine, now: float) -> list[Event]:
        source = Source.parse(line.source)
        split = is_split(line[0]) or self._batches.is_split(line)
        events = self.channels.quit(source.nick, line[0], now, line.tags.get("time"), split=split)
        self._maybe_regain(source.nick, now)
        return events

    def _renamed(self, line: IrcLine, now: float) -> list[Event]:
        source = Source.parse(line.source)
        events = self.channels.renamed(source.nick, line[0], line.tags.get("time"))
        if self.is_me(source.nick):
            self.nick = line[0]
            self._regain_at = math.inf if self.is_me(self.wanted_nick) else now + REGAIN_S
            return []
        self._maybe_regain(source.nick, now)
        return events

    def _maybe_regain(self, freed: str, now: float) -> None:
        if self._regain_at != math.inf and self.fold(freed) == self.fold(self.wanted_nick):
            self._regain(now)

    def _chghost(self, line: IrcLine, now: float) -> list[Event]:
        if self.is_me(Source.parse(line.source).nick):
            self.user, self.host = line[0] or self.user, line[1] or self.host
        return []

    def _account(self, line: IrcLine, now: float) -> list[Event]:
        if not self.is_me(Source.parse(line.source).nick):
            return []
        self.account = None if line[0] in ("*", "") else line[0]
        return self._identified(now) if self.account is not None else []

    def _said(self, line: IrcLine, now: float) -> list[Event]:
        source = Source.parse(line.source)
        if source.user is None and not self.is_registered:
            return []  # the server's own notices while we log in
        text, kind = line[1], "notice" if line.command.upper() == "NOTICE" else "message"
        if text.startswith("\x01"):
            verb, _, rest = text.strip("\x01").partition(" ")
            if verb.upper() == "ACTION":
                text, kind = rest, "action"
            else:
                self._ctcp(source, line, verb.upper(), rest, now)
                return []
        channel = self.support.target_channel(line[0])
        return [
            Message(
                kind=kind,
                source=source,
                target=line[0],
                channel=None if channel is None else self.channels.name(channel),
                text=text,
                tags=line.tags,
                msgid=line.tags.get("msgid") or None,
                account=_account_of(line),
                time=line.tags.get("time") or None,
                label=self._batches.label(line),
                is_own=self._is_own(line, source),
                is_playback=self._batches.is_playback(line),
            )
        ]

    def _ctcp(self, source: Source, line: IrcLine, verb: str, rest: str, now: float) -> None:
        """Answer a person's VERSION and PING; nothing else, never a channel, never often."""
        asked = line.command.upper() == "PRIVMSG" and self.is_me(line[0]) and not self.is_me(source.nick)
        if not asked or source.user is None or now < self._ctcp_at or self._batches.is_playback(line):
            return
        answer = {"VERSION": f"VERSION {VERSION}", "PING": f"PING {rest[:100]}"}.get(verb)
        if answer is not None:
            self._ctcp_at = now + CTCP_PAUSE_S
            self._write("NOTICE", source.nick, f"\x01{answer}\x01")

    def _tagmsg(self, line: IrcLine, now: float) -> list[Event]:
        source = Source.parse(line.source)
        channel = self.support.target_channel(line[0])
        for tag, what in (("+draft/react", "react"), ("+draft/unreact", "unreact"), ("+typing", "typing")):
            value = line.tags.get(tag)
            if value:
                return [
                    Tagged(
                        source=source,
                        channel=None if channel is None else self.channels.name(channel),
                        what=what,
                        value=value,
                        msgid=line.tags.get("+draft/reply") or line.tags.get("+reply") or None,
                        account=_account_of(line),
                        time=line.tags.get("time") or None,
                        is_own=self.is_me(source.nick),
                    )
                ]
        return []

    def _redact(self, line: IrcLine, now: float) -> list[Event]:
        source = Source.parse(line.source)
        channel = self.support.target_channel(line[0])
        return [
            Redacted(
                source=source,
                channel=None if channel is None else self.channels.name(channel),
                msgid=line[1],
                reason=line[2],
                time=line.tags.get("time") or None,
                is_own=self.is_me(source.nick),
            )
        ]

    def _ack(self, line: IrcLine, now: float) -> list[Event]:
        label = self._batches.label(line)
        return [] if label is None else [Acked(label)]

    def _fail(self, line: IrcLine, now: float) -> list[Event]:
        """FAIL command code [context…] :text"""
        context = line.params[2:-1]
        return [
            Refused(
                numeric=line[1],
                target=context[0] if context else "",
                text=line[-1],
                label=self._batches.label(line),
                params=line.params[:-1],
            )
        ]

    # -- batches --------------------------------------------------------------------------------------------

    def _batch(self, line: IrcLine, now: float) -> list[Event]:
        batch = self._batches.take(line)
        if batch is None:
            return []
        if batch.kind in SPLITS:
            self.channels.flush()
            return self.channels.tick(now)
        if batch.kind == MULTILINE and batch.lines:
            return self._multiline(batch, now)
        if batch.kind == "labeled-response" and batch.label is not None:
            return [Acked(batch.label)]
        return []

    def _multiline(self, batch: Batch, now: float) -> list[Event]:
        tags = {**batch.lines[0].tags, **batch.opening.tags}
        return [
            attrs.evolve(
                event,
                text=batch.text,
                tags=tags,
                msgid=tags.get("msgid") or None,
                time=tags.get("time") or None,
                label=self._batches.label(batch.opening),
                is_playback=self._batches.is_playback(batch.opening),
            )
            for event in self._said(batch.lines[0], now)
            if isinstance(event, Message)
        ]

    def _is_own(self, line: IrcLine, source: Source) -> bool:
        """Did we say it?  In a playback also under another nick, so that no old line of ours comes back."""
        if self.is_me(source.nick):
            return True
        if not self._batches.is_playback(line):
            return False
        account = _account_of(line)
        same_mask = source.user is not None and (source.user, source.host) == (self.user, self.host)
        return (account is not None and account == self.account) or (
            same_mask and self.fold(source.nick).startswith(self.fold(self.wanted_nick))
        )


def _account_of(line: IrcLine) -> str | None:
    account = line.tags.get("account")
    return account if account and account != "*" else None


def _capabilities(text: str) -> dict[str, str]:
    """`a b=c -d` -> names with their values."""
    return {name: value for name, _, value in (item.partition("=") for item in text.split())}


_HANDLERS = {
    "ACCOUNT": Session._account,
    "ACK": Session._ack,
    "AUTHENTICATE": Session._authenticate,
    "BATCH": Session._batch,
    "CAP": Session._cap,
    "CHGHOST": Session._chghost,
    "ERROR": Session._error,
    "FAIL": Session._fail,
    "JOIN": Session._joined,
    "KICK": Session._kick,
    "NICK": Session._renamed,
    "NOTICE": Session._said,
    "PART": Session._part,
    "PING": Session._ping,
    "PONG": Session._pong,
    "PRIVMSG": Session._said,
    "QUIT": Session._quit,
    "REDACT": Session._redact,
    "TAGMSG": Session._tagmsg,
}
