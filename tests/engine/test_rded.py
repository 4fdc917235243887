"""RDED: which crops become tiles, and where these lie, against a plain loop of Pillow and torch."""

import io
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import nn
from torch.nn.functional import cross_entropy, interpolate, pad

from coreset.engine.artifacts.ledger import read_ledger
from coreset.engine.condensed.methods import rded
from coreset.engine.condensed.methods.base import Part, Task
from coreset.engine.condensed.methods.rded import (
    RDED,
    RdedParameters,
    best_crops,
    crop_losses,
    mosaics,
)
from coreset.engine.data.geometry import Crops
from coreset.engine.data.reader import ShardReader
from coreset.engine.data.whole_images import cut_crops
from coreset.engine.models.teachers import Teacher
from coreset.engine.runtime.device import seeded_torch
from coreset.engine.stages.options import Decoding
from coreset.kernels.seeds import derived_seed, permutation
from coreset.shards.errors import ManifestError
from coreset.shards.format.dataset import Dataset

pytestmark = pytest.mark.usefixtures("one_thread", "_any_teacher")

MEAN, STD = (0.3, 0.5, 0.6), (0.2, 0.3, 0.25)
RANKS = """
import sys
import coreset.engine.models.teachers as teachers
from coreset.engine.cli import main
teachers.LEAST_ACCURACY = 0.0
sys.exit(main(sys.argv[1:]))
"""
KILLED_IN_THE_SECOND_CLASS = """
import os, signal, sys
import coreset.engine.models.teachers as teachers
from coreset.engine.cli import main
from coreset.engine.condensed.methods import rded
teachers.LEAST_ACCURACY = 0.0
mosaics, made = rded.mosaics, []
def mosaics_once(*arguments):
    if made:
        os.kill(os.getpid(), signal.SIGKILL)
    made.append(mosaics(*arguments))
    return made[0]
rded.mosaics = mosaics_once
main(sys.argv[1:])
"""


@pytest.fixture
def _any_teacher(monkeypatch):
    """Let teachers pass that were never taught."""
    monkeypatch.setattr("coreset.engine.models.teachers.LEAST_ACCURACY", 0.0)


class Constant(nn.Module):
    """Says the same of every image."""

    def forward(self, images):
        return torch.zeros((len(images), 3))


def random_network():
    """A small network whose logits differ from crop to crop."""
    with seeded_torch(1, torch.device("cpu")):
        layers = nn.Conv2d(3, 8, 5, stride=3), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten()
        head = nn.Linear(32, 3)
    head.weight.data.mul_(20)
    return nn.Sequential(*layers, head).requires_grad_(requires_grad=False).eval()


def teacher_of(network):
    """A teacher whose outputs are in another order than the set's classes."""
    return Teacher(
        name="small", source=Path("small"), digest="", network=network, mean=MEAN, std=STD,
        orders=torch.tensor([[2, 0, 1]]),
    )  # fmt: skip


def task_of(data, network, *, ipc=2, seed=4):
    read = list[int]()
    task = Task(
        dataset=Dataset.open(data), ipc=ipc, seed=seed, open_stream=Decoding(device="cpu").stream,
        workers=0, advance=read.append, teachers=(teacher_of(network),),
    )  # fmt: skip
    return task, read


def built(task, parameters, label):
    return RDED.prepare(task, parameters).build(Part((label,), range(task.ipc)))[0]


def candidates_of(task, parameters, label):
    """Ids of the images that are drawn of a class."""
    members = np.flatnonzero(task.dataset.labels == label)
    order = permutation(members.size, derived_seed(task.seed, label))
    return members[order[: parameters.candidates]]


def plain_crops(task, parameters, label, stored):
    """Crops of the candidates of a class, by Pillow and torch: levels, (m, 3, s, s) per image."""
    dataset, seed = task.dataset, derived_seed(task.seed, label)
    ids = candidates_of(task, parameters, label)
    sizes = dataset.ints("width")[ids], dataset.ints("height")[ids]
    law, side = Crops(scale=(0.08, 1.0), ratio=(1.0, 1.0)), parameters.size
    side //= parameters.factor
    boxes = [law.boxes(ids, *sizes, seed=seed, epoch=n) for n in range(parameters.crops)]
    for row, sample in enumerate(ids):
        with Image.open(io.BytesIO(stored[sample][1])) as opened:
            image = torch.tensor(np.asarray(opened.convert("RGB"))).permute(2, 0, 1)[None].float()
        regions = [
            image[:, :, top:bottom, left:right]
            for left, top, right, bottom in (box[row].tolist() for box in boxes)
        ]
        yield torch.cat(
            [
                interpolate(region, (side, side), mode="bilinear", antialias=True)
                for region in regions
            ]
        )


def plain_loss(network, crop, label, size):
    """Judge the levels of one crop: normalise, then pad by zeros, then ask for the class."""
    pixels = (crop / 255 - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]
    before = (size - crop.shape[-1]) // 2
    after = size - crop.shape[-1] - before
    logits = network(pad(pixels[None], (before, after, before, after)))[:, [2, 0, 1]]
    return float(cross_entropy(logits, torch.tensor([label])))


def plain_mosaics(tiles, factor, size):
    """Lay tiles as RDED's ``mix_images`` does, with torch."""
    tiles = torch.from_numpy(tiles).permute(0, 3, 1, 2).float()
    n = len(tiles) // factor**2
    sides = [size // factor + (at < size % factor) for at in range(factor)]
    rows = []
    for row in range(factor):
        places = [tiles[(row * factor + at) * n :][:n] for at in range(factor)]
        placed = [
            interpolate(tile, size=(sides[row], side))
            for tile, side in zip(places, sides, strict=True)
        ]
        rows.append(torch.cat(placed, dim=3))
    return torch.cat(rows, dim=2).permute(0, 2, 3, 1).numpy()


@pytest.mark.parametrize(("factor", "size"), [(1, 32), (2, 49), (3, 41)])
def test_a_plain_loop_chooses_the_same_crops(packed, stored_samples, factor, size):
    network, stored, equal = random_network(), stored_samples(packed), list[bool]()
    parameters = RdedParameters(size=size, factor=factor, candidates=19, crops=4)
    task, _ = task_of(packed, network)
    for label in range(3):
        crops = list(plain_crops(task, parameters, label, stored))
        losses = np.array([[plain_loss(network, one, label, size) for one in of] for of in crops])
        assert losses.std() > 0.1
        best = losses.argmin(axis=1)
        ids = candidates_of(task, parameters, label)
        found, least = best_crops(task, task.teachers[0], ids, label, parameters)
        chosen = torch.stack([of[at] for of, at in zip(crops, best, strict=True)])
        apart = np.abs(found / 256 - chosen.permute(0, 2, 3, 1).numpy()).max(axis=(1, 2, 3))
        equal += (apart <= 0.05).tolist()
        np.testing.assert_allclose(least, losses.min(axis=1), rtol=0.01)
    assert np.mean(equal) >= 0.99


@pytest.mark.parametrize(("factor", "size"), [(1, 32), (2, 49), (3, 41)])
def test_the_best_are_laid_in_the_order_of_their_losses(packed, factor, size):
    """With a factor of 1 they are the images."""
    parameters = RdedParameters(size=size, factor=factor, candidates=19, crops=4)
    task, read = task_of(packed, random_network())
    ids = candidates_of(task, parameters, 1)
    tiles, losses = best_crops(task, task.teachers[0], ids, 1, parameters)
    ranked = sorted(range(19), key=losses.__getitem__)[: 2 * factor**2]
    found = built(task, parameters, 1)
    assert found.dtype == np.uint8
    rounded = np.floor(tiles[ranked] / 256 + 0.5)
    np.testing.assert_array_equal(found, plain_mosaics(rounded, factor, size))
    assert read == [19]
    assert set(task.seconds) == {"assets", "classes", "images"}


def test_a_constant_teacher_takes_the_first_crop_of_the_first_images(packed, stored_samples):
    parameters = RdedParameters(size=32, candidates=20, crops=3)
    task, _ = task_of(packed, Constant())
    candidates = list(plain_crops(task, parameters, 1, stored_samples(packed)))
    first = torch.stack([crops[0] for crops in candidates[:8]]).permute(0, 2, 3, 1).numpy()
    expected = plain_mosaics(first, 2, 32)
    assert np.abs(built(task, parameters, 1) - expected).max() <= 0.55


@given(st.integers(1, 3), st.integers(1, 5), st.integers(8, 23))
def test_tiles_lie_as_published_whether_or_not_their_number_divides_the_side(n, factor, size):
    rng, side = np.random.default_rng(size), size // factor
    tiles = rng.integers(0, 256, (n * factor**2, side, side, 3), np.uint8)
    found = mosaics(tiles, factor, size)
    np.testing.assert_array_equal(found, plain_mosaics(tiles, factor, size))
    assert found.flags.c_contiguous


def test_the_choice_does_not_depend_on_the_batch(packed, monkeypatch):
    task, _ = task_of(packed, random_network())
    parameters = RdedParameters(size=40, crops=5)
    whole = built(task, parameters, 0)
    for n in (1, 3, 1000):
        monkeypatch.setattr(rded, "_IMAGES_AT_ONCE", n)
        np.testing.assert_array_equal(built(task, parameters, 0), whole)


def test_losses_are_those_of_one_crop_at_a_time():
    network = random_network()
    crops = np.random.default_rng(0).integers(0, 255 * 256 + 1, (3, 4, 20, 20, 3), np.uint16)
    losses = crop_losses(teacher_of(network), crops, 2, 41)
    levels = torch.from_numpy(crops / 256).float().permute(0, 1, 4, 2, 3)
    plain = [[plain_loss(network, crop, 2, 41) for crop in of_image] for of_image in levels]
    np.testing.assert_allclose(losses, plain, rtol=1e-4)


class Brightness(nn.Module):
    """Is sure of one of two classes by the brightness of the middle pixel."""

    def forward(self, images):
        return torch.stack([1e2 * images[:, 0, 8, 8], 0 * images[:, 0, 8, 8]], dim=1)


def test_crops_of_which_a_teacher_is_very_sure_are_still_told_apart():
    """In float32 the first two would tie at 0."""
    teacher = Teacher(
        name="", source=Path(), digest="", network=Brightness(), mean=(0.5, 0.5, 0.5),
        std=(1.0, 1.0, 1.0), orders=torch.tensor([[0, 1]]),
    )  # fmt: skip
    crops = np.stack([np.full((1, 8, 8, 3), 256 * shade, np.uint16) for shade in (190, 180, 0)])
    losses = crop_losses(teacher, crops, 0, 16)[:, 0]
    gaps = 1e2 * (np.array([190, 180, 0]) / 255 - 0.5)
    np.testing.assert_allclose(losses, np.logaddexp(0, -gaps), rtol=1e-3)
    assert 0 < losses[0] < losses[1] < 2**-24


def test_a_damaged_image_is_named(damaged):
    dataset = Dataset.open(damaged)
    ids, boxes = np.array([19, 20]), np.array([[[0, 0, 9, 9]]] * 2)
    sizes = np.stack([dataset.ints("width")[ids], dataset.ints("height")[ids]], axis=1)
    with ShardReader(dataset) as reader:
        assert cut_crops(reader, ids[:1], sizes, boxes[:1], 4, workers=2).shape == (1, 1, 4, 4, 3)
        name = reader.name_of(20)
        with pytest.raises(ManifestError, match=rf"{name}.*cannot be decoded; run `coreset verify"):
            cut_crops(reader, ids, sizes, boxes, 4, workers=2)


@pytest.fixture
def command(packed, untrained_teacher):
    """``command(out)``: words that build a small set."""
    options = ("--method", "rded", "--teachers", untrained_teacher, "--size", 48)
    return lambda out: ("distill", packed, out, "--ipc", 2, *options)


def test_images_are_stored_as_jpeg_of_quality_75_or_without_loss(
    packed, tmp_path, command, coreset, stored_samples
):
    for kind in ("jpg", "png"):
        ended = coreset(*command(tmp_path / kind), "--stored", kind)
        assert ended.code == 0, ended.err
    lossless = [np.asarray(Image.open(io.BytesIO(b))) for _, b in stored_samples(tmp_path / "png")]
    for pixels, (_, data) in zip(lossless, stored_samples(tmp_path / "jpg"), strict=True):
        expected = io.BytesIO()
        Image.fromarray(pixels).save(expected, "JPEG")  # Pillow's own quality is 75
        assert data == expected.getvalue()
    assert [image.shape for image in lossless] == [(48, 48, 3)] * 6
    assert read_ledger(tmp_path / "jpg")[-1]["images"] == len(Dataset.open(packed))


@pytest.mark.slow
def test_a_killed_run_goes_on_with_the_next_class(tmp_path, command, coreset, fork, stored_bytes):
    child = fork(KILLED_IN_THE_SECOND_CLASS, *command(tmp_path / "SET"))
    assert child.code == -signal.SIGKILL, child.said
    for name in ("SET", "WHOLE"):
        ended = coreset(*command(tmp_path / name))
        assert ended.code == 0, ended.err
    assert [read_ledger(tmp_path / name)[-1]["images"] for name in ("SET", "WHOLE")] == [40, 60]
    assert stored_bytes(tmp_path / "SET") == stored_bytes(tmp_path / "WHOLE")


@pytest.mark.slow
def test_two_ranks_make_the_bytes_of_one_process(
    tmp_path, command, coreset, start_ranks, stored_bytes
):
    alone = coreset(*command(tmp_path / "ALONE"))
    assert alone.code == 0, alone.err
    ranks = start_ranks(RANKS, *command(tmp_path / "RANKS"))
    assert [rank.code for rank in ranks] == [0, 0], [rank.said for rank in ranks]
    assert stored_bytes(tmp_path / "RANKS") == stored_bytes(tmp_path / "ALONE")


TILES = "tiles of a class (ipc * factor^2)"
SMALL = "class n01440764 has 20 images; lower --ipc or --factor"
RAISE = "raise --candidates, or lower --ipc or --factor"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--ipc 6", f"{TILES} must be at most the size of every class, got 24, but {SMALL}"),
        ("--ipc 2 --candidates 7", f"candidates must be at least the {TILES}, 8, got 7; {RAISE}"),
        ("--ipc 0", "ipc must be at least 1, got 0"),
        ("--size 31", "size must be at least 32, got 31"),
        ("--factor 0", "factor must be in [1, 7), got 0"),
        ("--size 40 --factor 6", "factor must be in [1, 6), got 6"),
        ("--candidates 0", "candidates must be at least 1, got 0"),
        ("--crops 0", "crops must be at least 1, got 0"),
        ("--stored gif", "gif"),
    ],
)
def test_what_cannot_be_built_is_refused(tmp_path, command, refused, options, message):
    words = options.split()
    said = refused(tmp_path, *command(tmp_path / "SET"), *words)
    assert message in said


def test_a_teacher_that_knows_other_classes_is_refused(tmp_path, command, coreset, monkeypatch):
    monkeypatch.setattr("coreset.engine.models.teachers.LEAST_ACCURACY", 101.0)
    ended = coreset(*command(tmp_path / "SET"))
    assert ended.code == 3
    assert "images, less than 101 %" in ended.err
    assert not (tmp_path / "SET").exists()
