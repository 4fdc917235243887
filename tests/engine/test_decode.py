"""Decoding once as a user sees it: the artifact, what survives a kill, what is refused."""

import shutil

import numpy as np
import pytest

from coreset.engine.artifacts.ledger import read_ledger
from coreset.engine.artifacts.provenance import Provenance
from coreset.engine.data.decoders.pillow import decode_with_pillow
from coreset.engine.data.geometry import Geometry
from coreset.engine.data.image_cache import INDEX_NAME, PIXELS_NAME, PixelsIndex
from coreset.engine.data.reader import ShardReader
from coreset.engine.stages.decode import Decode
from coreset.engine.stages.options import Decoding
from coreset.shards.errors import MachineError
from coreset.shards.format.dataset import Dataset

EXACT = Decoding(decoder_exact=True)


@pytest.fixture(scope="module")
def whole(packed, tmp_path_factory):
    """Pixels of ``packed``; read only."""
    pixels = tmp_path_factory.mktemp("decoded") / "PIXELS"
    Decode(data=packed, pixels=pixels, size=19).run()
    return pixels


def rows_of(pixels, size=19):
    return np.fromfile(pixels / PIXELS_NAME, np.uint8).reshape(-1, size, size, 3)


def own_lines(artifact):
    return [line for line in read_ledger(artifact) if "artifact" not in line]


@pytest.mark.parametrize(("squash", "geometry"), [(False, Geometry(19, 19)), (True, Geometry(19))])
def test_exact_pixels_are_those_of_pillow(packed, tmp_path, squash, geometry):
    pixels = tmp_path / "PIXELS"
    Decode(data=packed, pixels=pixels, size=19, squash=squash, decoding=EXACT).run()
    with ShardReader(Dataset.open(packed)) as reader:
        stored = reader.read(np.arange(60))
    expected = np.stack([decode_with_pillow(data, geometry) for data in stored])
    np.testing.assert_array_equal(rows_of(pixels), expected)
    assert Provenance.read(pixels).config == {"size": 19, "squash": squash, "decoder": "pillow"}


def test_a_full_disk_is_found_before_anything_is_written(packed, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=2**24 + 60 * 3 * 19 * 19 - 1)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    command = Decode(data=packed, pixels=tmp_path / "made" / "later" / "PIXELS", size=19)
    fact = rf"--size 19 need 16,842,196 bytes in {tmp_path}, 16,842,195 are free; free some space"
    with pytest.raises(MachineError, match=fact):
        command.run()
    assert not list(tmp_path.iterdir())
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=usage.free + 1))
    command.run()


def test_the_outcome_says_what_was_made_how_what_is_missing_and_what_comes_next(
    damaged, whole, tmp_path
):
    pixels = tmp_path / "PIXELS"
    outcome = Decode(data=damaged, pixels=pixels, size=19).run()
    decoder, made, lost, following = outcome.lines
    assert decoder == "decoder turbo: the fastest on a CPU, at most 1 level from Pillow"
    assert made.startswith("pixels of 60 images (19 x 19, 63.5 KiB) made in ")
    listed = pixels / INDEX_NAME
    assert lost == f"1 of them cannot be decoded and are left out; listed in {listed}"
    assert following == f"next: coreset score {damaged} SCORES --pixels {pixels} --size 17"
    assert outcome.data == {
        "pixels": str(pixels), "images": 60, "bytes": 60 * 3 * 19 * 19, "undecodable": 1,
    }  # fmt: skip
    assert own_lines(pixels)[0]["undecodable"] == 1
    assert list(PixelsIndex.read(listed).undecodable) == [20]
    others = np.arange(60) != 20
    np.testing.assert_array_equal(rows_of(pixels)[others], rows_of(whole)[others])
    assert not rows_of(pixels)[20].any()
