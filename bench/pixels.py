"""How far each decoder is from Pillow with torchvision, and what that does further down.

    python -m coreset.bench.pixels [--data FOLDER] [--part pixels rounding features scores]

FOLDER holds ``imagenet-sample`` and ``imagenette/train``. The reference is made by
``torchvision.transforms.v2`` on Pillow images, not by code of this project. Nothing is timed.
Writes ``bench/results/pixels.jsonl``, keeping the records of parts that were not run.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
import tyro
from numpy.typing import NDArray
from torch.nn.functional import cross_entropy

from coreset.bench.pixels_images import (
    BATCH,
    REGIONS,
    SEED,
    WHOLE,
    Images,
    Pixels,
    Transform,
    decoded,
    packed_small,
    read_images,
    reference,
    resized_exactly,
)
from coreset.bench.record import RESULTS, read, record, write
from coreset.engine.data.decoders.base import DecoderName
from coreset.engine.data.decoders.tolerances import TOLERANCES
from coreset.engine.data.geometry import Geometry
from coreset.engine.models.backbones import OFFLINE_BACKBONE, Backbone, load_backbone
from coreset.engine.models.feature_rows import Resident
from coreset.engine.scoring.proxy import linear_proxy
from coreset.engine.scoring.recipes import RECIPES
from coreset.engine.training.trainer import Trainer, cosine_schedule, sgd
from coreset.kernels.augment import normalised
from coreset.kernels.dynamics import Dynamics

Part: TypeAlias = Literal["pixels", "rounding", "features", "scores"]
PARTS: tuple[Part, ...] = ("pixels", "rounding", "features", "scores")
Row: TypeAlias = dict[str, Any]
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
        """Run the parts in turn, print and record what came out."""
        rows = {
            "pixels": self._pixels,
            "rounding": self._rounding,
            "features": self._features,
            "scores": self._scores,
        }
        for part in self.part:
            found: list[Row] = []
            for row in rows[part]():
                print(row, flush=True)
                found.append(record(f"pixels.{part}", row))
            self._keep(part, found)

    def _keep(self, part: Part, rows: list[Row]) -> None:
        if self.dry:
            return
        there = read("pixels") if (RESULTS / "pixels.jsonl").is_file() else []
        others = [one for one in there if one["bench"] != f"pixels.{part}"]
        print(f"written: {write('pixels', [*others, *rows])}", flush=True)

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
        found = {"reference": reference(images, geometry)}
        found |= {name: decoded(name, geometry, images) for name in DECODERS[:2]}
        exact = np.stack([resized_exactly(one, FEATURE_SIZE) for one in images.data])
        for name, pixels in found.items():
            levels = np.abs(pixels - exact)[:, EDGE:-EDGE, EDGE:-EDGE]
            row = {"input": images.name, "images": len(images), "decoder": name}
            yield {**row, "largest": float(levels.max()), "mean": float(levels.mean())}

    def _features(self) -> Iterator[Row]:
        backbone = load_backbone(OFFLINE_BACKBONE, None, torch.device("cpu"))
        originals, geometry = self._originals(), Geometry(FEATURE_SIZE)
        expected = features_of(reference(originals, geometry), backbone)
        for images in (originals, packed_small(originals)):
            for name in DECODERS:
                found = features_of(decoded(name, geometry, images), backbone)
                yield {"input": images.name, "decoder": name, **cosines(found, expected)}
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
    """Each decoder on ``stored`` beside the reference on ``originals``."""
    chosen = np.minimum(originals.widths, originals.heights) >= transform.smallest
    originals, stored = originals.where(chosen), stored.where(chosen)
    geometry, boxes = transform.geometry, transform.boxes(originals)
    expected = reference(originals, geometry, boxes)
    found: Row = {}
    for name in DECODERS:
        pixels = decoded(name, geometry, stored, boxes)
        judged = asdict(TOLERANCES[name].difference(pixels, expected))
        found[name] = {"judged": judged, **zones(pixels, expected)}
    row = {"input": stored.name, "images": len(stored), "transform": transform.name}
    return {**row, "decoders": found}


def zones(pixels: Pixels, expected: Pixels) -> Row:
    """How the differences are distributed: over all pixels, and by how far they are inside."""
    levels = np.abs(pixels.astype(np.int16) - expected)
    inside = np.zeros(levels.shape[1:3], np.bool_)
    inside[EDGE:-EDGE, EDGE:-EDGE] = True
    return {
        "all": spread(levels),
        "inside": spread(levels[:, inside]),
        "edge": spread(levels[:, ~inside]),
    }


def spread(levels: NDArray[np.int16]) -> Row:
    """Largest, mean, and share of values beyond some bounds."""
    shares = {f"over_{bound}": float((levels > bound).mean()) for bound in (0, 1, 4, 16)}
    return {"largest": int(levels.max()), "mean": float(levels.mean()), **shares}


def features_of(pixels: Pixels, backbone: Backbone) -> NDArray[np.float16]:
    """Features as ``coreset embed`` makes them, of shape (n, d)."""
    with torch.inference_mode():
        parts = [
            backbone.features(normalised(part.permute(0, 3, 1, 2), backbone.mean, backbone.std))
            for part in torch.from_numpy(pixels).split(BATCH)
        ]
    return torch.cat(parts).half().numpy()


def cosines(found: NDArray[np.float16], expected: NDArray[np.float16]) -> Row:
    """Cosine between the features of each image."""
    one, other = found.astype(np.float64), expected.astype(np.float64)
    lengths = np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1)
    cosine = (one * other).sum(1) / lengths
    return {
        "images": len(found),
        "size": FEATURE_SIZE,
        "min_cosine": float(cosine.min()),
        "mean_cosine": float(cosine.mean()),
    }


def aum(features: NDArray[np.float16], labels: NDArray[np.int64], seed: int) -> NDArray[np.float32]:
    """AUM as ``coreset score --proxy linear`` accumulates it by default, of shape (n,)."""
    recipe, device = RECIPES["linear"], torch.device("cpu")
    n_classes = int(labels.max()) + 1
    rows = Resident([features], features.shape, device)
    proxy = linear_proxy(rows, labels, n_classes, batch=recipe.batch, seed=seed, device=device)
    steps = recipe.epochs * -(-len(labels) // recipe.batch)
    optimiser = sgd(proxy.network, lr=recipe.lr, weight_decay=recipe.weight_decay)
    schedule = cosine_schedule(recipe.lr, recipe.min_lr, steps)
    trainer = Trainer(proxy.network, optimiser, schedule, device)
    dynamics = Dynamics(len(labels), device)
    for epoch in range(recipe.epochs):
        dynamics.begin_epoch(epoch)
        for inputs, targets, ids in proxy.examples(epoch):
            logits = trainer.step(inputs, partial(cross_entropy, target=targets))
            dynamics.update(logits, targets, ids)
        dynamics.end_epoch(epoch)
    return dynamics.scores()["aum"]


if __name__ == "__main__":
    tyro.cli(PixelsBench).run()
