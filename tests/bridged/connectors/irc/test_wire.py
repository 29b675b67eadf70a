"""The wire room: the community's vectors, and properties that hold for any bytes and any text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from bridged.connectors.irc.wire import IrcLine, LineBuffer, LineFault, Source, unescape

VECTORS = Path(__file__).parents[3] / "vectors" / "irc-parser-tests"


def vectors(name: str) -> list[dict[str, Any]]:
    tests: list[dict[str, Any]] = yaml.safe_load((VECTORS / f"{name}.yaml").read_text("utf-8"))["tests"]
    return tests


@pytest.mark.parametrize("case", vectors("msg-split"), ids=lambda case: case["input"][:40])
def test_lines_split_as_the_vectors_say(case: dict[str, Any]) -> None:
    line = IrcLine.decode(case["input"].encode())
    atoms = case["atoms"]
    assert line.command == atoms["verb"]
    assert list(line.params) == atoms.get("params", [])
    assert line.source == atoms.get("source")
    assert line.tags == atoms.get("tags", {})


@pytest.mark.parametrize("case", vectors("msg-join"), ids=lambda case: case["desc"][:40])
def test_lines_join_as_the_vectors_say(case: dict[str, Any]) -> None:
    atoms = case["atoms"]
    line = IrcLine(
        atoms["verb"], atoms.get("params", []), source=atoms.get("source"), tags=atoms.get("tags", {})
    )
    assert line.encode().decode().removesuffix("\r\n") in case["matches"]


@pytest.mark.parametrize("case", vectors("userhost-split"), ids=lambda case: case["source"])
def test_sources_split_as_the_vectors_say(case: dict[str, Any]) -> None:
    source = Source.parse(case["source"])
    atoms = case["atoms"]
    assert (source.nick, source.user, source.host) == (atoms["nick"], atoms.get("user"), atoms.get("host"))
    assert str(source) == case["source"]


def test_tag_escapes_follow_the_vectors() -> None:
    import json

    data = json.loads((VECTORS.parent / "irc-formatting" / "irc-go-tag-escapes.json").read_text("utf-8"))
    for group, cases in data.items():
        if isinstance(cases, list):
            for case in cases:
                assert unescape(case["wire"]) == case["value"], group
                if "unescape_only" not in group and case["value"]:
                    written = IrcLine("X", tags={"t": case["value"]}).encode()
                    assert written == b"@t=" + case["wire"].encode() + b" X\r\n"


@pytest.mark.parametrize("character", ["\r", "\n", "\0"])
def test_no_parameter_or_source_may_hold_what_ends_a_line(character: str) -> None:
    with pytest.raises(LineFault):
        IrcLine("PRIVMSG", ("#ops", f"hi{character}QUIT :gone"))
    with pytest.raises(LineFault):
        IrcLine("PRIVMSG", (f"#o{character}ps", "hi"))
    with pytest.raises(LineFault):
        IrcLine("PRIVMSG", ("#ops", "hi"), source=f"a{character}b")
    with pytest.raises(LineFault):
        IrcLine(f"PRIVMSG{character}", ("#ops", "hi"))


@pytest.mark.parametrize("params", [("#a b", "x"), ("", "x"), (":a", "x"), ("a",) * 16])
def test_parameters_that_would_be_read_differently_are_refused(params: tuple[str, ...]) -> None:
    with pytest.raises(LineFault):
        IrcLine("PRIVMSG", params)


def test_a_line_too_long_to_send_is_refused_and_not_cut() -> None:
    assert len(IrcLine("PRIVMSG", ("#a", "x" * 498)).encode()) == 512
    with pytest.raises(LineFault):
        IrcLine("PRIVMSG", ("#a", "x" * 499)).encode()
    with pytest.raises(LineFault):
        IrcLine("PRIVMSG", ("#a", "x"), tags={"+t": "y" * 4096}).encode()


def test_a_tag_value_may_hold_line_ends_because_they_are_escaped() -> None:
    assert IrcLine("X", tags={"t": "a\r\nb"}).encode() == b"@t=a\\r\\nb X\r\n"


def test_bytes_that_are_not_utf8_hurt_only_themselves() -> None:
    raw = "PRIVMSG #a :aé".encode() + b"\xe9 b"
    assert IrcLine.decode(raw)[1] == "aé\ufffd b"
    assert IrcLine.decode(b"PRIVMSG #a :caf\xe9", fallback="cp1252")[1] == "café"


def test_lines_come_out_however_the_bytes_are_cut() -> None:
    wire = b"PING :a\r\nPING :b\n\r\nPING :c\r\nPIN"
    buffer = LineBuffer()
    lines = [line for byte in wire for line in buffer.receive(bytes([byte]))]
    assert lines == [b"PING :a", b"PING :b", b"PING :c"]


def test_an_endless_line_is_a_fault_and_not_memory() -> None:
    buffer = LineBuffer()
    with pytest.raises(LineFault):
        for _ in range(1000):
            buffer.receive(b"x" * 100)


@given(st.binary(max_size=600))
def test_any_bytes_are_a_line_or_a_fault(raw: bytes) -> None:
    for line in LineBuffer().receive(raw + b"\n"):
        try:
            decoded = IrcLine.decode(line)
        except LineFault:
            continue
        assert IrcLine.decode(decoded.body().encode()) == attrs_without_tags(decoded)


def attrs_without_tags(line: IrcLine) -> IrcLine:
    return IrcLine(line.command, line.params, source=line.source)


TEXT = st.text(st.characters(codec="utf-8"), max_size=300)


@given(TEXT, st.dictionaries(st.sampled_from(["+a", "msgid", "x.y/z"]), TEXT))
def test_any_text_is_written_as_exactly_one_line_or_refused(text: str, tags: dict[str, str]) -> None:
    try:
        wire = IrcLine("PRIVMSG", ("#ops", text), tags=tags).encode()
    except LineFault:
        return
    assert wire.endswith(b"\r\n")
    assert not set(wire[:-2]) & set(b"\r\n\0")
    back = IrcLine.decode(wire[:-2])
    assert back[1] == text and back.tags == tags
