"""The contract of every verb that makes an artifact or appends rows.

The same command again does nothing, and another configuration is refused with the difference.
"""

import re
from dataclasses import dataclass

import pytest

from coreset.engine.cli import VERBS

BACKBONE = "--backbone tf_efficientnet_lite0 --size 64"
DONE = re.compile(r"(was|are) there already|\(1 students, 0 of them new\)|_r1 0\.")


@dataclass(frozen=True)
class Command:
    """A command that makes OUT of inputs, which stand in capitals like OUT itself."""

    words: str
    follows: str
    """The last line, which names the next command."""
    changed: str = ""
    """Options that change the result."""
    difference: str = ""
    """What the refusal of these names."""
    neutral: str = ""
    """Options that do not change the result."""
    made: str = ""
    """Fixture that has made OUT by these words."""


COMMANDS = {
    "pack": Command(
        "pack PHOTOS OUT --samples-per-shard 16",
        "next: coreset score {OUT} SCORES",
        "--samples-per-shard 17", "config.samples_per_shard: 16 there, 17 here",
        neutral="--workers 1", made="packed",
    ),
    "synth": Command(
        "synth OUT --images 12 --classes 2 --size 24",
        "next: coreset score {OUT} SCORES",
        "--seed 1", "config.seed: 0 there, 1 here",
        neutral="--workers 1",
    ),
    "decode": Command(
        "decode DATA OUT --size 19",
        "next: coreset score {DATA} SCORES --pixels {OUT} --size 17",
        "--size 20 --decoder-exact",
        "(config.decoder: turbo there, pillow here; config.size: 19 there, 20 here)",
        neutral="--workers 1 --decoder turbo",
    ),
    "score": Command(
        "score DATA OUT --size 17 --epochs 3 --batch 16 --lr 0.01",
        "next: coreset select {OUT} SET --ipc 10",
        "--seed 1 --lr 0.2", "(config.lr: 0.01 there, 0.2 here; config.seed: 0 there, 1 here)",
        neutral="--workers 1", made="scored",
    ),
    "embed": Command(
        f"embed DATA OUT {BACKBONE}",
        f"next: coreset score {{DATA}} SCORES --proxy linear {BACKBONE}",
        "--size 72", "config.size: 64 there, 72 here",
        neutral="--batch 7",
    ),
    "select": Command(
        "select SCORES OUT --ipc 2 --misratio 0.1",
        "next: coreset train {OUT} VAL RESULTS",
        "--ipc 3", "config.ipc: 2 there, 3 here",
        made="ccs_set",
    ),
    "ingest": Command(
        "ingest LIST OUT --data DATA",
        "next: coreset train {OUT} VAL RESULTS",
        "--method theirs", "config.method: listed there, theirs here",
    ),
    "distill": Command(
        "distill DATA OUT --ipc 2 --size 8",
        "next: coreset train {OUT} VAL RESULTS",
        "--size 9", "config.size: 8 there, 9 here",
        neutral="--workers 1",
    ),
    "train": Command(
        "train SET VALIDATION OUT --size 33 --epochs 1 --evaluations 1 --repeats 1",
        "next: coreset report {OUT} report.html",
    ),
    "measure": Command(
        f"measure SET VALIDATION OUT {BACKBONE}", "next: coreset report {OUT} report.html"
    ),
    "export --to imagefolder": Command(
        "export SET OUT --to imagefolder",
        'next: torchvision.datasets.ImageFolder("{OUT}")',
        "--to parquet", "config.to: imagefolder there, parquet here",
    ),
    "export --to webdataset": Command(
        "export SET OUT --to webdataset",
        'next: timm.data.create_dataset("wds/", root="{OUT}", split="train")',
        "--samples-per-shard 3", "config.samples_per_shard: 2000 there, 3 here",
    ),
    "export --to parquet": Command(
        "export SET OUT --to parquet",
        'next: datasets.load_dataset("{OUT}", split="train")',
        "--to webdataset", "config.to: parquet there, webdataset here",
    ),
}  # fmt: skip


@pytest.fixture
def finished(name, inputs, tmp_path, done, request):
    """The words of the command ``name``, which has made its output; and the output."""
    command, out = COMMANDS[name], tmp_path / "OUT"
    if command.made:
        out = request.getfixturevalue(command.made)
    words = [(inputs | {"OUT": out}).get(word, word) for word in command.words.split()]
    if not out.exists():
        done(*words)
    return words, out


@pytest.mark.parametrize("name", COMMANDS)
def test_the_same_command_does_nothing_and_another_configuration_is_refused(
    name, finished, inputs, done, refused
):
    (words, out), command = finished, COMMANDS[name]
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    lines = done(*words, *command.neutral.split())
    assert any(DONE.search(line) for line in lines), lines
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before
    assert lines[-1] == command.follows.format(OUT=out, **inputs)
    verb = re.match(r"next: coreset (\w+) ", lines[-1])
    assert verb is None or verb[1] in VERBS
    if command.changed:
        said = refused(out, *words, *command.changed.split())
        assert f"{out} was made by another configuration (" in said
        assert command.difference in said
