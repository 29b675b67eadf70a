"""JIDs against the community's own lists."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridged.connectors.xmpp.jid import JidError, bare_jid, parse_jid

VECTORS = json.loads((Path(__file__).parents[3] / "vectors/xmpp/jids.json").read_text())


@pytest.mark.parametrize("vector", VECTORS["valid"], ids=lambda vector: vector["jid"])
def test_a_valid_jid_splits_as_others_split_it(vector: dict[str, str]) -> None:
    jid = parse_jid(vector["jid"])
    assert (jid.local, jid.domain, jid.resource) == (vector["local"], vector["domain"], vector["resource"])


@pytest.mark.parametrize("text", VECTORS["invalid"])
def test_an_invalid_jid_is_refused(text: str) -> None:
    with pytest.raises(JidError):
        parse_jid(text)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Ops@MUC.Example.org", "ops@muc.example.org"),
        ("ＯＰＳ@example.org", "ops@example.org"),
        ("a@xn--bcher-kva.example", "a@bücher.example"),
        ("a@example.org.", "a@example.org"),
        ("a@example.org/One", "a@example.org/One"),
    ],
)
def test_what_servers_call_the_same_is_the_same(one: str, other: str) -> None:
    assert parse_jid(one) == parse_jid(other)


def test_a_resource_keeps_its_case_and_the_bare_jid_has_none() -> None:
    jid = parse_jid("Alice@Example.org/Desk Top")
    assert str(jid) == "alice@example.org/Desk Top"
    assert str(jid.bare) == bare_jid("alice@EXAMPLE.org/other") == "alice@example.org"


@pytest.mark.parametrize(
    "part", ["a" * 1024 + "@example.org", "a@" + "b" * 64 + ".org", "a@b.org/" + "c" * 1024]
)
def test_a_part_that_is_too_long_is_refused(part: str) -> None:
    with pytest.raises(JidError):
        parse_jid(part)


@given(st.text(max_size=40))
def test_any_text_is_a_jid_in_normal_form_or_refused(text: str) -> None:
    try:
        jid = parse_jid(text)
    except JidError:
        return
    assert parse_jid(str(jid)) == jid
