"""Resizer of img2dataset (OpenCV, area interpolation), one image at a time in processes.

    uv pip install --target FOLDER/img2dataset --no-deps img2dataset 'opencv-python-headless<5' \
        'albumentations<2' albucore==0.0.23 pydantic pydantic-core annotated-types \
        typing-inspection stringzilla simsimd

Those are the packages that the resizer needs. Its file is loaded alone, because the package imports
wandb and a downloader, which have no part in the work.
"""

import importlib.util
import sys
from collections.abc import Sequence
from functools import cache
from importlib.metadata import version
from io import BytesIO
from pathlib import Path
from typing import Any


def versions() -> dict[str, str]:
    """Import the resizer; versions of img2dataset and of what does its work."""
    _resizer_module()
    names = ("img2dataset", "opencv-python-headless", "albumentations")
    return {name: version(name) for name in names}


def reencode(paths: Sequence[Path], short_side: int, quality: int) -> list[bytes]:
    """Return JPEGs whose short side is at most ``short_side``."""
    resizer = _resizer(short_side, quality)
    encoded: list[bytes] = []
    for path in paths:
        image, *_, error = resizer(BytesIO(path.read_bytes()))
        if error:
            raise ValueError(f"img2dataset refuses {path.name} ({error}); leave it out")
        encoded.append(image)
    return encoded


@cache
def _resizer(short_side: int, quality: int) -> Any:  # noqa: ANN401 - a class of img2dataset
    return _resizer_module().Resizer(
        image_size=short_side,
        resize_mode="keep_ratio",  # the short side becomes image_size
        resize_only_if_bigger=True,
        encode_quality=quality,
        encode_format="jpg",
    )


@cache
def _resizer_module() -> Any:  # noqa: ANN401 - a module of img2dataset
    package = importlib.util.find_spec("img2dataset")
    if package is None or package.origin is None:
        raise ModuleNotFoundError("No module named 'img2dataset'")
    place = Path(package.origin).with_name("resizer.py")
    spec = importlib.util.spec_from_file_location("img2dataset_resizer", place)
    if spec is None or spec.loader is None:
        raise ModuleNotFoundError(f"{place} cannot be loaded")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module
