"""The echo: said back once, changed with its original, and silent to its own kind."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
import trio.testing

from bridged.connectors.desk import attend
from bridged.connectors.echo.connector import CAPABILITIES, TEXT_BYTES_MAX, make_connector
from bridged.connectors.echo.settings import Settings
from bridged.envelope import Envelope
from bridged.schema import Edit, Message, Reaction, Redaction, read_inbound
from shards.client import Identity

LOBBY = "msgr://channels/acme/bridge/echo/lobby"


@pytest.fixture
def house(kit: Any) -> Any:
    """The house for an echo, which has no cursors: nothing can be fetched from it."""

    class EchoHouse(type(kit.house)):  # type: ignore[misc]
        async def publish(self, topic: str, payloads: Sequence[bytes], *, key: bytes, **_: Any) -> None:
            await trio.lowlevel.checkpoint()
            self.published += [Envelope.decode(payload) for payload in payloads]
            self.position += len(payloads)
            self._tell()

    return EchoHouse(Identity.generate("echo/lab", "acme", kit.env.token_bytes), kit.env.wall)


@asynccontextmanager
async def echoing(kit: Any, house: Any, **settings: Any) -> AsyncIterator[None]:
    made = Settings(instance="lab", **settings)
    async with trio.open_nursery() as nursery:
        await nursery.start(attend, kit.env, make_connector(made, [LOBBY]), made, house)
        yield
        nursery.cancel_scope.cancel()


def events(house: Any) -> list[Any]:
    told = [e for e in house.published if e.action not in ("delivery_status", "state_update")]
    return [read_inbound(envelope, tenant="acme") for envelope in told]


async def test_what_is_said_is_said_back_and_delivered(kit: Any, house: Any) -> None:
    async with echoing(kit, house):
        trace_id = house.intend(LOBBY, "hello", html="<b>hello</b>", kind="action")
        assert await house.final(trace_id) == "delivered"
    (message,) = events(house)
    assert isinstance(message, Message)
    assert (message.text, message.html, message.kind) == ("hello", "<b>hello</b>", "action")
    assert message.sender.ref == "msgr://identity/bridges/echo/lobby/echo"
    assert (message.channel, message.reply_to) == (LOBBY, trace_id)
    assert house.statuses(trace_id) == ["sent", "delivered"]
    states = [e.payload["state"] for e in house.published if e.action == "state_update"]
    assert states[:2] == ["starting", "running"]


async def test_edits_deletions_and_reactions_follow_their_original(kit: Any, house: Any) -> None:
    async with echoing(kit, house):
        first = house.intend(LOBBY, "hello")
        await house.final(first)
        edit = house.intend(LOBBY, "hello!", action="outbound_edit_message", remote_id=first)
        delete = house.intend(LOBBY, action="outbound_delete_message", remote_id=first)
        react = house.intend(LOBBY, action="outbound_reaction", remote_id=first, emojis=["👍"])
        lost = house.intend(LOBBY, "x", action="outbound_edit_message", remote_id=None)
        for trace_id in (edit, delete, react, lost):
            assert await house.final(trace_id) == "delivered"
    message, edited, redacted, reacted = events(house)
    assert isinstance(edited, Edit) and (edited.remote_id, edited.text) == (message.remote_id, "hello!")
    assert isinstance(redacted, Redaction) and redacted.remote_id == message.remote_id
    assert isinstance(reacted, Reaction) and (reacted.remote_id, reacted.emojis) == (first, ("👍",))


async def test_two_echoes_do_not_talk_for_ever(kit: Any, house: Any) -> None:
    other = {"ref": "msgr://identity/bridges/echo/lobby/echo", "name": "echo", "service": "echo"}
    async with echoing(kit, house):
        assert await house.final(house.intend(LOBBY, "hello", sender=other)) == "delivered"
        assert await house.final(house.intend(LOBBY, "gap", kind="notice")) == "delivered"
    assert events(house) == []


async def test_what_was_written_by_an_earlier_life_is_the_same_message(kit: Any, house: Any) -> None:
    trace_id = house.intend(LOBBY, "hello")
    async with echoing(kit, house, delay_s=5):
        await house.wait(lambda: house.statuses(trace_id) == ["sent"])
    async with echoing(kit, house):
        assert await house.final(trace_id) == "delivered"
    assert {event.remote_id for event in events(house)} == {f"{trace_id}-echo"}


async def test_it_thinks_as_long_as_it_was_told(
    kit: Any, house: Any, autojump_clock: trio.testing.MockClock
) -> None:
    async with echoing(kit, house, delay_s=30):
        began = trio.current_time()
        await house.final(house.intend(LOBBY, "hello"))
        assert trio.current_time() - began >= 30


async def test_what_cannot_be_said_fails_with_its_code(kit: Any, house: Any) -> None:
    async with echoing(kit, house):
        long = house.intend(LOBBY, "x" * (TEXT_BYTES_MAX + 1))
        assert await house.final(long) == "failed"
        nowhere = house.intend("msgr://identity/msgr/x", "hello")
        assert await house.final(nowhere) == "failed"
    codes = [e.payload["error"]["code"] for e in house.published if e.payload.get("status") == "failed"]
    assert codes == ["too_large", "invalid_field"]
    assert CAPABILITIES.confirms


def test_settings_are_checked() -> None:
    for bad in ({"instance": "a/b"}, {"instance": "x", "name": ""}, {"instance": "x", "delay_s": -1}):
        with pytest.raises(ValueError, match=r"instance|name|delay_s"):
            Settings(**bad)  # type: ignore[arg-type]
