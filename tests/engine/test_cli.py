"""The command line: one line of error, the exit code of its class, and nothing else."""

import importlib.util
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from coreset.engine.cli import VERBS, main

FAKE_FILE = Path(__file__).with_name("fake_stage.py")
FAKE_COMMAND = [sys.executable, str(FAKE_FILE), "fake", "out"]
FAKE_MODULE = [sys.executable, "-m", "fake_stage", "fake", "out"]


@pytest.fixture
def _fake(monkeypatch):
    """Make ``coreset fake`` a verb."""
    spec = importlib.util.spec_from_file_location("coreset.engine.stages.fake", FAKE_FILE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "coreset.engine.stages.fake", module)
    spec.loader.exec_module(module)
    monkeypatch.setitem(VERBS, "fake", module.ENTRY)


def one_line(text):
    """The only line of ``text``, which must be one."""
    assert text.endswith("\n")
    assert text.count("\n") == 1, text
    return text[:-1]


@pytest.mark.parametrize("arguments", [[], ["-h"], ["--help"], ["help"]])
def test_help_lists_every_verb(arguments, capsys):
    assert main(arguments) == 0
    text = capsys.readouterr().out
    assert all(f"\n  {verb} " in text for verb in VERBS)


def test_the_version_is_that_of_the_distribution(capsys):
    assert main(["--version"]) == 0
    assert one_line(capsys.readouterr().out).startswith("coreset 0.")


@pytest.mark.usefixtures("_fake")
def test_a_verb_prints_its_lines_and_nothing_else(capsys):
    assert main(["fake", "out"]) == 0
    assert capsys.readouterr() == ("made it\nnext: `coreset ls`\n", "")


@pytest.mark.usefixtures("_fake")
def test_help_of_a_verb_explains_its_fields(capsys):
    assert main(["fake", "--help"]) == 0
    text = capsys.readouterr().out
    assert "usage: coreset fake" in text
    assert "Where nothing is written." in text
    assert "At least 1. (default: 1)" in text


@pytest.mark.usefixtures("_fake")
@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["dance"], "verb must be one of demo, doctor, "),
        (["fake"], "SET"),
        (["fake", "out", "--epochs", "many"], "--epochs"),
        (["fake", "out", "--epochs"], "--epochs"),
        (["fake", "out", "--ending", "badly"], "'badly'"),
        (["fake", "out", "--speed", "9"], "--speed"),
        (["fake", "out", "another"], "another"),
        (["fake", "out", "--epochs", "0"], "epochs must be at least 1, got 0"),
    ],
)
def test_a_wrong_word_gives_one_line_and_exit_code_2(arguments, said, capsys):
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    line = one_line(err)
    assert line.startswith("coreset: ")
    assert said in line
    assert not set(line) & set("│╭╰─")
    assert out == ""


@pytest.mark.usefixtures("_fake")
@pytest.mark.parametrize(
    ("ending", "code", "said"),
    [
        ("data", 3, "shard 3 is cut; pack again"),
        ("disk", 4, "No space left on device at some/file; nothing was half-written"),
        ("memory", 4, "out of memory; --batch 32 should fit"),
        ("key", 130, "interrupted; the same command continues"),
    ],
)
def test_an_expected_error_gives_one_line_and_the_code_of_its_class(ending, code, said, capsys):
    assert main(["fake", "out", "--ending", ending]) == code
    out, err = capsys.readouterr()
    assert said in one_line(err)
    assert out == ""


@pytest.mark.usefixtures("_fake")
@pytest.mark.parametrize(("ending", "error"), [("absent", OSError), ("bug", ZeroDivisionError)])
def test_a_bug_is_not_dressed_up(ending, error):
    with pytest.raises(error):
        main(["fake", "out", "--ending", ending])


@pytest.mark.usefixtures("_fake")
def test_findings_go_out_before_the_failure(capsys):
    assert main(["fake", "out", "--ending", "table"]) == 4
    assert capsys.readouterr() == ("a table\n", "coreset: the machine is unfit\n")


@pytest.mark.usefixtures("_fake")
@pytest.mark.parametrize("position", [0, 1, 2])
def test_json_gives_the_facts_wherever_the_flag_stands(position, capsys):
    words = ["fake", "out"]
    words.insert(position, "--json")
    assert main(words) == 0
    record = json.loads(one_line(capsys.readouterr().out))
    assert (record["event"], record["verb"], record["images"]) == ("done", "fake", 7)


@pytest.mark.usefixtures("_fake")
def test_json_gives_errors_and_failures_as_records(capsys):
    assert main(["fake", "out", "--ending", "data", "--json"]) == 3
    record = json.loads(one_line(capsys.readouterr().out))
    assert record == {"event": "error", "exit_code": 3, "message": "shard 3 is cut; pack again"}
    assert main(["fake", "out", "--ending", "table", "--json"]) == 4
    findings, error = map(json.loads, capsys.readouterr().out.splitlines())
    assert (findings["event"], findings["fit"]) == ("failed", False)
    assert (error["event"], error["exit_code"]) == ("error", 4)


@pytest.mark.usefixtures("_fake")
def test_handlers_of_signals_are_put_back():
    before = signal.getsignal(signal.SIGTERM)
    main(["fake", "out"])
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_bug_keeps_its_traceback_and_exits_1():
    command = [*FAKE_COMMAND, "--ending", "bug"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert result.stderr.startswith("Traceback")
    assert "ZeroDivisionError: a bug of ours" in result.stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_scheduler_signal_exits_75_and_says_how_to_continue(number):
    with started([*FAKE_COMMAND, "--ending", "wait"]) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "waiting\n"
        process.send_signal(number)
        _, err = process.communicate(timeout=30)
    assert process.returncode == 75
    assert one_line(err) == f"coreset: interrupted by {number.name}; the same command continues"


ENDED = (130, "interrupted; the same command continues\n")
# As dataclasses execute strings while they are defined.
WAITING_STRING = """
exec("print('importing', flush=True); import time; time.sleep(60)")
"""
# As packages catch whatever goes wrong in an import.
WAITING_IMPORT = """
import os, sys, time
try:
    os.write(1, b"importing\\n")
    time.sleep(60)
except BaseException:
    raise ImportError("half imported") from None
"""


def test_ctrl_c_while_a_verb_is_imported_ends_without_a_traceback(tmp_path):
    (tmp_path / "tyro.py").write_text(WAITING_IMPORT)  # what every verb imports first
    path = f"import sys; sys.path.insert(0, {str(tmp_path)!r})"
    code = f"{path}; from coreset.__main__ import run; run()"
    assert ended_by_ctrl_c([sys.executable, "-c", code, "pack"]) == ENDED


@pytest.mark.parametrize("module", [WAITING_IMPORT, WAITING_STRING], ids=["caught", "string"])
def test_ctrl_c_in_an_import_of_a_stage_is_no_other_error(module, tmp_path):
    (tmp_path / "half.py").write_text(module)
    assert ended_by_ctrl_c([*FAKE_MODULE, "--ending", "import"], with_path(tmp_path)) == ENDED


def test_ctrl_c_stays_ignored_where_it_was(tmp_path):
    (tmp_path / "half.py").write_text("print('importing', flush=True); import time; time.sleep(1)")
    ignoring = ["sh", "-c", "trap '' INT; exec \"$@\"", "sh", *FAKE_MODULE, "--ending", "import"]
    assert ended_by_ctrl_c(ignoring, with_path(tmp_path)) == (0, "")


def with_path(folder):
    """The environment, with a folder and that of the stage that ends as asked on Python's path."""
    folders = (str(folder), str(FAKE_FILE.parent), os.environ.get("PYTHONPATH", ""))
    return {**os.environ, "PYTHONPATH": os.pathsep.join(folders)}


def ended_by_ctrl_c(command, environment=None):
    """Exit code and standard error of a command that gets SIGINT once it said something."""
    with started(command, environment) as process:
        assert process.stdout is not None
        assert process.stdout.readline()
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    return process.returncode, err


def test_commands_do_not_wait_for_pandas(photos, tmp_path):
    (tmp_path / "pandas.py").write_text("raise SystemExit('pandas was imported')")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}
    by_itself = run_in(environment, "import pyarrow; pyarrow.array([1])")
    assert "pandas was imported" in by_itself.stderr
    command = ["pack", str(photos), str(tmp_path / "data")]
    packing = run_in(environment, "from coreset.engine.cli import run; run()", *command)
    assert (packing.returncode, packing.stderr) == (0, "")


def run_in(environment, code, *arguments):
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def test_a_reader_that_goes_away_is_no_error():
    late = "import time; time.sleep(0.2); from coreset.engine.cli import run; run()"
    with started([sys.executable, "-c", late, "--help"]) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == 0


def started(command, environment=None):
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, env=environment)
