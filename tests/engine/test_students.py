"""Students that stop and go on, keep labels, run side by side, or fail."""

import json
import random
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from coreset.engine.data.images import DecodedImages
from coreset.engine.data.order import first_by_key
from coreset.engine.evaluation.protocols.edc import Edc
from coreset.engine.evaluation.protocols.hard import HardLabels
from coreset.engine.evaluation.protocols.rded import Rded
from coreset.engine.evaluation.result_tables import CURVES, PER_CLASS, STUDENTS
from coreset.engine.evaluation.results import Results
from coreset.engine.evaluation.soft_labels import KeptLabels, SoftLabels
from coreset.engine.evaluation.students import Images, Student
from coreset.engine.models.networks import IMAGENET_MEAN, IMAGENET_STD, build_network
from coreset.engine.models.teachers import Teacher
from coreset.engine.training.trainer import DivergedError, Trainer
from coreset.shards.errors import UsageError
from coreset.shards.format.dataset import Dataset

pytestmark = pytest.mark.usefixtures("one_thread")

CPU = torch.device("cpu")
TINY = ("--student", "convnet", "--size", 16, "--epochs", 6, "--evaluations", 3)
MEASURED = {"train_seconds", "evaluation_seconds", "peak_rss_bytes", "set_path", "val_path"}


def pictures(n, size=16, classes=3):
    rng = np.random.default_rng(n)
    labels = np.arange(n) % classes
    images = rng.integers(0, 256, (n, size, size, 3), np.uint8)
    images[..., 0] //= 1 + labels[:, None, None].astype(np.uint8)
    return DecodedImages(torch.from_numpy(images).permute(0, 3, 1, 2), labels, np.arange(n))


class Cropless:
    """Pictures in the place of crops that are cut from stored images."""

    def __init__(self, images):
        self.images = images

    def __len__(self):
        return len(self.images)

    def epoch(self, order):
        return self.images.epoch(replace(order, crops=None))


def teacher(seed=5, classes=3):
    network = build_network("convnet", classes, norm="batch", seed=seed).eval()
    return Teacher(
        name="convnet", source=Path("convnet.pth"), digest=f"digest{seed}", network=network,
        mean=IMAGENET_MEAN, std=IMAGENET_STD, orders=torch.arange(classes)[None],
    )  # fmt: skip


def protocol_of(kind):
    return replace(kind.published(3, 6), epochs=4, size=16, batch=8)


def student_of(protocol, seed=1, labels=None):
    train, val = pictures(18), pictures(12)
    cropless: Any = Cropless(train)
    if not isinstance(protocol, HardLabels):
        labels = labels or SoftLabels([teacher(), teacher(6)], CPU, 0)
        return Student(Images(cropless, val, labels), protocol, "convnet", seed=seed, device=CPU)
    return Student(Images(train, val), protocol, "convnet", seed=seed, device=CPU)


def state_of(student):
    tensors = list(student.trainer.network.state_dict().values())
    return tensors + list(student.averaged.weights.values() if student.averaged else ())


def told(history):
    return history.best, history.epoch_best, history.last, history.steps, history.curve


@pytest.mark.parametrize("kind", [HardLabels, Rded, Edc])
def test_a_student_that_is_continued_after_any_epoch_ends_to_the_bit_as_an_unbroken_one(
    kind, tmp_path, monkeypatch
):
    monkeypatch.setattr("coreset.engine.evaluation.students.CHECKPOINT_SECONDS", 0.0)
    protocol = protocol_of(kind)
    whole = student_of(protocol)
    expected = whole.train()
    for stop_after in (1, 2, 3):

        def stop(history, last=stop_after):
            if history.epochs > last:
                raise KeyboardInterrupt

        scratch = tmp_path / f"{stop_after}"
        scratch.mkdir()
        with pytest.raises(KeyboardInterrupt):
            student_of(protocol).train(scratch, stop)
        continued, epochs = student_of(protocol), []
        history = continued.train(scratch, lambda history, out=epochs: out.append(history.epochs))
        assert epochs == list(range(stop_after, 5))
        assert told(history) == told(expected)
        assert all(map(torch.equal, state_of(continued), state_of(whole)))


def test_a_loss_that_is_not_finite_is_named_and_the_last_checkpoint_stays(tmp_path, monkeypatch):
    monkeypatch.setattr("coreset.engine.evaluation.students.CHECKPOINT_SECONDS", 0.0)
    step, steps = Trainer.step, []

    def spoiled(self, inputs, loss_of):
        steps.append(0)
        worth = float("nan") if len(steps) == 8 else 1.0  # three steps an epoch
        return step(self, inputs, lambda logits: loss_of(logits) * worth)

    monkeypatch.setattr(Trainer, "step", spoiled)
    with pytest.raises(DivergedError, match="the loss is nan in epoch 3, step 2 of 3"):
        student_of(protocol_of(Rded)).train(tmp_path)
    kept = student_of(protocol_of(Rded))
    epochs = []
    kept.train(tmp_path, lambda history: epochs.append(history.epochs))
    assert epochs == [2, 3, 4]


# kept labels


def kept_in(folder, key=None, epochs=4):
    key = key or {"set": "a", "teachers": ["digest5"], "protocol": "p"}
    return KeptLabels(folder, key, (epochs, 18, 3))


def test_kept_labels_are_those_of_the_teachers_in_half_precision_and_serve_other_students(
    tmp_path, monkeypatch
):
    kept = kept_in(tmp_path)
    kept.require_own()
    protocol = protocol_of(Rded)
    first = student_of(protocol, labels=SoftLabels([teacher()], CPU, 0, kept=kept))
    asked = []
    logits = Teacher.logits
    monkeypatch.setattr(
        Teacher, "logits", lambda *a, **k: asked.append(out := logits(*a, **k)) or out
    )
    expected = first.train()
    stored = np.fromfile(tmp_path / "seed-1.f16", np.float16).reshape(4, 18, 3)
    np.testing.assert_array_equal(stored.reshape(-1, 3), torch.cat(asked).half().numpy())
    assert kept.n_bytes == stored.nbytes == (tmp_path / "seed-1.f16").stat().st_size
    again = student_of(protocol, labels=SoftLabels([], CPU, 0, kept=kept))  # nobody to ask
    assert told(again.train()) == told(expected)
    assert all(map(torch.equal, state_of(again), state_of(first)))
    with pytest.raises(RuntimeError):  # another seed has labels of its own, and no teacher
        student_of(protocol, seed=2, labels=SoftLabels([], CPU, 0, kept=kept)).train()


def test_labels_that_a_stopped_student_kept_are_gone_on_with(tmp_path, monkeypatch):
    monkeypatch.setattr("coreset.engine.evaluation.students.CHECKPOINT_SECONDS", 0.0)
    protocol, scratch = protocol_of(Edc), tmp_path / "scratch"
    scratch.mkdir()

    def labels(name):
        kept = kept_in(tmp_path / name)
        kept.require_own()
        return SoftLabels([teacher()], CPU, 0, kept=kept)

    whole = student_of(protocol, labels=labels("whole"))
    expected = whole.train()

    def stop(history):
        if history.epochs == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        student_of(protocol, labels=labels("stopped")).train(scratch, stop)
    history = student_of(protocol, labels=labels("stopped")).train(scratch)
    assert told(history) == told(expected)
    whole_file, other = (tmp_path / name / "seed-1.f16" for name in ("whole", "stopped"))
    assert other.read_bytes() == whole_file.read_bytes()
    shutil.rmtree(tmp_path / "stopped")  # the checkpoint is of epoch 2, its labels are gone
    lost = labels("stopped")
    assert told(student_of(protocol, labels=lost).train(scratch)) == told(expected)
    assert lost.kept is not None
    assert lost.kept.epochs_of(1) == 0


@pytest.mark.parametrize("odd", ["set", "teachers", "protocol"])
def test_labels_of_anything_else_are_refused(tmp_path, odd):
    kept = kept_in(tmp_path)
    kept.require_own()
    kept_in(tmp_path).require_own()
    with pytest.raises(UsageError, match=f"are of another {odd} .*choose another folder"):
        kept_in(tmp_path, dict(kept.key) | {odd: "other"}).require_own()


def test_labels_cannot_be_kept_in_a_file(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match=r"cannot be written .*choose another output"):
        kept_in(tmp_path / "file").require_own()


def test_labels_that_lost_bytes_are_refused(tmp_path):
    kept = kept_in(tmp_path)
    kept.require_own()
    kept.rows(1, 0, write=True)[:] = 1
    kept.count(1, 1)
    assert kept.epochs_of(1) == 1
    with (tmp_path / "seed-1.f16").open("r+b") as file:
        file.truncate(100)
    with pytest.raises(Exception, match=r"seed-1.f16 has 100 bytes, 432 expected"):
        kept.epochs_of(1)


# commands


@pytest.fixture(scope="module")
def inputs(random_set, val):
    """SET and VAL of the commands below."""
    return random_set, val


@pytest.fixture
def teacher_file(tmp_path, monkeypatch):
    """Name and weights of a small teacher of ImageNet's classes, which is wrong mostly."""
    from torchvision.models import shufflenet_v2_x0_5

    monkeypatch.setattr("coreset.engine.models.teachers.LEAST_ACCURACY", 0.0)
    torch.save(shufflenet_v2_x0_5().state_dict(), tmp_path / "teacher.pth")
    return f"shufflenet_v2_x0_5={tmp_path / 'teacher.pth'}"


def rows_of(results, table=STUDENTS):
    rows = Results(results).rows(table)
    return [{name: row[name] for name in row if name not in MEASURED} for row in rows]


# Trains in forks of itself, each killed before one of its renames.
KILLED = """
import json, os, signal, sys
import torch
import coreset.engine.evaluation.students as students
from coreset.engine.cli import main
folder, words, lasts = sys.argv[1], *map(json.loads, sys.argv[2:])
students.CHECKPOINT_SECONDS = 0.0
rename = os.rename

def run_until(last):
    renames = 0
    def counted(source, target):
        nonlocal renames
        renames += 1
        if renames > last:
            os.kill(os.getpid(), signal.SIGKILL)
        return rename(source, target)
    os.rename = counted
    torch.set_num_threads(1)
    sys.stdout = open(os.devnull, "w")
    return main([f"{folder}/{last}" if word == "OUT" else word for word in words])

for last in lasts:
    if (child := os.fork()) == 0:
        os._exit(run_until(last))
    assert os.waitpid(child, 0)[1] == signal.SIGKILL, last
"""


def test_a_student_killed_at_any_moment_ends_in_the_same_row(inputs, tmp_path, fork, done):
    command = ("train", *inputs, "OUT", *TINY, "--repeats", 1)
    lasts = sorted(random.Random(7).sample(range(12), 10))
    words = json.dumps([str(word) for word in command])
    child = fork(KILLED, tmp_path, words, json.dumps(lasts))
    assert child.code == 0, child.said
    done(*("train", *inputs, tmp_path / "WHOLE", *TINY, "--repeats", 1))
    for last in lasts:
        out = tmp_path / str(last)
        done(*(out if word == "OUT" else word for word in command))
        for table in (STUDENTS, CURVES, PER_CLASS):
            assert rows_of(out, table) == rows_of(tmp_path / "WHOLE", table)


@pytest.mark.slow
def test_students_side_by_side_are_those_of_one_after_another(inputs, tmp_path, coreset):
    command = ("train", *inputs, tmp_path / "SIDE", *TINY, "--repeats", 2)
    ended = coreset(*command, "--slots", 2)
    assert ended.code == 0
    assert "(2 students, 2 of them new)" in ended.out
    assert coreset("train", *inputs, tmp_path / "ALONE", *TINY, "--repeats", 2).code == 0
    side, alone = (
        sorted(rows_of(tmp_path / name), key=lambda row: row["seed"]) for name in ("SIDE", "ALONE")
    )
    for one, other in zip(side, alone, strict=True):
        assert (one["key"], one["top1_best"]) == (other["key"], other["top1_best"])


def test_a_seed_that_fails_leaves_the_others(inputs, tmp_path, coreset, monkeypatch):
    train = Student.train

    def failing(self, *arguments):
        if self.seed == 1:
            raise DivergedError("the loss is nan")
        return train(self, *arguments)

    monkeypatch.setattr(Student, "train", failing)
    ended = coreset("train", *inputs, tmp_path / "R", *TINY)
    assert (ended.code, ended.err) == (3, "coreset: the loss is nan\n")
    assert "(2 students, 2 of them new)" in ended.out
    assert [row["seed"] for row in rows_of(tmp_path / "R")] == [0, 2]


def test_memory_that_runs_out_never_changes_the_batch(inputs, tmp_path, coreset, monkeypatch):
    def exhausted(*_):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(Trainer, "step", exhausted)
    ended = coreset("train", *inputs, tmp_path / "R", *TINY, "--repeats", 1)
    assert ended.code == 4
    assert "out of memory; the batch of 64 is the protocol's and stays: use a" in ended.err
    assert rows_of(tmp_path / "R") == []


@pytest.mark.parametrize("protocol", ["rded", "edc+linear"])
def test_soft_labels_name_their_teachers_and_what_was_changed(
    protocol, inputs, tmp_path, coreset, teacher_file
):
    command = ("train", *inputs, tmp_path / "R", *TINY, "--repeats", 1, "--protocol", protocol)
    labels = tmp_path / "labels"
    ended = coreset(*command, "--teachers", teacher_file, "--labels", labels)
    assert ended.code == 0, ended.err
    assert f"labels kept in {labels}: 216 B a seed (6 images x 6 epochs x 3 classes" in ended.err
    assert "teacher shufflenet_v2_x0_5: top-1 " in ended.err
    (row,) = rows_of(tmp_path / "R")
    name, plus, variant = protocol.partition("+")
    assert row["protocol"] == f"{name}@1{plus}{variant}+teachers+short"
    ((teacher_name, digest),) = json.loads(row["teachers"])
    assert (teacher_name, len(digest), row["label_bytes"]) == ("shufflenet_v2_x0_5", 64, 216)
    assert row["n_val"] == 18
    again = coreset(*command, "--teachers", teacher_file, "--labels", labels)
    assert "(1 students, 0 of them new)" in again.out


def test_wrong_teachers_are_refused(inputs, tmp_path, refused, teacher_file, monkeypatch):
    command = ("train", *inputs, tmp_path / "R", *TINY)
    said = refused(tmp_path, *command, "--protocol", "rded")
    assert "rded@1 needs teachers; name them with --teachers (resnet18)" in said
    said = refused(tmp_path, *command, "--teachers", teacher_file)
    assert "hard@1 has no teachers; leave out --teachers" in said
    said = refused(tmp_path, *command, "--labels", tmp_path / "labels")
    assert "hard@1 has no soft labels to keep" in said
    monkeypatch.setattr("coreset.engine.models.teachers.LEAST_ACCURACY", 101.0)
    soft = ("--protocol", "edc", "--teachers", teacher_file)
    assert "class order?" in refused(tmp_path, *command, *soft, code=3)
    for name, known in (("soft", "hard@1, rded@1, edc@1"), ("rded+linear", "factor1, epochs500")):
        assert known in refused(tmp_path, *command, "--protocol", name)


def test_validation_images_are_the_first_of_each_class_by_key(inputs, val, tmp_path, done):
    dataset = Dataset.open(val)
    keys, labels = dataset.table(["key"])["key"].to_pylist(), dataset.labels
    chosen = first_by_key(dataset, 2)
    expected = [
        key
        for label in range(3)
        for key in sorted(key for key, own in zip(keys, labels, strict=True) if own == label)[:2]
    ]
    assert sorted(keys[i] for i in chosen) == sorted(expected)
    assert first_by_key(dataset, 99).tolist() == list(range(len(dataset)))
    command = ("train", *inputs, tmp_path / "R", *TINY, "--repeats", 1)
    done(*command)
    done(*command, "--val-per-class", 2)
    both, few = rows_of(tmp_path / "R")
    assert (both["n_val"], few["n_val"]) == (18, 6)
    assert both["protocol_digest"] != few["protocol_digest"]
    assert sum(one["n"] for one in rows_of(tmp_path / "R", PER_CLASS)) == 18 + 6
