"""Default misratio: the share of the hardest images of a class that CCS cuts.

From the study's Table 6, hard labels, AUM: the best of 0.1, 0.3, 0.5, 0.7, 0.9 for each data set
and IPC, used there for every protocol and student. It was picked on the accuracy that is then
reported. For other data and IPC a rule is drawn from the same table: over the three data sets 0.9
gives the best mean accuracy where IPC is 0.8 % of a class (10 of 1,281 images) and 0.5 where it is
3.9 % (50 of 1,281); a straight line through both over the logarithm of that share, from 0 to 0.9.
It gives 0.3 at a tenth and 0.1 at a fifth of the images, where CCS publishes 0.3 and 0.2 for
ImageNet.
"""

from dataclasses import dataclass
from math import log

_BEST: dict[tuple[str, str, int], float] = {
    ("aum", "imagenette", 10): 0.7,
    ("aum", "imagenette", 50): 0.3,
    ("aum", "imagenet-100", 10): 0.9,
    ("aum", "imagenet-100", 50): 0.7,
    ("aum", "imagenet-1k", 10): 0.9,
    ("aum", "imagenet-1k", 50): 0.5,
}
# Scores of what an image shows, not of how a network learns it: their hard end is another one.
_WITHOUT_DEFAULT = ("concept", "visual")
_CLASS_SIZE = 1281
"""Images of a class of ImageNet, on average."""


@dataclass(frozen=True, slots=True)
class Misratio:
    """Misratio, and what it rests on."""

    value: float
    assumption: str = ""
    """Line for people where it is neither given nor the study's."""


def default_misratio(score: str, data: str | None, ipc: int, class_size: float) -> Misratio | None:
    """Look the misratio up in the study, or else derive it by the rule; None if neither applies.

    Args:
        score: Name of the score; those of concepts and looks have no default.
        data: Name of the data set as recognised by its class list, or None.
        ipc: Images per class.
        class_size: Images that a class has to choose from, on average.
    """
    if score.startswith(_WITHOUT_DEFAULT):
        return None
    known = _BEST.get((score, data or "", ipc))
    if known is not None:
        return Misratio(known)
    value = misratio_by_share(ipc / max(1.0, class_size))
    return Misratio(
        value,
        f"assumed: misratio {value:g}, by a rule from the study's Table 6 for {ipc} of "
        f"{class_size:,.0f} images a class; --misratio sets another",
    )


def misratio_by_share(share: float) -> float:
    """Misratio by IPC over class size, to one decimal: 0.9 at 10 / 1281, 0.5 at 50 / 1281."""
    steps = log(share * _CLASS_SIZE / 10) / log(5)
    return round(min(0.9, max(0.0, 0.9 - 0.4 * steps)), 1)
