"""The gateway as a client has it: a real WebSocket to a real daemon."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
from trio_websocket import ConnectionClosed, HandshakeError, WebSocketConnection, wrap_client_stream

from bridged.config import load_config
from bridged.daemon import open_shard
from bridged.envelope import new_envelope, new_trace_id
from bridged.gateway import feed, talk, ws
from bridged.keyring import load_key
from shards import open_client, system_env
from shards.log import open_log

ECHO = "msgr://channels/acme/bridge/echo/lobby"


class Client:
    """A client of the gateway that keeps what it is told."""

    def __init__(self, socket: WebSocketConnection) -> None:
        self.socket = socket
        self.events: list[dict[str, Any]] = []
        self._answers: dict[object, dict[str, Any]] = {}
        self._numbers = iter(range(1, 1000))

    async def say(self, **frame: Any) -> None:
        await self.socket.send_message(json.dumps(frame))

    async def hear(self) -> dict[str, Any]:
        frame: dict[str, Any] = json.loads(await self.socket.get_message())
        if "id" in frame:
            self._answers[frame["id"]] = frame
        else:
            self.events.append(frame)
        return frame

    async def ask(self, op: str, **frame: Any) -> dict[str, Any]:
        number = str(next(self._numbers))
        await self.say(op=op, id=number, **frame)
        while number not in self._answers:
            await self.hear()
        return self._answers.pop(number)

    async def wait(self, is_it: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """The first event like that, heard already or to come."""
        while True:
            for event in self.events:
                if is_it(event):
                    return event
            await self.hear()

    async def closed(self) -> int:
        """Hear to the end; returns the close code."""
        try:
            while True:
                await self.hear()
        except ConnectionClosed as exc:
            assert exc.reason is not None
            return int(exc.reason.code)


class Serving:
    """A shard in this test's own event loop."""

    def __init__(self, house: Any, running: Any) -> None:
        self.house = house
        self.running = running

    async def ctl(self, *words: object) -> Any:
        return await trio.to_thread.run_sync(lambda: self.house.ctl(*words))

    @asynccontextmanager
    async def connect(self, path: str = "/v1") -> AsyncIterator[Client]:
        port = self.running.gateway_port()
        stream = await trio.open_tcp_stream("127.0.0.1", port)
        async with (
            stream,
            trio.open_nursery() as nursery,
        ):  # the library leaves the stream open when the far end goes
            socket = await wrap_client_stream(
                nursery, stream, f"127.0.0.1:{port}", path, message_queue_size=1
            )
            yield Client(socket)
            with trio.move_on_after(1):
                await socket.aclose()
            nursery.cancel_scope.cancel()

    @asynccontextmanager
    async def hello(self, token: str | None = None, **more: Any) -> AsyncIterator[Client]:
        async with self.connect() as client:
            await client.say(op="hello", token=token or self.house.token, **more)
            yield client

    @asynccontextmanager
    async def as_member(self, name: str) -> AsyncIterator[Any]:
        """A fabric client with the keys of a member of the house."""
        key = load_key(self.house.state / f"keys/member-{name}.key")
        broker = self.running.broker
        async with open_client(
            system_env(), broker.endpoint, key.identity, server_public=broker.server_public, shard="acme"
        ) as client:
            yield client


@pytest.fixture
async def serving(house: Any) -> AsyncIterator[Serving]:
    async with open_shard(system_env(), load_config(house.config)) as running:
        with trio.fail_after(30):
            yield Serving(house, running)


def event_of(kind: str, **facts: Any) -> Callable[[dict[str, Any]], bool]:
    return lambda event: event["event"] == kind and all(event.get(k) == v for k, v in facts.items())


@pytest.mark.parametrize(
    "hello",
    [
        {"op": "hello"},
        {"op": "hello", "token": "wrong"},
        {"op": "hello", "token": ""},
        {"op": "hello", "token": 7},
        {"op": "hello", "token": "x" * 1000},
        {"op": "send", "id": "1", "conversation": "lobby", "text": "hi"},
        {},
    ],
)
async def test_without_a_valid_token_nobody_enters(serving: Serving, hello: dict[str, Any]) -> None:
    async with serving.connect() as client:
        await client.say(**hello)
        assert await client.closed() == 4401


async def test_who_says_nothing_is_let_go(serving: Serving, monkeypatch: Any) -> None:
    monkeypatch.setattr(ws, "HELLO_WITHIN_S", 0.05)
    async with serving.connect() as client:
        assert await client.closed() == 4401
    with pytest.raises(ExceptionGroup) as raised:
        async with serving.connect("/v2"):
            pass
    assert raised.group_contains(HandshakeError)


@pytest.mark.parametrize(
    "frame",
    [b"\x00\x01", "no json", "[]", "7", '{"op":"send"}', '{"op":"send","id":true}', '{"a":NaN}', "[" * 50_000,
     '{"op":"send","id":"\\ud800"}', json.dumps({"op": "send", "id": "x" * 65})],
)  # fmt: skip
async def test_a_bad_frame_ends_its_connection_and_no_other(serving: Serving, frame: str | bytes) -> None:
    async with serving.hello() as good, serving.hello() as bad:
        assert (await bad.ask("conversations"))["ok"]
        await bad.socket.send_message(frame)
        assert await bad.closed() == 4400
        assert (await good.ask("conversations"))["ok"]


@pytest.mark.parametrize("first", [b"\x00", "no json", "[]", '{"op":"hello","token":"\\ud800"}'])
async def test_a_bad_first_frame(serving: Serving, first: str | bytes) -> None:
    async with serving.connect() as client:
        await client.socket.send_message(first)
        assert await client.closed() == 4400


@pytest.mark.parametrize("after", [-2, "3", True, 1.5])
async def test_an_offset_that_is_none(serving: Serving, after: Any) -> None:
    async with serving.hello(after=after) as client:
        assert await client.closed() == 4400


async def test_ops_that_cannot_be_carried_out_are_answered(serving: Serving) -> None:
    async with serving.hello() as client:
        for op, frame, code in (
            ("fly", {}, "unknown_action"),
            ("hello", {"token": "x"}, "unknown_action"),
            ("send", {"conversation": "nowhere", "text": "x"}, "not_found"),
            ("send", {"conversation": "lobby"}, "missing_field"),
            ("send", {"conversation": "lobby", "text": {"a": 1}}, "invalid_field"),
            ("edit", {"message_id": "none", "text": "x"}, "not_found"),
            ("react", {"message_id": "none", "emojis": ["x"]}, "not_found"),
            ("history", {"conversation": "nowhere"}, "not_found"),
            ("history", {"conversation": "lobby", "limit": 10**400}, "invalid_field"),
            ("send", {"conversation": "lobby", "text": "x" * 200_000}, None),
        ):
            answer = await client.ask(op, **frame)
            if code is not None:
                assert not answer["ok"] and answer["error"]["code"] == code, (op, answer)
                assert answer["error"]["message"] and "\n" not in answer["error"]["message"]
        assert (await client.ask("conversations"))["ok"]


async def test_a_message_and_all_that_becomes_of_it(serving: Serving) -> None:
    async with serving.hello() as client, serving.hello() as other:
        answer = await client.ask(
            "send", conversation="lobby", text="hi", idempotency_key="c-1", reply_to=None
        )
        assert set(answer) >= {"id", "ok", "trace_id", "message_id"} and len(answer["trace_id"]) == 32
        trace_id, message_id = answer["trace_id"], answer["message_id"]
        message = await other.wait(event_of("message", trace_id=trace_id))
        assert message["conversation"] == "lobby" and message["channel"] is None and message["text"] == "hi"
        assert message["sender"] == {"ref": "msgr://identity/msgr/acme", "name": "acme"}
        assert message["offset"] >= 0 and message["at"].endswith("Z")
        await client.wait(event_of("status", trace_id=trace_id, channel=ECHO, status="delivered"))
        await client.wait(lambda e: e["event"] == "message" and e["channel"] == ECHO and e["text"] == "hi")
        again = await client.ask("send", conversation="lobby", text="hi", idempotency_key="c-1")
        assert again["ok"] and again["message_id"] == message_id, again

        assert (await client.ask("edit", message_id=message_id, text="hello"))["ok"]
        assert (await other.wait(event_of("edit", message_id=message_id)))["text"] == "hello"
        assert (await client.ask("react", message_id=message_id, emojis=["👍"]))["ok"]
        assert (await other.wait(event_of("reaction", message_id=message_id)))["emojis"] == ["👍"]
        history = await client.ask("history", conversation="lobby", limit=10)
        mine = next(m for m in history["messages"] if m["message_id"] == message_id)
        assert mine["text"] == "hello" and mine["edited"] and mine["reactions"][0]["emoji"] == "👍"
        assert (await client.ask("delete", message_id=message_id))["ok"]
        await other.wait(event_of("delete", message_id=message_id))
        listed = await client.ask("conversations")
        assert [one["name"] for one in listed["conversations"]] == ["lobby"]
        offsets = [event["offset"] for event in other.events]
        assert offsets == sorted(set(offsets))


async def test_typing_passes_and_leaves_nothing(serving: Serving) -> None:
    async with serving.hello() as client, serving.hello() as other:
        assert (await other.ask("conversations"))["ok"]
        assert (await client.ask("typing", conversation="lobby", typing=True))["ok"]
        seen = await other.wait(event_of("typing"))
        assert seen["conversation"] == "lobby" and "offset" not in seen
    async with serving.hello(after=-1) as late:
        await late.ask("send", conversation="lobby", text="x")
        await late.wait(event_of("message"))
        assert not [event for event in late.events if event["event"] == "typing"]


async def test_who_comes_again_gets_every_event_once_and_in_order(serving: Serving, monkeypatch: Any) -> None:
    monkeypatch.setattr(feed, "RING_EVENTS", 8)
    monkeypatch.setattr(feed, "PAGE_EVENTS", 3)
    async with serving.hello() as client:
        for number in range(6):
            await client.ask("send", conversation="lobby", text=f"n{number}")
        await client.wait(event_of("message", text="n5"))
    seen: list[dict[str, Any]] = []
    after = -1
    while not any(
        event.get("text") == "n5" for event in seen
    ):  # a client that loses its connection all the time
        async with serving.hello(after=after) as client:
            for _ in range(4):
                seen.append(await client.hear())
                after = seen[-1]["offset"]
                if seen[-1].get("text") == "n5":
                    break
    assert [event["offset"] for event in seen] == list(range(len(seen)))
    said = [e["text"] for e in seen if e["event"] == "message" and e["channel"] is None]
    assert said == [f"n{number}" for number in range(6)]


async def test_offsets_go_on_through_a_restart(house: Any) -> None:
    async with (
        open_shard(system_env(), load_config(house.config)) as running,
        Serving(house, running).hello() as one,
    ):
        await one.ask("send", conversation="lobby", text="before")
        after = (await one.wait(event_of("message", text="before")))["offset"]
    async with open_shard(system_env(), load_config(house.config)) as running:
        with trio.fail_after(20):
            async with Serving(house, running).hello(after=after) as two:
                await two.ask("send", conversation="lobby", text="after")
                await two.wait(event_of("message", text="after"))
                offsets = [event["offset"] for event in two.events]
                assert offsets == list(range(after + 1, after + 1 + len(offsets)))


async def test_what_retention_has_taken_is_a_gap(house: Any) -> None:
    async with (
        open_shard(system_env(), load_config(house.config)) as running,
        Serving(house, running).hello() as one,
    ):
        for number in range(4):
            await one.ask("send", conversation="lobby", text=f"n{number}")
        await one.wait(event_of("message", text="n3"))
        await one.wait(lambda e: e["event"] == "status" and e["status"] == "delivered")
    async with open_log(system_env(), house.state / "log.db") as log:
        position = await log.position_of("acme", "bridge/core/event", 5)
        first = await log.trim(before=position)
    assert first > 0
    async with open_shard(system_env(), load_config(house.config)) as running:
        with trio.fail_after(20):
            async with Serving(house, running).hello(after=0) as two:
                gap = await two.hear()
                assert gap == {"event": "gap", "from": 1, "to": gap["to"]} and 1 <= gap["to"] <= 4
                assert (await two.hear())["offset"] == gap["to"] + 1
            async with Serving(house, running).hello(
                after=10_000
            ) as three:  # of a shard that was restored since
                gap = await three.hear()
                assert gap["event"] == "gap" and gap["to"] == 10_000
                await three.ask("send", conversation="lobby", text="go on")
                # a state of the connector may come first
                assert (await three.wait(event_of("message", text="go on")))["offset"] >= gap["from"]


async def flood(serving: Serving, n: int, octets: int) -> None:
    env = system_env()
    async with serving.as_member("facade") as facade:
        for number in range(n):
            payload = {"event": "message", "conversation": "lobby", "text": f"{number}:" + "x" * octets}
            envelope = new_envelope(
                "core", "event", payload, now=env.wall(), trace_id=new_trace_id(env.token_bytes)
            )
            await facade.publish("bridge/core/event", [envelope.encode()], key=b"lobby")


async def test_a_client_that_does_not_read_is_told_so_and_its_offset_still_works(
    serving: Serving, monkeypatch: Any
) -> None:
    monkeypatch.setattr(talk, "SEND_WITHIN_S", 0.3)
    async with serving.hello() as slow, serving.hello() as quick, trio.open_nursery() as nursery:
        assert (await slow.ask("conversations"))["ok"] and (await quick.ask("conversations"))["ok"]
        nursery.start_soon(flood, serving, 40, 400_000)
        await quick.wait(lambda e: e.get("text", "").startswith("39:"))  # nobody waits for the slow one
        await trio.sleep(0.5)
        assert await slow.closed() == 4408
        assert slow.events[-1] == {"event": "lagging"}
        offsets = [event["offset"] for event in slow.events[:-1]]
    assert 0 < len(offsets) < 40
    async with serving.hello(after=offsets[-1]) as back:
        while len(offsets) < 40:
            offsets.append((await back.hear())["offset"])
    assert offsets == list(range(offsets[0], offsets[0] + 40))


async def test_a_client_that_never_reads_again_is_cut(serving: Serving, monkeypatch: Any) -> None:
    monkeypatch.setattr(talk, "SEND_WITHIN_S", 0.1)
    monkeypatch.setattr(talk, "TAKE_WITHIN_S", 0.1)
    async with serving.hello() as slow:
        assert (await slow.ask("conversations"))["ok"]
        await flood(serving, 40, 400_000)
        await trio.sleep(0.4)
        assert await slow.closed() in (1006, 1007)  # a frame that has no end
        offset = slow.events[-1]["offset"]
    async with serving.hello(after=offset) as back:
        assert (await back.hear())["offset"] == offset + 1


async def test_a_revoked_token_is_let_go(serving: Serving, monkeypatch: Any) -> None:
    monkeypatch.setattr(ws, "LOOK_UP_EVERY_S", 0.1)
    told = (
        await serving.ctl("clients", "add", "phone", "--identity", "ola", "--conversation", "lobby", "--json")
    ).json()
    async with serving.hello(told["token"]) as silent, serving.hello(told["token"]) as busy:
        assert (await silent.ask("conversations"))["ok"] and (await busy.ask("conversations"))["ok"]
        assert (await serving.ctl("clients", "revoke", "phone")).code == 0
        assert (await busy.ask("conversations"))["error"]["code"] == "capability_denied"
        assert await busy.closed() == 4401
    async with serving.hello(told["token"]) as again:
        assert await again.closed() == 4401


async def test_a_client_reads_its_conversations_and_no_others(serving: Serving) -> None:
    await serving.ctl("conversations", "add", "attic", "msgr://channels/acme/bridge/echo/attic")
    told = (
        await serving.ctl("clients", "add", "phone", "--identity", "ola", "--conversation", "attic", "--json")
    ).json()
    async with serving.hello() as everywhere, serving.hello(told["token"]) as phone:
        assert [c["name"] for c in (await phone.ask("conversations"))["conversations"]] == ["attic"]
        for op, frame in (
            ("send", {"conversation": "lobby", "text": "x"}),
            ("history", {"conversation": "lobby"}),
            ("typing", {"conversation": "lobby", "typing": True}),
            ("send", {"conversation": "lobby", "text": "x", "client": "acme"}),
            ("send", {"conversation": "lobby", "text": "x", "identity": "msgr://identity/msgr/acme"}),
        ):
            assert not (await phone.ask(op, **frame))["ok"], (op, frame)
        told = await everywhere.ask("send", conversation="lobby", text="not for the phone")
        assert not (await phone.ask("edit", message_id=told["message_id"], text="x"))["ok"]
        await everywhere.ask("send", conversation="attic", text="for the phone")
        await phone.wait(event_of("message", text="for the phone"))
        assert {event.get("conversation") for event in phone.events} == {"attic"}


async def test_two_tenants_of_a_region_never_see_each_other(region: tuple[Any, dict[str, str]]) -> None:
    house, tokens = region
    async with open_shard(system_env(), load_config(house.config)) as running:
        serving = Serving(house, running)
        with trio.fail_after(20):
            async with (
                serving.hello(tokens["acme"]) as acme,
                serving.hello(tokens["beta"]) as beta,
            ):
                assert (await acme.ask("conversations"))["conversations"][0]["name"] == "lobby"
                theirs = await acme.ask("send", conversation="lobby", text="of acme")
                ours = await beta.ask("send", conversation="lobby", text="of beta")
                assert theirs["ok"] and ours["ok"]
                await acme.wait(lambda e: e["event"] == "status" and e["status"] == "delivered")
                await beta.wait(lambda e: e["event"] == "status" and e["status"] == "delivered")
                assert "of acme" not in json.dumps(beta.events) and "of beta" not in json.dumps(acme.events)
                foreign = await beta.ask("edit", message_id=theirs["message_id"], text="x")
                absent = await beta.ask("edit", message_id="0" * 20, text="x")
                assert foreign["error"] == absent["error"]  # a foreign name and an absent one look the same
                history = await beta.ask("history", conversation="lobby")
                assert "of acme" not in json.dumps(history)
            async with serving.hello(tokens["beta"], after=-1) as again:
                await again.wait(event_of("message", text="of beta"))
                assert "of acme" not in json.dumps(again.events)
