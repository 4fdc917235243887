"""Several commands at once, each in a process of its own, which end with this one."""

import sys
from collections.abc import Callable, Sequence
from multiprocessing import get_context
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess

from coreset.engine.runtime.signals import defer_signals, raise_signals
from coreset.shards.errors import (
    CoresetError,
    DataError,
    InterruptedRunError,
    LockedError,
    MachineError,
    UsageError,
)

_ERRORS: dict[int, type[CoresetError]] = {
    kind.exit_code: kind
    for kind in (DataError, InterruptedRunError, LockedError, MachineError, UsageError)
}
_LOOK_EVERY_SECONDS = 0.5


def run_in_processes(commands: Sequence[Callable[[], object]], slots: int) -> list[CoresetError]:
    """Run commands, which can be pickled, ``slots`` at a time; return errors of those that failed.

    A signal is passed on to all, and raised when they have ended.
    """
    waiting, running, failures = list(commands), list[BaseProcess](), list[CoresetError]()
    with defer_signals() as stop:
        while running or (waiting and not stop.by):
            while waiting and len(running) < slots and not stop.by:
                one = get_context("spawn").Process(target=_run, args=(waiting.pop(0),), daemon=True)
                one.start()
                running.append(one)
            if stop.by:
                for process in running:
                    process.terminate()
            wait([process.sentinel for process in running], timeout=_LOOK_EVERY_SECONDS)
            for process in [each for each in running if not each.is_alive()]:
                running.remove(process)
                if process.exitcode:
                    failures.append(_error_of(process.exitcode))
    return failures


def _run(command: Callable[[], object]) -> None:
    try:
        with raise_signals():
            command()
    except CoresetError as error:
        sys.stderr.write(f"coreset: {error}\n")
        sys.exit(error.exit_code)


def _error_of(exit_code: int) -> CoresetError:
    how = f"signal {-exit_code}" if exit_code < 0 else f"exit code {exit_code}"
    kind = _ERRORS.get(exit_code, MachineError)
    return kind(f"one of several processes ended by {how}; its own line above tells why")
