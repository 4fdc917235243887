"""Crops of decoded images on a CPU, by the resampling kernel, image by image in threads."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from coreset.engine.data.geometry import Box, Ints, Pixels
from coreset.kernels.jpeg.resize import resize
from coreset.shards.errors import CoresetError


def crops_on_cpu(images: Tensor, boxes: Tensor, side: int, *, workers: int) -> Tensor:
    """Crop each image to its box and resize it bilinearly to side x side, in ``workers`` threads.

    Images are uint8 of shape (b, 3, h, w), boxes are left, top, right and bottom in pixels, int64
    of shape (b, 4), both on the CPU. Crops are stored channels last, as the images are best.

    Unlike ``kernels.augment.resized_crops``, whose matrices suit a GPU and are fifteen times slower
    on a CPU, it rounds to whole levels. They differ by at most half a level and a twentieth of one,
    which the kernel's integer weights add.
    """
    images_nhwc = images.permute(0, 2, 3, 1).contiguous().numpy()
    boxes_b4 = boxes.numpy()
    crops = np.empty((len(images_nhwc), side, side, 3), np.uint8)

    def crop(position: int) -> None:
        crop_into(crops[position], images_nhwc[position], boxes_b4[position])

    for_each(crop, len(crops), workers=workers)
    return torch.from_numpy(crops).permute(0, 3, 1, 2)


def crop_into(out: NDArray[Any], image_hwc: Pixels, box: Ints) -> None:
    """Resize the region ``box`` (int64 of shape (4,)) to the whole of ``out``, shape (s, s, 3).

    ``out`` is uint8, or uint16 for 256 times the levels with their fractions.
    """
    side = len(out)
    resize(image_hwc, side, side, region=cast("Box", tuple(box.tolist())), out=out)


def for_each(work: Callable[[int], None], n: int, *, workers: int) -> None:
    """Call ``work`` for 0 .. n-1 in threads; an error of one call is raised after the others.

    Of several expected errors it is the first by position, whichever thread was faster.
    """
    positions = iter(range(n))  # shared: a thread that is done takes the next
    errors: dict[int, CoresetError] = {}

    def work_some() -> None:
        for position in positions:
            try:
                work(position)
            except CoresetError as error:
                errors[position] = error

    with ThreadPoolExecutor(workers, thread_name_prefix="crop") as threads:
        for part in [threads.submit(work_some) for _ in range(workers)]:
            part.result()
    if errors:
        raise errors[min(errors)]
