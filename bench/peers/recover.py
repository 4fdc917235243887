"""Recovery of images as the published codes do it: a hook on each batch norm that copies its input.

Restated from what VILA-Lab/SRe2L's ``data_synthesis.py`` and Jiacheng8/FADRM's ``recover.py`` do,
with torchvision's transforms on the batch, in float32 on a CPU. The draws are ours, so that both
see the same crops.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, interpolate

from coreset.engine.models.networks import IMAGENET_MEAN, IMAGENET_STD
from coreset.kernels.augment import draw_crops, draw_flips


class StatisticsHook:
    """Distance of a batch norm's input from its running statistics, in the last forward pass."""

    distance: Tensor

    def __init__(self, layer: nn.BatchNorm2d) -> None:
        """Hook into the layer."""
        layer.register_forward_hook(self._measure)

    def _measure(self, layer: Any, inputs: Any, _output: object) -> None:  # noqa: ANN401
        mean = inputs[0].mean([0, 2, 3])
        by_channel = inputs[0].permute(1, 0, 2, 3).contiguous().reshape(len(mean), -1)
        variance = by_channel.var(1, unbiased=False)
        self.distance = torch.norm(layer.running_var.data - variance, 2)
        self.distance = self.distance + torch.norm(layer.running_mean.data - mean, 2)


class PublishedRecovery:
    """Optimisation of a batch of images by networks in turn, in stages of some sizes."""

    def __init__(self, networks: Sequence[nn.Module], sizes: Sequence[int], lr: float) -> None:
        """Hook into frozen networks."""
        self.networks, self.sizes, self.lr = networks, sizes, lr
        self.hooks = [
            [StatisticsHook(each) for each in network.modules() if isinstance(each, nn.BatchNorm2d)]
            for network in networks
        ]

    def run(
        self, start: Tensor, labels: Tensor, generator: torch.Generator, iterations: int
    ) -> Tensor:
        """Return images after so many steps; they and ``start`` are normalised."""
        images, step = start, 0
        for stage, size in enumerate(self.sizes):
            images = interpolate(images, size=(size, size), mode="bilinear").detach()
            if stage:
                images = 0.5 * images + 0.5 * interpolate(start, (size, size), mode="bilinear")
            images.requires_grad_()
            optimiser = torch.optim.Adam([images], lr=self.lr, betas=(0.5, 0.9), eps=1e-8)
            for _ in range(iterations // len(self.sizes)):
                rate = 0.5 * (1 + math.cos(math.pi * step / iterations)) * self.lr
                optimiser.param_groups[0]["lr"] = rate
                optimiser.zero_grad()
                self.loss(images, labels, generator, step).backward()
                optimiser.step()
                for channel, (mean, std) in enumerate(
                    zip(IMAGENET_MEAN, IMAGENET_STD, strict=True)
                ):
                    low, high = -mean / std, (1 - mean) / std
                    images.data[:, channel] = images.data[:, channel].clamp(low, high)
                step += 1
        return images.detach()

    def loss(self, images: Tensor, labels: Tensor, generator: torch.Generator, step: int) -> Tensor:
        """Return the loss of a step, of images that are cropped, mirrored and rolled."""
        turn = step % len(self.networks)
        outputs = self.networks[turn](published_view(images, generator))
        scales = [10.0] + [1.0] * (len(self.hooks[turn]) - 1)
        distances = [
            hook.distance * scale for hook, scale in zip(self.hooks[turn], scales, strict=True)
        ]
        return cross_entropy(outputs, labels) + 0.01 * torch.stack(distances).sum()


def published_view(images: Tensor, generator: torch.Generator) -> Tensor:
    """Crop, mirror and roll a batch by torchvision's functions."""
    from torchvision.transforms.functional import hflip, resized_crop

    size = images.shape[-1]
    left, top, right, bottom = draw_crops(1, size, size, generator, scale=(0.08, 1.0))[0].tolist()
    seen = resized_crop(images, top, left, bottom - top, right - left, [size, size])
    if draw_flips(1, generator):
        seen = hflip(seen)
    shifts = torch.randint(round(size / 7) + 1, (2,), generator=generator)
    return torch.roll(seen, shifts.tolist(), (2, 3))
