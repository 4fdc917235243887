import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from engine.stages.verify import Verify
from shards.atomic import sha256_of_file
from shards.dataset import QUARANTINE_NAME, SAMPLES_NAME, Dataset
from shards.errors import DataError, ManifestError, UsageError
from shards.manifest import MANIFEST_NAME, Manifest
from shards.tar import walk

Damage = Callable[[Path], None]


@pytest.fixture
def copy(packed: Path, tmp_path: Path) -> Path:
    return shutil.copytree(packed, tmp_path / "DATA")


def flip(path: Path, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


def cut_after_samples(path: Path, samples: int) -> None:
    """Cut between two samples, where other readers see nothing wrong."""
    member = list(walk(path))[2 * samples]
    path.write_bytes(path.read_bytes()[: member.offset - 512])


@pytest.mark.parametrize("deep", [False, True])
@pytest.mark.parametrize("workers", [1, 3])
def test_a_whole_data_set_is_called_whole(packed: Path, deep: bool, workers: int):
    (line,) = Verify(data=packed, deep=deep, workers=workers).run().lines
    assert "is whole: 60 samples in 4 shards" in line


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            lambda d: flip(d / "shard-000001.tar", 700),
            r"shard-000001.tar: sha256 expected \w+, found \w+",
        ),
        (
            lambda d: cut_after_samples(d / "shard-000002.tar", 5),
            r"header at byte .* is cut; shard-000002.tar: samples expected 16, found 5;",
        ),
        (
            lambda d: (d / "shard-000003.tar").unlink(),
            r"shard-000003.tar: expected 12 samples, found no file",
        ),
        (lambda d: (d / "shard-000000.idx").unlink(), r"shard-000000.idx: expected the index"),
        (lambda d: flip(d / "shard-000000.idx", 9), r"shard-000000.idx: expected the index"),
        (lambda d: (d / QUARANTINE_NAME).unlink(), r"sha256 expected \w+, found no file"),
        (lambda d: flip(d / QUARANTINE_NAME, 9), r"quarantine.parquet: sha256 expected \w+"),
    ],
    ids=["flip", "cut", "missing", "no-index", "index", "no-quarantine", "quarantine"],
)
def test_damage_is_named_with_what_was_expected_and_found(copy: Path, damage: Damage, message: str):
    damage(copy)
    with pytest.raises(DataError, match=message):
        Verify(data=copy).run()


@pytest.mark.parametrize("name", [SAMPLES_NAME, MANIFEST_NAME])
def test_a_damaged_table_or_manifest_is_named(copy: Path, name: str):
    flip(copy / name, 0)
    with pytest.raises(ManifestError, match=name):
        Verify(data=copy).run()


def test_many_damages_are_counted(copy: Path):
    for path in copy.glob("shard-*.tar"):
        path.unlink()
    with pytest.raises(DataError, match="and 1 more"):
        Verify(data=copy).run()


def bless(data: Path, shard: int) -> None:
    """Write the manifest anew so that the digests fit the damage."""
    manifest = Manifest.read(data)
    old = manifest.shards[shard].sha256
    new = sha256_of_file(data / manifest.shards[shard].name)
    path = data / MANIFEST_NAME
    path.write_text(path.read_text().replace(old, new))


def test_deep_verification_finds_an_image_that_no_digest_of_a_file_tells(copy: Path):
    row = Dataset.open(copy).samples.to_pylist()[20]
    flip(copy / "shard-000001.tar", row["offset"] + row["bytes"] // 2)
    bless(copy, 1)
    Verify(data=copy).run()
    with pytest.raises(DataError, match=rf"shard-000001.tar:{row['offset']}:{row['key']}: hash"):
        Verify(data=copy, deep=True).run()


def test_a_changed_label_fails_deep_verification(copy: Path):
    member = list(walk(copy / "shard-000000.tar"))[1]
    flip(copy / "shard-000000.tar", member.offset)
    bless(copy, 0)
    with pytest.raises(DataError, match="label expected"):
        Verify(data=copy, deep=True).run()


def test_what_is_no_data_set_is_refused(tmp_path: Path):
    with pytest.raises(UsageError, match="is not a packed data set"):
        Verify(data=tmp_path).run()
