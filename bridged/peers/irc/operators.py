"""What operators of the network may do: OPER, KILL, KLINE, SQUIT, CONNECT, SANICK, CHGHOST by SETHOST, DIE."""

from __future__ import annotations

from bridged.peers.irc import netsplit
from bridged.peers.irc.line import Line
from bridged.peers.irc.network import Network
from bridged.peers.irc.registration import rename
from bridged.peers.irc.state import User, matches_mask


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
    if _may(net, user):
        kline(net, line.get(0), line.get(2) or "K-lined", by=user.shown)


def kline(net: Network, mask: str, reason: str, *, by: str = "oper") -> None:
    """Ban a `user@host` mask from the network; whoever matches is thrown off."""
    net.klines.append((mask, reason))
    for server in net.servers:
        for user in list(server.world.registered()):
            if matches_mask(mask.removeprefix("*!"), f"{user.user}@{user.host}", str.lower):
                if net.dialect.name == "ngircd":
                    net.quit(user, f'K-Line by "{by}": "{reason}"')
                else:
                    net.numeric(user, "465")
                    net.quit(user, f"K-lined: {reason}")


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


def shut_down(net: Network, *, by_signal: bool = False) -> None:
    """Every client is told and let go."""
    weak = net.dialect.name == "ngircd"
    for server in net.servers:
        for user in list(server.world.users.values()):
            if not by_signal and user.registered:
                net.send(
                    user, server.name, "NOTICE", user.shown, "going down" if weak else "*** Shutting down"
                )
    for server in net.servers:
        for user in list(server.world.users.values()):
            net.quit(user, "Server going down" if weak else "Server shutting down")


HANDLERS = {
    "OPER": oper, "KILL": kill_command, "KLINE": kline_command, "SQUIT": squit, "CONNECT": connect, "DIE": die,
}  # fmt: skip
INSPIRCD_HANDLERS = {"SANICK": sanick, "CHGHOST": chghost}
