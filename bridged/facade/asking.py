"""Who asks: from a request's principal to the identity that speaks.

A principal speaks as the client of its own name.  The gateway names the client whose token it was shown; an
operator may name any identity (`--as`), and the policy still decides what that identity may do.
"""

from __future__ import annotations

from collections.abc import Collection

from bridged.facade.core import Core
from bridged.facade.directory import Client, DirectoryError, checked_identity
from bridged.facade.warrants import Warrant, Warrants
from bridged.requests import Question as Request
from shards.errors import RequestFailed


class Asking:
    """Resolves askers."""

    def __init__(self, core: Core, warrants: Warrants, gateways: Collection[str]) -> None:
        self._core = core
        self._warrants = warrants
        self._gateways = frozenset(gateways)

    async def warrant(self, request: Request) -> Warrant:
        """The asker's row.

        Raises:
            RequestFailed: `capability_denied`; it has none.
        """
        row = await self._warrants.row(request.principal)
        if row is None:
            raise RequestFailed("capability_denied", "the asker is not enrolled")
        return row

    async def is_admin(self, request: Request) -> bool:
        """May the asker change links and clients, and read everything?"""
        return (await self.warrant(request)).is_admin

    async def speaker(self, request: Request) -> Client:
        """The client that speaks.

        Raises:
            RequestFailed: `capability_denied` for a name that the asker may not use, `not_linked` where there is
                nobody to speak as.
        """
        directory = self._core.directory
        own = directory.clients.get(request.principal)
        name = request.payload.get("client")
        identity = request.payload.get("identity")
        if name is not None:
            client = directory.clients.get(str(name)) if request.principal in self._gateways else None
            if client is None:
                raise RequestFailed("capability_denied", "the asker does not speak for that client")
            return client
        if identity is not None:
            if own is not None and own.identity == identity:
                return own
            if not await self.is_admin(request):
                raise RequestFailed("capability_denied", "the asker does not speak as that identity")
            return self._as_identity(str(identity))
        if own is None:
            raise RequestFailed(
                "not_linked",
                f"{request.principal} has no identity to speak as",
                hint="`bridgectl clients add NAME --identity ID --conversation C`, or name one with --as",
            )
        return own

    async def reader(self, request: Request) -> Client | None:
        """The client that reads; None for an operator, who may read all.

        Raises:
            RequestFailed: As `speaker`.
        """
        if "client" in request.payload or "identity" in request.payload:
            return await self.speaker(request)
        if await self.is_admin(request):
            return None
        return await self.speaker(request)

    def check_entry(self, client: Client | None, conversation: str) -> None:
        """Raises RequestFailed: `not_found`; no such conversation, or none that the client was added to."""
        is_there = conversation in self._core.directory.conversations
        if not is_there or (client is not None and not client.may_enter(conversation)):
            raise RequestFailed("not_found", f"there is no conversation {conversation!r} for this client")

    async def message(self, request: Request, client: Client) -> tuple[str, str]:
        """(id, conversation) of the message that the request names.

        Raises:
            RequestFailed: `not_found`; none, or of a conversation that the client was not added to.
        """
        message_id = request.text("message_id")
        conversation = await self._core.read(lambda tx: self._core.messages.conversation_of(tx, message_id))
        if conversation is None or not client.may_enter(conversation):
            raise no_message()
        return message_id, conversation

    def _as_identity(self, identity: str) -> Client:
        for client in self._core.directory.clients.values():
            if client.identity == identity:
                return client
        try:
            ref = checked_identity(identity)
        except DirectoryError as exc:
            raise RequestFailed(exc.code, str(exc)) from exc
        # Nobody was added under it, so it is admitted nowhere; a rule may still let it speak.
        return Client(name="", identity=identity, display=ref.pointer[-1], conversations=frozenset())


def no_message() -> RequestFailed:
    """The one answer for a message that is not there and for one of others."""
    return RequestFailed("not_found", "there is no such message")
