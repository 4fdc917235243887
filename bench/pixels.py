"""Distance of each decoder from Pillow with torchvision, and its effect on features and scores.

    python -m coreset.bench.pixels [--data FOLDER] [--part pixels rounding features scores]

FOLDER holds ``imagenet-sample`` and ``imagenette/train``. The reference is made by
``torchvision.transforms.v2`` on Pillow images, not by code of this project. Nothing is timed.
Writes ``bench/results/pixels.jsonl``, keeping the records of parts that were not run.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
import torch
import tyro
from numpy.typing import NDArray

from coreset.bench.docs import Block, Cell, Table, text_of
from coreset.bench.harness import Row, records_of, run_parts
from coreset.bench.pixels_images import (
    REGIONS,
    SEED,
    WHOLE,
    Images,
    Pixels,
    Transform,
    aum,
    decoded,
    features_of,
    packed_small,
    read_images,
    reference,
    resized_exactly,
)
from coreset.engine.data.decoders.base import TOLERANCES, DecoderName
from coreset.engine.data.geometry import Geometry
from coreset.engine.models.backbones import OFFLINE_BACKBONE, load_backbone

Part: TypeAlias = Literal["pixels", "rounding", "features", "scores"]
PARTS: tuple[Part, ...] = get_args(Part)
DECODERS = (DecoderName.TURBO, DecoderName.DALI, DecoderName.FAST, DecoderName.PILLOW)
EDGE = TOLERANCES[DecoderName.DALI].edge
FEATURE_SIZE, SCORE_SIZE = 224, 128
"""Pixels. The score's is not ImageNette's own, at which most decoders have nothing to resize."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PixelsBench:
    """Measure the pixel contract."""

    data: Path = Path("../shared/data")
    """Folder of the images."""
    part: tuple[Part, ...] = PARTS
    """What to measure."""
    imagenette: int = 500
    """Images of ImageNette whose pixels are compared, drawn with a fixed seed."""
    scored: int = 1000
    """Images of ImageNette that are scored."""
    dry: bool = False
    """Record nothing."""

    def run(self) -> None:
        """Run the parts in turn, print and record the results."""
        rows = {
            "pixels": self._pixels,
            "rounding": self._rounding,
            "features": self._features,
            "scores": self._scores,
        }
        run_parts("pixels", {part: rows[part] for part in self.part}, dry=self.dry)

    def _pixels(self) -> Iterator[Row]:
        originals = self._originals()
        for images in (originals, self._imagenette(self.imagenette)):
            for transform in (*REGIONS, *WHOLE):
                yield pixel_row(images, images, transform)
        small = packed_small(originals)
        for transform in WHOLE:
            yield pixel_row(originals, small, transform)

    def _rounding(self) -> Iterator[Row]:
        images, geometry = self._originals(), Geometry(FEATURE_SIZE)
        decodings = {"reference": reference(images, geometry)}
        decodings |= {name: decoded(name, geometry, images) for name in DECODERS[:2]}
        exact = np.stack([resized_exactly(data, FEATURE_SIZE) for data in images.data])
        for name, pixels in decodings.items():
            levels = np.abs(pixels - exact)[:, EDGE:-EDGE, EDGE:-EDGE]
            row = {"input": images.name, "images": len(images), "decoder": name}
            yield {**row, "largest": float(levels.max()), "mean": float(levels.mean())}

    def _features(self) -> Iterator[Row]:
        backbone = load_backbone(OFFLINE_BACKBONE, None, torch.device("cpu"))
        originals, geometry = self._originals(), Geometry(FEATURE_SIZE)
        expected = features_of(reference(originals, geometry), backbone)
        for images in (originals, packed_small(originals)):
            for name in DECODERS:
                features = features_of(decoded(name, geometry, images), backbone)
                yield {"input": images.name, "decoder": name, **cosines(features, expected)}
        other = np.roll(expected, 1, axis=0)
        yield {"input": originals.name, "decoder": "another image", **cosines(other, expected)}

    def _scores(self) -> Iterator[Row]:
        from scipy.stats import spearmanr

        backbone = load_backbone(OFFLINE_BACKBONE, None, torch.device("cpu"))
        images, geometry = self._imagenette(self.scored), Geometry(SCORE_SIZE)
        features = features_of(reference(images, geometry), backbone)
        expected = aum(features, images.labels, SEED)
        contenders = {"another seed": aum(features, images.labels, SEED + 1)}
        for name in DECODERS:
            features = features_of(decoded(name, geometry, images), backbone)
            contenders[name] = aum(features, images.labels, SEED)
        for name, scores in contenders.items():
            ranked: Any = spearmanr(scores, expected)
            row = {"input": images.name, "images": len(images), "size": SCORE_SIZE}
            yield {**row, "decoder": name, "spearman": float(ranked.statistic)}

    def _originals(self) -> Images:
        return read_images("imagenet", self.data / "imagenet-sample")

    def _imagenette(self, n: int) -> Images:
        return read_images("imagenette", self.data / "imagenette" / "train", n)


def pixel_row(originals: Images, stored: Images, transform: Transform) -> Row:
    """Compare each decoder on ``stored`` with the reference on ``originals``."""
    chosen = np.minimum(originals.widths, originals.heights) >= transform.smallest
    originals, stored = originals.where(chosen), stored.where(chosen)
    geometry, boxes = transform.geometry, transform.boxes(originals)
    expected = reference(originals, geometry, boxes)
    decoders: Row = {}
    for name in DECODERS:
        pixels = decoded(name, geometry, stored, boxes)
        judged = asdict(TOLERANCES[name].difference(pixels, expected))
        decoders[name] = {"judged": judged, **zones(pixels, expected)}
    row = {"input": stored.name, "images": len(stored), "transform": transform.name}
    return {**row, "decoders": decoders}


def zones(pixels: Pixels, expected: Pixels) -> Row:
    """Return the spread of differences over all pixels, over the inside and over the edge."""
    levels = np.abs(pixels.astype(np.int16) - expected)
    inside = np.zeros(levels.shape[1:3], np.bool_)
    inside[EDGE:-EDGE, EDGE:-EDGE] = True
    return {
        "all": spread(levels),
        "inside": spread(levels[:, inside]),
        "edge": spread(levels[:, ~inside]),
    }


def spread(levels: NDArray[np.int16]) -> Row:
    """Return the largest, the mean, and the share of values beyond some bounds."""
    shares = {f"over_{bound}": float((levels > bound).mean()) for bound in (0, 1, 4, 16)}
    return {"largest": int(levels.max()), "mean": float(levels.mean()), **shares}


def cosines(features: NDArray[np.float16], expected: NDArray[np.float16]) -> Row:
    """Compute the cosine between the features of each image."""
    a, b = features.astype(np.float64), expected.astype(np.float64)
    cosine = (a * b).sum(1) / (np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1))
    return {
        "images": len(features),
        "size": FEATURE_SIZE,
        "min_cosine": float(cosine.min()),
        "mean_cosine": float(cosine.mean()),
    }


_RESIZED = "imagenet, packed resized"


def _of(part: str) -> list[Row]:
    return records_of(f"pixels.{part}")


def _contract() -> list[Row]:
    return [row for row in _of("pixels") if row["input"] != _RESIZED]


def _name(decoder: str) -> str:
    return "pillow (exact)" if decoder == "pillow" else decoder


def _tolerances() -> Iterator[Row]:
    """Return the promise for each decoder, beside the worst that was measured."""
    for name, tolerance in TOLERANCES.items():
        judged = [row["decoders"][name]["judged"] for row in _contract()]
        row = {
            bound: f"{getattr(tolerance, bound):.3g} ({max(each[bound] for each in judged):.3g})"
            for bound in ("largest", "largest_at_edge", "mean")
        }
        outer = f"{row['largest_at_edge']} in the outer {tolerance.edge} pixels"
        yield row | {"decoder": _name(name), "outer": outer if tolerance.edge else "the same"}


def _difference_table(rows: Sequence[Row]) -> str:
    """Render largest / mean difference and the share of values that differ, by decoder."""
    columns: dict[str, Cell] = {"images": "{input}", "transform": "{transform}"}
    for name in rows[0]["decoders"]:
        columns[_name(name)] = partial(_difference, name)
    return Table(lambda: rows, columns)()


def _difference(decoder: str, row: Row) -> str:
    levels = row["decoders"][decoder]["all"]
    text = "{largest} / {mean:.2f} / {share}" if levels["largest"] else "0"
    return text.format_map(levels | {"share": _percent(levels["over_0"])})


def _percent(share: float) -> str:
    if share == 0:
        return "0"
    return f"{share:.1%}" if share >= 0.0005 else "< 0.1%"


def _edges() -> Iterable[Row]:
    for row in _contract():
        dali = row["decoders"]["dali"]
        over = {f"over_{bound}": _percent(dali["edge"][f"over_{bound}"]) for bound in (1, 4, 16)}
        zones_ = {
            zone: text_of("{largest} / {mean:.2f}", dali[zone]) for zone in ("inside", "edge")
        }
        yield row | zones_ | over


def _named(part: str) -> Iterable[Row]:
    return (row | {"decoder": _name(row["decoder"])} for row in _of(part))


def _circumstances() -> str:
    row = _of("pixels")[0]
    names = ("simplejpeg", "nvidia-dali-cuda130", "pillow", "torchvision", "torch")
    used = ", ".join(f"{name} {row['versions'][name]}" for name in names if name in row["versions"])
    counts = {row["input"]: row["images"] for row in _contract()}
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
    "pixels_differences": lambda: _difference_table(_contract()),
    "pixels_resized": lambda: _difference_table(
        [row for row in _of("pixels") if row["input"] == _RESIZED]
    ),
    "pixels_edge": Table(
        _edges,
        {
            "images": "{input}",
            "transform": "{transform}",
            "inside": "{inside}",
            "outer 2 pixels": "{edge}",
            **{f"of these over {bound}": f"{{over_{bound}}}" for bound in (1, 4, 16)},
        },
    ),
    "pixels_rounding": Table(
        partial(_named, "rounding"),
        {"pixels of": "{decoder}", "largest": "{largest:.2f}", "mean": "{mean:.3f}"},
    ),
    "pixels_features": Table(
        partial(_named, "features"),
        {
            "images": "{input}",
            "decoder": "{decoder}",
            "smallest cosine": "{min_cosine:.5f}",
            "mean cosine": "{mean_cosine:.6f}",
        },
    ),
    "pixels_scores": Table(
        lambda: sorted(_named("scores"), key=lambda row: -row["spearman"]),
        {"decoder": "{decoder}", "Spearman rank correlation": "{spearman:.5f}"},
    ),
    "pixels_circumstances": _circumstances,
}


if __name__ == "__main__":
    tyro.cli(PixelsBench).run()
