"""Metrics beside coverage, as a user sees them: classes, differences, copies, references."""

import csv
import json

import numpy as np
import pytest
from PIL import Image, ImageFilter

from coreset.engine.condensed.condensed_set import open_set
from coreset.engine.evaluation.intervals import bootstrap_interval, sign_flip_p, worst_decile
from coreset.engine.evaluation.pixels import grey_levels, laplacian_variance
from coreset.engine.evaluation.result_tables import CLASSES, METRICS
from coreset.engine.evaluation.results import Results
from coreset.engine.models.features import FeatureSpec, features_for
from coreset.shards.format.dataset import Dataset

BACKBONE = ("--backbone", "tf_efficientnet_lite0", "--size", 64)
SPEC = FeatureSpec(backbone="tf_efficientnet_lite0", size=64)


def values_of(results):
    return {row["metric"]: row["value"] for row in Results(results).rows(METRICS)}


def classes_of(results, metric):
    return [row["value"] for row in Results(results).rows(CLASSES) if row["metric"] == metric]


def unit(features):
    rows = features.astype(np.float64)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def cosines(condensed, reference, label, ids=None):
    """Cosines of the images of a class of a set and of a reference."""
    opened = open_set(condensed)
    own = unit(features_for(opened.dataset, SPEC, opened.ids))[opened.labels == label]
    ids = np.arange(len(reference)) if ids is None else ids
    other = unit(features_for(reference, SPEC)[ids])[reference.labels[ids] == label]
    return own @ other.T


def test_every_class_is_kept_and_the_mean_is_theirs(ccs_set, val, tmp_path, done):
    results = tmp_path / "RESULTS"
    lines = done("measure", ccs_set, val, results, *BACKBONE)
    expected = [cosines(ccs_set, Dataset.open(val), c).max(axis=0).mean() for c in range(3)]
    found = classes_of(results, "representativeness_r2@1")
    assert found == pytest.approx(expected, abs=1e-4)
    assert values_of(results)["representativeness_r2@1"] == pytest.approx(np.mean(found))
    with (results / "classes.csv").open() as file:
        assert [row["class"] for row in csv.DictReader(file)][:3] == [*Dataset.open(val).classes]
    (shown,) = (line for line in lines if line.startswith("representativeness_r2 "))
    low, high = bootstrap_interval(np.array(found))
    assert shown.split() == [
        "representativeness_r2", f"{np.mean(found):.4f}", f"{low:.4f}", "to", f"{high:.4f}",
        f"{min(found):.4f}",
    ]  # fmt: skip
    assert done("measure", ccs_set, val, results, *BACKBONE) == lines  # from the rows


def test_sets_are_compared_class_by_class(ccs_set, random_set, val, tmp_path, done):
    measure = ("measure", ccs_set, val, tmp_path / "RESULTS", *BACKBONE, "--against")
    lines = done(*measure, random_set)
    assert len(Results(tmp_path / "RESULTS").rows(METRICS)) == 8
    first, second = np.reshape(classes_of(tmp_path / "RESULTS", "representativeness_r1@1"), (2, 3))
    (header,) = (i for i, line in enumerate(lines) if line.startswith(f"minus {random_set}"))
    name, mean, *_ = lines[header + 1].split()
    assert name == "representativeness_r1"
    assert float(mean) == pytest.approx((first - second).mean(), abs=1e-4)
    assert "+0.0000 to +0.0000" in "\n".join(done(*measure, ccs_set))


def test_the_other_reference_is_the_data_without_the_set(ccs_set, packed, val, tmp_path, done):
    results, data = tmp_path / "RESULTS", Dataset.open(packed)
    done("measure", ccs_set, val, results, *BACKBONE, "--reference", "train")
    rest = np.setdiff1d(np.arange(len(data)), open_set(ccs_set).ids)
    expected = [cosines(ccs_set, data, c, rest).max(axis=0).mean() for c in range(3)]
    assert classes_of(results, "representativeness_r2@1") == pytest.approx(expected, abs=1e-4)
    row = Results(results).rows(METRICS)[0]
    assert (row["val_identity"], row["n_val"]) == (data.manifest.identity, 54)
    done("measure", ccs_set, val, results, *BACKBONE)
    assert len(Results(results).rows(METRICS)) == 8  # others, by another reference


def test_the_curve_follows_the_order_of_choice(packed, val, tmp_path, done):
    done("select", packed, tmp_path / "SET", "--ipc", 5, "--method", "herding", *BACKBONE)
    done("measure", tmp_path / "SET", val, tmp_path / "RESULTS", *BACKBONE, "--metrics", "curve")
    values, opened, reference = (
        values_of(tmp_path / "RESULTS"),
        open_set(tmp_path / "SET"),
        Dataset.open(val),
    )
    for n in (1, 2, 5):
        means = []
        for c in range(3):
            first = opened.ranks[opened.labels == c] < n
            means.append(cosines(tmp_path / "SET", reference, c)[first].max(axis=0).mean())
        assert values[f"representativeness_r2_at_{n}@1"] == pytest.approx(np.mean(means), abs=1e-4)
    assert values["representativeness_r2_at_10@1"] is None


def test_a_set_within_its_reference_leaks_and_every_leak_is_named(ccs_set, packed, tmp_path, done):
    results = tmp_path / "RESULTS"
    lines = done("measure", ccs_set, packed, results, *BACKBONE, "--metrics", "duplicates")
    values = values_of(results)
    assert values["copies_exact_reference@1"] == 1.0
    assert values["copies_exact_set@1"] == 0.0
    opened = open_set(ccs_set)
    with (results / "duplicates.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["kind"] == "exact"]
    keys = [opened.dataset.keys[i] for i in opened.ids]
    assert [(row["image"], row["copy"]) for row in rows] == [(key, key) for key in keys]
    assert "6 of its images are in the reference, 6 of them byte by byte" in "\n".join(lines)


@pytest.fixture
def odd(tmp_path, make_photos, done):
    """A data set with a re-encoded copy, a grey image and a blurred one."""
    src = make_photos(tmp_path / "src", per_class=4)
    first, *_ = sorted(src.iterdir())
    photo = Image.open(min(first.glob("*.JPEG"))).convert("RGB")
    photo.save(first / "twin.png")
    Image.new("RGB", (60, 60), (90, 90, 90)).save(first / "grey.png")
    photo.filter(ImageFilter.GaussianBlur(8)).save(first / "blurred.png")
    done("pack", src, tmp_path / "DATA")
    done("select", tmp_path / "DATA", tmp_path / "SET", "--ratio", 1.0)
    return tmp_path / "SET"


def test_near_copies_and_odd_pixels_are_counted(odd, val, tmp_path, done):
    results = tmp_path / "RESULTS"
    done("measure", odd, val, results, *BACKBONE, "--metrics", "duplicates, quality")
    with (results / "duplicates.csv").open() as file:
        rows = list(csv.DictReader(file))
    inside = [row for row in rows if row["place"] == "set"]
    assert any("twin" in row["image"] + row["copy"] for row in inside)
    assert {row["kind"] for row in inside} == {"near"}
    assert all(float(row["cosine"]) > 0.95 for row in inside)
    values = values_of(results)
    touched = {key for row in inside for key in (row["image"], row["copy"])}
    assert values["copies_near_set@1"] == pytest.approx(len(touched) / 15)
    assert values["near_constant@1"] == pytest.approx(1 / 15)
    assert values["blurred@1"] >= 2 / 15  # the grey image, too
    dataset = Dataset.open(odd.parent / "DATA")
    pixels = (dataset.ints("width") * dataset.ints("height")).sum()
    assert values["bytes_per_pixel@1"] == pytest.approx(dataset.ints("bytes").sum() / pixels)
    assert values["pixels@1"] == pytest.approx(pixels / 15)
    formats = dataset.table(["format"])["format"].to_pylist()
    assert values["jpeg@1"] == pytest.approx(formats.count("jpg") / 15)


def test_the_laplacian_is_that_of_scipy():
    from scipy.ndimage import laplace

    image = np.random.default_rng(0).integers(0, 256, (40, 30, 3), np.uint8)
    grey = grey_levels(image)
    expected = np.asarray(Image.fromarray(image).convert("L"), np.float32)
    np.testing.assert_allclose(grey, expected, atol=1)
    assert laplacian_variance(grey) == pytest.approx(laplace(grey)[1:-1, 1:-1].var(), rel=1e-5)


def test_precision_and_recall_need_more_images_than_neighbours(
    ccs_set, packed, val, tmp_path, done
):
    results = tmp_path / "RESULTS"
    lines = done("measure", ccs_set, val, results, *BACKBONE, "--metrics", "prdc")
    assert set(values_of(results).values()) == {None}  # two images a class
    assert "no number: prdc_precision, prdc_recall, " in "\n".join(lines)
    done("select", packed, tmp_path / "SET", "--ipc", 12)
    done("measure", tmp_path / "SET", val, results, *BACKBONE, "--metrics", "prdc", "--pooled")
    values = values_of(results)
    opened, reference = open_set(tmp_path / "SET"), Dataset.open(val)
    own = unit(features_for(opened.dataset, SPEC, opened.ids))
    across = own @ unit(features_for(reference, SPEC)).T
    r2 = values["representativeness_r2_pooled@1"]
    assert r2 == pytest.approx(across.max(axis=0).mean(), abs=1e-4)
    for name, value in values.items():
        if name.startswith("prdc_"):
            assert value is None or value >= 0


def test_a_misspelt_group_is_named_with_the_list(ccs_set, val, tmp_path, refused):
    command = ("measure", ccs_set, val, tmp_path / "R", "--metrics", "coverage,prcd")
    said = refused(tmp_path, *command)
    assert said.startswith("metrics must be of coverage, pooled, curve, prdc, ")
    assert said.endswith("got prcd")


def test_a_set_to_compare_with_is_looked_for_before_any_work(ccs_set, val, tmp_path, refused):
    command = ("measure", ccs_set, val, tmp_path / "R", *BACKBONE, "--against", tmp_path / "none")
    assert "none does not exist" in refused(tmp_path, *command)


def test_the_report_shows_what_was_measured(ccs_set, val, tmp_path, done):
    results = tmp_path / "RESULTS"
    done("measure", ccs_set, val, results, *BACKBONE, "--metrics", "quality")
    done("report", results, tmp_path / "report.html")
    table = (tmp_path / "report-metrics.md").read_text()
    assert "BLURRED (whole set, low is good)" in table
    assert "RECALL" not in table


def test_the_worst_tenth_is_at_the_bad_end():
    values = np.arange(1.0, 21.0)
    assert worst_decile(values, higher_is_better=True) == 1.5
    assert worst_decile(values, higher_is_better=False) == 19.5
    assert worst_decile(values[:3], higher_is_better=True) == 1.0


def test_random_signs_seldom_give_a_large_difference():
    rng = np.random.default_rng(0)
    assert sign_flip_p(rng.normal(1, 1, 50)) < 0.01
    assert sign_flip_p(np.array([1.0, -1.0])) == 1.0
    ps = [sign_flip_p(rng.normal(0, 1, 20)) for _ in range(40)]
    assert 0.3 < np.mean(ps) < 0.7


def test_json_holds_the_values_alone(ccs_set, val, tmp_path, coreset):
    told = coreset(
        "measure", ccs_set, val, tmp_path / "R", *BACKBONE, "--metrics", "prdc", "--json"
    )
    assert json.loads(told.out, parse_constant=pytest.fail)["prdc_recall@1"] is None


def test_the_curves_of_sets_are_in_the_report(packed, val, tmp_path, done):
    results = tmp_path / "RESULTS"
    for method in ("herding", "k-center"):
        done("select", packed, tmp_path / method, "--ipc", 5, "--method", method, *BACKBONE)
        done("measure", tmp_path / method, val, results, *BACKBONE, "--metrics", "coverage,curve")
    done("report", results, tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    assert " by the first images of each class" in page
    assert '"x":[1,2,5]' in page.replace(" ", "")


@pytest.mark.parametrize("damage", [b"", b"PAR1", None])
def test_a_damaged_table_of_choice_is_refused(*, packed, val, tmp_path, done, refused, damage):
    done("select", packed, tmp_path / "SET", "--ipc", 2)
    table = tmp_path / "SET" / "selection.parquet"
    if damage is None:
        done("select", packed, tmp_path / "LARGER", "--ipc", 3)
        damage = (tmp_path / "LARGER" / "selection.parquet").read_bytes()
    table.write_bytes(damage)
    command = ("measure", tmp_path / "SET", val, tmp_path / "R", *BACKBONE, "--metrics", "curve")
    assert "selection.parquet" in refused(tmp_path / "SET", *command, code=3)
