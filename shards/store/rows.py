"""The broker's small rows: groups, principals with their grants, invites, dead letters, named values.

Every row is sealed (`shards.store.seal`).
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any, Literal

import attrs

from shards.database import Connection
from shards.store.seal import checked, row_digest, sealed, signed, unsigned

ROWS_SCHEMA = """
CREATE TABLE meta(name TEXT PRIMARY KEY, value BLOB NOT NULL, digest BLOB NOT NULL) STRICT, WITHOUT ROWID;
CREATE TABLE group_(
    tenant TEXT NOT NULL, name TEXT NOT NULL, topics TEXT, position INTEGER NOT NULL, epoch INTEGER NOT NULL,
    state BLOB NOT NULL, digest BLOB NOT NULL, PRIMARY KEY(tenant, name)
) STRICT;
CREATE TABLE principal(
    tenant TEXT NOT NULL, name TEXT NOT NULL, noise_public BLOB NOT NULL UNIQUE, signing_public BLOB NOT NULL,
    lease_public BLOB NOT NULL, service TEXT, instance TEXT, accounts TEXT NOT NULL, state TEXT NOT NULL,
    digest BLOB NOT NULL, PRIMARY KEY(tenant, name)
) STRICT;
CREATE TABLE grant_(
    tenant TEXT NOT NULL, name TEXT NOT NULL, verb TEXT NOT NULL, service TEXT NOT NULL,
    instance TEXT NOT NULL, action TEXT NOT NULL, digest BLOB NOT NULL,
    PRIMARY KEY(tenant, name, verb, service, instance, action),
    FOREIGN KEY(tenant, name) REFERENCES principal(tenant, name) ON DELETE CASCADE
) STRICT, WITHOUT ROWID;
CREATE TABLE invite(
    id TEXT PRIMARY KEY, secret BLOB NOT NULL, tenant TEXT NOT NULL, name TEXT NOT NULL, body BLOB NOT NULL,
    expires_s REAL NOT NULL, digest BLOB NOT NULL
) STRICT;
CREATE TABLE dead(
    id INTEGER PRIMARY KEY AUTOINCREMENT, tenant TEXT NOT NULL, group_ TEXT NOT NULL, position INTEGER NOT NULL,
    topic TEXT NOT NULL, offset INTEGER NOT NULL, key INTEGER NOT NULL, principal TEXT NOT NULL,
    code TEXT NOT NULL, reason TEXT NOT NULL, attempts INTEGER NOT NULL, at_ms INTEGER NOT NULL,
    payload BLOB NOT NULL, proof BLOB NOT NULL, digest BLOB NOT NULL
) STRICT;
CREATE INDEX dead_by_group ON dead(tenant, group_, id);
"""

GrantParts = tuple[str, str, str, str]
"""(verb, service, instance, action)"""


@attrs.frozen(kw_only=True, slots=True)
class GroupRow:
    """Where a group stands.  `state` is the broker's own, opaque here."""

    tenant: str
    name: str
    topics: tuple[str, ...] | None
    position: int
    epoch: int
    state: bytes


@attrs.frozen(kw_only=True, slots=True)
class PrincipalRow:
    """Who may speak: keys, the row of a connector, and grants."""

    tenant: str
    name: str
    noise_public: bytes
    signing_public: bytes
    lease_public: bytes
    service: str | None = None
    instance: str | None = None
    accounts: tuple[str, ...] = ()
    state: str = "active"
    grants: tuple[GrantParts, ...] = ()


@attrs.frozen(kw_only=True, slots=True)
class InviteRow:
    """A one-time enrolment.  `body` is the broker's own."""

    id: str
    secret: bytes = attrs.field(repr=False)
    tenant: str
    name: str
    body: bytes
    expires_s: float


@attrs.frozen(kw_only=True, slots=True)
class DeadRow:
    """A record that a group gave up, whole: it outlives the retention of the journal."""

    id: int = 0
    """0: to be assigned."""
    tenant: str
    group: str
    position: int
    topic: str
    offset: int
    key: int
    principal: str
    code: str
    reason: str
    attempts: int
    at_ms: int
    payload: bytes
    proof: bytes


# -------------------------------------------------------------------- named values


def get_meta(tx: Connection, name: str) -> bytes | None:
    """The value under a name, or None."""
    row = tx.one("SELECT name, value, digest FROM meta WHERE name = ?", (name,))
    return None if row is None else bytes(checked("meta", row)[1])


def put_meta(tx: Connection, name: str, value: bytes) -> None:
    tx.execute("INSERT OR REPLACE INTO meta VALUES(?,?,?)", (name, value, row_digest("meta", name, value)))


# -------------------------------------------------------------------- groups


def groups(tx: Connection) -> list[GroupRow]:
    """All groups of all tenants."""
    found = []
    for row in tx.execute("SELECT tenant, name, topics, position, epoch, state, digest FROM group_"):
        tenant, name, topics, position, epoch, state = checked("group_", row)
        found.append(
            GroupRow(
                tenant=tenant,
                name=name,
                topics=None if topics is None else tuple(json.loads(topics)),
                position=position,
                epoch=epoch,
                state=state,
            )
        )
    return found


def put_groups(tx: Connection, rows: Iterable[GroupRow]) -> None:
    """Insert or replace, all in this transaction."""
    tx.executemany(
        "INSERT OR REPLACE INTO group_ VALUES(?,?,?,?,?,?,?)",
        [
            sealed(
                "group_",
                row.tenant,
                row.name,
                None if row.topics is None else json.dumps(row.topics),
                row.position,
                row.epoch,
                row.state,
            )
            for row in rows
        ],
    )


def drop_group(tx: Connection, tenant: str, name: str) -> bool:
    """Forget a group; False if there was none."""
    tx.execute("DELETE FROM group_ WHERE tenant = ? AND name = ?", (tenant, name))
    return tx.changes() > 0


# -------------------------------------------------------------------- principals


def principals(tx: Connection) -> list[PrincipalRow]:
    """All principals of all tenants, with their grants."""
    grants: dict[tuple[str, str], list[GrantParts]] = {}
    for row in tx.execute("SELECT tenant, name, verb, service, instance, action, digest FROM grant_"):
        tenant, name, *parts = checked("grant_", row)
        grants.setdefault((tenant, name), []).append((parts[0], parts[1], parts[2], parts[3]))
    found = []
    for row in tx.execute(
        "SELECT tenant, name, noise_public, signing_public, lease_public, service, instance, accounts, state,"
        " digest FROM principal ORDER BY tenant, name"
    ):
        tenant, name, noise, signing, lease, service, instance, accounts, state = checked("principal", row)
        found.append(
            PrincipalRow(
                tenant=tenant,
                name=name,
                noise_public=noise,
                signing_public=signing,
                lease_public=lease,
                service=service,
                instance=instance,
                accounts=tuple(json.loads(accounts)),
                state=state,
                grants=tuple(sorted(grants.get((tenant, name), []))),
            )
        )
    return found


def put_principal(tx: Connection, row: PrincipalRow) -> None:
    """Insert or replace by (tenant, name), grants and all.

    Raises:
        LogError: Another principal has the same Noise key.
    """
    drop_principal(tx, row.tenant, row.name)
    tx.execute(
        "INSERT INTO principal VALUES(?,?,?,?,?,?,?,?,?,?)",
        sealed(
            "principal",
            row.tenant,
            row.name,
            row.noise_public,
            row.signing_public,
            row.lease_public,
            row.service,
            row.instance,
            json.dumps(row.accounts),
            row.state,
        ),
    )
    tx.executemany(
        "INSERT INTO grant_ VALUES(?,?,?,?,?,?,?)",
        [sealed("grant_", row.tenant, row.name, *parts) for parts in sorted(set(row.grants))],
    )


def drop_principal(tx: Connection, tenant: str, name: str) -> bool:
    """Forget a principal and its grants; False if there was none."""
    tx.execute("DELETE FROM principal WHERE tenant = ? AND name = ?", (tenant, name))
    return tx.changes() > 0


# -------------------------------------------------------------------- invites


def invites(tx: Connection) -> list[InviteRow]:
    """All invites, expired ones too."""
    rows = tx.execute("SELECT id, secret, tenant, name, body, expires_s, digest FROM invite ORDER BY id")
    return [_invite(row) for row in rows]


def put_invite(tx: Connection, row: InviteRow) -> None:
    tx.execute(
        "INSERT OR REPLACE INTO invite VALUES(?,?,?,?,?,?,?)",
        sealed("invite", row.id, row.secret, row.tenant, row.name, row.body, float(row.expires_s)),
    )


def take_invite(tx: Connection, id_: str) -> InviteRow | None:
    """Use an invite up: return and delete it, or None."""
    row = tx.one("SELECT id, secret, tenant, name, body, expires_s, digest FROM invite WHERE id = ?", (id_,))
    if row is None:
        return None
    tx.execute("DELETE FROM invite WHERE id = ?", (id_,))
    return _invite(row)


def _invite(row: tuple[Any, ...]) -> InviteRow:
    id_, secret, tenant, name, body, expires_s = checked("invite", row)
    return InviteRow(id=id_, secret=secret, tenant=tenant, name=name, body=body, expires_s=expires_s)


# -------------------------------------------------------------------- dead letters

_DEAD = (
    "SELECT id, tenant, group_, position, topic, offset, key, principal, code, reason, attempts, at_ms, payload,"
    " proof, digest FROM dead"
)


def put_dead(tx: Connection, row: DeadRow) -> int:
    """Store a dead letter and return its id."""
    last = tx.one("SELECT seq FROM sqlite_sequence WHERE name = 'dead'")
    id_ = row.id or (last[0] if last else 0) + 1
    values = (
        id_,
        row.tenant,
        row.group,
        row.position,
        row.topic,
        row.offset,
        signed(row.key),
        row.principal,
        row.code,
        row.reason,
        row.attempts,
        row.at_ms,
        row.payload,
        row.proof,
    )
    tx.execute("INSERT INTO dead VALUES(?,?,?,?,?,?,?,?,?,?,?,?,?,?,?)", sealed("dead", *values))
    return id_


def dead(
    tx: Connection, tenant: str, group: str | None = None, *, after_id: int = 0, limit: int = 100
) -> list[DeadRow]:
    """A tenant's dead letters in order of id."""
    if group is None:
        rows = tx.execute(
            f"{_DEAD} WHERE tenant = ? AND id > ? ORDER BY id LIMIT ?", (tenant, after_id, limit)
        )
    else:
        rows = tx.execute(
            f"{_DEAD} WHERE tenant = ? AND group_ = ? AND id > ? ORDER BY id LIMIT ?",
            (tenant, group, after_id, limit),
        )
    return [_dead_row(row) for row in rows]


def get_dead(tx: Connection, tenant: str, id_: int) -> DeadRow | None:
    """One dead letter of this tenant; a foreign one is as absent."""
    row = tx.one(f"{_DEAD} WHERE tenant = ? AND id = ?", (tenant, id_))
    return None if row is None else _dead_row(row)


def drop_dead(tx: Connection, tenant: str, id_: int) -> bool:
    tx.execute("DELETE FROM dead WHERE tenant = ? AND id = ?", (tenant, id_))
    return tx.changes() > 0


def _dead_row(row: tuple[Any, ...]) -> DeadRow:
    values = checked("dead", row)
    id_, tenant, group, position, topic, offset, key, principal, code, reason, attempts, at_ms = values[:12]
    return DeadRow(
        id=id_,
        tenant=tenant,
        group=group,
        position=position,
        topic=topic,
        offset=offset,
        key=unsigned(key),
        principal=principal,
        code=code,
        reason=reason,
        attempts=attempts,
        at_ms=at_ms,
        payload=values[12],
        proof=values[13],
    )


# -------------------------------------------------------------------- all of them

_TABLES: tuple[Literal["meta", "group_", "principal", "grant_", "invite", "dead"], ...] = (
    "meta",
    "group_",
    "principal",
    "grant_",
    "invite",
    "dead",
)


def check_rows(tx: Connection) -> int:
    """Check every small row; return how many there are.

    Raises:
        LogCorrupt: One does not match its digest.
    """
    n = 0
    for table in _TABLES:
        for row in tx.execute(f"SELECT * FROM {table}"):
            checked(table, row)
            n += 1
    return n
