"""One client's connection: stream headers, TLS, login, binding, XEP-0198, and the connection's faults."""

from __future__ import annotations

import ssl
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING

import trio

from bridged.peers.xmpp import ns
from bridged.peers.xmpp.login import Login, failure
from bridged.peers.xmpp.stanza import error, number, result
from bridged.peers.xmpp.state import Account, Session
from bridged.peers.xmpp.xml import Closed, Element, Event, Opened, StreamParser, XmlRefused, el, serialize

if TYPE_CHECKING:
    from bridged.peers.xmpp.server import Server

STANZAS = ("message", "presence", "iq")
OUT_BYTES_MAX = 16 << 20
"""What may wait for a client that does not read."""
FINISH_S = 2.0
COUNT = 1 << 32
"""XEP-0198 counts modulo this."""


class Connection:
    """Reads one client's stream and answers it."""

    def __init__(
        self,
        server: Server,
        stream: trio.abc.Stream,
        number: int,
        tls: ssl.SSLContext | None,
        *,
        secure: bool,
    ) -> None:
        self._server = server
        self._stream = stream
        self._number = number
        self._tls = tls
        self._secure = secure
        self._parser = StreamParser(server.options.unauthenticated_bytes_max)
        self._account: Account | None = None
        self._session: Session | None = None
        self._login = Login(server)
        self._out: deque[tuple[float, str, bool]] = deque()
        self._out_bytes = 0
        self._out_ready = trio.Event()
        self._opened = False
        self._finishing = False
        self._scope = trio.CancelScope()
        self._lang: str | None = None
        self._upgrade = False
        self._idle = trio.Event()
        """Set while the writer has nothing in hand."""
        # Faults, set by `faults.Faults`.
        self.delay_s = 0.0
        self.drop_reply: str | None = None
        self.duplicate_next = 0
        self.hold_next = 0
        self.answers_acks = True
        self._held: list[Element] = []
        self._open = trio.Event()
        self._open.set()
        self._mute = False

    @property
    def jid(self) -> str:
        """Whose connection it is, as far as known."""
        if self._session is not None:
            return self._session.jid
        return self._account.jid if self._account is not None else ""

    # ---------------------------------------------------------------- life

    async def run(self) -> None:
        """Serve the client until either side ends."""
        self._note("connect")
        clean = False
        try:
            with self._scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._write)
                    clean = await self._read()
                    nursery.cancel_scope.cancel()
        finally:
            self._note("end")
            self._lost(clean=clean)
            await trio.aclose_forcefully(self._stream)

    def _lost(self, *, clean: bool) -> None:
        session, self._session = self._session, None
        if session is None or session.connection is not self:
            return
        session.connection = None
        if session.sm_resumable and not clean and not session.gone:
            self._server.sleep(session)
        else:
            self._server.close_session(session, None if clean else "Disconnected: connection closed")

    async def _read(self) -> bool:
        """Take bytes until the end; True when the client said goodbye."""
        while True:
            await self._open.wait()
            try:
                data = await self._stream.receive_some(65_536)
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                return False
            await self._open.wait()
            if not data:
                return False
            refused: XmlRefused | None = None
            try:
                events = self._parser.feed(bytes(data))
            except XmlRefused as exc:
                events, refused = self._parser.events_before(), exc
            for event in events:
                if self._finishing:
                    return False
                if self._take(event):
                    await self._flushed()
                    return True
                if self._upgrade:
                    if not await self._start_tls():
                        return False
                    break
            if refused is not None:
                self._refuse(refused)
            if self._finishing:
                await self._flushed()
                return False

    async def _flushed(self) -> None:
        with trio.move_on_after(FINISH_S):
            while self._out:
                await self._idle.wait()
                await trio.lowlevel.checkpoint()
            await self._idle.wait()

    def _refuse(self, refused: XmlRefused) -> None:
        if not self._opened:
            self._open_stream({})
        inner = None
        text = refused.text if refused.condition == "policy-violation" else ""
        if text == "stanza-too-big":
            inner = el("urn:xmpp:errors", "stanza-too-big")
            text = f"XML stanza is too big (limit {self._parser.bytes_max} bytes)"
        self.end(refused.condition, text, inner=inner)

    # ---------------------------------------------------------------- the stream

    def _take(self, event: Event) -> bool:
        """Carry out one event of the parser; True when the stream is closed."""
        if isinstance(event, Opened):
            self._note_in("<stream:stream>")
            self._open_stream(event.attributes)
            return False
        if isinstance(event, Closed):
            self._note_in("</stream:stream>")
            session = self._session
            if session is not None and session.sm_id is not None:
                self._nonza(el(ns.SM, "a", {"h": str(session.handled % COUNT)}))
            self._raw("</stream:stream>")
            return True
        self._note_in(event)
        self._element(event)
        return False

    def _open_stream(self, attributes: object) -> None:
        given = dict(attributes) if isinstance(attributes, dict) else {}
        self._lang = given.get("xml:lang")
        self._opened = True
        server = self._server
        head = (
            f"<?xml version='1.0'?><stream:stream xmlns='{ns.CLIENT}' xmlns:stream='{ns.STREAM}' "
            f"version='1.0' id='{server.new_id(16)}' from='{server.domain}' xml:lang='en'>"
        )
        self._raw(head)
        to = given.get("to")
        if given and to is None:
            self.end("improper-addressing", "A 'to' attribute is needed")
            return
        if given and to != server.domain:
            self.end("host-unknown", "This server does not serve that host")
            return
        if given:
            self._nonza(self._features())

    def _features(self) -> Element:
        features = el(ns.STREAM, "features")
        if not self._secure and not self._server.options.allow_plaintext:
            return features.add(el(ns.TLS, "starttls", None, el(ns.TLS, "required")))
        if self._account is None:
            if not self._secure and self._tls is not None:
                features.add(el(ns.TLS, "starttls"))
            names = (el(ns.SASL, "mechanism", None, m) for m in self._server.options.mechanisms)
            return features.add(el(ns.SASL, "mechanisms", None, *names))
        return features.add(
            el(ns.BIND, "bind", None, el(ns.BIND, "required")),
            el(ns.SESSION, "session", None, el(ns.SESSION, "optional")),
            el(ns.SM, "sm", None, el(ns.SM, "optional")),
            el("urn:xmpp:features:rosterver", "ver"),
            el("urn:xmpp:features:pre-approval", "sub"),
            el(ns.CSI, "csi"),
        )

    def _restart(self, bytes_max: int) -> None:
        self._parser = StreamParser(bytes_max)
        self._opened = False

    def _element(self, element: Element) -> None:
        if (
            element.space == ns.TLS
            and element.name == "starttls"
            and not self._secure
            and self._tls is not None
        ):
            self._nonza(el(ns.TLS, "proceed"))
            self._upgrade = True
        elif element.space == ns.SASL and self._account is None:
            self._sasl(element)
        elif element.space == ns.SM:
            self._stream_management(element)
        elif element.space == ns.CSI:
            pass
        elif element.space == ns.CLIENT and element.name in STANZAS:
            self._stanza(element)
        elif self._account is None and element.space == ns.CLIENT:
            self._nonza(error(element, "service-unavailable"))
        else:
            self.end("unsupported-stanza-type", "")

    async def _start_tls(self) -> bool:
        """The client may speak TLS now; False when it cannot."""
        await self._flushed()
        assert self._tls is not None
        self._upgrade = False
        stream = trio.SSLStream(self._stream, self._tls, server_side=True)
        try:
            await stream.do_handshake()
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            return False
        self._stream = stream
        self._secure = True
        self._note("tls")
        self._restart(self._server.options.unauthenticated_bytes_max)
        return True

    # ---------------------------------------------------------------- login

    def _sasl(self, element: Element) -> None:
        if not self._secure and not self._server.options.allow_plaintext:
            self._nonza(failure("encryption-required"))
            return
        answer, self._account = self._login.take(element)
        self._nonza(answer)
        if self._account is not None:
            self._restart(self._server.options.stanza_bytes_max)

    # ---------------------------------------------------------------- stanzas

    def _stanza(self, stanza: Element) -> None:
        if self._account is None:
            self._nonza(error(stanza, "service-unavailable"))
            return
        session = self._session
        bind = stanza.find(ns.BIND, "bind")
        if session is None:
            if bind is not None and stanza.get("type") == "set":
                self._bind(stanza, bind)
            else:
                self._nonza(error(stanza, "service-unavailable"))
            return
        if session.sm_id is not None:
            session.handled += 1
        if "xml:lang" not in stanza.attributes and self._lang is not None:
            stanza.attributes["xml:lang"] = self._lang
        if self.drop_reply is not None and stanza.name == "message":
            self._drop(session, stanza)
        else:
            self._server.handle(session, stanza)

    def _drop(self, session: Session, stanza: Element) -> None:
        """The message takes effect; nothing that it brings this client is written."""
        what, self.drop_reply = self.drop_reply, None
        self._mute = True
        try:
            self._server.handle(session, stanza)
        finally:
            self._mute = False
        if what == "cut":
            self.cut()
        elif what == "half_open":
            self.half_open(on=True)

    def _bind(self, iq: Element, bind: Element) -> None:
        assert self._account is not None
        resource = bind.text_of(ns.BIND, "resource") or self._server.new_id(12)
        session = self._server.open_session(self._account, resource, self._deliver)
        session.connection = self
        self._session = session
        answer = result(iq, el(ns.BIND, "bind", None, el(ns.BIND, "jid", None, session.jid)))
        self._nonza(answer)

    # ---------------------------------------------------------------- XEP-0198

    def _stream_management(self, element: Element) -> None:
        session = self._session
        if element.name == "resume":
            self._resume(element)
        elif session is None:
            self._nonza(el(ns.SM, "failed", None, el(ns.STANZA_ERRORS, "service-unavailable")))
        elif element.name == "enable":
            if session.sm_id is not None:
                self._nonza(el(ns.SM, "failed", None, el(ns.STANZA_ERRORS, "unexpected-request")))
                return
            sm_id = self._server.enable_resumption(session)
            session.sm_resumable = element.get("resume") in ("true", "1")
            limit = str(int(self._server.options.hibernation_s))
            given = {"id": sm_id, "resume": "true", "max": limit} if session.sm_resumable else {}
            self._nonza(el(ns.SM, "enabled", given))
        elif element.name == "r":
            if self.answers_acks:
                self._nonza(el(ns.SM, "a", {"h": str(session.handled % COUNT)}))
        elif element.name == "a" and not self._acknowledge(session, element.get("h") or ""):
            self.end("undefined-condition", "You acknowledged more stanzas than were sent to you")

    def _acknowledge(self, session: Session, text: str) -> bool:
        """Forget what the client has; False where it claims more than was sent."""
        h = number(text)
        if h is None:
            return False
        first = session.sent - len(session.unacked)
        count = (h - first) % COUNT
        if count > len(session.unacked):
            return count > COUNT // 2  # an old h, repeated
        for _ in range(count):
            session.unacked.popleft()
        return True

    def _resume(self, element: Element) -> None:
        server = self._server
        previous = element.get("previd") or ""
        if self._account is None or self._session is not None:
            self._nonza(el(ns.SM, "failed", None, el(ns.STANZA_ERRORS, "unexpected-request")))
            return
        session = server.resumable(previous, self._account)
        if session is None:
            count = server.expired_count(previous)
            given = {"h": str(count % COUNT) if count is not None else None}
            self._nonza(el(ns.SM, "failed", given, el(ns.STANZA_ERRORS, "item-not-found")))
            return
        old = session.connection
        if not self._acknowledge(session, element.get("h") or ""):
            self._finishing = True
            self._out_ready.set()
            return
        session.connection = self
        if old is not None:
            old.cut()
        server.wake(session)
        session.deliver = self._deliver
        self._session = session
        self._nonza(el(ns.SM, "resumed", {"h": str(session.handled % COUNT), "previd": previous}))
        server.resend(session)
        if not session.unacked:
            self._nonza(el(ns.SM, "r"))

    # ---------------------------------------------------------------- out

    def _deliver(self, stanza: Element) -> None:
        if self._mute:
            self._note(f"dropped: {stanza.name}")
            return
        if self.hold_next and stanza.name == "message":
            self._held.append(stanza)
            self.hold_next -= 1
            if not self.hold_next:
                for held in reversed(self._held):
                    self._queue(serialize(held), counted=True, logged=held)
                self._held.clear()
            return
        self._queue(serialize(stanza), counted=True, logged=stanza)

    def _nonza(self, element: Element) -> None:
        """Something that XEP-0198 does not count, or that comes before it is on."""
        self._queue(serialize(element), counted=False, logged=element)

    def _raw(self, text: str) -> None:
        self._queue(text, counted=False, logged=text)

    def _queue(self, text: str, *, counted: bool, logged: Element | str) -> None:
        if self._finishing:
            return
        self._server.note(self._number, self.jid, "out", logged)
        self.inject(text, counted=counted)

    def inject(self, text: str, *, counted: bool = False) -> None:
        """Queue any text at all."""
        self._out.append((trio.current_time() + self.delay_s, text, counted))
        self._out_bytes += len(text)
        self._idle = trio.Event()
        self._out_ready.set()
        if self._out_bytes > OUT_BYTES_MAX:
            self.cut()

    async def _write(self) -> None:
        while True:
            while not self._out:
                self._idle.set()
                if self._finishing:
                    await self._hang_up()
                    return
                self._out_ready = trio.Event()
                await self._out_ready.wait()
            due = self._out[0][0]
            if due > trio.current_time():
                await trio.sleep_until(due)
            await self._open.wait()
            parts, counted = [], False
            while self._out and self._out[0][0] <= trio.current_time():
                _, text, is_counted = self._out.popleft()
                parts.append(text)
                counted = counted or is_counted
                self._out_bytes -= len(text)
            session = self._session
            if counted and session is not None and session.sm_id is not None and not self._finishing:
                ask = el(ns.SM, "r")
                self._server.note(self._number, self.jid, "out", ask)
                parts.append(serialize(ask))
            try:
                await self._stream.send_all("".join(parts).encode("utf-8", "surrogatepass"))
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                self._scope.cancel()
                return

    async def _hang_up(self) -> None:
        with trio.move_on_after(FINISH_S), suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            if isinstance(self._stream, trio.SSLStream):
                await self._stream.aclose()
            elif isinstance(self._stream, trio.abc.HalfCloseableStream):
                await self._stream.send_eof()
        self._scope.cancel()

    # ---------------------------------------------------------------- ends and faults

    def end(self, condition: str, text: str, *, inner: Element | None = None) -> None:
        """Send a stream error and close; the session is over."""
        if self._finishing:
            return
        session = self._session
        if session is not None and session.sm_id is not None:
            self._nonza(el(ns.SM, "a", {"h": str(session.handled % COUNT)}))
        body = el(ns.STREAM, "error", None, el(ns.STREAM_ERRORS, condition))
        if text:
            body.add(el(ns.STREAM_ERRORS, "text", None, text))
        if inner is not None:
            body.add(inner)
        self._nonza(body)
        self._raw("</stream:stream>")
        self._session = None
        if session is not None:
            session.connection = None
            self._server.close_session(session, f"Disconnected: {text or condition}")
        self._finishing = True
        self._out_ready.set()

    def cut(self) -> None:
        """Break the connection, with a reset where the transport has one; XEP-0198 lets the session sleep."""
        self._note("cut")
        self._finishing = True
        stream = self._stream
        while isinstance(stream, trio.SSLStream):
            stream = stream.transport_stream
        if isinstance(stream, trio.SocketStream):
            stream.setsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
        self._lost(clean=False)
        self._scope.cancel()

    def half_open(self, *, on: bool) -> None:
        """Stop to read and write, or go on, without closing."""
        self._note("half-open" if on else "open again")
        if on:
            self._open = trio.Event()
        else:
            self._open.set()

    def _note(self, event: str) -> None:
        self._server.note(self._number, self.jid, "event", event)

    def _note_in(self, xml: Element | str) -> None:
        self._server.note(self._number, self.jid, "in", xml)
