"""`keys join`: an invite becomes a key file.  The keys are made here and never travel."""

from __future__ import annotations

import getpass
import sys
from pathlib import Path

from bridged.ctl.output import USAGE, CtlError, usage
from bridged.ctl.session import Session
from bridged.envelope import from_base64url
from bridged.errors import EnvelopeError
from bridged.keyring import KEY_BYTES, Key, load_key, save_key
from shards.client import Identity, open_client
from shards.errors import NotGranted
from shards.link import Invite


async def keys_join(s: Session) -> None:
    """Enrol under an invite, with new keys; the secret comes from the prompt or stdin, never argv."""
    path = Path(s.args.file)
    tenant = s.args.tenant or s.config.tenants[0]
    if tenant not in s.config.tenants:
        usage(f"--tenant is one of {', '.join(s.config.tenants)}")
    secret = getpass.getpass("secret: ") if sys.stdin.isatty() else sys.stdin.readline()
    invite = Invite(id=s.args.invite, secret=_bytes(secret.strip(), "the secret"))
    server_public = _bytes(s.args.server, "--server")
    key = Key(
        identity=Identity.generate(s.args.name, tenant, s.env.token_bytes),
        shard=s.config.name,
        server_public=server_public,
    )
    if path.exists():  # of an attempt that did not come to its end
        key = await s.env.run_sync(load_key, path)
        if (key.identity.name, key.identity.tenant, key.server_public) != (
            s.args.name,
            tenant,
            server_public,
        ):
            raise CtlError(f"{path} holds the keys of somebody else", hint="name another FILE")
    else:
        await s.env.run_sync(save_key, path, key)  # before the invite is spent
    endpoint = s.args.endpoint or str(s.config.endpoint)
    try:
        async with open_client(
            s.env, endpoint, key.identity, server_public=server_public, shard=s.config.name, invite=invite
        ):
            pass
    except NotGranted as exc:
        raise NotGranted(
            f"the invite does not let {s.args.name} in: used, expired, or one of its words is wrong",
            hint=f"`bridgectl keys invite {s.args.name}` makes another; {path} can be used again with it",
        ) from exc
    s.out.value({"name": s.args.name, "key": str(path)}, f"{s.args.name} is enrolled; {path} holds its keys")


def _bytes(text: str, what: str) -> bytes:
    try:
        value = from_base64url(text)
    except EnvelopeError:
        value = b""
    if len(value) != KEY_BYTES:
        raise CtlError(
            f"{what} is not what `bridgectl keys invite` printed",
            code="usage",
            hint="32 bytes in base64url",
            status=USAGE,
        )
    return value
