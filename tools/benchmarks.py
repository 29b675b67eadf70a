"""Benchmarks: what the disk, SQLite and the fabric do in one run on one machine, so that ratios hold.

    fabric      durable acknowledged publishes of 1 KiB, fsync before ack, three processes, beside a bare group commit
    relay       one conversation between a fake IRC network and a fake XMPP server through a shard of its own process
    memory      the resident memory of an idle shard
    simulation  simulated lives of broker, log and clients a second

A target says what a quiet machine of two cores must reach; `met` is false on a busy one without being a fault.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import apsw
import trio

from bridged import demo
from bridged.ctl.offline import make_shard
from bridged.keyring import load_key
from bridged.peers.irc import open_irc_network
from bridged.peers.xmpp import open_xmpp_server
from bridged.requests import ask
from shards import system_env
from shards.broker import Principal, open_broker
from shards.client import Identity, open_client
from shards.grant import Grant

ROOT = Path(__file__).resolve().parent.parent
MESSAGE = 1024
BATCH = 60
"""Messages of 1 KiB that fit one Noise message."""
TOPIC = "bridge/bench/speed"
GRANTS = frozenset(Grant(verb, "*", "*", "*") for verb in ("publish", "subscribe"))

Row = dict[str, Any]


def row(name: str, value: float | None, unit: str, target: float | None, *, at_most: bool = False) -> Row:
    met = None if target is None or value is None else value <= target if at_most else value >= target
    return {
        "name": name,
        "value": None if value is None else round(value, 3),
        "unit": unit,
        "target": target,
        "met": met,
    }


@contextmanager
def scratch() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="bridged-bench-", dir=os.environ.get("BENCH_DIR")) as name:
        yield Path(name)


# -- fabric -------------------------------------------------------------------------------------------------------


def bare_group_commit(directory: Path, seconds: float) -> float:
    """Messages a second that SQLite alone takes, in the Log's layout: one row of 240 messages a commit, FULL."""
    db = apsw.Connection(str(directory / "bare.db"))
    for pragma in (
        "page_size=16384",
        "journal_mode=wal",
        "synchronous=full",
        "cache_size=-16000",
        "wal_autocheckpoint=128",
    ):
        db.execute(f"pragma {pragma}").fetchall()
    db.execute(
        "create table segment (pos integer primary key, n integer, at_ms integer, chain blob, runs blob, body blob)"
    )
    body, n = os.urandom(BATCH * 4 * MESSAGE), 0
    started = time.perf_counter()
    while time.perf_counter() - started < seconds:
        db.execute("begin immediate")
        db.execute("insert into segment values (?,?,?,?,?,?)", (n, BATCH * 4, 0, b"c" * 32, b"r" * 64, body))
        db.execute("commit")
        n += BATCH * 4
    elapsed = time.perf_counter() - started
    db.close()
    return n / elapsed


def fdatasync_p50_ms(directory: Path) -> float:
    """The disk's own answer to 64 KiB."""
    fd = os.open(directory / "sync", os.O_WRONLY | os.O_CREAT)
    block, times = os.urandom(65536), []
    for _ in range(100):
        os.pwrite(fd, block, 0)
        started = time.perf_counter()
        os.fdatasync(fd)
        times.append(time.perf_counter() - started)
    os.close(fd)
    return sorted(times)[50] * 1000


async def role_broker(directory: Path) -> None:
    env = system_env()
    async with open_broker(
        env, state=directory, endpoint=str(directory / "run/f.sock"), shard="bench"
    ) as broker:
        for name in ("publisher", "consumer"):
            identity = Identity.generate(name, "bench", env.token_bytes)
            await broker.enroll(
                Principal(
                    name=name,
                    tenant="bench",
                    noise_public=identity.noise_public,
                    signing_public=identity.signing_public,
                    lease_public=identity.lease_public,
                    grants=GRANTS,
                )
            )
            keys = [identity.noise_private, identity.signing_private, identity.lease_private]
            (directory / f"{name}.keys").write_text(" ".join(key.hex() for key in keys))
        (directory / "server").write_text(broker.server_public.hex())
        print("ready", flush=True)
        await trio.to_thread.run_sync(sys.stdin.read, abandon_on_cancel=True)


def identity_of(directory: Path, name: str) -> tuple[Identity, bytes]:
    noise, signing, lease = (bytes.fromhex(key) for key in (directory / f"{name}.keys").read_text().split())
    identity = Identity(
        name=name, tenant="bench", noise_private=noise, signing_private=signing, lease_private=lease
    )
    return identity, bytes.fromhex((directory / "server").read_text())


async def role_publisher(directory: Path, seconds: float, rate: float) -> None:
    """As fast as it goes (rate 0: 16 batches in flight), or one message at a time, `rate` a second."""
    identity, server = identity_of(directory, "publisher")
    payload = os.urandom(MESSAGE - 16)
    sent = 0
    async with open_client(
        system_env(), str(directory / "run/f.sock"), identity, server_public=server, shard="bench"
    ) as client:
        begun = time.perf_counter()
        cpu = time.process_time()

        async def keep_publishing(lane: int) -> None:
            nonlocal sent
            while time.perf_counter() - begun < seconds:
                stamp = b"%016x" % time.monotonic_ns()
                await client.publish(TOPIC, [stamp + payload] * BATCH, key=b"lane%d" % lane)
                sent += BATCH

        if rate:
            while time.perf_counter() - begun < seconds:
                await client.publish(TOPIC, [b"%016x" % time.monotonic_ns() + payload], key=b"slow")
                sent += 1
                await trio.sleep(max(0.0, begun + sent / rate - time.perf_counter()))
        else:
            async with trio.open_nursery() as nursery:
                for lane in range(16):
                    nursery.start_soon(keep_publishing, lane)
        elapsed = time.perf_counter() - begun
    print(
        json.dumps(
            {"rate": sent / elapsed, "sent": sent, "cpu_us": (time.process_time() - cpu) / max(sent, 1) * 1e6}
        )
    )


async def role_consumer(directory: Path) -> None:
    identity, server = identity_of(directory, "consumer")
    got, latencies = 0, []
    cpu = time.process_time()
    async with (
        open_client(
            system_env(), str(directory / "run/f.sock"), identity, server_public=server, shard="bench"
        ) as client,
        client.subscribe([TOPIC], group="bench", start="latest", credit_records=4096) as subscription,
    ):
        print("ready", flush=True)
        with trio.CancelScope() as scope:

            async def stop() -> None:
                await trio.to_thread.run_sync(sys.stdin.read, abandon_on_cancel=True)
                scope.cancel()

            async with trio.open_nursery() as nursery:
                nursery.start_soon(stop)
                while True:
                    records = await subscription.receive()
                    now = time.monotonic_ns()
                    for record in records:
                        latencies.append((now - int(record.payload[:16], 16)) / 1e6)
                    got += len(records)
                    await subscription.done(records)
    latencies.sort()
    at = [latencies[int(q * (len(latencies) - 1))] if latencies else None for q in (0.5, 0.99)]
    print(
        json.dumps(
            {
                "got": got,
                "p50": at[0],
                "p99": at[1],
                "cpu_us": (time.process_time() - cpu) / max(got, 1) * 1e6,
            }
        )
    )


def role(name: str, directory: Path, *more: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, __file__, "--role", name, str(directory), *map(str, more)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )


def last_line(process: subprocess.Popen[str]) -> Row:
    out, _ = process.communicate(timeout=120)
    found: Row = json.loads(out.strip().splitlines()[-1])
    return found


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def bench_fabric(seconds: float) -> Iterator[Row]:
    with scratch() as directory:
        disk = fdatasync_p50_ms(directory)
        yield row("disk fdatasync 64 KiB p50", disk, "ms", None)
        bare = bare_group_commit(directory, seconds / 2)
        yield row("bare SQLite group commit, 1 KiB", bare, "messages/s", None)
        broker = role("broker", directory)
        assert broker.stdout is not None and broker.stdout.readline() == "ready\n"
        results = []
        for rate in (0.0, 200.0):
            consumer = role("consumer", directory)
            assert consumer.stdout is not None and consumer.stdout.readline() == "ready\n"
            before = cpu_seconds(broker.pid)
            published = last_line(role("publisher", directory, seconds, rate))
            spent = cpu_seconds(broker.pid) - before
            time.sleep(1)
            results.append((published, last_line(consumer), spent))
        broker.communicate(timeout=30)
        (fast, taken, spent), (_, slow, _) = results
        yield row("durable acknowledged publish, 1 KiB, batching client", fast["rate"], "messages/s", None)
        yield row("the same over the bare group commit", fast["rate"] / bare, "ratio", 0.55)
        yield row("consumed of published", taken["got"] / fast["sent"], "ratio", 0.99)
        yield row("CPU: broker", spent / fast["sent"] * 1e6, "us/message", None)
        yield row("CPU: publisher", fast["cpu_us"], "us/message", None)
        yield row("CPU: consumer", taken["cpu_us"], "us/message", None)
        yield row(
            "publish to consumer at 200/s, p50 over the disk", slow["p50"] - disk, "ms", 0.8, at_most=True
        )
        yield row("publish to consumer at 200/s, p99", slow["p99"], "ms", 4.0, at_most=True)


# -- relay --------------------------------------------------------------------------------------------------------


@contextmanager
def daemon(config: Path) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(
        [sys.executable, "-m", "bridged", "run", str(config)], cwd=ROOT, stderr=subprocess.DEVNULL
    )
    try:
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(30)


async def relay(directory: Path, rates: tuple[float, ...], seconds: float) -> list[Row]:
    """Latency from a person on one network to a person on the other, both ways at once."""
    env, rows = system_env(), []
    async with (
        open_irc_network(env, host="127.0.0.1") as irc,
        open_xmpp_server(env, host="127.0.0.1") as xmpp,
    ):
        xmpp.add_user("bridge", "pw-bench")
        ca = xmpp.write_ca(directory / "ca.pem")
        text = demo.CONFIG.format(
            state=directory / "state",
            irc="{}:{}".format(*irc.address),
            xmpp="{}:{}".format(*xmpp.address),
            ca=ca,
        )
        config = directory / "shard.toml"
        make_shard(env.token_bytes, demo.NAME, config, directory / "state", text)
        with daemon(config) as process:
            key = load_key(directory / "keys" / f"{demo.NAME}.key")
            endpoint = directory / "state/run/fabric.sock"
            while not endpoint.exists():
                await trio.sleep(0.05)
            async with open_client(
                env, str(endpoint), key.identity, server_public=key.server_public, shard=demo.NAME
            ) as client:
                secret = {"credential": "xmpp/fake", "secret": "pw-bench"}
                await ask(env, client, "vault", "put", secret, within_s=20, patience_s=20)
            irene, alice = await irc.person("irene"), await xmpp.person("alice")
            await irene.join(demo.CHANNEL)
            await alice.join(demo.ROOM, "alice")
            await xmpp.wait_occupant(demo.ROOM, demo.BOT)
            await trio.sleep(2)
            for rate in rates:
                before = cpu_seconds(process.pid)
                latencies, offered = await _exchange(irene, alice, rate, seconds)
                spent = cpu_seconds(process.pid) - before
                for way, found in latencies.items():
                    found.sort()
                    rows += [
                        row(f"{way} at {rate:g}/s, p50", found[len(found) // 2], "ms", 10.0, at_most=True),
                        row(
                            f"{way} at {rate:g}/s, p99",
                            found[int(0.99 * (len(found) - 1))],
                            "ms",
                            30.0,
                            at_most=True,
                        ),
                    ]
                arrived = sum(map(len, latencies.values()))
                rows.append(row(f"arrived at {rate:g}/s each way", arrived / offered, "ratio", 1.0))
                rows.append(
                    row(
                        f"CPU of the shard at {rate:g}/s each way", spent / offered * 1000, "ms/message", None
                    )
                )
    return rows


async def _exchange(
    irene: Any, alice: Any, rate: float, seconds: float
) -> tuple[dict[str, list[float]], int]:
    said: dict[str, float] = {}
    latencies: dict[str, list[float]] = {"IRC to XMPP": [], "XMPP to IRC": []}
    token = re.compile(r"token-[ix]-\d+-\d+")

    async def listen(way: str, receive: Callable[[], Any]) -> None:
        while True:
            match = token.search((await receive()).text)
            if match is not None and match[0] in said:
                latencies[way].append((time.perf_counter() - said.pop(match[0])) * 1000)

    async def speak(letter: str, say: Callable[[str, str], Any], target: str) -> None:
        begun = trio.current_time()
        for number in range(int(rate * seconds)):
            name = f"token-{letter}-{int(rate)}-{number}"
            said[name] = time.perf_counter()
            await say(target, f"hello {name}")
            await trio.sleep_until(begun + (number + 1) / rate)

    async with trio.open_nursery() as listeners:
        listeners.start_soon(listen, "XMPP to IRC", irene.receive)
        listeners.start_soon(listen, "IRC to XMPP", alice.receive)
        async with trio.open_nursery() as speakers:
            speakers.start_soon(speak, "i", irene.say, demo.CHANNEL)
            speakers.start_soon(speak, "x", alice.say, demo.ROOM)
        with trio.move_on_after(20):
            while said:
                await trio.sleep(0.05)
        listeners.cancel_scope.cancel()
    return latencies, 2 * int(rate * seconds)


def bench_relay(seconds: float) -> Iterator[Row]:
    with scratch() as directory:
        yield from trio.run(relay, directory, (20.0, 50.0), seconds)


# -- memory, simulation -------------------------------------------------------------------------------------------


def bench_memory(_: float) -> Iterator[Row]:
    with scratch() as directory:
        text = f'[shard]\nname = "idle"\nstate = "{directory / "state"}"\n[gateway]\nlisten = "127.0.0.1:0"\n'
        config = directory / "shard.toml"
        make_shard(system_env().token_bytes, "idle", config, directory / "state", text)
        started = time.perf_counter()
        with daemon(config) as process:
            while not (directory / "state/run/fabric.sock").exists():
                time.sleep(0.02)
            yield row("an idle shard serves after", time.perf_counter() - started, "s", 3.0, at_most=True)
            time.sleep(4)
            status = Path(f"/proc/{process.pid}/status").read_text()
            resident = int(re.search(r"VmRSS:\s+(\d+)", status)[1]) / 1024  # type: ignore[index]
            yield row("resident memory of an idle shard", resident, "MiB", 100.0, at_most=True)


def bench_simulation(seconds: float) -> Iterator[Row]:
    from tests.simulation.fabric_life import live  # the tests' own world

    seeds, started = 0, time.perf_counter()
    while time.perf_counter() - started < seconds:
        live(seeds)
        seeds += 1
    yield row("simulated lives of the fabric", seeds / (time.perf_counter() - started), "seeds/s", None)


BENCHES: dict[str, Callable[[float], Iterator[Row]]] = {
    "fabric": bench_fabric,
    "relay": bench_relay,
    "memory": bench_memory,
    "simulation": bench_simulation,
}


def main() -> int:
    if sys.argv[1:2] == ["--role"]:
        name, directory, *more = sys.argv[2:]
        if name == "broker":
            trio.run(role_broker, Path(directory))
        elif name == "publisher":
            trio.run(role_publisher, Path(directory), *map(float, more))
        else:
            trio.run(role_consumer, Path(directory))
        return 0
    parser = argparse.ArgumentParser(
        prog="tools/bench", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=" ".join(BENCHES))
    parser.add_argument("--seconds", type=float, default=8.0, help="how long each measurement takes")
    parser.add_argument("--json", action="store_true", help="one object a line")
    args = parser.parse_args()
    unknown = set(args.names) - set(BENCHES)
    if unknown:
        parser.error(f"no bench {', '.join(sorted(unknown))}; there are {', '.join(BENCHES)}")
    for name in args.names or BENCHES:
        if not args.json:
            print(f"{name}  (load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores)")
        for found in BENCHES[name](args.seconds):
            if args.json:
                print(json.dumps(found), flush=True)
                continue
            value = "-" if found["value"] is None else f"{found['value']:,.2f}"
            mark = {True: "met", False: "MISSED", None: ""}[found["met"]]
            target = "" if found["target"] is None else f"target {found['target']:g}"
            print(f"  {found['name']:<55}{value:>14} {found['unit']:<11} {target:<12} {mark}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
