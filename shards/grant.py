"""What a principal may do, and the one function that decides it.  Pure.

A grant names a verb and a pattern over topics: `bridge/SERVICE/ACTION` or `bridge/SERVICE/INSTANCE/ACTION`, each
part exact or "*".  Grants belong to a tenant with their principal, so no topic of another tenant can be named at
all.  What no grant allows is denied; there is nothing else to decide by.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, get_args

import attrs

from shards.errors import ShardsError

Verb = Literal["publish", "subscribe", "request", "respond", "journal"]
Role = Literal["send", "sync", "admin"]

VERBS: tuple[Verb, ...] = get_args(Verb)
ROOT = "bridge"
ANY = "*"


def _is_verb(_: object, __: object, value: str) -> None:
    if value not in VERBS:
        raise ShardsError(f"a grant's verb is one of {', '.join(VERBS)}")


@attrs.frozen
class Grant:
    """Permission for one verb on the topics that match.  An `instance` of "" is the topic that has none."""

    verb: Verb = attrs.field(validator=_is_verb)
    service: str
    instance: str
    action: str

    @classmethod
    def parse(cls, text: str) -> Grant:
        """`VERB bridge/SERVICE[/INSTANCE]/ACTION`, as `str()` writes it.  Raises ShardsError."""
        verb, _, topic = text.strip().partition(" ")
        parts = topic.strip().split("/")
        if parts[0] != ROOT or not all(parts) or len(parts) not in (3, 4):
            raise ShardsError(
                "a grant is written VERB bridge/SERVICE[/INSTANCE]/ACTION, each part a name or *",
                hint="for example: subscribe bridge/core/*",
            )
        instance = parts[2] if len(parts) == 4 else ""
        return cls(verb, parts[1], instance, parts[-1])  # type: ignore[arg-type]  # the validator decides

    def __str__(self) -> str:
        middle = f"/{self.instance}" if self.instance else ""
        return f"{self.verb} {ROOT}/{self.service}{middle}/{self.action}"


WHOLE_JOURNAL = Grant("journal", ANY, ANY, ANY)
"""Every logged record of the principal's tenant: audit's alone."""
SEEK_TOPIC = "bridge/fabric/seek"
"""Who may request this may move a group's position."""


def split_topic(topic: str) -> tuple[str, str, str] | None:
    """(service, instance or "", action) of a topic, or None where it has another shape."""
    parts = topic.split("/")
    if parts[0] != ROOT or not all(parts):
        return None
    if len(parts) == 3:
        return parts[1], "", parts[2]
    if len(parts) == 4:
        return parts[1], parts[2], parts[3]
    return None


def allows(grants: Iterable[Grant], verb: Verb, topic: str | None) -> bool:
    """Whether any of the grants gives `verb` on `topic`; None is the whole journal.

    A topic of another shape than `bridge/SERVICE[/INSTANCE]/ACTION` is never allowed.
    """
    if topic is None:
        return verb == "journal" and WHOLE_JOURNAL in set(grants)
    parts = split_topic(topic)
    if parts is None:
        return False
    service, instance, action = parts
    return any(
        grant.verb == verb
        and grant.service in (service, ANY)
        and grant.instance in (instance, ANY)
        and grant.action in (action, ANY)
        for grant in grants
    )


_SPOKEN = ("send", "edit", "delete", "react", "typing", "read")
_ASKED = ("history", "conversations", "status", "cursor")

_ROLES: dict[Role, frozenset[Grant]] = {
    "send": frozenset(Grant("request", "core", "", action) for action in _SPOKEN),
    "sync": frozenset(
        [Grant("request", "core", "", action) for action in _ASKED] + [Grant("subscribe", "core", "", ANY)]
    ),
    "admin": frozenset({Grant("request", ANY, ANY, ANY), Grant("subscribe", ANY, ANY, ANY)}),
}


def role_grants(role: Role) -> frozenset[Grant]:
    """The grants that a role stands for: `send` speaks, `sync` reads, `admin` asks and reads everything.

    Raises:
        ShardsError: No such role.
    """
    try:
        return _ROLES[role]
    except KeyError:
        raise ShardsError(f"a role is one of {', '.join(_ROLES)}") from None
