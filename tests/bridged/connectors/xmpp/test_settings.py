"""The table of one account."""

from typing import Any

import pytest

from bridged.connectors.xmpp.settings import Settings, TlsFiles, split_server

TABLE: dict[str, Any] = {
    "instance": "main",
    "jid": "Bridge@Example.org",
    "credential": "xmpp/main",
    "nick": "acme-bridge",
}


def test_the_resource_is_the_same_at_every_start() -> None:
    assert Settings(**TABLE).full_jid == "bridge@example.org/bridged.main"
    assert Settings(**TABLE, resource="one").full_jid == "bridge@example.org/one"


def test_without_a_server_dns_decides() -> None:
    assert Settings(**TABLE).address is None
    assert Settings(**TABLE, server="h").address == ("h", 5222)
    assert Settings(**TABLE, server="h", direct_tls=True, tls=TlsFiles(ca="x")).address == ("h", 5223)
    assert split_server("[::1]:7", direct_tls=False) == ("::1", 7)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"jid": "example.org"}, "jid"),
        ({"jid": "a@example.org/r"}, "jid"),
        ({"jid": "a b@example.org"}, "jid"),
        ({"server": "h:0"}, "port"),
        ({"server": "http://h"}, "server"),
        ({"tls": False}, "tls"),
        ({"nick": ""}, "nick"),
        ({"nick": "a\nb"}, "nick"),
        ({"resource": "\0"}, "resource"),
        ({"instance": "reply"}, "instance"),
        ({"ping_s": 0.0}, "ping_s"),
    ],
)
def test_a_bad_value_is_named(change: dict[str, Any], word: str) -> None:
    with pytest.raises(ValueError, match=word):
        Settings(**{**TABLE, **change})
