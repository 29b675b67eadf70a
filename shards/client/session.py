"""One link to the broker, from the connection to its loss.  What outlives a link is the client's."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress

import trio

from noise import KeyPair
from shards import wire
from shards.client.identity import Identity
from shards.env import Env, Frames
from shards.errors import NotGranted, RemoteProtocolError, Unreachable
from shards.link import Data, Established, Initiator, Invite, Lost, NeedSend, Reason

CONNECT_S = 5.0
PING_AFTER_S = 5.0
SILENT_S_MAX = 15.0
"""A broker that says nothing for so long is gone, whatever the connection looks like."""
STALLED_RETRY_S = 0.002


class LinkLost(Exception):
    """The link is over; never leaves `shards.client`."""


class Session:
    """An established link: frames in, frames out.  Made by `connect`."""

    def __init__(self, frames: Frames, link: Initiator) -> None:
        self.is_over = False
        self.frames = frames
        self.link = link
        self.assembly = wire.Assembly()
        self._queue: deque[bytes] = deque()
        self._sealed: bytes | None = None
        self._heard_at = trio.current_time()
        self._stalled = trio.Event()

    @property
    def is_stalled(self) -> bool:
        """The socket is full: something waits to be sent."""
        return self._sealed is not None

    def send(self, frame: wire.Frame) -> None:
        """Send; what the socket will not take waits in order.  Nothing happens on a link that is over."""
        if self.is_over or self.link.is_lost:
            return
        self._queue.extend(wire.encode(frame))
        if self._sealed is None:
            self._flush()

    async def run(self, *, heard: Callable[[wire.Frame], None]) -> None:
        """Hand on what comes until the link is lost, then return."""
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._watch)
                nursery.start_soon(self._retry_stalled)
                with suppress(LinkLost):
                    await self._receive(heard)
                self.is_over = True
                nursery.cancel_scope.cancel()
        finally:
            await self.aclose()

    async def aclose(self) -> None:
        self.is_over = True
        self._queue.clear()
        with trio.CancelScope(shield=True):
            await self.frames.aclose()

    async def _receive(self, heard: Callable[[wire.Frame], None]) -> None:
        while True:
            arrived = await self.frames.receive(64)
            self._heard_at = now = trio.current_time()
            for _, raw in arrived:
                for event in self.link.receive_frame(raw, now):
                    if isinstance(event, Data):
                        try:
                            frame = self.assembly.feed(event.plaintext)
                        except RemoteProtocolError as exc:
                            self.send(wire.Bye(wire.Code.MALFORMED, str(exc)[:200]))
                            raise LinkLost from exc
                        if frame is not None:
                            heard(frame)
                    elif isinstance(event, Lost):
                        raise LinkLost(event.reason.name)
            if self.frames.lost() or self.is_over:
                raise LinkLost

    async def _watch(self) -> None:
        """Ask a silent broker whether it is there; give it up when it does not answer."""
        while True:
            await trio.sleep(PING_AFTER_S)
            silent_s = trio.current_time() - self._heard_at
            if silent_s >= SILENT_S_MAX:
                self.frames.cut(b"")
            elif silent_s >= PING_AFTER_S / 2:
                self.send(wire.Ping(0))

    async def _retry_stalled(self) -> None:
        while True:
            await self._stalled.wait()
            self._stalled = trio.Event()
            while self._sealed is not None:
                await trio.sleep(STALLED_RETRY_S)
                self._flush()

    def _flush(self) -> None:
        now = trio.current_time()
        while True:
            if self._sealed is not None:
                if not self.frames.send_nowait(b"", self._sealed):
                    self._stalled.set()
                    return
                self._sealed = None
            if not self._queue or self.is_over or self.link.is_lost:
                return
            self._sealed = self.link.seal(self._queue.popleft(), now)


async def connect(
    env: Env,
    endpoint: str,
    identity: Identity,
    *,
    server_public: bytes,
    shard: str,
    invite: Invite | None,
) -> tuple[Session, wire.Welcome]:
    """One honest attempt: connection, handshake, welcome.

    Raises:
        Unreachable: Nobody there, or nobody who can be talked to now.
        NotGranted: The broker refuses this key or invite, or knows it under another name.
    """
    with trio.move_on_after(CONNECT_S):
        frames = await env.connect(endpoint)
        try:
            link = Initiator(
                static=KeyPair.from_private(identity.noise_private),
                responder_public=server_public,
                shard=shard,
                token_bytes=env.token_bytes,
                now=trio.current_time(),
                invite=invite,
            )
            return await _shake_hands(frames, link, identity, enrolling=invite is not None)
        except BaseException:
            with trio.CancelScope(shield=True):
                await frames.aclose()
            raise
    raise Unreachable(f"no answer at {endpoint}", hint="is the shard running?")


async def _shake_hands(
    frames: Frames, link: Initiator, identity: Identity, *, enrolling: bool
) -> tuple[Session, wire.Welcome]:
    session = Session(frames, link)
    for begin in link.start():
        _send_now(frames, begin.frame)
    while True:
        arrived = await frames.receive(1)
        for event in _events(link, arrived):
            if isinstance(event, NeedSend):
                _send_now(frames, event.frame)
            elif isinstance(event, Lost):
                raise _refusal(event.reason)
            elif isinstance(event, Established):
                if enrolling:
                    session.send(wire.Enroll(identity.signing_public, identity.lease_public))
            else:
                welcome = _welcome_of(event.plaintext)
                if (welcome.principal, welcome.tenant) != (identity.name, identity.tenant):
                    raise NotGranted(
                        f"the broker knows this key as {welcome.principal!r} of {welcome.tenant!r}",
                        hint="use the identity that was enrolled",
                    )
                return session, welcome
        if frames.lost():
            raise Unreachable("the broker closed the connection", hint="look at its log")


def _events(
    link: Initiator, arrived: list[tuple[bytes, bytes]]
) -> Iterator[NeedSend | Established | Data | Lost]:
    for _, raw in arrived:
        yield from link.receive_frame(raw, trio.current_time())


def _send_now(frames: Frames, frame: bytes) -> None:
    if not frames.send_nowait(b"", frame):
        raise Unreachable("the connection was lost in the handshake")


def _welcome_of(plaintext: bytes) -> wire.Welcome:
    try:
        frame = wire.Assembly().feed(plaintext)
    except RemoteProtocolError as exc:
        raise Unreachable(f"the broker speaks another version: {exc}") from exc
    if isinstance(frame, wire.Bye):
        raise NotGranted(frame.text, hint="bridgectl keys invite")
    if not isinstance(frame, wire.Welcome):
        raise Unreachable("the broker did not say welcome")
    return frame


def _refusal(reason: Reason) -> Exception:
    if reason is Reason.REFUSED:
        return NotGranted(
            "the broker refuses this key: unknown, suspended or revoked, or another broker's key was expected",
            hint="bridgectl keys list",
        )
    if reason is Reason.OTHER_SHARD:
        return NotGranted("another shard's broker answers there", hint="check the endpoint")
    return Unreachable(f"the broker ended the link: {reason.name.lower()}", hint="it is tried again")
