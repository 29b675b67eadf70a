"""A connection that never leaves the process: the same frames, without a socket under them.

A member that runs inside speaks the same protocol to the same endpoint under the same Noise session as one
outside; only what carries its frames is a bounded queue in memory instead of ZeroMQ's two threads and two
kernel sockets, which cost ten times the frame's own work.  `connect_inside` finds the listener of a path in this
process and this Trio run; where there is none, the caller goes by ZeroMQ.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Protocol

import trio

from shards.env import Frames
from shards.errors import LocalProtocolError

# Ours.
FRAMES_MAX = 72
"""Each way; as many as ZeroMQ's two high-water marks hold together."""
FRAME_BYTES_MAX = 65_600


class Listener(Protocol):
    """The listening side, as an inside connection needs it."""

    def arrive(self, peer: bytes, frame: bytes) -> bool:
        """Take a frame; False where too many of this peer's wait already."""
        ...

    def part(self, peer: bytes) -> None:
        """The peer has gone."""
        ...


class InsideFrames(Frames):
    """The connecting side."""

    def __init__(self, listener: Listener, peer: bytes) -> None:
        self._listener = listener
        self._peer = peer
        self._inbox: deque[bytes] = deque()
        self._news = trio.Event()
        self._is_ended = False
        self._is_told = False
        self._is_closed = False

    async def receive(self, limit: int = 64) -> list[tuple[bytes, bytes]]:
        """As `Frames.receive`."""
        await trio.lowlevel.checkpoint_if_cancelled()
        slept = False
        while not self._inbox and not (self._is_ended and not self._is_told):
            if self._is_closed:
                raise trio.ClosedResourceError("the connection was closed")
            slept = True
            await self._news.wait()
            self._news = trio.Event()
        taken = [(b"", self._inbox.popleft()) for _ in range(min(limit, len(self._inbox)))]
        if not slept:
            await trio.lowlevel.cancel_shielded_checkpoint()
        return taken

    def send_nowait(self, peer: bytes, frame: bytes) -> bool:
        """As `Frames.send_nowait`."""
        if self._is_closed:
            raise trio.ClosedResourceError("the connection was closed")
        check_size(frame)
        return not self._is_ended and self._listener.arrive(self._peer, frame)

    def cut(self, peer: bytes) -> None:
        """As `Frames.cut`."""
        if not self._is_ended:
            self.end()
            self._listener.part(self._peer)

    def lost(self) -> list[bytes]:
        """As `Frames.lost`."""
        if self._is_ended and not self._is_told and not self._inbox:
            self._is_told = True
            return [b""]
        return []

    async def aclose(self) -> None:
        """End the connection; a task in `receive` gets ClosedResourceError."""
        self._is_closed = True
        self.cut(b"")
        self._inbox.clear()
        self._is_told = True
        self._news.set()
        await trio.lowlevel.checkpoint()

    # -- the listener's side --------------------------------------------------------------------------------

    def deliver(self, frame: bytes) -> bool:
        """A frame for us; False where we are gone or do not read."""
        if self._is_ended or len(self._inbox) >= FRAMES_MAX:
            return False
        self._inbox.append(frame)
        self._news.set()
        return True

    def end(self) -> None:
        """The listener cut us or closed; frames that came before are still read."""
        self._is_ended = True
        self._news.set()


Accept = Callable[[], InsideFrames]
_listening: dict[str, tuple[trio.lowlevel.TrioToken, Accept]] = {}


def listen_inside(path: str, accept: Accept) -> None:
    """Let connections of this process come in at `path`."""
    _listening[path] = trio.lowlevel.current_trio_token(), accept


def stop_inside(path: str, accept: Accept) -> None:
    """No more of them; what stands is the listener's to end."""
    if path in _listening and _listening[path][1] == accept:
        del _listening[path]


def connect_inside(path: str) -> InsideFrames | None:
    """A connection to who listens at `path` in this very Trio run, or None."""
    token, accept = _listening.get(path, (None, None))
    if accept is None or token is not trio.lowlevel.current_trio_token():
        return None
    return accept()


def check_size(frame: bytes) -> None:
    """Raises LocalProtocolError: the frame is larger than one may be."""
    if len(frame) > FRAME_BYTES_MAX:
        raise LocalProtocolError(f"a frame has at most {FRAME_BYTES_MAX} bytes, not {len(frame)}")
