"""The fake network as a client meets it: over memory streams, on a virtual clock."""

from __future__ import annotations

import base64
import hashlib
import hmac
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio

from bridged.peers.authority import Authority
from bridged.peers.irc import IrcNetwork, open_irc_network
from bridged.peers.irc.line import Line, parse
from shards.env import Env

FULL = "account-tag batch echo-message labeled-response message-tags server-time"


class Client:
    """A raw client: bytes out, lines in."""

    def __init__(self, stream: trio.abc.Stream) -> None:
        self.stream = stream
        self.buffer = b""
        self.lines: list[Line] = []

    async def send(self, *lines: str) -> None:
        await self.stream.send_all(
            "".join(f"{line}\r\n" for line in lines).encode("utf-8", "surrogateescape")
        )

    async def line(self) -> Line:
        while b"\n" not in self.buffer:
            data = await self.stream.receive_some(4096)
            if not data:
                raise EOFError
            self.buffer += data
        raw, _, self.buffer = self.buffer.partition(b"\n")
        found = parse(raw.rstrip(b"\r"))
        return found if found is not None else await self.line()

    async def until(self, command: str) -> Line:
        while True:
            found = await self.line()
            self.lines.append(found)
            if found.command == command:
                return found

    async def register(self, nick: str, caps: str = FULL) -> None:
        await self.send("CAP LS 302", f"NICK {nick}", f"USER {nick} 0 * :{nick} real")
        if caps:
            await self.send(f"CAP REQ :{caps}")
        await self.send("CAP END")
        await self.until("376")


@asynccontextmanager
async def joined(
    net: IrcNetwork, nick: str, channel: str = "#ops", caps: str = FULL
) -> AsyncIterator[Client]:
    client = Client(net.connect_memory())
    await client.register(nick, caps)
    await client.send(f"JOIN {channel}")
    await client.until("366")
    try:
        yield client
    finally:
        await trio.aclose_forcefully(client.stream)


async def test_a_person_and_a_client_hear_each_other(env: Env, autojump_clock: object) -> None:
    async with open_irc_network(env) as net, joined(net, "bridge") as client:
        irene = await net.person("irene")
        await irene.join("#ops")
        said = await irene.say("#ops", "hi")
        heard = await client.until("PRIVMSG")
        assert (heard.nick, heard.params, heard.tags["msgid"]) == ("irene", ("#ops", "hi"), said)
        await client.send("@label=x PRIVMSG #ops :hello")
        echo = await client.until("PRIVMSG")
        answer = await irene.receive()
        assert (answer.sender, answer.text, answer.kind) == ("bridge", "hello", "message")
        assert echo.tags["msgid"] == answer.msgid
        assert echo.tags["label"] == "x"


async def test_it_listens_on_loopback(env: Env) -> None:
    async with open_irc_network(env, host="127.0.0.1", flavour="ngircd") as net:
        client = Client(await trio.open_tcp_stream(*net.address))
        await client.register("bridge", "")
        await client.send("JOIN #ops", "QUIT")
        await client.until("ERROR")
        await client.stream.aclose()


async def test_stop_and_start_keep_the_port_and_the_channels(env: Env) -> None:
    async with open_irc_network(env, host="127.0.0.1") as net:
        irene = await net.person("irene")
        await irene.join("#ops")
        client = Client(await trio.open_tcp_stream(*net.address))
        await client.register("bridge", "")
        await net.stop()
        with pytest.raises((EOFError, trio.BrokenResourceError)):
            await client.until("never")
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(OSError):
            await trio.open_tcp_stream(*net.address)
        await net.start()
        again = Client(await trio.open_tcp_stream(*net.address))
        await again.register("bridge", "")
        await again.send("JOIN #ops")
        assert "irene" in (await again.until("353")).params[-1]
        await again.stream.aclose()
        await client.stream.aclose()


@pytest.mark.parametrize("flavour", ["inspircd", "ngircd"])
async def test_the_reply_is_dropped_after_the_effect(env: Env, autojump_clock: object, flavour: str) -> None:
    caps = FULL if flavour == "inspircd" else ""
    async with open_irc_network(env, flavour=flavour) as net, joined(net, "bridge", caps=caps) as client:  # type: ignore[arg-type]
        irene = await net.person("irene")
        await irene.join("#ops")
        await client.until("JOIN")
        net.faults.drop_next_reply("bridge", then="reset")
        await client.send("PRIVMSG #ops :did it arrive?", "PING :x")
        assert (await irene.receive()).text == "did it arrive?"
        with pytest.raises((EOFError, trio.BrokenResourceError)):
            await client.line()


async def test_a_meter_paces_a_client_to_one_line_a_second(env: Env, autojump_clock: object) -> None:
    async with open_irc_network(env) as net, joined(net, "bridge") as client:
        irene = await net.person("irene")
        await irene.join("#ops")
        net.faults.meter(1.0, burst=10)
        started = trio.current_time()
        await client.send(*(f"PRIVMSG #ops :{n}" for n in range(30)))
        texts = [(await irene.receive()).text for _ in range(30)]
        assert texts == [str(n) for n in range(30)]
        assert trio.current_time() - started == pytest.approx(20, abs=1.5)


async def test_a_netsplit_and_its_return(env: Env, autojump_clock: object) -> None:
    async with open_irc_network(env, servers=2) as net, joined(net, "bridge") as client:
        bob = await net.person("bob", server=1)
        await bob.join("#ops")
        net.faults.split()
        assert (await client.until("QUIT")).params == ("a.localhost b.localhost",)
        await bob.say("#ops", "alone")
        net.faults.heal()
        assert (await client.until("JOIN")).nick == "bob"
        await bob.say("#ops", "again")
        assert (await client.until("PRIVMSG")).params[-1] == "again"


@pytest.mark.parametrize("mechanism", ["PLAIN", "SCRAM-SHA-256", "EXTERNAL"])
async def test_sasl(env: Env, autojump_clock: object, mechanism: str) -> None:
    authority = Authority(now=env.wall())
    context = authority.server_context(["irc.localhost"])
    async with open_irc_network(env, tls=context, mechanisms=("PLAIN", "EXTERNAL", "SCRAM-SHA-256")) as net:
        raw = net.connect_memory(tls=True)
        stream = trio.SSLStream(raw, authority.client_context("bridge"), server_hostname="irc.localhost")
        client = Client(stream)
        await client.send("CAP LS 302", "NICK bridge", "USER bridge 0 * :b", "CAP REQ :sasl")
        await client.until("CAP")
        fingerprint = next(iter(net.servers[0].world.users.values())).fingerprint
        assert fingerprint is not None
        net.add_account("bridge", "s3cret", [fingerprint])
        await client.send(f"AUTHENTICATE {mechanism}")
        assert (await client.until("AUTHENTICATE")).params == ("+",)
        if mechanism == "PLAIN":
            await client.send(
                f"AUTHENTICATE {base64.b64encode(b'bridge' + bytes(1) + b'bridge' + bytes(1) + b's3cret').decode()}"
            )
        elif mechanism == "EXTERNAL":
            await client.send("AUTHENTICATE +")
        else:
            await scram(client, "bridge", "s3cret")
        await client.until("903")
        await client.send("CAP END")
        await client.until("376")
        await trio.aclose_forcefully(raw)


async def scram(client: Client, name: str, password: str) -> None:
    bare = f"n={name},r=abc"
    await client.send(f"AUTHENTICATE {base64.b64encode(f'n,,{bare}'.encode()).decode()}")
    challenge = base64.b64decode((await client.until("AUTHENTICATE")).params[0]).decode()
    fields = dict(part.split("=", 1) for part in challenge.split(","))
    salted = hashlib.pbkdf2_hmac("sha256", password.encode(), base64.b64decode(fields["s"]), int(fields["i"]))
    final = f"c=biws,r={fields['r']}"
    key = hmac.digest(salted, b"Client Key", "sha256")
    signature = hmac.digest(hashlib.sha256(key).digest(), f"{bare},{challenge},{final}".encode(), "sha256")
    proof = base64.b64encode(bytes(a ^ b for a, b in zip(key, signature, strict=True))).decode()
    await client.send(f"AUTHENTICATE {base64.b64encode(f'{final},p={proof}'.encode()).decode()}")
    assert base64.b64decode((await client.until("AUTHENTICATE")).params[0]).startswith(b"v=")
    await client.send("AUTHENTICATE +")
