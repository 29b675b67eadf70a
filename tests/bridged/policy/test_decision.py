"""Deny by default, and the one rule: membership."""

from __future__ import annotations

from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridged.policy import ACTIONS, Allow, Finding, Refuse, decide, inspect


@attrs.frozen
class Room:
    ref: str
    conversation: str | None


@attrs.frozen
class Member:
    identity: str
    entered: frozenset[str]

    def may_enter(self, conversation: str) -> bool:
        return conversation in self.entered


@attrs.frozen
class Speaker:
    ref: str


@attrs.frozen
class House:
    conversations: dict[str, tuple[Room, ...]]
    clients: dict[str, Member]


@attrs.frozen(kw_only=True)
class Wish:
    speaker: Speaker = Speaker("msgr://identity/bridges/irc/net/ola")
    conversation: str = "ops"
    action: str = "send"
    origin: Room | None = None
    client: str | None = None
    target: Room | None = None


IRC, XMPP, OTHER = Room("irc", "ops"), Room("xmpp", "ops"), Room("other", "sales")
LOST = Room("lost", None)
KARI = "msgr://identity/msgr/kari"
HOUSE = House(
    conversations={"ops": (IRC, XMPP), "sales": (OTHER,)},
    clients={
        "kari": Member(KARI, frozenset({"ops"})),
        "per": Member("msgr://identity/msgr/per", frozenset()),
    },
)
CLIENT = Wish(speaker=Speaker(KARI), client="kari")
PERSON = Wish(origin=IRC)


def rule(wish: Wish, **changes: Any) -> tuple[bool, str]:
    decision = decide(attrs.evolve(wish, **changes), HOUSE)
    return isinstance(decision, Allow), decision.rule


@pytest.mark.parametrize("action", sorted(ACTIONS))
def test_whom_a_platform_admits_may_speak_in_the_conversation(action: str) -> None:
    assert rule(PERSON, action=action) == (True, "admitted-by-platform")
    assert rule(PERSON, action=action, target=XMPP) == (True, "admitted-by-platform")


def test_a_client_that_was_added_may_speak_as_itself() -> None:
    assert rule(CLIENT) == (True, "added-client")
    assert rule(CLIENT, target=IRC) == (True, "added-client")


@pytest.mark.parametrize(
    ("wish", "changes", "why"),
    [
        (PERSON, {"origin": None}, "no-origin"),
        (PERSON, {"origin": OTHER}, "not-admitted"),
        (PERSON, {"origin": LOST}, "not-admitted"),
        (PERSON, {"origin": Room("irc", "sales")}, "not-admitted"),
        (PERSON, {"origin": Room("forged", "ops")}, "not-admitted"),
        (PERSON, {"conversation": "sales"}, "not-admitted"),
        (PERSON, {"conversation": "none"}, "no-conversation"),
        (PERSON, {"target": OTHER}, "no-such-room"),
        (PERSON, {"target": LOST}, "no-such-room"),
        (PERSON, {"action": "burn"}, "unknown-action"),
        (CLIENT, {"client": "eve"}, "no-client"),
        (CLIENT, {"client": "per", "speaker": Speaker("msgr://identity/msgr/per")}, "not-added"),
        (CLIENT, {"conversation": "sales"}, "not-added"),
        (CLIENT, {"speaker": Speaker("msgr://identity/msgr/per")}, "not-oneself"),
        (CLIENT, {"origin": IRC}, "two-origins"),
        (CLIENT, {"target": OTHER}, "no-such-room"),
    ],
)
def test_everything_else_is_refused(wish: Wish, changes: dict[str, Any], why: str) -> None:
    assert rule(wish, **changes) == (False, why)


def test_a_finding_is_refused_as_no_rule_allows_it() -> None:
    decision = decide(PERSON, HOUSE, [Finding(detector="payment card")])
    assert isinstance(decision, Refuse) and "payment card" in decision.reason
    assert inspect("4111 1111 1111 1111") == ()


rooms = st.builds(Room, st.sampled_from(["irc", "xmpp", "x"]), st.sampled_from(["ops", "sales", None]))
wishes = st.builds(
    Wish,
    speaker=st.sampled_from([Speaker(KARI), Speaker("x")]),
    conversation=st.sampled_from(["ops", "sales", "none"]),
    action=st.sampled_from([*sorted(ACTIONS), "burn"]),
    origin=st.none() | rooms,
    client=st.sampled_from([None, "kari", "per", "eve"]),
    target=st.none() | rooms,
)


@given(wishes)
def test_what_is_allowed_stays_within_one_conversation(wish: Wish) -> None:
    if isinstance(decide(wish, HOUSE), Allow):
        members = HOUSE.conversations[wish.conversation]
        assert all(room is None or room in members for room in (wish.origin, wish.target))
        assert (wish.client is None) != (wish.origin is None)
        if wish.client is not None:
            assert HOUSE.clients[wish.client].identity == wish.speaker.ref
