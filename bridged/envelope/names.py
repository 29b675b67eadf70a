"""The grammar of names in envelopes and topics.          Wire contract, sections 1 and 2.  Pure."""

from __future__ import annotations

import re
from functools import lru_cache

from bridged.errors import EnvelopeError

# Specification constants.
SCHEMA = "msgr.bridge.v1"
SCHEMA_MAJOR = "1"
SERVICE = re.compile(r"[a-z][a-z0-9_]{1,31}")
ACTION = re.compile(r"[a-z][a-z0-9_]{0,63}")
# `link_account:success`: one upstream plan names events so; read, never written.
ACTION_READ = re.compile(r"[a-z][a-z0-9_]{0,63}(?::[a-z][a-z0-9_]{0,63})?")
INSTANCE = re.compile(r"[A-Za-z0-9._-]{1,64}")
TRACE_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")


@lru_cache(maxsize=1024)
def check_names(schema: str, service: str, action: str) -> None:
    """Raise EnvelopeError: `schema_unsupported`, or `invalid_field` for a service or an action."""
    _, dot_v, major = schema.rpartition(".v")
    if not dot_v or major != SCHEMA_MAJOR or not TRACE_ID.fullmatch(schema):
        raise EnvelopeError(
            "schema_unsupported", f"only major version 1 is understood, not {schema!a:.60}", field="schema"
        )
    if not SERVICE.fullmatch(service):
        raise EnvelopeError("invalid_field", f"not a service: {service!a:.80}", field="service")
    if not ACTION_READ.fullmatch(action):
        raise EnvelopeError("invalid_field", f"not an action: {action!a:.80}", field="action")


def check_trace_id(trace_id: str) -> None:
    """Raise EnvelopeError `invalid_field` where it is none."""
    if trace_id.isalnum() and trace_id.isascii() and len(trace_id) <= 128:
        return  # the common case, at a third of the expression's cost
    if TRACE_ID.fullmatch(trace_id) is None:
        raise EnvelopeError("invalid_field", "trace_id is 1 to 128 of A-Z a-z 0-9 . _ : -", field="trace_id")
