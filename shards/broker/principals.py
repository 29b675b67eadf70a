"""Who may talk to a broker: principals by their Noise key, and invites for those to come.

The directory is the truth in memory; `open_broker` loads it from the log's file and writes each change there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Literal, get_args

import attrs
import msgspec

from shards.errors import LogCorrupt, ShardsError
from shards.grant import Grant
from shards.store import InviteRow, PrincipalRow

State = Literal["active", "suspended", "revoked"]


@attrs.frozen(kw_only=True)
class Principal:
    """One row: a name in a tenant, its three public keys, and what it may do."""

    name: str
    tenant: str
    noise_public: bytes
    signing_public: bytes
    lease_public: bytes
    grants: frozenset[Grant] = frozenset()
    service: str | None = None
    """For a connector: its platform, its instance, and the accounts it speaks for."""
    instance: str | None = None
    accounts: tuple[str, ...] = ()
    state: State = "active"

    def to_row(self) -> PrincipalRow:
        return PrincipalRow(
            tenant=self.tenant,
            name=self.name,
            noise_public=self.noise_public,
            signing_public=self.signing_public,
            lease_public=self.lease_public,
            service=self.service,
            instance=self.instance,
            accounts=self.accounts,
            state=self.state,
            grants=tuple(sorted((g.verb, g.service, g.instance, g.action) for g in self.grants)),
        )

    @classmethod
    def from_row(cls, row: PrincipalRow) -> Principal:
        """Raises LogCorrupt where the row holds what no version ever wrote."""
        try:
            grants = frozenset(Grant(*parts) for parts in row.grants)  # type: ignore[arg-type]
        except ShardsError as exc:
            raise LogCorrupt(f"a grant of {row.name} is damaged: {exc}") from exc
        if row.state not in get_args(State):
            raise LogCorrupt(f"the state of {row.name} is damaged")
        return cls(
            name=row.name,
            tenant=row.tenant,
            noise_public=row.noise_public,
            signing_public=row.signing_public,
            lease_public=row.lease_public,
            grants=grants,
            service=row.service,
            instance=row.instance,
            accounts=row.accounts,
            state=row.state,  # type: ignore[arg-type]  # checked above
        )


@attrs.frozen(kw_only=True)
class Invite:
    """A one-time secret with which a newcomer brings its own keys."""

    id: str
    secret: bytes = attrs.field(repr=False)
    expires_at: float
    """Wall clock, seconds since 1970."""
    name: str
    tenant: str


class InviteBody(msgspec.Struct, frozen=True):
    """What the newcomer will be; kept opaque in the invite's row."""

    grants: tuple[str, ...]
    service: str | None
    instance: str | None
    accounts: tuple[str, ...]

    def encode(self) -> bytes:
        return msgspec.json.encode(self)

    @classmethod
    def decode(cls, body: bytes) -> InviteBody:
        """Raises LogCorrupt where the bytes are not of `encode`."""
        try:
            return msgspec.json.decode(body, type=cls)
        except msgspec.MsgspecError as exc:
            raise LogCorrupt("an invite's row does not decode") from exc

    def principal(self, row: InviteRow, noise: bytes, signing: bytes, lease: bytes) -> Principal:
        return Principal(
            name=row.name,
            tenant=row.tenant,
            noise_public=noise,
            signing_public=signing,
            lease_public=lease,
            grants=frozenset(map(Grant.parse, self.grants)),
            service=self.service,
            instance=self.instance,
            accounts=self.accounts,
        )


class Directory:
    """Principals by name and by key, invites by id."""

    def __init__(
        self, principals: Iterable[Principal], invites: Iterable[InviteRow], wall: Callable[[], float]
    ) -> None:
        self._wall = wall
        self._by_name: dict[tuple[str, str], Principal] = {}
        self._by_key: dict[bytes, Principal] = {}
        self._invites = {row.id: row for row in invites}
        for principal in principals:
            self.put(principal)

    def put(self, principal: Principal) -> None:
        """Insert or replace by name; a key that the name had before is unknown from now on."""
        name = principal.tenant, principal.name
        old = self._by_name.get(name)
        if old is not None:
            del self._by_key[old.noise_public]
        self._by_name[name] = self._by_key[principal.noise_public] = principal

    def check_key(self, principal: Principal) -> None:
        """Raises ShardsError where the Noise key is another principal's."""
        holder = self._by_key.get(principal.noise_public)
        if holder is not None and (holder.tenant, holder.name) != (principal.tenant, principal.name):
            raise ShardsError("this Noise key belongs to another principal", hint="make a new key")

    def by_key(self, noise_public: bytes) -> Principal | None:
        """The principal of a proven key, if it may have a link."""
        principal = self._by_key.get(noise_public)
        return principal if principal is not None and principal.state == "active" else None

    def by_name(self, name: str, tenant: str | None) -> Principal:
        """Raises ShardsError where there is none, or without a tenant more than one."""
        if tenant is not None:
            found = [p for p in (self._by_name.get((tenant, name)),) if p is not None]
        else:
            found = [p for p in self._by_name.values() if p.name == name]
        if len(found) == 1:
            return found[0]
        raise ShardsError(
            f"no principal {name!r}" if not found else f"{name!r} exists in several tenants: name the tenant",
            hint="bridgectl keys list",
        )

    def all(self, tenant: str | None) -> list[Principal]:
        return [p for p in self._by_name.values() if tenant is None or p.tenant == tenant]

    def put_invite(self, row: InviteRow) -> None:
        self._invites[row.id] = row

    def invite(self, id_: str) -> InviteRow | None:
        """The invite, if it is neither used nor expired."""
        row = self._invites.get(id_)
        return row if row is not None and row.expires_s > self._wall() else None

    def drop_invite(self, id_: str) -> None:
        self._invites.pop(id_, None)
