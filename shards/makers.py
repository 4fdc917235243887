"""Who makes blocks of samples: this process, or processes forked from it.

A small image is decoded in less time than threads need to hand the interpreter to each other:
packing ImageNette, two threads spend a third of their time waiting for it. Forked processes have
their own, and start in hundredths of a second with all that was found and compiled, which they
share with their parent page by page.

A fork copies one thread. It is safe where no other thread can hold a lock at that moment, so a
process with other Python threads or with torch makes its blocks itself.
"""

import ctypes
import gc
import mmap
import os
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import CancelledError
from contextlib import contextmanager
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import NoReturn, Protocol, cast

from shards.errors import MachineError
from shards.plan import BLOCK_BYTES, Plan
from shards.storing import Stored, store_samples

_DIE_WITH_PARENT = 1  # PR_SET_PDEATHSIG of <sys/prctl.h>


class Maker(Protocol):
    """Makes one block at a time."""

    def make(self, positions: range) -> list[Stored]:
        """The stored form of some found files; errors are those of `shards.storing`."""
        ...


@contextmanager
def makers_of(
    plan: Plan, workers: int, stopped: Callable[[], bool], *, processes: bool
) -> Generator[Sequence[Maker]]:
    """As many makers as there are workers, in processes if ``processes``; gone after the block.

    Args:
        plan: What is made.
        workers: Makers.
        stopped: Asked before every sample whether to give up; processes end their block first.
        processes: Fork; see `can_fork`.
    """
    if not processes:
        yield [_Here(plan, stopped)] * workers
        return
    forked: list[_Forked] = []
    try:
        for _ in range(workers):
            forked.append(_Forked(plan, forked))
        yield forked
    finally:
        for maker in forked:
            maker.close()


def can_fork() -> bool:
    """Whether a fork of this process is safe."""
    return threading.active_count() == 1 and "torch" not in sys.modules


class _Here:
    """Makes blocks in the thread that asks."""

    def __init__(self, plan: Plan, stopped: Callable[[], bool]) -> None:
        self._plan, self._stopped = plan, stopped

    def make(self, positions: range) -> list[Stored]:
        """See ``Maker.make``."""
        block: list[Stored] = []
        for stored in store_samples(self._plan, positions):
            if self._stopped():
                raise CancelledError
            block.append(stored)
        return block


class _Forked:
    """Makes blocks in a process of its own, which ends with this one, however that ends.

    Contents come back in memory that both share, and what has no room there through the pipe.
    """

    def __init__(self, plan: Plan, elder: Sequence["_Forked"]) -> None:
        self._plan = plan
        self._memory = mmap.mmap(-1, BLOCK_BYTES)
        self.pipe, theirs = Pipe()
        self._turn, self._exit_code = threading.Lock(), cast("int | None", None)
        gc.freeze()  # else the child's first collection copies the pages of every object
        with warnings.catch_warnings():
            # Python 3.12 warns of any other thread, also of those of NumPy's and Arrow's libraries,
            # which prepare for forks themselves.
            warnings.simplefilter("ignore", DeprecationWarning)
            self._process = os.fork()
        if self._process == 0:
            # Pipes of its siblings would outlive their other ends here.
            _work(plan, self._memory, theirs, [self.pipe, *(one.pipe for one in elder)])
        gc.unfreeze()
        theirs.close()

    def make(self, positions: range) -> list[Stored]:
        """See ``Maker.make``.

        Raises:
            MachineError: The process was killed, or crashed.
        """
        try:
            self.pipe.send(positions)
            answer = self.pipe.recv()
        except (EOFError, ConnectionError) as error:
            raise self._loss(positions) from error
        if isinstance(answer, BaseException):
            raise answer
        return [Stored(row, self._content(where)) for row, where in answer]

    def close(self) -> None:
        """End the process; a second time does nothing."""
        if self.pipe.closed:
            return
        self.pipe.close()
        self._ended()
        self._memory.close()

    def _ended(self) -> int:
        """Wait for the end of the process; its exit code, or minus the signal that ended it."""
        with self._turn:
            if self._exit_code is None:
                _, status = os.waitpid(self._process, 0)
                self._exit_code = os.waitstatus_to_exitcode(status)
            return self._exit_code

    def _content(self, where: slice | bytes | None) -> bytes | None:
        return self._memory[where] if isinstance(where, slice) else where

    def _loss(self, positions: range) -> MachineError:
        code = self._ended()
        how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"exited with {code}"
        first, last = (self._plan.source.sample(at).name for at in (positions[0], positions[-1]))
        return MachineError(
            f"a worker process {how} between {first} and {last} of {self._plan.source.place}; if "
            "memory ran out, free some or lower --workers; the same command continues"
        )


def _work(
    plan: Plan, memory: mmap.mmap, pipe: Connection, others: Sequence[Connection]
) -> NoReturn:
    """What a forked process does: blocks as they are asked for, until the other end closes."""
    try:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):  # the parent decides
            signal.signal(number, signal.SIG_IGN)
        ctypes.CDLL(None).prctl(_DIE_WITH_PARENT, signal.SIGKILL)
        for other in others:
            other.close()
        while True:
            pipe.send(_answer(plan, memory, pipe.recv()))
    except (EOFError, ConnectionError):
        os._exit(0)
    except BaseException:  # noqa: BLE001 - nothing of the parent's code may run here
        traceback.print_exc()
    os._exit(1)


def _answer(
    plan: Plan, memory: mmap.mmap, positions: range
) -> list[tuple[object, slice | bytes | None]] | Exception:
    answer: list[tuple[object, slice | bytes | None]] = []
    at = 0
    try:
        for row, data in store_samples(plan, positions):
            where: slice | bytes | None = data
            if data is not None and at + len(data) <= len(memory):
                where = slice(at, at + len(data))
                memory[where] = data
                at += len(data)
            answer.append((row, where))
    except Exception as error:  # noqa: BLE001 - raised by the parent
        return error
    return answer
