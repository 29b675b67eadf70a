"""A corner of NickServ: enough to log in and out, and to take a nick back from a ghost."""

from __future__ import annotations

from bridged.peers.irc import sasl
from bridged.peers.irc.network import Account, Network
from bridged.peers.irc.operators import kill
from bridged.peers.irc.registration import rename
from bridged.peers.irc.state import User

MASK = "NickServ!NickServ@services.localhost"


def takes(net: Network, user: User, command: str, target: str, text: str) -> bool:
    """Was this a message to NickServ?  It is answered then."""
    if not net.services or net.dialect.fold(target) != "nickserv":
        return False
    msgid = user.server.next_msgid()
    if user.has("echo-message"):
        net.send(user, user, command, "NickServ", text, msgid=msgid, is_echo=True)
    if command == "PRIVMSG":
        words = text.split()
        verb = words[0].upper() if words else ""
        _COMMANDS.get(verb, _unknown)(net, user, words[1:])
    return True


def _say(net: Network, user: User, text: str) -> None:
    net.send(user, MASK, "NOTICE", user.shown, text, msgid=user.server.next_msgid())


def _known(net: Network, words: list[str]) -> str | None:
    """`NAME PASSWORD` that fit: the name."""
    if len(words) < 2:
        return None
    account = net.accounts.get(words[0])
    return account.name if account is not None and account.password == words[1] else None


def _identify(net: Network, user: User, words: list[str]) -> None:
    if len(words) == 1:
        words = [user.shown, *words]
    name = _known(net, words)
    if name is None:
        _say(net, user, f"Invalid password for {words[0] if words else user.shown}.")
        return
    _say(net, user, f"You are now identified for {name}.")
    sasl.log_in(net, user, name, sasl=False)


def _register(net: Network, user: User, words: list[str]) -> None:
    """REGISTER password e-mail: an account of the nick's name."""
    if len(words) < 2:
        _say(net, user, "Insufficient parameters for REGISTER.")
    elif user.shown in net.accounts:
        _say(net, user, f"{user.shown} is already registered.")
    else:
        net.accounts[user.shown] = Account(name=user.shown, password=words[0])
        _say(net, user, f"{user.shown} is now registered to {words[1]}.")
        sasl.log_in(net, user, user.shown, sasl=False)


def _logout(net: Network, user: User, words: list[str]) -> None:
    if user.account is None or not user.services_know:
        _say(net, user, "You are not logged in.")
        return
    _say(net, user, "You have been logged out.")
    sasl.log_out(net, user)


def _ghost(net: Network, user: User, words: list[str]) -> None:
    """GHOST and REGAIN: the holder of the nick goes, for the account of that name."""
    wanted = words[0] if words else ""
    if user.account is None or net.dialect.fold(user.account) != net.dialect.fold(wanted):
        name = _known(net, words)
        if name is None or net.dialect.fold(name) != net.dialect.fold(wanted):
            _say(net, user, f"Access denied to {wanted}.")
            return
    holder = user.server.world.users.get(net.dialect.fold(wanted))
    if holder is not None and holder is not user:
        kill(net, MASK, holder, f"(GHOST command used by {user.mask})")
    _say(net, user, f"{wanted} has been ghosted.")
    if holder is not user:
        rename(net, user, wanted)


def _unknown(net: Network, user: User, words: list[str]) -> None:
    _say(net, user, "Invalid command. Use /msg NickServ help for a command listing.")


_COMMANDS = {
    "REGISTER": _register,
    "IDENTIFY": _identify,
    "LOGOUT": _logout,
    "REGAIN": _ghost,
    "GHOST": _ghost,
}
