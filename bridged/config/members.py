"""Who is enrolled in a shard, and with which grants: data, computed from the configuration.  Pure.

One function a member, each the whole of what that member may do; what is not here is denied by the broker.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import attrs

from bridged.config.tables import ConnectorSettings
from bridged.refs import IdentityRef, RefError, bare_jid
from shards.grant import ANY, WHOLE_JOURNAL, Grant, Verb

# Specification constants (wire contract 4): what a connector tells, and what it is told.
TOLD_BY_CONNECTORS = (
    "inbound_message",
    "inbound_stanza",
    "inbound_event",
    "inbound_update",
    "edit_event",
    "redaction_event",
    "reaction_event",
    "membership",
    "gap_event",
    "typing_event",
    "receipt_event",
    "presence_event",
    "delivery_status",
    "throttle",
    "state_update",
    "history_batch",
    "roster_snapshot",
    "link_state",
)
TOLD_TO_CONNECTORS = (
    "outbound_message",
    "outbound_edit_message",
    "outbound_delete_message",
    "outbound_reaction",
    "typing",
    "mark_read",
    "presence_update",
    "request_history",
    "refresh_roster",
    "ack_update",
    "ack_sync",
    "ack_offset",
    "ack_receipt",
)


@attrs.frozen(kw_only=True)
class Member:
    """A principal that the file names."""

    name: str
    """`facade`, `gateway`, `audit`, `vault`, `control`, or a connector's `SERVICE/INSTANCE`."""
    tenant: str
    grants: frozenset[Grant]
    service: str | None = None
    instance: str | None = None
    accounts: tuple[str, ...] = ()
    """References of the identities that a connector speaks as."""
    runs: Literal["inside", "outside"] = "inside"
    """Inside members are enrolled by the daemon at start, outside ones bring their keys by an invite."""


def members_of(tenant: str, connectors: Iterable[ConnectorSettings], *, has_gateway: bool) -> list[Member]:
    """Everybody of one tenant, in the order in which they start: who serves before who asks."""
    platforms = [(one.service, one.instance) for one in connectors]
    house = [
        Member(name="control", tenant=tenant, grants=_control()),
        Member(name="vault", tenant=tenant, grants=_vault()),
        Member(name="audit", tenant=tenant, grants=_audit()),
        Member(name="facade", tenant=tenant, grants=_facade(platforms)),
    ]
    if has_gateway:
        house.append(Member(name="gateway", tenant=tenant, grants=_gateway()))
    return [*house, *(connector_member(tenant, one) for one in connectors)]


def connector_member(tenant: str, settings: ConnectorSettings) -> Member:
    """A connector's row."""
    return Member(
        name=f"{settings.service}/{settings.instance}",
        tenant=tenant,
        grants=_connector(settings.service, settings.instance),
        service=settings.service,
        instance=settings.instance,
        accounts=_accounts(settings),
        runs=settings.runs,
    )


def _control() -> frozenset[Grant]:
    return frozenset({_on("respond", "fabric"), _on("publish", "fabric", "event")})


def _vault() -> frozenset[Grant]:
    return frozenset(
        {
            _on("respond", "vault"),
            _on("publish", "vault", "event"),
            _on("request", "fabric", "keys"),  # whose lease key an answer is sealed to
        }
    )


def _audit() -> frozenset[Grant]:
    return frozenset({WHOLE_JOURNAL})


def _facade(platforms: Iterable[tuple[str, str]]) -> frozenset[Grant]:
    grants = {
        _on("respond", "core"),
        _on("publish", "core"),
        _on("subscribe", "core"),
        _on("request", "fabric", "keys"),
        _on("request", "fabric", "groups"),  # how far its own group is, as the broker knows it
        _on("subscribe", "fabric", "event"),
    }
    for service, instance in platforms:
        grants |= {Grant("subscribe", service, instance, action) for action in TOLD_BY_CONNECTORS}
        grants |= {Grant("publish", service, instance, action) for action in TOLD_TO_CONNECTORS}
    return frozenset(grants)


def _gateway() -> frozenset[Grant]:
    return frozenset({_on("request", "core"), _on("subscribe", "core"), _on("request", "fabric", "topics")})


def _connector(service: str, instance: str) -> frozenset[Grant]:
    told = {Grant("subscribe", service, instance, action) for action in TOLD_TO_CONNECTORS}
    tells = {Grant("publish", service, instance, action) for action in TOLD_BY_CONNECTORS}
    asks = {
        *(_on("request", "core", action) for action in ("cursor", "status", "blob_get", "blob_put")),
        *(_on("request", "vault", action) for action in ("checkout", "renew", "release")),
    }
    return frozenset({Grant("respond", service, instance, ANY), *told, *tells, *asks})


def _on(verb: Verb, service: str, action: str = ANY) -> Grant:
    return Grant(verb, service, "", action)


def _accounts(settings: ConnectorSettings) -> tuple[str, ...]:
    """The identities that are the connector's own: what they say is our own echo."""
    pointers: list[tuple[str, ...]] = []
    try:
        match settings.service:
            case "irc":  # its other nicks may be somebody else's while it has this one
                pointers = [(str(getattr(settings, "network", "")), str(getattr(settings, "nick", "")))]
            case "xmpp":
                pointers = [(bare_jid(str(getattr(settings, "jid", ""))),)]
        return tuple(IdentityRef(service=settings.service, pointer=one).build() for one in pointers)
    except RefError:
        return ()
