"""Formatting codes, graphemes and the cutting of lines."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridged.connectors.irc.formatting import (
    Run,
    Style,
    encode,
    from_html,
    parse,
    plain,
    split,
    strip,
    to_html,
)
from bridged.connectors.irc.graphemes import graphemes

VECTORS = Path(__file__).parents[3] / "vectors" / "irc-formatting"
TEXT = st.text(st.characters(codec="utf-8"), max_size=400)


def vectors(name: str) -> dict[str, Any]:
    data: dict[str, Any] = json.loads((VECTORS / f"{name}.json").read_text("utf-8"))
    return data


def merged(runs: list[Run]) -> list[Run]:
    out: list[Run] = []
    for run in runs:
        if out and out[-1].style == run.style:
            out[-1] = Run(out[-1].text + run.text, run.style)
        else:
            out.append(run)
    return out


@pytest.mark.parametrize("case", vectors("irc-go-ircfmt")["strip"], ids=lambda case: repr(case["input"]))
def test_codes_are_stripped_as_the_vectors_say(case: dict[str, str]) -> None:
    assert strip(case["input"]) == case["plain"]


@pytest.mark.parametrize("case", vectors("appservice-irc-formatting")["html_to_irc"])
def test_html_becomes_the_runs_of_the_vectors(case: dict[str, str]) -> None:
    assert merged(from_html(case["html"])) == merged(parse(case["irc"]))
    assert merged(parse(encode(from_html(case["html"])))) == merged(parse(case["irc"]))


@pytest.mark.parametrize("case", vectors("appservice-irc-formatting")["irc_to_html"])
def test_codes_become_the_html_of_the_vectors(case: dict[str, str]) -> None:
    assert to_html(parse(case["irc"])) == case["html"]


def test_a_zero_width_space_is_kept() -> None:
    for text in vectors("appservice-irc-formatting")["strip_keeps_zwsp"]:
        assert strip(text) == text


def test_html_typed_on_irc_stays_text() -> None:
    assert to_html(parse("\x02<b>&\x0f <script>")) == "<b>&lt;b&gt;&amp;</b> &lt;script&gt;"
    assert to_html(parse("<b>plain</b>")) is None


def test_a_comma_behind_a_colour_is_no_background() -> None:
    runs = [Run(",5", Style(colour=4))]
    assert strip(encode(runs)) == ",5"


def test_script_and_style_are_not_text() -> None:
    assert strip(encode(from_html("a<script>alert(1)</script><style>x</style>b"))) == "ab"


@pytest.mark.parametrize(
    ("text", "clusters"),
    [
        ("e\u0301a", ["e\u0301", "a"]),
        ("👩\u200d👩\u200d👧x", ["👩\u200d👩\u200d👧", "x"]),
        ("🇳🇴🇸🇪", ["🇳🇴", "🇸🇪"]),
        ("👍🏽👍", ["👍🏽", "👍"]),
        ("각\u11a8", ["각\u11a8"]),
        ("\u1112\u1161\u11ab글", ["\u1112\u1161\u11ab", "글"]),
        ("❤️ok", ["❤️", "o", "k"]),
        ("", []),
    ],
)
def test_what_a_reader_takes_for_one_character_is_one(text: str, clusters: list[str]) -> None:
    assert list(graphemes(text)) == clusters


@given(TEXT)
def test_graphemes_joined_are_the_text(text: str) -> None:
    assert "".join(graphemes(text)) == text


@given(st.binary(max_size=200))
def test_any_text_parses_and_what_is_encoded_parses_back(raw: bytes) -> None:
    runs = parse(raw.decode("utf-8", "replace"))
    assert merged(parse(encode(runs))) == merged(runs)


STYLES = st.builds(Style, st.booleans(), st.booleans(), colour=st.none() | st.integers(0, 15))
RUNS = st.lists(st.builds(Run, TEXT.map(plain).map(lambda text: text.replace("\n", " ")), STYLES), max_size=5)


@given(RUNS, st.integers(40, 470))
def test_lines_fit_their_bytes_and_lose_nothing_but_blanks(runs: list[Run], bytes_max: int) -> None:
    lines = split(runs, bytes_max)
    assert all(0 < len(line.encode()) <= bytes_max for line in lines)
    whole = "".join(run.text for run in runs)
    assert "".join("".join(map(strip, lines)).split()) == "".join(strip(whole).split())
    clusters = {c for run in runs for c in graphemes(run.text) if len(c.encode()) <= bytes_max - 12}
    text = "".join(strip(line) for line in lines)
    assert all(cluster in text for cluster in clusters if cluster.strip() and not set(cluster) & set(" \t"))


def test_styles_go_on_in_the_next_line() -> None:
    lines = split([Run("x" * 30, Style(bold=True))], 20)
    assert lines == ["\x02" + "x" * 19, "\x02" + "x" * 11]


def test_a_line_ends_at_a_word_where_that_wastes_little() -> None:
    assert split([Run("alpha beta gamma delta")], 17) == ["alpha beta gamma", "delta"]
