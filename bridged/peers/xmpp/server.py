"""The fake server's switchboard: every stanza of a session comes in by `handle` and takes its whole effect at once.

`handle` finds whom a stanza is for (this server, a user, a room) and calls `messages`, `presence`, `queries` or
`rooms`; what they answer goes out by `deliver`.  Nothing here blocks.
"""

from __future__ import annotations

import base64
import hashlib
from collections import OrderedDict, deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

import attrs
import trio

from bridged.peers.xmpp import jid, messages, ns, presence, queries
from bridged.peers.xmpp.room import Room
from bridged.peers.xmpp.rooms import Rooms
from bridged.peers.xmpp.stanza import delay, error
from bridged.peers.xmpp.state import UNACKED_MAX, Account, Session
from bridged.peers.xmpp.xml import Element, serialize
from shards.env import Env

if TYPE_CHECKING:
    from bridged.peers.xmpp.faults import Faults

LOG_MAX = 200_000
EXPIRED_MAX = 1000
"""Sessions that ran out whose counts are still told to a late resume."""


@attrs.frozen
class Entry:
    """One element as it crossed a connection, or a note."""

    at: float
    """Trio's clock."""
    connection: int
    """0 for a person, else the connection's number in order of connecting."""
    jid: str
    direction: Literal["in", "out", "event"]
    xml: str


@attrs.frozen(kw_only=True)
class Options:
    """What a script may set of the server before it opens."""

    mechanisms: tuple[str, ...] = ("SCRAM-SHA-1", "PLAIN")
    """Of SCRAM-SHA-1, SCRAM-SHA-256, PLAIN."""
    hibernation_s: float = 60.0
    stanza_bytes_max: int = 262_144
    unauthenticated_bytes_max: int = 10_000
    history_max: int = 20
    """Stanzas that a room shows to whoever joins."""
    rooms_locked: bool = True
    """A new room waits for its owner's configuration, as XEP-0045 asks."""
    allow_plaintext: bool = False
    """Serve without TLS: for tests in memory."""


class Server:
    """Users, sessions and rooms of one fake server."""

    def __init__(self, env: Env, domain: str, muc: str, options: Options, nursery: trio.Nursery) -> None:
        self.env = env
        self.domain = domain
        self.options = options
        self.nursery = nursery
        self.accounts: dict[str, Account] = {}
        self.rooms = Rooms(self, muc)
        self.log: deque[Entry] = deque(maxlen=LOG_MAX)
        self.log_count = 0
        """Entries ever made; the log keeps the last of them."""
        self.logged = trio.Event()
        """Set, and made anew, whenever the log grows."""
        self.faults: Faults
        self._sleepers: dict[str, Session] = {}
        self._expired: OrderedDict[str, int] = OrderedDict()

    # ---------------------------------------------------------------- users and sessions

    def add_user(self, name: str, password: str) -> Account:
        """Register a user, or give one another password."""
        known = self.accounts.get(name)
        if known is not None:
            known.password = password
            return known
        made = self.accounts[name] = Account(name, password, f"{name}@{self.domain}")
        return made

    def account(self, address: str) -> Account | None:
        """The user of a bare or full address of this server."""
        if jid.host(address) != self.domain:
            return None
        return self.accounts.get(jid.local(address).casefold())

    def session(self, full: str) -> Session | None:
        account = self.account(full)
        return account.sessions.get(jid.resource(full)) if account is not None else None

    def open_session(self, account: Account, resource: str, deliver: Callable[[Element], None]) -> Session:
        """Bind a resource; who holds it already is replaced."""
        old = account.sessions.get(resource)
        if old is not None:
            if old.connection is not None:
                old.connection.end("conflict", "Replaced by new connection")
            self.close_session(old, "Disconnected: Replaced by new connection")
        made = Session(account, resource, deliver)
        account.sessions[resource] = made
        return made

    def close_session(self, session: Session, status: str | None, *, expired: bool = False) -> None:
        """The session is over: rooms and contacts are told, what it owes is given back."""
        if session.gone:
            return
        session.gone = True
        session.sleeping = False
        if session.sm_id is not None:
            self._sleepers.pop(session.sm_id, None)
            if expired:
                self._expired[session.sm_id] = session.handled
                while len(self._expired) > EXPIRED_MAX:
                    self._expired.popitem(last=False)
        account = session.account
        owed = [stanza for _, stanza in session.unacked]
        owed_at = [at for at, _ in session.unacked]
        session.unacked.clear()
        self.rooms.session_gone(session, status, owed=owed if expired else [])
        presence.gone(self, session, status)
        if account.sessions.get(session.resource) is session:
            del account.sessions[session.resource]
        for at, stanza in zip(owed_at, owed, strict=True):
            messages.give_back(self, session, at, stanza)

    # ---------------------------------------------------------------- XEP-0198

    def enable_resumption(self, session: Session) -> str:
        session.sm_id = self.new_id(12)
        session.sm_resumable = True
        return session.sm_id

    def sleep(self, session: Session) -> None:
        """The connection is lost; the session waits to be resumed, and nobody is told."""
        assert session.sm_id is not None, "only a session under XEP-0198 sleeps"
        session.connection = None
        session.sleeping = True
        self._sleepers[session.sm_id] = session
        self.nursery.start_soon(self._expire, session, session.sm_id)

    async def _expire(self, session: Session, sm_id: str) -> None:
        await trio.sleep(self.options.hibernation_s)
        if self._sleepers.get(sm_id) is session and session.sleeping:
            self.close_session(session, "Disconnected: Resumption timed out", expired=True)

    def resumable(self, sm_id: str, account: Account) -> Session | None:
        """The session that a client may resume under this id."""
        for session in account.sessions.values():
            if session.sm_id == sm_id and session.sm_resumable and not session.gone:
                return session
        return None

    def expired_count(self, sm_id: str) -> int | None:
        """How many stanzas a session that ran out had taken; None for one that is not remembered."""
        return self._expired.get(sm_id)

    def wake(self, session: Session) -> None:
        """The session goes on on a new connection."""
        session.sleeping = False
        if session.sm_id is not None:
            self._sleepers.pop(session.sm_id, None)

    # ---------------------------------------------------------------- stanzas

    def handle(self, session: Session, stanza: Element) -> None:
        """Carry out one stanza of a session."""
        if session.gone:
            return
        stanza = stanza.copy(**{"from": session.jid})
        to = stanza.get("to")
        if to is not None and not jid.is_legal(to):
            if stanza.get("type") != "error":
                text = "The destination address is invalid"
                self.deliver(session, error(stanza, "jid-malformed", text=text))
            return
        if stanza.name == "message":
            messages.handle(self, session, stanza)
        elif stanza.name == "presence":
            presence.handle(self, session, stanza)
        else:
            queries.handle(self, session, stanza)

    def route(self, stanza: Element) -> None:
        """Bring a stanza to the session that its `to` names; to nobody where there is none."""
        found = self.session(stanza.get("to") or "")
        if found is not None:
            self.deliver(found, stanza)

    def deliver(self, session: Session, stanza: Element) -> None:
        """Hand a session a stanza; under XEP-0198 it is owed until the client acknowledges it."""
        if session.gone:
            return
        if session.sm_id is not None:
            session.sent += 1
            session.unacked.append((self.env.wall(), stanza))
            if len(session.unacked) > UNACKED_MAX:
                self.close_session(session, "Too many unacknowledged stanzas", expired=True)
                return
        if session.connection is not None or session.sm_id is None:
            session.deliver(stanza)

    def resend(self, session: Session) -> None:
        """After a resume: everything that the client has not acknowledged, each with when it was said."""
        for at, stanza in session.unacked:
            again = stanza
            if stanza.name in ("message", "presence"):
                again = stanza.copy().add(delay(at, session.account.jid))
            session.deliver(again)

    def room(self, address: str) -> Room | None:
        """The room of an address, where it exists."""
        return self.rooms.find(jid.bare(address))

    # ---------------------------------------------------------------- odds and ends

    def new_id(self, size: int = 24) -> str:
        """An id as the server makes them."""
        return base64.urlsafe_b64encode(self.env.token_bytes(size * 3 // 4)).decode().rstrip("=")

    def occupant_id(self, room: str, bare: str) -> str:
        """XEP-0421: stable for a user in a room, and telling nothing of either."""
        return base64.b64encode(hashlib.sha256(f"{room}\0{bare}".encode()).digest()).decode()

    def note(
        self, connection: int, address: str, direction: Literal["in", "out", "event"], xml: Element | str
    ) -> None:
        """Write to the log and wake those who wait for it."""
        text = xml if isinstance(xml, str) else serialize(xml)
        self.log.append(Entry(trio.current_time(), connection, address, direction, text))
        self.log_count += 1
        event, self.logged = self.logged, trio.Event()
        event.set()

    def features(self) -> list[str]:
        """What disco#info of the server names."""
        return [
            ns.VERSION, ns.TIME, "jabber:iq:time", ns.ROSTER, ns.CARBONS, "urn:xmpp:carbons:rules:0", ns.INFO,
            ns.ITEMS, ns.BLOCKING, "jabber:iq:private", ns.PING, "msgoffline", ns.VCARD, "jabber:iq:register",
        ]  # fmt: skip
