"""Memory of a command and all its children: the peak of their proportional set sizes.

Proportional: what n processes share counts 1/n in each (``Pss`` of /proc/PID/smaps_rollup), so the
sum over processes is what the machine needs for them.
"""

import subprocess
import time
from collections import defaultdict
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

_EVERY_SECONDS = 0.05
_PROC = Path("/proc")


@dataclass(frozen=True, slots=True, kw_only=True)
class Watched:
    """A finished command."""

    peak_pss_bytes: int
    most_processes: int
    looks: int
    """Times its memory was read."""
    wall_seconds: float
    failed: str
    """Exit code and last line of its errors; empty if it ended with 0."""


def watch(command: Sequence[str], errors: Path) -> Watched:
    """Run a command to its end and look at its memory every 50 ms.

    Args:
        command: Program and arguments; what it prints is dropped.
        errors: File for its standard error.
    """
    peak = most = looks = 0
    started = time.perf_counter()
    with errors.open("wb") as sink:
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=sink)
        while process.poll() is None:
            family = family_of(process.pid)
            peak, most = max(peak, sum(map(pss_bytes, family))), max(most, len(family))
            looks += 1
            time.sleep(_EVERY_SECONDS)
    return Watched(
        peak_pss_bytes=peak,
        most_processes=most,
        looks=looks,
        wall_seconds=time.perf_counter() - started,
        failed=_failure(process.returncode, errors),
    )


def pss_bytes(pid: int) -> int:
    """Proportional set size of one process; 0 once it is gone."""
    with suppress(OSError):  # it may end between two lines of this
        for line in (_PROC / str(pid) / "smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    return 0


def family_of(pid: int) -> list[int]:
    """A process and all that descend from it."""
    children: dict[int, list[int]] = defaultdict(list)
    for status in _PROC.glob("[0-9]*/stat"):
        with suppress(OSError):
            # The name, in brackets, may hold anything: count fields from its end.
            parent = status.read_text().rpartition(")")[2].split()[1]
            children[int(parent)].append(int(status.parent.name))
    family = [pid]
    for one in family:
        family += children[one]
    return family


def _failure(exit_code: int, errors: Path) -> str:
    if exit_code == 0:
        return ""
    lines = errors.read_text(errors="replace").strip().splitlines()
    return f"exit code {exit_code}: {lines[-1] if lines else 'no message'}"
