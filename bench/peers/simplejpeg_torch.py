"""Parts of ``coreset``: simplejpeg and torch's antialiased uint8 resize, in threads.

What somebody would write in an hour with the decoder that ``coreset`` has. Both are dependencies of
the project: nothing to install.
"""

from collections.abc import Generator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import simplejpeg

from coreset.bench.peers.loaders import (
    MEAN,
    SHORT_SIDE,
    SIZE,
    STD,
    Epoch,
    Task,
    in_threads,
    versions_of,
)

versions = partial(versions_of, ["simplejpeg"], ["torch", "torchvision.transforms.v2"])


@contextmanager
def in_parts(task: Task) -> Generator[Epoch]:
    """Decode, resize, crop and normalise one image after the other in each thread."""
    import torch

    torch.set_num_threads(1)
    scale = torch.tensor([1 / (255 * std) for std in STD])[:, None, None]
    shift = torch.tensor([mean / std for mean, std in zip(MEAN, STD, strict=True)])[:, None, None]

    def decode(path: Path, into: Any) -> None:  # noqa: ANN401 - a tensor
        image = torch.from_numpy(simplejpeg.decode_jpeg(path.read_bytes(), "RGB"))
        image_chw = _placed(image.permute(2, 0, 1), task)
        if task.pixels == "uint8":
            into.copy_(image_chw)
        else:
            torch.mul(image_chw, scale, out=into).sub_(shift)

    yield partial(in_threads, task, decode)


def _placed(image_chw: Any, task: Task) -> Any:  # noqa: ANN401 - tensors
    from torchvision.transforms.v2 import RandomResizedCrop
    from torchvision.transforms.v2.functional import center_crop

    if task.crop == "whole":
        return image_chw
    height, width = image_chw.shape[1:]
    if task.crop == "centre":
        longest = int(SHORT_SIDE * max(height, width) / min(height, width))
        sides = (SHORT_SIDE, longest) if height <= width else (longest, SHORT_SIDE)
        return center_crop(_resized(image_chw, *sides), [SIZE, SIZE])
    box = RandomResizedCrop(SIZE).make_params([image_chw])
    top, left = box["top"], box["left"]
    cut = image_chw[:, top : top + box["height"], left : left + box["width"]]
    return _resized(cut, SIZE, SIZE)


def _resized(image_chw: Any, height: int, width: int) -> Any:  # noqa: ANN401 - tensors
    from torch.nn.functional import interpolate

    return interpolate(
        image_chw[None], size=(height, width), mode="bilinear", antialias=True, align_corners=False
    )[0]
