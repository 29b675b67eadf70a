"""The answering half of a client: calls in, one handler a call, replies out."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import attrs
import trio

from shards import wire
from shards.errors import LocalProtocolError, RequestFailed, ShardsError


@attrs.frozen(kw_only=True)
class Request:
    """A request as its handler sees it; who asks is the broker's word."""

    topic: str
    principal: str
    tenant: str
    trace_id: str
    body: bytes
    deadline: float
    """Absolute, on this process's Trio clock."""


Handler = Callable[[Request], Awaitable[bytes]]


class Responder:
    """Runs handlers for the calls of some topics, at most `concurrency` at once."""

    def __init__(self, number: int, topics: tuple[str, ...], handler: Handler, concurrency: int) -> None:
        self.number = number
        self.topics = topics
        self.concurrency = concurrency
        self._handler = handler
        self._error: ShardsError | None = None
        self._send_call, self._receive_call = trio.open_memory_channel[
            tuple[wire.Call, Callable[[wire.Frame], None]]
        ](concurrency)

    def take(self, call: wire.Call, send: Callable[[wire.Frame], None]) -> None:
        """A call of the broker; `send` answers on the link that it came by, and on no other."""
        try:
            self._send_call.send_nowait((call, send))
        except trio.ClosedResourceError:
            send(_failure(call, RequestFailed("network_down", "nobody serves this topic now")))
        except trio.WouldBlock:
            send(_failure(call, RequestFailed("rate_limited", "too many at once", retry_after_ms=1000)))

    def fail(self, error: ShardsError) -> None:
        """The broker sends no more."""
        self._error = error
        self._send_call.close()

    async def run(self) -> None:
        """Answer until cancelled.  Raises what `fail` was told, in no group."""
        async with trio.open_nursery() as nursery:
            async for call, send in self._receive_call:
                nursery.start_soon(self._answer, call, send)
        if self._error is not None:
            raise self._error

    async def _answer(self, call: wire.Call, send: Callable[[wire.Frame], None]) -> None:
        deadline = trio.current_time() + call.deadline_ms_left / 1000
        request = Request(
            topic=call.topic,
            principal=call.principal,
            tenant=call.tenant,
            trace_id=call.trace_id,
            body=call.body,
            deadline=deadline,
        )
        reply: wire.Frame = _failure(call, RequestFailed("timeout", "no answer before the deadline"))
        try:
            with trio.move_on_at(deadline):
                body = await self._handler(request)
                reply = wire.Reply(call.call, "", wire.NO_RETRY, "", bytes(body))
                wire.encode(reply)
        except RequestFailed as exc:
            reply = _failure(call, exc)
        except LocalProtocolError:
            reply = _failure(call, RequestFailed("too_large", "the answer is too large for a frame"))
        except Exception:
            # The asker must not wait for a fault of ours; what it was is for whoever runs the responder.
            send(_failure(call, RequestFailed("internal", "the responder failed")))
            raise
        send(reply)


def _failure(call: wire.Call, exc: RequestFailed) -> wire.Reply:
    retry_ms = wire.NO_RETRY if exc.retry_after_ms is None else max(0, min(exc.retry_after_ms, 2**32 - 2))
    text = str(exc).encode()[:4000].decode(errors="ignore")
    return wire.Reply(call.call, exc.code, retry_ms, text, b"")
