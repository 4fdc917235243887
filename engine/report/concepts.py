"""Concepts behind scores: those of largest weight by class, and reasons for the hardest images."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from coreset.engine.artifacts.provenance import Provenance
from coreset.engine.models.concept_bank import Concept
from coreset.engine.report.classes import hardest_first, thumbnails
from coreset.engine.report.sets import UNREADABLE, Evidence, FoundScores
from coreset.engine.scoring.reasons import Argument, ConceptModel, class_concepts, reasons

HARDEST = 3
"""Images of a class to explain, the first of those that its grid shows as hardest."""


class ConceptPart(NamedTuple):
    """Explanation of one scores artifact."""

    title: str
    score: str
    n_classes: int
    classes: dict[str, dict[str, Any]]
    """By name: ``concepts`` of largest weight, and ``hardest`` images with their reasons."""


def concept_parts(
    evidence: Evidence, *, max_classes: int, images_per_row: int
) -> tuple[list[ConceptPart], list[str]]:
    """Explain the scores by concepts; return also one line on each thing that cannot be shown."""
    parts: list[ConceptPart] = []
    notices: list[str] = []
    first_of = {scores.digest: scores for scores in reversed(evidence.scores)}
    for scores in reversed(first_of.values()):
        name = scores.table.dataset.manifest.name
        title = f"{scores.score} of {name}"
        try:
            if scores.table.prefix:
                title = f"{scores.table.name_of(scores.score)} of {name}"
                parts.append(_part(scores, title, max_classes, images_per_row, notices))
        except UNREADABLE as error:
            notices.append(f"{title}: its concepts are left out, for {error}")
    return parts, notices


class _HardImage(NamedTuple):
    sample_id: int
    title: str
    arguments: tuple[Argument, ...]


def _part(
    scores: FoundScores, title: str, max_classes: int, n: int, notices: list[str]
) -> ConceptPart:
    names, model = scores.table.label_names[:max_classes], ConceptModel.open(scores.table.path)
    largest = class_concepts(model, n)[: len(names)]
    hardest: list[list[_HardImage]] = [[] for _ in names]
    try:
        hardest = _hardest(scores, model, len(names), min(HARDEST, n))
    except UNREADABLE as error:
        notices.append(f"{title}: the reasons for hard images are left out, for {error}")
    arguments = (each for row in hardest for image in row for each in image.arguments)
    concepts = {argument.concept for argument in arguments}.union(*largest)
    images = _nearest_images(scores, model, concepts)
    classes = {
        name: {
            "concepts": [_shown(images, each, each.text, weights[each]) for each in weights],
            "hardest": _rows(scores, row, images),
        }
        for name, weights, row in zip(names, largest, hardest, strict=True)
    }
    return ConceptPart(title, scores.score, len(scores.table.label_names), classes)


def _hardest(
    scores: FoundScores, model: ConceptModel, n_classes: int, n: int
) -> list[list[_HardImage]]:
    """Explain the ``n`` hardest images of each of the first classes."""
    chosen = [hardest_first(scores, label)[:n] for label in range(n_classes)]
    ids, (names, labels) = np.concatenate(chosen), (scores.table.label_names, scores.labels)
    predicted = scores.table.predicted
    predicted = np.full(len(labels), -1) if predicted is None else predicted
    rows: list[list[_HardImage]] = [[] for _ in chosen]
    explained = reasons(model, ids, labels[ids], predicted[ids])
    for sample_id, (rival, arguments) in zip(ids.tolist(), explained, strict=True):
        role = "predicted" if predicted[sample_id] == rival else "runner-up"
        how = "assigned" if scores.table.suffix else "given"
        title = f"{how} {names[labels[sample_id]]}, {role} {names[rival]}"
        rows[labels[sample_id]].append(_HardImage(sample_id, title, arguments))
    return rows


def _nearest_images(
    scores: FoundScores, model: ConceptModel, concepts: Collection[Concept]
) -> dict[str, dict[str, str]]:
    """Make thumbnails by sample key of the images nearest to visual prototypes."""
    places = scores.table.path, model.bank.path
    sources = (Provenance.read(path).ancestor("dataset") for path in places)
    own, of_bank = ((source or {}).get("digest") for source in sources)
    keys = {concept.nearest for concept in concepts if concept.nearest}
    if own != of_bank or not keys:  # equal keys of other data may be other images
        return {}
    ids = {key: sample_id for sample_id, key in enumerate(scores.table.dataset.keys) if key in keys}
    shown = thumbnails(scores.table.dataset, np.array(list(ids.values()), np.int64), None)
    return dict(zip(ids, shown, strict=True))


def _rows(
    scores: FoundScores, hard: Sequence[_HardImage], images: Mapping[str, dict[str, str]]
) -> list[dict[str, Any]]:
    ids = np.array([image.sample_id for image in hard], np.int64)
    rows: list[dict[str, Any]] = []
    shown = thumbnails(scores.table.dataset, ids, scores)
    for image, (_, title, arguments) in zip(shown, hard, strict=True):
        concepts = [_shown(images, each.concept, each.text, each.logits) for each in arguments]
        rows.append({"title": title, "image": image, "concepts": concepts})
    return rows


def _shown(
    images: Mapping[str, dict[str, str]], concept: Concept, text: str, value: float
) -> dict[str, str]:
    image = images.get(concept.nearest, {"uri": "", "alt": ""})
    return image | {"caption": f"{text} {value:+.2f}"}
