"""A value that refuses to be shown.  Pure."""

from __future__ import annotations

import hmac
from typing import NoReturn


class Secret:
    """Bytes that never appear in a repr, a format, a pickle or a copy; `reveal()` is the one way out."""

    __slots__ = ("__value",)

    def __init__(self, value: bytes) -> None:
        self.__value = bytes(value)

    def reveal(self) -> bytes:
        """The bytes themselves, for the one call that needs them."""
        return self.__value

    def reveal_text(self) -> str:
        """The bytes as UTF-8 text."""
        return self.__value.decode("utf-8")

    def __repr__(self) -> str:
        return "Secret(…)"

    __str__ = __repr__

    def __format__(self, spec: str) -> str:
        return repr(self)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Secret):
            return NotImplemented
        return hmac.compare_digest(self.__value, other.__value)

    __hash__ = None  # type: ignore[assignment]

    def __bool__(self) -> bool:
        return bool(self.__value)

    def _refuse(self, *_: object) -> NoReturn:
        raise TypeError("a Secret is not copied, pickled or serialised; call reveal() where it is used")

    __reduce__ = _refuse
    __reduce_ex__ = _refuse
    __copy__ = _refuse
    __deepcopy__ = _refuse
