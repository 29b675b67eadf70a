"""The small rows beside the journal, their seals, and the coding of segments."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shards import store
from shards.database import Connection, Database, open_database
from shards.errors import LogCorrupt, LogError
from shards.store import journal, seal
from shards.store.journal import Batch, Derived
from shards.testing import real_env


@pytest.fixture
async def database(tmp_path: Path) -> AsyncIterator[Database]:
    async with open_database(
        real_env(threads=False), tmp_path / "log.db", migrations=store.MIGRATIONS
    ) as database:
        yield database


GROUP = store.GroupRow(tenant="acme", name="irc/a", topics=("t/a", "t/b"), position=7, epoch=2, state=b"\0x")
PRINCIPAL = store.PrincipalRow(
    tenant="acme",
    name="irc",
    noise_public=b"n" * 32,
    signing_public=b"s" * 32,
    lease_public=b"l" * 32,
    service="irc",
    instance="a",
    accounts=("bridge", "röd"),
    grants=(("publish", "irc", "a", "*"), ("subscribe", "irc", "", "outbound_message")),
)
INVITE = store.InviteRow(id="i1", secret=b"s" * 32, tenant="acme", name="new", body=b"{}", expires_s=12.5)
DEAD = store.DeadRow(
    tenant="acme",
    group="irc/a",
    position=9,
    topic="t/a",
    offset=3,
    key=2**64 - 1,
    principal="p",
    code="malformed",
    reason="no",
    attempts=4,
    at_ms=5,
    payload=b"body",
    proof=b"proof",
)


async def test_groups_come_back_as_they_were(database: Database) -> None:
    whole = attrs.evolve(GROUP, tenant="beta", topics=None)
    await database.write(lambda tx: store.put_groups(tx, [GROUP, whole]))
    moved = attrs.evolve(GROUP, position=8)
    await database.write(lambda tx: store.put_groups(tx, [moved]))
    assert sorted(await database.read(store.groups), key=lambda row: row.tenant) == [moved, whole]
    assert await database.write(lambda tx: store.drop_group(tx, "acme", "irc/a"))
    assert not await database.write(lambda tx: store.drop_group(tx, "acme", "irc/a"))
    assert await database.read(store.groups) == [whole]


async def test_a_principal_is_one_row_with_its_grants(database: Database) -> None:
    await database.write(lambda tx: store.put_principal(tx, PRINCIPAL))
    assert await database.read(store.principals) == [PRINCIPAL]
    less = attrs.evolve(PRINCIPAL, grants=PRINCIPAL.grants[:1], state="suspended")
    await database.write(lambda tx: store.put_principal(tx, less))
    assert await database.read(store.principals) == [less]
    assert await database.write(lambda tx: store.drop_principal(tx, "acme", "irc"))
    assert await database.read(store.principals) == []
    assert await database.read(lambda tx: tx.execute("SELECT count(*) FROM grant_")) == [(0,)]


async def test_a_noise_key_finds_one_principal(database: Database) -> None:
    await database.write(lambda tx: store.put_principal(tx, PRINCIPAL))
    with pytest.raises(LogError, match="Constraint"):
        await database.write(lambda tx: store.put_principal(tx, attrs.evolve(PRINCIPAL, name="mallory")))
    assert await database.read(store.principals) == [PRINCIPAL]


async def test_an_invite_is_used_once(database: Database) -> None:
    await database.write(lambda tx: store.put_invite(tx, INVITE))
    assert await database.read(store.invites) == [INVITE]
    assert await database.write(lambda tx: store.take_invite(tx, "i1")) == INVITE
    assert await database.write(lambda tx: store.take_invite(tx, "i1")) is None
    assert "sss" not in repr(INVITE)


async def test_dead_letters_are_numbered_for_ever_and_are_their_tenants(database: Database) -> None:
    first = await database.write(lambda tx: store.put_dead(tx, DEAD))
    second = await database.write(lambda tx: store.put_dead(tx, attrs.evolve(DEAD, group="xmpp/a")))
    assert await database.read(lambda tx: store.get_dead(tx, "acme", first)) == attrs.evolve(DEAD, id=first)
    assert await database.read(lambda tx: store.get_dead(tx, "beta", first)) is None
    assert [row.id for row in await database.read(lambda tx: store.dead(tx, "acme"))] == [first, second]
    assert [row.id for row in await database.read(lambda tx: store.dead(tx, "acme", "xmpp/a"))] == [second]
    assert await database.read(lambda tx: store.dead(tx, "acme", after_id=second)) == []
    assert not await database.write(lambda tx: store.drop_dead(tx, "beta", second))
    assert await database.write(lambda tx: store.drop_dead(tx, "acme", second))
    assert await database.write(lambda tx: store.put_dead(tx, DEAD)) == second + 1


async def test_named_values(database: Database) -> None:
    assert await database.read(lambda tx: store.get_meta(tx, "x")) is None
    await database.write(lambda tx: store.put_meta(tx, "x", b"1"))
    await database.write(lambda tx: store.put_meta(tx, "x", b"2"))
    assert await database.read(lambda tx: store.get_meta(tx, "x")) == b"2"


@pytest.mark.parametrize(
    ("damage", "load"),
    [
        ("UPDATE group_ SET position = position + 1", store.groups),
        ("UPDATE group_ SET topics = NULL", store.groups),
        ("UPDATE principal SET state = 'activE'", store.principals),
        ("UPDATE grant_ SET action = '*' WHERE verb = 'subscribe'", store.principals),
        ("UPDATE invite SET expires_s = 1e9", store.invites),
        ("UPDATE dead SET payload = x'00'", lambda tx: store.dead(tx, "acme")),
        ("UPDATE meta SET value = x'00'", lambda tx: store.get_meta(tx, "x")),
        ("UPDATE meta SET value = x'00'", store.check_rows),
        ("UPDATE invite SET name = CAST(x'ff' AS TEXT)", store.invites),
    ],
)
async def test_a_changed_row_is_never_used(
    database: Database, damage: str, load: Callable[[Connection], Any]
) -> None:
    def fill(tx: Connection) -> None:
        store.put_groups(tx, [GROUP])
        store.put_principal(tx, PRINCIPAL)
        store.put_invite(tx, INVITE)
        store.put_dead(tx, DEAD)
        store.put_meta(tx, "x", b"1")

    await database.write(fill)
    assert await database.read(store.check_rows) == 7
    await database.read(load)
    await database.write(lambda tx: tx.execute(damage))
    with pytest.raises(LogCorrupt):
        await database.read(load)


# ---------------------------------------------------------------- pure

VALUES = st.lists(st.none() | st.text() | st.binary() | st.integers(-(2**63), 2**63 - 1), max_size=4)


@given(VALUES, VALUES)
def test_a_seal_tells_any_two_rows_apart(one: list[Any], other: list[Any]) -> None:
    same = [type(v) for v in one] == [type(v) for v in other] and one == other
    assert (seal.row_digest("t", *one) == seal.row_digest("t", *other)) == same
    assert seal.row_digest("t", *one) != seal.row_digest("u", *one)


@given(st.integers(0, 2**64 - 1))
def test_unsigned_numbers_survive_a_signed_column(value: int) -> None:
    stored = seal.signed(value)
    assert -(2**63) <= stored < 2**63
    assert seal.unsigned(stored) == value


BATCHES = st.lists(
    st.builds(
        Batch,
        tenant=st.just("acme"),
        topic=st.just("t"),
        principal=st.just("p"),
        epoch=st.integers(0, 2**64 - 1),
        sequence=st.integers(0, 2**62),
        keys=st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=5).map(tuple),
        body=st.binary(max_size=40),
    ),
    min_size=1,
    max_size=5,
)


@given(BATCHES, st.integers(0, 2**40))
def test_a_segment_describes_its_batches(batches: list[Batch], pos: int) -> None:
    runs = b"".join(journal.pack_run(7, 9, 100 + i, batch) for i, batch in enumerate(batches))
    body = b"".join(batch.body for batch in batches)
    n = sum(batch.n for batch in batches)
    segment = journal.make_segment(pos, n, 5, journal.CHAIN_START, runs, body)
    assert journal.check_segment(segment, journal.CHAIN_START) is segment
    headers = journal.unpack_runs(pos, n, runs)
    for batch, header in zip(batches, headers, strict=True):
        assert (header.epoch, header.sequence, header.keys) == (batch.epoch, batch.sequence, batch.keys)
        assert body[header.body_from : header.body_to] == batch.body
    assert [h.position for h in headers] == [pos + sum(b.n for b in batches[:i]) for i in range(len(batches))]
    found = journal.runs_of(segment, {7: ("acme", "t")}, {9: "p"})
    assert [run.body for run in found] == [batch.body for batch in batches]
    with pytest.raises(LogCorrupt):
        journal.runs_of(segment, {}, {9: "p"})


@given(st.binary(max_size=200), st.integers(0, 20))
def test_any_bytes_in_the_place_of_runs_are_a_named_error(runs: bytes, n: int) -> None:
    try:
        headers = journal.unpack_runs(0, n, runs)
    except LogCorrupt:
        return
    assert sum(header.n for header in headers) == n


def test_one_changed_bit_of_a_segment_fails_its_digest_or_its_chain() -> None:
    batch = Batch(tenant="a", topic="t", principal="p", epoch=1, sequence=1, keys=(1, 2), body=b"body" * 9)
    runs = journal.pack_run(1, 1, 0, batch)
    segment = journal.make_segment(3, 2, 5, journal.CHAIN_START, runs, batch.body)
    r = random.Random(1)
    for name in ("pos", "n", "at_ms", "digest", "chain", "runs", "body"):
        value = getattr(segment, name)
        if isinstance(value, int):
            changed: Any = value ^ (1 << r.randrange(40))
        else:
            at = r.randrange(len(value))
            changed = value[:at] + bytes([value[at] ^ (1 << r.randrange(8))]) + value[at + 1 :]
        with pytest.raises(LogCorrupt):
            journal.check_segment(attrs.evolve(segment, **{name: changed}), journal.CHAIN_START)
    with pytest.raises(LogCorrupt, match="does not follow"):
        journal.check_segment(segment, b"\1" * 32)


def test_neighbours_of_one_key_share_a_row_of_the_index() -> None:
    keys = (5, 5, 5, 6, 5)
    batch = Batch(tenant="a", topic="t", principal="p", epoch=1, sequence=1, keys=keys, body=b"")
    derived = Derived()
    for header in journal.unpack_runs(100, 5, journal.pack_run(1, 2, 0, batch)):
        derived.add(header)
    assert derived.idx == [(1, 5, 100, 3), (1, 6, 103, 1), (1, 5, 104, 1)]
    assert derived.runs == [(1, 0, 100, 5)]
    assert derived.producers == [(2, 1, 1, 5, 0, 100)]
