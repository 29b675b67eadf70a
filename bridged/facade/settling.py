"""Waiting until the facade has applied all that was published before a journal position.

A connector that starts asks for its cursors and for what became of its intents; the answers count only once
everything that it published in its last life has been applied.  The broker knows that: its position of the
facade's group is where all below is finished, and the facade finishes a record after its commit only.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from typing import NoReturn

import trio

from bridged.facade.core import Core
from bridged.facade.progress import PRUNE_EVERY, Progress
from shards.database import Connection
from shards.errors import RequestFailed

# Ours.
FIRST_PAUSE_S = 0.01
PAUSE_S_MAX = 0.2
SAMPLE_S = 5.0
"""Between two looks at the group's position, for the facade's own copy of it."""

AskPosition = Callable[[], Awaitable[int]]
"""The broker's position of the facade's group: all below it is finished."""


class Settling:
    """Knows how far everything is applied."""

    def __init__(self, core: Core, ask_position: AskPosition) -> None:
        self._core = core
        self._ask = ask_position
        self._position = 0
        self._progress = Progress(core.tenant)

    async def wait_applied(self, position: int, *, deadline: float) -> None:
        """Return once all below `position` is applied.

        Raises:
            RequestFailed: `timeout` at the deadline (absolute Trio time).
        """
        pause_s = FIRST_PAUSE_S
        while self._position < position:
            with trio.move_on_at(deadline) as scope:
                try:
                    self._position = max(self._position, await self._ask())
                except RequestFailed:
                    pause_s = PAUSE_S_MAX
                if self._position < position:
                    await trio.sleep(pause_s)
            if scope.cancelled_caught:
                raise RequestFailed("timeout", "the facade has not read the journal up to there yet")
            pause_s = min(2 * pause_s, PAUSE_S_MAX)

    async def keep_copy(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> NoReturn:
        """Write the position into `core.db` from time to time: the facade's own truth after a restart."""
        written = await self._core.read(self._progress.settled)
        task_status.started()
        while True:
            await trio.sleep(SAMPLE_S)
            try:
                self._position = max(self._position, await self._ask())
            except RequestFailed:
                continue
            if self._position >= written + PRUNE_EVERY:
                written = self._position
                await self._core.database.write(partial(self._settle, written))

    def _settle(self, position: int, tx: Connection) -> None:
        self._progress.settle(tx, position)
