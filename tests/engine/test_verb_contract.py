"""The contract of every verb that makes an artifact or appends rows.

The same command again does nothing, and another configuration is refused with the difference.
"""

import re
from dataclasses import dataclass

import pytest

from coreset.engine.cli import VERBS

BACKBONE = ("--backbone", "tf_efficientnet_lite0", "--size", 64)
TINY = ("--size", 33, "--epochs", 1, "--evaluations", 1, "--repeats", 1)
RESNET = ("--size", 17, "--epochs", 3, "--batch", 16, "--lr", 0.01)
DONE = re.compile(r"(was|are) there already|\(1 students, 0 of them new\)|_r1 0\.")


@dataclass(frozen=True)
class Command:
    """A command that makes OUT of inputs, which stand in capitals like OUT itself."""

    words: tuple[object, ...]
    follows: str
    """The last line, which names the next command."""
    changed: tuple[tuple[object, ...], str] | None = None
    """Options that change the result, and the difference that the refusal names."""
    neutral: tuple[object, ...] = ()
    """Options that do not change the result."""
    made: str = ""
    """Fixture that has made OUT by these words."""


COMMANDS = {
    "pack": Command(
        ("pack", "PHOTOS", "OUT", "--samples-per-shard", 16),
        "next: coreset score {OUT} SCORES",
        (("--samples-per-shard", 17), "config.samples_per_shard: 16 there, 17 here"),
        ("--workers", 1),
        made="packed",
    ),
    "synth": Command(
        ("synth", "OUT", "--images", 12, "--classes", 2, "--size", 24),
        "next: coreset score {OUT} SCORES",
        (("--seed", 1), "config.seed: 0 there, 1 here"),
        ("--workers", 1),
    ),
    "decode": Command(
        ("decode", "DATA", "OUT", "--size", 19),
        "next: coreset score {DATA} SCORES --pixels {OUT} --size 17",
        (("--size", 20), "config.size: 19 there, 20 here"),
        ("--workers", 1, "--decoder", "turbo"),
    ),
    "decode exactly": Command(
        ("decode", "DATA", "OUT", "--size", 19),
        "next: coreset score {DATA} SCORES --pixels {OUT} --size 17",
        (("--decoder-exact",), "config.decoder: turbo there, pillow here"),
    ),
    "score": Command(
        ("score", "DATA", "OUT", *RESNET),
        "next: coreset select {OUT} SET --ipc 10",
        (
            ("--seed", 1, "--lr", 0.2),
            "(config.lr: 0.01 there, 0.2 here; config.seed: 0 there, 1 here)",
        ),
        ("--workers", 1),
        made="scored",
    ),
    "embed": Command(
        ("embed", "DATA", "OUT", *BACKBONE),
        "next: coreset score {DATA} SCORES --proxy linear "
        "--backbone tf_efficientnet_lite0 --size 64",
        (("--size", 72), "config.size: 64 there, 72 here"),
        ("--batch", 7),
    ),
    "select": Command(
        ("select", "SCORES", "OUT", "--ipc", 2, "--misratio", 0.1),
        "next: coreset train {OUT} VAL RESULTS",
        (("--ipc", 3), "config.ipc: 2 there, 3 here"),
        made="ccs_set",
    ),
    "ingest": Command(
        ("ingest", "LIST", "OUT", "--data", "DATA"),
        "next: coreset train {OUT} VAL RESULTS",
        (("--method", "theirs"), "config.method: listed there, theirs here"),
    ),
    "distill": Command(
        ("distill", "DATA", "OUT", "--ipc", 2, "--size", 8),
        "next: coreset train {OUT} VAL RESULTS",
        (("--size", 9), "config.size: 8 there, 9 here"),
        ("--workers", 1),
    ),
    "train": Command(
        ("train", "SET", "VALIDATION", "OUT", *TINY), "next: coreset report {OUT} report.html"
    ),
    "measure": Command(
        ("measure", "SET", "VALIDATION", "OUT", *BACKBONE), "next: coreset report {OUT} report.html"
    ),
    "export --to imagefolder": Command(
        ("export", "SET", "OUT", "--to", "imagefolder"),
        'next: torchvision.datasets.ImageFolder("{OUT}")',
        (("--to", "parquet"), "config.to: imagefolder there, parquet here"),
    ),
    "export --to webdataset": Command(
        ("export", "SET", "OUT", "--to", "webdataset"),
        'next: timm.data.create_dataset("wds/", root="{OUT}", split="train")',
        (
            ("--samples-per-shard", 3),
            "config.samples_per_shard: 2000 there, 3 here",
        ),
    ),
    "export --to parquet": Command(
        ("export", "SET", "OUT", "--to", "parquet"),
        'next: datasets.load_dataset("{OUT}", split="train")',
        (("--to", "webdataset"), "config.to: parquet there, webdataset here"),
    ),
}  # fmt: skip
REFUSING = [name for name, command in COMMANDS.items() if command.changed]


@pytest.fixture(scope="module")
def outputs(tmp_path_factory):
    return tmp_path_factory.mktemp("outputs")


@pytest.fixture
def finished(name, inputs, outputs, done, request):
    """The words of the command ``name``, which has made its output; and the output."""
    command = COMMANDS[name]
    out = outputs / name.replace(" ", "_")
    if command.made:
        out = request.getfixturevalue(command.made)
    words: list[object] = [(inputs | {"OUT": out}).get(str(word), word) for word in command.words]
    if not out.exists():
        done(*words)
    return words, out


@pytest.mark.parametrize("name", COMMANDS)
def test_the_same_command_again_does_nothing_and_names_the_next_one(name, finished, inputs, done):
    words, out = finished
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    lines = done(*words, *COMMANDS[name].neutral)
    assert any(DONE.search(line) for line in lines), lines
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before
    follows = COMMANDS[name].follows.format(OUT=out, **inputs)
    assert lines[-1] == follows
    verb = re.match(r"next: coreset (\w+) ", follows)
    assert verb is None or verb[1] in VERBS


@pytest.mark.parametrize("name", REFUSING)
def test_another_configuration_is_refused_with_the_difference(name, finished, refused):
    words, out = finished
    changed = COMMANDS[name].changed
    assert changed is not None
    options, difference = changed
    said = refused(out, *words, *options)
    assert f"{out} was made by another configuration (" in said
    assert difference in said
