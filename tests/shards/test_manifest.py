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


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", '{"name": "elsewhere"}', '{"shards": [], "classes": 3}']
)
def test_a_foreign_or_cut_manifest_is_refused_in_one_line(copied, text):
    (copied / "manifest.json").write_text(text)
    with pytest.raises(ManifestError, match=r"manifest\.json cannot be read") as caught:
        Manifest.read(copied)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 3


def test_a_manifest_with_a_field_too_many_is_refused(copied):
    rewrite(copied, surprise=1)
    with pytest.raises(ManifestError, match="surprise"):
        Manifest.read(copied)


def test_a_table_of_another_data_set_is_refused(copied):
    table = copied / "samples.parquet"
    table.write_bytes(table.read_bytes()[:-1] + b"?")
    with pytest.raises(ManifestError, match="is not the table that manifest"):
        Dataset.open(copied)


def test_folders_that_are_no_data_set_are_told_apart_from_missing_ones(tmp_path):
    with pytest.raises(UsageError, match=r"no manifest\.json"):
        Manifest.read(tmp_path)
    with pytest.raises(UsageError, match="does not exist; run `coreset pack"):
        Manifest.read(tmp_path / "nowhere")


def test_digests_follow_their_published_definition():
    lines = b"n01/a\t0\nn02/b\t1\n"
    assert identity_digest(["n01/a", "n02/b"], [0, 1]) == hashlib.sha256(lines).hexdigest()
    assert (
        content_digest([b"x" * 16, b"y" * 16]) == hashlib.sha256(b"x" * 16 + b"y" * 16).hexdigest()
    )
    assert classes_digest(["n01", "n02"]) == hashlib.sha256(b"n01\nn02\n").hexdigest()


def test_keys_without_a_label_have_no_identity():
    with pytest.raises(ValueError, match="zip"):
        identity_digest(["n01/a", "n02/b"], [0])
