"""A broker and its clients for a test: principals enrolled by a line, clients opened by their name."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import TypeVar

import trio

from shards import wire
from shards.broker import Broker, Limits, Principal, open_broker
from shards.client import Client, Identity, Subscription, open_client
from shards.client.session import Session, connect
from shards.env import Env
from shards.grant import Grant
from shards.link import Data
from shards.record import Record

F = TypeVar("F", bound=wire.Frame)

TENANT = "acme"
ALL_GRANTS = (
    "publish bridge/*/*/*",
    "subscribe bridge/*/*/*",
    "request bridge/*/*/*",
    "respond bridge/*/*/*",
    "journal bridge/*/*/*",
)


class Fabric:
    """A running broker; `restart` replaces `broker`, clients find the new one by themselves."""

    def __init__(self, env: Env, state: Path, endpoint: str, shard: str) -> None:
        self.env = env
        self.state = state
        self.endpoint = endpoint
        self.shard = shard
        self.broker: Broker
        self.identities: dict[str, Identity] = {}

    async def enroll(self, name: str, *grants: str, tenant: str = TENANT) -> Identity:
        """A principal with these grants ("publish bridge/irc/*/*"); again: with the grants replaced."""
        identity = self.identities.get(f"{tenant}/{name}")
        if identity is None:
            identity = Identity.generate(name, tenant, self.env.token_bytes)
            self.identities[f"{tenant}/{name}"] = identity
        await self.broker.enroll(
            Principal(
                name=name,
                tenant=tenant,
                noise_public=identity.noise_public,
                signing_public=identity.signing_public,
                lease_public=identity.lease_public,
                grants=frozenset(map(Grant.parse, grants)),
            )
        )
        return identity

    @asynccontextmanager
    async def client(self, name: str, *grants: str, tenant: str = TENANT) -> AsyncIterator[Client]:
        """A client of that name; enrolled with the grants where any are given."""
        if grants:
            await self.enroll(name, *grants, tenant=tenant)
        async with self.connect(self.identities[f"{tenant}/{name}"]) as client:
            yield client

    def connect(
        self, identity: Identity, *, endpoint: str | None = None
    ) -> AbstractAsyncContextManager[Client]:
        """A client of this identity."""
        return open_client(
            self.env,
            endpoint or self.endpoint,
            identity,
            server_public=self.broker.server_public,
            shard=self.shard,
        )


@asynccontextmanager
async def open_fabric(
    env: Env,
    state: Path | None = None,
    *,
    shard: str = "test",
    limits: Limits | None = None,
    tcp: tuple[str, ...] = (),
) -> AsyncIterator[Fabric]:
    """A broker on a fresh directory (removed at the end), or on `state`."""
    with tempfile.TemporaryDirectory(prefix="fabric-") as fresh:
        where = state or Path(fresh)
        # The socket's path must be short and its directory closed to others.
        fabric = Fabric(env, where, f"{fresh}/run/fabric.sock", shard)
        async with open_broker(
            env, state=where, endpoint=fabric.endpoint, shard=shard, limits=limits, tcp=tcp
        ) as fabric.broker:
            yield fabric


# -- what tests of the fabric say all the time ----------------------------------------------------------------


async def receive(subscription: Subscription, n: int, *, within_s: float = 5.0) -> list[Record]:
    """The next records, at least n.  Raises trio.TooSlowError."""
    records: list[Record] = []
    with trio.fail_after(within_s):
        while len(records) < n:
            records += await subscription.receive()
    return records


async def receive_for(subscription: Subscription, seconds: float) -> list[Record]:
    """What comes within that time."""
    records: list[Record] = []
    with trio.move_on_after(seconds):
        while True:
            records += await subscription.receive()
    return records


async def consume(client: Client, group: str, n: int, topics: Sequence[str]) -> list[Record]:
    """The next n records of a group, acknowledged as they come.  Raises trio.TooSlowError."""
    records: list[Record] = []
    async with client.subscribe(topics, group=group) as subscription:
        with trio.fail_after(5):
            while len(records) < n:
                got = await subscription.receive()
                await subscription.done(got)
                records += got
    return records


async def wait_until(condition: Callable[[], object], *, within_s: float = 5.0) -> None:
    """Until the condition holds: for what has no event.  Raises trio.TooSlowError."""
    with trio.fail_after(within_s):
        while not condition():  # noqa: ASYNC110
            await trio.sleep(0.005)


async def settle(fabric: Fabric, group: str, tenant: str = TENANT) -> None:
    """Until the group has nothing unfinished.  Raises trio.TooSlowError."""
    await wait_until(lambda: not any(g.lag for g in fabric.broker.groups(tenant) if g.name == group))


class RawLink:
    """A link whose frames a test writes itself, well-formed or not.  Made by `raw_link`."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self.heard: list[wire.Frame] = []

    def send(self, frame: wire.Frame) -> None:
        self.session.send(frame)

    def send_plain(self, plaintext: bytes) -> None:
        """Any bytes, sealed."""
        self.session.frames.send_nowait(b"", self.session.link.seal(plaintext, trio.current_time()))

    async def until(self, kind: type[F]) -> F:
        """The first frame of that type, heard already or yet to come.  Raises trio.TooSlowError."""
        with trio.fail_after(5):
            while True:
                for frame in self.heard:
                    if isinstance(frame, kind):
                        return frame
                await self.listen()

    async def listen(self) -> None:
        """Take what comes next."""
        for _, raw in await self.session.frames.receive(16):
            for event in self.session.link.receive_frame(raw, trio.current_time()):
                if isinstance(event, Data):
                    frame = self.session.assembly.feed(event.plaintext)
                    if frame is not None:
                        self.heard.append(frame)

    async def wait_lost(self) -> None:
        """Until the connection is cut.  Raises trio.TooSlowError."""
        with trio.fail_after(5):
            while not self.session.frames.lost():
                await self.listen()

    async def aclose(self) -> None:
        """Fall without a word."""
        await self.session.aclose()


async def raw_link(fabric: Fabric, name: str, tenant: str = TENANT) -> RawLink:
    """An established link of an enrolled principal, with nobody behind it."""
    session, _ = await connect(
        fabric.env,
        fabric.endpoint,
        fabric.identities[f"{tenant}/{name}"],
        server_public=fabric.broker.server_public,
        shard=fabric.shard,
        invite=None,
    )
    return RawLink(session)
