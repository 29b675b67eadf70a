"""The envelope itself: read from any bytes, written in one form, signed for those who leave the fabric.  Pure.

Duplicate keys are found without a second parser: what we wrote ourselves is exactly what we would write
again, and what is written from a dict has no key twice.  So what was read is written anew (in C, less work
than the reading) and compared; only bytes in somebody else's style go through the slow check.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any, NoReturn, Self

import msgspec
from nacl import bindings

from bridged.envelope.moment import EPOCH, format_time, from_ms, parse_time
from bridged.envelope.names import ACTION, SCHEMA, check_names, check_trace_id
from bridged.envelope.portable import DEPTH_MAX, canonical_json, portable
from bridged.envelope.signature import SIG_ED25519, SIG_MERKLE, check_sig, key_id, to_base64url
from bridged.errors import EnvelopeError
from shards import merkle
from shards.record import PAYLOAD_BYTES_MAX

# Specification constants (wire contract 1).
ENVELOPE_BYTES_MAX = PAYLOAD_BYTES_MAX

_AT = re.compile(r"`\$\.?([^`]*)`")
_MISSING = re.compile(r"missing required field `([^`]+)`")


class _Wire(msgspec.Struct, kw_only=True):
    """The text's own values; the order of the fields is the order in which we write."""

    schema: str = SCHEMA
    service: str
    action: str
    trace_id: str | msgspec.UnsetType = msgspec.UNSET
    occurred_at: str | msgspec.UnsetType = msgspec.UNSET
    metadata: dict[str, Any] = {}  # msgspec gives each its own
    payload: dict[str, Any]


_read = msgspec.json.Decoder(_Wire).decode
_write = msgspec.json.Encoder().encode


class Envelope(msgspec.Struct, frozen=True, kw_only=True):
    """One message, as it was understood.  Metadata and payload are kept verbatim, unknown keys included."""

    schema: str
    service: str
    action: str
    trace_id: str
    """32 lower hex digits from us; from others any 1 to 128 of A-Z a-z 0-9 . _ : -"""
    occurred_at: datetime
    """UTC, whole milliseconds."""
    metadata: dict[str, Any]
    payload: dict[str, Any]

    @classmethod
    def decode(cls, data: bytes, *, received_at: float | None = None, salt: bytes = b"") -> Self:
        """Read an envelope.          Wire contract, section 1.

        Args:
            data: One UTF-8 JSON object, at most 1 048 576 bytes.
            received_at: Wall time in seconds for an envelope without `occurred_at`; without it, 1970.
            salt: What tells two equal envelopes without a trace id apart, such as topic and offset.  The id
                that such an envelope is given is a digest: the same record keeps it when it comes again.

        Raises:
            EnvelopeError: `too_large`, `bad_envelope` (no such JSON), `schema_unsupported`, `missing_field`
                or `invalid_field`, with the field.
        """
        if len(data) > ENVELOPE_BYTES_MAX:
            raise EnvelopeError(
                "too_large", f"an envelope has at most {ENVELOPE_BYTES_MAX} bytes, not {len(data)}"
            )
        try:
            wire = _read(data)
        except msgspec.ValidationError as exc:
            _refuse_shape(exc)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
            raise EnvelopeError("bad_envelope", f"not an acceptable JSON text: {_reason(exc)}") from exc
        check_names(wire.schema, wire.service, wire.action)
        trace_id, occurred_at = wire.trace_id, wire.occurred_at
        if trace_id is msgspec.UNSET:
            trace_id = hashlib.sha256(salt + data).hexdigest()[:32]
        else:
            check_trace_id(trace_id)
        if occurred_at is msgspec.UNSET:
            at = EPOCH if received_at is None else from_ms(math.floor(received_at * 1000))
        else:
            at = parse_time(occurred_at)
        if _write(wire) != data:
            _refuse_duplicate_keys(data)
        if len(data) > 2 * DEPTH_MAX and data.count(b"{") + data.count(b"[") > DEPTH_MAX:
            _check_depth((wire.metadata, wire.payload))
        return cls(
            schema=wire.schema,
            service=wire.service,
            action=wire.action,
            trace_id=trace_id,
            occurred_at=at,
            metadata=wire.metadata,
            payload=wire.payload,
        )

    def encode(self) -> bytes:
        """The envelope's bytes: all seven keys, in the order of the contract, no blanks.

        Raises:
            EnvelopeError: `too_large`.
        """
        data = _write(
            _Wire(
                schema=self.schema,
                service=self.service,
                action=self.action,
                trace_id=self.trace_id,
                occurred_at=format_time(self.occurred_at),
                metadata=self.metadata,
                payload=self.payload,
            )
        )
        if len(data) > ENVELOPE_BYTES_MAX:
            raise EnvelopeError(
                "too_large", f"an envelope has at most {ENVELOPE_BYTES_MAX} bytes, not {len(data)}"
            )
        return data

    def canonical(self) -> bytes:
        """RFC 8785 canonical JSON of the whole envelope: the same bytes from every writer.

        Raises:
            EnvelopeError: `invalid_field`; an integer that no double writes so (`sign` turns such into strings).
        """
        return self._canonical(self.metadata)

    def signed_bytes(self) -> bytes:
        """What `metadata.sig` covers: the canonical JSON without `metadata.sig`."""
        return self._canonical({key: value for key, value in self.metadata.items() if key != "sig"})

    def sign(self, seed: bytes) -> Envelope:
        """A copy that may leave the fabric: `metadata.sig` is set and large numbers are strings.

        Args:
            seed: The 32 bytes of an Ed25519 signing key.
        """
        public, secret = bindings.crypto_sign_seed_keypair(seed)
        plain = self._unsigned()
        signature = bindings.crypto_sign(plain.signed_bytes(), secret)[: bindings.crypto_sign_BYTES]
        sig = {"alg": SIG_ED25519, "kid": key_id(public), "value": to_base64url(signature)}
        return plain._with_sig(sig)

    def verify(self, keys: Callable[[str], bytes | None]) -> str:
        """Check `metadata.sig` and return its key id.

        Args:
            keys: Key id -> the 32 bytes of that principal's public key, or None where nobody has it.

        Raises:
            EnvelopeError: `missing_field` without a signature, else `bad_envelope`: malformed, by an unknown
                key, or not of these bytes.
        """
        return check_sig(self.metadata.get("sig"), self.signed_bytes(), keys)

    def replace(self, **changes: Any) -> Envelope:
        """A copy with some fields changed."""
        return msgspec.structs.replace(self, **changes)

    def _unsigned(self) -> Envelope:
        metadata = {key: portable(value, "metadata") for key, value in self.metadata.items() if key != "sig"}
        return self.replace(metadata=metadata, payload=portable(self.payload))

    def _with_sig(self, sig: dict[str, Any]) -> Envelope:
        return self.replace(metadata={**self.metadata, "sig": sig})

    def _canonical(self, metadata: Mapping[str, Any]) -> bytes:
        whole: dict[str, Any] = {
            "schema": self.schema,
            "service": self.service,
            "action": self.action,
            "trace_id": self.trace_id,
            "occurred_at": format_time(self.occurred_at),
            "metadata": metadata,
            "payload": self.payload,
        }
        return canonical_json(whole)


def new_envelope(
    service: str,
    action: str,
    payload: dict[str, Any],
    *,
    now: float,
    trace_id: str,
    metadata: dict[str, Any] | None = None,
) -> Envelope:
    """An envelope of ours, in the one form that every party reads.

    Args:
        now: Wall time in seconds; cut to whole milliseconds.
        trace_id: From `new_trace_id`, or that of the envelope which this one answers.

    Raises:
        EnvelopeError: `invalid_field`; a name is outside the grammar or a value is none of JSON's.
    """
    if not ACTION.fullmatch(action):
        raise EnvelopeError("invalid_field", f"not an action: {action!a:.80}", field="action")
    check_names(SCHEMA, service, action)
    check_trace_id(trace_id)
    return Envelope(
        schema=SCHEMA,
        service=service,
        action=action,
        trace_id=trace_id,
        occurred_at=from_ms(math.floor(round(now * 1000, 3))),  # a double holds a wall time to 0.2 us
        metadata=portable(metadata or {}, "metadata"),
        payload=portable(payload),
    )


def new_trace_id(token_bytes: Callable[[int], bytes]) -> str:
    """32 lower hex digits, not all zero: also a W3C trace id."""
    while True:
        trace_id = token_bytes(16).hex()
        if trace_id.strip("0"):
            return trace_id


def sign_together(envelopes: Sequence[Envelope], seed: bytes) -> list[Envelope]:
    """Up to 64 envelopes under one signature, each provable alone; else as `Envelope.sign`.

    The leaves of the tree (`shards.merkle`) are the canonical bytes; `root` stands beside the contract's keys, so
    that one root which was verified serves all of them.

    Raises:
        LocalProtocolError: No envelope, or more than 64.
    """
    public, _ = bindings.crypto_sign_seed_keypair(seed)
    plain = [envelope._unsigned() for envelope in envelopes]
    batch = merkle.sign_batch([envelope.signed_bytes() for envelope in plain], seed)
    common = {
        "alg": SIG_MERKLE,
        "kid": key_id(public),
        "value": to_base64url(batch.signature),
        "root": to_base64url(batch.root),
        "n": batch.n,
    }
    return [
        envelope._with_sig(
            {**common, "index": index, "path": [to_base64url(node) for node in batch.proof(index).path]}
        )
        for index, envelope in enumerate(plain)
    ]


def _refuse_shape(exc: msgspec.ValidationError) -> NoReturn:
    text = str(exc)
    if missing := _MISSING.search(text):
        raise EnvelopeError("missing_field", f"{missing[1]} is required", field=missing[1]) from exc
    where = _AT.search(text)
    field = where[1].split("[")[0] if where and where[1] else None
    if field is None:
        raise EnvelopeError("bad_envelope", f"an envelope is one JSON object: {_reason(exc)}") from exc
    raise EnvelopeError("invalid_field", text, field=field) from exc


def _refuse_duplicate_keys(data: bytes) -> None:
    """Go through a text that msgspec has accepted, for the one thing that it does not see."""
    try:
        json.loads(data, object_pairs_hook=_unique)
    except EnvelopeError:
        raise
    except (ValueError, RecursionError) as exc:
        raise EnvelopeError("bad_envelope", f"not an acceptable JSON text: {_reason(exc)}") from exc


def _unique(pairs: list[tuple[str, Any]]) -> None:
    keys = {key for key, _ in pairs}
    if len(keys) == len(pairs):
        return
    for key, _ in pairs:
        if key not in keys:
            raise EnvelopeError("bad_envelope", f"the key {key!a:.60} stands twice in one object")
        keys.discard(key)


def _check_depth(values: Sequence[Any]) -> None:
    level: list[Any] = list(values)
    for _ in range(DEPTH_MAX):
        inner: list[Any] = []
        for value in level:
            if isinstance(value, dict):
                inner.extend(value.values())
            elif isinstance(value, list):
                inner.extend(value)
        if not inner:
            return
        level = inner
    raise EnvelopeError("bad_envelope", f"more than {DEPTH_MAX} objects and arrays within each other")


def _reason(exc: BaseException) -> str:
    """What is wrong, without a quotation of the text: it may hold anything."""
    if isinstance(exc, UnicodeDecodeError):
        return "not UTF-8"
    if isinstance(exc, RecursionError):
        return "nested too deeply"
    return str(exc)[:120]
