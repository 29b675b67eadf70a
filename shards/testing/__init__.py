"""What a test of a shard needs: a simulated world, a faulty disk, a checker of histories.  Public, ships.

Everything that could differ between two runs comes from a seed, so a failing history can be run again from
its number alone.  The shipped classes run in it as they are: only their `Env` is another.

- `World`, `Host`, `simulated_env`: hosts with memory disks on a memory network; kill, cut, partition.
- `run_simulation`: virtual time, and a scheduler that follows the seed.  `Trace` hashes what happened.
- `check_history`: lost, duplicated, reordered, crossed between tenants, read differently by two readers.
- `cancel_everywhere`: cancel a task at each of its checkpoints in turn.
- `substituted`: what of the shipped code was replaced, so that a simulation can refuse to prove nothing.
- `crash_everywhere`, `fail_everywhere`: power cuts and I/O errors at every call to the disk.
"""

from shards.testing.cancellation import cancel_everywhere
from shards.testing.crash import CrashReport, check_files, crash_everywhere, fail_everywhere
from shards.testing.disk import Fault, MemoryDisk
from shards.testing.history import (
    Acked,
    Event,
    Message,
    Offered,
    Read,
    Received,
    Refused,
    Verdict,
    check_history,
)
from shards.testing.network import Faults, Link, Network
from shards.testing.shipped import substituted
from shards.testing.simulation import Trace, check_trio, run_simulation
from shards.testing.world import Host, World, real_env, simulated_env

__all__ = [
    "Acked",
    "CrashReport",
    "Event",
    "Fault",
    "Faults",
    "Host",
    "Link",
    "MemoryDisk",
    "Message",
    "Network",
    "Offered",
    "Read",
    "Received",
    "Refused",
    "Trace",
    "Verdict",
    "World",
    "cancel_everywhere",
    "check_files",
    "check_history",
    "check_trio",
    "crash_everywhere",
    "fail_everywhere",
    "real_env",
    "run_simulation",
    "simulated_env",
    "substituted",
]
