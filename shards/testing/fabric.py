"""A broker and its clients for a test: principals enrolled by a line, clients opened by their name."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

from shards.broker import Broker, Limits, Principal, open_broker
from shards.client import Client, Identity, open_client
from shards.env import Env
from shards.grant import Grant

TENANT = "acme"


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
