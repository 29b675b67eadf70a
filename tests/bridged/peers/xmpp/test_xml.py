"""The strict parser: pieces of any size make the same tree, and what a stream may not hold is refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridged.peers.xmpp import ns
from bridged.peers.xmpp.xml import Closed, Element, Opened, StreamParser, XmlRefused, el, serialize

HEADER = f"<stream:stream xmlns='{ns.CLIENT}' xmlns:stream='{ns.STREAM}'>"
TEXT = st.text(st.characters(exclude_categories=("Cs", "Cc", "Cn")), max_size=20)
NAME = st.sampled_from(["message", "body", "x", "item"])
SPACE = st.sampled_from([ns.CLIENT, ns.MUC, ns.SID, "urn:x:1"])
TREE = st.recursive(
    st.builds(lambda s, n, t: el(s, n, {"a": t}, *([t] if t else [])), SPACE, NAME, TEXT),
    lambda inner: st.builds(
        lambda s, n, kids: el(s, n, None, *kids), SPACE, NAME, st.lists(inner, max_size=3)
    ),
    max_leaves=10,
)


def shape(e: Element) -> tuple[object, ...]:
    return (e.space, e.name, tuple(e.attributes.items()), e.text, tuple(shape(c) for c in e.elements()))


@given(TREE, st.integers(1, 40))
def test_what_is_written_is_read_in_pieces_of_any_size(tree: Element, size: int) -> None:
    data = (HEADER + serialize(tree) + "</stream:stream>").encode()
    parser = StreamParser(1 << 20)
    events = [event for i in range(0, len(data), size) for event in parser.feed(data[i : i + size])]
    assert isinstance(events[0], Opened)
    assert isinstance(events[-1], Closed)
    found = events[1]
    assert isinstance(found, Element)
    assert shape(found) == shape(tree)


@given(st.binary(max_size=300), st.booleans())
def test_any_bytes_are_events_or_a_refusal(data: bytes, inside: bool) -> None:
    parser = StreamParser(200)
    try:
        if inside:
            parser.feed(HEADER.encode())
        parser.feed(data)
    except XmlRefused as exc:
        assert exc.condition in ("not-well-formed", "policy-violation", "invalid-namespace")


@pytest.mark.parametrize(
    ("text", "condition"),
    [
        ("<!DOCTYPE a [<!ENTITY b 'c'>]>", "not-well-formed"),
        (HEADER + "<a>&b;</a>", "not-well-formed"),
        (HEADER + "<a><!-- b --></a>", "not-well-formed"),
        (HEADER + "<?php?>", "not-well-formed"),
        (HEADER + "<a b:c='d'/>", "not-well-formed"),
        (HEADER + "<a><b></a>", "not-well-formed"),
        (HEADER + "<a>" * 100, "policy-violation"),
        (HEADER + "<a b='" + "c" * 2000 + "'", "policy-violation"),
        (HEADER + "<a>" + "c" * 2000, "policy-violation"),
        ("<stream/>", "invalid-namespace"),
        ("<html/>", "not-well-formed"),
        ("GET / HTTP/1.1", "not-well-formed"),
    ],
)
def test_what_a_stream_may_not_hold_is_refused(text: str, condition: str) -> None:
    parser = StreamParser(1000)
    with pytest.raises(XmlRefused) as caught:
        for byte in text.encode():
            parser.feed(bytes([byte]))
    assert caught.value.condition == condition


def test_many_small_children_are_no_large_one() -> None:
    parser = StreamParser(1000)
    parser.feed(HEADER.encode())
    assert len(parser.feed(b"<a/>" * 10_000)) == 10_000
