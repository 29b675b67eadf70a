"""Whatever a client sends is a frame or a goodbye with a code, never anything else."""

from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st

from bridged.gateway.frames import (
    CLOSE_BAD_FRAME,
    CLOSE_NO_TOKEN,
    ID_CHARACTERS_MAX,
    REASON_CHARACTERS_MAX,
    Goodbye,
    lagging,
    read_frame,
    read_hello,
    read_id,
)

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
FRAMES = st.fixed_dictionaries(
    {}, optional={"op": st.just("hello") | VALUES, "token": VALUES, "after": VALUES, "id": VALUES}
)


@given(st.text() | st.binary() | VALUES.map(json.dumps))
def test_any_message_is_an_object_or_a_goodbye(message: str | bytes) -> None:
    try:
        assert isinstance(read_frame(message), dict)
    except Goodbye as goodbye:
        assert goodbye.code == CLOSE_BAD_FRAME and 0 < len(goodbye.reason.encode()) <= REASON_CHARACTERS_MAX


@given(FRAMES)
def test_any_object_is_a_hello_or_a_goodbye(frame: dict[str, object]) -> None:
    try:
        token, after = read_hello(frame)
        assert token and token == frame["token"] and (after is None or after >= -1)
    except Goodbye as goodbye:
        assert goodbye.code in (CLOSE_BAD_FRAME, CLOSE_NO_TOKEN)
    try:
        assert len(str(read_id(frame))) <= ID_CHARACTERS_MAX
    except Goodbye as goodbye:
        assert goodbye.code == CLOSE_BAD_FRAME


def test_who_lags_is_told_before_the_end() -> None:
    assert lagging().last == {"event": "lagging"} and lagging().code == 4408
