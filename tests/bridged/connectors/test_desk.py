"""The desk: leases, publishing, and the loop that loses nothing and doubles nothing."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio

from bridged.connectors import ConnectorState
from bridged.connectors.desk import Desk, attend, fall_of
from bridged.connectors.intent import Delivered, Failed, Intent, Outcome, Retry, Unknown
from bridged.errors import BadCredentials, Banned, Disconnected, LeaseExpired

OPS = "msgr://channels/acme/bridge/irc/irc.lab/%23ops"
DEV = "msgr://channels/acme/bridge/irc/irc.lab/%23dev"


class Platform:
    """A platform that takes what it is given, unless told otherwise."""

    def __init__(self) -> None:
        self.said: list[tuple[str, str]] = []
        self.answers: list[Outcome | Exception] = []
        self.hold = trio.Event()
        self.hold.set()
        self.seen: list[Intent] = []

    async def send(self, intent: Intent) -> Outcome:
        self.seen.append(intent)
        if intent.was_written:
            return Unknown("cannot tell")
        answer = self.answers.pop(0) if self.answers else Delivered(remote_id=f"r{len(self.said)}")
        if not isinstance(answer, Delivered | Unknown):
            if isinstance(answer, Exception):
                raise answer
            return answer
        await intent.mark_written()
        self.said.append((intent.channel[-3:], intent.text))
        await self.hold.wait()
        return answer


@asynccontextmanager
async def delivering(
    kit: Any, send: Callable[[Intent], Awaitable[Outcome]]
) -> AsyncIterator[trio.CancelScope]:
    async with kit.desk() as desk, trio.open_nursery() as nursery:
        await nursery.start(desk.outbound, send)
        yield nursery.cancel_scope
        nursery.cancel_scope.cancel()


# -- leases -----------------------------------------------------------------------------------------------------


async def test_a_connector_that_waits_for_a_credential_starts_at_once_when_it_is_put(
    autojump_clock: object, kit: Any
) -> None:
    async with kit.desk() as desk, trio.open_nursery() as nursery:
        got: list[Any] = []

        async def lease() -> None:
            got.append(await desk.lease("irc/lab"))

        nursery.start_soon(lease)
        await kit.house.wait(lambda: kit.house.of("state_update"))
        (update,) = kit.house.of("state_update")
        assert update["state"] == "waiting_credential"
        assert "bridgectl vault put irc/lab" in update["detail"]
        await trio.sleep(500)
        kit.house.put("irc/lab", username="kari", password="secret")
        put_at = trio.current_time()
        await kit.house.wait(lambda: got)
        assert trio.current_time() - put_at < 0.3
        assert (got[0].username, got[0].password.reveal_text()) == ("kari", "secret")
        assert "secret" not in repr(got[0]) + str(kit.house.published)
        assert len(kit.house.of("state_update")) == 1


async def test_a_lease_is_renewed_and_given_back(autojump_clock: object, kit: Any) -> None:
    kit.house.put("irc/lab", password="pw")
    async with kit.desk() as desk:
        credential = await desk.lease("irc/lab")
        assert await desk.lease("irc/lab") is credential
        await trio.sleep(10_000)
        assert credential.is_live
        assert len(kit.house.leases) == 1
    assert not kit.house.leases
    with pytest.raises(LeaseExpired):
        _ = credential.password


async def test_a_lease_that_is_taken_back_ends_the_connection(autojump_clock: object, kit: Any) -> None:
    kit.house.put("irc/lab", password="pw")
    with pytest.raises(BaseExceptionGroup) as caught:
        async with kit.desk() as desk:
            await desk.lease("irc/lab")
            kit.house.leases.clear()
            await trio.sleep_forever()
    assert isinstance(fall_of(caught.value), Disconnected)


async def test_a_lease_that_cannot_be_renewed_is_forgotten_and_the_connection_stays(
    autojump_clock: object, kit: Any
) -> None:
    from shards.errors import RequestFailed

    async def down(payload: Any) -> Any:
        raise RequestFailed("network_down", "no vault")

    kit.house.put("irc/lab", password="pw")
    async with kit.desk() as desk:
        credential = await desk.lease("irc/lab")
        kit.house.vault_renew = down
        await trio.sleep(3500)
        assert credential.is_live
        await trio.sleep(200)
        assert not credential.is_live
        assert await desk.lease("irc/lab") is not credential
        del kit.house.vault_renew


async def test_a_vault_that_refuses_stops_the_connector(autojump_clock: object, kit: Any) -> None:
    from shards.errors import RequestFailed

    async def refused(payload: Any) -> Any:
        raise RequestFailed("capability_denied", "no")

    kit.house.vault_checkout = refused
    async with kit.desk() as desk:
        with pytest.raises(BadCredentials):
            await desk.lease("irc/lab")


# -- publishing and states --------------------------------------------------------------------------------------


async def test_what_is_published_is_an_envelope_of_this_instance(autojump_clock: object, kit: Any) -> None:
    async with kit.desk() as desk:
        await desk.publish("throttle", {"scope": "chat"}, key=b"k", trace_id="a" * 32)
    (envelope,) = kit.house.published
    assert (envelope.service, envelope.action, envelope.trace_id) == ("irc", "throttle", "a" * 32)
    assert envelope.metadata == {"tenant": "acme", "instance": "lab"}


async def test_a_state_is_said_once(autojump_clock: object, kit: Any) -> None:
    async with kit.desk() as desk:
        for _ in range(3):
            await desk.state(ConnectorState.RUNNING, "all well")
        await desk.state(ConnectorState.RUNNING, "one channel less")
    assert [update["detail"] for update in kit.house.of("state_update")] == ["all well", "one channel less"]


@pytest.mark.parametrize(
    ("fault", "state"),
    [(Disconnected("gone"), "backing_off"), (Banned("K-lined", hint="ask"), "stopped")],
)
async def test_a_fall_is_said_and_passed_on(
    autojump_clock: object, kit: Any, fault: Exception, state: str
) -> None:
    class Falling:
        service, instance = "irc", "lab"

        async def run(self, desk: Desk, *, task_status: Any) -> None:
            task_status.started()
            raise ExceptionGroup("", [fault])

    with pytest.raises(BaseExceptionGroup) as caught:
        await attend(kit.env, Falling(), kit.settings, kit.house)  # type: ignore[arg-type]
    assert fall_of(caught.value) is fault
    assert [update["state"] for update in kit.house.of("state_update")] == ["starting", state]


# -- delivery ---------------------------------------------------------------------------------------------------


async def test_an_intent_is_sent_once_and_said_twice(autojump_clock: object, kit: Any) -> None:
    platform = Platform()
    async with delivering(kit, platform.send):
        trace_id = kit.house.intend(OPS, "hi")
        assert await kit.house.final(trace_id) == "delivered"
        await kit.house.wait(lambda: not kit.house.pending)
    assert platform.said == [("ops", "hi")]
    assert kit.house.statuses(trace_id) == ["sent", "delivered"]
    sent, final = kit.house.of("delivery_status")
    assert sent["channel"] == OPS and final["remote_id"] == "r0" and "latency_ms" in final


async def test_sent_is_on_disk_before_the_platform_sees_anything(autojump_clock: object, kit: Any) -> None:
    kit.house.publish_delay_s = 5.0
    platform = Platform()
    async with delivering(kit, platform.send):
        kit.house.intend(OPS, "hi")
        await trio.sleep(4)
        assert not platform.said
        await trio.sleep(2)
        assert platform.said


async def test_a_channel_keeps_its_order_and_another_does_not_wait(autojump_clock: object, kit: Any) -> None:
    platform = Platform()
    platform.hold = trio.Event()
    async with delivering(kit, platform.send):
        for number in range(3):
            kit.house.intend(OPS, f"o{number}")
        kit.house.intend(DEV, "d0", conversation="dev")
        await kit.house.wait(lambda: len(platform.said) == 2)
        assert sorted(platform.said) == [("dev", "d0"), ("ops", "o0")]
        platform.hold.set()
        await kit.house.wait(lambda: not kit.house.pending)
    assert [text for where, text in platform.said if where == "ops"] == ["o0", "o1", "o2"]


async def test_a_key_is_acknowledged_from_its_beginning_though_two_channels_share_it(
    autojump_clock: object, kit: Any
) -> None:
    platform = Platform()
    holding = trio.Event()

    async def send(intent: Intent) -> Outcome:
        if intent.channel == OPS:
            await holding.wait()
        return await platform.send(intent)

    async with delivering(kit, send):
        kit.house.intend(OPS, "first")
        second = kit.house.intend(DEV, "second")
        assert await kit.house.final(second) == "delivered"
        await trio.sleep(1)
        assert len(kit.house.pending) == 2 and not kit.house.done
        holding.set()
        await kit.house.wait(lambda: not kit.house.pending)


async def test_after_a_crash_the_final_is_done_the_written_is_unknown_the_rest_is_sent(
    autojump_clock: object, kit: Any
) -> None:
    first = Platform()
    first.hold = trio.Event()
    async with delivering(kit, first.send):
        written = kit.house.intend(OPS, "written")
        waiting = kit.house.intend(OPS, "waiting")
        await kit.house.wait(lambda: first.said)
    assert kit.house.statuses(written) == ["sent"]
    second = Platform()
    async with delivering(kit, second.send):
        assert await kit.house.final(written) == "unknown"
        assert await kit.house.final(waiting) == "delivered"
        await kit.house.wait(lambda: not kit.house.pending)
    assert second.said == [("ops", "waiting")]

    # An acknowledgement that was lost: the record comes again, its state is final, nothing is sent.
    kit.house.intend(OPS, "again")
    (record,) = kit.house.pending
    async with delivering(kit, second.send):
        await kit.house.wait(lambda: not kit.house.pending)
    kit.house.pending.append(record)
    async with delivering(kit, second.send):
        await kit.house.wait(lambda: not kit.house.pending)
    assert second.said == [("ops", "waiting"), ("ops", "again")]


async def test_nothing_is_written_before_the_facade_has_said_what_it_knows(
    autojump_clock: object, kit: Any
) -> None:
    kit.house.intend(OPS, "backlog")
    kit.house.refuse_status = 3
    platform = Platform()
    async with delivering(kit, platform.send):
        await kit.house.wait(lambda: not kit.house.pending)
    asked = [topic for topic, _ in kit.house.asked]
    assert asked == ["bridge/core/status"] * 4
    assert platform.said == [("ops", "backlog")]


async def test_a_record_that_a_new_link_gives_again_is_not_sent_again(
    autojump_clock: object, kit: Any
) -> None:
    platform = Platform()
    platform.hold = trio.Event()
    async with delivering(kit, platform.send):
        kit.house.intend(OPS, "once")
        await kit.house.wait(lambda: platform.said)
        (record,) = kit.house.pending
        (subscription,) = kit.house.subscriptions
        subscription.send.send_nowait(record)
        platform.hold.set()
        await kit.house.wait(lambda: not kit.house.pending)
        subscription.send.send_nowait(record)
        await kit.house.wait(lambda: len(kit.house.done) == 2)
    assert platform.said == [("ops", "once")]


async def test_a_throttled_channel_waits_and_says_so(autojump_clock: object, kit: Any) -> None:
    platform = Platform()
    platform.answers = [Retry(42.0, "FLOOD_WAIT_42")]
    async with delivering(kit, platform.send):
        began = trio.current_time()
        kit.house.intend(OPS, "a")
        kit.house.intend(OPS, "b")
        await kit.house.wait(lambda: not kit.house.pending)
        assert trio.current_time() - began >= 42
    assert platform.said == [("ops", "a"), ("ops", "b")]
    (throttle,) = kit.house.of("throttle")
    assert throttle["retry_after_ms"] == 42_000 and throttle["queue_depth"] >= 1
    assert throttle["reason"] == "FLOOD_WAIT_42" and throttle["key"] == OPS


async def test_a_refusal_is_final_and_named(autojump_clock: object, kit: Any) -> None:
    platform = Platform()
    platform.answers = [Failed(code="forbidden", message="banned", native="404")]
    async with delivering(kit, platform.send):
        trace_id = kit.house.intend(OPS, "a")
        assert await kit.house.final(trace_id) == "failed"
    (status,) = kit.house.of("delivery_status")
    assert status["error"] == {
        "code": "forbidden",
        "message": "banned",
        "retryable": False,
        "native": "404",
    }


async def test_a_lost_platform_leaves_the_record_for_the_next_attempt(
    autojump_clock: object, kit: Any
) -> None:
    platform = Platform()
    platform.answers = [Disconnected("gone")]
    with pytest.raises(BaseExceptionGroup) as caught:
        async with delivering(kit, platform.send):
            kit.house.intend(OPS, "a")
            await trio.sleep_forever()
    assert isinstance(fall_of(caught.value), Disconnected)
    assert len(kit.house.pending) == 1
    async with delivering(kit, platform.send):
        await kit.house.wait(lambda: not kit.house.pending)
    assert platform.said == [("ops", "a")]


async def test_a_bug_over_one_intent_is_a_dead_letter_and_stops_nothing_else(
    autojump_clock: object, kit: Any
) -> None:
    platform = Platform()

    async def send(intent: Intent) -> Outcome:
        if intent.text == "poison":
            raise ZeroDivisionError("a value")
        return await platform.send(intent)

    async with delivering(kit, send):
        poison = kit.house.intend(OPS, "poison")
        kit.house.intend(OPS, "fine")
        await kit.house.wait(lambda: not kit.house.pending)
    assert kit.house.statuses(poison) == ["dead_lettered"]
    ((_, code, reason),) = kit.house.dead
    assert code == "internal" and "ZeroDivisionError in send" in reason and "a value" not in reason
    assert platform.said == [("ops", "fine")]


@pytest.mark.parametrize(
    ("payload", "metadata", "code"),
    [
        ({"text": 7}, {}, "invalid_field"),
        ({"reply_to": "x"}, {}, "invalid_field"),
        ({"text": None}, {}, "missing_field"),
        ({}, {"tenant": "beta"}, "tenant_mismatch"),
    ],
)
async def test_what_is_no_intent_is_a_dead_letter_with_its_reason(
    autojump_clock: object, kit: Any, payload: dict[str, Any], metadata: dict[str, Any], code: str
) -> None:
    platform = Platform()
    async with delivering(kit, platform.send):
        trace_id = kit.house.intend(OPS, **{"text": "x", "metadata": metadata, **payload})
        kit.house.append("bridge/irc/lab/outbound_message", b"{", b"other")
        await kit.house.wait(lambda: not kit.house.pending)
    assert sorted(dead[1] for dead in kit.house.dead) == sorted([code, "bad_envelope"])
    assert kit.house.statuses(trace_id) == ["dead_lettered"]
    assert not platform.said


async def test_an_intent_whose_time_is_over_is_not_written(autojump_clock: object, kit: Any) -> None:
    platform = Platform()
    async with delivering(kit, platform.send):
        trace_id = kit.house.intend(OPS, "late", metadata={"expires_at": "2020-01-01T00:00:00Z"})
        assert await kit.house.final(trace_id) == "expired"
    assert not platform.said


async def test_a_cancellation_after_the_platform_confirmed_still_says_so(
    autojump_clock: object, kit: Any
) -> None:
    platform = Platform()
    platform.hold = trio.Event()
    async with delivering(kit, platform.send) as scope:
        trace_id = kit.house.intend(OPS, "hi")
        await kit.house.wait(lambda: platform.said)
        kit.house.publish_delay_s = 0.5
        platform.hold.set()
        await trio.sleep(0.1)
        scope.cancel()
    assert kit.house.statuses(trace_id) == ["sent", "delivered"]
    assert not kit.house.pending
