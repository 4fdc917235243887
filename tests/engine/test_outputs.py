"""Where outputs may lie: what cannot be made is refused in one line, and no link is followed."""

from pathlib import Path

import pytest

from coreset.engine.artifacts.provenance import PROVENANCE_NAME, Provenance
from coreset.engine.artifacts.writer import create_artifact
from coreset.shards.errors import UsageError

SCORES = Provenance(kind="scores", stage="score", config={"epochs": 60})
# A verb with words that it would run with: SRC, DATA, SET and VAL are made, OUT is the output.
COMMANDS = {
    "pack": ("SRC", "OUT"),
    "synth": ("OUT", "--images", 8, "--classes", 2),
    "decode": ("DATA", "OUT", "--size", 8),
    "score": ("DATA", "OUT", "--epochs", 1),
    "select": ("DATA", "OUT", "--ipc", 1),
    "distill": ("DATA", "OUT", "--ipc", 1, "--size", 8),
    "teach": ("DATA", "OUT"),
    "train": ("SET", "VAL", "OUT"),
    "measure": ("SET", "VAL", "OUT"),
    "export": ("DATA", "OUT", "--to", "imagefolder"),
    "export list": ("DATA", "OUT", "--to", "ids"),
    "verify --pairs": ("DATA", "--pairs", "OUT"),
    "demo": ("--out", "OUT"),
    "study": ("run", "smoke", "OUT"),
}


@pytest.fixture
def command(photos, packed, val, random_set):
    """``command("pack", out)``: the words of a command that makes ``out``."""
    inputs = {"SRC": photos, "DATA": packed, "VAL": val, "SET": random_set}

    def words(verb, out):
        places = inputs | {"OUT": out}
        return [
            verb.split(maxsplit=1)[0],
            *(places.get(str(word), word) for word in COMMANDS[verb]),
        ]

    return words


@pytest.mark.parametrize("verb", COMMANDS)
def test_an_output_that_cannot_be_made_is_refused(tmp_path, command, refused, verb):
    link, file = tmp_path / "OUT", tmp_path / "file"
    link.symlink_to(tmp_path / "nothing")
    said = refused(tmp_path, *command(verb, link))
    assert said == f"{link} is a symbolic link to nothing; remove it, or choose another output"
    if verb in {"pack", "score", "teach", "train", "measure"}:  # before any input is looked at
        words = (link if word == "OUT" else word for word in COMMANDS[verb])
        assert refused(tmp_path, verb, *words) == said
    file.write_text("a file")
    for out in (file / "OUT", file / "deep" / "OUT"):
        said = refused(tmp_path, *command(verb, out))
        assert said == f"{out} cannot be made: {file} is a file; choose another output"


@pytest.mark.parametrize("verb", ["select", "export", "export list", "synth", "demo"])
def test_an_output_where_nothing_can_be_made_is_refused(tmp_path, command, refused, verb):
    for out in (Path("/proc/OUT"), Path("/proc/deep/OUT")):
        said = refused(tmp_path, *command(verb, out))
        assert said.startswith("/proc/")
        assert said.endswith("cannot be written (No such file or directory); choose another output")


@pytest.mark.parametrize("verb", ["select", "export list"])
def test_an_output_that_this_user_may_not_make_is_a_fault_of_the_machine(
    tmp_path, command, refused, verb
):
    said = refused(tmp_path, *command(verb, Path("/sys/deep/OUT")), code=4)
    assert said.startswith("/sys/deep/OUT cannot be written (")
    assert said.endswith("; make its folder writable, or choose another")


def test_tables_get_the_folder_that_they_are_to_lie_in(packed, tmp_path, done):
    for words in (("verify", packed, "--pairs"), ("quarantine", "show", packed, "--csv")):
        out = tmp_path / words[0] / "deep" / "list.csv"
        done(*words, out)
        assert out.is_file()


# links under the names that are made beside an output


def make(out, *, resumable=False):
    with create_artifact(out, SCORES, resumable=resumable) as work:
        (work.scratch / "file").write_text("content")


def test_a_lock_file_that_is_a_link_is_refused_and_not_followed(tmp_path):
    (tmp_path / "precious").write_text("do not touch")
    for target in (tmp_path / "precious", tmp_path / "nothing"):
        (tmp_path / ".OUT.lock").unlink(missing_ok=True)
        (tmp_path / ".OUT.lock").symlink_to(target)
        with pytest.raises(UsageError, match=r"\.OUT\.lock is a symbolic link"):
            make(tmp_path / "OUT")
    assert (tmp_path / "precious").read_text() == "do not touch"
    assert not (tmp_path / "nothing").exists()


@pytest.mark.parametrize("resumable", [False, True])
def test_a_scratch_directory_that_is_a_link_is_replaced_and_not_followed(tmp_path, resumable):
    elsewhere = tmp_path / "elsewhere"
    make(elsewhere, resumable=True)
    before = sorted(path.read_bytes() for path in elsewhere.iterdir())
    assert (elsewhere / PROVENANCE_NAME).is_file()
    (tmp_path / ".OUT.partial").symlink_to(elsewhere)
    make(tmp_path / "OUT", resumable=resumable)
    assert not (tmp_path / "OUT").is_symlink()
    assert sorted(path.read_bytes() for path in elsewhere.iterdir()) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["OUT", "elsewhere"]
