"""``coreset concepts``: import texts, or cluster images, into a bank of concepts; show a bank."""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, TypeAlias

import tyro

from coreset.engine.artifacts.store import FEATURES_NAME
from coreset.engine.models.concept_bank import VISUAL_STAGE, ConceptBank
from coreset.engine.models.concept_rows import (
    create_bank,
    encoder_config,
    prototypes,
    write_rows,
    write_texts,
)
from coreset.engine.models.concept_texts import cleaned, texts_by_class
from coreset.engine.models.features import cached_features
from coreset.engine.runtime.fields import require_at_least, require_class_size
from coreset.engine.runtime.text import aligned
from coreset.engine.stages.concept_generation import Generate
from coreset.engine.stages.options import (
    BankPath,
    DataPath,
    Decoding,
    Extractor,
    Flat,
    Result,
    TextEncoder,
)
from coreset.shards.errors import UsageError
from coreset.shards.format.dataset import Dataset
from coreset.shards.format.files import sha256_of_file

SHOWN = 3  # concepts of a class
USUAL_K = 5

_Json: TypeAlias = Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="JSON")]


@dataclass(frozen=True, slots=True, kw_only=True)
class Import:
    """Make a bank of texts that are there already, such as descriptions by a language model.

    Classes are found by name, WordNet id or WordNet name, or in a file of exactly 1,000 classes by
    their order in ImageNet.
    Texts are put into lower case; what holds the name of its class, or comes twice, is dropped. For
    example: coreset concepts import descriptors.json DATA BANK --backbone clip:ViT-B-32-quickgelu
    --weights clip.safetensors --keep 5.
    """

    texts: _Json
    """JSON file of {"class": ["concept", ...]}."""
    data: DataPath
    """Packed data set whose classes are described."""
    bank: BankPath
    """Directory to make."""
    encoder: Flat[TextEncoder]
    decoding: Flat[Decoding] = field(default_factory=Decoding)

    def run(self) -> Result:
        """Find the texts of each class, clean and embed them, keep the best."""
        dataset, encoder = Dataset.open(self.data), self.encoder
        concepts = cleaned(*texts_by_class(self.texts, dataset))
        spec, keep = encoder.spec(self.decoding), encoder.keep
        config = {"json": sha256_of_file(self.texts), "prompt": encoder.prompt, "keep": keep}
        config |= encoder_config(spec)
        inputs = {"data": dataset.path}
        inputs |= {"features": cached_features(dataset, spec)} if keep else {}
        device = self.decoding.resolved_device()
        with create_bank(self.bank, "concepts import", inputs, config, device) as work:
            if not work.done:
                write_texts(work, dataset, concepts, spec, inputs.get("features"))
        return _result(self.bank, self.data, done=work.done, weights=self.encoder.weights)


@dataclass(frozen=True, slots=True, kw_only=True)
class Visual:
    """Make a bank of visual prototypes: centres of the images of each class (spherical k-means).

    It needs no texts, and takes any backbone. For example: coreset concepts visual DATA BANK -k 5;
    coreset concepts visual DATA BANK --pooled 100.
    """

    data: DataPath
    """Packed data set."""
    bank: BankPath
    """Directory to make."""
    k: Annotated[
        int | None, tyro.conf.arg(aliases=("-k",), help_behavior_hint=f"(default: {USUAL_K})")
    ] = None
    """Prototypes of each class."""
    pooled: int | None = None
    """Prototypes of all images instead of -k, without labels; they belong to no class."""
    seed: int = 0
    """Seed of k-means; every class has its own stream."""
    extractor: Flat[Extractor] = field(default_factory=Extractor)
    decoding: Flat[Decoding] = field(default_factory=Decoding)

    def __post_init__(self) -> None:
        if self.k is not None and self.pooled is not None:
            raise UsageError(f"give one of -k and --pooled, got {self.k} and {self.pooled}")
        for name in ("k", "pooled"):
            if (value := getattr(self, name)) is not None:
                require_at_least(name, value, 1)

    def run(self) -> Result:
        """Find or make the features, cluster them."""
        from coreset.engine.models.feature_rows import feature_table

        dataset, pooled, k = Dataset.open(self.data), self.pooled, self.k or USUAL_K
        if pooled is None:
            require_class_size(dataset, "k", k, remedy="lower -k")
        elif pooled > len(dataset):
            raise UsageError(f"pooled must be at most {len(dataset)} (images), got {pooled}")
        spec = self.extractor.spec(self.decoding)
        config = {"k": None if pooled else k, "pooled": pooled, "seed": self.seed}
        config |= encoder_config(spec)
        inputs = {"data": dataset.path, "features": cached_features(dataset, spec)}
        device = self.decoding.resolved_device()
        with create_bank(self.bank, VISUAL_STAGE, inputs, config, device) as work:
            if not work.done:
                table = feature_table(inputs["features"] / FEATURES_NAME, work.scratch)
                concepts, rows = prototypes(table, dataset, k, pooled, self.seed)
                write_rows(work, concepts, rows, visual=True)
                work.meter.images = len(dataset)
        notice, weights = self.extractor.notice(), self.extractor.weights
        return _result(self.bank, self.data, notice, done=work.done, weights=weights)


@dataclass(frozen=True, slots=True, kw_only=True)
class Show:
    """Show a bank: its encoder, and the concepts of classes.

    For example: coreset concepts show BANK --classes 1000.
    """

    bank: BankPath
    """Bank of concepts."""
    classes: int = 10
    """Classes to show, or prototypes that belong to none."""

    def __post_init__(self) -> None:
        require_at_least("classes", self.classes, 1)

    def run(self) -> Result:
        """Read the bank, list its concepts class by class."""
        bank = ConceptBank.open(self.bank)
        by_class: dict[str, list[str]] = {}
        for concept in bank.concepts:
            for name in concept.classes or (concept.text,):
                by_class.setdefault(name, []).append(concept.nearest or concept.text)
        rows = [
            (name, f"{len(texts)}", "; ".join(texts[:SHOWN]) + ("; ..." if texts[SHOWN:] else ""))
            for name, texts in [*by_class.items()][: self.classes]
        ]
        header = ("class", "concepts", "nearest images" if bank.visual else "the first")
        lines, encoder = [*aligned(header, rows)], asdict(bank.encoder)
        if rest := len(by_class) - len(rows):
            lines.append(f"and {rest:,} more: --classes {len(by_class)} shows all")
        facts = (f"{name} {value}" for name, value in encoder.items() if value)
        lines += [f"encoder: {', '.join(facts)}", f"{_counted(bank)}: {self.bank}"]
        data = {"bank": str(self.bank), "visual": bank.visual, "encoder": encoder}
        return Result(tuple(lines), data | {"concepts": [asdict(c) for c in bank.concepts]})


def _result(
    path: Path,
    data: Path,
    notice: tuple[str, ...] = (),
    *,
    done: bool,
    weights: Path | None = None,
) -> Result:
    bank, by = ConceptBank.open(path), f" --weights {weights}" if weights else ""
    lines = (
        *notice,
        f"{_counted(bank)} {'are there already' if done else 'made'}: {path}",
        f"next: coreset score {data} SCORES --proxy concept --concepts {path}{by}",
    )
    return Result(lines, {"bank": str(path), "concepts": len(bank.concepts)})


def _counted(bank: ConceptBank) -> str:
    classes = {name for concept in bank.concepts for name in concept.classes}
    kind = "visual prototypes" if bank.visual else "concepts"
    of = f"of {len(classes):,} classes" if classes else "of all images"
    return f"{len(bank.concepts):,} {kind} {of} ({bank.encoder.backbone})"


Concepts: TypeAlias = (
    Annotated[Import, tyro.conf.subcommand("import")]
    | Annotated[Generate, tyro.conf.subcommand("generate")]
    | Annotated[Visual, tyro.conf.subcommand("visual")]
    | Annotated[Show, tyro.conf.subcommand("show")]
)
"""Subcommands of ``coreset concepts``."""
