import numpy as np
import pytest

from coreset.kernels.jpeg.normalise import PLANE_ALIGNMENT, factors_of, normalised_planes


@pytest.mark.parametrize("offset", [0, 1])
@pytest.mark.parametrize(("height", "width"), [(1, 1), (7, 5), (4, 4), (64, 33), (64, 64)])
def test_planes_are_the_normalised_channels(height, width, offset):
    """At an offset of 0 the sizes that are multiples of 16 are written past the caches."""
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    image = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    memory = np.empty(image.size + 32, np.float32)
    start = -memory.ctypes.data % PLANE_ALIGNMENT // 4 + offset
    planes = memory[start : start + image.size].reshape(3, height, width)
    normalised_planes(image, factors_of(mean, std), planes)
    np.testing.assert_allclose(planes, ((image / 255 - mean) / std).transpose(2, 0, 1), atol=1e-6)


def test_only_the_planes_that_are_given_are_written():
    batch = np.full((3, 3, 4, 5), 9, np.float32)
    image = np.zeros((4, 5, 3), np.uint8)
    normalised_planes(image, factors_of((0.5, 0.5, 0.5), (1, 1, 1)), batch[1])
    assert (batch[1] == -0.5).all()
    assert (batch[[0, 2]] == 9).all()
