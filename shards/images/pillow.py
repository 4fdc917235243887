"""Open images with Pillow, with one kind of error for whatever is wrong with them."""

import re
import warnings
from collections.abc import Generator
from contextlib import contextmanager
from io import BytesIO

import numpy as np
from PIL import Image

FORMATS = ("JPEG", "PNG", "WEBP")


@contextmanager
def opened(
    data: bytes, size: tuple[int, int] | None = None, formats: tuple[str, ...] = FORMATS
) -> Generator[Image.Image]:
    """Open an image file, without warnings and without decoding a pixel.

    Args:
        data: The file.
        size: Width and height that it must have, so that nothing larger is decoded.
        formats: Names of Pillow's readers that may be tried.

    Raises:
        ValueError: The file has another size, or Pillow cannot read it; also from within the block.
    """
    # For good, not in catch_warnings, which is not thread safe; setting it again changes nothing.
    warnings.filterwarnings("ignore", module=r"PIL\.")
    try:
        with Image.open(BytesIO(data), formats=formats) as image:
            _require_size(image, size)
            # Read at once: of a file that comes in pieces, what lies between two markers is
            # searched from its beginning with every piece.
            image.decodermaxblock = len(data)  # pyright: ignore[reportAttributeAccessIssue] - not in the stubs
            yield image
    except MemoryError:
        raise
    except Exception as error:
        # The address of the buffer differs from run to run.
        text = re.sub(r"<_io\.BytesIO object at 0x[0-9a-f]+>", "", str(error)).strip()
        if not text or not isinstance(error, OSError | SyntaxError | ValueError):
            text = f"{type(error).__name__} {text}".strip()
        raise ValueError(text) from error


def as_rgb(image: Image.Image) -> Image.Image:
    """Convert a Pillow image to 8-bit RGB.

    Grey is repeated, palettes are resolved, alpha is dropped (not blended), CMYK is converted as
    Pillow does. Unlike ``convert("RGB")``, which saturates, 16-bit grey is scaled to 8 bits.
    """
    if image.mode.startswith("I"):
        values = np.asarray(image).astype(np.uint32)
        image = Image.fromarray(((values * 255 + 32767) // 65535).astype(np.uint8))
    return image.convert("RGB")


def _require_size(image: Image.Image, size: tuple[int, int] | None) -> None:
    if size is not None and image.size != size:
        raise ValueError(f"it has {image.size} pixels, the index says {size}")
