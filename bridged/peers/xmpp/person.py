"""Someone on the fake server whom the script plays: a session without a connection, the same stanzas."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Literal

import attrs
import trio

from bridged.peers.xmpp import jid, ns
from bridged.peers.xmpp.stanza import body
from bridged.peers.xmpp.state import Account, Session
from bridged.peers.xmpp.xml import Element, Node, el

if TYPE_CHECKING:
    from bridged.peers.xmpp.server import Server

HEARD_MAX = 50_000
MESSAGES = frozenset({"message", "action"})
LATER = frozenset({"message", "action", "edit", "retract", "reaction"})


@attrs.frozen(kw_only=True)
class Heard:
    """One thing that a person saw."""

    kind: str
    """message, action, edit, retract, reaction, subject, state, receipt, marker, join, leave, error, iq, other."""
    sender: str
    """The nick in a room, else the bare address."""
    text: str
    """The body; of reactions the emojis, one blank between them; of a retraction its target's id."""
    target: str
    """The room, or one's own bare address."""
    id: str
    """As the sender chose it."""
    stanza_id: str
    """As the room or server chose it, "" where it was not archived."""
    refers_to: str
    """The id that an edit, retraction, reaction or reply is about."""
    emojis: tuple[str, ...]
    stanza: Element


class Person:
    """One user of the fake server, driven by the script."""

    def __init__(self, server: Server, account: Account, resource: str) -> None:
        self._server = server
        self._account = account
        self._heard: deque[Heard] = deque(maxlen=HEARD_MAX)
        self._news = trio.Event()
        self._nicks: dict[str, str] = {}
        self._number = 0
        self._errors: list[Element] = []
        self._echoes: list[Heard] = []
        self._saying = ""
        self.session: Session = server.open_session(account, resource, self._deliver)
        self.send(el(ns.CLIENT, "presence"))

    @property
    def jid(self) -> str:
        """The full address."""
        return self.session.jid

    # ---------------------------------------------------------------- saying

    async def join(
        self, room: str, nick: str | None = None, *, password: str | None = None, history: int = 0
    ) -> None:
        """Enter a room; one that is not there is made and opened.

        Raises:
            RuntimeError: The room refused.
        """
        nick = nick or self._account.name
        x = el(ns.MUC, "x", None, el(ns.MUC, "history", {"maxstanzas": str(history)}))
        if password is not None:
            x.add(el(ns.MUC, "password", None, password))
        self._ask(el(ns.CLIENT, "presence", {"to": f"{room}/{nick}"}, x), "it did not let you in")
        self._nicks[room] = nick
        found = self._server.rooms.find(room)
        if found is not None and found.locked:
            form = el(ns.DATA, "x", {"type": "submit"})
            query = el(ns.MUC_OWNER, "query", None, form)
            self._ask(
                el(ns.CLIENT, "iq", {"type": "set", "id": self._next(), "to": room}, query), "not opened"
            )
        await trio.lowlevel.checkpoint()

    async def leave(self, room: str) -> None:
        nick = self._nicks.pop(room, self._account.name)
        self.send(el(ns.CLIENT, "presence", {"to": f"{room}/{nick}", "type": "unavailable"}))
        await trio.lowlevel.checkpoint()

    async def change_nick(self, room: str, nick: str) -> None:
        self._ask(el(ns.CLIENT, "presence", {"to": f"{room}/{nick}"}), "the nick was refused")
        self._nicks[room] = nick
        await trio.lowlevel.checkpoint()

    async def say(self, to: str, text: str, *, reply_to: str | None = None, author: str | None = None) -> str:
        """Say something in a room or to a user.

        Args:
            to: A room that was joined, or a user's address.
            text: The body.
            reply_to: The id that it answers (in a room the stanza-id).
            author: Whom it answers: the address in the reply element.

        Returns:
            In a room the stanza-id, else the message's own id.

        Raises:
            RuntimeError: It was refused.
            ValueError: XML cannot hold the text.
        """
        nodes: list[Node] = [el(ns.CLIENT, "body", None, text)]
        if reply_to is not None:
            nodes.append(el(ns.REPLY, "reply", {"id": reply_to, "to": author}))
        return await self._said(to, nodes)

    async def act(self, to: str, text: str) -> str:
        """Like `say`: `/me`."""
        return await self.say(to, f"/me {text}")

    async def edit(self, to: str, original_id: str, text: str) -> str:
        """Correct a message (XEP-0308) by the id that its sender gave it."""
        return await self._said(
            to, [el(ns.CLIENT, "body", None, text), el(ns.CORRECT, "replace", {"id": original_id})]
        )

    async def retract(self, to: str, target_id: str) -> str:
        """Take a message back (XEP-0424)."""
        fallback = el(ns.FALLBACK, "fallback", {"for": ns.RETRACT})
        text = "This person attempted to retract a previous message, but it's unsupported by your client."
        nodes = [el(ns.RETRACT, "retract", {"id": target_id}), fallback, el(ns.CLIENT, "body", None, text)]
        return await self._said(to, [*nodes, el(ns.HINTS, "store")])

    async def react(self, to: str, target_id: str, emojis: Sequence[str]) -> str:
        """Set one's full set of reactions on a message (XEP-0444); none takes them back."""
        reactions = el(ns.REACTIONS, "reactions", {"id": target_id})
        reactions.add(*(el(ns.REACTIONS, "reaction", None, emoji) for emoji in emojis))
        return await self._said(to, [reactions, el(ns.HINTS, "store")])

    async def typing(self, to: str, state: Literal["composing", "paused", "active"] = "composing") -> None:
        await self._said(to, [el(ns.STATES, state)])

    async def subject(self, room: str, text: str) -> None:
        subject = el(ns.CLIENT, "subject", None, text)
        self._ask(
            el(ns.CLIENT, "message", {"type": "groupchat", "to": room}, subject), "the subject was refused"
        )
        await trio.lowlevel.checkpoint()

    async def mark(self, to: str, target_id: str, marker: str = "displayed") -> str:
        """A chat marker (XEP-0333)."""
        return await self._said(to, [el(ns.MARKERS, marker, {"id": target_id}), el(ns.HINTS, "store")])

    async def quit(self) -> None:
        """Go offline."""
        self._server.close_session(self.session, None)
        await trio.lowlevel.checkpoint()

    def send(self, stanza: Element) -> None:
        """Hand the server any stanza, at once."""
        self._server.note(0, self.jid, "in", stanza)
        self._server.handle(self.session, stanza)

    def last_id(self) -> str:
        """The id that the last `say` gave its message: what an edit names."""
        return f"{self._account.name}-{self._number}"

    def _next(self) -> str:
        self._number += 1
        return self.last_id()

    def _ask(self, stanza: Element, refusal: str) -> None:
        self._errors.clear()
        self.send(stanza)
        if self._errors:
            found = self._errors[0].find(ns.CLIENT, "error")
            names = [e.name for e in found.elements()] if found is not None else []
            raise RuntimeError(f"{refusal}: {', '.join(names)}")

    async def _said(self, to: str, nodes: Sequence[Node]) -> str:
        for node in nodes:
            if isinstance(node, Element) and not all(_is_xml(c) for c in node.text):
                raise ValueError("XML cannot hold these control characters")
        in_room = to in self._nicks
        message_id = self._next()
        self._echoes.clear()
        self._saying = message_id
        given = {"type": "groupchat" if in_room else "chat", "to": to, "id": message_id}
        origin = el(ns.SID, "origin-id", {"id": message_id})
        try:
            self._ask(el(ns.CLIENT, "message", given, *nodes, origin), "it was refused")
        finally:
            self._saying = ""
        await trio.lowlevel.checkpoint()
        return self._echoes[0].stanza_id if self._echoes else message_id

    # ---------------------------------------------------------------- hearing

    def _deliver(self, stanza: Element) -> None:
        self._server.note(0, self.jid, "out", stanza)
        event = heard(stanza)
        if stanza.get("type") == "error":
            self._errors.append(stanza)
        if self._saying and event.id == self._saying and stanza.get("type") == "groupchat":
            self._echoes.append(event)
            return  # one does not hear oneself
        if stanza.name == "iq" and stanza.get("type") == "get":
            self._answer(stanza)
            return
        self._heard.append(event)
        news, self._news = self._news, trio.Event()
        news.set()

    def _answer(self, iq: Element) -> None:
        """A client's duty: every query gets an answer."""
        given = {"type": "result", "id": iq.get("id"), "to": iq.get("from")}
        payload = next(iq.elements(), None)
        nodes: list[Node] = []
        if payload is not None and payload.is_a(ns.INFO, "query"):
            identity = el(ns.INFO, "identity", {"category": "client", "type": "bot"})
            nodes = [el(ns.INFO, "query", {"node": payload.get("node")}, identity)]
        self.send(el(ns.CLIENT, "iq", given, *nodes))

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


def _is_xml(character: str) -> bool:
    code = ord(character)
    return code in (9, 10, 13) or (
        code >= 32 and not 0xD800 <= code < 0xE000 and code not in (0xFFFE, 0xFFFF)
    )


def heard(stanza: Element) -> Heard:
    """What a stanza means to a person."""
    sender = stanza.get("from") or ""
    in_room = stanza.get("type") == "groupchat" or stanza.find(ns.MUC_USER, "x") is not None
    text = body(stanza) or ""
    kind, refers_to = "other", ""
    emojis: tuple[str, ...] = ()
    ids = [e.get("id") or "" for e in stanza.find_all(ns.SID, "stanza-id")]
    if stanza.get("type") == "error":
        kind = "error"
    elif stanza.name == "iq":
        kind = "iq"
    elif stanza.name == "presence":
        kind = (
            "leave"
            if stanza.get("type") == "unavailable"
            else "join"
            if stanza.get("type") is None
            else "other"
        )
    else:
        kind, text, refers_to, emojis = _message(stanza, text)
    return Heard(
        kind=kind,
        sender=jid.resource(sender) if in_room else jid.bare(sender),
        text=text,
        target=jid.bare(sender) if in_room else jid.bare(stanza.get("to") or ""),
        id=stanza.get("id") or "",
        stanza_id=ids[-1] if ids else "",
        refers_to=refers_to,
        emojis=emojis,
        stanza=stanza,
    )


def _message(stanza: Element, text: str) -> tuple[str, str, str, tuple[str, ...]]:
    """(kind, text, what it refers to, emojis) of a message."""
    replace, retract = stanza.find(ns.CORRECT, "replace"), stanza.find(ns.RETRACT, "retract")
    reactions, reply = stanza.find(ns.REACTIONS, "reactions"), stanza.find(ns.REPLY, "reply")
    if retract is not None:
        return "retract", retract.get("id") or "", retract.get("id") or "", ()
    if reactions is not None:
        emojis = tuple(e.text for e in reactions.find_all(ns.REACTIONS, "reaction"))
        return "reaction", " ".join(emojis), reactions.get("id") or "", emojis
    if replace is not None:
        return "edit", text, replace.get("id") or "", ()
    if body(stanza) is not None:
        refers_to = (reply.get("id") or "") if reply is not None else ""
        if text.startswith("/me "):
            return "action", text.removeprefix("/me "), refers_to, ()
        return "message", text, refers_to, ()
    if stanza.find(ns.CLIENT, "subject") is not None:
        return "subject", stanza.text_of(ns.CLIENT, "subject") or "", "", ()
    for space, kind in ((ns.STATES, "state"), (ns.RECEIPTS, "receipt"), (ns.MARKERS, "marker")):
        found = stanza.find_in(space)
        if found is not None:
            return kind, found.name, found.get("id") or "", ()
    return "other", text, "", ()
