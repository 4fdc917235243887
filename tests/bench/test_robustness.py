"""Outcomes of the scoreboard, judged by what came out."""

import sys
from pathlib import Path

import numpy as np
import pytest

from coreset.bench.harness import read
from coreset.bench.robustness.cases import N, cases
from coreset.bench.robustness.outcomes import (
    Expected,
    Outcome,
    Ran,
    Sample,
    judge,
    read_found,
    run,
)
from coreset.bench.robustness.readers import Found
from coreset.bench.robustness.scoreboard import merged, observe

WHOLE, OTHER, THIRD = (np.full((4, 6, 3), level, np.uint8) for level in (100, 160, 220))


def ran(code=0, text="", *, in_time=True):
    return Ran(code=code, text=text, peak_mb=50, in_time=in_time)


def sample(label, pixels=WHOLE, key="a"):
    return Sample(label=label, key=key, shape=pixels.shape, pixels=pixels)


BOTH = (sample(0), sample(1, OTHER))
LACKING = {"truths": {0: WHOLE, 1: None}}
BESIDE = {"beside": {1: THIRD}}


@pytest.mark.parametrize(
    ("samples", "how", "changes", "expected"),
    [
        (BOTH, ran(), {}, Outcome.RIGHT),
        (BOTH, ran(text="a warning of nothing"), {}, Outcome.RIGHT),
        (BOTH[:1], ran(), {}, Outcome.LOSS),
        (BOTH[:1], ran(text="odd.jpg was skipped"), {}, Outcome.TOLD),
        (BOTH[:1], ran(text="another.jpg was skipped"), {}, Outcome.LOSS),
        (BOTH[:1], ran(1, "cannot read odd.jpg"), {}, Outcome.NAMED),
        (BOTH[:1], ran(1, "cannot decode sample 3"), {}, Outcome.NAMELESS),
        (BOTH[:1], ran(-11, "odd.jpg"), {}, Outcome.CRASH),
        (BOTH[:1], ran(-9, in_time=False), {}, Outcome.HANG),
        ((*BOTH, sample(1, OTHER)), ran(), {}, Outcome.WRONG),
        ((sample(0, OTHER), BOTH[1]), ran(), {}, Outcome.WRONG),
        ((sample(None), BOTH[1]), ran(), {}, Outcome.WRONG),
        ((sample(0, WHOLE.transpose(1, 0, 2)), BOTH[1]), ran(), {}, Outcome.WRONG),
        ((sample(0, key="../../etc/x"), BOTH[1]), ran(), {}, Outcome.HOSTILE),
        ((sample(0, WHOLE + 5), BOTH[1]), ran(), {}, Outcome.RIGHT),
        # What cannot be right must be told.
        (BOTH[:1], ran(), LACKING, Outcome.LOSS),
        (BOTH[:1], ran(text="odd.jpg"), LACKING, Outcome.TOLD),
        (BOTH, ran(), LACKING, Outcome.WRONG),
        # A second image of a label may come, once, and counts for nothing.
        ((*BOTH, sample(1, THIRD)), ran(), BESIDE, Outcome.RIGHT),
        (BOTH, ran(), BESIDE, Outcome.RIGHT),
        ((BOTH[0], sample(1, THIRD)), ran(), BESIDE, Outcome.LOSS),
        ((*BOTH, sample(1, THIRD), sample(1, THIRD)), ran(), BESIDE, Outcome.WRONG),
        ((BOTH[0], Sample(label=1, key="b", shape=(20_000, 20_000, 3), pixels=None)), ran(), {},
         Outcome.NO_GUARD),
        (BOTH, ran(), {"canary": Path(__file__)}, Outcome.RUNS_CODE),
        (BOTH, ran(), {"canary": Path("absent")}, Outcome.RIGHT),
    ],
)  # fmt: skip
def test_the_outcome_is_the_worst_of_what_happened(samples, how, changes, expected):
    known = {"truths": {0: WHOLE, 1: OTHER}, "culprits": ("odd.jpg",)} | changes
    assert judge(how, samples, Expected(**known))[0] is expected


def test_a_process_is_judged_by_its_end():
    done = run([sys.executable, "-c", "print('said'); raise SystemExit(3)"])
    assert (done.code, done.text, done.in_time) == (3, "said\n", True)
    assert done.peak_mb > 0
    assert run([sys.executable, "-c", "import os; os.kill(os.getpid(), 11)"]).code == -11
    assert not run([sys.executable, "-c", "input()"], limit_seconds=0).in_time


def test_samples_survive_what_comes_after_them(tmp_path):
    found = Found(tmp_path / "found")
    found.add(3, WHOLE, key="x")
    found.add("three", None)
    first, second = read_found(tmp_path / "found")
    assert (first.label, first.key, first.shape) == (3, "x", [4, 6, 3])
    np.testing.assert_array_equal(first.pixels, WHOLE)
    assert (second.label, second.pixels) == (None, None)
    assert read_found(tmp_path / "nothing") == []


def test_every_case_has_a_name_of_its_own_and_makes_its_inputs(tmp_path):
    every = [*cases()]
    assert len({case.fault for case in every}) == len(every)
    for number, case in enumerate(every):
        if case.kind != "packed" and case.row != 16:
            (tmp_path / str(number)).mkdir()
            inputs = case.prepare(tmp_path / str(number))
            assert inputs.place.exists()
            assert len(inputs.expected.truths) == N


def test_a_newer_record_replaces_that_of_the_same_fault_and_program():
    old, other = {"fault": "f", "contender": "a", "n": 1}, {"fault": "g", "contender": "a"}
    assert merged([old, other], [old | {"n": 2}]) == [old | {"n": 2}, other]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["webdataset", "dali"])
@pytest.mark.parametrize("fault", ["truncated JPEG", "no label", "tar cut in an image"])
def test_a_fault_is_no_right_outcome_in_other_programs(name, fault, tmp_path):
    case = next(case for case in cases() if case.fault == fault)
    inputs = case.prepare(tmp_path)
    ran, samples = observe(case, inputs, tmp_path, name)
    assert judge(ran, samples, inputs.expected)[0] is not Outcome.RIGHT


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
@pytest.mark.parametrize(
    "case", [case for case in cases() if case.row != 16], ids=lambda c: c.fault
)
def test_coreset_does_what_is_recorded(case, tmp_path):
    inputs = case.prepare(tmp_path)
    outcome, _ = judge(*observe(case, inputs, tmp_path, "coreset"), inputs.expected)
    recorded = {(row["fault"], row["contender"]): row["outcome"] for row in read("robustness")}
    assert outcome == recorded[case.fault, "coreset"]
