"""Whether memory ran out on a machine: the kernel counts the processes that it ended for that.

A process that the kernel's out-of-memory killer ends looks like one that crashed: killed, without a word. The counter
tells them apart. Knows the counters of Linux; nothing of Ray or shards.
"""

from __future__ import annotations

from pathlib import Path

UNKNOWN = -1
_CGROUP_OF_PROCESS = Path("/proc/self/cgroup")
_CGROUPS = Path("/sys/fs/cgroup")
_MACHINE = Path("/proc/vmstat")


def oom_kills() -> int:
    """Processes ended for want of memory since the machine, or this container, came up; `UNKNOWN` = not told.

    The container's own counter is asked first: the machine's also counts those of others.
    """
    counts = map(_count, (*_own_counters(), _MACHINE))
    return next((count for count in counts if count != UNKNOWN), UNKNOWN)


def has_grown(before: int, now: int) -> bool:
    """True if a process was ended for want of memory between two counts."""
    return UNKNOWN < before < now


def _own_counters() -> list[Path]:
    """Where cgroups of version 2 and 1 count, for the group that this process is in."""
    try:
        parts = [line.split(":", 2) for line in _CGROUP_OF_PROCESS.read_text().splitlines()]
    except OSError:
        return []
    groups = {kinds: below.lstrip("/") for _, kinds, below in parts}
    counters = [_CGROUPS / groups[""] / "memory.events"] if "" in groups else []
    return counters + ([_CGROUPS / "memory" / groups["memory"] / "memory.oom_control"] if "memory" in groups else [])


def _count(path: Path) -> int:
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return UNKNOWN
    counts = [line.split()[1] for line in lines if line.startswith("oom_kill ")]
    return int(counts[0]) if counts and counts[0].isdecimal() else UNKNOWN
