"""The cores that this process may run on, and the memory of its host or container."""

import os
import pathlib

CGROUP_LIMIT = pathlib.Path("/sys/fs/cgroup/memory.max")


def cores() -> int:
    """The number of cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def memory() -> int:
    """Bytes of memory of the host, or the limit of the container if it is lower."""
    size = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    limit = CGROUP_LIMIT.read_text().strip() if CGROUP_LIMIT.exists() else "max"
    return min(size, int(limit)) if limit.isdecimal() else size
