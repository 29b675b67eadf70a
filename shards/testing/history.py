"""Was everything kept that was promised?  A checker of histories.  Pure.

A history is a list of events in the order in which they happened:

- `Offered(producer, conversation, tenant, number)`: a producer begins to publish its number-th message;
- `Acked`: the system promised to keep it; `Refused`: it promised not to have taken it;
- `Received(consumer, ...)`: a consumer's effect took place;
- `Read(reader, topic, offset, message)`: a reader saw this at that offset of a topic.

Offsets make the order explicit, so linear time is enough: no search for a linearization.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

import attrs


@attrs.frozen(slots=True)
class Message:
    """The identity of one message of a test."""

    tenant: str
    producer: str
    conversation: str
    number: int
    """Counts up within (producer, conversation)."""


@attrs.frozen(slots=True)
class Offered:
    message: Message


@attrs.frozen(slots=True)
class Acked:
    message: Message


@attrs.frozen(slots=True)
class Refused:
    message: Message


@attrs.frozen(slots=True)
class Received:
    consumer: str
    message: Message


@attrs.frozen(slots=True)
class Read:
    reader: str
    topic: str
    offset: int
    message: Message


Event = Offered | Acked | Refused | Received | Read


@attrs.define(slots=True)
class Verdict:
    """What a history shows.  Each list names the messages at fault."""

    lost: list[Message] = attrs.Factory(list)
    """Acknowledged, never received."""
    duplicated: list[Message] = attrs.Factory(list)
    """Received twice by one consumer."""
    reordered: list[tuple[Message, int]] = attrs.Factory(list)
    """Received after a later one of the same producer and conversation."""
    unexpected: list[Message] = attrs.Factory(list)
    """Received or acknowledged though nobody had offered it yet."""
    refused_but_received: list[Message] = attrs.Factory(list)
    crossed_tenants: list[tuple[str, Message]] = attrs.Factory(list)
    diverged: list[tuple[str, int, Message, Message]] = attrs.Factory(list)
    """Two messages at one offset of a topic."""
    holes: list[tuple[str, str, int, int]] = attrs.Factory(list)
    """(reader, topic, offset wanted, offset seen): a reader jumped or went back."""
    doubled_in_log: list[tuple[str, Message]] = attrs.Factory(list)
    """One message at two offsets."""
    offered: int = 0
    acked: int = 0
    received: int = 0

    @property
    def ok(self) -> bool:
        return not self.faults

    @property
    def faults(self) -> dict[str, int]:
        """Name of a fault -> how often, without those that did not happen."""
        counted = {
            field.name: len(value)
            for field in attrs.fields(type(self))
            if isinstance(value := getattr(self, field.name), list)
        }
        return {name: n for name, n in counted.items() if n}


def check_history(
    history: Iterable[Event], *, tenant_of: Mapping[str, str] | None = None, consumers: Iterable[str] = ()
) -> Verdict:
    """Judge a history that ran until it was quiet.

    Args:
        history: The events, as they happened.
        tenant_of: Which tenant each consumer and reader belongs to; messages of another are crossings.
        consumers: Who should have received everything of its tenant.  A message counts as lost when one of them
            misses it; without any, when nobody has it.
    """
    tenants = tenant_of or {}
    verdict = Verdict()
    offered: set[Message] = set()
    acked: dict[Message, None] = {}
    refused: set[Message] = set()
    received: dict[str, Counter[Message]] = {name: Counter() for name in consumers}
    last: dict[tuple[str, str, str, str], int] = {}
    at_offset: dict[tuple[str, str, int], Message] = {}
    offset_of: dict[tuple[str, str, Message], int] = {}
    reading: dict[tuple[str, str], int] = {}
    for event in history:
        message = event.message
        match event:
            case Offered():
                offered.add(message)
                continue
            case Acked():
                acked[message] = None
            case Refused():
                refused.add(message)
                continue
            case Received(consumer):
                if tenants.get(consumer, message.tenant) != message.tenant:
                    verdict.crossed_tenants.append((consumer, message))
                seen = received.setdefault(consumer, Counter())
                seen[message] += 1
                if seen[message] == 2:
                    verdict.duplicated.append(message)
                if seen[message] == 1:
                    lane = (consumer, message.tenant, message.producer, message.conversation)
                    if message.number < last.get(lane, -1):
                        verdict.reordered.append((message, last[lane]))
                    last[lane] = max(message.number, last.get(lane, -1))
            case Read(reader, topic, offset):
                if tenants.get(reader, message.tenant) != message.tenant:
                    verdict.crossed_tenants.append((reader, message))
                other = at_offset.setdefault((message.tenant, topic, offset), message)
                if other != message:
                    verdict.diverged.append((topic, offset, other, message))
                first = offset_of.setdefault((message.tenant, topic, message), offset)
                if first != offset:
                    verdict.doubled_in_log.append((topic, message))
                wanted = reading.get((reader, topic), offset)
                if offset != wanted:
                    verdict.holes.append((reader, topic, wanted, offset))
                reading[reader, topic] = offset + 1
        if message not in offered:
            verdict.unexpected.append(message)
    everybody = Counter[Message]()
    for seen in received.values():
        everybody.update(seen)
    for message in acked:
        wanted_by = [name for name in consumers if tenants.get(name, message.tenant) == message.tenant]
        if any(not received[name][message] for name in wanted_by) or (
            not wanted_by and not everybody[message]
        ):
            verdict.lost.append(message)
    verdict.refused_but_received = [message for message in everybody if message in refused]
    verdict.offered, verdict.acked, verdict.received = len(offered), len(acked), len(everybody)
    return verdict
