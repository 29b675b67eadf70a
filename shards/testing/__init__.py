"""What a test of a shard needs: a simulated world, a faulty disk, a checker of histories.  Public, ships.

Everything that could differ between two runs comes from a seed, so a failing history can be run again from
its number alone.
"""

from shards.testing.world import real_env

__all__ = ["real_env"]
