"""Honesty: the fake answers what InspIRCd and ngIRCd were recorded to answer, line by line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import pytest

from bridged.peers.irc import IrcNetwork, open_irc_network
from bridged.peers.irc.operators import shut_down
from shards.env import Env
from tests.bridged.peers.irc.masks import mask
from tests.bridged.peers.irc.replay import Player, Segment, differences, load, segments

TRANSCRIPTS = Path(__file__).parents[3] / "vectors" / "irc-transcripts"
SCENARIOS = [
    "register", "caps", "sasl", "join-part", "messages", "messages-ping", "nick-changes", "modes", "queries",
    "netsplit", "quit-ping", "not-offered",
]  # fmt: skip
"""`flood` is paced by load and kernel buffers; its rules are tested in `test_flood`."""

KNOWN: dict[tuple[str, str], dict[tuple[str, str], str]] = {
    ("inspircd", "sasl"): {
        (
            "carol#1",
            "AUTHENTICATE PLAIN",
        ): "services answer at once here, before the CAP END of the same write",
        ("bob#3", "AUTHENTICATE +"): "the replay has no TLS; `test_network.test_sasl` has",
        ("bob#3", "WHOIS bob bob"): "the same",
        ("alice#3", "CAP END"): "906 comes before the welcome here, which waits for no tick",
    },
    ("inspircd", "netsplit"): {
        ("erin#1", "JOIN #room"): "the end of a server that was started in between",
        ("alice#1", "NAMES #room"): "the same",
        ("carol#1", "NICK clash"): "the same",
    },
    ("ngircd", "netsplit"): {
        ("erin#1", "JOIN #room"): "the end of a server that was started in between",
        ("alice#1", "NAMES #room"): "the same",
    },
    ("inspircd", "quit-ping"): {
        ("alice#7", "NICK alice"): "a close with half a line was noticed after 4 s there, at once here",
        ("alice#7", "JOIN #room"): "the same",
        ("alice#7", "PRIVMSG #room :last words"): "the same",
        ("watcher#1", "JOIN #room"): "the same",
        ("final#1", "JOIN #room"): "a shutdown takes users in another order",
        ("alice#11", "CAP END"): "SIGTERM and SIGKILL are not in the transcript as steps; see `test_network`",
        ("bob#1", "NICK bob"): "the same",
        ("unregistered#1", "CAP LS 302"): "the same",
        ("alice#12", "NICK alice"): "the same",
    },
    ("ngircd", "quit-ping"): {
        ("tina#1", "NICK tina"): "the replay has no TLS",
        ("tina#2", "NICK tina"): "the same",
        ("alice#11", "CAP END"): "SIGTERM and SIGKILL are not in the transcript as steps; see `test_network`",
        ("bob#1", "NICK bob"): "the same",
        ("unregistered#1", "CAP LS 302"): "the same",
        ("alice#12", "NICK alice"): "the same",
    },
    ("ngircd", "register"): {("judy#1", "PASS secret"): "another MOTD, and the lab's SIGTERM"},
    ("ngircd", "queries"): {("alice#1", "HELP"): "a help text that no bridge asks for"},
    ("ngircd", "not-offered"): {("alice#1", "METADATA * LIST"): "a command between servers"},
}


def deeds(net: IrcNetwork, flavour: str, scenario: str) -> dict[str, Callable[[], None]]:
    """What the recorder did to its servers at a note."""

    def with_password() -> None:
        net.options = attrs.evolve(net.options, password="secret", registration_s=5.0)
        net.dialect = attrs.evolve(net.dialect, motd=())

    def second_server_dies() -> None:
        net.faults.split()
        for user in list(net.servers[1].world.users.values()):
            assert user.link is not None
            user.link.reset()

    return {
        "server with a password": with_password,
        "services end": lambda: net.faults.services(up=False),
        "services return": lambda: net.faults.services(up=True),
        "the other server is killed": second_server_dies,
    }


@pytest.mark.parametrize("scenario", SCENARIOS)
@pytest.mark.parametrize("flavour", ["inspircd", "ngircd"])
async def test_it_answers_what_was_recorded(
    env: Env, autojump_clock: object, flavour: Any, scenario: str
) -> None:
    records = load(TRANSCRIPTS / flavour / f"{scenario}.jsonl")
    split = scenario == "netsplit"
    ping_s = 5.0 if scenario == "quit-ping" else 60.0
    async with open_irc_network(env, flavour=flavour, servers=2 if split else 1, ping_s=ping_s) as net:
        if flavour == "inspircd" and scenario in ("sasl", "caps", "nick-changes"):
            for name in ("alice", "bob", "carol", "dave", "erin"):
                net.add_account(name, f"pw-{name}")
        if split:
            net.faults.split()  # the recorder links the two by CONNECT
        password = "AUTHENTICATE YWxpY2UAYWxpY2UAcHctYWxpY2U="
        found = await Player(net, records, mask).play(
            deeds(net, flavour, scenario),
            server_of=lambda who: 1 if split and who in ("bob", "dave", "erin") else 0,
            before={("services end while SASL runs", password): [lambda: net.faults.services(up=False)]},
        )
    recorded = segments(records, mask)
    known = KNOWN.get((flavour, scenario), {})
    unknown = [
        text
        for text in differences(recorded, found, in_any_order=split)
        if not any(text.startswith(f"{who} ") and f" C {sent}" in text.split("\n")[0] for who, sent in known)
    ]
    assert not unknown, "\n".join(unknown)
    assert steps(recorded) > 5


def steps(recorded: dict[str, list[Segment]]) -> int:
    return sum(len(own) for own in recorded.values())


async def test_a_shutdown_says_error_and_ends(env: Env, autojump_clock: object) -> None:
    async with open_irc_network(env) as net:
        stream = net.connect_memory()
        await stream.send_all(b"NICK alice\r\nUSER alice 0 * :a\r\nPING :there\r\n")
        await net.wait_line(lambda entry: entry.text.endswith(":there") and entry.direction == "out")
        shut_down(net, by_signal=True)
        seen = b""
        while data := await stream.receive_some():
            seen += data
        assert seen.endswith(b"ERROR :Closing link: (alice@127.0.0.1) [Server shutting down]\r\n")
