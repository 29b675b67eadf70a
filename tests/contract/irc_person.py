"""A person with a plain IRC client, the same on the fake network and on a real one: bytes, nothing of the bridge."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

import attrs
import trio

from bridged.peers.irc.line import Line, parse

CAPABILITIES = (
    "account-tag", "batch", "chghost", "echo-message", "extended-join", "labeled-response", "message-tags",
    "multi-prefix", "server-time", "setname",
)  # fmt: skip
PATIENCE_S = 15.0
Connect = Callable[[], "trio.abc.AsyncResource"]


@attrs.frozen(kw_only=True)
class Said:
    """A message as this person saw it."""

    sender: str
    target: str
    text: str
    kind: str
    """message, action or notice."""
    msgid: str
    line: Line


class IrcPerson:
    """One connection: says, hears, and answers PING by itself."""

    def __init__(self, stream: trio.abc.Stream, nick: str) -> None:
        self.nick = nick
        self.capabilities: set[str] = set()
        self.offered: set[str] = set()
        self._stream = stream
        self._lines: list[Line] = []
        self._tail = b""
        self._news = trio.Event()
        self._ended = False
        self._barrier = 0

    # ---------------------------------------------------------------- the wire

    async def run(self) -> None:
        """Read until the end; PING is answered at once."""
        while True:
            try:
                data = await self._stream.receive_some(65_536)
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                data = b""
            if not data:
                break
            *lines, self._tail = (self._tail + bytes(data)).split(b"\n")
            for raw in lines:
                line = parse(raw.rstrip(b"\r"))
                if line is None:
                    continue
                if line.command == "PING":
                    await self.send("PONG :" + line.get(0))
                    continue
                if line.command == "NICK" and line.nick == self.nick:
                    self.nick = line.get(0)
                self._lines.append(line)
            self._wake()
        self._ended = True
        self._wake()

    def _wake(self) -> None:
        news, self._news = self._news, trio.Event()
        news.set()

    async def send(self, *lines: str) -> None:
        """Write lines in one go."""
        await self._stream.send_all("".join(f"{line}\r\n" for line in lines).encode())

    async def wait(self, wanted: Callable[[Line], bool]) -> Line:
        """The next line that fits; what is passed over stays for other calls.

        Raises:
            EOFError: The connection ended first.
            trio.TooSlowError: Nothing fitting came.
        """
        with trio.fail_after(PATIENCE_S):
            while True:
                for line in self._lines:
                    if wanted(line):
                        self._lines.remove(line)
                        return line
                if self._ended:
                    raise EOFError("the server ended the connection")
                await self._news.wait()

    async def numeric(self, *codes: str) -> Line:
        return await self.wait(lambda line: line.command in codes)

    async def barrier(self) -> list[Line]:
        """Wait until the server has dealt with all that was sent; returns the lines heard up to there."""
        self._barrier += 1
        token = f"bar-{self._barrier}"
        await self.send(f"PING :{token}")
        with trio.fail_after(PATIENCE_S):
            while True:
                for number, line in enumerate(self._lines):
                    if line.command == "PONG" and line.params[-1:] == (token,):
                        before, self._lines = self._lines[:number], self._lines[number + 1 :]
                        return before
                if self._ended:
                    raise EOFError("the server ended the connection")
                await self._news.wait()

    # ---------------------------------------------------------------- what people do

    async def register(self, capabilities: Sequence[str] = CAPABILITIES) -> None:
        """Log in with as many of the capabilities as the server has."""
        await self.send("CAP LS 302", f"NICK {self.nick}", f"USER {self.nick} 0 * :{self.nick}")
        offered = await self.wait(lambda line: line.command == "CAP" and line.get(1) == "LS")
        self.offered = {word.partition("=")[0] for word in offered.params[-1].split()}
        wanted = [c for c in capabilities if c in self.offered]
        if wanted:
            await self.send(f"CAP REQ :{' '.join(wanted)}")
            await self.wait(lambda line: line.command == "CAP" and line.get(1) == "ACK")
            self.capabilities = set(wanted)
        await self.send("CAP END")
        await self.numeric("376", "422")

    async def join(self, channel: str) -> list[str]:
        """Enter a channel; returns who is there, with their signs."""
        await self.send(f"JOIN {channel}")
        names = await self.wait(
            lambda line: line.command == "353" and line.params[2].lower() == channel.lower()
        )
        await self.wait(lambda line: line.command == "366")
        return names.params[-1].split()

    async def say(self, target: str, text: str) -> None:
        await self.send(f"PRIVMSG {target} :{text}")

    async def receive(self, *, sender: str | None = None, target: str | None = None) -> Said:
        """The next message, of someone else."""

        def fits(line: Line) -> bool:
            if line.command not in ("PRIVMSG", "NOTICE") or "!" not in (line.source or ""):
                return False
            mine = line.nick == self.nick
            return not mine and sender in (None, line.nick) and target in (None, line.get(0))

        return said(await self.wait(fits))

    async def echo(self) -> Said:
        """The next message of one's own, as the server sends it back."""
        return said(await self.wait(lambda line: line.command == "PRIVMSG" and line.nick == self.nick))


def said(line: Line) -> Said:
    """What a PRIVMSG or NOTICE says."""
    text, kind = line.params[-1], "message" if line.command == "PRIVMSG" else "notice"
    if text.startswith("\x01ACTION "):
        text, kind = text.removeprefix("\x01ACTION ").removesuffix("\x01"), "action"
    return Said(
        sender=line.nick,
        target=line.get(0),
        text=text,
        kind=kind,
        msgid=line.tags.get("msgid", ""),
        line=line,
    )


@asynccontextmanager
async def irc_person(
    address: tuple[str, int],
    nick: str,
    *,
    capabilities: Sequence[str] = CAPABILITIES,
    tls: ssl.SSLContext | None = None,
    register: bool = True,
) -> AsyncIterator[IrcPerson]:
    """Someone online at a server, gone when the block is left."""
    stream: trio.abc.Stream = await trio.open_tcp_stream(*address)
    if tls is not None:
        stream = trio.SSLStream(stream, tls, server_hostname="localhost")
    person = IrcPerson(stream, nick)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(person.run)
        try:
            if register:
                await person.register(capabilities)
            yield person
        finally:
            nursery.cancel_scope.cancel()
            await trio.aclose_forcefully(stream)
