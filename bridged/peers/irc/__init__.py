"""A fake IRC network that speaks as InspIRCd 3.15 or as ngIRCd 26.1 was seen to, with faults on command.

    async with open_irc_network(env, flavour="inspircd", host="127.0.0.1") as net:
        irene = await net.person("irene")
        await irene.join("#ops")
        await irene.say("#ops", "hi")
        net.faults.reset("acme-bridge")

Clients connect to `net.address` over TCP or through `net.connect_memory()`.
"""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from functools import partial
from itertools import islice
from typing import Any, Literal

import trio
import trio.testing

from bridged.peers.authority import fingerprint_of
from bridged.peers.irc import channels, history, messages, modes, operators, queries, registration
from bridged.peers.irc.dialect import DIALECTS, Dialect
from bridged.peers.irc.faults import Faults
from bridged.peers.irc.line import Line
from bridged.peers.irc.link import Link
from bridged.peers.irc.network import Account, Entry, Network, Options
from bridged.peers.irc.person import Heard, Person
from bridged.peers.irc.state import Server, User
from shards.env import Env

__all__ = [
    "Account", "Entry", "Faults", "Heard", "IrcNetwork", "Line", "Options", "Person", "open_irc_network",
]  # fmt: skip


class IrcNetwork(Network):
    """A fake network that is open: its addresses, persons, clients and faults."""

    def __init__(
        self,
        env: Env,
        dialect: Dialect,
        options: Options,
        nursery: trio.Nursery,
        tls: ssl.SSLContext | None,
    ) -> None:
        super().__init__(env, dialect, options, nursery)
        self.faults = Faults(self)
        self._tls = tls
        self._links = 0
        self._listening: list[tuple[trio.CancelScope, str, int, int, bool]] = []
        """(scope, host, port, server's number, TLS) of what listens, or did until `stop`."""
        self.addresses: list[tuple[str, int]] = []
        """(host, port) of each server that listens."""

    @property
    def address(self) -> tuple[str, int]:
        """Where the first server listens."""
        return self.addresses[0]

    # ---------------------------------------------------------------- clients

    def connect_memory(self, server: int = 0, *, tls: bool = False) -> trio.abc.Stream:
        """A client's end of a new connection that never leaves memory."""
        ours, theirs = trio.testing.memory_stream_pair()
        self.nursery.start_soon(self._serve, self.servers[server], tls, theirs)
        return ours

    async def _serve(self, server: Server, tls: bool, stream: trio.abc.Stream) -> None:
        """One connection, from its first byte; its faults end it alone."""
        fingerprint = None
        if tls:
            assert self._tls is not None, "open the network with tls= to serve TLS"
            stream = trio.SSLStream(stream, self._tls, server_side=True)
            try:
                await stream.do_handshake()
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                await trio.aclose_forcefully(stream)
                return
            fingerprint = fingerprint_of(stream.getpeercert(binary_form=True))
        self._links += 1
        link = Link(self, stream, self._links)
        user = User(server.next_uid(), server, link.deliver, secure=tls, fingerprint=fingerprint, link=link)
        await link.run(user)

    async def listen(self, host: str, port: int, *, server: int = 0, tls: bool = False) -> tuple[str, int]:
        """Start to accept connections; returns once they are accepted."""
        scope = trio.CancelScope()

        async def serve(*, task_status: trio.TaskStatus[tuple[str, int]]) -> None:
            listeners = await self.env.open_tcp_listeners(host, port)
            with scope:
                handler: Callable[[Any], Any] = partial(self._serve, self.servers[server], tls)
                task_status.started(_address(listeners[0], host))
                await trio.serve_listeners(handler, list(listeners), handler_nursery=self.nursery)

        address: tuple[str, int] = await self.nursery.start(serve)
        self._listening.append((scope, host, address[1], server, tls))
        return address

    async def stop(self) -> None:
        """Go down: refuse connections and cut those that stand; `start` comes back on the same ports."""
        for scope, *_ in self._listening:
            scope.cancel()
        for link in self.faults.links():
            link.reset()
        await trio.lowlevel.checkpoint()

    async def start(self) -> None:
        """Come back after `stop`, with all channels and accounts."""
        listening, self._listening = self._listening, []
        for _, host, port, server, tls in listening:
            await self.listen(host, port, server=server, tls=tls)

    # ---------------------------------------------------------------- the script's side

    async def person(
        self, nick: str, *, server: int = 0, capabilities: Iterable[str] | None = None
    ) -> Person:
        """Bring someone online.

        Raises:
            ValueError: The nick is taken or not legal.
        """
        host = self.servers[server]
        user = User(host.next_uid(), host, lambda data: None)
        person = Person(self, user)
        person.send("NICK", nick)
        if user.nick != nick:
            raise ValueError(f"{nick!r} is taken, or no nick for {self.dialect.name}")
        user.user, user.real = self.dialect.tilde + nick[: self.dialect.user_max], nick
        wanted = self.capabilities if capabilities is None else capabilities
        user.capabilities = {c for c in wanted if c not in ("labeled-response", "draft/multiline")}
        registration.welcome(self, user)
        person.heard_now(frozenset({"numeric", "message", "notice"}))
        await trio.lowlevel.checkpoint()
        return person

    def add_account(self, name: str, password: str, fingerprints: Iterable[str] = ()) -> None:
        """Register an account; links the services, so that `sasl` is offered."""
        self.accounts[name] = Account(name=name, password=password, fingerprints=frozenset(fingerprints))
        self.services = self.dialect.name == "inspircd"

    def members(self, channel: str, *, server: int = 0) -> list[str]:
        """The nicks in a channel, as that server sees them."""
        found = self.servers[server].world.channel(channel)
        return [member.shown for member in found.members] if found is not None else []

    def lines(self, nick: str | None = None, direction: Literal["in", "out"] = "in") -> list[str]:
        """The logged lines of clients (not persons), of one nick or of all, in order."""
        return [
            entry.text
            for entry in self.log
            if entry.link and entry.direction == direction and (nick is None or entry.nick == nick)
        ]

    async def wait_line(self, wanted: Callable[[Entry], bool]) -> Entry:
        """Wait until a line that fits is, or already was, in the log."""
        await trio.lowlevel.checkpoint()
        seen = 0
        while True:
            new = min(self.log_count - seen, len(self.log))
            for entry in list(islice(self.log, len(self.log) - new, None)):
                if wanted(entry):
                    return entry
            seen = self.log_count
            await self.line_logged.wait()

    async def wait_member(self, channel: str, nick: str) -> None:
        """Wait until someone is in a channel."""
        await trio.lowlevel.checkpoint()
        while nick not in [
            name for n in range(len(self.servers)) for name in self.members(channel, server=n)
        ]:
            await self.line_logged.wait()


def _address(listener: trio.abc.Listener[Any], host: str) -> tuple[str, int]:
    socket = getattr(listener, "socket", None)
    return (host, socket.getsockname()[1]) if socket is not None else (host, 0)


@asynccontextmanager
async def open_irc_network(
    env: Env,
    *,
    flavour: Literal["inspircd", "ngircd"] = "inspircd",
    host: str | None = None,
    port: int = 0,
    servers: int = 1,
    tls: ssl.SSLContext | None = None,
    **options: Any,
) -> AsyncIterator[IrcNetwork]:
    """Run a fake network; leaving the block cuts everyone off.

    Args:
        env: Clock for times on the wire, randomness, listeners.
        flavour: Whose way of speaking.
        host: Where to listen; None: memory connections only.
        port: The first server's port; 0 lets the system choose.
        servers: How many linked servers, for netsplits; each listens on a port of its own.
        tls: Serve TLS instead of plain connections (`authority.server_context`).
        options: Fields of `Options`.
    """
    dialect = DIALECTS[flavour]
    async with trio.open_nursery() as nursery:
        net = IrcNetwork(env, dialect, Options(**options), nursery, tls)
        first = dialect.server.partition(".")[0]
        for number in range(servers):
            name = dialect.server
            if number:
                label = chr(ord("a") + number) if flavour == "inspircd" else f"{first}{number + 1}"
                name = f"{label}.localhost"
            net.add_server(name, f"00{chr(ord('A') + number)}")
        net.install(registration.HANDLERS, unregistered=registration.UNREGISTERED)
        for table in (channels, modes, messages, queries, operators):
            net.install(table.HANDLERS)
        if flavour == "ngircd":
            net.uninstall("AUTHENTICATE", "SETNAME", "TAGMSG", "BATCH", "SAMODE")
            net.install({"ERROR": operators.error})
        else:
            net.install(queries.INSPIRCD_HANDLERS)
            net.install(operators.INSPIRCD_HANDLERS)
            net.install(history.HANDLERS)
        if host is not None:
            for number in range(servers):
                wanted = port + number if port else 0
                net.addresses.append(await net.listen(host, wanted, server=number, tls=tls is not None))
        try:
            yield net
        finally:
            nursery.cancel_scope.cancel()
