from __future__ import annotations

import random
from typing import Any

import pytest
import trio

from shards import restart
from shards.env import Env
from shards.errors import MemberError, StorageFailed
from shards.shard import Member, MemberStatus, Supervisor, lost_connection


@pytest.fixture
def env() -> Env:
    async def no(*_: Any) -> Any:
        raise AssertionError("a supervisor needs no outside")

    return Env(
        wall=lambda: 0.0,
        random=random.Random(1),
        token_bytes=lambda n: b"\0" * n,
        run_sync=no,
        threads=False,
        vfs=None,
        bind=no,
        connect=no,
        open_tcp_stream=no,
        open_tcp_listeners=no,
        maybe=lambda _: False,
    )


class Falls:
    """A member that falls `times` times and then runs."""

    def __init__(self, times: int, exc: Exception) -> None:
        self.times, self.exc, self.starts = times, exc, 0

    async def __call__(self, *, task_status: trio.TaskStatus[None]) -> None:
        self.starts += 1
        task_status.started()
        if self.starts <= self.times:
            raise self.exc
        await trio.sleep_forever()


async def steady(*, task_status: trio.TaskStatus[None]) -> None:
    task_status.started()
    await trio.sleep_forever()


def quiet(status: MemberStatus, fault: BaseException | None) -> None:
    pass


async def test_a_fallen_member_comes_back_and_its_neighbour_never_stops(
    env: Env, autojump_clock: Any
) -> None:
    seen: list[tuple[str, str]] = []
    supervisor = Supervisor(env, lambda s, f: seen.append((s.name, s.state)))
    falls = Falls(3, MemberError("gone"))
    async with trio.open_nursery() as nursery:
        await nursery.start(
            supervisor.run,
            [
                Member(name="steady", run=steady, policy=lost_connection),
                Member(name="falls", run=falls, policy=lost_connection),
            ],
        )
        await trio.sleep(5)
        nursery.cancel_scope.cancel()
    assert falls.starts == 4
    assert [state for name, state in seen if name == "steady"] == ["starting", "running"]
    assert ("falls", "backing_off") in seen


async def test_a_bug_stops_that_member_until_it_is_resumed(env: Env, autojump_clock: Any) -> None:
    supervisor = Supervisor(env, quiet)
    falls = Falls(5, ZeroDivisionError())
    async with trio.open_nursery() as nursery:
        await nursery.start(supervisor.run, [Member(name="m", run=falls, policy=lost_connection)])
        await trio.sleep(1000)
        assert supervisor.statuses()[0].state == "stopped"
        assert (
            supervisor.statuses()[0].detail == "ZeroDivisionError"
        )  # its text may hold what nobody should read
        assert supervisor.resume("m")
        await trio.sleep(1)
        assert supervisor.statuses()[0].state == "running"
        assert not supervisor.resume("m")
        nursery.cancel_scope.cancel()


async def test_hopeless_faults_are_not_retried(env: Env, autojump_clock: Any) -> None:
    supervisor = Supervisor(env, quiet)
    falls = Falls(1, MemberError("bad password"))
    async with trio.open_nursery() as nursery:
        await nursery.start(supervisor.run, [Member(name="m", run=falls, policy=lambda _: restart.HOPELESS)])
        await trio.sleep(10_000)
        assert falls.starts == 1
        assert supervisor.statuses()[0].state == "stopped"
        nursery.cancel_scope.cancel()


async def test_failed_storage_ends_the_shard_whoever_meets_it(env: Env, autojump_clock: Any) -> None:
    supervisor = Supervisor(env, quiet)
    with pytest.RaisesGroup(StorageFailed, flatten_subgroups=True):
        await supervisor.run(
            [
                Member(name="steady", run=steady, policy=lost_connection),
                Member(name="m", run=Falls(1, StorageFailed("EIO")), policy=lost_connection),
            ]
        )


async def test_the_fall_of_a_member_without_policy_ends_the_shard(env: Env, autojump_clock: Any) -> None:
    supervisor = Supervisor(env, quiet)
    with pytest.RaisesGroup(MemberError, flatten_subgroups=True):
        await supervisor.run(
            [
                Member(name="steady", run=steady, policy=lost_connection),
                Member(name="f", run=Falls(1, MemberError("x"))),
            ]
        )


async def test_restart_ends_the_attempt_and_begins_another(env: Env, autojump_clock: Any) -> None:
    supervisor = Supervisor(env, quiet)
    run = Falls(0, MemberError("-"))
    async with trio.open_nursery() as nursery:
        await nursery.start(supervisor.run, [Member(name="m", run=run, policy=lost_connection)])
        await trio.sleep(1)
        assert supervisor.restart("m")
        await trio.sleep(1)
        assert run.starts == 2
        nursery.cancel_scope.cancel()
