"""The commands that ask a running shard, each one request over the fabric under the operator's key."""

from __future__ import annotations

import getpass
import hashlib
import sys
from typing import Any

from bridged.audit import store as audit_store
from bridged.ctl import stopped
from bridged.ctl.output import USAGE, CtlError, usage
from bridged.ctl.session import Session
from bridged.ctl.stopped import stopped_shard
from bridged.envelope import format_time, from_ms, to_base64url
from shards.database import open_database

TOKEN_BYTES = 32


async def status(s: Session) -> None:
    """The shard at one glance."""
    answer = await s.ask("fabric", "status", {})
    if s.out.as_json:
        s.out.value(answer, "")
        return
    print(f"shard {answer['shard']}, tenant {answer['tenant']}, up since {answer['started']}")
    members = {row["name"]: row for row in answer["members"]}
    for row in answer.get("connectors", ()):
        member = members.pop(row["name"], {})
        row.setdefault("since", member.get("since"))
    s.out.table("connectors", answer.get("connectors", ()), ["name", "state", "since", "detail"])
    print()
    s.out.table("members", members.values(), ["name", "state", "since", "crashes", "detail"])
    print()
    s.out.table("groups", answer["groups"], ["name", "lag", "in_flight", "dead"])


async def topics(s: Session) -> None:
    """Topics of the tenant."""
    answer = await s.ask("fabric", "topics", {})
    for row in answer["topics"]:
        row["last_at"] = format_time(from_ms(row.pop("last_at_ms")))
    s.out.table("topics", answer["topics"], ["topic", "next_offset", "octets", "last_at"])


async def groups(s: Session) -> None:
    """Consumer groups of the tenant."""
    answer = await s.ask("fabric", "groups", {})
    s.out.table("groups", answer["groups"], ["name", "position", "lag", "in_flight", "members", "dead"])


async def replay(s: Session) -> None:
    """Move a group back over a part of a topic."""
    payload: dict[str, Any] = {"topic": s.args.topic, "group": s.args.group, "dry_run": s.args.dry_run}
    payload["from"] = _place(s.args.from_)
    if s.args.to is not None:
        payload["to"] = _place(s.args.to)
    answer = await s.ask("fabric", "replay", payload, hint="bridgectl topics")
    verb = "would be" if answer["dry_run"] else "are"
    s.out.value(
        answer,
        f"{answer['records']} records of {answer['topic']}, offsets {answer['from_offset']} to"
        f" {answer['to_offset'] - 1}, {verb} given to {answer['group']} again",
    )


async def restart(s: Session) -> None:
    """End a member's present attempt."""
    await _member(s, "restart", "was running and starts again", "is not running")


async def resume(s: Session) -> None:
    """Start a stopped member now."""
    await _member(s, "resume", "starts now", "was not waiting")


async def _member(s: Session, op: str, done: str, not_done: str) -> None:
    answer = await s.ask("fabric", "drain", {"member": s.args.member, "op": op})
    s.out.value(answer, f"{answer['member']} {done if answer['done'] else not_done}")


async def dlq_list(s: Session) -> None:
    """Dead letters."""
    answer = await s.ask("fabric", "dlq", {"op": "list"})
    s.out.table("dead_letters", answer["dead_letters"], ["id", "group", "topic", "offset", "code", "reason"])


async def dlq_one(s: Session) -> None:
    """One dead letter: show, retry or drop."""
    answer = await s.ask("fabric", "dlq", {"op": s.args.verb, "id": s.args.id})
    if s.args.verb == "show":
        row = answer["dead_letter"]
        s.out.value(row, "\n".join(f"{name}: {value}" for name, value in row.items()))
        return
    s.out.value(answer, f"dead letter {answer['id']}: {answer['done']} done")


async def trace(s: Session) -> None:
    """Everything under a trace id, the audit leaves last."""
    answer = await s.ask(
        "core",
        "trace",
        {"trace_id": s.args.trace_id},
        hint="`bridgectl history CONVERSATION` shows trace ids",
    )
    answer["audit"] = await _leaves(s, s.args.trace_id)
    if s.out.as_json:
        s.out.value(answer, "")
        return
    print(f"trace {s.args.trace_id}, conversation {answer.get('conversation') or '-'}")
    s.out.table("steps", answer["steps"], ["at", "kind", "word", "channel", "detail"])
    print()
    s.out.table("deliveries", answer["deliveries"], ["channel", "state", "error"])
    print()
    s.out.table("audit", answer["audit"], ["leaf", "topic", "offset", "principal", "digest"])


async def _leaves(s: Session, trace_id: str) -> list[dict[str, Any]]:
    path = s.config.paths(s.key.identity.tenant).audit
    if not path.exists():
        return []
    async with open_database(s.env, path, migrations=audit_store.MIGRATIONS, read_only=True) as database:
        found = await database.read(lambda tx: audit_store.by_trace(tx, trace_id))
    return [
        {
            "leaf": seq,
            "position": leaf.position,
            "topic": leaf.topic,
            "offset": leaf.offset,
            "principal": leaf.principal,
            "digest": leaf.digest,
        }
        for seq, leaf in found
    ]


async def history(s: Session) -> None:
    """A page of a conversation."""
    payload: dict[str, Any] = {"conversation": s.args.conversation, "limit": s.args.limit}
    for bound in ("before", "after", "around"):
        if getattr(s.args, bound) is not None:
            payload[bound] = getattr(s.args, bound)
    answer = await s.ask("core", "history", payload, hint="bridgectl conversations list")
    if s.out.as_json:
        s.out.value({"messages": answer["messages"]}, "")
        return
    for message in answer["messages"]:
        states = ", ".join(f"{d['state']}" for d in message["deliveries"]) or "-"
        print(
            f"{_shown_offset(message['offset'])}  {message['at']}  {message['trace_id']}"
            f"  <{message['sender']['name']}> {message['text']}  [{states}]"
        )


def _shown_offset(offset: int | None) -> str:
    """Eight places; a dash for what is not published yet."""
    return f"{'-' if offset is None else offset:>8}"


async def conversations_list(s: Session) -> None:
    """Conversations and their channels."""
    answer = await s.ask("core", "conversations", {})
    rows = answer["conversations"]
    if not s.out.as_json:
        rows = [{**row, "channels": [one["channel"] for one in row["channels"]]} for row in rows]
    s.out.table("conversations", rows, ["name", "origin", "channels"])


async def conversations_add(s: Session) -> None:
    """Make a conversation."""
    payload = {"op": "add", "name": s.args.name, "channels": s.args.channels}
    answer = await s.ask(
        "core", "conversations", payload, hint="a channel is msgr://channels/TENANT/bridge/SERVICE/…"
    )
    s.out.value(answer, f"conversation {answer['name']} is there")


async def conversations_remove(s: Session) -> None:
    """End a conversation."""
    answer = await s.ask(
        "core",
        "conversations",
        {"op": "remove", "name": s.args.name},
        hint="bridgectl conversations list",
    )
    s.out.value(answer, f"conversation {answer['name']} is gone")


async def keys_list(s: Session) -> None:
    """Principals; also of a shard that does not run."""
    async with stopped_shard(s) as database:
        rows = None if database is None else await stopped.rows(s, database)
    answer = {"principals": rows} if rows is not None else await s.ask("fabric", "keys", {})
    s.out.table(
        "principals",
        sorted(answer["principals"], key=lambda row: str(row["name"])),
        ["name", "state", "service", "instance", "kid"],
    )


async def keys_invite(s: Session) -> None:
    """A one-time way in for a newcomer."""
    payload: dict[str, Any] = {"op": "invite", "name": s.args.name}
    service, slash, instance = s.args.name.partition("/")
    if slash:
        if s.args.role or s.args.grant:
            usage("a connector's grants are the configuration's: leave --role and --grant away")
        payload |= {"service": service, "instance": instance}
    elif not s.args.role and not s.args.grant:
        usage("say what it may do: --role send, sync or admin, or --grant 'VERB TOPIC'")
    else:
        payload |= {"roles": s.args.role, "grants": s.args.grant}
    answer = await s.ask("fabric", "keys", payload)
    s.out.value(
        answer,
        f"server  {answer['server']}\ninvite  {answer['invite']}\nsecret  {answer['secret']}\n"
        f"good until {answer['expires_at']}, for one enrolment as {answer['name']}:\n"
        f"bridgectl keys join FILE --name {answer['name']} --server {answer['server']} --invite {answer['invite']}",
    )


async def keys_revoke(s: Session) -> None:
    """Shut a principal out; also of a shard that does not run."""
    async with stopped_shard(s) as database:
        done = None if database is None else await stopped.revoke(s, database, s.args.name)
    answer = done or await s.ask("fabric", "keys", {"op": "revoke", "name": s.args.name})
    s.out.value(answer, f"{answer['name']} is revoked; its links are cut")


async def grants_list(s: Session) -> None:
    """Grants by principal."""
    answer = await s.ask("fabric", "grants", {"name": s.args.name} if s.args.name else {})
    rows = answer["grants"]
    if s.args.name and not rows:
        raise CtlError(f"no principal {s.args.name!r} here", code="not_found", hint="bridgectl keys list")
    if s.out.as_json:
        s.out.table("grants", rows, [])
        return
    s.out.table(
        "grants",
        [{"name": r["name"], "grant": grant} for r in rows for grant in r["grants"]],
        ["name", "grant"],
    )


async def grants_change(s: Session) -> None:
    """Add or revoke a grant or a role."""
    if (s.args.grant is None) == (s.args.role is None):
        usage("name one grant, 'VERB TOPIC', or a --role")
    payload: dict[str, Any] = {"op": s.args.verb, "name": s.args.name}
    payload |= {"grants": [s.args.grant]} if s.args.grant else {"roles": [s.args.role]}
    answer = await s.ask("fabric", "grants", payload)
    s.out.value(answer, f"{answer['name']}: {s.args.verb} {', '.join(answer['grants'])}")


async def clients_list(s: Session) -> None:
    """Clients of the gateway."""
    answer = await s.ask("core", "clients", {"op": "list"})
    s.out.table("clients", answer["clients"], ["name", "identity", "conversations"])


async def clients_add(s: Session) -> None:
    """Add a client; the token is made here and shown once, the shard keeps its hash."""
    identity = s.args.identity if "://" in s.args.identity else f"msgr://identity/msgr/{s.args.identity}"
    token = to_base64url(s.env.token_bytes(TOKEN_BYTES))
    payload = {
        "op": "add",
        "name": s.args.name,
        "identity": identity,
        "conversations": s.args.conversation,
        "token_hash": hashlib.sha256(token.encode()).hexdigest(),
    }
    answer = await s.ask("core", "clients", payload, hint="bridgectl conversations list")
    s.out.value({"name": answer["name"], "identity": identity, "token": token}, f"token  {token}")


async def clients_revoke(s: Session) -> None:
    """Take a client's token away."""
    answer = await s.ask(
        "core", "clients", {"op": "revoke", "name": s.args.name}, hint="bridgectl clients list"
    )
    s.out.value(answer, f"{answer['name']} is revoked")


async def vault_status(s: Session) -> None:
    """The token and how much lies under it."""
    answer = await s.ask("vault", "status", {})
    s.out.value(
        answer,
        f"token {answer['token']} ({answer['suite']}), {len(answer['credentials'])} credentials,"
        f" {len(answer['leases'])} leases",
    )


async def vault_list(s: Session) -> None:
    """Credentials by name."""
    answer = await s.ask("vault", "status", {})
    s.out.table("credentials", answer["credentials"], ["name", "revision", "put_at", "put_by", "leases"])


async def vault_leases(s: Session) -> None:
    """Who holds what."""
    answer = await s.ask("vault", "status", {})
    s.out.table("leases", answer["leases"], ["lease_id", "credential", "principal", "expires_at", "fencing"])


async def vault_put(s: Session) -> None:
    """Store a credential, from a hidden prompt or stdin."""
    secret = getpass.getpass(f"{s.args.name}: ") if sys.stdin.isatty() else sys.stdin.read()
    if not secret.strip("\r\n"):
        raise CtlError("the credential is empty", hint="type it at the prompt or pipe it in", status=USAGE)
    answer = await s.ask("vault", "put", {"credential": s.args.name, "secret": secret})
    s.out.value(answer, f"{answer['credential']} is stored, revision {answer['revision']}")


async def vault_rotate(s: Session) -> None:
    """A new data key."""
    answer = await s.ask("vault", "rotate", {})
    s.out.value(answer, f"data key {answer['key_version']} is in use; every credential is sealed under it")


async def vault_revoke(s: Session) -> None:
    """End leases."""
    answer = await s.ask("vault", "revoke", {"credential": s.args.name, "lease_id": s.args.name})
    if not answer["revoked"]:
        raise CtlError(
            f"nothing is lent under {s.args.name!r}", code="not_found", hint="bridgectl vault leases"
        )
    s.out.value(answer, f"{len(answer['revoked'])} leases ended")


def _place(text: str) -> int | str:
    """An offset, or a time as it was written."""
    return int(text) if text.isdecimal() else text
