"""What a script can do to the server: every fault on command, at once and in one place."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from bridged.peers.xmpp import administration, jid, ns
from bridged.peers.xmpp.room import Occupant, Room
from bridged.peers.xmpp.state import Session
from bridged.peers.xmpp.xml import el

if TYPE_CHECKING:
    from bridged.peers.xmpp.connection import Connection
    from bridged.peers.xmpp.server import Server

After = Literal["nothing", "cut", "half_open"]


class Faults:
    """The fault panel of one server: `srv.faults`.  An address is a full one, or a bare one for all its resources."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._caps: set[str] = set()

    # ---------------------------------------------------------------- whom

    def sessions(self, address: str) -> list[Session]:
        """The sessions of an address.

        Raises:
            LookupError: There is none.
        """
        account = self._server.account(address if "@" in address else f"{address}@{self._server.domain}")
        found = list(account.sessions.values()) if account is not None else []
        if jid.resource(address):
            found = [s for s in found if s.resource == jid.resource(address)]
        if not found:
            raise LookupError(f"{address} is not online")
        return found

    def connections(self, address: str) -> list[Connection]:
        """The connections of an address; a sleeping session has none."""
        found = [s.connection for s in self.sessions(address) if s.connection is not None]
        if not found:
            raise LookupError(f"{address} has no connection")
        return found

    def _room(self, address: str) -> Room:
        room = self._server.rooms.find(address)
        if room is None:
            raise LookupError(f"no room {address}")
        return room

    def _occupant(self, room: Room, nick: str) -> Occupant:
        if nick not in room.occupants:
            raise LookupError(f"{nick} is not in {room.jid}")
        return room.occupants[nick]

    # ---------------------------------------------------------------- connections

    def cut(self, address: str) -> None:
        """Break the connection with a reset; a session under XEP-0198 sleeps and can be resumed."""
        for connection in self.connections(address):
            connection.cut()

    def half_open(self, address: str, *, on: bool = True) -> None:
        """The connection stays up, but nothing is read from it and nothing written."""
        for connection in self.connections(address):
            connection.half_open(on=on)

    def drop_next_reply(self, address: str, *, then: After = "cut") -> None:
        """The client's next message takes effect, but nothing that it brings the client is written.

        Args:
            address: The client.
            then: What happens to the connection afterwards.  What is owed under XEP-0198 comes after a resume.
        """
        for connection in self.connections(address):
            connection.drop_reply = then

    def delay(self, seconds: float, address: str) -> None:
        """Everything to the client arrives so much later, until called with 0."""
        for connection in self.connections(address):
            connection.delay_s = seconds

    def duplicate(self, address: str, count: int = 1) -> None:
        """The next messages to the client arrive twice, with the same ids."""
        for connection in self.connections(address):
            connection.duplicate_next = count

    def takes_duplicate(self, session: Session) -> bool:
        """Is the next message to this session to be doubled?  Counts it."""
        connection = session.connection
        if connection is None or not connection.duplicate_next:
            return False
        connection.duplicate_next -= 1
        return True

    def reorder(self, address: str, count: int = 2) -> None:
        """The next `count` messages to the client are held and arrive in reverse order."""
        for connection in self.connections(address):
            connection.hold_next = count

    def withhold_acks(self, address: str, *, on: bool = True) -> None:
        """The server answers no `<r/>` of XEP-0198."""
        for connection in self.connections(address):
            connection.answers_acks = not on

    def garbage(self, data: str, address: str) -> None:
        """Send the client any text at all."""
        for connection in self.connections(address):
            connection.inject(data)

    def flood(self, address: str, count: int, *, sender: str, text: str = "x" * 20) -> None:
        """Bring the client many messages at once."""
        for session in self.sessions(address):
            for number in range(count):
                given = {"type": "chat", "from": sender, "to": session.jid, "id": f"flood-{number}"}
                body = el(ns.CLIENT, "body", None, f"{number:05} {text}")
                self._server.deliver(session, el(ns.CLIENT, "message", given, body))

    def stream_error(self, address: str, condition: str, text: str = "") -> None:
        """End the stream with any error of RFC 6120 section 4.9.3."""
        for connection in self.connections(address):
            connection.end(condition, text)

    def conflict(self, address: str) -> None:
        """As if another client had bound the same resource."""
        self.stream_error(address, "conflict", "Replaced by new connection")

    def forget_session(self, address: str) -> None:
        """The session that sleeps, or could be resumed, is gone: a resume fails."""
        for session in self.sessions(address):
            if session.connection is None:
                self._server.close_session(session, None, expired=True)
            else:
                session.sm_resumable = False

    def shut_down(self) -> None:
        """Every stream ends with `system-shutdown`; sessions under XEP-0198 just lose their socket."""
        for account in self._server.accounts.values():
            for session in list(account.sessions.values()):
                if session.connection is None:
                    continue
                if session.sm_id is not None:
                    session.connection.cut()
                else:
                    session.connection.end("system-shutdown", "Received SIGTERM")

    # ---------------------------------------------------------------- accounts and rooms

    def password(self, name: str, password: str) -> None:
        """Give a user another password; the sessions end with `reset`."""
        self._server.add_user(name, password)
        for session in list(self._server.accounts[name].sessions.values()):
            if session.connection is not None:
                session.connection.end("reset", "Password changed")

    def learns_caps(self, ver: str) -> bool:
        """Are these capabilities new to the server?  It remembers them."""
        new = bool(ver) and ver not in self._caps
        self._caps.add(ver)
        return new

    def kick(self, room: str, nick: str, reason: str = "kicked") -> None:
        found = self._room(room)
        self._server.rooms.put_out(found, self._occupant(found, nick), ("307",), actor=None, reason=reason)

    def ban(self, room: str, address: str, reason: str = "banned") -> None:
        """Ban a user (bare address) from a room; `pardon` takes it back."""
        administration.set_affiliation(self._server, self._room(room), address, "outcast", reason=reason)

    def pardon(self, room: str, address: str) -> None:
        administration.set_affiliation(self._server, self._room(room), address, "none")

    def mute(self, room: str, nick: str) -> None:
        """Take an occupant's voice: what they say is refused with `forbidden`."""
        found = self._room(room)
        administration.set_role(self._server, found, self._occupant(found, nick), "visitor")

    def destroy(self, room: str, *, alternative: str | None = None, reason: str = "closed") -> None:
        """Close a room for good."""
        destroy = el(ns.MUC_OWNER, "destroy", {"jid": alternative}, el(ns.MUC_OWNER, "reason", None, reason))
        administration.destroyed(self._server, self._room(room), destroy)

    def lose_occupant(self, room: str, nick: str) -> None:
        """The room forgets an occupant and tells nobody: what a self-ping (XEP-0410) is there to find."""
        found = self._room(room)
        self._occupant(found, nick)
        del found.occupants[nick]

    def expire_archive(self, address: str, count: int = 1_000_000) -> None:
        """The archive of a room or user forgets its oldest messages."""
        room = self._server.rooms.find(address)
        account = self._server.account(address)
        if room is not None:
            room.archive.expire(count)
        elif account is not None:
            account.archive.expire(count)
        else:
            raise LookupError(f"no room or user {address}")
