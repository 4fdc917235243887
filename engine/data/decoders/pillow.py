"""The reference decoder: Pillow, with torchvision's semantics, for every stored format.

It defines what the fast decoders must come close to, and decodes what they do not take (PNG, WebP,
CMYK, odd samplings). EXIF orientation is ignored, as in torchvision's ``ImageFolder``.
"""

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from coreset.engine.data.decoders.enlarge import enlarged_box
from coreset.engine.data.geometry import Box, Geometry, Placement
from coreset.shards.images.pillow import as_rgb, opened

_MOST_RESIZED = 4
"""Pixels that may be resized to cut a crop out of them, to those of the image and of the crop."""


def decode_with_pillow(
    data: bytes,
    geometry: Geometry,
    stored_size: tuple[int, int] | None = None,
    crop: Box | None = None,
) -> NDArray[np.uint8]:
    """Decode one image to RGB and bring it to ``geometry``, or its region ``crop`` to the square.

    Grey is repeated, palettes are resolved, alpha is dropped (not blended), CMYK is converted as
    Pillow does. Unlike ``convert("RGB")``, which saturates, 16-bit grey is scaled to 8 bits. Takes
    memory in proportion to the image and the output.

    Args:
        data: A JPEG, PNG or WebP file.
        geometry: Output size and crop.
        stored_size: Width and height that the index promises; checked before any pixel is decoded.
        crop: Region of the image instead of the geometry's.

    Returns:
        uint8 of shape (s, s, 3).

    Raises:
        ValueError: Pillow cannot decode ``data``, or it has another size than ``stored_size``.
    """
    with opened(data, stored_size) as image:
        pixels = as_rgb(image)
    return _placed(pixels, geometry.place(*pixels.size, crop))


def _placed(image: Image.Image, placement: Placement) -> NDArray[np.uint8]:
    region, width, height, box = placement
    if region != (0, 0, *image.size):
        image = image.crop(region)
    left, top, right, bottom = box
    n_needed = image.width * image.height + (right - left) * (bottom - top)
    if width * height > _MOST_RESIZED * n_needed:
        return enlarged_box(np.asarray(image), width, height, box)
    if image.size != (width, height):
        image = image.resize((width, height), Image.Resampling.BILINEAR)
    return np.array(image.crop(box))
