"""The demo: people on a fake IRC network, a fake XMPP server and a WebSocket talk in one conversation.

Everything between them is the shipped shard, over true wire protocols on loopback; only the networks are fakes.
Each line carries a number, so what was lost, doubled or reordered on its way is counted and not guessed.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import signal
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import attrs
import trio
from nacl import bindings
from trio_websocket import ConnectionClosed, WebSocketConnection, open_websocket_url

from bridged import telemetry
from bridged.audit import store as audit_store
from bridged.config import Config, load_config
from bridged.ctl.offline import make_shard
from bridged.daemon import Running, open_shard
from bridged.errors import BridgeError
from bridged.keyring import load_key, seed_file
from bridged.peers.irc import IrcNetwork, open_irc_network
from bridged.peers.xmpp import XmppServer, open_xmpp_server
from bridged.requests import ask
from shards import system_env
from shards.client import open_client
from shards.database import open_database
from shards.env import Env
from shards.errors import ShardsError

NAME = "demo"
CHANNEL = "#ops"
ROOM = "ops@muc.localhost"
BOT = "demo-bridge"
UP_WITHIN_S = 30.0
DRAIN_S = 15.0
QUIET_S = 0.5
"""After the last arrival: what would come twice has come by then."""
RATE_DEFAULT = 6.0
SECONDS_DEFAULT = 30.0

_TOKEN = re.compile(r"\bno\. (\d{5})\b")
_LINES = (
    "the deploy of the gateway is done",
    "who looks after the ledger today?",
    "I do; the queue is empty",
    "latency is back to normal",
    "æøå, 漢字 and 😀 cross as they are",
    "shall we close the incident?",
    "one more minute, please",
    "closed. thank you all",
)

CONFIG = """# Made by `bridged demo`.
[shard]
name = "demo"
state = "{state}"

[gateway]
listen = "127.0.0.1:0"

[[connector]]
service = "irc"
instance = "fake"
network = "irc.demo"
server = "{irc}"
tls = false
nick = "demo-bridge"

[[connector]]
service = "xmpp"
instance = "fake"
jid = "bridge@localhost"
server = "{xmpp}"
tls = {{ ca = "{ca}" }}
credential = "xmpp/fake"
nick = "demo-bridge"

[[conversation]]
name = "ops"
channels = [
  "msgr://channels/demo/bridge/irc/irc.demo/%23ops",
  "msgr://channels/demo/bridge/xmpp/ops@muc.localhost",
]
"""


@attrs.define
class Tally:
    """What was said, and where it arrived."""

    said: dict[int, tuple[float, str]] = attrs.field(factory=dict)
    """Number -> (when, by whom)."""
    heard: dict[str, dict[int, int]] = attrs.field(factory=dict)
    """Listener -> number -> how often."""
    order: dict[tuple[str, str], int] = attrs.field(factory=dict)
    """(listener, speaker) -> the last number that arrived."""
    latencies_ms: list[float] = attrs.field(factory=list)
    reordered: int = 0
    heard_more: trio.Event = attrs.field(factory=trio.Event)
    """Replaced at every arrival."""

    def hear(self, listener: str, text: str, now: float) -> tuple[str, float] | None:
        """Count one arrival; returns (speaker, latency in ms), None for what is no numbered line."""
        match = _TOKEN.search(text)
        if match is None or int(match[1]) not in self.said:
            return None
        number = int(match[1])
        said_at, speaker = self.said[number]
        if speaker == listener:
            return None
        self.heard_more.set()
        self.heard_more = trio.Event()
        counts = self.heard.setdefault(listener, {})
        counts[number] = counts.get(number, 0) + 1
        if counts[number] > 1:
            return speaker, (now - said_at) * 1000
        if number < self.order.get((listener, speaker), -1):
            self.reordered += 1
        self.order[listener, speaker] = number
        self.latencies_ms.append((now - said_at) * 1000)
        return speaker, self.latencies_ms[-1]

    def offered(self) -> int:
        """Each line is due at everyone but its speaker."""
        return sum(1 for _, speaker in self.said.values() for listener in PEOPLE if listener != speaker)

    def delivered(self) -> int:
        return sum(len(counts) for counts in self.heard.values())

    def duplicated(self) -> int:
        return sum(n - 1 for counts in self.heard.values() for n in counts.values())

    def quantile_ms(self, q: float) -> float | None:
        """Of the latencies, end to end."""
        ordered = sorted(self.latencies_ms)
        return round(ordered[min(len(ordered) - 1, int(q * len(ordered)))], 1) if ordered else None


PEOPLE = ("irene", "alice", "wes")
"""On IRC, on XMPP, at the WebSocket."""
_WHERE = {"irene": "irc", "alice": "xmpp", "wes": "websocket"}

Say = Callable[[str], Awaitable[object]]


class Screen:
    """Crossings as they happen: lines in a pipe, a table on a terminal, nothing with --json."""

    def __init__(self, *, as_json: bool) -> None:
        self._quiet = as_json
        self._live = not as_json and sys.stdout.isatty()
        self._rows: dict[tuple[str, str], tuple[int, float, str]] = {}
        self._drawn = 0
        self._shown_at = 0.0

    def note(self, text: str) -> None:
        if not self._quiet:
            print(text, flush=True)

    def crossing(self, speaker: str, listener: str, text: str, latency_ms: float, now: float) -> None:
        """One line arrived."""
        if self._quiet:
            return
        if not self._live:
            print(
                f"{speaker} ({_WHERE[speaker]}) -> {listener} ({_WHERE[listener]})  {latency_ms:6.1f} ms  {text}",
                flush=True,
            )
            return
        count, _, _ = self._rows.get((speaker, listener), (0, 0.0, ""))
        self._rows[speaker, listener] = count + 1, latency_ms, text
        if now - self._shown_at >= 0.1:
            self._shown_at = now
            self.draw()

    def draw(self) -> None:
        """The table anew, over the old one."""
        if not self._live or not self._rows:
            return
        width = shutil.get_terminal_size().columns
        head = f"{'from':<16}{'to':<16}{'lines':>6}{'last':>10}  text"
        lines = [head] + [
            f"{speaker + ' ' + _WHERE[speaker]:<16}{listener + ' ' + _WHERE[listener]:<16}{count:>6}{latency:>7.1f} ms  {text}"
            for (speaker, listener), (count, latency, text) in sorted(self._rows.items())
        ]
        if self._drawn:
            sys.stdout.write(f"\x1b[{self._drawn}A")
        sys.stdout.write("".join(f"\x1b[2K{line[: width - 1]}\n" for line in lines))
        sys.stdout.flush()
        self._drawn = len(lines)


@attrs.frozen(kw_only=True)
class Options:
    """What the command was told."""

    seconds: float
    rate: float
    dir: Path | None
    as_json: bool


class DemoError(BridgeError):
    """The demo could not be set up."""


async def run_demo(env: Env, options: Options) -> dict[str, Any]:
    """Set the scene, let people talk, count; returns the summary."""
    screen = Screen(as_json=options.as_json)
    tally = Tally()
    base = (
        options.dir.absolute() if options.dir is not None else Path(tempfile.mkdtemp(prefix="bridged-demo-"))
    )
    try:
        async with (
            open_irc_network(env, host="127.0.0.1") as irc,
            open_xmpp_server(env, host="127.0.0.1") as xmpp,
        ):
            config, password = await env.run_sync(_make, env, base, irc, xmpp)
            async with open_shard(env, config) as running:
                await _bring_up(env, config, running, password)
                screen.note(
                    f"three networks, one conversation; bridgectl --config {config.path} status works meanwhile"
                )
                await _talk(env, config, running, irc, xmpp, options, tally, screen)
        screen.draw()
        audit = await _verify_audit(env, config)
    finally:
        if options.dir is None:
            shutil.rmtree(base, ignore_errors=True)
    offered, delivered = tally.offered(), tally.delivered()
    return {
        "offered": offered,
        "delivered": delivered,
        "lost": offered - delivered,
        "duplicated": tally.duplicated(),
        "reordered": tally.reordered,
        "latency_ms": {"p50": tally.quantile_ms(0.5), "p99": tally.quantile_ms(0.99)},
        "audit": audit,
    }


def _make(env: Env, base: Path, irc: IrcNetwork, xmpp: XmppServer) -> tuple[Config, str]:
    """The shard's directory, and the bridge's account on the fake server."""
    base.mkdir(mode=0o700, parents=True, exist_ok=True)
    ca = xmpp.write_ca(base / "xmpp-ca.pem")
    password = env.token_bytes(12).hex()
    xmpp.add_user("bridge", password)
    text = CONFIG.format(
        state=base / "state",
        irc="{}:{}".format(*irc.address),
        xmpp="{}:{}".format(*xmpp.address),
        ca=ca,
    )
    make_shard(env.token_bytes, NAME, base / "shard.toml", base / "state", text)
    return load_config(base / "shard.toml"), password


async def _bring_up(env: Env, config: Config, running: Running, password: str) -> None:
    """Put the credential into the vault, and wait until both connectors carry."""
    key = load_key(config.path.parent / "keys" / f"{NAME}.key")
    async with open_client(
        env, str(config.endpoint), key.identity, server_public=key.server_public, shard=config.name
    ) as client:
        await ask(env, client, "vault", "put", {"credential": "xmpp/fake", "secret": password})
    with trio.move_on_after(UP_WITHIN_S) as scope:
        await running.supervisor.wait_running()
    if scope.cancelled_caught:
        states = ", ".join(f"{s.name} {s.state} {s.detail}" for s in running.supervisor.statuses())
        raise DemoError(f"the shard did not come up within {UP_WITHIN_S:g} s: {states}")


async def _talk(
    env: Env,
    config: Config,
    running: Running,
    irc: IrcNetwork,
    xmpp: XmppServer,
    options: Options,
    tally: Tally,
    screen: Screen,
) -> None:
    """People join, talk for so long, and wait for what is still on its way."""
    irene, alice = await irc.person("irene"), await xmpp.person("alice")
    await irene.join(CHANNEL)
    await alice.join(ROOM, "alice")
    token = (config.path.parent / "client.token").read_text().strip()

    def hear(listener: str, text: str) -> None:
        now = trio.current_time()
        found = tally.hear(listener, text, now)
        if found is not None:
            screen.crossing(found[0], listener, text, found[1], now)

    async def listen(listener: str, receive: Callable[[], Awaitable[Any]]) -> None:
        while True:
            hear(listener, (await receive()).text)

    async with _websocket(running, token) as socket, trio.open_nursery() as nursery:
        nursery.start_soon(listen, "irene", irene.receive)
        nursery.start_soon(listen, "alice", alice.receive)
        nursery.start_soon(_listen_websocket, socket, hear)
        says: dict[str, Say] = {
            "irene": lambda text: irene.say(CHANNEL, text),
            "alice": lambda text: alice.say(ROOM, text),
            "wes": lambda text: socket.send_message(
                json.dumps({"id": text, "op": "send", "conversation": "ops", "text": text})
            ),
        }
        await _offer(says, options, tally)
        with trio.move_on_after(DRAIN_S):
            while tally.delivered() < tally.offered():
                await tally.heard_more.wait()
            await trio.sleep(QUIET_S)
        nursery.cancel_scope.cancel()


async def _offer(says: dict[str, Say], options: Options, tally: Tally) -> None:
    """One line after the other, by turns, until the time is over or somebody interrupts."""
    begun = trio.current_time()
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async with trio.open_nursery() as nursery:

            async def stop_when_told() -> None:
                async for _ in signals:
                    nursery.cancel_scope.cancel()

            nursery.start_soon(stop_when_told)
            number = 0
            while trio.current_time() - begun < options.seconds:
                speaker = PEOPLE[number % len(PEOPLE)]
                tally.said[number] = trio.current_time(), speaker
                await says[speaker](f"{_LINES[number % len(_LINES)]} (no. {number:05d})")
                number += 1
                await trio.sleep_until(begun + number / options.rate)
            nursery.cancel_scope.cancel()


@asynccontextmanager
async def _websocket(running: Running, token: str) -> AsyncIterator[WebSocketConnection]:
    async with open_websocket_url(f"ws://127.0.0.1:{running.gateway_port()}/v1") as socket:
        await socket.send_message(json.dumps({"op": "hello", "token": token}))
        # an answer to a first question shows that the hello was taken: events from here on are ours
        await socket.send_message(json.dumps({"id": "hello", "op": "conversations"}))
        while json.loads(await socket.get_message()).get("id") != "hello":
            pass
        yield socket


async def _listen_websocket(socket: WebSocketConnection, hear: Callable[[str, str], None]) -> None:
    while True:
        try:
            frame = json.loads(await socket.get_message())
        except ConnectionClosed:
            return
        if frame.get("event") == "message":
            hear("wes", frame["text"])
        elif frame.get("ok") is False:
            raise DemoError(f"the gateway refused a line: {frame['error']['message']}")


async def _verify_audit(env: Env, config: Config) -> dict[str, Any]:
    """Read the whole audit log anew and hold it against its signed heads."""
    seed = seed_file(config.state / "keys" / f"audit-{NAME}.key", env.token_bytes)
    public, _ = bindings.crypto_sign_seed_keypair(seed.reveal())
    path = config.paths(NAME).audit
    async with open_database(env, path, migrations=audit_store.MIGRATIONS, read_only=True) as database:
        found = await database.read(lambda tx: audit_store.verify(tx, public))
    return {"size": found.size, "verified": True}


# -- the command ----------------------------------------------------------------------------------------------


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """`bridged demo [--seconds N] [--rate R] [--dir DIR] [--json]`"""
    parser.add_argument(
        "--seconds", type=_positive, default=SECONDS_DEFAULT, metavar="N", help="how long people talk"
    )
    parser.add_argument(
        "--rate", type=_positive, default=RATE_DEFAULT, metavar="R", help="lines a second, all together"
    )
    parser.add_argument("--dir", type=Path, metavar="DIR", help="make the shard there and keep it")
    parser.add_argument("--json", action="store_true", help="only the summary, as one JSON value")


def _positive(text: str) -> float:
    value = float(text)
    if not 0 < value < 1e6:
        raise argparse.ArgumentTypeError("a number above 0")
    return value


def main(args: argparse.Namespace) -> int:
    """Run the demo; 0 when nothing was lost, doubled or reordered."""
    env = system_env()
    telemetry.configure(wall=env.wall, level="error")
    options = Options(seconds=args.seconds, rate=args.rate, dir=args.dir, as_json=args.json)
    try:
        summary = trio.run(run_demo, env, options)
    except BaseExceptionGroup as group:
        known = group.subgroup((BridgeError, ShardsError))
        if known is None:
            raise
        exc: BaseException = known
        while isinstance(exc, BaseExceptionGroup):
            exc = exc.exceptions[0]
        print(f"bridged demo: {exc}", file=sys.stderr)
        return 1
    except (BridgeError, ShardsError) as exc:
        print(f"bridged demo: {exc}" + (f" ({exc.hint})" if exc.hint else ""), file=sys.stderr)
        return 1
    print(json.dumps(summary), flush=True)
    clean = not (summary["lost"] or summary["duplicated"] or summary["reordered"])
    return 0 if clean and summary["audit"]["verified"] else 1
