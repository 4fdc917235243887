"""Selection as a user sees it: which ids, by which rule, and what is refused."""

import json
import re
import shlex
import shutil
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import pytest
import tyro
from PIL import Image
from pyarrow import parquet

from coreset.engine.artifacts.checkpoints import Checkpoints
from coreset.engine.artifacts.ledger import read_ledger
from coreset.engine.artifacts.provenance import Provenance
from coreset.engine.artifacts.store import SCORES_NAME, Columns
from coreset.engine.condensed.misratio import default_misratio, misratio_by_share
from coreset.engine.condensed.samplers import SAMPLERS
from coreset.engine.condensed.selection import Sampler
from coreset.engine.models.features import FeatureSpec, features_for
from coreset.kernels.feature_samplers import k_center
from coreset.kernels.samplers import Selection, ccs_coreset, random_coreset
from coreset.kernels.scores import SCORES, easiness
from coreset.kernels.seeds import derived_seed
from coreset.shards.format.classes import IMAGENETTE_WNIDS
from coreset.shards.format.dataset import Dataset, Manifest


def chosen_ids(condensed):
    return np.load(condensed / "ids.npy", allow_pickle=False)


def facts_of(condensed):
    return json.loads((condensed / "set.json").read_text())


def stored_score(scores, name):
    newest = Checkpoints(scores).latest()
    assert newest is not None
    return Columns(newest[1] / SCORES_NAME)[name]


@pytest.fixture(scope="module")
def nette(tmp_path_factory):
    """12 tiny images of each class of ImageNette, packed."""
    folder = tmp_path_factory.mktemp("nette")
    rng = np.random.default_rng(0)
    for name in IMAGENETTE_WNIDS:
        (folder / "src" / name).mkdir(parents=True)
        for number in range(12):
            pixels = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / "src" / name / f"{number}.png")
    from coreset.engine.stages.pack import Pack

    Pack(src=folder / "src", data=folder / "DATA").run()
    return folder / "DATA"


@pytest.mark.parametrize("score", ["aum", "el2n", None])
def test_a_set_is_what_its_sampler_draws_by_the_stream_of_its_seed(
    packed, scored, tmp_path, done, score
):
    ipc, budgets = 7, np.full(3, 7)
    labels, options = Dataset.open(packed).labels, ("--ipc", ipc, "--seed", 5)
    if score is None:
        done("select", packed, tmp_path / "SET", *options)
        expected = random_coreset(labels, budgets, derived_seed(5, 0))
    else:
        ccs = ("--score", score, "--misratio", 0.5, "--bins", 4)
        done("select", scored, tmp_path / "SET", *options, *ccs)
        ease = easiness(score, stored_score(scored, score))
        seed = derived_seed(5, 1)
        expected = ccs_coreset(ease, labels, budgets, seed, misratio=0.5, n_bins=4)
    assert chosen_ids(tmp_path / "SET").dtype == np.int64
    assert chosen_ids(tmp_path / "SET").tolist() == expected.positions.tolist()


def test_the_set_tells_what_it_is_and_where_it_comes_from(packed, scored, ccs_set):
    manifest, facts = Manifest.read(packed), facts_of(ccs_set)
    assert (facts["method"], facts["source_content"]) == ("ccs-aum", manifest.content)
    assert facts["parameters"] == {"ipc": 2, "score": "aum", "misratio": 0.1, "bins": 50}
    assert facts["per_class"] == [2, 2, 2]
    provenance = Provenance.read(ccs_set)
    assert provenance.binds == {"identity": manifest.identity, "content": manifest.content}
    assert [one["kind"] for _, one in provenance.lineage()] == ["scores", "dataset"]
    assert provenance.inputs[0]["digest"] == Provenance.read(scored).digest
    stages = [line["stage"] for line in read_ledger(ccs_set)]
    assert stages == ["pack", "score", "select"]


@pytest.mark.parametrize(
    ("options", "study"),
    [(("--ipc", 10), 0.7), (("--ipc", 4), None), (("--ipc", 10, "--score", "el2n"), None)],
)
def test_the_misratio_is_that_of_the_study_or_assumed_and_said(
    *, nette, tmp_path, done, write_scores, options, study
):
    misratio = study or misratio_by_share(options[1] / 12)
    columns = {"aum": np.linspace(-1, 1, 120, dtype=np.float32), "el2n": np.ones(120, np.float32)}
    scores = write_scores(nette, tmp_path / "SCORES", columns)
    for _ in range(2):  # also where the set is there already
        lines = done("select", scores, tmp_path / "SET", *options)
        assert (
            f"assumed: misratio {misratio:g}, by a rule from the study's Table 6 for {options[1]} "
            "of 12 images a class; --misratio sets another" in lines
        ) == (study is None)
    assert facts_of(tmp_path / "SET")["parameters"]["misratio"] == misratio
    assert read_ledger(tmp_path / "SET")[-1]["lowered_misratio_classes"] == (10 if study else 0)


@pytest.mark.parametrize(("name", "ipc"), [("packed", 10), ("val", 6)])
def test_what_score_names_next_works_as_typed(request, tmp_path, done, name, ipc):
    request.getfixturevalue("monkeypatch").chdir(tmp_path)
    data = request.getfixturevalue(name)
    *_, hint = done("score", data, "my scores", "--size", 17, "--epochs", 1, "--lr", 0.01)
    words = shlex.split(hint.removeprefix("next: coreset "))
    assert words == ["select", "my scores", "SET", "--ipc", str(ipc)]
    done(*words)
    assert len(chosen_ids(tmp_path / "SET")) == 3 * ipc


def test_a_data_set_that_moved_gives_the_same_set(scored, packed, ccs_set, tmp_path, done):
    scores = shutil.copytree(scored, tmp_path / "far" / "away" / "SCORES")
    options = ("--ipc", 2, "--misratio", 0.1, "--data", packed)
    done("select", scores, tmp_path / "SET", *options)
    assert chosen_ids(tmp_path / "SET").tolist() == chosen_ids(ccs_set).tolist()
    assert Provenance.read(tmp_path / "SET").digest == Provenance.read(ccs_set).digest


NOT_FINITE = np.where(np.isin(np.arange(60), [7, 30]), np.nan, 0).astype(np.float32)


def test_scores_that_are_not_finite_are_refused(packed, tmp_path, refused, write_scores):
    scores = write_scores(packed, tmp_path / "SCORES", {"aum": NOT_FINITE})
    command = ("select", scores, tmp_path / "SET", "--ipc", 2, "--misratio", 0)
    said = refused(tmp_path, *command, code=3)
    key = Dataset.open(packed).keys[7]
    assert f"has nan as aum of {key} (2 are not finite); choose another --score, or" in said


def test_samples_that_could_not_be_decoded_are_no_candidates(
    packed, tmp_path, done, refused, write_scores
):
    values = np.arange(60, dtype=np.float32)
    values[[7, 30]] = np.nan, 0.5  # one never seen, one seen in some epochs
    lost = {"7": "truncated", "30": "truncated"}
    scores = write_scores(packed, tmp_path / "SCORES", {"aum": values}, undecodable=lost)
    labels = Dataset.open(packed).labels
    fewest = np.bincount(np.delete(labels, [7, 30])).min()
    random = ("--method", "random", "--ipc")
    for name, options in {"CCS": ("--misratio", 0, "--ipc"), "RANDOM": random}.items():
        done("select", scores, tmp_path / name, *options, fewest)
        chosen = chosen_ids(tmp_path / name)
        assert not set(chosen) & {7, 30}
        assert np.bincount(labels[chosen]).tolist() == [fewest] * 3
    # A random coreset does not cost the scores beside which it was drawn.
    assert [line["stage"] for line in read_ledger(tmp_path / "RANDOM")] == ["pack", "select"]
    said = refused(tmp_path, "select", scores, tmp_path / "T", *random, fewest + 1)
    assert f"has {fewest} images; lower --ipc" in said
    # Drawn from all images it is another set: not one that is there already.
    said = refused(tmp_path, "select", packed, tmp_path / "RANDOM", *random, fewest)
    assert "config.undecodable: " in said


@pytest.mark.parametrize(
    "words", [["select"], *(["scores", v] for v in ("show", "suspects", "compare"))]
)
def test_the_help_names_every_score(coreset, words):
    shown = coreset(*words, "--help").out
    assert all(re.search(rf"[{{, ]{name}[,}}]", shown) for name in SCORES)


@dataclass(frozen=True, kw_only=True)
class SkipParameters:
    skip: Annotated[int, tyro.conf.arg(help="Images of each class to pass over.")] = 0


def after_some(candidates, budgets, seed, parameters):
    """The images of each class that come after the first few."""
    assert seed == derived_seed(3, 99)
    if candidates.features is not None:
        assert len(candidates.features) == len(candidates.dataset)
    taken = [
        np.flatnonzero(candidates.labels == label)[parameters.skip :][:budget]
        for label, budget in enumerate(budgets)
    ]
    ranks = np.concatenate([np.arange(budget) for budget in budgets])
    positions = np.concatenate(taken)
    return Selection(positions=np.sort(positions), ranks=ranks[np.argsort(positions)])


@pytest.mark.parametrize("needs", [(), ("features",)], ids=["nothing", "features"])
def test_a_sampler_is_registered_in_one_place(packed, tmp_path, coreset, monkeypatch, needs):
    toy = Sampler(
        summary="take", draw=after_some, stream=99, needs=needs, parameters=SkipParameters
    )
    monkeypatch.setitem(SAMPLERS, "toy", toy)
    assert "Images of each class to pass over." in coreset("select", "--help").out
    command = ["select", packed, tmp_path / "SET", "--method", "toy", "--ipc", 2, "--seed", 3]
    command += [*NETWORK, "--skip"]
    assert coreset(*command, 4).code == 0
    labels, chosen = Dataset.open(packed).labels, chosen_ids(tmp_path / "SET")
    expected = [np.flatnonzero(labels == label)[4:6] for label in range(3)]
    assert chosen.tolist() == np.sort(np.concatenate(expected)).tolist()
    facts, network = facts_of(tmp_path / "SET"), {"backbone": f"{NETWORK[1]}@32"} if needs else {}
    assert facts["method"] == "toy"
    assert facts["parameters"] == {"ipc": 2, **network, "skip": 4}
    stages = [line["stage"] for line in read_ledger(tmp_path / "SET")]
    assert stages == ["pack", *(["embed"] if needs else []), "select"]
    assert "config.skip: 4 there, 5 here" in coreset(*command, 5).err


NETWORK = ("--backbone", "tf_efficientnet_lite0", "--size", 32)
EVERY = [name for name in SAMPLERS if name not in {"ccs", "random"}]


@pytest.mark.parametrize("method", EVERY)
def test_every_sampler_chooses_its_budget_and_says_how(scored, packed, tmp_path, done, method):
    sampler, out = SAMPLERS[method], tmp_path / "SET"
    source = scored if "scores" in sampler.needs else packed
    *_, line, _ = done("select", source, out, "--ipc", 3, "--method", method, *NETWORK)
    dataset, ids = Dataset.open(packed), chosen_ids(out)
    assert np.bincount(dataset.labels[ids]).tolist() == [3, 3, 3]
    label = f"{method}-aum" if "scores" in sampler.needs else method
    assert line.startswith(f"9 of 60 images ({label}, ")
    table = parquet.read_table(out / "selection.parquet").to_pydict()
    assert table["id"] == ids.tolist()
    assert table["key"] == [dataset.keys[i] for i in ids]
    assert table["class"] == [dataset.classes[dataset.labels[i]] for i in ids]
    assert sorted(table["rank"]) == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    if "scores" in sampler.needs:
        np.testing.assert_array_equal(table["score"], stored_score(scored, "aum")[ids])
    parameters = facts_of(out)["parameters"]
    assert ("backbone" in parameters) == ("features" in sampler.needs)
    before = ids.tolist()
    done("select", source, tmp_path / "AGAIN", "--ipc", 3, "--method", method, *NETWORK)
    assert chosen_ids(tmp_path / "AGAIN").tolist() == before


def test_features_choose_as_the_kernel_does_class_by_class(packed, tmp_path, done):
    done("select", packed, tmp_path / "SET", "--ipc", 4, "--method", "k-center", *NETWORK)
    dataset = Dataset.open(packed)
    features = features_for(dataset, FeatureSpec(backbone=NETWORK[1], size=32))
    table = parquet.read_table(tmp_path / "SET" / "selection.parquet").to_pydict()
    for label, name in enumerate(dataset.classes):
        members = np.flatnonzero(dataset.labels == label)
        expected = members[k_center(features[members].astype(np.float32), 4)].tolist()
        own = zip(table["rank"], table["id"], table["class"], strict=True)
        assert [i for _, i, where in sorted(own) if where == name] == expected


def test_a_ratio_takes_a_share_of_every_class_and_at_least_an_image(packed, tmp_path, done):
    sizes = np.bincount(Dataset.open(packed).labels)
    for ratio in (0.29, 0.01, 1.0):
        out = tmp_path / f"SET-{ratio}"
        done("select", packed, out, "--ratio", ratio)
        expected = [max(1, int(ratio * size + 1e-9)) for size in sizes]
        assert facts_of(out)["per_class"] == expected
        assert facts_of(out)["parameters"] == {"ratio": ratio}


def test_images_of_another_set_are_left_out(scored, packed, tmp_path, done, refused):
    done("select", packed, tmp_path / "HELD", "--ratio", 0.5)
    held = set(chosen_ids(tmp_path / "HELD").tolist())
    for name, source in (("A", packed), ("B", scored)):
        done("select", source, tmp_path / name, "--ipc", 8, "--without", tmp_path / "HELD")
        assert not held & set(chosen_ids(tmp_path / name).tolist())
    roles = [entry["role"] for entry in Provenance.read(tmp_path / "B").inputs]
    assert roles == ["scores", "without"]
    said = refused(
        tmp_path, "select", packed, tmp_path / "C", "--ipc", 15, "--without", tmp_path / "HELD"
    )
    assert "ipc must be at most the size of every class, got 15" in said


def test_a_lowered_cut_is_said(packed, tmp_path, done, write_scores):
    columns = {"aum": np.linspace(-1, 1, 60, dtype=np.float32)}
    scores = write_scores(packed, tmp_path / "SCORES", columns)
    for _ in range(2):  # also where the set is there already
        lines = done("select", scores, tmp_path / "SET", "--ipc", 15, "--misratio", 0.5)
        assert "in 3 classes fewer were cut than asked, to leave enough images" in lines


def test_automatic_bins_are_as_many_as_images(scored, tmp_path, done):
    done("select", scored, tmp_path / "SET", "--ipc", 6, "--bins", "auto", "--misratio", 0)
    parameters = facts_of(tmp_path / "SET")["parameters"]
    assert parameters == {"ipc": 6, "score": "aum", "misratio": 0.0, "bins": 6}


def test_the_published_dialect_is_recorded_and_refuses_to_lose_samples(
    packed, tmp_path, done, refused, write_scores
):
    values = np.linspace(-1, 1, 60, dtype=np.float32)
    scores = write_scores(packed, tmp_path / "SCORES", {"aum": values, "aum_logit": values - 5})
    command = ("--ipc", 6, "--misratio", 0, "--dialect", "published")
    done("select", scores, tmp_path / "SET", *command)
    assert facts_of(tmp_path / "SET")["parameters"]["dialect"] == "published"
    said = refused(tmp_path, "select", scores, tmp_path / "T", *command, "--score", "aum_logit")
    assert "3 samples lie in no bin of the published rule, 1 of them in class 0" in said


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ((), "give one of --ipc and --ratio, got ipc None and ratio None"),
        (("--ipc", 2, "--ratio", 0.5), "give one of --ipc and --ratio, got ipc 2 and ratio 0.5"),
        (("--ratio", 0), "ratio must be above 0 and at most 1, got 0"),
        (("--ratio", 1.5), "ratio must be above 0 and at most 1, got 1.5"),
        (("--ipc", 2, "--method", "d2"), "method d2 needs scores, "),
        (("--ipc", 2, "--method", "hardst"), "hardst"),
        (("--ipc", 2, "--near", 1.0), "near must be in [0, 1), got 1.0"),
        (("--ipc", 2, "--cut-easy", 1.0), "cut-easy must be in [0, 1), got 1.0"),
        (("--ipc", 2, "--without", "nowhere"), "nowhere does not exist"),
        (
            ("--ipc", 20, "--method", "dedup-random", "--near", 0.0, *NETWORK),
            "class n01440764: only 1 of 20 images differ by more than near 0 allows, 20 are asked",
        ),
    ],
)
def test_wrong_options_are_refused_in_one_line(packed, tmp_path, refused, options, said):
    assert said in refused(tmp_path, "select", packed, tmp_path / "SET", *options)


# the study's Table 6, as printed: of the accuracies by misratio, the best one counts

MISRATIOS = (0.1, 0.3, 0.5, 0.7, 0.9)
TABLE_6 = [
    ("imagenette", 10, (54.3, 50.9, 55.2, 57.2, 54.5)),
    ("imagenet-100", 10, (19.2, 21.9, 25.0, 25.3, 27.2)),
    ("imagenet-1k", 10, (10.1, 12.0, 15.1, 17.0, 18.4)),
    ("imagenette", 50, (73.6, 75.6, 75.2, 73.7, 68.7)),
    ("imagenet-100", 50, (45.3, 48.2, 50.8, 51.3, 49.0)),
    ("imagenet-1k", 50, (40.9, 42.6, 43.5, 43.0, 40.4)),
]
TABLE_6_CONCEPTS = [
    ("imagenette", 10, (51.6, 51.5, 49.8, 51.1, 53.6)),
    ("imagenet-100", 10, (18.4, 18.2, 20.4, 21.5, 20.8)),
    ("imagenet-1k", 10, (9.9, 11.4, 13.7, 14.1, 14.5)),
    ("imagenette", 50, (72.9, 74.3, 74.2, 74.3, 75.7)),
    ("imagenet-100", 50, (45.4, 48.6, 49.3, 50.3, 50.1)),
    ("imagenet-1k", 50, (40.8, 42.4, 42.7, 42.4, 41.0)),
]
ROWS = [("aum", *row) for row in TABLE_6] + [("concept_aum", *row) for row in TABLE_6_CONCEPTS]
IMAGENET = 1281.167


@pytest.mark.parametrize(("score", "data", "ipc", "accuracies"), ROWS)
def test_the_misratio_is_the_one_of_the_largest_accuracy(score, data, ipc, accuracies):
    best = max(zip(accuracies, MISRATIOS, strict=True))[1]
    assert default_misratio(score, data, ipc, IMAGENET) == (best, "")


@pytest.mark.parametrize("ipc", [10, 50])
def test_elsewhere_it_is_the_one_of_the_largest_mean_accuracy_at_this_share_of_a_class(ipc):
    accuracies = [row for _, at, row in TABLE_6 if at == ipc]
    best = MISRATIOS[np.mean(accuracies, axis=0).argmax()]
    for data, score in ((None, "aum"), ("imagenette", "el2n"), ("imagenet-1k", "aum_logit")):
        assert default_misratio(score, data, ipc, IMAGENET)[0] == best
    value, assumption = default_misratio("aum", "imagenette", ipc // 2, IMAGENET / 2)
    assert value == best  # not in the table
    assert assumption == (
        f"assumed: misratio {best}, by a rule from the study's Table 6 for {ipc // 2} of 641 "
        "images a class; --misratio sets another"
    )


def test_the_rule_falls_with_the_share_and_is_near_what_ccs_publishes():
    values = [misratio_by_share(share) for share in np.geomspace(1e-6, 1, 200)]
    assert values == sorted(values, reverse=True)
    assert (values[0], values[-1]) == (0.9, 0.0)
    assert misratio_by_share(0.1) == 0.3  # ImageNet, 90 % pruned
    assert misratio_by_share(0.2) == pytest.approx(0.2, abs=0.1)  # 80 % pruned
    assert default_misratio("aum", None, 10, 0)[0] == 0  # a class without images
