"""What every rival fails: a server, or the bridge itself, away for twenty seconds, and a server that meters.

Lines are said at 5 a second all the while.  Times are measured, never slept and hoped for: who waits, waits for the
event itself under a generous deadline.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import trio

from tests.live.people import ROOM, room_archive
from tests.live.scene import IRC, XMPP, Scene, open_scene
from tests.live.tally import Ear, Gap, line, token_of
from tests.live.tap import open_tap

pytestmark = [pytest.mark.live, pytest.mark.slow]

RATE = 5
AWAY_S = 20.0
AFTER_S = 16.0
RECONNECT_S = 5.0
DRAIN_S = 10.0
PATIENCE_S = 120.0
BUSY_S = 2.0
"""What a loaded machine may add to a promise in seconds."""

Record = Callable[[str, object], None]
Say = Callable[[str], Awaitable[bool]]


class Talker:
    """Says numbered lines at a steady rate; counts those that could be said."""

    def __init__(self, speaker: str, say: Say) -> None:
        self.speaker = speaker
        self.said: dict[tuple[str, int], float] = {}
        """Token -> when, on Trio's clock."""
        self._say = say
        self._number = 0

    async def run(self, count: int | None = None) -> None:
        begun = trio.current_time()
        step = 0
        while count is None or step < count:
            now = trio.current_time()
            if await self._say(line(self.speaker, self._number)):
                self.said[self.speaker, self._number] = now
            self._number += 1
            step += 1
            await trio.sleep_until(begun + step / RATE)


async def until(done: Callable[[], bool], within_s: float = PATIENCE_S) -> None:
    """Wait for it; who does not come by then is counted by the caller."""
    with trio.move_on_after(within_s):
        while not done():
            await trio.sleep(0.05)


def check(ear: Ear, said: dict[tuple[str, int], float]) -> None:
    """Nothing lost, doubled or reordered."""
    assert ear.missing(said) == [], f"lost {len(ear.missing(said))} of {len(said)}"
    assert ear.doubled() == []
    assert ear.reordered() == []


async def talk_while(scene: Scene, talkers: list[Talker], happens: Callable[[], Awaitable[None]]) -> None:
    async with trio.open_nursery() as nursery:
        for talker in talkers:
            nursery.start_soon(talker.run)
        await trio.sleep(2)
        await happens()
        await trio.sleep(AFTER_S)
        nursery.cancel_scope.cancel()


@pytest.mark.timeout(420)
async def test_the_irc_server_is_away(tmp_path: Path, ports: int, record_property: Record) -> None:
    async with open_scene(tmp_path, ports) as scene:
        talker = Talker("x", scene.alice.say)
        back_at = here_at = 0.0

        async def away() -> None:
            nonlocal back_at, here_at
            await scene.irc.kill()
            await trio.sleep(AWAY_S)
            await scene.irc.start()
            back_at = trio.current_time()
            assert scene.irene.person is None or not scene.said_on_irc
            await scene.irene.present()
            here_at = trio.current_time()

        await talk_while(scene, [talker], away)
        await until(lambda: not scene.on_irc.missing(talker.said))
        assert "acme-bridge" not in " ".join(scene.irene.found_there[-1]), (
            "the bridge was faster than the reader"
        )
        check(scene.on_irc, talker.said)
        held = [token for token, at in talker.said.items() if at < back_at]
        assert len(held) >= AWAY_S * RATE
        first = min(scene.on_irc.times[token] for token in held if scene.on_irc.times[token] > here_at - 1)
        assert first - back_at <= RECONNECT_S + BUSY_S, f"reconnected after {first - back_at:.1f} s"
        last = max(scene.on_irc.times[token] for token in held)
        assert last - back_at <= RECONNECT_S + DRAIN_S + BUSY_S, f"the backlog took {last - back_at:.1f} s"
        record_property(
            "counts",
            f"IRC away {AWAY_S:.0f} s: {len(talker.said)} said, 0 lost; back {first - back_at:.1f}, out {last - back_at:.1f} s",
        )
        await scene.carries("afterwards")


@pytest.mark.timeout(420)
async def test_the_xmpp_server_is_away(tmp_path: Path, ports: int, record_property: Record) -> None:
    async with open_scene(tmp_path, ports) as scene:
        talker = Talker("i", scene.irene.say)
        back_at = 0.0
        back_wall = 0.0
        clock = scene_clock()

        async def away() -> None:
            nonlocal back_at, back_wall
            await scene.xmpp.kill()
            await trio.sleep(AWAY_S)
            await scene.xmpp.start()
            back_at, back_wall = trio.current_time(), clock()

        await talk_while(scene, [talker], away)
        ear = Ear()

        async def read() -> None:
            ear.__init__()  # type: ignore[misc]
            for archived in await room_archive(scene.xmpp.address, scene.xmpp.ca, room=ROOM):
                ear.hear(archived.nick, archived.text, archived.at)

        with trio.move_on_after(PATIENCE_S):
            while True:
                await read()
                if not ear.missing(talker.said):
                    break
                await trio.sleep(1)
        check(ear, talker.said)
        held = [token for token, at in talker.said.items() if at < back_at]
        assert len(held) >= AWAY_S * RATE
        late = sorted(ear.times[token] - back_wall for token in held if ear.times[token] >= back_wall - 1)
        assert late[0] <= RECONNECT_S + BUSY_S, f"reconnected after {late[0]:.1f} s"
        assert late[-1] <= RECONNECT_S + DRAIN_S + BUSY_S, f"the backlog took {late[-1]:.1f} s"
        record_property(
            "counts",
            f"XMPP away {AWAY_S:.0f} s: {len(talker.said)} said, 0 lost; back {late[0]:.1f}, out {late[-1]:.1f} s",
        )


@pytest.mark.timeout(420)
async def test_the_bridge_is_away(tmp_path: Path, ports: int, record_property: Record) -> None:
    async with open_scene(tmp_path, ports) as scene:
        from_irc, from_xmpp = Talker("i", scene.irene.say), Talker("x", scene.alice.say)
        clock = scene_clock()
        offset = clock() - trio.current_time()
        gone = back = 0.0

        async def away() -> None:
            nonlocal gone, back
            gone = clock()
            assert await scene.shard.stop() == 0
            await trio.sleep(AWAY_S)
            await scene.shard.start()
            await scene.shard.wait_running(IRC, XMPP)
            back = clock()

        await talk_while(scene, [from_irc, from_xmpp], away)
        await until(lambda: not scene.on_irc.missing(from_xmpp.said))
        check(scene.on_irc, from_xmpp.said)
        last = max(from_irc.said)
        await until(lambda: last in scene.on_xmpp.heard)
        gaps = scene.on_xmpp.gaps
        assert gaps, f"no gap was told; heard {scene.said_on_xmpp[-5:]}"
        assert scene.on_xmpp.doubled() == [] and scene.on_xmpp.reordered() == []
        missing = scene.on_xmpp.missing(from_irc.said)
        for token in missing:
            assert any(gap.covers(from_irc.said[token] + offset) for gap in gaps), f"{token} is in no gap"
        assert len(missing) <= (back - gone + 1) * RATE
        (gap,) = gaps
        assert gone - 2 <= gap.begin <= gone + 3 and gap.end <= back + 1, (gap, gone, back)
        told = [text for _, text in scene.said_on_xmpp if "Gap" in text]
        assert not any(token_of(text) for text in told), "a gap notice quotes no text"
        assert not scene.on_irc.gaps, "nothing of XMPP was missed"
        record_property(
            "counts",
            f"bridge away {AWAY_S:.0f} s: of {len(from_xmpp.said)} from XMPP 0 lost; gap {_shown(gap)}, {len(missing)} in it",
        )


@pytest.mark.timeout(600)
async def test_two_hundred_lines_through_a_meter(tmp_path: Path, ports: int, record_property: Record) -> None:
    """About one line a second gets through; 200 come at 5 a second; all arrive, and PONG waits for none of them."""
    count = 200
    async with open_tap(("127.0.0.1", ports + 6), ports + 27) as tap:
        async with open_scene(tmp_path, ports, metered=True, irc_address=tap.address) as scene:
            talker = Talker("x", scene.alice.say)
            connections = tap.connections
            await talker.run(count)
            for number in range(5):  # in the middle of the queue
                await tap.inject(f"PING :sign-{number}")
                await trio.sleep(2)
            assert len(scene.on_irc.heard) < count - 20, "nothing is queued any more"
            await until(lambda: len(scene.on_irc.heard) >= count, 420)
            check(scene.on_irc, talker.said)
            took = max(scene.on_irc.times.values()) - min(talker.said.values())
            assert took > count * 0.6, "there is no meter"
            assert tap.connections == connections, "the server cut us off"
            pongs = {
                pong.text.rpartition(" ")[2].lstrip(":"): pong.at
                for pong in tap.lines(from_bridge=True, word="PONG")
            }
            for ping in tap.lines(from_bridge=False, word="PING"):
                token = ping.text.rpartition(" ")[2].lstrip(":")
                assert token in pongs, f"{ping.text} was not answered"
                waited = pongs[token] - ping.at
                assert waited < 1 + BUSY_S, f"our PONG waited {waited:.1f} s behind the queue"
            unconfirmed = _most_unconfirmed(scene, tap.lines(from_bridge=True, word="PRIVMSG"))
            assert unconfirmed <= 4, f"{unconfirmed} lines stood in the server's queue"
            record_property(
                "counts", f"meter: {count} of {count} in {took:.0f} s, {len(pongs)} PINGs answered at once"
            )


@pytest.mark.timeout(420)
async def test_the_queue_of_a_metered_server_survives_kill_9(
    tmp_path: Path, ports: int, record_property: Record
) -> None:
    count = 80
    async with open_scene(tmp_path, ports, metered=True) as scene:
        talker = Talker("x", scene.alice.say)
        await talker.run(count)
        await until(lambda: len(scene.on_irc.heard) >= 30)
        assert len(scene.on_irc.heard) < count - 10, "nothing is queued any more"
        await scene.shard.kill()
        await scene.shard.start()

        async def unknown() -> set[tuple[str, int]]:
            out = set()
            for row in await scene.shard.history("ops"):
                token = token_of(row["text"] or "")
                if token and any(
                    d["state"] == "unknown" and "/irc/" in d["channel"] for d in row["deliveries"]
                ):
                    out.add(token)
            return out

        await until(
            lambda: (
                len(scene.on_irc.missing(talker.said)) <= 1
                and (talker.speaker, count - 1) in scene.on_irc.heard
            ),
            240,
        )
        await scene.carries("afterwards")
        missing = scene.on_irc.missing(talker.said)
        assert len(missing) <= 1 and set(missing) <= await unknown(), missing
        assert scene.on_irc.doubled() == [] and scene.on_irc.reordered() == []
        record_property(
            "counts", f"meter and kill: {count - len(missing)} of {count} arrived, {len(missing)} unknown"
        )


def _most_unconfirmed(scene: Scene, written: list) -> int:  # type: ignore[type-arg]
    """How many lines were, at most, written by the bridge and not yet read by irene."""
    sent = sorted(
        (crossing.at, token) for crossing in written if (token := token_of(crossing.text)) is not None
    )
    return max(
        sum(1 for at, other in sent if at <= now and scene.on_irc.times[other] > now) for now, _ in sent
    )


def scene_clock() -> Callable[[], float]:
    """The wall clock, for what is compared with times that people read."""
    from shards import system_env

    return system_env().wall


def _shown(gap: Gap) -> str:
    return f"{gap.end - gap.begin:.0f} s"
