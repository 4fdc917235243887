"""Distance of each decoder from Pillow with torchvision.

    python -m coreset.bench.pixels [--data FOLDER]

FOLDER holds ``imagenet-sample`` and ``imagenette/train``. The reference is made by
``torchvision.transforms.v2`` on Pillow images, not by code of this project. Nothing is timed.
Writes ``bench/results/pixels.jsonl``.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import tyro
from numpy.typing import NDArray
from PIL import Image

from coreset.bench.docs import Block, Table
from coreset.bench.harness import Options, Row, records_of
from coreset.engine.data.decoders import TOLERANCES, DecoderName, EncodedBatch, make_decoder
from coreset.engine.data.geometry import Box, Crops, Geometry
from coreset.kernels.seeds import permutation

Pixels: TypeAlias = NDArray[np.uint8]
Boxes: TypeAlias = NDArray[np.int64] | None
SEED, BATCH = 0, 64
DECODERS = (DecoderName.TURBO, DecoderName.DALI, DecoderName.FAST, DecoderName.PILLOW)


@dataclass(frozen=True, slots=True, kw_only=True)
class PixelsBench(Options):
    """Measure the pixel contract."""

    originals: int | None = None
    """Images of ImageNet whose pixels are compared; all by default."""
    imagenette: int = 500
    """Images of ImageNette whose pixels are compared, drawn with a fixed seed."""

    def run(self) -> None:
        """Compare every decoder, print and record the results."""
        self.record_parts("pixels", {"pixels": self._rows})

    def _rows(self) -> Iterator[Row]:
        originals = read_images("imagenet", self.data / "imagenet-sample", self.originals)
        small = self.data / "imagenette" / "train"
        for images in (originals, read_images("imagenette", small, self.imagenette)):
            for transform in (*REGIONS, *WHOLE):
                yield pixel_row(images, transform)


@dataclass(frozen=True, slots=True, kw_only=True)
class Images:
    """Encoded images."""

    name: str
    data: list[bytes]
    widths: NDArray[np.int64]
    heights: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.data)

    def where(self, chosen: NDArray[np.bool_]) -> "Images":
        """Select some of the images."""
        data = [one for one, keep in zip(self.data, chosen, strict=True) if keep]
        columns = {name: getattr(self, name)[chosen] for name in ("widths", "heights")}
        return Images(name=self.name, data=data, **columns)


@dataclass(frozen=True, slots=True)
class Transform:
    """Transform of a stored image to a square."""

    name: str
    geometry: Geometry
    boxes: Callable[[Images], Boxes] = lambda _: None
    """Region of each image to squash to the square instead of what the geometry says."""
    smallest: int = 1
    """Short side in pixels of the images that it is measured on."""


def central_boxes(images: Images) -> NDArray[np.int64]:
    """Return the central 224 x 224 pixels, which need no resize."""
    left, top = (images.widths - 224) // 2, (images.heights - 224) // 2
    return np.stack([left, top, left + 224, top + 224], axis=1)


def random_boxes(images: Images) -> NDArray[np.int64]:
    """Draw a random resized crop of each image."""
    ids = np.arange(len(images), dtype=np.int64)
    return Crops().boxes(ids, images.widths, images.heights, seed=SEED, epoch=0)


WHOLE = (
    Transform("resize 256, centre 224", Geometry(224, 256)),
    *(Transform(f"short side and centre {size}", Geometry(size, size)) for size in (176, 128, 64)),
    *(Transform(f"squash to {size}", Geometry(size)) for size in (224, 64)),
)
REGIONS = (
    Transform("no resize, centre 224", Geometry(224), central_boxes, smallest=224),
    Transform("random resized crop 224", Geometry(224), random_boxes),
)


def read_images(name: str, folder: Path, n: int | None = None) -> Images:
    """Read the images in class folders, or ``n`` of them drawn with a fixed seed."""
    paths = sorted(folder.glob("*/*"))
    files = [paths[row] for row in np.sort(permutation(len(paths), SEED)[:n])]
    data = [file.read_bytes() for file in files]
    sizes = np.array([Image.open(file).size for file in files], dtype=np.int64)
    return Images(name=name, data=data, widths=sizes[:, 0], heights=sizes[:, 1])


def reference(images: Images, geometry: Geometry, boxes: Boxes = None) -> Pixels:
    """Decode and transform the images with torchvision, uint8 of shape (n, s, s, 3)."""
    regions = [None] * len(images) if boxes is None else map(tuple, boxes.tolist())
    pairs = zip(images.data, regions, strict=True)
    return np.stack([reference_pixels(one, geometry, region) for one, region in pairs])


def reference_pixels(data: bytes, geometry: Geometry, region: Box | None = None) -> Pixels:
    """Decode and transform one image or a region of it with torchvision, uint8 (s, s, 3)."""
    from torchvision.transforms.v2 import functional

    size = [geometry.size, geometry.size]
    with Image.open(BytesIO(data)) as opened:
        image: Any = opened.convert("RGB")  # torchvision's annotations know tensors alone
    if region is not None:
        left, top, right, bottom = region
        placed = functional.resized_crop(image, top, left, bottom - top, right - left, size)
    elif geometry.resize is None:
        placed = functional.resize(image, size)
    else:
        placed = functional.center_crop(functional.resize(image, [geometry.resize]), size)
    return np.asarray(placed)


def decoded(name: DecoderName, geometry: Geometry, images: Images, boxes: Boxes = None) -> Pixels:
    """Decode the images with one of our decoders, uint8 of shape (n, s, s, 3)."""
    pixels = np.empty((len(images), geometry.size, geometry.size, 3), np.uint8)
    exact = name is DecoderName.PILLOW
    with closing(make_decoder(name, geometry, device="cpu", workers=0, exact=exact)) as decoder:
        for first in range(0, len(images), BATCH):
            some = slice(first, first + BATCH)
            crops = None if boxes is None else boxes[some]
            sizes = images.widths[some], images.heights[some]
            batch = decoder.decode(EncodedBatch(images.data[some], *sizes, crops))
            pixels[some] = batch.permute(0, 2, 3, 1).numpy()
    return pixels


def pixel_row(images: Images, transform: Transform) -> Row:
    """Compare each decoder with the reference."""
    images = images.where(np.minimum(images.widths, images.heights) >= transform.smallest)
    geometry, boxes = transform.geometry, transform.boxes(images)
    expected = reference(images, geometry, boxes)
    decoders: Row = {}
    for name in DECODERS:
        pixels = decoded(name, geometry, images, boxes)
        levels = np.abs(pixels.astype(np.int16) - expected)
        differences = {"largest": int(levels.max()), "mean": float(levels.mean())}
        decoders[name] = {
            "judged": TOLERANCES[name].difference(pixels, expected),
            "all": differences | {"over_0": float((levels > 0).mean())},
        }
    row = {"input": images.name, "images": len(images), "transform": transform.name}
    return {**row, "decoders": decoders}


def _records() -> list[Row]:
    rows = records_of("pixels.pixels")
    return [row for row in rows if row["input"] in {"imagenet", "imagenette"}]


def _name(decoder: str) -> str:
    return "pillow (exact)" if decoder == "pillow" else decoder


def _tolerances() -> Iterator[Row]:
    """Return the promise for each decoder, beside the worst that was measured."""
    for name, tolerance in TOLERANCES.items():
        judged = [row["decoders"][name]["judged"] for row in _records()]
        row = {
            bound: f"{getattr(tolerance, bound):.3g} ({max(each[bound] for each in judged):.3g})"
            for bound in ("largest", "largest_at_edge", "mean")
        }
        outer = f"{row['largest_at_edge']} in the outer {tolerance.edge} pixels"
        yield row | {"decoder": _name(name), "outer": outer if tolerance.edge else "the same"}


def _difference(decoder: str, row: Row) -> str:
    """Render largest and mean difference, and the share of values that differ."""
    levels = row["decoders"][decoder]["all"]
    return "{largest} / {mean:.2f} / {over_0:.1%}".format_map(levels) if levels["largest"] else "0"


def _circumstances() -> str:
    row = _records()[0]
    names = ("simplejpeg", "nvidia-dali-cuda130", "pillow", "torchvision", "torch")
    used = ", ".join(f"{name} {row['versions'][name]}" for name in names if name in row["versions"])
    counts = {row["input"]: row["images"] for row in _records()}
    images = ", ".join(f"{name} {n}" for name, n in counts.items())
    return f"Images: {images}. {used}; {row['date']}, commit {row['commit']}."


BLOCKS: Mapping[str, Block] = {
    "pixels_tolerances": Table(
        _tolerances,
        {
            "decoder": "{decoder}",
            "largest": "{largest}",
            "at the edge": "{outer}",
            "mean of an image": "{mean}",
        },
    ),
    "pixels_differences": Table(
        _records,
        {
            "images": "{input}",
            "transform": "{transform}",
            **{_name(decoder): partial(_difference, decoder) for decoder in DECODERS},
        },
    ),
    "pixels_circumstances": _circumstances,
}


if __name__ == "__main__":
    tyro.cli(PixelsBench).run()
