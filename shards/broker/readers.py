"""Who reads what: subscriptions, consumer groups and tails, and the tasks that feed them."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import NoReturn

import trio

from shards import store, wire
from shards.broker.feeds import Feed, GroupFeed, TailFeed, new_machine
from shards.broker.limits import Limits
from shards.broker.outlet import Cutter, Outlet
from shards.broker.peer import Open, Peer
from shards.errors import LogFull, OffsetTrimmed, RemoteProtocolError, ShardsError
from shards.groups import Progress
from shards.log import Log

SPAN_RECORDS_MAX = 65_536


class Readers:
    """All feeds of one broker."""

    def __init__(
        self, log: Log, limits: Limits, groups: Iterable[store.GroupRow], nursery: trio.Nursery
    ) -> None:
        self.groups: dict[tuple[str, str], GroupFeed] = {}
        self.shed = 0
        """Ephemeral records shed by subscriptions that are over."""
        self._log = log
        self._limits = limits
        self._nursery = nursery  # `open_broker`'s own: it outlives every use here
        self._members = itertools.count(1)
        self._cutter = Cutter()
        self._feeds: dict[Feed, None] = {}
        self._by_topic: dict[tuple[str, str], dict[Feed, None]] = {}
        self._by_journal: dict[str, dict[Feed, None]] = {}
        self._unsaved: dict[GroupFeed, None] = {}
        self._save = trio.Event()
        for row in groups:
            self._new_group((row.tenant, row.name), row.topics, Progress.decode(row.state), row.epoch)

    # -- what the broker calls ----------------------------------------------------------------------------

    def wake(self, tenant: str, topic: str) -> None:
        for feed in self._by_topic.get((tenant, topic), ()):
            feed.wake()
        for feed in self._by_journal.get(tenant, ()):
            feed.wake()

    def pass_on(self, tenant: str, topic: str, key: int, run: bytes) -> None:
        """An ephemeral record, for who listens now."""
        for feed in self._by_topic.get((tenant, topic), ()):
            for outlet in feed.listeners():
                outlet.pass_on(topic, key, run)

    def keep_house(self) -> None:
        """Called now and then: take back what made no progress, let nobody's scan lie far behind."""
        for feed in self._feeds:
            if isinstance(feed, GroupFeed):
                feed.expire()
            if feed.scan < self._log.head:
                feed.wake()

    def subscribe(
        self, peer: Peer, tenant: str, frame: wire.Subscribe, topics: tuple[str, ...] | None
    ) -> None:
        """A subscription that was granted; the answer is sent."""
        outlet = Outlet(
            peer, frame.request, next(self._members), self._cutter, passing_max=self._limits.passing
        )
        records = max(1, min(frame.credit_records, self._limits.credit_records))
        octets = max(1, min(frame.credit_bytes, self._limits.credit_octets))
        if frame.group:
            self._join_group(peer, tenant, frame, topics, outlet, records, octets)
        elif frame.start == wire.Start.OFFSET:
            if topics is None or len(topics) != 1:
                raise RemoteProtocolError("an offset is one topic's")
            self._nursery.start_soon(
                self._tail_from_offset, peer, tenant, frame, topics, outlet, records, octets
            )
        else:
            position = {
                wire.Start.EARLIEST: self._log.first,
                wire.Start.LATEST: self._log.head,
                wire.Start.POSITION: frame.at,
                wire.Start.RESUME: frame.at,
            }[wire.Start(frame.start)]
            self._tail(peer, tenant, frame, topics, outlet, records, octets, position)

    async def _tail_from_offset(
        self,
        peer: Peer,
        tenant: str,
        frame: wire.Subscribe,
        topics: tuple[str, ...],
        outlet: Outlet,
        records: int,
        octets: int,
    ) -> None:
        try:
            position = await self._log.position_of(tenant, topics[0], frame.at)
            if position < self._log.first:
                raise OffsetTrimmed("retention has taken the offset", first=self._log.first)
        except OffsetTrimmed as exc:
            peer.send(wire.Nak(frame.request, wire.Code.TRIMMED, wire.NO_RETRY, str(exc.first)))
            return
        if not peer.is_dead and frame.request not in peer.subscriptions:
            self._tail(peer, tenant, frame, topics, outlet, records, octets, position)

    def _tail(
        self,
        peer: Peer,
        tenant: str,
        frame: wire.Subscribe,
        topics: tuple[str, ...] | None,
        outlet: Outlet,
        records: int,
        octets: int,
        position: int,
    ) -> None:
        def ended(last: wire.Frame) -> None:
            outlet.flush()
            peer.send(last)
            self.close(peer, frame.request, fell=False)

        feed = TailFeed(
            self._log,
            tenant,
            topics,
            outlet,
            position=position,
            stop=frame.stop,
            records=records,
            octets=octets,
            ended=ended,
        )
        peer.subscriptions[frame.request] = Open(feed, outlet)
        peer.send(wire.Subscribed(frame.request, position, self._log.head))
        self._start_feed(feed)

    def _join_group(
        self,
        peer: Peer,
        tenant: str,
        frame: wire.Subscribe,
        topics: tuple[str, ...] | None,
        outlet: Outlet,
        records: int,
        octets: int,
    ) -> None:
        key = tenant, frame.group
        feed = self.groups.get(key)
        if feed is None:
            if sum(1 for name in self.groups if name[0] == tenant) >= self._limits.groups:
                peer.send(wire.Nak(frame.request, wire.Code.LIMIT, wire.NO_RETRY, "too many groups"))
                return
            at = {wire.Start.EARLIEST: self._log.first, wire.Start.LATEST: self._log.head}.get(
                wire.Start(frame.start), min(frame.at, self._log.head)
            )
            feed = self._new_group(key, topics, Progress(at), 0)
        elif feed.topic_set != (None if topics is None else frozenset(topics)):
            if feed.outlets:
                text = "the group has members that read other topics"
                peer.send(wire.Nak(frame.request, wire.Code.CONFLICT, 1000, text))
                return
            self._stop_feed(feed)
            feed = self._new_group(key, topics, feed.machine.progress(), feed.epoch)
        if frame.start == wire.Start.POSITION:
            feed.set_position(min(frame.at, self._log.head))
        peer.subscriptions[frame.request] = Open(feed, outlet)
        peer.send(wire.Subscribed(frame.request, feed.machine.position, self._log.head))
        feed.join(outlet, records=records, octets=octets)
        if not feed.is_running:
            feed.is_running = True
            self._start_feed(feed)

    def close(self, peer: Peer, request: int, *, fell: bool) -> None:
        """The subscription is over.  `fell`: not by the member's own will."""
        opened = peer.subscriptions.pop(request, None)
        if opened is None:
            return
        self.shed += opened.outlet.shed
        if isinstance(opened.feed, GroupFeed):
            opened.feed.leave(opened.outlet.member, fell=fell)
        else:
            self._stop_feed(opened.feed)

    def done(self, peer: Peer, frame: wire.Done) -> None:
        """A member's word; of a subscription that is over, nothing."""
        feed, member = _group_of(peer, frame.request)
        if feed is not None:
            feed.done(member, _bounded(frame.spans))

    def release(self, peer: Peer, frame: wire.Release) -> None:
        feed, member = _group_of(peer, frame.request)
        if feed is not None:
            feed.release(member, _bounded(frame.spans), frame.delay_ms / 1000)

    def bury(self, peer: Peer, frame: wire.Dead) -> None:
        feed, member = _group_of(peer, frame.request)
        if feed is not None:
            feed.bury(member, frame.position, frame.code, frame.reason[:1000])

    def credit(self, peer: Peer, frame: wire.Credit) -> None:
        opened = peer.subscriptions.get(frame.request)
        if opened is not None and isinstance(opened.feed, TailFeed):
            opened.feed.credit(
                min(frame.records, self._limits.credit_records), min(frame.bytes_, self._limits.credit_octets)
            )

    # -- what operators call ------------------------------------------------------------------------------

    def seek(self, tenant: str, group: str, topics: tuple[str, ...] | None, start: int, stop: int) -> None:
        """Give a group records again.  Raises ShardsError: no such group, other topics, too many seeks."""
        feed = self.groups.get((tenant, group))
        if feed is None:
            raise ShardsError(f"no group {group!r}", hint="bridgectl groups")
        if topics is not None and feed.topic_set is not None and not feed.topic_set >= set(topics):
            raise ShardsError(f"group {group!r} does not read all of these topics")
        feed.seek(topics, max(start, self._log.first), min(stop, max(self._log.head, start)))

    def drop_group(self, tenant: str, name: str) -> None:
        """Forget a group that has no members.  Raises ShardsError where there is none, or it has some."""
        feed = self.groups.get((tenant, name))
        if feed is None:
            raise ShardsError(f"no group {name!r}", hint="bridgectl groups")
        if feed.outlets:
            raise ShardsError(f"group {name!r} has members", hint="stop its consumers first")
        self._stop_feed(feed)
        del self.groups[tenant, name]

    async def save_groups(self) -> NoReturn:
        """Store the groups' positions, those of a few commits together."""
        while True:
            await self._save.wait()
            await trio.sleep(self._limits.group_save_s)
            await self.save_groups_now()

    async def save_groups_now(self) -> None:
        self._save = trio.Event()
        unsaved, self._unsaved = self._unsaved, {}
        rows = [feed.row() for feed in unsaved if self.groups.get((feed.tenant, feed.name)) is feed]
        try:
            if rows:
                await self._log.database.write(lambda tx: store.put_groups(tx, rows))
        except LogFull:  # positions may be late; publishers are told that the disk is full
            self._unsaved.update(unsaved)

    # -- inside -------------------------------------------------------------------------------------------

    def _new_group(
        self, key: tuple[str, str], topics: tuple[str, ...] | None, progress: Progress, epoch: int
    ) -> GroupFeed:
        machine = new_machine(
            progress, topics, attempts=self._limits.attempts, visibility_s=self._limits.visibility_s
        )
        feed = self.groups[key] = GroupFeed(
            self._log, *key, topics, machine, epoch=epoch, cutter=self._cutter, changed=self._note_unsaved
        )
        return feed

    def _note_unsaved(self, feed: GroupFeed) -> None:
        self._unsaved[feed] = None
        self._save.set()

    def _start_feed(self, feed: Feed) -> None:
        self._feeds[feed] = None
        if feed.topics is None:
            self._by_journal.setdefault(feed.tenant, {})[feed] = None
        else:
            for topic in feed.topics:
                self._by_topic.setdefault((feed.tenant, topic), {})[feed] = None
        self._nursery.start_soon(self._run_feed, feed)

    async def _run_feed(self, feed: Feed) -> None:
        with feed.scope:
            await feed.run()

    def _stop_feed(self, feed: Feed) -> None:
        feed.scope.cancel()
        if feed not in self._feeds:
            return
        del self._feeds[feed]
        for topic in feed.topics or ():
            listed = self._by_topic[feed.tenant, topic]
            del listed[feed]
            if not listed:
                del self._by_topic[feed.tenant, topic]
        if feed.topics is None:
            del self._by_journal[feed.tenant][feed]


def _group_of(peer: Peer, request: int) -> tuple[GroupFeed | None, int]:
    """The consumer group that a member's word is for; none when the subscription is over or a plain tail."""
    opened = peer.subscriptions.get(request)
    if opened is None or not isinstance(opened.feed, GroupFeed):
        return None, 0
    return opened.feed, opened.outlet.member


def _bounded(spans: tuple[tuple[int, int], ...]) -> tuple[tuple[int, int], ...]:
    if sum(n for _, n in spans) > SPAN_RECORDS_MAX:
        raise RemoteProtocolError("more records are acknowledged than anybody can hold")
    return spans
