"""MODE, of channels and of users, and SAMODE."""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs

from bridged.peers.irc.channels import mode_words, refused, visible
from bridged.peers.irc.line import Line
from bridged.peers.irc.state import Channel, User

if TYPE_CHECKING:
    from bridged.peers.irc.network import Network

MODE_NAMES = {
    "o": "op", "v": "voice", "b": "ban", "m": "moderated", "n": "noextmsg", "t": "topiclock", "s": "secret",
    "p": "private", "i": "inviteonly", "k": "key", "l": "limit", "H": "history", "M": "regmoderated", "R": "reginvite",
    "r": "c_registered",
}  # fmt: skip
LIST_NUMERICS = {"b": ("367", "368"), "e": ("348", "349"), "I": ("346", "347")}


@attrs.define
class Change:
    """What a MODE really changed, in the order asked."""

    letters: list[tuple[str, str]] = attrs.field(factory=list)
    """(sign, letter)."""
    params: list[str] = attrs.field(factory=list)

    def add(self, sign: str, letter: str, param: str | None = None) -> None:
        self.letters.append((sign, letter))
        if param is not None:
            self.params.append(param)

    def words(self) -> tuple[str, ...]:
        """`-m+i-p` and the parameters."""
        text, last = "", ""
        for sign, letter in self.letters:
            text += letter if sign == last else sign + letter
            last = sign
        return (text, *self.params)


def mode(net: Network, user: User, line: Line) -> None:
    target = line.get(0)
    world, weak = user.server.world, net.dialect.name == "ngircd"
    if net.dialect.is_channel(target):
        channel = world.channel(target)
        if not weak:
            channel = visible(user, channel)
        if channel is None:
            net.numeric(user, "401" if weak else "403", target)
        elif len(line.params) == 1:
            _show(net, user, channel)
        else:
            change(net, user, channel, line.params[1], list(line.params[2:]))
        return
    found = world.user(target)
    if found is None:
        net.numeric(user, "401", target)
    elif found is not user:
        net.numeric(user, "502")
    elif len(line.params) == 1:
        net.send(user, user.server.name, "221", user.shown, "+" + "".join(sorted(user.modes)), colon=not weak)
    else:
        _own(net, user, line.params[1])


def _show(net: Network, user: User, channel: Channel) -> None:
    weak = net.dialect.name == "ngircd"
    inside = user in channel.members
    if weak:
        words: tuple[str, ...] = ("+" + "".join(sorted(channel.flags | set(channel.parameters))),)
        if inside:
            words += tuple(channel.parameters[k] for k in sorted(channel.parameters))
    else:
        words = tuple(mode_words(channel, inside=inside).split(" "))
    net.send(user, user.server.name, "324", user.shown, channel.name, *words, colon=not weak)
    net.send(
        user, user.server.name, "329", user.shown, channel.name, str(int(channel.created_at)), colon=not weak
    )


def change(
    net: Network, user: User, channel: Channel, letters: str, params: list[str], *, by_force: bool = False
) -> None:
    """Carry out a MODE of a channel, saying what cannot be."""
    dialect = net.dialect
    done = Change()
    sign = "+"
    for letter in letters:
        if letter in "+-":
            sign = letter
        elif letter in dialect.list_modes:
            _list(net, user, channel, sign, letter, params, done, by_force)
        elif letter in dialect.prefix_modes:
            _member(net, user, channel, sign, letter, params, done, by_force)
        elif letter in "kl" or letter in dialect.parameter_modes:
            if _may(net, user, channel, letter, by_force):
                _parameter(net, user, channel, sign, letter, params, done)
        elif letter in dialect.flag_modes:
            if _may(net, user, channel, letter, by_force) and (letter in channel.flags) != (sign == "+"):
                (channel.flags.add if sign == "+" else channel.flags.discard)(letter)
                done.add(sign, letter)
        else:
            net.numeric(user, "472", letter, channel=channel.name)
    if done.letters:
        told = [user] if user in channel.members else []
        told += [m for m in channel.members if m is not user]
        net.tell(told, user, "MODE", channel.name, *done.words(), colon=dialect.name != "ngircd")


def _may(net: Network, user: User, channel: Channel, letter: str, by_force: bool) -> bool:
    if by_force or channel.is_at_least(user, "o", net.dialect):
        return True
    if net.dialect.name == "ngircd" and user not in channel.members:
        net.numeric(user, "442", channel.name)
        return False
    refused(net, user, channel, f"set channel mode {letter} ({MODE_NAMES.get(letter, letter)}).")
    return False


def _list(
    net: Network,
    user: User,
    channel: Channel,
    sign: str,
    letter: str,
    params: list[str],
    done: Change,
    force: bool,
) -> None:
    weak = net.dialect.name == "ngircd"
    entries = channel.lists.setdefault(letter, {})
    if not params:
        item, end = LIST_NUMERICS[letter]
        if weak and user not in channel.members:
            net.numeric(user, "442", channel.name)
            return
        for mask, (by, at) in reversed(entries.items()) if weak else entries.items():
            net.send(
                user, user.server.name, item, user.shown, channel.name, mask, by, str(int(at)), colon=not weak
            )
        net.numeric(user, end, channel.name)
        return
    mask = params.pop(0)
    if not _may(net, user, channel, letter, force):
        return
    if "!" not in mask and "@" not in mask:
        mask = f"{mask}!*@*"
    held = mask in entries
    if sign == "+" and held:
        if not weak:
            net.numeric(
                user, "697", channel.name, mask, letter, text=f"Channel ban list already contains {mask}"
            )
    elif sign == "+":
        entries[mask] = (user.shown, net.env.wall())
        done.add(sign, letter, mask)
    elif held:
        del entries[mask]
        done.add(sign, letter, mask)
    elif not weak:
        net.numeric(user, "698", channel.name, mask, letter, text=f"Channel ban list does not contain {mask}")


def _member(
    net: Network,
    user: User,
    channel: Channel,
    sign: str,
    letter: str,
    params: list[str],
    done: Change,
    force: bool,
) -> None:
    weak = net.dialect.name == "ngircd"
    if not params:
        if not weak:
            words = f"You must specify a parameter for the {MODE_NAMES[letter]} mode. Syntax: <nick>."
            net.numeric(user, "696", channel.name, letter, "*", text=words)
        return
    nick = params.pop(0)
    if not _may(net, user, channel, letter, force):
        return
    member = user.server.world.user(nick)
    if member is None:
        net.numeric(user, "401", nick)
    elif member not in channel.members:
        if weak:
            net.numeric(user, "441", member.shown, channel.name)
    elif (letter in channel.members[member]) != (sign == "+"):
        modes = channel.members[member]
        (modes.add if sign == "+" else modes.discard)(letter)
        done.add(sign, letter, member.shown)


def _parameter(
    net: Network, user: User, channel: Channel, sign: str, letter: str, params: list[str], done: Change
) -> None:
    weak = net.dialect.name == "ngircd"
    held = channel.parameters.get(letter)
    if sign == "-":
        given = params.pop(0) if letter == "k" and params else None
        if held is None:
            return
        if letter == "k" and given != held and not weak:
            net.numeric(user, "467", channel.name)
            return
        del channel.parameters[letter]
        done.add(sign, letter, ("*" if weak else held) if letter == "k" else None)
        return
    if not params:
        if weak:
            net.numeric(user, "461", "MODE")
        return
    value = params.pop(0)
    if letter == "l":
        value = str(int(value)) if value.isdecimal() else "0"
        if weak and value == "0":
            return
    elif letter == "k" and held is not None and not weak:
        return
    elif letter == "H":
        lines, _, duration = value.partition(":")
        if not lines.isdecimal() or lines == "0" or not duration or duration == "0":
            words = "Invalid history mode parameter. Syntax: <max-messages>:<max-duration>."
            net.numeric(user, "696", channel.name, "H", value, text=words)
            return
    if held != value:
        channel.parameters[letter] = value
        done.add(sign, letter, value)


def _own(net: Network, user: User, letters: str) -> None:
    """MODE of oneself."""
    weak = net.dialect.name == "ngircd"
    done = Change()
    sign = "+"
    for letter in letters:
        if letter in "+-":
            sign = letter
        elif letter == "o" and sign == "+":
            words = None if weak else "Permission Denied - Only operators may set user mode o"
            net.numeric(user, "481", text=words)
        elif letter not in net.dialect.user_modes:
            if weak:
                net.numeric(user, "501", text="Unknown mode flag")
            else:
                net.numeric(user, "501", letter, text="is not a recognised user mode.")
        elif (letter in user.modes) != (sign == "+"):
            (user.modes.add if sign == "+" else user.modes.discard)(letter)
            done.add(sign, letter)
    if done.letters:
        net.send(user, user, "MODE", user.shown, *done.words())


def samode(net: Network, user: User, line: Line) -> None:
    channel = user.server.world.channel(line.get(0))
    if not user.is_operator:
        net.numeric(user, "481")
    elif channel is None:
        net.numeric(user, "403", line.get(0))
    else:
        change(net, user, channel, line.params[1], list(line.params[2:]), by_force=True)


HANDLERS = {"MODE": mode, "SAMODE": samode}
