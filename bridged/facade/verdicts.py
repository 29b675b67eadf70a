"""Verdicts of the policy, as the facade records them.  Pure."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol

import attrs

from bridged import policy
from bridged.facade.directory import Channel, Directory
from bridged.facade.intents import Speaker


@attrs.frozen(kw_only=True, slots=True)
class Verdict:
    """Whether one intent may go to one room."""

    is_allowed: bool
    rule: str
    """The name of the rule that decided."""
    reason: str
    """For people: why, in one sentence without a message's text."""
    policy_version: str

    def to_error(self) -> dict[str, Any]:
        """As it stands in a status and in a refusal."""
        return {"code": "policy_denied", "message": self.reason, "retryable": False}


@attrs.frozen(kw_only=True, slots=True)
class Question:
    """What the policy is asked."""

    speaker: Speaker
    conversation: str
    action: str
    """send | edit | delete | react | typing | notice"""
    origin: Channel | None
    """Where a platform has let the speaker in; None for a client."""
    client: str | None
    """The client's name; None for somebody on a network."""
    target: Channel | None
    """The room; None where the conversation has no other."""
    text: str


class Judge(Protocol):
    """The policy: a pure function of the question and the directory."""

    def __call__(self, question: Question, directory: Directory) -> Verdict: ...


def judge_by_policy(question: Question, directory: Directory) -> Verdict:
    """The verdict of `bridged.policy`."""
    decision = policy.decide(question, directory, policy.inspect(question.text))
    return Verdict(
        is_allowed=isinstance(decision, policy.Allow),
        rule=decision.rule,
        reason=decision.reason if isinstance(decision, policy.Refuse) else "",
        policy_version=policy.VERSION,
    )


def judge_rooms(
    judge: Judge, directory: Directory, question: Question, rooms: Iterable[Channel]
) -> list[tuple[Channel, Verdict]]:
    """One verdict a room."""
    return [(room, judge(attrs.evolve(question, target=room), directory)) for room in rooms]
