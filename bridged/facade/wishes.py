"""What clients wish for, from the request to the commit.

A wish is decided on a snapshot of links and clients, and carried out in one transaction that also records the
decisions, only while that snapshot still holds; else it is decided again.  What was answered is kept under the
client's idempotency key, so that a wish sent twice is carried out once.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import attrs
import msgspec

from bridged.envelope import Envelope, new_trace_id
from bridged.facade.core import Core, DirectoryMoved, Turn
from bridged.facade.deliveries import Standing
from bridged.facade.directory import Channel, Client, Directory
from bridged.facade.intents import Decided, Speaker
from bridged.facade.messages import Message
from bridged.facade.verdicts import Judge, Question, Verdict, judge_rooms
from bridged.requests import Question as Request
from bridged.schema import DeliveryState
from shards.errors import OutboxFull, RequestFailed

# Ours.
KEY_CHARACTERS_MAX = 256
FULL_RETRY_MS = 1_000
NOT_ADDED = "the client was not added to this conversation"
"""Also where there is no such conversation: a stranger cannot tell the two apart."""

Rooms = Sequence[tuple[Channel, Verdict]]
Apply = Callable[[Turn, str, Rooms], Message]
"""(turn, trace id, rooms with their verdicts) -> the message that the wish was about."""


@attrs.frozen(kw_only=True)
class Wish:
    """What one request wants, before it is decided."""

    request: Request
    client: Client
    action: str
    """send | edit | delete | react"""
    conversation: str
    text: str

    @property
    def speaker(self) -> Speaker:
        return Speaker(ref=self.client.identity, name=self.client.display)


@attrs.frozen(kw_only=True)
class _Denied:
    reason: str


class Wishes:
    """Carries wishes out."""

    def __init__(self, core: Core, judge: Judge) -> None:
        self._core = core
        self._judge = judge

    async def fulfil(self, wish: Wish, apply: Apply) -> dict[str, Any]:
        """Decide, then commit what `apply` does; a denied wish is recorded and refused."""
        key, digest = _key_of(wish.request), _digest_of(wish.request)
        while True:
            directory = self._core.directory
            overall, rooms = self._decide(directory, wish)

            def run(turn: Turn, overall: Verdict = overall, rooms: Rooms = rooms) -> dict[str, Any] | _Denied:
                answer = _answered(turn, wish, key, digest)
                if answer is not None:
                    return answer
                trace_id = wish.request.trace_id
                if turn.messages.has_trace(turn.tx, trace_id):
                    trace_id = new_trace_id(turn.token_bytes)
                detail = {"speaker": wish.client.identity, "principal": wish.request.principal}
                turn.note(
                    trace_id, "intent", wish.action, detail=detail | {"conversation": wish.conversation}
                )
                if not overall.is_allowed:
                    self._deny(turn, wish, trace_id, overall, rooms)
                    is_inside = wish.client.may_enter(wish.conversation)
                    return _Denied(reason=overall.reason if is_inside else NOT_ADDED)
                message = apply(turn, trace_id, rooms)
                answer = {"trace_id": trace_id, "message_id": message.message_id}
                _remember(turn, wish, key, digest, answer)
                return answer

            try:
                outcome = await self._core.write(directory, run)
            except DirectoryMoved:
                await self._core.reload()
                continue
            except OutboxFull as exc:
                raise RequestFailed(
                    "rate_limited", str(exc), hint=exc.hint, retry_after_ms=FULL_RETRY_MS
                ) from exc
            if isinstance(outcome, _Denied):
                raise RequestFailed("policy_denied", outcome.reason)
            return outcome

    def _decide(self, directory: Directory, wish: Wish) -> tuple[Verdict, Rooms]:
        """One verdict for the conversation itself, and one for each of its rooms."""
        question = Question(
            speaker=wish.speaker,
            conversation=wish.conversation,
            action=wish.action,
            origin=None,
            client=wish.client.name,
            target=None,
            text=wish.text,
        )
        rooms = directory.rooms(wish.conversation)
        return self._judge(question, directory), judge_rooms(self._judge, directory, question, rooms)

    def _deny(self, turn: Turn, wish: Wish, trace_id: str, overall: Verdict, rooms: Rooms) -> None:
        """Record that the wish was refused; what it said is not kept."""
        turn.decide(trace_id, wish.client.identity, None, overall)
        for channel, _ in rooms:
            standing = Standing(
                trace_id=trace_id,
                channel=channel.row,
                message=None,
                state=DeliveryState.DENIED,
                attempt=0,
                error=overall.to_error(),
            )
            turn.deliveries.open(
                turn.tx,
                trace_id=trace_id,
                channel=channel.row,
                message=None,
                state=standing.state,
                at_ms=turn.at_ms,
                error=standing.error,
            )
            turn.tell_standing(standing, conversation=wish.conversation, message_id=None)

    def relay(
        self,
        turn: Turn,
        wish: Wish,
        message: Message,
        trace_id: str,
        rooms: Rooms,
        draft: Callable[[Decided, Channel], Envelope],
    ) -> list[Standing]:
        standings = turn.relay(
            rooms,
            trace_id=trace_id,
            causation_id=None if trace_id == wish.request.trace_id else wish.request.trace_id,
            speaker=wish.speaker,
            message=message,
            draft=draft,
        )
        for standing in standings:
            turn.tell_standing(standing, conversation=message.conversation, message_id=message.message_id)
        return standings


# Private --------------------------------------------------------------------------------------------------------


def _answered(turn: Turn, wish: Wish, key: str, digest: bytes) -> dict[str, Any] | None:
    """What was answered to this idempotency key before.

    Raises:
        RequestFailed: `duplicate`; it was given to another wish.
    """
    row = turn.tx.one(
        "SELECT digest, answer FROM intent WHERE tenant = ? AND speaker = ? AND key = ?",
        (turn.tenant, wish.client.identity, key),
    )
    if row is None:
        return None
    if row[0] != digest:
        raise RequestFailed("duplicate", "this idempotency key was given to something else")
    return msgspec.json.decode(row[1], type=dict[str, Any])


def _remember(turn: Turn, wish: Wish, key: str, digest: bytes, answer: Mapping[str, Any]) -> None:
    turn.tx.execute(
        "INSERT INTO intent (tenant, speaker, key, digest, answer, at_ms) VALUES (?, ?, ?, ?, ?, ?)",
        (
            turn.tenant,
            wish.client.identity,
            key,
            digest,
            msgspec.json.encode(answer).decode(),
            turn.at_ms,
        ),
    )


def _key_of(request: Request) -> str:
    """The client's key, else the trace id: a request sent twice is one wish either way."""
    key = request.payload.get("idempotency_key")
    if key is None:
        return f"trace {request.trace_id}"
    if not isinstance(key, str) or not 0 < len(key) <= KEY_CHARACTERS_MAX:
        raise RequestFailed(
            "invalid_field", f"payload.idempotency_key has 1 to {KEY_CHARACTERS_MAX} characters"
        )
    return f"key {key}"


def _digest_of(request: Request) -> bytes:
    wanted = {name: value for name, value in request.payload.items() if name != "idempotency_key"}
    encoded = msgspec.json.encode([request.action, wanted], order="deterministic")
    return hashlib.blake2b(encoded, digest_size=16).digest()
