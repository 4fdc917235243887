"""The parts of ``bench.score_scale``: each command in a process of its own, at growing sizes."""

import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeAlias

from coreset.bench.pack_contenders import CORESET, words
from coreset.bench.pack_open import CLASSES
from coreset.bench.score_scale_inputs import WIDTH, cache_in, write_features, write_records
from coreset.bench.score_scale_memory import Watched, tree_bytes, watch
from coreset.engine.artifacts.checkpoints import Checkpoints
from coreset.engine.artifacts.store import SCORES_NAME
from coreset.shards.format.files import temporary_name

Row: TypeAlias = dict[str, Any]

GOAL_BYTES = 1_500_000_000
"""Memory above the data at every size."""
_SCORES = "scores"


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """Sizes and places."""

    images: tuple[int, ...]
    pixel_epochs: int
    pixel_batch: int
    side: int
    """Of the synthetic images, in pixels."""
    crop: int
    """Side in pixels of the crops that ResNet-18 is trained on."""
    records: tuple[int, ...]
    linear_epochs: int
    linear_batch: int
    final: bool
    seed: int
    work: Path


def pixels(setting: Setting) -> Iterator[Row]:
    """Synthesise, decode and score small images with ResNet-18."""
    training = {
        "size": setting.crop,
        "epochs": setting.pixel_epochs,
        "batch": setting.pixel_batch,
        "final": setting.final,
        "seed": setting.seed,
    }
    for images in setting.images:
        with tempfile.TemporaryDirectory(dir=setting.work) as folder, cache_in(Path(folder, "c")):
            data, decoded, scores = (Path(folder, name) for name in ("data", "pixels", _SCORES))
            made = {"images": images, "size": setting.side, "seed": setting.seed}
            yield _run("synth", [str(data), *words(made)], data) | {"images": images}
            size = words({"size": setting.side})
            yield _run("decode", [str(data), str(decoded), *size], decoded) | {"images": images}
            options = words(training | {"pixels": decoded})
            row = _run("score", [str(data), str(scores), *options], scores)
            yield row | training | {"images": images, "proxy": "resnet18"}


def linear(setting: Setting) -> Iterator[Row]:
    """Score records with the linear proxy on features that are in the cache."""
    for records in setting.records:
        with tempfile.TemporaryDirectory(dir=setting.work) as folder, cache_in(Path(folder, "c")):
            data, scores = Path(folder, "data"), Path(folder, _SCORES)
            dataset = write_records(data, records)
            spec = write_features(Path(folder, "features"), dataset, setting.seed)
            training = {
                "proxy": "linear",
                "epochs": setting.linear_epochs,
                "batch": setting.linear_batch,
                "final": setting.final,
                "seed": setting.seed,
            }
            options = {"backbone": spec.backbone, "weights": spec.weights, "size": spec.size}
            row = _run("score", [str(data), str(scores), *words(training | options)], scores)
            row |= training | {"images": records, "classes": CLASSES, "columns": WIDTH}
            yield row | _held(row, records)


def _run(verb: str, arguments: list[str], out: Path) -> Row:
    """Run a command whose files are beside ``out``, and measure what it leaves there."""
    watched = watch(
        [*CORESET, verb, *arguments],
        data=out.parent,
        scratch=temporary_name(out),
        errors=out.parent / "errors",
    )
    return {"verb": verb, **_rounded(watched), "goal_bytes": GOAL_BYTES} | _left(out)


def _rounded(watched: Watched) -> Row:
    return asdict(watched) | {"wall_seconds": round(watched.wall_seconds, 2)}


def _left(out: Path) -> Row:
    """Bytes of an artifact, and of the scores in it."""
    left = {"artifact_bytes": tree_bytes(out)}
    newest = Checkpoints(out).latest() if out.name == _SCORES and out.is_dir() else None
    return left | ({} if newest is None else {"scores_bytes": tree_bytes(newest[1] / SCORES_NAME)})


def _held(row: Mapping[str, Any], records: int) -> Row:
    """How the features were held; resident ones are data as well, and are not above it."""
    if row["peak_data_bytes"]:
        return {"features": "mapped", "features_bytes": 2 * records * WIDTH}
    held = 4 * records * WIDTH
    less = {name: max(0, row[name] - held) for name in ("peak_above_bytes", "peak_anonymous_bytes")}
    return {"features": "resident", "features_bytes": held, **less}
