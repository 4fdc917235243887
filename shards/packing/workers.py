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
from contextlib import contextmanager
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple, NoReturn, Protocol, cast

from coreset.shards.errors import MachineError
from coreset.shards.format.tar import MOST_ADDED
from coreset.shards.packing.encode import Block, encode_block
from coreset.shards.packing.plan import BLOCK_BYTES, BLOCK_SAMPLES, Plan

_ROOM = BLOCK_BYTES + BLOCK_SAMPLES * MOST_ADDED
_DIE_WITH_PARENT = 1  # PR_SET_PDEATHSIG of <sys/prctl.h>


class EncodedBlock(NamedTuple):
    """A block and its part of the shard."""

    block: Block
    parts: Sequence[bytes]


class Worker(Protocol):
    """Makes one block at a time."""

    def make(self, positions: range) -> EncodedBlock:
        """Some found files as a shard holds them; errors are those of `shards.packing.encode`."""
        ...


@contextmanager
def workers_of(
    plan: Plan, workers: int, stopped: Callable[[], bool], *, processes: bool
) -> Generator[Sequence[Worker]]:
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
    # What is there stays: else collections here look at all of it again and again, and the first
    # one of a child copies its pages.
    gc.freeze()
    try:
        for _ in range(workers):
            forked.append(_Forked(plan, forked))
        yield forked
    finally:
        for maker in forked:
            maker.close()
        gc.unfreeze()


def can_fork() -> bool:
    """Whether a fork of this process is safe."""
    return threading.active_count() == 1 and "torch" not in sys.modules


class _Here:
    """Makes blocks in the thread that asks."""

    def __init__(self, plan: Plan, stopped: Callable[[], bool]) -> None:
        self._plan, self._stopped = plan, stopped

    def make(self, positions: range) -> EncodedBlock:
        """See ``Maker.make``."""
        parts: list[bytes] = []
        return EncodedBlock(encode_block(self._plan, positions, parts.append, self._stopped), parts)


class _Forked:
    """Makes blocks in a process of its own, which ends with this one, however that ends.

    Contents come back in memory that both share, and what has no room there through the pipe.
    """

    def __init__(self, plan: Plan, elder: Sequence["_Forked"]) -> None:
        self._plan = plan
        self._memory = mmap.mmap(-1, _ROOM)
        self.pipe, theirs = Pipe()
        self._turn, self._exit_code = threading.Lock(), cast("int | None", None)
        with warnings.catch_warnings():
            # Python 3.12 warns of any other thread, also of those of NumPy's and Arrow's libraries,
            # which prepare for forks themselves.
            warnings.simplefilter("ignore", DeprecationWarning)
            self._process = os.fork()
        if self._process == 0:
            # Pipes of its siblings would outlive their other ends here.
            _work(plan, self._memory, theirs, [self.pipe, *(one.pipe for one in elder)])
        theirs.close()

    def make(self, positions: range) -> EncodedBlock:
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
        block, n_bytes, rest = answer
        return EncodedBlock(block, [self._memory[:n_bytes], *rest])

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
) -> tuple[Block, int, list[bytes]] | Exception:
    """A block, how many bytes of it are in ``memory``, and those that have no room there."""
    filled, rest = 0, list[bytes]()

    def put(part: bytes) -> None:
        nonlocal filled
        if rest or filled + len(part) > len(memory):
            rest.append(part)
        else:
            memory[filled : filled + len(part)] = part
            filled += len(part)

    try:
        return encode_block(plan, positions, put), filled, rest
    except Exception as error:  # noqa: BLE001 - raised by the parent
        return error


_MAPS = Path("/proc/self/maps")


_DROP = 4  # MADV_DONTNEED of <sys/mman.h>


def forget_code(library: str) -> None:
    """Drop the code of a shared library from this process; it is read again if it is called.

    Only mappings that are executable and therefore never written, so nothing can be lost.

    Args:
        library: Start of the library's file name, such as ``libllvmlite``.
    """
    if not _MAPS.is_file():
        return
    libc = ctypes.CDLL(None)
    for line in _MAPS.read_text().splitlines():
        words = line.split(maxsplit=5)
        if len(words) == 6 and words[1] == "r-xp" and Path(words[5]).name.startswith(library):
            start, end = (int(word, 16) for word in words[0].split("-"))
            libc.madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), _DROP)
