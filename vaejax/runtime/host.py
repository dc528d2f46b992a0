"""What this process may use of its machine, which a container or a scheduler can share out."""

import os
import pathlib

CONTAINER = pathlib.Path("/sys/fs/cgroup/memory.max")


def cores() -> int:
    """As many as it may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def memory() -> int:
    """Bytes, of the machine or of the container."""
    size = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    limit = CONTAINER.read_text().strip() if CONTAINER.exists() else "max"
    return min(size, int(limit)) if limit.isdecimal() else size
