"""Accuracies by data set, protocol, student and IPC: the study's, or those of RESULTS beside them.

Numbers are decimal, so that differences of printed digits are exact: 18.9 - 15.6 is 3.3.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from functools import cache
from statistics import fmean, pstdev
from typing import Any, NamedTuple, TypeAlias

from coreset.engine.evaluation import published

_DATASETS = {
    "imagenette": "ImageNette", "imagenet-100": "ImageNet-100", "imagenet-1k": "ImageNet-1K",
}  # fmt: skip
_STUDENTS = {"resnet18": "ResNet-18", "resnet50": "ResNet-50", "resnetap10": "ResNetAP-10"}
_METHODS = {"random": "Random", "ccs-aum": "AUM", "ccs-concept_aum": "Concepts"}
_SHORT = "+short"
Row: TypeAlias = Mapping[str, Any]
Groups: TypeAlias = dict[str, dict[str, list[float]]]
"""Accuracies of trainings by method and, as JSON, by its parameters."""


class Cell(NamedTuple):
    """Conditions under which methods are compared, in the study's names."""

    dataset: str
    protocol: str
    student: str
    ipc: int

    def matches(self, columns: Mapping[str, Any]) -> bool:
        """Test whether some columns have these values, or one of those listed."""
        lists = {name: each if isinstance(each, list) else [each] for name, each in columns.items()}
        return all(getattr(self, name) in values for name, values in lists.items())


class Accuracy(NamedTuple):
    """Top-1 in percent over trainings; the std is NaN for a single training."""

    mean: Decimal
    std: Decimal

    def __str__(self) -> str:
        return f"{self.mean} ± {self.std:.2f}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Cells:
    """Values that rules read."""

    accuracies: Mapping[Cell, Mapping[str, Accuracy]]
    """By cell and method."""
    values: Mapping[tuple[Any, ...], Decimal] = field(default_factory=dict[Any, Decimal])
    """By what it is, data set, method and IPC: ``hours`` of construction, ``rep``, ``div``, ``fid``
    and, by misratio too, ``acc``: accuracies of ResNet-18 under hard labels."""
    stamps: Mapping[Cell, str] = field(default_factory=dict[Cell, str])
    """Protocols of cells from RESULTS, with version and changes."""

    @property
    def shortened(self) -> list[Cell]:
        """List the cells of shortened protocols, which do not compare with the study's."""
        return [cell for cell, stamp in self.stamps.items() if stamp.endswith(_SHORT)]


@cache
def published_cells() -> Cells:
    """Read the study's values; those of its figures (rep, div, fid) are not known."""
    accuracies = defaultdict[Cell, dict[str, Accuracy]](dict)
    values = dict[tuple[Any, ...], Decimal]()
    for row in published.rows("tables"):
        cell = Cell(row["dataset"], row["protocol"], row["student"], int(row["ipc"]))
        accuracies[cell][row["method"]] = Accuracy(Decimal(row["mean"]), Decimal(row["std"]))
    for row in published.rows("misratio"):
        place = row["dataset"], row["method"], int(row["ipc"])
        values["acc", *place, Decimal(row["misratio"])] = Decimal(row["accuracy"])
    for row in published.rows("cost"):
        values["hours", "ImageNet-1K", row["method"], int(row["ipc"])] = Decimal(row["hours"])
    return Cells(accuracies=dict(accuracies), values=values)


def measured_cells(
    students: Iterable[Row],
    *,
    names: Mapping[str, str] | None = None,
    values: Mapping[tuple[Any, ...], Decimal] | None = None,
) -> Cells:
    """Collect cells from complete rows of RESULTS, in the study's names.

    A cell is of one setting: not shortened before shortened, the fewest changes of the protocol,
    the most methods. Of several parameters of a method the best counts, as the study chose its
    misratios. The std is the population's, as published.

    Args:
        students: Rows of the table ``students``.
        names: The study's names of further methods; others keep their own.
        values: Costs and metrics, as `Cells` has them.
    """
    of = _METHODS | dict(names or {})
    settings = defaultdict[Cell, dict[tuple[Any, ...], Groups]](dict)
    for row in students:
        method = str(row["method"])
        by_method = settings[_cell(row)].setdefault(_setting(row), {})
        by_parameters = by_method.setdefault(of.get(method, method), {})
        by_parameters.setdefault(row["parameters"], []).append(row["top1_best"])
    accuracies, stamps = dict[Cell, dict[str, Accuracy]](), dict[Cell, str]()
    for cell, by_setting in settings.items():
        (stamps[cell], *_), groups = min(by_setting.items(), key=_preference)
        accuracies[cell] = {
            method: max(_accuracy(cell, method, top1) for top1 in by_parameters.values())
            for method, by_parameters in groups.items()
        }
    return Cells(accuracies=accuracies, values=values or {}, stamps=stamps)


def _cell(row: Row) -> Cell:
    data, student, protocol = (str(row[name]) for name in ("data", "student", "protocol"))
    dataset, network = _DATASETS.get(data, data), _STUDENTS.get(student, student)
    return Cell(dataset, protocol.partition("@")[0], network, row["ipc"])


def _setting(row: Row) -> tuple[Any, ...]:
    columns = ("protocol", "protocol_digest", "val_identity", "epochs", "size", "evaluations")
    return tuple(row[name] for name in columns)


def _preference(item: tuple[tuple[Any, ...], Groups]) -> tuple[Any, ...]:
    setting, groups = item
    stamp = str(setting[0])
    return stamp.endswith(_SHORT), stamp.count("+"), -len(groups), str(setting)


def _accuracy(cell: Cell, method: str, top1: list[float]) -> Accuracy:
    """Round the mean to the digit that the study prints for this cell, or to one."""
    printed = published_cells().accuracies.get(cell, {}).get(method)
    mean = Decimal(repr(fmean(top1))).quantize(printed.mean if printed else Decimal("0.1"))
    return Accuracy(mean, Decimal(repr(pstdev(top1)) if len(top1) > 1 else "NaN"))
