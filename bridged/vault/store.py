"""What the vault keeps: credentials sealed under data keys, data keys wrapped by the token, and who holds leases.

No plaintext is ever written: a row is useless without the token, and a row moved to another name, tenant or
revision does not open (the associated data names all of them).
"""

from __future__ import annotations

from collections.abc import Callable

import attrs
from nacl import bindings
from nacl.exceptions import CryptoError

from bridged.errors import VaultError
from bridged.vault.lease import Lease, context
from bridged.vault.softtoken import SUITE, SoftToken
from shards.database import Connection

MIGRATIONS = (
    """
    CREATE TABLE data_key (
        tenant TEXT NOT NULL, version INTEGER NOT NULL, suite TEXT NOT NULL, wrapped BLOB NOT NULL,
        PRIMARY KEY (tenant, version)) WITHOUT ROWID;
    CREATE TABLE credential (
        tenant TEXT NOT NULL, name TEXT NOT NULL, revision INTEGER NOT NULL, key_version INTEGER NOT NULL,
        nonce BLOB NOT NULL, sealed BLOB NOT NULL, put_at REAL NOT NULL, put_by TEXT NOT NULL,
        fencing INTEGER NOT NULL DEFAULT 0,
        PRIMARY KEY (tenant, name)) WITHOUT ROWID;
    CREATE TABLE lease (
        id TEXT PRIMARY KEY, tenant TEXT NOT NULL, name TEXT NOT NULL, principal TEXT NOT NULL,
        revision INTEGER NOT NULL, fencing INTEGER NOT NULL, expires_at REAL NOT NULL) WITHOUT ROWID;
    CREATE INDEX lease_by_name ON lease (tenant, name);
    """,
)

_AEAD = bindings.crypto_aead_xchacha20poly1305_ietf_encrypt
_NONCE_BYTES = bindings.crypto_aead_xchacha20poly1305_ietf_NPUBBYTES
_DATA_KEY_BYTES = 32


@attrs.frozen(kw_only=True)
class CredentialRow:
    """What may be told of a credential."""

    name: str
    revision: int
    put_at: float
    put_by: str
    leases: int


class Credentials:
    """The sealed rows of one tenant.  Its functions take the `Connection` of a running transaction."""

    def __init__(self, tenant: str, token: SoftToken, token_bytes: Callable[[int], bytes]) -> None:
        self.tenant = tenant
        self._token = token
        self._token_bytes = token_bytes
        self._data_keys: dict[int, bytes] = {}

    def put(self, tx: Connection, name: str, body: bytes, *, by: str, now: float) -> int:
        """Store a credential's new revision, ending the leases of the old one; returns the revision."""
        version, key = self._newest_key(tx)
        row = tx.one(
            "SELECT revision, fencing FROM credential WHERE tenant=? AND name=?", (self.tenant, name)
        )
        revision, fencing = (row[0] + 1, row[1]) if row else (1, 0)
        nonce = self._token_bytes(_NONCE_BYTES)
        sealed = _AEAD(body, self._context(name, version, revision), nonce, key)
        tx.execute(
            "INSERT OR REPLACE INTO credential VALUES (?,?,?,?,?,?,?,?,?)",
            (self.tenant, name, revision, version, nonce, sealed, now, by, fencing),
        )
        tx.execute("DELETE FROM lease WHERE tenant=? AND name=?", (self.tenant, name))
        return int(revision)

    def checkout(
        self, tx: Connection, lease_id: str, name: str, principal: str, expires_at: float
    ) -> tuple[Lease, bytes] | None:
        """Lend the credential; None where there is none of that name.

        Raises:
            VaultError: The row does not open: it was moved or altered, or belongs to another token.
        """
        row = tx.one(
            "SELECT revision, key_version, nonce, sealed, fencing FROM credential WHERE tenant=? AND name=?",
            (self.tenant, name),
        )
        if row is None:
            return None
        revision, version, nonce, sealed, fencing = row
        body = self._open(tx, name, revision, version, nonce, sealed)
        fencing += 1
        tx.execute("UPDATE credential SET fencing=? WHERE tenant=? AND name=?", (fencing, self.tenant, name))
        tx.execute(
            "INSERT INTO lease VALUES (?,?,?,?,?,?,?)",
            (lease_id, self.tenant, name, principal, revision, fencing, expires_at),
        )
        lease = Lease(
            lease_id=lease_id,
            credential=name,
            principal=principal,
            expires_at=expires_at,
            fencing=fencing,
            revision=revision,
        )
        return lease, body

    def renew(
        self, tx: Connection, lease_id: str, principal: str, now: float, expires_at: float
    ) -> Lease | None:
        """Extend a lease that its holder still has; None where it is over, revoked or somebody else's."""
        tx.execute(
            "UPDATE lease SET expires_at=? WHERE id=? AND tenant=? AND principal=? AND expires_at>?",
            (expires_at, lease_id, self.tenant, principal, now),
        )
        if not tx.changes():
            return None
        return next(lease for lease in self.leases(tx) if lease.lease_id == lease_id)

    def release(self, tx: Connection, lease_id: str, principal: str) -> bool:
        """End one's own lease."""
        tx.execute(
            "DELETE FROM lease WHERE id=? AND tenant=? AND principal=?", (lease_id, self.tenant, principal)
        )
        return tx.changes() > 0

    def revoke(self, tx: Connection, *, lease_id: str | None = None, name: str | None = None) -> list[Lease]:
        """End a lease, or all of a credential; returns those ended."""
        ended = [
            lease
            for lease in self.leases(tx)
            if lease.lease_id == lease_id or (name is not None and lease.credential == name)
        ]
        tx.executemany("DELETE FROM lease WHERE id=?", [(lease.lease_id,) for lease in ended])
        return ended

    def expire(self, tx: Connection, now: float) -> int:
        """Forget leases that are over; how many."""
        tx.execute("DELETE FROM lease WHERE tenant=? AND expires_at<=?", (self.tenant, now))
        return tx.changes()

    def leases(self, tx: Connection) -> list[Lease]:
        """All leases, the youngest last."""
        rows = tx.execute(
            "SELECT id, name, principal, expires_at, fencing, revision FROM lease WHERE tenant=? ORDER BY expires_at",
            (self.tenant,),
        )
        return [
            Lease(lease_id=i, credential=n, principal=p, expires_at=e, fencing=f, revision=r)
            for i, n, p, e, f, r in rows
        ]

    def list(self, tx: Connection) -> list[CredentialRow]:
        """All credentials by name; nothing secret."""
        rows = tx.execute(
            "SELECT name, revision, put_at, put_by,"
            " (SELECT count(*) FROM lease l WHERE l.tenant=c.tenant AND l.name=c.name)"
            " FROM credential c WHERE tenant=? ORDER BY name",
            (self.tenant,),
        )
        return [CredentialRow(name=n, revision=r, put_at=a, put_by=b, leases=k) for n, r, a, b, k in rows]

    def rotate(self, tx: Connection) -> int:
        """Make a new data key and seal every credential under it; returns the key's version.

        Raises:
            VaultError: A row does not open; nothing has changed then.
        """
        old = tx.one("SELECT max(version) FROM data_key WHERE tenant=?", (self.tenant,))
        version = (old[0] if old and old[0] else 0) + 1
        key = self._make_key(tx, version)
        rows = tx.execute(
            "SELECT name, revision, key_version, nonce, sealed FROM credential WHERE tenant=?", (self.tenant,)
        )
        for name, revision, key_version, nonce, sealed in rows:
            body = self._open(tx, name, revision, key_version, nonce, sealed)
            fresh = self._token_bytes(_NONCE_BYTES)
            tx.execute(
                "UPDATE credential SET key_version=?, nonce=?, sealed=? WHERE tenant=? AND name=?",
                (
                    version,
                    fresh,
                    _AEAD(body, self._context(name, version, revision), fresh, key),
                    self.tenant,
                    name,
                ),
            )
        tx.execute("DELETE FROM data_key WHERE tenant=? AND version<?", (self.tenant, version))
        self._data_keys = {version: key}
        return version

    def _open(
        self, tx: Connection, name: str, revision: int, version: int, nonce: bytes, sealed: bytes
    ) -> bytes:
        key = self._data_key(tx, version)
        try:
            return bindings.crypto_aead_xchacha20poly1305_ietf_decrypt(
                sealed, self._context(name, version, revision), nonce, key
            )
        except (CryptoError, TypeError, ValueError) as exc:
            raise VaultError(
                f"the credential {name!r} does not open; its row was altered",
                hint=f"bridgectl vault put {name}",
            ) from exc

    def _newest_key(self, tx: Connection) -> tuple[int, bytes]:
        row = tx.one("SELECT max(version) FROM data_key WHERE tenant=?", (self.tenant,))
        if row is None or row[0] is None:
            return 1, self._make_key(tx, 1)
        return row[0], self._data_key(tx, row[0])

    def _make_key(self, tx: Connection, version: int) -> bytes:
        key = self._token_bytes(_DATA_KEY_BYTES)
        wrapped = self._token.wrap(key, context("bridged/dek/v1", self.tenant, version))
        tx.execute("INSERT INTO data_key VALUES (?,?,?,?)", (self.tenant, version, SUITE, wrapped))
        return key

    def _data_key(self, tx: Connection, version: int) -> bytes:
        key = self._data_keys.get(version)
        if key is None:
            row = tx.one(
                "SELECT wrapped, suite FROM data_key WHERE tenant=? AND version=?", (self.tenant, version)
            )
            if row is None or row[1] != SUITE:
                raise VaultError("the vault's data key is missing", hint="restore vault.db from the backup")
            key = self._token.unwrap(row[0], context("bridged/dek/v1", self.tenant, version))
            self._data_keys[version] = key
        return key

    def _context(self, name: str, key_version: int, revision: int) -> bytes:
        return context("bridged/cred/v1", self.tenant, name, key_version, revision)
