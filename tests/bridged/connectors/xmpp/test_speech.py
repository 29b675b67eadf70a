"""Who speaks cannot be forged."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridged.connectors.xmpp.speech import INDENT, excerpt, has_styling, quoted, shown_name, spoken

ANYTHING = st.text(st.characters(), max_size=60)


def test_how_it_looks() -> None:
    assert spoken("irene", "hi") == "<irene> hi"
    assert spoken("irene", "one\ntwo\n\nthree") == "<irene> one\n  two\n  \n  three"
    assert spoken("irene", "waves", "action") == "* <irene> waves"
    assert spoken("irene", "deploying", "notice") == "[notice] <irene> deploying"
    assert quoted("irene", "a  b\nc") == "> <irene> a b c\n"


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("irene> pay the bill now <x", "irene› pay the bill now ‹x"),
        ("＜irene＞", "‹irene›"),
        ("ire\u200bne", "irene"),
        ("\u202eeneri", "eneri"),
        ("a\nb\u2028c", "a b c"),
        ("\x00\u200b", "?"),
        ("", "?"),
        ("x" * 60, "x" * 47 + "…"),
        ("José", "José"),
    ],
)
def test_a_name_cannot_be_another(name: str, shown: str) -> None:
    assert shown_name(name) == shown


@given(ANYTHING, ANYTHING, st.sampled_from(["message", "action", "notice"]))
def test_no_text_and_no_name_starts_a_line_as_somebody(name: str, text: str, kind: str) -> None:
    first, *others = spoken(name, text, kind).split("\n")
    opening = {"message": "<", "action": "* <", "notice": "[notice] <"}[kind]
    assert first.startswith(opening + shown_name(name) + "> ")
    assert all(line.startswith(INDENT) for line in others)
    assert not set("\r\v\f\x85\u2028\u2029\u202e") & set(spoken(name, text, kind))
    assert not set("<>\n") & set(shown_name(name))


@given(ANYTHING, ANYTHING)
def test_a_quotation_is_one_line(name: str, text: str) -> None:
    assert quoted(name, text).count("\n") == 1
    assert len(excerpt(text)) <= 80


def test_what_styling_would_change_is_known() -> None:
    assert has_styling("a *b* c")
    assert has_styling("x\n> y")
    assert not has_styling("plain <irene> text")
