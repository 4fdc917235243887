"""``coreset concepts generate``: concepts that an image-text model names for each class."""

from dataclasses import dataclass, field
from pathlib import Path

from coreset.engine.models.answers import ANSWERS_NAME, QUESTION, questions_of, write_answers
from coreset.engine.models.concept_bank import ConceptBank
from coreset.engine.models.concept_rows import create_bank, encoder_config, write_texts
from coreset.engine.models.concept_texts import class_words, cleaned
from coreset.engine.models.features import cached_features
from coreset.engine.models.generation import model_digest
from coreset.engine.runtime.fields import require_at_least
from coreset.engine.stages.options import BankPath, DataPath, Decoding, Flat, Result, TextEncoder
from coreset.shards.errors import UsageError
from coreset.shards.format.dataset import Dataset


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
    bank: BankPath
    """Directory to make."""
    model: Path
    """Folder of an image-text model as on the Hugging Face hub, such as llava-hf/llava-1.5-7b-hf,
    with its weights as safetensors. Nothing is downloaded, and no code in it is run."""
    question: str = QUESTION
    """What to ask, with {} for the class in words."""
    images: int = 0
    """Images of the class to show beside the question, evenly spread over its ids."""
    max_new_tokens: int = 128
    """Longest answer in tokens; of one that is cut there, the last phrase is left out if there are
    others."""
    encoder: Flat[TextEncoder] = field(default_factory=TextEncoder)
    decoding: Flat[Decoding] = field(default_factory=Decoding)

    def __post_init__(self) -> None:
        require_at_least("images", self.images, 0)
        require_at_least("max_new_tokens", self.max_new_tokens, 1)
        if "{}" not in self.question:
            raise UsageError(f"question must hold {{}} for the class, got {self.question!r}")

    def run(self) -> Result:
        """Ask what is not answered yet, split and embed the answers, publish the bank."""
        dataset, device = Dataset.open(self.data), self.decoding.resolved_device()
        words = class_words(dataset.classes)
        questions = questions_of(dataset, words, self.question, self.images)
        spec, keep = self.encoder.spec(self.decoding), self.encoder.keep
        config = encoder_config(spec)
        config |= {name: getattr(self, name) for name in ("question", "images", "max_new_tokens")}
        inputs = {"data": self.data}
        inputs |= {"features": cached_features(dataset, spec)} if keep else {}
        config |= {"prompt": self.encoder.prompt, "keep": keep, "model": model_digest(self.model)}
        stage = "concepts generate"
        with create_bank(self.bank, stage, inputs, config, device, resumable=True) as work:
            if not work.done:
                answers = write_answers(work, dataset, questions, self.model, device)
                by_class = {answer.name: answer.phrases() for answer in answers}
                names = {name: f"{name}, {words[name]}" for name in words}
                concepts = cleaned(by_class, names)
                write_texts(work, dataset, concepts, spec, inputs.get("features"))
        n_concepts, n = len(ConceptBank.open(self.bank).concepts), len(dataset.classes)
        how = "are there already" if work.done else f"made in {work.meter.wall_seconds:.1f} s"
        by = f" --weights {spec.weights}" if spec.weights else ""
        lines = (
            f"{n_concepts:,} concepts of {n:,} classes {how}: {self.bank}",
            f"answers as they came: {self.bank / ANSWERS_NAME}",
            f"next: coreset score {self.data} SCORES --proxy concept --concepts {self.bank}{by}",
        )
        return Result(lines, {"bank": str(self.bank), "concepts": n_concepts})
