"""Batches and runs: what PUBLISH carries, the Log keeps byte for byte, and DELIVER hands on.  Pure.

A batch is signed once, over the Merkle root of its payloads (`shards.merkle`).  A run in DELIVER is a whole
batch as it lies, or some of its records, each with its path to that root, or one ephemeral record.
"""

from __future__ import annotations

import enum
import functools
import struct
from collections.abc import Sequence
from typing import Any

import msgspec

from shards.errors import LocalProtocolError, RemoteProtocolError
from shards.record import PAYLOAD_BYTES_MAX, BatchProof
from shards.wire.codec import Reader, read_text, read_topic, write_text

BATCH_RECORDS_MAX = 64  # a Merkle path of six steps; signing gains nothing beyond
BATCH_BYTES_SOFT = 60_000  # a batch of several records fits one frame with its headers

_SPAN = struct.Struct(">QI")
_CUT = struct.Struct(">HHIQB")
_CUT_HEAD = struct.Struct(">H32s64sH")
_RUN = struct.Struct(">QQQ")


@functools.cache
def _heads(n: int) -> struct.Struct:
    return struct.Struct(">" + "IQ" * n)


class Batch(msgspec.Struct, frozen=True, gc=False):
    """`u16 n · n*(u32 length, u64 key) · n payloads · 64 signature`, taken apart."""

    keys: tuple[int, ...]
    payloads: tuple[bytes, ...]
    signature: bytes


def encode_batch(keys: Sequence[int], payloads: Sequence[bytes], signature: bytes) -> bytes:
    """The batch's bytes.

    Raises:
        LocalProtocolError: No record, more than 64, a payload over 1 MiB, or a signature that is none.
    """
    n = len(payloads)
    if not 0 < n <= BATCH_RECORDS_MAX or len(keys) != n or len(signature) != 64:
        raise LocalProtocolError("a batch has 1 to 64 records, a key for each, and a signature of 64 bytes")
    if max(map(len, payloads)) > PAYLOAD_BYTES_MAX:
        raise LocalProtocolError(f"a payload has at most {PAYLOAD_BYTES_MAX} bytes")
    heads: list[int] = []
    for key, payload in zip(keys, payloads, strict=True):
        heads += (len(payload), key)
    return b"".join((n.to_bytes(2, "big"), _heads(n).pack(*heads), *payloads, signature))


def batch_keys(body: bytes) -> tuple[int, ...]:
    """The key hashes of a batch, its whole shape checked, no payload copied.

    Raises:
        RemoteProtocolError: The lengths do not add up.
    """
    return _batch_heads(body)[1::2]


def batch_sizes(body: bytes) -> tuple[int, ...]:
    """The payloads' lengths.  Raises RemoteProtocolError where they do not add up."""
    return _batch_heads(body)[0::2]


def decode_batch(body: bytes) -> Batch:
    """The batch taken apart.  Raises RemoteProtocolError where the lengths do not add up."""
    heads = _batch_heads(body)
    at = 2 + len(heads) * 6
    payloads = []
    for length in heads[0::2]:
        payloads.append(body[at : at + length])
        at += length
    return Batch(heads[1::2], tuple(payloads), body[at:])


def _batch_heads(body: bytes) -> tuple[int, ...]:
    if len(body) < 2:
        raise RemoteProtocolError("a batch is shorter than its count")
    n = body[0] << 8 | body[1]
    if not 0 < n <= BATCH_RECORDS_MAX:
        raise RemoteProtocolError(f"a batch has 1 to {BATCH_RECORDS_MAX} records")
    layout = _heads(n)
    if len(body) < 2 + layout.size:
        raise RemoteProtocolError("a batch is shorter than its heads")
    heads: tuple[int, ...] = layout.unpack_from(body, 2)
    if max(heads[0::2]) > PAYLOAD_BYTES_MAX:
        raise RemoteProtocolError("a payload is too large")
    if 2 + layout.size + sum(heads[0::2]) + 64 != len(body):
        raise RemoteProtocolError("the lengths of a batch do not add up")
    return heads


class Form(enum.IntEnum):
    """How a run lies in DELIVER."""

    WHOLE = 0
    """The batch as it was published, every record of it at its first attempt."""
    CUT = 1
    """Some records of a batch, each with its Merkle path."""
    EPHEMERAL = 2


class Item(msgspec.Struct, frozen=True, gc=False):
    """One record of a run: its place in its batch, and why it belongs there."""

    index: int
    attempt: int
    key: int
    payload: bytes
    path: tuple[bytes, ...]


class Run(msgspec.Struct, frozen=True, gc=False):
    """Records of one batch as delivered: record i of the batch is at `position` + i and `offset` + i."""

    topic: str
    principal: str
    position: int
    offset: int
    at_ms: int
    body: bytes = b""
    """WHOLE: the batch."""
    n: int = 0
    """CUT: records of the whole batch."""
    root: bytes = b""
    signature: bytes = b""
    items: tuple[Item, ...] = ()
    """CUT and EPHEMERAL (there one item, without a path)."""

    def proof(self, item: Item) -> BatchProof:
        """What a verifier needs besides the payload."""
        return BatchProof(
            signature=self.signature, root=self.root, n=self.n, index=item.index, path=item.path
        )


def encode_whole(topic: str, principal: str, position: int, offset: int, at_ms: int, body: bytes) -> bytes:
    """A run of a whole batch."""
    head = _run_head(Form.WHOLE, topic, principal, position, offset, at_ms)
    return b"".join((head, len(body).to_bytes(4, "big"), body))


def encode_cut(run: Run) -> bytes:
    """A run of some records of a batch."""
    out = [_run_head(Form.CUT, run.topic, run.principal, run.position, run.offset, run.at_ms)]
    out.append(_CUT_HEAD.pack(run.n, run.root, run.signature, len(run.items)))
    for item in run.items:
        attempt = min(item.attempt, 0xFFFF)
        out.append(_CUT.pack(item.index, attempt, len(item.payload), item.key, len(item.path)))
        out.extend(item.path)
    out.extend([item.payload for item in run.items])
    return b"".join(out)


def encode_ephemeral(topic: str, principal: str, at_ms: int, key: int, payload: bytes) -> bytes:
    """A run of one record that no journal holds."""
    head = _run_head(Form.EPHEMERAL, topic, principal, 0, 0, at_ms)
    return b"".join((head, _SPAN.pack(key, len(payload)), payload))


def _run_head(form: Form, topic: str, principal: str, position: int, offset: int, at_ms: int) -> bytes:
    return b"".join(
        (
            bytes((form,)),
            write_text(topic, width=1),
            write_text(principal, width=1),
            _RUN.pack(position, offset, at_ms),
        )
    )


def decode_runs(runs: bytes) -> list[tuple[Form, Run]]:
    """The runs of a DELIVER.  Raises RemoteProtocolError where they do not fill the bytes exactly."""
    reader = Reader(runs)
    out = []
    while reader.at < len(runs):
        out.append(_read_run(reader))
    return out


def _read_run(reader: Reader) -> tuple[Form, Run]:
    kind = reader.take(1)[0]
    topic = read_topic(reader)
    principal = read_text(reader, width=1)
    position, offset, at_ms = reader.unpack(_RUN)
    if kind == Form.WHOLE:
        body = reader.take(int.from_bytes(reader.take(4), "big"))
        _batch_heads(body)
        return Form.WHOLE, Run(topic, principal, position, offset, at_ms, body)
    if kind == Form.EPHEMERAL:
        key, length = reader.unpack(_SPAN)
        item = Item(0, 1, key, reader.take(length), ())
        return Form.EPHEMERAL, Run(topic, principal, -1, -1, at_ms, items=(item,))
    if kind != Form.CUT:
        raise RemoteProtocolError(f"unknown form of a run: {kind}")
    n, root, signature, count = reader.unpack(_CUT_HEAD)
    if not 0 < count <= n <= BATCH_RECORDS_MAX:
        raise RemoteProtocolError("a cut run has 1 to n records")
    heads: list[tuple[Any, ...]] = []
    paths = []
    for _ in range(count):
        head = reader.unpack(_CUT)
        if head[0] >= n or (heads and head[0] <= heads[-1][0]):
            raise RemoteProtocolError("the records of a cut run are not in order")
        heads.append(head)
        paths.append(tuple([reader.take(32) for _ in range(head[4])]))
    items = tuple(
        [
            Item(index, attempt, key, reader.take(length), path)
            for (index, attempt, length, key, _), path in zip(heads, paths, strict=True)
        ]
    )
    return Form.CUT, Run(
        topic, principal, position, offset, at_ms, n=n, root=root, signature=signature, items=items
    )
