"""The lab itself: real servers come up, stop, come back on the same ports, and die when told."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio

from tests.live.servers import LabServer, inspircd, ngircd, prosody

pytestmark = pytest.mark.live


async def banner(server: LabServer, send: bytes) -> bytes:
    stream = await trio.open_tcp_stream(*server.address)
    async with stream:
        await stream.send_all(send)
        with trio.fail_after(10):
            return bytes(await stream.receive_some(4096))


@pytest.mark.parametrize("open_server", [inspircd, ngircd])
async def test_an_irc_server_stops_and_comes_back_on_its_port(tmp_path: Path, open_server: object) -> None:
    async with open_server(tmp_path) as server:  # type: ignore[operator]
        assert b"CAP * LS" in await banner(server, b"CAP LS 302\r\n")
        await server.stop()
        with pytest.raises(OSError):
            await banner(server, b"")
        await server.start()
        assert b"CAP * LS" in await banner(server, b"CAP LS 302\r\n")
        await server.kill()
        assert not server.is_up


async def test_prosody_stops_and_comes_back_on_its_port(tmp_path: Path) -> None:
    header = (
        b"<stream:stream to='localhost' version='1.0' xmlns='jabber:client' "
        b"xmlns:stream='http://etherx.jabber.org/streams'>"
    )
    async with prosody(tmp_path) as server:
        assert b"localhost" in await banner(server, header)
        await server.kill()
        await server.start()
        assert b"localhost" in await banner(server, header)


async def test_services_offer_sasl(tmp_path: Path) -> None:
    async with inspircd(tmp_path, services=True) as server:
        await server.wait_services()
        assert b"sasl=PLAIN,EXTERNAL" in await banner(server, b"CAP LS 302\r\n")
