"""Signals: what Ctrl-C, SIGTERM and SIGUSR1 do while a command is imported, runs or trains.

It imports next to nothing, because Ctrl-C ends the process without a traceback only from then on.
"""

import os
import signal
from collections.abc import Callable, Generator
from contextlib import contextmanager
from types import FrameType

from coreset.shards.errors import InterruptedRunError

INTERRUPTED = 130
TEXT = "interrupted; the same command continues"
_STOPPING = (signal.SIGTERM, signal.SIGUSR1)


def end_on_interrupt() -> None:
    """Let Ctrl-C end the process at once: some imports catch ``KeyboardInterrupt``."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _end)


def _end(_number: int, _frame: object) -> None:
    os.write(2, f"{TEXT}\n".encode())
    os._exit(INTERRUPTED)


@contextmanager
def raise_signals() -> Generator[None]:
    """Turn SIGTERM and SIGUSR1 into ``InterruptedRunError``, SIGINT into ``KeyboardInterrupt``.

    So does any other error of an import that SIGINT interrupted. An ignored SIGINT stays ignored.
    """
    interrupts: list[int] = []

    def handle(number: int, _frame: FrameType | None) -> None:
        if number != signal.SIGINT:
            raise Stop(signal.Signals(number).name).error()
        interrupts.append(number)
        raise KeyboardInterrupt

    ignored = signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    try:
        with _handled(handle, *_STOPPING, *([] if ignored else [signal.SIGINT])):
            yield
    except Exception as error:
        if interrupts:
            raise KeyboardInterrupt from error
        raise


class Stop:
    """Wish to stop; ``by`` names the signal and is empty while nobody asked."""

    def __init__(self, by: str = "") -> None:
        self.by = by

    def error(self) -> InterruptedRunError:
        """Make the error to raise once everything is committed."""
        by = self.by or "another rank"
        return InterruptedRunError(f"interrupted by {by}; the same command continues")


@contextmanager
def defer_signals() -> Generator[Stop]:
    """Take note of SIGTERM and SIGUSR1 in the block; a signal without effect raises at its end."""
    stop = Stop()

    def note(number: int, _frame: FrameType | None) -> None:
        stop.by = signal.Signals(number).name

    with _handled(note, *_STOPPING):
        yield stop
    if stop.by:
        raise stop.error()


@contextmanager
def _handled(
    handler: Callable[[int, FrameType | None], None], *numbers: signal.Signals
) -> Generator[None]:
    """Handle signals in the block; off the main thread they go elsewhere."""
    try:
        before = {number: signal.signal(number, handler) for number in numbers}
    except ValueError:
        before = {}
    try:
        yield
    finally:
        for number, previous in before.items():
            signal.signal(number, previous)
