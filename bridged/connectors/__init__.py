"""The connector contract: what a platform's connector is, and nothing of any platform.

A connector is one honest attempt: `run` logs in, says that it serves, carries messages both ways and raises a
`ConnectorError` when the platform is lost.  The shard's supervisor is the persistence; a connector has no
reconnect loop of its own.  What every connector needs of the house (leases, cursors, publishing, the
outbound queue with its idempotence) is in the `Desk` that `run` is given (`bridged.connectors.desk`).
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, Protocol

import attrs
import trio

if TYPE_CHECKING:
    from bridged.connectors.desk import Desk

SERVICES = ("echo", "irc", "xmpp")
"""The platforms that are spoken; each is a folder here with a `Settings` class and a `connector` room."""


class ConnectorState(enum.Enum):
    """Where a connector stands; published as `state_update` on every change."""

    STARTING = "starting"
    WAITING_CREDENTIAL = "waiting_credential"
    CONNECTING = "connecting"
    RUNNING = "running"
    BACKING_OFF = "backing_off"
    STOPPED = "stopped"
    """Given up until an operator resumes it: bad credentials, a ban, or too many unexpected faults."""


@attrs.frozen(kw_only=True)
class Capabilities:
    """What crosses to and from this platform as itself; what is False is shown by a readable fallback."""

    edits: bool
    deletes: bool
    replies: bool
    reactions: bool
    typing: bool
    receipts: bool
    formatting: bool
    attachments: bool
    history: bool
    """Lines said while we were away can be fetched."""
    confirms: bool
    """The platform tells afterwards whether a message arrived; where not, an outcome can be `unknown`."""
    text_bytes_max: int
    extensions: tuple[str, ...] = ()
    """The platform's own names of what is spoken: IRCv3 capabilities, XEP numbers."""


class Connector(Protocol):
    """One platform, for one instance."""

    service: str
    instance: str
    capabilities: Capabilities

    async def run(self, desk: Desk, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """One attempt: until cancelled, or a `ConnectorError`.  `started()` when messages flow."""
        ...
