"""The one progress display, in its three forms."""

import io
import json
import sys
import time

import pytest

from coreset.engine.runtime.progress import Display, Progress, choose_display, progress


@pytest.fixture(autouse=True)
def _default_display():
    yield
    choose_display(Display.AUTO)


@pytest.fixture
def at_every_step(monkeypatch):
    monkeypatch.setattr("coreset.engine.runtime.progress.LINE_EVERY_SECONDS", 0.0)


def advance_by_three():
    with progress("score", total=10) as state:
        state.advance(2, loss=1.5)
        state.advance(1, loss=1.25)
    return state


@pytest.mark.usefixtures("at_every_step")
def test_without_a_terminal_there_is_a_line_per_interval(capsys):
    advance_by_three()
    out, err = capsys.readouterr()
    first, second = err.splitlines()
    assert first.startswith("score: 2 of 10 images, ")
    assert first.endswith("loss 1.5")
    assert second.startswith("score: 3 of 10 images, ")
    assert second.endswith("loss 1.25")
    assert out == ""


def test_lines_do_not_come_faster_than_the_interval(capsys):
    assert advance_by_three().done == 3
    assert capsys.readouterr().err == ""


@pytest.mark.usefixtures("at_every_step")
def test_machines_get_a_json_object_per_interval(capsys):
    choose_display(Display.JSON)
    advance_by_three()
    records = [json.loads(text) for text in capsys.readouterr().err.splitlines()]
    assert [record["done"] for record in records] == [2, 3]
    assert records[0]["event"] == "progress"
    assert (records[0]["stage"], records[0]["total"]) == ("score", 10)
    assert records[0]["unit"] == "images"


@pytest.mark.usefixtures("at_every_step")
def test_a_quiet_display_counts_and_says_nothing(capsys):
    choose_display(Display.QUIET)
    assert advance_by_three().done == 3
    assert capsys.readouterr() == ("", "")


def test_a_terminal_gets_one_live_block(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    advance_by_three()
    assert "score: 3 of 10 images" in terminal.getvalue()
    assert "\x1b[" in terminal.getvalue()


def test_before_the_first_unit_no_time_left_is_claimed():
    state = Progress("score", total=10, unit="epochs")
    assert "left" not in state.text()
    state.advance()
    assert "1 of 10 epochs" in state.text()
    assert "s left" in state.text()


def test_what_an_interrupted_run_finished_does_not_count_as_speed():
    bar = Progress("score", 100)
    bar.resume(50)
    assert bar.done == 50
    assert bar.rate == 0
    assert "/s" in bar.text()
    assert "left" not in bar.text()
    bar.advance(10)
    assert bar.done == 60
    assert bar.rate > 0


def test_a_slow_rate_is_shown_with_its_fraction():
    bar = Progress("train", 10, "epochs", _started=time.monotonic() - 4)
    bar.advance(1)
    assert ", 0.25 epochs/s, " in bar.text()


def test_the_rate_is_in_the_unit_that_is_counted():
    bar = Progress("retry", 90, "shards at most", _started=time.monotonic() - 1)
    bar.advance(40)
    assert bar.text().startswith("retry: 40 of 90 shards at most, 40 shards/s, ")
