"""How far two scorings of the same samples agree, and how well a score finds marked samples.

Spearman's rank correlation (Spearman 1904), over all samples and within classes, and the area under
the ROC curve as the Mann-Whitney statistic (Hanley and McNeil 1982). Equal values share the mean of
their ranks, so the results are those of ``scipy.stats.spearmanr`` and
``sklearn.metrics.roc_auc_score``, neither of which is needed at run time. O(n log n).
"""

import numpy as np
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray

from coreset.kernels.seeds import random_keys


def ranks(
    values: Float[np.ndarray, " n"], labels: Int[np.ndarray, " n"] | None = None
) -> NDArray[np.float64]:
    """Rank 1 .. n of each value, lowest first, or its rank among the values of its own class.

    Equal values (of one class) get the mean of the ranks that they take up together.

    Args:
        values: Numbers, infinite ones too.
        labels: Class of each value; None takes them all as one class.

    Raises:
        ValueError: A value is NaN, or there is not one label per value.
    """
    _require_numbers(values)
    classes = np.zeros(values.size, np.int64) if labels is None else labels
    _require_same_length("labels", classes, "values", values)
    if values.size == 0:
        return np.empty(0, np.float64)
    order = np.lexsort((values, classes))
    ordered, ordered_classes = values[order], classes[order]
    first_of_class = _starts(ordered_classes[1:] != ordered_classes[:-1])
    first_of_ties = first_of_class | _starts(ordered[1:] != ordered[:-1])
    ties = np.cumsum(first_of_ties) - 1
    begins, sizes = np.flatnonzero(first_of_ties), np.bincount(ties)
    mean_positions = begins + (sizes - 1) / 2
    class_begins = np.flatnonzero(first_of_class)[np.cumsum(first_of_class) - 1]
    ranked = np.empty(values.size, np.float64)
    ranked[order] = mean_positions[ties] - class_begins + 1
    return ranked


def spearman(one: Float[np.ndarray, " n"], other: Float[np.ndarray, " n"]) -> float:
    """Rank correlation of two scorings, -1 to 1; NaN where either is constant or n is below 2.

    Raises:
        ValueError: A value is NaN, or the lengths differ.
    """
    return float(spearman_by_class(one, other, np.zeros(one.size, np.int64), 1)[0])


def spearman_by_class(
    one: Float[np.ndarray, " n"],
    other: Float[np.ndarray, " n"],
    labels: Int[np.ndarray, " n"],
    n_classes: int,
) -> NDArray[np.float64]:
    """Rank correlation within each class, float64 of shape (n_classes,).

    Only the order within a class decides which of its images a class-wise selection takes, while
    the correlation over all samples also counts which classes are hard.

    Returns:
        -1 to 1; NaN for a class with fewer than two samples, or where either scoring is constant.

    Raises:
        ValueError: A value is NaN, a label outside 0 .. n_classes-1, or the lengths differ.
    """
    _require_same_length("other", other, "one", one)
    if labels.size and not 0 <= labels.min() <= labels.max() < n_classes:
        raise ValueError(
            f"labels must be in 0 .. {n_classes - 1}, got {labels.min()} to {labels.max()}; "
            "check the class list"
        )
    one_ranks, other_ranks = (ranks(values, labels) for values in (one, other))

    def class_sums(products: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.bincount(labels, weights=products, minlength=n_classes).astype(np.float64)

    middle = (np.bincount(labels, minlength=n_classes) + 1) / 2  # mean rank of n, ties or not
    one_off, other_off = one_ranks - middle[labels], other_ranks - middle[labels]
    with np.errstate(invalid="ignore"):  # 0 / 0 of a constant class is the NaN that we promise
        scale = np.sqrt(class_sums(one_off**2) * class_sums(other_off**2))
        return np.clip(class_sums(one_off * other_off) / scale, -1, 1)


def roc_area(scores: Float[np.ndarray, " n"], marked: Bool[np.ndarray, " n"]) -> float:
    """Probability that a marked sample has a higher score than an unmarked one; ties count half.

    Args:
        scores: High where a sample is taken for a marked one.
        marked: The truth.

    Returns:
        0 to 1; 0.5 is chance.

    Raises:
        ValueError: A score is NaN, the lengths differ, or none or all of the samples are marked.
    """
    _require_same_length("marked", marked, "scores", scores)
    n_marked = int(marked.sum())
    n_unmarked = marked.size - n_marked
    if not n_marked or not n_unmarked:
        raise ValueError(
            f"marked must hold some samples and not all, got {n_marked} of {marked.size}; "
            "the area under the ROC needs both kinds"
        )
    above = ranks(scores)[marked].sum() - n_marked * (n_marked + 1) / 2
    return float(above / (n_marked * n_unmarked))


def overlap(ids: Int[np.ndarray, " a"], others: Int[np.ndarray, " b"]) -> float:
    """Share of ``ids`` that are among ``others``; both without repeats.

    Raises:
        ValueError: ``ids`` is empty.
    """
    if ids.size == 0:
        raise ValueError("ids must not be empty; there is nothing to find again")
    return np.intersect1d(ids, others, assume_unique=True).size / ids.size


def shuffled_within_classes(
    values: Float[np.ndarray, " n"], labels: Int[np.ndarray, " n"], seed: int
) -> NDArray[np.floating]:
    """The values of each class, dealt anew to its samples: a score that knows the class alone.

    Its distribution within every class is that of ``values``, its order there is chance, so what
    a selection by it shares with another is what two unrelated scorings would share.
    """
    dealt = np.empty_like(values)
    dealt[np.argsort(labels, kind="stable")] = values[
        np.lexsort((random_keys(values.size, seed), labels))
    ]
    return dealt


def _starts(changes: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Where a run begins: at the first position, and wherever the next differs from the last."""
    return np.concatenate(([True], changes))


def _require_numbers(values: NDArray[np.floating]) -> None:
    odd = np.flatnonzero(np.isnan(values))
    if odd.size:
        raise ValueError(
            f"values must be numbers, got nan at position {odd[0]} ({odd.size} in all); "
            "leave these samples out"
        )


def _require_same_length(
    name: str, values: NDArray[np.generic], other_name: str, others: NDArray[np.generic]
) -> None:
    if values.shape != others.shape:
        raise ValueError(
            f"{name} must be as many as {other_name}, got {values.size} and {others.size}; "
            "they belong to different data sets"
        )
