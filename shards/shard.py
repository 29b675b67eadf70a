"""One nursery: a broker and its members, each started, watched and started again.

"Try once" is apart from "keep trying": a member's `run` is one honest attempt, this room is the persistence.
A `MemberError` is a fault of the outside world, any other `Exception` a bug of that member; both are fenced at a
member that has a restart policy, and both end the shard at one that has none (the facade), as a `StorageFailed`
always does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import attrs
import trio

from shards import restart
from shards.env import Env
from shards.errors import MemberError, StorageFailed


class Run(Protocol):
    """One attempt of a member: calls `started()` when it serves, returns when it is cancelled or done."""

    async def __call__(self, *, task_status: trio.TaskStatus[None]) -> None: ...


def lost_connection(_: BaseException) -> restart.Policy:
    """The policy for members that know only one kind of fault."""
    return restart.LOST_CONNECTION


@attrs.frozen(kw_only=True)
class Member:
    """A member of a shard.  `policy` maps a `MemberError` to its restart policy; None: its fall ends the shard."""

    name: str
    run: Run
    policy: Callable[[MemberError], restart.Policy] | None = None
    is_awaited: bool = False
    """The next member starts only when this one serves, or has fallen once."""


@attrs.frozen(kw_only=True)
class MemberStatus:
    """Where a member stands, for `status` and the state topics."""

    name: str
    state: str
    """starting, running, backing_off, stopped or ended."""
    since: float
    """Wall clock, seconds since 1970."""
    detail: str = ""
    crashes: int = 0
    restart_in_s: float | None = None


class Supervisor:
    """Keeps the members of one shard running."""

    def __init__(self, env: Env, report: Callable[[MemberStatus, BaseException | None], None]) -> None:
        """`report` is told every change; it must not block."""
        self._env = env
        self._report = report
        self._statuses: dict[str, MemberStatus] = {}
        self._wake: dict[str, trio.Event] = {}
        self._scopes: dict[str, trio.CancelScope] = {}
        self._changed = trio.Event()

    def statuses(self) -> list[MemberStatus]:
        """All members in the order of their start."""
        return list(self._statuses.values())

    async def wait_running(self) -> None:
        """Return once every member is running."""
        await trio.lowlevel.checkpoint()
        while any(status.state != "running" for status in self._statuses.values()):
            await self._changed.wait()

    def resume(self, name: str) -> bool:
        """Start a stopped or backing-off member now; False when there is no such member waiting."""
        wake = self._wake.get(name)
        if wake is None or wake.is_set():
            return False
        wake.set()
        return True

    def restart(self, name: str) -> bool:
        """End the member's present attempt; it starts again at once.  False when it is not running."""
        scope = self._scopes.get(name)
        if scope is None:
            return False
        scope.cancel()
        return True

    async def run(
        self, members: Sequence[Member], *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Start the members in order, those without a policy one after the other, and keep them running.

        `started()` once every member without a policy serves; the others come up in their own time.
        """
        async with trio.open_nursery() as nursery:
            for member in members:
                if member.policy is None:
                    self._set(member.name, "starting")
                    await nursery.start(member.run, name=member.name)
                    self._set(member.name, "running")
                elif member.is_awaited:
                    await nursery.start(self._keep_running, member, name=member.name)
                else:
                    nursery.start_soon(self._keep_running, member, name=member.name)
            task_status.started()

    async def _keep_running(
        self, member: Member, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        assert member.policy is not None
        settled = _Once(task_status)
        crashes_at: list[float] = []
        while True:
            began = trio.current_time()
            fault = await self._attempt(member, settled)
            settled()
            if fault is None:
                if self._statuses[member.name].state == "restarting":
                    crashes_at.clear()
                    continue
                self._set(member.name, "ended")
                return
            now = trio.current_time()
            policy = member.policy(fault) if isinstance(fault, MemberError) else restart.UNEXPECTED
            if now - began >= policy.stable_s:
                crashes_at.clear()
            crashes_at.append(now)
            start_at = policy.next_start(crashes_at, self._env.random.random())
            wake = self._wake[member.name] = trio.Event()
            detail = (
                f"{type(fault).__name__}: {fault}" if isinstance(fault, MemberError) else type(fault).__name__
            )
            if start_at is None:
                self._set(member.name, "stopped", detail, len(crashes_at), fault=fault)
                await wake.wait()
                crashes_at.clear()
            else:
                self._set(
                    member.name,
                    "backing_off",
                    detail,
                    len(crashes_at),
                    restart_in_s=start_at - now,
                    fault=fault,
                )
                with trio.move_on_at(start_at):
                    await wake.wait()
            del self._wake[member.name]

    async def _attempt(self, member: Member, serves: Callable[[], None]) -> Exception | None:
        """Run the member once; return the fault that ended it, None when it ended by itself or was restarted."""
        self._set(member.name, "starting")
        faults: list[Exception] = []
        with trio.CancelScope() as scope:
            self._scopes[member.name] = scope
            try:
                async with trio.open_nursery() as nursery:
                    await nursery.start(member.run, name=member.name)
                    self._set(member.name, "running")
                    serves()
            except* StorageFailed:
                raise
            except* Exception as group:
                faults.extend(_leaves(group))
            finally:
                del self._scopes[member.name]
        if scope.cancelled_caught and not faults:
            self._set(member.name, "restarting")
            return None
        # a bug beside a lost connection is the graver of the two
        return next((f for f in faults if not isinstance(f, MemberError)), faults[0] if faults else None)

    def _set(
        self,
        name: str,
        state: str,
        detail: str = "",
        crashes: int = 0,
        *,
        restart_in_s: float | None = None,
        fault: BaseException | None = None,
    ) -> None:
        status = MemberStatus(
            name=name,
            state=state,
            since=self._env.wall(),
            detail=detail,
            crashes=crashes,
            restart_in_s=restart_in_s,
        )
        self._statuses[name] = status
        self._changed.set()
        self._changed = trio.Event()
        self._report(status, fault)


class _Once:
    """Tells a nursery once that the start is over."""

    def __init__(self, task_status: trio.TaskStatus[None]) -> None:
        self._task_status: trio.TaskStatus[None] | None = task_status

    def __call__(self) -> None:
        if self._task_status is not None:
            self._task_status.started()
            self._task_status = None


def _leaves(group: BaseExceptionGroup[Exception]) -> list[Exception]:
    out: list[Exception] = []
    for exc in group.exceptions:
        if isinstance(exc, BaseExceptionGroup):
            out.extend(_leaves(exc))
        else:
            out.append(exc)
    return out
