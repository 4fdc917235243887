"""Writing a coreset: the ids of its samples, and what is known of how they were chosen."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine.artifact import Work
from engine.sets import IDS_NAME, SetInfo
from shards.dataset import Dataset


def write_coreset(
    work: Work,
    dataset: Dataset,
    ids: NDArray[np.int64],
    *,
    method: str,
    parameters: Mapping[str, Any],
    seed: int,
) -> None:
    """Fill an artifact in the making with ``ids.npy`` and ``set.json``, and bind it to the data.

    Args:
        work: The artifact in the making.
        dataset: What the ids point into.
        ids: Chosen sample ids, int64 in ascending order.
        method: Name in tables.
        parameters: What shaped the choice, without the seed.
        seed: Seed of the draw.
    """
    per_class = np.bincount(dataset.labels[ids], minlength=len(dataset.classes))
    info = SetInfo(
        kind="coreset",
        method=method,
        parameters=parameters,
        seed=seed,
        source_name=dataset.manifest.name,
        source_identity=dataset.manifest.identity,
        source_content=dataset.manifest.content,
        n_classes=len(dataset.classes),
        ipc=int(per_class.max()),
        per_class=tuple(per_class.tolist()),
    )
    np.save(work.scratch / IDS_NAME, ids, allow_pickle=False)
    info.write(work.scratch)
    binds = {"identity": dataset.manifest.identity, "content": dataset.manifest.content}
    work.provenance = replace(work.provenance, binds=binds)
