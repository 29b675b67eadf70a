"""The `[[connector]]` table of `service = "echo"`.  Pure; `bridged.config` imports it alone."""

from __future__ import annotations

import re
from typing import Literal

import attrs

_INSTANCE = re.compile(r"[A-Za-z0-9._-]{1,64}")
_NAME = re.compile(r"[^\x00-\x1f\x7f]{1,64}")


def _instance(_: object, attribute: attrs.Attribute[str], value: str) -> None:
    if not _INSTANCE.fullmatch(value) or value == "reply":
        raise ValueError(f"{attribute.name} is 1 to 64 of A-Z a-z 0-9 . _ - (and not the word reply)")


def _name(_: object, attribute: attrs.Attribute[str], value: str) -> None:
    if not _NAME.fullmatch(value):
        raise ValueError(f"{attribute.name} is 1 to 64 characters without control characters")


@attrs.frozen(kw_only=True)
class Settings:
    """A platform that is nowhere but here: whatever is said in its chats is said back."""

    service: Literal["echo"] = "echo"
    instance: str = attrs.field(validator=_instance)
    runs: Literal["inside", "outside"] = "inside"
    tenant: str | None = None
    name: str = attrs.field(default="echo", validator=_name)
    """Who answers, as the other rooms see it."""
    delay_s: float = attrs.field(default=0.0, validator=[attrs.validators.ge(0), attrs.validators.le(3600)])
    """How long the echo thinks before it answers."""
