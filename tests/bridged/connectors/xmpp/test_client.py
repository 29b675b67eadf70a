"""The session itself: TLS, logins, forged answers, bounds."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import attrs
import pytest
import trio

from bridged.connectors.desk import fall_of
from bridged.connectors.xmpp import client as room
from bridged.connectors.xmpp.archive import page_query
from bridged.connectors.xmpp.bounds import STANZA_BYTES_MAX, BoundedParser
from bridged.connectors.xmpp.client import Client, Refused, open_client, tls_context
from bridged.connectors.xmpp.jid import parse_jid
from bridged.connectors.xmpp.settings import Settings, TlsFiles
from bridged.connectors.xmpp.stanza import CLIENT, DISCO_INFO, element, iq, message, presence
from bridged.errors import BadCredentials, ConnectorError, Disconnected
from bridged.peers.authority import Authority
from bridged.peers.xmpp import Options, XmppServer
from bridged.secret import Secret
from shards import system_env

PASSWORD = Secret(b"pw-bridge")


@attrs.frozen
class Place:
    server: XmppServer
    settings: Settings

    @asynccontextmanager
    async def login(self, **more: Any) -> AsyncIterator[Client]:
        async with open_client(self.settings, PASSWORD, tls_context(self.settings), **more) as client:
            yield client

    async def refused(self, **more: Any) -> ConnectorError:
        """The fall of a login that must not succeed."""
        try:
            async with self.login(**more):
                raise AssertionError("it let us in")
        except (ConnectorError, BaseExceptionGroup) as exc:
            fall = fall_of(exc)
            if fall is None:
                raise
            return fall


@asynccontextmanager
async def place(
    authority: Authority, tmp_path: Path, *, names: tuple[str, ...] = ("localhost",), **options: Any
) -> AsyncIterator[Place]:
    """A server with one user, that shows a certificate for `names`."""
    async with trio.open_nursery() as nursery:
        tls = authority.server_context(list(names))
        server = XmppServer(
            system_env(), "localhost", "muc.localhost", Options(**options), nursery, authority, tls
        )
        host, port = await server.listen("127.0.0.1", 0)
        server.add_user("bridge", "pw-bridge")
        settings = Settings(
            instance="main",
            jid="bridge@localhost",
            server=f"{host}:{port}",
            tls=TlsFiles(ca=str(server.write_ca(tmp_path / "ca.pem"))),
            credential="xmpp/main",
            nick="acme-bridge",
        )
        yield Place(server, settings)
        nursery.cancel_scope.cancel()


async def test_a_login_binds_the_resource_that_was_asked_for(authority: Authority, tmp_path: Path) -> None:
    async with place(authority, tmp_path, mechanisms=("SCRAM-SHA-256",)) as at, at.login() as client:
        assert str(client.account) == "bridge@localhost/bridged.main"
        await client.ping()
        answer = await client.ask(iq("localhost", "get", element("query", DISCO_INFO)))
        assert answer.get("type") == "result"


async def test_the_certificate_must_be_the_domain_s(authority: Authority, tmp_path: Path) -> None:
    async with place(authority, tmp_path, names=("other.example", "127.0.0.1")) as at:
        fall = await at.refused()
    assert isinstance(fall, Disconnected)
    assert "certificate" in str(fall)
    assert "domain" in fall.hint


async def test_a_server_that_wants_the_password_itself_does_not_get_it(
    authority: Authority, tmp_path: Path
) -> None:
    async with place(authority, tmp_path, mechanisms=("PLAIN",)) as at:
        fall = await at.refused()
        assert not [entry for entry in at.server.log if "<auth" in entry.xml]
    assert isinstance(fall, BadCredentials)
    assert "PLAIN" in str(fall)
    assert "SCRAM" in fall.hint


async def test_a_server_without_tls_gets_nothing(authority: Authority, tmp_path: Path) -> None:
    async with trio.open_nursery() as nursery:

        async def serve(stream: trio.SocketStream) -> None:
            """Someone in between who took STARTTLS out."""
            await stream.receive_some()
            await stream.send_all(
                b"<stream:stream xmlns='jabber:client' xmlns:stream='http://etherx.jabber.org/streams' id='1' "
                b"from='localhost' version='1.0'><stream:features><mechanisms "
                b"xmlns='urn:ietf:params:xml:ns:xmpp-sasl'><mechanism>SCRAM-SHA-1</mechanism>"
                b"<mechanism>PLAIN</mechanism></mechanisms></stream:features>"
            )
            async for data in stream:
                received.append(bytes(data))

        received: list[bytes] = []
        listeners = await nursery.start(trio.serve_tcp, serve, 0)
        port = listeners[0].socket.getsockname()[1]
        async with place(authority, tmp_path) as at:
            settings = attrs.evolve(at.settings, server=f"127.0.0.1:{port}")
            fall = await Place(at.server, settings).refused()
        assert isinstance(fall, BadCredentials)
        assert b"auth" not in b"".join(received)
        nursery.cancel_scope.cancel()


async def test_nobody_at_the_port_is_said(authority: Authority, tmp_path: Path) -> None:
    async with place(authority, tmp_path) as at:
        fall = await Place(at.server, attrs.evolve(at.settings, server="127.0.0.1:1")).refused()
    assert isinstance(fall, Disconnected)
    assert "cannot be reached" in str(fall)


async def test_a_server_that_says_nothing_is_left(
    authority: Authority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "CONNECT_S", 0.2)
    async with place(authority, tmp_path) as at, trio.open_nursery() as nursery:

        async def silent(_: trio.SocketStream) -> None:
            await trio.sleep_forever()

        listeners = await nursery.start(trio.serve_tcp, silent, 0)
        port = listeners[0].socket.getsockname()[1]
        fall = await Place(at.server, attrs.evolve(at.settings, server=f"127.0.0.1:{port}")).refused()
        assert isinstance(fall, Disconnected)
        assert "did not let us in" in str(fall)
        nursery.cancel_scope.cancel()


async def test_an_error_and_a_silence_of_another_are_refusals(authority: Authority, tmp_path: Path) -> None:
    async with place(authority, tmp_path) as at, at.login() as client:
        with pytest.raises(Refused, match="unavailable"):
            await client.ask(iq("nobody@localhost", "get", element("query", "urn:nothing")))
        at.server.faults.delay(30, "bridge@localhost")
        with pytest.raises(Refused, match="remote-server-timeout"):
            await client.ask(iq("far.example", "get", element("query", DISCO_INFO)), within_s=0.05)
        with pytest.raises(Disconnected, match="answered nothing"):
            await client.ping(within_s=0.05)
        with pytest.raises(Disconnected):
            client.send(presence(None))


async def test_answers_and_archives_of_others_are_not_believed(authority: Authority, tmp_path: Path) -> None:
    async with place(authority, tmp_path) as at, at.login() as client:
        mallory = await at.server.person("mallory")
        alice = await at.server.person("alice")
        await alice.join("ops@muc.localhost")
        await alice.say("ops@muc.localhost", "true")
        forged = (
            "<message to='bridge@localhost/bridged.main' from='{}'><result xmlns='urn:xmpp:mam:2' queryid='q7'"
            " id='f'><forwarded xmlns='urn:xmpp:forward:0'><message xmlns='jabber:client' "
            "from='ops@muc.localhost/alice' type='groupchat'><body>forged</body></message></forwarded></result>"
            "</message><iq type='result' id='b1' from='{}'/>"
        )
        at.server.faults.garbage(forged.format(mallory.jid, mallory.jid), "bridge@localhost")
        results, _ = await client.ask_archive(
            page_query(parse_jid("ops@muc.localhost"), client.account, "q7")
        )
        bodies = [found.message.findtext(f"{{{CLIENT}}}body") for found in results]
        assert bodies == ["true"]


async def test_what_waits_is_bounded_and_nothing_of_it_is_lost(
    authority: Authority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "BACKLOG_BYTES_MAX", 100_000)
    async with place(authority, tmp_path) as at, at.login() as client:
        at.server.faults.flood("bridge@localhost", 900, sender="alice@localhost/x", text="y" * 1000)
        for _ in range(200):
            await trio.sleep(0.02)
            if client.is_paused:
                break
        assert client.is_paused
        for number in range(900):
            with trio.fail_after(5):
                stanza = await client.receive()
            assert (stanza.findtext(f"{{{CLIENT}}}body") or "").startswith(f"{number:05}")


async def test_a_session_goes_on_where_it_was_cut(authority: Authority, tmp_path: Path) -> None:
    async with place(authority, tmp_path) as at:
        with pytest.RaisesGroup(pytest.RaisesExc(Disconnected), flatten_subgroups=True):
            async with at.login() as client:
                client.send(presence(None))
                await client.ping()
                at.server.faults.cut("bridge@localhost")
                while True:
                    await client.receive()
        resumption = client.resumption()
        assert resumption is not None
        alice = await at.server.person("alice")
        await alice.say("bridge@localhost/bridged.main", "meanwhile")
        async with at.login(resumption=resumption) as resumed:
            assert resumed.is_resumed
            assert resumed.account == client.account
            with trio.fail_after(5):
                while (await resumed.receive()).findtext(f"{{{CLIENT}}}body") != "meanwhile":
                    pass
            resumed.send(message("alice@localhost", "chat", "m1", element("body", CLIENT, "back")))
            assert (await alice.receive()).text == "back"
        assert resumed.resumption() is None  # a goodbye ends the session


# -- bounds -----------------------------------------------------------------------------------------------


def parse(*chunks: bytes) -> list[str]:
    parser = BoundedParser()
    names = []
    for chunk in chunks:
        parser.feed(chunk)
        names += [found.tag for event, found in parser.read_events() if event == "end"]
    return names


def test_a_plain_stream_is_parsed_in_any_pieces() -> None:
    text = b"<?xml version='1.0'?><s xmlns='u'><a><b/></a><c/>"
    whole = parse(text)
    assert whole == ["{u}b", "{u}a", "{u}c"]
    assert parse(*(text[at : at + 1] for at in range(len(text)))) == whole


@pytest.mark.parametrize(
    "text",
    [
        b"<!DOCTYPE s [<!ENTITY a 'aaaa'>]><s>&a;",
        b"<s><!-- x -->",
        b"<s><?pi x?>",
        b"<s>" + b"<a>" * 100,
        b"<s><a>" + b"x" * STANZA_BYTES_MAX,
        b"<s></t>",
        b"<s>\x00",
        b"<s>&undefined;",
    ],
)
def test_what_xmpp_forbids_is_refused(text: bytes) -> None:
    with pytest.raises(ElementTree.ParseError):
        parse(text)
    step = 1 if len(text) < 10_000 else 4099
    with pytest.raises(ElementTree.ParseError):
        parse(*(text[at : at + step] for at in range(0, len(text), step)))
