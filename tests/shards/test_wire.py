"""The frames: golden bytes, round trips, limits, and any bytes at all."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shards import wire
from shards.errors import LocalProtocolError, RemoteProtocolError
from shards.wire.frames import FRAMES

SIGNATURE = bytes(range(64))

GOLDEN: list[tuple[wire.Frame, str]] = [
    (
        wire.Publish(7, "bridge/irc/a", 1, 2, b"BATCH"),
        "01 00 0000000000000007 0c 6272696467652f6972632f61 0000000000000001 0000000000000002 4241544348",
    ),
    (
        wire.Ack((wire.Acked(7, 3, 9, True),)),
        "02 00 0001 0000000000000007 0000000000000003 0000000000000009 01",
    ),
    (wire.Nak(7, wire.Code.NOT_GRANTED, wire.NO_RETRY, "no"), "03 00 0000000000000007 01 ffffffff 0002 6e6f"),
    (
        wire.Subscribe(5, "g", wire.Start.EARLIEST, 0, wire.NEVER, 256, 65536, ("a",)),
        "04 00 0000000000000005 01 67 00 0000000000000000 ffffffffffffffff 00000100 00010000 0001 01 61",
    ),
    (
        wire.Subscribe(5, "", wire.Start.POSITION, 4, 8, 1, 2, None),
        "04 00 0000000000000005 00 02 0000000000000004 0000000000000008 00000001 00000002 ffff",
    ),
    (wire.Subscribed(5, 6, 7), "05 00 0000000000000005 0000000000000006 0000000000000007"),
    (wire.Deliver(5, b"RUNS"), "06 00 0000000000000005 52554e53"),
    (
        wire.Done(5, ((1, 2), (9, 1))),
        "07 00 0000000000000005 0002 0000000000000001 00000002 0000000000000009 00000001",
    ),
    (
        wire.Release(5, 250, "later", ((1, 1),)),
        "08 00 0000000000000005 000000fa 0005 6c61746572 0001 0000000000000001 00000001",
    ),
    (
        wire.Dead(5, 9, "too_large", "no"),
        "09 00 0000000000000005 0000000000000009 09 746f6f5f6c61726765 0002 6e6f",
    ),
    (wire.Credit(5, 10, 1000), "0a 00 0000000000000005 0000000a 000003e8"),
    (wire.Request(6, 1500, "t", "ab", b"?"), "0b 00 0000000000000006 000005dc 01 74 02 6162 3f"),
    (
        wire.Call(6, 1500, "t", "p", "x", "ab", b"?"),
        "0c 00 0000000000000006 000005dc 01 74 01 70 01 78 02 6162 3f",
    ),
    (
        wire.Reply(6, "timeout", 5, "late", b""),
        "0d 00 0000000000000006 07 74696d656f7574 00000005 0004 6c617465",
    ),
    (wire.Respond(6, 64, ("t",)), "0e 00 0000000000000006 0040 0001 01 74"),
    (wire.Ephemeral("t", 3, b"typing"), "0f 00 01 74 0000000000000003 747970696e67"),
    (
        wire.Seek(6, "g", 0, 5, ("t",)),
        "10 00 0000000000000006 01 67 0000000000000000 0000000000000005 0001 01 74",
    ),
    (wire.Ping(6), "11 00 0000000000000006"),
    (wire.Pong(6, 7), "12 00 0000000000000006 0000000000000007"),
    (wire.Bye(wire.Code.REVOKED, "gone"), "13 00 09 0004 676f6e65"),
    (wire.Enroll(b"s" * 32, b"l" * 32), "14 00 " + "73" * 32 + "6c" * 32),
    (wire.Welcome("p", "x", 7), "15 00 01 70 01 78 0000000000000007"),
    (wire.Close(5), "16 00 0000000000000005"),
    (wire.Ended(5, 9), "17 00 0000000000000005 0000000000000009"),
]

GOLDEN_BATCH = wire.encode_batch((1, 2), (b"one", b"three"), SIGNATURE)


@pytest.mark.parametrize(("frame", "golden"), GOLDEN, ids=lambda value: type(value).__name__)
def test_the_bytes_of_each_frame_are_pinned(frame: wire.Frame, golden: str) -> None:
    plain = bytes.fromhex(golden.replace(" ", ""))
    assert wire.encode(frame) == [plain]
    assert wire.Assembly().feed(plain) == frame


def test_every_frame_has_a_golden() -> None:
    assert {type(frame) for frame, _ in GOLDEN} == set(FRAMES)


def test_the_bytes_of_a_batch_and_of_the_runs_are_pinned() -> None:
    assert GOLDEN_BATCH.hex() == (
        "0002000000030000000000000001000000050000000000000002" + b"onethree".hex() + SIGNATURE.hex()
    )
    whole = wire.encode_whole("t", "p", 4, 5, 6, GOLDEN_BATCH)
    assert whole.hex() == (
        "000174017000000000000000040000000000000005000000000000000600000062" + GOLDEN_BATCH.hex()
    )
    item = wire.Item(1, 3, 2, b"three", (b"h" * 32,))
    cut = wire.encode_cut(
        wire.Run("t", "p", 4, 5, 6, n=2, root=b"r" * 32, signature=SIGNATURE, items=(item,))
    )
    assert cut.hex() == (
        "01" "0174" "0170" "0000000000000004" "0000000000000005" "0000000000000006"
        "0002" + "72" * 32 + SIGNATURE.hex() + "0001"
        "0001" "0003" "00000005" "0000000000000002" "01" + "68" * 32 + b"three".hex()
    )  # fmt: skip
    passing = wire.encode_ephemeral("t", "p", 6, 9, b"!")
    assert passing.hex() == "0201740170" + "00" * 16 + "000000000000000600000000000000090000000121"
    (form, first), (_, second), (_, third) = wire.decode_runs(whole + cut + passing)
    assert form is wire.Form.WHOLE and first.body == GOLDEN_BATCH
    assert second.items == (item,) and second.proof(item).root == b"r" * 32
    assert third.items[0].payload == b"!" and third.position == -1


def test_the_documentation_shows_the_layouts_that_the_code_has() -> None:
    page = (Path(__file__).parents[2] / "docs" / "fabric.md").read_text()
    found = re.findall(r"^\| (\d+) `(\w+)` \| `([^`]*)`", page, re.MULTILINE)
    rows = {(int(kind), name): layout for kind, name, layout in found}
    assert rows == {
        (frame.TYPE, frame.__name__.upper()): " · ".join(
            f"{codec.layout} {name.rstrip('_')}" for name, codec in wire.layout_of(frame)
        )
        for frame in FRAMES
    }
    for code in wire.Code:
        assert f"| {code.value} | `{code.word}` |" in page


number = st.integers(0, 2**64 - 1)
short = st.text(max_size=40)
topic = st.from_regex(r"[A-Za-z0-9._:-]{1,8}(/[A-Za-z0-9._:-]{1,8}){0,3}", fullmatch=True)
BY_LAYOUT: dict[str, st.SearchStrategy[Any]] = {
    "u8": st.integers(0, 255),
    "u16": st.integers(0, 2**16 - 1),
    "u32": st.integers(0, 2**32 - 1),
    "u64": number,
    "text8": short,
    "text16": st.text(max_size=300),
    "topic": topic,
    "topics": st.none() | st.lists(topic, max_size=5).map(tuple),
    "spans": st.lists(st.tuples(number, st.integers(0, 2**32 - 1)), max_size=5).map(tuple),
    "acks": st.lists(st.builds(wire.Acked, number, number, number, st.booleans()), max_size=5).map(tuple),
    "rest": st.binary(max_size=200),
    "key32": st.binary(min_size=32, max_size=32),
}
frames = st.one_of(
    [st.builds(frame, *[BY_LAYOUT[codec.layout] for _, codec in wire.layout_of(frame)]) for frame in FRAMES]
)


@given(frames)
def test_any_frame_comes_back_as_it_went(frame: wire.Frame) -> None:
    assembly = wire.Assembly()
    assert [assembly.feed(plain) for plain in wire.encode(frame)][-1] == frame


@settings(max_examples=300)
@given(
    st.binary(max_size=120)
    | frames.flatmap(lambda f: st.binary(max_size=4).map(lambda b: wire.encode(f)[0] + b))
)
def test_any_bytes_give_a_frame_or_a_named_error(plain: bytes) -> None:
    try:
        frame = wire.Assembly().feed(plain)
    except RemoteProtocolError:
        return
    assert frame is None or wire.encode(frame) == [plain]


@given(st.binary(max_size=300))
def test_any_bytes_give_runs_or_a_named_error(runs: bytes) -> None:
    for parse in (wire.decode_runs, wire.decode_batch, wire.batch_keys):
        try:
            parse(runs)
        except RemoteProtocolError:
            continue


@given(st.lists(st.tuples(number, st.binary(max_size=50)), min_size=1, max_size=64))
def test_a_batch_comes_back_as_it_went(items: list[tuple[int, bytes]]) -> None:
    keys, payloads = [key for key, _ in items], [payload for _, payload in items]
    body = wire.encode_batch(keys, payloads, SIGNATURE)
    assert wire.decode_batch(body) == wire.Batch(tuple(keys), tuple(payloads), SIGNATURE)
    assert wire.batch_keys(body) == tuple(keys)
    with pytest.raises(RemoteProtocolError):
        wire.decode_batch(body + b"!")


def test_a_large_record_is_a_chain_of_at_most_seventeen_frames() -> None:
    body = wire.encode_batch((1,), (b"x" * 1_048_576,), SIGNATURE)
    frame = wire.Publish(1, "t" * 255, 1, 1, body)
    plains = wire.encode(frame)
    assert len(plains) == wire.CHAIN_FRAMES_MAX
    assert all(len(plain) <= wire.NOISE_PLAINTEXT_BYTES_MAX for plain in plains)
    assembly = wire.Assembly()
    assert [assembly.feed(plain) for plain in plains[:-1]] == [None] * 16
    assert assembly.feed(plains[-1]) == frame
    run = wire.encode_whole("t" * 255, "p" * 255, 1, 1, 1, body)
    assert len(wire.encode(wire.Deliver(1, run))) == wire.CHAIN_FRAMES_MAX


def test_what_breaks_a_chain_is_refused() -> None:
    more = wire.encode(wire.Publish(1, "t", 1, 1, b"x" * 70_000))[0]
    for second in (b"\x02\x00", b"\x11\x00" + b"\0" * 8, b"\x01\x02"):
        assembly = wire.Assembly()
        assert assembly.feed(more) is None
        with pytest.raises(RemoteProtocolError):
            assembly.feed(second)
    assembly = wire.Assembly()
    with pytest.raises(RemoteProtocolError, match="too long"):
        for _ in range(18):
            assembly.feed(more)
    assembly = wire.Assembly()
    with pytest.raises(RemoteProtocolError, match="too long"):
        for _ in range(18):
            assembly.feed(b"\x01\x01")
    with pytest.raises(RemoteProtocolError, match="do not chain"):
        wire.Assembly().feed(b"\x11\x01" + b"\0" * 8)


def test_our_own_mistakes_are_ours() -> None:
    with pytest.raises(LocalProtocolError):
        wire.encode(wire.Ephemeral("t", 1, b"x" * 70_000))
    with pytest.raises(LocalProtocolError):
        wire.encode(wire.Ping(2**64))
    with pytest.raises(LocalProtocolError):
        wire.encode_batch((), (), SIGNATURE)
    with pytest.raises(LocalProtocolError):
        wire.encode_batch((1,), (b"x" * 1_048_577,), SIGNATURE)
    with pytest.raises(LocalProtocolError):
        wire.encode_batch((1,) * 65, (b"",) * 65, SIGNATURE)


def test_spans_merge_neighbours() -> None:
    assert wire.spans_of([1, 2, 3, 7, 9, 10]) == ((1, 3), (7, 1), (9, 2))
