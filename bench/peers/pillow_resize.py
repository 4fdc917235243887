"""Pillow in processes: open, convert to RGB, antialiased bilinear resize, save as JPEG.

Pillow is a dependency of the project: nothing to install.
"""

from collections.abc import Sequence
from importlib.metadata import version
from io import BytesIO
from pathlib import Path

from PIL import Image


def versions() -> dict[str, str]:
    """Return the version of Pillow."""
    return {"pillow": version("pillow")}


def reencode(paths: Sequence[Path], short_side: int, quality: int) -> list[bytes]:
    """Return JPEGs whose short side is at most ``short_side``."""
    return [_reencode(path, short_side, quality) for path in paths]


def _reencode(path: Path, short_side: int, quality: int) -> bytes:
    with Image.open(path) as image:
        pixels = image.convert("RGB")
    scale = min(1.0, short_side / min(pixels.size))
    if scale < 1:
        size = round(pixels.width * scale), round(pixels.height * scale)
        pixels = pixels.resize(size, Image.Resampling.BILINEAR)
    encoded = BytesIO()
    pixels.save(encoded, "JPEG", quality=quality)
    return encoded.getvalue()
