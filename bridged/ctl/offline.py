"""The commands that need no running shard: making one, checking one, verifying what it wrote."""

from __future__ import annotations

import grp
import hashlib
import os
import pwd
from collections.abc import Callable
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any

from nacl import bindings

from bridged.audit import store as audit_store
from bridged.audit.against import compare
from bridged.audit.member import origin
from bridged.audit.tree import inclusion_proof, verifier_key
from bridged.config import load_config
from bridged.control import HOUSE
from bridged.ctl.output import CONFIG, FAILED, CtlError, usage
from bridged.ctl.probe import Finding, encrypted_disk, platform_findings, storage_finding
from bridged.ctl.session import Session
from bridged.envelope import to_base64url
from bridged.errors import BridgeError, ConfigError
from bridged.keyring import (
    Key,
    KeyFileError,
    card_of,
    check_name,
    load_cards,
    load_seed,
    save_card,
    save_key,
    seed_file,
    write_private,
)
from bridged.vault.softtoken import SoftToken
from shards.broker import server_key
from shards.client import Identity
from shards.database import open_database
from shards.errors import ShardsError
from shards.log import open_log

TOKEN_BYTES = 32
_TEMPLATE = """# The configuration of one shard.  Every key: docs/configuration.md.  `bridgectl check` names every fault by its path.
[shard]
name = "{name}"
state = "{state}"
{runtime}
[fabric]
listen = ["ipc"]                        # add "tcp://127.0.0.1:7470" for clients on other machines behind a tunnel

[gateway]
listen = "127.0.0.1:7471"               # beyond loopback only with tls = {{ cert = "PATH", key = "PATH" }}

[telemetry]
listen = "127.0.0.1:7472"               # /metrics /health /ready

[vault]
token = "soft"

# A connector that answers by itself, to try things out: bridgectl send lobby hello --wait
[[connector]]
service = "echo"
instance = "demo"

[[conversation]]
name = "lobby"
channels = ["msgr://channels/{name}/bridge/echo/lobby"]

# [[connector]]
# service = "irc"
# instance = "libera"
# network = "irc.libera.chat"           # the name in msgr:// references
# server = "irc.libera.chat:6697"
# tls = true
# nick = "{name}-bridge"
# credential = "irc/libera"             # bridgectl vault put irc/libera
#
# [[connector]]
# service = "xmpp"
# instance = "main"
# jid = "bridge@example.org"
# credential = "xmpp/main"
# nick = "{name}-bridge"
#
# [[conversation]]
# name = "ops"
# channels = [
#   "msgr://channels/{name}/bridge/irc/irc.libera.chat/%23ops",
#   "msgr://channels/{name}/bridge/xmpp/ops@conference.example.org",
# ]
"""


async def init(s: Session) -> None:
    """Make a shard: everything that `bridged run` needs."""
    if (s.args.dir is None) == (s.args.system is None):
        usage("init takes a directory, or --system NAME")
    runtime = ""
    if s.args.system:
        name, base = s.args.name or s.args.system, Path("/etc/bridged")
        path, state, owner = base / f"{name}.toml", Path("/var/lib/bridged") / name, "bridged"
        runtime = f'runtime = "/run/bridged/{name}"\n'
    else:
        base = Path(s.args.dir).absolute()
        name, path, state, owner = s.args.name or base.name, base / "shard.toml", base / "state", None
    text = _TEMPLATE.format(name=name, state=state, runtime=runtime)
    made = await s.env.run_sync(make_shard, s.env.token_bytes, name, path, state, text, owner)
    s.out.value(
        made,
        f"shard {name} is made in {base}\n"
        f"  edit   {path}\n"
        f"  start  bridged run {path}\n"
        f"  look   bridgectl --config {path} status",
    )


def make_shard(
    token_bytes: Callable[[int], bytes],
    name: str,
    path: Path,
    state: Path,
    text: str,
    owner: str | None = None,
) -> dict[str, Any]:
    """Write a shard's configuration `text` to `path`, with all keys that it needs beside it and under `state`.

    Raises:
        CtlError: There is one already, it cannot be written, or the text is no configuration.
    """
    base = path.parent
    if path.exists():
        raise CtlError(f"{path} exists", hint="a shard is made once; take another directory")
    try:
        check_name(name)
        base.mkdir(mode=0o700, parents=True, exist_ok=True)
        (base / "keys").mkdir(mode=0o700, exist_ok=True)
        state.mkdir(mode=0o700, parents=True, exist_ok=True)
        keys = state / "keys"
        keys.mkdir(mode=0o700, exist_ok=True)
        server_public = server_key(state, token_bytes)
        SoftToken.create(keys / "vault.key", token_bytes)
        seed_file(keys / f"audit-{name}.key", token_bytes)
        token = to_base64url(token_bytes(TOKEN_BYTES))
        token_file = base / ("client.token" if owner is None else f"{name}.token")
        write_private(token_file, token.encode() + b"\n")
        identity = Identity.generate(name, name, token_bytes)
        save_key(
            base / "keys" / f"{name}.key", Key(identity=identity, shard=name, server_public=server_public)
        )
        card = card_of(
            identity,
            speaks_as=f"msgr://identity/msgr/{name}",
            client_token_sha256=hashlib.sha256(token.encode()).hexdigest(),
        )
        save_card(base / "keys" / f"{name}.pub", card)
        # last, so that a file that is there belongs to a shard that is whole
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o640)
        with os.fdopen(fd, "w") as file:
            file.write(text)
        if owner is not None:
            _give(state, owner)
            os.chown(path, -1, grp.getgrnam(owner).gr_gid)
    except OSError as exc:
        raise CtlError(f"{exc.filename or base}: {exc.strerror}", hint="may you write there?") from exc
    except KeyError as exc:
        raise CtlError(
            f"there is no user {owner}", hint="systemd-sysusers makes it from systemd/bridged.sysusers"
        ) from exc
    try:
        load_config(path)
    except ConfigError as exc:
        path.unlink()
        raise CtlError(str(exc), hint="choose another name: --name", status=CONFIG) from exc
    return {
        "name": name,
        "config": str(path),
        "key": str(base / "keys" / f"{name}.key"),
        "token": str(token_file),
    }


def _give(directory: Path, owner: str) -> None:
    row = pwd.getpwnam(owner)
    for place in (directory, *directory.rglob("*")):
        os.chown(place, row.pw_uid, row.pw_gid)


async def check(s: Session) -> None:
    """The configuration, the files, the platforms' reachability."""
    config = s.config  # raises with every fault
    findings = await s.env.run_sync(_files, s)
    findings += await platform_findings(s.env, config)
    _report(s, findings, "run `bridgectl doctor` for more")


async def doctor(s: Session) -> None:
    """Everything on this machine that a shard leans on."""
    findings: list[Finding] = await s.env.run_sync(_machine)
    try:
        config = s.config
        findings.append(Finding(name="configuration", ok=True, detail=str(s.path)))
    except BridgeError as exc:
        findings.append(
            Finding(name="configuration", ok=False, detail=str(exc), hint=exc.hint or "mend the file")
        )
    else:
        findings += await s.env.run_sync(_files, s)
        findings += await s.env.run_sync(_storage, config.state)
        findings += await platform_findings(s.env, config)
    _report(s, findings, "mend what is marked, then run it again")


def _report(s: Session, findings: list[Finding], hint: str) -> None:
    rows = [finding.to_row() for finding in findings]
    s.out.table("findings", rows, ["what", "state", "detail", "hint"])
    bad = [finding.name for finding in findings if not finding.ok and not finding.only_warns]
    if bad:
        raise CtlError(f"not in order: {', '.join(bad)}", hint=hint, status=FAILED)


def _files(s: Session) -> list[Finding]:
    """Keys, cards, the vault's token: are they there, and private?"""
    findings: list[Finding] = []

    def look(name: str, act: Any) -> None:
        try:
            findings.append(Finding(name=name, ok=True, detail=str(act())))
        except (BridgeError, ShardsError) as exc:
            findings.append(Finding(name=name, ok=False, detail=str(exc), hint=exc.hint))

    config = s.config
    look("operator's key", lambda: s.key.identity.name)
    look("operators", lambda: ", ".join(card.name for card in load_cards(s.keys_dir)) or _nobody())
    if config.vault.token == "soft":
        look(
            "vault",
            lambda: SoftToken.open(config.state / "keys" / "vault.key", s.env.token_bytes) and "soft token",
        )
    look("state", lambda: _private_dir(config.state))
    return findings


def _nobody() -> str:
    raise KeyFileError("no operator's card beside the configuration", hint="bridgectl keys new NAME")


def _private_dir(path: Path) -> str:
    try:
        mode = path.stat().st_mode
    except OSError as exc:
        raise KeyFileError(f"{path}: {exc.strerror}", hint="`bridgectl init` makes it") from exc
    if mode & 0o077:
        raise KeyFileError(f"{path} may be read by others", hint=f"chmod 700 {path}")
    return str(path)


def _machine() -> list[Finding]:
    findings = []
    owners = packages_distributions()
    for package in ("bridged", "shards", "noise"):
        names = sorted(set(owners.get(package, ())))
        findings.append(
            Finding(
                name=f"package {package}",
                ok=names in (["bridged"], []),
                detail=", ".join(names) or "from the source tree",
                hint="another project's package of that name is installed: give bridged a venv of its own",
            )
        )
    return findings


def _storage(state: Path) -> list[Finding]:
    return [storage_finding(state), encrypted_disk(state)]


async def log_verify(s: Session) -> None:
    """Every checksum and chain of the Log."""
    async with open_log(s.env, _log_path(s), read_only=True) as log:
        found = await log.verify()
    s.out.value(
        {"records": found.records, "segments": found.segments, "head": found.head, "verified": True},
        f"{found.records} records in {found.segments} segments verify, up to position {found.head}",
    )


async def audit_verify(s: Session) -> None:
    """Every leaf and signed head, and that no record of the Log is without its leaf."""
    answers = []
    for tenant in s.config.tenants:
        answers.append(await _verify_tenant(s, tenant))
    text = "\n".join(
        f"{a['tenant']}: {a['size']} leaves verify under {a['checkpoints']} signed heads; root {a['root']}"
        for a in answers
    )
    s.out.value(answers[0] if len(answers) == 1 else {"tenants": answers}, text)


async def _verify_tenant(s: Session, tenant: str) -> dict[str, Any]:
    public = _audit_public(s, tenant)
    async with open_database(
        s.env, _audit_path(s, tenant), migrations=audit_store.MIGRATIONS, read_only=True
    ) as database:
        found = await database.read(lambda tx: audit_store.verify(tx, public))
        async with open_log(s.env, _log_path(s), read_only=True) as log:
            beside = await compare(log, database, tenant, size=found.size)
    return {
        "tenant": tenant,
        "size": found.size,
        "root": found.root.hex(),
        "checkpoints": found.checkpoints,
        "signed_size": found.signed_size,
        "compared": beside.compared,
        "trimmed": beside.trimmed,
        "not_yet_audited": beside.not_yet_audited,
        "verified": True,
    }


async def audit_prove(s: Session) -> None:
    """A trace's leaves with their audit paths."""
    tenant = s.key.identity.tenant
    async with open_database(
        s.env, _audit_path(s, tenant), migrations=audit_store.MIGRATIONS, read_only=True
    ) as database:
        found = await database.read(lambda tx: audit_store.by_trace(tx, s.args.trace_id))
        notes = await database.read(audit_store.checkpoints)
        hashes = await database.read(audit_store.hashes)
    size, note = notes[-1] if notes else (0, "")
    leaves = [(seq, leaf) for seq, leaf in found if seq < size]
    if not leaves:
        raise CtlError(
            "no signed leaf of that trace",
            code="not_found",
            hint="is the trace id right? heads are signed every second",
        )
    proofs: list[dict[str, Any]] = [
        {
            "index": seq,
            "leaf": leaf.encode().decode(),
            "path": [node.hex() for node in inclusion_proof(hashes[:size], seq)],
        }
        for seq, leaf in leaves
    ]
    value = {
        "trace_id": s.args.trace_id,
        "checkpoint": note,
        "proofs": proofs,
        "verifier": _verifier(s, tenant),
    }
    lines = [
        f"leaf {p['index']}: {p['leaf']}\n" + "\n".join(f"  {node}" for node in p["path"]) for p in proofs
    ]
    s.out.value(value, "\n".join([*lines, "", note]))


async def audit_checkpoint(s: Session) -> None:
    """The newest signed head, and the key to verify it with."""
    tenant = s.key.identity.tenant
    async with open_database(
        s.env, _audit_path(s, tenant), migrations=audit_store.MIGRATIONS, read_only=True
    ) as database:
        notes = await database.read(audit_store.checkpoints)
    if not notes:
        raise CtlError(
            "no head is signed yet", code="not_found", hint="the shard signs one a second while it runs"
        )
    s.out.value({"checkpoint": notes[-1][1], "verifier": _verifier(s, tenant)}, notes[-1][1].rstrip("\n"))


def _log_path(s: Session) -> Path:
    path: Path = s.config.state / "log.db"
    if not path.exists():
        raise CtlError(f"there is no {path}", code="not_found", hint="the shard has never run")
    return path


def _audit_path(s: Session, tenant: str) -> Path:
    path: Path = s.config.paths(tenant).audit
    if not path.exists():
        raise CtlError(f"there is no {path}", code="not_found", hint="the shard has never run")
    return path


def _audit_public(s: Session, tenant: str) -> bytes:
    seed = load_seed(s.config.state / "keys" / f"audit-{tenant}.key")
    public, _ = bindings.crypto_sign_seed_keypair(seed.reveal())
    return public


def _verifier(s: Session, tenant: str) -> str:
    return verifier_key(origin(s.config.name, tenant), _audit_public(s, tenant))


async def keys_new(s: Session) -> None:
    """A new operator: a private file for it, a card for the shard."""
    name = check_name(s.args.name)
    if name in HOUSE:
        usage(f"{name} is the name of a member of the house")
    tenant = s.args.tenant or s.config.tenants[0]
    if tenant not in s.config.tenants:
        usage(f"--tenant is one of {', '.join(s.config.tenants)}")
    path = s.keys_dir / f"{name}.key"
    server_public = await s.env.run_sync(server_key, s.config.state, s.env.token_bytes)
    identity = Identity.generate(name, tenant, s.env.token_bytes)
    key = Key(identity=identity, shard=s.config.name, server_public=server_public)
    await s.env.run_sync(save_key, path, key)
    card = card_of(identity, speaks_as=f"msgr://identity/msgr/{name}")
    await s.env.run_sync(save_card, path.with_suffix(".pub"), card)
    s.out.value(
        {"name": name, "key": str(path), "card": str(path.with_suffix(".pub"))},
        f"{path} is {name}'s alone; the shard knows it from its next start, or SIGHUP, on",
    )


async def vault_init(s: Session) -> None:
    """The soft token of a shard that has none."""
    path = s.config.state / "keys" / "vault.key"
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    await s.env.run_sync(SoftToken.create, path, s.env.token_bytes)
    s.out.value({"token": str(path)}, f"{path} is made; keep a copy of it apart from the backups of vault.db")
