"""``coreset distill``: build a synthetic set of images from a data set."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from coreset.engine.artifacts.provenance import Provenance
from coreset.engine.artifacts.writer import ArtifactWriter, create_artifact
from coreset.engine.condensed.condensed_set import open_set, write_set
from coreset.engine.condensed.methods import METHODS
from coreset.engine.condensed.methods.base import Task
from coreset.engine.runtime.distributed import Distributed, join
from coreset.engine.runtime.fields import (
    choice_of,
    own_parameters,
    parameters_of,
    require_at_least,
    require_between,
)
from coreset.engine.stages.options import DataPath, Decoding, Flat, Result, SetPath
from coreset.shards.errors import UsageError
from coreset.shards.format.dataset import Dataset

if TYPE_CHECKING:
    from coreset.engine.models.teachers import Teacher

DEFAULT = Decoding()


@dataclass(frozen=True, slots=True, kw_only=True)
class Distill:
    """Build a set of synthetic images, --ipc a class: one finished class or image at a time.

    For example: coreset distill DATA SET --method rded --ipc 10 --teachers resnet18=resnet18.pth.
    torchrun --nproc-per-node 4 -m coreset distill ... shares the work between four GPUs.
    """

    data: DataPath
    """Packed data set."""
    condensed: SetPath
    """Directory to make: the images as shards, and how they came about."""
    ipc: int
    """Images per class."""
    method: Annotated[str, choice_of(METHODS, default="kmeans")] = "kmeans"
    seed: int = 0
    """Seed of the method."""
    teachers: tuple[str, ...] = ()
    """Classifiers that a method asks, in turn where it takes several: NAME=FILE (networks of
    torchvision or timm), or a folder of `coreset teach`."""
    patches: Path | None = None
    """Set of mosaics that a method begins with, such as `coreset distill --method rded` makes."""
    decoding: Flat[Decoding] = DEFAULT
    parameters: Annotated[Any, parameters_of(METHODS)] = None

    def __post_init__(self) -> None:
        require_at_least("ipc", self.ipc, 1)
        require_between("seed", self.seed, 0, 2**63)
        method, n = METHODS[self.method], len(self.teachers)
        own_parameters(method, self.parameters)
        if n not in method.teachers:
            few, most = method.teachers.start, method.teachers.stop - 1
            wanted = f"{few}" if few == most else f"{few} to {most}"
            raise UsageError(
                f"method {self.method} takes {wanted} --teachers, got {n}; name each as NAME=FILE "
                "or as a folder of `coreset teach`"
            )
        if method.patches != (self.patches is not None):
            problem = "begins with no mosaics; leave out --patches"
            if method.patches:
                problem = "begins with mosaics of real images; name a set of them with --patches "
                problem += "(coreset distill DATA PATCHES --method rded)"
            raise UsageError(f"method {self.method} {problem}")

    def run(self) -> Result:
        """Build the images part by part, pack and publish them."""
        dataset = Dataset.open(self.data)
        if self.patches is not None:
            open_set(self.patches)  # refuses what is no set before anything is made
        parameters = own_parameters(METHODS[self.method], self.parameters)
        teachers = self._teachers(dataset)
        recorded = {"ipc": self.ipc, **asdict(parameters)}
        if teachers:
            recorded["teachers"] = [teacher.name for teacher in teachers]
        with join() as ranks, ExitStack() as stack:
            artifact = self._artifact(recorded, teachers)
            work = ranks.run_on_main(lambda: stack.enter_context(artifact))
            if ranks.run_on_main(lambda: not work.done):
                self._make(work, dataset, teachers, parameters, ranks)
            if not ranks.is_main:
                return Result((f"rank {ranks.rank} of {ranks.world} is done with its part",))
            if not work.done:
                write_set(
                    work, dataset, None, method=self.method, parameters=recorded, seed=self.seed
                )
        how = "are there already" if work.done else f"made in {work.meter.wall_seconds:.1f} s"
        lines = (
            f"{self.ipc * len(dataset.classes):,} {self.method} images {how}: {self.condensed}",
            f"next: coreset train {self.condensed} VAL RESULTS",
        )
        return Result(lines, {"set": str(self.condensed)})

    def _teachers(self, dataset: Dataset) -> "tuple[Teacher, ...]":
        if not self.teachers:
            return ()
        from coreset.engine.models.teachers import load_teachers

        device = self.decoding.resolved_device()
        return load_teachers(self.teachers, dataset.classes, device)

    def _artifact(
        self, recorded: Mapping[str, Any], teachers: "Sequence[Teacher]"
    ) -> AbstractContextManager[ArtifactWriter]:
        config = {"method": self.method, "seed": self.seed, **recorded}
        inputs = {"data": self.data}
        if self.patches is not None:
            inputs["patches"] = self.patches
        if teachers:
            config["teachers"] = [teacher.digest for teacher in teachers]
            folders = (Path(spec) for spec in self.teachers if Path(spec).is_dir())
            inputs |= {f"teacher {number}": folder for number, folder in enumerate(folders)}
        provenance = Provenance(
            kind="set",
            stage="distill",
            config=config,
            inputs=Provenance.inputs_of(self.condensed, inputs),
        )
        return create_artifact(
            self.condensed,
            provenance,
            inputs=list(inputs.values()),
            device=str(self.decoding.resolved_device()) if teachers else "cpu",
            resumable=True,
        )

    def _make(
        self,
        work: ArtifactWriter,
        dataset: Dataset,
        teachers: "Sequence[Teacher]",
        parameters: object,
        ranks: Distributed,
    ) -> None:
        from coreset.engine.condensed.synthesis import make_images

        def advance(n_images: int) -> None:
            work.meter.images += n_images

        task = Task(
            dataset=dataset,
            ipc=self.ipc,
            seed=self.seed,
            open_stream=self.decoding.stream,
            workers=self.decoding.workers,
            advance=advance,
            teachers=teachers,
            patches=None if self.patches is None else open_set(self.patches),
        )
        method = METHODS[self.method]
        make_images(work, task, lambda task: method.prepare(task, parameters), ranks)
