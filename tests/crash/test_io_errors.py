"""Every call to the disk failed in turn: EIO and ENOSPC, once and from then on."""

from __future__ import annotations

import errno
import functools

import pytest

from shards import database
from shards.testing import fail_everywhere

from . import log_workload


@pytest.mark.parametrize("sticky", [False, True])
@pytest.mark.parametrize("error", [errno.EIO, errno.ENOSPC])
def test_a_failed_call_costs_nothing_that_was_acknowledged(
    error: int, sticky: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database, "WAL_CHECKPOINT_BYTES", 128 * 1024)
    n = 8
    report = fail_everywhere(
        functools.partial(log_workload.live, n=n),
        functools.partial(log_workload.check, n=n),
        error=error,
        sticky=sticky,
    )
    assert report.images > 40
    assert report.acknowledged > 100


def test_failed_reads_too() -> None:
    n = 6
    report = fail_everywhere(
        functools.partial(log_workload.live, n=n),
        functools.partial(log_workload.check, n=n),
        error=errno.EIO,
        sticky=False,
        kinds=frozenset({"read"}),
    )
    assert report.images > 3
