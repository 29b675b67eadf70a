"""Requests over real ipc sockets: answers, deadlines, repeats, and responders that die."""

from __future__ import annotations

from collections.abc import AsyncIterator
from functools import partial

import pytest
import trio

from shards import system_env, wire
from shards.client import Client, Request
from shards.errors import RequestFailed
from shards.testing.fabric import ALL_GRANTS, Fabric, open_fabric, raw_link, wait_until

TOPIC = "bridge/irc/x/inbound"
ASK = "bridge/core/send"


@pytest.fixture
async def fabric() -> AsyncIterator[Fabric]:
    async with open_fabric(system_env(inside=False)) as fabric:
        yield fabric


async def test_a_request_is_answered_by_who_responds(fabric: Fabric) -> None:
    seen: list[Request] = []

    async def answer(request: Request) -> bytes:
        seen.append(request)
        if request.body == b"no":
            raise RequestFailed("policy_denied", "you may not", retry_after_ms=50)
        return b"re: " + request.body

    async with (
        fabric.client("core", "respond bridge/core/*") as core,
        fabric.client("ola", "request bridge/core/*") as ola,
        trio.open_nursery() as nursery,
    ):
        await nursery.start(partial(core.respond, [ASK], answer))
        deadline = trio.current_time() + 5
        assert await ola.request(ASK, b"hi", deadline=deadline, trace_id="t1") == b"re: hi"
        assert (seen[0].principal, seen[0].tenant, seen[0].trace_id, seen[0].topic) == (
            "ola",
            "acme",
            "t1",
            ASK,
        )
        assert 0 < seen[0].deadline - trio.current_time() <= 5.1
        with pytest.raises(RequestFailed) as failed:
            await ola.request(ASK, b"no", deadline=deadline, trace_id="t2")
        assert (failed.value.code, str(failed.value), failed.value.retry_after_ms) == (
            "policy_denied",
            "you may not",
            50,
        )
        large = bytes(900_000)
        assert await ola.request(ASK, large, deadline=deadline, trace_id="t3") == b"re: " + large
        nursery.cancel_scope.cancel()


async def test_the_same_request_gets_the_same_answer_and_another_is_a_duplicate(fabric: Fabric) -> None:
    codes = 0

    async def send_code(request: Request) -> bytes:
        nonlocal codes
        codes += 1
        await trio.sleep(0.02)
        return b"code %d" % codes

    async with fabric.client("core", *ALL_GRANTS) as core, fabric.client("eve", *ALL_GRANTS) as eve:
        async with trio.open_nursery() as nursery:
            await nursery.start(partial(core.respond, [ASK], send_code))
            answers: list[bytes] = []

            async def ask(client: Client, body: bytes) -> None:
                answers.append(
                    await client.request(ASK, body, deadline=trio.current_time() + 5, trace_id="t")
                )

            async with trio.open_nursery() as asking:
                for _ in range(3):
                    asking.start_soon(ask, core, b"+47")
            await ask(core, b"+47")
            assert answers == [b"code 1"] * 4
            with pytest.raises(RequestFailed) as failed:
                await ask(core, b"+48")
            assert failed.value.code == "duplicate"
            await ask(eve, b"+47")  # another principal is a stranger to that answer
            assert answers[-1] == b"code 2"
            nursery.cancel_scope.cancel()
    assert fabric.broker.statistics().requests.repeated == 3


async def test_nobody_to_answer_and_a_responder_that_dies_are_told_at_once(fabric: Fabric) -> None:
    async with fabric.client("ola", *ALL_GRANTS) as ola:
        with pytest.raises(RequestFailed) as failed:
            await ola.request(ASK, b"", deadline=trio.current_time() + 60, trace_id="t0")
        assert failed.value.code == "network_down"
        await fabric.enroll("core", *ALL_GRANTS)
        core = await raw_link(fabric, "core")
        core.send(wire.Respond(1, 8, (ASK,)))
        await core.until(wire.Ack)
        failures: list[RequestFailed] = []

        async def ask() -> None:
            try:
                await ola.request(ASK, b"", deadline=trio.current_time() + 60, trace_id="t1")
            except RequestFailed as exc:
                failures.append(exc)

        with trio.fail_after(2):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(ask)
                await core.until(wire.Call)
                await core.aclose()
        assert [failure.code for failure in failures] == ["network_down"]


async def test_a_late_answer_is_dropped_and_counted_but_kept_for_who_asks_again(fabric: Fabric) -> None:
    async with fabric.client("ola", *ALL_GRANTS) as ola:
        await fabric.enroll("core", *ALL_GRANTS)
        core = await raw_link(fabric, "core")
        core.send(wire.Respond(1, 8, (ASK,)))
        await core.until(wire.Ack)
        with pytest.raises(RequestFailed) as failed:
            await ola.request(ASK, b"sms", deadline=trio.current_time() + 0.05, trace_id="t1")
        assert failed.value.code == "timeout"
        call = await core.until(wire.Call)
        await trio.sleep(0.02)
        core.send(wire.Reply(call.call, "", wire.NO_RETRY, "", b"sent"))
        core.send(wire.Reply(999, "", wire.NO_RETRY, "", b"to nobody"))
        await wait_until(lambda: fabric.broker.statistics().requests.late == 2)
        assert await ola.request(ASK, b"sms", deadline=trio.current_time() + 5, trace_id="t1") == b"sent"
        await core.aclose()


async def test_requests_wait_for_a_free_responder_and_no_longer_than_their_deadline(fabric: Fabric) -> None:
    running = most = 0

    async def slowly(request: Request) -> bytes:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await trio.sleep(0.02)
        running -= 1
        return request.body

    async with fabric.client("a", *ALL_GRANTS) as client, trio.open_nursery() as nursery:
        await nursery.start(partial(client.respond, [ASK], slowly, concurrency=2))
        answers: list[bytes] = []

        async def ask(number: int) -> None:
            body = b"%d" % number
            deadline = trio.current_time() + 5
            answers.append(await client.request(ASK, body, deadline=deadline, trace_id=f"t{number}"))

        async with trio.open_nursery() as asking:
            for number in range(8):
                asking.start_soon(ask, number)
        assert most == 2 and sorted(answers) == [b"%d" % number for number in range(8)]
        nursery.cancel_scope.cancel()


async def test_a_fault_of_the_handler_is_told_to_the_asker_and_to_its_owner(fabric: Fabric) -> None:
    async def broken(request: Request) -> bytes:
        raise ZeroDivisionError

    async with fabric.client("a", *ALL_GRANTS) as client:
        codes: list[str] = []

        async def ask() -> None:
            try:
                await client.request(ASK, b"", deadline=trio.current_time() + 5, trace_id="t")
            except RequestFailed as exc:
                codes.append(exc.code)

        with pytest.raises(ExceptionGroup) as group:
            async with trio.open_nursery() as nursery:
                await nursery.start(partial(client.respond, [ASK], broken))
                with trio.CancelScope(shield=True):
                    await ask()
        assert group.group_contains(ZeroDivisionError) and codes == ["internal"]
