"""The one message of the house: seven keys, a topic that fits them, a signature for those who leave.  Pure.

`Envelope.decode` takes bytes of any origin and gives an envelope or an `EnvelopeError` with a dead-letter
code; nothing else comes out of it.  The rules are those of the wire contract (sections 1 and 2): read every
form that an upstream party writes, write the one form that all of them read.
"""

from bridged.envelope.form import ENVELOPE_BYTES_MAX, Envelope, new_envelope, new_trace_id, sign_together
from bridged.envelope.moment import EPOCH, format_time, from_ms, parse_time, to_ms
from bridged.envelope.names import SCHEMA
from bridged.envelope.portable import DEPTH_MAX, SAFE_INTEGER_MAX, canonical_json, portable
from bridged.envelope.signature import (
    SIG_ED25519,
    SIG_MERKLE,
    from_base64url,
    key_id,
    to_base64url,
    verify_ed25519,
)
from bridged.envelope.topic import LOG_TOPIC, TopicName, parse_topic, reply_topic, topic_for

__all__ = [
    "DEPTH_MAX",
    "ENVELOPE_BYTES_MAX",
    "EPOCH",
    "LOG_TOPIC",
    "SAFE_INTEGER_MAX",
    "SCHEMA",
    "SIG_ED25519",
    "SIG_MERKLE",
    "Envelope",
    "TopicName",
    "canonical_json",
    "format_time",
    "from_base64url",
    "from_ms",
    "key_id",
    "new_envelope",
    "new_trace_id",
    "parse_time",
    "parse_topic",
    "portable",
    "reply_topic",
    "sign_together",
    "to_base64url",
    "to_ms",
    "topic_for",
    "verify_ed25519",
]
