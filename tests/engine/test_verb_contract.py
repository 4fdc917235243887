"""The contract of every verb: the same command again, moved inputs, and words that do not fit."""

import re
import shutil
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
    "score --proxy neighbours": Command(
        f"score DATA OUT --proxy neighbours {BACKBONE}",
        "next: coreset select {OUT} SET --ipc 10 --score mean_margin",
        "--size 72", "config.size: 64 there, 72 here",
        neutral="--workers 1",
    ),
    "embed": Command(
        f"embed DATA OUT {BACKBONE}",
        f"next: coreset score {{DATA}} SCORES --proxy linear {BACKBONE}",
        "--size 72", "config.size: 64 there, 72 here",
        neutral="--batch 7",
    ),
    "concepts visual": Command(
        f"concepts visual DATA OUT -k 2 {BACKBONE}",
        "next: coreset score {DATA} SCORES --proxy concept --concepts {OUT}",
        "--k 3 --seed 1", "(config.k: 2 there, 3 here; config.seed: 0 there, 1 here)",
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
    "teach": Command(
        "teach DATA OUT --arch convnet --size 8 --epochs 1 --val VALIDATION",
        "next: coreset train SET VAL RESULTS --protocol rded --teachers {OUT}",
        "--seed 1 --epochs 2", "(config.epochs: 1 there, 2 here; config.seed: 0 there, 1 here)",
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


def filled(words, places):
    """The words of a command, with places for names in capitals."""
    return re.sub(r"[A-Z]{3,}", lambda name: str(places[name[0]]), words).split()


MOVED = (
    "select SCORES OUT --ipc 2 --misratio 0.1",
    "scores show SCORES",
    "scores suspects SCORES",
    "scores compare SCORES SCORES",
    "train SET VALIDATION OUT --size 33 --epochs 1 --evaluations 1 --repeats 1",
    f"measure SET VALIDATION OUT {BACKBONE}",
    "export SET OUT --to ids",
)


@pytest.mark.parametrize("words", MOVED)
def test_a_data_set_that_moved_is_asked_for_and_taken(words, inputs, tmp_path, refused, done):
    places = inputs | {"OUT": tmp_path / "OUT"}
    for name in ("SCORES", "SET"):
        places[name] = shutil.copytree(inputs[name], tmp_path / "far" / "away" / name)
    command = filled(words, places)
    assert "any more; name its place with --data" in refused(tmp_path, *command)
    said = refused(tmp_path, *command, "--data", inputs["VALIDATION"])
    assert re.search("another data set; name the right one with --data|was made from", said)
    done(*command, "--data", inputs["DATA"])


FEW = "got 21, but class n01440764 has 20 images; lower --ipc"
SIZE_17 = "score DATA OUT --size 17 --epochs 3 --batch 16 --lr 0.01"
LINEAR = f"score DATA OUT --proxy linear {BACKBONE}"
REFUSED = {
    "pack PHOTOS OUT": [
        ("--quality 0", "quality must be in [1, 100], got 0"),
        ("--short-side 0", "short_side must be at least 1"),
        ("--samples-per-shard 0", "samples_per_shard must be at least 1, got 0"),
        ("--column noisy", "labels and column go together"),
        ("--labels none.csv --column x", "none.csv does not exist"),
        ("--classes imagenette", "(7 of 10 asked for"),
        ("--classes imagenet21k", "neither imagenette, imagenet-100 or imagenet-1k nor"),
    ],
    "pack PHOTOS PHOTOS/DATA": [("", "lies in src")],
    "synth OUT --classes 4": [
        ("--images 3", "images"),
        ("--images 60 --size large", "no type matching INT|{imagenet}"),
        ("--images 60 --label-noise 1.0", "label_noise"),
        ("--images 60 --samples-per-shard 0", "samples_per_shard"),
    ],
    "decode DATA OUT": [
        ("--size 0", "size must be at least 1, got 0"),
        ("--decoder turbo --decoder-exact", "decoder turbo is not exact"),
    ],
    f"embed DATA OUT {BACKBONE}": [
        ("--size 7", "size must be at least 8, got 7"),
        ("--batch 0", "batch must be at least 1, got 0"),
    ],
    SIZE_17: [
        ("--epochs 0", "epochs must be at least 1, got 0"),
        ("--batch 0", "batch must be at least 1, got 0"),
        ("--el2n-epochs 0", "el2n_epochs must be at least 1, got 0"),
        ("--size 16", "size of --proxy resnet18 must be at least 17, got 16"),
        ("--proxy linear --size 7", "size of --proxy linear must be at least 8, got 7"),
        ("--crop-scale 1.0005", "crop_scale must be in [0.01, 1], got 1.0005"),
        ("--crop-scale nan", "crop_scale must be in [0.01, 1], got nan"),
        ("--lr nan", "lr must be in [0, inf), got nan"),
        ("--lr 1e-5", "min_lr must be in [0, 1e-05] (lr), got 0.0001"),
        ("--min-lr -1", "min_lr must be in [0, 0.01] (lr), got -1.0"),
        ("--weight-decay -1", "weight_decay must be in [0, inf), got -1.0"),
        ("--batch 59 --size 32", "batch 59 leaves a batch of one of 60 images"),
        ("--batch 59 --size 40 --start-size 32", "batch norm cannot train on at size 32; use"),
        ("--start-size 16", "start_size must be 0 or in [17, 17] (size), got 16"),
        ("--pixels P --decoder-exact", "decoder_exact goes with decoding; give it to"),
        ("--pixels no-such-pixels", "no-such-pixels does not exist"),
        ("--tdds --epochs 2", "epochs of --tdds must be at least 3, got 2"),
        ("--folds 5", "folds go with --proxy linear, got --proxy resnet18"),
    ],
    LINEAR: [
        ("--start-size 64", "pixels and start_size go with --proxy resnet18"),
        ("--pixels P", "pixels and start_size go with --proxy resnet18"),
        ("--folds 1", "folds must be at least 2, got 1"),
    ],
    f"score DATA OUT --proxy neighbours {BACKBONE}": [
        ("--epochs 3 --lr 0.1", "epochs, lr go with a proxy that trains, got --proxy neighbours"),
        ("--recipe fast --seed 1", "recipe, seed go with a proxy that trains"),
        ("--tdds --no-final", "final, tdds go with a proxy that trains"),
        ("--pixels P", "pixels go with a proxy that trains"),
        ("--folds 5", "folds go with a proxy that trains"),
        ("--size 7", "size of --proxy neighbours must be at least 8, got 7"),
    ],
    f"concepts visual DATA OUT {BACKBONE}": [
        ("-k 0", "k must be at least 1, got 0"),
        ("-k 21", "got 21, but class n01440764 has 20 images; lower -k"),
        ("--pooled 0", "pooled must be at least 1, got 0"),
        ("--pooled 61", "pooled must be at most 60 (images), got 61"),
    ],
    "concepts": [
        ("show DATA", "is no bank of concepts; make one with `coreset concepts`"),
        ("show none", "none does not exist; make one with `coreset concepts`"),
        ("show DATA --classes 0", "classes must be at least 1, got 0"),
        ("import LIST DATA OUT --backbone resnet18", "resnet18 has no encoder of texts; use"),
        ("import LIST DATA OUT --keep 0", "keep must be at least 1, got 0"),
        ("import LIST DATA OUT --prompt x", "prompt must hold {} for the concept, got 'x'"),
    ],
    "select": [
        ("DATA OUT --ipc 2 --misratio 0 --method ccs", "SCORES` first, or use --method random"),
        ("SET OUT --ipc 2 --misratio 0", "is neither scores nor a packed data set"),
        ("none OUT --ipc 2", "make one with `coreset score` or `coreset pack`"),
    ],
    "select SCORES OUT": [
        ("--ipc 0", "ipc must be at least 1, got 0"),
        ("--ipc 2 --bins 0", "bins must be at least 1, got 0"),
        ("--ipc 2 --misratio 1", "misratio must be in [0, 1), got 1.0"),
        ("--ipc 2 --misratio nan", "misratio must be in [0, 1), got nan"),
        ("--ipc 2 --score beauty", "score must be one of aum, aum_logit, "),
        ("--ipc 2 --misratio 0 --score visits", "score must be one of aum, "),
        ("--ipc 21 --misratio 0", FEW),
        ("--ipc 21 --method random", FEW),
    ],
    "scores": [
        ("show SCORES --classes 0", "classes must be at least 1, got 0"),
        ("suspects SCORES --top 0", "top must be at least 1, got 0"),
        ("show SCORES --score tdds", "got tdds, which was not stored"),
        ("suspects SCORES --score beauty", "got beauty, which is no score"),
        ("show no", "no does not exist; make it with `coreset score DATA no`"),
        ("suspects PHOTOS", "holds no scores; name the output of `coreset score`"),
    ],
    "scores compare SCORES SCORES": [
        ("--ipc 2,,5", "ipc must be whole numbers such as 10,50, got 2,"),
        ("--ipc 0", "ipc must be at least 1, got 0"),
        ("--bins 0", "bins must be at least 1, got 0"),
        ("--misratio 1", "misratio must be in [0, 1), got 1.0"),
        ("--truth t.csv", "truth and column go together, got truth t.c"),
        ("--column c", "truth and column go together, got truth None"),
        ("--ipc 21 --misratio 0", FEW),
    ],
    "distill DATA OUT": [
        ("--ipc 0", "ipc must be at least 1, got 0"),
        ("--ipc 1 --size 0", "size must be at least 1, got 0"),
        ("--ipc 1 --method dreams", "dreams"),
    ],
    "teach DATA OUT": [
        ("--epochs 0", "epochs must be at least 1, got 0"),
        ("--size 32", "size of --arch resnet18 must be at least 33, got 32"),
        ("--arch vgg", "arch must be one of resnet18, resnet50, resnetap10, convnet, or timm:NAME"),
        ("--arch timm:resnet81", "arch must be a timm model, got timm:resnet81; near it: timm:"),
        (
            "--arch timm:vit_tiny_patch16_384",
            "arch timm:vit_tiny_patch16_384 does not train on 60 images of 224 pixels (Input heig",
        ),
        ("--val PHOTOS", "is not a packed data set"),
    ],
    "train SET VALIDATION OUT": [
        ("--size 32", "size of --student resnet18 must be at least 33, got 32"),
        (
            "--size 48 --student resnetap10",
            "size of --student resnetap10 must be at least 64, got 48",
        ),
        ("--size 0 --student timm:test_vit", "timm:test_vit must be at least 1, got 0"),
        ("--epochs 0", "epochs must be at least 1, got 0"),
        ("--evaluations 0", "evaluations must be at least 1, got 0"),
        ("--repeats 0", "repeats must be at least 1, got 0"),
        ("--protocol soft", "soft"),
        (
            "--student vgg",
            "must be one of resnet18, resnet50, resnetap10, convnet, or timm:NAME, got vgg",
        ),
        ("--student timm:resnet81", "must be a timm model, got timm:resnet81; near it: timm:"),
        (
            "--student timm:vit_tiny_patch16_384",
            "timm:vit_tiny_patch16_384 does not train on 6 images of 224 pixels (Input height",
        ),
    ],
    "train DATA VALIDATION OUT": [("", "is not a condensed set (no set.json)")],
    "report": [
        ("none OUT.html", "does not exist; run `coreset train SET VAL"),
        ("PHOTOS OUT.html", "holds no rows"),
        ("PHOTOS OUT.html --max-classes 0", "max_classes"),
        ("PHOTOS OUT.html --images-per-row 0", "images_per_row"),
        ("PHOTOS OUT", "html"),
    ],
    "cost": [("PHOTOS", "has no ledger; name the output"), ("none", "does not exist; name")],
    "methods": [("minmax", "name must be a system of the study, got minmax; near it: Minimax")],
    "ls none": [("", "is not a folder")],
    "dance": [("", "verb must be one of demo, doctor, ")],
    "study": [
        ("run none OUT", "recipe none cannot be read (No such file or directory); name a TOML "),
        ("status PHOTOS OUT", "cannot be read (Is a directory); name a TOML file or one of "),
    ],
    "study run smoke OUT": [
        ("--slots -1", "slots must be at least 0, got -1"),
        ("--limit 0", "limit must be at least 1, got 0"),
        ("--timeout -1", "timeout must be at least 0, got -1.0"),
        ("--part 0/4", "part must be I/N with I from 1 to N, got 0/4"),
        ("--part 5/4", "part must be I/N with I from 1 to N, got 5/4"),
        ("--part 1", "part must be I/N with I from 1 to N, got 1"),
        ("--executor mule", "executor must be one of local, got mule"),
        ("--until cells", "cells"),
    ],
    "export": [
        ("SET SET/OUT --to parquet", "lies in source"),
        ("none OUT --to parquet", "does not exist; make one with `coreset select`"),
        ("PHOTOS OUT --to parquet", "is neither a condensed set nor a packed data set"),
        ("DATA OUT --to parquet --samples-per-shard 0", "samples_per_shard must be at least 1, "),
    ],
    "demo --out OUT": [
        ("--epochs 0", "epochs must be at least 1, got 0"),
        ("--repeats 0", "repeats must be at least 1, got 0"),
    ],
    "doctor": [
        ("--path nothing", "path nothing is not a folder; make it or name another one"),
        ("--device cpu", "device cpu is proved on DATA; name a packed data set"),
        ("PHOTOS", "is not a packed data set"),
    ],
}


@pytest.mark.parametrize(
    ("words", "message"),
    [(f"{words} {more}", text) for words, rows in REFUSED.items() for more, text in rows],
)
def test_what_does_not_fit_is_refused_with_the_reason(inputs, tmp_path, refused, words, message):
    command = filled(words, inputs | {"OUT": tmp_path / "OUT"})
    assert message in refused(tmp_path, *command)
