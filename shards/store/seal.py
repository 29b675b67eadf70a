"""The seal of a row: a digest over all its columns.  Pure.

SQLite has no page checksums (of 3,000 flipped bits its own check saw 3 in 100), so every row that is not part of
the chain of segments carries a BLAKE2b digest; a row that does not match is never used and never repaired.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

from shards.errors import LogCorrupt

Column = str | bytes | int | float | None


def row_digest(table: str, *values: Column) -> bytes:
    """16 bytes over the table's name and all columns, each with its type and length."""
    hasher = hashlib.blake2b(table.encode(), digest_size=16)
    for value in values:
        if value is None:
            hasher.update(b"n")
            continue
        if isinstance(value, str):
            kind, data = b"s", value.encode("utf-8", "surrogatepass")
        elif isinstance(value, bytes):
            kind, data = b"b", value
        else:
            kind, data = b"i", repr(value).encode()
        hasher.update(b"%b%d:" % (kind, len(data)))
        hasher.update(data)
    return hasher.digest()


def sealed(table: str, *values: Column) -> tuple[Column, ...]:
    """The columns with their digest behind them."""
    return (*values, row_digest(table, *values))


def checked(table: str, row: Sequence[Any]) -> tuple[Any, ...]:
    """The columns of a row without their digest, or LogCorrupt."""
    *values, digest = row
    if row_digest(table, *values) != digest:
        raise LogCorrupt(
            f"a row of table {table} does not match its checksum",
            hint="Stop the shard, keep the file, restore the last backup (bridgectl restore).",
        )
    return tuple(values)


def signed(value: int) -> int:
    """SQLite's integers are signed: an unsigned 64-bit value keeps its bits."""
    return value - 2**64 if value >= 2**63 else value


def unsigned(value: int) -> int:
    """The inverse of `signed`."""
    return value + 2**64 if value < 0 else value
