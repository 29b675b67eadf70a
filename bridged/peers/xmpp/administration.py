"""What owners and moderators of rooms do (XEP-0045 sections 8 to 10), and what rooms tell of themselves."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bridged.peers.xmpp import jid, ns
from bridged.peers.xmpp.queries import archive_form
from bridged.peers.xmpp.room import Occupant, Room
from bridged.peers.xmpp.stanza import error, result
from bridged.peers.xmpp.state import Session
from bridged.peers.xmpp.xml import Element, el

if TYPE_CHECKING:
    from bridged.peers.xmpp.server import Server

CONFIG = {
    "muc#roomconfig_roomname": "text-single", "muc#roomconfig_roomdesc": "text-single",
    "muc#roomconfig_persistentroom": "boolean", "muc#roomconfig_publicroom": "boolean",
    "muc#roomconfig_membersonly": "boolean", "muc#roomconfig_moderatedroom": "boolean",
    "muc#roomconfig_changesubject": "boolean", "muc#roomconfig_roomsecret": "text-private",
    "muc#roomconfig_whois": "list-single", "muc#roomconfig_historylength": "text-single",
}  # fmt: skip
FEATURES = (
    ns.MUC, "muc_semianonymous", "muc_open", "muc_public", "muc_unmoderated", "muc_unsecured", "muc_temporary",
    ns.MAM, f"{ns.MAM}#extended", ns.SID, ns.OCCUPANT, ns.INFO, ns.ITEMS, "http://jabber.org/protocol/muc#stable_id",
    "http://jabber.org/protocol/muc#self-ping-optimization",
)  # fmt: skip


def service(server: Server, session: Session, iq: Element) -> None:
    """To the room service itself."""
    payload = next(iq.elements(), None)
    if payload is not None and payload.is_a(ns.INFO, "query"):
        query = el(
            ns.INFO, "query", None, el(ns.INFO, "identity", {"category": "conference", "type": "text"})
        )
        query.add(
            *(
                el(ns.INFO, "feature", {"var": var})
                for var in (ns.MUC, ns.INFO, ns.ITEMS, "jabber:iq:register")
            )
        )
        server.deliver(session, result(iq, query))
    elif payload is not None and payload.is_a(ns.ITEMS, "query"):
        items = [el(ns.ITEMS, "item", {"jid": r.jid}) for r in server.rooms if not r.locked]
        server.deliver(session, result(iq, el(ns.ITEMS, "query", None, *items)))
    elif payload is not None and payload.is_a(ns.PING, "ping"):
        server.deliver(session, result(iq))
    else:
        server.deliver(session, error(iq, "service-unavailable"))


def room(server: Server, session: Session, room: Room, iq: Element) -> None:
    """To a room."""
    payload = next(iq.elements(), None)
    assert payload is not None
    occupant = room.occupant_of(session.jid)
    affiliation = room.affiliation(session.account.jid)
    if payload.is_a(ns.INFO, "query"):
        server.deliver(session, result(iq, _info(room)))
    elif payload.is_a(ns.ITEMS, "query"):
        items = [el(ns.ITEMS, "item", {"jid": f"{room.jid}/{nick}"}) for nick in room.occupants]
        server.deliver(session, result(iq, el(ns.ITEMS, "query", None, *items)))
    elif payload.is_a(ns.MAM, "query"):
        _archive(server, session, room, iq, affiliation)
    elif payload.is_a(ns.MUC_OWNER, "query"):
        if affiliation != "owner":
            text = "Only owners can configure rooms"
            server.deliver(session, error(iq, "forbidden", text=text))
        else:
            _owner(server, session, room, iq, payload)
    elif payload.is_a(ns.MUC_ADMIN, "query"):
        _admin(server, session, room, occupant, iq, payload)
    else:
        server.deliver(session, error(iq, "service-unavailable"))


def _info(room: Room) -> Element:
    name = room.config.get("muc#roomconfig_roomname") or None
    query = el(ns.INFO, "query", None)
    query.add(el(ns.INFO, "identity", {"category": "conference", "type": "text", "name": name}))
    turned = {
        "muc_open": ("muc#roomconfig_membersonly", "muc_membersonly"),
        "muc_unmoderated": ("muc#roomconfig_moderatedroom", "muc_moderated"),
        "muc_temporary": ("muc#roomconfig_persistentroom", "muc_persistent"),
    }
    for feature in FEATURES:
        field, other = turned.get(feature, ("", feature))
        query.add(el(ns.INFO, "feature", {"var": other if field and room.is_set(field) else feature}))
    return query


def _archive(server: Server, session: Session, room: Room, iq: Element, affiliation: str) -> None:
    if iq.get("type") == "get":
        server.deliver(session, result(iq, archive_form()))
        return
    closed = room.is_set("muc#roomconfig_membersonly") and affiliation == "none"
    if affiliation == "outcast" or closed:
        server.deliver(session, error(iq, "forbidden"))
        return
    for stanza in room.archive.answer(iq, is_room=True):
        server.deliver(session, stanza)


# -------------------------------------------------------------------- owners


def _owner(server: Server, session: Session, room: Room, iq: Element, query: Element) -> None:
    destroy = query.find(ns.MUC_OWNER, "destroy")
    form = query.find(ns.DATA, "x")
    if destroy is not None:
        destroyed(server, room, destroy)
        server.deliver(session, result(iq))
    elif iq.get("type") == "get":
        server.deliver(session, result(iq, el(ns.MUC_OWNER, "query", None, _form(room))))
    elif form is None:
        server.deliver(session, error(iq, "bad-request"))
    elif form.get("type") == "cancel":
        if room.locked:  # seen: nobody is told
            room.occupants.clear()
            server.rooms.close(room)
        server.deliver(session, result(iq))
    else:
        _configure(server, session, room, iq, form)


def _form(room: Room) -> Element:
    form = el(ns.DATA, "x", {"type": "form"})
    kind = el(ns.DATA, "value", None, f"{ns.MUC}#roomconfig")
    form.add(el(ns.DATA, "field", {"var": "FORM_TYPE", "type": "hidden"}, kind))
    for var, field_type in CONFIG.items():
        field = el(ns.DATA, "field", {"var": var, "type": field_type})
        if var in room.config or field_type == "boolean":
            field.add(el(ns.DATA, "value", None, room.config.get(var, "0")))
        form.add(field)
    return form


def _configure(server: Server, session: Session, room: Room, iq: Element, form: Element) -> None:
    changed = False
    before = room.config.get("muc#roomconfig_whois")
    for field in form.find_all(ns.DATA, "field"):
        var = field.get("var") or ""
        value = field.text_of(ns.DATA, "value") or ""
        if var in CONFIG and room.config.get(var, "0" if CONFIG[var] == "boolean" else "") != value:
            room.config[var] = value
            changed = True
    room.locked = False
    if room.is_set("muc#roomconfig_membersonly"):
        for occupant in list(room.occupants.values()):
            if room.affiliation(occupant.jid) == "none":  # seen: nobody else is told
                server.rooms.put_out(room, occupant, ("322",), actor=None, reason=None, quietly=True)
    server.deliver(session, result(iq))
    if not changed:
        return
    whois = room.config.get("muc#roomconfig_whois")
    code = "104" if whois == before else "172" if whois == "anyone" else "173"
    status = el(ns.MUC_USER, "x", None, el(ns.MUC_USER, "status", {"code": code}))
    for _, full in room.addresses():
        given = {"type": "groupchat", "from": room.jid, "to": full}
        server.route(el(ns.CLIENT, "message", given, status))


def destroyed(server: Server, room: Room, destroy: Element) -> None:
    """The room ends: everyone is told where the talk goes on, if anywhere."""
    rooms = server.rooms
    gone = el(ns.CLIENT, "presence", {"type": "unavailable"})
    said = Element(ns.MUC_USER, "destroy", dict(destroy.attributes))
    for child in destroy.elements():
        said.add(Element(ns.MUC_USER, child.name, dict(child.attributes), list(child.children)))
    for occupant, full in list(room.addresses()):
        shown = rooms.shown(room, occupant, gone, full, role="none")
        x = shown.find(ns.MUC_USER, "x")
        assert x is not None
        x.children.insert(0, said)
        server.route(shown)
        session = server.session(full)
        if session is not None:
            session.directed.discard(room.jid)
    room.occupants.clear()
    rooms.close(room)


# -------------------------------------------------------------------- moderators


def _admin(
    server: Server, session: Session, room: Room, occupant: Occupant | None, iq: Element, query: Element
) -> None:
    item = query.find(ns.MUC_ADMIN, "item")
    affiliation = room.affiliation(session.account.jid)
    powerful = affiliation in ("owner", "admin")
    if item is None:
        server.deliver(session, error(iq, "bad-request"))
    elif iq.get("type") == "get":
        if not powerful:
            server.deliver(session, error(iq, "forbidden"))
            return
        wanted = item.get("affiliation")
        found = [
            el(ns.MUC_ADMIN, "item", {"affiliation": a, "jid": j})
            for j, a in room.affiliations.items()
            if a == wanted
        ]
        server.deliver(session, result(iq, el(ns.MUC_ADMIN, "query", None, *found)))
    elif item.get("role") is not None:
        _role(server, session, room, occupant, iq, item)
    elif item.get("affiliation") is not None:
        if not powerful:
            server.deliver(session, error(iq, "not-allowed"))
        else:
            _affiliation(server, session, room, occupant, iq, item)
    else:
        server.deliver(session, error(iq, "bad-request"))


def _role(
    server: Server, session: Session, room: Room, occupant: Occupant | None, iq: Element, item: Element
) -> None:
    if occupant is None or occupant.role != "moderator":
        server.deliver(session, error(iq, "not-allowed"))
        return
    target = room.occupants.get(item.get("nick") or "")
    if target is None:
        server.deliver(session, error(iq, "item-not-found", kind="modify"))
        return
    if room.affiliation(target.jid) in ("owner", "admin"):
        server.deliver(session, error(iq, "not-allowed"))
        return
    role, reason = item.get("role") or "none", item.text_of(ns.MUC_ADMIN, "reason")
    if role == "none":
        server.rooms.put_out(room, target, ("307",), actor=occupant.nick, reason=reason)
    else:
        set_role(server, room, target, role, actor=occupant.nick, reason=reason)
    server.deliver(session, result(iq))


def set_role(
    server: Server,
    room: Room,
    target: Occupant,
    role: str,
    *,
    actor: str | None = None,
    reason: str | None = None,
) -> None:
    """Give an occupant another role and tell everyone."""
    target.role = role
    for _, full in list(room.addresses()):
        presence = next(reversed(target.presences.values()))
        server.route(server.rooms.shown(room, target, presence, full, actor=actor, reason=reason))


def _affiliation(
    server: Server, session: Session, room: Room, occupant: Occupant | None, iq: Element, item: Element
) -> None:
    address = jid.bare(item.get("jid") or "")
    if not address and item.get("nick") in room.occupants:
        address = room.occupants[item.get("nick") or ""].jid
    affiliation = item.get("affiliation") or "none"
    if not jid.is_legal(address):
        server.deliver(session, error(iq, "jid-malformed"))
        return
    actor = occupant.nick if occupant is not None else None
    reason = item.text_of(ns.MUC_ADMIN, "reason")
    inside = set_affiliation(server, room, address, affiliation, actor=actor, reason=reason)
    if not inside:
        told = el(
            ns.MUC_USER, "x", None, el(ns.MUC_USER, "item", {"affiliation": affiliation, "jid": address})
        )
        for other, full in room.addresses():
            if affiliation != "outcast" and room.affiliation(other.jid) in ("owner", "admin"):
                server.route(el(ns.CLIENT, "message", {"from": room.jid, "to": full}, told))
    server.deliver(session, result(iq))


def set_affiliation(
    server: Server,
    room: Room,
    address: str,
    affiliation: str,
    *,
    actor: str | None = None,
    reason: str | None = None,
) -> bool:
    """Give a user another affiliation; returns whether they were in the room."""
    if affiliation == "none":
        room.affiliations.pop(address, None)
    else:
        room.affiliations[address] = affiliation
    inside = [o for o in room.occupants.values() if o.jid == address]
    for target in inside:
        closed = room.is_set("muc#roomconfig_membersonly")
        if affiliation == "outcast":
            server.rooms.put_out(room, target, ("301",), actor=actor, reason=reason)
        elif affiliation == "none" and closed:
            server.rooms.put_out(room, target, ("321",), actor=actor, reason=reason)
        else:
            set_role(server, room, target, server.rooms.role_of(room, address), actor=actor, reason=reason)
    return bool(inside)
