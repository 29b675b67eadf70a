"""The way into the fabric: publish, subscribe, request, respond, replay.

- `core`: `open_client` and `Client`: what outlives a link, and the loop that makes links
- `session`: one link; `identity`: whose it is
- `publisher`: signed batches, coalesced
- `subscription`: records, credit, acknowledgements
- `responder`: calls and their handlers
"""

from __future__ import annotations

from shards.client.core import Client, open_client
from shards.client.identity import Identity
from shards.client.publisher import Published
from shards.client.responder import Request
from shards.client.subscription import Subscription
from shards.link import Invite

__all__ = ["Client", "Identity", "Invite", "Published", "Request", "Subscription", "open_client"]
