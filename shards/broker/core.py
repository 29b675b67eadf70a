"""The broker: one task hears all links, each link in a fence of its own.

    frames -> Noise session -> wire frame -> grant -> log, feed or request -> frames

The input loop never waits for a peer, the log or a feed: publishes are acknowledged by a callback after their
commit, deliveries are the feeds' tasks, and what a socket will not take now waits with its peer.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NoReturn

import trio

from noise import KeyPair
from shards import store, wire
from shards.broker.intake import Intake
from shards.broker.limits import Limits
from shards.broker.peer import Peer
from shards.broker.principals import Directory, InviteBody, Principal
from shards.broker.readers import Readers
from shards.broker.requests import Requests
from shards.broker.statistics import BrokerStatistics
from shards.database import Connection
from shards.env import Env, Frames
from shards.errors import RemoteProtocolError, ShardsError, StorageFailed
from shards.grant import SEEK_TOPIC
from shards.link import KIND_HELLO, Data, Established, Lost, NeedSend, Reason, Responder
from shards.log import Log

HOUSEKEEPING_S = 0.25
LINGER_S = 0.1
"""A link that has ended may read its last frame for so long before it is cut."""
SILENT_S_MAX = 30.0
"""A client that has nothing to say says that every five seconds; one that does not is gone."""
STALLED_RETRY_S = 0.002
PEERS_SPARE = 256
"""Links beyond the cap that are told BUSY; more are cut without a word."""


class Core:
    """Links, feeds and requests of one broker, and the tasks that serve them."""

    def __init__(
        self,
        env: Env,
        log: Log,
        frames: Frames,
        *,
        shard: str,
        static: KeyPair,
        directory: Directory,
        groups: Iterable[store.GroupRow],
        limits: Limits,
        nursery: trio.Nursery,
    ) -> None:
        self.env = env
        self.log = log
        self.directory = directory
        self.limits = limits
        self.requests = Requests(limits)
        self.faults: deque[str] = deque(maxlen=64)
        self.readers = Readers(log, limits, groups, nursery)
        self.intake = Intake(log, limits, self.readers.wake, self._wake_sweep)
        self._frames = frames
        self._shard = shard
        self._static = static
        self._nursery = nursery  # `open_broker`'s own: it outlives every use here
        self._serials = itertools.count(1)
        self._peers: dict[bytes, Peer] = {}
        self._ended: set[bytes] = set()
        self._slow: list[Peer] = []
        self._sweep = trio.Event()
        self._refused = self._hostile = self._slow_ended = self._fault_count = 0
        self._ephemeral = 0
        self._verbs: dict[type[wire.Frame], Callable[[Peer, Principal, Any], None]] = {
            wire.Publish: self._on_publish,
            wire.Ephemeral: self._on_ephemeral,
            wire.Subscribe: self._on_subscribe,
            wire.Done: self._on_done,
            wire.Release: self._on_release,
            wire.Dead: self._on_dead,
            wire.Credit: self._on_credit,
            wire.Request: self._on_request,
            wire.Respond: self._on_respond,
            wire.Reply: self._on_reply,
            wire.Seek: self._on_seek,
            wire.Close: self._on_close,
            wire.Ping: self._on_ping,
            wire.Pong: self._on_pong,
            wire.Bye: self._on_bye,
        }

    # -- tasks --------------------------------------------------------------------------------------------

    async def serve(self) -> NoReturn:
        """Hear all links."""
        while True:
            arrived = await self._frames.receive(64)
            for peer_id, frame in arrived:
                self._hear(peer_id, frame)
            for peer_id in self._frames.lost():
                self._ended.discard(peer_id)
                peer = self._peers.get(peer_id)
                if peer is not None:
                    self._drop(peer, fell=True)

    async def sweep(self) -> NoReturn:
        """Send the acknowledgements of a commit together; end the slow; try again where a socket was full."""
        while True:
            await self._sweep.wait()
            self._sweep = trio.Event()
            self.intake.acknowledge()
            slow, self._slow = self._slow, []
            for peer in slow:
                self._slow_ended += not peer.is_dead
                self._end(peer, Reason.BUSY, fell=True)
            stalled = [peer for peer in self._peers.values() if peer.is_stalled]
            if stalled:
                await trio.sleep(STALLED_RETRY_S)
                for peer in stalled:
                    peer.flush()
                    if not peer.is_stalled:
                        for opened in peer.subscriptions.values():
                            opened.outlet.flush_passing()
                self._sweep.set()

    async def keep_house(self) -> NoReturn:
        """Time-outs of all kinds."""
        while True:
            await trio.sleep(HOUSEKEEPING_S)
            now = trio.current_time()
            for peer in list(self._peers.values()):
                if peer.principal is None and now - peer.opened_at > self.limits.handshake_s:
                    self._end(peer, Reason.NO_SESSION, fell=False)
                elif peer.is_stalled:
                    self._sweep.set()
                elif now - peer.heard_at > SILENT_S_MAX:
                    self._end(peer, Reason.NO_SESSION, fell=True)
            self.requests.sweep()
            self.readers.keep_house()

    def say_goodbye(self) -> None:
        """Tell all links that the broker goes down."""
        for peer in list(self._peers.values()):
            peer.say(wire.Bye(wire.Code.CLOSING, "the broker goes down"))
            self._end(peer, Reason.CLOSING, fell=False)

    # -- links --------------------------------------------------------------------------------------------

    def statistics(self) -> BrokerStatistics:
        return BrokerStatistics(
            links=sum(1 for peer in self._peers.values() if peer.principal is not None),
            half_open=self._half_open(),
            refused=self._refused,
            hostile=self._hostile,
            slow=self._slow_ended,
            faults=self._fault_count,
            published=self.intake.published,
            duplicates=self.intake.duplicates,
            overloaded=self.intake.overloaded,
            ephemeral=self._ephemeral,
            shed=self.readers.shed
            + sum(o.outlet.shed for peer in self._peers.values() for o in peer.subscriptions.values()),
            pending_octets=self.intake.pending_octets,
            requests=self.requests.statistics(),
        )

    def principal_changed(self, new: Principal) -> None:
        """Links of the principal go on under its new row, or end at once."""
        for peer in list(self._peers.values()):
            held = peer.principal
            if held is None or (held.tenant, held.name) != (new.tenant, new.name):
                continue
            if new.state != "active" or held.noise_public != new.noise_public:
                peer.say(wire.Bye(wire.Code.REVOKED, "this key may not have a link any more"))
                self._end(peer, Reason.REFUSED, fell=True)
                continue
            peer.take_principal(new)
            for request, opened in list(peer.subscriptions.items()):
                if not self._may_read(peer, opened.feed.topics):
                    self.readers.close(peer, request, fell=False)
                    peer.refuse(request)
            for request, topics in list(peer.responding.items()):
                if not all(peer.allows("respond", topic) for topic in topics):
                    self.requests.retire(peer, request, new.tenant)
                    peer.refuse(request)

    def _half_open(self) -> int:
        return sum(1 for peer in self._peers.values() if peer.principal is None)

    def _hear(self, peer_id: bytes, frame: bytes) -> None:
        """One frame of one link.  Whatever goes wrong here ends this link and no other."""
        if peer_id in self._ended:
            return
        now = trio.current_time()
        peer = self._peers.get(peer_id)
        if peer is None:
            peer = self._greet(peer_id, frame)
            if peer is None:
                return
        peer.heard_at = now
        try:
            for event in peer.link.receive_frame(frame, now):
                if isinstance(event, Data):
                    self._receive(peer, event.plaintext)
                elif isinstance(event, NeedSend):
                    peer.send_raw(event.frame)
                elif isinstance(event, Established):
                    self._establish(peer, event)
                elif isinstance(event, Lost):
                    self._refused += event.reason is Reason.REFUSED and not event.by_peer
                    self._end(peer, event.reason, fell=True)
                if peer.is_dead:
                    return
        except RemoteProtocolError as exc:
            self._hostile += 1
            peer.say(wire.Bye(wire.Code.MALFORMED, str(exc)[:200]))
            self._end(peer, Reason.PROTOCOL, fell=True)
        except StorageFailed:
            raise
        except Exception as exc:  # the fence: a fault of ours is recorded and costs this link alone
            self._fault_count += 1
            name = peer.principal.name if peer.principal is not None else "a stranger"
            self.faults.append(f"{type(exc).__name__} at {_where(exc)}, link of {name}")
            self._end(peer, Reason.PROTOCOL, fell=True)

    def _greet(self, peer_id: bytes, frame: bytes) -> Peer | None:
        """A new link, if there is room and it begins with a hello."""
        link = Responder(
            static=self._static,
            shard=self._shard,
            admit=lambda key: self.directory.by_key(key) is not None,
            psk_for=self._psk_for,
            token_bytes=self.env.token_bytes,
            now=trio.current_time(),
        )
        peer = Peer(
            peer_id,
            next(self._serials),
            link,
            self._frames,
            queue_octets=self.limits.link_queue_octets,
            too_slow=self._note_slow,
        )
        reason = None
        if frame[:1] != bytes((KIND_HELLO,)):
            reason = Reason.NO_SESSION
        elif len(self._peers) >= self.limits.links or self._half_open() >= self.limits.half_open:
            reason = Reason.BUSY
        if reason is not None:
            peer.end(reason)
            if len(self._ended) < PEERS_SPARE:
                self._cut_soon(peer_id)
            else:
                self._frames.cut(peer_id)
            return None
        self._peers[peer_id] = peer
        return peer

    def _psk_for(self, invite_id: str) -> bytes | None:
        row = self.directory.invite(invite_id)
        return row.secret if row is not None else None

    def _establish(self, peer: Peer, event: Established) -> None:
        if event.invite_id is not None:
            peer.enrolling = event.invite_id
            return
        principal = self.directory.by_key(event.remote_static)
        if principal is None:  # revoked while the handshake went on
            self._refused += 1
            self._end(peer, Reason.REFUSED, fell=True)
            return
        self._welcome(peer, principal)

    def _welcome(self, peer: Peer, principal: Principal) -> None:
        peer.take_principal(principal)
        peer.send(wire.Welcome(principal.name, principal.tenant, self.log.head))

    def _receive(self, peer: Peer, plaintext: bytes) -> None:
        frame = peer.assembly.feed(plaintext)
        if frame is None:
            return
        principal = peer.principal
        if principal is None:
            if peer.enrolling is None or not isinstance(frame, wire.Enroll):
                raise RemoteProtocolError("a newcomer's first and only frame until it is welcome is ENROLL")
            self._enroll(peer, frame)
            return
        handle = self._verbs.get(type(frame))
        if handle is None:
            raise RemoteProtocolError(f"{type(frame).__name__} is not for a client to send")
        handle(peer, principal, frame)

    def _enroll(self, peer: Peer, frame: wire.Enroll) -> None:
        """Trade the invite for a principal, in one transaction, and only then say welcome."""
        invite_id, noise_public = peer.enrolling, peer.link.remote_static
        peer.enrolling = None
        row = self.directory.invite(invite_id) if invite_id is not None else None
        if row is None or noise_public is None:
            peer.send(wire.Bye(wire.Code.SPENT, "the invite was used or has expired"))
            self._end(peer, Reason.REFUSED, fell=True)
            return
        principal = InviteBody.decode(row.body).principal(row, noise_public, frame.signing, frame.lease)
        try:
            self.directory.check_key(principal)
        except ShardsError as exc:
            peer.send(wire.Bye(wire.Code.SPENT, str(exc)))
            self._end(peer, Reason.REFUSED, fell=True)
            return
        self.directory.drop_invite(row.id)

        def commit(tx: Connection) -> None:
            store.take_invite(tx, row.id)
            store.put_principal(tx, principal.to_row())

        def committed(_: object, error: Exception | None) -> None:
            if error is not None:
                self._end(peer, Reason.NO_SESSION, fell=True)
                return
            self.directory.put(principal)
            self.principal_changed(principal)
            if not peer.is_dead:
                self._welcome(peer, principal)

        self.log.database.submit(commit, committed)

    def _wake_sweep(self) -> None:
        self._sweep.set()

    def _note_slow(self, peer: Peer) -> None:
        self._slow.append(peer)
        self._sweep.set()

    def _end(self, peer: Peer, reason: Reason, *, fell: bool) -> None:
        """End the link from our side: silent at once, cut when it had time to read why."""
        if not peer.is_dead:
            peer.end(reason)
            self._cut_soon(peer.id)
        self._drop(peer, fell=fell)

    def _cut_soon(self, peer_id: bytes) -> None:
        self._ended.add(peer_id)
        self._nursery.start_soon(self._cut, peer_id)

    async def _cut(self, peer_id: bytes) -> None:
        await trio.sleep(LINGER_S)
        if peer_id in self._ended:
            self._ended.discard(peer_id)
            self._frames.cut(peer_id)

    def _drop(self, peer: Peer, *, fell: bool) -> None:
        """Forget the link; what it held goes to others."""
        if self._peers.get(peer.id) is peer:
            del self._peers[peer.id]
        peer.is_dead = True
        for request in list(peer.subscriptions):
            self.readers.close(peer, request, fell=fell)
        if peer.principal is not None:
            self.requests.drop_peer(peer, peer.principal.tenant)

    # -- publishing ---------------------------------------------------------------------------------------

    def _on_publish(self, peer: Peer, principal: Principal, frame: wire.Publish) -> None:
        if peer.allows("publish", frame.topic):
            self.intake.publish(peer, principal, frame)
        else:
            peer.refuse(frame.request)

    def _on_ephemeral(self, peer: Peer, principal: Principal, frame: wire.Ephemeral) -> None:
        if not peer.allows("publish", frame.topic):
            return
        self._ephemeral += 1
        at_ms = int(self.env.wall() * 1000)
        run = wire.encode_ephemeral(frame.topic, principal.name, at_ms, frame.key, frame.payload)
        self.readers.pass_on(principal.tenant, frame.topic, frame.key, run)

    # -- subscribing --------------------------------------------------------------------------------------

    def _may_read(self, peer: Peer, topics: tuple[str, ...] | None) -> bool:
        if topics is None:
            return peer.allows("journal", None)
        return all(peer.allows("subscribe", topic) for topic in topics)

    def _claim(self, peer: Peer, request: int) -> bool:
        """Whether `request` may name something new on this link; the refusal is sent."""
        if request in peer.subscriptions or request in peer.responding or request in peer.requests:
            raise RemoteProtocolError("a request number is in use")
        if len(peer.subscriptions) + len(peer.responding) >= self.limits.subscriptions:
            peer.send(
                wire.Nak(request, wire.Code.LIMIT, wire.NO_RETRY, "too many subscriptions on this link")
            )
            return False
        return True

    def _on_subscribe(self, peer: Peer, principal: Principal, frame: wire.Subscribe) -> None:
        if not self._claim(peer, frame.request):
            return
        topics = None if frame.topics is None else tuple(dict.fromkeys(frame.topics))
        if (
            topics == ()
            or frame.start > max(wire.Start)
            or (frame.group and frame.start == wire.Start.OFFSET)
        ):
            raise RemoteProtocolError("a subscription names at least one topic and a start that fits")
        if not self._may_read(peer, topics):
            peer.refuse(frame.request)
            return
        self.readers.subscribe(peer, principal.tenant, frame, topics)

    def _on_done(self, peer: Peer, principal: Principal, frame: wire.Done) -> None:
        self.readers.done(peer, frame)

    def _on_release(self, peer: Peer, principal: Principal, frame: wire.Release) -> None:
        self.readers.release(peer, frame)

    def _on_dead(self, peer: Peer, principal: Principal, frame: wire.Dead) -> None:
        self.readers.bury(peer, frame)

    def _on_credit(self, peer: Peer, principal: Principal, frame: wire.Credit) -> None:
        self.readers.credit(peer, frame)

    def _on_close(self, peer: Peer, principal: Principal, frame: wire.Close) -> None:
        self.readers.close(peer, frame.request, fell=False)
        self.requests.retire(peer, frame.request, principal.tenant)
        self.requests.cancel(peer, frame.request)

    def _on_seek(self, peer: Peer, principal: Principal, frame: wire.Seek) -> None:
        if not peer.allows("request", SEEK_TOPIC):
            peer.refuse(frame.request)
            return
        try:
            self.readers.seek(principal.tenant, frame.group, frame.topics, frame.start, frame.stop)
        except ShardsError as exc:
            peer.send(wire.Nak(frame.request, wire.Code.CONFLICT, 1000, str(exc)[:200]))
            return
        peer.send(wire.Ack((wire.Acked(frame.request, 0, self.log.head, False),)))

    # -- requests -----------------------------------------------------------------------------------------

    def _on_request(self, peer: Peer, principal: Principal, frame: wire.Request) -> None:
        if frame.request in peer.requests:
            raise RemoteProtocolError("a request number is in use")
        if not peer.allows("request", frame.topic):
            text = "no grant for this request"
            peer.send(wire.Reply(frame.request, "capability_denied", wire.NO_RETRY, text, b""))
        elif len(peer.requests) >= self.limits.requests:
            text = "too many requests are open on this link"
            peer.send(wire.Reply(frame.request, "rate_limited", 1000, text, b""))
        else:
            self.requests.ask(peer, frame, principal.tenant, principal.name)

    def _on_respond(self, peer: Peer, principal: Principal, frame: wire.Respond) -> None:
        if not self._claim(peer, frame.request):
            return
        if not frame.topics or not all(peer.allows("respond", topic) for topic in frame.topics):
            peer.refuse(frame.request)
            return
        peer.send(wire.Ack((wire.Acked(frame.request, 0, self.log.head, False),)))
        self.requests.respond(peer, frame, frame.topics, principal.tenant)

    def _on_reply(self, peer: Peer, principal: Principal, frame: wire.Reply) -> None:
        self.requests.reply(peer, frame)

    # -- the link itself ----------------------------------------------------------------------------------

    def _on_ping(self, peer: Peer, principal: Principal, frame: wire.Ping) -> None:
        peer.send(wire.Pong(frame.token, self.log.head))

    def _on_pong(self, peer: Peer, principal: Principal, frame: wire.Pong) -> None:
        pass

    def _on_bye(self, peer: Peer, principal: Principal, frame: wire.Bye) -> None:
        self._end(peer, Reason.CLOSING, fell=False)


def _where(exc: BaseException) -> str:
    """File and line of a fault, without any value of it."""
    trace = exc.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return "?" if trace is None else f"{Path(trace.tb_frame.f_code.co_filename).name}:{trace.tb_lineno}"
