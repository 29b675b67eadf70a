"""IQs to the server, to a user's account, and from client to client."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bridged.peers.stamp import utc_seconds
from bridged.peers.xmpp import jid, ns, presence
from bridged.peers.xmpp.stanza import error, result
from bridged.peers.xmpp.state import Contact, Session
from bridged.peers.xmpp.xml import Element, el

if TYPE_CHECKING:
    from bridged.peers.xmpp.server import Server

CLIENT_VERSION = "bridged fake, after Prosody 0.12.3"


def handle(server: Server, session: Session, iq: Element) -> None:
    """Carry out one IQ of a session."""
    kind = iq.get("type")
    to = iq.get("to")
    payload = next(iq.elements(), None)
    is_request = kind in ("get", "set")
    if (
        kind not in ("get", "set", "result", "error")
        or iq.get("id") is None
        or (is_request and payload is None)
    ):
        server.deliver(session, error(iq, "bad-request", text="Invalid IQ").copy(to=None))
        return
    if to is not None and jid.host(to) == server.rooms.domain:
        server.rooms.query(session, iq)
        return
    if to is not None and jid.host(to) != server.domain:
        if kind in ("get", "set"):
            text = "Communication with remote domains is not enabled"
            server.deliver(session, error(iq, "not-allowed", text=text))
        return
    if to is not None and jid.resource(to):
        target = server.session(to)
        if target is not None:
            server.deliver(target, iq)
        elif kind in ("get", "set"):
            server.deliver(session, error(iq, "service-unavailable"))
        return
    if kind in ("result", "error"):
        return
    assert payload is not None
    if to is not None and "@" in to and jid.bare(to) != session.account.jid:
        _other(server, session, iq, payload)
        return
    _own(server, session, iq, payload, kind)


def _own(server: Server, session: Session, iq: Element, payload: Element, kind: str) -> None:
    """To the server, or to the user's own account."""
    to_server = iq.get("to") == server.domain
    if payload.is_a(ns.ROSTER, "query"):
        _roster(server, session, iq, payload, kind)
    elif payload.is_a(ns.PING, "ping") or payload.space == ns.SESSION:
        server.deliver(session, result(iq))
    elif payload.is_a(ns.CARBONS, "enable") or payload.is_a(ns.CARBONS, "disable"):
        session.has_carbons = payload.name == "enable"
        server.deliver(session, result(iq))
    elif payload.is_a(ns.MAM, "query") and not to_server:
        if kind == "get":
            server.deliver(session, result(iq, archive_form()))
            return
        session.has_queried_archive = True
        for stanza in session.account.archive.answer(iq, is_room=False):
            server.deliver(session, stanza)
    elif payload.is_a(ns.MAM, "metadata") and not to_server:
        server.deliver(session, result(iq, session.account.archive.metadata()))
    elif payload.is_a(ns.MAM, "prefs") and not to_server:
        kept = el(ns.MAM, "prefs", {"default": "always"}, el(ns.MAM, "always"), el(ns.MAM, "never"))
        server.deliver(session, result(iq, kept))
    elif payload.is_a(ns.INFO, "query"):
        server.deliver(session, result(iq, _info(server, payload, to_server=to_server)))
    elif payload.is_a(ns.ITEMS, "query"):
        items = [el(ns.ITEMS, "item", {"jid": server.rooms.domain})] if to_server else []
        server.deliver(session, result(iq, el(ns.ITEMS, "query", None, *items)))
    elif payload.is_a(ns.VCARD, "vCard") and kind == "get":
        server.deliver(session, result(iq, el(ns.VCARD, "vCard")))
    elif payload.is_a(ns.BLOCKING, "blocklist"):
        server.deliver(session, result(iq, el(ns.BLOCKING, "blocklist")))
    elif payload.is_a("jabber:iq:register", "query") and kind == "set":
        _change_password(server, session, iq, payload)
    elif payload.is_a(ns.VERSION, "query"):
        name = el(ns.VERSION, "name", None, "Prosody"), el(ns.VERSION, "version", None, CLIENT_VERSION)
        server.deliver(session, result(iq, el(ns.VERSION, "query", None, *name)))
    elif payload.is_a(ns.TIME, "time"):
        utc = el(ns.TIME, "utc", None, utc_seconds(server.env.wall()))
        server.deliver(
            session, result(iq, el(ns.TIME, "time", None, el(ns.TIME, "tzo", None, "+00:00"), utc))
        )
    elif payload.space == ns.PUBSUB and kind == "get":
        server.deliver(session, error(iq, "item-not-found"))
    elif payload.is_a(ns.BIND, "bind"):
        server.deliver(session, error(iq, "service-unavailable"))
    else:
        server.deliver(session, error(iq, "service-unavailable"))


def _change_password(server: Server, session: Session, iq: Element, payload: Element) -> None:
    password = payload.text_of("jabber:iq:register", "password")
    if not password:
        server.deliver(session, error(iq, "bad-request"))
        return
    session.account.password = password
    for other in list(session.account.sessions.values()):
        if other is not session and other.connection is not None:
            other.connection.end("reset", "Password changed")
    server.deliver(session, result(iq))


def _other(server: Server, session: Session, iq: Element, payload: Element) -> None:
    """To somebody else's account."""
    if payload.is_a(ns.VCARD, "vCard"):
        server.deliver(session, result(iq, el(ns.VCARD, "vCard")))
    else:
        server.deliver(session, error(iq, "service-unavailable"))


def _info(server: Server, payload: Element, *, to_server: bool) -> Element:
    query = el(ns.INFO, "query", {"node": payload.get("node")})
    if not to_server:
        query.add(el(ns.INFO, "identity", {"category": "account", "type": "registered"}))
        query.add(el(ns.INFO, "identity", {"category": "pubsub", "type": "pep"}))
        return query.add(
            *(el(ns.INFO, "feature", {"var": var}) for var in (ns.MAM, ns.SID, f"{ns.MAM}#extended"))
        )
    query.add(el(ns.INFO, "identity", {"category": "server", "type": "im", "name": "Prosody"}))
    return query.add(*(el(ns.INFO, "feature", {"var": var}) for var in server.features()))


def archive_form() -> Element:
    """What an archive can be asked by."""
    form = el(ns.DATA, "x", {"type": "form"})
    hidden = el(ns.DATA, "value", None, ns.MAM)
    form.add(el(ns.DATA, "field", {"var": "FORM_TYPE", "type": "hidden"}, hidden))
    validate = "http://jabber.org/protocol/xdata-validate"
    form.add(el(ns.DATA, "field", {"var": "with", "type": "jid-single"}))
    for var in ("start", "end"):
        checked = el(validate, "validate", {"datatype": "xs:dateTime"})
        form.add(el(ns.DATA, "field", {"var": var, "type": "text-single"}, checked))
    form.add(el(ns.DATA, "field", {"var": "before-id", "type": "text-single"}))
    form.add(el(ns.DATA, "field", {"var": "after-id", "type": "text-single"}))
    form.add(el(ns.DATA, "field", {"var": "ids", "type": "list-multi"}))
    return el(ns.MAM, "query", None, form)


def _roster(server: Server, session: Session, iq: Element, payload: Element, kind: str) -> None:
    account = session.account
    if kind == "get":
        session.wants_roster = True
        shown = [
            c for c in account.roster.values() if c.subscription != "none" or c.ask or c.name is not None
        ]
        query = el(ns.ROSTER, "query", {"ver": "1"} if payload.get("ver") is not None else None)
        server.deliver(session, result(iq, query.add(*(presence.item(c) for c in shown))))
        return
    items = payload.find_all(ns.ROSTER, "item")
    changed = items[0] if len(items) == 1 else None
    address = jid.bare(changed.get("jid") or "") if changed is not None else ""
    if changed is None or not jid.is_legal(address):
        server.deliver(session, error(iq, "bad-request"))
        return
    if changed.get("subscription") == "remove":
        gone = account.roster.pop(address, None)
        if gone is None:
            server.deliver(session, error(iq, "item-not-found", kind="modify"))
            return
        server.deliver(session, result(iq))
        presence.push(server, account, Contact(address, subscription="remove"))
        presence.removed(server, account, gone)
        return
    contact = account.roster.setdefault(address, Contact(address))
    contact.name = changed.get("name")
    contact.groups = tuple(g.text for g in changed.find_all(ns.ROSTER, "group"))
    server.deliver(session, result(iq))
    presence.push(server, account, contact)
