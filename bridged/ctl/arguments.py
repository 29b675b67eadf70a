"""The words of `bridgectl`: every command, its options, and the function that carries it out."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any, NoReturn

from bridged.ctl import joining, offline, online, stream
from bridged.ctl.output import USAGE, CtlError


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise CtlError(message, code="usage", hint=f"{self.prog} --help", status=USAGE)


def parser() -> argparse.ArgumentParser:
    """The whole command line.  Its `parse_args` raises CtlError for words that it does not know."""
    top = _Parser(prog="bridgectl", description="Look after a shard of bridged.")
    top.add_argument("--config", metavar="FILE", help="the shard's configuration (else $BRIDGED_CONFIG)")
    top.add_argument("--shard", metavar="NAME", help="short for --config /etc/bridged/NAME.toml")
    top.add_argument(
        "--key", metavar="NAME|FILE", help="the operator's key (else the one beside the configuration)"
    )
    top.add_argument("--tenant", metavar="NAME", help="in a region: whose data is meant")
    top.add_argument("--json", action="store_true", help="one JSON value on stdout, errors as JSON on stderr")
    commands = top.add_subparsers(dest="command", metavar="COMMAND", required=True, parser_class=_Parser)

    def add(
        name: str, run: Callable[..., Any], help_: str, parent: Any = commands, **extra: Any
    ) -> argparse.ArgumentParser:
        sub: argparse.ArgumentParser = parent.add_parser(name, help=help_, description=help_, **extra)
        sub.add_argument("--json", action="store_true", default=argparse.SUPPRESS, help=argparse.SUPPRESS)
        sub.set_defaults(run=run)
        return sub

    def group(name: str, help_: str) -> Any:
        sub = commands.add_parser(name, help=help_, description=help_)
        sub.add_argument("--json", action="store_true", default=argparse.SUPPRESS, help=argparse.SUPPRESS)
        return sub.add_subparsers(dest="verb", metavar="VERB", required=True, parser_class=_Parser)

    # without a daemon
    sub = add(
        "init", offline.init, "make a working shard directory: configuration, keys, soft vault, client token"
    )
    sub.add_argument("dir", nargs="?", metavar="DIR")
    sub.add_argument("--name", help="the shard's name (else the directory's)")
    sub.add_argument("--system", metavar="NAME", help="under /etc/bridged and /var/lib/bridged instead")
    add("check", offline.check, "the configuration, the files and the platforms' reachability")
    add("doctor", offline.doctor, "what is not as it should be on this machine, and how to mend it")
    log = group("log", "the Log's file")
    add("verify", offline.log_verify, "recompute every checksum and chain of the Log", log)
    audit = group("audit", "the audit log")
    add(
        "verify",
        offline.audit_verify,
        "recompute the audit log and hold it against its signed heads and the Log",
        audit,
    )
    sub = add(
        "prove", offline.audit_prove, "the leaves of a trace and their proofs under the signed head", audit
    )
    sub.add_argument("trace_id")
    add("checkpoint", offline.audit_checkpoint, "the newest signed head", audit)

    keys = group("keys", "who may talk to this shard")
    add("list", online.keys_list, "principals: names, key ids, states", keys)
    sub = add("new", offline.keys_new, "make an operator's key beside the configuration", keys)
    sub.add_argument("name")
    sub = add(
        "invite", online.keys_invite, "the server's key and a one-time secret, good for ten minutes", keys
    )
    sub.add_argument(
        "name",
        help="a new name; SERVICE/INSTANCE for a connector in a process of its own, whose grants are known",
    )
    sub.add_argument(
        "--role", action="append", choices=("send", "sync", "admin"), default=[], help="what it may do"
    )
    sub.add_argument(
        "--grant", action="append", metavar="'VERB TOPIC'", default=[], help="or, one by one, what it may do"
    )
    sub = add("join", joining.keys_join, "trade an invite for keys of one's own, kept in FILE", keys)
    sub.add_argument("file", metavar="FILE", help="where the private keys are kept; made, or used again")
    sub.add_argument("--server", required=True, metavar="KEY", help="the server's key, as the invite says it")
    sub.add_argument("--invite", required=True, metavar="ID", help="the invite's id")
    sub.add_argument("--name", required=True, help="who is invited")
    sub.add_argument(
        "--endpoint", metavar="E", help="tcp://HOST:PORT or a socket's path (else the configuration's socket)"
    )
    sub = add("revoke", online.keys_revoke, "shut a principal out now", keys)
    sub.add_argument("name")

    grants = group("grants", "what principals may do")
    sub = add("list", online.grants_list, "grants by principal", grants)
    sub.add_argument("name", nargs="?")
    for verb in ("add", "revoke"):
        sub = add(verb, online.grants_change, f"{verb} a grant", grants)
        sub.add_argument("name")
        sub.add_argument(
            "grant", nargs="?", metavar="'VERB TOPIC'", help="such as 'subscribe bridge/core/event'"
        )
        sub.add_argument("--role", choices=("send", "sync", "admin"))

    clients = group("clients", "who speaks through the WebSocket")
    add("list", online.clients_list, "clients and their conversations", clients)
    sub = add("add", online.clients_add, "add a client; its token is shown once", clients)
    sub.add_argument("name")
    sub.add_argument("--identity", required=True, metavar="ID", help="msgr://identity/msgr/… or a bare name")
    sub.add_argument("--conversation", action="append", required=True, metavar="C", help="a name; * for all")
    sub = add("revoke", online.clients_revoke, "take a client's token away", clients)
    sub.add_argument("name")

    vault = group("vault", "credentials")
    add("init", offline.vault_init, "make the soft token of a shard that has none", vault)
    add("status", online.vault_status, "the token, credentials and leases", vault)
    add("list", online.vault_list, "credentials by name; nothing secret", vault)
    add("leases", online.vault_leases, "who holds what", vault)
    sub = add(
        "put",
        online.vault_put,
        "store a credential from the prompt or stdin; who waits for it starts at once",
        vault,
    )
    sub.add_argument("name")
    add("rotate", online.vault_rotate, "a new data key, every credential sealed under it", vault)
    sub = add("revoke", online.vault_revoke, "end the leases of a credential, or one lease", vault)
    sub.add_argument("name", help="a credential's name or a lease id")

    # with one
    add("status", online.status, "the shard, its connectors, lag and queues")
    add("topics", online.topics, "topics and their next offsets")
    add("groups", online.groups, "consumer groups: position, lag, in flight, dead letters")
    sub = add("replay", online.replay, "let a group read a part of a topic again")
    sub.add_argument("--topic", required=True, metavar="T")
    sub.add_argument("--group", default="facade", metavar="G")
    sub.add_argument("--from", dest="from_", required=True, metavar="F", help="an offset, or a time …Z")
    sub.add_argument("--to", metavar="T", help="an offset or a time; not included")
    sub.add_argument("--dry-run", action="store_true", help="only say how much that is")
    sub = add("restart", online.restart, "end a member's present attempt; it starts again at once")
    sub.add_argument("member", metavar="SERVICE/INSTANCE")
    sub = add("resume", online.resume, "start a stopped or waiting member now")
    sub.add_argument("member", metavar="SERVICE/INSTANCE")
    dlq = group("dlq", "dead letters")
    add("list", online.dlq_list, "records that no member could take, with the reason", dlq)
    for verb in ("show", "retry", "drop"):
        sub = add(verb, online.dlq_one, f"{verb} one", dlq)
        sub.add_argument("id", type=int)
    sub = add("trace", online.trace, "everything that happened under a trace id, in order")
    sub.add_argument("trace_id")
    sub = add("history", online.history, "what was said in a conversation, and how it was delivered")
    sub.add_argument("conversation")
    where = sub.add_mutually_exclusive_group()
    for word in ("before", "after", "around"):
        where.add_argument(f"--{word}", type=int, metavar="OFFSET")
    sub.add_argument("--limit", type=int, default=50, metavar="N")
    conversations = group("conversations", "what belongs together")
    add("list", online.conversations_list, "conversations and their channels", conversations)
    sub = add("add", online.conversations_add, "make a conversation at run time", conversations)
    sub.add_argument("name")
    sub.add_argument("channels", nargs="+", metavar="REF")
    sub = add(
        "remove", online.conversations_remove, "end a conversation that was made at run time", conversations
    )
    sub.add_argument("name")
    sub = add("send", stream.send, "say something in a conversation; prints the trace id")
    sub.add_argument("conversation")
    sub.add_argument("text")
    sub.add_argument("--as", dest="identity", metavar="IDENTITY")
    sub.add_argument("--wait", action="store_true", help="until every channel has its final state")
    sub.add_argument("--timeout", type=float, default=60.0, metavar="S", help="with --wait: how long")
    sub = add("tail", stream.tail, "events as they happen, until interrupted")
    what = sub.add_mutually_exclusive_group()
    what.add_argument("--conversation", metavar="C")
    what.add_argument("--topic", metavar="T")
    return top
