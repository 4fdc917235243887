"""The command line in process, and one small set of artifacts that the tests of stages share."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from itertools import count
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import save_file

from coreset.engine.artifacts.checkpoints import Checkpoints
from coreset.engine.artifacts.provenance import Provenance
from coreset.engine.artifacts.store import SCORES_NAME, write_columns
from coreset.engine.artifacts.writer import create_artifact
from coreset.engine.cli import main
from coreset.engine.evaluation.results import Results
from coreset.engine.models.networks import build_network
from coreset.engine.models.teachers import TEACHER_NAME
from coreset.engine.training.trainer import WEIGHTS_NAME
from coreset.kernels.jit import code_folder
from coreset.shards.format.dataset import Dataset, Manifest
from coreset.shards.format.files import files_below


@dataclass(frozen=True, slots=True)
class Ended:
    """What a command returned and printed."""

    code: int
    out: str
    err: str


@pytest.fixture(scope="session", autouse=True)
def _private_cache(tmp_path_factory):
    """Keep features of tests out of the user's cache, and out of it in child processes too.

    What is compiled already is taken along: children would spend seconds on it again.
    """
    private, compiled = tmp_path_factory.mktemp("cache"), code_folder()
    if compiled is not None:
        shutil.copytree(compiled, private / compiled.name)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CORESET_CACHE", str(private))
        patch.setenv("OMP_NUM_THREADS", "1")  # children agree with `one_thread`
        yield


@dataclass(frozen=True)
class Fork:
    """A program in a process of its own."""

    pid: int
    output: Path
    ask: Callable[..., int]

    @cached_property
    def code(self):
        """Exit code, negative for a signal; waits for the end."""
        return self.ask(wait=self.pid)

    @property
    def said(self):
        """What it printed until now."""
        return self.output.read_text()


@pytest.fixture(scope="session")
def ask_server(_private_cache):
    """``ask_server(wait=12)``: the answer of the server that starts forks (fork_server.py)."""
    server = subprocess.Popen(
        [sys.executable, Path(__file__).with_name("fork_server.py")],
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(Path.cwd()), *sys.path])},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )

    def ask(**request):
        assert server.stdin is not None
        assert server.stdout is not None
        print(json.dumps(request), file=server.stdin, flush=True)
        return int(server.stdout.readline())

    yield ask
    with server:
        pass


@pytest.fixture(scope="session")
def fork(ask_server, tmp_path_factory):
    """``fork(PROGRAM, *arguments, NAME="value")``: run Python code in a child, without imports."""
    folder, numbers = tmp_path_factory.mktemp("forks"), count()

    def start(program, *arguments, **environment):
        output, words = folder / str(next(numbers)), list(map(str, arguments))
        env = os.environ | environment
        pid = ask_server(program=program, arguments=words, env=env, output=str(output))
        return Fork(pid, output, ask_server)

    return start


@pytest.fixture(scope="session")
def start_ranks(ask_server, fork):
    """``start_ranks(PROGRAM, *arguments, world=2)``: the same program in every rank of a job."""
    ask_server(**{"import": "torch._dynamo"})  # several seconds, which only ranks take

    def start(program, *arguments, world=2):
        with socket.socket() as server:
            server.bind(("127.0.0.1", 0))
            port = str(server.getsockname()[1])
        job = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": str(world)}
        return [fork(program, *arguments, **job, RANK=str(rank)) for rank in range(world)]

    return start


@pytest.fixture(scope="session")
def one_thread():
    """One torch thread: steps this small gain nothing from two, which wait on a busy machine."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def coreset(capsys, one_thread):  # noqa: ARG001 - a fixture for its effect
    """``coreset("score", DATA, ...)``: run a command in this process."""

    def run(*words):
        capsys.readouterr()
        code = main([str(word) for word in words])
        out, err = capsys.readouterr()
        return Ended(code, str(out), str(err))

    return run


@pytest.fixture
def done(coreset):
    """Run a command that must succeed without a word on stderr; returns its lines."""

    def run(*words):
        ended = coreset(*words)
        assert (ended.code, ended.err) == (0, "")
        return ended.out.splitlines()

    return run


@pytest.fixture
def refused(coreset):
    """Run a command that must change nothing in ``folder`` and say why in one line, returned."""

    def state(folder):
        stats = {path: path.lstat() for path in folder.rglob("*")}
        return {path: (stat.st_size, stat.st_mtime_ns) for path, stat in stats.items()}

    def run(folder, *words, code=2):
        before = state(folder)
        ended = coreset(*words)
        assert (ended.code, ended.out) == (code, "")
        assert ended.err.startswith("coreset: ")
        assert ended.err.index("\n") == len(ended.err) - 1
        assert state(folder) == before
        return ended.err.removeprefix("coreset: ").rstrip()

    return run


@pytest.fixture(scope="session")
def stored_bytes():
    """``stored_bytes(artifact)``: every file but the ledger, which alone holds times."""

    def read(artifact):
        return {
            path.relative_to(artifact).as_posix(): path.read_bytes()
            for path in files_below(artifact)
            if path.name != "ledger.jsonl"
        }

    return read


@pytest.fixture
def interrupted(coreset):
    """Run a command that SIGTERM stops, as of a scheduler, once a file is there; returns stderr."""

    def run(path, *words):
        over = threading.Event()

        def watch():
            while not over.is_set():
                if path.exists():
                    os.kill(os.getpid(), signal.SIGTERM)
                    return
                time.sleep(0.001)

        watcher = threading.Thread(target=watch)
        watcher.start()
        try:
            ended = coreset(*words)
        finally:
            over.set()
            watcher.join()
        assert ended.code == 75
        return ended.err

    return run


@pytest.fixture(scope="session")
def work(tmp_path_factory):
    """Folder of the shared artifacts below; tests may add artifacts of other names."""
    return tmp_path_factory.mktemp("work")


@pytest.fixture(scope="session")
def made(one_thread):  # noqa: ARG001 - a fixture for its effect
    """``made(out, "score", DATA, out)``: run a command that makes ``out``; returns ``out``."""

    def run(out, *words):
        assert main([str(word) for word in words]) == 0
        return out

    return run


@pytest.fixture(scope="session")
def val(make_photos, work, made):
    """18 other photos of the same classes, packed; read only."""
    src = make_photos(work / "photos" / "val", per_class=6, seed=1)
    return made(work / "VAL", "pack", src, work / "VAL")


@pytest.fixture(scope="session")
def scored(packed, work, made):
    """Scores of ``packed`` by three epochs of a small ResNet-18; read only."""
    small = ("--size", 17, "--epochs", 3, "--batch", 16, "--lr", 0.01)
    return made(work / "SCORES", "score", packed, work / "SCORES", *small)


@pytest.fixture(scope="session")
def random_set(packed, work, made):
    """Two random photos of each class; read only."""
    return made(work / "RANDOM", "select", packed, work / "RANDOM", "--ipc", 2)


@pytest.fixture(scope="session")
def ccs_set(scored, work, made):
    """Two photos of each class by CCS; read only."""
    chosen = ("--ipc", 2, "--misratio", 0.1)
    return made(work / "CCS", "select", scored, work / "CCS", *chosen)


@pytest.fixture(scope="session")
def untrained_teacher(packed, work):
    """A ConvNet with random weights as `coreset teach` publishes one of ``packed``; read only."""
    classes, out = Dataset.open(packed).classes, work / "TEACHER"
    network = build_network("convnet", len(classes), norm="batch", seed=0)
    provenance = Provenance(kind="teacher", stage="teach", config={})
    with create_artifact(out, provenance) as artifact:
        save_file(network.state_dict(), artifact.scratch / WEIGHTS_NAME)
        document = {"arch": "convnet", "classes": classes, "format_version": 1}
        (artifact.scratch / TEACHER_NAME).write_text(json.dumps(document))
    return out


@pytest.fixture(scope="session")
def write_scores():
    """``write_scores(data, out, {"aum": values})``: scores as `coreset score` commits them."""

    def write(data, out, columns, *, images=0, undecodable=None, config=None):
        recorded = Provenance.read(data).as_input("data", data, out)
        binds = {"identity": Manifest.read(data).identity}
        provenance = Provenance(
            kind="scores", stage="score", config=config or {}, binds=binds, inputs=(recorded,)
        )
        visits = np.full(len(next(iter(columns.values()))), 3, np.int32)
        with create_artifact(out, provenance, inputs=[data]) as work:
            work.meter.images = images
            Checkpoints(work.scratch).commit(
                9, lambda to: write_columns(to / SCORES_NAME, {"visits": visits, **columns}, {})
            )
            if undecodable:
                (work.scratch / "undecodable.json").write_text(json.dumps(undecodable))
        return out

    return write


@pytest.fixture(scope="session")
def columns(packed):
    """Scores of the 60 photos; class 1 is the hardest; photos 3 and 4 are predicted otherwise."""
    labels = Dataset.open(packed).labels
    aum = np.random.default_rng(5).permutation(np.linspace(-0.5, 0.9, 60)) - 0.4 * (labels == 1)
    predicted = labels.copy()
    predicted[[3, 4]] = (labels[[3, 4]] + 1) % 3
    return {
        "aum": aum.astype(np.float32),
        "el2n": np.linspace(1, 0, 60, dtype=np.float32) ** 2,
        "forgetting": (np.arange(60) % 4).astype(np.float32),
        "dyn_unc": np.full(60, np.nan, np.float32),
        "predicted": predicted.astype(np.int32),
    }


@pytest.fixture
def scores(packed, columns, tmp_path, write_scores):
    return write_scores(packed, tmp_path / "SCORES", columns)


@pytest.fixture
def values_of(coreset):
    """Run a command that must succeed; returns the values that it gives to machines."""

    def run(*words):
        result = coreset(*words, "--json")
        assert (result.code, result.err) == (0, "")
        return json.loads(result.out, parse_constant=lambda name: pytest.fail(f"{name} in JSON"))

    return run


@pytest.fixture(scope="session")
def inputs(photos, packed, val, scored, random_set):
    """Inputs by the names that stand for them in the commands."""
    return {
        "PHOTOS": photos,
        "DATA": packed,
        "VALIDATION": val,
        "SCORES": scored,
        "SET": random_set,
        "LIST": random_set / "ids.npy",
    }


@pytest.fixture
def damaged(packed, tmp_path):
    """``packed`` with sample 20 overwritten by zeros."""
    data = shutil.copytree(packed, tmp_path / "DATA")
    sample = Dataset.open(data).samples.slice(20, 1).to_pylist()[0]
    with (data / f"shard-{sample['shard']:06d}.tar").open("r+b") as file:
        file.seek(sample["offset"])
        file.write(bytes(sample["bytes"]))
    return data


@pytest.fixture
def results(tmp_path):
    """A results folder that nothing was appended to yet."""
    return Results(tmp_path / "RESULTS")


@pytest.fixture(scope="session")
def mislabel(packed, tmp_path_factory, made):
    """``mislabel(4)``: ``packed`` with every fourth label wrong; labels.csv has the true ones."""

    def pack(every):
        folder, dataset = tmp_path_factory.mktemp("mislabelled"), Dataset.open(packed)
        rows = [
            f"{key},{dataset.classes[label]},{dataset.classes[(label + (at % every == 0)) % 3]}"
            for at, (key, label) in enumerate(zip(dataset.keys, dataset.labels, strict=True))
        ]
        (folder / "labels.csv").write_text("\n".join(["key,clean,noisy", *rows]))
        table = ("--labels", folder / "labels.csv", "--column", "noisy")
        return made(folder / "DATA", "pack", packed, folder / "DATA", *table)

    return pack
