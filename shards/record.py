"""What the fabric carries: a record under a topic.  Pure."""

from __future__ import annotations

import hashlib

import attrs

from shards.errors import ShardsError

PAYLOAD_BYTES_MAX = 1_048_576
"""One envelope; 17 frames at most (frames.md)."""
TOPIC_BYTES_MAX = 255


def key_hash(key: bytes) -> int:
    """The unsigned 64-bit key that orders records of one conversation.  BLAKE2b, 8 bytes, big-endian."""
    return int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "big")


@attrs.frozen(kw_only=True, slots=True)
class BatchProof:
    """Why a payload is what its publisher signed: the batch's signature and this leaf's Merkle path."""

    signature: bytes
    """64 bytes, Ed25519 over context, n and root (`shards.merkle`)."""
    root: bytes
    """32 bytes."""
    n: int
    index: int
    path: tuple[bytes, ...]


@attrs.frozen(kw_only=True, slots=True)
class Record:
    """One record as a subscriber sees it."""

    topic: str
    offset: int
    """0-based place in its topic, never reused.  -1 for an ephemeral record."""
    position: int
    """Place in the shard's journal.  -1 for an ephemeral record."""
    key: int
    principal: str
    """Who published, stamped by the broker."""
    at_ms: int
    """Broker's wall clock at the commit, milliseconds since 1970."""
    payload: bytes
    proof: BatchProof | None
    attempt: int = 1
    """How often this group was given the record, in this life of the broker."""


def check_topic(topic: str) -> str:
    """Return the topic, or raise ShardsError: 1 to 255 ASCII bytes of [A-Za-z0-9._:/-], no empty segment."""
    if not 0 < len(topic) <= TOPIC_BYTES_MAX:
        raise ShardsError(f"a topic has 1 to {TOPIC_BYTES_MAX} characters")
    for segment in topic.split("/"):
        if not segment or not set(segment) <= _TOPIC_CHARACTERS:
            raise ShardsError(f"a topic's segments are [A-Za-z0-9._:-]+, joined by '/': {topic!a:.80}")
    return topic


_TOPIC_CHARACTERS = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._:-")
