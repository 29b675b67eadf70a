"""Someone on the fake network whom the script plays: no connection, the same commands, every capability."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Literal

import attrs
import trio

from bridged.peers.irc.line import Line, encode, escape, parse
from bridged.peers.irc.state import User

if TYPE_CHECKING:
    from bridged.peers.irc.network import Network

HEARD_MAX = 50_000
"""Events that wait for a person; the oldest are forgotten."""
KINDS = {
    "JOIN": "join", "PART": "part", "QUIT": "quit", "KICK": "kick", "NICK": "nick", "TOPIC": "topic", "MODE": "mode",
    "TAGMSG": "tagmsg", "INVITE": "invite", "AWAY": "away", "ACCOUNT": "account",
}  # fmt: skip
MESSAGES = frozenset({"message", "action", "notice"})


@attrs.frozen(kw_only=True)
class Heard:
    """One thing that a person saw."""

    kind: str
    """message, action, notice, tagmsg, join, part, quit, kick, nick, topic, mode, …, or `numeric`."""
    sender: str
    text: str
    """What was said; of a kick, part or quit the reason, of a nick the new nick."""
    target: str
    """Channel or nick that it went to."""
    msgid: str
    tags: Mapping[str, str]
    line: Line


class Person:
    """One user of the fake network, driven by the script."""

    def __init__(self, net: Network, user: User) -> None:
        self._net = net
        self.user = user
        self._heard: deque[Heard] = deque(maxlen=HEARD_MAX)
        self._news = trio.Event()
        self._saying = False
        self._refusal: Line | None = None
        self._echo = ""
        user.deliver = self._deliver

    @property
    def nick(self) -> str:
        return self.user.shown

    # ---------------------------------------------------------------- saying

    async def join(self, channel: str, key: str = "") -> None:
        self.send("JOIN", channel, *([key] if key else []))
        await trio.lowlevel.checkpoint()

    async def part(self, channel: str, reason: str = "bye") -> None:
        self.send("PART", channel, reason)
        await trio.lowlevel.checkpoint()

    async def quit(self, reason: str = "bye") -> None:
        self.send("QUIT", reason)
        await trio.lowlevel.checkpoint()

    async def change_nick(self, nick: str) -> None:
        self.send("NICK", nick)
        await trio.lowlevel.checkpoint()

    async def say(self, target: str, text: str, *, reply_to: str | None = None) -> str:
        """Say one line and return its msgid ("" where the server has none).

        Raises:
            RuntimeError: The server refused it (not in the channel, moderated …).
        """
        tags = {"+draft/reply": reply_to} if reply_to else {}
        return await self._said("PRIVMSG", target, text, tags)

    async def act(self, target: str, text: str) -> str:
        """Like `say`: a CTCP ACTION (`/me`)."""
        return await self._said("PRIVMSG", target, f"\x01ACTION {text}\x01", {})

    async def notice(self, target: str, text: str) -> str:
        """Like `say`: a NOTICE."""
        return await self._said("NOTICE", target, text, {})

    async def react(self, target: str, msgid: str, emoji: str) -> None:
        self.send("TAGMSG", target, tags={"+draft/react": emoji, "+draft/reply": msgid})
        await trio.lowlevel.checkpoint()

    async def typing(self, target: str, state: Literal["active", "paused", "done"] = "active") -> None:
        self.send("TAGMSG", target, tags={"+typing": state})
        await trio.lowlevel.checkpoint()

    async def kick(self, channel: str, nick: str, reason: str = "out") -> None:
        self.send("KICK", channel, nick, reason)
        await trio.lowlevel.checkpoint()

    async def mode(self, target: str, *words: str) -> None:
        self.send("MODE", target, *words)
        await trio.lowlevel.checkpoint()

    async def topic(self, channel: str, text: str) -> None:
        self.send("TOPIC", channel, text)
        await trio.lowlevel.checkpoint()

    def send(self, command: str, *params: str, tags: Mapping[str, str] | None = None) -> None:
        """Hand the server any line, at once.

        Raises:
            ValueError: A parameter holds CR, LF or NUL.
        """
        words = [command, *params[:-1], *([f":{params[-1]}"] if params else [])]
        text = " ".join(words)
        if any(c in text for c in "\r\n\0"):
            raise ValueError("an IRC line cannot hold CR, LF or NUL; say one line at a time")
        head = ""
        if tags and self._net.dialect.tags:
            head = "@" + ";".join(f"{k}={escape(v)}" for k, v in tags.items()) + " "
        data = encode(head + text)
        self._net.note(0, self.nick, "in", data)
        self._net.handle(self.user, data)

    async def _said(self, command: str, target: str, text: str, tags: Mapping[str, str]) -> str:
        self._refusal, self._echo, self._saying = None, "", True
        try:
            self.send(command, target, text, tags=tags)
        finally:
            self._saying = False
        await trio.lowlevel.checkpoint()
        if self._refusal is not None:
            raise RuntimeError(f"the server refused it: {' '.join(self._refusal.params)}")
        return self._echo

    # ---------------------------------------------------------------- hearing

    def _deliver(self, data: bytes) -> None:
        line = parse(data.removesuffix(b"\r\n"))
        if line is None:
            return
        self._net.note(0, self.nick, "out", data.removesuffix(b"\r\n"))
        if self._saying and line.command.isdecimal() and line.command[0] in "45":
            self._refusal = line
        if self._saying and "inspircd.org/echo" in line.tags:
            self._echo = line.tags.get("msgid", "")
            return  # one does not hear oneself
        self._heard.append(heard(line))
        news, self._news = self._news, trio.Event()
        news.set()

    async def receive(self, kinds: frozenset[str] | set[str] = MESSAGES) -> Heard:
        """Wait for the next message (or event of `kinds`); what is passed over stays for other calls."""
        return await self.receive_where(lambda event: event.kind in kinds)

    async def receive_where(self, wanted: Callable[[Heard], bool]) -> Heard:
        """Wait for the next event that fits."""
        await trio.lowlevel.checkpoint()
        while True:
            for event in self._heard:
                if wanted(event):
                    self._heard.remove(event)
                    return event
            await self._news.wait()

    def heard_now(self, kinds: frozenset[str] | set[str] = MESSAGES) -> list[Heard]:
        """Take everything of `kinds` that has been heard so far, without waiting."""
        found = [event for event in self._heard if event.kind in kinds]
        for event in found:
            self._heard.remove(event)
        return found


def heard(line: Line) -> Heard:
    """What a line means to a person."""
    kind = KINDS.get(line.command, "numeric" if line.command.isdecimal() else line.command.lower())
    target, text = line.get(0), line.params[-1] if line.params else ""
    if line.command in ("PRIVMSG", "NOTICE"):
        kind = "message" if line.command == "PRIVMSG" else "notice"
        if line.command == "PRIVMSG" and text.startswith("\x01ACTION "):
            kind, text = "action", text.removeprefix("\x01ACTION ").removesuffix("\x01")
    return Heard(
        kind=kind,
        sender=line.nick,
        text=text,
        target=target,
        msgid=line.tags.get("msgid", ""),
        tags=line.tags,
        line=line,
    )
