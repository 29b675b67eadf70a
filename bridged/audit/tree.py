"""A Merkle tree that only grows, and the signed note that fixes its head.  Pure.

Hashes are RFC 6962's (section 2.1) over SHA-256; the note and the checkpoint are C2SP's `signed-note` and
`tlog-checkpoint`, so that a foreign verifier reads them.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Sequence

import attrs
from nacl import bindings
from nacl.exceptions import CryptoError

from bridged.errors import BridgeError

# Specification constants.
HASH_BYTES = 32
EMPTY_ROOT = hashlib.sha256(b"").digest()
_ED25519 = b"\x01"
_DASH = "— "


class AuditError(BridgeError):
    """The audit log does not hold what it promises, or a proof does not verify."""


def leaf_hash(data: bytes) -> bytes:
    """SHA-256(0x00 || data).          RFC 6962, 2.1."""
    return hashlib.sha256(b"\x00" + data).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """SHA-256(0x01 || left || right).          RFC 6962, 2.1."""
    return hashlib.sha256(b"\x01" + left + right).digest()


class Frontier:
    """The right edge of the tree: enough to append and to know the root, 32 bytes a level."""

    def __init__(self, leaves: Iterable[bytes] = ()) -> None:
        self.size = 0
        self._peaks: list[bytes] = []  # of the full subtrees, the largest first
        for leaf in leaves:
            self.append(leaf)

    def append(self, leaf: bytes) -> None:
        """Add a leaf's hash."""
        node, size = leaf, self.size
        while size & 1:
            node = node_hash(self._peaks.pop(), node)
            size >>= 1
        self._peaks.append(node)
        self.size += 1

    def root(self) -> bytes:
        """The tree's head now."""
        if not self._peaks:
            return EMPTY_ROOT
        node = self._peaks[-1]
        for peak in reversed(self._peaks[:-1]):
            node = node_hash(peak, node)
        return node


def root_of(leaves: Sequence[bytes]) -> bytes:
    """The head of a tree with these leaf hashes."""
    return Frontier(leaves).root()


def inclusion_proof(leaves: Sequence[bytes], index: int) -> list[bytes]:
    """The audit path of a leaf, from the bottom up.          RFC 6962, 2.1.1.

    Raises:
        AuditError: No such leaf.
    """
    if not 0 <= index < len(leaves):
        raise AuditError(f"the tree has no leaf {index}")
    if len(leaves) == 1:
        return []
    split = 1 << (len(leaves) - 1).bit_length() - 1
    if index < split:
        return [*inclusion_proof(leaves[:split], index), root_of(leaves[split:])]
    return [*inclusion_proof(leaves[split:], index - split), root_of(leaves[:split])]


def root_from_proof(leaf: bytes, index: int, size: int, path: Sequence[bytes]) -> bytes:
    """The head that the path leads to; compare it with a signed one.          RFC 9162, 2.1.3.2.

    Raises:
        AuditError: The path has the wrong length for that place.
    """
    if not 0 <= index < size:
        raise AuditError(f"the tree has no leaf {index}")
    node, fn, sn = leaf, index, size - 1
    for sibling in path:
        if sn == 0:
            raise AuditError("the proof is too long")
        if fn & 1 or fn == sn:
            node = node_hash(sibling, node)
            while not fn & 1 and fn:
                fn >>= 1
                sn >>= 1
        else:
            node = node_hash(node, sibling)
        fn >>= 1
        sn >>= 1
    if sn:
        raise AuditError("the proof is too short")
    return node


@attrs.frozen(kw_only=True)
class Checkpoint:
    """A tree head: what a signed note says."""

    origin: str
    size: int
    root: bytes

    def body(self) -> str:
        """The three lines that are signed.          C2SP tlog-checkpoint."""
        return f"{self.origin}\n{self.size}\n{base64.b64encode(self.root).decode()}\n"


def key_hash(name: str, public: bytes) -> bytes:
    """The four bytes by which a note names its signer's key.          C2SP signed-note."""
    return hashlib.sha256(name.encode() + b"\n" + _ED25519 + public).digest()[:4]


def verifier_key(name: str, public: bytes) -> str:
    """The text that an auditor is handed: `name+hash+key`.          C2SP signed-note."""
    return f"{name}+{key_hash(name, public).hex()}+{base64.b64encode(_ED25519 + public).decode()}"


def sign_checkpoint(checkpoint: Checkpoint, seed: bytes) -> str:
    """The signed note of a checkpoint, by the Ed25519 key of that 32-byte seed."""
    public, secret = bindings.crypto_sign_seed_keypair(seed)
    body = checkpoint.body()
    signature = bindings.crypto_sign(body.encode(), secret)[: bindings.crypto_sign_BYTES]
    blob = base64.b64encode(key_hash(checkpoint.origin, public) + signature).decode()
    return f"{body}\n{_DASH}{checkpoint.origin} {blob}\n"


def open_checkpoint(note: str, public: bytes) -> Checkpoint:
    """Verify a signed note and return what it says.

    Raises:
        AuditError: Malformed, or not signed by that key.
    """
    body, blank, signatures = note.partition("\n\n")
    lines = body.split("\n")
    if not blank or len(lines) < 3 or not lines[1].isdecimal():
        raise AuditError("not a signed checkpoint")
    origin, size = lines[0], int(lines[1])
    try:
        root = base64.b64decode(lines[2], validate=True)
    except ValueError:
        raise AuditError("not a signed checkpoint") from None
    wanted = key_hash(origin, public)
    for line in signatures.splitlines():
        name, _, blob = line.removeprefix(_DASH).partition(" ")
        try:
            data = base64.b64decode(blob, validate=True)
        except ValueError:
            continue
        if line.startswith(_DASH) and name == origin and data[:4] == wanted:
            try:
                bindings.crypto_sign_open(data[4:] + (body + "\n").encode(), public)
            except (CryptoError, ValueError):
                break
            return Checkpoint(origin=origin, size=size, root=root)
    raise AuditError("the checkpoint is not signed by this key")
