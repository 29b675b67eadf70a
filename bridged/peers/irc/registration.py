"""Coming and going: CAP, PASS, NICK, USER, the welcome, SETNAME, AWAY, PING, PONG, QUIT."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bridged.peers.irc import sasl
from bridged.peers.irc.line import Line, encode
from bridged.peers.irc.state import User
from bridged.peers.stamp import ctime, ctime_inspircd

if TYPE_CHECKING:
    from bridged.peers.irc.network import Network


# -------------------------------------------------------------------- capabilities


def offered(net: Network, version: int) -> list[str]:
    """The words of CAP LS."""
    words = list(net.capabilities)
    if net.services and net.dialect.name == "inspircd":
        words.append(f"sasl={','.join(net.options.mechanisms)}" if version >= 302 else "sasl")
    if version >= 302 and "draft/multiline" in words:
        words[words.index("draft/multiline")] = "draft/multiline=max-bytes=4096,max-lines=100"
    return sorted(words)


def cap(net: Network, user: User, line: Line) -> None:
    verb = line.get(0).upper()
    dialect = net.dialect
    weak = dialect.name == "ngircd"
    if verb == "LS":
        version = int(line.get(1)) if line.get(1).isdecimal() else 0
        user.capability_version = max(user.capability_version, version)
        user.negotiating = user.negotiating or not user.registered
        if version >= 302 and not weak:
            user.capabilities.add("cap-notify")
        words = " ".join(offered(net, version))
        _cap(net, user, "LS", words if weak else words + " ")
    elif verb == "LIST":
        held = sorted(user.capabilities)
        _cap(net, user, "LIST", "".join(f"{name} " for name in held))
    elif verb == "REQ":
        if len(line.params) > 1:
            user.negotiating = user.negotiating or not user.registered
            _request(net, user, line.params[1])
        elif weak:
            net.numeric(user, "410", "REQ")
    elif verb == "END":
        if user.sasl is not None and not user.registered:
            sasl.abort(net, user)
        user.negotiating = False
        complete(net, user)
    elif verb == "CLEAR" and weak:
        user.capabilities.clear()
        _cap(net, user, "ACK", "")
    elif not (weak and verb == "ACK"):
        net.numeric(user, "410", line.get(0))


def _cap(net: Network, user: User, verb: str, words: str) -> None:
    net.send(user, user.server.name, "CAP", user.shown, verb, words)


def _request(net: Network, user: User, text: str) -> None:
    """All of a REQ or nothing of it."""
    held = set(user.capabilities)
    known = {*net.capabilities}
    if net.dialect.name == "inspircd":
        known.add("sasl")  # acknowledged even while services are away
    for word in text.split():
        name = word.removeprefix("-")
        if net.dialect.name == "inspircd":
            name = name.lower()
        if name not in known or (word == "-cap-notify" and user.capability_version >= 302):
            _cap(net, user, "NAK", text)
            return
        if word.startswith("-"):
            held.discard(name)
        else:
            held.add(name)
    user.capabilities = held
    _cap(net, user, "ACK", text)


def announce(net: Network, capability: str, *, gone: bool) -> None:
    """A capability vanished or came back while clients are connected: CAP DEL or NEW to those with cap-notify."""
    if gone:
        net.capabilities.remove(capability)
    else:
        net.capabilities.append(capability)
    for server in net.servers:
        for user in [*server.world.users.values()]:
            if gone:
                user.capabilities.discard(capability)
            if user.server is server and user.has("cap-notify"):
                _cap(net, user, "DEL" if gone else "NEW", capability)


# -------------------------------------------------------------------- registration


def password(net: Network, user: User, line: Line) -> None:
    if user.registered:
        net.numeric(user, "462")
    else:
        user.password = line.get(0)


def nick(net: Network, user: User, line: Line) -> None:
    """NICK, before and after registration."""
    dialect = net.dialect
    wanted = line.get(0)
    if not wanted:
        weak = dialect.name == "ngircd"
        net.numeric(user, *(("432" if weak else "431",) if line.params else ("461", "NICK")))
        return
    if len(encode(wanted)) > dialect.nick_max and (dialect.is_nick(wanted) or dialect.name == "ngircd"):
        net.numeric(user, "432long", wanted)
        return
    if not dialect.is_nick(wanted):
        net.numeric(user, "432", wanted)
        return
    holder = user.server.world.users.get(dialect.fold(wanted))
    if holder is not None and holder is not user:
        net.numeric(user, "433", wanted)
        return
    rename(net, user, wanted)
    complete(net, user)


def rename(net: Network, user: User, wanted: str) -> None:
    """Give the user another nick and tell everyone who sees it."""
    world, fold = user.server.world, net.dialect.fold
    if user.nick == wanted:
        return
    before = user.mask
    if user.nick is not None and world.users.get(fold(user.nick)) is user:
        if user.registered and fold(user.nick) != fold(wanted):
            net.watchers_told(world, user, "731")
        del world.users[fold(user.nick)]
    moved = user.nick is None or fold(user.nick) != fold(wanted)
    answering = net.is_answering(user)
    user.nick = wanted
    world.users[fold(wanted)] = user
    if user.registered:
        # Seen on InspIRCd: the sender of a labelled NICK is shown the new nick as its source.
        net.send(user, user.mask if answering else before, "NICK", wanted)
        for other in world.neighbours(user):
            net.send_as(other, before, user.account, "NICK", wanted)
        if moved:
            net.watchers_told(world, user, "730")


def user_command(net: Network, user: User, line: Line) -> None:
    if user.registered or (net.dialect.name == "ngircd" and user.user):
        net.numeric(user, "462")
        return
    name = line.get(0)[: net.dialect.user_max]
    user.user = net.dialect.tilde + name
    user.real = line.get(3)
    if user.has("chghost"):  # seen: who has these before NICK and USER is told of its own
        net.send_as(
            user, f"{user.nick or user.uid}!{user.uid}@{user.host}", None, "CHGHOST", user.user, user.host
        )
    if user.has("setname"):
        net.send(user, user, "SETNAME", user.real)
    complete(net, user)


def complete(net: Network, user: User) -> None:
    """Welcome the user if nothing of the registration is missing."""
    if user.registered or user.gone or user.negotiating or user.nick is None or not user.user:
        return
    delay = net.options.registration_delay_s
    if delay and user.link is not None:
        net.nursery.start_soon(user.link.later, delay, lambda: _register(net, user))
    else:
        _register(net, user)


def _register(net: Network, user: User) -> None:
    if user.registered or user.gone or user.negotiating or user.nick is None:
        return
    if net.options.password is not None and user.password != net.options.password:
        weak = net.dialect.name == "ngircd"
        net.quit(user, "Access denied: Bad password?" if weak else "Access denied by configuration")
        return
    reason = net.banned(user)
    if reason is not None:
        if net.dialect.name == "ngircd":
            net.quit(user, f'Access denied: "{reason}" (K-Line)')
        else:
            net.numeric(user, "465")
            net.quit(user, f"K-lined: {reason}")
        return
    welcome(net, user)


def welcome(net: Network, user: User) -> None:
    """Register the user and send the burst."""
    dialect, server, world = net.dialect, user.server, user.server.world
    inspircd = dialect.name == "inspircd"
    unknown = sum(1 for u in world.users.values() if not u.registered) if inspircd else 0
    before = sum(1 for _ in world.registered())
    user.registered = True
    user.signed_on_at = user.active_at = net.env.wall()
    net.users_max = max(net.users_max, before + 1)
    name = net.options.name if inspircd else "Internet Relay"
    network = f"{name} IRC Network" if inspircd else f"{name} Network"
    net.numeric(user, "001", text=f"Welcome to the {network} {user.mask}")
    build = "" if inspircd else " (x86_64/pc/linux-gnu)"
    net.numeric(user, "002", text=f"Your host is {server.name}, running version {dialect.version}{build}")
    if inspircd:
        net.numeric(user, "003", text=f"This server was created {ctime_inspircd(server.started_at)}")
        net.numeric(
            user, "004", server.name, dialect.version, "BHIRcdikorsw", "HMRbiklmnoprstv", text="Hbklov"
        )
    else:
        net.numeric(user, "003", text=f"This server has been started {ctime(server.started_at)}")
        net.numeric(
            user,
            "004",
            server.name,
            dialect.version,
            dialect.user_modes,
            text="abehiIklmMnoOPqQrRstvVz",
            colon=False,
        )
        net.numeric(user, "005", f"NETWORK={net.options.name}", text="is my network name")
    isupport(net, user)
    lusers(net, user, count=before if inspircd else before + 1, unknown=unknown)
    message_of_the_day(net, user)
    net.watchers_told(world, user, "730")


def isupport(net: Network, user: User) -> None:
    """005."""
    on = "are supported by this server" if net.dialect.name == "inspircd" else "are supported on this server"
    for words in net.dialect.isupport:
        net.numeric(user, "005", *words.format(network=net.options.name).split(), text=on)
    if "draft/chathistory" in net.capabilities:
        net.numeric(user, "005", "CHATHISTORY=100", "MSGREFTYPES=timestamp,msgid", text=on)


def lusers(net: Network, user: User, *, count: int | None = None, unknown: int = 0) -> None:
    """251 to 266.

    Args:
        count: How many users there are; all who are registered where None (InspIRCd does not count the newcomer).
        unknown: Connections that have not registered yet.
    """
    world, server = user.server.world, user.server
    everyone = list(world.registered())
    total = len(everyone) if count is None else count
    local = sum(1 for u in everyone if u.server is server) - (len(everyone) - total)
    servers, most = len(world.servers), max(net.users_max - (len(everyone) - total), total)
    operators = sum(1 for u in everyone if u.is_operator)
    inspircd = net.dialect.name == "inspircd"
    hidden = "0 invisible" if inspircd else "0 services"
    net.numeric(user, "251", text=f"There are {total} users and {hidden} on {servers} servers")
    if operators:
        net.numeric(user, "252", str(operators), text="operator(s) online")
    if unknown:
        net.numeric(user, "253", str(unknown), text="unknown connections")
    channels = len(world.channels) + (0 if inspircd else 1)  # ngIRCd counts &SERVER
    net.numeric(user, "254", str(channels), text="channels formed")
    if inspircd:
        net.numeric(user, "255", text=f"I have {local} clients and {servers - 1} servers")
        net.numeric(user, "265", text=f"Current local users: {local}  Max: {most}")
        net.numeric(user, "266", text=f"Current global users: {total}  Max: {most}")
        return
    net.numeric(user, "255", text=f"I have {local} users, 0 services and {servers - 1} servers")
    for numeric, kind, number in (("265", "local", local), ("266", "global", total)):
        text = f"Current {kind} users: {number}, Max: {most}"
        net.numeric(user, numeric, str(number), str(most), text=text)
    net.numeric(user, "250", text=f"Highest connection count: {most} ({most} connections received)")


def message_of_the_day(net: Network, user: User) -> None:
    dash = "" if net.dialect.name == "inspircd" else "- "
    net.numeric(user, "375", text=f"{dash}{user.server.name} message of the day")
    for words in net.dialect.motd:
        net.numeric(user, "372", text=words)
    net.numeric(user, "376")


# -------------------------------------------------------------------- while online


def away(net: Network, user: User, line: Line) -> None:
    text = line.get(0)
    user.away = text or None
    net.numeric(user, "306" if text else "305")
    for other in user.server.world.neighbours(user):
        if other.has("away-notify"):
            net.send(other, user, "AWAY", *([text] if text else []))


def setname(net: Network, user: User, line: Line) -> None:
    if not line.get(0):
        net.numeric(user, "461", "SETNAME")
        return
    user.real = line.get(0)
    for other in [user, *user.server.world.neighbours(user)]:
        if other.has("setname"):
            net.send(other, user, "SETNAME", user.real)


def ping(net: Network, user: User, line: Line) -> None:
    weak = net.dialect.name == "ngircd"
    server = user.server.name
    if not line.get(0) and not (weak and line.params):
        net.numeric(user, "409")
    elif len(line.params) > 1 and weak and line.params[1] not in [s.name for s in user.server.world.servers]:
        net.numeric(user, "402", line.params[1])
    elif len(line.params) > 1 and not weak:
        net.send(user, server, "PONG", line.params[1], line.params[0])
    else:
        net.send(user, server, "PONG", server, line.params[0])


def pong(net: Network, user: User, line: Line) -> None:
    if not line.params:
        net.numeric(
            user,
            "409" if net.dialect.name == "ngircd" else "461",
            *([] if net.dialect.name == "ngircd" else ["PONG"]),
        )


def quit_command(net: Network, user: User, line: Line) -> None:
    if net.dialect.name == "ngircd":
        if line.params:
            net.quit(user, f'"{line.get(0)}"')
        else:
            net.quit(user, user.shown, error="Closing connection")
    elif line.params:
        net.quit(user, f"Quit: {line.get(0)}")
    else:
        net.quit(user, "Client exited")


HANDLERS = {
    "CAP": cap, "PASS": password, "NICK": nick, "USER": user_command, "AUTHENTICATE": sasl.authenticate,
    "AWAY": away, "SETNAME": setname, "PING": ping, "PONG": pong, "QUIT": quit_command,
}  # fmt: skip
UNREGISTERED = ("CAP", "PASS", "NICK", "USER", "AUTHENTICATE", "PONG", "QUIT")
