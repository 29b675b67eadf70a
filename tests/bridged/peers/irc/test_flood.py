"""Flood control and full queues, as recorded in `flood`: on virtual time, and on sockets where buffers matter."""

from __future__ import annotations

import pytest
import trio

from bridged.peers.irc import IrcNetwork, open_irc_network
from shards.env import Env


async def register(net: IrcNetwork, nick: str) -> trio.abc.Stream:
    stream = net.connect_memory()
    await stream.send_all(f"NICK {nick}\r\nUSER {nick} 0 * :{nick}\r\nJOIN #room\r\nPING :there\r\n".encode())
    await net.wait_line(lambda entry: entry.nick == nick and entry.text.endswith(":there"))
    return stream


async def test_fakelag_passes_ten_then_one_a_second_and_forgives_at_one_a_second(
    env: Env, autojump_clock: object
) -> None:
    async with open_irc_network(env) as net:
        stream = await register(net, "alice")
        bob = await net.person("bob")
        await bob.join("#room")
        net.faults.meter(1.0, 10)
        await trio.sleep(20)
        start = trio.current_time()
        await stream.send_all(b"".join(b"PRIVMSG #room :%d\r\n" % n for n in range(15)))
        times = []
        for _ in range(15):
            await bob.receive()
            times.append(trio.current_time() - start)
        assert times[:10] == [0] * 10
        assert [round(t) for t in times[10:]] == [1, 2, 3, 4, 5]


async def test_a_full_receive_queue_ends_the_connection(env: Env, autojump_clock: object) -> None:
    async with open_irc_network(env) as net:
        stream = await register(net, "alice")
        bob = await net.person("bob")
        await bob.join("#room")
        net.faults.meter(1.0, 10)
        await stream.send_all(b"".join(b"PRIVMSG #room :%0400d\r\n" % n for n in range(180)))
        quit_ = await bob.receive({"quit"})
        assert quit_.text == "RecvQ exceeded"
        assert any("[RecvQ exceeded]" in line for line in net.lines(direction="out"))


async def test_excess_flood(env: Env, autojump_clock: object) -> None:
    async with open_irc_network(env, excess_flood=True) as net:
        stream = await register(net, "alice")
        bob = await net.person("bob")
        await bob.join("#room")
        net.faults.meter(1.0, 10)
        await stream.send_all(b"".join(b"PRIVMSG #room :%d\r\n" % n for n in range(30)))
        assert (await bob.receive({"quit"})).text == "Excess Flood"
        assert len(bob.heard_now()) == 10


async def test_ngircd_leaves_the_rest_in_the_socket(env: Env, autojump_clock: object) -> None:
    async with open_irc_network(env, flavour="ngircd") as net:
        stream = await register(net, "alice")
        bob = await net.person("bob")
        await bob.join("#room")
        net.faults.meter(3.0, 5)
        await stream.send_all(b"".join(b"PRIVMSG #room :%0400d\r\n" % n for n in range(300)))
        texts = [(await bob.receive()).text for _ in range(300)]
        assert [int(text) for text in texts] == list(range(300))


async def test_a_client_that_does_not_read_is_dropped_without_a_word(env: Env) -> None:
    async with open_irc_network(env, host="127.0.0.1", sendq_bytes=65_536) as net:
        stream = await trio.open_tcp_stream(*net.address)
        await stream.send_all(b"NICK alice\r\nUSER alice 0 * :a\r\nJOIN #room\r\n")
        await net.wait_member("#room", "alice")
        bob = await net.person("bob")
        await bob.join("#room")
        for number in range(20_000):
            await bob.say("#room", f"{number:0400}")
            if number % 100 == 0 and bob.heard_now({"quit"}):
                break
        else:
            pytest.fail("never dropped")
        seen = b""
        try:
            while data := await stream.receive_some():
                seen += data
        except trio.BrokenResourceError:
            pass
        assert b"ERROR" not in seen
        await stream.aclose()
