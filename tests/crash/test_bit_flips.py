"""One bit of a stopped shard's log is flipped: it is noticed, or it was in bytes that nobody uses."""

from __future__ import annotations

import random

import pytest

from shards import store
from shards.env import Env
from shards.errors import LogError
from shards.log import open_log
from shards.testing import World, check_files, run_simulation

from . import log_workload

FLIPS = 100


def make() -> dict[str, bytes]:
    async def main() -> dict[str, bytes]:
        with World(1) as world:
            host = world.host("a")
            await log_workload.live(host.env(), lambda _ack: None, n=240, trim=False)
            return {path: data for path, data in host.disk.files().items() if data}

    return run_simulation(1, main)


async def contents(env: Env) -> object:
    """Everything that a reader can get of it, all of it verified."""
    async with open_log(env, log_workload.PATH, ring_bytes=0, read_only=True) as log:
        verified = await log.verify()
        groups = await log.database.read(store.groups)
        return verified, groups, await log_workload.stored(log), log.topics("acme"), log.topics("beta")


def test_a_flipped_bit_is_noticed_or_changes_nothing() -> None:
    files = make()
    assert list(files) == [str(log_workload.PATH)], "a clean stop leaves one file"
    path = str(log_workload.PATH)
    seen: list[object] = []

    async def look(env: Env, _acknowledged: list[object]) -> None:
        seen.append(await contents(env))

    check_files(files, look, [])
    truth = seen.pop()
    r = random.Random(7)
    noticed = 0
    for _ in range(FLIPS):
        data = bytearray(files[path])
        at, bit = r.randrange(len(data)), r.randrange(8)
        data[at] ^= 1 << bit
        try:
            check_files({path: bytes(data)}, look, [], note=f"bit {bit} of byte {at}")
        except LogError:
            noticed += 1
        else:
            assert seen.pop() == truth, f"bit {bit} of byte {at} changed what is read, and nobody noticed"
    assert noticed > 2 * FLIPS // 5


def test_a_flip_of_a_small_row_is_noticed_when_it_is_loaded() -> None:
    files = make()
    path = str(log_workload.PATH)
    data = bytearray(files[path])
    at = data.index(b"acmeg")  # tenant and name of the group, side by side in its row
    data[at + 4] ^= 1

    async def load(env: Env, _acknowledged: list[object]) -> None:
        async with open_log(env, log_workload.PATH) as log:
            await log.database.read(store.groups)

    with pytest.raises(LogError):
        check_files({path: bytes(data)}, load, [])
