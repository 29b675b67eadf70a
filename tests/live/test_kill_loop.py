"""kill -9 under load, at chosen places: what was acknowledged arrives, nothing twice, and what is in doubt is said.

The networks are the shipped fakes in this process, over loopback TCP, so that a life takes about a second; the
daemon is the shipped one, in an environment whose fault points are deadly (`killable`).  A few lives on real
servers follow.  Each loop prints where its kills fell and what became of every line.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio

from bridged.peers.irc import open_irc_network
from bridged.peers.xmpp import open_xmpp_server
from shards.env import Env
from tests.live.people import CHANNEL, ROOM, WsPerson, ws_person
from tests.live.scene import IRC, XMPP, open_scene
from tests.live.shard import (
    Lives,
    LiveShard,
    conversation,
    irc_channel,
    irc_connector,
    open_live_shard,
    open_lives,
    xmpp_channel,
    xmpp_connector,
)
from tests.live.tally import Ear, line, token_of

pytestmark = [pytest.mark.live, pytest.mark.slow]

PLACES: dict[str, dict[str, int]] = {
    "publish": {"client.publish": 200, "client.published": 200},
    "commit": {"log.commit": 80, "log.committed": 80, "core.commit": 60, "core.committed": 60},
    "outbox": {"outbox.publish": 30, "outbox.published": 30, "outbox.forget": 12},
    "native call": {"irc.write": 12, "irc.written": 12, "delivery.announced": 16, "xmpp.heard": 12},
    "confirmation": {"delivery.conclude": 24, "delivery.concluded": 24},
}
"""Place -> its points, each with the highest visit at which a life may end there."""
KILLS = 20
RATE = 6.0
LIFE_S = 15.0
"""A life that does not come to its place is ended all the same, and does not count."""
DRAIN_S = 120.0
QUIET_S = 1.5

Token = tuple[str, int]
Record = Callable[[str, object], None]


@attrs.define(eq=False)
class Crowd:
    """Three people who talk all the while, and what each of them heard."""

    env: Env
    said: dict[Token, float] = attrs.field(factory=dict)
    """Accepted by the speaker's network or the gateway -> when, seconds since 1970."""
    ears: dict[str, Ear] = attrs.field(factory=lambda: {"irc": Ear(), "xmpp": Ear(), "ws": Ear()})
    talking: trio.CancelScope = attrs.field(factory=trio.CancelScope)

    def hear(self, listener: str, sender: str, text: str) -> None:
        self.ears[listener].hear(sender, text, trio.current_time())

    async def talk(self, speaker: str, say: Callable[[str], Any]) -> None:
        """Numbered lines, one after the other, until told to stop; a line that was begun is finished."""
        begun = trio.current_time()
        number = 0
        while not self.talking.cancel_called:
            at = self.env.wall()
            with trio.CancelScope(shield=True):
                await say(line(speaker, number))
            self.said[speaker, number] = at
            number += 1
            await trio.sleep_until(max(begun + number / RATE, trio.current_time() + 0.5 / RATE))

    def due(self, listener: str) -> list[Token]:
        """What a listener has to hear: all but their own network's."""
        own = {"irc": "i", "xmpp": "x", "ws": ""}[listener]
        return [token for token in self.said if token[0] != own]

    def missing(self, listener: str) -> list[Token]:
        return self.ears[listener].missing(self.due(listener))


@attrs.define
class Account:
    """What became of everything."""

    kills: Counter[str] = attrs.field(factory=Counter)
    """By the point at which they fell."""
    acked: int = 0
    unknown: int = 0
    gapped: int = 0
    """IRC lines that were said while nobody listened, each in a gap that was told."""
    lost: list[tuple[str, Token]] = attrs.field(factory=list)
    evidence: list[Any] = attrs.field(factory=list)
    """What the history says of what was lost."""
    doubled: list[tuple[str, Token]] = attrs.field(factory=list)
    reordered: list[tuple[str, Token]] = attrs.field(factory=list)

    def __str__(self) -> str:
        fell = ", ".join(f"{point} {count}" for point, count in sorted(self.kills.items()))
        return (
            f"kills {self.kills.total()} ({fell}); acked {self.acked}, unknown {self.unknown}, in a told gap"
            f" {self.gapped}, lost {len(self.lost)}, doubled {len(self.doubled)}, reordered {len(self.reordered)}"
        )


async def quiet(crowd: Crowd, deadline: float) -> None:
    """Until nothing has arrived anywhere for a while."""
    heard, since = -1, trio.current_time()
    while trio.current_time() < min(since + QUIET_S, deadline):
        now = sum(len(ear.heard) for ear in crowd.ears.values())
        if now != heard:
            heard, since = now, trio.current_time()
        await trio.sleep(0.1)


async def settle(crowd: Crowd, shard: LiveShard, account: Account) -> None:
    """Stop the talk, wait for what is on its way, and hold what was heard against what was said."""
    unknown: set[Token] = set()
    unsettled: list[Any] = []

    async def look() -> None:
        """What stands as `unknown`, and what has no good end yet."""
        nonlocal unknown, unsettled
        rows = [
            (token_of(row["text"] or ""), d) for row in await shard.history("ops") for d in row["deliveries"]
        ]
        doubt = [token for token, d in rows if d["state"] == "unknown" and "/irc/" in d["channel"]]
        unsettled = [row for row in rows if row[1]["state"] not in ("delivered", "unknown")]
        unsettled += [
            row for row in rows if row[1]["state"] == "unknown" and "/irc/" not in row[1]["channel"]
        ]
        unknown = {token for token in doubt if token is not None}
        account.unknown = len(doubt)

    def open_questions() -> list[tuple[str, Token]]:
        out = [("irc", token) for token in crowd.missing("irc") if token not in unknown]
        for listener in ("xmpp", "ws"):
            gaps = crowd.ears["xmpp"].gaps
            out += [
                (listener, token)
                for token in crowd.missing(listener)
                if token[0] != "i" or not any(gap.covers(crowd.said[token]) for gap in gaps)
            ]
        return out

    deadline = trio.current_time() + DRAIN_S
    while True:
        await quiet(crowd, deadline)
        await look()
        if not (open_questions() or unsettled) or trio.current_time() > deadline:
            break
        await trio.sleep(1)
    await quiet(crowd, trio.current_time() + DRAIN_S)  # what would come twice has come by then
    account.acked = len(crowd.said)
    account.lost = open_questions()
    account.evidence = [
        (row["trace_id"], row["text"], row["deliveries"])
        for row in await shard.history("ops")
        if token_of(row["text"] or "") in {token for _, token in account.lost}
    ]
    account.gapped = sum(1 for token in crowd.missing("xmpp") if token[0] == "i") - sum(
        1 for listener, token in account.lost if listener == "xmpp" and token[0] == "i"
    )
    for listener, ear in crowd.ears.items():
        account.doubled += [(listener, token) for token in ear.doubled()]
        account.reordered += [(listener, token) for token in ear.reordered()]
    assert not unsettled, f"no final state, or one that is not legal: {unsettled[:5]}"


def judge(account: Account, record_property: Record, name: str) -> None:
    record_property("counts", f"kill loop, {name}: {account}")
    assert account.lost == [] and account.doubled == [] and account.reordered == [], (
        f"{account}; lost {account.lost[:9]}, doubled {account.doubled[:9]}, reordered {account.reordered[:9]};"
        f" {account.evidence[:5]}"
    )
    assert account.unknown <= account.kills.total(), "more than one unknown line a kill"


@asynccontextmanager
async def fake_networks(env: Env, ports: int) -> AsyncIterator[tuple[LiveShard, Lives, Crowd, trio.Nursery]]:
    """Two fake networks, a shard between them in its first life, and three people talking."""
    async with AsyncExitStack() as stack:
        irc = await stack.enter_async_context(open_irc_network(env, host="127.0.0.1"))
        xmpp = await stack.enter_async_context(open_xmpp_server(env, host="127.0.0.1"))
        xmpp.add_user("bridge", "pw-bridge")
        irene, alice = await irc.person("irene"), await xmpp.person("alice")
        await irene.join(CHANNEL)
        await alice.join(ROOM, "alice")
        shard = await stack.enter_async_context(open_live_shard("", gateway_port=ports + 25))
        ca = xmpp.write_ca(shard.directory / "ca.pem")
        with shard.config.open("a") as file:
            file.write(irc_connector(irc.address) + xmpp_connector(xmpp.address, ca))
            file.write(conversation("ops", irc_channel(CHANNEL), xmpp_channel(ROOM)))
        lives = await stack.enter_async_context(open_lives(shard))
        crowd = Crowd(env)
        await lives.begin()
        await shard.ctl("vault", "put", XMPP, stdin="pw-bridge\n")
        await shard.wait_running(IRC, XMPP)
        wes: WsPerson = await stack.enter_async_context(ws_person(shard.gateway_port, shard.token))
        wes.patience_s = math.inf  # most lives end before an answer
        nursery = await stack.enter_async_context(trio.open_nursery())
        stack.callback(nursery.cancel_scope.cancel)

        async def listen(listener: str, receive: Callable[[], Any]) -> None:
            while True:
                heard = await receive()
                crowd.hear(listener, heard.sender, heard.text)

        def on_event(event: dict[str, Any]) -> None:
            if event["event"] == "message":
                crowd.hear("ws", event["sender"]["name"], event["text"])

        wes.on_event = on_event
        nursery.start_soon(listen, "irc", irene.receive)
        nursery.start_soon(listen, "xmpp", alice.receive)
        yield (
            shard,
            lives,
            crowd,
            nursery_with(
                nursery,
                crowd,
                {"i": lambda t: irene.say(CHANNEL, t), "x": lambda t: alice.say(ROOM, t), "w": wes.say},
            ),
        )


def nursery_with(nursery: trio.Nursery, crowd: Crowd, says: dict[str, Callable[[str], Any]]) -> trio.Nursery:
    """Let them talk."""
    for speaker, say in says.items():
        nursery.start_soon(crowd.talk, speaker, say)
    return nursery


def plan(place: str, dice: random.Random) -> Iterable[tuple[str, int]]:
    """(point, visit) for ever: the points by turns, the visits as the dice fall."""
    while True:
        for point, highest in PLACES[place].items():
            yield point, dice.randint(1, highest)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("place", PLACES)
async def test_kills_at_one_place(env: Env, ports: int, place: str, record_property: Record) -> None:
    account = Account()
    dice = random.Random(place)
    async with fake_networks(env, ports) as (shard, lives, crowd, _):
        await shard.kill()
        misses = 0
        for point, visit in plan(place, dice):
            await lives.begin(kill=(point, visit))
            with trio.move_on_after(LIFE_S):
                await shard.ended.wait()
            if not shard.ended.is_set():
                await shard.kill()
            fell = lives.fell_at()
            if fell is None:
                misses += 1
                assert misses < KILLS, f"{point} is not reached: {shard.log()[-2000:]}"
            account.kills[fell or "elsewhere"] += 1
            if account.kills.total() - account.kills["elsewhere"] >= KILLS:
                break
        await lives.begin()
        await shard.wait_running(IRC, XMPP)
        await trio.sleep(0.5)
        crowd.talking.cancel()
        await settle(crowd, shard, account)
    judge(account, record_property, place)


@pytest.mark.timeout(300)
async def test_kills_at_any_moment(env: Env, ports: int, record_property: Record) -> None:
    account = Account()
    dice = random.Random("any moment")
    async with fake_networks(env, ports) as (shard, lives, crowd, _):
        for _ in range(KILLS):
            await trio.sleep(dice.uniform(0, 1.5))
            await shard.kill()
            account.kills["any moment"] += 1
            await lives.begin()
        await shard.wait_running(IRC, XMPP)
        crowd.talking.cancel()
        await settle(crowd, shard, account)
    judge(account, record_property, "any moment")


@pytest.mark.timeout(420)
async def test_kills_on_real_servers(env: Env, tmp_path: Path, ports: int, record_property: Record) -> None:
    """One kill at each place, with InspIRCd and Prosody."""
    account = Account()
    dice = random.Random("real")
    async with open_scene(tmp_path, ports) as scene, open_lives(scene.shard) as lives:
        shard = scene.shard
        crowd = Crowd(env)
        scene.irene.hear = lambda sender, text: crowd.hear("irc", sender, text)
        scene.alice.hear = lambda sender, text: crowd.hear("xmpp", sender, text)
        async with ws_person(shard.gateway_port, shard.token) as wes, trio.open_nursery() as nursery:
            wes.on_event = lambda event: (
                crowd.hear("ws", event["sender"]["name"], event["text"])
                if event["event"] == "message"
                else None
            )
            nursery_with(nursery, crowd, {"i": scene.irene.say, "x": scene.alice.say, "w": wes.say})
            await trio.sleep(1)
            await shard.kill()
            account.kills["any moment"] += 1
            for place in PLACES:
                point, visit = next(iter(plan(place, dice)))
                await lives.begin(kill=(point, visit))
                with trio.move_on_after(2 * LIFE_S):
                    await shard.ended.wait()
                if not shard.ended.is_set():
                    await shard.kill()
                account.kills[lives.fell_at() or "elsewhere"] += 1
            await lives.begin()
            await shard.wait_running(IRC, XMPP)
            await trio.sleep(1)
            crowd.talking.cancel()
            await settle(crowd, shard, account)
            nursery.cancel_scope.cancel()
    judge(account, record_property, "real servers")
