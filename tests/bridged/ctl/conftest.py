"""A record that nobody can take."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest

from bridged.keyring import load_key
from shards import open_client, system_env


@pytest.fixture
def broken_record() -> Callable[[Any], int]:
    """A function that lets the echo connector publish junk, and returns the number of its dead letter."""

    async def publish(house: Any) -> None:
        env, key = system_env(), load_key(house.state / "keys/member-echo-demo.key")
        broker = house.daemon.running.broker
        async with open_client(
            env, broker.endpoint, key.identity, server_public=broker.server_public, shard="acme"
        ) as client:
            await client.publish("bridge/echo/demo/inbound_message", [b"junk"], key=b"k")

    def make(house: Any) -> int:
        known = {row["id"] for row in house.ctl("dlq", "list", "--json").json()["dead_letters"]}
        house.daemon.do(publish, house)
        deadline = time.monotonic() + 5
        while time.monotonic() < deadline:
            rows = house.ctl("dlq", "list", "--json").json()["dead_letters"]
            fresh = [row["id"] for row in rows if row["id"] not in known]
            if fresh:
                return int(fresh[0])
        raise AssertionError("no dead letter")

    return make
