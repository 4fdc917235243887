"""The misratio (share of the hardest images of a class that are cut) by score, data and IPC.

From the study's Table 6, hard labels: the best of 0.1, 0.3, 0.5, 0.7, 0.9 for each data set and
IPC, used there for every protocol and student. It was picked on the accuracy that is then reported.
"""

from shards.errors import UsageError

_BEST: dict[tuple[str, str, int], float] = {
    ("aum", "imagenette", 10): 0.7,
    ("aum", "imagenette", 50): 0.3,
    ("aum", "imagenet-100", 10): 0.9,
    ("aum", "imagenet-100", 50): 0.7,
    ("aum", "imagenet-1k", 10): 0.9,
    ("aum", "imagenet-1k", 50): 0.5,
    ("concept_aum", "imagenette", 10): 0.9,
    ("concept_aum", "imagenette", 50): 0.9,
    ("concept_aum", "imagenet-100", 10): 0.7,
    ("concept_aum", "imagenet-100", 50): 0.7,
    ("concept_aum", "imagenet-1k", 10): 0.9,
    ("concept_aum", "imagenet-1k", 50): 0.5,
}


def misratio_of_the_study(score: str, data: str | None, ipc: int) -> float:
    """Look the misratio up.

    Args:
        score: Name of the score.
        data: Name of the data set as recognised by its class list, or None.
        ipc: Images per class.

    Raises:
        UsageError: The study has none for this combination: it must be given.
    """
    known = _BEST.get((score, data or "", ipc))
    if known is None:
        raise UsageError(
            f"misratio is not known for score {score}, data set {data or 'of other classes'}, "
            f"ipc {ipc}; give --misratio (0.9 cuts most, 0.3 suits large ipc)"
        )
    return known
