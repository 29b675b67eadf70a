"""The little server answers what it has, refuses the rest, and outlives its peers."""

from __future__ import annotations

from contextlib import suppress

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from bridged import http
from bridged.http import Response, Server, serve
from shards import system_env

ROUTES = {
    "/metrics": lambda: Response(body=b"bridged_links 1\n", content_type="text/plain; version=1.0.0"),
    "/ready": lambda: Response(status=503, body=b"starting\n"),
}


async def talk(request: bytes, server: Server | None = None) -> bytes:
    """Everything the server says to these bytes until it closes or we have closed."""
    ours, theirs = trio.testing.memory_stream_pair()
    answer = b""
    async with trio.open_nursery() as nursery:
        nursery.start_soon((server or Server(ROUTES)).handle, theirs)
        with suppress(trio.BrokenResourceError):
            await ours.send_all(request)
            await ours.send_eof()
        async for part in ours:
            answer += part
    return answer


def get(path: str, *, method: str = "GET", more: str = "") -> bytes:
    return f"{method} {path} HTTP/1.1\r\nHost: localhost\r\n{more}\r\n".encode()


async def test_a_page_is_answered() -> None:
    answer = await talk(get("/metrics"))
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 ")
    assert b"Content-Type: text/plain; version=1.0.0" in head
    assert body == b"bridged_links 1\n"


async def test_health_can_say_no_and_a_query_is_no_matter() -> None:
    assert b"503" in (await talk(get("/ready?verbose=1"))).split(b"\r\n")[0]


async def test_head_has_the_length_and_no_body() -> None:
    answer = await talk(get("/metrics", method="HEAD"))
    assert b"Content-Length: 16" in answer and answer.endswith(b"\r\n\r\n")


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (get("/none"), b"404"),
        (get("/metrics/"), b"404"),
        (get("/../metrics"), b"404"),
        (get("/metrics", method="POST"), b"405"),
        (get("/metrics", method="POST", more="Content-Length: 3\r\n") + b"abc", b"413"),
        (get("/metrics", more="Content-Length: 3\r\n") + b"abc", b"413"),
        (get("/metrics", more="Transfer-Encoding: chunked\r\n") + b"1\r\na\r\n0\r\n\r\n", b"413"),
        (b"GET /metrics HTTP/1.1\r\n\r\n", b"400"),
        (b"\x16\x03\x01 nonsense\r\n\r\n", b"400"),
        (get("/metrics", more=f"X: {'x' * 20_000}\r\n"), b"431"),
        (get("/metrics", more="Transfer-Encoding: gzip\r\n"), b"501"),
    ],
)  # fmt: skip
async def test_everything_else_is_refused(request_: bytes, status: bytes) -> None:
    answer = await talk(request_)
    assert answer.split(b"\r\n")[0].split(b" ")[1] == status, answer
    assert answer.count(b"HTTP/1.1") == 1


async def test_a_connection_is_used_again() -> None:
    answer = await talk(get("/metrics") + get("/none") + get("/metrics", more="Connection: close\r\n"))
    assert answer.count(b"HTTP/1.1 200") == 2 and answer.count(b"HTTP/1.1 404") == 1


async def test_a_peer_that_says_nothing_is_let_go(autojump_clock: trio.testing.MockClock) -> None:
    ours, theirs = trio.testing.memory_stream_pair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(Server(ROUTES).handle, theirs)
        await ours.send_all(b"GET /metr")
        began = trio.current_time()
        assert await ours.receive_some() == b""
        assert trio.current_time() - began == http.REQUEST_S


async def test_a_peer_that_drips_is_let_go(autojump_clock: trio.testing.MockClock) -> None:
    ours, theirs = trio.testing.memory_stream_pair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(Server(ROUTES).handle, theirs)
        with pytest.raises(trio.BrokenResourceError):
            while True:
                await ours.send_all(b"X")
                await trio.sleep(1)
        assert trio.current_time() <= http.REQUEST_S + 2


async def test_more_peers_than_places_are_turned_away() -> None:
    server = Server(ROUTES)
    async with trio.open_nursery() as nursery:
        held = []
        for _ in range(http.CONNECTIONS_MAX):
            ours, theirs = trio.testing.memory_stream_pair()
            nursery.start_soon(server.handle, theirs)
            held.append(ours)
        await trio.testing.wait_all_tasks_blocked()
        assert await talk(get("/metrics"), server) == b""
        await held.pop().aclose()
        await trio.testing.wait_all_tasks_blocked()
        assert b"200" in await talk(get("/metrics"), server)
        nursery.cancel_scope.cancel()


async def test_it_listens_on_a_real_port() -> None:
    async with trio.open_nursery() as nursery:
        port = await nursery.start(serve, system_env(), "127.0.0.1", 0, ROUTES)
        stream = await trio.open_tcp_stream("127.0.0.1", port)
        async with stream:
            await stream.send_all(get("/metrics"))
            assert b"bridged_links 1" in await stream.receive_some()
        nursery.cancel_scope.cancel()


@given(
    st.binary(max_size=200) | st.text(alphabet="GET /metrics HTTP/1.1\r\nHost:x", max_size=80).map(str.encode)
)
def test_any_bytes_end_the_connection_alone(data: bytes) -> None:
    trio.run(talk, data)
