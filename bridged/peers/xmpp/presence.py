"""Presence and subscriptions (RFC 6121 sections 3 and 4)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bridged.peers.xmpp import jid, messages, ns
from bridged.peers.xmpp.stanza import delay, number
from bridged.peers.xmpp.state import Account, Contact, Session
from bridged.peers.xmpp.xml import Element, el

if TYPE_CHECKING:
    from bridged.peers.xmpp.server import Server


def handle(server: Server, session: Session, stanza: Element) -> None:
    """Carry out one presence of a session."""
    to, kind = stanza.get("to"), stanza.get("type")
    if to is not None and jid.host(to) == server.rooms.domain:
        server.rooms.presence(session, with_avatar(stanza))
        return
    if kind in ("subscribe", "subscribed", "unsubscribe", "unsubscribed"):
        _subscription(server, session, stanza, kind, to or "")
    elif kind == "probe" and to is not None:
        _probe(server, session, jid.bare(to))
    elif to is not None:
        _directed(server, session, with_avatar(stanza), to)
    elif kind == "unavailable":
        _broadcast(server, session, stanza)
        session.presence = None
    elif kind is None:
        _available(server, session, with_avatar(stanza))


def with_avatar(stanza: Element) -> Element:
    """The server itself says that there is no avatar."""
    if stanza.get("type") is not None or stanza.find(ns.VCARD_UPDATE, "x") is not None:
        return stanza
    return stanza.copy().add(el(ns.VCARD_UPDATE, "x", None, el(ns.VCARD_UPDATE, "photo")))


def _available(server: Server, session: Session, stanza: Element) -> None:
    was_away = session.presence is None
    text = stanza.text_of(ns.CLIENT, "priority") or "0"
    value = number(text.removeprefix("-")) or 0
    session.priority = max(-128, min(127, -value if text.startswith("-") else value))
    session.presence, session.presence_at = stanza, server.env.wall()
    if was_away:
        _caps_asked(server, session, stanza)
    _broadcast(server, session, stanza)
    if not was_away:
        return
    account = session.account
    for other in account.sessions.values():
        if other is not session and other.presence is not None:
            server.deliver(session, _remembered(server, other, session.jid))
    for contact in account.roster.values():
        if contact.subscription in ("to", "both"):
            _shown(server, contact.jid, session.account.jid, only=session)
    for request in account.pending.values():
        server.deliver(session, request)
    if session.priority >= 0:
        messages.come_online(server, session)


def _caps_asked(server: Server, session: Session, stanza: Element) -> None:
    """Seen: the server asks a client with new capabilities what they mean."""
    caps = stanza.find(ns.CAPS, "c")
    if caps is None or not server.faults.learns_caps(caps.get("ver") or ""):
        return
    node = f"{caps.get('node')}#{caps.get('ver')}"
    given = {"type": "get", "id": "disco", "from": session.account.jid, "to": session.jid}
    server.deliver(session, el(ns.CLIENT, "iq", given, el(ns.INFO, "query", {"node": node})))


def _remembered(server: Server, other: Session, to: str) -> Element:
    assert other.presence is not None
    return other.presence.copy(to=to).add(delay(other.presence_at, server.domain))


def _broadcast(server: Server, session: Session, stanza: Element) -> None:
    """To all resources of one's own and to whoever is subscribed."""
    account = session.account
    server.deliver(session, stanza)
    for other in list(account.sessions.values()):
        if other is not session and other.presence is not None:
            server.deliver(other, stanza.copy(to=other.jid))
    for contact in account.roster.values():
        if contact.subscription in ("from", "both"):
            _to_bare(server, stanza, contact.jid)
    if stanza.get("type") == "unavailable":
        for address in sorted(session.directed):
            if jid.host(address) != server.rooms.domain:
                _to_bare(server, stanza, address)
        session.directed.clear()


def _to_bare(server: Server, stanza: Element, address: str) -> None:
    account = server.account(address)
    if account is not None:
        for other in list(account.sessions.values()):
            if other.presence is not None:
                server.deliver(other, stanza.copy(to=account.jid))


def _to_interested(server: Server, stanza: Element, account: Account) -> None:
    """News of subscriptions are for whoever has asked for the roster."""
    for other in list(account.sessions.values()):
        if other.presence is not None and other.wants_roster:
            server.deliver(other, stanza.copy(to=account.jid))


def _shown(server: Server, whose: str, to: str, *, only: Session | None = None) -> None:
    """Show one user's resources to another, with the time of their last change."""
    account, asker = server.account(whose), server.account(to)
    if account is None or asker is None:
        return
    for theirs in account.sessions.values():
        if theirs.presence is None:
            continue
        for session in [only] if only is not None else list(asker.sessions.values()):
            if session.presence is not None:
                to = session.jid if only is not None else asker.jid
                server.deliver(session, _remembered(server, theirs, to))


def _probe(server: Server, session: Session, address: str) -> None:
    """A client asks for somebody's presence; who is not subscribed hears nothing."""
    own, other = session.account, server.account(address)
    contact = other.roster.get(own.jid) if other is not None else None
    if other is own or (contact is not None and contact.subscription in ("from", "both")):
        _shown(server, address, own.jid, only=session)


def gone(server: Server, session: Session, status: str | None) -> None:
    """A session ended without saying so."""
    if session.presence is None:
        return
    session.presence = None
    stanza = el(ns.CLIENT, "presence", {"type": "unavailable", "from": session.jid})
    if status is not None:
        stanza.add(el(ns.CLIENT, "status", None, status))
    account = session.account
    for other in list(account.sessions.values()):
        if other is not session and other.presence is not None:
            server.deliver(other, stanza.copy(to=other.jid))
    for contact in account.roster.values():
        if contact.subscription in ("from", "both"):
            _to_bare(server, stanza, contact.jid)
    for address in sorted(session.directed):
        if jid.host(address) != server.rooms.domain:
            _to_bare(server, stanza, address)


def _directed(server: Server, session: Session, stanza: Element, to: str) -> None:
    target = server.session(to)
    if stanza.get("type") == "unavailable":
        session.directed.discard(to)
    elif stanza.get("type") is None:
        session.directed.add(to)
    if target is not None and jid.resource(to):
        server.deliver(target, stanza)
    elif not jid.resource(to):
        account = server.account(to)
        for other in list(account.sessions.values()) if account is not None else []:
            if other.presence is not None:
                server.deliver(other, stanza)


# -------------------------------------------------------------------- subscriptions


def removed(server: Server, account: Account, contact: Contact) -> None:
    """A contact was taken off a roster: the other side loses what it had."""
    other = server.account(contact.jid)
    theirs = other.roster.get(account.jid) if other is not None else None
    if other is None or theirs is None:
        return
    for kind, had, left in (
        ("unsubscribed", ("from", "both"), {"to": "none", "both": "from"}),
        ("unsubscribe", ("to", "both"), {"from": "none", "both": "to"}),
    ):
        if contact.subscription in had:
            theirs.subscription = left.get(theirs.subscription, theirs.subscription)
            given = {"type": kind, "from": account.jid, "to": other.jid}
            _to_bare(server, el(ns.CLIENT, "presence", given), other.jid)
            push(server, other, theirs)


def push(server: Server, account: Account, contact: Contact) -> None:
    """Tell every resource that has asked for the roster of a change in it."""
    for session in list(account.sessions.values()):
        if session.wants_roster:
            given = {"type": "set", "id": server.new_id(12)}
            server.deliver(session, el(ns.CLIENT, "iq", given, el(ns.ROSTER, "query", None, item(contact))))


def item(contact: Contact) -> Element:
    """One roster item."""
    made = el(
        ns.ROSTER,
        "item",
        {
            "jid": contact.jid,
            "name": contact.name,
            "subscription": contact.subscription,
            "ask": "subscribe" if contact.ask else None,
        },
    )
    return made.add(*(el(ns.ROSTER, "group", None, group) for group in contact.groups))


def _subscription(server: Server, session: Session, stanza: Element, kind: str, to: str) -> None:
    own, other = session.account, server.account(to)
    address = jid.bare(to)
    stanza = stanza.copy(**{"from": own.jid, "to": address})
    contact = own.roster.setdefault(address, Contact(address))
    theirs = other.roster.get(own.jid) if other is not None else None
    if kind == "subscribe":
        if contact.subscription not in ("to", "both"):
            contact.ask = True
        push(server, own, contact)
        for mine in own.sessions.values():
            if mine.presence is not None and contact.ask:
                given = {"type": "unavailable", "from": address, "to": own.jid}
                server.deliver(mine, el(ns.CLIENT, "presence", given))
        if other is None:
            return
        if theirs is not None and theirs.subscription in ("from", "both"):
            return
        other.pending[own.jid] = stanza
        _to_bare(server, stanza, address)
    elif kind == "subscribed":
        contact.subscription = {"none": "from", "to": "both"}.get(contact.subscription, contact.subscription)
        own.pending.pop(address, None)
        push(server, own, contact)
        if other is not None and theirs is not None and theirs.ask:
            theirs.ask = False
            theirs.subscription = {"none": "to", "from": "both"}.get(theirs.subscription, theirs.subscription)
            _to_interested(server, stanza, other)
            push(server, other, theirs)
            _shown(server, own.jid, other.jid)
        if contact.subscription == "both":  # seen: the one who approves is shown the other once more
            _shown(server, address, own.jid)
    elif kind == "unsubscribe":
        contact.subscription = {"to": "none", "both": "from"}.get(contact.subscription, contact.subscription)
        contact.ask = False
        push(server, own, contact)
        if other is not None and theirs is not None:
            theirs.subscription = {"from": "none", "both": "to"}.get(theirs.subscription, theirs.subscription)
            _to_interested(server, stanza, other)
            push(server, other, theirs)
    else:
        contact.subscription = {"from": "none", "both": "to"}.get(contact.subscription, contact.subscription)
        own.pending.pop(address, None)
        push(server, own, contact)
        if other is not None and theirs is not None:
            theirs.ask = False
            theirs.subscription = {"to": "none", "both": "from"}.get(theirs.subscription, theirs.subscription)
            _to_interested(server, stanza, other)
            push(server, other, theirs)
            for mine in own.sessions.values():
                given = {"type": "unavailable", "from": mine.jid}
                _to_bare(server, el(ns.CLIENT, "presence", given), address)
