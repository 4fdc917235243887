"""Signals: what Ctrl-C, SIGTERM and SIGUSR1 do while a command is imported, runs or trains.

It imports next to nothing, because Ctrl-C ends the process without a traceback only from then on.
"""

import os
import signal
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from types import FrameType

from coreset.shards.errors import InterruptedRunError

INTERRUPTED = 130
TEXT = "interrupted; the same command continues"
_Handler = Callable[[int, FrameType | None], object]


def end_on_interrupt() -> None:
    """Let Ctrl-C end the process at once; a signal that the caller of the process ignores stays so.

    ``KeyboardInterrupt`` would be raised in the middle of an import, some of which catch it.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _end)


def _end(_number: int, _frame: object) -> None:
    os.write(2, f"{TEXT}\n".encode())
    os._exit(INTERRUPTED)


@contextmanager
def raise_signals() -> Generator[None]:
    """Turn SIGTERM and SIGUSR1 into ``InterruptedRunError``, SIGINT into ``KeyboardInterrupt``.

    An import that SIGINT interrupted may raise another error: that becomes ``KeyboardInterrupt``
    too. A SIGINT that the caller of the process ignores stays ignored.
    """
    interrupts: list[int] = []

    def stop(number: int, _frame: FrameType | None) -> None:
        raise _stopped_by(signal.Signals(number).name)

    def interrupt(number: int, _frame: FrameType | None) -> None:
        interrupts.append(number)
        raise KeyboardInterrupt

    ignored = signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    try:
        with _handlers(_stopping(stop) | ({} if ignored else {signal.SIGINT: interrupt})):
            yield
    except Exception as error:
        if interrupts:
            raise KeyboardInterrupt from error
        raise


class Stop:
    """Wish to stop: the name of the signal; empty while nobody asked."""

    def __init__(self) -> None:
        self.by = ""

    @property
    def asked(self) -> bool:
        """Whether to commit and end."""
        return bool(self.by)

    def error(self) -> InterruptedRunError:
        """Make the error to raise once everything is committed."""
        return _stopped_by(self.by or "another rank")


@contextmanager
def defer_signals() -> Generator[Stop]:
    """Take note of SIGTERM and SIGUSR1 in the block instead of raising wherever it is.

    A signal that nobody acted on raises when the block has ended without an error.
    """
    stop = Stop()

    def note(number: int, _frame: FrameType | None) -> None:
        stop.by = signal.Signals(number).name

    with _handlers(_stopping(note)):
        yield stop
    if stop.asked:
        raise stop.error()


def _stopped_by(name: str) -> InterruptedRunError:
    return InterruptedRunError(f"interrupted by {name}; the same command continues")


def _stopping(handler: _Handler) -> dict[signal.Signals, _Handler]:
    return {signal.SIGTERM: handler, signal.SIGUSR1: handler}


@contextmanager
def _handlers(handlers: Mapping[signal.Signals, _Handler]) -> Generator[None]:
    """Handle signals in the block; off the main thread they go elsewhere."""
    try:
        before = {number: signal.signal(number, new) for number, new in handlers.items()}
    except ValueError:
        before = {}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
