"""Every fault of the panel, and what IRCv3 has and no real server here: checked against the specifications."""

from __future__ import annotations

import pytest
import trio

from bridged.peers.irc import open_irc_network
from shards.env import Env
from tests.bridged.peers.irc.test_network import FULL, Client, joined


async def test_duplicate_reorder_delay_and_garbage(env: Env, autojump_clock: object) -> None:
    async with open_irc_network(env) as net, joined(net, "bridge") as client:
        irene = await net.person("irene")
        await irene.join("#ops")
        net.faults.duplicate("bridge")
        await irene.say("#ops", "twice")
        first, second = await client.until("PRIVMSG"), await client.until("PRIVMSG")
        assert first.tags["msgid"] == second.tags["msgid"]
        net.faults.reorder("bridge", 3)
        for text in "abc":
            await irene.say("#ops", text)
        assert [(await client.until("PRIVMSG")).params[-1] for _ in range(3)] == ["c", "b", "a"]
        net.faults.delay(5.0, "bridge")
        said_at = trio.current_time()
        await irene.say("#ops", "late")
        await client.until("PRIVMSG")
        assert trio.current_time() - said_at == pytest.approx(5)
        net.faults.garbage(b"\xff\xfe:::\0 @@@\r\n\r\n", "bridge")
        await irene.say("#ops", "after")
        await client.until("PRIVMSG")


async def test_half_open_and_the_ping_time_out(env: Env, autojump_clock: object) -> None:
    async with open_irc_network(env, ping_s=60) as net, joined(net, "bridge") as client:
        irene = await net.person("irene")
        await irene.join("#ops")
        net.faults.half_open("bridge")
        await client.send("PRIVMSG #ops :does it arrive?")
        left = await irene.receive({"quit"})
        assert left.text == "Ping timeout: 60 seconds"
        assert irene.heard_now() == []


async def test_kick_ban_kill_kline_and_pardon(env: Env, autojump_clock: object) -> None:
    async with open_irc_network(env) as net, joined(net, "bridge") as client:
        net.faults.kick("#ops", "bridge", "out")
        assert (await client.until("KICK")).params == ("#ops", "bridge", "out")
        irene = await net.person("irene")
        await irene.join("#ops")
        net.faults.ban("#ops", "bridge!*@*")
        await client.send("JOIN #ops")
        await client.until("474")
        net.faults.kline("bridge@*", "no more")
        await client.until("465")
        await client.until("ERROR")
        refused = Client(net.connect_memory())
        await refused.send("NICK bridge", "USER bridge 0 * :b")
        await refused.until("465")
        net.faults.pardon()
        again = Client(net.connect_memory())
        await again.register("bridge")
        net.faults.kill("bridge")
        await again.until("KILL")


async def test_services_die_and_capabilities_come_and_go(env: Env, autojump_clock: object) -> None:
    async with open_irc_network(env) as net:
        net.add_account("bridge", "pw")
        client = Client(net.connect_memory())
        await client.send("NICK bridge", "CAP LS 302")
        assert "sasl=PLAIN,EXTERNAL" in (await client.until("CAP")).params[-1]
        net.faults.services(up=False)
        await client.send("CAP LS 302")
        assert "sasl" not in (await client.until("CAP")).params[-1]
        await client.send("CAP REQ :sasl", "AUTHENTICATE PLAIN")
        with trio.move_on_after(20) as scope:
            await client.until("AUTHENTICATE")
        assert scope.cancelled_caught
        net.faults.capability("echo-message", gone=True)
        while (gone := await client.until("CAP")).params[1] != "DEL":
            pass
        assert gone.params[-1] == "echo-message"


async def test_a_forced_nick_and_a_new_host(env: Env, autojump_clock: object) -> None:
    async with open_irc_network(env) as net, joined(net, "bridge", caps=FULL + " chghost") as client:
        net.faults.rename("bridge", "bridge_")
        assert (await client.until("NICK")).params == ("bridge_",)
        net.faults.change_host("bridge_", "cloak.example")
        assert (await client.until("CHGHOST")).params == ("bridge", "cloak.example")
        assert (await client.until("396")).params[1] == "cloak.example"


async def test_a_flood_arrives_whole(env: Env, autojump_clock: object) -> None:
    async with open_irc_network(env) as net, joined(net, "bridge") as client:
        net.faults.flood("bridge", "#ops", 500)
        for number in range(500):
            assert (await client.until("PRIVMSG")).params[-1].startswith(f"{number:05}")


async def test_a_multiline_message_is_one_batch_for_those_who_speak_it(
    env: Env, autojump_clock: object
) -> None:
    extra = ("draft/multiline",)
    caps = FULL + " draft/multiline"
    async with (
        open_irc_network(env, extra_capabilities=extra) as net,
        joined(net, "alice", caps=caps) as alice,
        joined(net, "bob", caps=caps) as bob,
        joined(net, "carol", caps="message-tags") as carol,
    ):
        await alice.send(
            "@label=m1 BATCH +123 draft/multiline #ops",
            "@batch=123 PRIVMSG #ops :hello",
            "@batch=123 PRIVMSG #ops :",
            "@batch=123 PRIVMSG #ops :how is ",
            "@batch=123;draft/multiline-concat PRIVMSG #ops :everyone?",
            "BATCH -123",
        )
        opening = await bob.until("BATCH")
        assert opening.params[1:] == ("draft/multiline", "#ops")
        lines = [await bob.line() for _ in range(4)]
        assert [line.params[-1] for line in lines] == ["hello", "", "how is ", "everyone?"]
        assert all(line.tags["batch"] == opening.params[0][1:] for line in lines)
        assert "draft/multiline-concat" in lines[3].tags
        assert (await bob.line()).params == (f"-{opening.params[0][1:]}",)
        plain = [await carol.until("PRIVMSG") for _ in range(3)]
        assert [line.params[-1] for line in plain] == ["hello", "how is ", "everyone?"]
        assert plain[0].tags["msgid"] == opening.tags["msgid"]
        echo = await alice.until("BATCH")
        assert echo.tags["msgid"] == opening.tags["msgid"]


async def test_chathistory_answers_in_a_batch(env: Env, autojump_clock: object) -> None:
    extra = ("draft/chathistory",)
    async with open_irc_network(env, extra_capabilities=extra) as net:
        irene = await net.person("irene")
        await irene.join("#ops")
        ids = []
        for number in range(10):
            await trio.sleep(1)
            ids.append(await irene.say("#ops", str(number)))
        async with joined(net, "bridge", caps=FULL + " draft/chathistory") as client:

            async def ask(words: str) -> list[str]:
                await client.send(f"CHATHISTORY {words}")
                opening = await client.until("BATCH")
                assert opening.params[1:] == ("chathistory", "#ops")
                found = []
                while (line := await client.line()).command == "PRIVMSG":
                    assert line.tags["batch"] == opening.params[0][1:]
                    found.append(line.params[-1])
                return found

            assert await ask("LATEST #ops * 3") == ["7", "8", "9"]
            assert await ask(f"LATEST #ops msgid={ids[6]} 50") == ["7", "8", "9"]
            assert await ask(f"BEFORE #ops msgid={ids[3]} 2") == ["1", "2"]
            assert await ask(f"AFTER #ops msgid={ids[3]} 2") == ["4", "5"]
            assert await ask(f"BETWEEN #ops msgid={ids[2]} msgid={ids[5]} 10") == ["3", "4"]
            assert await ask(f"AROUND #ops msgid={ids[5]} 4") == ["3", "4", "5", "6"]
            await client.send("CHATHISTORY LATEST #ops msgid=nosuch 5")
            assert (await client.until("FAIL")).params[:2] == ("CHATHISTORY", "INVALID_PARAMS")
