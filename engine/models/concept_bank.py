"""Banks of concepts: texts or visual prototypes, and their embeddings by a frozen encoder.

A bank is an artifact: ``concepts.json`` (encoder and concepts, in order) and
``embeddings.safetensors`` (rows of length 1, float32). `coreset concepts` makes it, and the proxy
``concept`` of `coreset score` is trained on the similarities of images to its rows.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from coreset.engine.artifacts.provenance import Provenance
from coreset.engine.artifacts.writer import output_digest
from coreset.engine.models.features import FeatureSpec
from coreset.shards.errors import StoreError, UsageError
from coreset.shards.format.dataset import Dataset
from coreset.shards.format.files import build, json_bytes, missing, parse, write_atomically

BANK_KIND = "concepts"
"""Kind of the artifact, and its role among the inputs of scores."""
VISUAL_STAGE = "concepts visual"
CONCEPT, VISUAL = "concept_", "visual_"
"""Prefix of names of scores by concepts, and a second one by visual prototypes."""
CONCEPTS_NAME, EMBEDDINGS_NAME = "concepts.json", "embeddings.safetensors"
_LENGTH_ERROR = 1e-3


@dataclass(frozen=True, slots=True, kw_only=True)
class Concept:
    """One concept: a text, or a visual prototype that is named after its class and number."""

    text: str
    classes: tuple[str, ...] = ()
    """Classes that it was found for; none for a prototype of all images."""
    nearest: str = ""
    """Sample key of the image nearest to a visual prototype."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoder:
    """Frozen network that gave the embeddings; images are compared with them by the same."""

    backbone: str
    weights: str
    """sha256 of the weights."""
    size: int
    """Side in pixels of the images it sees."""
    width: int
    """Entries of an embedding."""
    prompt: str = ""
    """Sentence that texts were embedded in, with ``{}`` for the concept."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Document:
    """``concepts.json``."""

    visual: bool
    encoder: Encoder
    concepts: tuple[Concept, ...]
    format_version: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class ConceptBank:
    """A finished bank."""

    path: Path
    visual: bool
    encoder: Encoder
    concepts: tuple[Concept, ...]
    embeddings: NDArray[np.float32] = field(repr=False)
    """One row of length 1 per concept, shape (k, d)."""

    @staticmethod
    def open(path: Path) -> "ConceptBank":
        """Read and check a bank.

        Raises:
            UsageError: There is none at ``path``.
            StoreError: It is damaged.
        """
        from safetensors import SafetensorError
        from safetensors.numpy import load_file

        if not (path / CONCEPTS_NAME).is_file():
            raise missing(
                path, "make one with `coreset concepts`", otherwise="is no bank of concepts"
            )
        if Provenance.read(path).digest != output_digest(path):
            raise StoreError(f"{path} holds other files than were made; make the bank again")
        try:
            document = build(_Document, parse((path / CONCEPTS_NAME).read_bytes()))
            embeddings = load_file(path / EMBEDDINGS_NAME)["embeddings"]
            _check(document, embeddings)
        except (OSError, ValueError, LookupError, SafetensorError) as error:
            why = " ".join(str(error).split())
            raise StoreError(f"{path} cannot be read ({why}); make the bank again") from error
        return ConceptBank(
            path=path,
            visual=document.visual,
            encoder=document.encoder,
            concepts=document.concepts,
            embeddings=embeddings,
        )

    @property
    def is_of_labels(self) -> bool:
        """Test whether labels of images shaped it: prototypes of classes, or texts by images."""
        of_classes = self.visual and any(concept.classes for concept in self.concepts)
        config = Provenance.read(self.path).config
        return of_classes or bool(config.get("keep") or config.get("images"))

    def require_classes(self, dataset: Dataset) -> None:
        """Raise ``UsageError`` unless every class of ``dataset`` has a concept, and no other has.

        Prototypes of all images belong to no class and fit every data set.
        """
        own = {name for concept in self.concepts for name in concept.classes}
        if not own or own == set(dataset.classes):
            return
        absent, foreign = set(dataset.classes) - own, own - set(dataset.classes)
        fault = f"has no concept of class {min(absent)}" if absent else "has concepts"
        if foreign:
            fault += f" but some of {min(foreign)}" if absent else f" of {min(foreign)}"
        count = f"{len(absent)} classes without, {len(foreign)} classes foreign"
        raise UsageError(
            f"bank {self.path} {fault} ({count}), and {dataset.path} is another data set; make a "
            "bank of its classes with `coreset concepts`"
        )

    def require_encoder(self, spec: FeatureSpec) -> None:
        """Raise ``UsageError`` unless features are of the network that made the embeddings."""
        from coreset.engine.models.backbones import weights_key

        weights, own = weights_key(spec.backbone, spec.weights), self.encoder
        if (spec.backbone, spec.size, weights) != (own.backbone, own.size, own.weights):
            raise UsageError(
                f"bank {self.path} is of {own.backbone} at {own.size} pixels with weights "
                f"{own.weights[:8]}, the images would be seen by {spec.backbone} at {spec.size} "
                f"with {weights[:8]}; name the bank's own --weights, or make another bank"
            )


def write_bank(
    folder: Path,
    encoder: Encoder,
    concepts: Sequence[Concept],
    embeddings: NDArray[np.float32],
    *,
    visual: bool,
) -> None:
    """Write concepts and their embeddings, rows of length 1, into an artifact in the making.

    Raises:
        UsageError: A concept comes twice, or an embedding is not finite.
    """
    from safetensors.numpy import save

    document = _Document(visual=visual, encoder=encoder, concepts=tuple(concepts))
    try:
        _check(document, embeddings)
    except ValueError as error:
        raise UsageError(f"concepts make no bank: {error}") from error
    write_atomically(folder / CONCEPTS_NAME, json_bytes(asdict(document)))
    write_atomically(folder / EMBEDDINGS_NAME, save({"embeddings": embeddings}))


def _check(document: _Document, embeddings: NDArray[np.float32]) -> None:
    """Raise ``ValueError`` unless there is one finite row of length 1 for each concept."""
    texts, width = [concept.text for concept in document.concepts], document.encoder.width
    if len(texts) < 1:
        raise ValueError("there is no concept")
    seen = set[str]()
    for text in texts:
        if text in seen:
            raise ValueError(f"concept {text!r} comes twice")
        seen.add(text)
    if embeddings.dtype != np.float32 or embeddings.shape != (len(texts), width):
        raise ValueError(
            f"embeddings must be float32 of shape ({len(texts)}, {width}), got "
            f"{embeddings.dtype} of shape {embeddings.shape}"
        )
    lengths = np.sqrt(np.einsum("kd,kd->k", embeddings, embeddings, dtype=np.float64))
    odd = np.flatnonzero(~(np.abs(lengths - 1) < _LENGTH_ERROR))
    if odd.size:
        raise ValueError(
            f"the embedding of {texts[odd[0]]!r} has length {lengths[odd[0]]:.3g}, must be 1 "
            f"({odd.size} in all)"
        )
