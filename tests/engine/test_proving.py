"""Proofs of a device: what holds on the CPU, what each of them notices, and the projections."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

from coreset.engine.data.batch import Batch
from coreset.engine.data.decoders.base import DecoderName
from coreset.engine.doctor.arithmetic import AUGMENTATIONS, HostReads, augmentation
from coreset.engine.doctor.check import DeviceCheck, context_of
from coreset.engine.doctor.checks import prove
from coreset.engine.doctor.decoding import compared, counted, differing_images, same_images
from coreset.engine.doctor.machine import Check, Verdict
from coreset.engine.doctor.speeds import (
    COPY,
    DECODE,
    FAST_SIDES,
    FORWARD,
    TRAIN,
    fast_step,
    projections,
    rate,
)
from coreset.shards.errors import InterruptedRunError, UsageError
from coreset.shards.format.dataset import Dataset

CPU = torch.device("cpu")
SAMPLES = 5


@pytest.fixture
def context(packed):
    return context_of(Dataset.open(packed), CPU, samples=SAMPLES, seconds=0)


def batch_of(ids, labels):
    images = torch.zeros((len(ids), 3, 2, 2), dtype=torch.uint8)
    return Batch(images, torch.tensor(labels), torch.tensor(ids))


def speeds(**per_second):
    names = {"decode": DECODE, "copy": COPY, "forward": FORWARD, "train": TRAIN}
    names |= {"fast_96": fast_step(96), "fast_128": fast_step(128)}
    return [
        Check(names[name], "", facts={"images_per_second": value})
        for name, value in per_second.items()
    ]


def test_samples_are_spread_evenly_over_the_data_set(packed):
    dataset = Dataset.open(packed)
    n = len(dataset)
    some, all_of_them = (
        context_of(dataset, CPU, samples=samples, seconds=0).ids for samples in (7, 10 * n)
    )
    assert some.size == 7
    assert set(np.diff(some)) <= {n // 7, n // 7 + 1}
    assert some[0] == 0
    np.testing.assert_array_equal(all_of_them, np.arange(n))


def test_a_data_set_without_samples_is_refused(packed):
    dataset = Dataset.open(packed)
    empty = Dataset(dataset.path, replace(dataset.manifest, n_samples=0))
    with pytest.raises(UsageError, match="has no samples; name a data set that has some"):
        context_of(empty, CPU, samples=4, seconds=0)


@pytest.mark.usefixtures("one_thread")
def test_every_proof_holds_where_the_device_is_the_cpu(context):
    found = list(prove(context))
    by_name = {check.name: check for check in found}
    assert len(by_name) == len(found)
    assert [check for check in found if check.verdict is not Verdict.OK] == []
    for decoder in ("dali", "turbo"):
        for crops in ("central", "random"):
            facts = by_name[f"pixels of {decoder}, {crops} crops"].facts
            assert facts["images"] == SAMPLES
            assert 0 < facts["mean"] <= facts["allowed"]["mean"]
        assert by_name[f"normalised batches of {decoder}"].facts["images"] == SAMPLES
    for ranks in (1, 2, 3):
        assert by_name[f"ids, ranks: {ranks}"].facts["samples"] == SAMPLES
    for where in ("decoded on the device", "copied to the device", "left on the host"):
        assert by_name[f"kept pixels, {where}"].facts == {"images": SAMPLES, "differing": 0}
    assert {f"augmentation: {name}" for name in AUGMENTATIONS} <= by_name.keys()
    assert by_name["FAISS"].value.startswith("skipped: ")
    assert by_name["host reads in a training batch"].value == "none"
    for speed in (DECODE, COPY, FORWARD, TRAIN, *map(fast_step, FAST_SIDES)):
        assert by_name[speed].facts["images_per_second"] > 0
    assert by_name["projection: score from kept pixels"].facts["bound_by"] == TRAIN
    json.dumps([dict(check.facts) for check in found])


def test_data_that_cannot_be_read_fail_by_name_and_the_table_stays_complete(packed, tmp_path):
    damaged = shutil.copytree(packed, tmp_path / "DATA")
    for shard in damaged.glob("*.tar"):
        shard.unlink()
    context = context_of(Dataset.open(damaged), CPU, samples=SAMPLES, seconds=0)
    found = {check.name: check for check in prove(context)}
    for name in ("pixels of dali", "ids", "kept pixels", "augmentation: flip", DECODE, TRAIN):
        assert found[name].verdict is Verdict.FAIL
        assert "cannot be read (No such file" in found[name].value
        assert found[name].remedy == f"run `coreset verify {damaged}`"
    assert found["scores of a training"].verdict is Verdict.OK
    embedding = found["projection: embed once"]
    assert (embedding.verdict, embedding.value) == (
        Verdict.WARN,
        "no speed of: decode, ResNet-18 forward",
    )


def test_what_a_proof_raises_comes_after_what_it_found(context):
    def broken(_context):
        yield Check("first", "fine")
        raise RuntimeError("CUDA error:\nunspecified launch failure")

    first, failure = DeviceCheck("driver", broken).findings(context)
    assert (first.name, failure.name) == ("first", "driver")
    assert failure.verdict is Verdict.FAIL
    assert failure.value == "CUDA error: unspecified launch failure"
    assert failure.facts == {"error": "RuntimeError"}
    assert failure.remedy


def test_a_signal_ends_the_proofs(context):
    def stopped(_context):
        raise InterruptedRunError("interrupted by SIGTERM")
        yield

    with pytest.raises(InterruptedRunError):
        list(DeviceCheck("any", stopped).findings(context))


@pytest.mark.parametrize(
    ("off", "coarse", "verdict"),
    [
        (0, False, Verdict.OK),
        (1, False, Verdict.OK),
        (3, False, Verdict.FAIL),
        (3, True, Verdict.WARN),
        (200, True, Verdict.FAIL),
    ],
)
def test_pixels_are_held_to_the_contract_and_on_a_gpu_warned_of_first(off, coarse, verdict):
    expected = np.zeros((2, 32, 32, 3), np.uint8)
    images = expected.copy()
    images[1, 16, 16] = off
    check = compared("pixels", images, expected, DecoderName.DALI, coarse=coarse)
    assert check.verdict is verdict
    assert check.facts["largest"] == off
    assert check.facts["mean_of_all"] == pytest.approx(off / 2 / 32 / 32)
    assert bool(check.remedy) == (verdict is not Verdict.OK)


@pytest.mark.parametrize(
    ("ids", "labels", "value"),
    [
        ([[4, 2], [9]], [[1, 0], [2]], "3 samples once each"),
        ([[4], [9]], [[1], [2]], "1 lost"),
        ([[4, 2], [9, 9]], [[1, 0], [2, 2]], "1 repeated"),
        ([[4, 2], [9, 5]], [[1, 0], [2, 0]], "1 unknown"),
        ([[4, 2], [9]], [[0, 1], [2]], "2 mislabelled"),
        ([[4, 2], [2]], [[1, 0], [0]], "1 lost, 1 repeated"),
        ([[4, 2, 9], [-1]], [[1, 0, 2], [-1]], "1 unknown"),
    ],
)
def test_lost_repeated_and_mislabelled_samples_are_counted(ids, labels, value):
    batches = [batch_of(*pair) for pair in zip(ids, labels, strict=True)]
    check = counted("ids", batches, np.array([2, 4, 9]), np.array([0, 1, 2]))
    assert check.value == value
    assert check.verdict is (Verdict.OK if value.endswith("each") else Verdict.FAIL)


def test_images_that_differ_in_one_value_label_or_id_are_counted():
    one = batch_of([1, 2, 3, 4], [0, 0, 1, 1])
    assert differing_images(one, batch_of([1, 2, 3, 4], [0, 0, 1, 1])) == 0
    other = batch_of([1, 5, 3, 4], [0, 0, 0, 1])
    other.images[3, 2, 1, 1] = 1
    assert differing_images(one, other) == 3


@pytest.mark.parametrize(
    ("off", "ids", "coarse", "verdict"),
    [
        (0, [7, 8], False, Verdict.OK),
        (1, [7, 8], False, Verdict.FAIL),
        (1, [7, 8], True, Verdict.WARN),
        (200, [7, 8], True, Verdict.FAIL),
        (0, [8, 7], True, Verdict.FAIL),
    ],
)
def test_epochs_are_bit_equal_or_on_a_gpu_near(off, ids, coarse, verdict):
    expected, found = batch_of([7, 8], [0, 1]), batch_of(ids, [0, 1])
    found.images[1] += off
    check = same_images("kept", [found], [expected], coarse=coarse)
    assert check.verdict is verdict
    assert check.facts["images"] == 2


def test_an_augmentation_that_differs_between_devices_fails(context):
    calls = []

    def drifting(images, _draws):
        calls.append(None)
        return images.float() / 255 + 0.001 * len(calls)

    (check,) = augmentation(context, "drift", drifting)
    assert check.verdict is Verdict.FAIL
    assert check.facts["largest"] == pytest.approx(0.001, rel=1e-3)


def test_the_first_call_is_not_timed_and_the_second_always_is(context):
    calls = []

    def step():
        calls.append(None)
        return 1_000_000_000

    assert rate(step, context) > 1_000_000  # one call took less than 1000 s
    assert len(calls) == 2


def test_projections_divide_by_the_slowest_part_of_each_pass():
    found = {
        check.name: check
        for check in projections(
            speeds(
                decode=12_000, copy=200_000, forward=3_000, train=6_000, fast_96=40_000,
                fast_128=25_000,
            )
        )
    }  # fmt: skip
    decode, embed, score, fast = found.values()
    assert (decode.facts["bound_by"], embed.facts["bound_by"]) == (DECODE, FORWARD)
    assert score.facts["bound_by"] == TRAIN
    assert decode.facts["hours"] == pytest.approx(1_281_167 / 12_000 / 3600)
    assert score.facts["hours"] == pytest.approx(60 * 1_281_167 / 6_000 / 3600)
    assert score.value == (
        "3.56 h = 1,281,167 images x 60 epochs / 6,000 per s, "
        "bound by ResNet-18 forward and backward"
    )
    assert fast.facts["hours"] == pytest.approx(1_281_167 * (4 / 40_000 + 12 / 25_000) / 3600)
    assert fast.value == (
        "0.21 h = 1,281,167 images x 4 epochs / 40,000 per s + 1,281,167 images x 12 epochs / "
        "25,000 per s, bound by fast recipe at 96 px, fast recipe at 128 px"
    )


def test_what_waits_for_a_device_is_counted():
    with HostReads() as reads:
        values = torch.ones(3)
        values.sum().item()
        values[values > 0]
        torch.where(values > 0)
        values.add(1)
    assert reads.found == ["_local_scalar_dense", "index", "nonzero"]


def test_what_was_not_measured_is_not_projected():
    decode, embed, score, _ = projections(speeds(decode=12_000, copy=1))
    assert decode.verdict is Verdict.OK
    assert (embed.verdict, score.verdict) == (Verdict.WARN, Verdict.WARN)
    assert "hours" not in {**embed.facts, **score.facts}
    assert score.value == "no speed of: ResNet-18 forward and backward"
