"""Whatever clients say, the network goes on: random commands with random words, on both flavours."""

from __future__ import annotations

import random
from typing import Any

import pytest

from bridged.peers.irc import open_irc_network
from bridged.peers.irc.dialect import DIALECTS
from shards.env import Env

COMMANDS = [
    "CAP",
    "PASS",
    "NICK",
    "USER",
    "AUTHENTICATE",
    "AWAY",
    "SETNAME",
    "PING",
    "PONG",
    "JOIN",
    "PART",
    "NAMES",
    "TOPIC",
    "INVITE",
    "KICK",
    "LIST",
    "MODE",
    "SAMODE",
    "PRIVMSG",
    "NOTICE",
    "TAGMSG",
    "BATCH",
    "CHATHISTORY",
    "WHO",
    "WHOIS",
    "WHOWAS",
    "USERHOST",
    "ISON",
    "LUSERS",
    "VERSION",
    "MOTD",
    "TIME",
    "LINKS",
    "ADMIN",
    "STATS",
    "INFO",
    "MONITOR",
    "OPER",
    "KILL",
    "KLINE",
    "ZLINE",
    "SQUIT",
    "CONNECT",
    "SANICK",
    "CHGHOST",
    "UNLOADMODULE",
    "LOADMODULE",
    "ERROR",
    "FOO",
]
WORDS = [
    "alice",
    "bob",
    "irene",
    "#a",
    "#b",
    "#A",
    "&x",
    "+",
    "-",
    "*",
    "0",
    "+o",
    "-o",
    "+b",
    "-b",
    "+kl",
    "+l",
    "-k",
    "+H",
    "5:1h",
    "b",
    "e",
    "I",
    "LS",
    "REQ",
    "END",
    "LIST",
    "302",
    ":sasl",
    "PLAIN",
    "=",
    "AAAA",
    "oper",
    "operpw",
    "b.localhost",
    "a.localhost",
    "m_setname.so",
    "LATEST",
    "BEFORE",
    "BETWEEN",
    "msgid=x",
    "timestamp=x",
    "timestamp=2026-01-01",
    "+1",
    "-1",
    "draft/multiline",
    "#a,#b,,bob",
    "@#a",
    "$*",
    "99999999999999999999",
    "\x01ACTION\x01",
    "é",
    "漢",
    ":a%b",
    ":::",
    "NickServ",
    ":REGISTER",
    "IDENTIFY",
    "GHOST",
]
TAGS = ("", "", "", "@label=x ", "@batch=1 ", "@+x=y;z ", "@;;= ", "@+draft/reply=\\ ")


@pytest.mark.parametrize("flavour", ["inspircd", "ngircd"])
@pytest.mark.parametrize("seed", range(4))
async def test_random_commands_break_nothing(
    env: Env, autojump_clock: object, flavour: Any, seed: int
) -> None:
    rng = random.Random(seed)
    extra = ("draft/multiline", "draft/chathistory") if flavour == "inspircd" else ()
    async with open_irc_network(env, flavour=flavour, servers=2, extra_capabilities=extra) as net:
        net.faults.services(up=flavour == "inspircd")
        irene = await net.person("irene")
        await irene.join("#a")
        for round_ in range(6):
            for nick in ("alice", "bob"):
                stream = net.connect_memory(round_ % 2)
                caps = " ".join(DIALECTS[flavour].capabilities)
                head = f"CAP REQ :{caps}\r\nNICK {nick}\r\nUSER {nick} 0 * :x\r\nCAP END\r\nJOIN #a\r\n"
                lines = [
                    rng.choice(TAGS)
                    + " ".join([rng.choice(COMMANDS), *rng.choices(WORDS, k=rng.randrange(6))])
                    for _ in range(120)
                ]
                await stream.send_all((head + "\r\n".join(lines) + "\r\n").encode())
                await net.wait_line(lambda entry: entry.direction == "in")
        await irene.join("#still")
        assert "irene" in net.members("#still") or irene.user.gone
