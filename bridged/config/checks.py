"""What must hold between the tables: every check adds its faults and none stops another.  Pure."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from bridged.config.structure import Fault
from bridged.config.tables import (
    ConnectorSettings,
    Conversation,
    ConversationTable,
    Fabric,
    Gateway,
    Link,
    Policy,
    Telemetry,
    Vault,
    Via,
    is_loopback,
    split_address,
)
from bridged.refs import ChannelRef, RefError, fold_channel

# Specification constants.
IPC_PATH_BYTES_MAX = 107
"""Of a Unix socket: sun_path less its final zero."""

Placed = tuple[str, ConnectorSettings]
"""A connector with the path of its table."""
_URL_WITH_PASSWORD = re.compile(r"://[^/?#@\s]*:[^/?#@\s]*@")


def hidden_secrets(value: object, path: str) -> Iterator[Fault]:
    """Passwords inside addresses."""
    if isinstance(value, str) and _URL_WITH_PASSWORD.search(value):
        yield path, "holds a password: secrets are never values in this file, the vault keeps them"
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield from hidden_secrets(inner, f"{path}.{key}")
    elif isinstance(value, list):
        for number, inner in enumerate(value):
            yield from hidden_secrets(inner, f"{path}[{number}]")


def endpoint_faults(endpoint: Path) -> Iterator[Fault]:
    """The socket's path must fit into the kernel's structure."""
    length = len(str(endpoint).encode())
    if length > IPC_PATH_BYTES_MAX:
        yield (
            "$.shard.runtime",
            f"{endpoint} has {length} bytes, a socket's path at most {IPC_PATH_BYTES_MAX}: choose a shorter"
            " directory, such as /run/bridged/NAME",
        )


def release_faults(
    fabric: Fabric, gateway: Gateway | None, telemetry: Telemetry | None, vault: Vault, policy: Policy
) -> Iterator[Fault]:
    """What the configuration's language knows and this release has not."""
    if fabric.backend != "shim":
        yield "$.fabric.backend", f"{fabric.backend} is not in this release; it has shim"
    if fabric.bootstrap is not None:
        yield "$.fabric.bootstrap", "belongs to the backend kafka, which is not in this release"
    if gateway is not None:
        for key, value in (("share", gateway.share), ("public_url", gateway.public_url)):
            if value is not None:
                yield f"$.gateway.{key}", "share links are not in this release; remove the key"
    if telemetry is not None and telemetry.otlp is not None:
        yield "$.telemetry.otlp", "traces are not exported in this release; remove the key"
    if vault.token != "soft":
        yield "$.vault.token", f"{vault.token} is not in this release; it has soft"
    if vault.pkcs11 is not None:
        yield "$.vault.pkcs11", "hardware tokens are not in this release; remove the table"
    if policy.rules is not None:
        yield (
            "$.policy.rules",
            "this release has no rule engine, and a rule that nobody applies protects nobody: remove the key."
            " Without it whom a platform admits to a channel of a conversation may speak in it, nothing else",
        )
    if policy.dlp is not None:
        yield (
            "$.policy.dlp",
            "this release has no rule engine, so nothing would be detected: remove the key",
        )


def listen_faults(fabric: Fabric, gateway: Gateway | None, telemetry: Telemetry | None) -> Iterator[Fault]:
    """Nothing readable leaves the machine in clear, and no two listen in one place."""
    places: list[tuple[str, tuple[str, int]]] = []
    if gateway is not None:
        places.append(("$.gateway.listen", split_address(gateway.listen)))
        if gateway.tls is None and not is_loopback(places[-1][1][0]):
            yield (
                "$.gateway.listen",
                'is not loopback: that needs tls = { cert = "PATH", key = "PATH" } beside it',
            )
    if telemetry is not None:
        places.append(("$.telemetry.listen", split_address(telemetry.listen)))
        if not is_loopback(places[-1][1][0]):
            yield "$.telemetry.listen", "is not loopback: metrics have no TLS, let a proxy carry them"
    for number, endpoint in enumerate(fabric.listen):
        if endpoint != "ipc":
            places.append((f"$.fabric.listen[{number}]", split_address(endpoint.removeprefix("tcp://"))))
    taken = Counter(place for _, place in places if place[1])
    for path, place in places:
        if taken[place] > 1:
            yield path, f"two listen on {place[0]}:{place[1]}"


def tenant_of(
    named: str | None, tenants: Sequence[str], is_region: bool, path: str
) -> tuple[str | None, list[Fault]]:
    """Whose it is: named in a region, else the shard's own."""
    if named is None:
        if not is_region:
            return tenants[0], []
        return None, [(f"{path}.tenant", f"is required in a region: one of {', '.join(tenants)}")]
    if named not in tenants:
        what = f"is one of {', '.join(tenants)}" if is_region else f"is {tenants[0]} here, or left out"
        return None, [(f"{path}.tenant", what)]
    return named, []


def connector_faults(connectors: Mapping[str, Sequence[Placed]]) -> Iterator[Fault]:
    """An instance's name is one connector's, within a tenant."""
    for placed in connectors.values():
        first: dict[tuple[str, str], str] = {}
        for path, settings in placed:
            key = settings.service, settings.instance
            if key in first:
                yield f"{path}.instance", f"{'/'.join(key)} is taken by {first[key]}"
            first.setdefault(key, path)


def resolve(
    table: ConversationTable, tenant: str, connectors: Sequence[Placed], path: str
) -> tuple[Conversation, list[Fault]]:
    """A conversation's channels, each with the connector that carries it."""
    links: list[Link] = []
    faults: list[Fault] = []
    for number, channel in enumerate(table.channels):
        here = f"{path}.channels[{number}]"
        via = channel if isinstance(channel, Via) else Via(ref=channel)
        try:
            ref = ChannelRef.parse(via.ref)
        except RefError as exc:
            faults.append((here, str(exc)))
            continue
        if ref.workspace != tenant:
            faults.append((here, f"is of workspace {ref.workspace!r}, the conversation of {tenant!r}"))
            continue
        carrier, what = _carrier(ref, via.via, connectors)
        if carrier is None:
            faults.append((here, what))
        else:
            links.append(Link(ref=ref, service=carrier.service, instance=carrier.instance))
    if not table.channels:
        faults.append((f"{path}.channels", "names no channel"))
    return Conversation(name=table.name, tenant=tenant, links=tuple(links)), faults


def conversation_faults(conversations: Sequence[tuple[str, Conversation]]) -> Iterator[Fault]:
    """A name is one conversation's, and a channel belongs to one conversation, within a tenant."""
    names: dict[tuple[str, str], str] = {}
    channels: dict[ChannelRef, str] = {}
    for path, conversation in conversations:
        key = conversation.tenant, conversation.name
        if key in names:
            yield f"{path}.name", f"{conversation.name} is taken by {names[key]}"
        names.setdefault(key, path)
        for link in conversation.links:
            ref = _folded(link.ref)
            if ref in channels:
                yield f"{path}.channels", f"{link.ref.build()} stands in {channels[ref]} already"
            channels.setdefault(ref, path)


def _carrier(
    ref: ChannelRef, via: str | None, connectors: Sequence[Placed]
) -> tuple[ConnectorSettings | None, str]:
    of_service = [settings for _, settings in connectors if settings.service == ref.service]
    if not of_service:
        return None, f"no [[connector]] speaks {ref.service}"
    fitting = [settings for settings in of_service if _reaches(settings, ref)]
    if via is not None:
        for settings in of_service:
            if f"{settings.service}/{settings.instance}" == via:
                if settings in fitting:
                    return settings, ""
                return None, f"{via} is connected to another network than {ref.pointer[0]!r}"
        known = ", ".join(f"{one.service}/{one.instance}" for one in of_service)
        return None, f"via names no [[connector]] of {ref.service}; there is {known}"
    if not fitting:
        return None, f"no [[connector]] has the network {ref.pointer[0]!r}"
    if len(fitting) > 1:
        known = " or ".join(f'"{one.service}/{one.instance}"' for one in fitting)
        return None, f'several connectors reach it: write {{ ref = "…", via = {known} }}'
    return fitting[0], ""


def _reaches(settings: ConnectorSettings, ref: ChannelRef) -> bool:
    network = getattr(settings, "network", None)
    return network is None or network.lower() == ref.pointer[0].lower()


def _folded(ref: ChannelRef) -> ChannelRef:
    try:
        return fold_channel(ref, casemapping="ascii")
    except RefError:
        return ref
