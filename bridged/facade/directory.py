"""Who belongs together: conversations, their channels, and the clients that were added.

A `Directory` is a snapshot, so that decisions are made outside a transaction; `revision` says whether it still
holds inside one.  Conversations come from the configuration file and, at run time, by request; where both name
one, the file wins.  Links change by these two ways only: nothing that a network sends can move a channel.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import attrs

from bridged.errors import BridgeError
from bridged.refs import ChannelRef, IdentityRef, RefError, fold_channel, parse_ref
from shards.database import Connection

# Ours.
EVERYWHERE = "*"
"""An admission to every conversation of the tenant, also to those made later."""


class DirectoryError(BridgeError):
    """The change cannot be made; `code` is of the closed set."""

    def __init__(self, code: str, message: str, *, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.code = code


@attrs.frozen(kw_only=True, slots=True)
class Link:
    """A channel as an operator names it."""

    ref: str
    service: str
    instance: str
    """With the service: the connector that carries it."""


@attrs.frozen(kw_only=True, slots=True)
class Conversation:
    """What belongs together, as an operator names it."""

    name: str
    links: tuple[Link, ...]


@attrs.frozen(kw_only=True, slots=True)
class ClientSeed:
    """A client that shall exist from the start: an operator, or the first token."""

    name: str
    identity: str
    display: str = ""
    token_hash: bytes | None = None
    """SHA-256 of the token; None for an operator, who is known by the principal's name."""
    conversations: tuple[str, ...] = (EVERYWHERE,)


@attrs.frozen(kw_only=True, slots=True)
class Channel:
    """A chat of a platform."""

    row: int
    ref: str
    service: str
    network: str
    chat: str
    instance: str
    conversation: str | None
    pointer: tuple[str, ...]
    """As the operator spelt it: what the platform is given."""


@attrs.frozen(kw_only=True, slots=True)
class Client:
    """Somebody who speaks through the gateway or with a key of their own."""

    name: str
    identity: str
    display: str
    conversations: frozenset[str]

    def may_enter(self, conversation: str) -> bool:
        """Was the client added to that conversation?"""
        return conversation in self.conversations or EVERYWHERE in self.conversations


def place_of(ref: ChannelRef) -> tuple[str, str, str]:
    """(service, network, chat) by which a channel is found; what differs in letter case only is one channel."""
    try:
        # ASCII case only: a mapping that folds more could join two channels of a network that keeps them apart.
        folded = fold_channel(ref, casemapping="ascii")
    except RefError:
        folded = ref
    *network, chat = folded.pointer
    return folded.service, "/".join(network), chat


@attrs.frozen(kw_only=True)
class Directory:
    """The links and clients of one tenant at one revision."""

    tenant: str
    revision: int
    conversations: Mapping[str, tuple[Channel, ...]]
    rows: Mapping[int, Channel]
    clients: Mapping[str, Client]
    origins: Mapping[str, str]
    """Conversation -> `file` or `runtime`."""
    _places: Mapping[tuple[str, str, str], Channel] = attrs.field(alias="places", repr=False)
    _refs: dict[str, Channel | None] = attrs.field(alias="refs", factory=dict, repr=False)
    """Cache of exact texts; bounded by `channel`."""

    def channel(self, ref: str) -> Channel | None:
        """The channel of that reference, linked or not; None where nobody ever linked it.

        Raises:
            RefError: The text is no channel's reference.
            DirectoryError: `tenant_mismatch`; it is of another workspace.
        """
        found = self._refs.get(ref)
        if found is not None or ref in self._refs:
            return found
        parsed = ChannelRef.parse(ref)
        if parsed.workspace != self.tenant:
            raise DirectoryError("tenant_mismatch", "the channel is of another workspace")
        found = self._places.get(place_of(parsed))
        if len(self._refs) < 10_000:
            self._refs[ref] = found
        return found

    def ref_of(self, row: int | None) -> str | None:
        """The reference of a channel's row."""
        channel = None if row is None else self.rows.get(row)
        return None if channel is None else channel.ref

    def rooms(self, conversation: str, *, but: int | None = None) -> list[Channel]:
        """The channels of a conversation, without the one in row `but`."""
        return [channel for channel in self.conversations.get(conversation, ()) if channel.row != but]


def load_directory(tx: Connection, tenant: str) -> Directory:
    """The snapshot of what the database holds now."""
    rows: dict[int, Channel] = {}
    places: dict[tuple[str, str, str], Channel] = {}
    origins = dict(
        (name, origin)
        for name, origin in tx.execute(
            "SELECT name, origin FROM conversation WHERE tenant = ? ORDER BY name", (tenant,)
        )
    )
    members: dict[str, list[Channel]] = {name: [] for name in origins}
    for row, service, network, chat, instance, ref, conversation in tx.execute(
        "SELECT id, service, network, chat, instance, ref, conversation FROM channel"
        " WHERE tenant = ? ORDER BY id",
        (tenant,),
    ):
        channel = Channel(
            row=row,
            ref=ref,
            service=service,
            network=network,
            chat=chat,
            instance=instance,
            conversation=conversation,
            pointer=ChannelRef.parse(ref).pointer,
        )
        rows[row] = places[service, network, chat] = channel
        if conversation in members:
            members[conversation].append(channel)
    admitted: dict[str, set[str]] = {}
    for name, conversation in tx.execute(
        "SELECT client, conversation FROM admission WHERE tenant = ?", (tenant,)
    ):
        admitted.setdefault(name, set()).add(conversation)
    clients = {
        name: Client(
            name=name,
            identity=identity,
            display=display,
            conversations=frozenset(admitted.get(name, ())),
        )
        for name, identity, display in tx.execute(
            "SELECT name, identity, display FROM client WHERE tenant = ? AND revoked_ms IS NULL ORDER BY name",
            (tenant,),
        )
    }
    return Directory(
        tenant=tenant,
        revision=read_revision(tx, tenant),
        conversations={name: tuple(channels) for name, channels in members.items()},
        rows=rows,
        clients=clients,
        origins=origins,
        places=places,
    )


def read_revision(tx: Connection, tenant: str) -> int:
    """How often the links and clients have changed."""
    row = tx.one("SELECT value FROM fact WHERE tenant = ? AND name = 'revision'", (tenant,))
    return 0 if row is None else int(row[0])


def _changed(tx: Connection, tenant: str) -> None:
    tx.execute(
        "INSERT INTO fact (tenant, name, value) VALUES (?, 'revision', 1)"
        " ON CONFLICT (tenant, name) DO UPDATE SET value = value + 1",
        (tenant,),
    )


# Conversations --------------------------------------------------------------------------------------------------


def sync_file(tx: Connection, tenant: str, conversations: Sequence[Conversation]) -> None:
    """Make the conversations of the file what they are in it; one that it no longer names is unlinked."""
    before = _links(tx, tenant)
    named = {conversation.name for conversation in conversations}
    for (name,) in tx.execute(
        "SELECT name FROM conversation WHERE tenant = ? AND origin = 'file'", (tenant,)
    ):
        if name not in named:
            _unlink(tx, tenant, name)
    for conversation in conversations:
        _put(tx, tenant, conversation, origin="file")
    if _links(tx, tenant) != before:
        _changed(tx, tenant)


def add_conversation(tx: Connection, tenant: str, conversation: Conversation) -> None:
    """Make one at run time.

    Raises:
        DirectoryError: `duplicate` where the name or a channel is taken, `invalid_field` for a bad reference.
    """
    if tx.one("SELECT 1 FROM conversation WHERE tenant = ? AND name = ?", (tenant, conversation.name)):
        raise DirectoryError("duplicate", f"there is a conversation {conversation.name!r} already")
    for link in conversation.links:
        service, network, chat = place_of(checked_channel(link.ref, tenant))
        taken = tx.one(
            "SELECT conversation FROM channel WHERE tenant = ? AND service = ? AND network = ? AND chat = ?",
            (tenant, service, network, chat),
        )
        if taken is not None and taken[0] is not None:
            raise DirectoryError(
                "duplicate", f"{link.ref} belongs to {taken[0]!r}", hint="a channel has one conversation"
            )
    _put(tx, tenant, conversation, origin="runtime")
    _changed(tx, tenant)


def remove_conversation(tx: Connection, tenant: str, name: str) -> None:
    """Unlink one that was made at run time; its history stays.

    Raises:
        DirectoryError: `not_found`, or `forbidden` for one of the file's.
    """
    row = tx.one("SELECT origin FROM conversation WHERE tenant = ? AND name = ?", (tenant, name))
    if row is None:
        raise DirectoryError("not_found", f"there is no conversation {name!r}")
    if row[0] == "file":
        raise DirectoryError(
            "forbidden", f"{name!r} stands in the configuration file", hint="remove it there, then reload"
        )
    _unlink(tx, tenant, name)
    _changed(tx, tenant)


def checked_channel(ref: str, tenant: str) -> ChannelRef:
    """The reference, if it names a channel of the tenant.

    Raises:
        DirectoryError: `invalid_field` or `tenant_mismatch`.
    """
    try:
        parsed = ChannelRef.parse(ref)
    except RefError as exc:
        raise DirectoryError("invalid_field", str(exc)) from exc
    if parsed.workspace != tenant:
        raise DirectoryError("tenant_mismatch", f"the channel is of workspace {parsed.workspace!r}")
    return parsed


def _links(tx: Connection, tenant: str) -> list[tuple[object, ...]]:
    return [
        *tx.execute("SELECT name, origin FROM conversation WHERE tenant = ? ORDER BY name", (tenant,)),
        *tx.execute(
            "SELECT id, instance, ref, conversation FROM channel WHERE tenant = ? ORDER BY id", (tenant,)
        ),
    ]


def _unlink(tx: Connection, tenant: str, name: str) -> None:
    tx.execute("UPDATE channel SET conversation = NULL WHERE tenant = ? AND conversation = ?", (tenant, name))
    tx.execute("DELETE FROM conversation WHERE tenant = ? AND name = ?", (tenant, name))


def _put(tx: Connection, tenant: str, conversation: Conversation, *, origin: str) -> None:
    tx.execute(
        "INSERT INTO conversation (tenant, name, origin) VALUES (?, ?, ?)"
        " ON CONFLICT (tenant, name) DO UPDATE SET origin = excluded.origin",
        (tenant, conversation.name, origin),
    )
    tx.execute(
        "UPDATE channel SET conversation = NULL WHERE tenant = ? AND conversation = ?",
        (tenant, conversation.name),
    )
    for link in conversation.links:
        service, network, chat = place_of(checked_channel(link.ref, tenant))
        assert service == link.service
        tx.execute(
            "INSERT INTO channel (tenant, service, network, chat, instance, ref, conversation)"
            " VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT (tenant, service, network, chat)"
            " DO UPDATE SET instance = excluded.instance, ref = excluded.ref,"
            " conversation = excluded.conversation",
            (tenant, service, network, chat, link.instance, link.ref, conversation.name),
        )


# Clients --------------------------------------------------------------------------------------------------------


def put_client(
    tx: Connection, tenant: str, seed: ClientSeed, *, at_ms: int, may_replace: bool = False
) -> Client:
    """Add a client.

    Raises:
        DirectoryError: `duplicate` where the name or the token is taken, `invalid_field` for a bad identity.
    """
    identity = checked_identity(seed.identity)
    taken = tx.one(
        "SELECT name FROM client WHERE tenant = ?1 AND ((name = ?2 AND revoked_ms IS NULL)"
        " OR (token_hash = ?3 AND name <> ?2))",
        (tenant, seed.name, seed.token_hash),
    )
    if taken is not None and not (may_replace and taken[0] == seed.name):
        raise DirectoryError(
            "duplicate",
            f"there is a client {seed.name!r} already",
            hint="`bridgectl clients revoke` it first",
        )
    display = seed.display or identity.pointer[-1]
    tx.execute(
        "INSERT INTO client (tenant, name, identity, display, token_hash, added_ms, revoked_ms)"
        " VALUES (?, ?, ?, ?, ?, ?, NULL) ON CONFLICT (tenant, name) DO UPDATE SET"
        " identity = excluded.identity, display = excluded.display, token_hash = excluded.token_hash,"
        " added_ms = excluded.added_ms, revoked_ms = NULL",
        (tenant, seed.name, seed.identity, display, seed.token_hash, at_ms),
    )
    tx.execute("DELETE FROM admission WHERE tenant = ? AND client = ?", (tenant, seed.name))
    tx.executemany(
        "INSERT OR IGNORE INTO admission (tenant, client, conversation) VALUES (?, ?, ?)",
        [(tenant, seed.name, conversation) for conversation in seed.conversations],
    )
    _changed(tx, tenant)
    return Client(
        name=seed.name,
        identity=seed.identity,
        display=display,
        conversations=frozenset(seed.conversations),
    )


def seed_clients(tx: Connection, tenant: str, seeds: Iterable[ClientSeed], *, at_ms: int) -> None:
    """Add those of `seeds` that never were; a revoked one stays revoked."""
    for seed in seeds:
        if not tx.one("SELECT 1 FROM client WHERE tenant = ? AND name = ?", (tenant, seed.name)):
            put_client(tx, tenant, seed, at_ms=at_ms)


def revoke_client(tx: Connection, tenant: str, name: str, *, at_ms: int) -> None:
    """Take the client's token and admissions away.

    Raises:
        DirectoryError: `not_found`.
    """
    tx.execute(
        "UPDATE client SET revoked_ms = ?, token_hash = NULL"
        " WHERE tenant = ? AND name = ? AND revoked_ms IS NULL",
        (at_ms, tenant, name),
    )
    if not tx.changes():
        raise DirectoryError("not_found", f"there is no client {name!r}")
    tx.execute("DELETE FROM admission WHERE tenant = ? AND client = ?", (tenant, name))
    _changed(tx, tenant)


def client_of_token(tx: Connection, tenant: str, token_hash: bytes) -> str | None:
    """The name of the client with that token (its SHA-256, so the index compares no secret)."""
    row = tx.one(
        "SELECT name FROM client WHERE tenant = ? AND token_hash = ? AND revoked_ms IS NULL",
        (tenant, token_hash),
    )
    return None if row is None else row[0]


def checked_identity(ref: str) -> IdentityRef:
    """The reference, if it names a person.

    Raises:
        DirectoryError: `invalid_field`.
    """
    try:
        parsed = parse_ref(ref)
    except RefError as exc:
        raise DirectoryError("invalid_field", str(exc)) from exc
    if not isinstance(parsed, IdentityRef):
        raise DirectoryError("invalid_field", f"not an identity: {ref!a:.100}")
    return parsed
