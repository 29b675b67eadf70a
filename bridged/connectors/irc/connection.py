"""One connection to an IRC network at work: Trio around the pure rooms.

One reader, one writer (the protocol's own lines ahead of all chat, so that a PONG never waits behind a queue), one
clock, one publisher. Pacing is confirmation: one unconfirmed line a target, four a connection, no fixed bucket; a
server that meters its clients so sets the pace itself, and the queue stays in the fabric.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Sequence
from itertools import groupby

import attrs
import trio

from bridged.connectors import ConnectorState
from bridged.connectors.desk import Cursor, Desk
from bridged.connectors.intent import Delivered, Failed, Intent, Outcome, Retry, Unknown
from bridged.connectors.irc.attendance import CLOSED, Attendance, Place
from bridged.connectors.irc.confirm import (
    CONFIRM_S,
    PATIENCE,
    REFUSALS,
    Confirmations,
    Confirmed,
    Ticket,
)
from bridged.connectors.irc.events import (
    Event,
    Expelled,
    Joined,
    Message,
    Moved,
    Named,
    NotJoined,
    Redacted,
    Refused,
    Registered,
    Tagged,
)
from bridged.connectors.irc.mapping import Inbound, Publication
from bridged.connectors.irc.rendering import Rendering, render
from bridged.connectors.irc.session import Session
from bridged.connectors.irc.settings import Settings
from bridged.connectors.irc.wire import IrcLine, LineBuffer, LineFault
from bridged.errors import BridgeError, Disconnected, RemoteProtocolFault
from bridged.refs import ChannelRef, RefError
from shards.errors import RequestFailed

# Ours.
UNCONFIRMED_MAX = 4
EVENTS_MAX = 4096
"""Heard and not yet on disk; beyond it the socket is not read, and the server's own limit decides."""
PUBLISH_TOGETHER = 64
DRAIN_S = 5.0
"""What was heard before a connection ended is still published so long."""
FAULTS_MAX = 100
"""Lines that are none, before the connection is given up."""
SETTLED_S = 10.0
"""All channels have answered, or this long has passed: then the connector is up."""
TICK_S = 1.0
PROGRESS_KEPT = 1024


@attrs.define(eq=False)
class Progress:
    """How far an intent of several lines has got; outlives a connection, not the process."""

    rendering: Rendering
    confirmed: int = 0
    msgids: list[str] = attrs.field(factory=list)
    ticket: Ticket | None = None

    @property
    def is_in_doubt(self) -> bool:
        """Is a line written and unconfirmed?"""
        return self.ticket is not None and self.ticket.is_written and self.ticket.verdict is None


@attrs.define(eq=False)
class Memory:
    """What one connection leaves to the next in the same process."""

    progress: OrderedDict[tuple[str, str], Progress] = attrs.field(factory=OrderedDict)
    heard_until: dict[str, float] = attrs.field(factory=dict)
    """By stream: until when nothing was missed and all is published, seconds since 1970."""


class Connection:
    """One connected stream with its login.

    Args:
        stream: Connected, TLS done.
        session: Fresh.
        memory: The connector's own.
    """

    def __init__(
        self,
        *,
        desk: Desk,
        settings: Settings,
        stream: trio.abc.Stream,
        session: Session,
        refs: Sequence[str],
        memory: Memory,
    ) -> None:
        self.session = session
        self.unmapped = 0
        """Events that no payload could be made of."""
        self._desk = desk
        self._settings = settings
        self._stream = stream
        self._memory = memory
        self._inbound = Inbound(
            workspace=desk.tenant, network=settings.network, support=session.support, refs=refs
        )
        self._attendance = Attendance(session.support)
        self._confirmations = Confirmations(session.support, session.caps)
        self._slots = trio.Semaphore(UNCONFIRMED_MAX)
        self._chat: deque[tuple[Ticket, bytes]] = deque()
        self._waiting: dict[Ticket, trio.Event] = {}
        self._wake = trio.Event()
        self._changed = trio.Event()
        self._registered = trio.Event()
        self._heard_at = trio.current_time()
        self._heard_wall = desk.env.wall()
        self._asked_for_life = False
        self._out_since: dict[str, float] = {}
        self._cursors: dict[str, Cursor] = {}
        self._published = trio.Event()
        self._is_drained = False
        self._events, self._heard = trio.open_memory_channel[tuple[Event, float]](EVENTS_MAX)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Until the connection ends, which is always raised.

        Raises:
            Disconnected, BadCredentials, Banned, RemoteProtocolFault: alone or in an exception group.
        """
        async with trio.open_nursery() as outer:
            outer.start_soon(self._publish_all)
            try:
                async with self._events, trio.open_nursery() as nursery:
                    self.session.open(trio.current_time())
                    nursery.start_soon(self._read)
                    nursery.start_soon(self._write)
                    nursery.start_soon(self._keep_time)
                    await self._registered.wait()
                    await nursery.start(self._attend)
                    await nursery.start(self._deliver)
                    task_status.started()
            finally:
                await self._wind_up()  # noqa: ASYNC102 - it shields itself, with a deadline

    def set_refs(self, refs: Sequence[str]) -> None:
        """Be in these channels from now on."""
        self._inbound.set_refs(refs)
        for name in self._attendance.want_only(self._joinable()):
            self.session.part(name)
        self._stir()

    async def _deliver(self, *, task_status: trio.TaskStatus[None]) -> None:
        await self._desk.outbound(self.send, task_status=task_status)

    async def _wind_up(self) -> None:
        """What was heard goes to disk; where all of it did, nothing was missed until now."""
        with trio.move_on_after(DRAIN_S, shield=True):
            await self._published.wait()
        if self._is_drained:
            for channel in self.session.channels:
                self._memory.heard_until[self._inbound.stream(channel.name)] = self._heard_wall
        with trio.move_on_after(1.0, shield=True):
            if self.session.is_registered:
                await self._farewell()

    async def _farewell(self) -> None:
        try:
            await self._stream.send_all(IrcLine("QUIT", ("the bridge stops",)).encode())
        except (trio.BrokenResourceError, trio.ClosedResourceError, trio.BusyResourceError):
            return

    # -- the three that hold the connection -------------------------------------------------------------------

    async def _read(self) -> None:
        buffer = LineBuffer()
        while True:
            try:
                data = await self._stream.receive_some(65536)
            except (trio.BrokenResourceError, trio.ClosedResourceError) as exc:
                raise Disconnected("the connection broke") from exc
            if not data:
                raise Disconnected("the server closed the connection")
            self._heard_at, self._heard_wall = trio.current_time(), self._desk.env.wall()
            self._asked_for_life = False
            try:
                lines = buffer.receive(bytes(data))
            except LineFault as exc:
                raise RemoteProtocolFault(f"the server sent {exc}") from exc
            for raw in lines:
                await self._line(raw)

    async def _line(self, raw: bytes) -> None:
        try:
            line = IrcLine.decode(raw, fallback=self._settings.encoding)
        except LineFault as exc:
            self.session.faults += 1
            if self.session.faults > FAULTS_MAX:
                raise RemoteProtocolFault(f"the server sends what is no IRC: {exc}") from exc
            return
        for event in self.session.receive(line, trio.current_time()):
            await self._on(event)
        self._stir()

    async def _write(self) -> None:
        while True:
            data = b"".join(map(self._encode, self.session.lines()))
            is_chat = not data and bool(self._chat)
            if is_chat:
                ticket, data = self._chat.popleft()
                ticket.is_written = True  # from here on it may be out, whatever happens
                self._desk.env.maybe("irc.write")
            if not data:
                await self._wake.wait()
                self._wake = trio.Event()
                continue
            try:
                await self._stream.send_all(data)
            except (trio.BrokenResourceError, trio.ClosedResourceError) as exc:
                raise Disconnected("the connection broke while it was written to") from exc
            if is_chat:
                self._desk.env.maybe("irc.written")

    def _encode(self, line: IrcLine) -> bytes:
        try:
            return line.encode()
        except LineFault:  # an answer made of the server's own words, longer than it would take
            self.session.faults += 1
            return b""

    async def _keep_time(self) -> None:
        """What is due: the session's deadlines, channels to ask for, a sign of life."""
        while True:
            now = trio.current_time()
            for event in self.session.tick(now):
                await self._on(event)
            if self.session.is_registered:
                self.session.join(*self._attendance.due(now))
            silent_s = now - self._heard_at
            if silent_s >= 2 * self._settings.ping_s:
                raise Disconnected(f"no sign of life from the server for {silent_s:.0f} s")
            if silent_s >= self._settings.ping_s and not self._asked_for_life:
                self._asked_for_life = True
                self.session.ping("bridged-alive")
            self._stir()
            due = min(self.session.deadline, self._attendance.deadline, now + TICK_S)
            await trio.sleep(max(due - now, 0.01))

    def _stir(self) -> None:
        self._wake.set()

    # -- what is heard ----------------------------------------------------------------------------------------

    async def _on(self, event: Event) -> None:
        ticket = self._confirmations.observe(event)
        if ticket is not None and ticket in self._waiting:
            self._waiting.pop(ticket).set()
        now = trio.current_time()
        match event:
            case Registered():
                self._attendance.want_only(self._joinable())
                self._registered.set()
            case Joined(channel):
                self._attendance.joined(channel)
            case NotJoined():
                self._attendance.refused(event.channel, event.numeric, event.text, now)
            case Expelled():
                self._attendance.expelled(event.channel, event.by, event.reason, now)
        if isinstance(event, Joined | NotJoined | Expelled):
            self._changed.set()
            self._changed = trio.Event()
        if isinstance(event, Message | Tagged | Redacted | Moved | Named | Joined | Expelled):
            await self._events.send((event, self._desk.env.wall()))

    def _joinable(self) -> list[str]:
        return [name for name in self._inbound.channels if self.session.can_join(name)]

    async def _attend(self, *, task_status: trio.TaskStatus[None]) -> None:
        """Ask for the channels, then tell the operator where we are, on every change."""
        self.session.join(*self._attendance.due(trio.current_time()))
        self._stir()
        with trio.move_on_after(SETTLED_S):
            while not all(place.is_in or place.trouble for place in self._attendance):
                await self._changed.wait()
        task_status.started()
        while True:
            changed = self._changed
            await self._desk.state(ConnectorState.RUNNING, self._detail())
            await changed.wait()

    def _detail(self) -> str:
        refused = [name for name in self._inbound.channels if not self.session.can_join(name)]
        troubles = self._attendance.troubles + [f"{name}: no name of a channel here" for name in refused]
        there = sum(place.is_in for place in self._attendance)
        words = f"{self.session.nick} on {self._settings.network}, {there} channels"
        return "; ".join([words, *troubles])

    async def _publish_all(self) -> None:
        """Everything heard, in order, onto the log; the reader goes on meanwhile."""
        try:
            await self._fetch_cursors()
            await self._publish_heard()
            self._is_drained = True
        finally:
            self._published.set()

    async def _publish_heard(self) -> None:
        async with self._heard:
            async for event, wall in self._heard:
                publications = self._map(event, wall)
                while len(publications) < PUBLISH_TOGETHER:
                    try:
                        publications += self._map(*self._heard.receive_nowait())
                    except (trio.WouldBlock, trio.EndOfChannel):
                        break
                for (action, key, is_ephemeral), group in groupby(publications, _kind):
                    payloads = [publication.payload for publication in group]
                    if is_ephemeral:
                        for payload in payloads:
                            await self._desk.publish_ephemeral(action, payload, key=key)
                    else:
                        await self._desk.publish_all(action, payloads, key=key)

    async def _fetch_cursors(self) -> None:
        while True:
            try:
                self._cursors = await self._desk.cursors()
                break
            except RequestFailed:
                await trio.sleep(0.5)  # the facade is not up yet; what is heard waits here
        for stream, cursor in self._cursors.items():
            if cursor.value.isdecimal():
                self._inbound.resume(stream, int(cursor.value))

    def _map(self, event: Event, wall: float) -> list[Publication]:
        try:
            match event:
                case Message():
                    return _some(self._inbound.message(event, wall=wall))
                case Tagged():
                    return _some(self._inbound.tagged(event, wall=wall))
                case Redacted():
                    return _some(self._inbound.redacted(event, wall=wall))
                case Moved():
                    return self._inbound.moved(event, wall=wall)
                case Named():
                    return [self._inbound.named(event, wall=wall)]
                case Expelled():
                    self._out_since[self._inbound.stream(event.channel)] = wall
                case Joined():
                    return self._gap(event.channel, wall)
        except BridgeError:  # a name that no reference can hold: this event alone
            self.unmapped += 1
        return []

    def _gap(self, channel: str, wall: float) -> list[Publication]:
        """We are in: what was said since we last listened is a gap, from the last line that is safe."""
        self._inbound.forget_playback(channel)
        stream = self._inbound.stream(channel)
        cursor = self._cursors.pop(stream, None)
        heard_until = self._memory.heard_until.pop(stream, None)
        known = [self._out_since.pop(stream, None), heard_until]
        reason = "connection_lost" if any(at is not None for at in known) else "daemon_down"
        if cursor is not None and cursor.value.isdecimal():
            known.append(int(cursor.value) / 1000)
        begins = [at for at in known if at is not None]
        return [self._inbound.gap(channel, max(begins), wall, reason)] if begins else []

    # -- what is said -----------------------------------------------------------------------------------------

    async def send(self, intent: Intent) -> Outcome:
        """Say one intent and wait for the server's word on each of its lines."""
        key = (intent.trace_id, intent.channel)
        progress = self._memory.progress.get(key)
        if intent.was_written and (progress is None or progress.is_in_doubt):
            self._memory.progress.pop(key, None)
            return Unknown("it was written, and the connection ended before the server's word on it")
        target = self._target(intent)
        if isinstance(target, Failed):
            return target
        while True:
            refusal = await self._enter(target)
            if refusal is not None:
                return refusal
            target = self.session.channels.name(target)
            if progress is None:
                rendering = render(
                    intent,
                    bytes_max=self.session.text_bytes("PRIVMSG", target),
                    can_redact="draft/message-redaction" in self.session.caps,
                )
                if isinstance(rendering, Failed):
                    return rendering
                progress = Progress(rendering)
                self._remember(key, progress)
            outcome = await self._say(intent, target, progress)
            # Refused because we were put out meanwhile: nobody read it, and it goes on when we are back.
            if not isinstance(outcome, Failed) or self._attendance.want(target).is_in:
                break
        if not isinstance(outcome, Retry):
            self._memory.progress.pop(key, None)
        return outcome

    def _target(self, intent: Intent) -> str | Failed:
        try:
            ref = ChannelRef.parse(intent.channel)
        except RefError as exc:
            return Failed(code="invalid_field", message=str(exc))
        if ref.service != "irc" or not self.session.can_join(ref.pointer[-1]):
            return Failed(code="not_found", message=f"{intent.channel} is no channel of this network")
        return ref.pointer[-1]

    async def _enter(self, target: str) -> Failed | Retry | None:
        """Wait until we are in the channel; None when we are."""
        while True:
            place = self._attendance.want(target)
            if place.is_in:
                return None
            if place.numeric in CLOSED:
                return Failed(
                    code="not_found" if place.numeric == "403" else "forbidden",
                    message=place.trouble or "the channel does not let the bridge in",
                    retryable=True,
                    native=place.numeric,
                )
            if place.numeric is not None:
                return Retry(_patience(place), place.trouble or "not in the channel")
            await self._changed.wait()

    async def _say(self, intent: Intent, target: str, progress: Progress) -> Outcome:
        rendering = progress.rendering
        for parts in self._writes(rendering, target)[progress.confirmed :]:
            async with self._slots:
                await intent.mark_written()
                verdict = await self._write_one(target, rendering, parts, progress)
            if isinstance(verdict, Refused):
                return _refusal(verdict, progress)
            progress.confirmed += 1
            if verdict.msgid is not None:
                progress.msgids.append(verdict.msgid)
        parts = tuple(progress.msgids) if len(progress.msgids) > 1 else ()
        return Delivered(remote_id=next(iter(progress.msgids), None), parts=parts)

    def _writes(self, rendering: Rendering, target: str) -> list[tuple[str, ...]]:
        """The texts of a rendering, grouped by what is written and confirmed together."""
        if rendering.redact is not None:
            return [(rendering.redact,)]
        if len(rendering.texts) > 1 and self._multiline_fits(rendering.texts):
            return [rendering.texts]
        return [(text,) for text in rendering.texts]

    def _multiline_fits(self, texts: Sequence[str]) -> bool:
        offer = self.session.caps.get("draft/multiline")
        if offer is None or not self._confirmations.can_label:
            return False
        limits = dict(item.partition("=")[::2] for item in offer.split(","))
        bytes_max, lines_max = limits.get("max-bytes", ""), limits.get("max-lines", "100")
        if not bytes_max.isdecimal() or not lines_max.isdecimal():
            return False
        return len(texts) <= int(lines_max) and sum(len(text.encode()) + 1 for text in texts) <= int(
            bytes_max
        )

    async def _write_one(
        self, target: str, rendering: Rendering, texts: tuple[str, ...], progress: Progress
    ) -> Confirmed | Refused:
        command = "REDACT" if rendering.redact is not None else rendering.command
        if command == "NOTICE" and not self._confirmations.can_echo:
            command = "PRIVMSG"  # a NOTICE gets no error reply: without an echo nobody could confirm it
        ticket = self._confirmations.issue(command, target)
        tags = {"label": ticket.label} if ticket.label is not None else {}
        if rendering.reply_to and not progress.confirmed and "message-tags" in self.session.caps:
            tags["+draft/reply"] = rendering.reply_to
        lines = _lines(command, target, texts, tags, f"b{ticket.label}")
        if ticket.token is not None:
            lines.append(IrcLine("PING", (ticket.token,)))
        decided = self._waiting[ticket] = trio.Event()
        progress.ticket = ticket
        self._chat.append((ticket, b"".join(line.encode() for line in lines)))
        self._stir()
        with trio.move_on_after(CONFIRM_S):
            await decided.wait()
        if ticket.verdict is None:
            barrier = self._confirmations.barrier(ticket)
            if barrier is not None:
                self.session.ping(barrier[0])
                self._stir()
            await decided.wait()
        if ticket.verdict is None:
            raise Disconnected("the connection ended before the server's word")
        progress.ticket = None
        return ticket.verdict

    def _remember(self, key: tuple[str, str], progress: Progress) -> None:
        self._memory.progress[key] = progress
        while len(self._memory.progress) > PROGRESS_KEPT:
            self._memory.progress.popitem(last=False)


def _kind(publication: Publication) -> tuple[str, bytes, bool]:
    return publication.action, publication.key, publication.is_ephemeral


def _some(publication: Publication | None) -> list[Publication]:
    return [] if publication is None else [publication]


def _patience(place: Place) -> float:
    return min(max(place.ask_at - trio.current_time(), 1.0), 60.0)


def _lines(
    command: str, target: str, texts: Sequence[str], tags: dict[str, str], reference: str
) -> list[IrcLine]:
    if len(texts) == 1:
        return [IrcLine(command, (target, texts[0]), tags=tags)]
    return [
        IrcLine("BATCH", (f"+{reference}", "draft/multiline", target), tags=tags),
        *(IrcLine(command, (target, text), tags={"batch": reference}) for text in texts),
        IrcLine("BATCH", (f"-{reference}",)),
    ]


def _refusal(refused: Refused, progress: Progress) -> Failed | Retry:
    after_s = PATIENCE.get(refused.numeric)
    if after_s is not None:
        return Retry(after_s, f"{refused.numeric} {refused.text}")
    message = refused.text
    if progress.confirmed:
        message += f" (after {progress.confirmed} of {len(progress.rendering.texts)} lines)"
    code = REFUSALS.get(refused.numeric, "remote_rejected")
    return Failed(code=code, message=message, native=refused.numeric)
