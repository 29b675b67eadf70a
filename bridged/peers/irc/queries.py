"""Asking about users and the server: WHO, WHOIS, WHOWAS, USERHOST, ISON, MONITOR, VERSION, MOTD and the like."""

from __future__ import annotations

from bridged.peers.irc.channels import visible
from bridged.peers.irc.line import Line
from bridged.peers.irc.network import Network
from bridged.peers.irc.registration import isupport, lusers, message_of_the_day
from bridged.peers.irc.state import Channel, User, matches_mask
from bridged.peers.stamp import long_time, whowas_time


def who(net: Network, user: User, line: Line) -> None:
    """WHO, and WHOX where the second word begins with `%` (InspIRCd)."""
    target = line.get(0) or "*"
    flags = line.get(1)
    world, weak = user.server.world, net.dialect.name == "ngircd"
    fields, _, token = (
        flags.removeprefix("%").partition(",") if flags.startswith("%") and not weak else ("", "", "")
    )
    found: list[tuple[User, Channel | None]] = []
    if net.dialect.is_channel(target):
        channel = visible(user, world.channel(target))
        found = [(member, channel) for member in channel.members] if channel is not None else []
    else:
        for other in world.registered():
            shown = other.nick or ""
            if matches_mask(target, shown, net.dialect.fold) or target == "0":
                found.append((other, None if weak else next(iter(other.channels.values()), None)))
    for other, channel in found:
        if flags == "o" and not other.is_operator:
            continue
        name = channel.name if channel is not None else "*"
        signs = (
            channel.signs(other, net.dialect, all_of_them=user.has("multi-prefix"))
            if channel is not None
            else ""
        )
        state = ("G" if other.away is not None else "H") + ("*" if other.is_operator else "") + signs
        server = other.server.name
        if fields:
            values = {
                "t": token, "c": name, "u": other.user, "h": other.host, "s": server, "n": other.shown, "f": state,
                "d": "0", "l": "0", "a": other.account or "0", "i": other.host, "o": "n/a",
            }  # fmt: skip
            words = [values[letter] for letter in "tcuihsnfdlao" if letter in fields]
            net.numeric(user, "354", *words, text=other.real)
        else:
            hops = "0" if server == user.server.name else "1"
            hops = hops if weak else "0"
            real = f"{hops} {other.real}"
            net.numeric(user, "352", name, other.user, other.host, server, other.shown, state, text=real)
    net.numeric(user, "315", target)


def whois(net: Network, user: User, line: Line) -> None:
    if not line.params:
        net.numeric(user, "431")
        return
    nick = line.params[-1]
    other = user.server.world.user(nick)
    if other is None:
        net.numeric(user, "401", nick)
        net.numeric(user, "318", nick)
        return
    weak = net.dialect.name == "ngircd"
    nick = other.shown
    knows = other is user or user.is_operator
    shown = [c for c in other.channels.values() if visible(user, c) is not None]
    channels = " ".join(
        c.signs(other, net.dialect, all_of_them=user.has("multi-prefix")) + c.name for c in reversed(shown)
    )
    idle = str(int(net.env.wall() - other.active_at))
    if weak:
        _whois_weak(net, user, other, channels, idle)
        return
    net.numeric(user, "311", nick, other.user, other.host, "*", text=other.real)
    if knows:
        net.numeric(user, "378", nick, text=f"is connecting from {other.user}@{other.host} {other.host}")
    if channels:
        net.numeric(user, "319", nick, text=channels)
    net.numeric(user, "312", nick, other.server.name, text="ci")
    if other.is_operator:
        net.numeric(user, "313", nick, text="is a NetAdmin on " + other.server.name)
    if other.away is not None:
        net.numeric(user, "301", nick, text=other.away)
    if knows:
        net.numeric(user, "379", nick, text="is using modes +" + "".join(sorted(other.modes)))
    if other.secure:
        net.numeric(user, "671", nick, text="is using a secure connection")
        if other.fingerprint is not None and knows:
            words = f"has TLS (SSL) client certificate fingerprint {other.fingerprint}"
            net.numeric(user, "276", nick, text=words)
    if other.account is not None:
        net.numeric(user, "330", nick, other.account)
    net.numeric(user, "317", nick, idle, str(int(other.signed_on_at)))
    net.numeric(user, "318", nick)


def _whois_weak(net: Network, user: User, other: User, channels: str, idle: str) -> None:
    """ngIRCd's order; the server of the one asked for answers."""

    def say(numeric: str, *words: str) -> None:
        net.send(user, other.server.name, numeric, user.shown, other.shown, *words)

    say("311", other.user, other.host, "*", other.real)
    say("312", other.server.name, "ci")
    if channels:
        say("319", channels)
    if other.is_operator:
        say("313", "is an IRC operator")
    say("317", idle, str(int(other.signed_on_at)), net.dialect.texts["317"])
    if other.away is not None:
        say("301", other.away)
    say("318", net.dialect.texts["318"])


def whowas(net: Network, user: User, line: Line) -> None:
    nick, found = line.get(0), False
    for at, other in net.was if net.dialect.name == "inspircd" else ():  # seen: ngIRCd forgets at once
        if other.nick is not None and net.dialect.fold(other.nick) == net.dialect.fold(nick):
            found = True
            net.numeric(user, "314", other.nick, other.user, other.host, "*", text=other.real)
            net.numeric(user, "312", other.nick, other.server.name, text=whowas_time(at))
            break
    if not found:
        net.numeric(user, "406", nick)
    net.numeric(user, "369", nick)


def userhost(net: Network, user: User, line: Line) -> None:
    found = [o for nick in line.params if (o := user.server.world.user(nick)) is not None]
    words = [
        f"{o.nick}{'*' if o.is_operator else ''}={'-' if o.away else '+'}{o.user}@{o.host}" for o in found
    ]
    tail = " " if net.dialect.name == "inspircd" and words else ""
    net.send(user, user.server.name, "302", user.shown, " ".join(words) + tail)


def ison(net: Network, user: User, line: Line) -> None:
    nicks = [nick for word in line.params for nick in word.split()]
    found = [o.shown for nick in nicks if (o := user.server.world.user(nick)) is not None]
    net.send(user, user.server.name, "303", user.shown, " ".join(found))


def monitor(net: Network, user: User, line: Line) -> None:
    """MONITOR + - C L S (InspIRCd)."""
    verb, fold = line.get(0).upper(), net.dialect.fold
    nicks = [nick for nick in line.get(1).split(",") if nick]
    if verb == "+":
        user.monitored |= {fold(nick): nick for nick in nicks}
        _status(net, user, nicks)
    elif verb == "-":
        for nick in nicks:
            user.monitored.pop(fold(nick), None)
    elif verb == "C":
        user.monitored.clear()
    elif verb == "L":
        if user.monitored:
            net.numeric(user, "732", text=",".join(user.monitored.values()))
        net.numeric(user, "733")
    elif verb == "S":
        _status(net, user, list(user.monitored.values()))


def _status(net: Network, user: User, nicks: list[str]) -> None:
    world = user.server.world
    here = [found.shown for nick in nicks if (found := world.user(nick)) is not None]
    gone = [nick for nick in nicks if world.user(nick) is None]
    for numeric, words in (("730", here), ("731", gone)):
        if words:
            net.numeric(user, numeric, text=",".join(words))


def lusers_command(net: Network, user: User, line: Line) -> None:
    lusers(net, user)


def version(net: Network, user: User, line: Line) -> None:
    server = user.server.name
    if net.dialect.name == "inspircd":
        net.send(user, server, "351", user.shown, f"{net.dialect.version}.", server, "")
    else:
        words = "IDENT+IPv6+IRCPLUS+PAM+SSL+SYSLOG+ZLIB-x86_64/pc/linux-gnu"
        net.numeric(user, "351", "ngIRCd-26.1.", server, text=words)
        net.numeric(user, "005", f"NETWORK={net.options.name}", text="is my network name")
    isupport(net, user)


def motd(net: Network, user: User, line: Line) -> None:
    message_of_the_day(net, user)


def time(net: Network, user: User, line: Line) -> None:
    now = net.env.wall()
    weak = net.dialect.name == "ngircd"
    net.numeric(user, "391", user.server.name, text=long_time(now) if weak else whowas_time(now))


def info(net: Network, user: User, line: Line) -> None:
    if line.params and net.dialect.name == "ngircd":
        net.numeric(user, "402", line.get(0))
    elif not line.params:  # seen: of another server's, silence
        net.numeric(user, "371", text=net.dialect.version)
        net.numeric(user, "374", text="End of /INFO list")


def links(net: Network, user: User, line: Line) -> None:
    here = user.server
    for server in sorted(here.world.servers, key=lambda s: (s is here, s.name)):
        net.numeric(user, "364", server.name, here.name, text=f"{0 if server is here else 1} ci")
    net.numeric(user, "365", "*")


def admin(net: Network, user: User, line: Line) -> None:
    weak = net.dialect.name == "ngircd"
    net.numeric(user, "256", user.server.name, text="Administrative info")
    rows = ("", "", "a@localhost") if weak else ("Name: a", "Nickname: a", "Email: a@localhost")
    for numeric, text in zip(("257", "258", "259"), rows, strict=True):
        net.send(user, user.server.name, numeric, user.shown, text)


def stats(net: Network, user: User, line: Line) -> None:
    letter = line.get(0)[:1]
    inspircd = net.dialect.name == "inspircd"
    if letter == "u":
        up = int(net.env.wall() - user.server.started_at)
        days, rest = divmod(up, 86_400)
        hours, minutes, seconds = rest // 3600, rest // 60 % 60, rest % 60
        if inspircd:
            net.numeric(user, "242", text=f"Server up {days} days, {hours:02}:{minutes:02}:{seconds:02}")
        else:
            net.numeric(user, "242", text=f"Server Up {days} days {hours}:{minutes:02}:{seconds:02}")
    elif letter == "k":
        for mask, reason, by in net.klines:
            if inspircd:
                at = str(int(net.env.wall()))
                net.numeric(user, "210", "k", mask, at, "600", by, text=reason)
            else:
                net.numeric(user, "216", "k", mask, str(int(net.env.wall()) + 600), text=reason)
    net.numeric(user, "219", letter, text="End of /STATS report" if inspircd else "End of STATS report")


HANDLERS = {
    "WHO": who, "WHOIS": whois, "WHOWAS": whowas, "USERHOST": userhost, "ISON": ison, "LUSERS": lusers_command,
    "VERSION": version, "MOTD": motd, "TIME": time, "LINKS": links, "ADMIN": admin, "STATS": stats, "INFO": info,
}  # fmt: skip
INSPIRCD_HANDLERS = {"MONITOR": monitor}
