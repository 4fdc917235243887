"""Pseudo-labels: groups of images by their features alone, to score a data set without its labels.

``zero-shot`` takes the class whose name, in a prompt, is nearest to the image in the space of an
image-text encoder. ``clusters`` takes the cluster of a spherical k-means. ELFS (Zheng et al., ICLR
2025) trains 50 clustering heads instead; the paper on concept scores does not say how it labels.
"""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from coreset.engine.artifacts.store import (
    FEATURES_NAME,
    feature_chunks,
    feature_layout,
    read_feature_rows,
)
from coreset.engine.models.concept_rows import POINTS, embed_texts, unit_rows_of
from coreset.engine.models.concept_texts import class_words
from coreset.engine.models.features import cached_features
from coreset.engine.runtime.progress import progress
from coreset.engine.scoring.setup import PROMPT, Setup
from coreset.kernels.neighbours import kmeans_centres
from coreset.kernels.seeds import Stream, derived_seed, permutation
from coreset.shards.errors import UsageError
from coreset.shards.format.files import replacing

ASSIGNED_NAME = "labels.npy"
"""Pseudo-labels in the scratch directory; the scores hold them as a column in the end."""


def kept_pseudo_labels(setup: Setup, scratch: Path) -> NDArray[np.int64]:
    """Return the pseudo-label of every sample, shape (n,); made once and kept in ``scratch``."""
    path = scratch / ASSIGNED_NAME
    if path.is_file():
        return np.load(path, allow_pickle=False)
    store = cached_features(setup.dataset, setup.features) / FEATURES_NAME
    if setup.options.labels == "zero-shot":
        words = class_words(setup.dataset.classes)
        texts = [PROMPT.format(word) for word in words.values()]
        assigned = nearest_of(store, embed_texts(setup.features, texts))
    else:
        seed, device = setup.options.seed, str(setup.device)
        assigned = clusters_of(store, setup.n_classes, seed, device)
    with replacing(path) as file:
        np.save(file, assigned, allow_pickle=False)
    # Not read back: NumPy takes a signal that interrupts its reading for a damaged file.
    return assigned


def clusters_of(store: Path, k: int, seed: int, device: str = "cpu") -> NDArray[np.int64]:
    """Cluster the rows of a store, scaled to length 1, by spherical k-means.

    Of many rows `POINTS` a cluster, drawn at random, are held and find the centres. A cluster
    that stays empty is a UsageError.
    """
    own_seed = derived_seed(seed, Stream.CLUSTERS)
    drawn = np.sort(permutation(feature_layout(store)[0], own_seed)[: POINTS * k])
    rows = unit_rows_of("images", read_feature_rows(store, drawn))
    centres, _ = kmeans_centres(rows, k, own_seed, spherical=True, device=device)
    assigned = nearest_of(store, centres)
    if n_empty := k - np.unique(assigned).size:
        raise UsageError(
            f"{n_empty} of {k} clusters are empty, for too few images differ; lower --clusters"
        )
    return assigned


def nearest_of(store: Path, units_cd: NDArray[np.float32]) -> NDArray[np.int64]:
    """Find the unit row with the largest cosine to each row of a store, of equal ones the first."""
    found = [np.empty(0, np.int64)]
    with progress("assign labels", feature_layout(store)[0]) as bar:
        for chunk in feature_chunks(store):
            found.append((unit_rows_of("images", chunk) @ units_cd.T).argmax(axis=1))
            bar.advance(len(chunk))
    return np.concatenate(found)
