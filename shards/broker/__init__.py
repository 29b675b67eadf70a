"""The broker of a shard: links, principals, grants, groups and requests over the log.

- `serving`: `open_broker`, and the typed methods of a `Broker`
- `core`: the input loop: links, and what each frame is for
- `intake`: what is published, to its acknowledgement
- `readers`: who reads what; `feeds`: one task a group or tail; `outlet`: records to frames
- `requests`: who asks, who responds, which answers are kept
- `peer`: one link; `principals`: who may have one; `limits`, `statistics`
"""

from __future__ import annotations

from shards.broker.limits import Limits
from shards.broker.principals import Invite, Principal
from shards.broker.requests import RequestStatistics
from shards.broker.serving import Broker, DeadLetter, open_broker, server_key
from shards.broker.statistics import BrokerStatistics, GroupStatistics
from shards.log import LogStatistics, TopicStatistics

__all__ = [
    "Broker",
    "BrokerStatistics",
    "DeadLetter",
    "GroupStatistics",
    "Invite",
    "Limits",
    "LogStatistics",
    "Principal",
    "RequestStatistics",
    "TopicStatistics",
    "open_broker",
    "server_key",
]
