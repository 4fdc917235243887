"""Studies: recipes, plans, executors, the driver, and what it leaves when it is killed."""

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coreset.engine.artifacts.provenance import PROVENANCE_NAME
from coreset.engine.artifacts.writer import lock
from coreset.engine.evaluation.result_tables import METRICS, STUDENTS
from coreset.engine.evaluation.results import Results
from coreset.engine.stages.study import Retry
from coreset.engine.studies import executors
from coreset.engine.studies.driver import RETRIES, Driver, last_failures
from coreset.engine.studies.executors import Ended, Job, Local, gpu_names
from coreset.engine.studies.outputs import expectations, finished
from coreset.engine.studies.plan import SHARED, part_of, plan_study, with_needs
from coreset.engine.studies.recipe import RECIPES, Recipe, Step, read_recipe
from coreset.shards.errors import InterruptedRunError, UsageError

TEXT = """
ipcs = [5, 10]
students = ["convnet", "resnet18"]
seeds = [0, 1]
[data.a]
train = { verb = "synth", images = 40 }
val = { verb = "synth", images = 20, seed = 1 }
[data.b]
train = { verb = "pack", inputs = ["photos"] }
val = { verb = "pack", inputs = ["photos-val"] }
[steps.scores]
verb = "score"
epochs = 4
[steps.teacher]
verb = "teach"
[sets.random]
verb = "select"
method = "random"
[sets.aum]
verb = "select"
inputs = ["@scores"]
misratio = { 5 = 0.3, 10 = 0.2 }
[sets.listed]
verb = "ingest"
inputs = ["lists/{data}-{ipc}.csv"]
data = "@train"
[protocols.hard]
epochs = 10
size = 64
[protocols.soft]
protocol = "rded"
teachers = ["@teacher", "resnet18=file.pth"]
[measure]
metrics = "coverage,prdc"
[report]
"""
RUN = Path("RUN")


@pytest.fixture
def write(tmp_path):
    """``write(text)``: a recipe file."""

    def recipe(text, name="recipe"):
        path = tmp_path / f"{name}.toml"
        path.write_text(text)
        return str(path)

    return recipe


@pytest.fixture
def nodes(write, tmp_path):
    """The plan of the recipe above."""
    return plan_study(read_recipe(write(TEXT)), tmp_path / "RUN")


def kinds(nodes):
    return Counter(node.kind for node in nodes)


# recipe and plan


def test_a_recipe_stands_for_the_product_of_what_it_names(nodes):
    n_sets = 2 * 3 * 2  # data sets, sets, IPCs
    assert kinds(nodes) == {
        "data": 4, "steps": 4, "sets": n_sets, "cells": n_sets * 2 * 2 * 2,
        "measures": n_sets * 2, "reports": 2,
    }  # fmt: skip
    assert len({node.name for node in nodes}) == len({node.key for node in nodes}) == len(nodes)
    artifacts = [node.out for node in nodes if node.kind in SHARED]
    assert len(set(artifacts)) == len(artifacts)


def test_commands_are_what_a_user_would_type(write):
    nodes = plan_study(read_recipe(write(TEXT)), RUN)
    by_label = {node.name.rpartition("-")[0]: node for node in nodes}
    key = {label: node.name.rpartition("-")[2] for label, node in by_label.items()}
    train = f"RUN/data/b-train-{key['b-train']}"
    made = f"RUN/sets/b-aum-ipc5-{key['b-aum-ipc5']}"
    expected = {
        "b-train": f"pack photos {train}",
        "b-scores": f"score {train} RUN/steps/b-scores-{key['b-scores']} --epochs 4",
        "b-aum-ipc5": f"select RUN/steps/b-scores-{key['b-scores']} {made} --ipc 5 --misratio 0.3",
        "b-listed-ipc10": f"ingest lists/b-10.csv RUN/sets/b-listed-ipc10-{key['b-listed-ipc10']} "
        f"--data {train}",
    }
    for label, words in expected.items():
        assert " ".join(by_label[label].command) == words
    soft = by_label["b-aum-ipc5-soft-resnet18-seed1"].command
    results, val = soft[3], f"RUN/data/b-val-{key['b-val']}"
    teacher = f"RUN/steps/b-teacher-{key['b-teacher']}"
    assert " ".join(soft) == (
        f"train {made} {val} {results} --protocol rded --teachers {teacher} resnet18=file.pth "
        "--student resnet18 --seed 1 --repeats 1"
    )
    assert results.startswith("RUN/results/soft-")


def test_every_node_comes_after_those_it_needs(nodes):
    seen = set()
    for node in nodes:
        assert set(node.needs) <= seen
        seen.add(node.name)


def reordered(recipe):
    """The recipe with every table and list the other way around."""

    def turned(table):
        return dict(reversed(table.items()))

    return replace(
        recipe, ipcs=recipe.ipcs[::-1], students=recipe.students[::-1], seeds=recipe.seeds[::-1],
        data=turned(recipe.data), steps=turned(recipe.steps), sets=turned(recipe.sets),
        protocols={name: turned(table) for name, table in turned(recipe.protocols).items()},
    )  # fmt: skip


NAMES = st.lists(st.text("abcxyz", min_size=1, max_size=4), min_size=1, max_size=3, unique=True)


@settings(deadline=None, max_examples=40)
@given(
    data=NAMES, sets=NAMES, students=st.sets(st.sampled_from(["convnet", "resnet18"]), min_size=1),
    ipcs=st.sets(st.integers(1, 9), min_size=1, max_size=3), n_seeds=st.integers(1, 3),
)  # fmt: skip
def test_any_product_shares_what_can_be_shared_in_any_order(data, sets, students, ipcs, n_seeds):
    def made(verb, *inputs, **options):
        return Step(verb=verb, inputs=inputs, options=options)

    recipe = Recipe(
        ipcs=tuple(ipcs), students=tuple(students), seeds=tuple(range(n_seeds)),
        data={d: {s: made("pack", f"{d}/{s}") for s in ("train", "val")} for d in data},
        steps={"SCORES": made("score", "@train")},
        sets={name: made("select", "@SCORES", method=name) for name in sets},
        protocols={"hard": {"protocol": "hard"}},
    )  # fmt: skip
    nodes = plan_study(recipe, RUN)
    n_sets = len(data) * len(sets) * len(ipcs)
    n_cells = n_sets * len(students) * n_seeds
    wanted = {"data": 2 * len(data), "steps": len(data), "sets": n_sets, "cells": n_cells}
    assert kinds(nodes) == wanted
    assert len({node.name for node in nodes}) == len(nodes)
    assert plan_study(reordered(recipe), RUN) == nodes


# what is changed in the recipe, and the outputs that hang on it
CHANGES = {
    "epochs = 4": ("epochs = 5", {"scores", "aum"}),
    "10 = 0.2": ("10 = 0.25", {"aum-ipc10"}),
    'inputs = ["photos"]': ('inputs = ["others"]', {"b-"}),
    "epochs = 10": ("epochs = 11", {"-hard-"}),
    '"resnet18=file.pth"': ('"resnet18=other.pth"', {"-soft-"}),
    'verb = "teach"': ('verb = "teach"\nepochs = 9', {"teacher", "-soft-"}),
    'metrics = "coverage,prdc"': ('metrics = "coverage"', {"-measure-"}),
    'verb = "score"': ('verb = "score"\ndevice = "cpu"', set()),
}


@pytest.mark.parametrize("text", CHANGES)
def test_a_changed_field_makes_anew_only_what_hangs_on_it(write, nodes, text):
    other, changed = CHANGES[text]
    assert text in TEXT
    now = plan_study(read_recipe(write(TEXT.replace(text, other))), nodes[0].out.parents[1])
    new = {node.name for node in now} - {node.name for node in nodes}
    expected = {
        node.name
        for node in now
        if node.kind != "reports"
        and any(part in node.name for part in changed)
        # b's validation set is packed from another folder
        and not (changed == {"b-"} and (node.name.startswith("b-val") or node.name[0] != "b"))
    }
    assert {name for name in new if not name.startswith("report-")} == expected


BAD = {
    ("ipcs = [5, 10]", "ipcs = []"): "ipcs is empty, so there are no cells",
    ("ipcs = [5, 10]", "ipcs = [0]"): "ipcs must be at least 1, got 0",
    ("ipcs = [5, 10]", "ipcs = [5, 5]"): "ipcs names something twice, got [5, 5]",
    ("ipcs = [5, 10]", "ipcs = '5'"): "ipcs must be a list of int, got '5'",
    ("ipcs = [5, 10]", "ipcs = [true]"): "ipcs must be a list of int, got [True]",
    ("seeds = [0, 1]", "seed = [0, 1]"): "seed is no key of a recipe; there are ipcs, stude",
    ("seeds = [0, 1]", "seeds = [-1]"): "seeds must be at least 0, got -1",
    ('"convnet"', '"vgg"'): "protocols.hard: student must be one of resnet18, ",
    ("size = 64", "size = 32"): "protocols.hard: size of --student resnet18 must be at least 33",
    ("epochs = 10", "seed = 1"): "protocols.hard.seed is given by each cell; remove it",
    ('"rded"', '"soft"'): "protocols.soft: protocol must be one of hard@1, ",
    ('"rded"', '"hard"'): "protocols.soft.teachers: protocol hard takes no teachers",
    ("teachers = [", "labels = ["): "protocols.soft.teachers: protocol rded takes teachers, got n",
    ('"@teacher"', '"@tutor"'): "protocols.soft: there is no @tutor for it; name one of scores",
    ('["@scores"]', '["@score"]'): "sets.aum: there is no @score for it; name one of train, val, ",
    ('["@scores"]', '["@aum"]'): "aum needs aum: a circle; break it",
    (
        'verb = "teach"',
        'verb = "teach"\nval = "@scores"\n[steps.scores]\nverb = "x"',
    ): "is not TOML",
    ('verb = "score"', 'verb = "scores"'): "steps.scores.verb must be one of score, concepts vis",
    ('method = "random"', "ipc = 1"): "sets.random.ipc is given by each cell; remove it",
    ("[sets.random]", "[sets.scores]"): "scores is a step and a set; rename one",
    ("[sets.random]", '[sets."a b"]'): "sets.a b: names are letters, digits and . + _ -",
    ("[sets.random]", "[sets.aum]"): "is not TOML: Cannot declare",
    ('["photos"]', '"photos"'): "data.b.train.inputs must be a list of str, got 'photos'",
    ('"photos-val"', '"$NO_SUCH"'): "data.b.val.inputs: environment variable $NO_SUCH is not set",
    ("[data.a]", "[data.a]\ntest = 'x'"): "data.a.test is no key of a recipe; there are train, v",
    ("val = { verb", "# { verb"): "data.a.val.verb must be one of pack, synth, got None",
    ('["photos"]', '["@train"]'): "data.b.train: there is no @train for it; name files",
    ('"coverage,prdc"', '"@none"'): "measure: there is no @none for it; name one of train, val, s",
    ("[report]", "[report]\ndata = '@train'"): "report: there is no @train for it; name files",
    ("[measure]", "[measures]"): "measures is no key of a recipe; there are ipcs, stude",
    ("[report]", "[[report]]"): "report must be a table, such as [report], got [{}]",
}


@pytest.mark.parametrize("change", BAD)
def test_a_recipe_that_cannot_be_is_refused_with_the_place(write, change):
    right, wrong = change
    assert right in TEXT
    path = write(TEXT.replace(right, wrong, 1))
    with pytest.raises(UsageError) as refusal:
        read_recipe(path)
    assert str(refusal.value).startswith(f"recipe {path}")
    assert BAD[change] in str(refusal.value)


def test_what_only_the_product_shows_is_refused(write):
    same = TEXT.replace("[sets.random]", '[sets.again]\nverb = "select"\nmethod = "random"\n$0')
    circle = TEXT.replace('verb = "teach"', 'verb = "teach"\nval = "@other"\n[steps.other]\n'
                          'verb = "score"\ninputs = ["@teacher"]')  # fmt: skip
    texts = {
        same.replace("$0", "[sets.random]"): "are the same command; remove one of them",
        TEXT.replace("10 = 0.2", "7 = 0.2"): "misratio has no value for IPC 10; name one for each",
    }
    for text, message in texts.items():
        with pytest.raises(UsageError, match=message):
            plan_study(read_recipe(write(text)), RUN)
    with pytest.raises(UsageError, match="teacher needs other needs teacher: a circle"):
        read_recipe(write(circle))


def test_parts_are_disjoint_and_together_all_cells(nodes):
    def rows(some):
        return {node.name for node in some if node.kind not in SHARED}

    parts = [part_of(nodes, part, 4) for part in (1, 2, 3, 4)]
    assert all(kinds(part)["sets"] == kinds(nodes)["sets"] for part in parts)
    assert sum(len(rows(part)) for part in parts) == len(rows(nodes)) - 2  # without the reports
    assert len(set.union(*map(rows, parts))) == len(rows(nodes)) - 2
    assert all(rows(part) for part in parts)


def test_ten_thousand_cells_are_planned(write):
    some = ", ".join(map(str, range(105)))
    text = TEXT.replace("seeds = [0, 1]", f"seeds = [{some}]").replace("[5, 10]", "[5, 10, 20, 40]")
    text = text.replace("misratio = { 5 = 0.3, 10 = 0.2 }", "")
    assert kinds(plan_study(read_recipe(write(text)), RUN))["cells"] == 2 * 3 * 4 * 2 * 2 * 105


# outputs


def publish(node):
    node.out.mkdir(parents=True)
    (node.out / PROVENANCE_NAME).write_text("{}")


def append_row(node, **changed):
    """Append what `coreset train` or `coreset measure` would, as far as a study looks at it."""
    results = Path(node.command[3])
    places = {
        column: os.path.relpath(Path(place).resolve(), results.resolve())
        for column, place in zip(("set_path", "val_path"), node.command[1:3], strict=True)
    }
    if node.kind == "cells":
        student, seed = node.row[2:]
        row = {"key": node.key, **places, "student": student, "seed": seed, "train_seconds": 2.0}
        Results(results).append(STUDENTS, [row | changed], [])
        return
    for metric in ("representativeness_r1@1", "prdc_recall@1"):
        row = {"key": node.key + metric, **places, "metric": metric, "backbone": "resnet18@224"}
        Results(results).append(METRICS, [row | changed], [])


def leave(node):
    """Leave what the command of a node leaves."""
    if node.kind in SHARED:
        publish(node)
    elif node.kind == "reports":
        node.out.write_text("page")
    else:
        append_row(node)


def test_what_is_there_is_done_and_nothing_else(nodes):
    assert finished(nodes) == set()
    first = {kind: next(n for n in nodes if n.kind == kind) for kind in kinds(nodes)}
    for kind, node in first.items():
        if kind != "reports":
            leave(node)
            assert node.name in finished(nodes)
    n_shared = sum(kind in SHARED for kind in first)
    assert len(finished(nodes)) == n_shared + 2
    cell = first["cells"]
    for changed in ({"seed": 9}, {"student": "other"}, {"set_path": "x"}, {"val_path": "x"}):
        append_row(cell, key=str(changed), **changed)
    assert len(finished(nodes)) == n_shared + 2


def test_a_measure_is_done_with_all_its_metrics_by_its_backbone(nodes):
    node = next(node for node in nodes if node.kind == "measures")
    append_row(node, metric="representativeness_r1@1")
    assert finished(nodes) == set()
    append_row(node)
    assert finished(nodes) == {node.name}
    for backbone, done in (("resnet18", True), ("resnet50", False)):
        named = replace(node, command=(*node.command, "--backbone", backbone))
        assert (finished([named]) == {node.name}) is done


def test_a_report_is_done_when_its_rows_are_and_none_is_newer(nodes):
    for node in nodes:
        leave(node)
    everything = {node.name for node in nodes}
    assert finished(nodes) == everything
    page = next(node for node in nodes if node.kind == "reports")
    os.utime(page.out, (1, 1))
    assert finished(nodes) == everything - {page.name}


def test_the_rest_is_expected_to_take_what_its_like_took(nodes):
    cells = [node for node in nodes if node.group == "protocols.hard convnet ipc 5"]
    append_row(cells[0])
    append_row(cells[1], train_seconds=4.0)
    expected = {each.group: each for each in expectations(nodes, finished(nodes))}
    ours = expected["protocols.hard convnet ipc 5"]
    assert (ours.n, ours.n_done, ours.seconds) == (len(cells), 2, 3.0 * (len(cells) - 2))
    assert expected["protocols.hard convnet ipc 10"].seconds is None
    data = next(node for node in nodes if node.group == "sets.random ipc 5")
    publish(data)
    line = {"stage": "select", "wall_seconds": 5.0, "bytes_written": 1000}
    paid = {"artifact": "of an input", **line, "wall_seconds": 100.0}
    (data.out / "ledger.jsonl").write_text(f"{json.dumps(paid)}\n{json.dumps(line)}\n")
    expected = {each.group: each for each in expectations(nodes, finished(nodes))}
    ours = expected["sets.random ipc 5"]
    assert (ours.n, ours.n_done, ours.seconds, ours.n_bytes) == (2, 1, 5.0, 1000)


# executors


class Fake:
    """Executor that runs a command, or a function in its place, when it is submitted."""

    def __init__(self, slots, program=None):
        self.slots, self.program = slots, program
        self.started, self.most, self.ended = [], 0, []

    def submit(self, job):
        assert len(self.ended) < self.slots
        self.started.append(job.name)
        code, line = self.program(job) if self.program else self.call(job)
        self.ended.append(
            Ended(name=job.name, exit_code=code, host="fake", last_line=line, seconds=0.0)
        )
        self.most = max(self.most, len(self.ended))

    def call(self, job):
        with job.log.open("wb") as log:
            done = subprocess.run(
                job.command, check=False, stdout=log, stderr=log, timeout=job.timeout
            )
        return done.returncode, executors.last_line(job.log)

    def wait(self, _seconds):
        ended, self.ended = self.ended, []
        return ended

    def stop(self):
        return self.wait(0)


@pytest.fixture(params=[Local, Fake])
def executor(request):
    """An executor of two slots."""
    return request.param(2)


def job(tmp_path, script, name="job", **options):
    return Job(name=name, command=("sh", "-c", script), log=tmp_path / f"{name}.log", **options)


def ended_of(executor, n=1):
    ended = []
    while len(ended) < n:
        ended += executor.wait(10.0)
    return ended


ENDINGS = {
    "exit 0": (0, ""),
    "echo out; echo 'coreset: it failed' >&2; exit 3": (3, "coreset: it failed"),
    "echo last; echo; echo '  '; exit 75": (75, "last"),
    "kill -9 $$": (-9, ""),
    "kill -15 $$": (-15, ""),
    "printf '\\377\\n'; exit 1": (1, "�"),
}


@pytest.mark.parametrize("script", ENDINGS)
def test_every_executor_tells_how_a_command_ended(executor, tmp_path, script):
    executor.submit(job(tmp_path, script))
    (ended,) = ended_of(executor)
    assert (ended.name, ended.exit_code, ended.last_line) == ("job", *ENDINGS[script])
    assert executor.wait(0.0) == executor.stop() == []


def test_every_executor_runs_as_many_as_it_has_slots(executor, tmp_path):
    for round_number in range(2):
        for slot in range(2):
            executor.submit(job(tmp_path, "exit 0", f"{round_number}-{slot}"))
        names = {ended.name for ended in ended_of(executor, 2)}
        assert names == {f"{round_number}-0", f"{round_number}-1"}


def test_slots_share_the_cores_and_deal_out_the_gpus(tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,6")
    cores = sorted(os.sched_getaffinity(0))
    local, told = Local(3), {}
    for slot in range(3):
        status = "while read name value; do echo $name $value; done < /proc/self/status"
        script = f"{status} | grep Cpus_allowed_list; echo $CUDA_VISIBLE_DEVICES >&2"
        local.submit(job(tmp_path, script, str(slot), cores=1, gpu=2 / 3))
    for ended in ended_of(local, 3):
        told[ended.name] = (tmp_path / f"{ended.name}.log").read_text().split()
    for slot in range(3):
        core, gpu = str(cores[slot % len(cores)]), ["4", "6"][slot % 2]
        assert told[str(slot)] == ["Cpus_allowed_list:", core, gpu]
    assert gpu_names() == ["4", "6"]


def test_a_command_that_hangs_and_ignores_sigterm_is_killed_with_its_children(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(executors, "GRACE_SECONDS", 0.2)
    local = Local(1)
    script = f"trap '' TERM; sleep 60 & echo $! > {tmp_path}/child; while :; do sleep 0.05; done"
    local.submit(job(tmp_path, script, timeout=0.3))
    ended = []
    while not ended:
        ended = local.wait(0.1)
    assert ended[0].exit_code == -signal.SIGKILL
    assert is_gone(int((tmp_path / "child").read_text()))


def test_a_command_that_hangs_can_commit_when_its_time_is_over(tmp_path):
    local = Local(1)
    local.submit(job(tmp_path, "trap 'exit 75' TERM; while :; do sleep 0.02; done", timeout=0.2))
    while not (ended := local.wait(0.1)):
        pass
    assert ended[0].exit_code == 75


def test_what_a_command_leaves_running_ends_with_it(tmp_path):
    local = Local(1)
    local.submit(job(tmp_path, "sleep 60 & echo $!"))
    (ended,) = ended_of(local)
    assert ended.exit_code == 0
    assert is_gone(int(ended.last_line))


def is_gone(pid):
    """Wait until a process has ended, or is a zombie of somebody else."""
    for _ in range(200):
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except FileNotFoundError:
            return True
        if state == "Z":
            return True
        time.sleep(0.02)
    return False


DIES = """
import sys, time
from pathlib import Path
from coreset.engine.studies.executors import Job, Local
local = Local(2)
for name in "ab":
    log = Path(sys.argv[1]) / name
    local.submit(Job(name=name, command=("sh", "-c", "echo $$; exec sleep 60"), log=log))
print("running", flush=True)
time.sleep(60)
"""


def test_commands_die_with_a_killed_driver(tmp_path):
    command = [sys.executable, "-c", DIES, tmp_path]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as driver:
        assert driver.stdout
        assert driver.stdout.readline() == "running\n"
        while not all((tmp_path / name).read_text().strip() for name in "ab"):
            time.sleep(0.02)
        pids = [int((tmp_path / name).read_text()) for name in "ab"]
        assert all(Path(f"/proc/{pid}").exists() for pid in pids)
        driver.kill()
    assert all(is_gone(pid) for pid in pids)


DUMMY = """
import hashlib, json, os, sys
run, words = sys.argv[1], sys.argv[2:]
def tell(file, text):
    with open(run + "/" + file, "a") as log:
        log.write(text + chr(10))
if words[0] == "train":
    results, name = words[3], words[1] + " " + words[words.index("--seed") + 1]
    if name in open(run + "/finished").read().splitlines():
        tell("twice", name)
    places = {c: os.path.relpath(w, results) for c, w in zip(("set_path", "val_path"), words[1:])}
    seed = int(words[words.index("--seed") + 1])
    row = {"key": name, "student": words[words.index("--student") + 1], "seed": seed, **places}
    content = json.dumps({"rows": [row], "ledger": []}).encode()
    head = json.dumps({"sha256": hashlib.sha256(content).hexdigest()}).encode()
    os.makedirs(results, exist_ok=True)
    scratch, number = results + "/" + str(os.getpid()), 1
    with open(scratch, "wb") as file:
        file.write(head + b"\\n" + content)
    while True:
        try:
            os.link(scratch, results + "/students-%06d.rows.jsonl" % number)
            break
        except FileExistsError:
            number += 1
    os.unlink(scratch)
    tell("finished", name)
else:
    out = next((w for w in words if w.startswith(run) and not os.path.exists(w)), None)
    if out:
        os.makedirs(out, exist_ok=True)
        open(out + "/provenance.json", "w").close()
"""
DRIVES = """
import sys
from pathlib import Path
from coreset.engine.studies.driver import Driver
from coreset.engine.studies.executors import Local
from coreset.engine.studies.outputs import finished
from coreset.engine.studies.plan import part_of, plan_study
from coreset.engine.studies.recipe import read_recipe
recipe, run, dummy, part, parts = sys.argv[1:]
nodes = part_of(plan_study(read_recipe(recipe), Path(run)), int(part), int(parts))
program = (sys.executable, "-S", "-E", dummy, run)
Driver(nodes=nodes, done=finished(nodes), run=Path(run), executor=Local(2), program=program).drive()
"""


@pytest.fixture
def study(write, tmp_path):
    """``study(part, parts)``: a driver of 48 cells, started; and its plan."""
    text = TEXT[: TEXT.index("[protocols.soft]")].replace("seeds = [0, 1]", "seeds = [0, 1, 2, 3]")
    text = text.replace('"convnet", "resnet18"', '"convnet"')
    path, run = write(text), tmp_path / "RUN"
    nodes = plan_study(read_recipe(path), run)
    run.mkdir()
    (run / "finished").touch()
    (tmp_path / "dummy.py").write_text(DUMMY)

    def start(part=1, parts=1):
        words = (path, run, tmp_path / "dummy.py", part, parts)
        return subprocess.Popen([sys.executable, "-c", DRIVES, *map(str, words)])

    return start, nodes, run


def require_whole(nodes, run):
    cells = [node for node in nodes if node.kind == "cells"]
    assert finished(nodes) == {node.name for node in nodes}
    assert len(list(cells[0].out.iterdir())) == len(cells) == 48
    assert not (run / "twice").exists()


@pytest.mark.slow
def test_a_killed_driver_loses_no_row_and_makes_none_twice(study):
    start, nodes, run = study
    for n_rows in (0, 5, 20):
        with start() as driver:
            while len((run / "finished").read_text().splitlines()) <= n_rows:
                assert driver.poll() is None
                time.sleep(0.01)
            driver.kill()
    with start() as driver:
        assert driver.wait() == 0
    require_whole(nodes, run)


def test_drivers_of_parts_work_at_once(study):
    start, nodes, run = study
    drivers = [start(part, 2) for part in (1, 2)]
    assert [driver.wait() for driver in drivers] == [0, 0]
    require_whole(nodes, run)
    lines = (run / "log.jsonl").read_text().splitlines()
    names = Counter(json.loads(line)["name"] for line in lines)
    assert {names[node.name] for node in nodes if node.kind == "cells"} == {1}


# driver


class Program:
    """What commands do: leave their outputs, or end by the codes that a test asks for."""

    def __init__(self, nodes, **codes):
        self.by_name = {node.name: node for node in nodes}
        self.codes = {label: list(some) for label, some in codes.items()}
        self.calls = Counter()

    def __call__(self, job):
        node = self.by_name[job.name]
        self.calls[node.name] += 1
        for label, codes in self.codes.items():
            if label in node.name.replace("-", "_") and codes:
                return codes.pop(0), f"coreset: {label}"
        leave(node)
        return 0, ""


def drive(nodes, executor, **options):
    run = nodes[0].out.parents[1]
    driver = Driver(
        nodes=nodes, done=finished(nodes), run=run, executor=executor, program=("coreset",),
        **options,
    )  # fmt: skip
    driver.drive()
    return driver


@pytest.fixture
def few(write, tmp_path):
    """A plan of two sets with two seeds each, measures and a report."""
    text = TEXT.replace("ipcs = [5, 10]", "ipcs = [5]").replace(
        '"convnet", "resnet18"', '"convnet"'
    )
    cut = text.index("[data.b]"), text.index("[steps.scores]")
    text = text[: cut[0]] + text[cut[1] :]
    for begin, end in (("[steps.teacher]", "[sets.random]"), ("[sets.listed]", "[protocols.hard]"),
                       ("[protocols.soft]", "[measure]")):  # fmt: skip
        text = text[: text.index(begin)] + text[text.index(end) :]
    return plan_study(read_recipe(write(text)), tmp_path / "RUN")


def test_everything_is_run_once_in_the_order_of_its_needs(few):
    program = Program(few)
    executor = Fake(2, program)
    driver = drive(few, executor)
    assert program.calls == {node.name: 1 for node in few}
    assert executor.most == 2
    order = {name: place for place, name in enumerate(executor.started)}
    assert all(order[need] < order[node.name] for node in few for need in node.needs)
    assert driver.done == finished(few) == {node.name for node in few}
    log = (few[0].out.parents[1] / "log.jsonl").read_text().splitlines()
    assert [json.loads(line)["name"] for line in log] == executor.started
    again = Fake(2, Program(few))
    drive(few, again)
    assert again.started == []


def test_what_another_process_has_made_meanwhile_is_not_started(few):
    other = next(node for node in few if node.name.startswith("a-val-"))

    class Both(Program):
        def __call__(self, job):
            if not other.out.exists():
                leave(other)
            return super().__call__(job)

    program = Both(few)
    assert drive(few, Fake(1, program)).done == {node.name for node in few}
    assert program.calls == {node.name: 1 for node in few if node is not other}


def test_a_limit_is_kept_and_the_next_run_goes_on(few):
    for n in range(len(few)):
        assert len(finished(few)) == n
        drive(few, Fake(2, Program(few)), limit=1)
    assert len(finished(few)) == len(few)


@pytest.mark.parametrize("code", [1, 2, 3])
def test_a_failure_names_what_hangs_on_it_and_the_rest_goes_on(few, code):
    program = Program(few, a_aum_ipc5_hard_convnet_seed0=[code], a_scores=[code])
    driver = drive(few, Fake(1, program))
    (failed,) = driver.failed
    assert failed.startswith("a-scores-")
    hanging = {node.name for node in few if "-aum-" in node.name}
    assert driver.blocked == dict.fromkeys(hanging, failed)
    assert finished(few) == {node.name for node in few} - hanging - {failed, few[-1].name}
    assert few[-1].out.is_file()  # the report of the rest
    assert program.calls[failed] == 1
    assert last_failures(few[0].out.parents[1])[failed].last_line == "coreset: a_scores"


@pytest.mark.parametrize("code", [75, 4, -9, -15])
def test_what_may_not_come_again_is_tried_again_twice(few, code):
    program = Program(few, a_aum_ipc5_hard_convnet_seed0=[code] * RETRIES)
    driver = drive(few, Fake(1, program))
    assert not driver.failed
    assert sorted(program.calls.values()) == [1] * (len(few) - 1) + [RETRIES + 1]


def test_it_is_not_tried_for_ever(few):
    program = Program(few, a_val=[4] * 9)
    driver = drive(few, Fake(1, program))
    (failed,) = driver.failed
    assert program.calls[failed] == RETRIES + 1
    assert set(driver.blocked.values()) == {failed}


def test_an_output_that_another_process_writes_is_waited_for(few, monkeypatch):
    monkeypatch.setattr("coreset.engine.studies.driver._FIRST_WAIT", 0.01)
    program = Program(few, a_scores=[5] * 4)
    driver = drive(few, Fake(1, program))
    assert not driver.failed
    assert max(program.calls.values()) == 5
    assert finished(few) == {node.name for node in few}


def test_a_command_that_ends_well_without_its_artifact_has_failed(few):
    driver = drive(few, Fake(1, Program(few, a_val=[0])))
    assert [name.rpartition("-")[0] for name in driver.failed] == ["a-val"]


def test_a_signal_ends_what_runs_and_is_raised(few):
    def interrupted(_job):
        os.kill(os.getpid(), signal.SIGTERM)
        return 75, "interrupted"

    executor = Fake(1, interrupted)
    with pytest.raises(InterruptedRunError, match="interrupted by SIGTERM"):
        drive(few, executor)
    assert len(executor.started) == 1


def test_a_command_that_hangs_is_ended_in_its_time_and_fails(few, monkeypatch):
    monkeypatch.setattr("coreset.engine.studies.driver.RETRIES", 0)
    run = few[0].out.parents[1]
    driver = Driver(
        nodes=few, done=set(), run=run, executor=Local(2), timeout=0.1,
        program=("sh", "-c", "echo hangs; sleep 60"),
    )  # fmt: skip
    driver.drive()
    assert {end.exit_code for end in driver.failed.values()} == {-signal.SIGTERM}
    assert {end.last_line for end in driver.failed.values()} == {"hangs"}
    assert len(driver.failed) + len(driver.blocked) == len(few)


def test_a_plan_cut_to_names_keeps_what_they_need(few):
    cell = next(node for node in few if "aum-ipc5-hard-convnet-seed1" in node.name)
    labels = {node.name.rpartition("-")[0] for node in with_needs(few, {cell.name})}
    assert labels == {
        "a-train", "a-val", "a-scores", "a-aum-ipc5", "a-aum-ipc5-hard-convnet-seed1"
    }  # fmt: skip


# the verb


def test_retry_takes_what_failed_and_what_hangs_on_it_with_what_they_need(few):
    run, by_label = few[0].out.parents[1], {n.name.rpartition("-")[0]: n.name for n in few}
    run.mkdir()
    codes = {"a-random-ipc5": 3, "a-aum-ipc5-hard-convnet-seed1": 1, "a-scores": 75, "a-val": 0}
    ends = [
        {"name": by_label[label], "exit_code": code, "host": "h", "last_line": "", "seconds": 1.0}
        for label, last in codes.items()
        for code in (4, last)
    ]
    (run / "log.jsonl").write_text("".join(json.dumps(end) + "\n" for end in ends))
    chosen = {node.name for node in Retry(recipe="few", run_folder=run).chosen(few)}
    failed = {label for label in by_label if label.startswith("a-random-ipc5")}
    needed = {"a-train", "a-val", "a-scores", "a-aum-ipc5", "a-aum-ipc5-hard-convnet-seed1"}
    assert chosen == {by_label[label] for label in failed | needed}


def test_shipped_recipes_are_sound(done, tmp_path, monkeypatch):
    monkeypatch.setenv("IMAGENETTE", "photos")
    shipped = sorted(file.stem for file in RECIPES.glob("*.toml"))
    assert {"smoke", "table4"} <= set(shipped)
    for name in shipped:
        lines = done("study", "plan", name, tmp_path / "RUN")
        assert lines[-1] == f"next: coreset study run {name} {tmp_path / 'RUN'}"
    assert not (tmp_path / "RUN").exists()
    assert kinds(plan_study(read_recipe("smoke"), RUN))["cells"] == 12


def test_plan_and_status_tell_what_is_there(done, write, tmp_path, values_of):
    path, run = write(TEXT), tmp_path / "RUN"
    nodes = plan_study(read_recipe(path), run)
    leave(nodes[0])
    cell = next(node for node in nodes if node.kind == "cells")
    leave(cell)
    failed = {"name": nodes[1].name, "exit_code": 3, "host": "h", "last_line": "so", "seconds": 1}
    (run / "log.jsonl").write_text(json.dumps(failed) + '\n{"name": "cut')
    lines = done("study", "status", path, run)
    assert lines[-2:] == [
        f"failed: {nodes[1].name} (exit code 3): so",
        f"1 of 96 cells, 2 of {len(nodes)} outputs are there: {run}",
    ]
    assert values_of("study", "status", path, run)["failed"] == [nodes[1].name]
    lines = done("study", "plan", path, run)
    (row,) = (line for line in lines if line.startswith("protocols.hard convnet ipc 5 "))
    assert row.split()[4:] == ["12", "1", "22.0", "s", "0", "B"]
    assert lines[-2] == f"1 of 96 cells, 2 of {len(nodes)} outputs are there: {run}"


def test_an_option_that_no_verb_has_is_refused_before_anything_runs(refused, write, tmp_path):
    for text, message in (
        ("epochz = 10", "protocols.hard: "),
        ("epochs = 0", "protocols.hard: epochs must be at least 1, got 0"),
    ):
        path = write(TEXT.replace("epochs = 10", text))
        for verb in ("plan", "run"):
            said = refused(tmp_path, "study", verb, path, tmp_path / "RUN")
            assert said.startswith(message)


def test_packed_data_that_are_not_there_are_refused(refused, write, tmp_path):
    for place, fault in (("none", "does not exist"), (str(tmp_path), "is none")):
        text = TEXT.replace('{ verb = "pack", inputs = ["photos"] }', f'"{place}"')
        said = refused(tmp_path, "study", "run", write(text), tmp_path / "RUN")
        assert said == f"data.b.train: {place} {fault}; name a packed data set"


def test_a_second_driver_says_who_works(refused, write, tmp_path):
    path, run = write(TEXT), tmp_path / "RUN"
    run.mkdir()
    with lock(run / "study"):
        said = refused(tmp_path, "study", "run", path, run, code=5)
    assert f"is being written by process {os.getpid()} on " in said


MINUTE = """
ipcs = [2]
students = ["convnet"]
seeds = [0]
[data.s]
train = { verb = "synth", images = 12, classes = 2, size = 16 }
val = { verb = "synth", images = 8, classes = 2, size = 16, seed = 1 }
[sets.random]
verb = "select"
[sets.many]
verb = "select"
method = "random"
without = "@random"
ratio = 0.9
[protocols.hard]
epochs = 1
"""


@pytest.mark.slow
def test_run_and_retry_make_the_sets_by_real_commands(coreset, write, tmp_path):
    path, run = write(MINUTE), tmp_path / "RUN"
    told = coreset("study", "run", path, run, "--until", "sets", "--slots", 2)
    # A set by its ratio and its IPC: `select` refuses that before anything is made.
    assert told.code == 2
    path = write(MINUTE.replace("ratio = 0.9", "seed = 3").replace("images = 12", "images = 6"))
    told = coreset("study", "run", path, run, "--until", "sets", "--slots", 2)
    assert told.code == 2
    failed = [line for line in told.out.splitlines() if line.startswith("failed: s-many-ipc2-")]
    assert len(failed) == 1
    assert "ipc must be at most the size of every class" in failed[0]
    log = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert Counter(line["exit_code"] for line in log) == {0: 3, 2: 1}
    coreset("study", "retry", path, run, "--until", "sets")
    again = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()][len(log) :]
    assert [line["name"] for line in again] == [line["name"] for line in log if line["exit_code"]]
