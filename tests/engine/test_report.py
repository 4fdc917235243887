"""The report: numbers against NumPy by hand, one file that needs nothing else, faults tolerated."""

import base64
import csv
import io
import json
import math
import shutil
import subprocess
import sys
from dataclasses import dataclass, replace
from html.parser import HTMLParser
from pathlib import Path
from statistics import stdev
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scipy import stats

from coreset.engine.artifacts.checkpoints import Checkpoints
from coreset.engine.artifacts.provenance import PROVENANCE_NAME, Provenance
from coreset.engine.artifacts.store import SCORES_NAME, Columns, write_columns
from coreset.engine.artifacts.writer import create_artifact
from coreset.engine.condensed.condensed_set import SetInfo, open_set
from coreset.engine.condensed.selection import CcsParameters
from coreset.engine.evaluation.results import METRICS, STUDENTS, Results
from coreset.engine.report.figures import Look, accuracy_figure
from coreset.engine.report.images import SIDE, evenly_spread, stored_image, thumbnail_uri
from coreset.engine.report.measures import measurements
from coreset.engine.report.results import (
    Accuracy,
    accuracy_records,
    comparisons,
    difference,
)
from coreset.engine.report.score_figures import cut_of_class
from coreset.engine.report.sets import catalogue
from coreset.engine.report.tables import Cell, Table, accuracy_table, csv_bytes, markdown_bytes
from coreset.engine.report.verdict import headline, verdicts
from coreset.engine.stages.pack import Pack
from coreset.engine.stages.report import Report
from coreset.engine.stages.selection import Select
from coreset.shards.errors import UsageError
from coreset.shards.format.dataset import Dataset
from coreset.shards.format.files import digest_of, json_bytes
from coreset.shards.format.manifest import Manifest

HOSTILE = '<script>alert("x")<'
CLASSES = (HOSTILE, "beta", "gamma")
PER_CLASS, IPC, SIZE = 12, 3, 8
CCS_BEST, CCS_LAST = (57.0, 58.0, 56.5), (50.0, 51.0, 55.0)
RANDOM_BEST, RANDOM_LAST = (44.0, 45.0, 46.0), (43.0, 44.0, 45.5)
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM = next(filter(None, map(shutil.which, BROWSERS)), None)


@dataclass(frozen=True)
class World:
    """Everything a report looks at."""

    data: Path
    scores: Path
    ccs: Path
    random: Path
    distilled: Path
    results: Path


def write_images(folder, *, seed, per_class):
    rng = np.random.default_rng(seed)
    for name in CLASSES:
        (folder / name).mkdir(parents=True)
        for number in range(per_class):
            pixels = rng.integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{number:03}.png")


def write_scores(data, out):
    """A scores artifact as `coreset score` commits it, without the training."""
    identity = Manifest.read(data).identity
    recorded = Provenance.read(data).as_input("data", data, out)
    provenance = Provenance(
        kind="scores", stage="score", config={}, binds={"identity": identity}, inputs=(recorded,)
    )
    values = np.random.default_rng(3).uniform(-1, 1, len(CLASSES) * PER_CLASS).astype(np.float32)
    columns = {"aum": values, "el2n": -values}
    with create_artifact(out, provenance, inputs=[data]) as work:
        work.meter.images = 360
        generations = Checkpoints(work.scratch)
        generations.commit(10, lambda folder: write_columns(folder / SCORES_NAME, columns, {}))


def write_distilled(root, source):
    """A set of synthetic images: packed shards with ``set.json`` and the provenance of a set."""
    write_images(root / "synthetic", seed=9, per_class=IPC)
    out = root / "distilled"
    Pack(src=root / "synthetic", data=out, name="synthetic").run()
    manifest = Manifest.read(source)
    info = SetInfo(
        kind="distilled",
        method="kmeans",
        parameters={"ipc": IPC},
        seed=0,
        source_name=manifest.name,
        source_identity=manifest.identity,
        source_content=manifest.content,
        n_classes=len(CLASSES),
        ipc=IPC,
        per_class=(IPC,) * len(CLASSES),
    )
    info.write(out)
    provenance = replace(Provenance.read(out), kind="set", stage="distill")
    (out / PROVENANCE_NAME).write_bytes(json_bytes(provenance.document()))
    return out


def student_row(results, condensed, val, *, seed, best, last, **changes):
    row = {
        **results.set_columns(condensed),
        **results.val_columns(val),
        "protocol": "hard@1+short", "student": "resnet18", "seed": seed,
        "top1_best": best, "top1_last": last, "top5_last": 90.0,
        "epochs": 20, "evaluations": 5, "size": 32, "batch": 10, "steps": 60,
        "train_seconds": 1.0, "evaluation_seconds": 0.5, "peak_rss_bytes": 1 << 30,
        "image_bytes": condensed.image_bytes, "label_bytes": 0, "device": "cpu",
        "runtime": json.dumps({"device": "cpu", "threads": 2, "versions": {"torch": "2.11"}}),
    }  # fmt: skip
    row |= changes
    return row | {"key": digest_of({name: row[name] for name in row if name != "key"})}


def metric_rows(results, condensed, val, values):
    names = (
        "representativeness_r1@1",
        "diversity_d1@1",
        "representativeness_r2@1",
        "diversity_d2@1",
    )
    common = {
        **results.set_columns(condensed),
        **results.val_columns(val),
        "backbone": "tf_efficientnet_lite0", "weights": "abc", "n_classes": len(CLASSES),
        "runtime": json.dumps({"versions": {"torch": "2.11"}}),
    }  # fmt: skip
    return [
        common | {"key": digest_of({"of": condensed.provenance.digest, "n": name}), "metric": name,
                  "value": value}
        for name, value in zip(names, values, strict=True)
    ]  # fmt: skip


def write_results(results, condensed, val, *, best, last, metrics):
    results.record_lineage(condensed)
    students = [
        student_row(results, condensed, val, seed=seed, best=b, last=a)
        for seed, (b, a) in enumerate(zip(best, last, strict=True))
    ]
    results.append(STUDENTS, students, [])
    results.append(METRICS, metric_rows(results, condensed, val, metrics), [])


def build_world(root):
    data = root / "data"
    write_images(root / "images", seed=0, per_class=PER_CLASS)
    Pack(src=root / "images", data=data, name="tiny").run()
    write_scores(data, root / "scores")
    ccs, random = root / "sets" / "ccs", root / "sets" / "random"
    chosen = CcsParameters(misratio=0.5, bins=4)
    Select(source=root / "scores", condensed=ccs, ipc=IPC, parameters=chosen).run()
    Select(source=data, condensed=random, ipc=IPC).run()
    distilled = write_distilled(root, data)
    results, val = Results(root / "results"), Dataset.open(data)
    write_results(results, open_set(ccs), val, best=CCS_BEST, last=CCS_LAST,
                  metrics=(0.9, 0.3, 0.8, math.nan))  # fmt: skip
    write_results(results, open_set(random), val, best=RANDOM_BEST, last=RANDOM_LAST,
                  metrics=(0.7, 0.2, 0.6, 0.5))  # fmt: skip
    write_results(results, open_set(distilled), val, best=CCS_BEST, last=CCS_LAST,
                  metrics=(0.6, 0.1, 0.5, 0.4))  # fmt: skip
    return World(data, root / "scores", ccs, random, distilled, results.path)


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    return build_world(tmp_path_factory.mktemp("world"))


@pytest.fixture
def world(built, tmp_path):
    """A copy that a test may damage; paths between artifacts are relative, so it still works."""
    root = tmp_path / "world"
    shutil.copytree(built.data.parent, root)
    moved = {
        name: root / getattr(built, name).relative_to(built.data.parent)
        for name in World.__dataclass_fields__
    }
    return World(**moved)


@pytest.fixture(scope="module")
def page(built, tmp_path_factory):
    """The report of the undamaged world."""
    html = tmp_path_factory.mktemp("page") / "new" / "report.html"
    Report(results=built.results, html=html).run()
    return html


class Elements(HTMLParser):
    """Start tags with their attributes, and the text outside scripts and styles."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.text, self.raw = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        if self.cdata_elem:  # inside a script or a style
            self.raw.append((self.cdata_elem, data))
        else:
            self.text.append(data)

    def of(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]

    def figures(self):
        return [json.loads(one) for _, one in self.raw if one.startswith('{"data"')]


def elements(html):
    return Elements(html.read_text())


def records(html, table):
    with html.with_name(f"{html.stem}-{table}.csv").open() as file:
        return list(csv.DictReader(file))


def test_accuracies_are_the_mean_and_the_sample_deviation(page):
    row = next(one for one in records(page, "accuracy") if one["method"] == "random")
    assert float(row["top1_best_mean"]) == np.mean(RANDOM_BEST)
    assert float(row["top1_best_std"]) == pytest.approx(stdev(RANDOM_BEST))
    assert float(row["top1_last_mean"]) == np.mean(RANDOM_LAST)
    assert float(row["top1_last_std"]) == pytest.approx(stdev(RANDOM_LAST))
    assert (row["students"], row["ipc"], row["epochs"]) == ("3", str(IPC), "20")


def test_the_page_shows_mean_deviation_and_number_of_students(page):
    text = " ".join(elements(page).text)
    assert f"{np.mean(CCS_BEST):.1f} ± {stdev(CCS_BEST):.1f}" in text
    assert f"last {np.mean(RANDOM_LAST):.1f} ± {stdev(RANDOM_LAST):.1f}, n = 3" in text
    assert "mean ± sample standard deviation" in text
    assert "other epochs, image size or evaluations than its own" in text


def test_the_markdown_table_marks_the_best_and_those_within_noise(page):
    lines = page.with_name("report-accuracy.md").read_text().splitlines()
    header, rule, row = ([cell.strip() for cell in line.split("|")[1:-1]] for line in lines[2:])
    cells = dict(zip(header, row, strict=True))
    assert cells["ccs-aum"].startswith("**57.2 ± 0.8**")
    assert cells["kmeans"].startswith("*57.2 ± 0.8*")
    assert cells["random"].startswith("45.0 ± 1.0")
    assert rule[header.index("IPC")] == "--:"


def test_a_metric_that_does_not_exist_is_a_dash_on_the_page_and_empty_in_the_csv(page):
    row = next(one for one in records(page, "metrics") if one["method"] == "ccs-aum")
    assert (row["r1"], row["d1"], row["r2"], row["d2"]) == ("0.9", "0.3", "0.8", "")
    lines = page.with_name("report-metrics.md").read_text().splitlines()
    assert any(line.endswith("| 0.9000 | 0.3000 | 0.8000 | - |") for line in lines)


def test_costs_are_the_sum_over_the_recorded_ledger(page, built):
    recorded = Results(built.results).lineage(open_set(built.ccs).provenance.digest)
    assert recorded is not None
    expected = {line["stage"]: line["wall_seconds"] for line in recorded["ledger"]}
    rows = [one for one in records(page, "cost") if one["method"] == "ccs-aum"]
    assert {one["stage"]: float(one["wall_seconds"]) for one in rows} == expected
    assert set(expected) == {"pack", "score", "select"}
    assert float(rows[0]["set_wall_seconds"]) == pytest.approx(sum(expected.values()))
    assert next(one for one in rows if one["stage"] == "score")["image_passes"] == "360"


def test_nothing_is_fetched(page):
    found = elements(page)
    addresses = [
        value
        for _, attributes in found.tags
        for name, value in attributes.items()
        if name in {"src", "href", "srcset", "action", "data", "poster"} and value
    ]
    assert any(address.startswith("data:image/png") for address in addresses)
    assert all(address.startswith(("data:", "#")) for address in addresses)
    styles = [text for tag, text in found.raw if tag == "style"]
    assert not any("@import" in text or "url(" in text for text in styles)


def test_a_hostile_class_name_is_shown_and_not_run(page):
    found = elements(page)
    assert HOSTILE in [text.strip() for text in found.text]
    scripts = found.of("script")
    assert scripts.count({}) == 2  # the library and ours; the rest is data
    assert scripts.count({"type": "application/json"}) == len(scripts) - 2
    titles = [
        one["text"] for figure in found.figures() for one in figure["layout"].get("annotations", [])
    ]
    assert '&lt;script&gt;alert("x")&lt;' in titles
    assert not any("<script" in title for title in titles)


def test_every_image_has_words_and_every_figure_a_label(page):
    found = elements(page)
    # Rows of the scored data, the two coresets and the distilled set.
    assert len(found.of("img")) == len(CLASSES) * (8 + 8 + 3 * IPC)
    assert all(one["alt"] for one in found.of("img"))
    plots = [one for one in found.of("div") if one.get("class") == "plot"]
    assert len(plots) == len(found.figures()) == 4
    assert all(one["role"] == "img" and one["aria-label"] for one in plots)


def test_the_histogram_counts_every_image_and_marks_the_chosen_ones(page, built):
    figure = next(
        one for one in elements(page).figures() if any(t["type"] == "bar" for t in one["data"])
    )
    bars = [trace for trace in figure["data"] if trace["type"] == "bar"]
    assert [sum(trace["y"]) for trace in bars] == [PER_CLASS] * len(CLASSES)
    ids = np.load(built.ccs / "ids.npy")
    marks = [t for t in figure["data"] if t["name"].startswith("ccs") and t["mode"] == "markers"]
    scores = stored_scores(built)
    np.testing.assert_allclose(
        sorted(x for trace in marks for x in trace["x"]), np.sort(scores[ids]), rtol=1e-6
    )
    cuts = [t["x"][0] for t in figure["data"] if t.get("mode") == "lines"]
    chosen_by_class = [min(trace["x"]) for trace in marks]
    assert all(cut < lowest for cut, lowest in zip(cuts, chosen_by_class, strict=True))


def stored_scores(world):
    newest = Checkpoints(world.scores).latest()
    assert newest is not None
    return Columns(newest[1] / SCORES_NAME)["aum"]


def test_the_cut_lies_between_the_last_cut_and_the_first_kept():
    easiness = np.array([4, 0, 3, 1, 2, 5, 6, 7, 8, 9], dtype=np.float32)
    assert cut_of_class(easiness, chosen=2, misratio=0.3) == 2.5
    assert cut_of_class(easiness, chosen=9, misratio=0.3) == 0.5
    assert math.isnan(cut_of_class(easiness, chosen=10, misratio=0.3))


def test_the_same_results_give_the_same_bytes(page, built, tmp_path):
    again = tmp_path / "report.html"
    Report(results=built.results, html=again).run()
    assert again.read_bytes() == page.read_bytes()


def test_the_outcome_names_every_file(built, tmp_path):
    html = tmp_path / "report.html"
    outcome = Report(results=built.results, html=html).run()
    written = sorted(path for path in tmp_path.iterdir())
    assert len(written) == 7
    assert all(any(str(path) in line for line in outcome.lines) for path in written)


def test_moved_sets_and_scores_are_named_and_the_rest_is_shown(world, tmp_path):
    shutil.rmtree(world.scores)
    shutil.move(world.random, tmp_path / "elsewhere")
    outcome = Report(results=world.results, html=tmp_path / "report.html").run()
    skipped = [line for line in outcome.lines if line.startswith("left out:")]
    assert ["its images are" in line for line in skipped] == [True, False]
    assert ["its scores are" in line for line in skipped] == [False, True]
    found = elements(tmp_path / "report.html")
    assert len(found.of("img")) == len(CLASSES) * 2 * IPC  # ccs without scores, and kmeans
    assert len(records(tmp_path / "report.html", "accuracy")) == 3
    assert len({one["method"] for one in records(tmp_path / "report.html", "cost")}) == 3


def test_a_set_replaced_by_another_is_not_shown_as_the_old_one(world, tmp_path):
    shutil.rmtree(world.random)
    Select(source=world.data, condensed=world.random, ipc=IPC, seed=5).run()
    outcome = Report(results=world.results, html=tmp_path / "report.html").run()
    assert sum("holds another set by now" in line for line in outcome.lines) == 1


def test_a_moved_data_set_is_found_by_name(world, tmp_path):
    place = tmp_path / "moved"
    shutil.move(world.data, place)
    html = tmp_path / "report.html"
    without = Report(results=world.results, html=html).run()
    assert sum("--data" in line for line in without.lines) == 2
    outcome = Report(results=world.results, html=html, data=place).run()
    assert not any(line.startswith("left out:") for line in outcome.lines)
    with pytest.raises(UsageError, match="does not exist"):
        Report(results=world.results, html=html, data=tmp_path / "nowhere").run()


def test_a_damaged_shard_leaves_a_gap_and_no_error(world, tmp_path):
    shard = Dataset.open(world.data).shard_paths()[0]
    shard.write_bytes(bytes(shard.stat().st_size))
    Report(results=world.results, html=tmp_path / "report.html").run()
    assert "cannot be read" in (tmp_path / "report.html").read_text()


def test_results_without_lineage_say_that_the_cost_is_not_recorded(world, tmp_path):
    shutil.rmtree(world.results / "lineage")
    Report(results=world.results, html=tmp_path / "report.html").run()
    text = " ".join(elements(tmp_path / "report.html").text)
    assert "Not recorded: tiny, random, IPC 3; tiny, ccs-aum, IPC 3; tiny, kmeans, IPC 3." in text
    assert records(tmp_path / "report.html", "cost") == []


def test_a_peak_that_was_not_measured_is_a_dash_and_empty_in_the_csv(world, tmp_path):
    for path in (world.results / "lineage").iterdir():
        recorded = json.loads(path.read_bytes())
        for one in recorded["ledger"]:
            one["peak_rss_bytes"] = None
        path.write_bytes(json_bytes(recorded))
    Report(results=world.results, html=tmp_path / "report.html").run()
    assert {one["peak_rss_bytes"] for one in records(tmp_path / "report.html", "cost")} == {""}
    lines = (tmp_path / "report-cost.md").read_text().splitlines()[4:]
    assert all(line.split("|")[-3].strip(" *") == "-" for line in lines)


def test_results_with_measured_sets_alone_make_a_report(world, tmp_path):
    (world.results / "students.parquet").unlink()
    outcome = Report(results=world.results, html=tmp_path / "report.html").run()
    assert any("No student was trained yet" in line for line in outcome.lines)


def test_results_without_rows_are_refused_with_a_remedy(tmp_path):
    with pytest.raises(UsageError, match=r"does not exist; run `coreset train SET VAL"):
        Report(results=tmp_path / "none", html=tmp_path / "report.html").run()
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="holds no rows"):
        Report(results=tmp_path / "empty", html=tmp_path / "report.html").run()
    assert list(tmp_path.iterdir()) == [tmp_path / "empty"]


@pytest.mark.parametrize(
    "change", [{"max_classes": 0}, {"images_per_row": 0}, {"html": Path("out")}]
)
def test_fields_out_of_range_are_refused(change, tmp_path):
    fields = {"results": tmp_path, "html": tmp_path / "report.html"}
    with pytest.raises(UsageError, match=next(iter(change))):
        Report(**(fields | change))


def test_fewer_classes_and_images_can_be_asked_for(built, tmp_path):
    html = tmp_path / "report.html"
    Report(results=built.results, html=html, max_classes=1, images_per_row=2).run()
    found = elements(html)
    assert len(found.of("img")) == 2 + 2 + 3 * 2
    assert any("The first 1 of 3 classes." in text for text in found.text)


def described(**changes):
    row = {
        "data": "d", "method": "ccs-aum", "ipc": 10, "set_kind": "coreset", "set_digest": "a" * 64,
        "set_path": "../a", "set_seed": 0, "parameters": '{"ipc": 10, "misratio": 0.3}',
    }  # fmt: skip
    return row | changes


def test_misratios_of_one_ipc_are_different_methods_and_of_two_ipcs_are_not():
    other = described(set_digest="b" * 64, parameters='{"ipc": 10, "misratio": 0.7}')
    same_ipc = catalogue([described(), other])
    names = [one.method for one in same_ipc.values()]
    assert names == ["ccs-aum (misratio 0.3)", "ccs-aum (misratio 0.7)"]
    two_ipcs = catalogue([described(), other | {"ipc": 50}])
    assert {one.method for one in two_ipcs.values()} == {"ccs-aum"}


def test_sets_of_several_seeds_are_one_method_and_twins_of_one_seed_are_two():
    seeds = catalogue([described(), described(set_digest="b" * 64, set_seed=1)])
    assert {one.method for one in seeds.values()} == {"ccs-aum"}
    assert [one.name for one in seeds.values()] == [
        "ccs-aum, IPC 10, seed 0",
        "ccs-aum, IPC 10, seed 1",
    ]
    twins = catalogue([described(), described(set_digest="b" * 64)])
    assert [one.method for one in twins.values()] == [
        "ccs-aum (set aaaaaaaa)",
        "ccs-aum (set bbbbbbbb)",
    ]


def accuracy(method, *best, seeds=()):
    return Accuracy(method=method, best=best, last=best, digests=("a",), seeds=seeds)


def test_the_interval_is_paired_where_the_seeds_are_the_same_and_else_that_of_welch():
    one, other = (57.0, 58.0, 56.5), (55.0, 56.5, 54.2)
    seeds = ((0, 0), (0, 1), (0, 2))
    paired = difference(accuracy("a", *one, seeds=seeds), accuracy("b", *other, seeds=seeds))
    expected: Any = stats.ttest_rel(one, other).confidence_interval()
    assert (paired.low, paired.high) == pytest.approx(tuple(expected))
    assert (paired.interval, paired.mean) == ("paired", pytest.approx(2 - 1 / 15))
    for theirs in (((1, 0), (1, 1), (1, 2)), ((0, 0), (0, 1), (0, 3)), ()):
        apart = difference(accuracy("a", *one, seeds=seeds), accuracy("b", *other, seeds=theirs))
        expected = stats.ttest_ind(one, other, equal_var=False).confidence_interval()
        assert (apart.low, apart.high) == pytest.approx(tuple(expected))
        assert apart.interval == "Welch"


def test_two_students_of_either_cannot_tell():
    three, two = accuracy("a", 60.0, 61.0, 62.0), accuracy("b", 10.0, 10.1)
    for lead in (difference(three, two), difference(two, two)):
        assert not lead.is_known
        assert not lead.beats
        assert math.isnan(lead.low)


def compared(ipc_of_rows):
    """Comparisons of (method, ipc, best) students."""
    rows = [
        described(
            method=method, ipc=ipc, set_digest=f"{method}-{ipc}", key=f"{method}-{ipc}-{seed}",
            parameters="{}", seed=seed, top1_best=best, top1_last=best, val="v", val_identity="i",
            n_val=5, protocol="hard@1", student="resnet18", epochs=300, size=224, evaluations=100,
        )
        for method, ipc, students in ipc_of_rows
        for seed, best in enumerate(students)
    ]  # fmt: skip
    return comparisons(rows, catalogue(rows))


def test_the_verdict_says_who_beats_whom_and_who_is_within_noise():
    one, two, three = compared(
        [
            ("random", 10, (44.0, 46.0, 45.0)), ("ccs-aum", 10, (57.0, 58.0, 57.5)),
            ("kmeans", 10, (57.5, 56.5, 57.0)),
            ("random", 50, (60.0, 61.0, 60.5)), ("ccs-aum", 50, (70.0,)),
            ("kmeans", 50, (65.0, 65.0, 65.0)),
            ("random", 99, (60.0, 61.0, 60.5)), ("ccs-aum", 99, (70.0, 71.0, 69.0)),
        ]
    )  # fmt: skip
    first, second, third = verdicts([one, two, three])
    assert first.where == "d, IPC 10, hard@1, resnet18"
    assert first.sentence == (
        "ccs-aum 57.5 ± 0.5 is within noise of kmeans 57.0 ± 0.5 (-2.0 to 3.0), and beats "
        "random 45.0 ± 1.0 (by 11.3 to 13.7)"
    )
    assert first.caveat == ""
    assert second.sentence == (
        "ccs-aum 70.0 leads kmeans 65.0 ± 0.0 and random 60.5 ± 0.5: not enough students to tell"
    )
    assert second.caveat == "students: ccs-aum 1; 3 are needed to compare"
    assert third.sentence == "ccs-aum 70.0 ± 1.0 beats random 60.5 ± 0.5 (by 7.3 to 11.7)"
    assert headline([one, two, three]) == (
        "Best of 3 comparisons: ccs-aum in 1, 1 within noise, 1 with too few students to tell"
    )
    assert headline([two]) == second.sentence
    assert headline([one, one]) == (
        "No method is clearly best: the leaders are within noise of each other"
    )
    assert headline([two, two]) == "No method is clearly best: not enough students to tell"


def test_a_difference_that_two_students_each_make_is_no_victory():
    (one,) = compared([("random", 10, (64.4, 59.0)), ("kmeans", 10, (66.9, 70.3))])
    assert verdicts([one])[0].sentence == (
        "kmeans 68.6 ± 2.4 leads random 61.7 ± 3.8: not enough students to tell"
    )
    test: Any = stats.ttest_ind((66.9, 70.3), (64.4, 59.0), equal_var=False)
    assert test.pvalue > 0.15
    (row,) = accuracy_table([one]).rows
    assert [cell.emphasis for cell in row[-2:]] == ["", ""]
    records = accuracy_records([one])
    assert [one["within_noise_of_best"] for one in records] == [True, None]
    assert records[1]["behind_best"] == pytest.approx(6.9)
    assert math.isnan(records[1]["behind_best_low"])


def test_a_lone_method_is_not_called_best_and_a_lone_student_has_no_spread():
    lone = compared([("random", 10, (44.0, 46.0))])
    assert headline(lone) == "random alone was trained: 45.0 ± 1.4 %"
    assert verdicts(lone)[0].sentence == "random 45.0 ± 1.4; no other method was trained"
    single = compared([("random", 10, (44.0,))])
    assert headline(single) == "random alone was trained: 44.0 %"
    (row,) = accuracy_table(single).rows
    assert (row[-1].text, row[-1].detail) == ("44.0", "last 44.0, n = 1")
    figure = json.loads(accuracy_figure(single, Look.of([("random", 10)])).json)
    assert "array" not in figure["data"][0].get("error_x", {})
    written = csv_bytes(accuracy_records(single)).decode().splitlines()
    assert dict(zip(*csv.reader(written), strict=True))["top1_best_std"] == ""


def test_students_of_other_length_or_validation_images_are_not_pooled():
    rows = [
        described(
            key=str(epochs), seed=0, top1_best=1.0 * epochs, top1_last=1.0, val="v",
            val_identity=identity, n_val=5, protocol="hard@1+short", student="resnet18",
            epochs=epochs, size=224, evaluations=100,
        )
        for epochs, identity in ((10, "i"), (20, "i"), (20, "j"))
    ]  # fmt: skip
    assert [one.best.n for one in comparisons(rows, catalogue(rows))] == [1, 1, 1]


def test_metrics_of_two_backbones_stay_apart():
    rows = [
        described(
            val="v", val_identity="i", backbone=backbone, weights="w", metric=name, value=value
        )
        for backbone, value in (("one", 0.25), ("two", 0.75))
        for name in ("representativeness_r1@1", "diversity_d1@1")
    ]
    found = measurements(rows, catalogue(rows))
    assert [(one.backbone, one.value("r1"), one.version) for one in found] == [
        ("one", 0.25, "1"), ("two", 0.75, "1"),
    ]  # fmt: skip
    assert math.isnan(found[0].value("r2"))


def test_markdown_escapes_what_would_break_a_table():
    table = Table(caption="c", header=("a|b",), rows=((Cell(text="x|y<z"),),))
    assert markdown_bytes(table).decode().splitlines()[2:] == [
        "| a\\|b |",
        "| --- |",
        "| x\\|y&lt;z |",
    ]


def test_csv_quotes_and_leaves_nan_empty():
    written = csv_bytes([{"a": "x,y", "b": math.nan}]).decode()
    assert list(csv.reader(written.splitlines())) == [["a", "b"], ["x,y", ""]]
    assert csv_bytes([]) == b""


def test_evenly_spread_keeps_both_ends():
    assert evenly_spread(np.arange(10), 4).tolist() == [0, 3, 6, 9]
    assert evenly_spread(np.arange(3), 4).tolist() == [0, 1, 2]


def decoded(uri):
    return np.asarray(
        Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))).convert("RGB")
    )


def test_a_small_image_is_enlarged_to_equal_blocks(built):
    dataset = Dataset.open(built.data)
    key = dataset.keys[7]
    original = np.asarray(Image.open(built.data.parent / "images" / f"{key}.png"))
    uri = thumbnail_uri(stored_image(dataset, 7))
    assert uri.startswith("data:image/png;base64,")
    np.testing.assert_array_equal(
        decoded(uri), np.kron(original, np.ones((12, 12, 1), dtype=np.uint8))
    )


def test_a_large_image_becomes_the_central_square_as_jpeg(tmp_path):
    pixels = np.zeros((300, 500, 3), dtype=np.uint8)
    pixels[:, 100:400] = (200, 30, 30)
    Image.fromarray(pixels).save(tmp_path / "wide.png")
    uri = thumbnail_uri((tmp_path / "wide.png").read_bytes())
    assert uri.startswith("data:image/jpeg;base64,")
    shown = decoded(uri)
    assert shown.shape == (SIDE, SIDE, 3)
    np.testing.assert_allclose(shown[4:-4, 4:-4].mean(axis=(0, 1)), (200, 30, 30), atol=3)


def test_a_report_needs_no_torch(built, tmp_path):
    code = (
        "import sys; from pathlib import Path; from coreset.engine.stages.report import Report; "
        "Report(results=Path(sys.argv[1]), html=Path(sys.argv[2])).run(); "
        "assert 'torch' not in sys.modules"
    )
    arguments = [str(built.results), str(tmp_path / "report.html")]
    subprocess.run([sys.executable, "-c", code, *arguments], check=True)


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium here")
def test_report_opens_in_a_browser(page, tmp_path):
    arguments = [
        str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic",
        "--no-first-run", "--disable-background-networking", "--disable-component-update",
        "--disable-sync", "--enable-logging=stderr", f"--user-data-dir={tmp_path / 'profile'}",
        "--virtual-time-budget=15000", "--dump-dom", page.as_uri(),
    ]  # fmt: skip
    shown = subprocess.run(arguments, capture_output=True, text=True, check=True, timeout=120)
    assert not [line for line in shown.stderr.splitlines() if ":CONSOLE" in line]
    found = Elements(shown.stdout)
    plots = [one for one in found.of("div") if "js-plotly-plot" in (one.get("class") or "")]
    drawn = [one for one in found.of("svg") if one.get("class") == "main-svg"]
    assert len(plots) == 4
    assert len(drawn) >= len(plots)
