"""Proxies on frozen features: linear classifiers, thousands of times faster than a network.

``linear`` reads features standardised by column, ``concept`` similarities of images to a bank of
concepts (`coreset.kernels.concepts`), as the study's second score does.
"""

from dataclasses import replace
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from coreset.engine.data.order import PADDING, BatchOrder
from coreset.engine.models.feature_rows import (
    FeatureRows,
    LinearHead,
    StandardRows,
    UnitRows,
    resident_limit,
)
from coreset.engine.runtime.distributed import ALONE, Distributed
from coreset.engine.scoring.proxy import Folds, Proxy
from coreset.engine.training.trainer import Examples
from coreset.kernels.concepts import ConceptLayer, standardisation
from coreset.kernels.frechet import Moments
from coreset.kernels.logits import stratified_folds
from coreset.kernels.seeds import Stream, derived_seed


def linear_proxy(
    features: StandardRows,
    labels: NDArray[np.int64],
    n_classes: int,
    *,
    batch: int,
    seed: int,
    device: torch.device,
    n_folds: int = 0,
    ranks: Distributed = ALONE,
) -> Proxy:
    """Build a linear classifier on standardised features, and one more per fold."""
    network, folds = LinearHead(features.width, n_classes, n_folds).to(device), None
    if network.folds is not None:
        of_samples = stratified_folds(labels, n_folds, derived_seed(seed, Stream.FOLDS))
        folds = Folds(torch.from_numpy(of_samples).to(device), network.folds)
    proxy = _proxy_of_rows(network, features, labels, batch=batch, seed=seed, ranks=ranks)
    return replace(proxy, folds=folds)


def concept_proxy(
    rows: UnitRows,
    labels: NDArray[np.int64],
    n_classes: int,
    *,
    embeddings: NDArray[np.float32],
    scaled: bool,
    batch: int,
    seed: int,
    device: torch.device,
    ranks: Distributed = ALONE,
    folded: bool | None = None,
) -> Proxy:
    """Build a linear classifier on the similarities of rows to ``embeddings``, (k, d).

    ``scaled``: standardised by column. The layer is ``folded`` if that is asked for; by default
    similarities are kept where they are no more than features and fit the device, which takes the
    least arithmetic, and else exist nowhere.
    """
    mean, scale = np.zeros(len(embeddings)), np.ones(len(embeddings))
    if scaled:
        moments = Moments.of(np.empty((0, rows.width)))
        for block in rows.blocks():
            moments.add(block.cpu().numpy())
        mean, scale = standardisation(embeddings, moments)
    is_large = 4 * rows.n * len(embeddings) > resident_limit(device)
    is_folded = len(embeddings) > rows.width or is_large if folded is None else folded
    network = ConceptLayer(n_classes, embeddings, mean, scale, folded=is_folded).to(device)
    inputs: FeatureRows = rows
    if not is_folded:
        similarities = [network.standardised(block).cpu().numpy() for block in rows.blocks()]
        inputs = FeatureRows(np.concatenate(similarities), device)
    return _proxy_of_rows(network, inputs, labels, batch=batch, seed=seed, ranks=ranks)


def _proxy_of_rows(
    network: nn.Module,
    inputs: FeatureRows,
    labels: NDArray[np.int64],
    *,
    batch: int,
    seed: int,
    ranks: Distributed,
) -> Proxy:
    """Build a proxy that sees rows in an order of seed and epoch, without augmentation."""
    device = next(network.parameters()).device
    labels_n = torch.from_numpy(labels).to(device)
    ordered = partial(BatchOrder, batch=batch, rank=ranks.rank, world=ranks.world)

    def examples(epoch: int, start_batch: int) -> Examples:
        is_shared = ranks.world > 1
        order = ordered(epoch=epoch, seed=seed, shuffle=True, start=start_batch, pad=is_shared)
        for part in order.batches(len(labels)):
            yield at(part[: max(1, (part != PADDING).sum())])

    def originals() -> Examples:
        return (at(part) for part in ordered().batches(len(labels)))

    def at(part: NDArray[np.int64]) -> tuple[Tensor, Tensor, Tensor]:
        ids = torch.from_numpy(part).to(device)
        labels_b = torch.where(ids < 0, PADDING, labels_n[ids.clamp(min=0)])
        return inputs.rows(np.maximum(part, 0)), labels_b, ids

    return Proxy(network, examples, originals)
