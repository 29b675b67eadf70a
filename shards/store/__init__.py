"""The Log's schema over `shards.database`: what lies in `log.db`, and the typed functions that touch it.

`journal` has the records: segments in commit order, chained, and the tables that are derived from them.
`rows` has the small rows that the broker keeps beside them: groups, principals, invites, dead letters.
Every function takes the `Connection` inside one `Database.write` or `read`; none keeps anything.
"""

from shards.store.appender import Appended, Appender
from shards.store.journal import (
    JOURNAL_SCHEMA,
    PAGE_SIZE,
    Batch,
    Run,
    Segment,
)
from shards.store.rows import (
    ROWS_SCHEMA,
    DeadRow,
    GroupRow,
    InviteRow,
    PrincipalRow,
    check_rows,
    dead,
    drop_dead,
    drop_group,
    drop_principal,
    get_dead,
    get_meta,
    groups,
    invites,
    principals,
    put_dead,
    put_groups,
    put_invite,
    put_meta,
    put_principal,
    take_invite,
)

MIGRATIONS = (JOURNAL_SCHEMA + ROWS_SCHEMA,)

__all__ = [
    "JOURNAL_SCHEMA",
    "MIGRATIONS",
    "PAGE_SIZE",
    "ROWS_SCHEMA",
    "Appended",
    "Appender",
    "Batch",
    "DeadRow",
    "GroupRow",
    "InviteRow",
    "PrincipalRow",
    "Run",
    "Segment",
    "check_rows",
    "dead",
    "drop_dead",
    "drop_group",
    "drop_principal",
    "get_dead",
    "get_meta",
    "groups",
    "invites",
    "principals",
    "put_dead",
    "put_groups",
    "put_invite",
    "put_meta",
    "put_principal",
    "take_invite",
]
