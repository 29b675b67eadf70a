"""What is published: bounded, appended, acknowledged after its commit.

Order is kept through an overload: once a publish of a link was refused, none that it published later is taken
before the refused one comes again.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from shards import store, wire
from shards.broker.limits import Limits
from shards.broker.peer import Peer
from shards.broker.principals import Principal
from shards.errors import LogFull, RemoteProtocolError
from shards.log import Appended, Log

OVERLOADED_RETRY_MS = 100
ACKS_MAX = 2048
"""In one frame."""


class Intake:
    """The publishing half of one broker."""

    def __init__(
        self,
        log: Log,
        limits: Limits,
        wake: Callable[[str, str], None],
        acks_wait: Callable[[], None],
    ) -> None:
        """Args: wake: (tenant, topic) has new records.  acks_wait: call `acknowledge` soon."""
        self.published = 0
        self.duplicates = 0
        self.overloaded = 0
        self.pending_octets = 0
        self._log = log
        self._limits = limits
        self._wake = wake
        self._acks_wait = acks_wait
        self._acking: dict[Peer, None] = {}
        self._topics: dict[str, set[str]] = {}

    def publish(self, peer: Peer, principal: Principal, frame: wire.Publish) -> None:
        """A publish that was granted; the answer comes after the commit.

        Raises:
            RemoteProtocolError: The batch is malformed.
        """
        octets = len(frame.batch)
        if peer.refused_from is not None:
            # Order: after one refusal nothing is taken that was published later, until that one comes again.
            if frame.request > peer.refused_from:
                peer.send(_overload(frame.request))
                return
            peer.refused_from = None
        if not self._has_room_for(principal.tenant, frame.topic):
            text = "the tenant has too many topics"
            peer.send(wire.Nak(frame.request, wire.Code.LIMIT, wire.NO_RETRY, text))
            return
        keys = wire.batch_keys(frame.batch)
        if frame.epoch >= 1 << 63 or frame.sequence + len(keys) >= 1 << 63:
            raise RemoteProtocolError("an epoch or sequence is out of bounds")
        if (
            peer.publish_frames >= self._limits.publish_frames
            or peer.publish_octets + octets > self._limits.publish_octets
            or self.pending_octets + octets > self._limits.publish_octets_total
        ):
            self._refuse_for_now(peer, frame.request)
            return
        batch = store.Batch(
            tenant=principal.tenant,
            topic=frame.topic,
            principal=principal.name,
            epoch=frame.epoch,
            sequence=frame.sequence,
            keys=keys,
            body=frame.batch,
        )
        then = partial(self._appended, peer, principal.tenant, frame.topic, frame.request, octets)
        try:
            self._log.append(batch, then)
        except LogFull:  # the writer is behind, not the disk full: that comes by the callback
            self._refuse_for_now(peer, frame.request)
            return
        peer.publish_frames += 1
        peer.publish_octets += octets
        self.pending_octets += octets

    def _has_room_for(self, tenant: str, topic: str) -> bool:
        """A topic stays in memory for good, so a tenant cannot have any number of them."""
        known = self._topics.get(tenant)
        if known is None:
            known = self._topics[tenant] = {t.topic for t in self._log.topics(tenant)}
        if topic not in known:
            if len(known) >= self._limits.topics:
                return False
            known.add(topic)
        return True

    def _refuse_for_now(self, peer: Peer, request: int) -> None:
        self.overloaded += 1
        peer.refused_from = request
        peer.send(_overload(request))

    def _appended(
        self,
        peer: Peer,
        tenant: str,
        topic: str,
        request: int,
        octets: int,
        appended: Appended | None,
        error: Exception | None,
    ) -> None:
        """The log's word after the commit; on the loop, in journal order."""
        self.pending_octets -= octets
        peer.publish_frames -= 1
        peer.publish_octets -= octets
        if appended is None:
            # A storage that has failed says nothing to anybody: `open_broker` raises it and the shard ends.
            if isinstance(error, LogFull):
                peer.send(wire.Nak(request, wire.Code.LOG_FULL, 1000, str(error)[:200]))
            return
        if appended.overlap:
            peer.send(wire.Nak(request, wire.Code.OVERLAP, 0, "part of the batch was accepted before"))
            return
        if appended.duplicate:
            self.duplicates += 1
        else:
            self.published += appended.n
            self._wake(tenant, topic)
        if not peer.is_dead:
            offset, position = max(appended.offset, 0), max(appended.position, 0)
            peer.acks.append(wire.Acked(request, offset, position, appended.duplicate))
            self._acking[peer] = None
            self._acks_wait()

    def acknowledge(self) -> None:
        """Send what was committed since the last time, in as few frames as it takes."""
        acking, self._acking = self._acking, {}
        for peer in acking:
            acks, peer.acks = peer.acks, []
            for at in range(0, len(acks), ACKS_MAX):
                peer.send(wire.Ack(tuple(acks[at : at + ACKS_MAX])))


def _overload(request: int) -> wire.Nak:
    return wire.Nak(request, wire.Code.OVERLOADED, OVERLOADED_RETRY_MS, "publish again in order")
