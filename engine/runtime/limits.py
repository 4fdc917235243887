"""What the kernel grants this process: control-group limits (v1 and v2) and available memory.

In a container the machine's own counts mislead: torch starts a thread for every core that it sees,
and the process is killed at the group's memory limit, not at the machine's.
"""

import os
from collections.abc import Iterator
from pathlib import Path

GROUPS = Path("/sys/fs/cgroup")
OWN_GROUPS = Path("/proc/self/cgroup")
MEMINFO = Path("/proc/meminfo")
_UNLIMITED = 2**60  # v1 writes the largest page-aligned int64 for "no limit"


def quota_cores(groups: Path = GROUPS, own: Path = OWN_GROUPS) -> float | None:
    """Cores' worth of time that the tightest group of this process may use; None if unlimited."""
    quotas = [
        int(quota) / int(period)
        for group in _group_directories("cpu", groups, own)
        for quota, period in [_cpu_quota(group)]
        if quota.isdigit() and period.isdigit()
    ]
    return min(quotas, default=None)


def memory_limit_bytes(groups: Path = GROUPS, own: Path = OWN_GROUPS) -> int | None:
    """Memory limit of the tightest group of this process; None if unlimited."""
    limits = [
        int(text)
        for group in _group_directories("memory", groups, own)
        for text in (_text(group / "memory.max"), _text(group / "memory.limit_in_bytes"))
        if text.isdigit() and int(text) < _UNLIMITED
    ]
    return min(limits, default=None)


def available_memory_bytes(meminfo: Path = MEMINFO) -> int | None:
    """Memory that programs may still take without swapping (``MemAvailable``)."""
    for line in _text(meminfo).splitlines():
        name, _, value = line.partition(":")
        if name == "MemAvailable":
            return int(value.split()[0]) * 1024
    return None


def _group_directories(controller: str, groups: Path, own: Path) -> Iterator[Path]:
    """Yield the directories of this process's groups, from its own up to the mount's root.

    A container often sees its group's path as the host names it, which does not exist inside;
    the root of the mount is then its own group.
    """
    for line in _text(own).splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "" or controller in controllers.split(","):
            mount = groups if controllers == "" else groups / controller
            group = mount / path.lstrip("/")
            yield from (one for one in (group, *group.parents) if one.is_relative_to(mount))


def _cpu_quota(group: Path) -> tuple[str, str]:
    """Quota and period in microseconds as the kernel writes them; empty or no number: no quota."""
    both = _text(group / "cpu.max").split()
    if len(both) == 2:
        return both[0], both[1]
    return _text(group / "cpu.cfs_quota_us").strip(), _text(group / "cpu.cfs_period_us").strip()


def _text(path: Path) -> str:
    """Content of a kernel file without the final newline; empty where there is none."""
    try:
        return path.read_text().strip()
    except OSError:
        return ""


def available_cores() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0))


RESIDENT_SHARE = 0.5
"""Of the memory that is left: what decoded images may take."""


UNIFIED = ("memory.max", "memory.current", "inactive_file")


LEGACY = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")


def decoded_bytes(n_images: int, side: int) -> int:
    """Bytes of RGB squares of ``side`` pixels."""
    return n_images * 3 * side**2


def available_bytes(root: Path = Path("/")) -> int:
    """Bytes that can be allocated without swapping or being killed.

    The smallest of ``MemAvailable`` and what each cgroup of this process (version 1 or 2, and all
    their parents) has left, where page cache that can be dropped counts as free. ``root`` holds
    ``proc`` and ``sys``.
    """
    meminfo = _numbers(root / "proc/meminfo")
    return max(0, min([meminfo["MemAvailable:"] * 1024, *_left_in_cgroups(root)]))


def _left_in_cgroups(root: Path) -> Iterator[int]:
    mount = root / "sys/fs/cgroup"
    for line in (root / "proc/self/cgroup").read_text().splitlines():
        _, controllers, group = line.split(":", 2)
        if "memory" in controllers.split(","):
            yield from _left_in(mount / "memory", group, *LEGACY)
        elif not controllers:
            yield from _left_in(mount, group, *UNIFIED)


def _left_in(mount: Path, group: str, limit: str, usage: str, droppable: str) -> Iterator[int]:
    """From the group up to the mount: a container may not see the group's own path."""
    inner = mount / group.lstrip("/")
    for directory in [inner, *inner.parents[: len(inner.parts) - len(mount.parts)]]:
        if (directory / limit).is_file() and (
            text := (directory / limit).read_text().strip()
        ) != "max":
            used = int((directory / usage).read_text())
            yield int(text) - used + _numbers(directory / "memory.stat").get(droppable, 0)


def _numbers(path: Path) -> dict[str, int]:
    lines = (line.split() for line in path.read_text().splitlines())
    return {words[0]: int(words[1]) for words in lines if len(words) > 1}
