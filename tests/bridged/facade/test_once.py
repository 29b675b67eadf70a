"""Nothing lost, nothing doubled, nothing leaked: over crashes, redeliveries and random conversations."""

from __future__ import annotations

import random
from typing import Any

import pytest

from bridged.envelope import Envelope

IRC = "msgr://channels/acme/bridge/irc/irc.lab/%23ops"
XMPP = "msgr://channels/acme/bridge/xmpp/ops@muc.localhost"
CHANNELS = (
    IRC,
    XMPP,
    "msgr://channels/acme/bridge/irc/irc.lab/%23board",
    "msgr://channels/acme/bridge/xmpp/board@muc.localhost",
)


def scenario(house: Any) -> list[list[Any]]:
    """Batches of records of a short life."""
    said = house.said(IRC, "helo", "r1", trace_id="a" * 32, cursor={"stream": "#ops", "value": "1"})
    delivered = {"status": "delivered", "channel": XMPP, "attempt": 1, "remote_id": "s1"}
    return [
        [said, house.said(XMPP, "hei", "s7", who="alice", trace_id="b" * 32)],
        [house.record("xmpp", "delivery_status", delivered, trace_id="a" * 32)],
        [house.told(IRC, "edit_event", remote_id="r1", edit_id="e1", text="hello", trace_id="c" * 32)],
        [house.record("irc", "inbound_message", {}, raw=b"[]")],
        [house.told(XMPP, "reaction_event", who="alice", remote_id="s1", emojis=["👍"], trace_id="d" * 32)],
        [house.told(IRC, "redaction_event", remote_id="r1", trace_id="e" * 32)],
        [
            house.told(
                IRC,
                "gap_event",
                who=None,
                reason="connection_lost",
                trace_id="f" * 32,
                **{"from": "2026-11-24T09:00:00Z", "to": "2026-11-24T09:00:09Z"},
            )
        ],
    ]


async def seen(house: Any) -> list[tuple[str, str, str]]:
    """What the log holds of the facade, in order: (topic, trace id, text)."""
    await house.drain()
    found = []
    for topic, _, payload in house.fabric.records:
        envelope = Envelope.decode(payload)
        text = envelope.payload.get("text", envelope.payload.get("status"))
        found.append((topic, envelope.trace_id, str(text)))
    return found


@pytest.mark.parametrize("crash_after", range(7))
async def test_a_crash_after_any_commit_loses_and_doubles_nothing(open_one: Any, crash_after: int) -> None:
    async with open_one() as house:
        batches = scenario(house)
        for batch in batches[: crash_after + 1]:
            await house.hear(
                *batch
            )  # committed; the broker never heard that it is done, nothing was published
        fabric = house.fabric
    async with open_one(fabric=fabric) as house:
        for batch in batches:
            await house.hear(*batch)
        crashed = await seen(house)
        rows = await house.rows("SELECT text, edits, redacted FROM message ORDER BY id")
        dump = await house.dump()
        for batch in batches:  # `bridgectl replay` of all of it
            await house.hear(*batch)
        assert await house.dump() == dump
    topics = [topic for topic, _, _ in crashed]
    assert topics.count("bridge/xmpp/main/outbound_message") == 2
    assert topics.count("bridge/irc/main/outbound_message") == 1
    assert topics.count("bridge/xmpp/main/outbound_edit_message") == 1
    assert topics.count("bridge/irc/main/outbound_reaction") == 1
    assert topics.count("bridge/xmpp/main/outbound_delete_message") == 1
    assert topics.count("bridge/core/event") == 8
    assert [row[1:] for row in rows] == [(1, 1), (0, 0), (0, 0)]


async def test_what_was_published_and_not_forgotten_is_published_once(open_one: Any) -> None:
    """A crash between the log's acknowledgement and the outbox's deletion."""
    async with open_one() as house:
        await house.hear(house.said(IRC, "one", "r1"), house.said(IRC, "two", "r2"))
        fabric = house.fabric
        kept = await house.rows("SELECT id, topic, key, payload, digest FROM outbox")
        await house.drain()
        n = len(fabric.records)

        def back(tx: Any) -> None:
            tx.executemany("INSERT INTO outbox VALUES (?, ?, ?, ?, ?)", kept)
            tx.execute("UPDATE message SET offset = NULL")

        await house.core.database.write(back)
    async with open_one(fabric=fabric) as house:
        await house.drain()
        assert len(fabric.records) == n
        assert await house.rows("SELECT offset FROM message ORDER BY id") == [(0,), (1,)]


@pytest.mark.parametrize("seed", range(5))
async def test_random_replies_never_quote_another_conversation(house: Any, seed: int) -> None:
    rng = random.Random(seed)
    of = {channel: "ops" if "ops" in channel else "board" for channel in CHANNELS}
    names: list[str] = []
    for n in range(60):
        channel = rng.choice(CHANNELS)
        remote_id = f"{rng.choice('abc')}{n}"
        reply_to = rng.choice([*names, None]) if names else None
        text = f"{of[channel]}-secret-{n}"
        await house.hear(
            house.said(channel, text, remote_id, who=rng.choice(["ola", "kari"]), reply_to=reply_to)
        )
        names += [remote_id, f"out-{n}"]
        if rng.random() < 0.3:  # some deliveries get names that others will point at
            intent = (await house.outbox("outbound_message"))[-1]
            service = intent.service
            payload = {
                "status": "delivered",
                "channel": intent.payload["channel"],
                "attempt": 1,
                "remote_id": f"out-{n}",
            }
            await house.hear(house.record(service, "delivery_status", payload, trace_id=intent.trace_id))
    quotes = 0
    for envelope in await house.outbox("outbound_message"):
        quoted = envelope.payload["reply_to"]
        if quoted is not None:
            quotes += 1
            assert quoted["text"].startswith(envelope.payload["conversation"])
    assert quotes > 3
    for event in await house.events("message"):
        if event["reply_to"] is not None:
            assert event["reply_to"]["text"].startswith(event["conversation"])
