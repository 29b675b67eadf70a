"""The configuration: what is read, what is computed from it, and every fault at once by its path."""

from __future__ import annotations

import re
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridged.config import Config, is_loopback, load_config, parse_config, split_address
from bridged.errors import ConfigError
from shards.grant import allows

WHOLE = """
[shard]
name = "acme"
state = "/var/lib/bridged/acme"
runtime = "/run/bridged/acme"
[fabric]
backend = "shim"
listen = ["ipc", "tcp://127.0.0.1:7470"]
[gateway]
listen = "127.0.0.1:7471"
[telemetry]
listen = "127.0.0.1:7472"
[vault]
token = "soft"

[[connector]]
service = "irc"
instance = "libera"
network = "irc.libera.chat"
server = "irc.libera.chat:6697"
tls = true
nick = "acme-bridge"
credential = "irc/libera"

[[connector]]
service = "xmpp"
runs = "outside"
instance = "main"
jid = "bridge@example.org"
server = "xmpp.example.org:5222"
tls = { ca = "ca.pem" }
credential = "xmpp/main"
nick = "acme-bridge"

[[connector]]
service = "echo"
instance = "lab"

[[conversation]]
name = "ops"
channels = [
  "msgr://channels/acme/bridge/irc/irc.libera.chat/%23ops",
  { ref = "msgr://channels/acme/bridge/xmpp/ops@conference.example.org", via = "xmpp/main" },
]
"""
MINIMAL = '[shard]\nname = "acme"\nstate = "state"\n'


def read(text: str, path: str = "/etc/bridged/acme.toml") -> Config:
    return parse_config(text.encode(), Path(path))


def faults(text: str) -> dict[str, str]:
    with pytest.raises(ConfigError) as caught:
        read(text)
    assert len(caught.value.faults) == len(dict(caught.value.faults)), caught.value.faults
    return dict(caught.value.faults)


def test_the_whole_file_is_read() -> None:
    config = read(WHOLE)
    assert config.tenants == ("acme",) and not config.is_region
    assert config.endpoint == Path("/run/bridged/acme/fabric.sock")
    assert config.tcp == ("tcp://127.0.0.1:7470",)
    assert [f"{c.service}/{c.instance}" for c in config.connectors["acme"]] == [
        "irc/libera",
        "xmpp/main",
        "echo/lab",
    ]
    (ops,) = config.conversations_of("acme")
    assert [(link.ref.service, link.via) for link in ops.links] == [
        ("irc", "irc/libera"),
        ("xmpp", "xmpp/main"),
    ]
    assert config.files() == [("xmpp/main: tls.ca", Path("/etc/bridged/ca.pem"))]
    assert config.shard.stop_seconds == 20
    assert config.connector("irc/libera") is config.connectors["acme"][0]
    assert config.connector("irc/oftc") is None


def test_the_least_file_has_defaults() -> None:
    config = read(MINIMAL)
    assert config.state == Path("/etc/bridged/state")
    assert config.runtime == Path("/etc/bridged/state/run")
    assert (config.gateway, config.telemetry, config.conversations) == (None, None, ())
    assert config.vault.token == "soft" and config.fabric.listen == ("ipc",)
    assert [member.name for member in config.members("acme")] == ["control", "vault", "audit", "facade"]


def test_files_lie_in_the_state_directory_or_in_a_regions_tenants() -> None:
    paths = read(MINIMAL).paths("acme")
    assert (paths.core, paths.vault) == (
        Path("/etc/bridged/state/core.db"),
        Path("/etc/bridged/state/vault.db"),
    )
    assert paths.outbox("irc", "libera") == Path("/etc/bridged/state/outbox-irc-libera.db")
    region = read(MINIMAL + 'tenants = ["a", "b"]\n')
    assert region.paths("b").audit == Path("/etc/bridged/state/b/audit.db")
    assert region.state == Path("/etc/bridged/state")


def test_a_region_says_whose_each_thing_is() -> None:
    region = MINIMAL + 'tenants = ["a", "b"]\n'
    echo = '[[connector]]\nservice = "echo"\ninstance = "e"\n'
    talk = '[[conversation]]\nname = "ops"\nchannels = ["msgr://channels/{}/bridge/echo/x"]\n'
    config = read(
        region
        + echo + 'tenant = "a"\n' + echo + 'tenant = "b"\n'
        + talk.format("a") + 'tenant = "a"\n' + talk.format("b") + 'tenant = "b"\n'
    )  # fmt: skip
    assert [c.tenant for c in config.conversations] == ["a", "b"]
    assert config.connector("echo/e") is None  # two tenants have one: say whose
    assert config.connector("echo/e", "b") is config.connectors["b"][0]
    assert faults(region + echo + talk.format("a") + 'tenant = "c"\n') == {
        "$.connector[0].tenant": "is required in a region: one of a, b",
        "$.conversation[0].tenant": "is one of a, b",
    }
    crossing = faults(region + echo + 'tenant = "a"\n' + talk.format("a") + 'tenant = "b"\n')
    assert "workspace 'a'" in crossing["$.conversation[0].channels[0]"]


def test_all_faults_are_told_at_once_by_path() -> None:
    found = faults(
        """
        colour = "red"
        [shard]
        state = 5
        nmae = "acme"
        [fabric]
        listen = "ipc"
        [gateway]
        listen = "0.0.0.0:99999"
        [[connector]]
        service = "irc"
        network = "irc.libera.chat"
        instance = "a/b"
        server = "irc.libera.chat:6697"
        nick = 7
        ping_s = "often"
        tls = "yes"
        alt_nicks = ["good", 5]
        [[connector]]
        service = "matrix"
        [[connector]]
        instance = "x"
        [[conversation]]
        name = "-"
        channels = ["a", 5, { ref = "b", wia = "c" }]
        """
    )
    assert set(found) == {
        "$.colour",
        "$.shard.name",
        "$.shard.state",
        "$.shard.nmae",
        "$.fabric.listen",
        "$.gateway.listen",
        "$.connector[0].instance",
        "$.connector[0].nick",
        "$.connector[0].ping_s",
        "$.connector[0].tls",
        "$.connector[0].alt_nicks[1]",
        "$.connector[1].service",
        "$.connector[2].service",
        "$.conversation[0].name",
        "$.conversation[0].channels[1]",
        "$.conversation[0].channels[2].wia",
    }
    assert found["$.shard.name"] == "is required"
    assert found["$.shard.nmae"] == "unknown key; did you mean name?"
    assert found["$.connector[0].ping_s"] == "must be a number"
    assert "not in this release" in found["$.connector[1].service"]


@pytest.mark.parametrize(
    ("text", "path", "says"),
    [
        ("", "$.shard", "required"),
        ("shard = 1", "$.shard", "table"),
        (MINIMAL + "[connector]\n", "$.connector", r"\[\[connector\]\]"),
        (MINIMAL.replace("acme", "a/b"), "$.shard.name", "1 to 63"),
        (MINIMAL.replace("acme", "keys"), "$.shard.name", "reserved"),
        (MINIMAL + "tenants = []\n", "$.shard.tenants", "at least one"),
        (MINIMAL + 'tenants = ["a", "a"]\n', "$.shard.tenants", "twice"),
        (MINIMAL + "stop_seconds = 0\n", "$.shard.stop_seconds", ">= 1"),
        (MINIMAL + 'runtime = "' + "r" * 100 + '"\n', "$.shard.runtime", "at most 107"),
        (MINIMAL + '[fabric]\nlisten = ["tcp://127.0.0.1:1"]\n', "$.fabric.listen", "must hold ipc"),
        (MINIMAL + '[fabric]\nlisten = ["ipc", "udp://x"]\n', "$.fabric.listen", "nothing else"),
        (MINIMAL + '[fabric]\nbackend = "kafka"\n', "$.fabric.backend", "not in this release"),
        (MINIMAL + '[fabric]\nbackend = "rabbit"\n', "$.fabric.backend", "one of shim, kafka"),
        (MINIMAL + '[gateway]\nlisten = "0.0.0.0:7471"\n', "$.gateway.listen", "tls"),
        (MINIMAL + '[gateway]\nlisten = "localhost"\n', "$.gateway.listen", "HOST:PORT"),
        (MINIMAL + '[gateway]\nlisten = "[::1]:1"\nshare = "[::1]:2"\n', "$.gateway.share", "not in this release"),
        (MINIMAL + '[telemetry]\nlisten = "10.0.0.1:7472"\n', "$.telemetry.listen", "no TLS"),
        (MINIMAL + '[vault]\ntoken = "pkcs11"\n', "$.vault.token", "not in this release"),
        (MINIMAL + '[policy]\nrules = "policy.cedar"\n', "$.policy.rules", "no rule engine"),
        (MINIMAL + '[policy]\ndlp = "dlp.toml"\n', "$.policy.dlp", "no rule engine"),
        (MINIMAL + '[[connector]]\nservice = "signal"\n', "$.connector[0].service", "one of echo"),
        (MINIMAL + '[[conversation]]\nname = "x"\nchannels = []\n', "$.conversation[0].channels", "no channel"),
    ],
)  # fmt: skip
def test_a_value_that_cannot_be_is_named_with_what_to_do(text: str, path: str, says: str) -> None:
    found = faults(text)
    assert path in found and re.search(says, found[path]), found


def test_secrets_are_never_values_and_never_quoted() -> None:
    text = WHOLE.replace('nick = "acme-bridge"', 'nick = "acme-bridge"\npassword = "hunter2"', 1) + (
        '[telemetry.tls]\n[[connector]]\nservice = "echo"\ninstance = "http://me:hunter2@x"\ndelay_s = "hunter2"\n'
    )
    with pytest.raises(ConfigError) as caught:
        read(text)
    found = dict(caught.value.faults)
    assert "vault put" in found["$.connector[0].password"]
    assert "$.connector[3].delay_s" in found
    assert any(what.startswith("holds a password") for _, what in caught.value.faults)
    assert "hunter2" not in str(caught.value)


def test_two_cannot_listen_in_one_place() -> None:
    found = faults(WHOLE.replace("7472", "7471").replace("7470", "7471"))
    assert set(found) == {"$.gateway.listen", "$.telemetry.listen", "$.fabric.listen[1]"}


def test_a_public_gateway_needs_its_certificate() -> None:
    tls = '[gateway]\nlisten = "0.0.0.0:7471"\ntls = { cert = "c.pem", key = "/k.pem" }\n'
    config = read(MINIMAL + tls)
    assert config.files() == [
        ("$.gateway.tls.cert", Path("/etc/bridged/c.pem")),
        ("$.gateway.tls.key", Path("/k.pem")),
    ]
    assert [m.name for m in config.members("acme")][-1] == "gateway"


IRC = '[[connector]]\nservice = "irc"\ninstance = "{0}"\nnetwork = "{1}"\nserver = "{1}:6697"\nnick = "b"\n'
OPS = '[[conversation]]\nname = "{}"\nchannels = [{}]\n'
CHANNEL = '"msgr://channels/acme/bridge/irc/{}/%23{}"'


def test_a_channel_finds_its_connector_by_network() -> None:
    text = MINIMAL + IRC.format("l", "irc.libera.chat") + IRC.format("o", "irc.oftc.net")
    config = read(text + OPS.format("ops", CHANNEL.format("IRC.oftc.net", "ops")))
    assert config.conversations[0].links[0].via == "irc/o"
    assert (
        "no [[connector]] has the network 'efnet'"
        in faults(text + OPS.format("ops", CHANNEL.format("efnet", "ops")))["$.conversation[0].channels[0]"]
    )


def test_via_is_needed_where_two_connectors_reach_a_channel() -> None:
    text = MINIMAL + IRC.format("a", "net") + IRC.format("b", "net")
    found = faults(text + OPS.format("ops", CHANNEL.format("net", "ops")))
    assert 'via = "irc/a" or "irc/b"' in found["$.conversation[0].channels[0]"]
    with_via = '{{ ref = {}, via = "{}" }}'
    config = read(text + OPS.format("ops", with_via.format(CHANNEL.format("net", "ops"), "irc/b")))
    assert config.conversations[0].links[0].instance == "b"
    found = faults(text + OPS.format("ops", with_via.format(CHANNEL.format("net", "ops"), "irc/c")))
    assert "there is irc/a, irc/b" in found["$.conversation[0].channels[0]"]
    found = faults(
        MINIMAL
        + IRC.format("a", "net")
        + OPS.format("ops", with_via.format(CHANNEL.format("other", "x"), "irc/a"))
    )
    assert "another network" in found["$.conversation[0].channels[0]"]


def test_names_instances_and_channels_are_taken_once() -> None:
    found = faults(
        MINIMAL
        + IRC.format("a", "net")
        + IRC.format("a", "net2")
        + OPS.format("ops", CHANNEL.format("net", "ops"))
        + OPS.format("ops", CHANNEL.format("net", "OPS"))
    )
    assert found["$.connector[1].instance"] == "irc/a is taken by $.connector[0]"
    assert found["$.conversation[1].name"] == "ops is taken by $.conversation[0]"
    assert "stands in $.conversation[0] already" in found["$.conversation[1].channels"]


def test_a_channel_needs_a_connector_and_the_right_workspace() -> None:
    found = faults(
        MINIMAL
        + OPS.format("ops", CHANNEL.format("net", "ops"))
        + OPS.format("two", '"msgr://channels/beta/bridge/echo/x", "msgr://identity/msgr/x"')
    )
    assert found["$.conversation[0].channels[0]"] == "no [[connector]] speaks irc"
    assert "'beta'" in found["$.conversation[1].channels[0]"]
    assert "a channel" in found["$.conversation[1].channels[1]"]


def test_members_may_do_their_own_and_nothing_else() -> None:
    members = {member.name: member for member in read(WHOLE).members("acme")}
    assert list(members)[-3:] == ["irc/libera", "xmpp/main", "echo/lab"]
    irc, facade, audit = members["irc/libera"], members["facade"], members["audit"]
    assert (irc.service, irc.instance, irc.runs) == ("irc", "libera", "inside")
    assert irc.accounts == ("msgr://identity/bridges/irc/irc.libera.chat/acme-bridge",)
    assert members["xmpp/main"].accounts == ("msgr://identity/bridges/xmpp/bridge@example.org",)
    assert members["xmpp/main"].runs == "outside"
    own = "bridge/irc/libera/"
    for verb, topic, may in (
        ("publish", own + "inbound_message", True),
        ("publish", own + "outbound_message", False),  # nothing undecided enters a topic
        ("publish", "bridge/irc/oftc/inbound_message", False),
        ("publish", "bridge/irc/inbound_message", False),
        ("publish", "bridge/core/event", False),
        ("subscribe", own + "outbound_message", True),
        ("subscribe", own + "inbound_message", False),
        ("subscribe", "bridge/core/event", False),
        ("request", "bridge/core/cursor", True),
        ("request", "bridge/core/send", False),
        ("request", "bridge/vault/checkout", True),
        ("request", "bridge/vault/put", False),
    ):
        assert allows(irc.grants, verb, topic) is may, (verb, topic)  # type: ignore[arg-type]
    for member in members.values():
        assert allows(member.grants, "journal", None) is (member is audit)
    assert allows(facade.grants, "publish", own + "outbound_message")
    assert allows(facade.grants, "respond", "bridge/core/send")
    assert not allows(facade.grants, "request", "bridge/vault/checkout")
    assert allows(members["vault"].grants, "respond", "bridge/vault/checkout")
    assert not allows(members["gateway"].grants, "publish", "bridge/core/event")


def test_a_file_that_cannot_be_read_is_a_fault_like_any(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read") as caught:
        load_config(tmp_path / "none.toml")
    assert "bridgectl init" in caught.value.hint
    (tmp_path / "a.toml").write_bytes(b"\xff")
    with pytest.raises(ConfigError, match="UTF-8"):
        load_config(tmp_path / "a.toml")
    (tmp_path / "b.toml").write_text('[shard\nname = "x"')
    with pytest.raises(ConfigError, match="line 1"):
        load_config(tmp_path / "b.toml")
    (tmp_path / "c.toml").write_text(MINIMAL)
    assert load_config(tmp_path / "c.toml").state == tmp_path / "state"


def test_reading_a_configuration_loads_no_platform_library() -> None:
    code = (
        "import sys, pathlib; from bridged.config import parse_config\n"
        f"parse_config({WHOLE!r}.encode(), pathlib.Path('/x/y.toml'))\n"
        "heavy = {'slixmpp', 'telethon', 'mautrix', 'aiohttp', 'asyncio', 'trio_asyncio', 'zmq', 'apsw'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_addresses() -> None:
    assert split_address("[::1]:80") == ("::1", 80)
    assert split_address("localhost:0") == ("localhost", 0)
    for bad in ("", "x", "x:", ":1", "::1:80", "a b:1", "x:65536", "x:-1"):
        with pytest.raises(ValueError, match="HOST:PORT"):
            split_address(bad)
    assert is_loopback("127.0.0.9") and is_loopback("::1") and is_loopback("localhost")
    assert not is_loopback("0.0.0.0") and not is_loopback("example.org")


toml_values = st.sampled_from(
    ['"x"', "5", "true", "1.5", "[]", "{}", '["a", 1]', '{ ca = "x" }', '"127.0.0.1:1"', "2026-01-01", '"é"']
)
toml_keys = st.sampled_from(
    ["name", "tenants", "state", "listen", "instance", "tls", "nick", "channels", "backend",
     "tenant", "runs", "network", "server", "jid", "credential", "token", "pkcs11", "rules", "odd"]
)  # fmt: skip
tables = st.sampled_from(["[shard]", "[fabric]", "[gateway]", "[vault]", "[policy]", "[telemetry]", "[x]"])
lists = st.sampled_from(
    ["[[connector]]", '[[connector]]\nservice = "irc"', '[[connector]]\nservice = "xmpp"', "[[conversation]]"]
)
bodies = st.dictionaries(toml_keys, toml_values, max_size=4)


@given(st.dictionaries(tables, bodies, max_size=4), st.lists(st.tuples(lists, bodies), max_size=4))
def test_any_document_gives_a_configuration_or_a_config_error(
    single: dict[str, dict[str, str]], listed: list[tuple[str, dict[str, str]]]
) -> None:
    text = ""
    for head, body in [*single.items(), *listed]:
        pairs = [f"{key} = {value}\n" for key, value in body.items()]
        text += f"{head}\n" + "".join(pairs)
    with suppress(ConfigError):
        read(text)


@given(st.binary() | st.text().map(str.encode))
def test_any_bytes_give_a_config_error(data: bytes) -> None:
    with pytest.raises(ConfigError):
        parse_config(data, Path("/x.toml"))
