"""``coreset teach``: train a teacher for soft labels on a whole data set."""

from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from coreset.engine.artifacts.provenance import Provenance
from coreset.engine.artifacts.writer import ArtifactWriter, create_artifact, require_output
from coreset.engine.condensed.condensed_set import require_same_classes
from coreset.engine.models.student_names import require_student
from coreset.engine.runtime.fields import require_at_least
from coreset.engine.stages.options import DataPath, Decoding, Flat, NetworkName, Result, TeacherPath
from coreset.shards.format.dataset import Dataset

if TYPE_CHECKING:
    from coreset.engine.evaluation.protocols.teach import Teach as Recipe
    from coreset.engine.evaluation.teaching_job import TeachingJob


@dataclass(frozen=True, slots=True, kw_only=True)
class Teach:
    """Train a teacher from scratch on a whole data set: CCS's ImageNet recipe, batch norm.

    For sets of classes that no published network has. Writes the weights of the last epoch as
    safetensors, and teacher.json. Commits at ends of epochs every 5 min, and on SIGTERM or SIGUSR1;
    the same command continues from the last commit, on a CPU to the same bytes. Example:

    coreset teach DATA TEACHER --arch resnet18 --val VAL
    """

    data: DataPath
    """Packed data set; the teacher learns all of its classes."""
    teacher: TeacherPath
    """Directory to make."""
    arch: NetworkName = "resnet18"
    """Network to train, as --student of `coreset train`, with batch norm. timm:NAME: any timm
    model, untrained, with norm layers of its own."""
    val: Path | None = None
    """Packed validation set with the same classes: its accuracy after the last epoch is kept."""
    epochs: int | None = None
    """Passes over the data (60)."""
    size: int | None = None
    """Side of the crops in pixels (224); at least 33 (resnetap10: 64, convnet: 8)."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Of forward and backward passes: float32 or, where it is fast, bfloat16."""
    seed: int = 0
    """Seed of weights and crops."""
    decoding: Flat[Decoding] = field(default_factory=Decoding)

    def __post_init__(self) -> None:
        if self.epochs is not None:
            require_at_least("epochs", self.epochs, 1)
        require_student(self.arch, self.size, "arch")

    def run(self) -> Result:
        """Open the data sets, train from the last checkpoint on, publish the teacher."""
        require_output(self.teacher)
        job = self._job()
        job.require_trainable()

        from coreset.engine.runtime.device import deterministic_kernels

        inputs = {"data": self.data} | ({} if self.val is None else {"val": self.val})
        artifact = create_artifact(
            self.teacher,
            self._provenance(job, inputs),
            inputs=list(inputs.values()),
            device=str(job.device),
            resumable=True,
        )
        with deterministic_kernels(job.device, wanted=False), artifact as work:
            if not work.done:
                job.make(work)
        return self._outcome(work, job)

    def _job(self) -> "TeachingJob":
        from coreset.engine.evaluation.teaching_job import TeachingJob

        dataset = Dataset.open(self.data)
        val = None if self.val is None else Dataset.open(self.val)
        if val is not None:
            require_same_classes(dataset, val)
        return TeachingJob(
            dataset=dataset,
            val=val,
            protocol=self._protocol(dataset),
            arch=self.arch,
            seed=self.seed,
            device=self.decoding.resolved_device(),
            open_stream=self.decoding.stream,
        )

    def _protocol(self, dataset: Dataset) -> "Recipe":
        """Return the recipe with what was asked for."""
        from coreset.engine.evaluation.protocols.teach import Teach as Recipe

        recipe = Recipe.published(len(dataset.classes)).applied_to(self.arch)
        batch, evaluations = min(recipe.batch, len(dataset)), 0 if self.val is None else 1
        recipe = replace(recipe, batch=batch, evaluations=evaluations)
        if self.precision == "bf16":
            recipe = recipe.changed("bf16", precision="bfloat16")
        return recipe.shortened(epochs=self.epochs, size=self.size)

    def _provenance(self, job: "TeachingJob", inputs: dict[str, Path]) -> Provenance:
        from coreset.engine.data.decoders import choose_decoder
        from coreset.engine.runtime.device import runtime_of

        exact, device = self.decoding.decoder_exact, job.device
        decoder = choose_decoder(self.decoding.decoder, device.type, exact=exact).value
        own = {"arch": self.arch, "seed": self.seed, "decoder_exact": exact}
        return Provenance(
            kind="teacher",
            stage="teach",
            config=asdict(job.protocol) | own,
            runtime=runtime_of(device) | {"precision": job.protocol.precision, "decoder": decoder},
            inputs=Provenance.inputs_of(self.teacher, inputs),
        )

    def _outcome(self, work: ArtifactWriter, job: "TeachingJob") -> Result:
        from coreset.engine.models.teachers import LEAST_ACCURACY, read_document

        accuracy = read_document(self.teacher).accuracy
        how = "was there already" if work.done else f"made in {work.meter.wall_seconds:.1f} s"
        what = f"teacher {self.arch} of {job.protocol.n_classes} classes by {job.protocol.stamp}"
        lines = [*self.decoding.notice(), *filter(None, [str(work.meter.notes.get("note", ""))])]
        if job.val is not None and accuracy is not None:
            lines.append(f"top-1 {accuracy:.1f} % of {len(job.val):,} validation images")
            if accuracy < LEAST_ACCURACY:
                lines[-1] += f"; students take no teacher under {LEAST_ACCURACY:.0f} %"
        lines += [
            f"{what} {how}: {self.teacher}",
            f"next: coreset train SET VAL RESULTS --protocol rded --teachers {self.teacher}",
        ]
        data = {"teacher": str(self.teacher), "arch": self.arch, "accuracy": accuracy}
        return Result(tuple(lines), data | {"protocol": job.protocol.stamp})
