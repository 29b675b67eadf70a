"""The Log: order, repeats, pages, retention, and proof."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from pathlib import Path

import attrs
import pytest
import trio

from shards import store
from shards.env import Env
from shards.errors import LocalProtocolError, LogCorrupt, LogFull, OffsetTrimmed, ShardsError, StorageFailed
from shards.log import Appended, Batch, Log, Run, open_log
from shards.record import key_hash
from shards.testing import real_env

K = [key_hash(b"%d" % i) for i in range(10)]


@pytest.fixture(params=["thread", "inline"])
def env(request: pytest.FixtureRequest) -> Env:
    return real_env(threads=request.param == "thread")


@pytest.fixture
async def log(env: Env, tmp_path: Path) -> AsyncIterator[Log]:
    async with open_log(env, tmp_path / "log.db") as log:
        yield log


_sequence = iter(range(1, 10**9))


def batch(topic: str = "t/a", keys: tuple[int, ...] = (K[0],), **changes: object) -> Batch:
    made = Batch(
        tenant="acme",
        topic=topic,
        principal="p",
        epoch=1,
        sequence=next(_sequence) * 100,
        keys=keys,
        body=b"body",
    )
    return attrs.evolve(made, **changes)


async def everything(log: Log, **filters: object) -> list[Run]:
    runs: list[Run] = []
    at = log.first
    while at < log.head:
        page = await log.page(at, limit_bytes=200, **filters)
        assert page.next > at
        runs += page.runs
        at = page.next
    return runs


def fill(n: int = 200, seed: int = 1) -> list[Batch]:
    r = random.Random(seed)
    return [
        batch(
            f"t/{r.randrange(4)}",
            tuple(r.choice(K) for _ in range(r.randrange(1, 6))),
            tenant=r.choice(["acme", "beta"]),
            principal=r.choice("pq"),
            body=r.randbytes(r.randrange(300)),
        )
        for _ in range(n)
    ]


async def append_all(log: Log, batches: list[Batch], at_once: int = 3) -> list[Appended]:
    """In order, a few a commit."""
    results: list[Appended] = []

    def then(appended: Appended | None, error: Exception | None) -> None:
        assert error is None
        assert appended is not None
        results.append(appended)

    for i in range(0, len(batches), at_once):
        for b in batches[i : i + at_once]:
            log.append(b, then)
        await log.wait_past(log.head)
    await log.database.write(lambda tx: None)
    assert len(results) == len(batches)
    return results


def as_batch(run: Run) -> Batch:
    return Batch(
        tenant=run.tenant,
        topic=run.topic,
        principal=run.principal,
        epoch=run.epoch,
        sequence=run.sequence,
        keys=run.keys,
        body=run.body,
    )


@pytest.mark.parametrize("ring_bytes", [0, 30_000, 16 << 20])
async def test_what_went_in_comes_out_in_order_from_memory_and_from_disk(
    env: Env, tmp_path: Path, ring_bytes: int
) -> None:
    batches = fill()
    async with open_log(env, tmp_path / "log.db", ring_bytes=ring_bytes) as log:
        results = await append_all(log, batches)
        live = await everything(log)
        statistics = log.topics("acme")
    async with open_log(env, tmp_path / "log.db", ring_bytes=ring_bytes) as log:
        again = await everything(log)
        assert log.topics("acme") == statistics
    assert [as_batch(run) for run in live] == batches
    assert again == live
    assert [run.position for run in live] == [result.position for result in results]
    assert [run.offset for run in live] == [result.offset for result in results]
    at = 0
    offsets: dict[tuple[str, str], int] = {}
    for run in live:
        assert run.position == at
        at = run.end
        assert run.offset == offsets.get((run.tenant, run.topic), 0)
        offsets[run.tenant, run.topic] = run.offset + run.n


@pytest.mark.parametrize("ring_bytes", [0, 16 << 20])
async def test_a_filter_lets_no_other_tenant_or_topic_through(
    env: Env, tmp_path: Path, ring_bytes: int
) -> None:
    batches = fill()
    async with open_log(env, tmp_path / "log.db", ring_bytes=ring_bytes) as log:
        await append_all(log, batches)
        for tenant in ("acme", "beta", "nobody"):
            wanted = [b for b in batches if b.tenant == tenant]
            assert [as_batch(run) for run in await everything(log, tenant=tenant)] == wanted
            some = [b for b in wanted if b.topic in ("t/1", "t/3")]
            got = await everything(log, tenant=tenant, topics=["t/1", "t/3", "t/absent"])
            assert [as_batch(run) for run in got] == some


async def test_an_ask_in_the_middle_of_a_run_gets_that_run(log: Log) -> None:
    await log.append_wait(batch(keys=tuple(K[:5])))
    await log.append_wait(batch(keys=tuple(K[:5])))
    tail = log.tail(7)
    assert tail is not None
    assert [run.position for run in tail] == [5]
    assert [run.position for run in (await log.page(3)).runs] == [0, 5]
    assert log.tail(10) == ()


async def test_the_tail_is_limited_and_says_when_it_does_not_reach(env: Env, tmp_path: Path) -> None:
    async with open_log(env, tmp_path / "log.db", ring_bytes=4000) as log:
        await append_all(log, [batch(body=b"x" * 100) for _ in range(20)])
        assert log.tail(0) is None
        tail = log.tail(18, limit=1)
        assert tail is not None
        assert [run.position for run in tail] == [18]
        assert log.statistics().ring_octets <= 4000


@pytest.mark.parametrize("ring_bytes", [0, 16 << 20])
async def test_the_index_finds_every_record_of_a_key(env: Env, tmp_path: Path, ring_bytes: int) -> None:
    batches = fill(300)
    async with open_log(env, tmp_path / "log.db", ring_bytes=ring_bytes) as log:
        await append_all(log, batches)
        runs = await everything(log)
        assert 0 < log.statistics().flushed < log.head, "the test wants both halves of the index"
        for key in K:
            for topics in (["t/0"], ["t/1", "t/2"], None):
                wanted = [
                    run.position + i
                    for run in runs
                    for i in range(run.n)
                    if run.tenant == "acme" and run.keys[i] == key and (topics is None or run.topic in topics)
                ]
                assert await log.positions("acme", topics, key, 0, None, 10**6) == wanted
                middle = log.head // 2
                part = [p for p in wanted if middle <= p < middle + 200]
                assert await log.positions("acme", topics, key, middle, middle + 200, 10**6) == part
                assert (
                    await log.positions("acme", topics, key, middle, None, 2)
                    == [p for p in wanted if p >= middle][:2]
                )
        assert await log.positions("nobody", None, K[0], 0, None, 10) == []


async def test_a_topics_offset_leads_to_its_position(log: Log) -> None:
    await append_all(log, fill(300))
    for run in await everything(log):
        for i in (0, run.n - 1):
            assert await log.position_of(run.tenant, run.topic, run.offset + i) == run.position + i
    assert await log.position_of("acme", "t/0", 10**9) == log.head
    assert await log.position_of("acme", "t/absent", 0) == log.head


async def test_a_repeat_gets_what_the_first_got(env: Env, tmp_path: Path) -> None:
    batches = fill(150)
    async with open_log(env, tmp_path / "log.db") as log:
        first = await append_all(log, batches)
        head = log.head
        for i in (0, 70, 149):
            again = await log.append_wait(batches[i])
            assert again == attrs.evolve(first[i], duplicate=True)
    async with open_log(env, tmp_path / "log.db") as log:
        for i in (0, 70, 149):
            again = await log.append_wait(batches[i])
            assert again == attrs.evolve(first[i], duplicate=True)
        assert log.head == head
        assert log.statistics().duplicates == 3


async def test_a_repeat_of_what_still_waits_is_recognised(log: Log) -> None:
    b = batch()
    results: list[Appended | None] = []
    for _ in range(3):
        log.append(b, lambda appended, _error: results.append(appended))
    await log.append_wait(batch())
    assert [(r.position, r.duplicate) for r in results if r] == [(0, False), (0, True), (0, True)]
    assert log.head == 2


async def test_repeats_are_known_by_range_and_by_publisher(log: Log) -> None:
    whole = batch(keys=tuple(K[:6]), sequence=10)
    first = await log.append_wait(whole)

    async def verdict(sequence: int, n: int, **changes: object) -> tuple[bool, bool, int]:
        appended = await log.append_wait(batch(keys=tuple(K[:n]), sequence=sequence, **changes))
        return appended.duplicate, appended.overlap, appended.position

    assert await verdict(12, 3) == (True, False, first.position + 2)
    assert await verdict(14, 4) == (False, True, -1)
    assert await verdict(8, 4) == (False, True, -1)
    assert await verdict(5, 5) == (False, False, 6), "below the highest, but never stored: new"
    assert await verdict(5, 11) == (True, False, 6)
    assert await verdict(10, 6, epoch=2) == (False, False, 11)
    assert await verdict(10, 6, principal="other") == (False, False, 17)
    assert await verdict(10, 6, tenant="beta") == (False, False, 23)


async def test_one_bad_append_never_reaches_its_neighbours(log: Log) -> None:
    results: list[Appended | None] = []
    bad = [
        batch(topic="no topic"),
        batch(topic=""),
        batch(keys=()),
        batch(keys=(2**64,)),
        batch(keys=(-1,)),
        batch(sequence=2**63),
        batch(epoch=-1),
        batch(body=b"x" * (3 << 20)),
        batch(body="text"),
        batch(tenant="\ud800"),
        batch(principal=""),
    ]
    for b in bad:
        log.append(batch(), lambda appended, _error: results.append(appended))
        with pytest.raises(ShardsError):
            log.append(b, lambda _appended, _error: pytest.fail("a refused batch was told of"))
    await log.append_wait(batch())
    assert [r.position for r in results if r] == list(range(len(bad)))
    with pytest.raises(LocalProtocolError):
        await log.append_wait(batch(keys=(2**64,)))


async def test_the_head_moves_before_anybody_is_told(log: Log) -> None:
    heads: list[tuple[int, int]] = []

    def then(appended: Appended | None, _error: Exception | None) -> None:
        assert appended is not None
        heads.append((appended.position, log.head))

    for _ in range(10):
        log.append(batch(), then)
    await log.append_wait(batch())
    assert len(heads) == 10
    assert all(head > position for position, head in heads)


async def test_whoever_waits_for_the_head_is_woken(log: Log) -> None:
    heads: list[int] = []

    async def wait() -> None:
        heads.append(await log.wait_past(0))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait)
        await log.append_wait(batch(keys=tuple(K[:3])))
    assert heads == [3]


async def test_unsigned_numbers_keep_all_their_bits(env: Env, tmp_path: Path) -> None:
    top = 2**64 - 1
    async with open_log(env, tmp_path / "log.db", ring_bytes=0) as log:
        await log.append_wait(batch(keys=(top, 2**63, 0), epoch=top, sequence=7))
        await append_all(log, fill(120))
        assert await log.positions("acme", ["t/a"], top, 0, None, 5) == [0]
        assert await log.positions("acme", ["t/a"], 2**63, 0, None, 5) == [1]
        assert (await log.append_wait(batch(keys=(1,), epoch=top, sequence=8))).position == 1
        (run,) = (await log.page(0, limit_bytes=1)).runs[:1]
        assert (run.keys, run.epoch) == ((top, 2**63, 0), top)


async def test_retention_takes_whole_segments_and_says_so(env: Env, tmp_path: Path) -> None:
    batches = fill(300)
    async with open_log(env, tmp_path / "log.db", ring_bytes=0) as log:
        first = await append_all(log, batches)
        runs = await everything(log)
        middle = log.head // 2
        left = await log.trim(before=middle)
        assert left == log.first
        assert 0 < left <= middle
        with pytest.raises(OffsetTrimmed) as caught:
            await log.page(0)
        assert caught.value.first == left
        assert await everything(log) == [run for run in runs if run.position >= left]
        assert await log.positions("acme", ["t/0"], K[0], 0, None, 10**6) == [
            run.position + i
            for run in runs
            for i in range(run.n)
            if (run.tenant, run.topic, run.keys[i]) == ("acme", "t/0", K[0]) and run.position >= left
        ]
        gone = runs[0]
        with pytest.raises(OffsetTrimmed):
            await log.position_of(gone.tenant, gone.topic, 0)
        # What was trimmed is still known as a repeat, though its place is forgotten.
        again = await log.append_wait(batches[0])
        assert (again.duplicate, again.position) == (True, -1)
        assert await log.append_wait(batches[-1]) == attrs.evolve(first[-1], duplicate=True)
        await log.verify()
        assert await log.trim(before=10**9) < log.head, "the newest segment stays"
        await log.verify()
    async with open_log(env, tmp_path / "log.db") as log:
        assert (await log.append_wait(batches[0])).duplicate
        new = await log.append_wait(batch())
        assert new.position == runs[-1].end


async def test_retention_by_age_and_by_size(tmp_path: Path) -> None:
    now = 1000.0
    env = real_env(threads=False, wall=lambda: now)
    async with open_log(env, tmp_path / "log.db") as log:
        for i in range(10):
            now = 1000.0 + i
            await log.append_wait(batch(body=b"x" * 1000))
        assert await log.trim(older_than_ms=1_003_000) == 3
        assert await log.trim(older_than_ms=1_003_000) == 3
        assert await log.trim(octets_max=4_500) == 6
        assert await log.trim(octets_max=10**9) == 6
        assert await log.trim(older_than_ms=10**9) == 9
        await log.verify()


async def test_verify_walks_all_of_it_and_works_on_a_stopped_shard(env: Env, tmp_path: Path) -> None:
    async with open_log(env, tmp_path / "log.db") as log:
        await append_all(log, fill(200))
        seen: list[tuple[int, int]] = []
        verified = await log.verify(lambda position, head: seen.append((position, head)))
        assert verified.records == log.head
        assert seen[-1] == (log.head, log.head)
    async with open_log(env, tmp_path / "log.db", read_only=True) as log:
        assert await log.verify() == verified
        assert len(await everything(log)) == 200
        with pytest.raises(LocalProtocolError):
            await log.append_wait(batch())


async def test_a_changed_segment_is_noticed_when_read_and_when_verified(env: Env, tmp_path: Path) -> None:
    async with open_log(env, tmp_path / "log.db", ring_bytes=0) as log:
        await append_all(log, fill(100))
        await log.database.write(
            lambda tx: tx.execute(
                "UPDATE segment SET at_ms = at_ms + 1 WHERE pos = (SELECT min(pos) FROM segment)"
            )
        )
        with pytest.raises(LogCorrupt, match="segment 0 does not match its checksum"):
            await log.page(0)
        with pytest.raises(LogCorrupt, match="segment 0"):
            await log.verify()


@pytest.mark.parametrize(
    "damage",
    [
        "DELETE FROM segment WHERE pos = (SELECT pos FROM segment LIMIT 1 OFFSET 3)",
        "DELETE FROM segment WHERE pos = (SELECT max(pos) FROM segment)",
        "UPDATE segment SET chain = zeroblob(32) WHERE pos = (SELECT pos FROM segment LIMIT 1 OFFSET 3)",
        "UPDATE idx SET n = n + 1 WHERE rowid_is = 0",
        "DELETE FROM idx WHERE pos = (SELECT min(pos) FROM idx)",
        "INSERT INTO idx VALUES(1, 5, 0, 1)",
        "UPDATE run SET pos = pos + 1 WHERE pos = (SELECT min(pos) FROM run)",
        "UPDATE producer SET offset = offset + 1 WHERE pos = (SELECT min(pos) FROM producer)",
        "UPDATE topic SET next_offset = next_offset + 1 WHERE id = 1",
        "UPDATE publisher SET name = 'mallory' WHERE id = 1",
        "UPDATE meta SET value = zeroblob(8) WHERE name = 'flushed'",
    ],
)
async def test_damage_to_any_table_is_noticed(tmp_path: Path, damage: str) -> None:
    damage = damage.replace("WHERE rowid_is = 0", "WHERE pos = (SELECT min(pos) FROM idx)")
    async with open_log(real_env(threads=False), tmp_path / "log.db") as log:
        await append_all(log, fill(100))
        await log.verify()
        await log.database.write(lambda tx: tx.execute(damage))
        with pytest.raises(LogCorrupt):
            await log.verify()


async def test_a_full_disk_refuses_the_batch_and_the_log_goes_on(log: Log) -> None:
    await log.append_wait(batch())
    pages = (await log.database.read(lambda tx: tx.execute("PRAGMA page_count")))[0][0]
    await log.database.write(lambda tx: tx.execute(f"PRAGMA max_page_count={pages}"))
    with pytest.raises(LogFull):
        await log.append_wait(batch(body=b"x" * 200_000))
    await log.database.write(lambda tx: tx.execute("PRAGMA max_page_count=100000"))
    appended = await log.append_wait(batch())
    assert (appended.position, appended.offset) == (1, 1)
    await log.verify()


async def test_storage_that_failed_acknowledges_nothing_again(
    log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    await log.append_wait(batch())

    def fail(group: object) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(log.database, "_commit", fail)
    told: list[Exception | None] = []
    for _ in range(5):
        log.append(batch(), lambda _appended, error: told.append(error))
    with pytest.raises(StorageFailed):
        await log.append_wait(batch())
    assert len(told) == 5
    assert all(isinstance(error, StorageFailed) for error in told)
    with pytest.raises(StorageFailed):
        log.append(batch(), lambda _appended, _error: None)


async def test_what_does_not_fit_memory_is_refused(log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shards.log.WAITING_BYTES_MAX", 1000)
    log.append(batch(body=b"x" * 900), lambda _appended, _error: None)
    with pytest.raises(LogFull):
        log.append(batch(body=b"x" * 900), lambda _appended, _error: None)
    await log.wait_past(0)
    assert (await log.append_wait(batch(body=b"x" * 900))).position == 1


async def test_a_crash_loses_only_the_index_and_that_is_made_again(tmp_path: Path) -> None:
    import shutil

    async with open_log(real_env(threads=False), tmp_path / "log.db") as log:
        await append_all(log, fill(130))
        runs = await everything(log)
        assert log.statistics().flushed < log.head
        (tmp_path / "copy").mkdir()
        for name in ("log.db", "log.db-wal"):
            shutil.copy(tmp_path / name, tmp_path / "copy" / name)
    async with open_log(real_env(threads=False), tmp_path / "copy" / "log.db") as log:
        assert await everything(log) == runs
        for key in K:
            assert await log.positions("beta", None, key, 0, None, 10**6) == [
                r.position + i for r in runs for i in range(r.n) if r.tenant == "beta" and r.keys[i] == key
            ]
        await log.verify()


def test_a_names_and_counts_of_the_schema_are_as_written() -> None:
    assert len(store.MIGRATIONS) == 1, "a changed schema is a new script, never an edited one"
