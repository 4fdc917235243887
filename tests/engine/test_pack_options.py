"""The choices of packing: re-encoded pixels, unchecked files, the first bad file, repeated keys."""

import io
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from coreset.engine.stages.pack import Pack
from coreset.engine.stages.verify import Verify
from coreset.shards.errors import DataError, UsageError
from coreset.shards.format.manifest import Manifest
from coreset.shards.images.flags import Flag

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
        image = Image.open(io.BytesIO(content))
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


def test_without_checks_only_headers_are_read(make_photos: Callable[..., Path], tmp_path: Path):
    src, data = make_photos(tmp_path / "src", per_class=8), tmp_path / "DATA"
    path = src / "n01440764/photo_006.JPEG"
    path.write_bytes(path.read_bytes()[:-200])
    (src / "n02102040/photo_007.JPEG").write_bytes(b"<html>")
    Pack(src=src, data=data, check=False).run()
    manifest = Manifest.read(data)
    assert (manifest.n_samples, manifest.n_quarantined) == (23, 1)
    with pytest.raises(DataError, match="photo_006: expected an image, found one that is refused"):
        Verify(data=data, deep=True).run()


def test_the_first_bad_file_may_stop_the_packing(make_photos: Callable[..., Path], tmp_path: Path):
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
    lines = Pack(src=src, data=tmp_path / "DATA", duplicates="first").run().lines
    assert lines[0] == "left out: 1 samples whose key was there already"
    assert Manifest.read(tmp_path / "DATA").n_samples == 9


@pytest.mark.parametrize(
    ("options", "message"),
    [({"quality": 0}, r"quality must be in \[1, 100\], got 0"),
     ({"short_side": 0}, "short_side must be at least 1"),
     ({"samples_per_shard": 0}, "samples_per_shard must be at least 1, got 0"),
     ({"workers": -1}, r"workers must be 0 \(one per core\) or more, got -1"),
     ({"column": "noisy"}, "labels and column go together"),
     ({"labels": Path("x.csv")}, "labels and column go together"),
     ({"labels": Path("none.csv"), "column": "x"}, "none.csv does not exist"),
     ({"data": "inside"}, "lies in src"),
     ({"classes": "imagenette"}, r"class n03000684 is not in .* \(7 of 10 asked for"),
     ({"classes": "imagenet21k"}, "neither imagenette, imagenet-100 or imagenet-1k nor")],
)  # fmt: skip
def test_options_that_do_not_fit_are_refused(photos, tmp_path, options, message):
    fields: dict[str, Any] = {"data": tmp_path / "DATA"} | options
    if options == {"data": "inside"}:
        fields["data"] = photos / "DATA"
    with pytest.raises(UsageError, match=message):
        Pack(src=photos, **fields).run()
    assert not fields["data"].exists()
