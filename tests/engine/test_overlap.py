"""How many images coresets share, beside sets of Python."""

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import csv

from coreset.kernels.measures import jaccard_by_class
from coreset.shards.format.dataset import Dataset


@given(st.lists(st.tuples(st.integers(0, 3), st.booleans(), st.booleans()), min_size=1))
def test_shares_are_those_of_sets_class_by_class(samples):
    labels, first, second = (np.array(column) for column in zip(*samples, strict=True))
    ids = np.flatnonzero(first), np.flatnonzero(second)
    shared, chance = jaccard_by_class(*ids, labels, 5)
    for c in range(5):
        a, b = ({i for i in those.tolist() if labels[i] == c} for those in ids)
        assert shared[c] == pytest.approx(
            len(a & b) / len(a | b) if a | b else math.nan, nan_ok=True
        )
        n = int((labels == c).sum())
        expected = len(a) * len(b) / n if n else math.nan
        share = expected / (len(a) + len(b) - expected) if a or b else math.nan
        assert chance[c] == pytest.approx(share, nan_ok=True)


def test_random_draws_share_what_chance_says():
    rng, labels = np.random.default_rng(0), np.zeros(400, np.int64)
    draws = [np.sort(rng.permutation(400)[:100]) for _ in range(40)]
    shares = [jaccard_by_class(a, b, labels, 1) for a in draws for b in draws if a is not b]
    measured = np.mean([share for share, _ in shares])
    assert measured == pytest.approx(shares[0][1][0], rel=0.02)


def test_pairs_are_compared_and_written(packed, tmp_path, coreset, done):
    sets = [tmp_path / name for name in ("A", "B", "C")]
    for seed, out in enumerate(sets[:2]):
        done("select", packed, out, "--ipc", 5, "--seed", seed)
    done("select", packed, sets[2], "--ipc", 5, "--without", sets[0])
    lines = done("overlap", *sets, "--csv", tmp_path / "out" / "overlap.csv")
    assert len(lines) == 5
    pairs = json.loads(coreset("overlap", *sets, "--json").out)["pairs"]
    assert [(pair["first"][-1], pair["second"][-1]) for pair in pairs] == [
        *map(tuple, ("AB", "AC", "BC"))
    ]
    assert (pairs[1]["mean"], pairs[1]["most"]) == (0.0, 0.0)
    rows = csv.read_csv(tmp_path / "out" / "overlap.csv").to_pylist()
    own = [row["jaccard"] for row in rows if row["second"] == str(sets[1])]
    assert pairs[0]["mean"] == pytest.approx(np.mean(own))
    assert [row["class"] for row in rows[:3]] == list(Dataset.open(packed).classes)


def test_what_cannot_be_compared_is_refused_in_one_line(packed, val, tmp_path, done, refused):
    for name, data in (("A", packed), ("V", val)):
        done("select", data, tmp_path / name, "--ipc", 2)
    assert "compares two sets or more, got 1" in refused(tmp_path, "overlap", tmp_path / "A")
    said = refused(tmp_path, "overlap", tmp_path / "A", tmp_path / "V")
    assert f"the coreset {tmp_path / 'V'}" in said
    assert "does not exist" in refused(tmp_path, "overlap", tmp_path / "A", tmp_path / "no")
