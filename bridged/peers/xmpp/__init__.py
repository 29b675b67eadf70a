"""A fake XMPP server that speaks as Prosody 0.12 was seen to, with faults on command.

    async with open_xmpp_server(env, host="127.0.0.1") as srv:
        srv.add_user("bridge", "pw-bridge")
        alice = await srv.person("alice")
        await alice.join("ops@muc.localhost")
        await alice.say("ops@muc.localhost", "hi")
        srv.faults.cut("bridge@localhost")

Clients connect to `srv.address` (STARTTLS), to `srv.direct_address` (TLS from the first byte) or through
`srv.connect_memory()`; they trust `srv.ca`.
"""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import trio
import trio.testing

from bridged.peers.authority import Authority
from bridged.peers.xmpp.connection import Connection
from bridged.peers.xmpp.faults import Faults
from bridged.peers.xmpp.person import Heard, Person
from bridged.peers.xmpp.server import Entry, Options, Server
from bridged.peers.xmpp.xml import Element
from shards.env import Env

__all__ = ["Element", "Entry", "Faults", "Heard", "Options", "Person", "XmppServer", "open_xmpp_server"]


class XmppServer(Server):
    """A fake server that is open: its addresses, users, persons and faults."""

    def __init__(
        self,
        env: Env,
        domain: str,
        muc: str,
        options: Options,
        nursery: trio.Nursery,
        authority: Authority,
        tls: ssl.SSLContext,
    ) -> None:
        super().__init__(env, domain, muc, options, nursery)
        self.faults = Faults(self)
        self.authority = authority
        self._tls = tls
        self._connections: set[Connection] = set()
        self._count = 0
        self._listening: list[tuple[trio.CancelScope, str, int, bool]] = []
        self.address: tuple[str, int] = ("", 0)
        """(host, port) for STARTTLS."""
        self.direct_address: tuple[str, int] = ("", 0)
        """(host, port) for direct TLS."""

    @property
    def ca(self) -> str:
        """The certificate, PEM, that clients trust."""
        return self.authority.pem

    def write_ca(self, path: Path) -> Path:
        """The same in a file."""
        return self.authority.write(path)

    def client_context(self) -> ssl.SSLContext:
        """A TLS context that trusts this server alone."""
        return self.authority.client_context()

    # ---------------------------------------------------------------- clients

    def connect_memory(self, *, direct_tls: bool = False) -> trio.abc.Stream:
        """A client's end of a new connection that never leaves memory."""
        ours, theirs = trio.testing.memory_stream_pair()
        self.nursery.start_soon(self._serve, direct_tls, theirs)
        return ours

    async def _serve(self, direct_tls: bool, stream: trio.abc.Stream) -> None:
        """One connection, from its first byte; its faults end it alone."""
        if direct_tls:
            stream = trio.SSLStream(stream, self._tls, server_side=True)
            try:
                await stream.do_handshake()
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                await trio.aclose_forcefully(stream)
                return
        self._count += 1
        connection = Connection(self, stream, self._count, self._tls, secure=direct_tls)
        self._connections.add(connection)
        try:
            await connection.run()
        finally:
            self._connections.discard(connection)

    async def listen(self, host: str, port: int, *, direct_tls: bool = False) -> tuple[str, int]:
        """Start to accept connections; returns once they are accepted."""
        scope = trio.CancelScope()

        async def serve(*, task_status: trio.TaskStatus[tuple[str, int]]) -> None:
            listeners = await self.env.open_tcp_listeners(host, port)
            with scope:
                handler: Callable[[Any], Any] = partial(self._serve, direct_tls)
                socket = getattr(listeners[0], "socket", None)
                task_status.started((host, socket.getsockname()[1] if socket is not None else port))
                await trio.serve_listeners(handler, list(listeners), handler_nursery=self.nursery)

        address: tuple[str, int] = await self.nursery.start(serve)
        self._listening.append((scope, host, address[1], direct_tls))
        return address

    async def stop(self, *, keep_sessions: bool = False) -> None:
        """Go down: refuse connections and cut those that stand; `start` comes back on the same ports.

        Args:
            keep_sessions: Sleeping sessions survive, as when only the network was lost; otherwise they end
                as with a restart, and what they owe is in the archives.
        """
        for scope, *_ in self._listening:
            scope.cancel()
        for connection in list(self._connections):
            connection.cut()
        if not keep_sessions:
            for account in self.accounts.values():
                for session in list(account.sessions.values()):
                    if session.sleeping:
                        self.close_session(session, None, expired=True)
        await trio.lowlevel.checkpoint()

    async def start(self) -> None:
        """Come back after `stop`, with all rooms, archives and users."""
        listening, self._listening = self._listening, []
        for _, host, port, direct_tls in listening:
            await self.listen(host, port, direct_tls=direct_tls)

    # ---------------------------------------------------------------- the script's side

    async def person(self, name: str, *, resource: str = "person") -> Person:
        """Bring someone online; who has no account gets one."""
        account = self.accounts.get(name) or self.add_user(name, f"pw-{name}")
        made = Person(self, account, resource)
        await trio.lowlevel.checkpoint()
        return made

    def occupants(self, room: str) -> list[str]:
        """The nicks in a room."""
        found = self.rooms.find(room)
        return list(found.occupants) if found is not None else []

    async def wait_occupant(self, room: str, nick: str) -> None:
        """Wait until someone is in a room."""
        await trio.lowlevel.checkpoint()
        while nick not in self.occupants(room):
            await self.logged.wait()

    async def wait_entry(self, wanted: Callable[[Entry], bool]) -> Entry:
        """Wait until an entry that fits is, or already was, in the log."""
        await trio.lowlevel.checkpoint()
        seen = 0
        while True:
            new = min(self.log_count - seen, len(self.log))
            for entry in list(islice(self.log, len(self.log) - new, None)):
                if wanted(entry):
                    return entry
            seen = self.log_count
            await self.logged.wait()


@asynccontextmanager
async def open_xmpp_server(
    env: Env,
    *,
    host: str | None = None,
    port: int = 0,
    direct_port: int = 0,
    domain: str = "localhost",
    muc: str | None = None,
    authority: Authority | None = None,
    **options: Any,
) -> AsyncIterator[XmppServer]:
    """Run a fake server; leaving the block cuts everyone off.

    Args:
        env: Clock for times on the wire, randomness, listeners.
        host: Where to listen; None: memory connections only.
        port: For STARTTLS; 0 lets the system choose.
        direct_port: For direct TLS; the same.
        domain: The server's name.
        muc: The room service's name; `muc.DOMAIN` where None.
        authority: Who signs the server's certificate; a new one where None.
        options: Fields of `Options`.
    """
    authority = authority or Authority(now=env.wall())
    muc = muc or f"muc.{domain}"
    names = [domain, muc, "127.0.0.1", "::1"]
    async with trio.open_nursery() as nursery:
        tls = authority.server_context(names)
        server = XmppServer(env, domain, muc, Options(**options), nursery, authority, tls)
        if host is not None:
            server.address = await server.listen(host, port)
            server.direct_address = await server.listen(host, direct_port, direct_tls=True)
        try:
            yield server
        finally:
            nursery.cancel_scope.cancel()
