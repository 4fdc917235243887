"""Memory of a command while it runs, with the pages of mapped data files counted apart.

Those pages are a cache that the kernel takes back when it needs memory. All else is counted in full
as memory above the data: anonymous memory, shared memory, and the pages of programs and libraries.
"""

import os
import re
import subprocess
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from coreset.bench.pack_memory import family_of

_EVERY_SECONDS = 0.2  # a look at a process of 1,500 maps takes some 10 ms
# The lines that are read, of the twenty that smaps has for each map.
_LINES = re.compile(rb"^(?:[0-9a-f]+-[0-9a-f]+ .*|(?:Pss|Anonymous): .*)$", re.MULTILINE)
_PROC = Path("/proc")


class Memory(NamedTuple):
    """Bytes of memory; what n processes share counts 1/n in each."""

    total: int
    data: int
    """Of ``total``, pages of mapped data files that are still the file's."""
    anonymous: int
    """Of ``total``, pages of no file, and what a private map changed of its file."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Watched:
    """A finished command and the most that was seen of it, each figure at its own moment."""

    wall_seconds: float
    peak_bytes: int
    """Proportional set size of the command and its children."""
    peak_above_bytes: int
    """The same less the pages of mapped data files."""
    peak_anonymous_bytes: int
    """Without the pages of programs and libraries either."""
    peak_data_bytes: int
    """Pages of mapped data files."""
    peak_scratch_bytes: int
    """Files of the unfinished output."""
    looks: int
    failed: str
    """Exit code and last line of its errors; empty if it ended with 0."""


def watch(command: Sequence[str], *, data: Path, scratch: Path, errors: Path) -> Watched:
    """Run a command to its end and look at it five times a second.

    Args:
        command: Program and arguments; what it prints is dropped.
        data: Folder whose files are data; it holds no program and no library.
        scratch: Directory that the command writes into before it publishes its output.
        errors: File for its standard error.
    """
    seen: list[tuple[int, ...]] = [(0, 0, 0, 0, 0)]
    started = time.perf_counter()
    with errors.open("wb") as sink:
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=sink)
        while process.poll() is None:
            memories = [memory_of(pid, data) for pid in family_of(process.pid)]
            total, mapped, anonymous = (sum(column) for column in zip(*memories, strict=True))
            seen.append((total, total - mapped, anonymous, mapped, tree_bytes(scratch)))
            with suppress(subprocess.TimeoutExpired):
                process.wait(_EVERY_SECONDS)
    wall_seconds = time.perf_counter() - started
    total, above, anonymous, mapped, written = (max(column) for column in zip(*seen, strict=True))
    return Watched(
        wall_seconds=wall_seconds,
        peak_bytes=total,
        peak_above_bytes=above,
        peak_anonymous_bytes=anonymous,
        peak_data_bytes=mapped,
        peak_scratch_bytes=written,
        looks=len(seen) - 1,
        failed=_failure(process.returncode, errors),
    )


def memory_of(pid: int, data: Path) -> Memory:
    """Memory of one process; nothing once it is gone."""
    with suppress(OSError):
        return memory_in((_PROC / str(pid) / "smaps").read_bytes(), data)
    return Memory(0, 0, 0)


def memory_in(smaps: bytes, data: Path) -> Memory:
    """Memory that ``smaps`` of /proc/PID lists, with maps of files below ``data`` apart."""
    below, inside, share, total, of_data, anonymous = os.fsencode(data) + b"/", False, 0, 0, 0, 0
    for line in _LINES.findall(smaps):  # of each map in this order: header, Pss, Anonymous
        if line.startswith(b"Pss:"):
            share = int(line.split()[1]) * 1024
            total += share
        elif line.startswith(b"Anonymous:"):
            changed = min(share, int(line.split()[1]) * 1024)
            anonymous += changed
            of_data += (share - changed) * inside
        else:
            # Addresses, rights, offset, device, inode, and the path if there is one.
            inside = b"".join(line.split(maxsplit=5)[5:]).startswith(below)
    return Memory(total, of_data, anonymous)


def tree_bytes(directory: Path) -> int:
    """Bytes of all files below a directory, as far as they stay while it is walked."""
    total = 0
    for folder, _, names in os.walk(directory):
        for name in names:
            with suppress(OSError):
                total += (Path(folder) / name).stat().st_size
    return total


def _failure(exit_code: int, errors: Path) -> str:
    if exit_code == 0:
        return ""
    lines = errors.read_text(errors="replace").strip().splitlines()
    return f"exit code {exit_code}: {lines[-1] if lines else 'no message'}"
