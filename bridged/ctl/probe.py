"""What `check` and `doctor` look at: disks, platforms.  A finding says what is wrong and how to mend it."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import attrs
import trio

from bridged.config import Config
from shards.env import Env

REACH_WITHIN_S = 5.0
FREE_BYTES_MIN = 256 << 20


@attrs.frozen(kw_only=True)
class Finding:
    """One thing that was looked at."""

    name: str
    ok: bool
    detail: str = ""
    hint: str = ""
    only_warns: bool = False

    def to_row(self) -> dict[str, Any]:
        """As `check` and `doctor` print it."""
        state = "ok" if self.ok else "warning" if self.only_warns else "FAULT"
        return {
            "what": self.name,
            "state": state,
            "detail": self.detail,
            "hint": "" if self.ok else self.hint,
        }


async def platform_findings(env: Env, config: Config) -> list[Finding]:
    """Can each connector's server be reached?  All at once."""
    findings: dict[str, Finding] = {}

    async def reach(name: str, host: str, port: int) -> None:
        hint = "is the server up, its name right, the way to it open?"
        try:
            with trio.fail_after(REACH_WITHIN_S):
                stream = await env.open_tcp_stream(host, port)
                await trio.aclose_forcefully(stream)
            findings[name] = Finding(name=name, ok=True, detail=f"{host}:{port} answers")
        except trio.TooSlowError:
            findings[name] = Finding(
                name=name,
                ok=False,
                detail=f"{host}:{port} does not answer within {REACH_WITHIN_S:g} s",
                hint=hint,
            )
        except OSError as exc:
            reason = exc.strerror or str(exc)
            findings[name] = Finding(name=name, ok=False, detail=f"{host}:{port}: {reason}", hint=hint)

    async with trio.open_nursery() as nursery:
        for connector in (one for tenant in config.tenants for one in config.connectors[tenant]):
            address = getattr(connector, "address", None)
            if address is not None:
                nursery.start_soon(reach, f"{connector.service}/{connector.instance}", *address)
    return [findings[name] for name in sorted(findings)]


def storage_finding(state: Path) -> Finding:
    """Can a file be written and synced there, and is there room?"""
    probe = state / f".probe-{os.getpid()}"
    try:
        with probe.open("wb") as file:
            file.write(b"x" * 4096)
            file.flush()
            os.fsync(file.fileno())
        room = os.statvfs(state)
        free = room.f_bavail * room.f_frsize
    except OSError as exc:
        return Finding(
            name="storage",
            ok=False,
            detail=f"{state}: {exc.strerror}",
            hint="mend the disk or make room, then start the shard: nothing that was acknowledged is lost",
        )
    finally:
        with suppress(OSError):  # where nothing can be written, nothing is there
            probe.unlink()
    return Finding(
        name="storage",
        ok=free >= FREE_BYTES_MIN,
        detail=f"{free >> 20} MiB free under {state}",
        hint="make room: a full disk stops the shard with 74",
    )


def encrypted_disk(state: Path) -> Finding:
    """Does `state` lie on an encrypted block device?"""
    hint = "message bodies are readable to who holds the disk: put state on LUKS"
    try:
        device = state.stat().st_dev
    except OSError as exc:
        return Finding(
            name="disk encryption", ok=False, detail=f"{state}: {exc.strerror}", hint=hint, only_warns=True
        )
    node = Path(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}")
    seen: set[Path] = set()
    waiting = [node]
    while waiting:
        place = waiting.pop()
        if place in seen:
            continue
        seen.add(place)
        try:
            if (place / "dm" / "uuid").read_text().startswith("CRYPT-"):
                return Finding(name="disk encryption", ok=True, detail=str(place.name))
        except OSError:
            pass
        slaves = place / "slaves"
        if slaves.is_dir():
            waiting.extend(slaves.iterdir())
    return Finding(
        name="disk encryption",
        ok=False,
        detail="no encrypted device was found below it",
        hint=hint,
        only_warns=True,
    )
