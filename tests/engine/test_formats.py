"""Formats on disk: what earlier versions wrote, byte by byte, whatever the code is called."""

import hashlib
import json
import struct
import zlib

import pytest

SHARDS = {
    "shard-000000.tar": "f79df282654b8b172ef428c5edc31b3e4ac2315ab3e87b54a74481b6882efe59",
    "shard-000001.tar": "b9f12d7ab58f90857bfe335f6b3d4a9adb3f449b0b1df441c1a9bbe220f4680b",
    "shard-000002.tar": "2754819ff836ee98750603a39c43c6f4e446f21fe952249f89c5a0d30371fff4",
    "shard-000000.idx": "4f6d8d176b4d14f0fdea914e64193b47ddbea64b3dc63c2a583e0ff7f9dffcb0",
    "shard-000001.idx": "19532762446ab662f1e1421e13ed921c724425aa1378fed42e726b00f1252fcb",
    "shard-000002.idx": "59a70f2e2b73bed325b7faef3fd1297d23d634875a39653513b0f7332cb25f56",
}
IDENTITY = "0af811cd7a3a34a7e7d0621b5ff6076dd55fe6c932e416d4eb89254b44b444bb"
CONTENT = "4b386e554f4dcb7f7061e2f97c7c66e9851395edd09432b6670cdad362f6ff4a"
RANDOM_IDS = "689df93f1b6bae4e3bdf2b1ad0079e17aa351909b3fed5319e167664ba440a9b"
SET = {
    "format": "coreset-set", "format_version": 1, "ipc": 2, "kind": "coreset", "method": "random",
    "n_classes": 2, "parameters": {"ipc": 2}, "per_class": [2, 2], "seed": 0,
    "source_content": CONTENT, "source_identity": IDENTITY, "source_name": "src",
}  # fmt: skip
PROVENANCE = "binds config digest format_version inputs kind runtime stage versions"


def grey_png(value, side=8):
    """A PNG that no library's compression decides: its deflate stream is stored."""
    rows = b"".join(
        b"\0" + bytes((value + 7 * x + 13 * y) % 256 for x in range(side)) for y in range(side)
    )
    length = struct.pack("<HH", len(rows), len(rows) ^ 0xFFFF)
    stream = b"\x78\x01\x01" + length + rows + struct.pack(">I", zlib.adler32(rows))
    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    png = b"\x89PNG\r\n\x1a\n"
    for kind, content in ((b"IHDR", header), (b"IDAT", stream), (b"IEND", b"")):
        png += struct.pack(">I", len(content)) + kind + content
        png += struct.pack(">I", zlib.crc32(kind + content))
    return png


@pytest.fixture
def data(tmp_path, done):
    for label in range(2):
        folder = tmp_path / "src" / f"c{label}"
        folder.mkdir(parents=True)
        for n in range(6):
            (folder / f"{n}.png").write_bytes(grey_png(40 * label + n))
    done("pack", tmp_path / "src", tmp_path / "DATA", "--samples-per-shard", 5)
    return tmp_path / "DATA"


def test_a_packed_data_set_is_the_one_of_earlier_versions(data):
    digests = {name: hashlib.sha256((data / name).read_bytes()).hexdigest() for name in SHARDS}
    assert digests == SHARDS
    manifest = json.loads((data / "manifest.json").read_text())
    assert (manifest["format"], manifest["format_version"]) == ("coreset-shards", 2)
    assert (manifest["identity"], manifest["content"]) == (IDENTITY, CONTENT)


def test_a_coreset_is_the_one_of_earlier_versions(data, done):
    folder = data.with_name("SET")
    done("select", data, folder, "--ipc", 2)
    names = [path.name for path in folder.iterdir()]
    own = {"ids.npy", "ledger.jsonl", "provenance.json", "set.json"}
    assert {*names} == own | {"selection.parquet"}  # new beside them
    assert hashlib.sha256((folder / "ids.npy").read_bytes()).hexdigest() == RANDOM_IDS
    assert json.loads((folder / "set.json").read_text()) == SET
    provenance = json.loads((folder / "provenance.json").read_text())
    assert sorted(provenance) == PROVENANCE.split()
    assert provenance["config"] == {"ipc": 2, "method": "random", "seed": 0}
    assert provenance["binds"] == {"content": CONTENT, "identity": IDENTITY}


def test_scores_and_their_state_lie_under_the_names_of_earlier_versions(data, done):
    scores = data.with_name("SCORES")
    done("score", data, scores, "--size", 17, "--epochs", 1, "--lr", 0.01)
    names = {path.name for path in scores.iterdir()}
    assert names == {"commit.json", "gen-000002", "ledger.jsonl", "provenance.json"}
    (commit,) = json.loads((scores / "commit.json").read_text())["generations"]
    assert commit["directory"] == "gen-000002"
    assert {"model.safetensors", "scores.zarr/aum/zarr.json"} <= set(commit["files"])
