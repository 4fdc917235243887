"""The command line: one line of error, the exit code of its class, and nothing else."""

import importlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from coreset.engine.cli import VERBS

FAKE_FILE = Path(__file__).with_name("fake_stage.py")
FAKE_COMMAND = [sys.executable, "-m", "fake_stage", "fake", "out"]
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


@pytest.fixture
def fake(monkeypatch, coreset):
    """``fake("--ending", "data")``: run ``coreset fake out`` in this process."""
    monkeypatch.syspath_prepend(str(FAKE_FILE.parent))
    module = importlib.import_module("fake_stage")
    monkeypatch.setitem(sys.modules, "coreset.engine.stages.fake", module)
    monkeypatch.setitem(VERBS, "fake", module.ENTRY)
    return lambda *words: coreset("fake", "out", *words)


def one_line(text):
    """The only line of ``text``, which must be one."""
    assert text.endswith("\n")
    assert text.count("\n") == 1, text
    return text[:-1]


@pytest.mark.parametrize("words", [(), ("-h",), ("--help",), ("help",)])
def test_help_lists_every_verb(words, done):
    assert {line.split()[0] for line in done(*words) if line.startswith("  ")} >= VERBS.keys()


def test_the_version_is_that_of_the_distribution(done):
    assert done("--version")[0].startswith("coreset 0.")


def test_a_verb_prints_its_lines_and_nothing_else_and_puts_handlers_back(fake):
    before = signal.getsignal(signal.SIGTERM)
    ended = fake()
    assert (ended.code, ended.out, ended.err) == (0, "made it\nnext: `coreset ls`\n", "")
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.usefixtures("fake")
def test_help_of_a_verb_explains_its_fields(coreset):
    out = coreset("fake", "--help").out
    for text in ("usage: coreset fake", "Where nothing is written.", "At least 1. (default: 1)"):
        assert text in out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--epochs", "many"], "--epochs"),
        (["--ending", "badly"], "'badly'"),
        (["--speed", "9"], "--speed"),
        (["another"], "another"),
        (["--epochs", "0"], "epochs must be at least 1, got 0"),
    ],
)
def test_a_wrong_word_gives_one_line_and_exit_code_2(fake, words, said):
    ended = fake(*words)
    line = one_line(ended.err)
    assert (ended.code, ended.out) == (2, "")
    assert line.startswith("coreset: ")
    assert said in line
    assert not set(line) & set("│╭╰─")


@pytest.mark.parametrize(
    ("ending", "code", "out", "said"),
    [
        ("data", 3, "", "shard 3 is cut; pack again"),
        ("disk", 4, "", "No space left on device at some/file; nothing was half-written"),
        ("memory", 4, "", "out of memory; --batch 32 should fit"),
        ("key", 130, "", "interrupted; the same command continues"),
        ("table", 4, "a table\n", "coreset: the machine is unfit"),
    ],
)
def test_an_expected_error_gives_one_line_and_the_code_of_its_class(fake, ending, code, out, said):
    ended = fake("--ending", ending)
    assert (ended.code, ended.out) == (code, out)
    assert said in one_line(ended.err)


def test_a_bug_is_not_dressed_up(fake):
    for ending, error in (("absent", OSError), ("bug", ZeroDivisionError)):
        with pytest.raises(error):
            fake("--ending", ending)
    command = [*FAKE_COMMAND, "--ending", "bug"]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, env=with_path())
    assert ended.returncode == 1
    assert ended.stderr.startswith("Traceback")
    assert "ZeroDivisionError: a bug of ours" in ended.stderr


def test_json_gives_facts_errors_and_failures_as_records(fake, coreset):
    for words in (("--json", "fake", "out"), ("fake", "--json", "out"), ("fake", "out", "--json")):
        record = json.loads(one_line(coreset(*words).out))
        assert (record["event"], record["verb"], record["images"]) == ("done", "fake", 7)
    record = json.loads(one_line(fake("--ending", "data", "--json").out))
    assert record == {"event": "error", "exit_code": 3, "message": "shard 3 is cut; pack again"}
    ended = fake("--ending", "table", "--json")
    findings, error = map(json.loads, ended.out.splitlines())
    assert (findings["event"], findings["fit"]) == ("failed", False)
    assert (error["event"], error["exit_code"]) == ("error", ended.code) == ("error", 4)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_scheduler_signal_exits_75_and_says_how_to_continue(number):
    code, err = ended_by(number, [*FAKE_COMMAND, "--ending", "wait"])
    assert code == 75
    assert err == f"coreset: interrupted by {number.name}; the same command continues\n"


def test_ctrl_c_while_a_verb_is_imported_ends_without_a_traceback(tmp_path):
    (tmp_path / "tyro.py").write_text(WAITING_IMPORT)  # what every verb imports first
    path = f"import sys; sys.path.insert(0, {str(tmp_path)!r})"
    code = f"{path}; from coreset.__main__ import run; run()"
    assert ended_by(signal.SIGINT, [sys.executable, "-c", code, "pack"]) == ENDED


@pytest.mark.parametrize("module", [WAITING_IMPORT, WAITING_STRING], ids=["caught", "string"])
def test_ctrl_c_in_an_import_of_a_stage_is_no_other_error(module, tmp_path):
    (tmp_path / "half.py").write_text(module)
    assert ended_by(signal.SIGINT, [*FAKE_COMMAND, "--ending", "import"], tmp_path) == ENDED


def test_ctrl_c_stays_ignored_where_it_was(tmp_path):
    (tmp_path / "half.py").write_text("print('importing', flush=True); import time; time.sleep(1)")
    ignoring = ["sh", "-c", "trap '' INT; exec \"$@\"", "sh", *FAKE_COMMAND, "--ending", "import"]
    assert ended_by(signal.SIGINT, ignoring, tmp_path) == (0, "")


def with_path(*folders):
    """The environment, with folders and that of the stage that ends as asked on Python's path."""
    path = [*map(str, folders), str(FAKE_FILE.parent), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path)}


def ended_by(number, command, *folders):
    """Exit code and standard error of a command that gets a signal once it said something."""
    pipe = subprocess.PIPE
    command = ["env", "--default-signal=INT", *command]  # which a shell's background ignores
    with subprocess.Popen(
        command, stdout=pipe, stderr=pipe, text=True, env=with_path(*folders)
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline()
        process.send_signal(number)
        _, err = process.communicate(timeout=60)
    return process.returncode, err


def test_commands_do_not_wait_for_pandas(photos, tmp_path):
    (tmp_path / "pandas.py").write_text("raise SystemExit('pandas was imported')")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}

    def errors_of(code, *arguments):
        command = [sys.executable, "-c", code, *map(str, arguments)]
        return subprocess.run(
            command, env=environment, capture_output=True, text=True, check=False
        ).stderr

    assert "pandas was imported" in errors_of("import pyarrow; pyarrow.array([1])")
    run = "from coreset.engine.cli import run; run()"
    assert errors_of(run, "pack", photos, tmp_path / "data") == ""
    assert (tmp_path / "data").exists()


def test_a_reader_that_goes_away_is_no_error():
    late = "import time; time.sleep(0.2); from coreset.engine.cli import run; run()"
    pipe = subprocess.PIPE
    with subprocess.Popen(
        [sys.executable, "-c", late, "--help"], stdout=pipe, stderr=pipe, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == 0
