"""A request between members: an envelope out, a bare JSON object back.          Wire contract, section 3.

Both halves stand here, so that the facade, the vault, control, the gateway and `bridgectl` answer and ask alike:
`ask` for one question, `serve` for a set of handlers.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, NoReturn

import attrs
import msgspec
import trio

from bridged.envelope import Envelope, new_envelope, new_trace_id, parse_topic, topic_for
from bridged.errors import BridgeError, EnvelopeError
from bridged.telemetry import get_logger, traceback_of
from shards.client import Client, Request
from shards.env import Env
from shards.errors import LogError, RequestFailed

log = get_logger("requests")

AGAIN_S = 0.1
WITHIN_S = 10.0
"""How long a question waits for its answer where nobody says otherwise."""
HINT_FOLLOWS = "\n"
"""A failed answer has one text on the wire: the message, and after this what to do."""


@attrs.frozen(kw_only=True)
class Question:
    """A decoded request, with whom the broker says it is from."""

    action: str
    payload: dict[str, Any]
    metadata: dict[str, Any]
    trace_id: str
    principal: str
    tenant: str
    deadline: float
    """Absolute, on this process's Trio clock."""

    def text(self, name: str, *, default: str | None = None) -> str:
        """The payload's text field.

        Raises:
            RequestFailed: `missing_field` or `invalid_field`.
        """
        value = self.payload.get(name)
        if value is None and default is not None:
            return default
        if value is None:
            raise RequestFailed("missing_field", f"payload.{name} is required")
        if not isinstance(value, str) or not value:
            raise RequestFailed("invalid_field", f"payload.{name} must be a text that is not empty")
        return value

    def number(self, name: str, *, default: int | None = None, least: int = 0, most: int = 2**53 - 1) -> int:
        """The payload's integer field, within bounds.

        Raises:
            RequestFailed: `missing_field` or `invalid_field`.
        """
        value = self.payload.get(name)
        if value is None and default is not None:
            return default
        if value is None:
            raise RequestFailed("missing_field", f"payload.{name} is required")
        if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
            raise RequestFailed(
                "invalid_field", f"payload.{name} must be a whole number from {least} to {most}"
            )
        return value


Handler = Callable[[Question], Awaitable[Mapping[str, Any]]]


async def ask(
    env: Env,
    client: Client,
    service: str,
    action: str,
    payload: Mapping[str, Any],
    *,
    within_s: float = WITHIN_S,
    patience_s: float = 0.0,
    trace_id: str | None = None,
) -> dict[str, Any]:
    """Ask and return the answer's object.

    Args:
        patience_s: A member that does not serve yet, since its shard is starting, is asked again for so long.

    Raises:
        RequestFailed: The member, or the broker for it, said no; `code` is of the closed set.
    """
    trace_id = trace_id or new_trace_id(env.token_bytes)
    envelope = new_envelope(
        service,
        action,
        dict(payload),
        now=env.wall(),
        trace_id=trace_id,
        metadata={"tenant": client.identity.tenant},
    )
    asked_at = trio.current_time()
    while True:
        try:
            body = await client.request(
                topic_for(service, action), envelope.encode(), deadline=asked_at + within_s, trace_id=trace_id
            )
            break
        except RequestFailed as exc:
            if exc.code != "network_down" or trio.current_time() >= asked_at + patience_s:
                message, _, hint = str(exc).partition(HINT_FOLLOWS)
                raise RequestFailed(exc.code, message, hint=hint, retry_after_ms=exc.retry_after_ms) from exc
            await trio.sleep(AGAIN_S)
    try:
        answer = json.loads(body)
    except ValueError:
        answer = None
    if not isinstance(answer, dict):
        raise RequestFailed("internal", f"{service}/{action} answered with something that is no JSON object")
    return answer


async def serve(
    client: Client,
    service: str,
    handlers: Mapping[str, Handler],
    *,
    concurrency: int = 64,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> NoReturn:
    """Answer `bridge/<service>/<action>` for every action of `handlers`; never returns.

    A handler's `RequestFailed`, `EnvelopeError` or other `BridgeError` becomes the asker's error, and so does a bug,
    whose traceback is logged without values.  A failed storage ends the member.
    """

    async def handle(request: Request) -> bytes:
        try:
            envelope = Envelope.decode(request.body)
            tenant = envelope.metadata.get("tenant", request.tenant)
            if tenant != request.tenant:
                raise RequestFailed("tenant_mismatch", "metadata.tenant is not the asker's tenant")
            action = parse_topic(request.topic).action
            if envelope.action != action:
                raise RequestFailed("bad_envelope", "the envelope's action is not its topic's")
            answer = await handlers[action](
                Question(
                    action=action,
                    payload=envelope.payload,
                    metadata=envelope.metadata,
                    trace_id=envelope.trace_id,
                    principal=request.principal,
                    tenant=request.tenant,
                    deadline=request.deadline,
                )
            )
        except EnvelopeError as exc:
            raise RequestFailed(exc.code, str(exc)) from exc
        except BridgeError as exc:
            raise _with_hint(RequestFailed("internal", str(exc), hint=exc.hint)) from exc
        except RequestFailed as exc:
            raise _with_hint(exc) from exc
        except LogError:
            raise
        except Exception as exc:  # a bug met by one question must not end the member that others lean on
            log.error("fault", action=request.topic, traceback=traceback_of(exc))
            raise RequestFailed("internal", f"{service} could not answer; its log says why") from exc
        return msgspec.json.encode({"status": "ok", **answer})

    await client.respond(
        [topic_for(service, action) for action in handlers],
        handle,
        concurrency=concurrency,
        task_status=task_status,
    )


def _with_hint(exc: RequestFailed) -> RequestFailed:
    message = " ".join(str(exc).split())
    text = f"{message}{HINT_FOLLOWS}{exc.hint}" if exc.hint else message
    return RequestFailed(exc.code, text, hint=exc.hint, retry_after_ms=exc.retry_after_ms)
