"""The way into the fabric: one client, one identity, one link at a time that is made anew for ever.

What was asked and not answered outlives a link: publishes go again under the same epoch and sequence, requests
under the same trace id, subscriptions where they were.  Tasks of a client live in its own nursery.
"""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Literal, NoReturn

import attrs
import trio

from shards import wire
from shards.client.identity import Identity
from shards.client.publisher import Published, Publisher
from shards.client.responder import Handler, Responder
from shards.client.session import Session, connect
from shards.client.subscription import Subscription, start_of
from shards.env import Env
from shards.errors import (
    LocalProtocolError,
    NotGranted,
    RemoteProtocolError,
    RequestFailed,
    ShardsError,
    Unreachable,
)
from shards.link import Invite
from shards.record import Record, check_topic, key_hash

BACKOFF_S_MIN = 0.05
BACKOFF_S_MAX = 2.0
REFUSALS_MAX = 3
"""Refused so often in a row after it had been let in, a client believes it: a forged reset does not end it."""
OVERLOADED_S = 0.1
EPHEMERAL_OCTETS_MAX = 60_000


@attrs.define(eq=False)
class _Order:
    """Something asked of the broker that is answered by one frame."""

    frame: wire.Frame
    event: trio.Event = attrs.field(factory=trio.Event)
    error: Exception | None = None
    answer: wire.Frame | None = None
    deadline: float | None = None

    def settle(self, answer: wire.Frame | None = None, error: Exception | None = None) -> None:
        self.answer, self.error = answer, error
        self.event.set()


class Client:
    """A principal's end of the fabric.  Made by `open_client`."""

    def __init__(
        self, env: Env, endpoint: str, identity: Identity, *, server_public: bytes, shard: str
    ) -> None:
        self.identity = identity
        self.reconnects = 0
        self._env = env
        self._endpoint = endpoint
        self._server_public = server_public
        self._shard = shard
        self._session: Session | None = None
        self._fatal: ShardsError | None = None
        self._numbers = itertools.count(1)
        self._subscriptions: dict[int, Subscription] = {}
        self._responders: dict[str, Responder] = {}
        self._orders: dict[int, _Order] = {}
        self._done: dict[Subscription, None] = {}
        self._fences: dict[int, Subscription] = {}
        self._kicked = trio.Event()
        self._publisher = Publisher(
            epoch=int.from_bytes(env.token_bytes(8), "big") >> 2,
            seed=identity.signing_private,
            numbers=self._numbers,
            send=self._send,
            is_linked=lambda: self._session is not None,
        )

    # -- publishing ---------------------------------------------------------------------------------------

    async def publish(
        self,
        topic: str,
        payloads: Sequence[bytes],
        *,
        key: bytes,
        epoch: int | None = None,
        sequence: int | None = None,
    ) -> Published:
        """Append the payloads to the topic in order; return when they are on disk.

        Cancelled, it is unknown whether they are; what was not sent yet is not sent any more.

        Args:
            key: What they stay in order with.
            epoch: An outbox's own, with `sequence`, the number of the first payload: then the log recognises
                what it has.

        Raises:
            NotGranted: No grant to publish there, or the client's key is refused.
            LogFull: The disk of the shard is full; nothing was stored.
            ShardsError: The topic is no topic.
        """
        check_topic(topic)
        self._check()
        await trio.lowlevel.checkpoint()
        await self._publisher.wait_room()
        self._check()
        call = self._publisher.add(topic, payloads, key_hash(key), epoch, sequence)
        self._env.maybe("client.publish")
        try:
            await call.event.wait()
        except trio.Cancelled:
            self._publisher.withdraw(call)
            raise
        self._env.maybe("client.published")
        return call.result()

    async def publish_ephemeral(self, topic: str, payload: bytes, *, key: bytes) -> None:
        """Pass the payload on to who listens now; it may be shed, and nobody tells.

        Raises:
            ShardsError: The topic is no topic.
            LocalProtocolError: More than 60,000 bytes.
        """
        check_topic(topic)
        self._check()
        if len(payload) > EPHEMERAL_OCTETS_MAX:
            raise LocalProtocolError(f"an ephemeral payload has at most {EPHEMERAL_OCTETS_MAX} bytes")
        await trio.lowlevel.checkpoint()
        if self._session is not None and not self._session.is_stalled:
            self._send(wire.Ephemeral(topic, key_hash(key), bytes(payload)))

    @property
    def unacknowledged(self) -> int:
        """Records that were taken for publishing and are not known to be on disk."""
        return self._publisher.unacknowledged

    @property
    def is_linked(self) -> bool:
        """Is there a link to the broker now?"""
        return self._session is not None

    # -- requests -----------------------------------------------------------------------------------------

    async def request(self, topic: str, body: bytes, *, deadline: float, trace_id: str) -> bytes:
        """Ask whoever responds to the topic; return its answer.

        Args:
            deadline: Absolute, on Trio's clock.
            trace_id: The same request under the same id gets the same answer for ten minutes.

        Raises:
            RequestFailed: With the responder's code, or the broker's: `capability_denied`, `network_down`
                (nobody responds, or it died), `rate_limited`, `duplicate`, `timeout`.
            NotGranted: The client's key is refused.
        """
        check_topic(topic)
        number = next(self._numbers)
        order = _Order(wire.Request(number, 0, topic, trace_id, bytes(body)), deadline=deadline)
        with trio.move_on_at(deadline):
            reply = await self._ask(number, order)
            assert isinstance(reply, wire.Reply)
            if reply.code:
                retry = None if reply.retry_ms == wire.NO_RETRY else reply.retry_ms
                raise RequestFailed(reply.code, reply.text, retry_after_ms=retry)
            return reply.body
        raise RequestFailed("timeout", "no answer before the deadline")

    async def respond(
        self,
        topics: Sequence[str],
        handler: Handler,
        *,
        concurrency: int = 64,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> NoReturn:
        """Answer the requests of these topics, for ever.  `started()` once the broker sends them.

        The handler returns the answer or raises RequestFailed.  Any other exception is told to the asker as
        `internal` and ends `respond`.

        Raises:
            NotGranted: No grant to respond there, or the client's key is refused.
        """
        names = tuple(dict.fromkeys(map(check_topic, topics)))
        number = next(self._numbers)
        responder = Responder(number, names, handler, concurrency)
        for name in names:
            if name in self._responders:
                raise LocalProtocolError(f"this client responds to {name} already")
        self._responders.update(dict.fromkeys(names, responder))
        try:
            await self._ask(number, _Order(wire.Respond(number, concurrency, names)))
            task_status.started()
            await responder.run()
        finally:
            for name in names:
                del self._responders[name]
            self._send(wire.Close(number))
        raise AssertionError("a responder runs until it is cancelled")

    async def head(self) -> int:
        """The journal position that the next record will get.  A round trip."""
        token = next(self._numbers)
        pong = await self._ask(token, _Order(wire.Ping(token)))
        assert isinstance(pong, wire.Pong)
        return pong.head

    async def seek(
        self,
        group: str,
        topics: Sequence[str] | None,
        *,
        from_position: int,
        to_position: int | None = None,
    ) -> None:
        """Give the group its records of these topics in [from, to) again.

        Raises:
            NotGranted: No grant to request `bridge/fabric/seek`.
            ShardsError: No such group, it does not read these topics, or too many seeks are still running.
        """
        number = next(self._numbers)
        stop = wire.NEVER if to_position is None else to_position
        names = None if topics is None else tuple(map(check_topic, topics))
        await self._ask(number, _Order(wire.Seek(number, group, from_position, stop, names)))

    # -- subscriptions ------------------------------------------------------------------------------------

    def subscribe(
        self,
        topics: Sequence[str] | None,
        *,
        group: str | None,
        start: Literal["earliest", "latest"] | int = "earliest",
        credit_records: int = 256,
    ) -> AbstractAsyncContextManager[Subscription]:
        """Records of these topics, in journal order; entered when the broker has the subscription.

        Args:
            topics: None is the whole journal of the tenant (needs the `journal` grant).
            group: Members of one name share the records; None is a plain tail without acknowledgements.
            start: Counts only when the group has no position yet, but an int always sets the position.
            credit_records: So many may be unfinished at once; more keys than that must not get stuck.

        Raises:
            NotGranted: No grant for one of the topics, or the client's key is refused.
            ShardsError: The group's members read other topics; too many subscriptions.
        """
        kind, at = start_of(start)
        return self._subscribe(topics, group, kind, at, wire.NEVER, credit_records)

    @asynccontextmanager
    async def replay(
        self,
        topics: Sequence[str] | None,
        *,
        from_position: int = 0,
        from_offset: int | None = None,
        to_position: int | None = None,
    ) -> AsyncIterator[AsyncIterator[list[Record]]]:
        """What the log has of these topics, to the head of now or to `to_position`, and then the end.

        Args:
            from_offset: Of the one topic, instead of `from_position`.

        Raises:
            NotGranted: No grant.
            OffsetTrimmed: Retention has taken the beginning; `first` is the oldest position left.
        """
        head = await self.head()
        stop = head if to_position is None else min(to_position, head)
        kind, at = (
            (wire.Start.POSITION, from_position) if from_offset is None else (wire.Start.OFFSET, from_offset)
        )
        async with self._subscribe(topics, None, kind, at, stop, 1024) as subscription:
            yield subscription

    @asynccontextmanager
    async def _subscribe(
        self,
        topics: Sequence[str] | None,
        group: str | None,
        start: wire.Start,
        at: int,
        stop: int,
        credit_records: int,
    ) -> AsyncIterator[Subscription]:
        self._check()
        names = None if topics is None else tuple(dict.fromkeys(map(check_topic, topics)))
        if names == () or credit_records < 1 or group == "":
            raise LocalProtocolError(
                "a subscription has a topic at least, credit, and a group's name or None"
            )
        number = next(self._numbers)
        subscription = Subscription(
            number,
            names,
            group=group,
            start=start,
            at=at,
            stop=stop,
            credit_records=credit_records,
            send=self._send,
            kick=self._kick,
            fence=self._fence,
        )
        self._subscriptions[number] = subscription
        try:
            subscription.ask()
            await subscription.wait_made()
            yield subscription
        finally:
            subscription.flush_done()
            del self._subscriptions[number]
            self._done.pop(subscription, None)
            self._send(wire.Close(number))

    # -- the link -----------------------------------------------------------------------------------------

    async def run(self, session: Session) -> None:
        """Keep linked, beginning with this session, until cancelled or refused for good."""
        refusals = 0
        while True:
            self._begin(session)
            await session.run(heard=self._heard)
            self._session = None
            delay = BACKOFF_S_MIN
            while True:
                await trio.sleep(delay * (0.5 + self._env.random.random() / 2))
                try:
                    session, _ = await self.connect(None)
                    refusals = 0
                    break
                except NotGranted as exc:
                    refusals += 1
                    if refusals >= REFUSALS_MAX:
                        self._give_up(exc)
                        return
                except Unreachable:
                    pass
                delay = min(delay * 2, BACKOFF_S_MAX)
            self.reconnects += 1

    async def connect(self, invite: Invite | None) -> tuple[Session, wire.Welcome]:
        """One attempt.  Raises Unreachable, NotGranted."""
        return await connect(
            self._env,
            self._endpoint,
            self.identity,
            server_public=self._server_public,
            shard=self._shard,
            invite=invite,
        )

    async def send_done(self) -> NoReturn:
        """Send the acknowledgements of one moment together."""
        while True:
            await self._kicked.wait()
            self._kicked = trio.Event()
            done, self._done = self._done, {}
            for subscription in done:
                subscription.flush_done()

    async def resend_refused(self) -> NoReturn:
        """After an overload of the broker publish again, in order."""
        while True:
            await self._publisher.refused.wait()
            await trio.sleep(OVERLOADED_S)
            self._publisher.refused = trio.Event()
            self._publisher.resend()

    def _begin(self, session: Session) -> None:
        """A new link: say again what still counts."""
        self._session = session
        self._fences.clear()
        for subscription in self._subscriptions.values():
            subscription.ask()
        for responder in dict.fromkeys(self._responders.values()):
            if responder.number not in self._orders:
                self._send(wire.Respond(responder.number, responder.concurrency, responder.topics))
        for order in list(self._orders.values()):
            self._send_order(order)
        self._publisher.resend()

    def _heard(self, frame: wire.Frame) -> None:
        """One frame of the broker.  Raises nothing: a malformed one ends the link."""
        match frame:
            case wire.Ack():
                for ack in frame.acked:
                    if not self._publisher.acked(ack) and (order := self._orders.get(ack.request)):
                        order.settle(frame)
            case wire.Deliver():
                if subscription := self._subscriptions.get(frame.request):
                    try:
                        subscription.deliver(frame)
                    except RemoteProtocolError:
                        if self._session is not None:
                            self._session.is_over = True
            case wire.Reply():
                if order := self._orders.get(frame.request):
                    order.settle(frame)
            case wire.Call():
                self._take_call(frame)
            case wire.Subscribed():
                if subscription := self._subscriptions.get(frame.request):
                    subscription.subscribed(frame)
            case wire.Ended():
                if subscription := self._subscriptions.get(frame.request):
                    subscription.ended()
            case wire.Nak():
                self._refused(frame)
            case wire.Pong():
                if order := self._orders.get(frame.token):
                    order.settle(frame)
                elif subscription := self._fences.pop(frame.token, None):
                    subscription.fenced(frame.token)
            case wire.Ping():
                self._send(wire.Pong(frame.token, 0))

    def _refused(self, nak: wire.Nak) -> None:
        if self._publisher.refuse(nak):
            return
        if subscription := self._subscriptions.get(nak.request):
            subscription.refuse(nak)
            return
        error = ShardsError(nak.text)
        if nak.code == wire.Code.NOT_GRANTED:
            error = NotGranted(nak.text, hint="bridgectl grants list")
        if order := self._orders.get(nak.request):
            order.settle(error=error)
            return
        for responder in self._responders.values():
            if responder.number == nak.request:
                responder.fail(error)
                return

    def _take_call(self, call: wire.Call) -> None:
        session = self._session
        responder = self._responders.get(call.topic)
        if session is None:
            return
        if responder is None:
            text = "nobody serves this topic now"
            session.send(wire.Reply(call.call, "network_down", wire.NO_RETRY, text, b""))
        else:
            responder.take(call, session.send)

    async def _ask(self, number: int, order: _Order) -> wire.Frame:
        self._check()
        self._orders[number] = order
        try:
            self._send_order(order)
            await order.event.wait()
        finally:
            del self._orders[number]
            if not order.event.is_set() and isinstance(order.frame, wire.Request):
                self._send(wire.Close(number))
        if order.error is not None:
            raise order.error
        assert order.answer is not None
        return order.answer

    def _send_order(self, order: _Order) -> None:
        frame = order.frame
        if isinstance(frame, wire.Request) and order.deadline is not None:
            left_ms = (order.deadline - trio.current_time()) * 1000
            left_ms = max(1, min(int(left_ms), 2**32 - 1)) if left_ms < 2**32 else 2**32 - 1
            frame = wire.Request(frame.request, left_ms, frame.topic, frame.trace_id, frame.body)
        self._send(frame)

    def _send(self, frame: wire.Frame) -> None:
        if self._session is not None:
            self._session.send(frame)

    def _kick(self, subscription: Subscription) -> None:
        self._done[subscription] = None
        self._kicked.set()

    def _fence(self, subscription: Subscription) -> int:
        """A question whose answer shows that the broker has heard all before it."""
        token = next(self._numbers)
        if self._session is not None:
            self._fences[token] = subscription
            self._session.send(wire.Ping(token))
        return token

    def _check(self) -> None:
        if self._fatal is not None:
            raise self._fatal

    def _give_up(self, error: ShardsError) -> None:
        """Refused for good: all that waits is told."""
        self._fatal = error
        self._publisher.fail_all(error)
        for order in self._orders.values():
            order.settle(error=error)
        for subscription in self._subscriptions.values():
            subscription.fail(error)
        for responder in self._responders.values():
            responder.fail(error)


@asynccontextmanager
async def open_client(
    env: Env,
    endpoint: str,
    identity: Identity,
    *,
    server_public: bytes,
    shard: str,
    connect_timeout_s: float = 5.0,
    invite: Invite | None = None,
) -> AsyncIterator[Client]:
    """A linked client; it makes its link anew by itself for as long as it is open.

    Args:
        endpoint: The broker's ipc path, or "tcp://HOST:PORT".
        server_public: The broker's Noise key, pinned.
        invite: For an identity that is not enrolled yet: enrols it, once.

    Raises:
        Unreachable: No broker answered within `connect_timeout_s`.
        NotGranted: The key or invite is unknown, used or revoked.
    """
    client = Client(env, endpoint, identity, server_public=server_public, shard=shard)
    session = await _first_session(client, connect_timeout_s, invite)
    failure: Exception | None = None
    async with trio.open_nursery() as nursery:
        nursery.start_soon(client.run, session)
        nursery.start_soon(client.send_done)
        nursery.start_soon(client.resend_refused)
        try:
            yield client
        except Exception as exc:
            failure = exc  # raised below, bare: the nursery would put it into a group
        nursery.cancel_scope.cancel()
    if failure is not None:
        raise failure


async def _first_session(client: Client, timeout_s: float, invite: Invite | None) -> Session:
    failure = Unreachable("no broker answered in time", hint="is the shard running?")
    delay = BACKOFF_S_MIN
    with trio.move_on_after(timeout_s):
        while True:
            try:
                session, _ = await client.connect(invite)
                return session
            except Unreachable as exc:
                failure = exc
            except NotGranted:
                if invite is None:
                    raise
                invite = None  # it may have been taken, and only the welcome lost
                continue
            await trio.sleep(delay)
            delay = min(delay * 2, BACKOFF_S_MAX)
    raise failure
