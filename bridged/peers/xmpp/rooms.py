"""Rooms (XEP-0045): coming and going, speaking, history, and self-pings.

What owners and moderators change is in `administration`.  The order of what a joiner gets (occupants, itself, history,
subject) is exact, since clients wait for its last part.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from bridged.peers.stamp import from_utc
from bridged.peers.xmpp import administration, jid, messages, ns
from bridged.peers.xmpp.archive import Kept
from bridged.peers.xmpp.room import Occupant, Room, is_archived
from bridged.peers.xmpp.stanza import (
    body,
    delay,
    error,
    number,
    result,
    stanza_id,
    without_forged_ids,
)
from bridged.peers.xmpp.state import Session
from bridged.peers.xmpp.xml import Element, el

if TYPE_CHECKING:
    from bridged.peers.xmpp.server import Server

NOT_JOINED = "You are not currently connected to this chat"


class Rooms:
    """The room service of a server."""

    def __init__(self, server: Server, domain: str) -> None:
        self._server = server
        self.domain = domain
        self._rooms: dict[str, Room] = {}

    def find(self, bare: str) -> Room | None:
        return self._rooms.get(bare.casefold())

    def __iter__(self) -> Iterator[Room]:
        return iter(list(self._rooms.values()))

    def open(self, bare: str, owner: str) -> Room:
        """Make a room; its configuration still waits for the owner unless the options say otherwise."""
        room = Room(bare.casefold(), self._server.env.wall())
        room.affiliations[owner] = "owner"
        room.locked = self._server.options.rooms_locked
        self._rooms[room.jid] = room
        return room

    def close(self, room: Room) -> None:
        self._rooms.pop(room.jid, None)

    # ---------------------------------------------------------------- presence

    def presence(self, session: Session, stanza: Element) -> None:
        """Joining, changing nick or status, leaving."""
        to = stanza.get("to") or ""
        nick, room = jid.resource(to), self.find(jid.bare(to))
        kind = stanza.get("type")
        here = room.occupant_of(session.jid) if room is not None else None
        if kind == "unavailable":
            if room is not None and here is not None:
                session.directed.discard(room.jid)
                self.leave(room, here, session.jid, stanza)
            return
        if kind is not None:
            return
        if not nick:
            self._refuse(session, stanza, "service-unavailable", by=None)
            return
        entering = stanza.find(ns.MUC, "x")
        if here is not None and room is not None:
            self._here(session, room, here, nick, stanza, entering)
            return
        if entering is None:
            text = NOT_JOINED
            self._refuse(session, stanza, "item-not-found", by=jid.bare(to), text=text)
            return
        is_new = room is None
        if room is None:
            if "@" not in to:
                self._refuse(session, stanza, "jid-malformed", by=self.domain)
                return
            room = self.open(jid.bare(to), session.account.jid)
        refusal = self._refusal(room, session, nick, entering)
        if refusal is not None:
            self._refuse(session, stanza, refusal, by=self.domain if room.locked else room.jid)
            return
        role = self.role_of(room, session.account.jid)
        occupant = room.occupants.setdefault(nick, Occupant(nick, session.account.jid, role))
        session.directed.add(room.jid)
        self._enter(session, room, occupant, stanza, entering, is_new=is_new)

    def _refuse(
        self, session: Session, stanza: Element, condition: str, *, by: str | None, text: str | None = None
    ) -> None:
        self._server.deliver(session, error(stanza, condition, by=by, text=text))

    def role_of(self, room: Room, bare: str) -> str:
        """The role that an affiliation brings."""
        affiliation = room.affiliation(bare)
        if affiliation in ("owner", "admin"):
            return "moderator"
        return (
            "visitor"
            if room.is_set("muc#roomconfig_moderatedroom") and affiliation == "none"
            else "participant"
        )

    def _refusal(self, room: Room, session: Session, nick: str, entering: Element) -> str | None:
        bare = session.account.jid
        affiliation = room.affiliation(bare)
        if room.tombstone is not None:
            return "gone"
        if room.locked and affiliation != "owner":
            return "item-not-found"
        if affiliation == "outcast":
            return "forbidden"
        if room.is_set("muc#roomconfig_membersonly") and affiliation == "none":
            return "registration-required"
        secret = room.config.get("muc#roomconfig_roomsecret", "")
        if secret and entering.text_of(ns.MUC, "password") != secret:
            return "not-authorized"
        holder = room.occupants.get(nick)
        return "conflict" if holder is not None and holder.jid != bare else None

    def _here(
        self,
        session: Session,
        room: Room,
        here: Occupant,
        nick: str,
        stanza: Element,
        entering: Element | None,
    ) -> None:
        """From someone who is inside: another nick, a new status, or the join once more."""
        if nick != here.nick:
            holder = room.occupants.get(nick)
            if holder is not None:
                self._refuse(session, stanza, "conflict", by=room.jid)
                return
            self._rename(room, here, nick, stanza)
        elif entering is not None:
            self._enter(session, room, here, stanza, entering, is_new=False)
        else:
            here.presences[session.jid] = stanza
            self._announce(room, here, stanza)

    def _enter(
        self,
        session: Session,
        room: Room,
        occupant: Occupant,
        stanza: Element,
        entering: Element,
        *,
        is_new: bool,
    ) -> None:
        mine = session.jid
        stanza = stanza.without((ns.MUC, "x"))
        occupant.presences[mine] = stanza
        first = next(iter(occupant.presences.values()))
        for _, full in room.addresses():
            if full != mine:
                self._send(full, self.shown(room, occupant, first, full))
        for other in list(room.occupants.values()):
            if other is not occupant:
                self._send(mine, self.shown(room, other, next(iter(other.presences.values())), mine))
        codes = ("201",) if is_new else ()
        self._send(mine, self.shown(room, occupant, stanza, mine, codes=codes))
        self._history(room, mine, entering)
        self._send(mine, self._subject(room))

    def _history(self, room: Room, to: str, entering: Element) -> None:
        """What was said before, as much as the joiner asks for and the room shows."""
        asked = entering.find(ns.MUC, "history")
        kept = room.archive.kept[-self._server.options.history_max :]
        if asked is not None:
            count = number(asked.get("maxstanzas"))
            if count is not None:
                kept = kept[-count:] if count else []
            if asked.get("maxchars") == "0":
                kept = []
            seconds, since = number(asked.get("seconds")), asked.get("since")
            oldest = self._server.env.wall() - seconds if seconds is not None else None
            try:
                oldest = from_utc(since) if since else oldest
            except ValueError:
                oldest = None
            if oldest is not None:
                kept = [k for k in kept if k.at >= oldest]
        for k in kept:
            self._send(to, k.stanza.copy(to=to).add(delay(k.at, room.jid), stanza_id(k.id, room.jid)))

    def _subject(self, room: Room) -> Element:
        if room.subject is None:
            return el(ns.CLIENT, "message", {"type": "groupchat", "from": room.jid}, el(ns.CLIENT, "subject"))
        return room.subject.copy().add(delay(room.subject_at, room.jid))

    def shown(
        self,
        room: Room,
        occupant: Occupant,
        stanza: Element,
        to: str,
        *,
        codes: tuple[str, ...] = (),
        role: str | None = None,
        nick: str | None = None,
        actor: str | None = None,
        reason: str | None = None,
    ) -> Element:
        """One occupant's presence as one other address sees it."""
        mine = to in occupant.presences
        watcher = room.occupant_of(to)
        knows = mine or room.config.get("muc#roomconfig_whois") == "anyone"
        knows = knows or (watcher is not None and watcher.role == "moderator")
        x = el(ns.MUC_USER, "x", None, *(el(ns.MUC_USER, "status", {"code": code}) for code in codes))
        role = occupant.role if role is None else role
        fulls = list(occupant.presences) or [occupant.jid]
        for full in fulls if knows else fulls[:1]:
            given = {
                "affiliation": room.affiliation(occupant.jid), "role": role, "nick": nick, "jid": full if knows else None,
            }  # fmt: skip
            item = el(ns.MUC_USER, "item", given)
            if actor is not None:
                seen = room.occupants.get(actor)
                actor_jid = next(iter(seen.presences), None) if seen is not None else None
                moderator = watcher is not None and watcher.role == "moderator"
                item.add(el(ns.MUC_USER, "actor", {"nick": actor, "jid": actor_jid if moderator else None}))
            if reason:
                item.add(el(ns.MUC_USER, "reason", None, reason))
            x.add(item)
        if mine:
            if room.config.get("muc#roomconfig_whois") == "anyone" and stanza.get("type") is None:
                x.add(el(ns.MUC_USER, "status", {"code": "100"}))
            x.add(el(ns.MUC_USER, "status", {"code": "110"}))
        made = stanza.copy(to=to, **{"from": f"{room.jid}/{occupant.nick}"})
        if not (mine and "303" in codes):
            made.add(el(ns.OCCUPANT, "occupant-id", {"id": self._id(room, occupant)}))
        return made.add(x)

    def _id(self, room: Room, occupant: Occupant) -> str:
        return self._server.occupant_id(room.jid, occupant.jid)

    def _announce(self, room: Room, occupant: Occupant, stanza: Element) -> None:
        for _, full in self._others_first(room, occupant):
            self._send(full, self.shown(room, occupant, stanza, full))

    def _others_first(self, room: Room, occupant: Occupant) -> list[tuple[Occupant, str]]:
        everyone = list(room.addresses())
        return [p for p in everyone if p[0] is not occupant] + [p for p in everyone if p[0] is occupant]

    def _rename(self, room: Room, occupant: Occupant, nick: str, stanza: Element) -> None:
        gone = el(ns.CLIENT, "presence", {"type": "unavailable"})
        for _, full in self._others_first(room, occupant):
            self._send(full, self.shown(room, occupant, gone, full, codes=("303",), nick=nick))
        del room.occupants[occupant.nick]
        occupant.nick = nick
        room.occupants[nick] = occupant
        for full in occupant.presences:
            occupant.presences[full] = stanza
        self._announce(room, occupant, stanza)

    def leave(
        self,
        room: Room,
        occupant: Occupant,
        full: str,
        stanza: Element,
        *,
        codes: tuple[str, ...] = (),
        reason: str | None = None,
    ) -> None:
        """One address of an occupant goes; with the last, the occupant."""
        if len(occupant.presences) > 1:
            away = self.shown(room, occupant, stanza, full)  # seen: the items still name everyone
            rest = next(p for other, p in occupant.presences.items() if other != full)
            for _, other in self._others_first(room, occupant):
                if other != full:
                    self._send(other, self.shown(room, occupant, rest, other))
            self._send(full, away.without((ns.OCCUPANT, "occupant-id")))
            del occupant.presences[full]
            return
        for _, other in self._others_first(room, occupant):
            self._send(
                other, self.shown(room, occupant, stanza, other, codes=codes, role="none", reason=reason)
            )
        self._remove(room, occupant)

    def put_out(
        self, room: Room, occupant: Occupant, codes: tuple[str, ...], *, actor: str | None, reason: str | None,
        quietly: bool = False,
    ) -> None:  # fmt: skip
        """Kick, ban and the like: everyone is told, the victim too."""
        gone = el(ns.CLIENT, "presence", {"type": "unavailable"})
        victims = list(occupant.presences)
        for other, full in reversed(self._others_first(room, occupant)):
            if quietly and other is not occupant:
                continue
            self._send(
                full,
                self.shown(room, occupant, gone, full, codes=codes, role="none", actor=actor, reason=reason),
            )
        for full in victims:
            session = self._server.session(full)
            if session is not None:
                session.directed.discard(room.jid)
        self._remove(room, occupant)

    def _remove(self, room: Room, occupant: Occupant) -> None:
        room.occupants.pop(occupant.nick, None)
        if not room.occupants and not room.is_set("muc#roomconfig_persistentroom") and not room.archive.kept:
            self.close(room)

    def session_gone(self, session: Session, status: str | None, *, owed: list[Element]) -> None:
        """A session ended: it leaves its rooms.  Who owed room messages is put out with 333."""
        for room in self:
            occupant = room.occupant_of(session.jid)
            if occupant is None:
                continue
            unread = any(
                s.get("type") == "groupchat" and jid.bare(s.get("from") or "") == room.jid for s in owed
            )
            stanza = el(ns.CLIENT, "presence", {"type": "unavailable"})
            status = "Kicked: recipient unavailable" if unread else status
            if status is not None:
                stanza.add(el(ns.CLIENT, "status", None, status))
            self.leave(room, occupant, session.jid, stanza, codes=("333",) if unread else ())

    def _send(self, full: str, stanza: Element) -> None:
        self._server.route(stanza if stanza.get("to") == full else stanza.copy(to=full))

    # ---------------------------------------------------------------- messages

    def message(self, session: Session, message: Element) -> None:
        """A message to a room, or to one occupant."""
        to = message.get("to") or ""
        room = self.find(jid.bare(to))
        kind = message.get("type") or "normal"
        if kind == "error":
            return
        if room is None:
            self._server.deliver(session, error(message, "item-not-found", by=self.domain))
            return
        user = message.find(ns.MUC_USER, "x")
        if user is not None and not jid.resource(to):
            self._invitation(session, room, message, user)
            return
        occupant = room.occupant_of(session.jid)
        if occupant is None:
            self._server.deliver(session, error(message, "not-acceptable", kind="cancel", text=NOT_JOINED))
        elif jid.resource(to):
            self._private(session, room, occupant, message)
        elif kind != "groupchat":
            self._server.deliver(session, error(message, "service-unavailable"))
        elif occupant.role == "visitor":
            text = "You currently do not have permission to speak in this chat"
            self._server.deliver(session, error(message, "forbidden", text=text))
        elif message.find(ns.CLIENT, "subject") is not None and body(message) is None:
            self._change_subject(session, room, occupant, message)
        else:
            self.say(room, occupant.nick, occupant.jid, message)

    def say(self, room: Room, nick: str, bare: str, message: Element) -> str | None:
        """Spread a message to everyone in the room; returns the stanza-id, None where it is not archived."""
        made = without_forged_ids(message, room.jid).copy(**{"from": f"{room.jid}/{nick}", "to": None})
        made = made.without((ns.OCCUPANT, "occupant-id"))
        if made.get("id") is None:
            made = made.copy(id=self._server.new_id())
        made.add(el(ns.OCCUPANT, "occupant-id", {"id": self._server.occupant_id(room.jid, bare)}))
        kept_id = None
        if is_archived(made):
            kept_id = self._server.new_id()
            room.archive.add(Kept(kept_id, self._server.env.wall(), made, bare))
        for _, full in room.addresses():
            receiver = self._server.session(full)
            copies = 2 if receiver is not None and self._server.faults.takes_duplicate(receiver) else 1
            for _ in range(copies):
                copy = made.copy(to=full)
                self._send(full, copy.add(stanza_id(kept_id, room.jid)) if kept_id is not None else copy)
        return kept_id

    def _change_subject(self, session: Session, room: Room, occupant: Occupant, message: Element) -> None:
        if occupant.role != "moderator" and not room.is_set("muc#roomconfig_changesubject"):
            text = "You are not allowed to change the subject"
            self._server.deliver(session, error(message, "forbidden", text=text))
            return
        subject = message.find(ns.CLIENT, "subject")
        assert subject is not None
        given = {"type": "groupchat", "from": f"{room.jid}/{occupant.nick}"}
        room.subject = el(ns.CLIENT, "message", given, subject)
        room.subject_at = self._server.env.wall()
        for _, full in room.addresses():
            self._send(full, room.subject)

    def _private(self, session: Session, room: Room, occupant: Occupant, message: Element) -> None:
        target = room.occupants.get(jid.resource(message.get("to") or ""))
        if target is None:
            self._server.deliver(
                session, error(message, "item-not-found", by=room.jid, text="Recipient not in room")
            )
            return
        if message.get("type") == "groupchat":
            self._server.deliver(session, error(message, "bad-request", by=room.jid))
            return
        made = without_forged_ids(message, room.jid).copy(**{"from": f"{room.jid}/{occupant.nick}"})
        made.add(el(ns.OCCUPANT, "occupant-id", {"id": self._id(room, occupant)}))
        if made.find(ns.MUC_USER, "x") is None:
            made.add(el(ns.MUC_USER, "x"))
        for full in target.presences:
            messages.from_room(self._server, full, made)

    def _invitation(self, session: Session, room: Room, message: Element, user: Element) -> None:
        """A mediated invitation, or its answer."""
        for kind in ("invite", "decline"):
            asked = user.find(ns.MUC_USER, kind)
            if asked is None:
                continue
            guest = asked.get("to") or ""
            occupant = room.occupant_of(session.jid)
            sender = f"{room.jid}/{occupant.nick}" if occupant is not None else session.jid
            passed = asked.copy(to=None, **{"from": sender})
            made = message.copy(**{"from": room.jid, "to": guest}).without((ns.MUC_USER, "x"))
            made.add(el(ns.MUC_USER, "x", None, passed))
            why = asked.text_of(ns.MUC_USER, "reason")
            tail = f" ({why})" if why else ""
            if kind == "invite":
                text = f"{sender} invited you to the room {room.jid}{tail}"
                made.add(el("jabber:x:conference", "x", {"jid": room.jid}, *([why] if why else [])))
            else:
                text = f"{sender} declined your invite to the room {room.jid}{tail}"
            messages.from_room(self._server, guest, made.add(el(ns.CLIENT, "body", None, text)))

    # ---------------------------------------------------------------- queries

    def query(self, session: Session, iq: Element) -> None:
        """An IQ to the service, a room, or an occupant."""
        to, kind = iq.get("to") or "", iq.get("type")
        payload = next(iq.elements(), None)
        room = self.find(jid.bare(to))
        nick = jid.resource(to)
        if "@" not in to:
            if kind in ("get", "set"):
                administration.service(self._server, session, iq)
            return
        if room is None:
            archive = payload is not None and payload.space == ns.MAM
            if kind in ("get", "set"):
                by = None if archive else self.domain
                self._server.deliver(session, error(iq, "item-not-found", by=by))
            return
        if not nick:
            if kind in ("get", "set"):
                administration.room(self._server, session, room, iq)
            return
        occupant = room.occupant_of(session.jid)
        target = room.occupants.get(nick)
        if occupant is None:
            if kind in ("get", "set"):
                self._server.deliver(
                    session, error(iq, "not-acceptable", kind="cancel", by=room.jid, text=NOT_JOINED)
                )
        elif target is None:
            if kind in ("get", "set"):
                text = "Recipient not in room"
                self._server.deliver(session, error(iq, "item-not-found", by=room.jid, text=text))
        elif target is occupant and payload is not None and payload.is_a(ns.PING, "ping"):
            self._server.deliver(session, result(iq))
        elif kind == "get" and payload is not None and payload.is_a(ns.VCARD, "vCard"):
            self._server.deliver(session, result(iq, el(ns.VCARD, "vCard")))
        else:
            self._send(next(iter(target.presences)), iq.copy(**{"from": f"{room.jid}/{occupant.nick}"}))
