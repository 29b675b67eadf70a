"""One life of a fabric: the shipped broker, log, client and outbox, two tenants, two fake connectors each.

Everything that is tested is the shipped code; only the `Env` is simulated.  A fake connector does what a real one
does: it hands what its platform says to an outbox (or publishes it itself and waits for the ack), and puts what
the other says into effect in one transaction with the position, before it acknowledges.  While it lives, hosts are
killed in the middle of a disk call or anywhere else, links cut, the network split, clocks moved.  Then all heals,
and what was promised is compared with what was kept.
"""

from __future__ import annotations

import random
import tempfile
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from functools import partial
from pathlib import Path

import attrs
import trio

from shards.broker import Broker, Limits, Principal, open_broker
from shards.client import Client, Identity, Request, Subscription, open_client
from shards.database import Connection, Database, open_database
from shards.env import Env
from shards.errors import RequestFailed, Unreachable
from shards.grant import WHOLE_JOURNAL, Grant
from shards.outbox import OUTBOX_SCHEMA, Outbox
from shards.record import Record
from shards.testing import (
    Acked,
    Event,
    Host,
    Message,
    Offered,
    Read,
    Received,
    Trace,
    Verdict,
    World,
    check_history,
    run_simulation,
    substituted,
)

ENDPOINT = "/run/fabric.sock"
TENANTS = ("acme", "beta")
SERVICES = ("irc", "xmpp")
CONVERSATIONS = 2
PAUSES_S = (0.0, 0.0, 0.01, 0.3, 1.5)
"""Between two messages of a speaker: bursts and silence."""
ACTIONS = ("inbound_message", "edit_event")
SCHEMA = [
    OUTBOX_SCHEMA,
    "CREATE TABLE effect(id INTEGER PRIMARY KEY, position INTEGER UNIQUE NOT NULL, message TEXT NOT NULL) STRICT;"
    "CREATE TABLE said(conversation TEXT PRIMARY KEY, number INTEGER NOT NULL) STRICT;",
]


class Substituted(Exception):
    """The simulation does not run what ships."""


@attrs.frozen(kw_only=True)
class Plan:
    """How hard a life is."""

    messages: int = 20
    """Of each connector, half by its outbox and half by itself."""
    chaos_s: float = 8.0
    faults: bool = True
    points: float = 0.02
    heal_s: float = 120.0
    """After the faults all must be quiet within this."""


@attrs.define(kw_only=True)
class Life:
    """What came of it."""

    verdict: Verdict
    digest: str
    is_quiet: bool
    """Everything had come to rest in time."""
    virtual_s: float
    kills: int
    trace: Trace

    @property
    def ok(self) -> bool:
        return self.is_quiet and self.verdict.ok


def live(seed: int, plan: Plan | None = None, *, planted: bool = False) -> Life:
    """Run one life from its seed.

    Raises:
        Substituted: Something of the shipped code was replaced, and nobody said that a fault was planted.
    """
    if not planted and (replaced := substituted()):
        raise Substituted(f"this would prove nothing: {', '.join(replaced)}")
    with tempfile.TemporaryDirectory() as keys:  # the broker's key is a file; all else is on memory disks
        return run_simulation(seed, _Universe(seed, plan or Plan(), Path(keys)).run)


class _Universe:
    def __init__(self, seed: int, plan: Plan, keys: Path) -> None:
        self.plan, self.keys = plan, keys
        self.trace = Trace()
        self.world = World(seed, trace=self.trace, points=plan.points)
        self.random = random.Random(f"plan/{seed}")
        self.history: list[Event] = []
        self.kills = 0
        self.broker: Broker | None = None
        self.server_public = b""
        self.reads = 0
        shared = random.Random(f"keys/{seed}")
        self.connectors = [
            _Connector(
                self, tenant, service, Identity.generate(f"{service}-connector", tenant, shared.randbytes)
            )
            for tenant in TENANTS
            for service in SERVICES
        ]
        self.auditors = {tenant: Identity.generate("audit", tenant, shared.randbytes) for tenant in TENANTS}

    # ---------------------------------------------------------------- the run

    async def run(self) -> Life:
        with self.world:
            hosts = [self.world.host("shard"), *[connector.host for connector in self.connectors]]
            async with trio.open_nursery() as nursery:
                await nursery.start(self.keep_up, hosts[0], self.serve)
                for connector in self.connectors:
                    nursery.start_soon(self.keep_up, connector.host, connector.run)
                for tenant in TENANTS:
                    nursery.start_soon(
                        self.keep_up, self.world.host(f"audit {tenant}"), partial(self.follow, tenant)
                    )
                if self.plan.faults:
                    await self.chaos(hosts)
                is_quiet = await self.wait_quiet()
                for tenant in TENANTS:
                    await self.replay(tenant)
                nursery.cancel_scope.cancel()
            for connector in self.connectors:
                await connector.collect()
            consumers = {connector.name: connector.tenant for connector in self.connectors}
            verdict = self.judge(consumers)
            return Life(
                verdict=verdict,
                digest=self.trace.digest,
                is_quiet=is_quiet,
                virtual_s=trio.current_time(),
                kills=self.kills,
                trace=self.trace,
            )

    def judge(self, consumers: dict[str, str]) -> Verdict:
        """Each connector's messages are for the other one of its tenant."""
        verdict = check_history(self.history, tenant_of=consumers)
        received = {event.message for event in self.history if isinstance(event, Received)}
        read = {event.message for event in self.history if isinstance(event, Read)}
        kept = received & read
        acked = [event.message for event in self.history if isinstance(event, Acked)]
        verdict.lost += [message for message in acked if message not in kept and message not in verdict.lost]
        return verdict

    async def keep_up(
        self,
        host: Host,
        main: Callable[..., Awaitable[None]],
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """What a supervisor does: start it again when it was killed, or could not reach the broker."""
        while True:
            if host.is_up:
                try:
                    await host.run(partial(main, task_status=task_status))
                except* Unreachable:
                    self.trace("unreachable", host.name)
                task_status = trio.TASK_STATUS_IGNORED
            await trio.sleep(0.05)

    # ---------------------------------------------------------------- the shard

    async def serve(self, env: Env, *, task_status: trio.TaskStatus[None]) -> None:
        limits = Limits()
        async with open_broker(env, state=self.keys, endpoint=ENDPOINT, shard="sim", limits=limits) as broker:
            if not broker.principals():
                for connector in self.connectors:
                    await broker.enroll(_principal(connector.identity, *connector.grants))
                for identity in self.auditors.values():
                    await broker.enroll(_principal(identity, WHOLE_JOURNAL))
            self.broker, self.server_public = broker, broker.server_public
            task_status.started()
            try:
                await trio.sleep_forever()
            finally:
                self.broker = None

    def client(self, env: Env, identity: Identity) -> AbstractAsyncContextManager[Client]:
        return open_client(env, ENDPOINT, identity, server_public=self.server_public, shard="sim")

    # ---------------------------------------------------------------- readers

    async def follow(self, tenant: str, env: Env, *, task_status: object) -> None:
        """A plain tail of the whole journal, over all reconnects."""
        self.reads += 1
        reader = f"audit {tenant} {self.reads}"
        async with (
            self.client(env, self.auditors[tenant]) as client,
            client.subscribe(None, group=None) as subscription,
        ):
            async for records in subscription:
                for record in records:
                    self.note_read(reader, tenant, record)

    async def replay(self, tenant: str) -> None:
        env = self.world.host("replay").env()
        async with self.client(env, self.auditors[tenant]) as client, client.replay(None) as records:
            async for some in records:
                for record in some:
                    self.note_read(f"replay {tenant}", tenant, record)

    def note_read(self, reader: str, tenant: str, record: Record) -> None:
        message = _decode(record.payload)
        if message.tenant != tenant:
            self.history.append(Received(reader, message))  # judged below as a crossing
            return
        self.history.append(Read(reader, record.topic, record.offset, message))

    # ---------------------------------------------------------------- faults

    async def chaos(self, hosts: list[Host]) -> None:
        r, world, network = self.random, self.world, self.world.network
        network.faults.cut = r.choice([0, 0, 0.002])
        network.faults.slow = r.choice([0.01, 0.05])
        until = trio.current_time() + self.plan.chaos_s
        async with trio.open_nursery() as nursery:
            while trio.current_time() < until:
                await trio.sleep(r.uniform(0.02, 0.8))
                host = r.choice([hosts[0], r.choice(hosts)])
                match r.choice(["kill", "kill in a call", "cut", "cut", "split", "clock", "nothing"]):
                    case "kill":
                        nursery.start_soon(self.kill_and_start, host, r.uniform(0.01, 1))
                    case "kill in a call":
                        host.disk.cut_after(r.randrange(1, 40), host.kill)
                        nursery.start_soon(
                            self.kill_and_start, host, r.uniform(0.01, 1), r.uniform(0.05, 0.5)
                        )
                    case "cut":
                        if network.links:
                            network.cut(r.choice(network.links))
                    case "split":
                        nursery.start_soon(self.split, r.choice(hosts[1:]), r.choice([0.1, 1, 3, 20]))
                    case "clock":
                        world.wall_jump_s = r.choice([-3600.0, 0.0, 3600.0, 86400.0 * 3650])
        network.faults.cut = network.faults.slow = 0
        for host in hosts:
            host.start()

    async def kill_and_start(self, host: Host, down_s: float, after_s: float = 0.0) -> None:
        await trio.sleep(after_s)
        host.kill()
        self.kills += 1
        await trio.sleep(down_s)
        host.start()

    async def split(self, host: Host, for_s: float) -> None:
        self.world.network.partition(host.name, "shard")
        await trio.sleep(for_s)
        self.world.network.heal(host.name, "shard")

    async def wait_quiet(self) -> bool:
        with trio.move_on_after(self.plan.heal_s):
            while True:
                if self.is_quiet():
                    return True
                await trio.sleep(0.2)
        return False

    def is_quiet(self) -> bool:
        broker = self.broker
        return (
            broker is not None
            and all(connector.is_done for connector in self.connectors)
            and all(group.lag == 0 for tenant in TENANTS for group in broker.groups(tenant))
            and sum(len(broker.groups(tenant)) for tenant in TENANTS) == len(self.connectors)
        )


class _Connector:
    """A fake connector of one tenant and service.  It survives its process: its platform does."""

    def __init__(self, universe: _Universe, tenant: str, service: str, identity: Identity) -> None:
        self.universe, self.tenant, self.service, self.identity = universe, tenant, service, identity
        self.name = f"{tenant} {service}"
        self.host = universe.world.host(self.name)
        other = next(each for each in SERVICES if each != service)
        self.publishes = [f"bridge/{service}/a/{action}" for action in ACTIONS]
        self.subscribes = [f"bridge/{other}/a/{action}" for action in ACTIONS]
        self.answers, self.asks = f"bridge/{service}/a/ask", f"bridge/{other}/a/ask"
        self.grants = [
            Grant.parse(f"publish bridge/{service}/a/*"),
            Grant.parse(f"subscribe bridge/{other}/a/*"),
            Grant.parse(f"respond {self.answers}"),
            Grant.parse(f"request {self.asks}"),
        ]
        self.answered = 0
        self.numbers: dict[str, int] = {}
        self.offered: set[Message] = set()
        self.outbox: Outbox | None = None
        self.random = random.Random(f"{universe.world.seed}/connector/{self.name}")
        self.script = [f"c{self.random.randrange(CONVERSATIONS)}" for _ in range(universe.plan.messages)]
        """Which conversation the n-th message of a producer is in."""

    @property
    def is_done(self) -> bool:
        half = self.universe.plan.messages // 2
        return (
            self.outbox is not None
            and self.outbox.statistics().waiting == 0
            and self.answered > 0
            and all(self.numbers.get(producer, 0) >= half for producer in ("outbox", "direct"))
        )

    async def run(self, env: Env, *, task_status: object) -> None:
        self.outbox = None
        async with open_database(env, Path("/state/own.db"), migrations=SCHEMA) as database:
            outbox = Outbox(database)
            async with (
                self.universe.client(env, self.identity) as client,
                trio.open_nursery() as nursery,
            ):
                await nursery.start(outbox.run, client)
                self.outbox = outbox
                nursery.start_soon(self.speak_by_outbox, database, outbox)
                nursery.start_soon(self.speak_directly, client)
                nursery.start_soon(client.respond, [self.answers], self.answer)
                nursery.start_soon(self.ask, client)
                for member in range(2):
                    nursery.start_soon(self.consume, client, database, member)

    # ---------------------------------------------------------------- producing

    def next_message(self, producer: str) -> Message:
        number = self.numbers.get(producer, 0)
        return Message(self.tenant, f"{self.service} {producer}", self.script[number], number)

    def offer(self, message: Message) -> None:
        if message not in self.offered:
            self.offered.add(message)
            self.universe.history.append(Offered(message))

    async def speak_by_outbox(self, database: Database, outbox: Outbox) -> None:
        while self.numbers.get("outbox", 0) < self.universe.plan.messages // 2:
            await trio.sleep(self.random.choice(PAUSES_S))
            message = self.next_message("outbox")
            self.offer(message)

            def put(tx: Connection, message: Message = message) -> None:
                # The platform repeats what it does not know to be taken; the connector's cursor recognises it.
                said = tx.one("SELECT number FROM said WHERE conversation = ?", ("outbox",))
                if said is None or said[0] < message.number:
                    tx.execute("INSERT OR REPLACE INTO said VALUES('outbox', ?)", (message.number,))
                    topic = self.publishes[message.number % 2]
                    outbox.put(tx, topic, message.conversation.encode(), _encode(message, self.random))

            await database.write(put)
            self.note_acked(message)
            self.numbers["outbox"] = message.number + 1

    async def speak_directly(self, client: Client) -> None:
        while self.numbers.get("direct", 0) < self.universe.plan.messages // 2:
            await trio.sleep(self.random.choice(PAUSES_S))
            message = self.next_message("direct")
            self.numbers["direct"] = (
                message.number + 1
            )  # not said twice: what is cut off has an unknown outcome
            self.offer(message)
            topic = self.publishes[message.number % 2]
            payload = _encode(message, self.random)
            published = await client.publish(topic, [payload], key=message.conversation.encode())
            self.note_acked(message)
            reader = f"ack of {message}"
            self.universe.history.append(Read(reader, topic, published.offset, message))

    def note_acked(self, message: Message) -> None:
        self.universe.trace("ack", message.tenant, message.producer, message.number)
        self.universe.history.append(Acked(message))

    # ---------------------------------------------------------------- requests

    async def answer(self, request: Request) -> bytes:
        assert request.tenant == self.tenant, "a request of another tenant came through"
        await trio.sleep(self.random.choice([0, 0.1]))
        return b"%s to %s" % (self.name.encode(), request.body)

    async def ask(self, client: Client) -> None:
        """Answered rightly, or not at all."""
        for number in range(10**6):
            await trio.sleep(self.random.uniform(0.1, 2))
            body = b"%s %d" % (self.name.encode(), number)
            trace_id = self.random.randbytes(16).hex()
            try:
                reply = await client.request(
                    self.asks, body, deadline=trio.current_time() + 2, trace_id=trace_id
                )
            except RequestFailed as exc:
                self.universe.trace("no answer", self.name, exc.code)
            else:
                other = next(each for each in SERVICES if each != self.service)
                assert reply == b"%s %s to %s" % (self.tenant.encode(), other.encode(), body), reply
                self.answered += 1

    # ---------------------------------------------------------------- consuming

    async def consume(self, client: Client, database: Database, member: int) -> None:
        async with client.subscribe(
            self.subscribes, group=f"{self.service}/a", credit_records=16
        ) as subscription:
            async for records in subscription:
                given_back: set[int] = set()
                for record in records:
                    await self.take(subscription, database, record, given_back)

    async def take(
        self,
        subscription: Subscription,
        database: Database,
        record: Record,
        given_back: set[int],
    ) -> None:
        """Effect and position in one transaction; then the acknowledgement."""
        if record.key in given_back:
            return  # later in the same hand than one that was given back: it comes again, after that
        if self.random.random() < 0.05:
            given_back.add(record.key)
            await subscription.release([record], delay_s=self.random.choice([0, 0.1]), reason="not now")
            return
        message = record.payload.split(b"\n", 1)[0].decode()

        def effect(tx: Connection) -> bool:
            tx.execute(
                "INSERT OR IGNORE INTO effect(position, message) VALUES(?,?)", (record.position, message)
            )
            return tx.changes() > 0

        is_new = await database.write(effect)
        self.universe.trace("effect", self.name, record.position, is_new)
        await subscription.done([record])

    async def collect(self) -> None:
        """What took effect, in order, as the disk has it at the end."""
        self.host.start()
        async with open_database(self.host.env(), Path("/state/own.db"), migrations=SCHEMA) as database:
            rows = await database.read(lambda tx: tx.execute("SELECT message FROM effect ORDER BY id"))
        for (text,) in rows:
            self.universe.history.append(Received(self.name, _decode(text.encode())))


def _principal(identity: Identity, *grants: Grant) -> Principal:
    return Principal(
        name=identity.name,
        tenant=identity.tenant,
        noise_public=identity.noise_public,
        signing_public=identity.signing_public,
        lease_public=identity.lease_public,
        grants=frozenset(grants),
    )


def _encode(message: Message, r: random.Random) -> bytes:
    text = "|".join([message.tenant, message.producer, message.conversation, str(message.number)])
    size = 70_000 if r.random() < 0.03 else r.randrange(600)
    return text.encode() + b"\n" + b"." * size


def _decode(payload: bytes) -> Message:
    tenant, producer, conversation, number = payload.split(b"\n", 1)[0].decode().split("|")
    return Message(tenant, producer, conversation, int(number))


def faults_of(life: Life) -> dict[str, int]:
    """Names of what went wrong, for a message."""
    return life.verdict.faults | ({} if life.is_quiet else {"never quiet": 1})
