"""Which line was dealt with: echoes, labels, acknowledgements, barriers and error replies."""

from __future__ import annotations

import math

from bridged.connectors.irc.attendance import REJOIN_S, RETRY_S, RETRY_S_MAX, Attendance
from bridged.connectors.irc.confirm import Confirmations, Confirmed, Ticket
from bridged.connectors.irc.events import Acked, Message, Pong, Refused
from bridged.connectors.irc.names import Support
from bridged.connectors.irc.wire import Source


def echo(target: str, *, label: str | None = None, msgid: str | None = None) -> Message:
    return Message(
        kind="message", source=Source("me"), target=target, channel=target, text="as the server cut it", tags={},
        msgid=msgid, account=None, time=None, label=label, is_own=True, is_playback=False,
    )  # fmt: skip


def refused(numeric: str, target: str, label: str | None = None) -> Refused:
    return Refused(numeric=numeric, target=target, text="no", label=label)


def issue(confirmations: Confirmations, target: str, command: str = "PRIVMSG") -> Ticket:
    ticket = confirmations.issue(command, target)
    ticket.is_written = True
    return ticket


def test_without_capabilities_a_ping_is_the_barrier() -> None:
    confirmations = Confirmations(Support(), {})
    one, two = issue(confirmations, "#ops"), issue(confirmations, "#dev")
    assert one.label is None and one.token and two.token
    assert confirmations.observe(Pong("something else", None)) is None
    assert confirmations.observe(Pong(one.token, None)) is one
    assert one.verdict == Confirmed(None)
    assert confirmations.observe(refused("404", "#DEV")) is two
    assert confirmations.observe(Pong(two.token, None)) is None
    assert isinstance(two.verdict, Refused)


def test_an_echo_confirms_by_its_target_and_brings_the_id() -> None:
    confirmations = Confirmations(Support(), {"echo-message": ""})
    ops, dev = issue(confirmations, "#Ops"), issue(confirmations, "#dev")
    assert confirmations.observe(echo("#dev", msgid="d")) is dev
    assert confirmations.observe(echo("#ops", msgid="o")) is ops
    assert ops.verdict == Confirmed("o") and ops.token is None


def test_labels_tell_lines_apart() -> None:
    confirmations = Confirmations(Support(), {"labeled-response": "", "batch": "", "echo-message": ""})
    one, two = issue(confirmations, "#ops"), issue(confirmations, "#ops")
    assert confirmations.observe(refused("404", "#ops", two.label)) is two
    assert confirmations.observe(echo("#ops", label=one.label)) is one


def test_an_acknowledgement_without_echo_is_enough() -> None:
    confirmations = Confirmations(Support(), {"labeled-response": "", "batch": ""})
    ticket = issue(confirmations, "#ops")
    assert ticket.label is not None and ticket.token is None
    assert confirmations.observe(Acked(ticket.label)) is ticket


def test_an_echo_that_never_comes_is_asked_for() -> None:
    confirmations = Confirmations(Support(), {"echo-message": ""})
    ticket = issue(confirmations, "#ops")
    barrier = confirmations.barrier(ticket)
    assert barrier is not None and confirmations.barrier(ticket) is None
    assert confirmations.observe(Pong(barrier[0], None)) is ticket
    assert isinstance(ticket.verdict, Refused) and ticket.verdict.numeric == "no echo"


def test_an_error_without_a_target_belongs_to_the_oldest_written_line() -> None:
    confirmations = Confirmations(Support(), {})
    one, two = issue(confirmations, "#ops"), issue(confirmations, "#dev")
    two.is_written = False
    assert confirmations.observe(refused("461", "JOIN")) is None
    assert confirmations.observe(refused("433", "nick")) is None
    assert confirmations.observe(refused("412", "No text to send")) is one
    assert confirmations.observe(refused("412", "No text to send")) is None


def test_an_error_of_another_channel_touches_nothing() -> None:
    confirmations = Confirmations(Support(), {})
    issue(confirmations, "#ops")
    assert confirmations.observe(refused("403", "#elsewhere")) is None


def test_channels_are_asked_for_less_and_less_often() -> None:
    attendance = Attendance(Support())
    attendance.want_only(["#ops"])
    now, delays = 0.0, []
    for _ in range(7):
        assert attendance.due(now) == ["#ops"]
        assert attendance.due(now) == []
        attendance.refused("#OPS", "474", "banned", now)
        delays.append(attendance.deadline - now)
        now = attendance.deadline
    assert delays == [RETRY_S, 60, 120, 240, 480, RETRY_S_MAX, RETRY_S_MAX]
    assert attendance.troubles == ["#ops: the bridge is banned there"]
    attendance.joined("#ops")
    assert attendance.deadline == math.inf and not attendance.troubles


def test_after_a_kick_a_moment_passes() -> None:
    attendance = Attendance(Support())
    attendance.want_only(["#ops", "#dev"])
    attendance.due(0)
    for name in ("#ops", "#dev"):
        attendance.joined(name)
    attendance.expelled("#ops", "op", "out", 100)
    assert attendance.due(100) == [] and attendance.due(100 + REJOIN_S) == ["#ops"]
    assert attendance.want_only(["#ops"]) == ["#dev"]
