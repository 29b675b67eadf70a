"""Replays: InspIRCd's channel mode +H, and CHATHISTORY after its IRCv3 specification."""

from __future__ import annotations

from bridged.peers.irc.line import Line
from bridged.peers.irc.network import Network, Outgoing
from bridged.peers.irc.state import Channel, Message, User
from bridged.peers.stamp import from_utc

CHATHISTORY_MAX = 100
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}


def replay(net: Network, user: User, channel: Channel) -> None:
    """After a join: what +H keeps of the channel."""
    bound = channel.parameters.get("H")
    if bound is None:
        return
    count, _, duration = bound.partition(":")
    oldest = net.env.wall() - _seconds(duration)
    kept = [m for m in channel.history if m.is_replayed and m.at >= oldest][-int(count) :]
    if kept:
        _send(net, user, channel, kept)


def _seconds(text: str) -> float:
    """`1h30m` or bare seconds."""
    total, number = 0, ""
    for character in text:
        if character.isdecimal():
            number += character
        else:
            total += int(number or 0) * _UNITS.get(character, 0)
            number = ""
    return total + int(number or 0)


def _send(net: Network, user: User, channel: Channel, messages: list[Message]) -> None:
    number = net.next_batch(user) if user.has("batch") else None
    if number is not None:
        net.send(user, user.server.name, "BATCH", f"+{number}", "chathistory", channel.name)
    for m in messages:
        net.send_prepared(
            user,
            Outgoing(
                m.source,
                m.command,
                (channel.name, m.text),
                tags=m.tags,
                msgid=m.msgid,
                account=m.account,
                at=m.at,
                batch=number,
            ),
        )
    if number is not None:
        net.send(user, user.server.name, "BATCH", f"-{number}")


def chathistory(net: Network, user: User, line: Line) -> None:
    """CHATHISTORY LATEST | BEFORE | AFTER | AROUND | BETWEEN target reference… limit."""
    if "draft/chathistory" not in net.capabilities:
        net.numeric(user, "421", "CHATHISTORY")
        return
    verb, target = line.get(0).upper(), line.get(1)
    references, limit_text = line.params[2:-1], line.params[-1]
    wanted = 2 if verb == "BETWEEN" else 1
    if verb not in ("LATEST", "BEFORE", "AFTER", "AROUND", "BETWEEN") or len(references) != wanted:
        net.send(user, user.server.name, "FAIL", "CHATHISTORY", "INVALID_PARAMS", verb, "Invalid parameters")
        return
    channel = user.server.world.channel(target)
    if channel is None or user not in channel.members:
        words = "Messages could not be retrieved"
        net.send(user, user.server.name, "FAIL", "CHATHISTORY", "INVALID_TARGET", verb, target, words)
        return
    messages = list(channel.history)
    try:
        found = _select(messages, verb, references, min(int(limit_text), CHATHISTORY_MAX))
    except (ValueError, LookupError):
        words = "Invalid message reference or limit"
        net.send(user, user.server.name, "FAIL", "CHATHISTORY", "INVALID_PARAMS", verb, words)
        return
    _send(net, user, channel, found)


def _select(messages: list[Message], verb: str, references: tuple[str, ...], limit: int) -> list[Message]:
    if limit < 0:
        raise ValueError("a negative limit")
    if verb == "LATEST":
        after = 0 if references[0] == "*" else _place(messages, references[0], after=True)
        return messages[after:][-limit:] if limit else []
    if verb == "BEFORE":
        return messages[: _place(messages, references[0], after=False)][-limit:] if limit else []
    if verb == "AFTER":
        return messages[_place(messages, references[0], after=True) :][:limit]
    if verb == "AROUND":
        middle = _place(messages, references[0], after=False)
        start = max(0, middle - limit // 2)
        return messages[start : start + limit]
    first, last = (_place(messages, r, after=True) for r in references)
    if first <= last:
        return messages[first : _place(messages, references[1], after=False)][:limit]
    return messages[last : _place(messages, references[0], after=False)][-limit:] if limit else []


def _place(messages: list[Message], reference: str, *, after: bool) -> int:
    """The index at a reference, or behind it."""
    kind, _, value = reference.partition("=")
    if kind == "msgid":
        for n, m in enumerate(messages):
            if m.msgid == value:
                return n + 1 if after else n
        raise LookupError(value)
    if kind != "timestamp":
        raise ValueError(reference)
    at = round(from_utc(value) * 1000)
    if after:
        return sum(1 for m in messages if int(m.at * 1000) <= at)
    return sum(1 for m in messages if int(m.at * 1000) < at)


HANDLERS = {"CHATHISTORY": chathistory}
