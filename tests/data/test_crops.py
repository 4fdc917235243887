import threading

import numpy as np
import pytest
import torch

from coreset.engine.data.crops import crops_on_cpu, for_each
from coreset.kernels.augment import resized_crops
from coreset.kernels.seeds import crop_boxes

HALF_A_LEVEL = 0.55
"""And the twentieth that the kernel's integer weights add."""


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize(
    ("height", "width", "side"), [(90, 120, 64), (40, 30, 96), (7, 5, 3), (1, 1, 4), (400, 300, 31)]
)
def test_crops_are_the_float_crops_rounded_to_whole_levels(
    height, width, side, channels_last, workers
):
    rng = np.random.default_rng(height)
    pixels = torch.from_numpy(rng.integers(0, 256, (7, height, width, 3), dtype=np.uint8))
    images = pixels.permute(0, 3, 1, 2)
    if not channels_last:
        images = images.contiguous()
    sizes = np.full(7, width), np.full(7, height)
    boxes = torch.from_numpy(crop_boxes(np.arange(7), *sizes, 3, (0.05, 1.0), (3 / 4, 4 / 3)))
    crops = crops_on_cpu(images, boxes, side, workers=workers)
    assert crops.dtype == torch.uint8
    assert crops.permute(0, 2, 3, 1).is_contiguous()
    expected = 255 * resized_crops(images, boxes, side)
    torch.testing.assert_close(crops.float(), expected, atol=HALF_A_LEVEL, rtol=0)


def test_all_is_done_by_so_many_threads_at_once_and_an_error_comes_after_the_rest():
    done, together = [], threading.Barrier(3)

    def work(position):
        if position < 3:
            together.wait(timeout=30)  # one thread would wait for ever
        done.append(position)
        if position == 4:
            raise ValueError("the fourth")

    with pytest.raises(ValueError, match="the fourth"):
        for_each(work, 20, workers=3)
    assert sorted(done) == list(range(20))
