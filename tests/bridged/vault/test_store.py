"""Sealed rows: what opens, what does not, and what lies on the disk."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from pathlib import Path

import attrs
import pytest

from bridged.errors import TokenUnavailable, VaultError
from bridged.secret import Secret
from bridged.vault.lease import check_name, context, material, seal, unseal
from bridged.vault.softtoken import SoftToken
from bridged.vault.store import MIGRATIONS, Credentials
from shards.client import Identity
from shards.database import Database, open_database
from shards.testing import real_env

CANARY = b"canary-4f1d9c"


@attrs.frozen
class Vault:
    database: Database
    token: SoftToken
    credentials: Credentials
    path: Path

    async def put(self, name: str, body: bytes = CANARY) -> int:
        return await self.database.write(lambda tx: self.credentials.put(tx, name, body, by="op", now=1.0))

    async def lend(self, name: str, *, until: float = 100.0, by: Credentials | None = None) -> bytes | None:
        lent = await self.database.write(
            lambda tx: (by or self.credentials).checkout(tx, os.urandom(8).hex(), name, "irc/main", until)
        )
        return None if lent is None else lent[1]

    async def sql(self, text: str, *values: object) -> None:
        await self.database.write(lambda tx: tx.execute(text, values))

    def fresh(self, tenant: str = "acme") -> Credentials:
        """The same rows after a restart: nothing cached."""
        return Credentials(tenant, self.token, os.urandom)


@pytest.fixture
async def vault(tmp_path: Path) -> AsyncIterator[Vault]:
    token = SoftToken.create(tmp_path / "vault.key", os.urandom)
    path = tmp_path / "vault.db"
    async with open_database(real_env(), path, migrations=MIGRATIONS) as database:
        yield Vault(database, token, Credentials("acme", token, os.urandom), path)


async def test_what_was_put_is_lent_and_never_lies_open(vault: Vault, tmp_path: Path) -> None:
    assert await vault.put("irc/main") == 1
    assert await vault.lend("irc/main") == CANARY
    assert await vault.lend("irc/other") is None
    assert await vault.put("irc/main", b"second") == 2
    assert await vault.lend("irc/main", by=vault.fresh()) == b"second"
    for file in tmp_path.iterdir():
        assert CANARY not in file.read_bytes(), file


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE credential SET name='irc/other' WHERE name='irc/main'",
        "UPDATE credential SET revision=revision+1",
        "UPDATE credential SET key_version=2",
        "UPDATE credential SET nonce=zeroblob(24)",
        "UPDATE credential SET nonce=x'00'",
        "UPDATE credential SET sealed=zeroblob(40)",
        "UPDATE credential SET sealed='text'",
        "UPDATE credential SET sealed=(SELECT sealed FROM credential WHERE name='xmpp/main'),"
        " nonce=(SELECT nonce FROM credential WHERE name='xmpp/main') WHERE name='irc/main'",
        "UPDATE data_key SET wrapped=zeroblob(72)",
        "UPDATE data_key SET suite='rot13'",
        "DELETE FROM data_key",
    ],
)
async def test_a_row_that_was_moved_or_altered_does_not_open(vault: Vault, change: str) -> None:
    await vault.put("irc/main")
    await vault.put("xmpp/main", b"other")
    await vault.sql(change)
    for name in ("irc/main", "irc/other"):
        try:
            assert await vault.lend(name, by=vault.fresh()) is None
        except VaultError as exc:
            assert exc.hint and CANARY.decode() not in str(exc)
    with pytest.raises(VaultError):  # and rotation stops at it, before anything is lost
        await vault.database.write(vault.fresh().rotate)
    assert await vault.database.read(lambda tx: tx.execute("SELECT count(*) FROM credential")) == [(2,)]


async def test_a_row_of_another_tenant_does_not_open(vault: Vault) -> None:
    await vault.put("irc/main")
    await vault.sql("UPDATE credential SET tenant='beta'")
    assert await vault.lend("irc/main", by=vault.fresh()) is None
    with pytest.raises(VaultError):  # beta has no data key of its own
        await vault.lend("irc/main", by=vault.fresh("beta"))
    await vault.sql("INSERT INTO data_key SELECT 'beta', version, suite, wrapped FROM data_key")
    with pytest.raises(VaultError):  # and acme's is not beta's
        await vault.lend("irc/main", by=vault.fresh("beta"))


async def test_another_token_opens_nothing(vault: Vault, tmp_path: Path) -> None:
    await vault.put("irc/main")
    other = SoftToken.create(tmp_path / "other.key", os.urandom)
    with pytest.raises(VaultError, match="does not open under this token"):
        await vault.lend("irc/main", by=Credentials("acme", other, os.urandom))


async def test_rotation_seals_everything_anew(vault: Vault) -> None:
    await vault.put("irc/main")
    await vault.put("xmpp/main", b"other")
    rows = await vault.database.read(lambda tx: tx.execute("SELECT sealed FROM credential ORDER BY name"))
    assert await vault.database.write(vault.credentials.rotate) == 2
    assert await vault.database.write(vault.credentials.rotate) == 3
    after = await vault.database.read(lambda tx: tx.execute("SELECT sealed FROM credential ORDER BY name"))
    assert not set(rows) & set(after)
    assert await vault.database.read(lambda tx: tx.execute("SELECT version FROM data_key")) == [(3,)]
    for by in (vault.credentials, vault.fresh()):
        assert await vault.lend("irc/main", by=by) == CANARY
        assert await vault.lend("xmpp/main", by=by) == b"other"
    assert await vault.put("irc/main", b"third") == 2


async def test_leases_have_fencing_numbers_and_end(vault: Vault) -> None:
    c = vault.credentials
    await vault.put("irc/main")
    write = vault.database.write
    one = await write(lambda tx: c.checkout(tx, "l1", "irc/main", "irc/main", 100.0))
    two = await write(lambda tx: c.checkout(tx, "l2", "irc/main", "irc/main", 100.0))
    assert one and two and two[0].fencing == one[0].fencing + 1
    renewed = await write(lambda tx: c.renew(tx, "l1", "irc/main", 50.0, 150.0))
    assert renewed is not None and renewed.expires_at == 150.0
    assert await write(lambda tx: c.renew(tx, "l1", "xmpp/main", 50.0, 999.0)) is None  # somebody else's
    assert await write(lambda tx: c.renew(tx, "l2", "irc/main", 100.0, 999.0)) is None  # over
    assert await write(lambda tx: c.expire(tx, 100.0)) == 1
    assert [lease.lease_id for lease in await vault.database.read(c.leases)] == ["l1"]
    assert not await write(lambda tx: c.release(tx, "l1", "xmpp/main"))
    assert [lease.lease_id for lease in await write(lambda tx: c.revoke(tx, name="irc/main"))] == ["l1"]
    assert await write(lambda tx: c.renew(tx, "l1", "irc/main", 60.0, 160.0)) is None
    await write(lambda tx: c.checkout(tx, "l3", "irc/main", "irc/main", 100.0))
    await vault.put("irc/main", b"new")  # a new revision ends the leases of the old one, and fencing goes on
    assert await vault.database.read(c.leases) == []
    four = await write(lambda tx: c.checkout(tx, "l4", "irc/main", "irc/main", 100.0))
    assert four and four[0].fencing == 4 and four[0].revision == 2


def test_a_lease_opens_for_its_holder_alone() -> None:
    holder, other = (Identity.generate("irc/main", "acme", os.urandom) for _ in range(2))
    sealed = seal(material(b"hunter2\n"), holder.lease_public)
    fields = unseal(sealed, holder.lease_private)
    assert fields["password"].reveal() == b"hunter2" and "hunter2" not in repr(fields)
    for wrong, key in ((sealed, other.lease_private), (sealed[:-4], holder.lease_private), ("", holder.lease_private),
                       ("é", holder.lease_private), (sealed[:-1] + "*", holder.lease_private)):  # fmt: skip
        with pytest.raises(VaultError):
            unseal(wrong, key)


def test_material_is_a_password_or_an_object_of_texts() -> None:
    assert material(b"secret\r\n") == b'{"password": "secret"}'
    assert material(b'{"username":"u","password":"p"}') == b'{"username": "u", "password": "p"}'
    assert material(b'{"not": 1}') == b'{"password": "{\\"not\\": 1}"}'
    for bad in (b"", b"\n", b"\xff", b"x" * 16_385):
        with pytest.raises(VaultError):
            material(bad)


def test_names_and_contexts() -> None:
    assert check_name("irc/libera") == "irc/libera"
    for bad in ("", "a b", "é", "x" * 129, "a\n"):
        with pytest.raises(VaultError):
            check_name(bad)
    assert context("a", "bc") != context("ab", "c")


def test_a_token_is_made_once_and_must_be_private(tmp_path: Path) -> None:
    path = tmp_path / "vault.key"
    token = SoftToken.create(path, os.urandom)
    wrapped = token.wrap(b"k" * 32, b"here")
    assert SoftToken.open(path, os.urandom).unwrap(wrapped, b"here") == b"k" * 32
    with pytest.raises(VaultError):
        token.unwrap(wrapped, b"there")
    with pytest.raises(VaultError, match="exists"):
        SoftToken.create(path, os.urandom)
    with pytest.raises(VaultError, match="No such file"):
        SoftToken.create(tmp_path / "none" / "vault.key", os.urandom)
    path.chmod(0o640)
    with pytest.raises(TokenUnavailable, match="may be read by others"):
        SoftToken.open(path, os.urandom)
    path.chmod(0o600)
    for junk in (b"", b"junk", path.read_bytes()[:-10], b"\xff" * 80):
        path.write_bytes(junk)
        with pytest.raises(TokenUnavailable, match="not a soft token"):
            SoftToken.open(path, os.urandom)
    path.unlink()
    with pytest.raises(TokenUnavailable, match="No such file"):
        SoftToken.open(path, os.urandom)
    assert "k" not in repr(Secret(b"k"))[-3:]
