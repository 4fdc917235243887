"""An artifact whose making was interrupted is said to be so, with the command that continues."""

import shlex

import pytest

from coreset.engine.artifacts.provenance import Provenance
from coreset.engine.artifacts.writer import COMMAND, create_artifact
from coreset.engine.stages.pack import Pack
from coreset.shards.format.files import COMMAND_NAME, temporary_name

# Words that read the artifact X; the others are those of the fixture ``inputs``.
READERS = {
    "pack": ("X", "OUT"),
    "verify": ("X",),
    "verify --against": ("DATA", "--against", "X"),
    "quarantine": ("show", "X"),
    "decode": ("X", "OUT"),
    "score": ("X", "OUT"),
    "score --pixels": ("DATA", "OUT", "--pixels", "X", "--size", 17),
    "scores show": ("X",),
    "scores suspects": ("X",),
    "scores compare": ("X", "X"),
    "scores --data": ("show", "SCORES", "--data", "X"),
    "embed": ("X", "OUT"),
    "select": ("X", "OUT", "--ipc", 1),
    "select --data": ("SCORES", "OUT", "--ipc", 1, "--misratio", 0, "--data", "X"),
    "ingest": ("LIST", "OUT", "--data", "X"),
    "distill": ("X", "OUT", "--ipc", 1),
    "teach": ("X", "OUT"),
    "teach --val": ("DATA", "OUT", "--val", "X"),
    "train": ("X", "VALIDATION", "OUT"),
    "train - on": ("SET", "X", "OUT"),
    "train --data": ("SET", "VALIDATION", "OUT", "--data", "X"),
    "train --teachers": ("SET", "VALIDATION", "OUT", "--protocol", "rded", "--teachers", "X"),
    "measure": ("X", "VALIDATION", "OUT"),
    "measure - against": ("SET", "X", "OUT"),
    "export": ("X", "OUT", "--to", "ids"),
    "claims": ("X",),
    "cost": ("X",),
    "doctor": ("X",),
}
SCORES = Provenance(kind="scores", stage="score", config={"epochs": 60})


def interrupt(out, command):
    """Leave what a resumable command leaves when Ctrl-C stops it."""
    token = COMMAND.set(command)
    try:
        with pytest.raises(KeyboardInterrupt), create_artifact(out, SCORES, resumable=True):
            raise KeyboardInterrupt
    finally:
        COMMAND.reset(token)


@pytest.mark.parametrize("verb", READERS)
def test_every_verb_says_that_its_input_was_interrupted_and_how_to_continue(
    tmp_path, inputs, refused, verb
):
    x = tmp_path / "X"
    interrupt(x, "coreset score 'my data' X --epochs 60")
    places = inputs | {"X": x, "OUT": tmp_path / "OUT"}
    words = [places.get(str(word), word) for word in READERS[verb]]
    said = refused(tmp_path, *verb.partition(" -")[0].split(), *words)
    assert said == (
        f"{x} is not finished: the command that makes it was interrupted; "
        "continue with: coreset score 'my data' X --epochs 60"
    )


def test_the_command_that_is_named_continues(
    *, photos, tmp_path, monkeypatch, interrupted, refused, done, stored_bytes
):
    monkeypatch.chdir(tmp_path)
    begun = temporary_name(tmp_path / "my data")
    command = ("pack", photos, "my data", "--samples-per-shard", 4)
    interrupted(begun / "shard-000002.json", *command)
    said = refused(tmp_path, "score", "my data", "OUT")
    typed = said.partition("continue with: ")[2]
    assert typed == f"coreset pack {photos} 'my data' --samples-per-shard 4"
    done(*shlex.split(typed)[1:])
    Pack(src=photos, data=tmp_path / "whole", samples_per_shard=4).run()
    assert stored_bytes(tmp_path / "my data") == stored_bytes(tmp_path / "whole")
    assert not (tmp_path / "my data" / COMMAND_NAME).exists()


def test_without_a_command_that_can_be_shown_the_same_one_is_to_be_run_again(tmp_path, refused):
    x = tmp_path / "X"
    assert "X does not exist; run `coreset pack" in refused(tmp_path, "verify", x)
    interrupt(x, "")
    assert not (temporary_name(x) / COMMAND_NAME).exists()
    for content in (None, b"", b"rm\n-rf", b"\x1b[2J", b"\xff\x00"):
        if content is not None:
            (temporary_name(x) / COMMAND_NAME).write_bytes(content)
        said = refused(tmp_path, "verify", x)
        assert said.endswith("was interrupted; run the same command again to continue")
