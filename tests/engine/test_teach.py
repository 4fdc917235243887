"""`coreset teach`: what is trained, what is published, and what is refused."""

import json
import shutil
from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy
from torch.optim.lr_scheduler import CosineAnnealingLR

from coreset.engine.artifacts.ledger import read_ledger
from coreset.engine.data.geometry import Geometry
from coreset.engine.data.images import DecodedImages
from coreset.engine.data.order import BatchOrder
from coreset.engine.data.stream import ImageStream
from coreset.engine.evaluation.protocols import PROTOCOLS
from coreset.engine.evaluation.protocols.base import told_settings
from coreset.engine.evaluation.protocols.teach import Teach
from coreset.engine.evaluation.students import Images, Student
from coreset.engine.evaluation.teaching_job import SCRATCH_NAME
from coreset.engine.models.networks import IMAGENET_MEAN, IMAGENET_STD, build_network
from coreset.engine.models.teachers import TEACHER_NAME, check_teachers, load_teachers
from coreset.engine.runtime.device import generator_for
from coreset.engine.scoring.recipes import RECIPES
from coreset.engine.training.trainer import WEIGHTS_NAME, Trainer
from coreset.kernels.augment import draw_crops, draw_flips, normalised, unit_range
from coreset.shards.errors import StoreError
from coreset.shards.format.dataset import Dataset
from coreset.shards.format.files import temporary_name

pytestmark = pytest.mark.usefixtures("one_thread")

CPU = torch.device("cpu")
SMALL = ("--arch", "convnet", "--size", 8, "--epochs", 2)
CHECKPOINT_SECONDS = "coreset.engine.evaluation.students.CHECKPOINT_SECONDS"


# the recipe


def test_the_recipe_is_that_of_scores_and_every_setting_has_a_source():
    recipe, protocol = RECIPES["full"], Teach.published(10)
    for name in ("epochs", "batch", "size", "crop_scale", "lr", "min_lr", "weight_decay"):
        assert getattr(protocol, name) == getattr(recipe, name)
    assert (protocol.momentum, protocol.norm, protocol.resize) == (0.9, "batch", 256)
    sourced = {name for name, _, mark, source in told_settings(protocol) if mark and source}
    assert sourced == {one.name for one in fields(protocol)} - {"stamp", "n_classes"}
    assert "teach" not in PROTOCOLS


def test_rates_are_those_of_torchs_cosine_at_every_step():
    protocol = replace(Teach.published(10), epochs=7)
    optimiser = protocol.optimiser(torch.nn.Linear(1, 1))
    schedule = CosineAnnealingLR(optimiser, T_max=7 * 3, eta_min=1e-4)
    rate = protocol.schedule(3)
    for step in range(7 * 3):
        assert rate(step) == pytest.approx(optimiser.param_groups[0]["lr"], rel=1e-9)
        optimiser.step()
        schedule.step()


@pytest.mark.parametrize(("evaluations", "chosen"), [(1, [5]), (0, [])])
def test_it_is_evaluated_after_the_last_epoch_or_never(evaluations, chosen):
    protocol = replace(Teach.published(10), epochs=5, evaluations=evaluations)
    assert [epoch for epoch in range(7) if protocol.evaluates_after(epoch)] == chosen


def weights_of(network):
    return torch.cat([one.detach().flatten() for one in network.parameters()])


def test_an_epoch_is_that_of_a_plain_loop_with_the_same_draws(monkeypatch):
    from torchvision.transforms.functional import hflip, resized_crop

    def crop(image, box, side):
        left, top, right, bottom = box.tolist()
        return resized_crop(image, top, left, bottom - top, right - left, [side, side])

    def crops(images, boxes, side, workers):
        assert workers > 0
        return torch.stack([crop(*pair, side) for pair in zip(images, boxes, strict=True)])

    # The kernel's crops, which are at most a level off, have tests of their own.
    monkeypatch.setattr("coreset.engine.scoring.proxy.crops_on_cpu", crops)
    size, seed = 16, 4
    rng = np.random.default_rng(0)
    pixels = torch.from_numpy(rng.integers(0, 256, (21, 18, 18, 3), np.uint8))
    train = DecodedImages(pixels.permute(0, 3, 1, 2), np.arange(21) % 3, np.arange(21))
    protocol = replace(Teach.published(3), epochs=2, batch=8, size=size, evaluations=0)
    student = Student(Images(train, None), protocol, "convnet", seed=seed, device=CPU)
    loss = student.train_epoch(0)

    network = build_network("convnet", 3, norm="batch", seed=seed)
    before = weights_of(network)
    optimiser = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)
    schedule = CosineAnnealingLR(optimiser, T_max=2 * 3, eta_min=1e-4)
    draws, losses = generator_for(seed, 0), []
    for batch in train.epoch(BatchOrder(batch=8, epoch=0, seed=seed, shuffle=True)):
        n = len(batch.labels)
        boxes = draw_crops(n, 18, 18, draws, scale=(0.08, 1.0))
        seen = [crop(*pair, size) for pair in zip(batch.images, boxes, strict=True)]
        flips = draw_flips(n, draws).tolist()
        seen = [hflip(one) if flip else one for one, flip in zip(seen, flips, strict=True)]
        inputs = normalised(torch.stack(seen), IMAGENET_MEAN, IMAGENET_STD)
        own = cross_entropy(network(inputs), batch.labels)
        losses.append(own.item() * n)
        optimiser.zero_grad()
        own.backward()
        optimiser.step()
        schedule.step()
    assert loss == pytest.approx(sum(losses) / 21, rel=1e-5)
    moved, theirs = (weights_of(one) - before for one in (student.trainer.network, network))
    assert (moved - theirs).norm() < 1e-4 * theirs.norm()


# what is published


def examples_of(dataset, size, resize, order=None):
    """All images as students see them, with labels in another order of classes."""
    stream = ImageStream(dataset, Geometry(size, resize))
    for batch in stream.epoch(BatchOrder(batch=7)):
        labels = batch.labels if order is None else torch.tensor(order)[batch.labels]
        yield unit_range(batch.images), labels
    stream.close()


@pytest.mark.parametrize(
    ("arch", "size", "resize"),
    [
        ("convnet", 8, 9),
        ("resnetap10", 64, 73),
        ("timm:test_resnet", 33, 38),
        ("resnet18", 33, 38),
    ],
)
def test_a_teacher_knows_its_classes_in_any_order_as_well_as_it_says(
    *, arch, size, resize, packed, val, tmp_path, values_of, monkeypatch
):
    monkeypatch.setattr("coreset.engine.models.teachers.LEAST_ACCURACY", 0.0)
    folder, dataset = tmp_path / "TEACHER", Dataset.open(val)
    how = ("--arch", arch, "--size", size, "--epochs", 1, "--val", val)
    told = values_of("teach", packed, folder, *how)
    document = json.loads((folder / TEACHER_NAME).read_text())
    assert document == {
        "arch": arch,
        "classes": list(dataset.classes),
        "accuracy": told["accuracy"],
        "format_version": 1,
    }
    classes = dataset.classes
    moved = (classes[2], classes[0], classes[1])
    for own, order in ((classes, (0, 1, 2)), (moved, (1, 2, 0))):
        (teacher,) = load_teachers([str(folder)], own, CPU)
        examples = examples_of(dataset, size, resize, order)
        (checked,) = check_teachers([teacher], examples, size=size)
        assert checked.accuracy == pytest.approx(document["accuracy"])
        assert teacher.name == arch
    (whole,) = load_teachers([str(folder)], classes, CPU)
    (part,) = load_teachers([str(folder)], classes[:0:-1], CPU)  # the last, the second
    images, *_ = next(examples_of(dataset, size, resize))
    logits = whole.logits(images, size=size)
    assert torch.equal(part.logits(images, size=size), logits[:, [2, 1]])
    assert logits.std(dim=0).min() > 1e-4, "images must differ for the teacher"


def test_it_learns(packed, tmp_path, values_of):
    how = ("--arch", "convnet", "--size", 16, "--epochs", 40)
    assert values_of("teach", packed, tmp_path / "T", *how, "--val", packed)["accuracy"] > 80


def test_without_validation_images_nothing_is_evaluated(packed, tmp_path, done, monkeypatch):
    monkeypatch.setattr(Student, "evaluate", None)
    lines = done("teach", packed, tmp_path / "T", *SMALL)
    assert json.loads((tmp_path / "T" / TEACHER_NAME).read_text())["accuracy"] is None
    assert not any("top-1" in line for line in lines)
    assert sorted(path.name for path in (tmp_path / "T").iterdir()) == [
        "ledger.jsonl", WEIGHTS_NAME, "provenance.json", TEACHER_NAME,
    ]  # fmt: skip


def test_settings_are_recorded_as_they_were_used(packed, tmp_path, done):
    done("teach", packed, tmp_path / "T", *SMALL, "--precision", "bf16")
    record = json.loads((tmp_path / "T/provenance.json").read_text())
    config = record["config"]
    assert config["stamp"] == "teach@1+bf16+short"
    assert (config["batch"], config["size"], config["resize"]) == (60, 8, 9)
    assert (config["precision"], record["runtime"]["precision"]) == ("bfloat16", "bfloat16")
    assert [entry["role"] for entry in record["inputs"]] == ["data"]
    assert read_ledger(tmp_path / "T")[-1]["images"] == 2 * 60


# interrupted, damaged and hopeless


def test_an_interrupted_teacher_goes_on_to_the_same_bytes(
    *, packed, val, tmp_path, interrupted, refused, done, stored_bytes, monkeypatch
):
    words = ("--arch", "convnet", "--size", 8, "--epochs", 30, "--val", val)
    out = tmp_path / "T"
    first = temporary_name(out) / SCRATCH_NAME / "gen-000001"
    with monkeypatch.context() as patch:
        patch.setattr(CHECKPOINT_SECONDS, 0.0)
        assert "the same command continues" in interrupted(first, "teach", packed, out, *words)
    said = refused(tmp_path, "teach", packed, out, *words, "--seed", 1)
    assert "is an interrupted run of another configuration (config.seed: 0 there, 1 here)" in said
    done("teach", packed, out, *words)
    done("teach", packed, tmp_path / "whole", *words)
    assert stored_bytes(out) == stored_bytes(tmp_path / "whole")
    stopped, own = (line for line in read_ledger(out) if line["stage"] == "teach")
    assert (stopped["interrupted"], own["interrupted"]) == (True, False)
    assert stopped["images"] + own["images"] == 30 * 60


def test_a_kill_while_checkpoints_are_removed_leaves_nothing_to_train(
    *, packed, tmp_path, coreset, done, stored_bytes, monkeypatch
):
    out, rmtree = tmp_path / "T", shutil.rmtree

    def killed(path, **options):
        if path.name == f"{SCRATCH_NAME}.deleting" and path.exists():
            raise KeyboardInterrupt
        rmtree(path, **options)

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", killed)
        patch.setattr(CHECKPOINT_SECONDS, 0.0)
        assert coreset("teach", packed, out, *SMALL).code == 130
    with monkeypatch.context() as patch:
        patch.setattr(Student, "train", None)
        done("teach", packed, out, *SMALL)
    done("teach", packed, tmp_path / "whole", *SMALL)
    assert stored_bytes(out) == stored_bytes(tmp_path / "whole")


def test_a_training_that_diverges_says_so_and_leaves_nothing(
    packed, tmp_path, refused, monkeypatch
):
    loss = "coreset.engine.evaluation.protocols.teach.cross_entropy"
    monkeypatch.setattr(loss, lambda logits, _: logits.sum() * torch.nan)
    said = refused(tmp_path, "teach", packed, tmp_path / "T", *SMALL, code=3)
    assert said.startswith("the loss is nan in epoch 1, step 1 of 1: the training diverged")


@pytest.mark.parametrize("steps", [0, 1])
def test_where_memory_runs_out_checkpoints_stay_if_there_are_any(
    *, packed, tmp_path, coreset, done, stored_bytes, monkeypatch, steps
):
    step, out = Trainer.step, tmp_path / "T"

    def small_memory(self, *batch):
        if self.steps == steps:
            raise torch.OutOfMemoryError("text of a release to come")
        return step(self, *batch)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "step", small_memory)
        patch.setattr(CHECKPOINT_SECONDS, 0.0)
        told = coreset("teach", packed, out, *SMALL)
    assert told.code == 4
    assert "out of memory; the batch of 60 is the protocol's and stays: use a smaller" in told.err
    assert temporary_name(out).exists() == (steps > 0)
    done("teach", packed, out, *SMALL)
    assert read_ledger(out)[-1]["images"] == (2 - steps) * 60
    done("teach", packed, tmp_path / "whole", *SMALL)
    assert stored_bytes(out) == stored_bytes(tmp_path / "whole")


def test_a_damaged_image_is_named(damaged, tmp_path, refused):
    said = refused(tmp_path, "teach", damaged, tmp_path / "T", *SMALL, code=3)
    assert "cannot be decoded" in said


def test_a_damaged_teacher_is_refused_and_not_overwritten(packed, tmp_path, done, refused):
    out = tmp_path / "T"
    done("teach", packed, out, *SMALL)
    weights = (out / WEIGHTS_NAME).read_bytes()
    (out / WEIGHTS_NAME).write_bytes(weights[:-1] + bytes([weights[-1] ^ 1]))
    assert "holds other files than were made" in refused(
        tmp_path, "teach", packed, out, *SMALL, code=3
    )
    with pytest.raises(StoreError, match="make the teacher again"):
        load_teachers([str(out)], Dataset.open(packed).classes, CPU)


def test_validation_images_of_other_classes_are_refused(
    packed, tmp_path, make_photos, made, refused
):
    src = make_photos(tmp_path / "photos", per_class=1)
    wrong = next(iter(sorted(src.iterdir())))
    wrong.rename(src / "n99999999")
    other = made(tmp_path / "OTHER", "pack", src, tmp_path / "OTHER")
    said = refused(tmp_path, "teach", packed, tmp_path / "T", *SMALL, "--val", other)
    assert "OTHER has 3: n01440764 is in one of them only" in said


def test_students_are_told_when_their_taught_teacher_learned_too_little(
    *, packed, val, random_set, tmp_path, done, refused, monkeypatch
):
    lines = done("teach", packed, tmp_path / "T", *SMALL, "--val", val)
    monkeypatch.setattr("coreset.engine.models.teachers.LEAST_ACCURACY", 101.0)
    words = ("--protocol", "rded", "--teachers", tmp_path / "T", "--size", 33, "--epochs", 1)
    said = refused(tmp_path / "T", "train", random_set, val, tmp_path / "R", *words, code=3)
    assert said.endswith("less than 101 %: teach it with more --epochs or more images")
    assert (
        lines[-1]
        == f"next: coreset train SET VAL RESULTS --protocol rded --teachers {tmp_path / 'T'}"
    )
    again = done("teach", packed, tmp_path / "T", *SMALL, "--val", val)
    assert any(line.endswith("students take no teacher under 101 %") for line in again)
