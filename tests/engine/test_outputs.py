"""Where outputs may lie: what cannot be made is refused in one line, and no link is followed."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from coreset.engine.artifacts.provenance import PROVENANCE_NAME, Provenance
from coreset.engine.artifacts.writer import create_artifact, lock
from coreset.engine.stages.demo import write_digits
from coreset.shards.errors import MachineError, UsageError

Refused = Callable[..., str]
SCORES = Provenance(kind="scores", stage="score", config={"epochs": 60})
# A verb with words that it would run with: SRC, DATA, SET and VAL are made, OUT is the output.
COMMANDS = {
    "pack": ("SRC", "OUT"),
    "synth": ("OUT", "--images", 8, "--classes", 2),
    "decode": ("DATA", "OUT", "--size", 8),
    "score": ("DATA", "OUT", "--epochs", 1),
    "select": ("DATA", "OUT", "--ipc", 1),
    "distill": ("DATA", "OUT", "--ipc", 1, "--size", 8),
    "train": ("SET", "VAL", "OUT"),
    "measure": ("SET", "VAL", "OUT"),
    "export": ("DATA", "OUT", "--to", "imagefolder"),
    "export list": ("DATA", "OUT", "--to", "ids"),
    "verify --pairs": ("DATA", "--pairs", "OUT"),
    "demo": ("--out", "OUT"),
}


@pytest.fixture
def command(photos: Path, packed: Path, val: Path, random_set: Path) -> Callable[..., list[object]]:
    """``command("pack", out)``: the words of a command that makes ``out``."""
    inputs = {"SRC": photos, "DATA": packed, "VAL": val, "SET": random_set}

    def words(verb: str, out: Path) -> list[object]:
        places = inputs | {"OUT": out}
        return [
            verb.split(maxsplit=1)[0],
            *(places.get(str(word), word) for word in COMMANDS[verb]),
        ]

    return words


@pytest.mark.parametrize("verb", COMMANDS)
def test_a_link_to_nothing_is_refused_as_an_output(
    tmp_path: Path, command: Callable[..., list[object]], refused: Refused, verb: str
):
    out = tmp_path / "OUT"
    out.symlink_to(tmp_path / "nothing")
    said = refused(tmp_path, *command(verb, out))
    assert said == (f"{out} is a symbolic link to nothing; remove it, or choose another output")


@pytest.mark.parametrize("verb", ["pack", "score", "train", "measure"])
def test_an_output_is_looked_at_before_any_input(tmp_path: Path, refused: Refused, verb: str):
    out = tmp_path / "OUT"
    out.symlink_to(tmp_path / "nothing")
    words = [out if word == "OUT" else word for word in COMMANDS[verb]]
    assert "is a symbolic link to nothing" in refused(tmp_path, verb, *words)


@pytest.mark.parametrize("verb", COMMANDS)
def test_an_output_below_a_file_is_refused(
    tmp_path: Path, command: Callable[..., list[object]], refused: Refused, verb: str
):
    file = tmp_path / "file"
    file.write_text("a file")
    for out in (file / "OUT", file / "deep" / "OUT"):
        said = refused(tmp_path, *command(verb, out))
        assert said == f"{out} cannot be made: {file} is a file; choose another output"


@pytest.mark.parametrize("out", [Path("/proc/OUT"), Path("/proc/deep/OUT")])
@pytest.mark.parametrize("verb", ["select", "export", "export list", "synth", "demo"])
def test_an_output_where_nothing_can_be_made_is_refused(
    tmp_path: Path, command: Callable[..., list[object]], refused: Refused, verb: str, out: Path
):
    said = refused(tmp_path, *command(verb, out))
    assert said.startswith("/proc/")
    assert said.endswith("cannot be written (No such file or directory); choose another output")


@pytest.mark.parametrize("verb", ["select", "export list"])
def test_an_output_that_this_user_may_not_make_is_a_fault_of_the_machine(
    tmp_path: Path, command: Callable[..., list[object]], refused: Refused, verb: str
):
    words = command(verb, Path("/sys/deep/OUT"))
    said = refused(tmp_path, *words, code=4)
    assert said.startswith("/sys/deep/OUT cannot be written (")
    assert said.endswith("; make its folder writable, or choose another")


def test_a_folder_without_the_right_to_write_is_a_fault_of_the_machine(tmp_path: Path):
    if os.geteuid() == 0:
        pytest.skip("root may write everywhere")
    tmp_path.chmod(0o500)
    with pytest.raises(MachineError, match="make its folder writable"), lock(tmp_path / "OUT"):
        pass


def test_tables_get_the_folder_that_they_are_to_lie_in(
    packed: Path, tmp_path: Path, done: Callable[..., list[str]]
):
    for words in (("verify", packed, "--pairs"), ("quarantine", "show", packed, "--csv")):
        out = tmp_path / words[0] / "deep" / "list.csv"
        done(*words, out)
        assert out.is_file()


# links under the names that are made beside an output


@pytest.fixture
def precious(tmp_path: Path) -> Path:
    path = tmp_path / "precious"
    path.write_text("do not touch")
    return path


def make(out: Path, *, resumable: bool = False) -> None:
    with create_artifact(out, SCORES, resumable=resumable) as work:
        (work.scratch / "file").write_text("content")


def test_a_lock_file_that_is_a_link_is_refused_and_not_followed(tmp_path: Path, precious: Path):
    (tmp_path / ".OUT.lock").symlink_to(precious)
    with pytest.raises(UsageError, match=r"\.OUT\.lock is a symbolic link"):
        make(tmp_path / "OUT")
    assert precious.read_text() == "do not touch"
    (tmp_path / ".OUT.lock").unlink()
    (tmp_path / ".OUT.lock").symlink_to(tmp_path / "nothing")
    with pytest.raises(UsageError, match=r"\.OUT\.lock is a symbolic link"):
        make(tmp_path / "OUT")
    assert not (tmp_path / "nothing").exists()


@pytest.mark.parametrize("resumable", [False, True])
def test_a_scratch_directory_that_is_a_link_is_replaced_and_not_followed(
    tmp_path: Path, resumable: bool
):
    elsewhere = tmp_path / "elsewhere"
    make(elsewhere, resumable=True)
    before = sorted(path.read_bytes() for path in elsewhere.iterdir())
    assert (elsewhere / PROVENANCE_NAME).is_file()
    (tmp_path / ".OUT.partial").symlink_to(elsewhere)
    make(tmp_path / "OUT", resumable=resumable)
    assert not (tmp_path / "OUT").is_symlink()
    assert sorted(path.read_bytes() for path in elsewhere.iterdir()) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["OUT", "elsewhere"]


def test_the_images_of_the_demo_are_not_written_through_a_link(tmp_path: Path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / ".images.partial").symlink_to(tmp_path / "elsewhere")
    write_digits(tmp_path / "images")
    assert list((tmp_path / "elsewhere").iterdir()) == []
    assert (tmp_path / "images" / "train").is_dir()
