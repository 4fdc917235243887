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
    """How progress is shown."""

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
    _before: int = 0
    _started: float = field(default_factory=time.monotonic)
    _shown: float = field(default_factory=time.monotonic)

    def advance(self, units: int = 1, **notes: object) -> None:
        """Add finished units; notes (loss, quarantined ...) replace those shown before."""
        self.done += units
        for name, value in notes.items():
            self.notes[name] = str(value)

    def resume(self, units: int) -> None:
        """Count units that an interrupted run finished; they say nothing about this run's speed."""
        self.done += units
        self._before += units

    @property
    def rate(self) -> float:
        """Units per second since the start."""
        return (self.done - self._before) / max(time.monotonic() - self._started, 1e-9)

    def text(self) -> str:
        """One line: stage, done of total, rate, time left, notes."""
        left = (self.total - self.done) / self.rate if self.rate else float("nan")
        notes = "".join(f", {name} {value}" for name, value in self.notes.items())
        eta = f", {left:.0f} s left" if self.rate else ""
        done = f"{self.done:,} of {self.total:,} {self.unit}"
        rate = f"{self.rate:,.0f}" if self.rate >= 10 else f"{self.rate:.2g}"
        unit = self.unit.partition(" ")[0]  # of "shards at most"
        return f"{self.stage}: {done}, {rate} {unit}/s{eta}{notes}"

    def show_line(self) -> None:
        """Print a line, or a JSON object, if the last one is long enough ago."""
        if time.monotonic() - self._shown < LINE_EVERY_SECONDS:
            return
        self._shown = time.monotonic()
        if _display is Display.JSON:
            record = {
                "event": "progress",
                "stage": self.stage,
                "done": self.done,
                "total": self.total,
                "unit": self.unit,
            }
            print(json.dumps(record | self.notes), file=sys.stderr, flush=True)  # noqa: T201 - the display
        else:
            print(self.text(), file=sys.stderr, flush=True)  # noqa: T201 - the display


class _Lines(Progress):
    """Progress that prints lines as it advances."""

    def advance(self, units: int = 1, **notes: object) -> None:
        Progress.advance(self, units, **notes)
        self.show_line()


def say(text: str) -> None:
    """Print one line beside the progress, as the demo's tour does."""
    if _display is Display.AUTO:
        print(text, file=sys.stderr, flush=True)  # noqa: T201 - the display


def show(line: str) -> bool:
    """Print a line of a verb's result as soon as it is known; False where machines read it."""
    if _display is not Display.AUTO:
        return False
    print(line, flush=True)  # noqa: T201 - the display
    return True


@contextmanager
def progress(stage: str, total: int, unit: str = "images") -> Generator[Progress]:
    """Show the progress of a stage while the block runs."""
    if _display is Display.QUIET:
        yield Progress(stage, total, unit)
    elif _display is Display.JSON or not sys.stderr.isatty():
        yield _Lines(stage, total, unit)
    else:
        yield from _live(Progress(stage, total, unit))


def _live(state: Progress) -> Generator[Progress]:
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    class _Block:
        def __rich__(self) -> Text:
            return Text(state.text())

    with Live(_Block(), console=Console(stderr=True), refresh_per_second=4, transient=True):
        yield state
