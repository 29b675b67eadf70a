"""The IRC connector: lease, connect, log in, and hand over to `connection`.  One attempt; Trio."""

from __future__ import annotations

import ssl
from collections.abc import Sequence

import trio

from bridged.connectors import Capabilities, ConnectorState
from bridged.connectors.desk import Credential, Desk, fall_of
from bridged.connectors.irc.connection import Connection, Memory
from bridged.connectors.irc.login import Login
from bridged.connectors.irc.rendering import TEXT_BYTES_MAX
from bridged.connectors.irc.session import Session
from bridged.connectors.irc.settings import Settings, TlsFiles
from bridged.errors import BadCredentials, ConnectorError, Disconnected

# Ours.
CONNECT_S = 15.0

CAPABILITIES = Capabilities(
    edits=False,
    deletes=False,
    replies=False,
    reactions=False,
    typing=False,
    receipts=False,
    formatting=True,
    attachments=False,
    history=False,
    confirms=False,
    text_bytes_max=TEXT_BYTES_MAX,
    extensions=(
        "account-notify",
        "account-tag",
        "batch",
        "cap-notify",
        "chghost",
        "echo-message",
        "extended-join",
        "labeled-response",
        "message-tags",
        "multi-prefix",
        "sasl",
        "server-time",
        "setname",
        "userhost-in-names",
    ),
)
"""What was seen on real servers' wires.  `draft/multiline`, `draft/message-redaction` and `standard-replies` are
spoken where they are offered, after their specifications; no server at hand offers them."""


def make_connector(settings: Settings, channels: Sequence[str]) -> IrcConnector:
    """The connector of one `[[connector]]` table."""
    return IrcConnector(settings, channels)


class IrcConnector:
    """One network for one instance.

    Args:
        channels: References of the conversations' channels; those of other networks are passed over.
    """

    service = "irc"

    def __init__(self, settings: Settings, channels: Sequence[str] = ()) -> None:
        self.settings = settings
        self.instance = settings.instance
        self.capabilities = CAPABILITIES
        self._refs = tuple(channels)
        self._memory = Memory()
        self._connection: Connection | None = None

    def set_channels(self, channels: Sequence[str]) -> None:
        """Be in these channels from now on; at once, when connected."""
        self._refs = tuple(channels)
        if self._connection is not None:
            self._connection.set_refs(self._refs)

    async def run(self, desk: Desk, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """One attempt.  `started()` when we are in the channels, or know why not.

        Raises:
            BadCredentials: The network or the vault refuses the login.
            Banned: The server shut us out.
            Disconnected: No connection, or it ended.
        """
        login = await self._login(desk)
        host, port = self.settings.address
        await desk.state(ConnectorState.CONNECTING, f"to {host}:{port}")
        stream = await self._connect(desk, host, port)
        session = Session(
            nick=self.settings.nick,
            alt_nicks=self.settings.alt_nicks,
            ident=self.settings.ident,
            realname=self.settings.realname,
            login=login,
            netsplit_s=self.settings.netsplit_s,
            nonce=desk.env.token_bytes(18),
        )
        self._connection = Connection(
            desk=desk,
            settings=self.settings,
            stream=stream,
            session=session,
            refs=self._refs,
            memory=self._memory,
        )
        try:
            await self._connection.run(task_status=task_status)
        except BaseExceptionGroup as group:
            _, others = group.split(ConnectorError)
            fall = fall_of(group)
            if others is not None or fall is None:
                raise
            raise fall from group
        finally:
            self._connection = None
            await trio.aclose_forcefully(stream)

    async def _login(self, desk: Desk) -> Login | None:
        name = self.settings.credential
        if name is None:
            if self.settings.login != "external":
                return None
            return Login.from_credential(Credential("", {}), method="external", nick=self.settings.nick)
        credential = await desk.lease(name)
        return Login.from_credential(credential, method=self.settings.login, nick=self.settings.nick)

    async def _connect(self, desk: Desk, host: str, port: int) -> trio.abc.Stream:
        try:
            with trio.fail_after(CONNECT_S):
                stream = await desk.env.open_tcp_stream(host, port)
                if self.settings.tls is False:
                    return stream
                context = await desk.env.run_sync(_context, self.settings.tls)
                secure = trio.SSLStream(stream, context, server_hostname=host)
                await secure.do_handshake()
                return secure
        except trio.TooSlowError as exc:
            raise Disconnected(
                f"{host}:{port} does not answer within {CONNECT_S:.0f} s", hint="is the address right?"
            ) from exc
        except trio.BrokenResourceError as exc:
            cause = exc.__cause__
            if isinstance(cause, ssl.SSLError):
                hint = 'for a private authority: tls = { ca = "PATH" }'
                raise Disconnected(
                    f"TLS with {host}:{port} failed: {cause.reason or cause}", hint=hint
                ) from exc
            raise Disconnected(
                f"{host}:{port} broke the TLS handshake off", hint="is it a TLS port?"
            ) from exc
        except (OSError, ssl.SSLError) as exc:
            hint = "is the server up, and the address right?"
            raise Disconnected(f"{host}:{port} cannot be reached: {exc}", hint=hint) from exc


def _context(tls: bool | TlsFiles) -> ssl.SSLContext:
    files = tls if isinstance(tls, TlsFiles) else TlsFiles()
    try:
        context = ssl.create_default_context(cafile=files.ca)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        if files.cert is not None:
            context.load_cert_chain(files.cert, files.key)
    except (OSError, ssl.SSLError) as exc:
        paths = ", ".join(path for path in (files.ca, files.cert, files.key) if path)
        raise BadCredentials(f"the TLS files cannot be used ({paths}): {exc}") from exc
    return context
