"""Cores and memory that the kernel grants this process: control groups (v1 and v2) and /proc.

In a container the machine's own counts mislead: the group's memory limit kills, not the machine's.
"""

import os
from collections.abc import Iterator
from pathlib import Path

RESIDENT_SHARE = 0.5
"""Share of the memory left that decoded images may take."""
_UNLIMITED = 2**60  # v1 writes the largest page-aligned int64 for "no limit"
_ROOT = Path("/")
_MEMORY_FILES = (
    ("memory.max", "memory.current", "inactive_file"),  # v2
    ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),  # v1
)
"""Files of limit and usage, and the line of ``memory.stat`` with the cache that can be dropped."""


def available_cores() -> int:
    """Return the number of cores for this process: its share, where torchrun started several."""
    processes = os.environ.get("LOCAL_WORLD_SIZE", "1")
    n_processes = int(processes) if processes.isdecimal() else 1
    return max(1, len(os.sched_getaffinity(0)) // max(1, n_processes))


def quota_cores(root: Path = _ROOT) -> float | None:
    """Return how many cores' worth of time the tightest group may use; None if unlimited."""
    quotas: list[float] = []
    for group in _groups("cpu", root):
        v1 = f"{_text(group / 'cpu.cfs_quota_us')} {_text(group / 'cpu.cfs_period_us')}"
        quota, period, *_ = (_text(group / "cpu.max") or v1).split(" ")
        if quota.isdigit() and period.isdigit():  # no number: no quota
            quotas.append(int(quota) / int(period))
    return min(quotas, default=None)


def memory_limit_bytes(root: Path = _ROOT) -> int | None:
    """Return the memory limit of the tightest group; None if unlimited."""
    return min((limit for limit, _ in _memory_limits(root)), default=None)


def available_memory_bytes(root: Path = _ROOT) -> int | None:
    """Return the memory that programs may still take without swapping (``MemAvailable``)."""
    kilobytes = _numbers(root / "proc/meminfo").get("MemAvailable:")
    return None if kilobytes is None else kilobytes * 1024


def available_bytes(root: Path = _ROOT) -> int:
    """Return the bytes that can be allocated without swapping or being killed."""
    left = (limit - used for limit, used in _memory_limits(root))
    return max(0, min([available_memory_bytes(root) or 0, *left]))


def decoded_bytes(n_images: int, side: int) -> int:
    """Return the bytes of RGB squares of ``side`` pixels."""
    return n_images * 3 * side**2


def _memory_limits(root: Path) -> Iterator[tuple[int, int]]:
    """Yield limit and usage in bytes, without droppable cache, of every group with a limit."""
    for group in _groups("memory", root):
        for limit, usage, droppable in _MEMORY_FILES:
            text = _text(group / limit)
            if text.isdigit() and int(text) < _UNLIMITED:
                cache = _numbers(group / "memory.stat").get(droppable, 0)
                yield int(text), int(_text(group / usage) or 0) - cache


def _groups(controller: str, root: Path) -> Iterator[Path]:
    """Yield the directories of this process's groups, from its own up to the mount's root.

    A container often sees its group's path as the host names it; then the root is its own group.
    """
    mount = root / "sys/fs/cgroup"
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, controllers, group = line.split(":", 2)
        names = controllers.split(",")
        if controllers and controller not in names:
            continue
        top = mount / controller if controllers else mount
        own = top / group.lstrip("/")
        yield from (own, *own.parents[: len(own.parts) - len(top.parts)])


def _numbers(path: Path) -> dict[str, int]:
    """Parse the lines of a kernel file that are a name and a number."""
    lines = (line.split() for line in _text(path).splitlines())
    return {words[0]: int(words[1]) for words in lines if len(words) > 1}


def _text(path: Path) -> str:
    """Read a kernel file without the final newline; empty where there is none."""
    try:
        return path.read_text().strip()
    except OSError:
        return ""
