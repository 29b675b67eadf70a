"""PRIVMSG, NOTICE, TAGMSG, and BATCH for multi-line messages."""

from __future__ import annotations

from collections.abc import Iterable

import attrs

from bridged.peers.irc import services
from bridged.peers.irc.channels import is_banned
from bridged.peers.irc.line import NO_TAGS, Line
from bridged.peers.irc.network import Network, Outgoing
from bridged.peers.irc.state import Batch, Channel, Message, User

MULTILINE_LINES_MAX = 100


def message(net: Network, user: User, line: Line) -> None:
    """PRIVMSG or NOTICE."""
    reference = line.tags.get("batch")
    if reference is not None and reference in user.batches:
        batch = user.batches[reference]
        if len(batch.lines) < MULTILINE_LINES_MAX:
            batch.command = line.command
            batch.lines.append((line.get(1), "draft/multiline-concat" in line.tags))
        return
    weak = net.dialect.name == "ngircd"
    if weak and len(line.params) < 2:
        net.numeric(user, "412" if line.params else "411", command=line.command)
        return
    text = line.get(1)
    if not text and not weak:
        net.numeric(user, "412")
        return
    tags = _client_tags(user, line)
    for target in _targets(net, line.get(0)):
        _deliver(net, user, line.command, target, [(text, False)], tags)


def tagmsg(net: Network, user: User, line: Line) -> None:
    if not user.has("message-tags"):
        return
    tags = _client_tags(user, line)
    if not tags:
        net.numeric(user, "412", text="No tags to send")
        return
    for target in _targets(net, line.get(0)):
        _deliver(net, user, "TAGMSG", target, [], tags)


def _client_tags(user: User, line: Line) -> dict[str, str]:
    """What of a line's tags travels: those with `+`, of a client that has asked for tags."""
    if not user.has("message-tags"):
        return {}
    return {key: value for key, value in line.tags.items() if key.startswith("+")}


def _targets(net: Network, words: str) -> Iterable[str]:
    """The targets in order, each once."""
    seen: dict[str, str] = {}
    for target in words.split(","):
        seen.setdefault(net.dialect.fold(target), target)
    return seen.values()


def _deliver(
    net: Network, user: User, command: str, target: str, lines: list[tuple[str, bool]], tags: dict[str, str]
) -> None:
    """Bring one message to one target, with its echo, or say why not."""
    dialect, world = net.dialect, user.server.world
    weak = dialect.name == "ngircd"
    silent = weak and command == "NOTICE"
    rank = target[:1] if not weak and target[:1] in dialect.prefix_signs else ""
    name = target[1:] if rank and dialect.is_channel(target[1:]) else target
    if dialect.is_channel(name):
        channel = world.channel(name)
        if channel is None:
            if not silent:
                net.numeric(user, "401" if weak else "403", name)
            return
        refusal = _refusal(net, user, channel)
        if refusal is not None:
            user.server.next_msgid()  # seen: refused messages are counted too
            if not silent:
                net.numeric(user, refusal, channel.name)
            return
        receivers = [m for m in channel.members if m is not user]
        if rank:
            mode = dialect.prefix_modes[dialect.prefix_signs.index(rank)]
            receivers = [m for m in receivers if channel.is_at_least(m, mode, dialect)]
        _spread(
            net, user, command, rank + channel.name, lines, tags, receivers, channel=None if rank else channel
        )
        return
    if services.takes(net, user, command, target, lines[0][0] if lines else ""):
        return
    if target.startswith("$"):
        net.numeric(user, "401" if weak else "481", *([target] if weak else []))
        return
    receiver = world.user(target)
    if receiver is None:
        if not silent:
            net.numeric(user, "401", target)
        return
    if receiver.away is not None and command == "PRIVMSG":
        net.numeric(user, "301", receiver.shown, text=receiver.away)
    _spread(net, user, command, receiver.shown, lines, tags, [receiver], channel=None)


def _refusal(net: Network, user: User, channel: Channel) -> str | None:
    """Why the user may not speak in the channel: the numeric, or None."""
    inside = user in channel.members
    if not inside and "n" in channel.flags:
        return "404n"
    if channel.members.get(user):
        return None
    if "m" in channel.flags:
        return "404m"
    return "404b" if is_banned(net, user, channel) else None


def _spread(
    net: Network,
    user: User,
    command: str,
    target: str,
    lines: list[tuple[str, bool]],
    tags: dict[str, str],
    receivers: list[User],
    *,
    channel: Channel | None,
) -> None:
    msgid = user.server.next_msgid() if net.dialect.tags else ""

    def prepared(to: User, is_echo: bool) -> list[Outgoing]:
        return _prepare(net, to, user, command, target, lines, tags, msgid, is_echo)

    for receiver in receivers:
        if command == "TAGMSG" and not receiver.has("message-tags"):
            continue
        copies = 2 if net.faults.takes_duplicate(receiver) else 1
        for _ in range(copies):
            for out in prepared(receiver, False):
                net.send_prepared(receiver, out)
    if user.has("echo-message"):
        for out in prepared(user, True):
            net.send_prepared(user, out)
    if channel is not None and command != "TAGMSG":
        for text, _ in lines:
            at = net.env.wall()
            kept = "H" in channel.parameters
            channel.history.append(Message(at, user.mask, user.account, command, text, msgid, tags, kept))


def _prepare(
    net: Network,
    to: User,
    user: User,
    command: str,
    target: str,
    lines: list[tuple[str, bool]],
    tags: dict[str, str],
    msgid: str,
    is_echo: bool,
) -> list[Outgoing]:
    """The lines of one message for one receiver: one, or a batch, or one for each line of a multi-line message."""
    whole = Outgoing(
        user.mask, command, (target,), tags=tags, msgid=msgid, account=user.account, is_echo=is_echo
    )
    if not lines:
        return [whole]
    if len(lines) == 1:
        return [attrs.evolve(whole, params=(target, lines[0][0]))]
    if to.has("draft/multiline") and to.has("batch"):
        number = net.next_batch(to)
        first = attrs.evolve(whole, command="BATCH", params=(f"+{number}", "draft/multiline", target))
        inner = [
            attrs.evolve(
                whole,
                params=(target, text),
                msgid="",
                is_echo=False,
                tags={"draft/multiline-concat": ""} if joined else NO_TAGS,
                batch=number,
            )
            for text, joined in lines
        ]
        return [first, *inner, Outgoing(user.server.name, "BATCH", (f"-{number}",))]
    return [
        attrs.evolve(whole, params=(target, text), msgid=msgid if n == 0 else "")
        for n, (text, _) in enumerate(lines)
        if text
    ]


def batch(net: Network, user: User, line: Line) -> None:
    """BATCH from a client: a multi-line message begins or ends."""
    word, reference = line.get(0)[:1], line.get(0)[1:]
    if "draft/multiline" not in net.capabilities:
        net.numeric(user, "421", "BATCH")
    elif word == "+" and line.get(1) == "draft/multiline" and line.get(2):
        user.batches = {reference: Batch(line.get(2), tags=_client_tags(user, line))}  # one at a time
    elif word == "-" and reference in user.batches:
        done = user.batches.pop(reference)
        if not done.lines or not any(text for text, _ in done.lines):
            _fail(net, user, "MULTILINE_INVALID", "Empty batch")
        elif len(done.lines) >= MULTILINE_LINES_MAX:
            _fail(
                net,
                user,
                "MULTILINE_MAX_LINES",
                str(MULTILINE_LINES_MAX),
                "Multiline batch max-lines exceeded",
            )
        else:
            for target in _targets(net, done.target):
                _deliver(net, user, done.command, target, done.lines, done.tags)
    else:
        _fail(net, user, "MULTILINE_INVALID", "Invalid multiline batch")


def _fail(net: Network, user: User, code: str, *words: str) -> None:
    net.send(user, user.server.name, "FAIL", "BATCH", code, *words)


HANDLERS = {"PRIVMSG": message, "NOTICE": message, "TAGMSG": tagmsg, "BATCH": batch}
