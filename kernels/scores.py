"""The per-sample scores of one training pass: what each means and which end of it is hard.

Selection code orients a score with `easiness` instead of knowing names, so a score of another pass
(entropy, a concept margin) needs one more row in `SCORES` and nothing else.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Protocol, Self, TypeVar


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreMeaning:
    """How to read one score."""

    summary: str
    """One line, fit for `--help` and for a table's caption."""
    unit: str
    """Unit and range."""
    low_is_hard: bool
    """True where a low value marks a hard (or mislabelled) sample."""


SCORES: Mapping[str, ScoreMeaning] = MappingProxyType(
    {
        "aum": ScoreMeaning(
            summary="probability of the label minus the largest other, mean over all epochs",
            unit="probability, -1 to 1",
            low_is_hard=True,
        ),
        "aum_logit": ScoreMeaning(
            summary="logit of the label minus the largest other, mean over all epochs",
            unit="logit, unbounded",
            low_is_hard=True,
        ),
        "el2n": ScoreMeaning(
            summary="distance of the softmax to the one-hot label (L2), mean over the early epochs",
            unit="probability, 0 to sqrt(2)",
            low_is_hard=False,
        ),
        "forgetting": ScoreMeaning(
            summary="times a sample went from right to wrong; 0 for one that was never right",
            unit="count, 0 to half the epochs",
            low_is_hard=False,
        ),
        "correctness": ScoreMeaning(
            summary="presentations at which the largest logit was the label's",
            unit="count, 0 to the epochs",
            low_is_hard=True,
        ),
    }
)


class _Negatable(Protocol):
    def __neg__(self) -> Self: ...


_Scores = TypeVar("_Scores", bound=_Negatable)


def easiness(name: str, scores: _Scores) -> _Scores:
    """Scores turned so that low is hard, as the samplers take them.

    Args:
        name: A key of `SCORES`.
        scores: Anything that can be negated: a number, a NumPy array, a tensor.

    Returns:
        ``scores`` itself where low is hard already, its negative otherwise. NaN stays NaN.

    Raises:
        ValueError: The score is not in the table.
    """
    if name not in SCORES:
        raise ValueError(f"no score is called {name!r}; choose one of {', '.join(SCORES)}")
    return scores if SCORES[name].low_is_hard else -scores
