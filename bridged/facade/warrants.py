"""Whose word is it: the principals' rows, and whether a record may say what it says.

A record is believed when the payload is what the key of its principal signed, and when the topic, and the channel
in it, are those of that principal's row.  Rows are asked of the fabric once and kept until it says that keys have
changed.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any

import attrs

from bridged.envelope import TopicName
from bridged.errors import EnvelopeError
from shards.errors import RemoteProtocolError, ShardsError
from shards.grant import Grant, allows
from shards.merkle import verify_path, verify_root
from shards.record import Record

# Ours.
ROOTS_KEPT = 256
"""Verified batch signatures remembered: the records of one batch come one after the other."""


@attrs.frozen(kw_only=True)
class Warrant:
    """What the facade needs of a principal's row."""

    name: str
    signing_public: bytes
    service: str | None
    instance: str | None
    accounts: frozenset[str]
    """References of the identities that the principal speaks as on its network, and the chats it is bound to."""
    grants: tuple[Grant, ...]

    @property
    def is_admin(self) -> bool:
        """May it change grants?  Then it may change links and clients too."""
        return allows(self.grants, "request", "bridge/fabric/grants")


AskPrincipal = Callable[[str], Awaitable[Warrant | None]]
"""A principal's name -> its row, None where there is none."""


class Warrants:
    """The rows that have been asked for."""

    def __init__(self, ask: AskPrincipal) -> None:
        self._ask = ask
        self._rows: dict[str, Warrant] = {}
        self._roots: dict[tuple[str, bytes], None] = {}
        self._generation = 0
        self._accounts: frozenset[str] = frozenset()

    def forget(self) -> None:
        """Keys have changed somewhere: ask anew."""
        self._generation += 1
        self._rows.clear()
        self._roots.clear()

    async def row(self, principal: str) -> Warrant | None:
        """The principal's row.

        Raises:
            RequestFailed: The fabric does not answer.
        """
        row = self._rows.get(principal)
        if row is None:
            generation = self._generation
            row = await self._ask(principal)
            if row is not None and generation == self._generation:
                self._rows[principal] = row
                self._accounts = frozenset().union(*(held.accounts for held in self._rows.values()))
        return row

    @property
    def accounts(self) -> frozenset[str]:
        """Every identity that a connector seen so far speaks as: what they say on a network is our own echo."""
        return self._accounts

    async def check(self, record: Record, topic: TopicName) -> Warrant:
        """The warrant of the record's principal, when it was signed by it and lies on a topic of its row.

        Raises:
            EnvelopeError: `capability_denied` for a stranger or a topic of another's, `bad_envelope` for a
                signature that does not hold.
        """
        warrant = await self.row(record.principal)
        if warrant is None:
            raise EnvelopeError("capability_denied", "the principal is not enrolled")
        if (topic.service, topic.instance) != (warrant.service, warrant.instance):
            raise EnvelopeError("capability_denied", "the topic is not of the principal's instance")
        if record.offset >= 0:  # what is passing is not signed; the broker's stamp stands for it
            self._verify(record, warrant)
        return warrant

    def _verify(self, record: Record, warrant: Warrant) -> None:
        proof = record.proof
        if proof is None:
            raise EnvelopeError("bad_envelope", "the record is not signed")
        try:
            verify_path(record.payload, proof)
            known = (warrant.name, proof.signature + proof.root + bytes((proof.n,)))
            if known not in self._roots:
                verify_root(proof.n, proof.root, proof.signature, warrant.signing_public)
                if len(self._roots) >= ROOTS_KEPT:
                    del self._roots[next(iter(self._roots))]
                self._roots[known] = None
        except RemoteProtocolError as exc:
            raise EnvelopeError("bad_envelope", "the record is not signed by its principal's key") from exc


def read_warrant(row: Mapping[str, Any]) -> Warrant:
    """A principal as `bridge/fabric/keys` lists it.

    Raises:
        ShardsError: The row is not of that form.
    """
    try:
        return Warrant(
            name=str(row["name"]),
            signing_public=bytes.fromhex(row["signing_public"]),
            service=row.get("service"),
            instance=row.get("instance"),
            accounts=frozenset(map(str, row.get("accounts") or ())),
            grants=tuple(_grants(row.get("grants") or ())),
        )
    except (KeyError, TypeError, ValueError) as exc:
        raise ShardsError(f"a principal's row is not understood: {type(exc).__name__}") from exc


def _grants(texts: Iterable[Any]) -> Iterable[Grant]:
    for text in texts:
        if isinstance(text, Mapping):
            yield Grant(text["verb"], text["service"], text.get("instance", ""), text["action"])
        else:
            yield Grant.parse(text)
