"""Scores without labels: pseudo-labels, coresets by their groups, and the labels that are revealed.

The features of the images are planted: groups of unequal sizes that cut across the classes.
"""

import shutil

import numpy as np
import pytest
from pyarrow import parquet

from coreset.engine.artifacts.provenance import Provenance, locate
from coreset.engine.artifacts.store import FEATURES_NAME, RowWriter
from coreset.engine.artifacts.writer import create_artifact
from coreset.engine.condensed.comparison import Pair
from coreset.engine.condensed.condensed_set import SetInfo, open_set
from coreset.engine.evaluation.results import METRICS, Results
from coreset.engine.models import backbones, clip
from coreset.engine.models.concept_bank import Concept, ConceptBank, Encoder, write_bank
from coreset.engine.report.concepts import concept_parts
from coreset.engine.report.sets import catalogue, gather
from coreset.engine.report.tables import NOTHING, set_table
from coreset.engine.scoring.pseudo_labels import ASSIGNED_NAME, clusters_of, nearest_of
from coreset.engine.scoring.score_table import ASSIGNED, ScoreTable
from coreset.kernels.neighbours import unit_rows
from coreset.kernels.samplers import ccs_coreset, random_coreset
from coreset.kernels.seeds import Stream, derived_seed
from coreset.shards.errors import StoreError, UsageError
from coreset.shards.format.classes import class_list
from coreset.shards.format.dataset import Dataset
from coreset.shards.format.files import temporary_name

SIZES = (24, 18, 12, 6)
WIDTH = 16
GROUPS = np.random.default_rng(1).permutation(np.repeat(np.arange(4), SIZES))
EPOCHS = ("--epochs", 3, "--batch", 16)
LINEAR = ("--proxy", "linear", "--backbone", "tf_efficientnet_lite0", "--size", 64, *EPOCHS)
CLUSTERS = ("--labels", "clusters", "--clusters", 4)
BY_NAME = ("--proxy", "linear", "--backbone", "clip:stub", "--labels", "zero-shot", *EPOCHS)


def planted_rows():
    """Rows about one direction per group, of lengths from 1 to 100: only their directions tell."""
    rng = np.random.default_rng(2)
    rows = np.eye(WIDTH)[GROUPS] + rng.normal(0, 0.1, (GROUPS.size, WIDTH))
    return (rows * rng.uniform(1, 100, (GROUPS.size, 1))).astype(np.float16)


def stored(path, rows):
    n_rows, width = rows.shape
    RowWriter(path, n_rows, width, {}).write(0, rows.astype(np.float16))
    return path


@pytest.fixture(scope="module")
def features(tmp_path_factory):
    """A features artifact of the planted rows."""
    out = tmp_path_factory.mktemp("planted") / "FEATURES"
    with create_artifact(out, Provenance(kind="features", stage="embed", config={})) as work:
        stored(work.scratch / FEATURES_NAME, planted_rows())
    return out


@pytest.fixture(scope="module", autouse=True)
def _planted(features):
    """Stand for the features of every data set by every backbone."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (
            "scoring.setup",
            "scoring.job",
            "scoring.pseudo_labels",
            "stages.selection",
        ):
            patch.setattr(f"coreset.engine.{module}.cached_features", lambda *_: features)
        patch.setattr("coreset.engine.scoring.reasons.recorded_features", lambda _: features)
        yield


@pytest.fixture(scope="module")
def clustered(packed, work, made):
    return made(work / "CLUSTERED", "score", packed, work / "CLUSTERED", *LINEAR, *CLUSTERS)


@pytest.fixture
def encode(monkeypatch):
    """The text of class c lies at the direction of group c; returns the list of texts asked.

    ImageNet's classes have their ids in capitals for names.
    """
    asked = []

    def encoded(texts):
        asked.extend(texts)
        return np.eye(WIDTH, dtype=np.float32)[: len(texts)]

    names = tuple(wnid.upper() for wnid in class_list("imagenet"))
    monkeypatch.setattr(clip, "class_names", lambda: names)
    monkeypatch.setattr(clip, "text_encoder", lambda _: encoded)
    monkeypatch.setattr(backbones, "load_backbone", lambda *_: None)
    return asked


def as_numbered_by(found):
    """Numbers of ``found`` for the planted groups; each cluster must hold one group alone."""
    pairs = set(zip(GROUPS.tolist(), found.tolist(), strict=True))
    assert len(pairs) == len(SIZES)
    return dict(pairs)


def test_planted_groups_are_recovered_whatever_their_sizes(features):
    for seed in range(5):
        as_numbered_by(clusters_of(features / FEATURES_NAME, 4, seed))


def test_the_seed_decides_the_clusters(tmp_path):
    store = stored(tmp_path / "rows", np.random.default_rng(0).normal(size=(200, 8)))
    first, again, other = (clusters_of(store, 10, seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


def test_clusters_of_too_few_different_images_are_refused(tmp_path):
    rows = np.repeat(np.eye(3), 5, axis=0)
    assert np.unique(clusters_of(stored(tmp_path / "three", rows), 3, 0)).size == 3
    with pytest.raises(UsageError, match=r"^2 of 5 clusters are empty, .*; lower --clusters$"):
        clusters_of(stored(tmp_path / "five", rows), 5, 0)


def test_the_nearest_text_is_that_of_the_largest_cosine(tmp_path, monkeypatch):
    monkeypatch.setattr("coreset.engine.artifacts.store.FEATURE_CHUNK_BYTES", 7 * 2 * 8)
    rng = np.random.default_rng(0)
    rows, texts = rng.normal(size=(50, 8)).astype(np.float16), unit_rows(rng.normal(size=(6, 8)))
    found = nearest_of(stored(tmp_path / "rows", rows), texts)
    images = rows.astype(np.float64)
    cosines = images / np.linalg.norm(images, axis=1, keepdims=True) @ texts.T
    np.testing.assert_array_equal(found, cosines.argmax(axis=1))


def test_scores_hold_the_clusters_they_were_made_with(clustered, done):
    table = ScoreTable.open(clustered)
    numbers = as_numbered_by(table.columns[ASSIGNED])
    assert table.columns[ASSIGNED].dtype == np.int32
    assert table.label_names == ("cluster 0", "cluster 1", "cluster 2", "cluster 3")
    by_group = table.summary_by_class("aum")
    for group, number in numbers.items():
        assert by_group[f"cluster {number}"].n == SIZES[group]
        own = table.columns["aum"][group == GROUPS]
        assert by_group[f"cluster {number}"].mean == pytest.approx(own.mean(), rel=1e-6)
    assert not list(clustered.rglob(ASSIGNED_NAME))
    config = Provenance.read(clustered).config
    assert {"labels": "clusters", "clusters": 4}.items() <= config.items()
    note = "labels were assigned (clusters, 4 groups), those of the data set were not read"
    lines = done("scores", "show", clustered)
    assert any(line.startswith(note) for line in lines[-2:])
    assert done("score", table.dataset.path, clustered, *LINEAR, *CLUSTERS)[-1] == (
        f"next: coreset select {clustered} SET --ipc 6 --reveal"
    )


def test_the_proxy_learns_the_clusters(clustered):
    table = ScoreTable.open(clustered)
    assert (table.predicted == table.labels).mean() > 0.9


def test_given_labels_leave_no_trace_in_the_provenance(packed, tmp_path, done):
    done("score", packed, tmp_path / "OUT", *LINEAR)
    assert not {"labels", "clusters", "prompt"} & Provenance.read(tmp_path / "OUT").config.keys()
    assert ASSIGNED not in ScoreTable.open(tmp_path / "OUT").columns


def test_clusters_are_by_default_as_many_as_classes(packed, tmp_path, done):
    options = (*LINEAR, "--labels", "clusters")
    done("score", packed, tmp_path / "OUT", *options)
    assert Provenance.read(tmp_path / "OUT").config["clusters"] == 3
    assert len(ScoreTable.open(tmp_path / "OUT").label_names) == 3
    assert "are there already" in "\n".join(
        done("score", packed, tmp_path / "OUT", *options, "--clusters", 3)
    )


def test_true_labels_do_not_count(packed, clustered, tmp_path, done):
    """The same images with other labels have the same scores to the last bit."""
    dataset = Dataset.open(packed)
    wrong = np.random.default_rng(0).permutation(dataset.labels)
    rows = [f"{key},{dataset.classes[n]}" for key, n in zip(dataset.keys, wrong, strict=True)]
    (tmp_path / "labels.csv").write_text("\n".join(["key,wrong", *rows]))
    table = ("--labels", tmp_path / "labels.csv", "--column", "wrong")
    done("pack", packed, tmp_path / "DATA", *table)
    other = Dataset.open(tmp_path / "DATA")
    assert other.keys == dataset.keys
    assert (other.labels != dataset.labels).any()
    done("score", other.path, tmp_path / "OUT", *LINEAR, *CLUSTERS)
    columns, others = (ScoreTable.open(path).columns for path in (clustered, tmp_path / "OUT"))
    assert set(columns) == set(others)
    for name in columns:
        assert columns[name].tobytes() == others[name].tobytes(), name


def test_a_stopped_scoring_keeps_its_clusters_and_ends_in_the_same_bytes(
    clustered, interrupted, done, stored_bytes, monkeypatch
):
    packed, long = locate(clustered, "dataset"), (*LINEAR, "--epochs", 200, *CLUSTERS)
    whole, stopped = (clustered.with_name(name) for name in ("WHOLE_CLUSTERS", "STOPPED_CLUSTERS"))
    done("score", packed, whole, *long)
    kept = temporary_name(stopped) / ASSIGNED_NAME
    interrupted(kept, "score", packed, stopped, *long)
    assert kept.is_file()

    def twice(*_arguments):
        pytest.fail("clusters were made again")

    monkeypatch.setattr("coreset.engine.scoring.pseudo_labels.clusters_of", twice)
    done("score", packed, stopped, *long)
    assert stored_bytes(stopped) == stored_bytes(whole)


def selected(done, source, out, *words):
    """Choose, and return the table of the choice, what is known of the set, and the lines."""
    lines = done("select", source, out, "--reveal", *words)
    return parquet.read_table(out / "selection.parquet").to_pydict(), SetInfo.read(out), lines


def test_ccs_chooses_by_clusters_and_reveals_the_labels_of_its_choice(clustered, tmp_path, done):
    chosen, info, lines = selected(done, clustered, tmp_path / "SET", "--ipc", 3, "--misratio", 0.3)
    table, budgets = ScoreTable.open(clustered), np.full(4, 3)
    drawn = ccs_coreset(
        table.columns["aum"], table.columns[ASSIGNED].astype(np.int64), budgets,
        derived_seed(0, Stream.CCS), misratio=0.3, n_bins=50,
    )  # fmt: skip
    assert chosen["id"] == drawn.positions.tolist()
    assert chosen["rank"] == drawn.ranks.tolist()
    assert chosen["group"] == [f"cluster {n}" for n in table.columns[ASSIGNED][drawn.positions]]
    labels = table.dataset.labels[drawn.positions]
    assert chosen["class"] == [table.dataset.classes[label] for label in labels]
    per_class = np.bincount(labels, minlength=3)
    assert per_class.min() != per_class.max()  # else nothing is shown here
    assert (info.method, info.ipc) == ("ccs-aum_clusters", 3)
    assert info.per_class == tuple(per_class)
    assert info.parameters["labels"] == "clusters"
    shown = f"images of 3 of 3 classes, {per_class.min()} to {per_class.max()} each"
    assert f"revealed: {shown} (IPC is exact per group, not per class)" in lines
    condensed = open_set(tmp_path / "SET")
    np.testing.assert_array_equal(condensed.labels, labels)


@pytest.mark.parametrize("method", ["random", "k-center"])
def test_methods_without_scores_choose_by_clusters_too(clustered, tmp_path, done, method):
    words = ("--ipc", 2, "--method", method, "--backbone", "tf_efficientnet_lite0")
    chosen, info, _ = selected(done, clustered, tmp_path / "SET", *words)
    assert info.method == f"{method}_clusters"
    assert sorted(chosen["group"]) == sorted(2 * [f"cluster {n}" for n in range(4)])
    assert Provenance.read(tmp_path / "SET").ancestor("scores") is not None
    if method == "random":
        groups = ScoreTable.open(clustered).labels
        drawn = random_coreset(groups, np.full(4, 2), derived_seed(0, Stream.RANDOM))
        assert chosen["id"] == drawn.positions.tolist()


def test_a_ratio_is_of_each_cluster(clustered, tmp_path, done):
    chosen, info, lines = selected(
        done, clustered, tmp_path / "SET", "--ratio", 0.25, "--method", "random"
    )
    assert sorted(np.unique(chosen["group"], return_counts=True)[1]) == [1, 3, 4, 6]
    assert sum(info.per_class) == 14
    assert any("(the share is per group, not per class)" in line for line in lines)


def test_zero_shot_takes_the_class_whose_name_is_nearest(packed, tmp_path, done, encode):
    out = tmp_path / "OUT"
    last = done("score", packed, out, *BY_NAME)[-1]
    names = ("N01440764", "N02102040", "N02979186")
    assert encode == [f"a photo of a {name}" for name in names]
    cosines = unit_rows(planted_rows())[:, :3]
    table = ScoreTable.open(out)
    np.testing.assert_array_equal(table.labels, cosines.argmax(axis=1))
    assert table.label_names == table.dataset.classes
    config = {"labels": "zero-shot", "prompt": "a photo of a {}"}
    assert config.items() <= Provenance.read(out).config.items()
    assert "clusters" not in Provenance.read(out).config
    assert last.endswith(" --reveal")
    chosen, info, _ = selected(done, out, tmp_path / "SET", "--ipc", 2)
    assert info.method == "ccs-aum_zero-shot"
    assert sorted(chosen["group"]) == sorted(2 * table.dataset.classes)


def test_a_group_without_images_asks_for_none(packed, tmp_path, write_scores, done):
    groups = np.repeat([0, 2], 30).astype(np.int32)
    columns = {"aum": np.linspace(0, 1, 60, dtype=np.float32), ASSIGNED: groups}
    made = write_scores(packed, tmp_path / "S", columns, config={"labels": "zero-shot"})
    for name, words in (("CCS", ()), ("RATIO", ("--method", "random"))):
        budget = ("--ratio", 0.1) if words else ("--ipc", 3)
        chosen, _, _ = selected(done, made, tmp_path / name, *budget, *words)
        first, third = (Dataset.open(packed).classes[n] for n in (0, 2))
        assert chosen["group"] == 3 * [first] + 3 * [third]


def test_too_small_a_group_is_named(clustered, tmp_path, refused):
    number = as_numbered_by(ScoreTable.open(clustered).columns[ASSIGNED])[3]
    said = refused(tmp_path, "select", clustered, tmp_path / "SET", "--ipc", 7, "--reveal")
    assert said == (
        f"ipc must be at most the size of every group, got 7, but group cluster {number} has 6 "
        "images; lower --ipc"
    )


def test_a_group_that_is_used_up_is_not_passed_over(assigned, tmp_path, done, refused):
    made, words = assigned(GROUPS.astype(np.int32)), ("--reveal", "--method", "random")
    selected(done, made, tmp_path / "SET", "--ipc", 6, "--method", "random")
    others = ("--without", tmp_path / "SET", "--ipc", 1)
    said = refused(tmp_path, "select", made, tmp_path / "OTHER", *words, *others)
    assert "got 1, but group cluster 3 has 0 images" in said


def test_labels_are_revealed_only_where_they_were_not_given(
    clustered, scores, packed, tmp_path, refused
):
    said = refused(tmp_path, "select", clustered, tmp_path / "SET", "--ipc", 2)
    assert said.endswith("--reveal takes the true labels of the chosen images alone")
    for source in (scores, packed):
        said = refused(tmp_path, "select", source, tmp_path / "SET", "--ipc", 2, "--reveal")
        assert "reveal goes with scores of --labels zero-shot or clusters" in said


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--labels clusters", "labels clusters go with --proxy linear or concept, got --proxy"),
        ("--proxy linear --labels clusters --folds 3", "folds find wrong labels; they go with"),
        ("--proxy linear --clusters 3", "clusters go with --labels clusters, got --labels given"),
        ("--proxy linear --labels clusters --clusters 1", "clusters must be at least 2, got 1"),
        ("--proxy linear --labels clusters --clusters 61", "at most 60 (images), got 61"),
        ("--proxy linear --labels zero-shot", "need a backbone that embeds texts, clip:MODEL, got"),
    ],
)
def test_options_that_do_not_fit_are_refused(packed, tmp_path, refused, words, message):
    options = ("--backbone", "tf_efficientnet_lite0") if "linear" in words else ()
    said = refused(tmp_path, "score", packed, tmp_path / "OUT", *words.split(), *options)
    assert message in said


def test_one_class_is_no_hindrance_but_no_number_of_clusters(photos, tmp_path, done, refused):
    shutil.copytree(photos / "n01440764", tmp_path / "src" / "n01440764")
    done("pack", tmp_path / "src", tmp_path / "DATA", "--one-class")
    options = (*LINEAR, "--labels", "clusters")
    said = refused(tmp_path, "score", tmp_path / "DATA", tmp_path / "OUT", *options)
    assert said.endswith(
        "has one class, and scores compare classes; pack at least two, or give --clusters"
    )


def bank_of(packed, out, weights, concepts, *, visual, **config):
    origin = Provenance.read(packed).as_input("data", packed, out)
    stage = "concepts visual" if visual else "concepts import"
    provenance = Provenance(kind="concepts", stage=stage, config=config, inputs=(origin,))
    encoder = Encoder(backbone="tf_efficientnet_lite0", weights=weights, size=64, width=WIDTH)
    with create_artifact(out, provenance, inputs=[packed]) as work:
        rows = np.eye(WIDTH, dtype=np.float32)[: len(concepts)]
        write_bank(work.scratch, encoder, concepts, rows, visual=visual)
    return out


def test_concepts_without_labels_name_their_coresets(packed, tmp_path, done, refused, values_of):
    weights = backbones.weights_key("tf_efficientnet_lite0", None)
    pooled = [Concept(text=f"prototype {n}") for n in range(6)]
    of_classes = [Concept(text=c, classes=(c,)) for c in Dataset.open(packed).classes]
    options = ("--proxy", "concept", *EPOCHS, *CLUSTERS, "--concepts")
    bank = bank_of(packed, tmp_path / "POOLED", weights, pooled, visual=True)
    done("score", packed, tmp_path / "OUT", *options, bank)
    as_numbered_by(ScoreTable.open(tmp_path / "OUT").columns[ASSIGNED])
    words = ("--ipc", 2, "--misratio", 0.5)
    _, info, _ = selected(done, tmp_path / "OUT", tmp_path / "SET", *words)
    assert info.method == "ccs-concept_visual_aum_clusters"
    why = values_of("scores", "suspects", tmp_path / "OUT", "--why", "--top", 60)["suspects"]
    assert {suspect["rival_label"] for suspect in why} <= {f"cluster {n}" for n in range(4)}
    assert all(suspect["rival_label"] != suspect["given_label"] for suspect in why)
    condensed = open_set(tmp_path / "SET")
    sets = catalogue([Results(tmp_path / "R").input_columns(condensed, condensed.dataset)])
    evidence = gather(tmp_path / "R", sets.values(), None)
    (part,), notices = concept_parts(evidence, max_classes=9, images_per_row=1)
    assert notices == []
    assert list(part.classes) == [f"cluster {n}" for n in range(4)]
    for name, shown in part.classes.items():
        assert shown["hardest"][0]["title"].startswith(f"assigned {name}, ")
    texts = bank_of(packed, tmp_path / "TEXTS", weights, of_classes, visual=False)
    assert not ConceptBank.open(texts).is_of_labels
    of_labels = ("VISUAL", True, {}), ("KEPT", False, {"keep": 5}), ("SEEN", False, {"images": 2})
    for name, visual, config in of_labels:
        bank = bank_of(packed, tmp_path / name, weights, of_classes, visual=visual, **config)
        said = refused(tmp_path, "score", packed, tmp_path / "NO", *options, bank)
        assert f"bank {bank} was made with the labels of the data set" in said


@pytest.fixture
def assigned(packed, tmp_path, write_scores):
    """``assigned(values, "OUT")``: scores of 60 photos with these pseudo-labels."""

    def write(values, out="ASSIGNED"):
        aum = np.random.default_rng(7).permutation(np.linspace(-1, 1, 60)).astype(np.float32)
        columns = {"aum": aum, "predicted": np.zeros(60, np.int32)}
        columns |= {} if values is None else {ASSIGNED: np.asarray(values)}
        return write_scores(packed, tmp_path / out, columns, config={"labels": "clusters"})

    return write


@pytest.mark.parametrize("values", [None, np.full(60, -1), np.full(60, 60), np.zeros(60)])
def test_pseudo_labels_that_cannot_be_are_refused(assigned, values):
    with pytest.raises(StoreError, match="has no assigned of each image; score again"):
        ScoreTable.open(assigned(values)).labels  # noqa: B018 - a property


def test_suspects_are_of_assigned_groups(assigned, tmp_path, values_of, done):
    made = assigned(GROUPS.astype(np.int32))
    command = ("scores", "suspects", made, "--top", 3, "--csv", tmp_path / "out.csv")
    lines = done(*command)
    assert lines[0].split()[:4] == ["sample", "source", "assigned", "predicted"]
    assert (tmp_path / "out.csv").read_text().startswith("sample,source,assigned_label,predicted")
    assert "correct their labels" not in lines[-1]
    values = values_of(*command)
    suspects = values["suspects"]
    assert values["labels"] == "clusters"
    assert suspects[0]["given_label"] == f"cluster {GROUPS[suspects[0]['sample']]}"


def test_scores_are_compared_each_by_its_own_groups(assigned, scores, done):
    pair = Pair.open(scores, assigned(GROUPS.astype(np.int32)))
    labels = pair.first.labels
    by_class = [
        ccs_coreset(
            table.columns["aum"], groups, np.full(groups.max() + 1, 4),
            derived_seed(0, Stream.CCS), misratio=0.3, n_bins=50,
        ).positions
        for table, groups in ((pair.first, labels), (pair.second, GROUPS))
    ]  # fmt: skip
    overlap = pair.coreset_overlap("aum", "aum", 4, misratio=0.3, n_bins=50, seed=0)
    assert overlap["share"] == np.isin(by_class[0], by_class[1]).mean()
    expected = np.mean([4 / SIZES[group] for group in GROUPS[by_class[0]]])
    assert overlap["chance"] == pytest.approx(expected)
    lines = done("scores", "compare", scores, pair.second.path, "--ipc", 4)
    assert any(line.startswith(f"{pair.second.path}: labels were assigned") for line in lines)
    itself = Pair(first=pair.second, second=pair.second, ids=pair.ids)
    same = itself.coreset_overlap("aum", "aum", 4, misratio=0.3, n_bins=50, seed=0)
    assert same["share"] == 1


def test_the_report_shows_the_balance_of_a_revealed_set(assigned, random_set, tmp_path, done):
    made = assigned(GROUPS.astype(np.int32))
    _, info, _ = selected(done, made, tmp_path / "SET", "--ipc", 3, "--misratio", 0.3)
    results, rows = Results(tmp_path / "RESULTS"), []
    for path in (tmp_path / "SET", random_set):
        condensed = open_set(path)
        rows.append(results.input_columns(condensed, condensed.dataset))
    sets = catalogue(rows)
    evidence = gather(results.path, sets.values(), None)
    assert evidence.notices == []
    (found,) = evidence.scores
    assert found.table.label_names == tuple(f"cluster {n}" for n in range(4))
    np.testing.assert_array_equal(found.labels, GROUPS)
    table = set_table([], sets.values(), evidence.balances)
    texts = {row[1].text: row[-1].text for row in table.rows}
    assert table.header[-1] == "balance"
    assert texts == {"random, IPC 2": NOTHING, "ccs-aum_clusters, IPC 3": info.balance}
    assert "balance" not in set_table([], sets.values(), {}).header


def test_the_report_draws_groups(assigned, tmp_path, done):
    made = assigned(GROUPS.astype(np.int32))
    _, info, _ = selected(done, made, tmp_path / "SET", "--ipc", 3, "--misratio", 0.3)
    results, condensed = Results(tmp_path / "RESULTS"), open_set(tmp_path / "SET")
    row = {"metric": "r1@1", "value": 0.5, "backbone": "b", "weights": "w", "runtime": "{}"}
    row |= results.input_columns(condensed, condensed.dataset)
    results.record_lineage(condensed)
    results.append(METRICS, [{"key": "0" * 64, **row}], [])
    done("report", results.path, tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    for text in ("by group", "cluster 3", "stand for the classes", info.balance):
        assert text in page
