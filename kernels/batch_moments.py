"""Mean and variance of each channel of a batch, and their gradient in one pass over the values.

Shape suffixes: b = images, c = channels, h = rows, w = columns.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor


class _Moments(torch.autograd.Function):
    """Statistics by batch norm's own reduction, and both gradients by one multiply-add."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> tuple[Tensor, Tensor]:  # noqa: ANN401 - torch's own
        wide = values.to(torch.promote_types(values.dtype, torch.float32))
        mean, variance = torch.batch_norm_update_stats(wide, None, None, 0.0)
        ctx.save_for_backward(values, mean)
        return mean, variance

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:  # noqa: ANN401 - torch's own
        (values, mean), (of_mean, of_variance) = ctx.saved_tensors, gradients
        n = values.numel() // mean.numel()
        slope = of_variance * (2 / n)
        offset = of_mean / n - slope * mean
        columns = (column[:, None, None] for column in (offset, slope))
        return torch.addcmul(next(columns), values, next(columns)).to(values.dtype)


def batch_moments(
    values_bchw: Float[Tensor, "b c h w"],
) -> tuple[Float[Tensor, " c"], Float[Tensor, " c"]]:
    """Return mean and biased variance of each channel, at least float32, with a gradient.

    On a CPU faster than ``mean`` and ``var`` back and forth, most with channels last, where float32
    is summed in float32: 1e-5 off in a variance of 1 over 100,000 values.
    """
    return _Moments.apply(values_bchw)  # pyright: ignore[reportReturnType] - not in the stubs
