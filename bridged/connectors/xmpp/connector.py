"""The XMPP connector: one account, its rooms and its people.

`run` is one session: lease, login (or the resumption of the session before), every chat in a task of its own,
one reader that hands each stanza to its chat, the delivery loop, and a watch on the silence of the server.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import trio

from bridged.connectors import Capabilities, ConnectorState
from bridged.connectors.desk import Cursor, Desk
from bridged.connectors.intent import Failed, Intent, Outcome, Retry
from bridged.connectors.xmpp.chat import Chat, Kind
from bridged.connectors.xmpp.client import Client, Refused, Resumption, open_client, tls_context
from bridged.connectors.xmpp.jid import Jid, JidError, parse_jid
from bridged.connectors.xmpp.line import RETRY_S, Line
from bridged.connectors.xmpp.mapping import BODY_BYTES_MAX
from bridged.connectors.xmpp.seen import Seen, SeenError, is_copy, read_copy, read_message
from bridged.connectors.xmpp.settings import Settings
from bridged.connectors.xmpp.stanza import (
    CARBONS,
    CLIENT,
    DISCO_INFO,
    MUC,
    STANZAS,
    Element,
    children,
    element,
    iq,
    message,
    presence,
)
from bridged.errors import BadCredentials, ConfigError
from bridged.refs import ChannelRef, RefError

# Ours.
SETTLE_S = 10.0
"""Said to serve when every chat is in, or in trouble; at the latest after this time."""
LINES_MAX = 500


def make_connector(settings: Settings, channels: Sequence[str]) -> XmppConnector:
    """The connector of one `[[connector]]` table."""
    return XmppConnector(settings, channels)


class XmppConnector:
    """One account on one XMPP server.

    It outlives its sessions: the next `run` of the same object resumes the last one's where the server lets it.

    Args:
        channels: The `msgr://channels/…` of this account's chats: what conversations name.

    Raises:
        ConfigError: One of them is no chat on XMPP.
    """

    service = "xmpp"
    capabilities = Capabilities(
        edits=True,
        deletes=True,
        replies=True,
        reactions=True,
        typing=False,
        receipts=True,
        formatting=True,
        attachments=False,
        history=True,
        confirms=True,
        text_bytes_max=BODY_BYTES_MAX,
        extensions=(
            "XEP-0045",
            "XEP-0184",
            "XEP-0198",
            "XEP-0280",
            "XEP-0308",
            "XEP-0313",
            "XEP-0333",
            "XEP-0359",
            "XEP-0393",
            "XEP-0410",
            "XEP-0421",
            "XEP-0424",
            "XEP-0444",
            "XEP-0461",
        ),
    )

    def __init__(self, settings: Settings, channels: Sequence[str] = ()) -> None:
        self.instance = settings.instance
        self.passed: Counter[str] = Counter()
        """What came and was not published, by reason."""
        self._settings = settings
        self._wanted = {_chat_jid(channel): channel for channel in channels}
        self._lines: dict[Jid, Line] = {}
        self._resumption: Resumption | None = None
        self._session: _Session | None = None

    def set_channels(self, channels: Sequence[str]) -> None:
        """Be in these chats from now on; at once, when connected.  Raises ConfigError as the constructor."""
        wanted = {_chat_jid(channel): channel for channel in channels}
        self._wanted.clear()
        self._wanted.update(wanted)
        if self._session is not None:
            self._session.follow()

    async def run(self, desk: Desk, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """One session: until cancelled, or a `ConnectorError`.  `started()` when the chats are up."""
        credential = await desk.lease(self._settings.credential)
        password = credential.password
        if password is None:
            raise BadCredentials(
                f"the credential {self._settings.credential!r} has no password",
                hint=f"`bridgectl vault put {self._settings.credential}`",
            )
        cursors = await desk.cursors()
        await desk.state(ConnectorState.CONNECTING)
        tls = tls_context(self._settings)
        resumption, self._resumption = self._resumption, None
        async with open_client(self._settings, password, tls, resumption=resumption) as client:
            self._session = _Session(self, desk, client, cursors)
            try:
                await self._session.run(task_status)
            finally:
                self._session = None
                self._resumption = client.resumption()


class _Session:
    def __init__(
        self, connector: XmppConnector, desk: Desk, client: Client, cursors: dict[str, Cursor]
    ) -> None:
        self._settings = connector._settings
        self._wanted = connector._wanted
        self._lines = connector._lines
        self._passed = connector.passed
        self._desk = desk
        self._client = client
        self._cursors = cursors
        self._domains: dict[str, Kind] = {}
        self._waiting: dict[Jid, trio.Event] = {}
        self._scopes: dict[Jid, trio.CancelScope] = {}
        self._nursery: trio.Nursery

    async def run(self, task_status: trio.TaskStatus[None]) -> None:
        for line in self._lines.values():
            line.begin()
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            nursery.start_soon(self._read)
            nursery.start_soon(self._watch)
            if not self._client.is_resumed:
                self._client.send(presence(None))
                await self._enable_carbons()
            self.follow()
            await nursery.start(self._deliver)
            with trio.move_on_after(SETTLE_S):
                for jid in list(self._wanted):
                    await self._line_of(jid)
            await self._say_running()
            task_status.started()
            await self._report()

    async def _deliver(self, *, task_status: trio.TaskStatus[None]) -> None:
        await self._desk.outbound(self._send, concurrency=LINES_MAX, task_status=task_status)

    async def _enable_carbons(self) -> None:
        try:
            await self._client.ask(iq(None, "set", element("enable", CARBONS)))
        except Refused:
            self._passed["the server knows no carbons"] += 1

    # -- chats --------------------------------------------------------------------------------------------

    def follow(self) -> None:
        """Begin the chats that are wanted and not kept yet; leave the others."""
        for jid in self._scopes.keys() - self._wanted.keys():
            self._scopes.pop(jid).cancel()
            line = self._lines.pop(jid, None)
            if line is not None and line.chat.is_room and line.chat.is_joined:
                self._client.send(presence(str(jid.with_resource(line.chat.nick)), kind="unavailable"))
        for jid in self._wanted.keys() - self._scopes.keys():
            self._scopes[jid] = trio.CancelScope()
            self._nursery.start_soon(self._keep, self._wanted[jid], jid, self._scopes[jid])

    async def _keep(self, channel: str, jid: Jid, scope: trio.CancelScope) -> None:
        with scope:
            await self._keep_up(channel, jid)

    async def _keep_up(self, channel: str, jid: Jid) -> None:
        """One chat, for the life of the session or until it is not wanted any more."""
        line = self._lines.get(jid)
        failures = 0
        while line is None:
            kind = await self._kind_of(jid)
            if kind is None:
                await trio.sleep(RETRY_S[min(failures, len(RETRY_S) - 1)])
                failures += 1
                continue
            chat = Chat(channel, jid, kind, account=self._client.account, nick=self._settings.nick)
            line = self._lines[jid] = Line(chat, self._settings, self._passed)
        waiting = self._waiting.pop(jid, None)
        if waiting is not None:
            waiting.set()
        await line.run(self._desk, self._client, self._cursors.get(line.stream))

    async def _kind_of(self, jid: Jid) -> Kind | None:
        """Room or person?  What its server says of itself; None where that cannot be asked now."""
        kind = self._domains.get(jid.domain)
        if kind is None and jid.domain == self._client.account.domain:
            kind = Kind.DIRECT
        if kind is None:
            try:
                answer = await self._client.ask(iq(jid.domain, "get", element("query", DISCO_INFO)))
            except Refused as exc:
                if exc.error.condition.startswith("remote-server"):
                    return None
                kind = Kind.DIRECT
            else:
                query = answer.find(f"{{{DISCO_INFO}}}query")
                features = children(query, "feature", DISCO_INFO) if query is not None else ()
                is_rooms = any(part.get("var") == MUC for part in features)
                kind = Kind.ROOM if is_rooms else Kind.DIRECT
        self._domains[jid.domain] = kind
        return kind

    async def _line_of(self, jid: Jid) -> Line:
        """The chat, when it is in or in trouble."""
        while jid not in self._lines:
            await self._waiting.setdefault(jid, trio.Event()).wait()
        line = self._lines[jid]
        await line.settled.wait()
        return line

    async def _say_running(self) -> None:
        troubles = [f"{jid}: {line.trouble.reason}" for jid, line in self._lines.items() if line.trouble]
        up = sum(line.chat.is_joined for line in self._lines.values())
        detail = f"{up} of {len(self._wanted)} chats" + "".join(f"; {trouble}" for trouble in troubles[:5])
        await self._desk.state(ConnectorState.RUNNING, detail, account=self._settings.jid)

    async def _report(self) -> None:
        while True:
            await trio.sleep(1)
            await self._say_running()

    # -- from the platform --------------------------------------------------------------------------------

    async def _read(self) -> None:
        while True:
            stanza = await self._client.receive()
            now = self._desk.env.wall()
            line = self._take(stanza, now)
            if line is not None:
                await line.wait_room_for_more()

    def _take(self, stanza: Element, now: float) -> Line | None:
        """Hand a stanza to its chat."""
        if stanza.tag == f"{{{CLIENT}}}presence":
            sender = _sender(stanza)
            line = self._lines.get(sender) if sender is not None else None
            if line is not None and line.chat.is_room:
                line.presence(stanza)
            return line
        sent_elsewhere = False
        if is_copy(stanza):
            copy = read_copy(stanza, self._client.account)
            if copy is None:
                self._passed["a forged carbon"] += 1
                return None
            stanza, sent_elsewhere = copy.message, copy.direction == "sent"
        try:
            seen = read_message(stanza)
        except SeenError:
            self._passed["a message without a sender"] += 1
            return None
        other = seen.to if sent_elsewhere else seen.sender
        line = self._lines.get(other.bare) if other is not None else None
        if line is None or (line.chat.is_room and seen.kind not in ("groupchat", "error")):
            self._turn_away(seen, sent_elsewhere=sent_elsewhere)
            return None
        line.hear(stanza, seen, now)
        return line

    def _turn_away(self, seen: Seen, *, sent_elsewhere: bool) -> None:
        """A private word to the bridge, or a chat that is in no conversation: say that nobody reads it."""
        self._passed["in no conversation"] += 1
        if seen.kind != "chat" or seen.body is None or sent_elsewhere or seen.id is None:
            return
        if seen.sender.bare == self._client.account.bare:
            return
        why = element(
            "text", STANZAS, "This is a bridge: it carries what is said in its rooms, nothing else."
        )
        error = element(
            "error",
            CLIENT,
            element("not-acceptable", STANZAS),  # not one for which a room puts us out
            why,
            attributes={"type": "cancel"},
        )
        self._client.send(message(str(seen.sender), "error", seen.id, error))

    async def _watch(self) -> None:
        """A server that says nothing is asked; one that does not answer is lost."""
        while True:
            silent_s = trio.current_time() - self._client.heard_at
            if silent_s < self._settings.ping_s or self._client.is_paused:
                await trio.sleep(max(self._settings.ping_s - silent_s, self._settings.ping_s / 10))
                continue
            try:
                await self._client.ping(within_s=self._settings.ping_s)
            except Refused:
                continue  # an answer, too

    # -- to the platform ----------------------------------------------------------------------------------

    async def _send(self, intent: Intent) -> Outcome:
        try:
            jid = _chat_jid(intent.channel)
        except ConfigError as exc:
            return Failed(code="invalid_field", message=str(exc))
        if jid not in self._wanted:
            if len(self._wanted) >= LINES_MAX:
                return Failed(code="rate_limited", message=f"one account serves at most {LINES_MAX} chats")
            self._wanted[jid] = intent.channel  # a conversation made at run time
            self.follow()
        line: Line | None = None
        with trio.move_on_after(SETTLE_S):
            line = await self._line_of(jid)
        if line is None:
            return Retry(RETRY_S[3], f"the server of {jid} does not answer")
        return await line.say(intent)


def _sender(stanza: Element) -> Jid | None:
    try:
        return parse_jid(stanza.get("from", "")).bare
    except JidError:
        return None


def _chat_jid(channel: str) -> Jid:
    """The bare JID of a channel's reference."""
    try:
        reference = ChannelRef.parse(channel)
        if reference.service == "xmpp" and len(reference.pointer) == 1:
            jid = parse_jid(reference.pointer[0])
            if jid.local and not jid.resource:
                return jid
    except (RefError, JidError):
        pass
    raise ConfigError([(channel, "no chat on XMPP: msgr://channels/WORKSPACE/bridge/xmpp/ROOM@SERVER")])
