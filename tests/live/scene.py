"""One conversation between a real IRC server and a real Prosody, with a shard between them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path

import attrs
import trio
import trio_asyncio

from tests.live import servers
from tests.live.people import (
    CHANNEL,
    ROOM,
    IrcRegular,
    WsPerson,
    XmppRegular,
    say_until,
    ws_person,
    xmpp_regular,
)
from tests.live.servers import LabServer
from tests.live.shard import (
    LiveShard,
    conversation,
    irc_channel,
    irc_connector,
    open_live_shard,
    xmpp_channel,
    xmpp_connector,
)
from tests.live.tally import Ear

IRC, XMPP = "irc/lab", "xmpp/main"


@attrs.define(eq=False)
class Scene:
    """Everybody in place."""

    irc: LabServer
    xmpp: LabServer
    shard: LiveShard
    irene: IrcRegular
    alice: XmppRegular
    nursery: trio.Nursery
    on_irc: Ear
    """What irene heard."""
    on_xmpp: Ear
    """What alice heard."""
    said_on_irc: list[tuple[str, str]] = attrs.field(factory=list)
    """All that irene heard, (sender, text)."""
    said_on_xmpp: list[tuple[str, str]] = attrs.field(factory=list)

    def hear_irc(self, sender: str, text: str) -> None:
        self.said_on_irc.append((sender, text))
        self.on_irc.hear(sender, text, trio.current_time())

    def hear_xmpp(self, sender: str, text: str) -> None:
        self.said_on_xmpp.append((sender, text))
        self.on_xmpp.hear(sender, text, trio.current_time())

    async def carries(self, probe: str = "probe") -> None:
        """Wait until both ways are open."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(
                say_until,
                self.irene.say,
                f"{probe} from irc",
                lambda: any(f"{probe} from irc" in text for _, text in self.said_on_xmpp),
            )
            nursery.start_soon(
                say_until,
                self.alice.say,
                f"{probe} from xmpp",
                lambda: any(f"{probe} from xmpp" in text for _, text in self.said_on_irc),
            )

    async def wait_irc(self, *words: str, within_s: float = 60.0) -> tuple[str, str]:
        """The first thing that irene heard with all these words in it."""
        return await _wait(self.said_on_irc, words, within_s)

    async def wait_xmpp(self, *words: str, within_s: float = 60.0) -> tuple[str, str]:
        return await _wait(self.said_on_xmpp, words, within_s)


async def _wait(heard: list[tuple[str, str]], words: tuple[str, ...], within_s: float) -> tuple[str, str]:
    with trio.move_on_after(within_s):
        while True:
            for sender, text in heard:
                if all(word in f"{sender} {text}" for word in words):
                    return sender, text
            await trio.sleep(0.02)
    raise AssertionError(f"nobody said {words}; heard were {heard[-20:]}")


@asynccontextmanager
async def open_scene(
    tmp: Path,
    ports: int,
    *,
    flavour: str = "inspircd",
    metered: bool = False,
    irc_address: tuple[str, int] | None = None,
) -> AsyncIterator[Scene]:
    """Servers, shard and people, both ways open.

    Args:
        tmp: A scratch directory.
        ports: The first of 30 free ports.
        flavour: inspircd or ngircd.
        metered: With flood control.
        irc_address: Where the bridge shall find the IRC server, if a tap is before it.
    """
    opened: dict[str, LabServer] = {}
    async with AsyncExitStack() as stack:
        irc_opener = servers.ngircd if flavour == "ngircd" else partial(servers.inspircd, metered=metered)
        for name, opener in (("irc", irc_opener), ("xmpp", servers.prosody)):
            opened[name] = await stack.enter_async_context(opener(tmp / name, ports))
        irc, xmpp = opened["irc"], opened["xmpp"]
        await stack.enter_async_context(trio_asyncio.open_loop())
        config = "\n".join(
            [
                irc_connector(irc_address or irc.address),
                xmpp_connector(xmpp.address, xmpp.ca),
                conversation("ops", irc_channel(CHANNEL), xmpp_channel(ROOM)),
            ]
        )
        shard = await stack.enter_async_context(open_live_shard(config, gateway_port=ports + 25))
        nursery = await stack.enter_async_context(trio.open_nursery())
        stack.callback(nursery.cancel_scope.cancel)
        alice = await stack.enter_async_context(xmpp_regular(xmpp.address, xmpp.ca))
        irene = IrcRegular(irc.address, "irene", CHANNEL, lambda sender, text: None)
        scene = Scene(irc, xmpp, shard, irene, alice, nursery, Ear(), Ear())
        irene.hear, alice.hear = scene.hear_irc, scene.hear_xmpp
        nursery.start_soon(irene.run)
        await irene.present()
        await shard.start()
        await shard.ctl("vault", "put", XMPP, stdin="pw-bridge\n")
        await shard.wait_running(IRC, XMPP)
        await scene.carries()
        yield scene


@asynccontextmanager
async def open_client(scene: Scene) -> AsyncIterator[WsPerson]:
    """The shard's first client at the gateway."""
    async with ws_person(scene.shard.gateway_port, scene.shard.token) as client:
        yield client
