"""The key files of principals: one private file each, 0600, and a card with the public halves.

`DIR/keys/NAME.key` is what its holder speaks with; `DIR/keys/NAME.pub` is what the daemon reads at its start to
know an operator.  Members' keys lie under `state/keys`, where only the daemon reads.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import msgspec

from bridged.envelope import from_base64url, to_base64url
from bridged.errors import BridgeError, EnvelopeError
from bridged.secret import Secret
from shards.client import Identity

KEY_BYTES = 32
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")


class KeyFileError(BridgeError):
    """A key file is missing, readable by others, or none."""


class _KeyFile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    name: str
    tenant: str
    shard: str
    server: str
    noise: str
    signing: str
    lease: str


@attrs.frozen(kw_only=True)
class Key:
    """A principal's private file: who it is, and by which key the shard's broker is known."""

    identity: Identity
    shard: str
    server_public: bytes


class Card(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The public halves of an operator, and who speaks when it does."""

    name: str
    tenant: str
    noise: str
    signing: str
    lease: str
    identity: str
    """`msgr://identity/msgr/NAME`"""
    client_token_sha256: str | None = None
    """Of the token in `client.token`, which speaks as the same identity."""

    def publics(self) -> tuple[bytes, bytes, bytes]:
        """(Noise, signing, lease) public keys.

        Raises:
            KeyFileError: One of them is no key.
        """
        return _key(self.noise), _key(self.signing), _key(self.lease)


def check_name(name: str) -> str:
    """The name of a key, or KeyFileError: 1 to 64 of a-z 0-9 . _ -, a letter or digit first."""
    if not _NAME.fullmatch(name):
        raise KeyFileError(
            f"{name!r} is no name for a key", hint="1 to 64 of a-z 0-9 . _ -, a letter or digit first"
        )
    return name


def write_private(path: Path, data: bytes) -> None:
    """Make a file that only its owner reads; it is on disk when this returns.

    Raises:
        KeyFileError: It exists, or cannot be made.
    """
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError as exc:
        raise KeyFileError(
            f"{path} exists", hint="take another name, or remove the file if nobody uses it"
        ) from exc
    except OSError as exc:
        raise KeyFileError(f"{path}: {exc.strerror}") from exc
    with os.fdopen(fd, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def read_private(path: Path) -> bytes:
    """The bytes of a file that only its owner reads.

    Raises:
        KeyFileError: Missing, or others may read it.
    """
    try:
        mode, data = path.stat().st_mode, path.read_bytes()
    except OSError as exc:
        raise KeyFileError(
            f"{path}: {exc.strerror}", hint="`bridgectl init` or `bridgectl keys new` makes it"
        ) from exc
    if mode & 0o077:
        raise KeyFileError(f"{path} may be read by others", hint=f"chmod 600 {path}")
    return data


def save_key(path: Path, key: Key) -> None:
    """Write a principal's private file.  Raises KeyFileError where there is one already."""
    identity = key.identity
    value = _KeyFile(
        name=identity.name,
        tenant=identity.tenant,
        shard=key.shard,
        server=to_base64url(key.server_public),
        noise=to_base64url(identity.noise_private),
        signing=to_base64url(identity.signing_private),
        lease=to_base64url(identity.lease_private),
    )
    write_private(path, msgspec.json.format(msgspec.json.encode(value), indent=2) + b"\n")


def load_key(path: Path) -> Key:
    """Read a principal's private file.

    Raises:
        KeyFileError: Missing, readable by others, or no key file.
    """
    try:
        value = msgspec.json.decode(read_private(path), type=_KeyFile)
    except msgspec.DecodeError:
        raise KeyFileError(f"{path} is no key file", hint="restore it, or make a new key") from None
    return Key(
        identity=Identity(
            name=value.name,
            tenant=value.tenant,
            noise_private=_key(value.noise),
            signing_private=_key(value.signing),
            lease_private=_key(value.lease),
        ),
        shard=value.shard,
        server_public=_key(value.server),
    )


def save_card(path: Path, card: Card) -> None:
    """Write or replace an operator's card; it may be read by all."""
    data = msgspec.json.format(msgspec.json.encode(card), indent=2) + b"\n"
    fresh = path.with_suffix(".new")
    fresh.write_bytes(data)
    os.replace(fresh, path)


def load_cards(directory: Path) -> list[Card]:
    """All operators' cards of a directory, by name.

    Raises:
        KeyFileError: One of them cannot be read.
    """
    cards = []
    for path in sorted(directory.glob("*.pub")):
        try:
            cards.append(msgspec.json.decode(path.read_bytes(), type=Card))
        except (OSError, msgspec.DecodeError) as exc:
            raise KeyFileError(f"{path} is no card of an operator", hint="remove it or restore it") from exc
    return cards


def card_of(identity: Identity, *, speaks_as: str, client_token_sha256: str | None = None) -> Card:
    """The card of an identity."""
    return Card(
        name=identity.name,
        tenant=identity.tenant,
        noise=to_base64url(identity.noise_public),
        signing=to_base64url(identity.signing_public),
        lease=to_base64url(identity.lease_public),
        identity=speaks_as,
        client_token_sha256=client_token_sha256,
    )


def member_identity(path: Path, name: str, tenant: str, token_bytes: Callable[[int], bytes]) -> Identity:
    """The keys of an inside member, made at its first start and kept.

    Raises:
        KeyFileError: The file is there and cannot be used.
    """
    if not path.exists():
        identity = Identity.generate(name, tenant, token_bytes)
        save_key(path, Key(identity=identity, shard="", server_public=bytes(KEY_BYTES)))
        return identity
    identity = load_key(path).identity
    if (identity.name, identity.tenant) != (name, tenant):
        raise KeyFileError(f"{path} holds the keys of another member", hint="remove it: new keys are made")
    return identity


def seed_file(path: Path, token_bytes: Callable[[int], bytes]) -> Secret:
    """A 32-byte secret of its own, made at the first use and kept (the audit's signing key)."""
    if not path.exists():
        write_private(path, token_bytes(KEY_BYTES).hex().encode() + b"\n")
    return load_seed(path)


def load_seed(path: Path) -> Secret:
    """A secret that `seed_file` made.

    Raises:
        KeyFileError: Missing, readable by others, or none.
    """
    try:
        seed = bytes.fromhex(read_private(path).decode("ascii").strip())
    except ValueError:
        seed = b""
    if len(seed) != KEY_BYTES:
        raise KeyFileError(f"{path} is no key of 32 bytes", hint="restore it from the backup")
    return Secret(seed)


def _key(text: Any) -> bytes:
    try:
        key = from_base64url(text)
    except EnvelopeError:
        key = b""
    if len(key) != KEY_BYTES:
        raise KeyFileError("a key is 32 bytes in base64url")
    return key
