"""`keys` on a shard that does not run: the rows in `log.db`, read and changed under the state's own lock."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager
from typing import Any

import attrs

from bridged.control import HOUSE, told
from bridged.ctl.output import REFUSED, CtlError
from bridged.ctl.session import Session
from shards.broker import Principal
from shards.database import Database, lock_state
from shards.errors import LogError
from shards.log import open_log
from shards.store import principals, put_principal


@asynccontextmanager
async def stopped_shard(s: Session) -> AsyncIterator[Database | None]:
    """The Log's database of a shard that does not run; None where one does, or has never run."""
    path = s.config.state / "log.db"
    if not path.exists():
        yield None
        return
    with ExitStack() as held:
        try:
            held.enter_context(lock_state(s.config.state))
        except LogError:
            yield None
            return
        async with open_log(s.env, path) as log:
            yield log.database


async def rows(s: Session, database: Database) -> list[dict[str, Any]]:
    """The tenant's principals, as the running shard tells them."""
    tenant = s.key.identity.tenant
    found = await database.read(principals)
    return [told(Principal.from_row(row)) for row in found if row.tenant == tenant]


async def revoke(s: Session, database: Database, name: str) -> dict[str, Any]:
    """Shut a principal out before the shard starts.  Raises CtlError: no such one, or one of the house."""
    if name in HOUSE:
        raise CtlError(
            f"{name} is a member of the house",
            code="forbidden",
            hint="its keys are the shard's own",
            status=REFUSED,
        )
    tenant = s.key.identity.tenant
    found = [row for row in await database.read(principals) if (row.tenant, row.name) == (tenant, name)]
    if not found:
        raise CtlError(f"no principal {name!r} here", code="not_found", hint="bridgectl keys list")
    await database.write(lambda tx: put_principal(tx, attrs.evolve(found[0], state="revoked")))
    return {"name": name, "done": "revoke"}
