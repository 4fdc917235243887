"""Commits of a long training: whatever a kill or a damaged file leaves, a whole state is found."""

import json
import logging

import pytest

from coreset.engine.artifacts.checkpoints import COMMIT_NAME, Checkpoints
from coreset.shards.errors import StoreError
from coreset.shards.format.files import tree_digests


@pytest.fixture
def checkpoints(tmp_path):
    (tmp_path / "here").mkdir()
    return Checkpoints(tmp_path / "here")


def commit(checkpoints, *epochs, content=None):
    for epoch in epochs:

        def write(directory, epoch=epoch):
            (directory / "weights").write_text(content or f"weights of epoch {epoch}")
            (directory / "scores").mkdir()
            (directory / "scores/zarr.json").write_text("{}")

        checkpoints.commit(epoch, write)


def killed_commit(checkpoints, epoch):
    def write(directory):
        (directory / "weights").write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        checkpoints.commit(epoch, write)


def latest(checkpoints):
    """Epoch and weights of the newest undamaged commit."""
    newest = checkpoints.latest()
    return newest and (newest[0], (newest[1] / "weights").read_text())


def names(checkpoints):
    return sorted(path.name for path in checkpoints.directory.iterdir())


def test_the_newest_commit_is_found_and_two_are_kept(checkpoints):
    assert checkpoints.latest() is None
    commit(checkpoints, 1, 2, 5)
    assert latest(checkpoints) == (5, "weights of epoch 5")
    assert names(checkpoints) == [COMMIT_NAME, "gen-000002", "gen-000005"]
    newest = json.loads((checkpoints.directory / COMMIT_NAME).read_bytes())["generations"][0]
    assert newest["files"] == tree_digests(checkpoints.directory / "gen-000005")
    assert set(newest["files"]) == {"weights", "scores/zarr.json"}


@pytest.mark.parametrize("damage", ["flipped", "cut", "lost file", "added file", "lost directory"])
def test_a_damaged_commit_gives_way_to_the_one_before_with_a_warning(checkpoints, damage, caplog):
    commit(checkpoints, 4, 6)
    newest = checkpoints.directory / "gen-000006"
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
        assert latest(checkpoints) == (4, "weights of epoch 4")
    assert "gen-000006 is damaged; going back one checkpoint" in caplog.text
    commit(checkpoints, 5)  # the training goes on from there
    assert latest(checkpoints) == (5, "weights of epoch 5")
    assert {*names(checkpoints)} - {"elsewhere"} == {COMMIT_NAME, "gen-000004", "gen-000005"}


def test_damage_to_every_commit_is_an_error(checkpoints):
    for epoch in (1, 2):
        commit(checkpoints, epoch)
        (checkpoints.directory / f"gen-{epoch:06d}/weights").write_text("damaged")
    with pytest.raises(StoreError, match="every checkpoint is damaged; remove it, run again"):
        checkpoints.latest()


@pytest.mark.parametrize("content", [b"", b"{}", b"[]"])
def test_a_record_that_cannot_be_read_is_an_error(checkpoints, content):
    (checkpoints.directory / COMMIT_NAME).write_bytes(content)
    with pytest.raises(StoreError, match=r"commit\.json cannot be read .*; remove it, run again"):
        checkpoints.latest()


@pytest.mark.parametrize("epochs", [(), (1,)], ids=["first", "second"])
def test_a_kill_before_the_record_leaves_the_older_commit(checkpoints, epochs):
    commit(checkpoints, *epochs)
    before, record = latest(checkpoints), checkpoints.directory / COMMIT_NAME
    content = record.read_bytes() if epochs else None
    killed_commit(checkpoints, 2)
    assert latest(checkpoints) == before
    commit(checkpoints, 2)
    record.unlink()
    if content is not None:
        record.write_bytes(content)
    assert latest(checkpoints) == before
    commit(checkpoints, 2, content="weights of the second try")
    commit(checkpoints, 2, content="weights of the third try")
    assert latest(checkpoints) == (2, "weights of the third try")
    assert names(checkpoints) == [COMMIT_NAME, *(f"gen-{n:06d}" for n in (*epochs, 2))]


def test_a_finished_training_keeps_one_commit_whenever_it_committed_or_was_killed(tmp_path):
    trees = []
    for name, epochs in {"often": (1, 2, 3), "killed": (2,), "once": ()}.items():
        checkpoints = Checkpoints(tmp_path / name)
        checkpoints.directory.mkdir()
        commit(checkpoints, *epochs)
        if name == "killed":
            killed_commit(checkpoints, 3)  # resumed, it commits at 4, not at 3
            (checkpoints.directory / ".gen-000001.deleting").mkdir()
            (checkpoints.directory / ".gen-000001.deleting/weights").touch()
        commit(checkpoints, 4)
        checkpoints.finish()
        trees.append((tree_digests(checkpoints.directory), names(checkpoints)))
        checkpoints.finish()  # twice changes nothing
        assert trees[-1] == (tree_digests(checkpoints.directory), [COMMIT_NAME, "gen-000004"])
    assert trees[0] == trees[1] == trees[2]


def test_a_commit_is_recorded_when_all_its_files_are_on_the_disk(checkpoints, disk):
    for number in (1, 2, 3):
        commit(checkpoints, number)
        folder = f"here/gen-{number:06d}"
        expected = {
            f"{folder}/weights": f"weights of epoch {number}".encode(),
            f"{folder}/scores/zarr.json": b"{}",
        }
        naming = disk.naming(COMMIT_NAME)
        assert expected.items() <= naming.survivors.items()
        assert naming.beside[COMMIT_NAME] == (checkpoints.directory / COMMIT_NAME).read_bytes()
        assert expected.items() <= disk.survivors().items()
        assert disk.survivors()[f"here/{COMMIT_NAME}"] == naming.beside[COMMIT_NAME]
    # An old commit is removed when the record without it is on the disk.
    removed = disk.naming(".gen-000001.deleting").survivors
    assert b"gen-000001" not in removed[f"here/{COMMIT_NAME}"]
    assert b"gen-000003" in removed[f"here/{COMMIT_NAME}"]
