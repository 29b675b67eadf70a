"""Crash images: what a disk could hold if the power went at any moment of a run.

A workload runs once on a `MemoryDisk`, and every change is recorded.  Then the record is played again; after each
change images are made (all that was not synced dropped, kept, in part, torn), laid on a fresh disk, and shown to
a check together with what had been acknowledged until then.
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import attrs

from shards.env import Env
from shards.testing.disk import MODES, CallKind, Fault, Logged, MemoryDisk, Mode
from shards.testing.simulation import run_simulation
from shards.testing.world import World

Acknowledge = Callable[[Any], None]
Workload = Callable[[Env, Acknowledge], Awaitable[None]]
Check = Callable[[Env, list[Any]], Awaitable[None]]
"""Opens what it finds, and raises AssertionError if something acknowledged is missing or anything is half there."""
CHANGES: frozenset[CallKind] = frozenset({"open", "write", "truncate", "sync", "delete"})


@attrs.define
class CrashReport:
    """What a driver has tried."""

    images: int = 0
    changes: int = 0
    """Calls that changed the disk in the run."""
    acknowledged: int = 0


def crash_everywhere(
    workload: Workload, check: Check, *, seed: int = 0, modes: tuple[Mode, ...] = MODES, every: int = 1
) -> CrashReport:
    """Run `workload(env, acknowledge)` and check images after every `every`-th change to the disk.

    An image that fails comes out as the check's exception, with the change and the mode in its notes.
    """
    record: list[tuple[Logged, int]] = []
    acknowledged: list[Any] = []

    async def run() -> None:
        with World(seed) as world:
            host = world.host("crash")
            host.disk.on_change = lambda logged: record.append((logged, len(acknowledged)))
            await workload(host.env(), acknowledged.append)
            host.disk.on_change = None

    run_simulation(seed, run)
    report = CrashReport(changes=len(record), acknowledged=len(acknowledged))
    r = random.Random(f"crash/{seed}")
    disk = MemoryDisk(seed)
    try:
        for number, (logged, n) in enumerate(record):
            disk.apply(logged)
            if number % every:
                continue
            for mode in modes:
                where = f"power cut after change {number} of {len(record)} ({logged[0]} {logged[1]}), {mode}"
                check_files(disk.image(mode, r), check, acknowledged[:n], seed=seed, note=where)
                report.images += 1
    finally:
        disk.close()
    return report


def fail_everywhere(
    workload: Workload,
    check: Check,
    *,
    error: int,
    sticky: bool,
    seed: int = 0,
    kinds: frozenset[CallKind] = CHANGES,
) -> CrashReport:
    """Run `workload` again and again, failing its 1st, 2nd, 3rd … call to the disk, then check what is left.

    The workload may raise, but may have acknowledged nothing that does not last.
    """
    report = CrashReport()
    while True:
        fault = Fault(at=report.images + 1, error=error, sticky=sticky, kinds=kinds)
        acknowledged: list[Any] = []
        files = _run_with(workload, fault, acknowledged, seed)
        where = f"call {fault.at} ({fault.fired}) failed with {error}, sticky={sticky}"
        check_files(files, check, acknowledged, seed=seed, note=where)
        report.acknowledged += len(acknowledged)
        if fault.fired is None:
            return report
        report.images += 1


def _run_with(workload: Workload, fault: Fault, acknowledged: list[Any], seed: int) -> dict[str, bytes]:
    async def attempt() -> dict[str, bytes]:
        with World(seed) as world:
            host = world.host("crash")
            host.disk.fault = fault
            try:
                await workload(host.env(), acknowledged.append)
            except Exception:
                if fault.fired is None:
                    raise
            return host.disk.files()

    return run_simulation(seed, attempt)


def check_files(
    files: Mapping[str, bytes], check: Check, acknowledged: list[Any], *, seed: int = 0, note: str = ""
) -> None:
    """Lay the files on a fresh disk and run `check(env, acknowledged)` on it."""

    async def look() -> None:
        with World(seed) as world:
            host = world.host("crash")
            for path, data in files.items():
                host.disk.put(path, data)
            await check(host.env(), acknowledged)

    try:
        run_simulation(seed, look)
    except BaseException as exc:
        exc.add_note(note)
        raise
