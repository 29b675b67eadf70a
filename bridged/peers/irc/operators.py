"""What operators of the network may do: OPER, KILL, KLINE, SQUIT, CONNECT, SANICK, CHGHOST by SETHOST, DIE."""

from __future__ import annotations

from bridged.peers.irc import netsplit
from bridged.peers.irc.line import Line
from bridged.peers.irc.network import Network
from bridged.peers.irc.registration import announce, rename
from bridged.peers.irc.state import Server, User, matches_mask


def oper(net: Network, user: User, line: Line) -> None:
    weak = net.dialect.name == "ngircd"
    if net.options.operators.get(line.get(0)) != line.get(1):
        net.numeric(user, "464" if weak else "491")
        return
    user.modes.add("o")
    if weak:
        net.send(user, user.server.name, "MODE", user.shown, "+o")
        net.numeric(user, "381", text="You are now an IRC Operator")
    else:
        net.send(user, user.server.name, "MODE", user.shown, "+o")
        net.numeric(user, "381", text="You are now a NetAdmin")


def _may(net: Network, user: User) -> bool:
    if not user.is_operator:
        net.numeric(user, "481")
    return user.is_operator


def kill_command(net: Network, user: User, line: Line) -> None:
    if not _may(net, user):
        return
    victim = user.server.world.user(line.get(0))
    if victim is None:
        if net.dialect.name == "inspircd":
            net.numeric(user, "401", line.get(0))
    else:
        kill(net, user, victim, line.get(1), by=user.shown)


def kill(net: Network, source: User | str, victim: User, reason: str, *, by: str = "oper") -> None:
    """Throw one user off the network."""
    if net.dialect.name == "ngircd":
        net.quit(victim, f"KILLed by {by}: {reason}")
        return
    text = f"Killed ({by} ({reason}))"
    net.send(victim, source, "KILL", victim.shown, text)
    net.quit(victim, text)


def kline_command(net: Network, user: User, line: Line) -> None:
    if not _may(net, user):
        return
    if len(line.params) == 1:
        net.klines[:] = [k for k in net.klines if k[0] != line.get(0)]
    else:
        kline(net, line.get(0), line.get(2) or "K-lined", by=user.shown)


def kline(net: Network, mask: str, reason: str, *, by: str = "oper") -> None:
    """Ban a `user@host` mask from the network; whoever matches is thrown off."""
    net.klines.append((mask, reason, by))
    for server in net.servers:
        for user in list(server.world.registered()):
            if matches_mask(mask.removeprefix("*!"), f"{user.user}@{user.host}", str.lower):
                if net.dialect.name == "ngircd":
                    net.quit(user, f'K-Line by "{by}": "{reason}"')
                else:
                    net.numeric(user, "465")
                    net.quit(user, f"K-lined: {reason}")


def zline(net: Network, user: User, line: Line) -> None:
    """A ban of an address: everybody here comes from the same, so it only asks for the right."""
    _may(net, user)


def squit(net: Network, user: User, line: Line) -> None:
    if _may(net, user) and not netsplit.split(net, user.server, line.get(0)):
        net.numeric(user, "402", line.get(0))


def connect(net: Network, user: User, line: Line) -> None:
    if _may(net, user) and not netsplit.heal(net, user.server, line.get(0)):
        net.numeric(user, "402", line.get(0))


def sanick(net: Network, user: User, line: Line) -> None:
    if not _may(net, user):
        return
    victim = user.server.world.user(line.get(0))
    if victim is None:
        net.numeric(user, "401", line.get(0))
    elif user.server.world.user(line.get(1)) is not None:
        net.numeric(user, "433", line.get(1))
    else:
        rename(net, victim, line.get(1))


def change_host(net: Network, user: User, host: str) -> None:
    """Give the user another shown host: CHGHOST to those who asked for it, 396 to the user."""
    if host == user.host:
        return
    for other in [user, *user.server.world.neighbours(user)]:
        if other.has("chghost"):
            net.send(other, user, "CHGHOST", user.user, host)
    user.host = host
    net.numeric(user, "396", host, text="is now your displayed host")


def chghost(net: Network, user: User, line: Line) -> None:
    if not _may(net, user):
        return
    victim = user.server.world.user(line.get(0))
    if victim is None:
        net.numeric(user, "401", line.get(0))
    elif line.get(1):
        change_host(net, victim, line.get(1))


def die(net: Network, user: User, line: Line) -> None:
    if _may(net, user):
        shut_down(net)


def shut_down(net: Network, *, by_signal: bool = False, server: Server | None = None) -> None:
    """Every client (of one server, or of all) is told and let go."""
    weak = net.dialect.name == "ngircd"
    servers = net.servers if server is None else [server]
    users = {user: None for s in servers for user in s.world.users.values() if user.server in servers}
    for user in users:
        if not by_signal and user.registered:
            words = "going down" if weak else "*** Shutting down"
            net.send(user, user.server.name, "NOTICE", user.shown, words)
    for user in users:
        net.quit(user, "Server going down" if weak else "Server shutting down")


def error(net: Network, user: User, line: Line) -> None:
    """ERROR from a client: ngIRCd says nothing."""


def module(net: Network, user: User, line: Line) -> None:
    """UNLOADMODULE and LOADMODULE of `m_NAME.so`: the capability NAME goes and comes back."""
    name = line.get(0).removeprefix("m_").removesuffix(".so")
    gone = line.command == "UNLOADMODULE"
    if not _may(net, user) or (name in net.capabilities) != gone:
        return
    announce(net, name, gone=gone)
    words = f"Module successfully {'un' if gone else ''}loaded."
    net.numeric(user, "973" if gone else "975", line.get(0), text=words)


HANDLERS = {
    "OPER": oper, "KILL": kill_command, "KLINE": kline_command, "SQUIT": squit, "CONNECT": connect, "DIE": die,
}  # fmt: skip
INSPIRCD_HANDLERS = {
    "SANICK": sanick,
    "ZLINE": zline,
    "CHGHOST": chghost,
    "UNLOADMODULE": module,
    "LOADMODULE": module,
}
