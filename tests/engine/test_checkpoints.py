"""Commits of a long training: whatever a kill or a damaged file leaves, a whole state is found."""

import json
import logging
import re

import pytest

from coreset.engine.artifacts.checkpoints import COMMIT_NAME, Checkpoints
from coreset.shards.errors import StoreError
from coreset.shards.format.files import tree_digests


@pytest.fixture
def checkpoints(tmp_path):
    return Checkpoints(tmp_path)


def commit(checkpoints, epoch, content=None):
    def write(directory):
        (directory / "weights").write_text(content or f"weights of epoch {epoch}")
        (directory / "scores").mkdir()
        (directory / "scores/zarr.json").write_text("{}")

    checkpoints.commit(epoch, write)


def read_latest(checkpoints):
    """Epoch and weights of the newest undamaged commit."""
    newest = checkpoints.latest()
    assert newest is not None
    return newest[0], (newest[1] / "weights").read_text()


def fail_while_writing(directory):
    (directory / "weights").write_text("half")
    raise KeyboardInterrupt


def names(checkpoints):
    return sorted(path.name for path in checkpoints.directory.iterdir())


def test_nothing_is_committed_in_an_empty_directory(checkpoints):
    assert checkpoints.latest() is None


def test_the_newest_commit_is_found_and_two_are_kept(checkpoints):
    for epoch in (1, 2, 5):
        commit(checkpoints, epoch)
    assert read_latest(checkpoints) == (5, "weights of epoch 5")
    assert names(checkpoints) == [COMMIT_NAME, "gen-000002", "gen-000005"]


def test_the_record_names_every_file_of_a_commit(checkpoints):
    commit(checkpoints, 3)
    (entry,) = json.loads((checkpoints.directory / COMMIT_NAME).read_bytes())["generations"]
    assert entry["files"] == tree_digests(checkpoints.directory / "gen-000003")
    assert set(entry["files"]) == {"weights", "scores/zarr.json"}


@pytest.mark.parametrize("damage", ["flipped", "cut", "lost file", "added file", "lost directory"])
def test_a_damaged_commit_gives_way_to_the_one_before_with_a_warning(checkpoints, damage, caplog):
    commit(checkpoints, 1)
    commit(checkpoints, 2)
    newest = checkpoints.directory / "gen-000002"
    match damage:
        case "flipped":
            (newest / "scores/zarr.json").write_text("[]")
        case "cut":
            (newest / "weights").write_text("wei")
        case "lost file":
            (newest / "weights").unlink()
        case "added file":
            (newest / "more").touch()
        case _:
            newest.rename(checkpoints.directory / "elsewhere")
    with caplog.at_level(logging.WARNING):
        epoch, directory = checkpoints.latest()
    assert (epoch, directory.name) == (1, "gen-000001")
    assert re.search("gen-000002 is damaged; going back one checkpoint", caplog.text)


def test_the_training_goes_on_from_the_older_commit(checkpoints):
    commit(checkpoints, 4)
    commit(checkpoints, 6)
    (checkpoints.directory / "gen-000006/weights").write_text("damaged")
    commit(checkpoints, 5)
    assert read_latest(checkpoints) == (5, "weights of epoch 5")
    assert names(checkpoints) == [COMMIT_NAME, "gen-000004", "gen-000005"]


def test_damage_to_every_commit_is_an_error(checkpoints):
    for epoch in (1, 2):
        commit(checkpoints, epoch)
        (checkpoints.directory / f"gen-{epoch:06d}/weights").write_text("damaged")
    with pytest.raises(StoreError, match="every checkpoint is damaged; remove it, run again"):
        checkpoints.latest()


@pytest.mark.parametrize("content", [b"", b"{", b"{}", b"[]", b"3"])
def test_a_record_that_cannot_be_read_is_an_error(checkpoints, content):
    commit(checkpoints, 1)
    (checkpoints.directory / COMMIT_NAME).write_bytes(content)
    with pytest.raises(StoreError, match=r"commit\.json cannot be read .*; remove it, run again"):
        checkpoints.latest()


def test_a_kill_while_writing_leaves_the_older_commit(checkpoints):
    commit(checkpoints, 1)
    with pytest.raises(KeyboardInterrupt):
        checkpoints.commit(2, fail_while_writing)
    assert read_latest(checkpoints) == (1, "weights of epoch 1")


def test_a_kill_between_the_rename_and_the_record_leaves_the_older_commit(checkpoints):
    commit(checkpoints, 1)
    before = (checkpoints.directory / COMMIT_NAME).read_bytes()
    commit(checkpoints, 2)
    (checkpoints.directory / COMMIT_NAME).write_bytes(before)
    assert read_latest(checkpoints) == (1, "weights of epoch 1")
    commit(checkpoints, 2, "weights of the second try")
    assert read_latest(checkpoints) == (2, "weights of the second try")


def test_the_first_commit_killed_before_its_record_is_none(checkpoints):
    commit(checkpoints, 1)
    (checkpoints.directory / COMMIT_NAME).unlink()
    assert checkpoints.latest() is None
    commit(checkpoints, 1)
    assert read_latest(checkpoints) == (1, "weights of epoch 1")


def test_the_same_epoch_committed_again_is_the_second_one(checkpoints):
    commit(checkpoints, 1)
    commit(checkpoints, 2)
    commit(checkpoints, 2, "again")
    assert read_latest(checkpoints) == (2, "again")
    assert names(checkpoints) == [COMMIT_NAME, "gen-000001", "gen-000002"]


def test_a_finished_training_keeps_one_commit_whenever_it_committed(tmp_path):
    trees = []
    for name, epochs in {"often": (1, 2, 3, 4), "seldom": (2, 4), "once": (4,)}.items():
        (tmp_path / name).mkdir()
        checkpoints = Checkpoints(tmp_path / name)
        for epoch in epochs:
            commit(checkpoints, epoch)
        checkpoints.finish()
        trees.append(tree_digests(tmp_path / name))
    assert trees[0] == trees[1] == trees[2]
    assert read_latest(Checkpoints(tmp_path / "often"))[0] == 4


def test_what_kills_left_behind_does_not_stay_in_the_result(tmp_path):
    whole = Checkpoints(tmp_path / "whole")
    whole.directory.mkdir()
    commit(whole, 4)
    whole.finish()

    killed = Checkpoints(tmp_path / "killed")
    killed.directory.mkdir()
    commit(killed, 1)
    with pytest.raises(KeyboardInterrupt):
        killed.commit(2, fail_while_writing)  # resumed, it commits at 4, not at 2
    (killed.directory / ".gen-000001.deleting").mkdir()
    (killed.directory / ".gen-000001.deleting/weights").touch()
    commit(killed, 4)
    killed.finish()
    assert tree_digests(killed.directory) == tree_digests(whole.directory)
    assert names(killed) == names(whole)


def test_a_commit_is_recorded_when_all_its_files_are_on_the_disk(checkpoints, disk):
    for number in (1, 2, 3):
        commit(checkpoints, number)
        folder = f"gen-{number:06d}"
        expected = {
            f"{folder}/weights": f"weights of epoch {number}".encode(),
            f"{folder}/scores/zarr.json": b"{}",
        }
        naming = disk.naming(COMMIT_NAME)
        assert expected.items() <= naming.survivors.items()
        assert naming.beside[COMMIT_NAME] == (checkpoints.directory / COMMIT_NAME).read_bytes()
        assert expected.items() <= disk.survivors().items()
        assert disk.survivors()[COMMIT_NAME] == naming.beside[COMMIT_NAME]


def test_an_old_commit_is_removed_when_the_record_without_it_is_on_the_disk(checkpoints, disk):
    for number in (1, 2, 3):
        commit(checkpoints, number)
    removed = disk.naming(".gen-000001.deleting").survivors
    assert b"gen-000001" not in removed[COMMIT_NAME]
    assert b"gen-000003" in removed[COMMIT_NAME]


def test_finishing_twice_changes_nothing(checkpoints):
    commit(checkpoints, 1)
    commit(checkpoints, 2)
    checkpoints.finish()
    once = tree_digests(checkpoints.directory)
    checkpoints.finish()
    assert tree_digests(checkpoints.directory) == once
