"""Commands killed before any of their renames: nothing is published, the same command continues."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from coreset.engine.artifacts.checkpoints import Checkpoints
from coreset.engine.artifacts.ledger import read_ledger
from coreset.engine.data.image_cache import begun
from coreset.engine.evaluation.teaching_job import SCRATCH_NAME
from coreset.engine.models.teachers import TEACHER_NAME
from coreset.shards.format.dataset import MANIFEST_NAME, Manifest
from coreset.shards.format.files import temporary_name


@dataclass(frozen=True)
class Interruptible:
    """A command that publishes OUT, and how to make it commit more often."""

    words: str
    settings: dict[str, object] = field(default_factory=dict[str, object])
    """Values of module attributes."""
    commits: int = 0
    """Least number of states that it may continue from, the empty one among them."""
    kept: Callable[[Path], int] | None = None
    """Images that an interrupted run has committed, by its scratch folder."""


def packed_images(scratch):
    """The manifest commits all shards, of six images each; their records may be gone by then."""
    if (scratch / MANIFEST_NAME).exists():
        return Manifest.read(scratch).n_samples
    return 6 * len(list(scratch.glob("shard-*.json")))


def decoded_images(scratch):
    index = begun(scratch) if scratch.exists() else None
    return index.done if index else 0


def taught_images(scratch):
    """Of two epochs of the 60 photos; the document is written after them."""
    if (scratch / TEACHER_NAME).exists():
        return 120
    newest = Checkpoints(scratch / SCRATCH_NAME).latest()
    return 60 * newest[0] if newest else 0


def distilled_images(scratch):
    """Of three classes of 20 photos, each done when its image is written."""
    if (scratch / MANIFEST_NAME).exists():
        return 60
    return 20 * len(list(scratch.glob(".images/*/0*.png")))


RUN = "coreset.engine.scoring.run"
INTERRUPTIBLE = {
    "pack": Interruptible("pack FEW OUT --samples-per-shard 6", commits=2, kept=packed_images),
    "synth": Interruptible(
        "synth OUT --images 12 --classes 2 --size 24 --samples-per-shard 6",
        commits=2,
        kept=packed_images,
    ),
    "decode": Interruptible(
        "decode DAMAGED OUT --size 19",
        {"coreset.engine.data.image_cache.CHUNK_BYTES": 26_500},  # 24, 24 and 12 images
        commits=4,
        kept=decoded_images,
    ),
    "score": Interruptible(
        "score DATA OUT --proxy linear --backbone tf_efficientnet_lite0 --size 64 --epochs 1 "
        "--batch 30 --record-margins --folds 3",
        {f"{RUN}.COMMIT_EVERY_SECONDS": 0.0, f"{RUN}.COMMIT_WITHIN_SECONDS": 0.0},
        commits=2,
    ),
    "select": Interruptible("select DATA OUT --ipc 2"),
    "teach": Interruptible(
        "teach DATA OUT --arch convnet --size 8 --epochs 2 --val VALIDATION",
        {"coreset.engine.evaluation.students.CHECKPOINT_SECONDS": 0.0},
        commits=2,
        kept=taught_images,
    ),
    "distill": Interruptible("distill DATA OUT --ipc 1 --size 8", commits=4, kept=distilled_images),
    "export": Interruptible("export SET OUT --to webdataset"),
}

# Runs a command in forks of itself, each killed before another of its renames; prints how many.
KILLED_BEFORE_EACH_RENAME = """
import importlib, json, os, signal, sys
import torch
from coreset.engine.cli import main

folder, words, settings = sys.argv[1], *map(json.loads, sys.argv[2:])
for name, value in settings.items():
    module, _, attribute = name.rpartition(".")
    setattr(importlib.import_module(module), attribute, value)
rename = os.rename

def run_until(last):
    renames = 0
    def counted(source, target):
        nonlocal renames
        renames += 1
        if renames > last:
            os.kill(os.getpid(), signal.SIGKILL)
        return rename(source, target)
    os.rename = counted
    torch.set_num_threads(1)
    sys.stdout = open(os.devnull, "w")
    return main([f"{folder}/killed-{last:02d}" if word == "OUT" else word for word in words])

last, status = 0, signal.SIGKILL
while status == signal.SIGKILL:
    child = os.fork()
    if child == 0:
        os._exit(run_until(last))
    status = os.waitpid(child, 0)[1]
    last += 1
assert status == 0
print(last - 1)
"""


@pytest.fixture
def interruptible(name, inputs, damaged, make_photos, tmp_path):
    """The words of the command ``name`` but its output."""
    few = make_photos(tmp_path / "FEW", per_class=4)
    places = inputs | {"DAMAGED": damaged, "FEW": few}
    return [str(places.get(word, word)) for word in INTERRUPTIBLE[name].words.split()]


def with_output(words, out):
    return [str(out) if word == "OUT" else word for word in words]


@pytest.mark.parametrize(
    "name",
    # Each of its many forks imports scikit-learn.
    [pytest.param(n, marks=pytest.mark.slow if n == "distill" else ()) for n in INTERRUPTIBLE],
)
def test_a_command_killed_before_any_of_its_renames_is_continued_to_the_same_bytes(
    *, name, interruptible, tmp_path, fork, done, stored_bytes, monkeypatch
):
    command = INTERRUPTIBLE[name]
    settings, commits, count_kept = command.settings, command.commits, command.kept
    for attribute, value in settings.items():
        monkeypatch.setattr(attribute, value)
    folder = tmp_path / "out"
    folder.mkdir()
    whole = folder / "WHOLE"
    done(*with_output(interruptible, whole))  # caches the features that it needs
    child = fork(KILLED_BEFORE_EACH_RENAME, folder, json.dumps(interruptible), json.dumps(settings))
    assert child.code == 0, child.said
    n_renames = int(child.said.splitlines()[-1])
    assert n_renames >= 2 * commits  # per commit: what is kept, cost so far
    images, left = read_ledger(whole)[-1]["images"], set[int]()
    for last in range(n_renames):
        out = folder / f"killed-{last:02d}"
        assert not out.exists()
        kept = None if count_kept is None else count_kept(temporary_name(out))
        done(*with_output(interruptible, out))
        own = read_ledger(out)[-1]
        assert own["interrupted"] is False
        assert kept is None or own["images"] == images - kept
        left.add(own["images"])
    assert len(left) >= commits
    assert max(left) == images
    outputs = [folder / f"killed-{last:02d}" for last in range(n_renames + 1)]
    assert sorted(folder.iterdir()) == [whole, *outputs]
    for out in outputs:
        assert stored_bytes(out) == stored_bytes(whole)
