"""The one progress display, in its three forms."""

import io
import json
import sys
import time

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from coreset.engine.artifacts.pack_inputs import Places, spool_of
from coreset.engine.runtime.progress import Display, Progress, choose_display, progress


@pytest.fixture(autouse=True)
def _default_display(monkeypatch):
    monkeypatch.setattr("coreset.engine.runtime.progress.LINE_EVERY_SECONDS", 0.0)
    yield
    choose_display(Display.AUTO)


def advance_by_three():
    with progress("score", total=10) as state:
        state.advance(2, loss=1.5)
        state.advance(1, loss=1.25)
    assert state.done == 3


def test_without_a_terminal_there_is_a_line_per_interval(capsys, monkeypatch):
    advance_by_three()
    out, err = capsys.readouterr()
    first, second = err.splitlines()
    assert first.startswith("score: 2 of 10 images, ")
    assert first.endswith("loss 1.5")
    assert second.startswith("score: 3 of 10 images, ")
    assert second.endswith("loss 1.25")
    assert out == ""
    monkeypatch.setattr("coreset.engine.runtime.progress.LINE_EVERY_SECONDS", 30.0)
    advance_by_three()
    assert capsys.readouterr().err == ""


def test_machines_get_a_json_object_per_interval_and_a_quiet_display_says_nothing(capsys):
    choose_display(Display.JSON)
    advance_by_three()
    first, second = (json.loads(text) for text in capsys.readouterr().err.splitlines())
    common = {"event": "progress", "stage": "score", "total": 10, "unit": "images"}
    assert first == common | {"done": 2, "loss": "1.5"}
    assert second == common | {"done": 3, "loss": "1.25"}
    choose_display(Display.QUIET)
    advance_by_three()
    assert capsys.readouterr() == ("", "")


def test_a_terminal_gets_one_live_block(monkeypatch):
    terminal = io.StringIO()
    monkeypatch.setattr(terminal, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    advance_by_three()
    assert "score: 3 of 10 images" in terminal.getvalue()
    assert "\x1b[" in terminal.getvalue()


def test_what_an_interrupted_run_finished_does_not_count_as_speed():
    bar = Progress("score", 100)
    bar.resume(50)
    assert (bar.done, bar.rate) == (50, 0)
    assert "/s" in bar.text()
    assert "left" not in bar.text()
    bar.advance(10)
    assert bar.rate > 0
    assert "60 of 100 images" in bar.text()
    assert "s left" in bar.text()


@pytest.mark.parametrize(
    ("total", "unit", "seconds", "done", "text"),
    [
        (10, "epochs", 4, 1, "run: 1 of 10 epochs, 0.25 epochs/s, "),
        (90, "shards at most", 1, 40, "run: 40 of 90 shards at most, 40 shards/s, "),
    ],
)
def test_the_rate_is_in_the_unit_that_is_counted(total, unit, seconds, done, text):
    bar = Progress("run", total, unit, _started=time.monotonic() - seconds)
    bar.advance(done)
    assert bar.text().startswith(text)


def shown(src, data, capsys):
    """Stage, done and total of every line that is shown while the source is found."""
    choose_display(Display.JSON)
    Places(src=src).find(only=None, duplicates="error", data=data)
    records = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    return [(record["stage"], record["done"], record["total"]) for record in records]


def test_decompression_is_shown_in_megabytes_to_its_end(photos, tmp_path, capsys):
    images = [bytes([at]) * 500_000 for at in range(10)]
    table = pa.table({"image": images, "label": ["cat", "dog"] * 5})
    pq.write_table(table, tmp_path / "x.parquet", row_group_size=2, compression="zstd")
    steps = shown(tmp_path / "x.parquet", tmp_path / "DATA", capsys)
    assert {(stage, total) for stage, _, total in steps} == {("decompress", 6)}
    assert sorted({done for _, done, _ in steps}) == [0, 1, 2, 3, 4, 5, 6]
    assert spool_of(tmp_path / "DATA").is_dir()
    for src in (tmp_path / "x.parquet", photos):  # decompressed before, and read as it is
        assert shown(src, tmp_path / "DATA", capsys) == []
