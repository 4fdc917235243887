"""Selection as a user sees it: which ids, by which rule, and what is refused."""

import json
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import pytest
import tyro
from PIL import Image

from coreset.engine.artifacts.checkpoints import Checkpoints
from coreset.engine.artifacts.ledger import read_ledger
from coreset.engine.artifacts.provenance import Provenance
from coreset.engine.artifacts.store import SCORES_NAME, Columns, write_columns
from coreset.engine.artifacts.writer import create_artifact
from coreset.engine.condensed.misratio import misratio_by_share
from coreset.engine.condensed.selection import SAMPLERS, FeatureParameters, Sampler
from coreset.kernels.samplers import Selection, random_coreset
from coreset.kernels.scores import SCORES
from coreset.kernels.seeds import derived_seed, random_keys
from coreset.shards.format.classes import IMAGENETTE_WNIDS
from coreset.shards.format.dataset import Dataset
from coreset.shards.format.manifest import Manifest

CHECKOUT = Path(__file__).parents[2]


def chosen_ids(condensed):
    return np.load(condensed / "ids.npy", allow_pickle=False)


def facts_of(condensed):
    return json.loads((condensed / "set.json").read_text())


def stored_score(scores, name):
    newest = Checkpoints(scores).latest()
    assert newest is not None
    return Columns(newest[1] / SCORES_NAME)[name]


def write_scores(data, out, columns):
    """A scores artifact as `coreset score` commits it, without the training."""
    recorded = Provenance.read(data).as_input("data", data, out)
    provenance = Provenance(
        kind="scores",
        stage="score",
        config={},
        binds={"identity": Manifest.read(data).identity},
        inputs=(recorded,),
    )
    with create_artifact(out, provenance, inputs=[data]) as work:
        generations = Checkpoints(work.scratch)
        generations.commit(1, lambda folder: write_columns(folder / SCORES_NAME, columns, {}))
    return out


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


@pytest.mark.parametrize("options", [(), ("--seed", 5), ("--ipc", 20)])
def test_a_random_coreset_has_exactly_ipc_images_of_every_class(packed, tmp_path, done, options):
    done("select", packed, tmp_path / "SET", "--ipc", 7, *options)
    ids, facts = chosen_ids(tmp_path / "SET"), facts_of(tmp_path / "SET")
    ipc = 20 if "--ipc" in options else 7
    assert ids.dtype == np.int64
    assert (np.diff(ids) > 0).all()
    assert np.bincount(Dataset.open(packed).labels[ids]).tolist() == [ipc] * 3
    assert facts["parameters"] == {"ipc": ipc}
    seed = derived_seed(5 if "--seed" in options else 0, 0)  # the stream of random
    assert ids.tolist() == random_coreset(Dataset.open(packed).labels, 3, ipc, seed).ids.tolist()


def test_the_set_tells_what_it_is_and_where_it_comes_from(packed, scored, ccs_set):
    manifest = Manifest.read(packed)
    assert facts_of(ccs_set) == {
        "format": "coreset-set",
        "format_version": 1,
        "kind": "coreset",
        "method": "ccs-aum",
        "parameters": {"ipc": 2, "score": "aum", "misratio": 0.1, "bins": 50},
        "seed": 0,
        "source_name": manifest.name,
        "source_identity": manifest.identity,
        "source_content": manifest.content,
        "n_classes": 3,
        "ipc": 2,
        "per_class": [2, 2, 2],
    }
    provenance = Provenance.read(ccs_set)
    assert provenance.binds == {"identity": manifest.identity, "content": manifest.content}
    assert [one["kind"] for one in provenance.lineage()] == ["scores", "dataset"]
    assert provenance.inputs[0]["digest"] == Provenance.read(scored).digest
    stages = [line["stage"] for line in read_ledger(ccs_set)]
    assert stages == ["pack", "score", "select"]


def test_a_random_coreset_does_not_cost_the_scores_beside_which_it_was_drawn(
    scored, tmp_path, done, random_set
):
    done("select", scored, tmp_path / "SET", "--method", "random", "--ipc", 2)
    assert chosen_ids(tmp_path / "SET").tolist() == chosen_ids(random_set).tolist()
    assert [line["stage"] for line in read_ledger(tmp_path / "SET")] == ["pack", "select"]


def share_one_at_a_time(sizes, budget):
    """Give a sample to the poorest bin that has one left; of equals, to the most populated."""
    counts = [0] * len(sizes)
    for _ in range(budget):
        hungry = [i for i, size in enumerate(sizes) if counts[i] < size]
        counts[min(hungry, key=lambda i: (counts[i], -sizes[i], -i))] += 1
    return counts


def slow_ccs(easiness, labels, *, ipc, misratio, n_bins, seed):
    """Class-wise CCS, algorithm 1 of the study, on Python lists."""
    picked = []
    for label in sorted(set(labels)):
        members = [i for i, other in enumerate(labels) if other == label]
        keys = random_keys(len(members), derived_seed(seed, label)).tolist()
        key_of = dict(zip(members, keys, strict=True))
        n_cut = min(int(misratio * len(members) + 1e-9), len(members) - ipc)
        kept = sorted(members, key=lambda i: easiness[i])[n_cut:]
        low, high = easiness[kept[0]], easiness[kept[-1]]
        bins = [[] for _ in range(n_bins)]
        for i in kept:
            share = (easiness[i] - low) / (high - low) if high > low else 0
            bins[min(int(share * n_bins), n_bins - 1)].append(i)
        counts = share_one_at_a_time([len(one) for one in bins], ipc)
        for one, count in zip(bins, counts, strict=True):
            picked += sorted(one, key=key_of.__getitem__)[:count]
    return sorted(picked)


@pytest.mark.parametrize(
    "score", [one for one in SCORES if one not in {"tdds", "confidence_oof", "margin_oof"}]
)
def test_ccs_is_what_its_algorithm_says_on_the_stored_scores(packed, scored, tmp_path, done, score):
    values = stored_score(scored, score).astype(float)
    easiness = (values if SCORES[score].low_is_hard else -values).tolist()
    labels = Dataset.open(packed).labels.tolist()
    for seed, (ipc, misratio, bins) in enumerate(
        [(1, 0.9, 50), (5, 0.3, 50), (7, 0, 4), (19, 0.5, 3)]
    ):
        out = tmp_path / f"SET-{seed}"
        options = ("--ipc", ipc, "--misratio", misratio, "--bins", bins, "--seed", seed)
        done("select", scored, out, "--score", score, *options)
        assert chosen_ids(out).tolist() == slow_ccs(
            easiness,
            labels,
            ipc=ipc,
            misratio=misratio,
            n_bins=bins,
            seed=derived_seed(seed, 1),  # the stream of ccs
        )


def test_ccs_cuts_the_hardest_of_every_class(packed, scored, tmp_path, done):
    done("select", scored, tmp_path / "SET", "--ipc", 4, "--misratio", 0.5)
    aum, labels = stored_score(scored, "aum"), Dataset.open(packed).labels
    chosen = chosen_ids(tmp_path / "SET")
    for label in range(3):
        hardest = np.sort(aum[labels == label])[:10]
        assert aum[chosen[labels[chosen] == label]].min() > hardest.max()


def test_the_draw_depends_on_seed_and_method_alone(packed, scored, tmp_path, done, stored_bytes):
    ccs = ("select", scored, "--ipc", 5, "--misratio", 0)
    random = ("select", packed, "--ipc", 5)
    commands = {
        "ccs-0": ccs,
        "ccs-0-again": ccs,
        "ccs-1": (*ccs, "--seed", 1),
        "random-0": random,
        "random-1": (*random, "--seed", 1),
    }
    for name, (verb, source, *options) in commands.items():
        done(verb, source, tmp_path / name, *options)
    drawn = {name: chosen_ids(tmp_path / name).tolist() for name in commands}
    assert stored_bytes(tmp_path / "ccs-0") == stored_bytes(tmp_path / "ccs-0-again")
    del drawn["ccs-0-again"]
    assert len({tuple(ids) for ids in drawn.values()}) == len(drawn)


def test_the_misratio_of_the_study_is_used_where_it_is_known(nette, tmp_path, done):
    columns = {"aum": np.linspace(-1, 1, 120, dtype=np.float32), "el2n": np.ones(120, np.float32)}
    scores = write_scores(nette, tmp_path / "SCORES", columns)
    lines = done("select", scores, tmp_path / "SET", "--ipc", 10)
    assert len(lines) == 2  # nothing is assumed
    assert facts_of(tmp_path / "SET")["parameters"]["misratio"] == 0.7
    assert read_ledger(tmp_path / "SET")[-1]["lowered_misratio_classes"] == 10


@pytest.mark.parametrize("options", [("--ipc", 4), ("--ipc", 10, "--score", "el2n")])
def test_a_misratio_that_the_study_does_not_have_is_assumed_and_said(
    nette, tmp_path, done, options
):
    columns = {"aum": np.linspace(-1, 1, 120, dtype=np.float32), "el2n": np.ones(120, np.float32)}
    scores = write_scores(nette, tmp_path / "SCORES", columns)
    value = misratio_by_share(options[1] / 12)
    for _ in range(2):  # also where the set is there already
        said, *_ = done("select", scores, tmp_path / "SET", *options)
        assert said == (
            f"assumed: misratio {value:g}, by a rule from the study's Table 6 for {options[1]} of "
            "12 images a class; --misratio sets another"
        )
    assert facts_of(tmp_path / "SET")["parameters"]["misratio"] == value


def test_a_score_without_a_default_needs_a_misratio(scored, tmp_path, refused, done, monkeypatch):
    monkeypatch.setattr("coreset.engine.condensed.misratio._WITHOUT_DEFAULT", ("aum",))
    command = ("select", scored, tmp_path / "SET", "--ipc", 2)
    said = refused(tmp_path, *command)
    assert "misratio has no default for score aum; give --misratio" in said
    done(*command, "--misratio", 0.3)
    done("select", scored, tmp_path / "RANDOM", "--ipc", 2, "--method", "random")


@pytest.mark.parametrize(("name", "ipc"), [("packed", 10), ("val", 6)])
def test_what_score_names_next_works_as_typed(request, tmp_path, done, name, ipc):
    request.getfixturevalue("monkeypatch").chdir(tmp_path)
    data = request.getfixturevalue(name)
    *_, hint = done("score", data, "my scores", "--size", 17, "--epochs", 1, "--lr", 0.01)
    words = shlex.split(hint.removeprefix("next: coreset "))
    assert words == ["select", "my scores", "SET", "--ipc", str(ipc)]
    done(*words)
    assert len(chosen_ids(tmp_path / "SET")) == 3 * ipc


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--ipc", 0), "ipc must be at least 1, got 0"),
        (("--ipc", 2, "--bins", 0), "bins must be at least 1, got 0"),
        (("--ipc", 2, "--misratio", 1), "misratio must be in [0, 1), got 1.0"),
        (("--ipc", 2, "--misratio", -0.1), "misratio must be in [0, 1), got -0.1"),
        (("--ipc", 2, "--misratio", "nan"), "misratio must be in [0, 1), got nan"),
        (("--ipc", 2, "--score", "beauty"), "score must be one of aum, aum_logit, "),
        (("--ipc", 2, "--misratio", 0, "--score", "visits"), "score must be one of aum, "),
        (
            ("--ipc", 21, "--misratio", 0),
            "got 21, but class n01440764 has 20 images; lower --ipc",
        ),
        (
            ("--ipc", 21, "--method", "random"),
            "got 21, but class n01440764 has 20 images; lower --ipc",
        ),
    ],
)
def test_arguments_out_of_range_are_refused(scored, tmp_path, refused, options, message):
    assert message in refused(tmp_path, "select", scored, tmp_path / "SET", *options)


def test_ccs_on_a_data_set_is_refused_with_the_way_to_scores(packed, tmp_path, refused):
    said = refused(tmp_path, "select", packed, tmp_path / "SET", "--ipc", 2, "--method", "ccs")
    assert f"run `coreset score {packed} SCORES` first, or use --method random" in said


def test_a_source_that_is_neither_is_refused(random_set, tmp_path, refused):
    options = ("--ipc", 2, "--misratio", 0)
    said = refused(tmp_path, "select", random_set, tmp_path / "SET", *options)
    assert "is neither scores nor a packed data set" in said
    said = refused(tmp_path, "select", tmp_path / "no", tmp_path / "SET", *options)
    assert "does not exist; make one with `coreset score` or `coreset pack`" in said


@pytest.fixture
def mailed(scored, tmp_path):
    """The command that selects from scores without the data set at its place beside them."""
    scores = shutil.copytree(scored, tmp_path / "far" / "away" / "SCORES")
    return "select", scores, tmp_path / "SET", "--ipc", 2, "--misratio", 0.1


def test_a_data_set_that_is_not_where_it_was_is_asked_for(mailed, tmp_path, val, refused):
    assert "any more; name its place with --data" in refused(tmp_path, *mailed)
    said = refused(tmp_path, *mailed, "--data", val)
    assert f"{val} has identity" in said
    assert "another data set; name the right one with --data" in said


def test_a_data_set_that_moved_gives_the_same_set(mailed, packed, ccs_set, tmp_path, done):
    done(*mailed, "--data", packed)
    assert chosen_ids(tmp_path / "SET").tolist() == chosen_ids(ccs_set).tolist()
    assert Provenance.read(tmp_path / "SET").digest == Provenance.read(ccs_set).digest


def test_scores_that_are_not_finite_are_refused_with_the_image_named(packed, tmp_path, refused):
    values = np.zeros(60, np.float32)
    values[[7, 30]] = np.nan, np.inf
    scores = write_scores(packed, tmp_path / "SCORES", {"aum": values})
    command = ("select", scores, tmp_path / "SET", "--ipc", 2, "--misratio", 0)
    key = Dataset.open(packed).keys[7]
    said = refused(tmp_path, *command, code=3)
    assert f"has nan as aum of {key} (2 are not finite); choose another --score, or score" in said


def test_samples_that_could_not_be_decoded_are_no_candidates(packed, tmp_path, done):
    values = np.arange(60, dtype=np.float32)
    values[[7, 30]] = np.nan, 0.5  # one never seen, one seen in some epochs
    scores = write_scores(packed, tmp_path / "SCORES", {"aum": values})
    (scores / "undecodable.json").write_text('{"7": "truncated", "30": "truncated"}')
    sizes = np.bincount(np.delete(Dataset.open(packed).labels, [7, 30]))
    done("select", scores, tmp_path / "SET", "--ipc", sizes.min(), "--misratio", 0)
    chosen = chosen_ids(tmp_path / "SET")
    assert not set(chosen) & {7, 30}
    assert np.bincount(Dataset.open(packed).labels[chosen]).tolist() == [sizes.min()] * 3


def test_a_random_coreset_leaves_out_what_could_not_be_decoded_too(packed, tmp_path, done, refused):
    scores = write_scores(packed, tmp_path / "S", {"aum": np.zeros(60, np.float32)})
    (scores / "undecodable.json").write_text('{"7": "truncated", "30": "truncated"}')
    sizes = np.bincount(np.delete(Dataset.open(packed).labels, [7, 30]))
    random = ("--method", "random", "--ipc")
    done("select", scores, tmp_path / "SET", *random, sizes.min())
    chosen = chosen_ids(tmp_path / "SET")
    assert not set(chosen) & {7, 30}
    assert np.bincount(Dataset.open(packed).labels[chosen]).tolist() == [sizes.min()] * 3
    assert facts_of(tmp_path / "SET")["parameters"] == {"ipc": sizes.min()}
    said = refused(tmp_path, "select", scores, tmp_path / "T", *random, sizes.min() + 1)
    assert f"has {sizes.min()} images; lower --ipc" in said
    # Drawn from all images it is another set: not one that is there already.
    said = refused(tmp_path, "select", packed, tmp_path / "SET", *random, sizes.min())
    assert "config.undecodable: " in said


@pytest.mark.parametrize(
    "words", [["select"], *(["scores", v] for v in ("show", "suspects", "compare"))]
)
def test_the_help_names_every_score(coreset, words):
    shown = coreset(*words, "--help").out
    assert all(re.search(rf"[{{, ]{name}[,}}]", shown) for name in SCORES)


@pytest.mark.parametrize("value", [0.0, -1.0, 1e30])
def test_constant_scores_give_exactly_ipc_images(packed, tmp_path, done, value):
    scores = write_scores(packed, tmp_path / "S", {"aum": np.full(60, value, np.float32)})
    done("select", scores, tmp_path / "SET", "--ipc", 6, "--misratio", 0.2)
    labels = Dataset.open(packed).labels[chosen_ids(tmp_path / "SET")]
    assert np.bincount(labels).tolist() == [6, 6, 6]


def test_a_score_that_was_not_stored_is_refused_with_those_that_were(packed, tmp_path, refused):
    scores = write_scores(packed, tmp_path / "SCORES", {"aum": np.zeros(60, np.float32)})
    options = ("--ipc", 2, "--misratio", 0, "--score", "el2n")
    said = refused(tmp_path, "select", scores, tmp_path / "SET", *options)
    assert "score must be one of aum in " in said


def test_scores_of_another_number_of_images_are_refused(packed, tmp_path, refused):
    scores = write_scores(packed, tmp_path / "SCORES", {"aum": np.zeros(59, np.float32)})
    command = ("select", scores, tmp_path / "SET", "--ipc", 2, "--misratio", 0)
    assert "aum has 59 rows for 60 images" in refused(tmp_path, *command, code=3)


@pytest.mark.parametrize("damage", ["array cut", "array lost", "commit cut", "generation lost"])
def test_damaged_scores_are_refused(scored, packed, tmp_path, refused, damage):
    scores = shutil.copytree(scored, tmp_path / "SCORES")
    chunk = next(path for path in scores.rglob("aum/c/*"))
    match damage:
        case "array cut":
            chunk.write_bytes(chunk.read_bytes()[:-1])
        case "array lost":
            chunk.unlink()
        case "commit cut":
            (scores / "commit.json").write_text('{"generations": [')
        case _:
            shutil.rmtree(next(scores.glob("gen-*")))
    command = ("select", scores, tmp_path / "SET", "--ipc", 2, "--misratio", 0, "--data", packed)
    said = refused(tmp_path, *command, code=3)
    assert str(scores) in said
    assert "run again" in said


@dataclass(frozen=True, kw_only=True)
class SkipParameters(FeatureParameters):
    skip: Annotated[int, tyro.conf.arg(help="Images of each class to pass over.")] = 0


def after_some(candidates, values, ipc, seed, parameters):
    """The images of each class that come after the first few."""
    assert seed == derived_seed(3, 99)
    assert (values is None) == (parameters.features is None)
    assert values is None or values.shape[0] == candidates.ids.size
    members = [np.flatnonzero(candidates.labels == label) for label in range(candidates.n_classes)]
    taken = [ids[parameters.skip :][:ipc] for ids in members]
    return Selection(ids=np.sort(np.concatenate(taken)))


@pytest.fixture
def register(monkeypatch):
    def add(needs):
        toy = Sampler(
            summary="take", draw=after_some, stream=99, needs=needs, parameters=SkipParameters
        )
        monkeypatch.setitem(SAMPLERS, "toy", toy)

    return add


@pytest.mark.parametrize("needs", ["nothing", "features"])
def test_a_sampler_is_registered_in_one_place(packed, tmp_path, coreset, register, needs):
    register(needs)
    assert "Images of each class to pass over." in coreset("select", "--help").out
    command = ["select", packed, tmp_path / "SET", "--method", "toy", "--ipc", 2, "--seed", 3]
    stages = ["pack", "select"]
    if needs == "features":
        assert "this method needs --features" in coreset(*command).err
        network = ("--backbone", "tf_efficientnet_lite0", "--size", 32)
        coreset("embed", packed, tmp_path / "FEATURES", *network)
        command += ["--features", tmp_path / "FEATURES"]
        stages = ["pack", "embed", "select"]
    assert coreset(*command, "--skip", 4).err == ""
    labels, chosen = Dataset.open(packed).labels, chosen_ids(tmp_path / "SET")
    expected = [np.flatnonzero(labels == label)[4:6] for label in range(3)]
    assert chosen.tolist() == np.sort(np.concatenate(expected)).tolist()
    facts = facts_of(tmp_path / "SET")
    assert (facts["method"], facts["parameters"]) == ("toy", {"ipc": 2, "skip": 4})
    assert [line["stage"] for line in read_ledger(tmp_path / "SET")] == stages
    assert "config.skip: 4 there, 5 here" in coreset(*command, "--skip", 5).err


def test_features_of_other_images_are_refused(packed, val, tmp_path, coreset, register):
    register("features")
    coreset("embed", val, tmp_path / "F", "--backbone", "tf_efficientnet_lite0", "--size", 32)
    command = ("select", packed, tmp_path / "SET", "--method", "toy", "--ipc", 2)
    told = coreset(*command, "--features", tmp_path / "F")
    assert told.code == 2
    assert f"holds features of other images than {packed}" in told.err


# Every verb that promises to do without torch, in one interpreter.
WITHOUT_TORCH = """
import sys
from coreset.engine.cli import main

scores, data, out = sys.argv[1:]
for words in (
    ["select", scores, f"{out}/CCS", "--ipc", "2", "--misratio", "0.1"],
    ["select", data, f"{out}/RANDOM", "--ipc", "2"],
    ["verify", data, "--deep"],
    ["cost", f"{out}/CCS"],
    ["ls", out],
    *([verb, "--help"] for verb in ("pack", "score", "train", "measure", "report", "demo")),
):
    assert main(words) == 0, words
    assert "torch" not in sys.modules, words
"""


def test_selecting_verifying_costs_and_help_import_no_torch(scored, packed, tmp_path):
    command = [sys.executable, "-c", WITHOUT_TORCH, str(scored), str(packed), str(tmp_path)]
    subprocess.run(command, cwd=CHECKOUT, check=True, stdout=subprocess.DEVNULL)
