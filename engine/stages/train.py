"""``coreset train``: train students on a condensed set and evaluate them on a validation set."""

import json
from dataclasses import asdict, dataclass, field
from statistics import fmean
from typing import TYPE_CHECKING, Annotated, Literal, TypeAlias

import tyro

from coreset.engine.artifacts.ledger import Meter, peak_rss_bytes
from coreset.engine.artifacts.provenance import versions
from coreset.engine.artifacts.writer import require_output
from coreset.engine.condensed.condensed_set import CondensedSet, open_set, require_same_classes
from coreset.engine.evaluation.protocols import PROTOCOLS
from coreset.engine.evaluation.result_tables import PUBLISHED_PRECISION, STUDENTS
from coreset.engine.evaluation.results import Results
from coreset.engine.models.student_names import SMALLEST_SIZE, TIMM, require_student
from coreset.engine.runtime.fields import choice_of, require_at_least
from coreset.engine.runtime.progress import progress
from coreset.engine.stages.options import (
    Decoding,
    Flat,
    MovedData,
    Result,
    ResultsPath,
    SetPath,
    ValPath,
)
from coreset.shards.format.dataset import Dataset
from coreset.shards.format.files import digest_of

if TYPE_CHECKING:
    import torch

    from coreset.engine.data.images import EpochSource
    from coreset.engine.evaluation.students import Protocol, StudentResult

    Pixels: TypeAlias = tuple[EpochSource, EpochSource]

_ONE_OF_STUDENTS = tyro.conf.arg(metavar=f"{{{','.join(SMALLEST_SIZE)},{TIMM}NAME}}")
PROTOCOL_COLUMNS = ("epochs", "evaluations", "size", "batch")


@dataclass(frozen=True, slots=True, kw_only=True)
class Train:
    """Train students from scratch on a condensed set under an evaluation protocol.

    Appends one row per student to RESULTS (students.parquet and .csv). A student whose row is there
    already is not trained again, so an interrupted command continues with the next one. Training is
    in bfloat16 where the device is fast at it: such rows are stamped hard@1+bf16.
    """

    condensed: SetPath
    """Condensed set (`coreset select`, `coreset distill`)."""
    val: ValPath
    """Packed validation set with the same classes."""
    results: ResultsPath
    """Results folder; made if absent, else appended to."""
    protocol: Annotated[str, choice_of(PROTOCOLS, default="hard")] = "hard"
    student: Annotated[str, _ONE_OF_STUDENTS] = "resnet18"
    """Network to train. resnetap10: the study's ResNetAP-10, average pooling instead of strides.
    convnet: three small convolutions, a student of seconds. timm:NAME: any timm model, untrained,
    with norm layers of its own instead of the protocol's: rows are stamped hard@1+timm."""
    repeats: int = 3
    """Students, with seeds seed, seed + 1, ..."""
    seed: int = 0
    """Seed of the first student."""
    epochs: int | None = None
    """Other epochs than the protocol's: rows are stamped hard@1+short and are not comparable."""
    size: int | None = None
    """Other image size than the protocol's 224, at least 33 (resnetap10: 64, convnet: 8): stamped
    likewise."""
    evaluations: int | None = None
    """Other number of evaluations than about 100 (best is the best of them): stamped likewise."""
    data: MovedData = None
    compile: Literal["auto", "on", "graphs", "off"] = "auto"
    """torch.compile: auto is on for a GPU; on a CPU only for trainings of over about 15 minutes.
    graphs: with CUDA graphs, which a GPU has (`coreset doctor` times both)."""
    decoding: Flat[Decoding] = field(default_factory=Decoding)

    def __post_init__(self) -> None:
        require_at_least("repeats", self.repeats, 1)
        for name in ("epochs", "evaluations"):
            value = getattr(self, name)
            if value is not None:
                require_at_least(name, value, 1)
        require_student(self.student, self.size)

    def run(self) -> Result:
        """Open set and validation set, train every student that has no row yet, append its row."""
        from coreset.engine.runtime.device import runtime_of

        require_output(self.results)
        condensed, val = open_set(self.condensed, data=self.data), Dataset.open(self.val)
        require_same_classes(condensed, val)
        info = condensed.info
        published = PROTOCOLS[self.protocol].load().published(info.n_classes, info.ipc)
        changed = {name: getattr(self, name) for name in ("epochs", "size", "evaluations")}
        protocol = published.applied_to(self.student).shortened(**changed)
        device, results = self.decoding.resolved_device(), Results(self.results)
        runtime = runtime_of(device)
        seeds, precision = range(self.seed, self.seed + self.repeats), str(runtime["precision"])
        row_keys = {seed: self._key(condensed, val, protocol, seed) for seed in seeds}
        students = {s: _in_precision(protocol.stamp, k, precision) for s, k in row_keys.items()}
        known, note = results.keys(STUDENTS), ""
        missing = {seed: named for seed, named in students.items() if named["key"] not in known}
        if missing:
            self._require_trainable(protocol, len(condensed.ids))
            pixels = self._pixels(condensed, val, protocol)
            results.record_lineage(condensed)
            common = {
                **results.input_columns(condensed, val),
                "student": self.student,
                "precision": precision,
                **{name: getattr(protocol, name) for name in PROTOCOL_COLUMNS},
                "image_bytes": condensed.image_bytes,
                "label_bytes": 0,
                "device": str(device),
                "runtime": json.dumps({**runtime, "versions": versions()}),
            }
            for seed, named in missing.items():
                meter = Meter("train", named["key"], str(device))
                columns = self._student(pixels, protocol, seed, device)._asdict()
                note = columns.pop("note")
                meter.images = protocol.epochs * len(condensed.ids)
                row = {**common, **named, **columns, "seed": seed}
                row["peak_rss_bytes"] = peak_rss_bytes()
                results.append(STUDENTS, [row], [meter.line()])
        results.fold()
        return self._outcome(results, students, len(missing), note)

    def _key(self, condensed: CondensedSet, val: Dataset, protocol: "Protocol", seed: int) -> str:
        """Digest everything that went in but the precision."""
        reference = [val.manifest.identity, val.manifest.content]
        inputs = {"set": condensed.provenance.digest, "val": reference}
        own = {"protocol": asdict(protocol), "student": self.student, "seed": seed}
        return digest_of(inputs | own)

    def _require_trainable(self, protocol: "Protocol", n_images: int) -> None:
        """Refuse a student that cannot train on the last batch of an epoch, the smallest."""
        from coreset.engine.models.networks import require_trainable

        last = n_images % protocol.batch or protocol.batch
        require_trainable(self.student, protocol.n_classes, images=last, size=protocol.size)

    def _pixels(self, condensed: CondensedSet, val: Dataset, protocol: "Protocol") -> "Pixels":
        """Decode the set onto the device, and the validation images if they fit."""
        from coreset.engine.data.geometry import Geometry
        from coreset.engine.data.image_cache import keep_images
        from coreset.engine.data.images import load_into_memory

        geometry = Geometry(protocol.size, protocol.size)
        with self.decoding.stream(condensed.dataset, geometry, condensed.ids) as chosen:
            train_pixels = load_into_memory(chosen)
        pixels = protocol.batch * protocol.size**2
        validation = self.decoding.stream(val, geometry)
        return train_pixels, keep_images(
            validation, epochs=protocol.evaluations, batch_pixels=pixels
        )

    def _student(
        self, pixels: "Pixels", protocol: "Protocol", seed: int, device: "torch.device"
    ) -> "StudentResult":
        from coreset.engine.evaluation.students import train_student

        title = f"train {self.condensed.resolve().name}, seed {seed}"
        with progress(title, protocol.epochs, "epochs") as bar:
            return train_student(
                *pixels, protocol, self.student, seed=seed, device=device,
                compile_mode=self.compile,
                on_epoch=lambda _epoch, best: bar.advance(1, best=f"{best:.1f} %"),
            )  # fmt: skip

    def _outcome(
        self, results: Results, students: dict[int, dict[str, str]], n_new: int, note: str
    ) -> Result:
        from coreset.engine.report.results import plus_minus

        keys = {named["key"] for named in students.values()}
        rows = [row for row in results.rows(STUDENTS) if row["key"] in keys]
        best, stamp = [row["top1_best"] for row in rows], students[self.seed]["protocol"]
        what = f"{rows[0]['method']} at IPC {rows[0]['ipc']}, {self.student}, {stamp}"
        last = fmean(row["top1_last"] for row in rows)
        accuracy = f"top-1 {plus_minus(best, '+-')} % best, {last:.1f} % last"
        count = f"{len(rows)} students, {n_new} of them new"
        lines = (
            *filter(None, [note]),
            f"{what}: {accuracy} ({count}): {self.results}",
            f"next: coreset report {self.results} report.html",
        )
        data = {"results": str(self.results), "protocol": stamp, "top1_best": best}
        return Result(lines, data)


def _in_precision(stamp: str, key: str, precision: str) -> dict[str, str]:
    """Name a student's precision, unless it is the published one, in its stamp and in its key."""
    if precision != PUBLISHED_PRECISION:
        name, plus, changes = stamp.partition("+")
        stamp = f"{name}+bf16{plus}{changes}"
        key = digest_of({"student": key, "precision": precision})
    return {"protocol": stamp, "key": key}
