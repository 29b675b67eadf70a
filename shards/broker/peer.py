"""One link as the broker sees it: its Noise session, what waits to be sent, and what it has open.

`send` never waits.  What the socket will not take stays here, in order and bounded by the credit that the peer
has given; a peer that lets it grow beyond the bound is too slow and loses its link.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

import attrs
import trio

from shards import wire
from shards.broker.principals import Principal
from shards.env import Frames
from shards.grant import Verb, allows
from shards.link import Reason, Responder

if TYPE_CHECKING:
    from shards.broker.feeds import Feed
    from shards.broker.outlet import Outlet


@attrs.define(eq=False)
class Open:
    """A subscription of the link: where it is fed from."""

    feed: Feed
    outlet: Outlet


class Peer:
    """A link with a client."""

    def __init__(
        self,
        id_: bytes,
        serial: int,
        link: Responder,
        frames: Frames,
        *,
        queue_octets: int,
        too_slow: Callable[[Peer], None],
    ) -> None:
        self.id = id_
        self.serial = serial
        self.link = link
        self.principal: Principal | None = None
        self.assembly = wire.Assembly()
        self.opened_at = self.heard_at = trio.current_time()
        self.is_dead = False
        self.enrolling: str | None = None
        """The invite with which a newcomer has proven itself."""
        self.acks: list[wire.Acked] = []
        self.subscriptions: dict[int, Open] = {}
        self.responding: dict[int, tuple[str, ...]] = {}
        self.requests: set[int] = set()
        self.publish_frames = 0
        self.publish_octets = 0
        self.refused_from: int | None = None
        """The first publish that was refused for overload: none after it is taken before it comes again."""
        self._frames = frames
        self._queue: deque[bytes] = deque()
        self._queued = 0
        self._queue_octets = queue_octets
        self._too_slow = too_slow
        self._sealed: bytes | None = None
        self._allowed: dict[tuple[Verb, str | None], bool] = {}

    @property
    def is_stalled(self) -> bool:
        """Something waits for room in the peer's socket."""
        return self._sealed is not None

    @property
    def queued(self) -> int:
        """Frames that wait."""
        return len(self._queue)

    def allows(self, verb: Verb, topic: str | None) -> bool:
        """Whether the peer's principal may; remembered until its grants change."""
        decided = self._allowed.get((verb, topic))
        if decided is None:
            if len(self._allowed) > 4096:
                self._allowed.clear()
            grants = self.principal.grants if self.principal is not None else ()
            decided = self._allowed[verb, topic] = allows(grants, verb, topic)
        return decided

    def take_principal(self, principal: Principal) -> None:
        """The link's principal, or its new row."""
        self.principal = principal
        self._allowed.clear()

    def send(self, frame: wire.Frame) -> None:
        """Send, or keep in order what the socket will not take now; where too much waits, the link ends."""
        if self.is_dead:
            return
        for plaintext in wire.encode(frame):
            self._queue.append(plaintext)
            self._queued += len(plaintext)
        if self._queued > self._queue_octets:
            self._too_slow(self)
            return
        self.flush()

    def refuse(self, request: int) -> None:
        """Not granted: the same words whether a name is foreign, absent or without a grant."""
        text = "no grant for this, or no such name"
        self.send(wire.Nak(request, wire.Code.NOT_GRANTED, wire.NO_RETRY, text))

    def say(self, last: wire.Frame) -> None:
        """A last word, if the link stands; it may get lost."""
        if self.link.is_established:
            self.send(last)

    def send_raw(self, frame: bytes) -> None:
        """A handshake or reset frame: outside the session, so nothing waits before it."""
        self._frames.send_nowait(self.id, frame)

    def flush(self) -> None:
        """Hand to the socket what it takes."""
        if self.is_dead:
            return
        now = trio.current_time()
        while True:
            # A sealed frame that is lost loses the session, so it is kept until the socket has it.
            if self._sealed is not None:
                if not self._frames.send_nowait(self.id, self._sealed):
                    return
                self._sealed = None
            if not self._queue:
                return
            plaintext = self._queue.popleft()
            self._queued -= len(plaintext)
            self._sealed = self.link.seal(plaintext, now)

    def end(self, reason: Reason) -> None:
        """From now on nothing is sent or heard; the connection is cut by the broker's housekeeping."""
        if self.is_dead:
            return
        self.send_raw(self.link.reset(reason))
        self.is_dead = True
        self._queue.clear()
        self._sealed = None
