"""Stopping at a good place: signals that ask a long training to end are kept until it is there."""

import signal
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

from coreset.shards.errors import InterruptedRunError

_SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


@dataclass(slots=True)
class Stop:
    """Whether somebody asked to stop."""

    by: str = ""
    """Name of the signal; empty while nobody asked."""

    @property
    def asked(self) -> bool:
        """Whether to commit and end."""
        return bool(self.by)

    def error(self) -> InterruptedRunError:
        """What to raise once everything is committed."""
        by = self.by or "another rank"
        return InterruptedRunError(f"interrupted by {by}; the same command continues")


@contextmanager
def defer_signals() -> Generator[Stop]:
    """Take note of SIGTERM and SIGUSR1 in the block instead of raising wherever it is.

    A signal that nobody acted on raises when the block has ended without an error.
    """
    stop = Stop()

    def note(number: int, _frame: FrameType | None) -> None:
        stop.by = signal.Signals(number).name

    try:
        before = {one: signal.signal(one, note) for one in _SIGNALS}
    except ValueError:  # not the main thread: signals go elsewhere
        before = {}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if stop.asked:
        raise stop.error()
