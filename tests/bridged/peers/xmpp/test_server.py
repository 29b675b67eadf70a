"""The fake server as a client meets it: raw stanzas over memory streams, on a virtual clock, faults on command."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
import trio

from bridged.peers.xmpp import XmppServer, ns, open_xmpp_server
from bridged.peers.xmpp.xml import Closed, Element, Opened, StreamParser
from shards.env import Env

ROOM = "ops@muc.localhost"
HEADER = f"<stream:stream to='localhost' version='1.0' xmlns='{ns.CLIENT}' xmlns:stream='{ns.STREAM}'>"


class Client:
    """A raw client: text out, elements in."""

    def __init__(self, stream: trio.abc.Stream) -> None:
        self.stream = stream
        self.parser = StreamParser(1 << 24)
        self.queue: list[Element | Opened | Closed] = []
        self.heard: list[Element] = []

    async def send(self, text: str) -> None:
        await self.stream.send_all(text.encode())

    async def next(self) -> Element | Opened | Closed:
        while not self.queue:
            data = await self.stream.receive_some(65_536)
            if not data:
                raise EOFError
            self.queue += self.parser.feed(bytes(data))
        return self.queue.pop(0)

    async def until(self, wanted: Callable[[Element], bool]) -> Element:
        while True:
            event = await self.next()
            if isinstance(event, Element):
                self.heard.append(event)
                if wanted(event):
                    return event
            elif isinstance(event, Closed):
                raise EOFError

    async def named(self, name: str) -> Element:
        return await self.until(lambda e: e.name == name)

    async def message(self) -> Element:
        return await self.until(lambda e: e.name == "message" and e.find(ns.CLIENT, "body") is not None)

    async def restart(self) -> None:
        self.parser = StreamParser(1 << 24)
        await self.send(HEADER)
        await self.named("features")

    async def login(self, name: str) -> None:
        await self.restart()
        secret = base64.b64encode(f"\0{name}\0pw-{name}".encode()).decode()
        await self.send(f"<auth xmlns='{ns.SASL}' mechanism='PLAIN'>{secret}</auth>")
        await self.named("success")
        await self.restart()

    async def bind(self, *, sm: bool = False) -> str:
        await self.send(f"<iq id='b' type='set'><bind xmlns='{ns.BIND}'><resource>r</resource></bind></iq>")
        await self.named("iq")
        sm_id = ""
        if sm:
            await self.send(f"<enable xmlns='{ns.SM}' resume='true'/>")
            sm_id = (await self.named("enabled")).get("id") or ""
        await self.send("<presence/>")
        await self.named("presence")
        return sm_id

    async def join(self) -> None:
        await self.send(f"<presence to='{ROOM}/bridge'><x xmlns='{ns.MUC}'/></presence>")
        await self.until(lambda e: e.find(ns.CLIENT, "subject") is not None)


@asynccontextmanager
async def opened(env: Env, **options: object) -> AsyncIterator[XmppServer]:
    async with open_xmpp_server(env, allow_plaintext=True, **options) as srv:
        srv.add_user("bridge", "pw-bridge")
        yield srv


async def online(srv: XmppServer, *, sm: bool = False) -> tuple[Client, str]:
    client = Client(srv.connect_memory())
    await client.login("bridge")
    return client, await client.bind(sm=sm)


async def test_a_slept_session_is_resumed_within_its_time_only(env: Env, autojump_clock: object) -> None:
    async with opened(env, hibernation_s=60.0) as srv:
        alice = await srv.person("alice")
        client, sm_id = await online(srv, sm=True)
        srv.faults.cut("bridge@localhost")
        await alice.say("bridge@localhost", "while you slept")
        await trio.sleep(30)
        again = Client(srv.connect_memory())
        await again.login("bridge")
        await again.send(f"<resume xmlns='{ns.SM}' previd='{sm_id}' h='1'/>")
        await again.named("resumed")
        message = await again.message()
        assert message.find(ns.DELAY, "delay") is not None
        srv.faults.cut("bridge@localhost")
        await trio.sleep(61)
        late = Client(srv.connect_memory())
        await late.login("bridge")
        await late.send(f"<resume xmlns='{ns.SM}' previd='{sm_id}' h='2'/>")
        failed = await late.named("failed")
        assert failed.get("h") == "1"
        del client


async def test_the_reply_dropped_after_the_effect(env: Env, autojump_clock: object) -> None:
    async with opened(env) as srv:
        alice = await srv.person("alice")
        await alice.join(ROOM)
        client, _ = await online(srv)
        await client.join()
        srv.faults.drop_next_reply("bridge@localhost", then="cut")
        await client.send(f"<message to='{ROOM}' type='groupchat' id='m1'><body>once</body></message>")
        assert (await alice.receive()).text == "once"
        with pytest.raises((EOFError, trio.BrokenResourceError)):
            await client.message()


async def test_duplicate_reorder_and_delay(env: Env, autojump_clock: object) -> None:
    async with opened(env) as srv:
        alice = await srv.person("alice")
        client, _ = await online(srv)
        srv.faults.duplicate("bridge@localhost")
        await alice.say("bridge@localhost", "twice")
        first, second = await client.message(), await client.message()
        assert str(first) == str(second)
        srv.faults.reorder("bridge@localhost", 3)
        for text in "abc":
            await alice.say("bridge@localhost", text)
        assert [(await client.message()).text_of(ns.CLIENT, "body") for _ in range(3)] == ["c", "b", "a"]
        srv.faults.delay(5, "bridge@localhost")
        said_at = trio.current_time()
        await alice.say("bridge@localhost", "late")
        await client.message()
        assert trio.current_time() - said_at == pytest.approx(5)


async def test_half_open_says_nothing_and_takes_nothing(env: Env, autojump_clock: object) -> None:
    async with opened(env) as srv:
        alice = await srv.person("alice")
        client, _ = await online(srv)
        srv.faults.half_open("bridge@localhost")
        await alice.say("bridge@localhost", "hello?")
        await client.send("<message to='alice@localhost' type='chat'><body>me too</body></message>")
        with trio.move_on_after(100) as scope:
            await client.message()
        assert scope.cancelled_caught
        assert alice.heard_now() == []
        srv.faults.half_open("bridge@localhost", on=False)
        assert (await client.message()).text_of(ns.CLIENT, "body") == "hello?"
        assert (await alice.receive()).text == "me too"


async def test_conflict_and_shutdown_end_the_stream_with_their_errors(
    env: Env, autojump_clock: object
) -> None:
    async with opened(env) as srv:
        client, _ = await online(srv)
        srv.faults.conflict("bridge@localhost")
        assert (await client.named("error")).find(ns.STREAM_ERRORS, "conflict") is not None
        client, _ = await online(srv)
        srv.faults.shut_down()
        assert (await client.named("error")).find(ns.STREAM_ERRORS, "system-shutdown") is not None


async def test_kick_ban_mute_and_a_lost_occupant(env: Env, autojump_clock: object) -> None:
    async with opened(env) as srv:
        alice = await srv.person("alice")
        await alice.join(ROOM)
        client, _ = await online(srv)

        def status(code: str) -> Callable[[Element], bool]:
            def has(e: Element) -> bool:
                x = e.find(ns.MUC_USER, "x")
                return x is not None and any(s.get("code") == code for s in x.find_all(ns.MUC_USER, "status"))

            return has

        await client.join()
        srv.faults.kick(ROOM, "bridge")
        await client.until(status("307"))
        await client.join()
        srv.faults.mute(ROOM, "bridge")
        await client.send(f"<message to='{ROOM}' type='groupchat' id='m'><body>x</body></message>")
        await client.until(lambda e: e.get("type") == "error")
        srv.faults.lose_occupant(ROOM, "bridge")
        await client.send(f"<iq to='{ROOM}/bridge' type='get' id='p'><ping xmlns='{ns.PING}'/></iq>")
        lost = await client.until(lambda e: e.get("id") == "p")
        refusal = lost.find(ns.CLIENT, "error")
        assert refusal is not None and refusal.find(ns.STANZA_ERRORS, "not-acceptable") is not None
        await client.join()
        srv.faults.ban(ROOM, "bridge@localhost")
        await client.until(status("301"))
        await client.send(f"<presence to='{ROOM}/bridge'><x xmlns='{ns.MUC}'/></presence>")
        refused = await client.until(lambda e: e.get("type") == "error")
        assert refused.name == "presence"


async def test_an_expired_archive_has_a_gap(env: Env, autojump_clock: object) -> None:
    async with opened(env) as srv:
        alice = await srv.person("alice")
        await alice.join(ROOM)
        first = await alice.say(ROOM, "old")
        await alice.say(ROOM, "new")
        srv.faults.expire_archive(ROOM, 1)
        client, _ = await online(srv)
        query = f"<set xmlns='{ns.RSM}'><after>{first}</after></set>"
        await client.send(f"<iq to='{ROOM}' type='set' id='q'><query xmlns='{ns.MAM}'>{query}</query></iq>")
        answer = await client.until(lambda e: e.get("id") == "q")
        refusal = answer.find(ns.CLIENT, "error")
        assert refusal is not None and refusal.find(ns.STANZA_ERRORS, "item-not-found") is not None


async def test_one_hostile_client_ends_alone(env: Env, autojump_clock: object) -> None:
    async with opened(env, stanza_bytes_max=10_000) as srv:
        alice = await srv.person("alice")
        client, _ = await online(srv)
        for bad in (
            "<!DOCTYPE x>",
            "<a><b></a>",
            "<message><body>&lol;</body></message>",
            "x" * 20_000 + "<",
            "<?x?>",
        ):
            hostile = Client(srv.connect_memory())
            await hostile.login("bridge")
            with trio.fail_after(30), pytest.raises((EOFError, trio.BrokenResourceError)):
                await hostile.send(bad)
                await hostile.named("never")
        await alice.say("bridge@localhost", "still here")
        assert (await client.message()).text_of(ns.CLIENT, "body") == "still here"
