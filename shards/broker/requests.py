"""Requests: from who asks to who responds, with a deadline, and answers kept for who asks again.

Never logged, never on disk.  An answer is kept under (tenant, principal, topic, trace id) with the request's
digest for ten minutes: the same request gets the same answer without its effect happening twice, another one
under that id is `duplicate`.  A failure that trying again may mend is not kept.
"""

from __future__ import annotations

import hashlib
import itertools
from collections import OrderedDict, deque

import attrs
import trio

from shards import wire
from shards.broker.limits import Limits
from shards.broker.peer import Peer

PASSING_CODES = frozenset({"timeout", "network_down", "rate_limited", "internal"})
"""Failures that say nothing about the request itself."""
DEADLINE_S_MAX = 3600.0


@attrs.define(eq=False)
class _Call:
    """One question on its way; `waiting` are those who get its answer."""

    id: int
    topic: str
    tenant: str
    principal: str
    trace_id: str
    body: bytes
    deadline: float
    waiting: list[tuple[Peer, int]]
    keep: _KeepKey | None
    responder: _Responder | None = None


@attrs.define(eq=False)
class _Responder:
    peer: Peer
    request: int
    concurrency: int
    in_hand: dict[int, _Call] = attrs.field(factory=dict)


_KeepKey = tuple[str, str, str, str]


@attrs.define(eq=False)
class _Kept:
    digest: bytes
    call: _Call | None
    """Still on its way."""
    answer: wire.Reply | None = None
    until: float = 0.0


@attrs.frozen(kw_only=True)
class RequestStatistics:
    """What became of the requests since the start."""

    asked: int
    answered: int
    late: int
    """Replies after the deadline, or to nobody: dropped."""
    timed_out: int
    repeated: int
    """Answered from what was kept."""
    open: int
    kept: int


class Requests:
    """Routes the requests of one broker."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._ids = itertools.count(1)
        self._calls: dict[int, _Call] = {}
        self._responders: dict[tuple[str, str], list[_Responder]] = {}
        self._queues: dict[tuple[str, str], deque[_Call]] = {}
        self._kept: OrderedDict[_KeepKey, _Kept] = OrderedDict()
        self._kept_octets = 0
        self._calls_octets = 0
        self._asked = self._answered = self._late = self._timed_out = self._repeated = 0

    def statistics(self) -> RequestStatistics:
        return RequestStatistics(
            asked=self._asked,
            answered=self._answered,
            late=self._late,
            timed_out=self._timed_out,
            repeated=self._repeated,
            open=len(self._calls),
            kept=len(self._kept),
        )

    # Who responds

    def respond(self, peer: Peer, frame: wire.Respond, topics: tuple[str, ...], tenant: str) -> None:
        responder = _Responder(peer, frame.request, max(1, frame.concurrency))
        topics = tuple(dict.fromkeys(topics))
        peer.responding[frame.request] = topics
        for topic in topics:
            self._responders.setdefault((tenant, topic), []).append(responder)
            self._dispatch((tenant, topic))

    def retire(self, peer: Peer, request: int, tenant: str) -> None:
        """The responder wants no more; what it has in hand it may still answer."""
        for topic in peer.responding.pop(request, ()):
            left = [r for r in self._responders[tenant, topic] if (r.peer, r.request) != (peer, request)]
            if left:
                self._responders[tenant, topic] = left
            else:
                del self._responders[tenant, topic]
                for call in self._queues.pop((tenant, topic), ()):
                    self._fail(call, "network_down", "nobody serves this topic now")

    def drop_peer(self, peer: Peer, tenant: str) -> None:
        """The link is gone: what it had in hand fails at once, what it asked is answered to nobody."""
        for request in list(peer.responding):
            self.retire(peer, request, tenant)
        for call in list(self._calls.values()):
            if call.responder is not None and call.responder.peer is peer:
                self._fail(call, "network_down", "the responder's link was lost before it answered")
            else:
                call.waiting = [waiter for waiter in call.waiting if waiter[0] is not peer]

    # Who asks

    def ask(self, peer: Peer, frame: wire.Request, tenant: str, principal: str) -> None:
        """Route a request that was granted; the answer goes to the peer in its own time."""
        self._asked += 1
        keep = None
        if frame.trace_id:
            keep = tenant, principal, frame.topic, frame.trace_id
            digest = hashlib.blake2b(frame.body, digest_size=16).digest()
            kept = self._kept.get(keep)
            if kept is not None and (kept.call is not None or kept.until > trio.current_time()):
                self._ask_again(peer, frame, kept, digest)
                return
        where = tenant, frame.topic
        if where not in self._responders:
            self._answer(peer, frame.request, _failure("network_down", "nobody serves this topic now"))
            return
        queue = self._queues.setdefault(where, deque())
        if (
            len(queue) >= self._limits.calls_waiting
            or self._calls_octets + len(frame.body) > self._limits.calls_octets
        ):
            self._answer(peer, frame.request, _failure("rate_limited", "too many wait for this", 1000))
            return
        left_s = min(frame.deadline_ms_left / 1000, DEADLINE_S_MAX)
        call = _Call(
            id=next(self._ids),
            topic=frame.topic,
            tenant=tenant,
            principal=principal,
            trace_id=frame.trace_id,
            body=frame.body,
            deadline=trio.current_time() + left_s,
            waiting=[(peer, frame.request)],
            keep=keep,
        )
        self._calls[call.id] = call
        self._calls_octets += len(call.body)
        peer.requests.add(frame.request)
        if keep is not None:
            self._keep(keep, _Kept(digest, call))
        queue.append(call)
        self._dispatch(where)

    def cancel(self, peer: Peer, request: int) -> None:
        """The asker has given up; the effect may happen all the same, and its answer is kept."""
        if request in peer.requests:
            peer.requests.discard(request)
            for call in self._calls.values():
                call.waiting = [waiter for waiter in call.waiting if waiter != (peer, request)]

    def reply(self, peer: Peer, frame: wire.Reply) -> None:
        """A responder's word."""
        call = self._calls.get(frame.request)
        if call is None or call.responder is None or call.responder.peer is not peer:
            self._late += 1
            return
        if not call.waiting:
            self._late += 1
        self._finish(call, frame)

    def sweep(self) -> None:
        """Called now and then: deadlines and kept answers that are over."""
        now = trio.current_time()
        for call in [call for call in self._calls.values() if call.deadline <= now]:
            self._timed_out += len(call.waiting)
            for peer, request in call.waiting:
                self._answer(peer, request, _failure("timeout", "no answer before the deadline"))
            call.waiting = []
            if call.responder is None:
                self._finish(call, _failure("timeout", "no answer before the deadline"))
            elif now > call.deadline + self._limits.answers_s:
                self._finish(call, _failure("timeout", "no answer at all"))
        while self._kept:
            kept = next(iter(self._kept.values()))
            if kept.call is not None or kept.until > now:
                break
            self._forget(next(iter(self._kept)))

    # Inside

    def _ask_again(self, peer: Peer, frame: wire.Request, kept: _Kept, digest: bytes) -> None:
        if kept.digest != digest:
            text = "another request has this trace id"
            self._answer(peer, frame.request, _failure("duplicate", text))
            return
        self._repeated += 1
        if kept.answer is not None:
            self._answer(peer, frame.request, kept.answer)
        elif kept.call is not None:
            kept.call.waiting.append((peer, frame.request))
            peer.requests.add(frame.request)
            left_s = min(frame.deadline_ms_left / 1000, DEADLINE_S_MAX)
            kept.call.deadline = max(kept.call.deadline, trio.current_time() + left_s)

    def _dispatch(self, where: tuple[str, str]) -> None:
        """Hand waiting calls to responders that have room, the freest first."""
        queue = self._queues.get(where)
        while queue:
            free = [r for r in self._responders.get(where, ()) if len(r.in_hand) < r.concurrency]
            if not free:
                return
            responder = min(free, key=lambda r: len(r.in_hand))
            call = queue.popleft()
            if call.id not in self._calls:
                continue
            call.responder = responder
            responder.in_hand[call.id] = call
            left_ms = max(1, int((call.deadline - trio.current_time()) * 1000))
            responder.peer.send(
                wire.Call(call.id, left_ms, call.topic, call.principal, call.tenant, call.trace_id, call.body)
            )
        if queue is not None:
            self._queues.pop(where, None)

    def _fail(self, call: _Call, code: str, text: str) -> None:
        self._finish(call, _failure(code, text))

    def _finish(self, call: _Call, answer: wire.Reply) -> None:
        if self._calls.pop(call.id, None) is None:
            return
        self._calls_octets -= len(call.body)
        for peer, request in call.waiting:
            self._answer(peer, request, answer)
        if call.keep is not None:
            kept = self._kept.get(call.keep)
            if kept is not None and kept.call is call:
                self._forget(call.keep)
                if answer.code not in PASSING_CODES and answer.retry_ms == wire.NO_RETRY:
                    until = trio.current_time() + self._limits.answers_s
                    self._keep(call.keep, _Kept(kept.digest, None, answer, until))
        responder, call.responder = call.responder, None
        if responder is not None:
            del responder.in_hand[call.id]
            for topic in responder.peer.responding.get(responder.request, ()):
                self._dispatch((call.tenant, topic))

    def _answer(self, peer: Peer, request: int, answer: wire.Reply) -> None:
        self._answered += 1
        peer.requests.discard(request)
        peer.send(wire.Reply(request, answer.code, answer.retry_ms, answer.text, answer.body))

    def _keep(self, key: _KeepKey, kept: _Kept) -> None:
        self._kept[key] = kept
        self._kept_octets += 0 if kept.answer is None else len(kept.answer.body)
        while len(self._kept) > self._limits.answers or self._kept_octets > self._limits.answers_octets:
            self._forget(next(iter(self._kept)))

    def _forget(self, key: _KeepKey) -> None:
        kept = self._kept.pop(key)
        self._kept_octets -= 0 if kept.answer is None else len(kept.answer.body)


def _failure(code: str, text: str, retry_ms: int = wire.NO_RETRY) -> wire.Reply:
    return wire.Reply(0, code, retry_ms, text, b"")
