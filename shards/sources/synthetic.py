"""Synthetic image-classification sets of JPEG files, for benchmarks and tests at scale.

An image is a function of the configuration and its position alone. A small canvas is enlarged under
fine texture. It shows the layout of its class (colours in fixed places, slightly shifted, for a
linear classifier), the motif of its class (a periodic pattern in a random phase, which survives
random crops), and clutter. Shapes and bytes follow 300 ImageNet training files. Pixels use only
operations that IEEE 754 rounds exactly (no transcendental functions, no BLAS); the JPEG bytes are
those of the installed libjpeg-turbo.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Literal, NamedTuple, TypeAlias

import numpy as np
import simplejpeg
from numpy.typing import NDArray

from coreset.kernels.seeds import Stream, derived_seed, permutation, random_keys
from coreset.shards.errors import UsageError
from coreset.shards.sources.base import Sample, Source
from coreset.shards.sources.finder import Finder, Found

Floats: TypeAlias = NDArray[np.float32]

MIN_SIDE, MAX_SIDE = 8, 2048

_CANVAS_CELLS, _LAYOUT_CELLS, _MOTIF_CELLS, _CLUTTER_CELLS = 32, 4, 8, 8
_MAX_SHIFT = 6  # canvas cells by which an image may shift the layout of its class
# Deviation from mid-grey that a full swing of each part makes in Y', Cb and Cr (JFIF, 0 to 255).
_LAYOUT_SWING, _MOTIF_SWING, _CLUTTER_SWING = (
    np.array(swing, dtype=np.float32)[:, None, None]
    for swing in ((64, 48, 48), (24, 16, 16), (40, 24, 24))
)
# Share of the distractor class in the most difficult image; beyond 1/2 it prevails.
_MAX_DISTRACTION = 0.7

_BYTES_PER_IMAGENET_IMAGE = 115_000  # for the check of the disk before any is generated
_TEXTURE_SHARES = (1.0, 0.5, 0.5)  # strength of the texture in Y', Cb and Cr
_TEXTURE_DEVIATION = 32  # standard deviation of the texture tile, in steps of int8


class _Encoding(NamedTuple):
    """Kind of JPEG file, and the texture that gives it the bytes of the measured files."""

    quality: int
    chroma_step: int
    """Luma pixels per chroma pixel in each direction."""
    deviations: tuple[float, ...]
    """Standard deviation of the luma texture at the quantiles ``_QUANTILES``."""


_QUANTILES = (0, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 1)
_FULL = _Encoding(96, 1, (0, 0, 0.8, 2.8, 4.5, 6.1, 8.2, 9.4, 14))
_HALVED = _Encoding(80, 2, (0, 1.5, 2.2, 3.6, 7.5, 11.3, 18.9, 25.0, 60))
_HALVED_SHARE, _GREY_SHARE = 0.24, 0.02

_COMMON_SHAPES = ((500, 375), (375, 500), (500, 333), (333, 500))
_COMMON_SHARES = (0.20, 0.09, 0.12, 0.04)
# Of the other shapes: quantiles of the longer side and of the shorter side's share of it.
_LONG_SIDES = (100, 223, 300, 400, 500, 500, 682, 876, 1500)
_ASPECTS = (0.38, 0.54, 0.62, 0.67, 0.75, 0.81, 0.98, 1, 1)
_LANDSCAPE_SHARE = 0.68


# Uniform numbers in [0, 1) that make one image, in the order in which they are drawn.
_DRAWS: tuple[str, ...] = (
    "shape", "side", "aspect", "orientation", "encoding", "texture", "texture_row",
    "texture_column", "distractor", "shift_down", "shift_right", "motif_row", "motif_column",
    "contrast", "brightness",
)  # fmt: skip
_Draws: TypeAlias = dict[str, float]


@dataclass(frozen=True, kw_only=True)
class Synthetic:
    """Synthetic data set; arrays have the shape (images,)."""

    images: int
    """Images."""
    classes: int = 10
    """Classes, of equal sizes."""
    seed: int = 0
    """Seed of the images; another seed makes other images of the same classes, such as for
    validation."""
    class_seed: int = 0
    """Seed of the colours and patterns of the classes."""
    label_noise: float = 0.05
    """Share of the images whose label is that of another class, each equally likely."""
    size: int | Literal["imagenet"] = "imagenet"
    """ImageNet's distribution of sizes, or the side of small square images in pixels."""

    def __post_init__(self) -> None:
        images, classes, size, noise = self.images, self.classes, self.size, self.label_noise
        if classes < 2:
            raise UsageError(f"classes must be 2 or more, got {classes}")
        if images < classes:
            raise UsageError(f"images must be at least one a class ({classes}), got {images}")
        if not 0 <= noise < 1:
            raise UsageError(f"label_noise must be in [0, 1), got {noise}")
        if size != "imagenet" and not MIN_SIDE <= size <= MAX_SIDE:
            limits = f"{MIN_SIDE} to {MAX_SIDE} pixels"
            raise UsageError(f"size must be imagenet or {limits}, got {size}")

    @cached_property
    def true_labels(self) -> NDArray[np.int64]:
        """Class that each image shows; class sizes differ by one at most."""
        seed = derived_seed(self.seed, Stream.TRUE_LABEL)
        return permutation(self.images, seed) % self.classes

    @cached_property
    def labels(self) -> NDArray[np.int64]:
        """Labels with exactly ``round(label_noise * images)`` flips; a small class may be empty."""
        seed = derived_seed(self.seed, Stream.FLIP)
        other_seed = derived_seed(self.seed, Stream.OTHER_LABEL)
        flips = permutation(self.images, seed)[: round(self.label_noise * self.images)]
        steps = 1 + (random_keys(flips.size, other_seed) % np.uint64(self.classes - 1))
        labels = self.true_labels.copy()
        labels[flips] = (labels[flips] + steps.astype(np.int64)) % self.classes
        return labels

    @cached_property
    def difficulty(self) -> Floats:
        """Share of distracting structure in each image, in [0, 1], mean 1/3; not of the flips."""
        seed = derived_seed(self.seed, Stream.DIFFICULTY)
        return (_uniforms(self.images, seed) ** 2).astype(np.float32)

    @property
    def class_names(self) -> tuple[str, ...]:
        """``class_0000`` ...: names sort like labels."""
        digits = max(4, len(str(self.classes - 1)))
        return tuple(f"class_{label:0{digits}}" for label in range(self.classes))

    @property
    def keys(self) -> list[str]:
        """Sample key of every image: observed class and position, ``class_0003/000000042``."""
        names = self.class_names
        return [f"{names[label]}/{at:09}" for at, label in enumerate(self.labels.tolist())]

    def truth(self) -> dict[str, list[str] | NDArray[np.generic]]:
        """Return the columns of the true table, one row per position; ``flipped`` is bool."""
        return {
            "key": self.keys,
            "true_label": self.true_labels,
            "label": self.labels,
            "flipped": self.labels != self.true_labels,
            "difficulty": self.difficulty,
        }

    def jpeg(self, position: int) -> bytes:
        """Encode the JPEG file of the image at a position in [0, images); thread safe."""
        quality, (luma, *chroma) = self._planes(position)
        cb, cr = chroma or (None, None)
        # With halved chroma, libjpeg-turbo reads odd luma planes up to the next even height and
        # width (tjCompressFromYUVPlanes), past the end of the array: pad it.
        luma = np.concatenate([luma, luma[-1:], luma[-1:]])[: len(luma)]
        return simplejpeg.encode_jpeg_yuv_planes(luma, cb, cr, quality)

    def read(self, sample: Sample) -> bytes:
        """Generate one sample, see ``Contents.read``."""
        return self.jpeg(position_of(sample.key))

    def state(self) -> Iterator[str]:
        """Yield nothing: synthetic images cannot change."""
        return iter(())

    def _planes(self, position: int) -> tuple[int, list[NDArray[np.uint8]]]:
        """Return JPEG quality, and Y', Cb and Cr or Y' alone, uint8 of shape (rows, columns)."""
        if not 0 <= position < self.images:
            raise UsageError(f"position must be in [0, {self.images}), got {position}")
        n_clutter = 3 * _CLUTTER_CELLS**2
        seed = derived_seed(self.seed, Stream.IMAGE, position)
        numbers = _uniforms(n_clutter + len(_DRAWS), seed)
        draws = dict(zip(_DRAWS, numbers[n_clutter:].tolist(), strict=True))
        clutter = (numbers[:n_clutter] * 2 - 1).astype(np.float32)
        canvas = self._canvas(position, draws, clutter.reshape(3, _CLUTTER_CELLS, -1))
        shape = _imagenet_shape(draws) if self.size == "imagenet" else (self.size, self.size)
        encoding = _HALVED if draws["encoding"] < _HALVED_SHARE else _FULL
        channels = 1 if draws["encoding"] >= 1 - _GREY_SHARE else 3
        planes = [_plane(canvas[at], at, shape, encoding, draws) for at in range(channels)]
        return encoding.quality, planes

    def _canvas(self, position: int, draws: _Draws, clutter: Floats) -> Floats:
        """Draw the low-frequency content, float32 of shape (3, cells, cells) in [0, 255]."""
        label, difficulty = int(self.true_labels[position]), self.difficulty[position]
        distracting = (label + 1 + int(draws["distractor"] * (self.classes - 1))) % self.classes
        own, distractor = self._class_pattern(label), self._class_pattern(distracting)
        pattern = own + difficulty * np.float32(_MAX_DISTRACTION) * (distractor - own)
        layout, motif = np.split(pattern, [3 * _LAYOUT_CELLS**2])
        large = _CANVAS_CELLS + _MAX_SHIFT
        layout = _enlarged(layout.reshape(3, _LAYOUT_CELLS, -1), large, large)
        top, left = (int(u * (_MAX_SHIFT + 1)) for u in (draws["shift_down"], draws["shift_right"]))
        canvas = _LAYOUT_SWING * layout[:, top:, left:][:, :_CANVAS_CELLS, :_CANVAS_CELLS]
        phase = (int(draws["motif_row"] * _MOTIF_CELLS), int(draws["motif_column"] * _MOTIF_CELLS))
        motif = np.roll(motif.reshape(3, _MOTIF_CELLS, -1), phase, axis=(1, 2))
        repeats = _CANVAS_CELLS // _MOTIF_CELLS
        canvas += _MOTIF_SWING * np.tile(motif, (1, repeats, repeats))
        clutter = _enlarged(clutter, _CANVAS_CELLS, _CANVAS_CELLS)
        canvas += _CLUTTER_SWING * (0.25 + 0.75 * difficulty) * clutter
        canvas *= np.float32(0.6 + 0.5 * draws["contrast"])
        canvas[0] += np.float32(40 * (draws["brightness"] - 0.5))
        return np.clip(canvas + np.float32(128), 0, 255)

    def _class_pattern(self, label: int) -> Floats:
        """Draw layout and motif of a class, end to end, float32 in [-1, 1)."""
        n = 3 * (_LAYOUT_CELLS**2 + _MOTIF_CELLS**2)
        uniforms = _uniforms(n, derived_seed(self.class_seed, Stream.CLASS, label))
        return (uniforms * 2 - 1).astype(np.float32)


def position_of(key: str) -> int:
    """Return the position among the synthetic images that a sample key names."""
    return int(key.rpartition("/")[2])


def synthetic_source(synthetic: Synthetic) -> Source:
    """Return all images of a synthetic set as samples of their observed classes."""
    size = _BYTES_PER_IMAGENET_IMAGE
    if synthetic.size != "imagenet":
        size = max(len(synthetic.jpeg(position)) for position in range(min(8, synthetic.images)))
    finder = Finder(place=Path("synthetic images"))
    finder.add([Found(key.partition("/")[0], key, f"{key}.jpg", size) for key in synthetic.keys])
    return finder.source(lambda _: synthetic, classes=synthetic.class_names)


def _uniforms(n: int, seed: int) -> NDArray[np.float64]:
    """Draw uniform numbers in [0, 1): the upper 53 bits of each key, exact in float64."""
    return (random_keys(n, seed) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _imagenet_shape(draws: _Draws) -> tuple[int, int]:
    upto = np.cumsum(_COMMON_SHARES)
    if draws["shape"] < upto[-1]:
        width, height = _COMMON_SHAPES[int(np.searchsorted(upto, draws["shape"], side="right"))]
        return height, width
    long = round(float(np.interp(draws["side"], _QUANTILES, _LONG_SIDES)))
    short = round(long * float(np.interp(draws["aspect"], _QUANTILES, _ASPECTS)))
    return (short, long) if draws["orientation"] < _LANDSCAPE_SHARE else (long, short)


def _enlarged(cells: Floats, height: int, width: int) -> Floats:
    """Enlarge (..., rows, columns) bilinearly, corners on corners."""
    wide = np.ascontiguousarray(_stretched(cells.swapaxes(-1, -2), width).swapaxes(-1, -2))
    return _stretched(wide, height)


def _stretched(rows: Floats, n: int) -> Floats:
    at = np.arange(n) * ((rows.shape[-2] - 1) / (n - 1))
    above = np.minimum(at.astype(np.int64), rows.shape[-2] - 2)
    result = np.diff(rows, axis=-2).take(above, axis=-2)
    result *= (at - above).astype(np.float32)[:, None]
    result += rows.take(above, axis=-2)
    return result


def _plane(
    cells: Floats, channel: int, shape: tuple[int, int], encoding: _Encoding, draws: _Draws
) -> NDArray[np.uint8]:
    """Enlarge a channel of the canvas and add a window of the texture tile."""
    step = encoding.chroma_step if channel else 1
    height, width = (-(-side // step) for side in shape)
    row, column = (
        int((u + channel / 3) % 1 * (MAX_SIDE - side + 1))
        for u, side in ((draws["texture_row"], height), (draws["texture_column"], width))
    )
    deviation = np.interp(draws["texture"], _QUANTILES, encoding.deviations)
    # In 64ths, whatever the last bit of the interpolation is on this machine.
    strength = round(64 * float(deviation)) * _TEXTURE_SHARES[channel] / (64 * _TEXTURE_DEVIATION)
    plane = _enlarged(cells, height, width)
    plane += _texture_tile()[row : row + height, column : column + width] * np.float32(strength)
    plane += np.float32(0.5)
    return np.clip(plane, 0, 255, out=plane).astype(np.uint8)


@cache
def _texture_tile() -> NDArray[np.int8]:
    """Draw white noise under its sums over 2 x 2 pixels, int8 of shape (MAX_SIDE, MAX_SIDE)."""
    # Two sums of four uniform bytes from each key: nearly normal, with standard deviation 147.8.
    numbers = random_keys(MAX_SIDE**2 // 2, Stream.TEXTURE).astype("<u8").view(np.uint8)
    white = numbers.reshape(MAX_SIDE, MAX_SIDE, 4).sum(axis=2, dtype=np.int32) - 510
    rows = white + np.roll(white, 1, axis=0)
    total = 2 * white + rows + np.roll(rows, 1, axis=1)  # standard deviation 512
    return np.clip(total * _TEXTURE_DEVIATION // 512, -127, 127).astype(np.int8)
