"""Channels: JOIN, PART, NAMES, TOPIC, INVITE, KICK, LIST."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bridged.peers.irc import history
from bridged.peers.irc.line import BODY_BYTES_MAX, Line, encode
from bridged.peers.irc.state import Channel, User, matches_mask

if TYPE_CHECKING:
    from bridged.peers.irc.network import Network


def join(net: Network, user: User, line: Line) -> None:
    dialect = net.dialect
    if line.get(0) == "0" and dialect.name == "ngircd":
        for channel in reversed(list(user.channels.values())):
            _part(net, user, channel, user.shown)
        return
    keys = line.get(1).split(",")
    for index, name in enumerate(line.get(0).split(",")):
        join_one(net, user, name, keys[index] if index < len(keys) else "")


def join_one(net: Network, user: User, name: str, key: str = "") -> None:
    """Let the user into one channel, or say why not."""
    dialect, world = net.dialect, user.server.world
    weak = dialect.name == "ngircd"
    bad = not dialect.is_channel(name) or len(encode(name)) > dialect.channel_max
    if bad or any(c in name for c in " ,\x07"):
        net.numeric(user, "403" if weak else "476", name)
        return
    channel = world.channel(name)
    if channel is None:
        channel = Channel(name, net.env.wall())
        channel.flags = set(dialect.new_channel_modes)
        founder = {"o"} if name[0] != "+" else set()
    else:
        if user in channel.members:
            return
        refusal = _refusal(net, user, channel, key)
        if refusal is not None:
            net.numeric(user, refusal, channel.name)
            return
        founder = set()
    world.channels[dialect.fold(name)] = channel
    enter(net, user, channel, founder, shown=name if weak else channel.name)


def enter(net: Network, user: User, channel: Channel, modes: set[str], *, shown: str) -> None:
    """Put the user into the channel and tell everyone, in the order of real servers."""
    fold = net.dialect.fold
    user.invited.discard(fold(channel.name))
    channel.members[user] = modes
    user.channels[fold(channel.name)] = channel
    for member in [user, *(m for m in channel.members if m is not user)]:
        joined(net, member, user, shown)
    if channel.topic:
        topic_shown(net, user, channel, name=shown)
    names(net, user, channel)
    history.replay(net, user, channel)


def joined(net: Network, member: User, user: User, shown: str) -> None:
    """Tell one member that the user joined."""
    if member.has("extended-join"):
        net.send(member, user, "JOIN", shown, user.account or "*", user.real)
    else:
        net.send(member, user, "JOIN", shown)
    if user.away is not None and member.has("away-notify"):
        net.send(member, user, "AWAY", user.away)


def _refusal(net: Network, user: User, channel: Channel, key: str) -> str | None:
    """The numeric of the first thing that keeps the user out, or None."""
    if net.dialect.fold(channel.name) in user.invited:
        return None
    if is_banned(net, user, channel):
        return "474"
    if "i" in channel.flags:
        return "473"
    if "k" in channel.parameters and channel.parameters["k"] != key:
        return "475"
    limit = channel.parameters.get("l")
    if limit is not None and len(channel.members) >= int(limit):
        return "471"
    return None


def is_banned(net: Network, user: User, channel: Channel) -> bool:
    """Does a ban match the user, and no exception?"""

    def listed(mode: str) -> bool:
        return any(matches_mask(mask, user.mask, net.dialect.fold) for mask in channel.lists.get(mode, {}))

    return listed("b") and not listed("e")


def part(net: Network, user: User, line: Line) -> None:
    for name in line.get(0).split(","):
        channel = _of(net, user, name)
        if channel is None:
            net.numeric(user, "403", name)
        elif user not in channel.members:
            net.numeric(user, "442", channel.name)
        else:
            _part(net, user, channel, line.params[1] if len(line.params) > 1 else None)


def _part(net: Network, user: User, channel: Channel, reason: str | None) -> None:
    if reason is None and net.dialect.name == "ngircd":
        reason = ""
    words = (channel.name,) if reason is None else (channel.name, reason)
    for member in [user, *(m for m in channel.members if m is not user)]:
        net.send(member, user, "PART", *words)
    user.server.world.leave(user, channel)


def _of(net: Network, user: User, name: str) -> Channel | None:
    return user.server.world.channel(name) if net.dialect.is_channel(name) else None


def visible(user: User, channel: Channel | None) -> Channel | None:
    """The channel, or None where it is secret to the user."""
    if channel is None or ("s" in channel.flags and user not in channel.members and not user.is_operator):
        return None
    return channel


def names_command(net: Network, user: User, line: Line) -> None:
    if not line.params:
        if net.dialect.name == "ngircd":
            for channel in user.server.world.channels.values():
                _names_lines(net, user, channel)
        net.numeric(user, "366", "*")
        return
    for name in line.get(0).split(","):
        found = visible(user, _of(net, user, name))
        if found is None:
            net.numeric(user, "366", name)
        else:
            names(net, user, found)


def names(net: Network, user: User, channel: Channel) -> None:
    """353 as often as needed, and 366."""
    _names_lines(net, user, channel)
    net.numeric(user, "366", channel.name)


def _names_lines(net: Network, user: User, channel: Channel) -> None:
    kind = "@" if "s" in channel.flags else "*" if "p" in channel.flags else "="
    head = f":{user.server.name} 353 {user.shown} {kind} {channel.name} :"
    words: list[str] = []
    size = len(encode(head))
    for member in channel.members:
        sign = channel.signs(member, net.dialect, all_of_them=user.has("multi-prefix"))
        shown = member.mask if user.has("userhost-in-names") else member.shown
        word = sign + shown
        if words and size + len(encode(word)) + 1 > BODY_BYTES_MAX:
            net.numeric(user, "353", kind, channel.name, text=" ".join(words))
            words, size = [], len(encode(head))
        words.append(word)
        size += len(encode(word)) + 1
    if words:
        net.numeric(user, "353", kind, channel.name, text=" ".join(words))


def topic(net: Network, user: User, line: Line) -> None:
    dialect = net.dialect
    channel = _of(net, user, line.get(0))
    if dialect.name == "inspircd":
        channel = visible(user, channel)
    if channel is None:
        net.numeric(user, "403", line.get(0))
        return
    if len(line.params) == 1:
        if user not in channel.members and dialect.name == "ngircd":
            net.numeric(user, "442", channel.name)
        elif channel.topic:
            topic_shown(net, user, channel)
        else:
            net.numeric(user, "331", channel.name)
        return
    if user not in channel.members:
        net.numeric(user, "442outside", channel.name)
        return
    if "t" in channel.flags and not channel.is_at_least(
        user, "h" if "h" in dialect.prefix_modes else "o", dialect
    ):
        refused(net, user, channel, "change the topic.")
        return
    text = encode(line.params[1])[: dialect.topic_max].decode("utf-8", "surrogateescape")
    if text == channel.topic and dialect.name == "inspircd":
        return
    is_new = text != channel.topic
    channel.topic, channel.topic_at = text, net.env.wall()
    channel.topic_by = user.mask if dialect.name == "inspircd" else user.shown
    channel.side_topics.clear()
    if not is_new:  # seen on ngIRCd: the setter alone is told
        net.send(user, user, "TOPIC", channel.name, text)
        return
    net.tell([user, *(m for m in channel.members if m is not user)], user, "TOPIC", channel.name, text)


def topic_shown(net: Network, user: User, channel: Channel, *, name: str | None = None) -> None:
    """332 and 333; ngIRCd repeats the name as the client wrote it."""
    name = name or channel.name
    text, by, at = channel.side_topics.get(
        user.server.name, (channel.topic, channel.topic_by, channel.topic_at)
    )
    net.numeric(user, "332", name, text=text)
    net.numeric(user, "333", name, by, text=str(int(at)))


def refused(net: Network, user: User, channel: Channel, what: str) -> None:
    """482: what a channel operator alone may do."""
    if net.dialect.name == "inspircd":
        net.numeric(user, "482", channel.name, text=f"You must be a channel op or higher to {what}")
    else:
        net.numeric(user, "482", channel.name)


def invite(net: Network, user: User, line: Line) -> None:
    dialect, world = net.dialect, user.server.world
    weak = dialect.name == "ngircd"
    if len(line.params) < 2:
        if weak or line.params:
            net.numeric(user, "461", "INVITE")
            return
        for folded in sorted(user.invited):
            channel = world.channels.get(folded)
            if channel is not None:
                net.numeric(user, "336", text=channel.name)
        net.numeric(user, "337")
        return
    guest, channel = world.user(line.get(0)), _of(net, user, line.get(1))
    if guest is None:
        net.numeric(user, "401", line.get(0))
        return
    if channel is None:
        if not weak:
            net.numeric(user, "403", line.get(1))
            return
        net.send(user, guest, "341", user.shown, guest.shown, line.get(1))  # the guest is the source: seen
        net.send(guest, user, "INVITE", guest.shown, line.get(1), colon=False)
        return
    if user not in channel.members:
        net.numeric(user, "442outside", channel.name)
    elif guest in channel.members:
        net.numeric(user, "443", guest.shown, channel.name)
    elif "i" in channel.flags and not channel.is_at_least(user, "o", dialect):
        refused(net, user, channel, "send an invite.")
    else:
        guest.invited.add(dialect.fold(channel.name))
        if weak:
            net.send(user, guest, "341", user.shown, guest.shown, channel.name, colon=False)
        else:
            net.numeric(user, "341", guest.shown, text=channel.name)
        if guest.away is not None:
            net.numeric(user, "301", guest.shown, text=guest.away)
        told = [m for m in channel.members if m.has("invite-notify") and channel.is_at_least(m, "o", dialect)]
        net.tell([guest, *told], user, "INVITE", guest.shown, channel.name, colon=not weak)


def kick(net: Network, user: User, line: Line) -> None:
    channel = _of(net, user, line.get(0))
    if channel is None:
        net.numeric(user, "403", line.get(0))
        return
    for nick in line.get(1).split(","):
        kick_one(net, user, channel, nick, line.params[2] if len(line.params) > 2 else None)


def kick_one(net: Network, user: User, channel: Channel, nick: str, reason: str | None) -> None:
    """Put one member out, or say why not."""
    dialect = net.dialect
    weak = dialect.name == "ngircd"
    victim = user.server.world.user(nick)
    if victim is None:
        net.numeric(user, "401", nick)
    elif user not in channel.members:
        net.numeric(user, "442", channel.name)
    elif not channel.is_at_least(user, "h" if weak else "o", dialect):
        if weak:
            net.numeric(user, "482kick", channel.name)
        else:
            refused(net, user, channel, "kick a more privileged user.")
    elif victim not in channel.members:
        net.numeric(user, "441", victim.shown, channel.name)
    else:
        put_out(net, user, channel, victim, user.shown if reason is None else reason)


def put_out(net: Network, user: User | str, channel: Channel, victim: User, reason: str) -> None:
    """KICK without questions."""
    first = [user] if isinstance(user, User) and user in channel.members else []
    told = [*first, *(m for m in channel.members if m is not user)]
    net.tell(told, user, "KICK", channel.name, victim.shown, reason)
    victim.server.world.leave(victim, channel)


def list_command(net: Network, user: User, line: Line) -> None:
    weak = net.dialect.name == "ngircd"
    net.numeric(user, "321", "Channel", text="Users  Name" if weak else "Users Name")
    for channel in list(user.server.world.channels.values()):
        if visible(user, channel) is None or not _listed(net, line.get(0), channel):
            continue
        topic_text = channel.topic
        if not weak:
            topic_text = f"[{mode_words(channel, inside=user in channel.members)}] {channel.topic}"
        size = str(len(channel.members))
        net.send(user, user.server.name, "322", user.shown, channel.name, size, topic_text)
    if weak and _listed_server(net, line.get(0)):
        net.send(user, user.server.name, "322", user.shown, "&SERVER", "0", "Server Messages")
    net.numeric(user, "323")


def _listed(net: Network, wanted: str, channel: Channel) -> bool:
    if not wanted:
        return True
    if wanted[0] in "<>" and wanted[1:].isdecimal() and net.dialect.name == "inspircd":
        size, bound = len(channel.members), int(wanted[1:])
        return size > bound if wanted[0] == ">" else size < bound
    return any(matches_mask(mask, channel.name, net.dialect.fold) for mask in wanted.split(","))


def _listed_server(net: Network, wanted: str) -> bool:
    return not wanted or any(matches_mask(mask, "&SERVER", net.dialect.fold) for mask in wanted.split(","))


def mode_words(channel: Channel, *, inside: bool) -> str:
    """`+knt sesame`, the key hidden from outsiders."""
    letters = sorted(channel.flags | set(channel.parameters))
    words = ["+" + "".join(letters)]
    for letter in letters:
        if letter in channel.parameters:
            words.append("<key>" if letter == "k" and not inside else channel.parameters[letter])
    return " ".join(words)


HANDLERS = {
    "JOIN": join, "PART": part, "NAMES": names_command, "TOPIC": topic, "INVITE": invite, "KICK": kick,
    "LIST": list_command,
}  # fmt: skip
