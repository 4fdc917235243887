"""Selection of a coreset from scores."""

import numpy as np
from numpy.typing import NDArray

from coreset.shards.errors import UsageError
from coreset.shards.format.dataset import Dataset

# The stream of `coreset select --method ccs`, so that the same seed picks the same images here.
CCS_STREAM = 1


def ccs_ids(
    dataset: Dataset,
    ids: NDArray[np.int64],
    easiness: NDArray[np.float32],
    ipc: int,
    *,
    misratio: float,
    n_bins: int,
    seed: int,
) -> NDArray[np.int64]:
    """Ids that `coreset select` would choose by CCS among some samples of a data set.

    Args:
        dataset: Gives labels and classes.
        ids: Candidates, ascending.
        easiness: Score of each candidate, low = hard.
        ipc: Images per class.
        misratio: Share of the hardest of each class to cut first.
        n_bins: Equal-width bins over the range of a class's scores.
        seed: As given to the command.

    Raises:
        UsageError: A class has fewer than ``ipc`` candidates.
    """
    from coreset.kernels.samplers import ClassTooSmallError, ccs_coreset
    from coreset.kernels.seeds import derived_seed

    try:
        picked = ccs_coreset(
            easiness,
            dataset.labels[ids],
            len(dataset.classes),
            ipc,
            misratio=misratio,
            n_bins=n_bins,
            seed=derived_seed(seed, CCS_STREAM),
        )
    except ClassTooSmallError as error:
        raise UsageError(
            f"ipc must be at most the size of every class, got {ipc}, but class "
            f"{dataset.classes[error.class_index]} has {error.size} images; lower --ipc"
        ) from error
    return ids[picked.ids]
