"""Concept bottleneck: a linear layer on the standardised similarities of images to concepts.

Shape suffixes: b = batch, n = samples, d = width of embeddings, k = concepts, c = classes.

With rows x of length 1, concepts E (k, d), mean m of every similarity over the data set and one
over its spread as scale s, the logits are ``W standardised + b``, ``standardised = (x E' - m) s``.
The layer has two forms with the same parameters and logits:

- direct: takes standardised similarities, ``4 b k c`` multiplications and additions a step;
- folded: takes x and multiplies by ``W (E s)``, which costs ``4 c d (k + b)`` but needs no
  similarities: no array of n x k or b x k exists.
"""

from contextlib import nullcontext

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor, nn

from coreset.kernels.frechet import Moments

SMALLEST_SPREAD = 1e-6
"""A similarity with less spread counts as constant, and as 0 for every image."""


def standardisation(
    embeddings_kd: Float[np.ndarray, "k d"], rows: Moments
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Compute mean and scale (k,) of the similarities of rows, from the moments of the rows.

    The scale is one over the spread (n - 1), and 0 for a constant similarity.
    """
    wide_kd = embeddings_kd.astype(np.float64)
    mean_k = wide_kd @ rows.mean
    squares_k = np.einsum("kd,kd->k", wide_kd @ rows.scatter, wide_kd)
    spread_k = np.sqrt(np.maximum(squares_k, 0) / max(1, rows.n - 1))
    scale_k = np.divide(1, spread_k, out=np.zeros_like(spread_k), where=spread_k > SMALLEST_SPREAD)
    return mean_k, scale_k


class ConceptLayer(nn.Module):
    """The linear layer, direct or folded."""

    mean_k: Tensor
    scale_k: Tensor
    embeddings_kd: Tensor

    def __init__(
        self,
        n_classes: int,
        embeddings_kd: Float[np.ndarray, "k d"],
        mean_k: Float[np.ndarray, " k"],
        scale_k: Float[np.ndarray, " k"],
        *,
        folded: bool,
    ) -> None:
        """Start from zero weights: a convex problem needs no random start."""
        super().__init__()
        self.linear = nn.Linear(len(embeddings_kd), n_classes)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)
        self._folded = folded
        self.register_buffer("mean_k", torch.from_numpy(mean_k.astype(np.float32)))
        self.register_buffer("scale_k", torch.from_numpy(scale_k.astype(np.float32)))
        # Not saved with the weights: they are the bank's.
        self.register_buffer("embeddings_kd", torch.from_numpy(embeddings_kd), persistent=False)

    @torch.no_grad()
    def standardised(self, rows_bd: Tensor) -> Tensor:
        """Compute the standardised similarities (b, k) of rows of length 1."""
        return (rows_bd @ self.embeddings_kd.T - self.mean_k) * self.scale_k

    def forward(self, inputs: Tensor) -> Tensor:
        """Compute logits (b, c) from similarities (b, k), or folded from rows of length 1 (b, d).

        In float32 on a CPU, where bfloat16 takes longer for so thin a layer.
        """
        with nullcontext() if inputs.is_cuda else torch.autocast("cpu", enabled=False):
            if not self._folded:
                return self.linear(inputs)
            scaled_ck = self.linear.weight * self.scale_k
            bias_c = self.linear.bias - scaled_ck @ self.mean_k
            return nn.functional.linear(inputs, scaled_ck @ self.embeddings_kd, bias_c)
