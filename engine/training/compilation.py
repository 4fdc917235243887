"""Compilation of networks and functions by torch, where it pays."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cache
from shutil import which
from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn

from coreset.shards.errors import UsageError

CompileMode: TypeAlias = Literal["auto", "on", "graphs", "off"]

MOST_SIZES = 6
"""Sides of images that have graphs of their own; torch keeps eight graphs of a network."""
# Image passes per second of ResNet-18 at 64 px on two CPU cores, and the seconds of training from
# which a compilation of 30-40 s could repay itself there (it gains 0-5 %).
_CPU_RATE_AT_64_PX, _LONG_TRAINING_SECONDS = 480.0, 900.0


@dataclass(slots=True)
class WholeBatches:
    """Compiled code for whole batches alone: the short last one runs as it is written."""

    rows: int = 0
    """Rows of the largest batch so far: of the first, unless a run is resumed at the last."""

    def of(self, inputs: Tensor) -> AbstractContextManager[object]:
        """Enter before a network is called."""
        self.rows = max(self.rows, len(inputs))
        return compilation("off" if len(inputs) < self.rows else "on")


@cache
def compiled_on_gpu(function: Callable[..., Tensor], device: torch.device) -> Callable[..., Tensor]:
    """Compile a function of tensors, a graph for each of their shapes, if they are on a GPU."""
    return torch.compile(function, dynamic=False) if device.type == "cuda" else function


def compilation(mode: CompileMode) -> AbstractContextManager[object]:
    """Enter for a training: with ``off`` nothing in it runs compiled."""
    return torch.compiler.set_stance("force_eager") if mode == "off" else nullcontext()


def compile_where_it_pays(
    network: nn.Module,
    mode: CompileMode,
    device: torch.device,
    *,
    image_passes: float,
    size: int,
    n_sizes: int = 1,
) -> str:
    """Compile ``network`` in place if asked for or worth it; return a note, or nothing.

    There is a graph for each of ``n_sizes`` sides of images, and for evaluation; none per epoch.
    """
    on_gpu = device.type == "cuda"
    if mode == "graphs" and not on_gpu:
        raise UsageError(f"CUDA graphs need a GPU, the device is {device}: choose --compile on")
    seconds = image_passes * (size / 64) ** 2 / _CPU_RATE_AT_64_PX
    pays = on_gpu or seconds > _LONG_TRAINING_SECONDS
    if mode == "off" or (mode == "auto" and not pays):
        return ""
    if not on_gpu and not any(map(which, ("c++", "g++", "clang++"))):
        return "no C++ compiler here: training runs uncompiled"
    how = "reduce-overhead" if mode == "graphs" else "default"
    # Graphs of one size each are the fastest, as long as torch keeps them all.
    network.compile(mode=how, dynamic=None if n_sizes > MOST_SIZES else False)
    return ""
