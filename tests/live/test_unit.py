"""The unit file, and what the daemon owes systemd: a watchdog that follows the disk, and exit codes that say what next."""

from __future__ import annotations

import json
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from tests.live import servers
from tests.live.shard import ROOT, Lives, LiveShard, conversation, open_live_shard, open_lives

pytestmark = [pytest.mark.live, pytest.mark.timeout(180)]

UNIT = ROOT / "systemd" / "bridged@.service"
WATCHDOG_S = 1.5
"""What systemd would wait for; the daemon speaks three times as often."""
STORAGE, CONFIG = 74, 78

ECHO = '[[connector]]\nservice = "echo"\ninstance = "demo"\n' + conversation(
    "lobby", "msgr://channels/acme/bridge/echo/lobby"
)


def test_systemd_analyze_has_nothing_to_say(tmp_path: Path) -> None:
    """The unit as it is, but for the program, which is not installed here."""
    servers.require_program("systemd-analyze")
    text = UNIT.read_text().replace("/opt/bridged/bin/bridged", "/bin/true")
    assert text.count("/bin/true") == 1
    unit = tmp_path / "bridged@acme.service"
    unit.write_text(text)
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(unit)], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_the_unit_watches_and_does_not_restart_what_no_restart_mends() -> None:
    lines = UNIT.read_text().splitlines()
    assert "Type=notify" in lines
    assert any(line.startswith("WatchdogSec=") for line in lines)
    assert "RestartPreventExitStatus=74 78" in lines
    assert "LimitCORE=0" in lines


@asynccontextmanager
async def on_a_faulty_disk(ports: int) -> AsyncIterator[tuple[LiveShard, Lives, Path]]:
    """A shard that runs, and the file that says what its disk does."""
    async with open_live_shard(ECHO, gateway_port=ports + 25) as shard, open_lives(shard) as lives:
        control = shard.directory / "disk"
        await lives.begin(disk=control, environ={"WATCHDOG_USEC": str(int(WATCHDOG_S * 1_000_000))})
        yield shard, lives, control


async def watchdogs(shard: LiveShard, more: int) -> None:
    """Wait until WATCHDOG=1 was said so many more times."""
    with trio.fail_after(30):
        await shard.notices.wait("WATCHDOG=1", shard.notices.count("WATCHDOG=1") + more - 1)


async def test_a_stuck_disk_silences_the_watchdog(ports: int) -> None:
    """The loop turns and answers, but the writer's fsync hangs: systemd must not hear that all is well."""
    async with on_a_faulty_disk(ports) as (shard, _, control):
        await watchdogs(shard, 3)
        control.write_text("block")
        await trio.sleep(WATCHDOG_S)  # one that was under way may still be said
        silent_from = shard.notices.count("WATCHDOG=1")
        await trio.sleep(3 * WATCHDOG_S)
        assert shard.notices.count("WATCHDOG=1") == silent_from
        assert not shard.ended.is_set(), shard.log()[-2000:]
        control.write_text("")
        await watchdogs(shard, 3)
        assert await shard.stop() == 0


@pytest.mark.parametrize("fault", ["EIO", "ENOSPC"])
async def test_a_failed_commit_ends_the_process_with_74(ports: int, fault: str) -> None:
    async with on_a_faulty_disk(ports) as (shard, _, control):
        sent = await shard.ctl("send", "lobby", "before", "--wait")
        assert sent.returncode == 0
        control.write_text(fault)
        assert await shard.wait_end() == STORAGE
        assert "Traceback" not in shard.log()
        said = [line for line in shard.log().splitlines() if line.startswith("bridged:")]
        assert len(said) == 1 and "(" in said[0], said
        doctor = await shard.ctl("doctor", "--json", ok=False)
        findings = json.loads(doctor.stdout)["findings"]
        assert any(row["what"] == "storage" for row in findings), findings
        control.write_text("")
        await shard.start()
        texts = [row["text"] for row in await shard.history("lobby")]
        assert "before" in texts, "what was acknowledged before is there"
        assert await shard.stop() == 0


async def test_doctor_says_what_next_where_nothing_can_be_written(ports: int) -> None:
    """A full disk, played by a limit on what the command may write, and a directory that is gone."""
    async with open_live_shard(ECHO, gateway_port=ports + 25) as shard:
        for name in ("full", "gone"):
            if name == "gone":
                (shard.directory / "state").rename(shard.directory / "elsewhere")
            done = await shard.ctl("doctor", "--json", ok=False, file_bytes_max=0 if name == "full" else None)
            assert done.returncode == 1 and "Traceback" not in done.stderr
            faults = [row for row in json.loads(done.stdout)["findings"] if row["state"] == "FAULT"]
            assert "storage" in [row["what"] for row in faults], faults
            assert all(row["hint"] for row in faults), faults


async def test_a_bad_configuration_ends_with_78(ports: int) -> None:
    async with open_live_shard(ECHO, gateway_port=ports + 25) as shard:
        shard.config.write_text(shard.config.read_text() + "colour = 1\n[nonsense]\n")
        with pytest.raises(AssertionError):
            await shard.start()
        assert shard.exit_code == CONFIG
        assert "nonsense" in shard.log() and "colour" in shard.log() and "Traceback" not in shard.log()
