"""Where a command runs: the shard's configuration, the operator's key, and the fabric client."""

from __future__ import annotations

import argparse
import os
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import trio

from bridged.config import Config, load_config
from bridged.ctl.output import USAGE, CtlError, Output
from bridged.keyring import Key, load_key
from bridged.requests import WITHIN_S, ask
from shards import system_env
from shards.client import Client, open_client
from shards.env import Env
from shards.errors import NotGranted, RequestFailed, Unreachable

SOCKET_WITHIN_S = 5.0
"""A daemon that is starting is waited for."""
REFUSED_HINT = (
    "the shard reads operators' cards when it starts and on SIGHUP;"
    " another operator's `bridgectl keys list` shows who is in"
)


class Session:
    """One run of a command."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.out = Output(as_json=args.json)
        self.env: Env = system_env()

    @cached_property
    def path(self) -> Path:
        """The configuration file.

        Raises:
            CtlError: Nobody said which.
        """
        if self.args.config:
            return Path(self.args.config)
        if os.environ.get("BRIDGED_CONFIG"):
            return Path(os.environ["BRIDGED_CONFIG"])
        if self.args.shard:
            return Path(f"/etc/bridged/{self.args.shard}.toml")
        raise CtlError(
            "which shard?", hint="--config FILE, $BRIDGED_CONFIG, or --shard NAME", code="usage", status=USAGE
        )

    @cached_property
    def config(self) -> Config:
        """The configuration.  Raises ConfigError."""
        return load_config(self.path)

    @property
    def keys_dir(self) -> Path:
        """Where operators' keys lie: beside the configuration."""
        return self.path.parent / "keys"

    @cached_property
    def key(self) -> Key:
        """The operator's key.

        Raises:
            CtlError: There is none, or several and nobody said which.
            KeyFileError: It cannot be used.
        """
        chosen = self.args.key
        if chosen and ("/" in chosen or Path(chosen).exists()):
            return load_key(Path(chosen))
        if chosen:
            return load_key(self.keys_dir / f"{chosen}.key")
        wanted = self.keys_dir / f"{self.config.name}.key"
        if wanted.exists():
            return load_key(wanted)
        found = sorted(self.keys_dir.glob("*.key"))
        if len(found) == 1:
            return load_key(found[0])
        raise CtlError(
            f"no operator's key in {self.keys_dir}" if not found else "several keys: say which",
            hint="`bridgectl keys new NAME` makes one" if not found else "--key NAME",
        )

    @asynccontextmanager
    async def client(self) -> AsyncIterator[Client]:
        """A client under the operator's key; waits for the socket of a daemon that is starting.

        Raises:
            Unreachable: No daemon.
            NotGranted: The daemon does not know the key.
        """
        key, endpoint = self.key, self.config.endpoint
        deadline = trio.current_time() + SOCKET_WITHIN_S
        while not Path(endpoint).exists():
            if trio.current_time() >= deadline:
                raise Unreachable(
                    f"no daemon at {endpoint}", hint=f"`bridged run {self.path}`, or its unit, starts it"
                )
            await trio.sleep(0.05)
        try:
            async with open_client(
                self.env, str(endpoint), key.identity, server_public=key.server_public, shard=self.config.name
            ) as client:
                yield client
        except NotGranted as exc:
            raise NotGranted(f"{key.identity.name}: {exc}", hint=REFUSED_HINT) from exc

    async def ask(
        self,
        service: str,
        action: str,
        payload: Mapping[str, Any],
        *,
        within_s: float = WITHIN_S,
        hint: str = "",
    ) -> dict[str, Any]:
        """One question over a link of its own; its members may still be starting.

        Raises:
            RequestFailed: Refused; `hint` says what to do where the answer does not.
        """
        async with self.client() as client:
            try:
                answer = await ask(
                    self.env, client, service, action, payload, within_s=within_s, patience_s=SOCKET_WITHIN_S
                )
            except RequestFailed as exc:
                if exc.hint or not hint or exc.code not in ("not_found", "invalid_field"):
                    raise
                raise RequestFailed(exc.code, str(exc), hint=hint) from exc
        answer.pop("status", None)
        return answer
