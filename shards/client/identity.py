"""Who a client is: a name in a tenant and three private keys.  Pure."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property

import attrs
import nacl.bindings

from noise import KeyPair
from shards.errors import LocalProtocolError


@attrs.frozen(kw_only=True, slots=False)
class Identity:
    """A principal's private half; it never travels, and it is never shown."""

    name: str
    tenant: str
    noise_private: bytes = attrs.field(repr=False)
    """32 bytes, X25519: opens links."""
    signing_private: bytes = attrs.field(repr=False)
    """32 bytes, the Ed25519 seed: signs batches."""
    lease_private: bytes = attrs.field(repr=False)
    """32 bytes, X25519: opens leases that the vault seals."""

    def __attrs_post_init__(self) -> None:
        if {len(self.noise_private), len(self.signing_private), len(self.lease_private)} != {32}:
            raise LocalProtocolError("an identity has three private keys of 32 bytes")

    @classmethod
    def generate(cls, name: str, tenant: str, token_bytes: Callable[[int], bytes]) -> Identity:
        """A new identity with fresh keys."""
        return cls(
            name=name,
            tenant=tenant,
            noise_private=token_bytes(32),
            signing_private=token_bytes(32),
            lease_private=token_bytes(32),
        )

    @cached_property
    def noise_public(self) -> bytes:
        return KeyPair.from_private(self.noise_private).public

    @cached_property
    def signing_public(self) -> bytes:
        public, _ = nacl.bindings.crypto_sign_seed_keypair(self.signing_private)
        return bytes(public)

    @cached_property
    def lease_public(self) -> bytes:
        return bytes(nacl.bindings.crypto_scalarmult_base(self.lease_private))
