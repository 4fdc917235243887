"""Processes of contenders, which end with the benchmark, and the memory that they use.

Memory is the proportional set size (``Pss`` of /proc/PID/smaps): what n processes share counts 1/n
in each, so the sum over processes is what the machine needs for them.
"""

import ctypes
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypeAlias
from unittest.mock import patch

from coreset.bench.harness import Row

WITH_PARENT = ("setpriv", "--pdeathsig", "KILL")
"""Prefix of a command that is killed when this process ends, however it ends."""
CORESET = (*WITH_PARENT, sys.executable, "-m", "coreset.engine.cli")
Process: TypeAlias = tuple[ProcessPoolExecutor, dict[str, str]]
"""Processes of a peer, and versions of its packages."""
_PR_SET_PDEATHSIG = 1
_PROC = Path("/proc")
_held: list[Callable[[], Any]] = []
"""Function that this process is to call, if it is one of ``remote``."""


@contextmanager
def pool_of(
    folder: Path | None = None,
    workers: int = 1,
    environment: Mapping[str, str | None] | None = None,
) -> Generator[ProcessPoolExecutor]:
    """Yield spawned processes.

    Args:
        folder: Packages of a peer, beside those of the project.
        workers: Processes.
        environment: Variables of the processes that differ from this one's; None unsets one.
    """
    context = get_context("spawn")  # fork after threads hangs
    arguments = (os.getpid(), str(folder or ""))
    with ProcessPoolExecutor(workers, context, _enter, arguments) as pool:
        with environment_of(environment or {}):  # a task starts its process
            tasks = [pool.submit(os.getpid) for _ in range(workers)]
        for task in tasks:
            task.result()
        yield pool


def open_peer(
    stack: ExitStack,
    peers: Path,
    packages: str,
    versions: Callable[[], dict[str, str]],
    workers: int = 1,
) -> Process | str:
    """Start processes that have imported a peer; return why it cannot be imported if so.

    Its packages are in the folder ``packages`` of ``peers``, if it needs any beside those of the
    project. ``versions`` imports it in a process and returns versions by package name.
    """
    pool = stack.enter_context(pool_of(peers / packages if packages else None, workers))
    try:
        imported = [pool.submit(versions) for _ in range(workers)]
        return pool, imported[0].result()
    except (ImportError, OSError) as error:
        return f"{type(error).__name__}: {error}"


def _enter(parent: int, folder: str) -> None:
    # Have the kernel kill this process when its parent ends, however the parent ends.
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it ended before
        os.kill(os.getpid(), signal.SIGKILL)
    if folder:
        sys.path.insert(0, folder)
    # Progress bars and a look for newer versions are nobody's work here.
    os.environ |= {"TQDM_DISABLE": "1", "NO_ALBUMENTATIONS_UPDATE": "1"}


def remote(
    stack: ExitStack,
    make: Callable[..., Callable[[], Any]],
    *arguments: object,
    environment: Mapping[str, str | None] | None = None,
) -> Callable[[], Any]:
    """Call ``make`` in a process of its own; return what calls its result there."""
    pool = stack.enter_context(pool_of(environment=environment))
    pool.submit(_hold, make, *arguments).result()
    return lambda: pool.submit(_call).result()


def _hold(make: Callable[..., Callable[[], Any]], *arguments: object) -> None:
    _held.append(make(*arguments))


def _call() -> object:
    return _held[0]()


@contextmanager
def environment_of(changes: Mapping[str, str | None]) -> Generator[None]:
    """Change environment variables for a while, here and for processes started meanwhile."""
    with patch.dict(os.environ):
        for name, value in changes.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value
        yield


def options(fields: Mapping[str, Any]) -> list[str]:
    """Return fields of a stage as options of its command line."""
    words: list[str] = []
    for name, value in fields.items():
        option = name.replace("_", "-")
        if isinstance(value, bool):
            words.append(f"--{option}" if value else f"--no-{option}")
        else:
            words += [f"--{option}", str(value)]
    return words


def run_coreset(*words: object) -> Row:
    """Run a ``coreset`` command; return the data that it ends with."""
    command = [*CORESET, *map(str, words), "--json"]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    return json.loads(lines[-1])


def watch(
    command: Sequence[str], look: Callable[[Sequence[int]], Mapping[str, int]], every: float
) -> Row:
    """Run a command to its end and look at its processes every so many seconds.

    Args:
        command: Program and arguments; what it prints is dropped.
        look: Measures the command and its descendants, given their process ids.
        every: Seconds between two looks.

    Returns:
        The largest of each measure, ``looks``, ``wall_seconds``, and ``failed``: exit code and last
        line of the messages, empty if all went well.
    """
    peaks: dict[str, int] = defaultdict(int)
    looks, started = 0, time.perf_counter()
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(
            [*WITH_PARENT, *command], stdout=subprocess.DEVNULL, stderr=errors
        )
        while process.poll() is None:
            for name, value in look(family_of(process.pid)).items():
                peaks[name] = max(peaks[name], value)
            looks += 1
            with suppress(subprocess.TimeoutExpired):
                process.wait(every)
        wall_seconds = round(time.perf_counter() - started, 2)
        errors.seek(0)
        lines = errors.read().decode(errors="replace").strip().splitlines() or ["no message"]
    failed = f"exit code {process.returncode}: {lines[-1]}" if process.returncode else ""
    return {**peaks, "looks": looks, "wall_seconds": wall_seconds, "failed": failed}


def family_of(pid: int) -> list[int]:
    """Return a process and all that descend from it."""
    children: dict[int, list[int]] = defaultdict(list)
    for status in _PROC.glob("[0-9]*/stat"):
        with suppress(OSError):
            # The name, in brackets, may hold anything: count fields from its end.
            parent = status.read_text().rpartition(")")[2].split()[1]
            children[int(parent)].append(int(status.parent.name))
    family = [pid]
    for member in family:
        family += children[member]
    return family
