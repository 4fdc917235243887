"""The doctor: what it finds of a machine and a device, what each proof notices, projections."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import coreset.engine.doctor.machine
from coreset.engine.data.decoders import DecoderName
from coreset.engine.data.stream import Batch
from coreset.engine.doctor.arithmetic import HostReads, augmentation
from coreset.engine.doctor.machine import (
    Check,
    Verdict,
    check_cores,
    check_disk,
    check_file_system,
    check_memory,
    check_open_files,
    check_packages,
    driver_version,
    findings,
)
from coreset.engine.doctor.projections import projections
from coreset.engine.doctor.proofs import compared, counted, same_images
from coreset.engine.doctor.speeds import (
    BESIDE,
    COPY,
    DECODE,
    FAST_STEPS,
    FORWARD,
    TRAIN,
    context_of,
    rate,
)
from coreset.shards.errors import InterruptedRunError, UsageError
from coreset.shards.format.dataset import Dataset

CPU = torch.device("cpu")
NO_TIME = ("--device", "cpu", "--samples", 5, "--seconds", 0, "--json")


@pytest.fixture
def machine(monkeypatch):
    """``machine(NAME=value)``: change a name of the checks; few packages are imported."""

    def change(**values):
        for name, value in values.items():
            monkeypatch.setattr(coreset.engine.doctor.machine, name, value)

    change(PACKAGES=("numpy", "PIL"))
    return change


def test_the_file_system_probe_passes_here_and_leaves_nothing(tmp_path):
    (tmp_path / "mine").touch()
    verdicts = {one.name: one.verdict for one in check_file_system(tmp_path)}
    assert verdicts == {"write, fsync, rename": Verdict.OK, "file lock": Verdict.OK}
    assert [file.name for file in tmp_path.iterdir()] == ["mine"]
    (unwritable,) = check_file_system(tmp_path / "nothing")
    assert unwritable.verdict is Verdict.FAIL
    assert "choose another --path" in unwritable.remedy


@pytest.mark.parametrize(
    ("check", "enough", "too_little", "verdict"),
    [
        (check_cores, {"quota_cores": lambda: None}, {"quota_cores": lambda: 0.5}, Verdict.WARN),
        (check_memory, {"NEEDED_MEMORY_BYTES": 0}, {"NEEDED_MEMORY_BYTES": 2**62}, Verdict.FAIL),
        (check_disk, {"NEEDED_DISK_BYTES": 0}, {"NEEDED_DISK_BYTES": 2**62}, Verdict.WARN),
        (check_open_files, {"NEEDED_OPEN_FILES": 0}, {"NEEDED_OPEN_FILES": 2**62}, Verdict.WARN),
    ],
)
def test_too_little_of_something_is_told_with_a_remedy(check, enough, too_little, verdict, machine):
    machine(**enough)
    (found,) = check(Path.cwd())
    assert (found.verdict, found.remedy) == (Verdict.OK, "")
    machine(**too_little)
    (lacking,) = check(Path.cwd())
    assert lacking.verdict is verdict
    assert lacking.remedy
    assert lacking.facts.keys() == found.facts.keys()


def test_a_package_that_does_not_import_is_a_failure(tmp_path, machine):
    machine(PACKAGES=("numpy", "no_such_module"))
    python, numpy, missing = check_packages(tmp_path)
    assert (python.name, python.verdict, numpy.verdict) == ("python", Verdict.OK, Verdict.OK)
    assert (missing.name, missing.verdict) == ("no_such_module", Verdict.FAIL)
    assert "No module named 'no_such_module'" in missing.value


def test_a_check_that_breaks_down_is_a_finding_and_stops_no_other(tmp_path, machine):
    def check_broken_driver(_path):
        yield Check("first", "fine")
        raise RuntimeError("the driver\nanswered nothing")

    def check_stopped(_path):
        raise InterruptedRunError("interrupted by SIGTERM")
        yield

    machine(CHECKS=(check_broken_driver, check_cores))
    first, broken, cores = findings(tmp_path)
    assert (first.name, cores.name) == ("first", "cores")
    assert (broken.name, broken.verdict) == ("broken driver", Verdict.FAIL)
    assert broken.value == "the driver answered nothing"
    machine(CHECKS=(check_stopped,))
    with pytest.raises(InterruptedRunError):
        list(findings(tmp_path))


def test_a_fit_machine_gets_an_aligned_table_and_exit_code_0(tmp_path, machine, done):
    machine()
    header, *rows, last = done("doctor", "--path", tmp_path)
    assert header.split() == ["check", "verdict", "value;", "remedy"]
    column = header.index("verdict")
    assert {row[column:].split()[0] for row in rows} <= {"ok", "warn"}
    assert "fit" in last


def test_an_unfit_machine_gets_its_table_first_and_then_one_line_and_exit_code_4(
    tmp_path, coreset, machine
):
    machine(NEEDED_MEMORY_BYTES=2**62)
    told = coreset("doctor", "--path", tmp_path, "--json")
    record, error = map(json.loads, told.out.splitlines())
    assert (record["event"], record["fit"]) == ("failed", False)
    assert record["checks"]["memory"]["verdict"] == "fail"
    assert record["checks"]["disk"]["facts"]["free_bytes"] > 0
    assert (told.code, error["event"], error["exit_code"]) == (4, "error", 4)
    assert told.err.startswith("coreset: this machine is unfit: memory: ")
    assert told.err.count("\n") == 1


def test_every_check_is_shown_as_it_ends(tmp_path, capsys, coreset, machine):
    shown = []

    def look(name):
        def check(_path):
            shown.append(capsys.readouterr().out)
            yield Check(name, "here")

        return check

    names = ["first", "second", "third"]
    machine(CHECKS=[look(name) for name in names])
    shown.append(coreset("doctor", "--path", tmp_path).out)
    assert [text.splitlines()[0].split()[0] for text in shown] == ["check", *names]


@pytest.mark.usefixtures("machine")
def test_every_proof_holds_where_the_device_is_the_cpu(packed, coreset):
    told = coreset("doctor", packed, "--path", packed.parent, *NO_TIME)
    assert told.code == 0
    record = json.loads(told.out)
    assert record["lines"][-1] == "every proof holds on cpu; projections are arithmetic"
    rows = [line.split("  ")[0] for line in record["lines"]]
    assert rows.index("cores") < rows.index("ids, ranks: 3") < rows.index("projection: embed once")
    proofs = record["proofs"]
    assert {proof["verdict"] for proof in proofs.values()} == {"ok"}
    facts = {name: proof["facts"] for name, proof in proofs.items()}
    for decoder in ("dali", "turbo"):
        for crops in ("central", "random"):
            found = facts[f"pixels of {decoder}, {crops} crops"]
            assert found["images"] == 5
            assert 0 < found["mean"] <= found["allowed"]["mean"]
        assert facts[f"normalised batches of {decoder}"]["images"] == 5
    for ranks in (1, 2, 3):
        assert facts[f"ids, ranks: {ranks}"]["samples"] == 5
    for where in ("decoded on the device", "copied to the device", "left on the host"):
        assert facts[f"kept pixels, {where}"] == {"images": 5, "differing": 0}
    assert sum(name.startswith("augmentation: ") for name in proofs) == 5
    assert proofs["neighbours"]["facts"]["device"] == "by FAISS on cpu"
    for recipe, n_bytes in (("full", 251_887_681_536), ("fast", 81_928_067_316)):
        kept = facts[f"ImageNet for the {recipe} recipe"]
        assert kept["bytes"] == n_bytes
        assert kept["place"] in {"HOST", "FILE", "NOWHERE"}
    assert proofs["host reads in a training batch"]["value"] == "none"
    for speed in (DECODE, COPY, FORWARD, TRAIN, BESIDE, *FAST_STEPS.values()):
        assert facts[speed]["images_per_second"] > 0
    assert facts["projection: score"]["bound_by"] == f"{DECODE}, {TRAIN}"


@pytest.mark.usefixtures("machine")
def test_a_proof_that_fails_makes_the_machine_unfit_by_name(packed, coreset, tmp_path):
    damaged = shutil.copytree(packed, tmp_path / "DATA")
    for shard in damaged.glob("*.tar"):
        shard.unlink()
    told = coreset("doctor", damaged, "--path", tmp_path, *NO_TIME)
    assert told.code == 4
    record, error = map(json.loads, told.out.splitlines())
    assert (record["fit"], record["device"], record["samples"]) == (False, "cpu", 5)
    proofs = record["proofs"]
    for name in ("pixels of dali", "ids", "kept pixels", "augmentation: flip", DECODE, TRAIN):
        assert proofs[name]["verdict"] == "fail"
        assert "cannot be read (No such file" in proofs[name]["value"]
        assert proofs[name]["remedy"] == f"run `coreset verify {damaged}`"
    assert proofs["scores of a training"]["facts"]["largest"]["aum"] == 0
    embedding = proofs["projection: embed once"]
    assert embedding["verdict"] == "warn"
    assert embedding["value"] == "no speed of: decode, ResNet-18 forward"
    assert "kept pixels: " in error["message"]
    assert told.err.count("\n") == 1


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("with_data", [True, False])
def test_a_gpu_that_is_not_there_is_one_line_and_exit_code_4(packed, coreset, with_data):
    told = coreset("doctor", *([packed] if with_data else []), "--device", "cuda")
    assert (told.code, told.out) == (4, "")
    assert told.err.startswith("coreset: device cuda: no usable GPU here; ")
    assert told.err.count("\n") == 1


@pytest.mark.slow
def test_every_package_of_the_environment_imports(tmp_path):
    assert [one for one in check_packages(tmp_path) if one.verdict is Verdict.FAIL] == []


@pytest.mark.parametrize(
    "text",
    [
        "NVRM version: NVIDIA UNIX x86_64 Kernel Module  580.82.07  Wed\nGCC version: 13.3.0",
        "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.82.07  Release Build",
    ],
)
def test_the_driver_version_is_read_from_both_kinds_of_module(text, tmp_path):
    assert driver_version(tmp_path / "version") is None
    (tmp_path / "version").write_text(text)
    assert driver_version(tmp_path / "version") == "580.82.07"


@pytest.fixture
def context(packed):
    return context_of(Dataset.open(packed), CPU, samples=5, seconds=0)


def batch_of(ids, labels):
    images = torch.zeros((len(ids), 3, 2, 2), dtype=torch.uint8)
    return Batch(images, torch.tensor(labels), torch.tensor(ids))


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
    empty = Dataset(dataset.path, replace(dataset.manifest, n_samples=0))
    with pytest.raises(UsageError, match="has no samples; name a data set that has some"):
        context_of(empty, CPU, samples=4, seconds=0)


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


@pytest.mark.parametrize(
    ("off", "batch", "coarse", "differing", "verdict"),
    [
        (0, ([7, 8], [0, 1]), False, 0, Verdict.OK),
        (1, ([7, 8], [0, 1]), False, 1, Verdict.FAIL),
        (1, ([7, 8], [0, 1]), True, 1, Verdict.WARN),
        (200, ([7, 8], [0, 1]), True, 1, Verdict.FAIL),
        (0, ([7, 9], [0, 1]), True, 1, Verdict.FAIL),
        (0, ([7, 8], [0, 0]), True, 1, Verdict.FAIL),
        (1, ([9, 8], [0, 1]), True, 2, Verdict.FAIL),
    ],
)
def test_epochs_are_bit_equal_or_on_a_gpu_near(off, batch, coarse, differing, verdict):
    expected, found = batch_of([7, 8], [0, 1]), batch_of(*batch)
    found.images[1, 2, 1, 1] += off
    check = same_images("kept", [found], [expected], coarse=coarse)
    assert check.verdict is verdict
    assert check.facts == {"images": 2, "differing": differing}


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
    speeds = {DECODE: 12_000, COPY: 200_000, FORWARD: 3_000, TRAIN: 6_000}
    speeds |= {FAST_STEPS[96]: 40_000, FAST_STEPS[128]: 25_000}
    decode, embed, score, fast = projections(
        [Check(name, "", facts={"images_per_second": value}) for name, value in speeds.items()]
    )
    assert (decode.facts["bound_by"], embed.facts["bound_by"]) == (DECODE, FORWARD)
    assert score.facts["bound_by"] == f"{DECODE}, {TRAIN}"
    assert decode.facts["hours"] == pytest.approx(1_281_167 / 12_000 / 3600)
    n = 1_281_167
    assert score.facts["hours"] == pytest.approx(n * (1 / 12_000 + 60 / 6_000) / 3600)
    in_turn = n * (1 / 12_000 + 60 / 6_000 + 60 / 200_000) / 3600
    assert score.facts["hours_in_turn"] == pytest.approx(in_turn)
    assert score.value == (
        "3.59 h = 1,281,167 images / 12,000 per s + 1,281,167 images x 60 epochs / 6,000 per s, "
        "bound by decode, ResNet-18 forward and backward; 3.70 h if nothing overlapped"
    )
    steps = 1 / 12_000 + 4 / 40_000 + 12 / 25_000
    assert fast.facts["hours"] == pytest.approx(n * steps / 3600)
    assert fast.facts["hours_in_turn"] == pytest.approx(n * (steps + 16 / 200_000) / 3600)


def test_what_waits_for_a_device_is_counted():
    with HostReads() as reads:
        values = torch.ones(3)
        values.sum().item()
        values[values > 0]
        torch.where(values > 0)
        values.add(1)
    assert reads.found == ["_local_scalar_dense", "index", "nonzero"]
