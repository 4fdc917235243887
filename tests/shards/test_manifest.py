"""The manifest and the sample table that it vouches for."""

import hashlib
import json
import shutil

import pytest

from coreset.shards.errors import ManifestError, UsageError
from coreset.shards.format.dataset import Dataset
from coreset.shards.format.manifest import Manifest, classes_digest, content_digest, identity_digest


@pytest.fixture
def copied(packed, tmp_path):
    return shutil.copytree(packed, tmp_path / "DATA")


def rewrite(data, **changes):
    path = data / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_what_is_written_is_what_is_read(packed):
    manifest = Manifest.read(packed)
    assert manifest.to_bytes() == (packed / "manifest.json").read_bytes()
    assert manifest.digest == hashlib.sha256((packed / "manifest.json").read_bytes()).hexdigest()


@pytest.mark.parametrize("changes", [{"format_version": 1}, {"format": "somebody-elses"}])
def test_a_manifest_of_another_format_is_refused_with_both(copied, changes):
    rewrite(copied, **changes)
    with pytest.raises(ManifestError, match="this program reads coreset-shards version 2"):
        Manifest.read(copied)


def test_a_table_of_another_data_set_is_refused(copied):
    table = copied / "samples.parquet"
    table.write_bytes(table.read_bytes()[:-1] + b"?")
    with pytest.raises(ManifestError, match="is not the table that manifest"):
        Dataset.open(copied)


def test_other_folders_and_missing_ones_have_errors_of_their_own(tmp_path):
    with pytest.raises(UsageError, match=r"no manifest\.json"):
        Manifest.read(tmp_path)
    with pytest.raises(UsageError, match="does not exist; run `coreset pack"):
        Manifest.read(tmp_path / "nowhere")


def test_digests_follow_their_published_definition():
    lines = b"n01/a\t0\nn02/b\t1\n"
    assert identity_digest(["n01/a", "n02/b"], [0, 1]) == hashlib.sha256(lines).hexdigest()
    hashes = [b"x" * 16, b"y" * 16]
    assert content_digest(hashes) == hashlib.sha256(b"".join(hashes)).hexdigest()
    assert classes_digest(["n01", "n02"]) == hashlib.sha256(b"n01\nn02\n").hexdigest()
    with pytest.raises(ValueError, match="zip"):
        identity_digest(["n01/a", "n02/b"], [0])
