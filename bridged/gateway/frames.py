"""The gateway's frames: what a client may send, and with which codes it is let go.          docs/gateway.md

Pure.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

# Specification constants (docs/gateway.md).
PATH = "/v1"
CLOSE_NORMAL = 1000
CLOSE_FAULT = 1011
CLOSE_BAD_FRAME = 4400
CLOSE_NO_TOKEN = 4401
CLOSE_LAGGING = 4408
CLOSE_AGAIN = 4503
OPS = ("send", "edit", "delete", "react", "typing", "read", "history", "conversations")
EVENTS = (
    "message",
    "edit",
    "delete",
    "reaction",
    "typing",
    "receipt",
    "membership",
    "status",
    "throttle",
    "connector",
)

# Ours.
FRAME_BYTES_MAX = 262_144
ID_CHARACTERS_MAX = 64
TOKEN_CHARACTERS_MAX = 256
REASON_CHARACTERS_MAX = 100


class Goodbye(Exception):
    """The connection ends, with this close code and reason; `last` is said before."""

    def __init__(self, code: int, reason: str, *, last: Mapping[str, Any] | None = None) -> None:
        super().__init__(reason)
        self.code = code
        self.reason = reason[:REASON_CHARACTERS_MAX]
        self.last = last


def bad_frame(reason: str) -> Goodbye:
    """The client sent what is no frame of ours."""
    return Goodbye(CLOSE_BAD_FRAME, reason)


def lagging() -> Goodbye:
    """The client does not take what it is sent."""
    return Goodbye(CLOSE_LAGGING, "lagging", last={"event": "lagging"})


def no_token() -> Goodbye:
    """Nobody has that token, or nobody has it any more."""
    return Goodbye(CLOSE_NO_TOKEN, "say hello with a valid token")


def read_frame(message: str | bytes) -> dict[str, Any]:
    """The object of a text frame.

    Raises:
        Goodbye: It is none.
    """
    if not isinstance(message, str):
        raise bad_frame("frames are JSON text")
    try:
        frame = msgspec.json.decode(message)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        raise bad_frame("that frame is no JSON") from None
    if not isinstance(frame, dict):
        raise bad_frame("a frame is a JSON object")
    return frame


def read_hello(frame: Mapping[str, Any]) -> tuple[str, int | None]:
    """(token, offset of the last event that the client has, or None).

    Raises:
        Goodbye: No hello, no token, or an offset that cannot be one.
    """
    token, after = frame.get("token"), frame.get("after")
    if frame.get("op") != "hello" or not isinstance(token, str) or not 0 < len(token) <= TOKEN_CHARACTERS_MAX:
        raise no_token()
    if after is not None and (not isinstance(after, int) or isinstance(after, bool) or after < -1):
        raise bad_frame("after is the offset of the last event you have, -1 for none")
    return token, after


def read_id(frame: Mapping[str, Any]) -> str | int:
    """The id by which the client knows the answer.

    Raises:
        Goodbye: It has none.
    """
    number = frame.get("id")
    if isinstance(number, bool) or not isinstance(number, str | int) or len(str(number)) > ID_CHARACTERS_MAX:
        raise bad_frame(f"every op carries an id of at most {ID_CHARACTERS_MAX} characters")
    return number
