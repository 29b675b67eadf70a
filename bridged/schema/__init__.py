"""What an envelope's payload says, in one family of values whatever the network.  Pure.

`read_inbound` takes what a connector published, ours or upstream's, in any form of the wire contract's section 4,
and returns one `InboundEvent`; a payload that cannot be understood is an `EnvelopeError` with its code and field,
never a guess.  Beside it stand the two tables that everything else leans on: the closed set of error codes and the
states of a delivery.
"""

from bridged.schema.delivery import ERROR_CODES, TRANSITIONS, DeliveryState
from bridged.schema.events import (
    EPHEMERAL_ACTIONS,
    Cursor,
    DeliveryStatus,
    Edit,
    Fault,
    Gap,
    InboundEvent,
    Membership,
    Message,
    Person,
    Presence,
    Reaction,
    Receipt,
    Redaction,
    StateUpdate,
    Throttle,
    Typing,
)
from bridged.schema.inbound import ack_for, read_inbound

__all__ = [
    "EPHEMERAL_ACTIONS",
    "ERROR_CODES",
    "TRANSITIONS",
    "Cursor",
    "DeliveryState",
    "DeliveryStatus",
    "Edit",
    "Fault",
    "Gap",
    "InboundEvent",
    "Membership",
    "Message",
    "Person",
    "Presence",
    "Reaction",
    "Receipt",
    "Redaction",
    "StateUpdate",
    "Throttle",
    "Typing",
    "ack_for",
    "read_inbound",
]
