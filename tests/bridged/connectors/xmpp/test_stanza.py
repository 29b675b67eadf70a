"""Building and writing stanzas: whatever was typed is well-formed XML that says the same."""

from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st
from slixmpp.xmlstream import tostring

from bridged.connectors.xmpp.stanza import (
    CLIENT,
    STANZAS,
    StanzaError,
    child_text,
    element,
    message,
    read_error,
    read_stamp,
    to_xml,
    write_stamp,
    xml_text,
)

ANYTHING = st.text(st.characters(), max_size=60)


@given(ANYTHING, ANYTHING)
def test_any_text_is_read_back_by_a_strict_parser(body: str, nick: str) -> None:
    stanza = message("ops@example.org/" + nick, "groupchat", nick, element("body", CLIENT, body))
    for text in (to_xml(stanza), tostring(stanza, xmlns="")):
        read = ElementTree.fromstring(text)
        assert child_text(read, "body", CLIENT) == xml_text(body)
        assert read.get("id") == stanza.get("id")


@given(ANYTHING)
def test_no_character_that_xml_forbids_is_left(text: str) -> None:
    clean = xml_text(text)
    assert all(c in "\t\n" or (c >= " " and c not in "\ufffe\uffff") for c in clean)
    assert not any("\ud800" <= c <= "\udfff" for c in clean)
    assert xml_text(clean) == clean


def test_markup_in_a_text_stays_text() -> None:
    text = to_xml(message("a@b", "chat", "1", element("body", CLIENT, "</body><body>x&amp;")))
    assert text == (
        '<message xmlns="jabber:client" to="a@b" type="chat" id="1">'
        "<body>&lt;/body&gt;&lt;body&gt;x&amp;amp;</body></message>"
    )


def test_a_foreign_forbidden_character_is_never_written() -> None:
    stanza = element("message", CLIENT)
    stanza.text = "\x00"
    with pytest.raises(ValueError, match="XML"):
        to_xml(stanza)


def test_a_language_and_a_foreign_attribute_survive() -> None:
    text = '<a xmlns="urn:a" xml:lang="en" xmlns:p="urn:p" p:q="1"><b xmlns="urn:b">x</b>y</a>'
    read = ElementTree.fromstring(to_xml(ElementTree.fromstring(text)))
    assert read.attrib == ElementTree.fromstring(text).attrib
    assert read[0].tag == "{urn:b}b"
    assert read[0].tail == "y"


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("1969-07-21T02:56:15Z", -14159025.0),
        ("1969-07-20T21:56:15-05:00", -14159025.0),
        ("2026-11-24T08:00:00.125Z", 1795507200.125),
        ("2026-11-24T08:00:00.1234567Z", 1795507200.123456),
        ("0001-01-01T00:00:00+14:00", None),
        ("2026-11-24", None),
        ("20260230T00:00:00", None),
        ("2026-02-30T00:00:00Z", None),
        ("", None),
        (None, None),
    ],
)
def test_times_of_xep_0082(text: str | None, seconds: float | None) -> None:
    assert read_stamp(text) == seconds


def test_a_time_is_written_as_it_is_read() -> None:
    assert read_stamp(write_stamp(1795507200.125)) == 1795507200.125


def test_errors_are_read() -> None:
    text = (
        "<message xmlns='jabber:client' type='error'><error type='auth'>"
        f"<forbidden xmlns='{STANZAS}'/><text xmlns='{STANZAS}'>no voice</text></error></message>"
    )
    assert read_error(ElementTree.fromstring(text)) == StanzaError("forbidden", "auth", "no voice")
    assert read_error(ElementTree.fromstring("<message xmlns='jabber:client'/>")) is None
    bare = ElementTree.fromstring("<message xmlns='jabber:client' type='error'/>")
    assert read_error(bare) == StanzaError("undefined-condition", "cancel")
