"""One signature for a batch of payloads, and a proof for each of them alone.  Pure.

An Ed25519 signature costs 20 us to make and 54 us to verify, a hash of 600 bytes one; so up to 64 payloads
share one signature over the root of their Merkle tree.  The tree is that of RFC 6962, section 2.1, with
BLAKE2b-256 as its hash:

    leaf(payload)      = BLAKE2b-256(0x00 || payload)
    node(left, right)  = BLAKE2b-256(0x01 || left || right)
    signed             = "shards batch v1" 0x00 || u16 n (big-endian) || root

The left subtree of n leaves holds the largest power of two below n.  The two domain bytes keep a node from
passing as a leaf, and n in what is signed keeps a path from being read in a tree of another shape.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import lru_cache

import attrs
import nacl.bindings
import nacl.exceptions

from shards.errors import LocalProtocolError, RemoteProtocolError
from shards.record import BatchProof

# -- specification constants ------------------------------------------------------------------------------
BATCH_MAX = 64
"""Payloads under one signature: beyond it signing gains nothing more, and a path stays below 200 bytes."""
CONTEXT = b"shards batch v1\0"
HASH_BYTES = 32
SIGNATURE_BYTES = 64
PUBLIC_KEY_BYTES = 32
SEED_BYTES = 32


@attrs.frozen(slots=True)
class BatchSignature:
    """A signed batch: what is sent (`signature`), and what any one of its payloads needs to stand alone."""

    n: int
    root: bytes
    """32 bytes."""
    signature: bytes
    """64 bytes, Ed25519."""
    _levels: tuple[tuple[bytes, ...], ...] = attrs.field(repr=False, eq=False, alias="levels")
    """The tree, leaves first; the last level is the root alone."""

    def proof(self, index: int) -> BatchProof:
        """Why payload `index` belongs to the batch: its path is at most six hashes.

        Raises:
            LocalProtocolError: The batch has no such payload.
        """
        if not 0 <= index < self.n:
            raise LocalProtocolError(f"a batch of {self.n} has no payload {index}")
        path = []
        place = index
        for level in self._levels[:-1]:
            if place ^ 1 < len(level):
                path.append(level[place ^ 1])
            place >>= 1
        return BatchProof(signature=self.signature, root=self.root, n=self.n, index=index, path=tuple(path))


def sign_batch(payloads: Sequence[bytes], signing_seed: bytes) -> BatchSignature:
    """Sign 1 to 64 payloads with the Ed25519 key of `signing_seed` (32 bytes).

    Raises:
        LocalProtocolError: No payload, too many, or a seed of another size.
    """
    if len(signing_seed) != SEED_BYTES:
        raise LocalProtocolError(f"a signing seed has {SEED_BYTES} bytes, not {len(signing_seed)}")
    if not 0 < len(payloads) <= BATCH_MAX:
        raise LocalProtocolError(f"a batch has 1 to {BATCH_MAX} payloads, not {len(payloads)}")
    levels = _levels_of(payloads)
    root = levels[-1][0]
    signed = nacl.bindings.crypto_sign(_to_be_signed(len(payloads), root), _secret_key(signing_seed))
    return BatchSignature(len(payloads), root, signed[:SIGNATURE_BYTES], levels)


@lru_cache(maxsize=64)
def _secret_key(signing_seed: bytes) -> bytes:
    """libsodium's form of the key; deriving it anew would cost ten times the signature."""
    return nacl.bindings.crypto_sign_seed_keypair(signing_seed)[1]


def batch_of(payloads: Sequence[bytes], signature: bytes) -> BatchSignature:
    """The tree of a batch whose signature was verified before (by the broker at its edge, say): verifies nothing.

    Raises:
        RemoteProtocolError: No payload, or too many.
    """
    if not 0 < len(payloads) <= BATCH_MAX:
        raise RemoteProtocolError(f"a batch has 1 to {BATCH_MAX} payloads, not {len(payloads)}")
    levels = _levels_of(payloads)
    return BatchSignature(len(payloads), levels[-1][0], signature, levels)


def verify_batch(payloads: Sequence[bytes], signature: bytes, signing_public: bytes) -> BatchSignature:
    """Verify a whole batch: the tree is built anew and its root's signature verified, once.

    Raises:
        RemoteProtocolError: A payload, their order or number, or the signature is not what was signed.
    """
    batch = batch_of(payloads, signature)
    verify_root(batch.n, batch.root, signature, signing_public)
    return batch


def verify_one(payload: bytes, proof: BatchProof, signing_public: bytes) -> None:
    """Verify one payload by its proof alone.

    Raises:
        RemoteProtocolError: The path does not lead from this payload to the root, or the root is not signed.
    """
    verify_path(payload, proof)
    verify_root(proof.n, proof.root, proof.signature, signing_public)


def verify_path(payload: bytes, proof: BatchProof) -> None:
    """Verify that the payload is leaf `index` of the tree with the proof's root; the signature is not looked at.

    For whoever has many proofs of one root: `verify_root` once, and this for each.

    Raises:
        RemoteProtocolError: It is not.
    """
    if not 0 < proof.n <= BATCH_MAX or not 0 <= proof.index < proof.n:
        raise RemoteProtocolError("the proof's index or size is impossible")
    here, place, last = _leaf(payload), proof.index, proof.n - 1
    path = iter(proof.path)
    try:
        while last:
            if place & 1:
                here = _node(next(path), here)
            elif place < last:
                here = _node(here, next(path))
            place >>= 1
            last >>= 1
    except StopIteration:
        raise RemoteProtocolError("the proof's path is too short") from None
    if next(path, None) is not None or here != proof.root:
        raise RemoteProtocolError("the payload is not what its batch's root was made of")


def verify_root(n: int, root: bytes, signature: bytes, signing_public: bytes) -> None:
    """Verify the signature over a batch's size and root.

    Raises:
        RemoteProtocolError: It does not hold.
    """
    sizes = len(root), len(signature), len(signing_public)
    if sizes != (HASH_BYTES, SIGNATURE_BYTES, PUBLIC_KEY_BYTES) or not 0 < n <= BATCH_MAX:
        raise RemoteProtocolError("a root, signature or key has an impossible size")
    try:
        nacl.bindings.crypto_sign_open(signature + _to_be_signed(n, root), signing_public)
    except nacl.exceptions.BadSignatureError as exc:
        raise RemoteProtocolError("the batch's signature does not hold for this key") from exc


def _to_be_signed(n: int, root: bytes) -> bytes:
    return CONTEXT + n.to_bytes(2, "big") + root


def _levels_of(payloads: Sequence[bytes]) -> tuple[tuple[bytes, ...], ...]:
    level = tuple(map(_leaf, payloads))
    levels = [level]
    while len(level) > 1:
        pairs = [_node(level[i], level[i + 1]) for i in range(0, len(level) - 1, 2)]
        # A lone last node goes up unhashed: the same tree as RFC 6962's split at a power of two.
        level = (*pairs, level[-1]) if len(level) % 2 else tuple(pairs)
        levels.append(level)
    return tuple(levels)


def _leaf(payload: bytes) -> bytes:
    return hashlib.blake2b(b"\x00" + payload, digest_size=HASH_BYTES).digest()


def _node(left: bytes, right: bytes) -> bytes:
    return hashlib.blake2b(b"\x01" + left + right, digest_size=HASH_BYTES).digest()
