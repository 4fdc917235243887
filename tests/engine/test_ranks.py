"""Several processes of one job: the bytes and scores of one, kills that lose nothing."""

import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest

from coreset.engine.artifacts.ledger import RUNNING_NAME
from coreset.engine.runtime.distributed import TIMEOUT, Distributed, join
from coreset.engine.scoring.score_table import ScoreTable
from coreset.engine.stages.pack import Pack
from coreset.kernels.scores import SCORES
from coreset.shards.errors import InterruptedRunError, MachineError, UsageError
from coreset.shards.format.files import temporary_name

LINEAR = ("--proxy", "linear", "--backbone", "tf_efficientnet_lite0", "--size", 64)
RUN = """
import sys
import coreset.engine.scoring.run as score_pass
from coreset.engine.cli import main
score_pass.COMMIT_EVERY_SECONDS = score_pass.COMMIT_WITHIN_SECONDS = 0.0
score_pass.BATCHES_PER_VOTE = 1
sys.exit(main(sys.argv[1:]))
"""

JOIN = """
from pathlib import Path
import torch
from coreset.engine.runtime.distributed import join
from coreset.engine.training.trainer import replica_of
with join() as ranks:
    replica_of(torch.nn.Linear(2, 2), torch.device("cpu"))(torch.ones(1, 2)).sum().backward()
names = [Path(task, "comm").read_text().strip() for task in Path("/proc/self/task").iterdir()]
print([name for name in names if "gloo" in name])
"""


def ended(ranks):
    return [rank.code for rank in ranks], [rank.said for rank in ranks]


@pytest.mark.parametrize("world", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_ranks_that_share_batches_give_the_scores_of_one_process(
    packed, tmp_path, done, start_ranks, world
):
    """A linear proxy has no batch statistics: gradients of halves add up to those of the whole."""
    options = (*LINEAR, "--epochs", 3, "--folds", 3)
    done("score", packed, tmp_path / "ALONE", *options, "--batch", 6 * world)
    codes, said = ended(
        start_ranks(RUN, "score", packed, tmp_path / "RANKS", *options, "--batch", 6, world=world)
    )
    assert codes == [0] * world, said
    assert f"rank {world - 1} of {world} is done with its part" in said[-1]
    alone, together = (
        ScoreTable.open(tmp_path / "ALONE").columns,
        ScoreTable.open(tmp_path / "RANKS").columns,
    )
    assert (together["visits"] == 3).all()
    for name in (name for name in SCORES if SCORES[name].trained and name != "tdds"):
        # Logits and gradients are bfloat16 on a CPU that has it: 8 bits, rounded in each half.
        np.testing.assert_allclose(together[name], alone[name], rtol=2e-2, atol=2e-3, err_msg=name)
    np.testing.assert_array_equal(together["predicted"], alone["predicted"])


@pytest.mark.slow
def test_ranks_train_on_the_clusters_of_one_process(packed, tmp_path, done, start_ranks):
    options = (*LINEAR, "--epochs", 3, "--labels", "clusters", "--clusters", 4)
    done("score", packed, tmp_path / "ALONE", *options, "--batch", 12)
    codes, said = ended(
        start_ranks(RUN, "score", packed, tmp_path / "RANKS", *options, "--batch", 6)
    )
    assert codes == [0, 0], said
    alone, together = (ScoreTable.open(tmp_path / name).columns for name in ("ALONE", "RANKS"))
    np.testing.assert_array_equal(together["assigned"], alone["assigned"])
    assert np.unique(alone["assigned"]).size == 4
    np.testing.assert_allclose(together["aum"], alone["aum"], rtol=2e-2, atol=2e-3)


def test_ranks_train_the_layer_of_concepts_as_one_process_does(packed, tmp_path, done, start_ranks):
    """In float32 on any CPU: Adam sees the same gradients but for their last bits."""
    bank = tmp_path / "BANK"
    done("concepts", "visual", packed, bank, "-k", 2, *LINEAR[2:])
    options = ("--proxy", "concept", "--concepts", bank, "--epochs", 3)
    done("score", packed, tmp_path / "ALONE", *options, "--batch", 12)
    codes, said = ended(
        start_ranks(RUN, "score", packed, tmp_path / "RANKS", *options, "--batch", 6)
    )
    assert codes == [0, 0], said
    alone, together = (ScoreTable.open(tmp_path / name).columns for name in ("ALONE", "RANKS"))
    for name in ("aum", "el2n", "loss_final"):
        np.testing.assert_allclose(together[name], alone[name], atol=1e-5, err_msg=name)


def test_no_thread_of_gloo_outlives_the_job(start_ranks):
    """One that does may stumble over the end of the interpreter."""
    codes, said = ended(start_ranks(JOIN))
    assert codes == [0, 0], said
    assert [one.strip() for one in said] == ["[]", "[]"]


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_ranks_that_are_killed_or_stopped_continue_to_the_same_bytes(
    packed, tmp_path, stored_bytes, start_ranks, number
):
    options = ("--size", 33, "--epochs", 4, "--batch", 7, "--lr", 0.01, "--device", "cpu")
    assert ended(start_ranks(RUN, "score", packed, tmp_path / "WHOLE", *options))[0] == [0, 0]
    command = ("score", packed, tmp_path / "SCORES", *options)
    ranks = start_ranks(RUN, *command)
    running = temporary_name(tmp_path / "SCORES") / RUNNING_NAME
    while not running.exists():
        assert all(Path("/proc", str(rank.pid), "cmdline").read_bytes() for rank in ranks)  # alive
        time.sleep(0.01)
    for rank in ranks:
        os.kill(rank.pid, number)
    codes, said = ended(ranks)
    assert codes == ([75, 75] if number == signal.SIGTERM else [-number, -number]), said
    assert not (tmp_path / "SCORES").exists()
    codes, said = ended(start_ranks(RUN, *command))
    assert codes == [0, 0], said
    assert stored_bytes(tmp_path / "SCORES") == stored_bytes(tmp_path / "WHOLE")


@pytest.mark.slow
def test_a_rank_that_hangs_ends_the_others_with_75_and_loses_no_commit(
    packed, tmp_path, stored_bytes, start_ranks, monkeypatch
):
    options = ("--size", 33, "--epochs", 30, "--batch", 7, "--lr", 0.01, "--device", "cpu")
    command = ("score", packed, tmp_path / "SCORES", *options)
    monkeypatch.setenv(TIMEOUT, "3")
    ranks = start_ranks(RUN, *command)
    while not (temporary_name(tmp_path / "SCORES") / RUNNING_NAME).exists():
        time.sleep(0.01)
    os.kill(ranks[1].pid, signal.SIGSTOP)
    assert ranks[0].code == 75, ranks[0].said
    assert "another of the 2 ranks gave no sign for 3 s (CORESET_RANK_TIMEOUT)" in ranks[0].said
    os.kill(ranks[1].pid, signal.SIGKILL)
    assert ranks[1].code == -signal.SIGKILL
    monkeypatch.delenv(TIMEOUT)
    codes, said = ended(start_ranks(RUN, *command))
    assert codes == [0, 0], said
    whole = start_ranks(RUN, "score", packed, tmp_path / "WHOLE", *options)
    assert ended(whole)[0] == [0, 0]
    assert stored_bytes(tmp_path / "SCORES") == stored_bytes(tmp_path / "WHOLE")


def test_only_errors_of_the_connection_are_another_ranks():
    def end_by(text, world=2):
        with Distributed(0, world).watch():
            raise RuntimeError(text)

    with pytest.raises(InterruptedRunError, match="gave no sign for 600 s"):
        end_by("[gloo/transport/tcp/unbound_buffer.cc:81] Timed out waiting 3000ms for recv")
    with pytest.raises(InterruptedRunError, match="gave no sign"):
        end_by("NCCL communicator was aborted: watchdog caught collective operation timeout")
    with pytest.raises(MachineError, match="another of the 2 ranks is gone"):
        end_by("[gloo/transport/tcp/pair.cc:598] Connection closed by peer")
    for text, world in (("CUDA error: device-side assert triggered", 2), ("gloo", 1)):
        with pytest.raises(RuntimeError, match=text):
            end_by(text, world)


PACK = "import coreset.engine.cli; coreset.engine.cli.run()"


def test_two_ranks_pack_the_bytes_of_one_and_a_failure_of_one_stops_both(
    make_photos, tmp_path, start_ranks, stored_bytes
):
    src = make_photos(tmp_path / "src", per_class=8)
    alone, together = tmp_path / "alone/DATA", tmp_path / "together/DATA"
    Pack(src=src, data=alone, samples_per_shard=5).run()
    words = ("pack", src, together, "--samples-per-shard", 5, "--workers", 1)
    ranks = start_ranks(PACK, *words)
    assert [rank.code for rank in ranks] == [0, 0], [rank.said for rank in ranks]
    assert "packed: 24 samples" in ranks[0].said
    assert stored_bytes(together) == stored_bytes(alone)
    # Made by another configuration: the leading rank says so, the other one stops with it.
    ranks = start_ranks(PACK, *words, "--order", "source")
    assert [rank.code for rank in ranks] == [2, 4]
    assert "was made by another configuration" in ranks[0].said
    assert "rank 0 of 2 failed" in ranks[1].said


def test_a_process_without_a_job_is_alone():
    with join() as ranks:
        assert (ranks, ranks.is_main) == (Distributed(0, 1), True)
        assert [ranks.run_on_all(lambda: 7), ranks.run_on_main(lambda: 8)] == [7, 8]


@pytest.mark.parametrize(("rank", "world"), [("2", "2"), ("x", "2"), ("0", "0")])
def test_a_contradictory_job_is_refused(monkeypatch, rank, world):
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setenv("WORLD_SIZE", world)
    with pytest.raises(UsageError, match="torchrun"), join():
        pass
