"""The session: recorded servers replayed through it, and what the recordings cannot show."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridged.connectors.irc.events import (
    Event,
    Expelled,
    Joined,
    Message,
    Moved,
    Named,
    NotJoined,
    Redacted,
    Refused,
    Registered,
)
from bridged.connectors.irc.login import Login
from bridged.connectors.irc.session import REGISTRATION_S, SASL_S, Session
from bridged.connectors.irc.wire import IrcLine, LineBuffer, LineFault
from bridged.errors import BadCredentials, Banned, ConnectorError, Disconnected
from bridged.secret import Secret

TRANSCRIPTS = Path(__file__).parents[3] / "vectors" / "irc-transcripts"
FILES = sorted(f"{path.parent.name}/{path.stem}" for path in TRANSCRIPTS.glob("*/*.jsonl"))


def connections(name: str) -> Iterator[tuple[str, list[tuple[float, bytes]]]]:
    """Each recorded connection: the nick it meant to have, and what the server said with the times."""
    open_ones: dict[str, list[tuple[float, bytes]]] = {}
    for text in (TRANSCRIPTS / f"{name}.jsonl").read_text("utf-8").split("\n")[:-1]:
        record = json.loads(text)
        who = record["who"]
        if record["dir"] == "C" and str(record.get("event", "")).startswith("connect"):
            if who in open_ones:
                yield who, open_ones.pop(who)
            open_ones[who] = []
        elif record["dir"] == "S" and "event" not in record:
            raw = bytes.fromhex(record["hex"]) if "hex" in record else record["line"].encode()
            open_ones.setdefault(who, []).append((record["t"], raw))
    yield from open_ones.items()


def replay(nick: str, lines: list[tuple[float, bytes]]) -> tuple[Session, list[Event], ConnectorError | None]:
    """A fresh session hears a recorded connection."""
    session = Session(nick=nick)
    events: list[Event] = []
    began = lines[0][0] if lines else 0.0
    session.open(began)
    try:
        for at, raw in lines:
            events += session.receive(IrcLine.decode(raw), at)
            if session.deadline <= at:
                events += session.tick(at)
    except ConnectorError as exc:
        return session, events, exc
    return session, events, None


@pytest.mark.parametrize("name", FILES)
def test_every_recorded_line_is_understood_or_ends_the_connection_by_name(name: str) -> None:
    for nick, lines in connections(name):
        session, events, fall = replay(nick, lines)
        for line in session.lines():
            line.encode()
        assert session.faults == 0
        if any(b" 001 " in raw for _, raw in lines) and fall is None:
            assert any(isinstance(event, Registered) for event in events)


def heard(name: str, nick: str) -> tuple[Session, list[Event], ConnectorError | None]:
    for who, lines in connections(name):
        if who == nick:
            return replay(nick, lines)
    raise LookupError(nick)


@pytest.mark.parametrize(
    ("server", "casemapping", "nick_length", "prefix", "user"),
    [("inspircd", "rfc1459", 30, "@+", "alice"), ("ngircd", "ascii", 16, "~&@%+", "~alice")],
)
def test_the_servers_ways_are_learnt(
    server: str, casemapping: str, nick_length: int, prefix: str, user: str
) -> None:
    session, _, _ = heard(f"{server}/messages", "alice")
    assert session.support.casemapping == casemapping
    assert session.support.nick_length == nick_length
    assert session.support.prefix_symbols == prefix
    assert (session.user, session.host) == (user, "127.0.0.1")
    assert session.text_bytes("PRIVMSG", "#room") == 510 - len(f":alice!{user}@127.0.0.1 PRIVMSG #room :")


@pytest.mark.parametrize("server", ["inspircd", "ngircd"])
def test_messages_notices_and_actions_are_told_apart(server: str) -> None:
    _, events, _ = heard(f"{server}/messages", "bob")
    kinds = {event.kind for event in events if isinstance(event, Message)}
    assert kinds == {"message", "notice", "action"}
    assert all("\x01" not in event.text[:1] for event in events if isinstance(event, Message))


def test_our_own_echo_is_ours_and_has_the_networks_id() -> None:
    _, events, _ = heard("inspircd/messages", "alice")
    own = [event for event in events if isinstance(event, Message) and event.is_own]
    assert own and all(event.msgid for event in own)


def test_error_replies_are_events_with_their_target() -> None:
    refused = {
        (event.numeric, event.target)
        for nick, lines in connections("inspircd/messages-ping")
        for event in replay(nick, lines)[1]
        if isinstance(event, Refused)
    }
    assert {"401", "403", "404"} <= {numeric for numeric, _ in refused}
    assert ("401", "absent") in refused


def test_refused_joins_are_told_with_their_numbers() -> None:
    for server in ("inspircd", "ngircd"):
        numerics: set[str] = set()
        for nick, lines in connections(f"{server}/join-part"):
            _, events, _ = replay(nick, lines)
            numerics |= {event.numeric for event in events if isinstance(event, NotJoined)}
        assert {"471", "473", "474", "475"} <= numerics


def test_a_recorded_netsplit_is_held_as_one_event() -> None:
    for server in ("inspircd", "ngircd"):
        moved: list[Moved] = []
        for nick, lines in connections(f"{server}/netsplit"):
            session, events, _ = replay(nick, lines)
            events += session.channels.tick(lines[-1][0] + 2) if lines else []
            moved += [event for event in events if isinstance(event, Moved)]
        assert any(event.change == "split" for event in moved)
        assert any(event.change == "rejoin" for event in moved)


def test_a_kill_is_a_disconnection_and_a_kline_a_ban() -> None:
    falls = [
        (raw, fall)
        for server in ("inspircd", "ngircd")
        for nick, lines in connections(f"{server}/quit-ping")
        for fall in [replay(nick, lines)[2]]
        for raw in [lines[-1][1] if lines else b""]
        if fall is not None
    ]
    killed = [fall for raw, fall in falls if b"Kill" in raw or b"KILL" in raw]
    banned = [fall for raw, fall in falls if b"K-lined" in raw or b"K-Line" in raw]
    assert killed and all(isinstance(fall, Disconnected) for fall in killed)
    assert banned and all(isinstance(fall, Banned) for fall in banned)


def test_what_a_server_plays_back_is_known_for_old() -> None:
    played = [
        event
        for nick, lines in connections("inspircd/not-offered")
        for event in replay(nick, lines)[1]
        if isinstance(event, Message) and event.is_playback
    ]
    assert played and all(event.msgid and event.time for event in played)


# -- what no recording shows --------------------------------------------------------------------------------------


def say(session: Session, *lines: str, now: float = 0.0) -> list[Event]:
    return [event for line in lines for event in session.receive(IrcLine.decode(line.encode()), now)]


def written(session: Session) -> list[str]:
    return [line.body() for line in session.lines()]


def login(method: str = "sasl") -> Login:
    return Login(name="irc/lab", method=method, username="kari", password=Secret(b"pw"))


def welcome(session: Session) -> None:
    say(session, ":s CAP * LS :", ":s 001 me :Welcome me!u@h")
    session.lines()


def test_capabilities_are_asked_for_in_one_go_and_one_by_one_after_a_refusal() -> None:
    session = Session(nick="me")
    session.open(0)
    assert written(session) == ["CAP LS 302", "NICK me", "USER bridge 0 * :Msgr bridge"]
    say(session, ":s CAP * LS * :batch foo=1", ":s CAP * LS :server-time sasl=PLAIN")
    assert written(session) == ["CAP REQ :batch server-time"]
    say(session, ":s CAP * NAK :batch server-time")
    assert written(session) == ["CAP REQ batch", "CAP REQ server-time"]
    say(session, ":s CAP * NAK :batch")
    assert written(session) == []
    say(session, ":s CAP * ACK :server-time")
    assert written(session) == ["CAP END"]
    assert list(session.caps) == ["server-time"]


def test_capabilities_come_and_go() -> None:
    session = Session(nick="me")
    session.open(0)
    welcome(session)
    say(session, ":s CAP someone NEW :echo-message")
    assert written(session) == ["CAP REQ echo-message"]
    say(session, ":s CAP me ACK :echo-message", ":s CAP other DEL :echo-message")
    assert not session.caps


def test_services_that_do_not_answer_are_a_time_out() -> None:
    session = Session(nick="me", login=login())
    session.open(0)
    say(session, ":s CAP * LS :sasl", ":s CAP * ACK :sasl")
    assert written(session)[-1] == "AUTHENTICATE PLAIN"
    assert session.deadline == SASL_S
    with pytest.raises(Disconnected, match="services"):
        session.tick(SASL_S)


@pytest.mark.parametrize(("length", "sizes"), [(10, [20]), (594, [400, 396]), (597, [400, 400, 1])])
def test_a_long_password_goes_in_chunks_of_400(length: int, sizes: list[int]) -> None:
    secret = Secret(b"x" * length)
    session = Session(nick="me", login=Login(name="n", method="sasl", username="u", password=secret))
    session.open(0)
    say(session, ":s CAP * LS :sasl=PLAIN", ":s CAP * ACK :sasl")
    assert written(session)[-1] == "AUTHENTICATE PLAIN"
    say(session, "AUTHENTICATE :+")
    assert [len(line.split()[1]) for line in written(session)] == sizes
    say(session, ":s 900 me me!u@h u :in", ":s 903 me :ok")
    assert written(session) == ["CAP END"]
    assert session.account == "u"


def test_a_mechanism_that_is_not_there_after_all_gives_way_to_the_next() -> None:
    session = Session(nick="me", login=login(), nonce=b"n" * 18)
    session.open(0)
    say(session, ":s CAP * LS :sasl=SCRAM-SHA-256,PLAIN", ":s CAP * ACK :sasl")
    assert written(session)[-1] == "AUTHENTICATE SCRAM-SHA-256"
    say(session, ":s 908 me PLAIN :are available", ":s 904 me :failed")
    assert written(session) == ["AUTHENTICATE PLAIN"]
    with pytest.raises(BadCredentials):
        say(session, "AUTHENTICATE +", ":s 904 me :failed")


def test_a_server_that_welcomes_before_the_login_is_left() -> None:
    for lines in ([":s 421 me CAP :Unknown"], [":s 001 me :Welcome"], [":s CAP * LS :batch"]):
        session = Session(nick="me", login=login())
        session.open(0)
        with pytest.raises(Disconnected, match="SASL"):
            say(session, *lines)


def test_nickserv_is_waited_for() -> None:
    session = Session(nick="me", login=login("nickserv"))
    session.open(0)
    assert say(session, ":s CAP * LS :", ":s 001 me :Welcome me!u@h") == []
    assert written(session)[-1] == "PRIVMSG NickServ :IDENTIFY kari pw"
    (event,) = say(session, ":s 900 me me!u@h kari :You are now logged in")
    assert isinstance(event, Registered) and event.account == "kari"


def test_a_server_password_is_the_first_line_and_its_refusal_is_named() -> None:
    session = Session(nick="me", login=login("server_password"))
    session.open(0)
    assert written(session)[0] == "PASS pw"
    with pytest.raises(BadCredentials, match="password"):
        say(session, "ERROR :Closing link: (me@h) [Access denied by configuration]")


def test_taken_nicks_are_gone_through_and_the_wanted_one_is_taken_back() -> None:
    session = Session(nick="me", alt_nicks=("me2",))
    session.open(0)
    session.lines()
    say(session, ":s 433 * me :in use")
    assert written(session) == ["NICK me2"]
    say(session, ":s 433 * me2 :in use")
    assert written(session) == ["NICK me1"]
    say(session, ":s CAP * LS :", ":s 001 me1 :Welcome me1!u@h")
    assert written(session)[-1] == "NICK me"
    say(session, ":s 433 me1 me :in use", now=1)
    say(session, ":me!u@h QUIT :bye", now=2)
    assert written(session) == ["NICK me"]
    say(session, ":me1!u@h NICK me", now=3)
    assert session.nick == "me" and session.deadline == math.inf


def test_a_registration_without_end_is_left() -> None:
    session = Session(nick="me")
    session.open(5)
    with pytest.raises(Disconnected):
        session.tick(5 + REGISTRATION_S)


def joined(session: Session) -> None:
    welcome(session)
    say(
        session,
        ":me!u@h JOIN #ops",
        ":s 353 me = #ops :me @irene!i@h +bob",
        ":s 366 me #ops :End",
    )


def test_members_follow_names_joins_renames_and_leaves() -> None:
    session = Session(nick="me")
    session.open(0)
    welcome(session)
    events = say(session, ":me!u@h JOIN #ops", ":s 353 me = #ops :me @irene!i@h +bob", ":s 366 me #ops :End")
    assert events == [Joined("#ops"), Named("#ops", ("me", "irene", "bob"))]
    events = say(
        session,
        ":dave!d@h JOIN #OPS",
        ":bob!b@h NICK rob",
        ":dave!d@h PART #ops :later",
        ":rob!b@h QUIT :gone",
        ":op!o@h KICK #ops irene :why",
    )
    assert [(event.change, event.names) for event in events if isinstance(event, Moved)] == [
        ("join", ("dave",)),
        ("nick", ("bob",)),
        ("leave", ("dave",)),
        ("quit", ("rob",)),
        ("kick", ("irene",)),
    ]
    channel = session.channels.get("#OPS")
    assert channel is not None and list(channel.members.values()) == ["me"]
    (event,) = say(session, ":op!o@h KICK #ops ME :out")
    assert isinstance(event, Expelled) and event.by == "op"


def test_who_is_not_back_from_a_split_in_time_has_left() -> None:
    session = Session(nick="me", netsplit_s=60)
    session.open(0)
    joined(session)
    say(session, ":irene!i@h QUIT :a.net b.net", ":bob!b@h QUIT :a.net b.net", now=10)
    (split,) = session.tick(12)
    assert isinstance(split, Moved) and split.change == "split" and split.names == ("irene", "bob")
    say(session, ":bob!b@h JOIN #ops", now=20)
    (back,) = session.tick(22)
    assert isinstance(back, Moved) and back.change == "rejoin" and back.names == ("bob",)
    (gone,) = session.tick(71)
    assert isinstance(gone, Moved) and gone.change == "quit" and gone.names == ("irene",)
    assert session.deadline == math.inf


def test_a_split_in_a_batch_is_told_when_the_batch_ends() -> None:
    session = Session(nick="me")
    session.open(0)
    joined(session)
    events = say(
        session,
        ":s BATCH +x netsplit a.net b.net",
        "@batch=x :irene!i@h QUIT :anything",
        "@batch=x :bob!b@h QUIT :anything",
        ":s BATCH -x",
    )
    assert [(event.change, event.names) for event in events if isinstance(event, Moved)] == [
        ("split", ("irene", "bob"))
    ]


def test_a_person_cannot_play_a_split() -> None:
    session = Session(nick="me")
    session.open(0)
    joined(session)
    for reason in ("Quit: a.net b.net", '"a.net b.net"', "a.net b.net c", "see you"):
        (event,) = say(session, f":irene!i@h QUIT :{reason}", ":irene!i@h JOIN #ops")[:1]
        assert isinstance(event, Moved) and event.change == "quit"


def test_a_multiline_batch_is_one_message() -> None:
    session = Session(nick="me")
    session.open(0)
    joined(session)
    (event,) = say(
        session,
        "@msgid=xyz;time=2026-01-01T00:00:00.000Z :irene!i@h BATCH +m draft/multiline #ops",
        "@batch=m :irene!i@h PRIVMSG #ops hello",
        "@batch=m :irene!i@h PRIVMSG #ops :how is ",
        "@batch=m;draft/multiline-concat :irene!i@h PRIVMSG #ops :everyone?",
        ":s BATCH -m",
    )
    assert isinstance(event, Message)
    assert event.text == "hello\nhow is everyone?" and event.msgid == "xyz" and event.channel == "#ops"


def test_a_redaction_and_a_standard_reply_are_understood() -> None:
    session = Session(nick="me")
    session.open(0)
    joined(session)
    redacted, failed = say(
        session,
        ":irene!i@h REDACT #ops xyz :oops",
        "@label=b1 :s FAIL REDACT UNKNOWN_MSGID #ops xyz :no such message",
    )
    assert isinstance(redacted, Redacted) and redacted.msgid == "xyz"
    assert isinstance(failed, Refused)
    assert (failed.numeric, failed.target, failed.label) == ("UNKNOWN_MSGID", "#ops", "b1")


def test_an_old_line_of_ours_under_another_nick_is_still_ours() -> None:
    session = Session(nick="me")
    session.open(0)
    joined(session)
    events = say(
        session,
        ":s BATCH +h chathistory #ops",
        "@batch=h;time=2026-01-01T00:00:00.000Z;msgid=1 :me1!u@h PRIVMSG #ops :<ola> mine",
        "@batch=h;time=2026-01-01T00:00:00.000Z;msgid=2 :irene!i@h PRIVMSG #ops :hers",
        ":s BATCH -h",
    )
    assert [event.is_own for event in events if isinstance(event, Message)] == [True, False]


def test_our_longest_source_is_assumed_until_the_server_shows_it() -> None:
    session = Session(nick="me")
    before = session.text_bytes("PRIVMSG", "#ops")
    session.open(0)
    joined(session)
    assert session.text_bytes("PRIVMSG", "#ops") > before
    say(session, ":s 396 me a.very.long.cloak.example.org :is now your displayed host")
    assert session.host == "a.very.long.cloak.example.org"
    say(session, ":me!u@h CHGHOST new other.host")
    assert (session.user, session.host) == ("new", "other.host")


@given(st.lists(st.binary(max_size=120), max_size=30))
def test_any_bytes_are_events_or_a_named_end(chunks: list[bytes]) -> None:
    session = Session(nick="me")
    session.open(0)
    welcome(session)
    commands = [b"CAP", b"BATCH", b"JOIN", b"353", b"NICK", b"QUIT", b"KICK", b"005", b"AUTHENTICATE", b"900"]
    try:
        for number, chunk in enumerate(chunks):
            for raw in LineBuffer().receive(b":me!u@h " + commands[number % 10] + b" " + chunk + b"\n"):
                try:
                    line = IrcLine.decode(raw)
                except LineFault:
                    continue
                session.receive(line, float(number))
                session.tick(float(number))
    except ConnectorError:
        return
