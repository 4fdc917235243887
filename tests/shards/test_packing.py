"""Faults inside a packing: changed sources, stops, the order of commits, refused files."""

import csv
import os
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from coreset.shards.errors import DataError, UsageError
from coreset.shards.format.dataset import MANIFEST_NAME, QUARANTINE_NAME, SAMPLES_NAME
from coreset.shards.format.records import ShardRecord
from coreset.shards.packing.pack import pack, require_few
from coreset.shards.packing.plan import Plan
from coreset.shards.sources.detect import find_folder as find_images


class StopHereError(Exception):
    """Raised by an observer, as a signal handler would."""


@dataclass
class Counting:
    """Observer that counts, and stops the packing after ``stop_after`` images."""

    stop_after: int = 10**9
    images: int = 0
    fresh: list[str] = field(default_factory=list)
    resumed: list[str] = field(default_factory=list)

    def block(self, found: int, source_bytes: int, *, refused: int) -> None:
        del source_bytes, refused
        self.images += found
        if self.images > self.stop_after:
            raise StopHereError

    def shard(self, record: ShardRecord, *, resumed: bool) -> None:
        (self.resumed if resumed else self.fresh).append(record.entry.name)


def plan_of(src: Path, samples_per_shard: int = 4) -> Plan:
    source = find_images(src)
    return Plan(
        source=source,
        labels=source.labels,
        samples_per_shard=samples_per_shard,
        name="photos",
        split="train",
        settings={},
    )


def packed_in(scratch: Path, plan: Plan, workers: int = 2, stop_after: int = 10**9) -> Counting:
    observer = Counting(stop_after)
    with pytest.raises(StopHereError) if stop_after < 10**9 else nullcontext():
        pack(plan, scratch, workers=workers, listed=scratch / "list.csv", observer=observer)
    return observer


@pytest.fixture
def scratch(tmp_path: Path) -> Path:
    path = tmp_path / "scratch"
    path.mkdir()
    return path


@pytest.fixture
def small(make_photos: Callable[..., Path], tmp_path: Path) -> Path:
    return make_photos(tmp_path / "src", per_class=7)


def test_a_stop_keeps_whole_shards_and_they_are_not_packed_again(photos, scratch):
    plan = plan_of(photos)
    first = packed_in(scratch, plan, stop_after=21)
    assert 1 <= len(first.fresh) <= 5
    assert not list(scratch.glob(".*"))
    second = packed_in(scratch, plan)
    assert sorted(second.resumed) == sorted(first.fresh)
    assert len(second.fresh) == 15 - len(first.fresh)
    assert second.images == 60 - 4 * len(first.fresh)


@pytest.mark.parametrize("damage", ["short tar", "no index", "half a record"])
def test_a_committed_shard_that_was_damaged_is_packed_again(small, scratch, damage):
    packed_in(scratch, plan_of(small), workers=1, stop_after=9)
    match damage:
        case "short tar":
            os.truncate(scratch / "shard-000001.tar", 512)
        case "no index":
            (scratch / "shard-000001.idx").unlink()
        case _:
            os.truncate(scratch / "shard-000001.json", 100)
    again = packed_in(scratch, plan_of(small), workers=1)
    assert again.resumed == ["shard-000000.tar"]
    assert "shard-000001.tar" in again.fresh


@pytest.mark.parametrize("limits", [(3, 1 << 22), (128, 9_000)])
def test_the_division_into_blocks_changes_no_byte(small, scratch, tmp_path, monkeypatch, limits):
    samples, n_bytes = limits
    whole, plan = tmp_path / "whole", plan_of(small, samples_per_shard=8)
    whole.mkdir()
    packed_in(whole, plan, workers=1)
    monkeypatch.setattr("coreset.shards.packing.plan.MAX_BLOCK_SAMPLES", samples)
    monkeypatch.setattr("coreset.shards.packing.plan.MAX_BLOCK_BYTES", n_bytes)
    blocks, sizes = plan.blocks(0), plan.sizes(plan.positions(0))
    assert len(blocks) > 1
    assert [position for block in blocks for position in block] == list(plan.positions(0))
    for block in blocks:
        assert len(block) <= samples
        assert len(block) == 1 or sizes[block.start : block.stop].sum() <= n_bytes
    packed_in(scratch, plan)
    assert {path.name: path.read_bytes() for path in scratch.iterdir()} == {
        path.name: path.read_bytes() for path in whole.iterdir()
    }


@pytest.mark.parametrize("vanishes", [True, False])
def test_a_file_that_changes_or_vanishes_stops_the_packing_by_name(small, scratch, vanishes):
    plan, path = plan_of(small), small / "n02102040" / "photo_006.JPEG"
    if vanishes:
        path.unlink()
    else:
        os.utime(path, (1, 1))
    message = r"cannot be read \(No such file" if vanishes else "changed while it was being packed"
    with pytest.raises(UsageError, match=rf"photo_006.JPEG {message}"):
        packed_in(scratch, plan)


def test_a_record_commits_what_is_on_the_disk_and_the_manifest_comes_last(small, scratch, disk):
    packed_in(scratch, plan_of(small), workers=1)
    written = {path.name: path.read_bytes() for path in scratch.iterdir() if path.is_file()}
    shards = [name for name in written if name.endswith(".tar")]
    assert len(shards) == 6
    for name in shards:
        record = disk.naming(name.replace(".tar", ".json"))
        for part in (name, name.replace(".tar", ".idx")):
            assert record.beside[part] == written[part]
    sealed = disk.naming(MANIFEST_NAME)
    for name in (*shards, SAMPLES_NAME, QUARANTINE_NAME):
        assert sealed.survivors[f"scratch/{name}"] == written[name]
    survivors = disk.survivors()
    assert {name: survivors[f"scratch/{name}"] for name in written} == written


def refused(**classes: int) -> list[dict[str, object]]:
    return [
        {"position": at, "source": f"{name}/{at}.jpg", "key": f"{name}/{at}", "class": name,
         "bytes": 3, "content_hash": bytes(16), "reason": "truncated", "detail": "Premature, end"}
        for name, count in classes.items()
        for at in range(count)
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("counts", "sizes", "message"),
    [
        ({"cat": 2, "dog": 2}, [10, 10], ""),
        ({"cat": 10}, [200, 10], ""),
        ({"cat": 15, "dog": 15}, [15_000, 15_000], ""),
        ({}, [1, 1], ""),
        ({"cat": 1, "dog": 3}, [10, 10], r"4 of 20 files .* dog with 3 of 10 \(limit 2\)"),
        ({"cat": 6, "dog": 5}, [500, 500], r"11 of 1,000 files cannot be packed \(limit 10\)"),
        ({"cat": 31}, [15_000, 15_000], r"31 of 30,000 files cannot be packed \(limit 30\)"),
        ({"dog": 11}, [10_000, 200], r"dog with 11 of 200 \(limit 10\)"),
        ({"dog": 2}, [10, 2], r"dog with 2 of 2 \(limit 1\), such as dog/0.jpg \(truncated\)"),
        ({"dog": 1}, [10, 1], r"dog with 1 of 1 \(limit 0\)"),
    ],
)
def test_too_many_refused_files_stop_the_packing_and_are_listed(tmp_path, counts, sizes, message):
    listed, rows = tmp_path / "list.csv", refused(**counts)
    if not message:
        require_few(rows, ["cat", "dog"], np.array(sizes), listed)
        assert not listed.exists()
        return
    with pytest.raises(DataError, match=f"{message}.*{listed}"):
        require_few(rows, ["cat", "dog"], np.array(sizes), listed)
    with listed.open(newline="") as file:
        told = list(csv.DictReader(file))
    assert [row["source"] for row in told] == [row["source"] for row in rows]
    assert told[0]["detail"] == "Premature, end"
