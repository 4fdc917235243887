"""Rows of a bank of concepts: embedded texts, the most discriminative of them, and prototypes."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from coreset.engine.artifacts.provenance import Provenance
from coreset.engine.artifacts.store import (
    FEATURES_NAME,
    Features,
    feature_chunks,
    feature_layout,
)
from coreset.engine.artifacts.writer import ArtifactWriter, create_artifact
from coreset.engine.models.concept_bank import BANK_KIND, Concept, Encoder, write_bank
from coreset.engine.models.features import FeatureSpec
from coreset.kernels.neighbours import kmeans_centres, nearest, unit_rows
from coreset.kernels.samplers import positions_by_class
from coreset.kernels.seeds import Stream, derived_seed, permutation
from coreset.shards.errors import UsageError
from coreset.shards.format.dataset import Dataset

if TYPE_CHECKING:
    import torch

POINTS = 256
"""Images per prototype of all images, as FAISS by default: it clusters a sample of larger sets."""
Rows: TypeAlias = NDArray[np.float32]
"""Embeddings of length 1, shape (k, d)."""


def encoder_config(spec: FeatureSpec) -> dict[str, Any]:
    """Return what provenance records of the encoder of a bank."""
    from coreset.engine.models.backbones import weights_key

    weights = weights_key(spec.backbone, spec.weights)
    return {"backbone": spec.backbone, "weights": weights, "size": spec.size}


def create_bank(
    bank: Path,
    stage: str,
    inputs: Mapping[str, Path],
    config: Mapping[str, Any],
    device: "torch.device",
    *,
    resumable: bool = False,
) -> AbstractContextManager[ArtifactWriter]:
    """Create the artifact of a bank, with what shapes it in its provenance."""
    from coreset.engine.runtime.device import runtime_of

    provenance = Provenance(
        kind=BANK_KIND,
        stage=stage,
        config={name: value for name, value in config.items() if value is not None},
        runtime=runtime_of(device) if resumable else {},
        inputs=Provenance.inputs_of(bank, inputs),
    )
    paths = list(inputs.values())
    return create_artifact(bank, provenance, inputs=paths, device=str(device), resumable=resumable)


def write_rows(
    work: ArtifactWriter, concepts: Sequence[Concept], rows: Rows, *, visual: bool
) -> None:
    """Write a bank of rows by the encoder that its provenance records."""
    config = work.provenance.config
    recorded = {name: config[name] for name in ("backbone", "weights", "size")}
    encoder = Encoder(**recorded, width=rows.shape[1], prompt=config.get("prompt", ""))
    write_bank(work.scratch, encoder, concepts, rows, visual=visual)


def write_texts(
    work: ArtifactWriter,
    dataset: Dataset,
    concepts: Sequence[Concept],
    spec: FeatureSpec,
    features: Path | None = None,
) -> None:
    """Embed texts in the recorded prompt, keep the best of each class or all, write the bank.

    To ``keep`` some takes the artifact of ``features`` of all images by the same encoder.
    """
    from coreset.engine.models.backbones import input_geometry

    input_geometry(spec.backbone, spec.size)  # refuses a size that its images cannot have
    config = work.provenance.config
    rows = embed_texts(spec, [config["prompt"].replace("{}", each.text) for each in concepts])
    if features is not None:
        contrasts = class_contrasts(features / FEATURES_NAME, dataset)
        concepts, rows = most_discriminative(
            concepts, rows, dataset.classes, contrasts, config["keep"]
        )
    write_rows(work, concepts, rows, visual=False)


def embed_texts(spec: FeatureSpec, texts: Sequence[str]) -> Rows:
    """Embed texts by an encoder of images and texts: rows of length 1, shape (t, d)."""
    from coreset.engine.models import backbones, clip
    from coreset.engine.runtime.device import resolve_device

    device = resolve_device(spec.device)
    backbone = backbones.load_backbone(spec.backbone, spec.weights, device)
    return clip.text_encoder(backbone)(texts)


def unit_rows_of(what: str, features: Features) -> Rows:
    """Scale rows to length 1; one without direction is a ``UsageError`` that begins with what."""
    try:
        return unit_rows(features)
    except ValueError as error:
        raise UsageError(f"{what}: {error}") from error


def class_contrasts(features: Path, dataset: Dataset) -> NDArray[np.float64]:
    """Compute the mean unit row of each class minus that of all other images, shape (classes, d).

    Its product with a row of length 1 is the mean similarity to the images of the class minus that
    to all others, because similarities are linear: nothing of images x concepts exists.
    """
    labels, n_classes = dataset.labels, len(dataset.classes)
    sizes = np.bincount(labels, minlength=n_classes)
    if n_classes < 2 or not sizes.min():
        raise UsageError(
            f"keep compares classes with images, but {dataset.path} has "
            f"{np.count_nonzero(sizes)} of them; leave --keep out"
        )
    sums, first = np.zeros((n_classes, feature_layout(features)[1])), 0
    for chunk in feature_chunks(features):
        rows = unit_rows_of("images", chunk)
        np.add.at(sums, labels[first : first + len(rows)], rows)
        first += len(rows)
    return sums / sizes[:, None] - (sums.sum(axis=0) - sums) / (labels.size - sizes)[:, None]


def most_discriminative(
    concepts: Sequence[Concept],
    rows: Rows,
    classes: Sequence[str],
    contrasts: NDArray[np.float64],
    keep: int,
) -> tuple[list[Concept], Rows]:
    """Keep the ``keep`` concepts of each class with the largest products with its contrast.

    A concept that some of its classes keep stays, of these classes alone.
    """
    own: dict[str, list[int]] = {name: [] for name in classes}
    for at, concept in enumerate(concepts):
        for name in concept.classes:
            own[name].append(at)
    for name, contrast in zip(classes, contrasts, strict=True):
        order = np.argsort(-(rows[own[name]] @ contrast), kind="stable")
        own[name] = [own[name][place] for place in order[:keep]]
    kept = [tuple(n for n in c.classes if at in own[n]) for at, c in enumerate(concepts)]
    chosen = [at for at, names in enumerate(kept) if names]
    return [replace(concepts[at], classes=kept[at]) for at in chosen], rows[chosen]


def prototypes(
    table: Features, dataset: Dataset, k: int, pooled: int | None, seed: int
) -> tuple[list[Concept], Rows]:
    """Cluster the images of each class into ``k``, or images of all into ``pooled``, as concepts.

    By spherical k-means. Of all images those that are clustered are drawn without labels.
    """
    classes = dataset.classes
    groups = [*zip(classes, positions_by_class(dataset.labels, len(classes)), strict=True)]
    if pooled is not None:
        drawn = permutation(len(dataset), derived_seed(seed, Stream.PROTOTYPES))
        groups = [("prototype", np.sort(drawn[: POINTS * pooled]))]
    concepts, rows, keys = list[Concept](), list[Rows](), dataset.keys
    for label, (name, ids) in enumerate(groups):
        own = unit_rows_of(f"images of {name}", table[ids])
        own_seed = derived_seed(seed, label)
        centres, _ = kmeans_centres(own, pooled or k, own_seed, spherical=True)
        rows.append(centres)
        of = () if pooled else (name,)
        for number, at in enumerate(ids[nearest(centres, own, 1)[:, 0]], 1):
            concepts.append(Concept(text=f"{name} #{number}", classes=of, nearest=keys[at]))
    return concepts, np.concatenate(rows)
