"""Benchmark of students: what is timed is the same work, and who differs has failed."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from coreset.bench import students
from coreset.bench.inputs import Tree
from coreset.bench.peers.students import colour_jitter, mixed_batches, shuffled_halves
from coreset.bench.student_ways import CPU, SmallSet, difference, losses_alike, pass_before, unlike
from coreset.bench.students import KEPT, ONCE, OURS, PEER, StudentsBench, beside
from coreset.engine.evaluation.soft_labels import SoftLabels
from coreset.engine.runtime.device import seeded_torch
from coreset.engine.stages.pack import Pack
from coreset.kernels.augment import recoloured
from coreset.shards.format.dataset import Dataset


@pytest.fixture(scope="module")
def few(make_photos, tmp_path_factory):
    folder = tmp_path_factory.mktemp("students")
    photos = make_photos(folder / "photos", per_class=4)
    Pack(src=photos, data=folder / "data").run()
    return SmallSet(Tree(path=photos, note="").files(), Dataset.open(folder / "data"))


@pytest.fixture
def bench(tmp_path, few):
    return StudentsBench(
        images=len(few.files), sizes=(48,), size=32, students=("resnet18",), repeats=1,
        threads=torch.get_num_threads(), work=tmp_path,
    )  # fmt: skip


@pytest.fixture
def images():
    return torch.rand((512, 3, 12, 12), generator=torch.Generator().manual_seed(0))


def test_images_that_are_brighter_smoother_or_fewer_are_told_apart(images):
    assert unlike(images, images.flip(3)) == ""
    assert "differ by 0.20" in unlike(images + 0.2, images)
    smooth = nn.functional.avg_pool2d(images, 3, stride=1, padding=1)
    assert "statistics" in unlike(smooth, images)
    assert "statistics" in unlike(1.2 * images - 0.1, images)
    assert "statistics" in unlike(images * torch.nan, images)
    assert unlike(images[1:], images) == "images (511, 3, 12, 12), the peer's (512, 3, 12, 12)"


def test_the_published_jitter_is_ours_in_any_order(images, monkeypatch):
    amounts = torch.tensor([0.3, -0.2, 0.4])
    for order in (0, 1, 2), (2, 0, 1):
        drawn = iter(amounts[list(order)])
        monkeypatch.setattr(torch, "randperm", lambda _n, order=order: torch.tensor(order))
        monkeypatch.setattr(torch.Tensor, "uniform_", lambda *_, drawn=drawn: next(drawn))
        expected = recoloured(images[:1], amounts[None], torch.zeros((1, 3)), (0,) * 3, (1,) * 3)
        assert torch.allclose(colour_jitter(images[0]), expected[0], atol=1e-6)


def test_halves_are_moved_and_none_is_lost():
    image = torch.arange(3 * 5 * 4).view(3, 5, 4)
    with seeded_torch(0, CPU):
        seen = {tuple(shuffled_halves(image).flatten().tolist()) for _ in range(50)}
    assert len(seen) == 4
    assert all(sorted(each) == list(range(60)) for each in seen)


def test_the_share_of_a_mixed_image_is_that_of_its_own_pixels():
    own = torch.arange(6.0)[:, None, None, None].expand(6, 3, 16, 16)
    with seeded_torch(0, CPU):
        images, labels, pasted, share = next(mixed_batches([(own.clone(), torch.arange(6))]))
    assert 0 < share < 1
    for image, label, other in zip(images, labels, pasted, strict=True):
        for value, part in (label, share), (other, 1 - share):
            found = float((image == value).float().mean())
            assert found == pytest.approx(1.0 if label == other else part)


def test_a_loss_that_is_far_from_the_peers_is_a_complaint():
    check = losses_alike("peer", 0.1)
    assert check("peer", 2.0) == ""
    assert check("ours", 2.19) == ""
    assert check("ours", 2.21) == "loss 2.2100, the peer's 2.0000"
    assert "nan" in check("ours", np.nan)


def test_a_pass_before_moves_statistics_and_nothing_else(images):
    first, second = (nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)) for _ in range(2))
    second.load_state_dict(first.state_dict())
    assert difference(first, second) == 0
    second.register_forward_pre_hook(pass_before)
    assert torch.equal(first.train()(images), second.train()(images))
    assert difference(first, second) > 0.05
    moved = {name for name, _ in first.named_buffers() if "running" in name}
    theirs = second.state_dict()
    equal = {name for name, one in first.state_dict().items() if torch.equal(one, theirs[name])}
    assert moved.isdisjoint(equal)
    assert set(dict(first.named_parameters())) <= equal


def test_a_row_tells_its_rival_and_its_goal():
    rows = [{"contender": OURS, "speed_over": {PEER: 3.5}}, {"contender": PEER, "failed": "no"}]
    first, second = beside(rows, {OURS: (PEER, 3.0)}, {"size": 128})
    assert first == rows[0] | {"size": 128, "rival": PEER, "times": 3.5, "goal": 3.0}
    assert (second["times"], second["goal"]) == (None, None)


def test_inputs_are_raced_with_their_share_of_a_step(bench, few, monkeypatch):
    monkeypatch.setattr(students, "EPOCHS_PER_TURN", 40)  # few images: many draws of each
    rows = list(bench.inputs(few))
    assert [row["protocol"] for row in rows] == ["hard@1"] * 3 + ["rded@1"] * 3
    assert not [row for row in rows if "failed" in row]
    for row in rows:
        if row["contender"] == OURS:
            step = next(one for one in rows if one["protocol"] == row["protocol"] and
                        one["role"] == "limit")  # fmt: skip
            share = row["milliseconds"] / step["milliseconds"]
            assert row["share"] == pytest.approx(share, rel=0.02)


@pytest.mark.slow
@pytest.mark.parametrize("part", ["rded", "labels"])
def test_both_ways_train_the_same_student(bench, few, part):
    theirs, ours = getattr(bench, part)(few)
    assert "failed" not in theirs
    assert "failed" not in ours
    assert ours["contender"] == {"rded": ONCE, "labels": KEPT}[part]
    assert ours["times"] > 0


@pytest.mark.slow
def test_kept_labels_that_are_wrong_are_found_by_the_loss(bench, few, monkeypatch):
    def read(_labels, _images, rows):
        return torch.zeros(rows.shape)

    monkeypatch.setattr(SoftLabels, "_read", read)
    _, ours = bench.labels(few)
    assert "the peer's" in ours["failed"]


@pytest.mark.slow
def test_epochs_of_hard_labels_end_alike(bench, few):
    rows = list(bench.steps(few))
    assert len(rows) == 3
    assert not [row for row in rows if "failed" in row]


def test_the_options_name_parts_that_exist():
    bench = StudentsBench(work=Path())
    assert all(callable(getattr(bench, part)) for part in bench.part)
