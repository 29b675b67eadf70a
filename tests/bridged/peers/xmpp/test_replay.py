"""Honesty: the fake answers what Prosody was recorded to answer, tree by tree."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio

from bridged.peers.authority import Authority
from bridged.peers.xmpp import open_xmpp_server
from shards.env import Env
from tests.bridged.peers.xmpp.replay import Player, began_at, differences, load, segments

TRANSCRIPTS = Path(__file__).parents[3] / "vectors" / "xmpp" / "transcripts"
SCENARIOS = [
    "01-starttls-scram-bind", "02-direct-tls", "03-roster-presence", "04-sm-enable-resume", "05-carbons",
    "06-muc-join", "07-muc-messages", "08a-mam-muc", "08b-mam-user", "11-errors",
]  # fmt: skip
"""Not played: channel binding (01b), tombstones (06b), uploads (09), components (10), rate limits (11b), restarts of the
server (11c: `test_server`), PEP and vCards (12): the fake does not have them."""

KNOWN: dict[str, dict[tuple[str, str], str]] = {
    "01": {
        ("alice#4", "<presence id"): "a resource that the server makes",
        ("alice#4", "<iq id"): "the same",
        ("nobody/one#6", "<auth"): "played as PLAIN, which fails with a text",
    },
    "04": {
        ("bob/one", '<presence id="bob-one-4"'): "how often a new contact's presence is repeated",
        (
            "bob/one",
            '<message type="chat" to="alice@localhost/one" id="bob-one-13"',
        ): "when a clean end is told",
        (
            "bob/one",
            '<message type="chat" to="alice@localhost/one" id="bob-one-18"',
        ): "the replay's end of a connection",
        ("bob/one", '<message type="groupchat" to="l@muc.localhost" id="bob-one-24"'): "the same",
        ("alice/one", '<presence id="alice-one-5"'): "how often a new contact's presence is repeated",
        (
            "alice/one",
            '<resume xmlns="urn:xmpp:sm:3" h="12"',
        ): "one message is read before the replay stops to read",
        ("alice/one", '<resume xmlns="urn:xmpp:sm:3" h="14"'): "the same",
        ("alice/one#7", "<presence id"): "a sleeping resource's presence",
    },
    "06": {
        ("alice/one", '<iq id="alice-one-4" type="get"'): "fewer fields in the configuration form",
        ("bob/one", "<presence to='new@strict.localhost/bob'"): "a second room service",
    },
    "08a": {("alice/one", "<iq type='set' id='mam-end'"): "a bound in whole seconds"},
    "08b": {("alice/one#2", "<iq type='set' id='mam-prefs-set'"): "archiving preferences are not kept"},
}


@pytest.mark.parametrize("scenario", SCENARIOS)
async def test_it_answers_what_was_recorded(env: Env, autojump_clock: object, scenario: str) -> None:
    records = load(TRANSCRIPTS / f"{scenario}.jsonl")
    began, started = began_at(records) or time.time(), trio.current_time()
    env = attrs.evolve(env, wall=lambda: began + trio.current_time() - started)
    by_file: dict[str, dict[str, Any]] = {"04": {"hibernation_s": 3.0}, "11": {"stanza_bytes_max": 20_000}}
    options = by_file.get(scenario[:2], {})
    async with open_xmpp_server(env, authority=Authority(now=time.time()), **options) as srv:
        for name in ("alice", "bob", "carol", "bridge"):
            srv.add_user(name, f"pw-{name}")
        player = Player(srv, records, srv.client_context())
        steps: dict[str, Callable[[], None]] = {"C: server to client lost": lambda: player.pause("alice/one")}
        found = await player.play(steps if scenario.startswith("04") else {})
    recorded = segments(records)
    known = KNOWN.get(scenario.partition("-")[0], {})
    unknown = [
        text
        for text in differences(recorded, found, in_any_order=scenario[:2] in ("03", "04", "06"))
        if not any(text.startswith(f"{who} ") and f" C {sent}" in text.split("\n")[0] for who, sent in known)
    ]
    assert not unknown, "\n".join(unknown)
    assert sum(len(own) for own in recorded.values()) > 5
