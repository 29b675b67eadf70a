"""The IRC connector against a fake network that speaks as InspIRCd and as ngIRCd were seen to."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Literal

import attrs
import pytest
import trio

from bridged.connectors.desk import attend, fall_of
from bridged.connectors.irc.connector import IrcConnector
from bridged.connectors.irc.settings import Settings
from bridged.errors import BadCredentials, Banned, ConnectorError, Disconnected
from bridged.peers.irc import Heard, IrcNetwork, Person, open_irc_network

OPS = "msgr://channels/acme/bridge/irc/irc.lab/%23ops"
DEV = "msgr://channels/acme/bridge/irc/irc.lab/%23dev"
Flavour = Literal["inspircd", "ngircd"]
BOTH = pytest.mark.parametrize("flavour", ["inspircd", "ngircd"])
ME = "acme-bridge"


def settings(**changes: Any) -> Settings:
    values: dict[str, Any] = {
        "instance": "lab",
        "network": "irc.lab",
        "server": "irc.lab:6667",
        "tls": False,
        "nick": ME,
    }
    return Settings(**(values | changes))


@attrs.define
class World:
    """A network, a house, a connector, and someone to talk to."""

    kit: Any
    net: IrcNetwork
    irene: Person
    connector: IrcConnector
    falls: list[ConnectorError] = attrs.field(factory=list)
    _scope: trio.CancelScope = attrs.field(factory=trio.CancelScope)

    @property
    def house(self) -> Any:
        return self.kit.house

    async def run(self, *, task_status: Any = trio.TASK_STATUS_IGNORED) -> None:
        """One attempt; how it fell is noted."""
        with trio.CancelScope() as self._scope:
            try:
                await attend(
                    self.kit.env, self.connector, self.connector.settings, self.house, task_status=task_status
                )
            except (ConnectorError, BaseExceptionGroup) as exc:
                fall = fall_of(exc)
                if fall is None:
                    raise
                self.falls.append(fall)

    def stop(self) -> None:
        self._scope.cancel()

    async def hear(self) -> str:
        """The next line from the bridge."""
        return (await self.hear_line()).text

    async def hear_line(self) -> Heard:
        return await self.irene.receive_where(lambda heard: heard.sender == ME and heard.kind == "message")


@asynccontextmanager
async def world(
    kit: Any,
    flavour: Flavour = "inspircd",
    *,
    channels: tuple[str, ...] = (OPS,),
    options: dict[str, Any] | None = None,
    **changes: Any,
) -> AsyncIterator[World]:
    async with open_irc_network(kit.env, flavour=flavour, **(options or {})) as net:

        async def connect(host: str, port: int) -> trio.abc.Stream:
            await trio.lowlevel.checkpoint()
            return net.connect_memory()

        kit.env = attrs.evolve(kit.env, open_tcp_stream=connect)
        irene = await net.person("irene")
        await irene.join("#ops")
        yield World(kit, net, irene, IrcConnector(settings(**changes), channels))


@asynccontextmanager
async def running(kit: Any, flavour: Flavour = "inspircd", **more: Any) -> AsyncIterator[World]:
    async with world(kit, flavour, **more) as here, trio.open_nursery() as nursery:
        await nursery.start(here.run)
        yield here
        here.stop()


@BOTH
async def test_what_is_said_arrives_both_ways(autojump_clock: object, kit: Any, flavour: Flavour) -> None:
    async with running(kit, flavour) as here:
        await here.irene.say("#ops", "hi \x02there\x02")
        await here.house.wait(here.house.inbound)
        (payload,) = here.house.of("inbound_message")
        trace_id = here.house.intend(OPS, "hello")
        assert await here.house.final(trace_id) == "delivered"
        assert await here.hear() == "<ola> hello"
    assert payload["channel"] == OPS
    assert payload["sender"] == {"ref": "msgr://identity/bridges/irc/irc.lab/irene", "name": "irene"}
    assert (payload["text"], payload["html"]) == ("hi there", "hi <b>there</b>")
    assert payload["kind"] == "message" and payload["target"] == "#ops" and payload["network"] == "irc.lab"
    assert here.house.statuses(trace_id) == ["sent", "delivered"]
    assert [payload["text"] for payload in here.house.of("inbound_message")] == ["hi there"]
    assert any(line.startswith("QUIT") for line in here.net.lines(ME))


@BOTH
async def test_200_lines_pass_a_server_that_meters_one_a_second(
    autojump_clock: object, kit: Any, flavour: Flavour
) -> None:
    async with running(kit, flavour) as here:
        here.net.faults.meter(1.0, 10)
        for number in range(200):
            here.house.intend(OPS, f"line {number}")
        await here.house.wait(lambda: not here.house.pending, within_s=1000)
        assert not here.falls
        heard = [line.text for line in here.irene.heard_now() if line.sender == ME]
    assert heard == [f"<ola> line {number}" for number in range(200)]


async def test_a_confirmed_line_carries_the_networks_id(autojump_clock: object, kit: Any) -> None:
    async with running(kit) as here:
        trace_id = here.house.intend(OPS, "hello")
        await here.house.final(trace_id)
        heard = await here.irene.receive()
        final = here.house.of("delivery_status")[-1]
    assert final["remote_id"] == heard.line.tags["msgid"]


@BOTH
async def test_a_refusal_is_failed_with_the_servers_number(
    autojump_clock: object, kit: Any, flavour: Flavour
) -> None:
    async with running(kit, flavour) as here:
        here.net.faults.mode("#ops", "+m")
        refused = here.house.intend(OPS, "muted")
        assert await here.house.final(refused) == "failed"
        here.net.faults.mode("#ops", "-m")
        fine = here.house.intend(OPS, "heard")
        assert await here.house.final(fine) == "delivered"
        error = next(
            status["error"] for status in here.house.of("delivery_status") if status["status"] == "failed"
        )
    assert error["code"] == "forbidden" and error["native"] == "404"


@BOTH
async def test_after_a_reset_the_doubtful_line_is_unknown_and_the_rest_follows(
    autojump_clock: object, kit: Any, flavour: Flavour
) -> None:
    async with world(kit, flavour) as here, trio.open_nursery() as nursery:
        await nursery.start(here.run)
        here.net.faults.drop_next_reply(ME, then="reset")
        ids = [here.house.intend(OPS, f"line {number}") for number in range(3)]
        await here.house.wait(lambda: here.falls)
        await nursery.start(here.run)
        states = [await here.house.final(trace_id) for trace_id in ids]
        heard = [line.text for line in here.irene.heard_now() if line.sender == ME]
        here.stop()
    assert states.count("unknown") <= 1 and set(states) <= {"unknown", "delivered"}
    assert len(heard) == len(set(heard))
    for trace_id, state, number in zip(ids, states, range(3), strict=True):
        del trace_id
        if state == "delivered":
            assert f"<ola> line {number}" in heard


async def test_what_was_not_written_when_the_connection_ended_is_sent_by_the_next(
    autojump_clock: object, kit: Any
) -> None:
    async with world(kit) as here, trio.open_nursery() as nursery:
        await nursery.start(here.run)
        here.net.faults.reset(ME)
        await here.house.wait(lambda: here.falls)
        ids = [here.house.intend(OPS, f"line {number}") for number in range(20)]
        await trio.sleep(30)
        await nursery.start(here.run)
        assert [await here.house.final(trace_id) for trace_id in ids] == ["delivered"] * 20
        heard = [line.text for line in here.irene.heard_now() if line.sender == ME]
        here.stop()
    assert heard == [f"<ola> line {number}" for number in range(20)]


async def test_a_gap_is_told_with_both_times_and_its_reason(autojump_clock: object, kit: Any) -> None:
    async with world(kit) as here, trio.open_nursery() as nursery:
        await nursery.start(here.run)
        await here.irene.say("#ops", "before")
        await here.house.wait(here.house.inbound)
        before = here.house.of("inbound_message")[0]["timestamp"]
        assert not here.house.of("gap_event")
        await trio.sleep(50)
        here.net.faults.reset(ME)
        await here.house.wait(lambda: here.falls)
        await here.irene.say("#ops", "unheard")
        await trio.sleep(10)
        await nursery.start(here.run)
        await here.house.wait(lambda: here.house.of("gap_event"))
        (lost,) = here.house.of("gap_event")
        here.stop()
        await trio.sleep(100)
        here.connector = IrcConnector(settings(), (OPS,))  # another process: nothing is remembered
        await nursery.start(here.run)
        await here.house.wait(lambda: len(here.house.of("gap_event")) == 2)
        down = here.house.of("gap_event")[1]
        here.stop()
    assert (lost["channel"], lost["reason"]) == (OPS, "connection_lost")
    assert before < lost["from"] < lost["to"]
    assert down["reason"] == "daemon_down"
    assert before <= down["from"] < lost["to"] < down["to"]


async def test_the_first_time_in_a_channel_is_no_gap(autojump_clock: object, kit: Any) -> None:
    async with running(kit) as here:
        await here.irene.say("#ops", "hi")
        await here.house.wait(here.house.inbound)
        assert not here.house.of("gap_event")


async def test_a_half_open_connection_is_found_by_a_ping(autojump_clock: object, kit: Any) -> None:
    async with world(kit) as here, trio.open_nursery() as nursery:
        await nursery.start(here.run)
        here.net.faults.half_open(ME)
        began = trio.current_time()
        await here.house.wait(lambda: here.falls)
        assert trio.current_time() - began <= 62
        assert isinstance(here.falls[0], Disconnected) and "no sign of life" in str(here.falls[0])


async def test_a_slow_log_stalls_no_pong(autojump_clock: object, kit: Any) -> None:
    async with running(kit, options={"ping_s": 20.0}) as here:
        here.net.faults.delay(
            0.05
        )  # a server that answers in no time at all would not see our PONG come later
        here.house.publish_delay_s = 100.0
        for number in range(50):
            await here.irene.say("#ops", f"line {number}")
        await trio.sleep(400)
        assert not here.falls
        assert any(line.startswith("PONG") for line in here.net.lines(ME))
        here.house.publish_delay_s = 0.0
        await here.house.wait(lambda: len(here.house.inbound()) == 50)
    assert [text for _, text in here.house.inbound()] == [f"line {number}" for number in range(50)]


# -- login ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mechanism", ["PLAIN", "SCRAM-SHA-256"])
async def test_a_credential_is_a_login_before_anything_else(
    autojump_clock: object, kit: Any, mechanism: str
) -> None:
    kit.house.put("irc/lab", username="bridge", password="pw")
    async with world(kit, credential="irc/lab", options={"mechanisms": (mechanism,)}) as here:
        here.net.add_account("bridge", "pw")
        async with trio.open_nursery() as nursery:
            await nursery.start(here.run)
            lines = here.net.lines()
            here.stop()
    assert any(mechanism in line for line in lines)
    assert lines.index("CAP END") < next(n for n, line in enumerate(lines) if line.startswith("JOIN"))


async def test_a_wrong_password_stops_the_connector(autojump_clock: object, kit: Any) -> None:
    kit.house.put("irc/lab", username="bridge", password="wrong")
    async with world(kit, credential="irc/lab") as here:
        here.net.add_account("bridge", "pw")
        await here.run()
        assert isinstance(here.falls[0], BadCredentials)
        assert here.house.of("state_update")[-1]["state"] == "stopped"
        assert "wrong" not in here.house.of("state_update")[-1]["detail"].split("put")[0]


async def test_without_services_nobody_comes_online(autojump_clock: object, kit: Any) -> None:
    kit.house.put("irc/lab", username="bridge", password="pw")
    async with world(kit, credential="irc/lab") as here:
        here.net.add_account("bridge", "pw")
        here.net.faults.services(up=False)
        await here.run()
        assert isinstance(here.falls[0], Disconnected) and "services" in str(here.falls[0])
        assert not any(line.startswith("JOIN") for line in here.net.lines())
        here.net.faults.services(up=True)
        async with trio.open_nursery() as nursery:
            await nursery.start(here.run)
            here.stop()


async def test_a_ban_is_not_retried(autojump_clock: object, kit: Any) -> None:
    async with world(kit) as here, trio.open_nursery() as nursery:
        await nursery.start(here.run)
        here.net.faults.kline("*@*", "no bridges")
        await here.house.wait(lambda: here.falls)
        assert isinstance(here.falls[0], Banned)
        await here.run()
        assert isinstance(here.falls[1], Banned)


@BOTH
async def test_a_taken_nick_is_gone_around_and_taken_back(
    autojump_clock: object, kit: Any, flavour: Flavour
) -> None:
    async with world(kit, flavour, alt_nicks=("acme-alt",)) as here:
        ghost = await here.net.person(ME)
        async with trio.open_nursery() as nursery:
            await nursery.start(here.run)
            assert here.net.members("#ops") == ["irene", "acme-alt"]
            await ghost.quit()
            await here.net.wait_member("#ops", ME)
            trace_id = here.house.intend(OPS, "it is me")
            assert await here.house.final(trace_id) == "delivered"
            here.stop()


async def test_a_server_that_cannot_be_reached_is_disconnected(autojump_clock: object, kit: Any) -> None:
    async with world(kit) as here:

        async def refused(host: str, port: int) -> trio.abc.Stream:
            raise ConnectionRefusedError("refused")

        async def silent(host: str, port: int) -> trio.abc.Stream:
            await trio.sleep(math.inf)
            raise AssertionError

        for connect in (refused, silent):
            kit.env = attrs.evolve(kit.env, open_tcp_stream=connect)
            await here.run()
        assert all(isinstance(fall, Disconnected) and "irc.lab:6667" in str(fall) for fall in here.falls)
        assert len(here.falls) == 2


# -- channels ---------------------------------------------------------------------------------------------------


async def test_a_closed_channel_is_a_state_and_its_messages_fail_in_words(
    autojump_clock: object, kit: Any
) -> None:
    async with world(kit) as here:
        here.net.faults.mode("#ops", "+i")
        async with trio.open_nursery() as nursery:
            await nursery.start(here.run)
            assert "invite-only" in here.house.of("state_update")[-1]["detail"]
            trace_id = here.house.intend(OPS, "hi")
            assert await here.house.final(trace_id) == "failed"
            assert here.house.of("delivery_status")[-1]["error"]["native"] == "473"
            here.net.faults.mode("#ops", "-i")
            await here.net.wait_member("#ops", ME)
            await here.house.wait(lambda: "1 channels" in here.house.of("state_update")[-1]["detail"])
            here.stop()


async def test_a_kick_is_followed_by_a_polite_return_and_a_gap(autojump_clock: object, kit: Any) -> None:
    async with running(kit) as here:
        await here.irene.say("#ops", "hi")
        await here.house.wait(here.house.inbound)
        kicked_at = trio.current_time()
        here.net.faults.kick("#ops", ME)
        trace_id = here.house.intend(OPS, "still here")
        assert await here.house.final(trace_id) == "delivered"
        assert 4 < trio.current_time() - kicked_at < 8
        await here.house.wait(lambda: here.house.of("gap_event"))
        assert here.house.of("gap_event")[0]["reason"] == "connection_lost"


async def test_channels_come_and_go_while_connected(autojump_clock: object, kit: Any) -> None:
    async with running(kit) as here:
        here.connector.set_channels([OPS, DEV])
        await here.net.wait_member("#dev", ME)
        here.connector.set_channels([DEV])
        await here.house.wait(lambda: ME not in here.net.members("#ops"))
        trace_id = here.house.intend(DEV, "hi")
        assert await here.house.final(trace_id) == "delivered"


async def test_two_channels_do_not_wait_for_each_other(autojump_clock: object, kit: Any) -> None:
    async with running(kit, channels=(OPS,)) as here:
        await here.irene.join("#dev")
        here.connector.set_channels([OPS, DEV])
        here.net.faults.mode("#dev", "+m")
        for number in range(5):
            here.house.intend(OPS, f"o{number}")
            here.house.intend(DEV, f"d{number}", conversation="dev")
        await here.house.wait(lambda: not here.house.pending)
        statuses = [status["status"] for status in here.house.of("delivery_status")]
    assert statuses.count("delivered") == 5 and statuses.count("failed") == 5


async def test_a_netsplit_is_one_event_and_who_returns_never_left(autojump_clock: object, kit: Any) -> None:
    async with running(kit, options={"servers": 2}) as here:
        bob = await here.net.person("bob", server=1)
        await bob.join("#ops")
        await trio.sleep(1)
        here.net.faults.split()
        await trio.sleep(10)
        here.net.faults.heal()
        await trio.sleep(100)
        changes = [
            (change["change"], change.get("names") or [change["member"]["name"]])
            for change in here.house.of("membership")
            if change["change"] != "snapshot"
        ]
    assert changes == [("join", ["bob"]), ("split", ["bob"]), ("rejoin", ["bob"])]


async def test_a_reaction_a_reply_and_typing_cross(autojump_clock: object, kit: Any) -> None:
    async with running(kit) as here:
        first = await here.irene.say("#ops", "first")
        await here.irene.say("#ops", "second", reply_to=first)
        await here.irene.react("#ops", first, "👍")
        await here.irene.typing("#ops")
        await here.house.wait(lambda: here.house.of("reaction_event") and here.house.passing)
        replied = here.house.of("inbound_message")[1]
        (reaction,) = here.house.of("reaction_event")
        trace_id = here.house.intend(
            OPS,
            "third",
            reply_to={"message_id": "m", "remote_id": first, "name": "irene", "text": "first"},
        )
        await here.house.final(trace_id)
        heard = await here.hear_line()
    assert replied["reply_to"] == first == reaction["remote_id"]
    assert reaction["emojis"] == ["👍"]
    assert here.house.passing[0].payload["typing"] is True
    assert heard.text == '<ola> ↪ irene: "first" third'
    assert heard.line.tags["+draft/reply"] == first


async def test_a_long_text_arrives_whole_in_few_lines(autojump_clock: object, kit: Any) -> None:
    text = " ".join(f"word{number:04d}" for number in range(167))[:1499]
    async with running(kit) as here:
        trace_id = here.house.intend(OPS, text)
        assert await here.house.final(trace_id) == "delivered"
        heard = [line.text for line in here.irene.heard_now() if line.sender == ME]
        parts = here.house.of("delivery_status")[-1]["parts"]
    assert " ".join(line.removeprefix("<ola> ") for line in heard) == text
    assert len(heard) == len(parts) == 4


@pytest.mark.parametrize(
    "data", [b"\xff\xfe\x00\r\n", b":\r\n@ \r\n::: :\r\n", b"BATCH -x\r\nCAP\r\n001\r\n"]
)
async def test_garbage_is_passed_over(autojump_clock: object, kit: Any, data: bytes) -> None:
    async with running(kit) as here:
        here.net.faults.garbage(data, ME)
        trace_id = here.house.intend(OPS, "still here")
        assert await here.house.final(trace_id) == "delivered"
        assert not here.falls


async def test_a_line_without_end_is_the_servers_fault(autojump_clock: object, kit: Any) -> None:
    async with world(kit) as here, trio.open_nursery() as nursery:
        await nursery.start(here.run)
        here.net.faults.garbage(b"x" * 20_000, ME)
        await here.house.wait(lambda: here.falls)
        assert "a line of more than" in str(here.falls[0])


async def test_a_person_can_ask_for_our_version_and_nothing_else(autojump_clock: object, kit: Any) -> None:
    async with running(kit) as here:
        here.irene.send("PRIVMSG", ME, "\x01VERSION\x01")
        here.irene.send("PRIVMSG", "#ops", "\x01VERSION\x01")
        await trio.sleep(1)
        notices = [line for line in here.net.lines(ME) if line.startswith("NOTICE")]
    assert len(notices) == 1 and notices[0].startswith("NOTICE irene ")
    assert not here.house.inbound()
