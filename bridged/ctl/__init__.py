"""`bridgectl`: the operator's hands.  A fabric client like any other, under a named operator's key."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import trio

from bridged.ctl.arguments import parser
from bridged.ctl.output import DONE, CtlError, fail
from bridged.ctl.session import Session
from bridged.errors import BridgeError
from shards.errors import ShardsError


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code."""
    words = sys.argv[1:] if argv is None else list(argv)
    try:
        args = parser().parse_args(words)
    except CtlError as exc:
        return fail(exc, as_json="--json" in words)
    try:
        trio.run(_run, Session(args), strict_exception_groups=True)
    except BaseExceptionGroup as group:
        known, rest = group.split((BridgeError, ShardsError, KeyboardInterrupt, BrokenPipeError))
        if rest is not None or known is None:
            raise
        return _end(_first(known), as_json=args.json)
    except (BridgeError, ShardsError, KeyboardInterrupt, BrokenPipeError) as exc:
        return _end(exc, as_json=args.json)
    return DONE


async def _run(session: Session) -> None:
    await session.args.run(session)


def _first(exc: BaseException) -> BaseException:
    while isinstance(exc, BaseExceptionGroup):
        exc = exc.exceptions[0]
    return exc


def _end(exc: BaseException, *, as_json: bool) -> int:
    if isinstance(exc, KeyboardInterrupt):
        return DONE  # how `tail` ends
    if isinstance(exc, BrokenPipeError):
        sys.stderr.close()
        return DONE
    return fail(exc, as_json=as_json)


if __name__ == "__main__":
    sys.exit(main())
