"""The fake's own line parser, on the community's vectors and on any bytes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from bridged.peers.irc.line import cut, escape, format_body, parse, parse_text, unescape
from bridged.peers.irc.state import matches_mask

VECTORS = Path(__file__).parents[3] / "vectors" / "irc-parser-tests"


def vectors_of(name: str) -> list[dict[str, Any]]:
    loaded: list[dict[str, Any]] = yaml.safe_load((VECTORS / f"{name}.yaml").read_text("utf-8"))["tests"]
    return loaded


@pytest.mark.parametrize("test", vectors_of("msg-split"), ids=lambda test: test["input"][:40])
def test_a_line_is_split_as_the_community_does(test: dict[str, Any]) -> None:
    line = parse_text(test["input"])
    assert line is not None
    atoms = test["atoms"]
    assert line.command == atoms["verb"].upper()
    assert list(line.params) == atoms.get("params", [])
    assert line.source == atoms.get("source")
    assert dict(line.tags) == {k: "" if v is True else v for k, v in atoms.get("tags", {}).items()}


@pytest.mark.parametrize(
    ("mask", "text", "fits"),
    [
        ("*!*@127.0.0.1", "a!b@127.0.0.1", True),
        ("A!*@*", "a!b@c", True),
        ("a?c", "abc", True),
        ("a?c", "ac", False),
        ("*a*b*", "xxaxxbxx", True),
        ("*a*b", "xxaxxbxx", False),
        ("*" * 50 + "z", "y" * 5000, False),
        ("", "", True),
    ],
)
def test_masks(mask: str, text: str, fits: bool) -> None:
    assert matches_mask(mask, text, str.lower) is fits


@given(st.binary(max_size=600))
def test_any_bytes_are_a_line_or_none(data: bytes) -> None:
    line = parse(data.replace(b"\n", b"").replace(b"\r", b""))
    if line is not None:
        assert line.command
        assert len(line.params) <= 15


@given(st.text(max_size=50))
def test_a_tag_value_survives_its_escaping(value: str) -> None:
    assert unescape(escape(value)) == value


@given(st.text(st.characters(exclude_characters="\r\n\0", exclude_categories=("Cs",)), max_size=800))
def test_a_line_is_cut_at_510_bytes(text: str) -> None:
    data = cut(format_body("a!b@c", "PRIVMSG", ("#c", text)))
    whole = f":a!b@c PRIVMSG #c :{text}".encode()
    assert data == whole[:510]
