"""Batch signatures: each payload provable alone, and nothing else provable at all."""

import hashlib

import attrs
import nacl.signing
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shards.errors import LocalProtocolError, RemoteProtocolError
from shards.merkle import (
    BATCH_MAX,
    CONTEXT,
    batch_of,
    sign_batch,
    verify_batch,
    verify_one,
    verify_path,
    verify_root,
)

SEED = bytes(range(32))
PUBLIC = nacl.signing.SigningKey(SEED).verify_key.encode()
SIZES = [1, 2, 3, 4, 5, 6, 7, 8, 9, 15, 16, 17, 31, 33, 63, 64]


def payloads(n: int) -> list[bytes]:
    return [b"payload %d" % i for i in range(n)]


def rfc6962_root(leaves: list[bytes]) -> bytes:
    """The definition of RFC 6962, section 2.1, written down as it stands there."""
    if len(leaves) == 1:
        return hashlib.blake2b(b"\x00" + leaves[0], digest_size=32).digest()
    k = 1 << (len(leaves) - 1).bit_length() - 1
    left, right = rfc6962_root(leaves[:k]), rfc6962_root(leaves[k:])
    return hashlib.blake2b(b"\x01" + left + right, digest_size=32).digest()


@pytest.mark.parametrize("n", SIZES)
def test_the_root_is_that_of_rfc_6962_and_the_signature_anyones_ed25519(n: int) -> None:
    batch = sign_batch(payloads(n), SEED)
    assert batch.root == rfc6962_root(payloads(n))
    signed = CONTEXT + n.to_bytes(2, "big") + batch.root
    nacl.signing.VerifyKey(PUBLIC).verify(signed, batch.signature)


@pytest.mark.parametrize("n", SIZES)
def test_each_payload_stands_alone_and_only_in_its_place(n: int) -> None:
    batch = sign_batch(payloads(n), SEED)
    for index, payload in enumerate(payloads(n)):
        proof = batch.proof(index)
        assert len(proof.path) <= 6
        verify_one(payload, proof, PUBLIC)
        with pytest.raises(RemoteProtocolError):
            verify_one(payload + b"!", proof, PUBLIC)
        for other in range(n):
            if other != index:
                with pytest.raises(RemoteProtocolError):
                    verify_path(payload, attrs.evolve(proof, index=other))


@pytest.mark.parametrize("n", SIZES)
def test_a_whole_batch_is_verified_and_gives_the_same_proofs(n: int) -> None:
    signed = sign_batch(payloads(n), SEED)
    verified = verify_batch(payloads(n), signed.signature, PUBLIC)
    assert verified == signed == batch_of(payloads(n), signed.signature)
    assert [verified.proof(i) for i in range(n)] == [signed.proof(i) for i in range(n)]


def test_a_changed_dropped_added_or_moved_payload_fails_the_batch() -> None:
    good = payloads(5)
    signature = sign_batch(good, SEED).signature
    for bad in ([*good[:4], b"x"], good[:4], [*good, good[4]], good[::-1], []):
        with pytest.raises(RemoteProtocolError):
            verify_batch(bad, signature, PUBLIC)


def test_a_node_cannot_pass_as_a_payload_nor_a_smaller_tree_as_this_one() -> None:
    batch = sign_batch(payloads(4), SEED)
    proof = batch.proof(0)
    inner = b"\x01" + b"".join(hashlib.blake2b(b"\x00" + p, digest_size=32).digest() for p in payloads(2))
    forged = attrs.evolve(proof, n=2, path=proof.path[1:])
    for payload in (inner, inner[1:]):
        with pytest.raises(RemoteProtocolError):
            verify_one(payload, forged, PUBLIC)


def test_every_part_of_a_proof_counts() -> None:
    batch = sign_batch(payloads(7), SEED)
    proof = batch.proof(6)
    flip = bytes(32)
    for bad in (
        attrs.evolve(proof, n=8),
        attrs.evolve(proof, n=0),
        attrs.evolve(proof, n=BATCH_MAX + 1),
        attrs.evolve(proof, index=-1),
        attrs.evolve(proof, index=7),
        attrs.evolve(proof, path=proof.path[:-1]),
        attrs.evolve(proof, path=(*proof.path, flip)),
        attrs.evolve(proof, path=(flip, *proof.path[1:])),
        attrs.evolve(proof, root=flip),
        attrs.evolve(proof, root=b""),
        attrs.evolve(proof, signature=bytes(64)),
        attrs.evolve(proof, signature=b"short"),
    ):
        with pytest.raises(RemoteProtocolError):
            verify_one(payloads(7)[6], bad, PUBLIC)


def test_another_key_or_none_verifies_nothing() -> None:
    batch = sign_batch(payloads(2), SEED)
    for key in (
        nacl.signing.SigningKey(bytes(32)).verify_key.encode(),
        bytes(32),
        b"\1" + bytes(31),
        b"short",
    ):
        with pytest.raises(RemoteProtocolError):
            verify_root(batch.n, batch.root, batch.signature, key)


def test_a_batch_has_one_to_64_payloads() -> None:
    for n in (0, BATCH_MAX + 1):
        with pytest.raises(LocalProtocolError):
            sign_batch(payloads(n), SEED)
        with pytest.raises(RemoteProtocolError):
            verify_batch(payloads(n), bytes(64), PUBLIC)
    with pytest.raises(LocalProtocolError):
        sign_batch(payloads(1), b"short")
    with pytest.raises(LocalProtocolError):
        sign_batch(payloads(1), SEED).proof(1)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.binary(max_size=40), min_size=1, max_size=BATCH_MAX), st.data())
def test_any_batch_holds_and_any_changed_payload_does_not(batch: list[bytes], data: st.DataObject) -> None:
    signed = sign_batch(batch, SEED)
    index = data.draw(st.integers(0, len(batch) - 1))
    verify_one(batch[index], signed.proof(index), PUBLIC)
    other = data.draw(st.binary(max_size=40).filter(lambda b: b != batch[index]))
    with pytest.raises(RemoteProtocolError):
        verify_path(other, signed.proof(index))
