"""A Log with records of one's own."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from shards.log import open_log
from shards.record import Record, key_hash
from shards.store import Batch
from shards.testing import real_env
from shards.wire import encode_batch


@pytest.fixture
def make_log() -> Callable[[Path, list[Record]], Awaitable[None]]:
    """A function that writes these records, which must stand at 0, 1, 2 …, as the tenant `acme`."""

    async def make(path: Path, records: list[Record]) -> None:
        async with open_log(real_env(), path) as log:
            for one in records:
                key = key_hash(b"k")
                await log.append_wait(
                    Batch(
                        tenant="acme",
                        topic=one.topic,
                        principal=one.principal,
                        epoch=1,
                        sequence=one.position,
                        keys=(key,),
                        body=encode_batch([key], [one.payload], bytes(64)),
                    )
                )

    return make
