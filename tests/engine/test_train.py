"""Training students as a user sees it: which rows appear, when none does, and what is refused."""

import json
import shutil
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from coreset.engine.artifacts.ledger import read_ledger
from coreset.engine.artifacts.provenance import Provenance
from coreset.engine.evaluation.protocols import PROTOCOLS
from coreset.engine.evaluation.protocols.hard import HardLabels
from coreset.engine.evaluation.result_tables import CURVES, PER_CLASS, STUDENTS
from coreset.engine.evaluation.results import Results
from coreset.shards.format.dataset import Dataset, Manifest
from coreset.shards.format.files import digest_of

TINY = ("--size", 33, "--epochs", 2, "--evaluations", 2)


def students(results):
    return Results(results).rows(STUDENTS)


@pytest.fixture(scope="module")
def inputs(random_set, val):
    """SET and VAL of most commands below."""
    return random_set, val


@pytest.fixture(scope="module")
def trained(inputs, work, made):
    """Results of two students on two random photos a class; read only."""
    return made(work / "RESULTS", "train", *inputs, work / "RESULTS", *TINY, "--repeats", 2)


def test_rows_and_ledger_tell_what_was_trained(trained, random_set, packed, val):
    rows, lines = students(trained), read_ledger(trained)
    assert [row["seed"] for row in rows] == [0, 1]
    ids = np.load(random_set / "ids.npy")
    for row, line in zip(rows, lines, strict=True):
        assert (row["data"], row["method"], row["ipc"]) == (Manifest.read(packed).name, "random", 2)
        assert row["set_digest"] == Provenance.read(random_set).digest
        assert (trained / row["set_path"]).resolve() == random_set.resolve()
        assert (row["val_identity"], row["n_val"]) == (Manifest.read(val).identity, 18)
        assert (trained / row["val_path"]).resolve() == val.resolve()
        assert (row["set_kind"], row["set_seed"]) == ("coreset", 0)
        assert json.loads(row["parameters"]) == {"ipc": 2}
        assert (row["protocol"], row["student"]) == ("hard@1+short", "resnet18")
        assert (row["epochs"], row["evaluations"], row["size"]) == (2, 2, 33)
        assert (row["batch"], row["steps"]) == (64, 2)  # six images: one step per epoch
        assert row["image_bytes"] == Dataset.open(packed).ints("bytes")[ids].sum()
        assert (row["label_bytes"], row["device"]) == (0, "cpu")
        assert json.loads(row["runtime"])["threads"] == 1
        assert 0 <= row["top1_last"] <= row["top1_best"] <= 100
        assert row["top5_last"] == 100  # of three classes
        assert row["top1_best"] * 18 / 100 == pytest.approx(round(row["top1_best"] * 18 / 100))
        assert (row["epoch_best"] in {1, 2}, row["top5_best"]) == (True, 100)
        assert row["teachers"] is None
        assert line["config_digest"] == row["key"]
        assert (line["stage"], line["images"]) == ("train", 2 * 6)
    recorded = Results(trained).lineage(Provenance.read(random_set).digest)
    assert recorded is not None
    assert recorded["ledger"] == read_ledger(random_set)
    assert recorded["provenance"] == Provenance.read(random_set).document()


def test_every_student_has_a_curve_and_accuracies_of_its_classes(trained, val):
    curves, classes = (Results(trained).rows(table) for table in (CURVES, PER_CLASS))
    for row in students(trained):
        curve = [one for one in curves if one["key"] == row["key"]]
        assert [one["epoch"] for one in curve] == [1, 2]
        assert max(one["top1"] for one in curve) == row["top1_best"]
        assert curve[-1]["top1"] == row["top1_last"]
        assert curve[row["epoch_best"] - 1]["top1"] == row["top1_best"]
        assert all(one["loss"] > 0 and one["lr"] > 0 for one in curve)
        own = [one for one in classes if one["key"] == row["key"]]
        assert [one["class"] for one in own] == list(Manifest.read(val).classes)
        right = sum(one["top1"] * one["n"] / 100 for one in own)
        assert right == pytest.approx(row["top1_best"] * 18 / 100)
        assert sum(one["n"] for one in own) == 18
    assert not (trained / ".students").exists(), "checkpoints of finished students"


def test_a_student_more_is_added_and_is_the_one_that_it_would_have_been_alone(
    trained, inputs, tmp_path, done
):
    results = shutil.copytree(trained, tmp_path / "RESULTS")
    told, _ = done("train", *inputs, results, *TINY, "--repeats", 3)
    assert "(3 students, 1 of them new)" in told
    done("train", *inputs, tmp_path / "ALONE", *TINY, "--repeats", 1, "--seed", 2)
    (alone,) = students(tmp_path / "ALONE")
    rows = students(results)
    assert rows[:2] == students(trained)
    assert [row["seed"] for row in rows] == [0, 1, 2]
    for name in ("key", "top1_best", "top1_last"):
        assert rows[2][name] == alone[name]
    assert [line["config_digest"] for line in read_ledger(results)] == [row["key"] for row in rows]
    done("train", *inputs, results, *TINY, "--epochs", 1, "--repeats", 1)
    assert [row["epochs"] for row in students(results)] == [2, 2, 2, 1]


@pytest.mark.parametrize("fast", [True, False])
def test_another_precision_is_another_student(
    *, trained, inputs, tmp_path, done, monkeypatch, fast
):
    monkeypatch.setattr(
        "coreset.engine.evaluation.students.has_fast_bfloat16", lambda _device: fast
    )
    results = shutil.copytree(trained, tmp_path / "RESULTS")
    command = ("train", *inputs, results, *TINY, "--repeats", 1)
    *notes, told, _ = done(*command, "--precision", "bf16")
    slow = "this cpu emulates bfloat16: --precision fp32 may be faster"
    assert notes == ([] if fast else [slow])
    assert told.startswith("random at IPC 2, resnet18, hard@1+bf16+short: top-1 ")
    assert "(1 students, 1 of them new)" in told
    *before, new = students(results)
    assert before == students(trained)
    assert {row["precision"] for row in before} == {"float32"}
    assert (new["precision"], json.loads(new["runtime"])["precision"]) == ("bfloat16",) * 2
    assert (new["seed"], new["protocol"]) == (before[0]["seed"], "hard@1+bf16+short")
    assert new["protocol_digest"] != before[0]["protocol_digest"]
    assert "(1 students, 0 of them new)" in done(*command, "--protocol", "hard@1+bf16")[0]


def test_other_students_get_rows_of_their_own_and_stand_in_the_report(inputs, tmp_path, done):
    results, html = tmp_path / "RESULTS", tmp_path / "report.html"
    tiny = ("--size", 64, "--epochs", 1, "--repeats", 1)
    students_of = {"resnetap10": "hard@1+short", "timm:test_resnet": "hard@1+timm+short"}
    for name, stamp in students_of.items():
        told, _ = done("train", *inputs, results, *tiny, "--student", name)
        assert told.startswith(f"random at IPC 2, {name}, {stamp}: top-1 ")
    assert {row["student"]: row["protocol"] for row in students(results)} == students_of
    assert len({row["key"] for row in students(results)}) == 2
    done("report", results, html)
    text = html.read_text()
    assert all(f">{name}</td>" in text for name in students_of)
    assert "<strong>+timm</strong> marks students with norm layers of their own" in text


def test_a_key_is_the_digest_of_everything_that_went_in(trained, inputs):
    condensed, val = inputs[0], Manifest.read(inputs[1])
    protocol = HardLabels.published(3, 2).shortened(epochs=2, size=33, evaluations=2)
    parts = {
        "set": Provenance.read(condensed).digest, "val": [val.identity, val.content],
        "protocol": protocol.digest([]), "student": "resnet18", "seed": 0,
    }  # fmt: skip
    assert students(trained)[0]["key"] == digest_of(parts)


# The signal may raise between the opening of a file and the `with` that closes it.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_students_that_were_finished_before_a_stop_are_kept(inputs, tmp_path, interrupted, done):
    results = tmp_path / "RESULTS"
    command = ("train", *inputs, results, *TINY, "--repeats", 4)
    said = interrupted(results / "students-000001.rows.jsonl", *command)
    assert said == "coreset: interrupted by SIGTERM; the same command continues\n"
    kept = students(results)
    assert 1 <= len(kept) < 4
    told, _ = done(*command)
    assert f"(4 students, {4 - len(kept)} of them new)" in told
    assert students(results)[: len(kept)] == kept
    assert [row["seed"] for row in students(results)] == [0, 1, 2, 3]


def test_validation_images_that_do_not_fit_into_memory_are_streamed(
    trained, inputs, tmp_path, done, monkeypatch
):
    monkeypatch.setattr("coreset.engine.data.image_cache.say", str)
    few = 2 * 6 * 3 * 33**2 + 1  # half of it holds the six of the set, not the 18 of val
    monkeypatch.setattr("coreset.engine.data.residency.available_bytes", lambda: few)
    done("train", *inputs, tmp_path / "RESULTS", *TINY, "--repeats", 1)
    (row,) = students(tmp_path / "RESULTS")
    assert row["top1_last"] == students(trained)[0]["top1_last"]


def test_a_set_that_does_not_fit_into_memory_is_refused(inputs, tmp_path, refused, monkeypatch):
    monkeypatch.setattr("coreset.engine.data.residency.available_bytes", lambda: 1000)
    said = refused(tmp_path, "train", *inputs, tmp_path / "R", *TINY, code=4)
    assert "6 images of 33 pixels need" in said


def test_a_validation_set_of_other_classes_is_refused(
    random_set, make_photos, tmp_path, done, refused
):
    src = make_photos(tmp_path / "src", per_class=1)
    (src / "n02979186").rename(src / "n03000684")
    done("pack", src, tmp_path / "VAL")
    for verb in ("train", "measure"):
        said = refused(tmp_path, verb, random_set, tmp_path / "VAL", tmp_path / "RESULTS")
        assert "n02979186 is in one of them only" in said


def test_a_mailed_coreset_has_the_same_students(inputs, trained, packed, tmp_path, done):
    mailed, val = shutil.copytree(inputs[0], tmp_path / "far" / "away" / "SET"), inputs[1]
    results = shutil.copytree(trained, tmp_path / "RESULTS")
    command = ("train", mailed, val, results, *TINY, "--repeats", 2)
    assert "(2 students, 0 of them new)" in done(*command, "--data", packed)[0]


def test_a_protocol_is_registered_in_one_place(random_set, val, tmp_path, done, monkeypatch):
    from coreset.engine.evaluation.protocols.base import Protocol
    from coreset.engine.models.networks import Norm
    from coreset.engine.training.trainer import sgd
    from coreset.kernels.augment import normalised

    drawn = []

    @dataclass(frozen=True, slots=True, kw_only=True)
    class Toy(Protocol):
        """Full batches of images as they are, at a rate that falls every epoch."""

        stamp: str = "toy@1"
        norm: Norm = "batch"
        batch: int = 6
        lr: float = 0.01
        weight_decay: float = 0.0
        resize: int = 33

        def optimiser(self, network):
            return sgd(network, lr=0.01, weight_decay=0.0)

        @classmethod
        def published(cls, n_classes, ipc):
            return cls(n_classes=n_classes, ipc=ipc, epochs=3, size=33, evaluations=1)

        def schedule(self, steps_per_epoch):
            assert steps_per_epoch == 1
            return lambda step: 0.01 / (1 + step)

        def evaluates_after(self, epoch):
            return epoch == 3

        def training_batch(self, images, labels, draws, labeller):  # noqa: ARG002 - of every protocol
            drawn.append(torch.rand((), generator=draws).item())
            inputs = normalised(images, (0.5,) * 3, (0.5,) * 3)
            return inputs, lambda logits: cross_entropy(logits, labels)

    monkeypatch.setitem(PROTOCOLS, "toy", "plain")
    package = "coreset.engine.evaluation.protocols"
    monkeypatch.setattr(f"{package}.protocol_classes", lambda: {"toy": Toy})
    done("train", random_set, val, tmp_path / "R", "--protocol", "toy", "--repeats", 2)
    rows = students(tmp_path / "R")
    assert [(row["protocol"], row["epochs"], row["batch"]) for row in rows] == [("toy@1", 3, 6)] * 2
    assert len(drawn) == len(set(drawn)) == 2 * 3, "every epoch of every student draws anew"
