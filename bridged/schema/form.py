"""A payload, and the questions that the forms of the wire contract answer differently.  Pure.

Ours says who and where by msgr:// references; an upstream daemon says it in its platform's own keys.  Every question
here has one answer whichever it is, or an `EnvelopeError` that names the field.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from bridged.envelope import Envelope, parse_time
from bridged.errors import EnvelopeError
from bridged.refs import ChannelRef, IdentityRef, RefError, parse_ref
from bridged.schema.events import Cursor, Person

# Ours.
ID_CHARACTERS_MAX = 1024
NAME_CHARACTERS_MAX = 256
"""A longer display name is cut: it is no reason to lose what was said."""
LIST_MAX = 10_000


class Form:
    """A payload and the questions that the forms of section 4 answer differently."""

    def __init__(self, envelope: Envelope, tenant: str) -> None:
        self.envelope = envelope
        self.service = envelope.service
        self.tenant = tenant
        self.payload: Mapping[str, Any] = envelope.payload

    def get(self, key: str) -> Any:
        return self.payload.get(key)

    def invalid(self, key: str, what: str) -> EnvelopeError:
        return EnvelopeError("invalid_field", f"payload.{key} {what}", field=f"payload.{key}")

    def missing(self, key: str) -> EnvelopeError:
        return EnvelopeError("missing_field", f"payload.{key} is required", field=f"payload.{key}")

    # Plain values.

    def maybe(self, key: str) -> str | None:
        value = self.payload.get(key)
        if value is not None and type(value) is not str:
            raise self.invalid(key, "must be text")
        return value

    def text(self, key: str) -> str:
        value = self.maybe(key)
        if not value:
            raise self.missing(key) if value is None else self.invalid(key, "is empty")
        return value

    def one_of(self, key: str, words: tuple[str, ...]) -> str:
        word = self.text(key)
        if word not in words:
            raise self.invalid(key, f"must be one of {', '.join(words)}")
        return word

    def maybe_number(self, key: str) -> int | None:
        value = self.payload.get(key)
        if value is None:
            return None
        if type(value) is not int or not 0 <= value < 2**63:
            raise self.invalid(key, "must be a whole number, not negative")
        return value

    def number(self, key: str) -> int:
        value = self.maybe_number(key)
        if value is None:
            raise self.missing(key)
        return value

    def flag(self, key: str, default: bool) -> bool:
        value = self.payload.get(key, default)
        if type(value) is not bool:
            raise self.invalid(key, "must be true or false")
        return value

    def maybe_texts(self, key: str) -> tuple[str, ...] | None:
        value = self.payload.get(key)
        if value is None:
            return None
        if type(value) is not list or len(value) > LIST_MAX or any(type(one) is not str for one in value):
            raise self.invalid(key, f"must be a list of at most {LIST_MAX} texts")
        return tuple(value)

    def texts(self, key: str) -> tuple[str, ...]:
        value = self.maybe_texts(key)
        if value is None:
            raise self.missing(key)
        return value

    def maybe_id(self, *keys: str) -> str | None:
        """The first of the keys that is there; platforms number or name, we name."""
        for key in keys:
            value = self.payload.get(key)
            if value is None:
                continue
            if type(value) is int:
                return str(value)
            if type(value) is not str or not 0 < len(value) <= ID_CHARACTERS_MAX:
                raise self.invalid(key, f"must be an id: 1 to {ID_CHARACTERS_MAX} characters")
            return value
        return None

    def id(self, *keys: str) -> str:
        value = self.maybe_id(*keys)
        if value is None:
            raise self.missing(keys[0])
        return value

    def time(self, key: str = "timestamp") -> datetime:
        value = self.maybe(key)
        if value is None:
            if key == "timestamp":
                return self.envelope.occurred_at
            raise self.missing(key)
        return parse_time(value, f"payload.{key}")

    def is_server_id(self) -> bool:
        scope = self.maybe("id_scope")
        if scope not in (None, "server", "sender"):
            raise self.invalid("id_scope", "must be server or sender")
        return scope != "sender"

    def cursor(self) -> Cursor | None:
        value = self.payload.get("cursor")
        if value is None:
            return None
        if not isinstance(value, Mapping) or not all(
            type(value.get(key)) is str and 0 < len(value[key]) <= ID_CHARACTERS_MAX
            for key in ("stream", "value")
        ):
            raise self.invalid("cursor", "must be an object of the texts stream and value")
        return Cursor(stream=value["stream"], value=value["value"])

    # Where, who, what.

    def channel(self) -> str:
        value = self.maybe("channel")
        if value is not None and value.startswith("msgr:"):
            try:
                ref = ChannelRef.parse(value)
            except RefError as exc:
                raise self.invalid("channel", str(exc)) from exc
        else:
            ref = self._channel_of_upstream(value)
        if ref.workspace != self.tenant:
            raise EnvelopeError(
                "tenant_mismatch", "the channel is of another workspace", field="payload.channel"
            )
        if ref.service != self.service:
            raise self.invalid("channel", f"is of another service than {self.service}")
        return ref.build()

    def _channel_of_upstream(self, channel: str | None) -> ChannelRef:
        pointer: tuple[str | None, ...]
        match self.service:
            case "irc":
                pointer = (self.maybe("network"), channel or self.maybe("target"))
            case "telegram":
                pointer = (self.maybe_id("chat_id", "chat"),)
            case "matrix":
                pointer = (self.maybe_id("room_id", "chat"),)
            case _:
                pointer = (self.maybe_id("chat"),)
        found = tuple(part for part in pointer if part)
        if len(found) != len(pointer):
            raise self.missing("channel")
        ref = ChannelRef(workspace=self.tenant, service=self.service, pointer=found)
        try:
            ref.build()
        except RefError as exc:
            raise self.invalid("channel", str(exc)) from exc
        return ref

    def person(self, key: str = "sender") -> Person:
        """{"ref", "name"}, an upstream id, or `sender_identity` beside it."""
        value = self.payload.get(key)
        details: Mapping[str, Any] = value if isinstance(value, Mapping) else {}
        ref = details.get("ref")
        if ref is None and key == "sender":
            ref = self.maybe("sender_identity")
        if ref is not None:
            if type(ref) is not str:
                raise self.invalid(f"{key}.ref", "must be text")
            identity = self._identity(key, ref)
        else:
            identity = self._identity_of_upstream(key, details.get("id") if details else value)
        name = next(
            (
                name
                for name in (
                    details.get("name"),
                    details.get("display_name"),
                    details.get("username"),
                    self.payload.get("nick") if key == "sender" else None,
                )
                if isinstance(name, str) and name.strip()
            ),
            identity.pointer[-1],
        )
        return Person(ref=identity.build(), name=name[:NAME_CHARACTERS_MAX])

    def _identity(self, key: str, text: str) -> IdentityRef:
        try:
            identity = parse_ref(text)
        except RefError as exc:
            raise self.invalid(f"{key}.ref", str(exc)) from exc
        if not isinstance(identity, IdentityRef) or identity.service != self.service:
            raise self.invalid(f"{key}.ref", f"must be a msgr://identity/bridges/{self.service}/ reference")
        return identity

    def _identity_of_upstream(self, key: str, value: object) -> IdentityRef:
        if value is None:
            raise self.missing(key)
        if type(value) not in (int, str) or value == "":
            raise self.invalid(key, "must be an id or an object with ref and name")
        pointer: tuple[str, ...] = (str(value),)
        if self.service == "irc":
            network = self.maybe("network")
            if not network:
                raise self.missing("network")
            pointer = (network, *pointer)
        identity = IdentityRef(service=self.service, pointer=pointer)
        try:
            identity.build()
        except RefError as exc:
            raise self.invalid(key, str(exc)) from exc
        return identity

    def name_of(self, key: str) -> str | None:
        """A name, alone or in an object."""
        value = self.payload.get(key)
        if isinstance(value, Mapping):
            value = value.get("name")
        if value is not None and type(value) is not str:
            raise self.invalid(key, "must be a name")
        return None if value is None else value[:NAME_CHARACTERS_MAX]

    def body(self) -> str:
        """The text: under `text`, `body` (which Matrix makes an object) or `message`."""
        for key in ("text", "body", "message"):
            value = self.payload.get(key)
            if isinstance(value, Mapping):
                value = value.get("body")
            if value is not None:
                if type(value) is not str:
                    raise self.invalid(key, "must be text")
                return value
        raise self.missing("text")

    def html(self) -> str | None:
        body = self.payload.get("body")
        if self.payload.get("html") is None and isinstance(body, Mapping):
            formatted = body.get("formatted_body")
            return formatted if isinstance(formatted, str) else None
        return self.maybe("html")

    def reply_to(self) -> str | None:
        body = self.payload.get("body")
        if isinstance(body, Mapping):
            relation: Any = body.get("m.relates_to")
            answered = relation.get("m.in_reply_to") if isinstance(relation, Mapping) else None
            event_id = answered.get("event_id") if isinstance(answered, Mapping) else None
            if isinstance(event_id, str) and 0 < len(event_id) <= ID_CHARACTERS_MAX:
                return event_id
        return self.maybe_id("reply_to")
