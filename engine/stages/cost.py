"""``coreset cost``: what it cost to construct artifacts, along their inputs and by part."""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from coreset.engine.artifacts.costs import (
    OTHERS,
    PARTS,
    LinearCost,
    gpu_and_core_seconds,
    part_seconds,
    unrecorded,
)
from coreset.engine.artifacts.ledger import Line, construction_cost, read_ledger, total_wall_seconds
from coreset.engine.condensed.condensed_set import SetInfo
from coreset.engine.condensed.systems import SYSTEMS, system_of
from coreset.engine.runtime.text import aligned, readable_bytes, readable_seconds
from coreset.engine.stages.options import Result
from coreset.shards.errors import UsageError
from coreset.shards.format.files import missing

_STAGES = ("stage", "runs", "wall time", "CPU time", "images", "images/s", "peak memory", "device")
_SETS = ("set", "method", "IPC", *PARTS, "own cost", "with models", "GPU hours", "core hours")
_TABLE = (
    "method", "IPC", "fixed (s)", "per image (s)", "residual (s)", "1K, IPC 10 (h)", "IPC 50 (h)",
    "printed (h)", "which leave out",
)  # fmt: skip
IMAGENET_CLASSES, STUDY_IPCS = 1000, (10, 50)
_OWN = "own cost: passes over the data, classes and images; with models: what serves every set, too"
_HOURS = "hours of ImageNet-1K: a projection to as many images in each class, on this machine"
_PRINTED = "printed: the study's Table 5, or a rate on an RTX 4090; `coreset methods` has sources"


@dataclass(frozen=True, slots=True)
class PaidSet:
    """Cost of one set."""

    path: str
    info: SetInfo
    parts: Mapping[str, float]
    gpu_seconds: float
    core_seconds: float
    unrecorded: Sequence[str]

    @property
    def own(self) -> float:
        """Seconds without what serves other sets too."""
        return sum(self.parts.values()) - self.parts["assets"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """Add up what every stage on the way to a set cost: its own runs and those of its inputs.

    Several sets are compared by part; --table fits the cost of each method over its IPCs and shows
    it beside published hours. For example: coreset cost RDED-10 RDED-50 AUM-10 AUM-50 --table.
    """

    artifacts: Annotated[
        tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="SET [SET ...]")
    ]
    """Condensed sets; one packed data set, scores or features will do."""
    table: bool = False
    """Fit cost = fixed + per image * images by method, from sets of two IPCs or more."""

    def __post_init__(self) -> None:
        if not self.artifacts:
            raise UsageError("cost needs one SET or more, got none; name condensed sets")

    def run(self) -> Result:
        """Read the ledgers of the artifacts and sum them by stage or part."""
        ledgers = {path: _ledger(path) for path in self.artifacts}
        if len(ledgers) == 1 and not self.table:
            return _one(*ledgers.popitem())
        sets = [
            PaidSet(str(path), SetInfo.read(path), part_seconds(lines), *spent, unrecorded(path))
            for path, lines in ledgers.items()
            for spent in [gpu_and_core_seconds(lines)]
        ]
        lines = (*aligned(_SETS, [_set_row(paid) for paid in sets]), *_notes(sets), _OWN)
        data: dict[str, Any] = {"sets": [{**asdict(paid), "own": paid.own} for paid in sets]}
        if self.table:
            rows, sums, data["fits"] = _fitted(sets)
            printed = list(_printed({system_of(paid.info.method) for paid in sets}))
            lines += ("", *aligned(_TABLE, [*rows, *printed]), *sums, _HOURS, _PRINTED)
        return Result(lines, data)


def _ledger(path: Path) -> list[Line]:
    lines = read_ledger(path)
    if not construction_cost(lines):
        remedy = "name the output of a finished coreset command"
        raise missing(path, remedy, otherwise="has no ledger")
    return lines


def _one(path: Path, lines: Sequence[Line]) -> Result:
    costs = construction_cost(lines)
    rows = [
        (
            cost.stage,
            f"{cost.runs}" + (f" ({cost.interrupted} interrupted)" if cost.interrupted else ""),
            readable_seconds(cost.wall_seconds),
            readable_seconds(cost.cpu_seconds),
            f"{cost.images:,}",
            f"{cost.images_per_second:,.1f}",
            readable_bytes(cost.peak_rss_bytes),
            cost.device,
        )
        for cost in costs
    ]
    parts, without = part_seconds(lines), unrecorded(path)
    by_part = ", ".join(f"{part} {readable_seconds(spent)}" for part, spent in parts.items())
    total = total_wall_seconds(costs)
    line = f"construction cost of {path}: {readable_seconds(total)} wall time"
    stages = [{**asdict(cost), "images_per_second": cost.images_per_second} for cost in costs]
    data = {"wall_seconds": total, "stages": stages, "parts": parts, "unrecorded": without}
    notes = (f"by part: {by_part}", *([f"not recorded: {', '.join(without)}"] if without else []))
    return Result((*aligned(_STAGES, rows), *notes, line), data)


def _set_row(paid: PaidSet) -> tuple[str, ...]:
    own, models = readable_seconds(paid.own), readable_seconds(sum(paid.parts.values()))
    if OTHERS in paid.unrecorded:
        own = models = "not recorded"
    return (
        paid.path,
        paid.info.method,
        str(paid.info.ipc),
        *map(readable_seconds, paid.parts.values()),
        own,
        f"{models} + *" if paid.unrecorded else models,
        f"{paid.gpu_seconds / 3600:.3f}",
        f"{paid.core_seconds / 3600:.3f}",
    )


def _notes(sets: Sequence[PaidSet]) -> Iterator[str]:
    for paid in sets:
        if paid.unrecorded:
            yield f"* not recorded of {paid.path}: {', '.join(paid.unrecorded)}"


def _fitted(sets: Sequence[PaidSet]) -> tuple[list[tuple[str, ...]], list[str], dict[str, Any]]:
    """Return a row of each method, the arithmetic of its projection, and its line."""
    groups: dict[tuple[str, str, int], list[PaidSet]] = defaultdict(list)
    for paid in sets:
        if OTHERS not in paid.unrecorded:
            key = (paid.info.method, paid.info.source_name, paid.info.n_classes)
            groups[key].append(paid)
    rows, sums, fits = list[tuple[str, ...]](), list[str](), dict[str, Any]()
    for (method, data, n_classes), group in groups.items():
        images = [sum(paid.info.per_class) for paid in group]
        numbers = ("needs two IPCs", *["-"] * 4)
        if len(set(images)) > 1:
            fit = LinearCost.fit(images, [paid.own for paid in group])
            once = LinearCost.fit(images, [paid.parts["images"] for paid in group]).fixed
            hours = [_projected(fit, once, n_classes, ipc) for ipc in STUDY_IPCS]
            residual = f"{fit.residual:.3g}" if fit.n > 2 else "0, of two sets"
            numbers = (f"{fit.fixed:.4g}", f"{fit.per_image:.4g}", residual)
            numbers += tuple(f"{number:.3g}" for number, _ in hours)
            sums += [f"{method}, {data}: {arithmetic}" for _, arithmetic in hours]
            if fit.per_image < 0:
                sums.append(
                    f"warning: {method}, {data} took less for more images: its runs differ "
                    "by more than the images cost; repeat them on a quiet machine"
                )
            fits[f"{method}, {data}"] = asdict(fit)
        ipcs = ", ".join(map(str, sorted({paid.info.ipc for paid in group})))
        rows.append((method, ipcs, *numbers, *_published(system_of(method))))
    return rows, sums, fits


def _projected(fit: LinearCost, once: float, n_classes: int, ipc: int) -> tuple[float, str]:
    """Return the hours of ImageNet-1K, and their arithmetic.

    ``once`` are the seconds that neither classes nor images change: fixed, but of the part images.
    """
    images, by_class = IMAGENET_CLASSES * ipc, fit.fixed - once
    hours = (once + by_class * IMAGENET_CLASSES / n_classes + fit.per_image * images) / 3600
    fixed = f"{once:.3g} s + {by_class:.4g} s x {IMAGENET_CLASSES:,} / {n_classes} classes"
    return hours, f"({fixed} + {fit.per_image:.4g} s x {images:,} images) / 3600 = {hours:.3g} h"


def _published(system: str) -> tuple[str, str]:
    if not system:
        return "-", "-"
    hours = SYSTEMS[system].published_hours
    return " / ".join(map(str, hours)) if hours else "none", SYSTEMS[system].left_out


def _printed(shown: set[str]) -> Iterator[tuple[str, ...]]:
    """Yield a row of each system that has published numbers and no set here."""
    for name, system in SYSTEMS.items():
        seconds = system.published_seconds
        if name in shown or not (seconds or system.published_hours):
            continue
        hours = ["-", "-"]
        if seconds:
            hours = [f"{seconds * IMAGENET_CLASSES * ipc / 3600:.3g}" for ipc in STUDY_IPCS]
        rate = str(seconds) if seconds else "-"
        yield f"{name} (printed)", "-", "-", rate, "-", *hours, *_published(name)
