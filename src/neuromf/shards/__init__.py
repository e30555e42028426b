"""The shard runner that every per-scan stage shares: a process pool, resumption and one manifest row per scan."""

from neuromf.shards.faults import TRANSIENT, Failure, ShardError, failure
from neuromf.shards.journal import finished_scans
from neuromf.shards.runner import check_failures, check_intact, run_shard
from neuromf.shards.task import Figures, Task, Work

__all__ = [
    "TRANSIENT",
    "Failure",
    "Figures",
    "ShardError",
    "Task",
    "Work",
    "check_failures",
    "check_intact",
    "failure",
    "finished_scans",
    "run_shard",
]
