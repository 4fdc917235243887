"""Several processes of one job: the same bytes as one, and no silence when one of them fails."""

import pytest

from coreset.engine.runtime.distributed import Distributed, join
from coreset.engine.stages.pack import Pack
from coreset.shards.errors import UsageError

PROGRAM = "import coreset.engine.cli; coreset.engine.cli.run()"


def test_two_ranks_pack_the_bytes_of_one_and_a_failure_of_one_stops_both(
    make_photos, tmp_path, start_ranks, stored_bytes
):
    src = make_photos(tmp_path / "src", per_class=8)
    alone, together = tmp_path / "alone/DATA", tmp_path / "together/DATA"
    Pack(src=src, data=alone, samples_per_shard=5).run()
    words = ("pack", src, together, "--samples-per-shard", 5, "--workers", 1)
    ranks = start_ranks(PROGRAM, *words)
    assert [rank.code for rank in ranks] == [0, 0], [rank.said for rank in ranks]
    assert "packed: 24 samples" in ranks[0].said
    assert stored_bytes(together) == stored_bytes(alone)
    # Made by another configuration: the leading rank says so, the other one stops with it.
    ranks = start_ranks(PROGRAM, *words, "--order", "source")
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
