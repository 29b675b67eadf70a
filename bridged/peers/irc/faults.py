"""What a script can do to the network: every fault on command, at once and in one place."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal

from bridged.peers.irc import channels, modes, netsplit, operators, registration
from bridged.peers.irc.line import encode
from bridged.peers.irc.state import User

if TYPE_CHECKING:
    from bridged.peers.irc.link import Link
    from bridged.peers.irc.network import Network

After = Literal["nothing", "reset", "close", "half_open"]


class Faults:
    """The fault panel of one network: `net.faults`.  A nick names a client's connection; None means every client."""

    def __init__(self, net: Network) -> None:
        self._net = net
        self.lines_per_s = math.inf
        self.burst = net.dialect.burst_lines

    def links(self, nick: str | None = None) -> list[Link]:
        """The connections of a client, or of all.

        Raises:
            LookupError: No client with that nick is connected.
        """
        users = {user: None for server in self._net.servers for user in server.world.users.values()}
        found = [u.link for u in users if u.link is not None and (nick is None or self._is(u, nick))]
        if nick is not None and not found:
            raise LookupError(f"no client called {nick} is connected")
        return found

    def _is(self, user: User, nick: str) -> bool:
        return user.nick is not None and self._net.dialect.fold(user.nick) == self._net.dialect.fold(nick)

    def _user(self, nick: str) -> User:
        for server in self._net.servers:
            user = server.world.user(nick)
            if user is not None:
                return user
        raise LookupError(f"nobody called {nick} is online")

    # ---------------------------------------------------------------- one connection

    def drop_next_reply(self, nick: str | None = None, *, then: After = "reset") -> None:
        """The client's next message takes effect, but nothing that confirms it (echo, label, PONG) goes back.

        Args:
            nick: The client; None arms every connection.
            then: What happens to the connection afterwards.
        """
        for link in self.links(nick):
            link.drop_reply = then

    def delay(self, seconds: float, nick: str | None = None) -> None:
        """Everything to the client arrives so much later, until called with 0."""
        for link in self.links(nick):
            link.delay_s = seconds

    def duplicate(self, nick: str | None = None, count: int = 1) -> None:
        """The next messages to the client arrive twice, with the same msgid."""
        for link in self.links(nick):
            link.duplicate_next = count

    def takes_duplicate(self, user: User) -> bool:
        """Is the next message to this user to be doubled?  Counts it."""
        if user.link is None or not user.link.duplicate_next:
            return False
        user.link.duplicate_next -= 1
        return True

    def reorder(self, nick: str | None = None, count: int = 2) -> None:
        """The next `count` messages to the client are held and arrive in reverse order."""
        for link in self.links(nick):
            link.hold_next = count

    def half_open(self, nick: str, *, on: bool = True) -> None:
        """The connection stays up, but nothing is read from it and nothing written."""
        for link in self.links(nick):
            link.half_open(on=on)

    def reset(self, nick: str | None = None) -> None:
        """Cut the connection with a reset."""
        for link in self.links(nick):
            link.reset()

    def close(self, nick: str | None = None) -> None:
        """End the connection without a word."""
        for link in self.links(nick):
            link.close()

    def garbage(self, data: bytes, nick: str | None = None) -> None:
        """Send the client any bytes at all."""
        for link in self.links(nick):
            link.inject(data)

    def flood(
        self, nick: str, target: str, lines: int, *, sender: str = "flood", text: str = "x" * 20
    ) -> None:
        """Write the client many messages at once."""
        for link in self.links(nick):
            for number in range(lines):
                body = f":{sender}!{sender}@127.0.0.1 PRIVMSG {target} :{number:05} {text}\r\n"
                link.inject(encode(body))

    def error(self, nick: str, text: str) -> None:
        """ERROR and the end, as of an operator's or a server's whim."""
        self._net.quit(self._user(nick), text)

    # ---------------------------------------------------------------- the network

    def meter(self, lines_per_s: float, burst: int | None = None) -> None:
        """Flood control: so many lines pass at once, then so many a second (`math.inf` ends it)."""
        self.lines_per_s = lines_per_s
        if burst is not None:
            self.burst = burst

    def split(self, name: str | None = None) -> None:
        """Break the link to the second server, or to the one called `name`."""
        first = self._net.servers[0]
        if not netsplit.split(self._net, first, name or self._net.servers[-1].name):
            raise LookupError("no such server is linked; open the network with servers=2")

    def heal(self, name: str | None = None) -> None:
        """Bring the link back."""
        first = self._net.servers[0]
        if not netsplit.heal(self._net, first, name or self._net.servers[-1].name):
            raise LookupError("that server is not split off")

    def services(self, *, up: bool) -> None:
        """Services die or return: `sasl` leaves or enters CAP LS, and nobody is told."""
        self._net.services = up

    def capability(self, name: str, *, gone: bool) -> None:
        """Take a capability away from connected clients (CAP DEL), or bring it back (CAP NEW)."""
        registration.announce(self._net, name, gone=gone)

    def kick(self, channel: str, nick: str, reason: str = "kicked") -> None:
        user = self._user(nick)
        found = user.server.world.channel(channel)
        if found is None or user not in found.members:
            raise LookupError(f"{nick} is not in {channel}")
        channels.put_out(self._net, user.server.name, found, user, reason)

    def mode(self, channel: str, letters: str, *params: str) -> None:
        """Set a channel's modes from the server."""
        server = self._net.servers[0]
        found = server.world.channel(channel)
        if found is None:
            raise LookupError(f"no channel {channel}")
        ghost = User("", server, lambda data: None, nick=server.name)
        modes.change(self._net, ghost, found, letters, list(params), by_force=True)

    def ban(self, channel: str, mask: str) -> None:
        self.mode(channel, "+b", mask)

    def kill(self, nick: str, reason: str = "killed") -> None:
        operators.kill(self._net, self._net.servers[0].name, self._user(nick), reason)

    def kline(self, mask: str, reason: str = "no more") -> None:
        """Ban a `user@host` mask; `pardon` forgives all."""
        operators.kline(self._net, mask, reason)

    def pardon(self) -> None:
        self._net.klines.clear()

    def rename(self, nick: str, wanted: str) -> None:
        """Force a user to another nick."""
        registration.rename(self._net, self._user(nick), wanted)

    def change_host(self, nick: str, host: str) -> None:
        """Give a user another shown host."""
        operators.change_host(self._net, self._user(nick), host)

    def shut_down(self) -> None:
        """Every client is told that the server goes down, and let go."""
        operators.shut_down(self._net, by_signal=True)
