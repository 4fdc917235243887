"""Where decoded images are kept, on made-up machines and on this one."""

import numpy as np
import pytest

from coreset.engine.data.geometry import Geometry
from coreset.engine.data.image_cache import KEPT_NAME, PIXELS_NAME, keep_images
from coreset.engine.data.images import DecodedImages
from coreset.engine.data.order import BatchOrder
from coreset.engine.data.residency import Capacity, Place, choose_place
from coreset.engine.data.stream import ImageStream
from coreset.engine.runtime.limits import decoded_bytes

GB = 10**9
IMAGENET = 1_281_167
FREE = {"H200": 148, "A100 80": 79, "A100 40": 39, "RTX 4090": 23, "16 GB": 15, "none": 0}
HOSTS = (64, 256, 1024)
D, H, F = Place.DEVICE, Place.HOST, Place.FILE
# 63, 82, 98 and 252 GB of images, for each host.
EXPECTED = {
    ("H200", 128): (D, D, D), ("H200", 146): (D, D, D), ("H200", 160): (D, D, D),
    ("H200", 256): (F, F, H),
    ("A100 80", 128): (D, D, D), ("A100 80", 146): (F, H, H), ("A100 80", 160): (F, H, H),
    ("A100 80", 256): (F, F, H),
    ("A100 40", 128): (F, H, H), ("A100 40", 146): (F, H, H), ("A100 40", 160): (F, H, H),
    ("A100 40", 256): (F, F, H),
    ("RTX 4090", 128): (F, H, H), ("RTX 4090", 146): (F, H, H), ("RTX 4090", 160): (F, H, H),
    ("RTX 4090", 256): (F, F, H),
    ("16 GB", 128): (F, H, H), ("16 GB", 146): (F, H, H), ("16 GB", 160): (F, H, H),
    ("16 GB", 256): (F, F, H),
    ("none", 128): (F, H, H), ("none", 146): (F, H, H), ("none", 160): (F, H, H),
    ("none", 256): (F, F, H),
}  # fmt: skip


@pytest.mark.parametrize(("gpu", "side"), EXPECTED)
def test_imagenet_is_kept_in_the_fastest_place_that_holds_it(gpu, side):
    chosen = tuple(
        choose_place(
            decoded_bytes(IMAGENET, side), Capacity(FREE[gpu] * GB, host * GB, 2000 * GB), epochs=16
        )
        for host in HOSTS
    )
    assert chosen == EXPECTED[gpu, side]


def test_a_training_keeps_its_memory_and_a_file_has_to_repay():
    small, none = 10 * GB, Capacity(0, 0, 0)
    assert choose_place(small, none._replace(device=22 * GB), epochs=1) is Place.DEVICE
    assert choose_place(small, none._replace(device=22 * GB - 1), epochs=1) is Place.NOWHERE
    batch = 1024 * 224**2  # 20.6 GB
    assert choose_place(small, none._replace(device=30 * GB), epochs=1) is Place.DEVICE
    full = choose_place(small, none._replace(device=30 * GB), epochs=1, batch_pixels=batch)
    assert full is Place.NOWHERE
    assert choose_place(90 * GB, none._replace(device=101 * GB), epochs=1) is Place.NOWHERE
    assert choose_place(small, none._replace(disk=12 * GB), epochs=3) is Place.FILE
    assert choose_place(small, none._replace(disk=12 * GB), epochs=2) is Place.NOWHERE
    assert choose_place(small, none._replace(disk=12 * GB - 1), epochs=3) is Place.NOWHERE


@pytest.mark.parametrize("place", ["host", "file", "nowhere"])
def test_images_are_the_same_wherever_they_are_kept(  # noqa: PLR0917 - fixtures
    numbered, tmp_path, monkeypatch, same_batches, capsys, place
):
    capacity = Capacity(0, 10**9 if place == "host" else 0, 10**12 if place == "file" else 0)
    monkeypatch.setattr(Capacity, "of", lambda *_: capacity)
    order = BatchOrder(batch=7, shuffle=True, seed=1, epoch=2)
    with ImageStream(numbered, Geometry(16, 20)) as expected:
        source = ImageStream(numbered, Geometry(16, 20))
        kept = keep_images(source, epochs=3, scratch=tmp_path)
        assert isinstance(kept, DecodedImages) == (place != "nowhere")
        same_batches(kept.epoch(order), expected.epoch(order))
        kept.close()
    assert (tmp_path / KEPT_NAME / PIXELS_NAME).is_file() == (place == "file")
    said = capsys.readouterr().err
    expected = {"host": "", "file": "kept in a file of", "nowhere": "kept nowhere, but decoded"}
    assert expected[place] in said
    assert said.startswith("23 images of 16 px, 17.2 KiB, kept") == (place != "host")


def test_a_file_of_an_interrupted_run_is_gone_on_with(numbered, tmp_path, monkeypatch):
    monkeypatch.setattr(Capacity, "of", lambda *_: Capacity(0, 0, 10**12))

    def kept():
        images = keep_images(ImageStream(numbered, Geometry(16)), epochs=3, scratch=tmp_path)
        assert isinstance(images, DecodedImages)
        return images.images.numpy()

    first = kept().copy()
    decoded = []
    monkeypatch.setattr(ImageStream, "epoch", lambda *_: decoded.append(1) or iter(()))
    np.testing.assert_array_equal(kept(), first)
