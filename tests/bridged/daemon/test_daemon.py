"""The daemon's own wiring, with a fake XMPP server outside and nothing replaced inside."""

from __future__ import annotations

from pathlib import Path

import trio

from bridged.config import load_config
from bridged.ctl.offline import make_shard
from bridged.keyring import load_key
from bridged.peers.xmpp import open_xmpp_server
from bridged.requests import ask
from shards import system_env
from shards.client import open_client

CONFIG = """
[shard]
name = "acme"
state = "{state}"

[[connector]]
service = "xmpp"
instance = "fake"
jid = "bridge@localhost"
server = "{server}"
tls = {{ ca = "{ca}" }}
credential = "xmpp/fake"
nick = "acme-bridge"
"""


async def test_who_gave_up_over_a_password_starts_at_once_when_it_is_put_anew(tmp_path: Path) -> None:
    from bridged.daemon import open_shard

    env = system_env()
    async with open_xmpp_server(env, host="127.0.0.1") as xmpp:
        xmpp.add_user("bridge", "right")
        text = CONFIG.format(
            state=tmp_path / "state",
            server="{}:{}".format(*xmpp.address),
            ca=xmpp.write_ca(tmp_path / "ca.pem"),
        )
        make_shard(env.token_bytes, "acme", tmp_path / "shard.toml", tmp_path / "state", text)
        config, key = load_config(tmp_path / "shard.toml"), load_key(tmp_path / "keys" / "acme.key")
        with trio.fail_after(60):
            async with (
                open_shard(env, config) as running,
                open_client(
                    env, str(config.endpoint), key.identity, server_public=key.server_public, shard="acme"
                ) as client,
            ):

                async def put(secret: str) -> None:
                    payload = {"credential": "xmpp/fake", "secret": secret}
                    await ask(env, client, "vault", "put", payload)

                def state() -> str:
                    return next(s.state for s in running.supervisor.statuses() if s.name == "xmpp/fake")

                await put("wrong")
                while state() != "stopped":
                    await trio.sleep(0.02)
                await put("right")
                await running.supervisor.wait_running()
