import copy
import gc
import json
import subprocess
import sys
import threading
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import distributed
from torch.utils.data import DataLoader

import coreset
from coreset.engine.data.loader import Loader
from coreset.engine.data.order import BatchOrder
from coreset.engine.data.stream import Batch
from coreset.shards.errors import ManifestError, UsageError

N = 23
BRIGHTNESS_PER_ID = 10


@pytest.fixture
def loader(numbered):
    """``loader(...)``: a loader of the 23 numbered images that is closed after the test."""
    made = []

    def make(data=numbered.path, **options):
        usual: dict[str, Any] = {"batch": 4, "size": 16, "resize": 16, "workers": 2}
        made.append(Loader(data, **usual | options))
        return made[-1]

    yield make
    for one in made:
        one.close()


def epoch_positions(n, **place):
    options: dict[str, Any] = {"batch": 4, "shuffle": True}
    return BatchOrder(**options | place).positions(n)


def ids_of(parts):
    return [sample for part in parts for sample in part.ids.tolist()]


def test_epochs_follow_one_another_each_in_its_order(loader):
    one = loader(seed=5, device="cpu")
    for epoch in range(3):
        assert one.epoch == epoch
        assert ids_of(one) == epoch_positions(N, seed=5, epoch=epoch).tolist()
    assert one.decoder.startswith("decoder turbo: the fastest on a CPU")
    assert ids_of(loader(ids=[20, 3, 11, 4], shuffle=False)) == [20, 3, 11, 4]
    next(iter(one))
    one.set_epoch(3)
    assert ids_of(one) == epoch_positions(N, seed=5, epoch=3)[4:].tolist()
    one.set_epoch(7)
    assert ids_of(one) == epoch_positions(N, seed=5, epoch=7).tolist()


@pytest.mark.parametrize("world", [1, 3])
@pytest.mark.parametrize("options", [{"shuffle": False}, {"block": 2}, {"pad": True}])
def test_ranks_share_the_images_and_labels_of_the_order(loader, world, options):
    for rank in range(world):
        place = {"rank": rank, "world": world}
        one = loader(seed=2, **place, **options)
        parts = list(one)
        assert len(parts) == len(one)
        assert ids_of(parts) == epoch_positions(N, seed=2, **place, **options).tolist()
        for part in parts:
            brightness = part.images.float().mean(dim=(1, 2, 3)) / BRIGHTNESS_PER_ID
            assert torch.equal(brightness.round().long(), part.ids.clamp(min=0))
            assert torch.equal(part.labels, torch.where(part.ids < 0, -1, part.ids % 3))


@pytest.mark.parametrize("taken", range(7))
@pytest.mark.parametrize("options", [{}, {"block": 2, "crops": coreset.Crops()}, {"pad": True}])
def test_a_restored_loader_hands_over_the_same_remaining_batches(
    loader, same_batches, options, taken
):
    whole, interrupted, restored = (loader(seed=3, **options) for _ in range(3))
    expected = [*whole, *whole, *whole]
    list(interrupted)
    batches = iter(interrupted)
    for _ in range(taken):
        next(batches)
    state = interrupted.state_dict()  # counts what was handed out, not what was read ahead
    assert (state["epoch"], state["next_batch"]) == (1 + taken // 6, taken % 6)
    restored.load_state_dict(json.loads(json.dumps(state)))
    found = [*restored, *restored] if taken < 6 else [*restored]
    same_batches(found, expected[6 + taken :])


def test_an_epoch_left_early_goes_on_at_the_next_batch_and_ends_its_threads(loader):
    one, before = loader(), background_threads()
    seen: list[Batch] = []
    for part in one:
        seen.append(part)
        break
    assert not [t for t in background_threads() - before if t.name.startswith("ahead")]
    first = iter(one)
    seen.append(next(first))
    assert ids_of([*seen, *one]) == epoch_positions(N, seed=0, epoch=0).tolist()
    assert list(first) == []
    assert one.epoch == 1


@pytest.mark.parametrize(
    ("options", "changed", "message"),
    [
        ({"seed": 8}, {}, "seed is 0 in the state, 8 in this loader; make the loader with the opt"),
        ({"batch": 5}, {}, "batch is 4 in the state, 5"),
        ({"shuffle": False}, {}, "shuffle is True in the state, False"),
        ({"block": 2}, {}, "block is 0 in the state, 2"),
        ({"pad": True}, {}, "pad is False in the state, True"),
        ({"rank": 0, "world": 2}, {}, "world is 1 in the state, 2"),
        ({"ids": list(range(N))}, {}, "ids is all in the state"),
        ({}, {"version": 2}, "version is 2 in the state, 1"),
        ({}, {"data_set": "another"}, r"data_set is another in the state, [0-9a-f]{64}"),
        ({}, {"epoch": -1}, "must be numbers from 0 on, got -1 and 0"),
        ({}, {"next_batch": "many"}, "must be numbers from 0 on, got 0 and many"),
    ],
)
def test_a_state_of_another_order_or_data_set_or_that_is_none_is_refused(
    loader, options, changed, message
):
    with pytest.raises(UsageError, match=message):
        loader(**options).load_state_dict(loader().state_dict() | changed)


@pytest.mark.parametrize("damaged", [[0, 1], [4, 5], [2, 3, 4, 5], [6], [5, 6]])
def test_a_state_counts_batches_that_did_not_come_because_all_of_them_is_damaged(
    loader, packed, images, damaged
):
    good, bad = images.jpeg(40, 30), images.cut(40, 30)
    dataset = packed([bad if i in damaged else good for i in range(7)])
    one = loader(dataset.path, batch=2, seed=1, shuffle=False)
    with pytest.raises(ManifestError, match=r"/image\d \(.*cannot be decoded"):
        list(loader(dataset.path, shuffle=False, skip_damaged=False))
    seen = []
    for part in one:
        seen += part.ids.tolist()
        restored = loader(dataset.path, batch=2, seed=1, shuffle=False)
        restored.load_state_dict(one.state_dict())
        rest = ids_of(restored) if restored.epoch == 0 else []
        assert sorted(seen + rest) == [i for i in range(7) if i not in damaged]
    assert (one.epoch, list(one.undecodable)) == (1, damaged)


def test_crops_differ_from_epoch_to_epoch_and_options_reach_the_decoder(loader, packed, images):
    dataset = packed([images.jpeg(60, 50, seed=i) for i in range(3)])
    one = loader(dataset.path, shuffle=False, crops=coreset.Crops())
    (first,), (second,) = one, one
    assert not torch.equal(first.images, second.images)
    half = coreset.Normalisation((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    floats = loader(dataset.path, shuffle=False, crops=coreset.Crops(), normalisation=half)
    (part,) = floats
    torch.testing.assert_close(part.images, first.images / 127.5 - 1)
    assert loader(device="cpu", exact=True).decoder.startswith("decoder pillow: the reference")


def background_threads():
    names = ("ahead", "decode")
    return {thread for thread in threading.enumerate() if thread.name.startswith(names)}


def is_open(folder):
    return folder in {entry.resolve().parent for entry in Path("/proc/self/fd").iterdir()}


@pytest.mark.parametrize("taken", [0, 1, N])
@pytest.mark.parametrize("closed", [True, False], ids=["closed", "dropped"])
def test_a_loader_that_is_closed_or_dropped_leaves_no_file_open_and_no_thread(
    numbered, taken, closed
):
    before = background_threads()
    for _ in range(3):
        one = Loader(numbered.path, batch=2, size=16, resize=16, workers=2)
        under_way = iter(one)
        list(islice(under_way, taken))
        assert is_open(numbered.path) == (taken > 0)
        if closed:
            one.close()
            assert background_threads() <= before
        del under_way, one
        gc.collect()
        assert not is_open(numbered.path)
    for thread in background_threads() - before:
        thread.join(timeout=60)
    assert background_threads() <= before


FORKED = """
import os, sys
from coreset.engine.data.loader import Loader

def in_a_fork(batches):
    if os.fork() == 0:
        try:
            print(sum(1 for _ in batches), "batches", flush=True)
        except Exception as error:
            print(type(error).__name__, error, flush=True)
        loader.close()
        os._exit(7)
    assert os.waitstatus_to_exitcode(os.wait()[1]) == 7

loader = Loader(sys.argv[1], batch=2, size=16, resize=16, workers=2)
in_a_fork(loader)
under_way = iter(loader)
next(under_way)
in_a_fork(under_way)
in_a_fork(loader)
print(sum(1 for _ in under_way), "batches")
"""


def test_a_forked_process_is_told_at_once_that_a_loader_in_use_is_not_its_own(numbered):
    command = [sys.executable, "-c", FORKED, str(numbered.path)]
    told = subprocess.run(command, capture_output=True, text=True, check=True, timeout=100)
    unused, going_on, anew, parent = told.stdout.splitlines()
    assert unused == "12 batches"
    for child in (going_on, anew):
        assert child.startswith("UsageError images are decoded by threads of process ")
        assert child.endswith(" does not have; open a loader of its own there")
    assert (parent, told.stderr) == ("11 batches", "")


@pytest.mark.parametrize("options", [{}, {"batch_size": None}, {"pin_memory": False}])
def test_a_dataloader_of_torch_hands_over_the_same_batches(loader, same_batches, options):
    ours, expected = loader(seed=2), loader(seed=2)
    through_torch = DataLoader(ours, num_workers=0, **options)
    assert len(through_torch) == len(expected)
    for _ in range(2):  # epochs
        same_batches(through_torch, expected)
    joined = list(DataLoader(loader(seed=2), batch_size=4))
    assert [len(part.ids) for part in joined] == [16, 7]
    whole = loader(seed=2, batch=N)
    same_batches([Batch(*map(torch.cat, zip(*joined, strict=True)))], whole)


def test_workers_of_a_dataloader_are_refused_in_one_sentence(loader):
    refusal = "cannot be handed to another; leave num_workers at 0"
    with pytest.raises(UsageError, match=refusal):
        next(iter(DataLoader(loader(), num_workers=1, multiprocessing_context="fork")))
    with pytest.raises(UsageError, match=refusal):  # what starting a worker by "spawn" begins with
        copy.copy(loader())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch": 0}, "batch must be at least 1"),
        ({"rank": 1}, "rank and world go together, got 1 and None"),
        ({"device": "gpu0"}, "device must be auto, cpu, cuda or cuda:N, got gpu0"),
    ],
)
def test_options_out_of_range_are_refused(loader, options, message):
    with pytest.raises(UsageError, match=message):
        loader(**options)


def test_rank_and_world_come_from_torch_distributed(loader, monkeypatch):
    # torch's own group of one process that stands for several.
    from torch.testing._internal.distributed.fake_pg import FakeStore

    distributed.init_process_group("fake", store=FakeStore(), rank=1, world_size=2)
    try:
        seen = ids_of(loader())
    finally:
        distributed.destroy_process_group()
    assert seen == epoch_positions(N, seed=0, epoch=0, rank=1, world=2).tolist()
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UsageError, match=r"WORLD_SIZE is 2, but torch\.distributed is not"):
        loader()
    assert len(loader(rank=1, world=2)) == 3
