"""Workers that encode blocks of samples, in threads or in forked processes.

Forked processes have their own interpreter, and share the source and the compiled code with their
parent. A fork copies one thread, so it is safe only if no other thread can hold a lock at that
moment: a process with other Python threads or with torch does not fork.
"""

import ctypes
import gc
import mmap
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from multiprocessing import Pipe, current_process, get_context
from multiprocessing.connection import Connection
from typing import TypeAlias

from coreset.shards.errors import MachineError
from coreset.shards.format.tar import MOST_ADDED
from coreset.shards.packing.encode import Block, encode_block
from coreset.shards.packing.plan import MAX_BLOCK_BYTES, MAX_BLOCK_SAMPLES, Plan

Worker: TypeAlias = Callable[[range], Block]
"""Encodes one block of source files at a time, with the errors of `encode_block`."""
_SHARED_BYTES = MAX_BLOCK_BYTES + MAX_BLOCK_SAMPLES * MOST_ADDED
_PR_SET_PDEATHSIG = 1  # <sys/prctl.h>


@contextmanager
def start_workers(
    plan: Plan, n_workers: int, stopped: Callable[[], bool], *, processes: bool
) -> Generator[Sequence[Worker]]:
    """Yield workers; processes, which `can_fork` must allow, end with the block.

    ``stopped`` is called before every sample, True gives up; processes end their block first.
    """
    if not processes:
        yield [partial(encode_block, plan, stopped=stopped)] * n_workers
        return
    forked: list[_ForkedWorker] = []
    # Existing objects leave the garbage collector: it would visit them again and again here, and
    # its first run in a child would copy their pages.
    gc.freeze()
    try:
        for _ in range(n_workers):
            forked.append(_ForkedWorker(plan, forked))
        yield [worker.encode for worker in forked]
    finally:
        for worker in forked:
            worker.close()
        gc.unfreeze()


def can_fork() -> bool:
    """Test whether a fork of this process is safe, and allowed: daemons may have no children."""
    alone = threading.active_count() == 1 and "torch" not in sys.modules
    return alone and not current_process().daemon


class _ForkedWorker:
    """Encoder of blocks in a child process, which ends with this process in any case.

    Bytes come back in shared memory, or through the pipe if those of a block do not fit.
    """

    def __init__(self, plan: Plan, siblings: Sequence["_ForkedWorker"]) -> None:
        self._plan = plan
        self._memory = mmap.mmap(-1, _SHARED_BYTES)
        self.pipe, child_pipe = Pipe()
        # The child's copies of the parent's pipes would keep them open after the parent.
        inherited = [self.pipe, *(sibling.pipe for sibling in siblings)]
        arguments = (plan, self._memory, child_pipe, inherited)
        self._process = get_context("fork").Process(target=_run_child, args=arguments)
        with warnings.catch_warnings():
            # Python 3.12 warns of any other thread, also of those of NumPy and Arrow, which prepare
            # for forks themselves.
            warnings.simplefilter("ignore", DeprecationWarning)
            self._process.start()
        child_pipe.close()

    def encode(self, positions: range) -> Block:
        """Encode source files; a MachineError says that the process was killed, or crashed."""
        try:
            self.pipe.send(positions)
            answer = self.pipe.recv()
        except (EOFError, ConnectionError) as error:
            self._process.join()
            code, source = self._process.exitcode or 0, self._plan.source
            end = (
                f"was ended by {signal.Signals(-code).name}" if code < 0 else f"exited with {code}"
            )
            first, last = (source.sample(at).name for at in (positions[0], positions[-1]))
            raise MachineError(
                f"a worker process {end} between {first} and {last} of {source.place}; if memory "
                "ran out, free some or lower --workers; the same command continues"
            ) from error
        if isinstance(answer, BaseException):
            raise answer
        block, n_bytes = answer
        return block._replace(parts=[self._memory[:n_bytes], *block.parts])

    def close(self) -> None:
        """End the process."""
        self.pipe.close()
        self._process.join()
        self._memory.close()


def _run_child(
    plan: Plan, memory: mmap.mmap, pipe: Connection, inherited: Sequence[Connection]
) -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):  # the parent decides
        signal.signal(number, signal.SIG_IGN)
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    for connection in inherited:
        connection.close()
    with suppress(EOFError, ConnectionError):
        while True:
            pipe.send(_answer(plan, memory, pipe.recv()))


def _answer(plan: Plan, memory: mmap.mmap, positions: range) -> tuple[Block, int] | Exception:
    """Encode a block; its parts are left in ``memory``, with this number of bytes, if they fit."""
    try:
        block = encode_block(plan, positions)
    except Exception as error:  # noqa: BLE001 - raised by the parent
        return error
    n_bytes = sum(map(len, block.parts))
    if n_bytes > len(memory):
        return block, 0
    memory.seek(0)
    for part in block.parts:
        memory.write(part)
    return block._replace(parts=[]), n_bytes
