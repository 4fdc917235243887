"""What the machine check finds, and when it calls a machine unfit."""

import json
import os
import shutil

import pytest
import torch

import coreset.engine.doctor.machine
from coreset.engine.cli import main
from coreset.engine.doctor.machine import (
    Check,
    Verdict,
    check_cores,
    check_disk,
    check_file_system,
    check_memory,
    check_open_files,
    check_packages,
    driver_version,
    findings,
)

GIB = 2**30


@pytest.fixture
def _few_packages(monkeypatch):
    monkeypatch.setattr(
        coreset.engine.doctor.machine, "PACKAGES", {"numpy": "numpy", "PIL": "pillow"}
    )


def written(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_cores_are_those_that_this_process_may_use(tmp_path):
    (found,) = check_cores(tmp_path)
    assert found.facts["cores"] == len(os.sched_getaffinity(0))


def test_the_file_system_probe_passes_here_and_leaves_nothing(tmp_path):
    (tmp_path / "mine").touch()
    verdicts = {one.name: one.verdict for one in check_file_system(tmp_path)}
    assert verdicts == {"write, fsync, rename": Verdict.OK, "file lock": Verdict.OK}
    assert [file.name for file in tmp_path.iterdir()] == ["mine"]


def test_a_folder_that_cannot_be_written_is_a_failure(tmp_path):
    (found,) = check_file_system(tmp_path / "nothing")
    assert found.verdict is Verdict.FAIL
    assert "choose another --path" in found.remedy


@pytest.mark.parametrize(
    ("check", "limit", "verdict"),
    [
        (check_memory, "NEEDED_MEMORY_BYTES", Verdict.FAIL),
        (check_disk, "NEEDED_DISK_BYTES", Verdict.WARN),
        (check_open_files, "NEEDED_OPEN_FILES", Verdict.WARN),
    ],
)
def test_too_little_of_something_is_told_with_a_remedy(
    check, limit, verdict, tmp_path, monkeypatch
):
    monkeypatch.setattr(coreset.engine.doctor.machine, limit, 0)
    (enough,) = check(tmp_path)
    monkeypatch.setattr(coreset.engine.doctor.machine, limit, 2**62)
    (too_little,) = check(tmp_path)
    assert (enough.verdict, enough.remedy) == (Verdict.OK, "")
    assert too_little.verdict is verdict
    assert too_little.remedy
    assert too_little.facts.keys() == enough.facts.keys()


def test_a_package_that_does_not_import_is_a_failure(tmp_path, monkeypatch):
    packages = {"numpy": "numpy", "no_such_module": "no-such-package"}
    monkeypatch.setattr("coreset.engine.doctor.machine.PACKAGES", packages)
    python, numpy, missing = check_packages(tmp_path)
    assert (python.name, python.verdict, numpy.verdict) == ("python", Verdict.OK, Verdict.OK)
    assert (missing.name, missing.verdict) == ("no-such-package", Verdict.FAIL)
    assert "No module named 'no_such_module'" in missing.value


def test_a_check_that_breaks_down_is_a_finding_and_stops_no_other(tmp_path, monkeypatch):
    def check_broken_driver(_path):
        yield Check("first", "fine")
        raise RuntimeError("the driver\nanswered nothing")

    monkeypatch.setattr("coreset.engine.doctor.machine.CHECKS", (check_broken_driver, check_cores))
    first, broken, cores = findings(tmp_path)
    assert (first.name, cores.name) == ("first", "cores")
    assert (broken.name, broken.verdict) == ("broken driver", Verdict.FAIL)
    assert broken.value == "the driver answered nothing"


@pytest.mark.usefixtures("_few_packages")
def test_a_fit_machine_gets_an_aligned_table_and_exit_code_0(tmp_path, capsys):
    assert main(["doctor", "--path", str(tmp_path)]) == 0
    out, err = capsys.readouterr()
    header, *rows, last = out.splitlines()
    assert header.split() == ["check", "verdict", "value;", "remedy"]
    column = header.index("verdict")
    assert {row[column:].split()[0] for row in rows} <= {"ok", "warn"}
    assert "fit" in last
    assert err == ""


@pytest.mark.usefixtures("_few_packages")
def test_an_unfit_machine_gets_its_table_first_and_then_one_line_and_exit_code_4(
    tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr("coreset.engine.doctor.machine.NEEDED_MEMORY_BYTES", 2**62)
    assert main(["doctor", "--path", str(tmp_path), "--json"]) == 4
    out, err = capsys.readouterr()
    record, error = map(json.loads, out.splitlines())
    assert (record["event"], record["fit"]) == ("failed", False)
    assert record["checks"]["memory"]["verdict"] == "fail"
    assert record["checks"]["disk"]["facts"]["free_bytes"] > 0
    assert (error["event"], error["exit_code"]) == ("error", 4)
    assert err.startswith("coreset: this machine is unfit: memory: ")
    assert err.count("\n") == 1


@pytest.mark.parametrize("words", [[], ["--json"]])
def test_every_check_is_shown_as_it_ends(tmp_path, capsys, monkeypatch, words):
    shown = []

    def look(name):
        def check(_path):
            shown.append(capsys.readouterr().out)
            yield Check(name, "here")

        return check

    names = ["first", "second", "third"]
    monkeypatch.setattr("coreset.engine.doctor.machine.CHECKS", [look(name) for name in names])
    assert main(["doctor", "--path", str(tmp_path), *words]) == 0
    shown.append(capsys.readouterr().out)
    if words:
        record = json.loads(shown.pop())
        assert [line.split()[0] for line in record["lines"][1:-1]] == names
        assert list(record["checks"]) == names
        assert shown == [""] * 3
    else:
        assert [text.splitlines()[0].split()[0] for text in shown] == ["check", *names]


def test_a_path_that_is_no_folder_is_a_wrong_argument(tmp_path, capsys):
    assert main(["doctor", "--path", str(tmp_path / "nothing")]) == 2
    assert "is not a folder; make it or name another one" in capsys.readouterr().err


NO_TIME = ("--samples", "4", "--seconds", "0")


@pytest.mark.usefixtures("_few_packages")
def test_with_data_the_proofs_follow_the_machine_in_the_table_and_in_json(packed, coreset):
    told = coreset("doctor", packed, "--path", packed.parent, "--device", "cpu", *NO_TIME)
    assert told.code == 0
    rows = [line.split("  ")[0] for line in told.out.splitlines()]
    assert rows.index("cores") < rows.index("ids, ranks: 3") < rows.index("projection: embed once")
    assert rows[-1] == "every proof holds on cpu; projections are arithmetic"


@pytest.mark.usefixtures("_few_packages")
def test_a_proof_that_fails_makes_the_machine_unfit_by_name(packed, coreset, tmp_path):
    damaged = shutil.copytree(packed, tmp_path / "DATA")
    for shard in damaged.glob("*.tar"):
        shard.unlink()
    told = coreset("doctor", damaged, "--path", tmp_path, "--device", "cpu", *NO_TIME, "--json")
    assert told.code == 4
    record, error = map(json.loads, told.out.splitlines())
    assert (record["fit"], record["device"], record["samples"]) == (False, "cpu", 4)
    assert record["proofs"]["kept pixels"]["verdict"] == "fail"
    assert record["proofs"]["scores of a training"]["facts"]["largest"]["aum"] == 0
    assert "kept pixels: " in error["message"]
    assert told.err.count("\n") == 1


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("with_data", [True, False])
def test_a_gpu_that_is_not_there_is_one_line_and_exit_code_4(packed, coreset, with_data):
    told = coreset("doctor", *([packed] if with_data else []), "--device", "cuda")
    assert (told.code, told.out) == (4, "")
    assert told.err.startswith("coreset: device cuda: no usable GPU here; ")
    assert told.err.count("\n") == 1


def test_a_device_without_data_is_refused(coreset):
    told = coreset("doctor", "--device", "cpu")
    assert (told.code, told.out) == (2, "")
    assert told.err == "coreset: device cpu is proved on DATA; name a packed data set\n"


def test_data_that_are_not_packed_are_refused_before_anything_is_checked(tmp_path, coreset):
    told = coreset("doctor", tmp_path)
    assert (told.code, told.out) == (2, "")


@pytest.mark.slow
def test_every_package_of_the_environment_imports(tmp_path):
    assert [one for one in check_packages(tmp_path) if one.verdict is Verdict.FAIL] == []


@pytest.mark.parametrize(
    "text",
    [
        "NVRM version: NVIDIA UNIX x86_64 Kernel Module  580.82.07  Wed\nGCC version: 13.3.0",
        "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.82.07  Release Build",
    ],
)
def test_the_driver_version_is_read_from_both_kinds_of_module(text, tmp_path):
    assert driver_version(written(tmp_path / "version", text)) == "580.82.07"


def test_without_a_driver_there_is_no_version(tmp_path):
    assert driver_version(tmp_path / "nothing") is None
