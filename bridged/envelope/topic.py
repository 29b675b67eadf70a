"""Topics: the name of a sequence, built and taken apart.          Wire contract, section 2.  Pure."""

from __future__ import annotations

import attrs

from bridged.envelope.names import ACTION_READ, INSTANCE, SCHEMA, SERVICE, TRACE_ID, check_names
from bridged.errors import EnvelopeError
from shards.record import TOPIC_BYTES_MAX

# Specification constants.
LOG_TOPIC = "observability/logs"


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
    check_names(SCHEMA, service, action)
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
        if not TRACE_ID.fullmatch(reply_to):
            raise _bad_topic(topic)
    if len(parts) not in (3, 4) or parts[0] != "bridge":
        raise _bad_topic(topic)
    service, action = parts[1], parts[-1]
    instance = parts[2] if len(parts) == 4 else None
    if (
        not SERVICE.fullmatch(service)
        or not ACTION_READ.fullmatch(action)
        or (instance is not None and (instance == "reply" or not INSTANCE.fullmatch(instance)))
    ):
        raise _bad_topic(topic)
    return TopicName(service=service, instance=instance, action=action, reply_to=reply_to)


def _checked_instance(instance: str) -> str:
    if instance == "reply" or not INSTANCE.fullmatch(instance):
        raise EnvelopeError("invalid_field", f"not an instance: {instance!a:.80}", field="instance")
    return instance


def _bad_topic(topic: str) -> EnvelopeError:
    return EnvelopeError(
        "invalid_field", f"not bridge/SERVICE[/INSTANCE]/ACTION: {topic!a:.80}", field="topic"
    )
