"""``coreset concepts generate``: concepts that an image-text model names for each class."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, TypeAlias

import tyro

from coreset.engine.artifacts.provenance import Provenance
from coreset.engine.artifacts.writer import ArtifactWriter, create_artifact
from coreset.engine.models.answers import ANSWERS_NAME, QUESTION, questions_of, write_answers
from coreset.engine.models.concept_bank import BANK_KIND, ConceptBank
from coreset.engine.models.features import FeatureSpec
from coreset.engine.models.generation import model_digest
from coreset.engine.runtime.fields import require_at_least
from coreset.engine.stages.options import DataPath, Decoding, Extractor, Flat, Result
from coreset.shards.errors import UsageError
from coreset.shards.format.dataset import Dataset

_BankPath: TypeAlias = Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="BANK")]


@dataclass(frozen=True, slots=True, kw_only=True)
class Generate:
    """Ask an image-text model what each class looks like, and make a bank of the phrases it names.

    One question per class, answered by the likeliest words, from the name alone or with --images of
    the class. The bank keeps the answers as they came, in answers.jsonl. An interrupted run
    continues with the next class. For example: coreset concepts generate DATA BANK --model
    llava-1.5-7b-hf --backbone clip:ViT-B-32-quickgelu --weights clip.safetensors.
    """

    data: DataPath
    """Packed data set."""
    bank: _BankPath
    """Directory to make."""
    model: Path
    """Folder of an image-text model as on the Hugging Face hub, such as llava-hf/llava-1.5-7b-hf,
    with its weights as safetensors. Nothing is downloaded, and no code in it is run."""
    question: str = QUESTION
    """What to ask, with {} for the class in words."""
    images: int = 0
    """Images of the class to show beside the question, evenly spread over its ids."""
    max_new_tokens: int = 128
    """Longest answer in tokens; of one that is cut there, the last phrase is left out."""
    prompt: str = "a photo of {}"
    """Sentence to embed each concept in, with {} for the concept; {} alone embeds it bare."""
    encoder: Flat[Extractor] = field(default_factory=Extractor)
    decoding: Flat[Decoding] = field(default_factory=Decoding)

    def __post_init__(self) -> None:
        require_at_least("images", self.images, 0)
        require_at_least("max_new_tokens", self.max_new_tokens, 1)
        for name in ("question", "prompt"):
            if "{}" not in (text := getattr(self, name)):
                raise UsageError(f"{name} must hold {{}} where the words go, got {text!r}")

    def run(self) -> Result:
        """Ask what is not answered yet, split and embed the answers, publish the bank."""
        from coreset.engine.models.backbones import weights_key
        from coreset.engine.runtime.device import runtime_of

        dataset, device = Dataset.open(self.data), self.decoding.resolved_device()
        words = _class_words(dataset.classes)
        questions = questions_of(dataset, words, self.question, self.images)
        spec = self.encoder.spec(self.decoding)
        own = ("question", "images", "max_new_tokens", "prompt")
        encoder = {"backbone": spec.backbone, "size": spec.size}
        encoder |= {"weights": weights_key(spec.backbone, spec.weights)}
        config = {name: getattr(self, name) for name in own} | encoder
        provenance = Provenance(
            kind=BANK_KIND,
            stage="concepts generate",
            config=config | {"model": model_digest(self.model)},
            runtime=runtime_of(device),
            inputs=(Provenance.read(self.data).as_input("data", self.data, self.bank),),
        )
        with create_artifact(
            self.bank, provenance, inputs=[self.data], device=str(device), resumable=True
        ) as work:
            if not work.done:
                answers = write_answers(
                    work, dataset, questions, self.model, device,
                    images=self.images, max_new_tokens=self.max_new_tokens,
                )  # fmt: skip
                by_class = {answer.name: answer.phrases() for answer in answers}
                _make_bank(work, dataset, by_class, spec, self.prompt)
        n_concepts, n = len(ConceptBank.open(self.bank).concepts), len(dataset.classes)
        how = "are there already" if work.done else f"made in {work.meter.wall_seconds:.1f} s"
        lines = (
            f"{n_concepts:,} concepts of {n:,} classes {how}: {self.bank}",
            f"answers as they came: {self.bank / ANSWERS_NAME}",
            f"next: coreset score {self.data} SCORES --proxy concept --concepts {self.bank}",
        )
        return Result(lines, {"bank": str(self.bank), "concepts": n_concepts})


def _class_words(classes: Sequence[str]) -> Mapping[str, str]:
    """Name each class in words."""
    raise NotImplementedError


def _make_bank(
    work: ArtifactWriter,
    dataset: Dataset,
    by_class: Mapping[str, Sequence[str]],
    spec: FeatureSpec,
    prompt: str,
) -> None:
    """Clean the phrases of each class, embed them in the prompt, and write the bank."""
    raise NotImplementedError
