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
    message = message.copy(to=to)
    if jid.host(to) == server.rooms.domain:
        server.rooms.message(session, message)
        return
    if jid.host(to) != server.domain:
        _refuse(server, session, message, "remote-server-not-found")
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
    sent = message if own_id is None else message.copy().add(stanza_id(own_id, own.jid))
    if wants_carbons(message):
        for other in list(own.sessions.values()):
            if other is not session and other.has_carbons and other.jid != to:
                server.deliver(other, _carbon("sent", own.jid, other.jid, sent))
    deliver(server, receiver, copy, session)


def _refuse(server: Server, session: Session, message: Element, condition: str) -> None:
    if message.get("type") != "error":
        kind = "cancel" if condition.startswith("remote") else None
        name = "not-allowed" if condition.startswith("remote") else condition
        server.deliver(session, error(message, name, kind=kind))


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
                if other is not target and other.has_carbons and other is not sender:
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
    return has_payload(message, ns.RECEIPTS, ns.MARKERS)


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
        {"from": owner, "to": to, "type": message.get("type")},
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


def give_back(server: Server, session: Session, stanza: Element) -> None:
    """A session ends and still owes this: the archive has it, or the offline store, or its sender gets it back."""
    if stanza.name != "message" or (stanza.get("type") or "normal") not in ("chat", "normal"):
        return
    if body(stanza) is None or is_hinted(stanza, "no-store") or session.has_queried_archive:
        return
    account = session.account
    if account.available():
        sender = server.session(stanza.get("from") or "")
        if sender is not None:
            server.deliver(sender, error(stanza, "recipient-unavailable"))
        return
    account.offline.append((server.env.wall(), stanza))
