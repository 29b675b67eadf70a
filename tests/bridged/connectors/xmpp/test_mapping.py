"""What messages mean, and what intents become."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridged.connectors.intent import Failed, Intent, Quoted, Retry, Speaker
from bridged.connectors.xmpp.chat import OWN_PREFIX, Chat, Kind, Known
from bridged.connectors.xmpp.jid import parse_jid
from bridged.connectors.xmpp.mapping import (
    Event,
    Passed,
    inbound,
    outbound,
    receipt,
    refused,
    stanza_id_of,
    unknown_reference,
)
from bridged.connectors.xmpp.seen import read_message, without_spans
from bridged.connectors.xmpp.stanza import (
    CLIENT,
    CORRECT,
    MAM,
    OCCUPANT_ID,
    REACTIONS,
    REPLY,
    RETRACT,
    STANZA_ID,
    STYLING,
    Element,
    StanzaError,
    child,
    child_text,
    to_xml,
)
from bridged.envelope import new_envelope
from bridged.schema import read_inbound

VECTORS = Path(__file__).parents[3] / "vectors/xmpp"
ROOM = "msgr://channels/acme/bridge/xmpp/ops@muc.localhost"
ALL = frozenset({MAM, STANZA_ID, OCCUPANT_ID})
IRENE = Speaker(ref="msgr://identity/bridges/irc/net/irene", name="irene", service="irc")


def room(features: frozenset[str] = ALL) -> Chat:
    account = parse_jid("bridge@localhost/bridged.main")
    return Chat(ROOM, parse_jid("ops@muc.localhost"), Kind.ROOM, account, "acme-bridge", features)


def person() -> Chat:
    channel = "msgr://channels/acme/bridge/xmpp/alice@localhost"
    account = parse_jid("bridge@localhost/bridged.main")
    return Chat(channel, parse_jid("alice@localhost"), Kind.DIRECT, account, "acme-bridge", ALL)


def hear(
    chat: Chat,
    inside: str,
    *,
    who: str = "ops@muc.localhost/alice",
    mid: str | None = "m1",
    sid: str | None = "s1",
    occ: str | None = "occ-alice",
    kind: str = "groupchat",
    typing: bool = False,
    is_live: bool = True,
) -> Event | Passed:
    by = "ops@muc.localhost" if chat.is_room else "bridge@localhost"
    text = (
        f"<message xmlns='jabber:client' from='{who}' type='{kind}'" + (f" id='{mid}'" if mid else "") + ">"
    )
    text += inside
    text += f"<stanza-id xmlns='{STANZA_ID}' id='{sid}' by='{by}'/>" if sid else ""
    text += f"<occupant-id xmlns='{OCCUPANT_ID}' id='{occ}'/>" if occ else ""
    stanza = ElementTree.fromstring(text + "</message>")
    seen = read_message(stanza)
    archive_id = chat.stanza_id(seen)
    return inbound(chat, seen, stanza, archive_id=archive_id, at=1795507200.0, typing=typing, is_live=is_live)


def said(event: Event | Passed) -> dict[str, Any]:
    """The payload, which the schema must be able to read."""
    assert isinstance(event, Event), event
    envelope = new_envelope("xmpp", event.action, event.payload, now=1795507200.0, trace_id="0" * 32)
    assert read_inbound(envelope, tenant="acme")
    return event.payload


def test_a_line_of_a_room() -> None:
    payload = said(hear(room(), "<body>hello</body>"))
    assert payload["remote_id"] == payload["stanza_id"] == "s1"
    assert payload["id_scope"] == "server"
    assert payload["sender"] == {
        "ref": "msgr://identity/bridges/xmpp/ops@muc.localhost%2Falice",
        "name": "alice",
    }
    assert (payload["text"], payload["kind"], payload["html"]) == ("hello", "message", None)
    assert payload["timestamp"] == "2026-11-24T08:00:00.000Z"
    assert "hello" in payload["stanza"]


def test_a_line_of_a_person_is_of_the_bare_jid() -> None:
    payload = said(hear(person(), "<body>hello</body>", who="alice@localhost/x", kind="chat", occ=None))
    assert payload["sender"] == {"ref": "msgr://identity/bridges/xmpp/alice@localhost", "name": "alice"}


def test_me_is_an_action() -> None:
    assert said(hear(room(), "<body>/me waves</body>"))["kind"] == "action"
    unstyled = "<body>/me waves</body><unstyled xmlns='urn:xmpp:styling:0'/>"
    assert said(hear(room(), unstyled))["text"] == "/me waves"


def test_styling_is_html_unless_its_author_says_that_it_is_none() -> None:
    payload = said(hear(room(), "<body>a *b* &lt;i&gt;</body>"))
    assert (payload["text"], payload["html"]) == ("a *b* <i>", "a <strong>b</strong> &lt;i&gt;")
    unstyled = "<body>a *b*</body><unstyled xmlns='urn:xmpp:styling:0'/>"
    assert said(hear(room(), unstyled))["html"] is None


def test_a_stanza_id_counts_from_a_room_that_takes_forged_ones_out() -> None:
    trusted, untrusted = said(hear(room(), "<body>x</body>")), said(hear(room(frozenset()), "<body>x</body>"))
    assert (trusted["remote_id"], trusted["id_scope"]) == ("s1", "server")
    assert (untrusted["remote_id"], untrusted["id_scope"]) == ("m1", "sender")


def test_a_stanza_id_of_another_counts_nothing() -> None:
    forged = f"<body>x</body><stanza-id xmlns='{STANZA_ID}' id='f' by='evil.example'/>"
    assert said(hear(room(), forged, sid=None))["remote_id"] == "m1"


def test_without_any_id_the_same_words_at_the_same_time_are_the_same_message() -> None:
    one, same = (said(hear(room(), "<body>x</body>", mid=None, sid=None)) for _ in range(2))
    other = said(hear(room(), "<body>y</body>", mid=None, sid=None))
    assert one["remote_id"] == same["remote_id"] != other["remote_id"]


def test_a_correction_by_the_author_is_an_edit_and_so_is_the_next() -> None:
    chat = room()
    hear(chat, "<body>helo</body>")
    fix = f"<replace xmlns='{CORRECT}' id='m1'/>"
    first = said(hear(chat, "<body>hello</body>" + fix, mid="m2", sid="s2"))
    second = said(hear(chat, f"<body>hello!</body><replace xmlns='{CORRECT}' id='m2'/>", mid="m3", sid="s3"))
    assert (first["remote_id"], first["edit_id"], first["text"]) == ("s1", "s2", "hello")
    assert (second["remote_id"], second["edit_id"]) == ("s1", "s3")


@pytest.mark.parametrize("occ", ["occ-mallory", None])
def test_nobody_corrects_another_s_message(occ: str | None) -> None:
    chat = room()
    hear(chat, "<body>pay 1</body>")
    event = hear(
        chat,
        f"<body>pay 1000</body><replace xmlns='{CORRECT}' id='m1'/>",
        who="ops@muc.localhost/mallory",
        mid="m2",
        sid="s2",
        occ=occ,
    )
    assert isinstance(event, Event)
    assert event.action == "inbound_stanza"
    assert event.payload["remote_id"] == "s2"


def test_a_nick_that_was_left_inherits_no_right_to_correct() -> None:
    chat = room(frozenset({STANZA_ID}))  # a room without occupant ids
    hear(chat, "<body>pay 1</body>", occ=None)
    chat.forget_author("ops@muc.localhost/alice")
    stanza = f"<body>pay 1000</body><replace xmlns='{CORRECT}' id='m1'/>"
    event = hear(chat, stanza, mid="m2", sid="s2", occ=None)
    assert isinstance(event, Event)
    assert event.action == "inbound_stanza"


def test_a_reply_loses_its_fallback_and_keeps_what_it_answers() -> None:
    chat = room()
    hear(chat, "<body>bake?</body>")
    payload = said(
        hear(
            chat,
            "<body>> bake?\nyes</body><reply xmlns='urn:xmpp:reply:0' id='s1'/>"
            "<fallback xmlns='urn:xmpp:fallback:0' for='urn:xmpp:reply:0'><body start='0' end='8'/></fallback>",
            mid="m2",
            sid="s2",
        )
    )
    assert (payload["text"], payload["reply_to"], payload["body"]) == ("yes", "s1", "> bake?\nyes")


def test_reactions_are_the_sender_s_whole_set() -> None:
    some = "<reaction>👍</reaction><reaction>👍</reaction><reaction>🎉</reaction>"
    react = f"<reactions xmlns='{REACTIONS}' id='s1'>{{}}</reactions>"
    chat = room()
    assert said(hear(chat, react.format(some), sid="s2"))["emojis"] == ["👍", "🎉"]
    payload = said(hear(chat, react.format("") + "<body>fallback</body>", sid="s3"))
    assert (payload["remote_id"], payload["emojis"]) == ("s1", [])


def test_a_retraction_needs_the_author_or_the_room() -> None:
    chat = room()
    hear(chat, "<body>oops</body>")
    retract = f"<retract xmlns='{RETRACT}' id='s1'>{{}}</retract><body>fallback</body>"
    by_other = hear(chat, retract.format(""), who="ops@muc.localhost/mallory", occ="occ-mallory", sid="s2")
    assert isinstance(by_other, Passed)
    moderated = retract.format("<moderated xmlns='urn:xmpp:message-moderate:1'/>")
    assert isinstance(hear(chat, moderated, who="ops@muc.localhost/mallory", sid="s3"), Passed)
    assert said(hear(chat, retract.format(""), sid="s4"))["remote_id"] == "s1"
    by_room = said(hear(chat, moderated, who="ops@muc.localhost", occ=None, sid="s5"))
    assert (by_room["remote_id"], by_room["sender"]) == ("s1", None)


def test_what_is_not_known_is_worth_a_look_into_the_archive() -> None:
    def about(inside: str) -> bool:
        text = f"<message xmlns='jabber:client' from='ops@muc.localhost/alice'>{inside}</message>"
        return unknown_reference(chat, read_message(ElementTree.fromstring(text)))

    chat = room()
    assert about(f"<body>x</body><replace xmlns='{CORRECT}' id='m1'/>")
    assert about(f"<retract xmlns='{RETRACT}' id='s1'/>")
    assert not about("<body>x</body>")
    chat.remember(Known("s1", "m1", "ops@muc.localhost/alice"))
    assert not about(f"<body>x</body><replace xmlns='{CORRECT}' id='m1'/>")


def test_passing_things_pass() -> None:
    composing = "<composing xmlns='http://jabber.org/protocol/chatstates'/>"
    assert isinstance(hear(room(), composing), Passed)
    event = hear(room(), composing, typing=True)
    assert isinstance(event, Event)
    assert event.is_passing
    assert said(event)["typing"] is True
    marker = "<displayed xmlns='urn:xmpp:chat-markers:0' id='s1'/>"
    event = hear(room(), marker)
    assert isinstance(event, Event)
    assert event.is_passing
    assert (said(event)["remote_id"], event.payload["kind"]) == ("s1", "read")
    assert isinstance(hear(room(), marker, is_live=False), Passed)


@pytest.mark.parametrize(
    ("inside", "kind"),
    [
        ("<subject>new</subject>", "groupchat"),
        ("<body>pm</body>", "chat"),
        ("<body>news</body>", "headline"),
        ("<error type='cancel'/>", "error"),
        ("", "groupchat"),
    ],
)
def test_what_is_not_said_in_the_room_is_not_published(inside: str, kind: str) -> None:
    assert isinstance(hear(room(), inside, kind=kind), Passed)


def test_an_encrypted_message_is_announced() -> None:
    payload = said(hear(room(), "<encryption xmlns='urn:xmpp:eme:0' namespace='x' name='OMEMO'/>"))
    assert "OMEMO" in payload["text"]
    assert payload["kind"] == "notice"


def test_every_recorded_line_of_rooms_and_people_maps() -> None:
    """The transcripts of a real server, through the mapping, into the schema."""
    events = []
    for name in ("05-carbons", "07-muc-messages", "10-component"):
        chats: dict[str, Chat] = {}
        for line in (VECTORS / f"transcripts/{name}.jsonl").read_text().splitlines():
            record = json.loads(line)
            if record["dir"] != "S" or not record["xml"].startswith("<message"):
                continue
            stanza = ElementTree.fromstring(f"<s xmlns='jabber:client'>{record['xml']}</s>")[0]
            seen = read_message(stanza)
            bare = str(seen.sender.bare)
            kind = Kind.ROOM if seen.sender.domain.startswith("muc.") else Kind.DIRECT
            account = parse_jid("bridge@localhost/bridged.main")
            channel = f"msgr://channels/acme/bridge/xmpp/{bare}"
            chat = chats.setdefault(
                record["conn"] + bare, Chat(channel, seen.sender.bare, kind, account, "bridge", ALL)
            )
            event = inbound(
                chat, seen, stanza, archive_id=chat.stanza_id(seen), at=0.0, typing=True, is_live=True
            )
            if isinstance(event, Event):
                said(event)
                events.append(event.action)
    assert {
        "inbound_stanza",
        "edit_event",
        "reaction_event",
        "redaction_event",
        "typing_event",
        "receipt_event",
    } <= set(events)


# -- outbound ---------------------------------------------------------------------------------------------


def built(stanza: Element | Failed) -> Element:
    assert not isinstance(stanza, Failed), stanza
    return ElementTree.fromstring(to_xml(stanza))


def test_a_message_names_its_speaker_and_itself(intent: Callable[..., Intent]) -> None:
    stanza = built(outbound(room(), intent("hi\nthere"), original_id=None))
    assert stanza.get("to") == "ops@muc.localhost"
    assert stanza.get("type") == "groupchat"
    assert child_text(stanza, "body", CLIENT) == "<irene> hi\n  there"
    origin = child(stanza, "origin-id", STANZA_ID)
    assert origin is not None
    assert origin.get("id") == stanza.get("id") == stanza_id_of(intent("another text"))
    assert stanza.get("id", "").startswith(OWN_PREFIX)


def test_html_is_styling_and_plain_text_is_not(intent: Callable[..., Intent]) -> None:
    rich = built(outbound(room(), intent("hi", html="<b>hi</b> &lt;x&gt;"), original_id=None))
    assert child_text(rich, "body", CLIENT) == "<irene> *hi* <x>"
    assert child(rich, "unstyled", STYLING) is None
    flat = built(outbound(room(), intent("2*3*4"), original_id=None))
    assert child_text(flat, "body", CLIENT) == "<irene> 2*3*4"
    assert child(flat, "unstyled", STYLING) is not None


def test_two_keys_never_share_an_id(intent: Callable[..., Intent]) -> None:
    assert stanza_id_of(intent("x", key="1")) != stanza_id_of(intent("x", key="2"))


def test_a_reply_is_one_and_reads_as_one(intent: Callable[..., Intent]) -> None:
    quoted = Quoted(message_id="m", remote_id="s1", name="alice", text="shall\nwe?")
    stanza = built(outbound(room(), intent("yes", reply_to=quoted), original_id=None))
    seen = read_message(ElementTree.fromstring(to_xml(stanza).replace("<message ", "<message from='a@b/c' ")))
    assert seen.reply_to == "s1"
    assert seen.body == "> <alice> shall we?\n<irene> yes"
    assert without_spans(seen.body, seen.spans, REPLY) == "<irene> yes"
    elsewhere = Quoted(message_id="m", remote_id=None, name="alice", text="shall we?")
    plain = built(outbound(room(), intent("yes", reply_to=elsewhere), original_id=None))
    assert child(plain, "reply", REPLY) is None


def test_an_edit_replaces_what_we_wrote_or_says_that_it_is_one(intent: Callable[..., Intent]) -> None:
    edit = intent("new", action="outbound_edit_message", remote_id="s1")
    replace = child(built(outbound(room(), edit, original_id="bridged-1")), "replace", CORRECT)
    assert replace is not None
    assert replace.get("id") == "bridged-1"
    lost = built(outbound(room(), edit, original_id=None))
    assert child_text(lost, "body", CLIENT) == "[edited] <irene> new"


def test_a_deletion_retracts_and_reads_as_one(intent: Callable[..., Intent]) -> None:
    delete = intent("old", action="outbound_delete_message", remote_id="s1")
    stanza = built(outbound(room(), delete, original_id=None))
    retract = child(stanza, "retract", RETRACT)
    assert retract is not None
    assert retract.get("id") == "s1"
    assert child_text(stanza, "body", CLIENT) == "* <irene> took a message back"
    unknown = intent("old", action="outbound_delete_message")
    body = child_text(built(outbound(room(), unknown, original_id=None)), "body", CLIENT)
    assert body == "* <irene> took a message back: “old”"


def test_a_reaction_is_one_and_reads_as_one(intent: Callable[..., Intent]) -> None:
    target = Quoted(message_id="m", remote_id="s1", name="alice", text="done")
    react = intent("", action="outbound_reaction", remote_id="s1", added=("👍",), target=target)
    stanza = built(outbound(room(), react, original_id=None, reactions=("👍", "🎉")))
    reactions = child(stanza, "reactions", REACTIONS)
    assert reactions is not None
    assert stanza.get("type") == "groupchat"
    assert [part.text for part in reactions] == ["👍", "🎉"]
    assert child_text(stanza, "body", CLIENT) == "* <irene> reacted with 👍 to <alice> “done”"


def test_between_two_people_ids_are_the_sender_s(intent: Callable[..., Intent]) -> None:
    chat = person()
    hear(chat, "<body>hi</body>", who="alice@localhost/x", mid="m9", sid="s9", occ=None, kind="chat")
    quoted = Quoted(message_id="m", remote_id="s9", name="alice", text="hi")
    stanza = built(outbound(chat, intent("yes", reply_to=quoted), original_id=None))
    reply = child(stanza, "reply", REPLY)
    assert reply is not None
    assert reply.get("id") == "m9"
    assert child(stanza, "request", "urn:xmpp:receipts") is not None


def test_what_is_too_long_is_refused(intent: Callable[..., Intent]) -> None:
    answer = outbound(room(), intent("å" * 40_000), original_id=None)
    assert isinstance(answer, Failed)
    assert answer.code == "too_large"


@given(st.text(st.characters(), max_size=80), st.text(st.characters(), max_size=30))
def test_whatever_was_typed_arrives_as_one_body_of_its_speaker(text: str, name: str) -> None:
    speaker = Speaker(ref="r", name=name, service="irc")
    made = Intent(
        action="outbound_message",
        trace_id="0" * 32,
        channel=ROOM,
        conversation="ops",
        message_id=None,
        sender=speaker,
        text=text,
        html=None,
        kind="message",
        reply_to=None,
        remote_id=None,
        original_text=None,
        target=None,
        emojis=(),
        added=(),
        removed=(),
        idempotency_key="k",
        attempt=1,
        payload={},
    )
    body = child_text(built(outbound(room(), made, original_id=None)), "body", CLIENT)
    assert body is not None
    assert body.startswith("<")
    assert all(line.startswith(("<", "  ")) for line in body.split("\n"))


def test_a_receipt_is_owed_to_a_person_who_asked() -> None:
    def owed(inside: str, attributes: str) -> Element | None:
        text = f"<message xmlns='jabber:client' from='alice@localhost/x' {attributes}>{inside}</message>"
        return receipt(read_message(ElementTree.fromstring(text)), "b1")

    request = "<body>x</body><request xmlns='urn:xmpp:receipts'/>"
    answer = owed(request, "type='chat' id='m1'")
    assert answer is not None
    assert (answer.get("to"), answer.get("type")) == ("alice@localhost/x", "chat")
    assert owed(request, "type='groupchat' id='m1'") is None
    assert owed(request, "type='chat'") is None
    assert owed("<body>x</body>", "type='chat' id='m1'") is None


@pytest.mark.parametrize(
    ("condition", "kind", "outcome"),
    [
        ("forbidden", "auth", "forbidden"),
        ("not-allowed", "cancel", "forbidden"),
        ("item-not-found", "cancel", "not_found"),
        ("undefined-condition", "cancel", "remote_rejected"),
        ("resource-constraint", "wait", None),
        ("remote-server-timeout", "wait", None),
        ("policy-violation", "modify", None),
    ],
)
def test_a_refusal_is_for_good_or_for_now(condition: str, kind: str, outcome: str | None) -> None:
    answer = refused(StanzaError(condition, kind))
    if outcome is None:
        assert isinstance(answer, Retry)
    else:
        assert isinstance(answer, Failed)
        assert (answer.code, answer.native) == (outcome, condition)
