"""What the kernel grants this process: control-group limits (v1 and v2) and available memory.

In a container the machine's own counts mislead: torch starts a thread for every core that it sees,
and the process is killed at the group's memory limit, not at the machine's.
"""

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
