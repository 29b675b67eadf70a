"""The link between two servers breaks and returns.

One `World` becomes two: each server goes on with its own users and a copy of the channels.  On return the
worlds are merged as the real servers do it: InspIRCd by timestamps (the younger channel loses its modes, the
later of two equal nicks is renamed to its UID, the newer topic wins), ngIRCd without any (both holders of a
nick are killed, topics stay as they are).
"""

from __future__ import annotations

from bridged.peers.irc.channels import joined
from bridged.peers.irc.network import Network
from bridged.peers.irc.registration import rename
from bridged.peers.irc.state import Channel, Server, User, World


def split(net: Network, here: Server, name: str) -> bool:
    """Break the link to the server called `name`; False where there is none."""
    world = here.world
    lost = next((s for s in world.servers if s.name == name and s is not here), None)
    if lost is None:
        return False
    other = World(net.dialect, servers=[lost])
    world.servers.remove(lost)
    sides = ((here, world, lost), (lost, other, here))
    users = list(world.users.values())
    for channel in world.channels.values():
        twin = Channel(
            channel.name, channel.created_at, flags=set(channel.flags), parameters=dict(channel.parameters)
        )
        twin.lists = {mode: dict(entries) for mode, entries in channel.lists.items()}
        twin.topic, twin.topic_by, twin.topic_at = channel.topic, channel.topic_by, channel.topic_at
        twin.members = dict(channel.members)
        other.channels[net.dialect.fold(channel.name)] = twin
    lost.world = other
    for own, side, foreign in sides:
        stay = [u for u in users if (u.server is lost) == (own is lost)]
        leave = [u for u in users if u not in stay and u.registered]
        side.users = {net.dialect.fold(u.nick): u for u in stay if u.nick is not None}
        for gone in leave:
            sharing = [c for c in side.channels.values() if gone in c.members]
            told = dict.fromkeys(m for c in sharing for m in c.members if m.server is own)
            watching = [u for u in stay if net.dialect.fold(gone.shown) in u.monitored]
            for watcher in watching:
                net.numeric(watcher, "731", text=gone.shown)
            net.tell(told, gone, "QUIT", f"{own.name} {foreign.name}")
        for key, channel in list(side.channels.items()):
            channel.members = {m: modes for m, modes in channel.members.items() if m.server is own}
            if not channel.members:
                del side.channels[key]
        for user in stay:
            user.channels = {
                key: channel for key, channel in side.channels.items() if user in channel.members
            }
    return True


def heal(net: Network, here: Server, name: str) -> bool:
    """Bring the link to the server called `name` back; False where it is not gone."""
    back = next((s for s in net.servers if s.name == name), None)
    if back is None or back.world is here.world:
        return False
    _collisions(net, here.world, back.world)
    mine, theirs = here.world, back.world
    merged = World(net.dialect, servers=[*mine.servers, *theirs.servers])
    names = {**dict.fromkeys(mine.channels), **dict.fromkeys(theirs.channels)}
    pairs = [(mine.channels.get(key), theirs.channels.get(key)) for key in names]
    merged.users = {**mine.users, **theirs.users}
    timestamps = net.dialect.name == "inspircd"
    for own, foreign, to, source, home in ((0, 1, mine, back, here), (1, 0, theirs, here, back)):
        for pair in pairs:
            kept, coming = pair[own], pair[foreign]
            if kept is not None and coming is not None:
                _burst(net, kept, coming, list(to.users.values()), source, home, timestamps=timestamps)
    for key, (a, b) in zip(names, pairs, strict=True):
        merged.channels[key] = _merge(net, a, b, timestamps=timestamps)
    for server in merged.servers:
        server.world = merged
    for user in merged.users.values():
        user.channels = {key: c for key, c in merged.channels.items() if user in c.members}
    for user in list(merged.registered()):
        for folded in user.monitored:
            other = merged.users.get(folded)
            if other is not None and other.server is not user.server:
                net.numeric(user, "730", text=other.shown)
    return True


def _collisions(net: Network, mine: World, theirs: World) -> None:
    for key in [key for key in mine.users if key in theirs.users]:
        a, b = mine.users[key], theirs.users[key]
        if net.dialect.name == "ngircd":
            net.quit(a, "Nick collision")
            net.quit(b, "Nick collision")
        else:
            later = b if b.signed_on_at >= a.signed_on_at else a
            rename(net, later, later.uid)


def _burst(
    net: Network,
    kept: Channel,
    coming: Channel,
    members: list[User],
    source: Server,
    home: Server,
    *,
    timestamps: bool,
) -> None:
    """Tell one side's members of a channel who and what comes from the other."""
    dialect = net.dialect
    told = [m for m in kept.members if m in members]
    younger = timestamps and kept.created_at > coming.created_at
    colon = dialect.name != "ngircd"
    if younger:
        letters = "".join(sorted(kept.flags, reverse=True))
        held = [(mode, m) for m, modes in kept.members.items() for mode in modes]
        text = letters + "".join(mode for mode, _ in held)
        if text:
            net.tell(told, home.name, "MODE", kept.name, "-" + text, *(m.shown for _, m in held), colon=colon)
    new_flags = coming.flags - (set() if younger else kept.flags)
    if new_flags and (younger or coming.created_at == kept.created_at):
        net.tell(told, source.name, "MODE", kept.name, "+" + "".join(sorted(new_flags)), colon=colon)
    for member in coming.members:
        for witness in told:
            joined(net, witness, member, kept.name)
    if not timestamps or coming.created_at <= kept.created_at:
        held = [(mode, m) for m, modes in coming.members.items() for mode in sorted(modes)]
        if held:
            text = "+" + "".join(mode for mode, _ in held)
            net.tell(told, source.name, "MODE", kept.name, text, *(m.shown for _, m in held), colon=colon)
    if timestamps and coming.topic_at > kept.topic_at:
        net.tell(told, source.name, "TOPIC", kept.name, coming.topic)


def _merge(net: Network, a: Channel | None, b: Channel | None, *, timestamps: bool) -> Channel:
    """The channel as both sides hold it from now on."""
    if a is None or b is None:
        found = a if a is not None else b
        assert found is not None
        return found
    older, younger = (b, a) if timestamps and b.created_at < a.created_at else (a, b)
    keeps = not timestamps or older.created_at == younger.created_at
    side_members = {id(side): list(side.members) for side in (a, b)}
    for member, modes in younger.members.items():
        older.members[member] = modes if keeps else set()
    if keeps:
        older.flags |= younger.flags
        for mode, entries in younger.lists.items():
            older.lists.setdefault(mode, {}).update(entries)
    if not timestamps and a.topic != b.topic:
        for side in (a, b):
            topic = (side.topic, side.topic_by, side.topic_at)
            older.side_topics |= {member.server.name: topic for member in side_members[id(side)]}
    if timestamps and younger.topic_at > older.topic_at:
        older.topic, older.topic_by, older.topic_at = younger.topic, younger.topic_by, younger.topic_at
    return older
