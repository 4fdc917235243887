"""The manifest and the sample table that it vouches for."""

import hashlib
import json
import shutil

import pytest

from coreset.shards.errors import ManifestError, UsageError
from coreset.shards.format.dataset import Dataset
from coreset.shards.format.manifest import Manifest, classes_digest, content_digest, identity_digest


def test_what_is_written_is_what_is_read(packed):
    manifest, content = Manifest.read(packed), (packed / "manifest.json").read_bytes()
    assert manifest.to_bytes() == content
    assert manifest.digest == hashlib.sha256(content).hexdigest()


def test_other_formats_tables_and_folders_have_errors_of_their_own(packed, tmp_path):
    data = shutil.copytree(packed, tmp_path / "DATA")
    with (data / "samples.parquet").open("ab") as file:
        file.write(b"?")
    with pytest.raises(ManifestError, match="is not the table that manifest"):
        Dataset.open(data)
    document = json.loads((data / "manifest.json").read_text())
    for changes in ({"format_version": 1}, {"format": "somebody-elses"}):
        (data / "manifest.json").write_text(json.dumps(document | changes))
        with pytest.raises(ManifestError, match="this program reads coreset-shards version 2"):
            Manifest.read(data)
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
