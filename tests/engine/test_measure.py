"""Measuring a set as a user sees it: values against NumPy, rows once, and what is refused."""

import csv
import json

import numpy as np
import pytest

from coreset.engine.artifacts.ledger import read_ledger
from coreset.engine.artifacts.provenance import Provenance
from coreset.engine.condensed.condensed_set import open_set
from coreset.engine.evaluation.metrics import METRICS as REGISTRY
from coreset.engine.evaluation.metrics import Metric
from coreset.engine.evaluation.results import METRICS, STUDENTS, Results
from coreset.engine.models.backbones import weights_key
from coreset.engine.models.features import FeatureSpec, features_for
from coreset.shards.format.dataset import Dataset

BACKBONE = ("--backbone", "tf_efficientnet_lite0", "--size", 64)
NAMES = [
    "representativeness_r1@1",
    "diversity_d1@1",
    "representativeness_r2@1",
    "diversity_d2@1",
]


def metrics(results):
    return Results(results).rows(METRICS)


def unit_rows(features):
    rows = features.astype(np.float64)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def by_numpy(condensed, val):
    """All four metrics from matrices of all cosines, class by class."""
    spec = FeatureSpec(backbone="tf_efficientnet_lite0", size=64)
    opened, reference = open_set(condensed), Dataset.open(val)
    own = unit_rows(features_for(opened.dataset, spec, opened.ids))
    other = unit_rows(features_for(reference, spec))
    values = []
    for label in range(opened.info.n_classes):
        rows = own[opened.labels == label]
        across = rows @ other[reference.labels == label].T
        pairs = (rows @ rows.T)[np.triu_indices(len(rows), k=1)]
        r1, r2 = across.max(axis=1).min(), across.max(axis=0).mean()
        values.append((r1, 1 - pairs.max(), r2, 1 - pairs.mean()))
    return dict(zip(NAMES, np.mean(values, axis=0), strict=True))


@pytest.fixture(scope="module")
def measured(ccs_set, val, work, made):
    """Results of measuring the CCS coreset; read only."""
    return made(work / "MEASURED", "measure", ccs_set, val, work / "MEASURED", *BACKBONE)


def test_values_are_the_cosines_that_numpy_finds(measured, ccs_set, val):
    values = {row["metric"]: row["value"] for row in metrics(measured)}
    assert list(values) == NAMES
    assert values == pytest.approx(by_numpy(ccs_set, val), abs=1e-5)


def test_a_distilled_set_is_measured_like_a_coreset(packed, val, tmp_path, done):
    done("distill", packed, tmp_path / "SET", "--ipc", 3, "--size", 16)
    done("measure", tmp_path / "SET", val, tmp_path / "RESULTS", *BACKBONE)
    values = {row["metric"]: row["value"] for row in metrics(tmp_path / "RESULTS")}
    assert values == pytest.approx(by_numpy(tmp_path / "SET", val), abs=1e-5)


def test_the_rows_and_the_ledger_tell_what_was_measured(measured, ccs_set):
    (line,) = read_ledger(measured)
    assert (line["stage"], line["device"], line["images"]) == ("measure", "cpu", 6 + 18)
    assert line["config_digest"] == metrics(measured)[0]["key"]
    for row in metrics(measured):
        assert (row["method"], row["ipc"], row["n_classes"]) == ("ccs-aum", 2, 3)
        assert row["set_digest"] == Provenance.read(ccs_set).digest
        assert (row["val"], row["n_val"]) == ("photos", 18)
        assert row["backbone"] == "tf_efficientnet_lite0@64"
        assert row["weights"] == weights_key("tf_efficientnet_lite0", None)
    assert Results(measured).rows(STUDENTS) == []
    recorded = Results(measured).lineage(Provenance.read(ccs_set).digest)
    assert recorded is not None
    assert recorded["ledger"] == read_ledger(ccs_set)


def test_a_set_of_one_image_a_class_has_no_pairs_and_no_number_stands_for_them(
    packed, val, tmp_path, coreset
):
    coreset("select", packed, tmp_path / "SET", "--ipc", 1)
    command = ("measure", tmp_path / "SET", val, tmp_path / "RESULTS", *BACKBONE)
    for _ in range(2):
        told = coreset(*command, "--json")
        assert told.code == 0
        record = json.loads(told.out, parse_constant=pytest.fail)
        assert record["diversity_d1@1"] is None
        assert record["diversity_d2@1"] is None
        assert record["representativeness_r1@1"] > 0
    assert "diversity_d1 -, " in coreset(*command).out
    assert len(metrics(tmp_path / "RESULTS")) == len(NAMES)
    assert len(read_ledger(tmp_path / "RESULTS")) == 1


@pytest.mark.parametrize("backbone", [None, ("tf_efficientnet_lite0", 32)])
def test_a_metric_is_registered_in_one_place(measured, tmp_path, done, monkeypatch, backbone):
    def spread(features):
        assert features.set_features.shape[1] == features.reference_features.shape[1] == 1280
        return float(len(features.set_labels) / len(features.reference_labels))

    toy = Metric(
        stamp="spread@3", axis="Spread", measure=spread, backbone=backbone, by_class=False,
        higher_is_better=False,
    )  # fmt: skip
    monkeypatch.setitem(REGISTRY, "sp", toy)
    results = tmp_path / "RESULTS"
    inputs = (measured.parent / "CCS", measured.parent / "VAL")
    *_, line, _ = done("measure", *inputs, results, *BACKBONE)
    assert ", spread 0.3333: " in line
    row = metrics(results)[-1]
    assert (row["metric"], row["value"]) == ("spread@3", 6 / 18)
    assert row["backbone"] == f"tf_efficientnet_lite0@{32 if backbone else 64}"
    done("report", results, tmp_path / "report.html")
    with (tmp_path / "report-metrics.csv").open() as file:
        shown = {(one["version"], one["sp"]) for one in csv.DictReader(file)}
    assert shown == {("1", ""), ("3", repr(6 / 18))}
    assert "SP (whole set, low is good)" in (tmp_path / "report-metrics.md").read_text()
