"""How other networks look on IRC: who speaks is never in doubt, and nothing of a text is lost."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridged.connectors.intent import Failed, Intent, Quoted, Speaker
from bridged.connectors.irc.formatting import plain, strip
from bridged.connectors.irc.rendering import NAME_BYTES_MAX, Rendering, render, speaker

TEXT = st.text(st.characters(codec="utf-8"), max_size=600)


def intent(action: str = "outbound_message", text: str = "", name: str = "ola", **more: Any) -> Intent:
    values: dict[str, Any] = {
        "action": action,
        "trace_id": "t" * 32,
        "channel": "msgr://channels/acme/bridge/irc/irc.lab/%23ops",
        "conversation": "ops",
        "message_id": "m1",
        "sender": Speaker(ref="msgr://identity/bridges/xmpp/ola@x", name=name, service="xmpp"),
        "text": text,
        "html": None,
        "kind": "message",
        "reply_to": None,
        "remote_id": None,
        "original_text": None,
        "target": None,
        "emojis": (),
        "added": (),
        "removed": (),
        "idempotency_key": "k",
        "attempt": 1,
        "payload": {},
    }
    return Intent(**(values | more))


def texts(given_intent: Intent, bytes_max: int = 400, **more: Any) -> list[str]:
    rendering = render(given_intent, bytes_max=bytes_max, **more)
    assert isinstance(rendering, Rendering)
    return list(rendering.texts)


IRENE = Quoted(message_id="m0", remote_id="id0", name="irene", text="shall we deploy?")


def test_a_message_shows_its_speaker() -> None:
    assert texts(intent(text="hi")) == ["<ola> hi"]


def test_every_line_of_a_text_begins_with_the_speaker() -> None:
    assert texts(intent(text="one\n<irene> pay the bill\n\nthree")) == [
        "<ola> one",
        "<ola> <irene> pay the bill",
        "<ola> three",
    ]


def test_an_edit_a_reply_a_reaction_and_a_deletion_read_well() -> None:
    assert texts(intent("outbound_edit_message", "new text")) == ["<ola> ✎ corrected: new text"]
    assert texts(intent(text="yes", reply_to=IRENE)) == ['<ola> ↪ irene: "shall we deploy?" yes']
    assert texts(intent("outbound_reaction", added=("👍",), target=IRENE)) == [
        '* ola reacted 👍 to irene: "shall we deploy?"'
    ]
    assert texts(intent("outbound_reaction", removed=("👍",), target=IRENE)) == [
        '* ola took back 👍 from irene: "shall we deploy?"'
    ]
    assert texts(intent("outbound_delete_message", "oops")) == ['* ola deleted: "oops"']
    assert texts(intent(text="waves", kind="action")) == ["* ola waves"]


def test_a_reaction_that_changes_nothing_says_nothing() -> None:
    assert texts(intent("outbound_reaction")) == []


def test_a_network_that_takes_back_is_asked_to() -> None:
    rendering = render(intent("outbound_delete_message", remote_id="id1"), bytes_max=400, can_redact=True)
    assert isinstance(rendering, Rendering)
    assert rendering.redact == "id1" and not rendering.texts


def test_a_long_quote_is_cut_and_cannot_be_closed_by_its_text() -> None:
    quoted = Quoted(message_id=None, remote_id=None, name="irene", text='x" I agree\n' + "y" * 200)
    (line,) = texts(intent(text="no", reply_to=quoted))
    assert line.startswith("<ola> ↪ irene: \"x' I agree yyy")
    assert line.endswith('…" no') and len(line) < 110


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("irene> pay the bill now <x", "irene_ pay the bill now _x"),
        ("ola\n<irene", "ola _irene"),
        ("o\u202ela\u200b\u2066", "ola"),
        ("\x02bold\x0304", "bold 04"),
        ("irene\uff1e pay", "irene_ pay"),
        ("ire\u3164ne", "irene"),
        ("  \t ", "?"),
        ("", "?"),
        ("⟨b⟩", "_b_"),
        ("A" * 100, "A" * NAME_BYTES_MAX),
        ("Zoë 👩🏽", "Zoë 👩🏽"),
    ],
)
def test_a_name_cannot_seem_another(name: str, shown: str) -> None:
    assert speaker(name) == shown


def test_a_name_in_a_line_of_the_bridge_is_one_word() -> None:
    name = 'irene reacted x to bob: "y" ola'
    (line,) = texts(intent("outbound_reaction", name=name, added=("👍",), target=IRENE))
    assert line.split(" ")[1] == name.replace(" ", "_")


def test_html_is_shown_only_where_it_says_what_the_text_says() -> None:
    assert texts(intent(text="a bold b", html="a <b>bold</b> b")) == ["<ola> a \x02bold\x0f b"]
    assert texts(intent(text="nothing", html="<b>something else</b>")) == ["<ola> nothing"]


def test_codes_in_a_text_are_not_codes() -> None:
    assert texts(intent(text="a\x02b\x0304c\x01")) == ["<ola> ab04c"]


def test_a_text_of_nothing_and_a_text_of_too_much_are_refused_in_words() -> None:
    for text, code in (("\n \n", "unsupported_content"), ("x" * 40_000, "too_large")):
        rendering = render(intent(text=text), bytes_max=400)
        assert isinstance(rendering, Failed) and rendering.code == code


def test_1499_bytes_arrive_whole() -> None:
    text = " ".join(f"word{number:04d}" for number in range(167))[:1499]
    lines = texts(intent(text=text), bytes_max=430)
    assert " ".join(line.removeprefix("<ola> ") for line in lines) == text
    assert len(lines) == 4


@given(TEXT, TEXT, st.sampled_from(["message", "action", "notice"]), st.integers(260, 450), st.booleans())
def test_any_text_is_lines_that_fit_and_lose_nothing(
    text: str, name: str, kind: str, bytes_max: int, is_reply: bool
) -> None:
    given_intent = intent(text=text, name=name, kind=kind, reply_to=IRENE if is_reply else None)
    rendering = render(given_intent, bytes_max=bytes_max)
    body = "".join(plain(text).split())
    if isinstance(rendering, Failed):
        assert not body
        return
    lead = f"* {speaker(name).replace(' ', '_')} " if kind == "action" else f"<{speaker(name)}> "
    said = ""
    for number, line in enumerate(rendering.texts):
        assert len(line.encode()) <= bytes_max
        assert not set(line) & set("\r\n\0")
        assert line.startswith(lead)
        rest = line.removeprefix(lead)
        if number == 0 and is_reply and kind != "action":
            assert rest.startswith('↪ irene: "shall we deploy?" ')
            rest = rest.removeprefix('↪ irene: "shall we deploy?" ')
        said += rest
    assert "".join(strip(said).split()) == body


@given(TEXT)
def test_any_name_is_one_short_word_or_more_without_brackets(name: str) -> None:
    shown = speaker(name)
    assert 0 < len(shown.encode()) <= NAME_BYTES_MAX
    assert not set(shown) & set("<>\r\n\0\x01\x02\x03\u200b\u202e")
    assert speaker(shown) == shown
