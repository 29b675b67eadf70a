"""Is what runs what ships?  A simulation that replaced the very thing it should try would prove nothing.

Every class and function that a module's source defines must be the one that the module has now, with code from
that file; every name that one module takes from another must still be the other's.
"""

from __future__ import annotations

import ast
import functools
import inspect
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

PACKAGES = ("shards", "bridged", "noise")
Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


def substituted(packages: Sequence[str] = PACKAGES, *, exempt: str = "shards.testing") -> list[str]:
    """Names in loaded modules of these packages that are not what their source says."""
    found: list[str] = []
    for name, module in sorted(sys.modules.items()):
        is_ours = name.partition(".")[0] in packages and not (name == exempt or name.startswith(f"{exempt}."))
        if is_ours and isinstance(getattr(module, "__file__", None), str):
            found += _of_module(name, module)
    return found


def _of_module(name: str, module: ModuleType) -> Iterator[str]:
    assert module.__file__ is not None
    definitions, imports = _source(module.__file__)
    for defined, members in definitions.items():
        thing = getattr(module, defined, None)
        if not _is_from(thing, module.__file__, name):
            yield f"{name}.{defined}"
        elif inspect.isclass(thing):
            for member in members:
                now = vars(thing).get(member)
                # attrs makes slots of cached properties
                if not (inspect.ismemberdescriptor(now) or _is_from(_plain(now), module.__file__, name)):
                    yield f"{name}.{defined}.{member}"
    for local, (source, original) in imports.items():
        origin = sys.modules.get(source)
        theirs = getattr(origin, original, None)
        if theirs is not None and getattr(module, local, theirs) is not theirs:
            yield f"{name}.{local}"


@functools.cache
def _source(path: str) -> tuple[dict[str, list[str]], dict[str, tuple[str, str]]]:
    """(class or function -> methods, local name -> (module, name there)) at the top of a file."""
    definitions: dict[str, list[str]] = {}
    imports: dict[str, tuple[str, str]] = {}
    for node in ast.parse(Path(path).read_text()).body:
        if isinstance(node, Definition):
            body = node.body if isinstance(node, ast.ClassDef) else []
            definitions[node.name] = [
                each.name for each in body if isinstance(each, ast.FunctionDef | ast.AsyncFunctionDef)
            ]
        elif isinstance(node, ast.ImportFrom) and node.module and node.module.partition(".")[0] in PACKAGES:
            for alias in node.names:
                imports[alias.asname or alias.name] = (node.module, alias.name)
    return definitions, imports


def _plain(member: Any) -> Any:
    """The function behind a property, a static or a class method."""
    if isinstance(member, property):
        return member.fget
    if isinstance(member, functools.cached_property):
        return member.func
    return getattr(member, "__func__", member)


def _is_from(thing: Any, path: str, module: str) -> bool:
    if inspect.isclass(thing):
        return thing.__module__ == module
    if isinstance(thing, FunctionType):
        thing = inspect.unwrap(thing)
        return isinstance(thing, FunctionType) and thing.__code__.co_filename == path
    wrapped = getattr(thing, "__wrapped__", None)  # lru_cache and its like
    return wrapped is not None and _is_from(wrapped, path, module)
