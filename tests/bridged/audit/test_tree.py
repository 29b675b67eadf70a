from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st
from nacl import bindings

from bridged.audit.tree import (
    EMPTY_ROOT,
    AuditError,
    Checkpoint,
    Frontier,
    inclusion_proof,
    leaf_hash,
    node_hash,
    open_checkpoint,
    root_from_proof,
    root_of,
    sign_checkpoint,
    verifier_key,
)

# The leaves and heads that the Certificate Transparency project's reference code tests with (RFC 6962).
LEAVES = [
    bytes.fromhex(h)
    for h in (
        "",
        "00",
        "10",
        "2021",
        "3031",
        "40414243",
        "5051525354555657",
        "606162636465666768696a6b6c6d6e6f",
    )
]
ROOTS = [
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
]


def reference_root(leaves: list[bytes]) -> bytes:
    """RFC 6962, 2.1, word for word."""
    if not leaves:
        return hashlib.sha256(b"").digest()
    if len(leaves) == 1:
        return leaves[0]
    k = 1
    while k * 2 < len(leaves):
        k *= 2
    return node_hash(reference_root(leaves[:k]), reference_root(leaves[k:]))


def test_the_heads_are_those_of_certificate_transparency() -> None:
    frontier = Frontier()
    assert frontier.root() == EMPTY_ROOT
    for leaf, root in zip(LEAVES, ROOTS, strict=True):
        frontier.append(leaf_hash(leaf))
        assert frontier.root().hex() == root


@given(st.lists(st.binary(max_size=8), max_size=70), st.data())
def test_every_leaf_is_proven_and_no_other(data: list[bytes], draw: st.DataObject) -> None:
    leaves = [leaf_hash(d) for d in data]
    root = root_of(leaves)
    assert root == reference_root(leaves)
    if not leaves:
        return
    index = draw.draw(st.integers(0, len(leaves) - 1))
    path = inclusion_proof(leaves, index)
    assert root_from_proof(leaves[index], index, len(leaves), path) == root
    assert root_from_proof(leaf_hash(b"another leaf"), index, len(leaves), path) != root
    with pytest.raises(AuditError):
        root_from_proof(leaves[index], index, len(leaves), [*path, b"\0" * 32])


def test_a_checkpoint_verifies_with_its_key_alone() -> None:
    public, _ = bindings.crypto_sign_seed_keypair(b"\1" * 32)
    other, _ = bindings.crypto_sign_seed_keypair(b"\2" * 32)
    checkpoint = Checkpoint(origin="example.org/log", size=8, root=bytes.fromhex(ROOTS[-1]))
    note = sign_checkpoint(checkpoint, b"\1" * 32)
    assert open_checkpoint(note, public) == checkpoint
    assert verifier_key("example.org/log", public).startswith("example.org/log+")
    for bad, key in (
        (note, other),
        (note.replace("\n8\n", "\n9\n"), public),
        (note[:-30], public),
        ("", public),
    ):
        with pytest.raises(AuditError):
            open_checkpoint(bad, key)
