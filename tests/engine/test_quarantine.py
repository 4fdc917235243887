"""Refused files: shown, listed, and packed once they are mended, as if they had never been bad."""

import csv
import shutil
from pathlib import Path

import pytest

from coreset.engine.artifacts.ledger import read_ledger
from coreset.engine.stages.pack import Pack
from coreset.engine.stages.quarantine import Quarantine
from coreset.engine.stages.verify import Verify
from coreset.shards.errors import UsageError
from coreset.shards.format.dataset import Manifest

BAD = "n02102040/photo_003.jpg"


@pytest.fixture
def source(make_photos, tmp_path) -> Path:
    """A folder with one file that is cut; the whole one is beside the folder."""
    src = make_photos(tmp_path / "src", per_class=6)
    shutil.copy(src / BAD, tmp_path / "whole.jpg")
    whole = (src / BAD).read_bytes()
    (src / BAD).write_bytes(whole[: len(whole) * 2 // 3])
    return src


def pack(src, data) -> Path:
    Pack(src=src, data=data, samples_per_shard=5).run()
    return data


def test_refused_files_are_shown_with_their_reasons(source, packed, tmp_path):
    data, listed = pack(source, tmp_path / "DATA"), tmp_path / "list.csv"
    lines = Quarantine(action="show", data=data, csv=listed).run().lines
    assert any("truncated" in line and BAD in line for line in lines)
    assert f"1 of 18 files of {data} were refused" in lines
    (row,) = csv.DictReader(listed.read_text().splitlines())
    assert (row["source"], row["reason"]) == (BAD, "truncated")
    lines = Quarantine(action="show", data=packed).run().lines
    assert lines == (f"0 of 60 files of {packed} were refused",)


def test_a_retry_gives_what_packing_the_mended_source_gives(source, tmp_path, stored_bytes):
    data = pack(source, tmp_path / "DATA")
    before = Manifest.read(data)
    lines = Quarantine(action="retry", data=data).run().lines
    assert "0 of 1 refused files are packed now" in lines[0]
    assert Manifest.read(data) == before
    shutil.copy(tmp_path / "whole.jpg", source / BAD)
    lines = Quarantine(action="retry", data=data).run().lines
    assert lines[0] == f"1 of 1 refused files are packed now, 0 are refused still: {data}"
    assert stored_bytes(data) == stored_bytes(pack(source, tmp_path / "ANEW"))
    assert Manifest.read(data).identity != before.identity
    Verify(data=data, deep=True).run()
    assert [line["stage"] for line in read_ledger(data)] == ["pack", "pack"]
    assert "nothing to retry" in Quarantine(action="retry", data=data).run().lines[0]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ANEW", "DATA", "src", "whole.jpg"]


@pytest.mark.parametrize("change", ["rewritten", "removed", "added"])
def test_a_source_that_changed_elsewhere_is_refused_and_nothing_is_lost(
    source, tmp_path, stored_bytes, change
):
    data = pack(source, tmp_path / "DATA")
    before = stored_bytes(data)
    shutil.copy(tmp_path / "whole.jpg", source / BAD)
    other = source / "n01440764/photo_000.png"
    match change:
        case "rewritten":
            other.write_bytes(other.read_bytes() + b"more")
        case "removed":
            other.unlink()
        case _:
            shutil.copy(other, other.with_name("photo_900.png"))
    with pytest.raises(UsageError, match="pack it again as another data set"):
        Quarantine(action="retry", data=data).run()
    assert stored_bytes(data) == before
