"""The report: numbers against NumPy by hand, one file that needs nothing else, faults tolerated."""

import base64
import csv
import io
import json
import math
import re
import shutil
import subprocess
from html.parser import HTMLParser
from statistics import stdev

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from coreset.engine.artifacts.ledger import Meter
from coreset.engine.artifacts.provenance import Provenance
from coreset.engine.condensed.condensed_set import open_set
from coreset.engine.condensed.methods.kmeans import KmeansParameters
from coreset.engine.condensed.samplers import CcsParameters
from coreset.engine.evaluation.metrics import METRICS as REGISTRY
from coreset.engine.evaluation.result_tables import METRICS, STUDENTS
from coreset.engine.evaluation.results import Results
from coreset.engine.report.classes import SIDE, cut_of_class, evenly_spread, thumbnail_uri
from coreset.engine.stages.distill import Distill
from coreset.engine.stages.pack import Pack
from coreset.engine.stages.report import Report
from coreset.engine.stages.selection import Select
from coreset.shards.errors import UsageError
from coreset.shards.format.dataset import Dataset
from coreset.shards.format.files import digest_of, json_bytes

HOSTILE = '<script>alert("x")<'
CLASSES = (HOSTILE, "beta", "gamma")
PER_CLASS, IPC, SIZE = 12, 3, 8
BEST = {"ccs": (57.0, 58.0, 56.5), "random": (44.0, 45.0, 46.0), "kmeans": (57.0, 58.0, 56.5)}
LAST = {"ccs": (50.0, 51.0, 55.0), "random": (43.0, 44.0, 45.5), "kmeans": (50.0, 51.0, 55.0)}
MEASURED = [REGISTRY[short] for short in ("r1", "d1", "r2", "d2")]
VALUES = {
    "ccs": (0.9, 0.3, 0.8, math.nan),
    "random": (0.7, 0.2, 0.6, 0.5),
    "kmeans": (0.6, 0.1, 0.5, 0.4),
}
AUM = np.random.default_rng(3).uniform(-1, 1, len(CLASSES) * PER_CLASS).astype(np.float32)
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM = next(filter(None, map(shutil.which, BROWSERS)), None)


def write_images(folder):
    rng = np.random.default_rng(0)
    for name in CLASSES:
        (folder / name).mkdir(parents=True)
        for number in range(PER_CLASS):
            pixels = rng.integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{number:03}.png")


def write_results(results, condensed, val, name):
    """Rows of three students and the measured metrics of one set, as if it had been trained."""
    results.record_lineage(condensed)
    of_set = results.input_columns(condensed, val)
    runtime = json.dumps({"device": "cpu", "threads": 2, "versions": {"torch": "2.11"}})
    students = [
        of_set | {
            "protocol": "hard@1+short", "student": "resnet18", "seed": seed,
            "top1_best": best, "top1_last": last, "epochs": 20, "evaluations": 5, "size": 32,
            "image_bytes": condensed.image_bytes, "runtime": runtime,
        }
        for seed, (best, last) in enumerate(zip(BEST[name], LAST[name], strict=True))
    ]  # fmt: skip
    metrics = [
        of_set | {"metric": metric.stamp, "value": value, "backbone": "b", "weights": "w",
                  "runtime": runtime}
        for metric, value in zip(MEASURED, VALUES[name], strict=True)
    ]  # fmt: skip
    for row in students:
        curve = [{"epoch": epoch, "top1": row["top1_last"]} for epoch in (10, 20)]
        keyed = {"key": digest_of(row), **row}
        results.append_student(keyed, curve=curve, per_class=[], ledger=[])
    results.append(METRICS, [{"key": digest_of(row), **row} for row in metrics], [])


@pytest.fixture(scope="module")
def built(tmp_path_factory, write_scores):
    """A folder with data, scores, three sets and their results; read only."""
    root = tmp_path_factory.mktemp("world")
    write_images(root / "images")
    Pack(src=root / "images", data=root / "data", name="tiny").run()
    write_scores(root / "data", root / "scores", {"aum": AUM, "el2n": -AUM}, images=360)
    chosen = CcsParameters(misratio=0.5, bins=4)
    Select(source=root / "scores", condensed=root / "ccs", ipc=IPC, parameters=chosen).run()
    Select(source=root / "data", condensed=root / "random", ipc=IPC).run()
    pixels = KmeansParameters(size=SIZE)
    Distill(data=root / "data", condensed=root / "kmeans", ipc=IPC, parameters=pixels).run()
    results, val = Results(root / "results"), Dataset.open(root / "data")
    for name in BEST:
        write_results(results, open_set(root / name), val, name)
    return root


@pytest.fixture
def world(built, tmp_path):
    """A copy that a test may damage; paths between artifacts are relative, so it still works."""
    return shutil.copytree(built, tmp_path / "world")


@pytest.fixture(scope="module")
def page(built, tmp_path_factory):
    """The report of the undamaged world."""
    html = tmp_path_factory.mktemp("page") / "new" / "report.html"
    Report(results=built / "results", html=html).run()
    return html


@pytest.fixture
def reported(world, tmp_path):
    """Report on the damaged copy; returns the lines and the page."""

    def run(**options):
        html = tmp_path / "report.html"
        return Report(results=world / "results", html=html, **options).run().lines, html

    return run


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
    for column, values in (("best", BEST["random"]), ("last", LAST["random"])):
        assert float(row[f"top1_{column}_mean"]) == np.mean(values)
        assert float(row[f"top1_{column}_std"]) == pytest.approx(stdev(values))
    assert (row["students"], row["ipc"], row["epochs"]) == ("3", str(IPC), "20")
    text = " ".join(elements(page).text)
    assert "57.2 ± 0.8" in text
    assert "last 44.2 ± 1.3, n = 3" in text
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


def test_what_the_methods_need_is_told_of_those_that_are_there(page):
    text = page.read_text()
    table = text.partition("<caption>What each method needs</caption>")[2].partition("</table>")[0]
    rows = [re.findall(r"<td[^>]*>([^<]*)</td>", row) for row in table.split("</tr>")[1:-1]]
    assert [row[0] for row in rows] == ["AUM", "Random"]  # and nothing of k-means, nobody's system
    assert rows[0][1:] == ["coreset", "yes", "none", "full data", "no", "classifier"]


def test_a_metric_that_does_not_exist_is_a_dash_on_the_page_and_empty_in_the_csv(page):
    row = next(one for one in records(page, "metrics") if one["method"] == "ccs-aum")
    assert (row["r1"], row["d1"], row["r2"], row["d2"]) == ("0.9", "0.3", "0.8", "")
    lines = page.with_name("report-metrics.md").read_text().splitlines()
    assert any(line.endswith("| 0.9000 | 0.3000 | 0.8000 | - |") for line in lines)


def test_costs_are_the_sum_over_the_recorded_ledger(page, built):
    recorded = Results(built / "results").lineage(Provenance.read(built / "ccs").digest)
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


def test_a_hostile_class_name_is_shown_and_not_run_and_every_figure_has_words(page):
    found = elements(page)
    assert HOSTILE in [text.strip() for text in found.text]
    scripts = found.of("script")
    assert scripts.count({}) == 2  # the library and ours; the rest is data
    assert scripts.count({"type": "application/json"}) == len(scripts) - 2
    layouts = [figure["layout"].get("annotations", []) for figure in found.figures()]
    titles = [note["text"] for notes in layouts for note in notes]
    assert '&lt;script&gt;alert("x")&lt;' in titles
    assert not any("<script" in title for title in titles)
    # Rows of the scored data, the two coresets and the distilled set.
    assert len(found.of("img")) == len(CLASSES) * (8 + 8 + 3 * IPC)
    assert all(one["alt"] for one in found.of("img"))
    plots = [one for one in found.of("div") if one.get("class") == "plot"]
    assert len(plots) == len(found.figures()) == 5
    assert all(one["role"] == "img" and one["aria-label"] for one in plots)


def test_the_histogram_counts_every_image_and_marks_the_chosen_ones(page, built):
    figures = [figure["data"] for figure in elements(page).figures()]
    (traces,) = (data for data in figures if data[0]["type"] == "bar")
    bars = [trace for trace in traces if trace["type"] == "bar"]
    assert [sum(trace["y"]) for trace in bars] == [PER_CLASS] * len(CLASSES)
    assert {t["name"] for t in traces if t.get("visible") is True} == {"ccs-aum, IPC 3"}
    ids = np.load(built / "ccs" / "ids.npy")
    marks = [t for t in traces if t["name"].startswith("ccs") and t["mode"] == "markers"]
    np.testing.assert_allclose(
        sorted(x for trace in marks for x in trace["x"]), np.sort(AUM[ids]), rtol=1e-6
    )
    cuts = [t["x"][0] for t in traces if t.get("mode") == "lines"]
    chosen_by_class = [min(trace["x"]) for trace in marks]
    assert all(cut < lowest for cut, lowest in zip(cuts, chosen_by_class, strict=True))


def test_the_cut_lies_between_the_last_cut_and_the_first_kept():
    easiness = np.array([4, 0, 3, 1, 2, 5, 6, 7, 8, 9], dtype=np.float32)
    assert cut_of_class(easiness, chosen=2, misratio=0.3) == 2.5
    assert cut_of_class(easiness, chosen=9, misratio=0.3) == 0.5
    assert math.isnan(cut_of_class(easiness, chosen=10, misratio=0.3))


def test_the_same_results_give_the_same_bytes_and_every_file_is_named(page, built, tmp_path):
    outcome = Report(results=built / "results", html=tmp_path / "report.html").run()
    assert (tmp_path / "report.html").read_bytes() == page.read_bytes()
    written = list(tmp_path.iterdir())
    assert len(written) == 7
    assert all(any(str(path) in line for line in outcome.lines) for path in written)


def test_moved_sets_and_scores_are_named_and_the_rest_is_shown(world, tmp_path, reported):
    shutil.rmtree(world / "scores")
    shutil.move(world / "random", tmp_path / "elsewhere")
    lines, html = reported()
    skipped = [line for line in lines if line.startswith("left out:")]
    assert ["its images are" in line for line in skipped] == [True, False]
    assert ["its scores are" in line for line in skipped] == [False, True]
    assert len(elements(html).of("img")) == len(CLASSES) * 2 * IPC  # ccs without scores, and kmeans
    assert len(records(html, "accuracy")) == 3
    assert len({one["method"] for one in records(html, "cost")}) == 3


def test_a_set_replaced_by_another_is_not_shown_as_the_old_one(world, reported):
    shutil.rmtree(world / "random")
    Select(source=world / "data", condensed=world / "random", ipc=IPC, seed=5).run()
    assert sum("holds another set by now" in line for line in reported()[0]) == 1


def test_a_moved_data_set_is_found_by_name(world, tmp_path, reported):
    place = tmp_path / "moved"
    shutil.move(world / "data", place)
    assert sum("--data" in line for line in reported()[0]) == 2
    assert not any(line.startswith("left out:") for line in reported(data=place)[0])
    with pytest.raises(UsageError, match="does not exist"):
        reported(data=tmp_path / "nowhere")


def test_a_damaged_shard_leaves_a_gap_and_an_absent_lineage_is_told(world, reported):
    shard = Dataset.open(world / "data").shard_paths()[0]
    shard.write_bytes(bytes(shard.stat().st_size))
    shutil.rmtree(world / "results" / "lineage")
    _, html = reported()
    text = " ".join(elements(html).text)
    assert "cannot be read" in html.read_text()
    assert "Not recorded: tiny, random, IPC 3; tiny, ccs-aum, IPC 3; tiny, kmeans, IPC 3." in text
    assert records(html, "cost") == []


def test_a_peak_that_was_not_measured_is_a_dash_and_empty_in_the_csv(world, reported):
    for path in (world / "results" / "lineage").iterdir():
        recorded = json.loads(path.read_bytes())
        for line in recorded["ledger"]:
            line |= {"peak_rss_bytes": None, "cpu_seconds": 0}
        path.write_bytes(json_bytes(recorded))
    _, html = reported()
    assert {one["peak_rss_bytes"] for one in records(html, "cost")} == {""}
    lines = html.with_name("report-cost.md").read_text().splitlines()[4:]
    cells = [[cell.strip(" *") for cell in line.split("|")] for line in lines]
    assert {(row[6], row[-3]) for row in cells} == {("0.00 s", "-")}


def test_the_ledger_holds_runs_whose_rows_are_not_folded_yet(world, reported):
    line = Meter("measure", "digest").line() | {"host": "elsewhere"}
    Results(world / "results").append(METRICS, [], [line])
    assert "elsewhere" in reported()[1].read_text()


def test_a_folder_of_before_digests_is_shown_beside_new_students_of_the_same_stamp(world, reported):
    results = Results(world / "results")
    results.fold()
    file = results.path / "students.parquet"
    table = pq.read_table(file)
    added = ["protocol_digest", "precision", "teachers", "epoch_best", "top5_best"]
    old = table.to_pylist()
    for row in old:
        row["protocol"] = "hard@1+bfloat16+short"
    schema = table.drop_columns(added).schema
    pq.write_table(pa.Table.from_pylist(old, schema=schema), file, write_page_checksum=True)
    new = {"protocol": "hard@1+bf16+short", "precision": "bfloat16", "protocol_digest": "ab" * 32}
    results.append(STUDENTS, [{**row, **new, "key": f"new {row['key']}"} for row in old], [])
    for _ in range(2):
        page = reported()[1]
        rows = records(page, "accuracy")
        shown = [(row["protocol"], row["precision"], row["students"]) for row in rows]
        assert shown == [("hard@1+bf16+short", "bfloat16", "3")] * 6
        assert [row["protocol_digest"] for row in rows] == [""] * 3 + ["ab" * 32] * 3
        titles = [text for text in elements(page).text if text.startswith("Best top-1 accuracy:")]
        assert [title.rpartition(", ")[2] for title in titles] == ["no digest", "digest abababab"]
        results.fold()


def test_results_with_measured_sets_alone_make_a_report(world, reported):
    for file in (world / "results").glob("students*"):
        file.unlink()
    assert any("No student was trained yet" in line for line in reported()[0])


def test_fewer_classes_and_images_can_be_asked_for(reported):
    found = elements(reported(max_classes=1, images_per_row=2)[1])
    assert len(found.of("img")) == 2 + 2 + 3 * 2
    assert any("The first 1 of 3 classes." in text for text in found.text)


def test_evenly_spread_keeps_both_ends():
    assert evenly_spread(np.arange(10), 4).tolist() == [0, 3, 6, 9]
    assert evenly_spread(np.arange(3), 4).tolist() == [0, 1, 2]


def pixels(uri, kind):
    start, data = uri.split(",")
    assert start == f"data:image/{kind};base64"
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB"))


def test_a_small_image_is_enlarged_to_equal_blocks(page, built):
    scored = [image for image in elements(page).of("img") if ", aum " in image["alt"]]
    for image in scored:
        original = Image.open(built / "images" / f"{image['alt'].rpartition(',')[0]}.png")
        enlarged = np.kron(np.asarray(original), np.ones((12, 12, 1), dtype=np.uint8))
        np.testing.assert_array_equal(pixels(image["src"], "png"), enlarged)
    assert len(scored) == len(CLASSES) * (8 + 8 + 2 * IPC)


def test_a_large_image_becomes_the_central_square_as_jpeg(tmp_path):
    wide = np.zeros((300, 500, 3), dtype=np.uint8)
    wide[:, 100:400] = (200, 30, 30)
    Image.fromarray(wide).save(tmp_path / "wide.png")
    shown = pixels(thumbnail_uri((tmp_path / "wide.png").read_bytes()), "jpeg")
    assert shown.shape == (SIDE, SIDE, 3)
    np.testing.assert_allclose(shown[4:-4, 4:-4].mean(axis=(0, 1)), (200, 30, 30), atol=3)


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
    assert len(plots) == 5
    assert len(drawn) >= len(plots)
