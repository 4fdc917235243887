"""Reasons behind scores by concepts: what the layer looks for, and what argues against a label.

Shape suffixes: b = images asked about, d = width of embeddings, k = concepts, c = classes.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from coreset.engine.artifacts.provenance import PROVENANCE_NAME, Provenance
from coreset.engine.artifacts.store import FEATURES_NAME, read_feature_rows
from coreset.engine.models.concept_bank import BANK_KIND, Concept, ConceptBank
from coreset.engine.models.features import recorded_features
from coreset.engine.scoring.score_table import newest_commit
from coreset.kernels.neighbours import unit_rows
from coreset.shards.errors import UsageError

REASONS = 3
_BLOCK_ROWS = 1024  # 20 MB of 5,000 similarities each


class Argument(NamedTuple):
    """A concept that argues against a label, by its presence or by its absence."""

    concept: Concept
    logits: float
    """Addition to the rival's lead."""
    similarity: float
    """Standardised: below zero, the image has less of the concept than the mean image."""

    @property
    def text(self) -> str:
        """The concept in words, with ``no`` before what is absent."""
        return f"{'no ' if self.similarity < 0 else ''}{self.concept.text}"


class Reasons(NamedTuple):
    """Arguments against the label of one image, and for its rival, strongest first."""

    rival: int
    arguments: tuple[Argument, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ConceptModel:
    """Trained layer of finished scores by concepts, with its bank."""

    bank: ConceptBank
    weight: NDArray[np.float32] = field(repr=False)
    """Shape (c, k), for standardised similarities."""
    bias: NDArray[np.float32] = field(repr=False)
    mean: NDArray[np.float32] = field(repr=False)
    scale: NDArray[np.float32] = field(repr=False)
    features: Mapping[str, Any] = field(repr=False)
    """Record of the features of the images, an input of the scores."""

    @staticmethod
    def open(scores: Path) -> "ConceptModel":
        """Read the layer of scores and the bank that they were made by, or refuse others."""
        inputs = {entry["kind"]: entry for entry in Provenance.read(scores).inputs}
        if BANK_KIND not in inputs:
            remedy = "which alone give reasons; score with --proxy concept --concepts BANK"
            raise UsageError(f"{scores} is not by concepts, {remedy}")
        place = (scores / inputs[BANK_KIND]["path"]).resolve()
        is_there = (place / PROVENANCE_NAME).is_file()
        if not is_there or Provenance.read(place).digest != inputs[BANK_KIND]["digest"]:
            raise UsageError(
                f"{place} does not hold the bank of {scores} any more; put it back, or score again"
            )
        bank, layer = ConceptBank.open(place), _layer(scores)
        return ConceptModel(bank=bank, features=inputs["features"], **layer)


def _layer(scores: Path) -> dict[str, NDArray[np.float32]]:
    """Read the weights of the newest checkpoint, whose bytes `Checkpoints` has compared."""
    from safetensors.numpy import load_file

    from coreset.engine.training.trainer import WEIGHTS_NAME  # it imports torch

    stored = load_file(newest_commit(scores) / WEIGHTS_NAME)
    of_columns = {name: stored[f"{name}_k"] for name in ("mean", "scale")}
    return {name: stored[f"linear.{name}"] for name in ("weight", "bias")} | of_columns


def class_concepts(model: ConceptModel, n: int) -> list[dict[Concept, float]]:
    """Return for each class the ``n`` concepts of largest positive weight, with their weights."""
    named, rows = model.bank.concepts, zip(model.weight, _largest(model.weight, n), strict=True)
    return [{named[k]: float(row[k]) for k in order if row[k] > 0} for row, order in rows]


def reasons(
    model: ConceptModel,
    ids: NDArray[np.int64],
    given: NDArray[np.integer],
    predicted: NDArray[np.integer] | None = None,
) -> list[Reasons]:
    """Return for each image the concepts that argue most against its label, at most three.

    A concept adds to the rival's lead its weight for the rival minus that for the given class,
    times the standardised similarity. What adds nothing is left out.

    Args:
        model: The layer and its bank.
        ids: Samples to explain, shape (b,); the features of no others are looked at.
        given: Their labels.
        predicted: Their predicted classes, -1 for none: the rivals. Where that is the label itself
            or none, the rival is the other class of the largest logit.
    """
    rows_bd = read_feature_rows(recorded_features(model.features) / FEATURES_NAME, ids)
    predicted = np.full(len(ids), -1) if predicted is None else predicted
    blocks = (slice(at, at + _BLOCK_ROWS) for at in range(0, len(ids), _BLOCK_ROWS))
    explained = (_explain(model, rows_bd[at], given[at], predicted[at]) for at in blocks)
    return [reason for block in explained for reason in block]


def _explain(
    model: ConceptModel,
    rows_bd: NDArray[Any],
    given_b: NDArray[np.integer],
    predicted_b: NDArray[np.integer],
) -> list[Reasons]:
    weight_ck, concepts = model.weight, model.bank.concepts
    similarities_bk = (unit_rows(rows_bd) @ model.bank.embeddings.T - model.mean) * model.scale
    logits_bc = similarities_bk @ weight_ck.T + model.bias
    np.put_along_axis(logits_bc, given_b[:, None], -np.inf, axis=1)
    is_rival = (predicted_b >= 0) & (predicted_b != given_b)
    rival_b = np.where(is_rival, predicted_b, logits_bc.argmax(axis=1))
    lead_bk = (weight_ck[rival_b] - weight_ck[given_b]) * similarities_bk
    order_bn = _largest(lead_bk, REASONS)
    numbers = (np.take_along_axis(table, order_bn, axis=1) for table in (lead_bk, similarities_bk))
    named = ([concepts[k] for k in order] for order in order_bn)
    rows = zip(rival_b.tolist(), named, *(table.tolist() for table in numbers), strict=True)
    return [
        Reasons(rival, tuple(each for each in map(Argument, *row) if each.logits > 0))
        for rival, *row in rows
    ]


def _largest(values: NDArray[np.floating], n: int) -> NDArray[np.int64]:
    """Return the columns of the ``n`` largest values of each row; of equal ones the first."""
    return np.argsort(-values, axis=1, kind="stable")[:, :n]
