"""Messages between users: whom they reach, what is archived, what waits, and their carbon copies.

RFC 6121 section 8, XEP-0160 (offline store), XEP-0280, XEP-0313, XEP-0359.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from bridged.peers.xmpp import jid, ns
from bridged.peers.xmpp.archive import Kept
from bridged.peers.xmpp.stanza import (
    body,
    delay,
    error,
    has_payload,
    is_hinted,
    stanza_id,
    without_forged_ids,
)
from bridged.peers.xmpp.state import Account, Session
from bridged.peers.xmpp.xml import Element, el

if TYPE_CHECKING:
    from bridged.peers.xmpp.server import Server


def handle(server: Server, session: Session, message: Element) -> None:
    """Carry out one message of a session."""
    to = message.get("to") or session.account.jid
    if jid.host(to) == server.rooms.domain:
        server.rooms.message(session, message)
        return
    if jid.host(to) != server.domain:
        _refuse(server, session, message, "not-allowed")
        return
    receiver = server.account(to)
    if "@" not in to or receiver is None:
        _refuse(server, session, message, "service-unavailable")
        return
    own = session.account
    archived_at = server.env.wall()
    stored = is_archived(message)
    for address in {own.jid, receiver.jid}:
        message = without_forged_ids(message, address)
    own_id = _archive(server, own, message, receiver.jid, archived_at) if stored else None
    copy = message
    if stored and receiver is not own:
        found = _archive(server, receiver, message, own.jid, archived_at)
        copy = message.copy().add(stanza_id(found, receiver.jid))
    elif own_id is not None:
        copy = message.copy().add(stanza_id(own_id, receiver.jid))
    if message.get("to") == own.jid:
        message = message.copy(to=None)  # seen: a message to oneself is known as one without an address
    sent = message if own_id is None else message.copy().add(stanza_id(own_id, own.jid))
    if wants_carbons(message):
        for other in list(own.sessions.values()):
            if other is not session and other.has_carbons:
                server.deliver(other, _carbon("sent", own.jid, other.jid, sent))
    deliver(server, receiver, copy, session)


def from_room(server: Server, to: str, message: Element) -> None:
    """A room's private message or invitation reaches a user: archived like any other, but without carbons."""
    account = server.account(to)
    if account is None:
        return
    message = message.copy(to=to)
    if is_archived(message):
        found = _archive(server, account, message, message.get("from") or "", server.env.wall())
        message = message.add(stanza_id(found, account.jid))
    for session in account.available():
        if not jid.resource(to) or session.jid == to:
            server.deliver(session, message)


def _refuse(server: Server, session: Session, message: Element, condition: str) -> None:
    """Bounce a message; one that its sender's archive has already brings its id along."""
    if message.get("type") == "error":
        return
    text = "Communication with remote domains is not enabled" if condition == "not-allowed" else None
    bounced = error(message, condition, text=text)
    if condition == "not-allowed" and is_archived(message):
        own = session.account
        kept = _archive(server, own, message, jid.bare(message.get("to") or ""), server.env.wall())
        bounced.add(stanza_id(kept, own.jid))
    server.deliver(session, bounced)


def deliver(server: Server, receiver: Account, message: Element, sender: Session | None) -> None:
    """Bring a message to a user: one resource, all of them, or the offline store."""
    to = message.get("to") or receiver.jid
    kind = message.get("type") or "normal"
    if kind == "groupchat":
        exact = server.session(to)
        if exact is not None and jid.resource(to):
            _hand(server, exact, message)
        elif sender is not None:
            server.deliver(sender, error(message, "service-unavailable"))
        return
    target = server.session(to) if jid.resource(to) else None
    plain = message
    if is_hinted(message, "private") or message.find(ns.CARBONS, "private") is not None:
        plain = message.without((ns.CARBONS, "private"))
    if target is not None:
        _hand(server, target, plain)
        if wants_carbons(message):
            for other in list(receiver.sessions.values()):
                if other is not target and other.has_carbons:
                    server.deliver(other, _carbon("received", receiver.jid, other.jid, plain))
        return
    if kind == "error":
        return
    available = receiver.available()
    for found in available:
        _hand(server, found, plain)
    if available:
        return
    if kind in ("chat", "normal") and body(message) is not None and not is_hinted(message, "no-store"):
        receiver.offline.append((server.env.wall(), plain))
    elif kind in ("chat", "normal") and sender is not None and body(message) is not None:
        server.deliver(sender, error(message, "service-unavailable"))


def _hand(server: Server, session: Session, message: Element) -> None:
    """One delivery, doubled where a fault asks for it."""
    for _ in range(2 if server.faults.takes_duplicate(session) else 1):
        server.deliver(session, message)


def is_archived(message: Element) -> bool:
    """Does a message between users enter the archives?"""
    kind = message.get("type") or "normal"
    if kind not in ("chat", "normal") or is_hinted(message, "no-store"):
        return False
    if is_hinted(message, "no-permanent-store"):
        return False
    if body(message) is not None or is_hinted(message, "store"):
        return True
    return has_payload(message, ns.RECEIPTS, ns.MARKERS, "jabber:x:conference")


def wants_carbons(message: Element) -> bool:
    """Is a message copied to the user's other resources?"""
    kind = message.get("type") or "normal"
    if message.find(ns.CARBONS, "private") is not None or is_hinted(message, "no-copy"):
        return False
    if has_payload(message, ns.CARBONS, ns.MUC_USER):
        return False
    if kind == "chat":
        return True
    return kind == "normal" and (body(message) is not None or has_payload(message, ns.STATES))


def _carbon(kind: str, owner: str, to: str, message: Element) -> Element:
    return el(
        ns.CLIENT,
        "message",
        {"from": owner, "to": to, "type": message.get("type") or "normal"},
        el(ns.CARBONS, kind, None, el(ns.FORWARD, "forwarded", None, message)),
    )


def _archive(server: Server, account: Account, message: Element, with_jid: str, at: float) -> str:
    made = server.new_id()
    account.archive.add(Kept(made, at, message, with_jid))
    return made


def come_online(server: Server, session: Session) -> None:
    """A resource takes messages now: what waited comes, with the time when it was said."""
    account = session.account
    while account.offline:
        at, message = account.offline.popleft()
        server.deliver(session, message.copy().add(delay(at, server.domain)))


def give_back(server: Server, session: Session, at: float, stanza: Element) -> None:
    """A session ends and still owes this: the archive has it, or the offline store, or its sender gets it back."""
    if stanza.name != "message" or (stanza.get("type") or "normal") not in ("chat", "normal"):
        return
    if body(stanza) is None or is_hinted(stanza, "no-store") or session.has_queried_archive:
        return
    account = session.account
    if account.available():
        sender = server.session(stanza.get("from") or "")
        if sender is not None:
            bounced = error(stanza, "recipient-unavailable", kind="cancel")
            kept = [k.id for k in sender.account.archive.kept if k.stanza.get("id") == stanza.get("id")]
            server.deliver(sender, bounced.add(*(stanza_id(k, sender.account.jid) for k in kept[-1:])))
        return
    account.offline.append((server.env.wall(), stanza.copy().add(delay(at, account.jid))))
