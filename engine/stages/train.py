"""``coreset train``: train students on a condensed set and evaluate them on a validation set."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from coreset.engine.artifacts.writer import require_output
from coreset.engine.condensed.condensed_set import open_set, require_same_classes
from coreset.engine.evaluation.protocols import PROTOCOLS, named_protocol, split_name
from coreset.engine.evaluation.result_tables import STUDENTS
from coreset.engine.evaluation.results import Results
from coreset.engine.models.student_names import require_student
from coreset.engine.runtime.fields import require_at_least
from coreset.engine.runtime.processes import run_in_processes
from coreset.engine.stages.options import (
    Decoding,
    Flat,
    MovedData,
    NetworkName,
    Result,
    ResultsPath,
    SetPath,
    ValPath,
)
from coreset.shards.errors import CoresetError, InterruptedRunError
from coreset.shards.format.dataset import Dataset

if TYPE_CHECKING:
    from coreset.engine.evaluation.protocols.base import Protocol
    from coreset.engine.evaluation.training_job import TrainingJob

_ONE_OF_PROTOCOLS = tyro.conf.arg(metavar=f"{{{','.join(PROTOCOLS)}}}[+VARIANT]")


@dataclass(frozen=True, slots=True, kw_only=True)
class Train:
    """Train students from scratch on a condensed set under an evaluation protocol.

    Appends one row per student to RESULTS (students.parquet and .csv). A student whose row is there
    already is not trained again, and one that was interrupted goes on. Example:

    coreset train SET VAL RESULTS --protocol rded --teachers resnet18=resnet18.pth
    """

    condensed: SetPath
    """Condensed set (`coreset select`, `coreset distill`)."""
    val: ValPath
    """Packed validation set with the same classes."""
    results: ResultsPath
    """Results folder; made if absent, else appended to."""
    protocol: Annotated[str, _ONE_OF_PROTOCOLS] = "hard"
    """hard: hard labels. rded: labels of one teacher. edc: mean logits of several. With variants,
    such as rded@1+factor1; `coreset protocols show NAME` prints every value and its source."""
    student: NetworkName = "resnet18"
    """Network to train. resnetap10: the study's ResNetAP-10, average pooling instead of strides.
    convnet: three small convolutions, a student of seconds. timm:NAME: any timm model, untrained,
    with norm layers of its own instead of the protocol's: rows are stamped hard@1+timm."""
    teachers: tuple[str, ...] = ()
    """Teachers of rded and edc: folders of `coreset teach`, or names of torchvision or timm, with
    NAME=FILE for weights that are not where these libraries keep them. Nothing is downloaded."""
    repeats: int = 3
    """Students, with seeds seed, seed + 1, ..."""
    seed: int = 0
    """Seed of the first student."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Of forward and backward passes: float32 as published, or bfloat16, stamped +bf16."""
    epochs: int | None = None
    """Other epochs than the protocol's: rows are stamped hard@1+short and are not comparable."""
    size: int | None = None
    """Other image size than the protocol's 224, at least 33 (resnetap10: 64, convnet: 8): stamped
    likewise."""
    evaluations: int | None = None
    """Other number of evaluations (best is the best of them): stamped likewise."""
    val_per_class: int | None = None
    """Validation images of each class, the first by key; 0: all, as hard and edc; rded takes 50."""
    labels: Path | None = None
    """Folder to keep the teachers' labels in (float16), for other students of the same seeds."""
    slots: int = 1
    """Students at a time, each in a process of its own on the device."""
    deterministic: bool = False
    """On a GPU, kernels that repeat bit by bit: an interrupted student ends as if it were not."""
    data: MovedData = None
    compile: Literal["auto", "on", "graphs", "off"] = "auto"
    """torch.compile: auto is on for a GPU; on a CPU only for trainings of over about 15 minutes.
    graphs: with CUDA graphs, which a GPU has (`coreset doctor` times both)."""
    decoding: Flat[Decoding] = field(default_factory=Decoding)

    def __post_init__(self) -> None:
        for name in ("repeats", "slots"):
            require_at_least(name, getattr(self, name), 1)
        for name, least in (("epochs", 1), ("evaluations", 1), ("val_per_class", 0)):
            value = getattr(self, name)
            if value is not None:
                require_at_least(name.replace("_", "-"), value, least)
        split_name(self.protocol)
        require_student(self.student, self.size)

    def run(self) -> Result:
        """Open set and validation set, train every student that has no row yet, append its row."""
        job = self._job()
        keys = {seed: job.key(seed) for seed in range(self.seed, self.seed + self.repeats)}
        known, notes = job.results.keys(STUDENTS), list[str]()
        missing = [seed for seed, key in keys.items() if key not in known]
        failures: list[CoresetError] = []
        if self.slots > 1 and len(missing) > 1:
            each = [replace(self, seed=seed, repeats=1, slots=1).run for seed in missing]
            failures = run_in_processes(each, self.slots)
        elif missing:
            job.open()  # what is wrong with it is wrong for all students
            for seed in missing:
                try:
                    notes.append(job.train(seed))
                except InterruptedRunError:
                    raise
                except CoresetError as error:  # the others may do
                    failures.append(error)
        job.results.fold()
        if len(failures) == len(keys):
            raise failures[0]
        return self._outcome(job, set(keys.values()), len(missing), notes, failures)

    def _job(self) -> "TrainingJob":
        from coreset.engine.evaluation.student_inputs import StudentInputs, open_teachers
        from coreset.engine.evaluation.training_job import TrainingJob

        require_output(self.results)
        condensed, val = open_set(self.condensed, data=self.data), Dataset.open(self.val)
        require_same_classes(condensed, val)
        device = self.decoding.resolved_device()
        protocol = self._protocol(condensed.info.n_classes, condensed.info.ipc)
        teachers, protocol = open_teachers(self.teachers, protocol, val.manifest.classes, device)
        changed = {name: getattr(self, name) for name in ("epochs", "size", "evaluations")}
        inputs = StudentInputs(
            condensed=condensed,
            val=val,
            protocol=protocol.shortened(**changed),
            device=device,
            open_stream=self.decoding.stream,
            workers=self.decoding.workers,
            teachers=teachers,
            labels=self.labels,
        )
        return TrainingJob(
            inputs, Results(self.results), self.student, self.compile, self.deterministic
        )

    def _protocol(self, n_classes: int, ipc: int) -> "Protocol":
        """Return the protocol of the options, before it is shortened."""
        _, variants = split_name(self.protocol)
        half = "+bf16" if self.precision == "bf16" and "bf16" not in variants else ""
        protocol = named_protocol(self.protocol + half, n_classes, ipc).applied_to(self.student)
        if self.val_per_class is not None:
            protocol = replace(protocol, val_per_class=self.val_per_class or None)
        if self.labels is not None:
            protocol = protocol.with_kept_labels()
        return protocol

    def _outcome(
        self,
        job: "TrainingJob",
        keys: set[str],
        n_new: int,
        notes: list[str],
        failures: list[CoresetError],
    ) -> Result:
        from coreset.engine.report.results import plus_minus

        rows = [row for row in job.results.rows(STUDENTS) if row["key"] in keys]
        best, stamp = [row["top1_best"] for row in rows], job.inputs.protocol.stamp
        what = f"{rows[0]['method']} at IPC {rows[0]['ipc']}, {self.student}, {stamp}"
        last = fmean(row["top1_last"] for row in rows)
        accuracy = f"top-1 {plus_minus(best, '+-')} % best, {last:.1f} % last"
        count = f"{len(rows)} students, {n_new - len(failures)} of them new"
        lines = (
            *dict.fromkeys(filter(None, notes)),
            f"{what}: {accuracy} ({count}): {self.results}",
            f"next: coreset report {self.results} report.html",
        )
        data = {"results": str(self.results), "protocol": stamp, "top1_best": best}
        return Result(lines, data, error=failures[0] if failures else None)
