"""Finding a source for a packing: what is shown while it is decompressed."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from coreset.engine.artifacts.pack_inputs import Places, spool_of
from coreset.engine.runtime.progress import Display, choose_display


@pytest.fixture(autouse=True)
def _every_step_as_json(monkeypatch):
    monkeypatch.setattr("coreset.engine.runtime.progress.LINE_EVERY_SECONDS", 0.0)
    choose_display(Display.JSON)
    yield
    choose_display(Display.AUTO)


def shown(src: Path, data: Path, capsys: pytest.CaptureFixture[str]) -> list[tuple[str, int, int]]:
    """Stage, done and total of every line that is shown while the source is found."""
    Places(src=src).find(only=None, duplicates="error", data=data)
    records = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    return [(record["stage"], record["done"], record["total"]) for record in records]


def test_decompression_is_shown_in_megabytes_to_its_end(photos: Path, tmp_path: Path, capsys):
    images = [bytes([at]) * 500_000 for at in range(10)]
    table = pa.table({"image": images, "label": ["cat", "dog"] * 5})
    pq.write_table(table, tmp_path / "x.parquet", row_group_size=2, compression="zstd")
    steps = shown(tmp_path / "x.parquet", tmp_path / "DATA", capsys)
    assert {(stage, total) for stage, _, total in steps} == {("decompress", 6)}
    assert sorted({done for _, done, _ in steps}) == [0, 1, 2, 3, 4, 5, 6]
    assert spool_of(tmp_path / "DATA").is_dir()
    for src in (tmp_path / "x.parquet", photos):  # decompressed before, and read as it is
        assert shown(src, tmp_path / "DATA", capsys) == []
