"""slixmpp behind a Trio face: one login on one XMPP server.  The only room that imports asyncio.

slixmpp is used for what it does well (TLS, SASL, binding, XEP-0198, answering pings and disco) and kept from the
rest: every message and presence is taken out of its hands before its own handlers see it, in the order of the
stream, and goes to Trio as an element.  It never reconnects here and is never asked to: a lost stream is raised.

What is bounded here: one stanza (`bounds`); what waits to be read, by `BACKLOG_BYTES_MAX`: then the socket is not
read any more, and the server waits.
"""

from __future__ import annotations

import asyncio
import logging
import math
import socket
import ssl
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any, cast

import attrs
import slixmpp
import trio
import trio_asyncio
from slixmpp.stanza import Iq, Message, Presence

from bridged.connectors.xmpp.bounds import BoundedParser
from bridged.connectors.xmpp.jid import Jid, parse_jid
from bridged.connectors.xmpp.seen import Archived, read_archived
from bridged.connectors.xmpp.settings import Settings, TlsFiles
from bridged.connectors.xmpp.stanza import (
    CLIENT,
    MAM,
    PING,
    Element,
    StanzaError,
    child,
    element,
    iq,
    read_error,
)
from bridged.errors import BadCredentials, BridgeError, ConnectorError, Disconnected
from bridged.secret import Secret

# Specification constants.
MECHANISMS = frozenset(
    f"SCRAM-SHA-{size}{plus}" for size in ("1", "224", "256", "384", "512") for plus in ("", "-PLUS")
)
"""The ways to log in that are accepted.  PLAIN is none: it hands the password to whoever answers."""
STREAM_MANAGEMENT = "urn:xmpp:sm:3"
ANSWERED = ("urn:xmpp:message-correct:0", "urn:xmpp:reactions:0", "urn:xmpp:reply:0", "urn:xmpp:receipts")
"""Said to those who ask what this client can."""

# Ours.
CONNECT_S = 20.0
CLOSE_S = 2.0
BACKLOG_BYTES_MAX = 8_388_608

_TEMPORARY = frozenset({"temporary-auth-failure", "aborted", "incorrect-encoding", "malformed-request"})


class Refused(BridgeError):
    """A request was answered with an error."""

    def __init__(self, error: StanzaError) -> None:
        super().__init__(str(error))
        self.error = error


@attrs.frozen(kw_only=True)
class Resumption:
    """What is needed to go on with a session whose connection was lost.                           XEP-0198"""

    session_id: str
    account: Jid
    handled: int
    last_ack: int
    sequence: int
    unacked: tuple[tuple[int, Any], ...] = attrs.field(repr=False)


def tls_context(settings: Settings) -> ssl.SSLContext:
    """The context for this account; one is enough for all its logins.

    Raises:
        BadCredentials: The file of `tls = { ca = … }` cannot be used.
    """
    ca = settings.tls.ca if isinstance(settings.tls, TlsFiles) else None
    try:
        context = ssl.create_default_context(cafile=ca)
    except (OSError, ssl.SSLError) as exc:
        raise BadCredentials(
            f"the authority in {ca} cannot be used: {exc}", hint="tls = { ca = PATH } names a PEM file"
        ) from exc
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context


@asynccontextmanager
async def open_client(
    settings: Settings,
    password: Secret,
    tls: ssl.SSLContext,
    *,
    resumption: Resumption | None = None,
) -> AsyncIterator[Client]:
    """Log in; the session is up when entered and politely closed on the way out.

    Raises:
        BadCredentials: The server refused the login for good, or offers no way that is accepted.
        Disconnected: It cannot be reached, its certificate does not hold, or the stream was lost.
    """
    _listen_to_library()
    async with trio_asyncio.open_loop() as loop:
        loop.set_exception_handler(_count_orphan)
        client = Client(settings, password, tls, loop, resumption)
        try:
            with trio.move_on_after(CONNECT_S) as patience:
                await client._connect()
            if patience.cancelled_caught:
                raise Disconnected(
                    f"the server did not let us in within {CONNECT_S:.0f} s", hint="is it the right port?"
                )
            yield client
        finally:
            await client._close()  # noqa: ASYNC102 - it shields itself, with a deadline


class Client:
    """One session.  Made by `open_client`."""

    def __init__(
        self,
        settings: Settings,
        password: Secret,
        tls: ssl.SSLContext,
        loop: asyncio.AbstractEventLoop,
        resumption: Resumption | None,
    ) -> None:
        self.account: Jid = parse_jid(settings.full_jid)
        """Our own full JID, as the server bound it."""
        self.is_resumed = False
        self._settings = settings
        self._loop = loop
        self._fault: ConnectorError | None = None
        self._connect_error: object = None
        self._lost, self._ready = trio.Event(), trio.Event()
        # Unbounded by count, bounded by bytes: see `_take`.
        self._inbox, self._outbox = trio.open_memory_channel[tuple[int, Element]](math.inf)
        self._backlog_bytes = 0
        self._is_paused = False
        self._asked: dict[str, _Question] = {}
        self._pages: dict[str, tuple[str | None, list[Archived]]] = {}
        self._count = 0
        self._wants_ack = False
        self.heard_at = trio.current_time()
        """When the server last sent anything."""
        self._xmpp = _Stream(settings, password, tls, loop, self._heard)
        self._prepare(resumption)

    # -- what the connector uses --------------------------------------------------------------------------

    async def receive(self) -> Element:
        """The next message or presence, in the order of the stream.

        Raises:
            Disconnected: The stream was lost, and all that had come before was received.
        """
        try:
            size, stanza = await self._outbox.receive()
        except trio.EndOfChannel:
            raise self._fall() from None
        self._backlog_bytes -= size
        if self._is_paused and self._backlog_bytes < BACKLOG_BYTES_MAX // 2:
            self._is_paused = False
            self._xmpp.resume()
        return stanza

    def send(self, stanza: Element) -> None:
        """Hand a message or presence to the stream; what was handed over keeps its order.

        Raises:
            Disconnected: The stream is lost.
        """
        if self._lost.is_set():
            raise self._fall()
        kind = Message if stanza.tag == f"{{{CLIENT}}}message" else Presence
        self._xmpp.send(kind(stream=self._xmpp, xml=stanza, recv=True))
        self._request_ack()

    async def ask(self, question: Element, *, within_s: float = 20.0) -> Element:
        """Send an `<iq/>` and return its result.

        Raises:
            Refused: The answer is an error, or somebody who is not our server left it out.
            Disconnected: The stream was lost, or our own server left it out: then it is lost, too.
        """
        if self._lost.is_set():
            raise self._fall()
        identifier = self.new_id()
        question.set("id", identifier)
        waiting = _Question(to=question.get("to"))
        self._asked[identifier] = waiting
        try:
            self._xmpp.send(Iq(stream=self._xmpp, xml=question, recv=True))  # type: ignore[no-untyped-call]
            with trio.move_on_after(within_s):
                await waiting.event.wait()
        finally:
            del self._asked[identifier]
        if waiting.answer is None:
            if not self._lost.is_set() and waiting.to not in (None, self.account.domain):
                raise Refused(StanzaError("remote-server-timeout", "wait", f"no answer in {within_s:g} s"))
            self._lose(Disconnected(f"the server answered nothing for {within_s:g} s"))
            self._xmpp.abort()
            raise self._fall()
        error = read_error(waiting.answer)
        if error is not None:
            raise Refused(error)
        return waiting.answer

    async def ask_archive(
        self, question: Element, *, within_s: float = 60.0
    ) -> tuple[list[Archived], Element]:
        """Send an archive query; its results, in order, and the answer that ends them.  Raises as `ask`."""
        query = child(question, "query", MAM)
        assert query is not None
        query_id = query.get("queryid", "")
        results: list[Archived] = []
        self._pages[query_id] = (question.get("to"), results)
        try:
            answer = await self.ask(question, within_s=within_s)
        finally:
            del self._pages[query_id]
        return results, answer

    async def ping(self, to: Jid | None = None, *, within_s: float = 20.0) -> None:
        """Ask the server, or an address, for a sign of life.  Raises as `ask`."""
        await self.ask(iq(str(to) if to else None, "get", element("ping", PING)), within_s=within_s)

    def new_id(self) -> str:
        """An id for a stanza of this session."""
        self._count += 1
        return f"b{self._count}"

    async def wait_lost(self) -> None:
        """Return when the stream is lost."""
        await self._lost.wait()

    @property
    def is_paused(self) -> bool:
        """Is the socket not being read, because too much waits?"""
        return self._is_paused

    def resumption(self) -> Resumption | None:
        """How to go on with this session later; None where it is over or the server cannot."""
        management = self._xmpp.plugin["xep_0198"]
        if not management.sm_id or not self._lost.is_set():
            return None
        return Resumption(
            session_id=management.sm_id,
            account=self.account,
            handled=management.handled,
            last_ack=management.last_ack,
            sequence=management.seq,
            unacked=tuple(management.unacked_queue),
        )

    # -- the stream ---------------------------------------------------------------------------------------

    def _prepare(self, resumption: Resumption | None) -> None:
        xmpp = self._xmpp
        # Exactly one kind of TLS: with both, slixmpp tries both on the same port.
        xmpp.enable_direct_tls = self._settings.direct_tls
        xmpp.enable_starttls = not self._settings.direct_tls
        xmpp.enable_plaintext = False
        xmpp.plugin["feature_mechanisms"].use_mechs = set(MECHANISMS)
        xmpp.register_plugin("xep_0030")
        xmpp.register_plugin("xep_0199")
        # Its own `<r/>` overtakes the stanza that it counts: ours goes through the queue.
        xmpp.register_plugin("xep_0198", {"window": 1 << 30})
        for feature in ANSWERED:
            xmpp.plugin["xep_0030"].add_feature(feature)
        xmpp.whitespace_keepalive = False
        if resumption is not None:
            management = xmpp.plugin["xep_0198"]
            management.sm_id = resumption.session_id
            management.handled = resumption.handled
            management.last_ack = resumption.last_ack
            management.seq = resumption.sequence
            management.unacked_queue.extend(resumption.unacked)
            self.account = resumption.account
        xmpp.add_filter("in", self._take)
        for event, handler in (
            ("connection_failed", self._connection_failed),
            ("reconnect_delay", self._gave_up_connecting),
            ("failed_auth", self._login_refused),
            ("failed_all_auth", self._login_failed),
            ("stream_error", self._stream_error),
            ("stream_negotiated", self._negotiated),
            ("session_resumed", self._resumed),
            ("sm_failed", self._not_resumed),
            ("disconnected", self._disconnected),
        ):
            xmpp.add_event_handler(event, handler)

    async def _connect(self) -> None:
        host, port = self._settings.address or (None, None)
        self._xmpp.connect(host, port)
        await self._ready.wait()
        if self._lost.is_set():
            raise self._fall()

    async def _close(self) -> None:
        with trio.move_on_after(CLOSE_S + 0.5, shield=True):
            if not self._lost.is_set() and self._ready.is_set() and self._xmpp.transport is not None:
                self._xmpp.plugin["xep_0198"].sm_id = None  # a goodbye ends the session, too
                with suppress(Exception):  # whatever the library thinks of it, we are leaving
                    await trio_asyncio.aio_as_trio(self._xmpp.disconnect(wait=CLOSE_S))
        self._xmpp.cancel_connection_attempt()
        self._xmpp.abort()
        sender = self._xmpp._run_out_filters
        if sender is not None:
            sender.cancel()  # else it outlives the stream: its loop has no end
        self._lose(Disconnected("the session was closed"))

    def _heard(self) -> None:
        self.heard_at = trio.current_time()

    def _take(self, stanza: Any) -> Any:
        """Every stanza that came in, in order.  None takes it out of slixmpp's hands."""
        xml: Element = stanza.xml
        if isinstance(stanza, Iq):
            waiting = self._asked.get(xml.get("id", ""))
            if (
                waiting is None
                or xml.get("type") not in ("result", "error")
                or not self._is_from(xml, waiting.to)
            ):
                return stanza
            waiting.answer = xml
            waiting.event.set()
            return None
        if not isinstance(stanza, Message | Presence):
            return stanza
        archived = read_archived(xml, MAM) if isinstance(stanza, Message) else None
        if archived is not None:
            page = self._pages.get(archived.query_id)
            if page is not None and self._is_from(xml, page[0]):
                page[1].append(archived)
            return None  # of an archive that was not asked: forged, or late
        if not self._lost.is_set():
            size = self._xmpp.bounded.stanza_bytes
            self._backlog_bytes += size
            self._inbox.send_nowait((size, xml))
            if self._backlog_bytes > BACKLOG_BYTES_MAX and not self._is_paused:
                self._is_paused = True
                self._xmpp.pause()
        return None

    def _is_from(self, xml: Element, asked: str | None) -> bool:
        """Is the answer from whom we asked?  Our own server may also sign as our account, or not at all."""
        sender = xml.get("from")
        if asked is None:
            return sender in (None, self.account.domain, str(self.account.bare), str(self.account))
        return sender == asked

    def _request_ack(self) -> None:
        if not self._wants_ack and "stream_management" in self._xmpp.features:
            self._wants_ack = True
            self._loop.call_soon(self._send_request_ack)

    def _send_request_ack(self) -> None:
        self._wants_ack = False
        if not self._lost.is_set():
            self._xmpp.send(f"<r xmlns='{STREAM_MANAGEMENT}'/>")

    # -- what slixmpp tells -------------------------------------------------------------------------------

    def _negotiated(self, _: object) -> None:
        self._up(str(self._xmpp.boundjid.full))

    def _resumed(self, _: object) -> None:
        self.is_resumed = True
        self._up(str(self.account))

    def _up(self, jid: str) -> None:
        if not isinstance(self._xmpp.socket, ssl.SSLObject | ssl.SSLSocket):
            self._lose(Disconnected("the server let us in without TLS", hint="nothing was sent"))
            self._xmpp.abort()
            return
        self.account = parse_jid(jid)
        self._xmpp.boundjid = slixmpp.JID(jid)
        self._ready.set()

    def _not_resumed(self, _: object) -> None:
        self._xmpp.plugin["xep_0198"].sm_id = None

    def _connection_failed(self, reason: object) -> None:
        self._connect_error = reason

    def _gave_up_connecting(self, _: object) -> None:
        self._lose(_unreachable(self._connect_error))
        self._loop.call_soon(self._xmpp.cancel_connection_attempt)

    def _login_refused(self, stanza: Any) -> None:
        condition = str(stanza["condition"])
        # Not the next mechanism: after a refused SCRAM it would be asked for the password in the clear.
        self._xmpp.plugin["feature_mechanisms"].mech_list = set()
        if condition in _TEMPORARY:
            self._lose(Disconnected(f"the server cannot check the login now: {condition}"))
        else:
            self._lose(
                BadCredentials(
                    f"the server refused the login of {self._settings.jid}: {condition}",
                    hint=f"`bridgectl vault put {self._settings.credential}` with the account's password",
                )
            )

    def _login_failed(self, _: object) -> None:
        offered = sorted(self._xmpp.plugin["feature_mechanisms"].mech_list)
        self._lose(
            BadCredentials(
                f"the server offers no login that is accepted here: {', '.join(offered) or 'none'}",
                hint="SCRAM over TLS is needed (SCRAM-SHA-1 or better)",
            )
        )

    def _stream_error(self, stanza: Any) -> None:
        condition = str(stanza["condition"])
        if condition == "conflict":
            hint = f"something else logs in as {self.account}: give each bridge a `resource` of its own"
        else:
            hint = ""
        self._lose(Disconnected(f"the server ended the stream: {condition}", hint=hint))

    def _disconnected(self, reason: object) -> None:
        if isinstance(reason, OSError) and not self._ready.is_set():
            self._lose(_unreachable(reason))
        else:
            self._lose(Disconnected(_plain(reason)))

    def _lose(self, fault: ConnectorError) -> None:
        """The stream is lost; the first reason counts."""
        if self._lost.is_set():
            return
        self._fault = fault
        self._lost.set()
        self._ready.set()
        self._inbox.close()
        for waiting in self._asked.values():
            waiting.event.set()

    def _fall(self) -> ConnectorError:
        """The error to raise; one of its own each time, since several tasks raise it."""
        assert self._fault is not None
        return type(self._fault)(str(self._fault), hint=self._fault.hint)


@attrs.define(eq=False)
class _Question:
    to: str | None
    event: trio.Event = attrs.field(factory=trio.Event)
    answer: Element | None = None


class _Stream(slixmpp.ClientXMPP):
    """slixmpp's stream with bounds on what it parses, and with back-pressure."""

    def __init__(
        self,
        settings: Settings,
        password: Secret,
        tls: ssl.SSLContext,
        loop: asyncio.AbstractEventLoop,
        heard: Callable[[], None],
    ) -> None:
        super().__init__(settings.full_jid, password.reveal_text(), ssl_context=tls, loop=loop)
        self._heard = heard

    def init_parser(self) -> None:
        super().init_parser()
        self.bounded = BoundedParser()
        self.parser = cast(Any, self.bounded)

    def data_received(self, data: bytes | str) -> None:
        self._heard()
        super().data_received(data)
        if self.transport is not None:
            # The server's next small packet waits for this acknowledgement (Nagle): 40 ms, if it is delayed.
            link = self.transport.get_extra_info("socket")
            with suppress(OSError, AttributeError):
                link.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)

    def pause(self) -> None:
        if self.transport is not None:
            with suppress(RuntimeError):
                self.transport.pause_reading()

    def resume(self) -> None:
        if self.transport is not None:
            with suppress(RuntimeError):
                self.transport.resume_reading()


def _unreachable(reason: object) -> Disconnected:
    if isinstance(reason, ssl.SSLCertVerificationError):
        return Disconnected(
            f"the server's certificate does not hold: {reason.verify_message}",
            hint="it must be for the domain of the account; tls = { ca = PATH } names another authority",
        )
    if isinstance(reason, ssl.SSLError):
        return Disconnected(f"no TLS with the server: {reason.reason}", hint="is it the right port?")
    what = reason.strerror if isinstance(reason, OSError) and reason.strerror else str(reason)
    return Disconnected(f"the server cannot be reached: {what}", hint="is `server` right, and does it run?")


def _plain(reason: object) -> str:
    if isinstance(reason, OSError):
        return f"the connection was lost: {reason.strerror or type(reason).__name__}"
    if isinstance(reason, str) and reason:
        return f"the connection was lost: {reason}"
    return "the connection was lost"


# -- what the library says on its own ---------------------------------------------------------------------

library_faults: Counter[str] = Counter()
"""What slixmpp logged as a warning or an error, and what fell in a callback: how often, without any value."""


class _Faults(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        library_faults[f"{record.name}: {str(record.msg)[:120]}"] += 1


def _listen_to_library() -> None:
    """slixmpp logs whole stanzas, passwords among them: nothing of it may reach a log, but its faults count."""
    logger = logging.getLogger("slixmpp")
    if not any(isinstance(handler, _Faults) for handler in logger.handlers):
        logger.addHandler(_Faults(level=logging.WARNING))
    logger.setLevel(logging.WARNING)
    logger.propagate = False


def _count_orphan(_: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """An exception that nobody awaited: without this handler it would end the shard."""
    exception = context.get("exception")
    library_faults[f"asyncio: {type(exception).__name__ if exception else context.get('message', '?')}"] += 1
