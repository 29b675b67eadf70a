"""JSON that every reader understands alike, and the one text of it that is signed.          RFC 8785.  Pure."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import rfc8785

from bridged.errors import EnvelopeError

# Specification constants (wire contract 1; RFC 7493, section 2.2).
SAFE_INTEGER_MAX = 2**53 - 1
"""Beyond it a number is not the same in every JSON reader, so it travels as a string."""

# Ours.
DEPTH_MAX = 200
"""Arrays and objects within each other; real envelopes have six."""


def portable(value: Any, path: str = "payload") -> Any:
    """The value as every JSON reader understands it: integers beyond 2**53 - 1 become strings, tuples lists.

    A value that needs no change is returned itself.

    Raises:
        EnvelopeError: `invalid_field` with the path; NaN, an infinity, a key that is no text, half a
            character, or a type that JSON has not.  (msgspec alone writes NaN as null, the key 1 as "1".)
    """
    return value if _is_portable(value, 0) else _made_portable(value, path, 0)


def canonical_json(value: Any) -> bytes:
    """RFC 8785: the same bytes from every writer.

    Raises:
        EnvelopeError: `invalid_field`; an integer that no double writes so.
    """
    try:
        return rfc8785.dumps(value)
    except rfc8785.IntegerDomainError:
        return rfc8785.dumps(_as_doubles(value))


def _is_portable(value: Any, depth: int) -> bool:
    """The quick half of `portable`: True only where the other half would change nothing."""
    if depth > DEPTH_MAX:
        return False
    inner: Iterable[Any]
    if type(value) is dict:
        for key in value:
            if type(key) is not str or not (key.isascii() or _is_text(key)):
                return False
        inner = value.values()
    elif type(value) is list:
        inner = value
    else:
        inner = (value,)
    for one in inner:
        kind = type(one)
        if kind is str:
            if not (one.isascii() or _is_text(one)):
                return False
        elif kind is int:
            if not -SAFE_INTEGER_MAX <= one <= SAFE_INTEGER_MAX:
                return False
        elif kind is dict or kind is list:
            if not _is_portable(one, depth + 1):
                return False
        elif not (one is None or kind is bool or (kind is float and math.isfinite(one))):
            return False
    return True


def _made_portable(value: Any, path: str, depth: int) -> Any:
    """The slow half: change what can be changed, name what cannot."""
    if depth > DEPTH_MAX:
        raise EnvelopeError("invalid_field", f"{path} is nested too deeply", field=path)
    if isinstance(value, Mapping):
        done = {}
        for key, inner in value.items():
            if type(key) is not str or not _is_text(key):
                raise EnvelopeError("invalid_field", f"{path} has a key that is no text", field=path)
            done[key] = _made_portable(inner, f"{path}.{key}", depth + 1)
        return done
    if isinstance(value, list | tuple):
        return [_made_portable(inner, f"{path}[{n}]", depth + 1) for n, inner in enumerate(value)]
    if type(value) is int:
        return value if -SAFE_INTEGER_MAX <= value <= SAFE_INTEGER_MAX else str(value)
    if _is_portable(value, 0):
        return value
    what = "half a character" if type(value) is str else f"a {type(value).__name__} that JSON has not"
    raise EnvelopeError("invalid_field", f"{path} holds {what}", field=path)


def _as_doubles(value: Any) -> Any:
    """Large integers that are a double's own text; RFC 8785 knows doubles alone and writes those without a dot."""
    if isinstance(value, dict):
        return {key: _as_doubles(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_as_doubles(inner) for inner in value]
    if type(value) is not int or -SAFE_INTEGER_MAX <= value <= SAFE_INTEGER_MAX:
        return value
    if value.bit_length() < 71 and rfc8785.dumps(float(value)) == str(value).encode():
        return float(value)
    raise EnvelopeError("invalid_field", "a number beyond 2**53 - 1 must travel as a string", field="payload")


def _is_text(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:  # half of a surrogate pair
        return False
    return True
