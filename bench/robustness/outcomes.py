"""Outcome of a faulty input in a reader or packer, judged by its output alone.

Every sample of ``coreset.bench.robustness.cases`` has a label of its own, which identifies it.
"""

import json
import os
import signal
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from threading import Timer

import numpy as np

from coreset.bench.processes import WITH_PARENT
from coreset.bench.robustness.faults import Pixels
from coreset.bench.robustness.readers import LIST_NAME
from coreset.shards.images.flags import MAX_PIXELS

_LIMIT_SECONDS = 120.0
# Mean difference: codecs and colour conversions differ by less, faults by more.
_ALIKE_LEVELS = 12.0
_UNGUARDED_MB = 1500


class Outcome(StrEnum):
    """From worst to best."""

    RUNS_CODE = "runs code from the data"
    CRASH = "crash"
    HANG = "does not end"
    WRONG = "silently wrong"
    LOSS = "silent loss"
    LEFT_SHORT = "error that leaves a short shard which reads as whole"
    NO_GUARD = "decoded without a guard"
    DIFFERS = "other bytes every time"
    HOSTILE = "hostile name kept"
    NAMELESS = "error without the name"
    NAMED = "error that names it"
    TOLD = "left out and listed by name"
    RIGHT = "right"


@dataclass(frozen=True, slots=True, kw_only=True)
class Ran:
    """End of a process."""

    code: int
    """Exit code; minus the signal's number if one ended it."""
    text: str
    """Output on stdout and stderr."""
    peak_mb: int
    """Peak resident memory, of the process or the largest of its children."""
    in_time: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Expected:
    """Samples that a right reader delivers."""

    truths: Mapping[int, Pixels | None]
    """Pixels by label; None where there is nothing right to be found."""
    culprits: tuple[str, ...]
    """Words of which a message must have one to name the fault."""
    beside: Mapping[int, Pixels] = field(default_factory=dict[int, Pixels])
    """Pixels of a second image of a label, which may come too."""
    canary: Path | None = None
    """File that appears if code in the data runs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """Sample that was delivered."""

    label: int | None
    key: str
    shape: Sequence[int]
    pixels: Pixels | None


def run(
    command: Sequence[str | Path],
    *,
    limit_seconds: float = _LIMIT_SECONDS,
) -> Ran:
    """Run a program in a process of its own and see how it ends."""
    killed: list[bool] = []
    with tempfile.TemporaryFile() as output:
        with subprocess.Popen(
            [*WITH_PARENT, *command], stdout=output, stderr=output, start_new_session=True
        ) as process:

            def kill() -> None:
                killed.append(True)
                os.killpg(process.pid, signal.SIGKILL)

            timer = Timer(limit_seconds, kill)
            timer.start()
            _, status, usage = os.wait4(process.pid, 0)
            timer.cancel()
            process.returncode = code = os.waitstatus_to_exitcode(status)
        output.seek(0)
        text = output.read().decode(errors="replace")
    return Ran(code=code, text=text, peak_mb=usage.ru_maxrss // 1024, in_time=not killed)


def read_found(folder: Path) -> list[Sample]:
    """Read the samples that a program wrote through ``coreset.bench.robustness.readers``."""
    path = folder / LIST_NAME
    rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return [
        Sample(
            label=row["label"],
            key=row["key"],
            shape=row.get("shape", ()),
            pixels=np.load(folder / row["pixels"]) if "pixels" in row else None,
        )
        for row in rows
    ]


def judge(ran: Ran, samples: Sequence[Sample], expected: Expected) -> tuple[Outcome, str]:
    """Return the worst of what happened, and the facts that say so."""
    right, wrong = _compared(samples, expected)
    intact = {label for label, truth in expected.truths.items() if truth is not None}
    incomplete = right != intact or len(intact) < len(expected.truths)
    named = any(word in ran.text for word in expected.culprits)
    signs = (
        (Outcome.RUNS_CODE, expected.canary is not None and expected.canary.exists()),
        (Outcome.HANG, not ran.in_time),
        (Outcome.CRASH, ran.code < 0),
        (Outcome.NO_GUARD, any(np.prod(sample.shape) > 3 * MAX_PIXELS for sample in samples)),
        (Outcome.WRONG, wrong > 0),
        (Outcome.NAMED, ran.code != 0 and named),
        (Outcome.NAMELESS, ran.code != 0),
        (Outcome.HOSTILE, any(_is_hostile(sample.key) for sample in samples)),
        (Outcome.TOLD, named and incomplete),
        (Outcome.LOSS, incomplete),
    )
    detail = f"{len(right)} of {len(intact)} right"
    detail += f", {wrong} wrong" if wrong else ""
    detail += f", {ran.peak_mb / 1000:.1f} GB" if ran.peak_mb > _UNGUARDED_MB else ""
    return next((outcome for outcome, holds in signs if holds), Outcome.RIGHT), detail


def _compared(samples: Sequence[Sample], expected: Expected) -> tuple[set[int], int]:
    """Return the labels with right pixels, and the count of wrong samples."""
    right: set[int] = set()
    beside = dict(expected.beside)
    wrong = 0
    for sample in samples:
        label = -1 if sample.label is None else sample.label
        if label not in right and _alike(sample.pixels, expected.truths.get(label)):
            right.add(label)
        elif _alike(sample.pixels, beside.get(label)):
            del beside[label]
        else:
            wrong += 1
    return right, wrong


def _alike(pixels: Pixels | None, truth: Pixels | None) -> bool:
    if pixels is None or truth is None or pixels.shape != truth.shape:
        return False
    return bool(np.abs(pixels.astype(int) - truth.astype(int)).mean() < _ALIKE_LEVELS)


def _is_hostile(key: str) -> bool:
    return key.startswith("/") or ".." in key.split("/")
