"""Grants: one function decides, and what no grant allows is denied."""

from __future__ import annotations

import pytest

from shards.errors import ShardsError
from shards.grant import VERBS, WHOLE_JOURNAL, Grant, Verb, allows, role_grants, split_topic

CASES: list[tuple[str, Verb, str | None, bool]] = [
    ("publish bridge/irc/libera/inbound_message", "publish", "bridge/irc/libera/inbound_message", True),
    ("publish bridge/irc/libera/inbound_message", "publish", "bridge/irc/oftc/inbound_message", False),
    ("publish bridge/irc/libera/inbound_message", "publish", "bridge/irc/inbound_message", False),
    ("publish bridge/irc/libera/inbound_message", "subscribe", "bridge/irc/libera/inbound_message", False),
    ("publish bridge/irc/libera/*", "publish", "bridge/irc/libera/typing_event", True),
    ("publish bridge/irc/libera/*", "publish", "bridge/irc/libera", False),
    ("publish bridge/irc/*/state", "publish", "bridge/irc/libera/state", True),
    ("publish bridge/irc/*/state", "publish", "bridge/irc/state", True),
    ("publish bridge/irc/state", "publish", "bridge/irc/libera/state", False),
    ("request bridge/core/send", "request", "bridge/core/send", True),
    ("request bridge/core/send", "request", "bridge/core/sends", False),
    ("request bridge/core/send", "request", "other/core/send", False),
    ("request bridge/core/send", "request", "bridge/core/send/reply/1", False),
    ("subscribe bridge/*/*/*", "subscribe", "bridge/a/b/c", True),
    ("subscribe bridge/*/*/*", "subscribe", "bridge/a/b/c/d", False),
    ("subscribe bridge/*/*/*", "subscribe", "bridge", False),
    ("subscribe bridge/*/*/*", "subscribe", "", False),
    ("subscribe bridge/*/*/*", "subscribe", None, False),
    ("subscribe bridge/*/*/*", "journal", None, False),
    ("journal bridge/*/*/*", "journal", None, True),
    ("journal bridge/irc/*/*", "journal", None, False),
    ("journal bridge/*/*/*", "subscribe", "bridge/a/b", False),
]


@pytest.mark.parametrize(("grant", "verb", "topic", "allowed"), CASES)
def test_the_table_of_decisions(grant: str, verb: Verb, topic: str | None, allowed: bool) -> None:
    assert allows([Grant.parse(grant)], verb, topic) is allowed
    assert allows([], verb, topic) is False


def test_grants_are_written_as_they_are_read() -> None:
    for text in ("publish bridge/irc/libera/*", "request bridge/core/send", "journal bridge/*/*/*"):
        assert str(Grant.parse(text)) == text
    assert Grant.parse("journal bridge/*/*/*") == WHOLE_JOURNAL


@pytest.mark.parametrize(
    "text", ["", "publish", "publish bridge/x", "own bridge/a/b", "publish bridge//b", "publish b/a/c"]
)
def test_what_is_no_grant_says_so(text: str) -> None:
    with pytest.raises(ShardsError):
        Grant.parse(text)


def test_roles_give_what_they_say_and_no_more() -> None:
    assert allows(role_grants("send"), "request", "bridge/core/send")
    assert not allows(role_grants("send"), "subscribe", "bridge/core/event")
    assert allows(role_grants("sync"), "subscribe", "bridge/core/event")
    assert not allows(role_grants("sync"), "request", "bridge/core/send")
    assert allows(role_grants("admin"), "request", "bridge/fabric/seek")
    for role in ("send", "sync", "admin"):
        for verb in VERBS:
            if verb in ("publish", "respond", "journal"):
                assert not allows(role_grants(role), verb, "bridge/core/event")  # type: ignore[arg-type]
    with pytest.raises(ShardsError):
        role_grants("root")  # type: ignore[arg-type]


def test_a_topic_of_another_shape_has_no_parts() -> None:
    assert split_topic("bridge/a/b/c") == ("a", "b", "c")
    assert split_topic("bridge/a/b") == ("a", "", "b")
    assert split_topic("bridge/a") is split_topic("x/a/b") is None
