"""The facade as a member of its shard: one a tenant, the only owner of `core.db`.

It opens the store, then serves: the outbox drains, the networks' records are applied, requests are answered.  A bug
or a failed commit in any of them ends the facade and with it the shard; nothing goes on over a half-working core.
"""

from __future__ import annotations

from pathlib import Path
from typing import NoReturn

import attrs
import trio

from bridged.facade.answers import Answers
from bridged.facade.asking import Asking
from bridged.facade.core import Core
from bridged.facade.directory import ClientSeed, Conversation, load_directory, seed_clients, sync_file
from bridged.facade.inbound import ACK_ACTIONS, GROUP, INBOUND_ACTIONS, Inbound
from bridged.facade.intents import OUTBOUND_ACTIONS
from bridged.facade.outbound import Outbound
from bridged.facade.passing import PASSING_ACTIONS, Passing
from bridged.facade.publishing import Publishing
from bridged.facade.settling import AskPosition, Settling
from bridged.facade.tables import MIGRATIONS
from bridged.facade.verdicts import Judge, judge_by_policy
from bridged.facade.warrants import AskPrincipal, Warrant, Warrants, read_warrant
from bridged.facade.wishes import Wishes
from bridged.requests import ask, serve
from shards.client import Client
from shards.database import Connection, open_database
from shards.env import Env
from shards.errors import RequestFailed
from shards.grant import ANY, Grant
from shards.outbox import Outbox

# Ours.
FABRIC_EVENT = "bridge/fabric/event"
CONCURRENCY = 64

GRANTS = frozenset(
    {Grant("publish", ANY, ANY, action) for action in (*OUTBOUND_ACTIONS, *ACK_ACTIONS)}
    | {Grant("subscribe", ANY, ANY, action) for action in (*INBOUND_ACTIONS, *PASSING_ACTIONS)}
    | {
        Grant("publish", "core", "", "event"),
        Grant("subscribe", "fabric", "", "event"),
        Grant("respond", "core", "", ANY),
        Grant("request", "fabric", "", "keys"),
        Grant("request", "fabric", "", "groups"),
    }
)
"""What the facade's principal needs, and no more."""


@attrs.frozen(kw_only=True)
class FacadeSettings:
    """What the facade is told by the configuration."""

    tenant: str
    path: Path
    """Of `core.db`."""
    connectors: tuple[tuple[str, str], ...]
    """(service, instance) of every connector of the tenant."""
    conversations: tuple[Conversation, ...]
    """Of the configuration file."""
    clients: tuple[ClientSeed, ...] = ()
    """Added when they never were: the first operator, the first token."""
    gateways: frozenset[str] = frozenset({"gateway"})
    """Principals that may name the client for which they ask."""
    outbox_rows_max: int = 100_000


async def run_facade(
    env: Env,
    client: Client,
    settings: FacadeSettings,
    judge: Judge = judge_by_policy,
    *,
    ask_principal: AskPrincipal | None = None,
    ask_position: AskPosition | None = None,
    task_status: trio.TaskStatus[Core] = trio.TASK_STATUS_IGNORED,
) -> NoReturn:
    """Serve one tenant; `started()` once requests are answered and the networks are heard.

    Args:
        client: Of the facade's own principal, with `GRANTS`.
        judge: The policy.
        ask_principal: Where principals' rows come from; by default the request `bridge/fabric/keys`.
        ask_position: Where the position of the facade's group comes from; by default `bridge/fabric/groups`.

    Raises:
        StorageFailed: A commit of `core.db` failed; the process must end.
        LogCorrupt: `core.db` is not what it was.
    """
    async with open_database(env, settings.path, migrations=MIGRATIONS) as database:
        outbox = Outbox(database, capacity=settings.outbox_rows_max)
        at_ms = int(env.wall() * 1000)

        def prepare(tx: Connection) -> None:
            sync_file(tx, settings.tenant, settings.conversations)
            seed_clients(tx, settings.tenant, settings.clients, at_ms=at_ms)

        await database.write(prepare)
        directory = await database.read(lambda tx: load_directory(tx, settings.tenant))
        last_row = await database.read(lambda tx: tx.one("SELECT max(id) FROM outbox"))
        core = Core(env, settings.tenant, database, outbox, directory)
        warrants = Warrants(ask_principal or _principals_of(env, client))
        settling = Settling(core, ask_position or _position_of(env, client))
        asking = Asking(core, warrants, settings.gateways)
        outbound = Outbound(core, asking, Wishes(core, judge))
        inbound = Inbound(core, client, warrants=warrants, judge=judge, connectors=settings.connectors)
        answers = Answers(core, asking, settling, settings.connectors)
        passing = Passing(core, client, asking, inbound, judge, settings.connectors)
        publishing = Publishing(
            core, client, last_before=last_row[0] if last_row is not None and last_row[0] else 0
        )
        async with trio.open_nursery() as nursery:
            nursery.start_soon(database.wait_failed)
            await nursery.start(outbox.run, publishing)
            await nursery.start(_forget_keys, client, warrants)
            if settings.connectors:
                await nursery.start(inbound.run)
                await nursery.start(passing.run)
            await nursery.start(settling.keep_copy)
            handlers = {**outbound.handlers(), **passing.handlers(), **answers.handlers()}
            await nursery.start(_serve, client, handlers)
            task_status.started(core)
            await trio.sleep_forever()
    raise AssertionError("unreachable")


async def _serve(client: Client, handlers: dict[str, object], *, task_status: trio.TaskStatus[None]) -> None:
    await serve(client, "core", handlers, concurrency=CONCURRENCY, task_status=task_status)  # type: ignore[arg-type]


async def _forget_keys(
    client: Client, warrants: Warrants, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
) -> NoReturn:
    """Ask for principals anew whenever the fabric has something to say."""
    async with client.subscribe([FABRIC_EVENT], group=None, start="latest") as subscription:
        task_status.started()
        while True:
            await subscription.receive()
            warrants.forget()


def _principals_of(env: Env, client: Client) -> AskPrincipal:
    async def ask_principal(name: str) -> Warrant | None:
        try:
            answer = await ask(env, client, "fabric", "keys", {"op": "get", "name": name})
        except RequestFailed as exc:
            if exc.code == "not_found":
                return None
            raise
        row = answer.get("key")
        return None if row is None else read_warrant(row)

    return ask_principal


def _position_of(env: Env, client: Client) -> AskPosition:
    async def ask_position() -> int:
        answer = await ask(env, client, "fabric", "groups", {"group": GROUP})
        for group in answer.get("groups") or ():
            if group.get("name") == GROUP:
                return int(group["position"])
        return 0

    return ask_position
