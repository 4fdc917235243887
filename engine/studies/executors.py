"""Executors of a study's commands, one class each, and their registry."""

import ctypes
import os
import signal
import socket
import subprocess
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from multiprocessing.connection import wait
from pathlib import Path
from typing import Protocol

from coreset.engine.artifacts.ledger import Stopwatch
from coreset.shards.format.files import make_directory

GRACE_SECONDS = 20.0
"""Between SIGTERM, at which a stage commits what it has, and SIGKILL."""
_TAIL_BYTES = 4096
_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """Command to run once."""

    name: str
    command: Sequence[str]
    log: Path
    """File for what it prints; an older one is replaced."""
    cores: int = 1
    gpu: float = 0.0
    """Share of a GPU."""
    timeout: float | None = None
    """Seconds after which it is ended."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """End of a job; ``exit_code`` is the negative number of a signal that killed it."""

    name: str
    exit_code: int
    host: str
    last_line: str
    """Last line that it printed, which tells an error."""
    seconds: float


class Executor(Protocol):
    """Runner of commands that share a file system, at most ``slots`` at a time."""

    slots: int

    def submit(self, job: Job) -> None:
        """Start a job; only with a free slot."""
        ...

    def wait(self, seconds: float) -> list[Ended]:
        """Return the jobs that have ended since the last call, after ``seconds`` at the latest."""
        ...

    def stop(self) -> list[Ended]:
        """End all jobs, by force those that do not end when asked; return them."""
        ...


@dataclass(slots=True)
class _Child:
    job: Job
    slot: int
    process: subprocess.Popen[bytes]
    pidfd: int
    watch: Stopwatch = field(default_factory=Stopwatch)
    asked: Stopwatch | None = None
    """Running since it was asked to end."""


class Local:
    """Child processes of this one, on cores and a GPU of their slot.

    Each leads a process group and gets SIGKILL from the kernel if this process dies. Cores are
    dealt by affinity, GPUs by ``CUDA_VISIBLE_DEVICES``: slots beyond the GPUs share them.
    """

    def __init__(self, slots: int) -> None:
        self.slots = slots
        self._free = list(range(slots))
        self._running: dict[int, _Child] = {}

    def submit(self, job: Job) -> None:
        """Start a job in the lowest free slot."""
        slot = self._free.pop(0)
        cores, gpus, env = sorted(os.sched_getaffinity(0)), gpu_names(), dict(os.environ)
        if job.gpu and gpus:
            env["CUDA_VISIBLE_DEVICES"] = gpus[slot % len(gpus)]
        first = slot * job.cores % len(cores)
        prepare = partial(_prepare, os.getpid(), cores[first : first + job.cores])
        make_directory(job.log.parent)
        with job.log.open("wb") as log:
            process = subprocess.Popen(  # noqa: S603 - a command of the plan
                job.command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
                env=env, process_group=0,
                preexec_fn=prepare,  # noqa: PLW1509 - it only makes system calls
            )  # fmt: skip
        pidfd = os.pidfd_open(process.pid)
        self._running[pidfd] = _Child(job, slot, process, pidfd)

    def wait(self, seconds: float) -> list[Ended]:
        """Wait for an end; end those that have had their time."""
        for child in self._running.values():
            _end_if_overdue(child)
        ready = wait(list(self._running), seconds)
        return [
            self._ended(self._running.pop(pidfd)) for pidfd in [*self._running] if pidfd in ready
        ]

    def stop(self) -> list[Ended]:
        """Send SIGTERM to all and, after `GRACE_SECONDS`, SIGKILL."""
        ended: list[Ended] = []
        for child in self._running.values():
            _ask(child)
        while self._running:
            ended += self.wait(0.5)
        return ended

    def _ended(self, child: _Child) -> Ended:
        _kill(child, signal.SIGKILL)  # what it left behind; its number is taken until it is reaped
        os.close(child.pidfd)
        self._free = sorted([*self._free, child.slot])
        return Ended(
            name=child.job.name,
            exit_code=child.process.wait(),
            host=socket.gethostname(),
            last_line=last_line(child.job.log),
            seconds=round(child.watch.seconds, 3),
        )


EXECUTORS: dict[str, Callable[[int], Executor]] = {"local": Local}
"""Makers of executors with a number of slots."""


def gpu_names() -> list[str]:
    """Return the GPUs of this machine as ``CUDA_VISIBLE_DEVICES`` names them."""
    if (given := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        return [name for name in given.split(",") if name]
    devices = (path.name.removeprefix("nvidia") for path in Path("/dev").glob("nvidia[0-9]*"))
    return sorted(devices, key=int)


def last_line(log: Path) -> str:
    """Return the last line of a file that is not empty, or nothing."""
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - _TAIL_BYTES))
        lines = file.read().decode(errors="replace").splitlines()
    return next((line.strip() for line in reversed(lines) if line.strip()), "")


def _prepare(parent: int, cores: Sequence[int]) -> None:
    """Tie a child to its parent and its cores, before its program starts."""
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # which died before this
        os._exit(1)
    os.sched_setaffinity(0, cores)


_LIBC = ctypes.CDLL(None)


def _end_if_overdue(child: _Child) -> None:
    limit = child.job.timeout
    if child.asked is None and limit is not None and child.watch.seconds > limit:
        _ask(child)
    elif child.asked is not None and child.asked.seconds > GRACE_SECONDS:
        _kill(child, signal.SIGKILL)


def _ask(child: _Child) -> None:
    if child.asked is None:
        child.asked = Stopwatch()
        _kill(child, signal.SIGTERM)


def _kill(child: _Child, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):  # it has just ended
        os.killpg(child.process.pid, number)
