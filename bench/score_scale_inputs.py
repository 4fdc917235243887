"""Packed data set of many records without pixels, and random features for it."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from coreset.bench.inputs import CLASSES, write_dataset
from coreset.engine.artifacts.pack_inputs import bound
from coreset.engine.artifacts.provenance import PROVENANCE_NAME, Provenance
from coreset.engine.artifacts.store import FEATURES_NAME, RowWriter, feature_chunk_rows
from coreset.engine.artifacts.writer import create_artifact
from coreset.engine.models.backbones import weights_key
from coreset.engine.models.features import FeatureSpec, remember
from coreset.shards.format.dataset import Dataset
from coreset.shards.format.files import json_bytes, write_atomically

RECORDS_PER_SHARD = 2000
WIDTH = 512
"""Features of a record, as many as ResNet-18 has."""
SEPARATION = 0.2
"""Spread of the centres of the classes; that of the records around them is 1 in each column."""


def write_records(data: Path, records: int) -> Dataset:
    """Make a data set artifact of ``records`` records in 1,000 classes, whose shards are sparse.

    Manifest and sample table are as large as ImageNet's; there are no images in it.
    """
    manifest = write_dataset(data, shards=-(-records // RECORDS_PER_SHARD), samples=records)
    provenance = Provenance(kind="dataset", stage="pack", config={"records": records})
    document = bound(provenance, manifest).document()
    write_atomically(data / PROVENANCE_NAME, json_bytes(document))
    return Dataset.open(data)


def write_features(out: Path, dataset: Dataset, seed: int) -> FeatureSpec:
    """Make a features artifact of a data set, chunk by chunk, and let the cache find it.

    A record is the centre of its class plus noise, both normal. The weights of the backbone that
    the artifact names are a file of a few words: there is no network behind it.

    Returns:
        What to ask ``coreset.engine.models.features`` for.
    """
    weights = out.with_name(f"{out.name}.pth")
    weights.write_text(f"normal features, seed {seed}\n")
    spec = FeatureSpec(backbone="resnet18", weights=weights)
    # What `engine.models.features` expects of a cached artifact; another one it would replace.
    content = dataset.manifest.content
    config = {
        "backbone": spec.backbone,
        "weights": weights_key(spec.backbone, weights),
        "size": spec.size,
        "content": content,
    }
    provenance = Provenance(
        kind="features", stage="embed", config=config, binds={"content": content, "width": WIDTH}
    )
    with create_artifact(out, provenance) as work:
        _write_rows(work.scratch / FEATURES_NAME, dataset.labels, seed)
    remember(out, dataset, spec)
    return spec


def _write_rows(store: Path, labels: NDArray[np.int64], seed: int) -> None:
    rng = np.random.default_rng(seed)
    centres = SEPARATION * rng.standard_normal((CLASSES, WIDTH), np.float32)
    rows, step = RowWriter(store, len(labels), WIDTH, {}), feature_chunk_rows(WIDTH)
    for first in range(0, len(labels), step):
        part = centres[labels[first : first + step]]
        part += rng.standard_normal(part.shape, np.float32)
        rows.write(first, part.astype(np.float16))
