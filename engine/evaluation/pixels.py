"""Quality of a condensed set's images: size, codec, bytes, nearly one colour, no sharp edges."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from coreset.engine.condensed.condensed_set import CondensedSet
from coreset.engine.condensed.imported import LEAST_SPREAD

if TYPE_CHECKING:
    from coreset.engine.models.features import FeatureSpec

SIDE = 224
"""Pixels of the squares that images are squashed to before they are looked at."""
LEAST_SHARPNESS = 100.0
"""Variance of the Laplacian of the grey levels below which an image has no sharp edges
(Pech-Pacheco et al., ICPR 2000; the limit is the usual one among users of OpenCV)."""


def pixel_measures(condensed: CondensedSet, spec: "FeatureSpec") -> Mapping[str, float]:
    """Decode the images of a set once, and measure them."""
    from coreset.engine.data.geometry import Geometry
    from coreset.engine.data.order import BatchOrder
    from coreset.engine.data.stream import ImageStream

    dataset, ids = condensed.dataset, condensed.ids
    n_pixels = dataset.ints("width")[ids] * dataset.ints("height")[ids]
    spreads, sharpness = list[float](), list[float]()
    geometry = Geometry(SIDE, None)
    with ImageStream(dataset, geometry, decoder="auto", workers=spec.workers, ids=ids) as stream:
        for batch in stream.epoch(BatchOrder(batch=spec.batch)):
            for image in batch.images.permute(0, 2, 3, 1).numpy():
                grey = grey_levels(image)
                spreads.append(float(grey.std()))
                sharpness.append(laplacian_variance(grey))
    kinds = dataset.table(["format"])["format"].take(ids).to_pylist()
    return {
        "pixels": float(n_pixels.mean()),
        "jpeg": kinds.count("jpg") / len(kinds),
        "bytes_per_pixel": float(condensed.image_bytes / n_pixels.sum()),
        "near_constant": float(np.mean(np.array(spreads) < LEAST_SPREAD)),
        "blurred": float(np.mean(np.array(sharpness) < LEAST_SHARPNESS)),
    }


def grey_levels(image_hwc: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return the luma (ITU-R BT.601) of an RGB image, 0 to 255, float32 of shape (h, w)."""
    return image_hwc.astype(np.float32) @ np.array([0.299, 0.587, 0.114], np.float32)


def laplacian_variance(grey: NDArray[np.float32]) -> float:
    """Return the variance of the 4-neighbour Laplacian within the image."""
    inner = grey[1:-1, 1:-1]
    around = grey[:-2, 1:-1] + grey[2:, 1:-1] + grey[1:-1, :-2] + grey[1:-1, 2:]
    return float((around - 4 * inner).var())
