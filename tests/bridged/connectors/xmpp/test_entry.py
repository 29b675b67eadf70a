"""Rooms: in, out, and who else."""

from xml.etree import ElementTree

import pytest

from bridged.connectors.xmpp.entry import (
    Gone,
    Joined,
    Moved,
    NotJoined,
    join_request,
    own_form,
    read_presence,
)
from bridged.connectors.xmpp.jid import parse_jid
from bridged.connectors.xmpp.stanza import MUC_OWNER, Element, StanzaError, child, form_fields

STANZAS = "urn:ietf:params:xml:ns:xmpp-stanzas"


def presence(inside: str, *, kind: str = "", nick: str = "acme-bridge") -> Element:
    attributes = f"from='ops@muc.localhost/{nick}'" + (f" type='{kind}'" if kind else "")
    return ElementTree.fromstring(f"<presence xmlns='jabber:client' {attributes}>{inside}</presence>")


def user(*codes: int, item: str = "<item affiliation='none' role='participant'/>", more: str = "") -> str:
    statuses = "".join(f"<status code='{code}'/>" for code in codes)
    return f"<x xmlns='http://jabber.org/protocol/muc#user'>{item}{statuses}{more}</x>"


OWNER = "<item affiliation='owner' role='moderator'/>"
ACTOR = "<item affiliation='none' role='none'><actor nick='alice'/><reason>rude</reason></item>"


@pytest.mark.parametrize(
    ("stanza", "meaning"),
    [
        (presence(user(201, 110, item=OWNER)), Joined("acme-bridge", True, True)),
        (presence(user(110), nick="acme-bridge_"), Joined("acme-bridge_", False, False)),
        (presence(user(), nick="alice"), Moved(nick="alice", is_present=True, change="join")),
        (
            presence(user(item=ACTOR), kind="unavailable", nick="bob"),
            Moved(nick="bob", is_present=False, change="leave", by="alice", reason="rude"),
        ),
        (
            presence(user(307, item=ACTOR), kind="unavailable", nick="bob"),
            Moved(nick="bob", is_present=False, change="kick", by="alice", reason="rude"),
        ),
        (
            presence(user(303, item="<item nick='rob'/>"), kind="unavailable", nick="bob"),
            Moved(nick="bob", is_present=False, change="leave"),
        ),
        (presence(user(303, 110), kind="unavailable"), None),
        (presence(user(307, 110, item=ACTOR), kind="unavailable"), Gone("kicked (rude)", False)),
        (presence(user(301, 110, item=ACTOR), kind="unavailable"), Gone("banned (rude)", True)),
        (presence(user(321, 110), kind="unavailable"), Gone("no member any more", True)),
        (presence(user(322), kind="unavailable"), Gone("for members only now", True)),
        (presence(user(332, 110), kind="unavailable"), Gone("the rooms' server is going down", False)),
        (presence(user(307, 333, 110), kind="unavailable"), Gone("lost by the room", False)),
        (presence(user(110, more="<destroy/>"), kind="unavailable"), Gone("the room was destroyed", True)),
        (presence(user(110), kind="unavailable"), Gone("out of the room", False)),
        (presence(""), None),
        (presence(user(), kind="subscribe"), None),
    ],
)
def test_presences(stanza: Element, meaning: object) -> None:
    assert read_presence(stanza, "acme-bridge") == meaning


@pytest.mark.parametrize(
    ("condition", "is_final"),
    [("forbidden", True), ("registration-required", True), ("remote-server-timeout", False)],
)
def test_a_refusal_says_whether_waiting_helps(condition: str, is_final: bool) -> None:
    refusal = presence(f"<error type='auth'><{condition} xmlns='{STANZAS}'/></error>", kind="error")
    answer = read_presence(refusal, "acme-bridge")
    assert answer == NotJoined(StanzaError(condition, "auth"))
    assert isinstance(answer, NotJoined)
    assert answer.is_final is is_final


def test_the_room_s_own_history_is_not_asked_for() -> None:
    request = join_request(parse_jid("ops@muc.localhost/acme-bridge"))
    assert request.find(".//{http://jabber.org/protocol/muc}history").get("maxstanzas") == "0"  # type: ignore[union-attr]


def test_a_room_of_ours_gets_what_its_form_knows() -> None:
    answer = ElementTree.fromstring(
        f"<iq xmlns='jabber:client'><query xmlns='{MUC_OWNER}'><x xmlns='jabber:x:data' type='form'>"
        "<field var='muc#roomconfig_persistentroom'/><field var='muc#roomconfig_roomname'/></x></query></iq>"
    )
    assert form_fields(own_form(answer)) == {
        "FORM_TYPE": "http://jabber.org/protocol/muc#roomconfig",
        "muc#roomconfig_persistentroom": "1",
    }
    empty = child(own_form(None), "x", "jabber:x:data")
    assert empty is not None
    assert (empty.get("type"), len(empty)) == ("submit", 0)
