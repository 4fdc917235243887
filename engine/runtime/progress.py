"""The one progress display: a live block on a terminal, else a line every 30 s, or JSON lines."""

import json
import sys
import time
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import StrEnum

LINE_EVERY_SECONDS = 30.0


class Display(StrEnum):
    """Form in which progress is shown."""

    AUTO = "auto"
    JSON = "json"
    QUIET = "quiet"


_display = Display.AUTO


def choose_display(display: Display) -> None:
    """Set the display of this process (the command line does so once)."""
    global _display  # noqa: PLW0603 - one terminal, one display
    _display = display


@dataclass(slots=True)
class Progress:
    """Counts units of one stage; ``advance`` is cheap enough for every batch."""

    stage: str
    total: int
    unit: str = "images"
    done: int = 0
    notes: dict[str, str] = field(default_factory=dict[str, str])
    _prints: bool = False
    """Print lines as it advances."""
    _before: int = 0
    _started: float = field(default_factory=time.monotonic)
    _shown: float = field(default_factory=time.monotonic)

    def advance(self, units: int = 1, **notes: object) -> None:
        """Add finished units; notes (loss, quarantined ...) replace those shown before."""
        self.done += units
        self.notes |= {name: str(value) for name, value in notes.items()}
        if self._prints and time.monotonic() - self._shown >= LINE_EVERY_SECONDS:
            self._shown = time.monotonic()
            _print(self._record() if _display is Display.JSON else self.text())

    def resume(self, units: int) -> None:
        """Count units that an interrupted run finished; they say nothing about this run's speed."""
        self.done += units
        self._before += units

    @property
    def rate(self) -> float:
        """Units per second since the start."""
        return (self.done - self._before) / max(time.monotonic() - self._started, 1e-9)

    def text(self) -> str:
        """Return one line: stage, done of total, rate, time left, notes."""
        notes = "".join(f", {name} {value}" for name, value in self.notes.items())
        eta = f", {(self.total - self.done) / self.rate:.0f} s left" if self.rate else ""
        done = f"{self.done:,} of {self.total:,} {self.unit}"
        rate = f"{self.rate:,.0f}" if self.rate >= 10 else f"{self.rate:.2g}"
        unit = self.unit.partition(" ")[0]  # of "shards at most"
        return f"{self.stage}: {done}, {rate} {unit}/s{eta}{notes}"

    def __rich__(self) -> str:
        return self.text()

    def _record(self) -> str:
        own = {name: getattr(self, name) for name in ("stage", "done", "total", "unit")}
        return json.dumps({"event": "progress"} | own | self.notes)


def _print(line: str) -> None:
    print(line, file=sys.stderr, flush=True)  # noqa: T201 - the display


def say(text: str) -> None:
    """Print one line beside the progress, as the demo's tour does."""
    if _display is Display.AUTO:
        _print(text)


def show(line: str) -> bool:
    """Print a line of a verb's result as soon as it is known; False where machines read it."""
    if _display is not Display.AUTO:
        return False
    print(line, flush=True)  # noqa: T201 - the display
    return True


@contextmanager
def progress(stage: str, total: int, unit: str = "images") -> Generator[Progress]:
    """Show the progress of a stage while the block runs."""
    live = _display is Display.AUTO and sys.stderr.isatty()
    state = Progress(stage, total, unit, _prints=not live and _display is not Display.QUIET)
    if not live:
        yield state
        return
    from rich.console import Console
    from rich.live import Live

    console = Console(stderr=True, markup=False, highlight=False)
    with Live(state, console=console, refresh_per_second=4, transient=True):
        yield state
