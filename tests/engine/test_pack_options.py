"""The choices of packing: re-encoded pixels, unchecked files, repeated keys; odd files."""

import os
import shutil
from dataclasses import asdict
from io import BytesIO

import numpy as np
import pyarrow.parquet as pq
import pytest
import simplejpeg
from PIL import Image

from coreset.bench.robustness import crafted, faults
from coreset.engine.artifacts.provenance import Provenance
from coreset.engine.stages.pack import Pack
from coreset.engine.stages.synth import TRUTH_NAME, Synth
from coreset.engine.stages.verify import Verify
from coreset.shards.errors import DataError, UsageError
from coreset.shards.format.dataset import Dataset, Manifest
from coreset.shards.format.files import temporary_name
from coreset.shards.images.flags import MAX_FILE_BYTES, Flag
from coreset.shards.sources.synthetic import Synthetic

SHORT_SIDE = 32


def test_resized_images_are_small_jpegs_of_the_same_samples(
    photos, packed, tmp_path, stored_samples
):
    data = tmp_path / "DATA"
    Pack(src=photos, data=data, store="resized", short_side=SHORT_SIDE, samples_per_shard=16).run()
    before, after = Manifest.read(packed), Manifest.read(data)
    assert after.identity == before.identity
    assert after.content != before.content
    Verify(data=data, deep=True).run()
    for (original, _), (row, content) in zip(
        stored_samples(packed), stored_samples(data), strict=True
    ):
        image = Image.open(BytesIO(content))
        assert (row["key"], row["source_hash"]) == (original["key"], original["content_hash"])
        assert (image.format, min(image.size)) == ("JPEG", SHORT_SIDE)
        assert image.mode == ("L" if Flag.GREY & original["flags"] else "RGB")


def test_resizing_a_packed_data_set_gives_what_resizing_its_source_gives(photos, packed, tmp_path):
    for name, src in (("once", photos), ("again", packed)):
        Pack(src=src, data=tmp_path / name, store="resized", short_side=SHORT_SIDE, name="x").run()
    once, again = (Manifest.read(tmp_path / name) for name in ("once", "again"))
    assert once.shards == again.shards
    assert (once.identity, once.content) == (again.identity, again.content)


def test_a_damaged_file_is_found_also_where_it_is_small_enough_to_stay(make_photos, tmp_path):
    src = make_photos(tmp_path / "src", per_class=8)
    path = src / "n01440764/photo_006.JPEG"
    path.write_bytes(path.read_bytes()[:-200])
    Pack(src=src, data=tmp_path / "DATA", store="resized", short_side=500).run()
    assert Manifest.read(tmp_path / "DATA").n_quarantined == 1


def test_without_checks_only_headers_are_read(make_photos, tmp_path):
    src, data = make_photos(tmp_path / "src", per_class=8), tmp_path / "DATA"
    path = src / "n01440764/photo_006.JPEG"
    path.write_bytes(path.read_bytes()[:-200])
    (src / "n02102040/photo_007.JPEG").write_bytes(b"<html>")
    Pack(src=src, data=data, check=False).run()
    manifest = Manifest.read(data)
    assert (manifest.n_samples, manifest.n_quarantined) == (23, 1)
    with pytest.raises(DataError, match="photo_006: expected an image, found one that is refused"):
        Verify(data=data, deep=True).run()


def test_the_first_bad_file_may_stop_the_packing(make_photos, tmp_path):
    src = make_photos(tmp_path / "src", per_class=3)
    (src / "n02102040/photo_001.webp").write_bytes(b"")
    with pytest.raises(DataError, match=r"n02102040/photo_001.webp .* \(empty: 0 bytes\)"):
        Pack(src=src, data=tmp_path / "DATA", on_bad="fail").run()
    assert not (tmp_path / "DATA").exists()


def test_the_first_of_two_files_with_one_key_may_be_kept(make_photos, tmp_path):
    src = make_photos(tmp_path / "src", per_class=3)
    shutil.copy(src / "n02102040/photo_002.JPEG", src / "n02102040/photo_002.jpg")
    with pytest.raises(UsageError, match="--duplicates first"):
        Pack(src=src, data=tmp_path / "DATA").run()
    with pytest.raises(UsageError, match=r"workers must be 0 \(one per core\) or more, got -1"):
        Pack(src=src, data=tmp_path / "DATA", workers=-1, duplicates="first").run()
    assert not temporary_name(tmp_path / "DATA").exists()
    lines = Pack(src=src, data=tmp_path / "DATA", duplicates="first").run().lines
    assert lines[0] == "left out: 1 samples whose key was there already"
    assert Manifest.read(tmp_path / "DATA").n_samples == 9


# files that only some decoders read, or that hold one up

ODD = {"a/441.jpg": ((1, 4), (1, 1), (1, 1)), "b/410.jpg": ((4, 2), (1, 1), (1, 1))}


@pytest.fixture
def source(tmp_path):
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
def packed_as(stored_samples, refused_files):
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


def test_the_truth_of_synthetic_images_lies_beside_the_samples_in_their_order(tmp_path):
    data = tmp_path / "DATA"
    synthetic = Synthetic(images=60, classes=4, label_noise=0.2, size=24)
    Synth(data=data, synthetic=synthetic, split="val", samples_per_shard=16, workers=3).run()
    Verify(data=data, deep=True).run()
    dataset, truth = Dataset.open(data), pq.read_table(data / TRUTH_NAME).to_pydict()
    shaping = asdict(synthetic) | {"size": "24", "split": "val", "samples_per_shard": 16}
    assert Provenance.read(data).config == shaping
    assert truth["key"] == dataset.keys
    assert truth["label"] == dataset.labels.tolist()
    assert sum(truth["flipped"]) == 12
    assert sorted(truth["key"]) == sorted(synthetic.keys)
    wrong = np.array(truth["label"]) != np.array(truth["true_label"])
    np.testing.assert_array_equal(wrong, truth["flipped"])
