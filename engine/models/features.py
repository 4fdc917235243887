"""Features of frozen backbones, cached by the digest of the images and the backbone.

A cached entry is a features artifact like any other, kept under ``CORESET_CACHE``. Images are
squashed to a square as in ManifoldGD's ``representativeness_diversity.py``, but for CLIP.
"""

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from coreset.engine.artifacts.provenance import PROVENANCE_NAME, Provenance
from coreset.engine.artifacts.store import (
    FEATURES_NAME,
    Features,
    RowWriter,
    feature_chunk_rows,
    feature_layout,
    read_features,
)
from coreset.engine.artifacts.writer import ArtifactWriter, create_artifact
from coreset.engine.data.order import BatchOrder
from coreset.engine.runtime.progress import progress
from coreset.shards.errors import StoreError, UsageError
from coreset.shards.format.dataset import Dataset, subset_content
from coreset.shards.format.files import digest_of, fsync_tree, write_atomically

if TYPE_CHECKING:
    from coreset.engine.models.backbones import Backbone

PROGRESS_NAME = "rows.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class FeatureSpec:
    """Backbone and settings that features are made with."""

    backbone: str
    weights: Path | None = None
    size: int = 224
    batch: int = 64
    device: str = "auto"
    decoder: str = "auto"
    exact: bool = False
    """Pixels equal to Pillow's."""
    workers: int = 0
    """Decoding threads; 0 = one per core."""


def cache_directory() -> Path:
    """Return the directory that keeps features between runs."""
    default = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "coreset"
    return Path(os.environ.get("CORESET_CACHE", default))


def features_for(
    dataset: Dataset, spec: FeatureSpec, ids: NDArray[np.int64] | None = None
) -> Features:
    """Return features of some samples (all by default), cached or made now; shape (m, d)."""
    return read_features(cached_features(dataset, spec, ids) / FEATURES_NAME)


def cached_features(
    dataset: Dataset, spec: FeatureSpec, ids: NDArray[np.int64] | None = None
) -> Path:
    """Return the directory of the cached features artifact, which is made if it does not exist."""
    entry = _cache_entry(_config(dataset, spec, ids))
    embed(dataset, spec, entry, ids)
    store, n = entry / FEATURES_NAME, len(dataset) if ids is None else len(ids)
    if (rows := feature_layout(store)[0]) != n:  # it is in zarr.json, which no codec protects
        raise StoreError(f"{store} has {rows} rows for {n} images; remove it and make it again")
    return entry


def recorded_features(entry: Mapping[str, Any]) -> Path:
    """Find the cached features that an artifact records as its input; the weights are not needed.

    Raises:
        UsageError: They are not in the cache any more.
    """
    config = dict(entry["config"])
    place = _cache_entry(config)
    if not (place / PROVENANCE_NAME).is_file():
        raise UsageError(
            f"features by {config.get('backbone')} are not in {cache_directory()} any more; run "
            "the same `coreset score` (or `coreset embed`) again, which makes them"
        )
    return place


def remember(features: Path, dataset: Dataset, spec: FeatureSpec) -> None:
    """Link a features artifact of the whole data set from the cache."""
    entry = _cache_entry(_config(dataset, spec))
    if not entry.exists():
        entry.parent.mkdir(parents=True, exist_ok=True)
        entry.symlink_to(features.resolve())


def _cache_entry(config: dict[str, object]) -> Path:
    """Return the place of features; a link to what is absent or other features is removed."""
    entry = cache_directory() / f"features-{digest_of(config)[:24]}"
    path = entry / PROVENANCE_NAME
    if entry.is_symlink() and not (path.is_file() and Provenance.parse(path).config == config):
        entry.unlink()
    return entry


def _config(
    dataset: Dataset, spec: FeatureSpec, ids: NDArray[np.int64] | None = None
) -> dict[str, object]:
    from coreset.engine.models.backbones import feature_dtype, weights_key

    dtype = feature_dtype(spec.backbone)
    # Pixels of the other decoders are within a level of each other: they share their features.
    decoder = "pillow" if spec.exact else spec.decoder
    own_pixels = {"decoder": decoder} if decoder in {"fast", "pillow"} else {}
    return {
        "backbone": spec.backbone,
        "weights": weights_key(spec.backbone, spec.weights),
        "size": spec.size,
        "content": subset_content(dataset, np.arange(len(dataset)) if ids is None else ids),
        **own_pixels,
        **({} if dtype == "float16" else {"dtype": dtype}),
    }


def embed(
    dataset: Dataset, spec: FeatureSpec, out: Path, ids: NDArray[np.int64] | None = None
) -> ArtifactWriter:
    """Make the features artifact ``out``; an interrupted run continues at its last whole chunk.

    It binds to the digest of the stored images and has no input, so that relabelled packs share it.
    """
    from coreset.engine.models.backbones import load_backbone
    from coreset.engine.runtime.device import resolve_device, runtime_of

    device, config = resolve_device(spec.device), _config(dataset, spec, ids)
    provenance = Provenance(
        kind="features",
        stage="embed",
        config=config,
        runtime=runtime_of(device),
        binds={"content": config["content"]},
    )
    with create_artifact(out, provenance, device=str(device), resumable=True) as work:
        if not work.done:
            backbone = load_backbone(spec.backbone, spec.weights, device)
            _fill(work, dataset, spec, backbone, np.arange(len(dataset)) if ids is None else ids)
    return work


def _fill(
    work: ArtifactWriter,
    dataset: Dataset,
    spec: FeatureSpec,
    backbone: "Backbone",
    ids: NDArray[np.int64],
) -> None:
    width = _width(backbone, spec.size)
    store, done_path = work.scratch / FEATURES_NAME, work.scratch / PROGRESS_NAME
    attributes = {"backbone": spec.backbone, **work.provenance.binds}
    resume = done_path.is_file()
    done = int(json.loads(done_path.read_bytes())["rows"]) if resume else 0
    rows = RowWriter(
        store, len(ids), width, attributes, dtype=np.dtype(backbone.dtype), resume=resume
    )
    with progress("embed", len(ids)) as bar:
        bar.resume(done)
        for first in range(done, len(ids), feature_chunk_rows(width)):
            part = ids[first : first + feature_chunk_rows(width)]
            blocks: list[Features] = []
            for block in _feature_blocks(dataset, part, spec, backbone):
                blocks.append(block)
                bar.advance(len(block))
            rows.write(first, _finite(np.concatenate(blocks), part, backbone))
            fsync_tree(store)
            write_atomically(done_path, json.dumps({"rows": first + len(part)}).encode())
            work.meter.images += len(part)
            work.meter.checkpoint(work.scratch)
    done_path.unlink()
    work.meter.bytes_read = int(dataset.ints("bytes")[ids].sum())
    work.provenance = replace(work.provenance, binds={**work.provenance.binds, "width": width})


def _feature_blocks(
    dataset: Dataset, ids: NDArray[np.int64], spec: FeatureSpec, backbone: "Backbone"
) -> Iterator[Features]:
    import torch

    from coreset.engine.data.stream import ImageStream
    from coreset.engine.models.backbones import input_geometry
    from coreset.kernels.augment import normalised

    source = ImageStream(
        dataset,
        input_geometry(backbone.name, spec.size),
        decoder=spec.decoder,
        exact=spec.exact,
        device=next(backbone.network.parameters()).device.type,
        workers=spec.workers,
        ids=ids,
    )
    with source, torch.inference_mode():
        for part in source.epoch(BatchOrder(batch=spec.batch)):
            images = normalised(part.images, backbone.mean, backbone.std)
            # float32: in bfloat16 the cosine of two images moves, and with it every metric.
            yield backbone.features(images).to(getattr(torch, backbone.dtype)).cpu().numpy()


def _finite(features: Features, ids: NDArray[np.int64], backbone: "Backbone") -> Features:
    """Refuse features that are not finite before they are published."""
    odd = ~np.isfinite(features).all(axis=1)
    if odd.any():
        raise UsageError(
            f"features of sample {ids[odd.argmax()]} by backbone {backbone.name} are not finite in "
            f"{features.dtype}; use other weights or another backbone"
        )
    return features


def _width(backbone: "Backbone", size: int) -> int:
    import torch

    from coreset.engine.models.backbones import input_geometry

    size = input_geometry(backbone.name, size).size  # refuses a size that CLIP does not take
    probe = torch.zeros(1, 3, size, size, device=next(backbone.network.parameters()).device)
    try:
        with torch.inference_mode():
            return int(backbone.features(probe).shape[1])
    except AssertionError as error:  # timm's, of networks for one size alone
        raise UsageError(
            f"backbone {backbone.name} does not take --size {size}: {error}"
        ) from error
