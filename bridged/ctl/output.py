"""What `bridgectl` prints: a table or one JSON value on stdout, one line on stderr when something is wrong."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NoReturn

from bridged.errors import BadCredentials, BridgeError, ConfigError, VaultError
from shards.errors import LogError, NotGranted, RequestFailed, ShardsError, Unreachable

# Specification constants (interfaces: exit codes).
DONE, FAILED, USAGE, REFUSED, UNREACHABLE, STORAGE, CONFIG = 0, 1, 2, 3, 4, 74, 78

_REFUSALS = frozenset({"capability_denied", "policy_denied", "forbidden", "tenant_mismatch"})
_ABSENCES = frozenset({"timeout", "network_down"})
_HINTS = {
    "capability_denied": "`bridgectl grants list` shows who may; an operator with the admin role adds a grant",
    "policy_denied": "`bridgectl clients add` admits an identity to a conversation",
    "timeout": "`bridgectl status` shows whether its members run",
    "network_down": "`bridgectl status` shows whether its members run",
    "internal": "the shard's log says why",
    "rate_limited": "try again in a moment",
    "not_found": "`bridgectl conversations list`, `topics`, `groups` and `keys list` show what there is",
    "not_linked": "`bridgectl clients add` gives a name an identity; --as names one",
}


class CtlError(BridgeError):
    """A command could not be carried out.  `code` names it for programs, `status` is the exit code."""

    def __init__(self, message: str, *, code: str = "failed", hint: str = "", status: int = FAILED) -> None:
        super().__init__(message, hint=hint)
        self.code = code
        self.status = status


class Output:
    """Where a command's results go."""

    def __init__(self, *, as_json: bool) -> None:
        self.as_json = as_json
        self.is_watched = sys.stderr.isatty() and not as_json

    def value(self, value: Mapping[str, Any] | Sequence[Any], text: str) -> None:
        """One result: the JSON value, or its text for a person."""
        print(json.dumps(value, ensure_ascii=False) if self.as_json else text, flush=True)

    def table(self, name: str, rows: Iterable[Mapping[str, Any]], columns: Sequence[str]) -> None:
        """A listing: `{"NAME": [rows]}`, or columns for a person."""
        rows = list(rows)
        if self.as_json:
            print(json.dumps({name: rows}, ensure_ascii=False), flush=True)
            return
        if not rows:
            print(f"no {name}")
            return
        cells = [[_cell(row.get(column)) for column in columns] for row in rows]
        widths = [max(len(column), *(len(line[i]) for line in cells)) for i, column in enumerate(columns)]
        for line in ([column.upper() for column in columns], *cells):
            print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
        sys.stdout.flush()

    def line(self, value: Mapping[str, Any], text: str) -> None:
        """One item of a stream: a JSON object a line, or its text."""
        print(json.dumps(value, ensure_ascii=False) if self.as_json else text, flush=True)

    def note(self, text: str) -> None:
        """Something for a person at a terminal; nothing in a pipe or with --json."""
        if self.is_watched:
            print(text, file=sys.stderr, flush=True)


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, Mapping):
        return " ".join(f"{name}={_cell(item)}" for name, item in value.items()) or "-"
    if isinstance(value, list | tuple):
        return ",".join(map(_cell, value)) or "-"
    return str(value)


def explain(exc: BaseException) -> tuple[int, str, str, str]:
    """(exit code, error code, message, hint) of what a command may raise."""
    match exc:
        case CtlError():
            return exc.status, exc.code, str(exc), exc.hint
        case ConfigError():
            return (
                CONFIG,
                "bad_config",
                str(exc),
                exc.hint or "mend the file; `bridgectl check` shows all faults",
            )
        case RequestFailed():
            status = REFUSED if exc.code in _REFUSALS else UNREACHABLE if exc.code in _ABSENCES else FAILED
            return status, exc.code, str(exc), exc.hint or _HINTS.get(exc.code, "")
        case NotGranted():
            return REFUSED, "capability_denied", str(exc), exc.hint or "`bridgectl grants list` shows who may"
        case Unreachable():
            return (
                UNREACHABLE,
                "network_down",
                str(exc),
                exc.hint or "is the daemon running? `bridged run CONFIG`",
            )
        case LogError():
            return STORAGE, "storage_failed", str(exc), exc.hint or "`bridgectl doctor` says what to do"
        case VaultError() | BadCredentials() | BridgeError() | ShardsError():
            return FAILED, "failed", str(exc), exc.hint
    raise exc


def fail(exc: BaseException, *, as_json: bool) -> int:
    """Say on stderr what is wrong and what to do; returns the exit code."""
    status, code, message, hint = explain(exc)
    if as_json:
        text = json.dumps({"error": {"code": code, "message": message, "hint": hint}}, ensure_ascii=False)
    else:
        text = f"bridgectl: {message}" + (f" ({hint})" if hint else "")
    print(text.replace("\n", " "), file=sys.stderr, flush=True)
    return status


def usage(message: str) -> NoReturn:
    """Refuse the command's words."""
    raise CtlError(message, code="usage", status=USAGE)
