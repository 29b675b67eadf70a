"""The fake network's switchboard: who gets which line, in whose way of speaking, and what was said to whom.

Handlers (`registration`, `channels`, `messages` …) change the state and call `send`; links and persons bring
lines in by `handle`.  Nothing here blocks: a line's whole effect happens in one step, so a test sees either
all of it or nothing.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Literal

import attrs
import trio

from bridged.peers.irc.dialect import EXTRA_CAPABILITIES, Dialect
from bridged.peers.irc.line import NO_TAGS, Line, cut, encode, format_body, format_tags, parse
from bridged.peers.irc.state import Server, User, World, matches_mask
from bridged.peers.stamp import utc
from shards.env import Env

if TYPE_CHECKING:
    from bridged.peers.irc.faults import Faults

LOG_MAX = 200_000
"""Lines that the log keeps; the oldest go first."""
LABEL_BYTES_MAX = 64

Handler = Callable[["Network", User, Line], None]


@attrs.frozen
class Entry:
    """One line as it crossed the wire, without CR LF."""

    at: float
    """Trio's clock."""
    link: int
    """0 for a person, else the connection's number in order of connecting."""
    nick: str
    direction: Literal["in", "out", "event"]
    """`in`: said by the client.  `event`: no line but a note: connect, eof, reset …"""
    data: bytes

    @property
    def text(self) -> str:
        return self.data.decode("utf-8", "replace")


@attrs.frozen
class Outgoing:
    """A line before it is rendered for one user's capabilities."""

    source: str | None
    command: str
    params: tuple[str, ...]
    tags: Mapping[str, str] = NO_TAGS
    """Client tags: theirs alone who asked for message-tags."""
    msgid: str = ""
    account: str | None = None
    is_echo: bool = False
    at: float | None = None
    """When it was said, for replays; None is now."""
    batch: str | None = None
    label: str | None = None
    colon: bool = True


@attrs.define(eq=False)
class Answer:
    """The lines that one labelled command has brought its sender so far."""

    user: User
    lines: list[Outgoing] = attrs.field(factory=list)


@attrs.frozen(kw_only=True)
class Account:
    """A registered account, for SASL and NickServ."""

    name: str
    password: str
    fingerprints: frozenset[str] = frozenset()


@attrs.frozen(kw_only=True)
class Options:
    """What a script may set of the network before it opens."""

    name: str = "LabNet"
    password: str | None = None
    registration_delay_s: float = 0.0
    """InspIRCd takes 0 to 1 s to answer the last line of a registration."""
    registration_s: float = 30.0
    ping_s: float = 60.0
    recvq_bytes: int = 65_536
    sendq_bytes: int = 1 << 20
    extra_capabilities: tuple[str, ...] = ()
    mechanisms: tuple[str, ...] = ("PLAIN", "EXTERNAL")
    excess_flood: bool = False
    """Metered clients are cut off (`Excess Flood`) instead of slowed down."""
    operators: Mapping[str, str] = attrs.field(factory=lambda: {"oper": "operpw"})


class Network:
    """All servers, users and channels of one fake network."""

    def __init__(self, env: Env, dialect: Dialect, options: Options, nursery: trio.Nursery) -> None:
        self.env = env
        self.dialect = dialect
        self.options = options
        self.nursery = nursery
        self.faults: Faults
        unknown = set(options.extra_capabilities) - set(EXTRA_CAPABILITIES)
        if unknown:
            raise ValueError(f"unknown extra capabilities: {', '.join(sorted(unknown))}")
        self.capabilities: list[str] = [*dialect.capabilities, *options.extra_capabilities]
        self.servers: list[Server] = []
        self.accounts: dict[str, Account] = {}
        self.services = False
        """Are the services linked?  Adding an account links them."""
        self.klines: list[tuple[str, str, str]] = []
        """(mask, reason, who set it)."""
        self.was: deque[tuple[float, User]] = deque(maxlen=1000)
        """Who left, for WHOWAS: newest first."""
        self.users_max = 0
        self.log: deque[Entry] = deque(maxlen=LOG_MAX)
        self.log_count = 0
        """Entries ever made; the log keeps the last of them."""
        self.line_logged = trio.Event()
        """Set, and made anew, whenever the log grows."""
        self._answer: Answer | None = None
        self._swallow: User | None = None
        self._handlers: dict[str, Handler] = {}
        self._before: dict[str, Handler] = {}

    # ---------------------------------------------------------------- servers, accounts

    def add_server(self, name: str, sid: str) -> Server:
        """Link one more server."""
        world = self.servers[0].world if self.servers else World(self.dialect)
        server = Server(name, sid, self.env.wall(), world)
        self.servers.append(server)
        world.servers.append(server)
        return server

    def install(self, handlers: Mapping[str, Handler], *, unregistered: Iterable[str] = ()) -> None:
        """Make commands known; `unregistered` are those that a client may send before it is registered."""
        self._handlers.update(handlers)
        for command in unregistered:
            self._before[command] = handlers[command]

    def uninstall(self, *commands: str) -> None:
        """Make commands unknown."""
        for command in commands:
            self._handlers.pop(command, None)
            self._before.pop(command, None)

    # ---------------------------------------------------------------- lines in

    def handle(self, user: User, data: bytes) -> None:
        """Carry out one line, without CR LF, of a client or a person."""
        if user.gone:
            return
        line = parse(data)
        if line is None:
            return
        label = line.tags.get("label", "") if user.has("labeled-response") else ""
        if label and len(encode(label)) <= LABEL_BYTES_MAX:
            self._answer = Answer(user)
            try:
                self._dispatch(user, line)
            finally:
                answer, self._answer = self._answer, None
            self._finish(answer, label)
        else:
            self._dispatch(user, line)

    def _dispatch(self, user: User, line: Line) -> None:
        dialect = self.dialect
        handler = self._handlers.get(line.command)
        if not dialect.tags and line.tags:
            self.numeric(user, "421", "@" + ";".join(f"{k}={v}" if v else k for k, v in line.tags.items()))
            return
        if not user.registered and line.command not in self._before:
            if handler is not None:  # an unknown command gets silence before registration
                self.numeric(user, "451", *([] if dialect.name == "ngircd" else [line.command]))
            return
        if handler is None:
            self.numeric(user, "421", line.command)
            return
        count = len(line.params)
        most = dialect.joined.get(line.command, count)
        if count > most:  # seen: what is too much belongs to the last parameter
            line = attrs.evolve(line, params=(*line.params[: most - 1], " ".join(line.params[most - 1 :])))
            count = most
        too_few = count < dialect.minimum.get(line.command, 0)
        if too_few or count > dialect.maximum.get(line.command, count):
            self.numeric(user, "461", line.command)
            return
        user.active_at = self.env.wall() if line.command in ("PRIVMSG", "NOTICE") else user.active_at
        handler(self, user, line)

    def _finish(self, answer: Answer, label: str) -> None:
        """Send what a labelled command brought its sender: itself, a batch, or ACK for nothing."""
        user, lines = answer.user, answer.lines
        server = user.server.name
        if user.gone:
            for line in lines:
                self._write(user, line)
        elif not lines:
            self._write(user, Outgoing(server, "ACK", (), label=label))
        elif len(lines) == 1 or not user.has("batch") or any(line.command == "BATCH" for line in lines):
            for n, line in enumerate(lines):
                self._write(user, attrs.evolve(line, label=label) if n == 0 else line)
        elif (
            lines[-1].is_echo and lines[0].msgid == lines[-1].msgid
        ):  # a message to oneself: the echo is the answer
            self._write(user, lines[0])
            self._write(user, attrs.evolve(lines[-1], label=label))
        else:
            number = self.next_batch(user)
            self._write(user, Outgoing(server, "BATCH", (f"+{number}", "labeled-response"), label=label))
            for line in lines:
                self._write(user, attrs.evolve(line, batch=number))
            self._write(user, Outgoing(server, "BATCH", (f"-{number}",)))

    def next_batch(self, user: User) -> str:
        """A batch reference for lines to this user."""
        user.batch_number += 1
        return str(user.batch_number)

    # ---------------------------------------------------------------- lines out

    def send(
        self,
        user: User,
        source: User | str | None,
        command: str,
        *params: str,
        tags: Mapping[str, str] = NO_TAGS,
        msgid: str = "",
        is_echo: bool = False,
        colon: bool = True,
    ) -> None:
        """Send a line to one user; a `User` as the source brings its mask and account."""
        is_user = isinstance(source, User)
        self.send_prepared(
            user,
            Outgoing(
                source.mask if isinstance(source, User) else source,
                command,
                params,
                tags=tags,
                msgid=msgid,
                account=source.account if is_user and isinstance(source, User) else None,
                is_echo=is_echo,
                colon=colon,
            ),
        )

    def send_prepared(self, user: User, out: Outgoing) -> None:
        """Like `send`, of a line that is put together already."""
        if user is self._swallow:
            return
        if self._answer is not None and self._answer.user is user:
            self._answer.lines.append(out)
        else:
            self._write(user, out)

    def send_as(self, user: User, mask: str, account: str | None, command: str, *params: str) -> None:
        """Like `send`, of someone who is known by another mask by now."""
        self.send_prepared(user, Outgoing(mask, command, params, account=account))

    def is_answering(self, user: User) -> bool:
        """Is the line in hand a labelled one of this user?"""
        return self._answer is not None and self._answer.user is user

    def numeric(
        self, user: User, code: str, *params: str, text: str | None = None, colon: bool = True, **values: str
    ) -> None:
        """Send a numeric by its key in the dialect's texts (`404m` is the numeric 404)."""
        if text is None:
            text = self.dialect.texts[code].format(**values)
        words = (*params, text) if text else params
        self.send(user, user.server.name, code[:3], user.shown, *words, colon=colon)

    def tell(
        self, users: Iterable[User], source: User | str | None, command: str, *params: str, colon: bool = True
    ) -> None:
        """Send the same line to several users."""
        for user in users:
            self.send(user, source, command, *params, colon=colon)

    def render(self, user: User, out: Outgoing) -> bytes:
        """The line as this user's capabilities want it, with CR LF."""
        tags: dict[str, str] = {}
        if user.has("server-time"):
            tags["time"] = utc(self.env.wall() if out.at is None else out.at)
        if out.msgid and user.has("message-tags"):
            tags["msgid"] = out.msgid
        if out.label is not None:
            tags["label"] = out.label
        if out.is_echo and user.has("message-tags") and self.dialect.name == "inspircd":
            tags["inspircd.org/echo"] = ""
        if out.account is not None and user.has("account-tag"):
            tags["account"] = out.account
        if out.batch is not None and user.has("batch"):
            tags["batch"] = out.batch
        if user.has("message-tags"):
            tags |= {key: value for key, value in out.tags.items() if key[:1] == "+"}
        if "draft/multiline-concat" in out.tags:
            tags["draft/multiline-concat"] = ""
        body = format_body(out.source, out.command, out.params, colon=out.colon)
        return encode(format_tags(tags)) + cut(body, mark=self.dialect.cut_mark) + b"\r\n"

    def _write(self, user: User, out: Outgoing) -> None:
        user.deliver(self.render(user, out))

    def without_answers(self, user: User, act: Callable[[], None]) -> None:
        """Do something and swallow every line that it would bring this user: the reply is lost, the effect not."""
        self._swallow = user
        try:
            act()
        finally:
            self._swallow = None

    def note(self, link: int, nick: str, direction: Literal["in", "out", "event"], data: bytes) -> None:
        """Write a line to the log and wake those who wait for it."""
        self.log.append(Entry(trio.current_time(), link, nick, direction, data))
        self.log_count += 1
        event, self.line_logged = self.line_logged, trio.Event()
        event.set()

    # ---------------------------------------------------------------- leaving

    def quit(self, user: User, reason: str, *, error: str | None = None, has_error: bool = True) -> None:
        """Take a user off the network: QUIT to the neighbours, ERROR to the user, then the connection ends."""
        if user.gone:
            return
        user.gone = True
        world = user.server.world
        told = world.neighbours(user)
        self.tell(told, user, "QUIT", reason)
        self.watchers_told(world, user, "731")
        for channel in list(user.channels.values()):
            world.leave(user, channel)
        if user.nick is not None and world.users.get(self.dialect.fold(user.nick)) is user:
            del world.users[self.dialect.fold(user.nick)]
        if user.registered:
            self.was.appendleft((self.env.wall(), user))
        if has_error:
            if self.dialect.name == "ngircd":
                if user.registered:
                    words = "Connection statistics: client 0.1 kb, server 1.3 kb."
                    self.send(user, user.server.name, "NOTICE", user.shown, words)
                self.send(user, None, "ERROR", reason if error is None else error)
            else:
                who = f"{user.user or user.uid}@{user.host}"
                self.send(
                    user, None, "ERROR", f"Closing link: ({who}) [{reason if error is None else error}]"
                )
        if user.link is not None:
            user.link.finish()

    def watchers_told(self, world: World, user: User, numeric: str) -> None:
        """Tell whoever MONITORs the user: 730 is here, 731 is gone."""
        if user.nick is None or not user.registered:
            return
        folded = self.dialect.fold(user.nick)
        for other in list(world.registered()):
            if folded in other.monitored and other is not user:
                self.numeric(other, numeric, text=user.nick)

    def banned(self, user: User) -> str | None:
        """The reason of the K-line that matches the user, or None."""
        who = f"{user.user}@{user.host}"
        for mask, reason, _ in self.klines:
            if matches_mask(mask.removeprefix("*!"), who, str.lower):
                return reason
        return None
