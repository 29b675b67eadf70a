"""Ed25519 signatures as envelopes carry them in `metadata.sig`, and what keys are called.  Pure."""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Callable, Mapping
from typing import Any

from nacl import bindings, exceptions

from bridged.errors import EnvelopeError
from shards import merkle
from shards.errors import RemoteProtocolError
from shards.record import BatchProof

# Specification constants (wire contract 1).
SIG_ED25519 = "ed25519"
SIG_MERKLE = "ed25519-merkle"


def check_sig(sig: object, signed: bytes, keys: Callable[[str], bytes | None]) -> str:
    """Check a signature over `signed` and return its key id.  Raises EnvelopeError as `Envelope.verify`."""
    if sig is None:
        raise EnvelopeError("missing_field", "the envelope carries no signature", field="metadata.sig")
    if not isinstance(sig, dict) or not isinstance(sig.get("kid"), str):
        raise _bad_sig("names no key")
    public = keys(sig["kid"])
    if public is None:
        raise _bad_sig("is by a key that nobody here has")
    match sig:
        case {"alg": "ed25519", "value": str(value)}:
            is_good = verify_ed25519(public, signed, from_base64url(value))
        case {"alg": "ed25519-merkle"}:
            is_good = _is_leaf(signed, sig, public)
        case _:
            raise _bad_sig("is of no form that we know")
    if not is_good:
        raise _bad_sig("does not fit the envelope")
    kid: str = sig["kid"]
    return kid


def key_id(public: bytes) -> str:
    """The name of a public signing key: the first 16 hex digits of its SHA-256."""
    return hashlib.sha256(public).hexdigest()[:16]


def verify_ed25519(public: bytes, message: bytes, signature: bytes) -> bool:
    """Does the signature fit?  A key or signature of a wrong length fits nothing."""
    if len(public) != bindings.crypto_sign_PUBLICKEYBYTES or len(signature) != bindings.crypto_sign_BYTES:
        return False
    try:
        bindings.crypto_sign_open(signature + message, public)
    except exceptions.BadSignatureError:
        return False
    return True


def to_base64url(data: bytes) -> str:
    """RFC 4648 base64url without padding."""
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode("ascii")


def from_base64url(text: str) -> bytes:
    """The bytes of base64url without padding, or b"" where it is none (which fits nowhere)."""
    try:
        return base64.b64decode(text.encode("ascii") + b"=" * (-len(text) % 4), b"-_", validate=True)
    except (UnicodeEncodeError, binascii.Error):
        return b""


def _is_leaf(leaf: bytes, sig: Mapping[str, Any], public: bytes) -> bool:
    match sig:
        case {
            "value": str(value),
            "root": str(root),
            "n": int(n),
            "index": int(index),
            "path": list(path),
        } if len(path) <= merkle.BATCH_MAX and all(isinstance(node, str) for node in path):
            proof = BatchProof(
                signature=from_base64url(value),
                root=from_base64url(root),
                n=n,
                index=index,
                path=tuple(from_base64url(node) for node in path),
            )
        case _:
            raise _bad_sig("is of no form that we know")
    try:
        merkle.verify_one(leaf, proof, public)
    except RemoteProtocolError:
        return False
    return True


def _bad_sig(what: str) -> EnvelopeError:
    return EnvelopeError("bad_envelope", f"metadata.sig {what}", field="metadata.sig")
