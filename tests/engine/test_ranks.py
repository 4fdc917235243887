"""Several processes of one job: the same bytes as one, and no silence when one of them fails."""

import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from engine.ranks import Ranks, joined
from engine.stages.pack import Pack
from shards.errors import MachineError, UsageError

CHECKOUT = Path(__file__).parents[2]


def free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


def run_ranks(*words: object, world: int = 2, **environment: str) -> list[tuple[int, str]]:
    """Exit code and output of ``coreset WORDS`` in each rank of a job."""
    job = os.environ | {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
        "WORLD_SIZE": str(world),
        "OMP_NUM_THREADS": "1",
        **environment,
    }
    ranks = [
        subprocess.Popen(
            [sys.executable, "-m", "engine.cli", *map(str, words)],
            cwd=CHECKOUT, env=job | {"RANK": str(rank)}, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )
        for rank in range(world)
    ]  # fmt: skip
    outputs = [rank.communicate(timeout=100)[0] for rank in ranks]
    return list(zip([rank.returncode for rank in ranks], outputs, strict=True))


def stored_files(data: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in data.iterdir() if path.name != "ledger.jsonl"}


def test_two_ranks_pack_the_bytes_of_one_and_a_failure_of_one_stops_both(
    make_photos: Callable[..., Path], tmp_path: Path
):
    src = make_photos(tmp_path / "src", per_class=8)
    alone, together = tmp_path / "alone/DATA", tmp_path / "together/DATA"
    Pack(src=src, data=alone, samples_per_shard=5).run()
    words = ("pack", src, together, "--samples-per-shard", 5, "--workers", 1)
    ranks = run_ranks(*words)
    assert [code for code, _ in ranks] == [0, 0], ranks
    assert "packed: 24 samples" in ranks[0][1]
    assert stored_files(together) == stored_files(alone)
    # Made by another configuration: the leading rank says so, the other one stops with it.
    (code, said), (other_code, other_said) = run_ranks(*words, "--order", "source")
    assert (code, other_code) == (2, 4)
    assert "was made by another configuration" in said
    assert "rank 0 of 2 failed" in other_said


def test_a_process_without_a_job_is_alone():
    with joined() as ranks:
        assert ranks == Ranks(0, 1)
        assert ranks.leads
        assert ranks.step(lambda: 7) == [7]


@pytest.mark.parametrize(("rank", "world"), [("2", "2"), ("x", "2"), ("0", "0")])
def test_a_contradictory_job_is_refused(monkeypatch: pytest.MonkeyPatch, rank: str, world: str):
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setenv("WORLD_SIZE", world)
    with pytest.raises(UsageError, match="torchrun"), joined():
        pass


def test_the_own_error_of_a_rank_comes_out_as_it_is():
    def fail() -> int:
        raise MachineError("the disk is full")

    with pytest.raises(MachineError, match="the disk is full"):
        Ranks().step(fail)
