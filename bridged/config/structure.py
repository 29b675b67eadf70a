"""Plain TOML values into the classes of the tables, every fault with its path.  Pure.

cattrs does the work and is kept strict: a text is no number, a list no text, and nothing is converted that somebody
may have meant otherwise.  No fault ever quotes a value: it may be a secret that stands in the wrong place.
"""

from __future__ import annotations

import types
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from importlib import import_module
from pathlib import Path
from typing import Any, TypeVar, Union, get_args, get_origin

import attrs
import cattrs
import cattrs.gen
from cattrs.errors import (
    BaseValidationError,
    ClassValidationError,
    ForbiddenExtraKeysError,
    IterableValidationError,
)

from bridged.config.tables import ConnectorSettings
from bridged.connectors import SERVICES

# Ours.
OF_OTHER_RELEASES = ("matrix", "telegram")
_SECRET_WORDS = ("password", "passwd", "passphrase", "secret", "token", "api_hash", "session", "private_key")
_SAYS: Mapping[type, str] = {str: "a text", int: "a whole number", float: "a number", bool: "true or false"}

T = TypeVar("T")
Fault = tuple[str, str]


def structure(value: object, kind: type[T], path: str) -> tuple[T | None, list[Fault]]:
    """The value as that class, or None and everything that is wrong with it."""
    try:
        return _converter.structure(value, kind), []
    except (BaseValidationError, ValueError, TypeError) as exc:
        return None, list(_faults(exc, path))


def structure_connector(value: object, path: str) -> tuple[ConnectorSettings | None, list[Fault]]:
    """A `[[connector]]` table as the settings of its service."""
    if not isinstance(value, Mapping):
        return None, [(path, "must be a table")]
    service = value.get("service")
    if service is None:
        return None, [(f"{path}.service", f"is required: one of {', '.join(SERVICES)}")]
    if service in OF_OTHER_RELEASES:
        return None, [
            (
                f"{path}.service",
                f"the connector for {service} is not in this release; it speaks {', '.join(SERVICES)}",
            )
        ]
    if service not in SERVICES:
        return None, [(f"{path}.service", f"is one of {', '.join(SERVICES)}")]
    kind: type[Any] = import_module(f"bridged.connectors.{service}.settings").Settings
    return structure(value, kind, path)


def _faults(exc: BaseException, path: str) -> Iterator[Fault]:
    if isinstance(exc, ClassValidationError):
        noted, bare = exc.group_exceptions()
        for inner, note in noted:
            yield from _faults(inner, f"{path}.{note.name}")
        for other in bare:
            yield from _faults(other, path)
    elif isinstance(exc, IterableValidationError):
        items, bare = exc.group_exceptions()
        for inner, place in items:
            yield from _faults(inner, f"{path}[{place.index}]")
        for other in bare:
            yield from _faults(other, path)
    elif isinstance(exc, ForbiddenExtraKeysError):
        known = sorted(_keys(exc.cl))
        for key in sorted(exc.extra_fields):
            yield f"{path}.{key}", unknown_key(key, known)
    elif isinstance(exc, KeyError):
        yield path, "is required"
    else:
        yield path, _say(exc)


def unknown_key(key: str, known: list[str]) -> str:
    """What to say about a key that the table has not."""
    if any(word in key.lower() for word in _SECRET_WORDS):
        return (
            "secrets are never values in this file: put it into the vault (`bridgectl vault put NAME`) and"
            ' name it with credential = "NAME"'
        )
    close = get_close_matches(key, known, n=1)
    return f"unknown key; did you mean {close[0]}?" if close else f"unknown key; known are {', '.join(known)}"


def _keys(kind: Any) -> list[str]:
    return [attribute.name for attribute in attrs.fields(kind)] if attrs.has(kind) else []


def _say(exc: BaseException) -> str:
    # attrs's own validators put what they refused into the arguments after the text
    return str(exc.args[0]) if exc.args else type(exc).__name__


def _strict(kind: type) -> Any:
    def hook(value: object, _: object) -> object:
        if type(value) is kind:
            return value
        if kind is float and type(value) is int:
            return float(value)
        raise ValueError(f"must be {_SAYS[kind]}")

    return hook


def _path(value: object, _: object) -> Path:
    if type(value) is not str or not value or "\0" in value:
        raise ValueError("must be a path")
    return Path(value)


def _literal(value: object, kind: Any) -> object:
    words = get_args(kind)
    if type(value) is str and value in words:
        return value
    raise ValueError(f"is one of {', '.join(map(str, words))}")


def _is_literal(kind: Any) -> bool:
    return str(get_origin(kind)) == "typing.Literal"


def _is_choice(kind: Any) -> bool:
    """A plain type or a table: `bool | TlsFiles`, `str | Via`."""
    if get_origin(kind) not in (Union, types.UnionType):
        return False
    classes = [one for one in get_args(kind) if attrs.has(one)]
    return len(classes) == 1 and any(one in (bool, str) for one in get_args(kind))


def _choice(value: object, kind: Any) -> object:
    members = get_args(kind)
    if value is None and type(None) in members:
        return None
    if isinstance(value, Mapping):
        (table,) = (one for one in members if attrs.has(one))
        return _converter.structure(value, table)
    plain = next(one for one in members if one in (bool, str))
    if type(value) is plain:
        return value
    raise ValueError(f"must be {_SAYS[plain]} or a table")


def _is_tuple(kind: Any) -> bool:
    return get_origin(kind) is tuple


def _tuple(value: object, kind: Any) -> object:
    if not isinstance(value, list):
        raise ValueError("must be a list")
    inner: Any = get_args(kind)[0]
    items: Any = list[inner]
    return tuple(_converter.structure(value, items))


def _table(kind: Any) -> Any:
    """A table into its class; each attribute's validator runs with that attribute's path, not the table's."""
    attrs.resolve_types(kind)
    overrides = {
        attribute.name: cattrs.override(struct_hook=_checked(attribute)) for attribute in attrs.fields(kind)
    }
    build = cattrs.gen.make_dict_structure_fn(
        kind,
        _converter,
        _cattrs_forbid_extra_keys=True,
        _cattrs_detailed_validation=True,
        **overrides,  # type: ignore[arg-type]  # the names are attributes, never its own keywords
    )

    def hook(value: object, _: object) -> object:
        if not isinstance(value, Mapping):
            raise ValueError("must be a table")
        return build(value, kind)

    return hook


def _checked(attribute: attrs.Attribute[Any]) -> Any:
    def hook(value: object, _: object) -> object:
        made = _converter.structure(value, attribute.type)  # type: ignore[arg-type]
        if attribute.validator is not None:
            attribute.validator(None, attribute, made)
        return made

    return hook


_converter = cattrs.Converter(forbid_extra_keys=True, detailed_validation=True)
for _plain in (str, int, float, bool):
    _converter.register_structure_hook(_plain, _strict(_plain))
_converter.register_structure_hook(Path, _path)
_converter.register_structure_hook_func(_is_literal, _literal)
_converter.register_structure_hook_func(_is_tuple, _tuple)
_converter.register_structure_hook_factory(attrs.has, _table)
_converter.register_structure_hook_func(_is_choice, _choice)
