"""The one message of the house: seven keys, a topic that fits them, a signature for those who leave.  Pure.

`Envelope.decode` takes bytes of any origin and gives an envelope or an `EnvelopeError` with a dead-letter
code; nothing else comes out of it.  The rules are those of the wire contract (sections 1 and 2): read every
form that an upstream party writes, write the one form that all of them read.

Duplicate keys are found without a second parser: what we wrote ourselves is exactly what we would write
again, and what is written from a dict has no key twice.  So what was read is written anew (in C, less work
than the reading) and compared; only bytes in somebody else's style go through the slow check.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Any, NoReturn, Self

import attrs
import msgspec
import rfc8785
from nacl import bindings, exceptions

from bridged.errors import EnvelopeError
from shards import merkle
from shards.errors import RemoteProtocolError
from shards.record import PAYLOAD_BYTES_MAX, TOPIC_BYTES_MAX, BatchProof

# Specification constants (wire contract 1 and 2).
SCHEMA = "msgr.bridge.v1"
SCHEMA_MAJOR = "1"
ENVELOPE_BYTES_MAX = PAYLOAD_BYTES_MAX
LOG_TOPIC = "observability/logs"
SIG_ED25519 = "ed25519"
SIG_MERKLE = "ed25519-merkle"
SAFE_INTEGER_MAX = 2**53 - 1
"""Beyond it a number is not the same in every JSON reader, so it travels as a string."""

# Ours.
DEPTH_MAX = 64
"""Arrays and objects within each other; real envelopes have six."""
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
"""The `occurred_at` of an envelope that had none and whose time of arrival nobody told."""

_SERVICE = re.compile(r"[a-z][a-z0-9_]{1,31}")
_ACTION = re.compile(r"[a-z][a-z0-9_]{0,63}")
# `link_account:success`: one upstream plan names events so; read, never written.
_ACTION_READ = re.compile(r"[a-z][a-z0-9_]{0,63}(?::[a-z][a-z0-9_]{0,63})?")
_INSTANCE = re.compile(r"[A-Za-z0-9._-]{1,64}")
_TRACE_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
_TIME = re.compile(
    r"([0-9]{4}-[0-9]{2}-[0-9]{2})[Tt]([0-9]{2}:[0-9]{2}:[0-9]{2})(?:\.([0-9]{1,9}))?([Zz]|[+-][0-9]{2}:[0-9]{2})"
)
_NAIVE = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}[Tt ][0-9:.]+")
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
        _check_names(wire.schema, wire.service, wire.action)
        trace_id, occurred_at = wire.trace_id, wire.occurred_at
        if trace_id is msgspec.UNSET:
            trace_id = hashlib.sha256(salt + data).hexdigest()[:32]
        elif not (trace_id.isalnum() and trace_id.isascii() and len(trace_id) <= 128) and (
            _TRACE_ID.fullmatch(trace_id) is None
        ):
            raise EnvelopeError(
                "invalid_field", "trace_id is 1 to 128 of A-Z a-z 0-9 . _ : -", field="trace_id"
            )
        if occurred_at is msgspec.UNSET:
            at = EPOCH if received_at is None else from_ms(math.floor(received_at * 1000))
        else:
            at = parse_time(occurred_at)
        if _write(wire) != data:
            _refuse_duplicate_keys(data)
        if data.count(b"{") + data.count(b"[") > DEPTH_MAX:
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
        sig = self.metadata.get("sig")
        if sig is None:
            raise EnvelopeError("missing_field", "the envelope carries no signature", field="metadata.sig")
        if not isinstance(sig, dict) or not isinstance(sig.get("kid"), str):
            raise _bad_sig("names no key")
        public = keys(sig["kid"])
        if public is None:
            raise _bad_sig("is by a key that nobody here has")
        match sig:
            case {"alg": "ed25519", "value": str(value)}:
                is_good = verify_ed25519(public, self.signed_bytes(), from_base64url(value))
            case {"alg": "ed25519-merkle"}:
                is_good = _is_leaf(self.signed_bytes(), sig, public)
            case _:
                raise _bad_sig("is of no form that we know")
        if not is_good:
            raise _bad_sig("does not fit the envelope")
        kid: str = sig["kid"]
        return kid

    def replace(self, **changes: Any) -> Envelope:
        """A copy with some fields changed."""
        return msgspec.structs.replace(self, **changes)

    def _unsigned(self) -> Envelope:
        metadata = {key: portable(value) for key, value in self.metadata.items() if key != "sig"}
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
        try:
            return rfc8785.dumps(whole)
        except rfc8785.IntegerDomainError:
            return rfc8785.dumps(_as_doubles(whole))


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
    if not _ACTION.fullmatch(action):
        raise EnvelopeError("invalid_field", f"not an action: {action!a:.80}", field="action")
    _check_names(SCHEMA, service, action)
    if not _TRACE_ID.fullmatch(trace_id):
        raise EnvelopeError("invalid_field", "trace_id is 1 to 128 of A-Z a-z 0-9 . _ : -", field="trace_id")
    return Envelope(
        schema=SCHEMA,
        service=service,
        action=action,
        trace_id=trace_id,
        occurred_at=from_ms(math.floor(now * 1000)),
        metadata=portable(metadata or {}, "metadata"),
        payload=portable(payload),
    )


def new_trace_id(token_bytes: Callable[[int], bytes]) -> str:
    """32 lower hex digits, not all zero: also a W3C trace id."""
    while True:
        trace_id = token_bytes(16).hex()
        if trace_id.strip("0"):
            return trace_id


def portable(value: Any, path: str = "payload") -> Any:
    """The value as every JSON reader understands it: integers beyond 2**53 - 1 become strings, tuples lists.

    A value that needs no change is returned itself.

    Raises:
        EnvelopeError: `invalid_field` with the path; NaN, an infinity, a key that is no text, half a
            character, or a type that JSON has not.  (msgspec alone writes NaN as null, the key 1 as "1".)
    """
    return value if _is_portable(value, 0) else _made_portable(value, path, 0)


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


# Topics.


@attrs.frozen(kw_only=True, slots=True)
class TopicName:
    """A topic taken apart.  `reply_to` is the trace id at the end of a reply topic, else None."""

    service: str
    instance: str | None
    action: str
    reply_to: str | None = None


def topic_for(service: str, action: str, instance: str | None = None) -> str:
    """`bridge/SERVICE/ACTION`, of one instance `bridge/SERVICE/INSTANCE/ACTION`.          Wire contract, 2.

    Raises:
        EnvelopeError: `invalid_field`; a part is outside the grammar.  Blanks around an instance are trimmed.
    """
    if service == "observability" and action == "log" and instance is None:
        return LOG_TOPIC
    _check_names(SCHEMA, service, action)
    if instance is None:
        return f"bridge/{service}/{action}"
    return f"bridge/{service}/{_checked_instance(instance.strip())}/{action}"


def reply_topic(topic: str, trace_id: str) -> str:
    """Where the answer to the request `trace_id` on `topic` may also be read.

    Raises:
        EnvelopeError: `invalid_field`; the trace id is none, or the whole is longer than a topic may be.
    """
    whole = f"{topic}/reply/{trace_id}"
    parse_topic(whole)
    return whole


def parse_topic(topic: str) -> TopicName:
    """Take a topic apart.

    Raises:
        EnvelopeError: `invalid_field`, field `topic`.
    """
    if topic == LOG_TOPIC:
        return TopicName(service="observability", instance=None, action="log")
    if len(topic) > TOPIC_BYTES_MAX:
        raise _bad_topic(topic)
    parts = topic.split("/")
    reply_to = None
    if len(parts) in (5, 6) and parts[-2] == "reply":
        reply_to = parts[-1]
        parts = parts[:-2]
        if not _TRACE_ID.fullmatch(reply_to):
            raise _bad_topic(topic)
    if len(parts) not in (3, 4) or parts[0] != "bridge":
        raise _bad_topic(topic)
    service, action = parts[1], parts[-1]
    instance = parts[2] if len(parts) == 4 else None
    if (
        not _SERVICE.fullmatch(service)
        or not _ACTION_READ.fullmatch(action)
        or (instance is not None and (instance == "reply" or not _INSTANCE.fullmatch(instance)))
    ):
        raise _bad_topic(topic)
    return TopicName(service=service, instance=instance, action=action, reply_to=reply_to)


# Times, keys, base64url.


def parse_time(text: str, field: str = "occurred_at") -> datetime:
    """RFC 3339 with an offset, to nine fraction digits -> UTC, cut (not rounded) to whole milliseconds.

    Raises:
        EnvelopeError: `invalid_field`; a time without an offset is nobody's time and is refused.
    """
    if len(text) == 24 and text[4:8:3] == "--" and text[10:20:9] == "T." and text[23] == "Z":  # our own form
        try:
            return datetime.fromisoformat(text)
        except ValueError as exc:
            raise EnvelopeError("invalid_field", f"{field} is no time: {text}", field=field) from exc
    match = _TIME.fullmatch(text)
    if match is None:
        what = "has no UTC offset" if _NAIVE.fullmatch(text) else "is no RFC 3339 time"
        raise EnvelopeError("invalid_field", f"{field} {what}: {text!a:.60}", field=field)
    day, clock, fraction, offset = match.groups()
    milliseconds = f"{fraction or '':0<3.3}"
    try:
        moment = datetime.fromisoformat(f"{day}T{clock}.{milliseconds}{offset.upper()}")
        return moment if offset in "Zz" else moment.astimezone(UTC)
    except (ValueError, OverflowError) as exc:
        raise EnvelopeError("invalid_field", f"{field} is no time: {text!a:.60}", field=field) from exc


def format_time(moment: datetime) -> str:
    """`YYYY-MM-DDTHH:MM:SS.mmmZ`, cut to whole milliseconds."""
    if moment.tzinfo is not UTC:
        moment = moment.astimezone(UTC)
    text = _write(moment).decode()  # `"2026-11-24T08:00:01.007000Z"`; twenty times faster than isoformat
    return text[1:24] + "Z" if text[20] == "." else text[1:20] + ".000Z"


def from_ms(milliseconds: int) -> datetime:
    """Milliseconds since 1970 -> UTC."""
    return EPOCH + timedelta(milliseconds=milliseconds)


def to_ms(moment: datetime) -> int:
    """Milliseconds since 1970, cut."""
    return (moment - EPOCH) // timedelta(milliseconds=1)


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


# Private.


def _is_portable(value: Any, depth: int) -> bool:
    """The quick half of `portable`: True only where the other half would change nothing."""
    if depth > DEPTH_MAX:
        return False
    inner: Iterable[Any]
    if type(value) is dict:
        for key in value:
            if type(key) is not str or not (key.isascii() or _is_text(key)):
                return False
        inner = value.values()
    elif type(value) is list:
        inner = value
    else:
        inner = (value,)
    for one in inner:
        kind = type(one)
        if kind is str:
            if not (one.isascii() or _is_text(one)):
                return False
        elif kind is int:
            if not -SAFE_INTEGER_MAX <= one <= SAFE_INTEGER_MAX:
                return False
        elif kind is dict or kind is list:
            if not _is_portable(one, depth + 1):
                return False
        elif not (one is None or kind is bool or (kind is float and math.isfinite(one))):
            return False
    return True


def _made_portable(value: Any, path: str, depth: int) -> Any:
    """The slow half: change what can be changed, name what cannot."""
    if depth > DEPTH_MAX:
        raise EnvelopeError("invalid_field", f"{path} is nested too deeply", field=path)
    if isinstance(value, Mapping):
        done = {}
        for key, inner in value.items():
            if type(key) is not str or not _is_text(key):
                raise EnvelopeError("invalid_field", f"{path} has a key that is no text", field=path)
            done[key] = _made_portable(inner, f"{path}.{key}", depth + 1)
        return done
    if isinstance(value, list | tuple):
        return [_made_portable(inner, f"{path}[{n}]", depth + 1) for n, inner in enumerate(value)]
    if type(value) is int:
        return value if -SAFE_INTEGER_MAX <= value <= SAFE_INTEGER_MAX else str(value)
    if _is_portable(value, 0):
        return value
    what = "half a character" if type(value) is str else f"a {type(value).__name__} that JSON has not"
    raise EnvelopeError("invalid_field", f"{path} holds {what}", field=path)


def _as_doubles(value: Any) -> Any:
    """Large integers that are a double's own text; RFC 8785 knows doubles alone and writes those without a dot."""
    if isinstance(value, dict):
        return {key: _as_doubles(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_as_doubles(inner) for inner in value]
    if type(value) is not int or -SAFE_INTEGER_MAX <= value <= SAFE_INTEGER_MAX:
        return value
    if value.bit_length() < 71 and rfc8785.dumps(float(value)) == str(value).encode():
        return float(value)
    raise EnvelopeError("invalid_field", "a number beyond 2**53 - 1 must travel as a string", field="payload")


def _is_text(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:  # half of a surrogate pair
        return False
    return True


@lru_cache(maxsize=1024)
def _check_names(schema: str, service: str, action: str) -> None:
    _, dot_v, major = schema.rpartition(".v")
    if not dot_v or major != SCHEMA_MAJOR or not _TRACE_ID.fullmatch(schema):
        raise EnvelopeError(
            "schema_unsupported", f"only major version 1 is understood, not {schema!a:.60}", field="schema"
        )
    if not _SERVICE.fullmatch(service):
        raise EnvelopeError("invalid_field", f"not a service: {service!a:.80}", field="service")
    if not _ACTION_READ.fullmatch(action):
        raise EnvelopeError("invalid_field", f"not an action: {action!a:.80}", field="action")


def _checked_instance(instance: str) -> str:
    if instance == "reply" or not _INSTANCE.fullmatch(instance):
        raise EnvelopeError("invalid_field", f"not an instance: {instance!a:.80}", field="instance")
    return instance


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


def _bad_topic(topic: str) -> EnvelopeError:
    return EnvelopeError(
        "invalid_field", f"not bridge/SERVICE[/INSTANCE]/ACTION: {topic!a:.80}", field="topic"
    )
