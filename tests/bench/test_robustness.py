"""Outcomes of the scoreboard: told by what came out."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import simplejpeg
from PIL import Image

from coreset.bench.peers.found import Found
from coreset.bench.robustness import uses
from coreset.bench.robustness.cases import Case, N, image_cases, packed_cases, shard_cases
from coreset.bench.robustness.contenders import coreset
from coreset.bench.robustness.faults import encoded, jpeg
from coreset.bench.robustness.folders import folder_cases
from coreset.bench.robustness.outcomes import (
    Expected,
    Observed,
    Outcome,
    Ran,
    Sample,
    judge,
    read_found,
    run,
)
from coreset.bench.robustness.processes import CASES
from coreset.bench.robustness.scoreboard import NOT_INSTALLED, merged
from coreset.bench.robustness.tables import table_cases

WHOLE = np.full((4, 6, 3), 100, np.uint8)
OTHER = np.full((4, 6, 3), 160, np.uint8)


def ran(code: int = 0, text: str = "", *, in_time: bool = True) -> Ran:
    return Ran(code=code, text=text, peak_mb=50, in_time=in_time)


def sample(label: int | None, pixels: Any = WHOLE, key: str = "a") -> Sample:
    return Sample(label=label, key=key, shape=pixels.shape, pixels=pixels)


def outcome(samples: Sequence[Sample], how: Ran | None = None, **changes: Any) -> Outcome:
    expected: dict[str, Any] = {"truths": {0: WHOLE, 1: OTHER}, "culprits": ("odd.jpg",)} | changes
    return judge(Observed(ran=how or ran(), samples=samples), Expected(**expected)).outcome


BOTH = (sample(0), sample(1, OTHER))


@pytest.mark.parametrize(
    ("samples", "how", "expected"),
    [
        (BOTH, None, Outcome.RIGHT),
        (BOTH, ran(text="a warning of nothing"), Outcome.RIGHT),
        (BOTH[:1], None, Outcome.LOSS),
        (BOTH[:1], ran(text="odd.jpg was skipped"), Outcome.TOLD),
        (BOTH[:1], ran(text="another.jpg was skipped"), Outcome.LOSS),
        (BOTH[:1], ran(1, "cannot read odd.jpg"), Outcome.NAMED),
        (BOTH[:1], ran(1, "cannot decode sample 3"), Outcome.NAMELESS),
        (BOTH[:1], ran(-11, "odd.jpg"), Outcome.CRASH),
        (BOTH[:1], ran(-9, in_time=False), Outcome.HANG),
        ((*BOTH, sample(1, OTHER)), None, Outcome.WRONG),
        ((sample(0, OTHER), BOTH[1]), None, Outcome.WRONG),
        ((sample(None), BOTH[1]), None, Outcome.WRONG),
        ((sample(0, WHOLE.transpose(1, 0, 2)), BOTH[1]), None, Outcome.WRONG),
        ((sample(0, key="../../etc/x"), BOTH[1]), None, Outcome.HOSTILE),
        ((sample(0, WHOLE + 5), BOTH[1]), None, Outcome.RIGHT),
    ],
)  # fmt: skip
def test_the_outcome_is_the_worst_of_what_happened(
    samples: Sequence[Sample], how: Ran | None, expected: Outcome
):
    assert outcome(samples, how) is expected


def test_what_cannot_be_right_must_be_told():
    truths = {0: WHOLE, 1: None}
    assert outcome(BOTH[:1], truths=truths) is Outcome.LOSS
    assert outcome(BOTH[:1], ran(text="odd.jpg"), truths=truths) is Outcome.TOLD
    assert outcome(BOTH, truths=truths) is Outcome.WRONG


def test_a_second_image_of_a_label_may_come_and_counts_for_nothing():
    third = np.full((4, 6, 3), 220, np.uint8)
    beside = {1: third}
    assert outcome((*BOTH, sample(1, third)), beside=beside) is Outcome.RIGHT
    assert outcome(BOTH, beside=beside) is Outcome.RIGHT
    assert outcome((BOTH[0], sample(1, third)), beside=beside) is Outcome.LOSS
    assert outcome((*BOTH, sample(1, third), sample(1, third)), beside=beside) is Outcome.WRONG


def test_a_second_image_that_must_come_is_a_loss_without_it():
    third = np.full((4, 6, 3), 220, np.uint8)
    beside: dict[str, Any] = {"beside": {1: third}, "both": True}
    assert outcome((*BOTH, sample(1, third)), **beside) is Outcome.RIGHT
    assert outcome(BOTH, **beside) is Outcome.LOSS


def test_a_decoded_bomb_and_a_canary_count_before_all_else(tmp_path: Path):
    bomb = Sample(label=1, key="b", shape=(20_000, 20_000, 3), pixels=None)
    assert outcome((sample(0), bomb)) is Outcome.NO_GUARD
    canary = tmp_path / "canary"
    assert outcome(BOTH, canary=canary) is Outcome.RIGHT
    canary.touch()
    assert outcome(BOTH, canary=canary) is Outcome.RUNS_CODE


def test_a_process_is_told_by_its_end():
    told = run([sys.executable, "-c", "print('said'); raise SystemExit(3)"])
    assert (told.code, told.text, told.in_time) == (3, "said\n", True)
    assert told.peak_mb > 0
    killed = run([sys.executable, "-c", "import os; os.kill(os.getpid(), 11)"])
    assert killed.code == -11
    assert not run([sys.executable, "-c", "input()"], limit_seconds=0).in_time


def test_samples_found_survive_what_comes_after_them(tmp_path: Path):
    found = Found(tmp_path / "found")
    found.add(3, WHOLE, key="x")
    found.add("three", None)
    first, second = read_found(tmp_path / "found")
    assert (first.label, first.key, first.shape) == (3, "x", [4, 6, 3])
    np.testing.assert_array_equal(first.pixels, WHOLE)
    assert (second.label, second.pixels) == (None, None)
    assert read_found(tmp_path / "nothing") == []


def test_every_case_has_a_name_of_its_own_and_makes_its_inputs(tmp_path: Path):
    cases = [*image_cases(), *folder_cases(), *shard_cases(), *table_cases()]
    processes = [*CASES, *uses.CASES]
    names = [case.fault for case in [*cases, *packed_cases(), *processes]]
    assert len(set(names)) == len(names)
    for number, case in enumerate(cases):
        if case.row == 16:
            continue
        folder = tmp_path / str(number)
        folder.mkdir()
        inputs = case.prepare(folder)
        assert inputs.place.exists()
        assert len(inputs.expected.truths) >= N


def test_a_square_of_a_column_is_that_of_the_whole_enlarged():
    pixels = np.random.default_rng(0).integers(0, 256, (50, 1, 3), np.uint8)
    data = encoded(Image.fromarray(pixels), "PNG")
    by_rows = uses.square_of_column(data, 14, 16).astype(int)
    assert np.abs(by_rows - uses.square_of(data, 14, 16)).max() <= 1


def test_a_repeated_frame_header_is_an_error_behind_the_last_row():
    whole, odd = jpeg(), uses.with_repeated_frame()
    assert odd.startswith(whole[:-2])
    assert odd.count(b"\xff\xc0") == whole.count(b"\xff\xc0") + 1
    with pytest.raises(ValueError, match="two SOF markers"):
        simplejpeg.decode_jpeg(odd)


def test_the_absence_of_a_program_replaces_no_record():
    def row(outcome: str, contender: str = "a") -> dict[str, str]:
        return {"fault": "f", "contender": contender, "outcome": outcome}

    there = [row("right"), row(NOT_INSTALLED, "b")]
    new = [row(NOT_INSTALLED), row("crash", "b"), row(NOT_INSTALLED, "c")]
    assert merged(there, new) == [there[0], *new[1:]]


@pytest.mark.slow
@pytest.mark.parametrize("case", [*table_cases(), *folder_cases()], ids=lambda case: case.fault)
def test_lists_and_folders_are_packed_rightly_or_refused_by_name(case: Case, tmp_path: Path):
    inputs = case.prepare(tmp_path)
    found = judge(coreset(case, inputs, tmp_path), inputs.expected).outcome
    assert found in {Outcome.RIGHT, Outcome.NAMED}


@pytest.mark.slow
def test_damage_to_packed_data_is_an_error_that_names_the_shard(tmp_path: Path):
    for number, case in enumerate(packed_cases()):
        folder = tmp_path / str(number)
        folder.mkdir()
        inputs = case.prepare(folder)
        observed = coreset(case, inputs, folder)
        assert judge(observed, inputs.expected).outcome is Outcome.NAMED, case.fault
