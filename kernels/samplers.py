"""Class-balanced coresets: exactly IPC images of every class, at random or by CCS.

The draw of a class depends on the seed, the class index and the class's own samples in id order,
on nothing of the other classes; so it may be checked, or made, one class at a time.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from numpy.typing import NDArray

from kernels.seeds import derived_seed, random_keys
from kernels.strata import ccs_draw, n_hardest, positions_by_class, require_finite


class ClassTooSmallError(ValueError):
    """A class has fewer samples than were asked for per class."""

    def __init__(self, class_index: int, size: int, ipc: int) -> None:
        """Keep the numbers, so that a caller can name the class in its own words."""
        super().__init__(
            f"ipc must be at most the size of every class, got {ipc}, "
            f"but class {class_index} has {size} samples; lower ipc or leave the class out"
        )
        self.class_index = class_index
        self.size = size
        self.ipc = ipc


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """A class-balanced coreset."""

    ids: NDArray[np.int64]
    """Sample ids, ascending, without repeats: exactly IPC of each class."""
    n_cut: NDArray[np.int64]
    """Hardest samples left out, per class (zeros for a random coreset)."""
    lowered: tuple[int, ...]
    """Classes that had to cut fewer than misratio asks, to leave IPC samples."""


def random_coreset(labels: Int[np.ndarray, " n"], n_classes: int, ipc: int, seed: int) -> Selection:
    """Uniform draw of IPC samples of each class, without replacement.

    Args:
        labels: Class 0 .. n_classes-1 of each sample id.
        n_classes: Classes to draw from; every one must have IPC samples.
        ipc: Images per class, at least 1.
        seed: The only source of randomness.

    Raises:
        ClassTooSmallError: A class has fewer than ``ipc`` samples.
        ValueError: A label or ``ipc`` outside its range.
    """
    ids = [
        members[np.argsort(random_keys(members.size, derived_seed(seed, c)), kind="stable")[:ipc]]
        for c, members in enumerate(_classes(labels, n_classes, ipc))
    ]
    return Selection(
        ids=np.sort(np.concatenate(ids)), n_cut=np.zeros(n_classes, dtype=np.int64), lowered=()
    )


def ccs_coreset(
    scores: Float[np.ndarray, " n"],
    labels: Int[np.ndarray, " n"],
    n_classes: int,
    ipc: int,
    *,
    misratio: float,
    n_bins: int,
    seed: int,
) -> Selection:
    """Class-wise CCS: `kernels.strata.ccs_draw` of IPC samples within each class.

    Cut and bins are the class's own (algorithm 1 of "Rethinking dataset distillation for
    classification", 2026), where CCS cuts and bins the whole data set at once.

    Args:
        scores: Score of each sample id, low = hard (`kernels.scores.easiness`).
        labels: Class 0 .. n_classes-1 of each sample id.
        n_classes: Classes to draw from; every one must have IPC samples.
        ipc: Images per class, at least 1.
        misratio: Share of the hardest samples of a class to cut, in [0, 1).
        n_bins: Equal-width bins over the remaining scores of a class.
        seed: The only source of randomness.

    Raises:
        ClassTooSmallError: A class has fewer than ``ipc`` samples.
        ValueError: Scores that are not finite or not one per label, or an argument out of range.
    """
    if scores.shape != labels.shape:
        raise ValueError(
            f"scores must be one per label, got {scores.size} scores and {labels.size} labels; "
            "they belong to different data sets"
        )
    require_finite(scores)
    classes = _classes(labels, n_classes, ipc)
    draws = [
        ccs_draw(scores[members], ipc, misratio=misratio, n_bins=n_bins, seed=derived_seed(seed, c))
        for c, members in enumerate(classes)
    ]
    ids = [members[draw.positions] for members, draw in zip(classes, draws, strict=True)]
    asked = [n_hardest(members.size, misratio) for members in classes]
    return Selection(
        ids=np.sort(np.concatenate(ids)),
        n_cut=np.array([draw.n_cut for draw in draws], dtype=np.int64),
        lowered=tuple(c for c, draw in enumerate(draws) if draw.n_cut < asked[c]),
    )


def _classes(
    labels: Int[np.ndarray, " n"], n_classes: int, ipc: int
) -> tuple[NDArray[np.int64], ...]:
    """Sample ids of each class, once every class is known to have enough of them."""
    if n_classes < 1:
        raise ValueError(f"n_classes must be at least 1, got {n_classes}")
    if ipc < 1:
        raise ValueError(f"ipc must be at least 1, got {ipc}")
    classes = positions_by_class(labels, n_classes)
    for class_index, members in enumerate(classes):
        if members.size < ipc:
            raise ClassTooSmallError(class_index, members.size, ipc)
    return classes
