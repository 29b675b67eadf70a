"""The command `bridged`: demo, run, connector."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import trio

from bridged import demo, host, telemetry
from bridged.config import load_config
from bridged.daemon import run_connector, run_shard
from bridged.errors import BridgeError, ConfigError
from shards import system_env
from shards.errors import ShardsError, StorageFailed

# Specification constants (interfaces: exit codes).
EXIT_DONE, EXIT_FAILED, EXIT_STORAGE, EXIT_CONFIG = 0, 1, 74, 78


def main(argv: Sequence[str] | None = None) -> int:
    """`bridged demo | run CONFIG | connector CONFIG SERVICE/INSTANCE`"""
    parser = argparse.ArgumentParser(prog="bridged", description="The bridge a bank could run.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    demo.add_arguments(commands.add_parser("demo", help="people on fake networks talk in one conversation"))
    sub = commands.add_parser("run", help="a shard in the foreground")
    sub.add_argument("config", type=Path)
    sub = commands.add_parser("connector", help="one connector in a process of its own")
    sub.add_argument("config", type=Path)
    sub.add_argument("name", metavar="SERVICE/INSTANCE")
    sub.add_argument("--key", type=Path, required=True, help="its key file, made by `bridgectl keys join`")
    args = parser.parse_args(argv)
    if args.command == "demo":
        return demo.main(args)
    host.protect_process()
    env = system_env()
    telemetry.configure(wall=env.wall)
    try:
        config = load_config(args.config)
        if args.command == "run":
            trio.run(run_shard, env, config, strict_exception_groups=True)
        else:
            trio.run(run_connector, env, config, args.name, args.key, strict_exception_groups=True)
    except BaseExceptionGroup as group:
        return _explain(group)
    except (BridgeError, ShardsError) as exc:
        return _explain(exc)
    return EXIT_DONE


def _explain(exc: BaseException) -> int:
    """Say why it ended, in a line; the exit code tells systemd whether starting again helps."""
    if isinstance(exc, BaseExceptionGroup):
        storage = exc.subgroup(StorageFailed)
        known = storage or exc.subgroup((BridgeError, ShardsError))
        if known is None:
            raise exc
        exc = known
        while isinstance(exc, BaseExceptionGroup):
            exc = exc.exceptions[0]
    if isinstance(exc, ConfigError):
        for path, what in exc.faults:
            print(f"bridged: {path}: {what}", file=sys.stderr)
        return EXIT_CONFIG
    hint = getattr(exc, "hint", "")
    print(f"bridged: {exc}" + (f" ({hint})" if hint else ""), file=sys.stderr)
    return EXIT_STORAGE if isinstance(exc, StorageFailed) else EXIT_FAILED


if __name__ == "__main__":
    sys.exit(main())
