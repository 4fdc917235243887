"""Files that only some decoders read, or that hold one up: packed, flagged or listed by name."""

import os
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import simplejpeg
from PIL import Image

from coreset.bench.robustness import crafted, faults
from coreset.shards.format.manifest import Manifest
from coreset.shards.images.flags import MAX_FILE_BYTES, Flag

PackedAs = Callable[[Path], tuple[dict[str, tuple[dict[str, Any], bytes]], dict[str, Any]]]
ODD = {"a/441.jpg": ((1, 4), (1, 1), (1, 1)), "b/410.jpg": ((4, 2), (1, 1), (1, 1))}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Two classes of six plain files, one of each sampled oddly; one of 4,000 scans; a long one."""
    root = tmp_path / "src"
    for label, name in enumerate("ab"):
        (root / name).mkdir(parents=True)
        for number in range(6):
            (root / name / f"{number}.jpg").write_bytes(faults.jpeg(6 * label + number))
    for name, factors in ODD.items():
        (root / name).write_bytes(crafted.sampled_jpeg(90, 70, factors))
    (root / "a" / "scans.jpg").write_bytes(
        crafted.many_scans(4000, 9000, crafted.ARITHMETIC_PROGRESSIVE)
    )
    (root / "b" / "long.jpg").touch()
    os.truncate(root / "b" / "long.jpg", MAX_FILE_BYTES + 1)  # takes no space
    return root


@pytest.fixture
def packed_as(stored_samples: Callable[..., Any], refused_files: Callable[..., Any]) -> PackedAs:
    """Samples (row, bytes) and refusals (reason, detail) of a data set by their sources."""
    return lambda data: (
        {row["source"]: (row, stored) for row, stored in stored_samples(data)},
        {row["source"]: (row["reason"], row["detail"]) for row in refused_files(data)},
    )


@pytest.mark.parametrize("check", ["--check", "--no-check"])
def test_odd_samplings_are_packed_and_flagged_and_many_scans_listed(
    source, tmp_path, done, packed_as, check
):
    data = tmp_path / "DATA"
    lines = done("pack", source, data, check)
    assert "stored as they are, and flagged: 2 odd_sampling" in lines
    samples, refused = packed_as(data)
    assert refused == {
        "a/scans.jpg": ("too-many-scans", "more than 22 scans of 9000 x 9000 pixels"),
        "b/long.jpg": ("too-large", "268,435,457 bytes, limit 268,435,456"),
    }
    assert Manifest.read(data).kinds["odd_sampling"] == 2
    for name, (row, _) in samples.items():
        assert (Flag.ODD_SAMPLING in Flag(row["flags"])) == (name in ODD)
        assert (row["width"], row["height"]) == ((90, 70) if name in ODD else (96, 72))
    done("verify", data, "--deep")


def test_resized_storage_makes_plain_jpegs_of_odd_samplings(source, tmp_path, done, packed_as):
    data = tmp_path / "DATA"
    done("pack", source, data, "--store", "resized", "--short-side", 70, "--quality", 100)
    samples, _ = packed_as(data)
    for name in ODD:
        row, stored = samples[name]
        assert simplejpeg.decode_jpeg_header(stored)[3] == "420"
        with Image.open(BytesIO((source / name).read_bytes())) as image:
            expected = np.asarray(image.convert("RGB")).astype(int)
        assert np.abs(simplejpeg.decode_jpeg(stored) - expected).mean() < 8
        assert Flag(row["flags"]) == Flag(0)


@pytest.mark.parametrize("store", ["original", "resized"])
def test_nothing_that_a_codec_raises_on_one_file_ends_a_packing(
    *, source, tmp_path, coreset, packed_as, monkeypatch, store
):
    decode, bad = simplejpeg.decode_jpeg, (source / "b" / "3.jpg").read_bytes()

    def fails(data: bytes, *rest: Any, **options: Any):
        if data == bad:
            raise RuntimeError("what no codec should raise")
        return decode(data, *rest, **options)

    monkeypatch.setattr(simplejpeg, "decode_jpeg", fails)
    data = tmp_path / "DATA"
    assert coreset("pack", source, data, "--store", store, "--short-side", 64).code == 0
    samples, refused = packed_as(data)
    assert refused["b/3.jpg"] == ("undecodable", "RuntimeError: what no codec should raise")
    assert len(samples) == 13
