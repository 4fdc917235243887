"""How much memory this process may still take, by the kernel and by every cgroup limit."""

from collections.abc import Iterator
from pathlib import Path

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
