"""Simulated lives of the shipped broker, log, client and outbox: what was promised is kept, from any seed."""

from __future__ import annotations

import ast
import functools
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from shards import database, groups, log
from shards.broker import feeds
from shards.client.subscription import Subscription
from shards.store import appender, journal

from .fabric_life import Life, Plan, Substituted, faults_of, live

HERE = Path(__file__).parent
SEEDS = range(10)
KEPT_SEEDS = [int(line) for line in (HERE / "seeds.txt").read_text().split() if line.isdigit()]


@pytest.mark.parametrize("seed", [*SEEDS, *KEPT_SEEDS])
def test_what_was_promised_is_kept(seed: int) -> None:
    life = live(seed)
    assert life.ok, f"seed {seed}: {faults_of(life)}\n{life.trace.tail()}"
    assert life.verdict.offered == 80


def test_without_faults_all_of_it_arrives() -> None:
    life = live(1, Plan(faults=False, points=0))
    assert life.ok, faults_of(life)
    assert life.verdict.offered == life.verdict.acked == life.verdict.received == 80


def test_one_seed_is_one_history_in_every_process() -> None:
    script = (
        f"import sys; sys.path.insert(0, {str(HERE)!r})\n"
        "from fabric_life import live\n"
        "life = live(int(sys.argv[1])); print(life.digest, life.trace.n, life.virtual_s)"
    )

    def digest(hash_seed: str) -> str:
        done = subprocess.run(
            [sys.executable, "-c", script, "4"],
            env={**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": str(HERE.parents[1])},
            capture_output=True,
            text=True,
            check=True,
        )
        return done.stdout

    first = digest("1")
    assert first == digest("2")
    life = live(4)
    assert first.split()[0] == life.digest


# ---------------------------------------------------------------- the shipped code, and nothing else


@pytest.mark.parametrize(
    ("owner", "name"),
    [(log, "Log"), (log.Log, "append"), (feeds, "wire"), (feeds, "GroupFeed"), (database.Database, "write")],
)
def test_a_substituted_class_is_refused(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str) -> None:
    if name == "wire":
        owner, name = feeds, "Log"  # what one module takes from another counts too
    real = getattr(owner, name)
    stand_in = type(name, (), {}) if isinstance(real, type) else functools.partial(real)
    monkeypatch.setattr(owner, name, stand_in)
    with pytest.raises(Substituted, match=name):
        live(1)


def test_no_class_of_the_simulation_stands_in_for_a_shipped_one() -> None:
    for path in HERE.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef):
                bases = {ast.unparse(base) for base in node.bases}
                assert bases <= {"Exception"}, f"{path.name}: {node.name} inherits from {bases}"


# ---------------------------------------------------------------- planted faults, that the checker must find


def acknowledge_before_the_commit(patch: pytest.MonkeyPatch) -> None:
    real = database.Database._run_item

    def run_item(self: Any, db: Any, connection: Any, item: Any) -> None:
        real(self, db, connection, item)
        item.then(item.result, item.error)
        item.then = lambda _result, _error: None

    patch.setattr(database.Database, "_run_item", run_item)


def do_not_sync(patch: pytest.MonkeyPatch) -> None:
    real = database._prepare

    def prepare(env: Any, db: Any, *rest: Any) -> None:
        real(env, db, *rest)
        db.execute("PRAGMA synchronous=OFF").fetchall()

    patch.setattr(database, "_prepare", prepare)


def forget_repeats(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(appender.Appender, "_recognise", lambda *_: None)
    real = journal.flush

    def flush(tx: Any, derived: Any) -> None:
        derived.producers.clear()  # the table would refuse the second one
        real(tx, derived)

    patch.setattr(journal, "flush", flush)


def forget_repeats_in_a_crash(patch: pytest.MonkeyPatch) -> None:
    real = appender.Appender.load

    def load(self: Any, tx: Any) -> Any:
        loaded = real(self, tx)
        self._producers.clear()
        self._derived.producers.clear()
        return loaded

    patch.setattr(appender.Appender, "load", load)


def acknowledge_before_the_effect(patch: pytest.MonkeyPatch) -> None:
    real = Subscription.receive

    async def receive(self: Any) -> Any:
        records = await real(self)
        self._note_done(records)
        return records

    patch.setattr(Subscription, "receive", receive)


def give_a_key_to_two_members(patch: pytest.MonkeyPatch) -> None:
    real = groups.Group.offer

    def offer(self: Any, position: int, key: int, *rest: Any) -> Any:
        return real(self, position, position, *rest)

    patch.setattr(groups.Group, "offer", offer)


def mix_tenants(patch: pytest.MonkeyPatch) -> None:
    async def read(self: Any, position: int) -> Any:
        page = await self.log.page(position, topics=self.topics)
        return page.runs, page.next

    patch.setattr(feeds.Feed, "read", read)


@pytest.mark.parametrize(
    ("plant", "kinds", "within"),
    [
        (acknowledge_before_the_commit, {"lost", "doubled_in_log", "diverged", "holes"}, 20),
        (do_not_sync, {"lost", "doubled_in_log", "diverged", "holes"}, 20),
        (forget_repeats, {"duplicated", "doubled_in_log"}, 20),
        (forget_repeats_in_a_crash, {"duplicated", "doubled_in_log"}, 40),
        (acknowledge_before_the_effect, {"lost", "reordered"}, 10),
        (give_a_key_to_two_members, {"reordered"}, 10),
        (mix_tenants, {"crossed_tenants"}, 2),
    ],
)
def test_a_planted_fault_is_found(
    monkeypatch: pytest.MonkeyPatch, plant: Callable[[pytest.MonkeyPatch], None], kinds: set[str], within: int
) -> None:
    plant(monkeypatch)
    for seed in range(within):
        try:
            life: Life = live(seed, planted=True)
        except Exception:
            return  # the code itself noticed
        if faults_of(life).keys() & kinds:
            return
    pytest.fail(f"nothing found in {within} seeds")
