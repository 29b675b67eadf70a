"""Messages as the specifications print them, as a real server wrote them, and as nobody should."""

import json
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridged.connectors.xmpp.entry import read_presence
from bridged.connectors.xmpp.jid import parse_jid
from bridged.connectors.xmpp.seen import (
    REACTIONS_MAX,
    TEXT_CHARACTERS_MAX,
    Marker,
    Seen,
    SeenError,
    Span,
    is_copy,
    read_archived,
    read_copy,
    read_message,
    without_spans,
)
from bridged.connectors.xmpp.stanza import MAM, Element, read_error

VECTORS = Path(__file__).parents[3] / "vectors/xmpp"
EXAMPLES = json.loads((VECTORS / "xep-examples.json").read_text())["examples"]


def read(inside: str, attributes: str = "from='ops@muc.localhost/alice' type='groupchat'") -> Seen:
    return read_message(
        ElementTree.fromstring(f"<message xmlns='jabber:client' {attributes}>{inside}</message>")
    )


def stanzas_of(text: str) -> Iterator[Element]:
    """The stanzas of a printed example, where they are well-formed."""
    try:
        root = ElementTree.fromstring(f"<all xmlns='jabber:client'>{text}</all>")
    except ElementTree.ParseError:
        return
    yield from root.iter("{jabber:client}message")
    yield from root.iter("{jabber:client}presence")


@pytest.mark.parametrize(
    "example", EXAMPLES, ids=lambda example: f"{example['xep']} {str(example['caption'])[:40]}"
)
def test_every_printed_example_is_read_or_refused(example: dict[str, str]) -> None:
    for stanza in stanzas_of(example["text"]):
        read_error(stanza)
        read_archived(stanza, MAM)
        read_copy(stanza, parse_jid("romeo@montague.example/home"))
        read_presence(stanza, "thirdwitch")
        try:
            read_message(stanza)
        except SeenError:
            assert stanza.get("from") is None


@pytest.mark.parametrize(
    "path", sorted((VECTORS / "transcripts").glob("*.jsonl")), ids=lambda path: path.stem
)
def test_every_recorded_stanza_is_read(path: Path) -> None:
    """Of a real server: every message has a sender, and nothing raises."""
    seen = 0
    for line in path.read_text().splitlines():
        record = json.loads(line)
        if (
            record["dir"] != "S"
            or record.get("bad")
            or not record["xml"].startswith(("<message", "<presence"))
        ):
            continue
        for stanza in stanzas_of(record["xml"]):
            seen += 1
            if not stanza.tag.endswith("message"):
                read_presence(stanza, "alice")
            elif stanza.get("from") in (None, "@@@"):  # our own archive; an error about that very address
                assert read_archived(stanza, MAM) or read_error(stanza)
            else:
                read_message(stanza)
    assert seen or path.stem.startswith(("01", "02", "09"))


def test_what_the_extensions_say_is_read() -> None:
    seen = read(
        "<body>> hi\nyes</body>"
        "<replace xmlns='urn:xmpp:message-correct:0' id='m1'/>"
        "<reply xmlns='urn:xmpp:reply:0' to='ops@muc.localhost/bob' id='s7'/>"
        "<fallback xmlns='urn:xmpp:fallback:0' for='urn:xmpp:reply:0'><body start='0' end='5'/></fallback>"
        "<origin-id xmlns='urn:xmpp:sid:0' id='o1'/>"
        "<stanza-id xmlns='urn:xmpp:sid:0' id='s9' by='Ops@MUC.localhost'/>"
        "<stanza-id xmlns='urn:xmpp:sid:0' id='forged' by='evil.example'/>"
        "<occupant-id xmlns='urn:xmpp:occupant-id:0' id='occ'/>"
        "<active xmlns='http://jabber.org/protocol/chatstates'/>"
        "<delay xmlns='urn:xmpp:delay' from='ops@muc.localhost' stamp='2026-11-24T08:00:00Z'/>"
    )
    assert (seen.replaces, seen.reply_to, seen.origin_id, seen.occupant_id) == ("m1", "s7", "o1", "occ")
    assert seen.stanza_ids == {"ops@muc.localhost": "s9", "evil.example": "forged"}
    assert seen.spans == (Span("urn:xmpp:reply:0", 0, 5),)
    assert (seen.delayed_at, seen.delayed_by) == (1795507200.0, "ops@muc.localhost")
    assert seen.chat_state == "active"
    assert seen.body is not None
    assert without_spans(seen.body, seen.spans, "urn:xmpp:reply:0") == "yes"


@pytest.mark.parametrize(
    ("inside", "marker"),
    [
        ("<received xmlns='urn:xmpp:receipts' id='1'/>", Marker("received", "1")),
        ("<displayed xmlns='urn:xmpp:chat-markers:0' id='2'/>", Marker("displayed", "2")),
        ("<displayed xmlns='urn:xmpp:chat-markers:0'/>", None),
        ("<received xmlns='urn:else' id='1'/>", None),
    ],
)
def test_receipts_and_markers(inside: str, marker: Marker | None) -> None:
    assert read(inside).marker == marker


def test_an_emptied_set_of_reactions_is_not_none() -> None:
    seen = read("<reactions xmlns='urn:xmpp:reactions:0' id='s1'/>")
    assert (seen.reacts_to, seen.reactions) == ("s1", ())


def test_a_moderation_is_told_from_a_retraction() -> None:
    own = read("<retract xmlns='urn:xmpp:message-retract:1' id='s1'/>")
    by_room = read(
        "<retract xmlns='urn:xmpp:message-retract:1' id='s1'>"
        "<moderated xmlns='urn:xmpp:message-moderate:1'/></retract>",
        "from='ops@muc.localhost' type='groupchat'",
    )
    assert (own.retracts, own.is_moderation) == ("s1", False)
    assert (by_room.retracts, by_room.is_moderation) == ("s1", True)


@pytest.mark.parametrize("attributes", ["", "from=''", "from='a@'", "from='@muc/x'"])
def test_a_message_of_nobody_is_refused(attributes: str) -> None:
    with pytest.raises(SeenError):
        read("<body>x</body>", attributes)


def test_sizes_are_bounded() -> None:
    seen = read(
        f"<body>{'x' * (TEXT_CHARACTERS_MAX + 5)}</body>"
        f"<origin-id xmlns='urn:xmpp:sid:0' id='{'i' * 5000}'/>"
        "<reactions xmlns='urn:xmpp:reactions:0' id='s1'>"
        + "".join(f"<reaction>{number}</reaction>" for number in range(500))
        + f"<reaction>{'y' * 100}</reaction></reactions>"
    )
    assert seen.body is not None
    assert seen.body.endswith("x… [5 characters more]")
    assert seen.origin_id is None
    assert len(seen.reactions) == REACTIONS_MAX


@given(
    st.text(max_size=20),
    st.lists(st.tuples(st.integers(-3, 25), st.none() | st.integers(-3, 25)), max_size=4),
)
def test_spans_that_do_not_fit_take_nothing_away(body: str, ends: list[tuple[int, int | None]]) -> None:
    spans = tuple(Span("p", start, end) for start, end in ends)
    left = without_spans(body, spans, "p")
    assert len(left) <= len(body)
    assert without_spans(body, spans, "other") == body


COPY = (
    "<message xmlns='jabber:client' from='{outer}'><received xmlns='urn:xmpp:carbons:2'>"
    "<forwarded xmlns='urn:xmpp:forward:0'><message xmlns='jabber:client' from='alice@localhost/x' type='chat'>"
    "<body>pay</body></message></forwarded></received></message>"
)


def test_a_carbon_counts_from_our_own_account_alone() -> None:
    own = parse_jid("bridge@localhost/bridged.main")
    genuine = read_copy(ElementTree.fromstring(COPY.format(outer="bridge@localhost")), own)
    assert genuine is not None
    assert genuine.direction == "received"
    for outer in (
        "evil@localhost",
        "bridge@localhost/bridged.main",
        "localhost",
        "evil.example/bridge@localhost",
    ):
        forged = ElementTree.fromstring(COPY.format(outer=outer))
        assert is_copy(forged)
        assert read_copy(forged, own) is None
