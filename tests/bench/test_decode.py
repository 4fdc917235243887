"""Loading benchmark: what counts as delivered, and targets."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from coreset.bench.decode import best_peer
from coreset.bench.decode_racers import Entrant, Racer, difference
from coreset.bench.peers.loaders import (
    MEAN,
    SIZE,
    STD,
    Session,
    Task,
    batches_of_ids,
    levels,
    numbered,
)
from coreset.bench.peers.torch_loaders import in_threads


@pytest.fixture
def task(tmp_path):
    files = tuple(tmp_path / f"{one}.jpg" for one in range(300))
    return Task(
        data=tmp_path,
        tree=tmp_path,
        files=files,
        folder=tmp_path,
        crop="whole",
        pixels="uint8",
        threads=2,
    )


def images_of(ids):
    """Squares whose level is their id modulo 251."""
    rows = np.array(ids, np.int64) % 251
    return np.broadcast_to(rows.astype(np.uint8)[:, None, None, None], (len(rows), 8, 8, 3)).copy()


def loader_of(batches, log=None):
    """An opener of a loader that hands over images of these ids, in these batches."""

    log = [] if log is None else log

    def opener(_task, stack):
        log.append("opened")
        stack.callback(log.append, "closed")
        return lambda: ((images_of(ids), ids) for ids in batches)

    return opener


def test_a_turn_counts_images_and_their_ids_over_its_epochs(task):
    session = Session()
    session.open(loader_of([[0, 1, 2], [3, 3]]), replace(task, epochs=2))
    found = session.run()
    assert (found.images, found.distinct, found.pixels) == (10, 4, "uint8")
    everything = np.concatenate([images_of([0, 1, 2]), images_of([3, 3])])
    words = everything.reshape(-1).view(np.uint64).tolist()
    assert found.sum_of_words == 2 * sum(words) % (1 << 64)


def test_the_sum_over_an_epoch_does_not_depend_on_the_order(task):
    session, sums = Session(), []
    for batches in ([[5, 6, 7], [8]], [[8, 7], [6, 5]], [[8, 7], [6, 4]]):
        session.open(loader_of(batches), task)
        sums.append(session.run().sum_of_words)
    assert sums[0] == sums[1] != sums[2]


def test_a_loader_that_is_made_again_ends_before_and_keeps_its_first_pixels(task):
    session, log = Session(), []
    with pytest.raises(ValueError, match="run one"):
        session.first_pixels()
    session.open(loader_of([[7], [5]], log), task)
    session.run()
    session.open(loader_of([[8]], log), task)
    assert log == ["opened", "closed", "opened"]
    session.run()
    ids, pixels = session.first_pixels()
    assert (ids, pixels[:, 0, 0, 0].tolist()) == ([7], [7])
    session.open(loader_of([[8]], log), replace(task, pixels="float32"))
    session.run()
    assert session.first_pixels()[0] == [8]
    session.close()
    assert log == ["opened", "closed"] * 3
    assert session.run().images == 0


def test_differences_are_in_levels_of_bytes_as_of_normalised_planes():
    images = np.random.default_rng(0).integers(0, 256, (2, 5, 5, 3), np.uint8)
    planes = ((images / 255 - MEAN) / STD).astype(np.float32).transpose(0, 3, 1, 2)
    np.testing.assert_array_equal(levels(images), images)
    np.testing.assert_array_equal(levels(images.transpose(0, 3, 1, 2)), images)
    np.testing.assert_allclose(levels(planes), images, atol=1e-3)
    found = difference(np.array([1, 2], np.float32), np.array([1, 5], np.float32))
    assert found == {"images_compared": 2, "pixels_max": 3, "pixels_mean": 1.5}


def test_batches_are_numbered_in_order_and_the_last_may_be_short():
    assert [len(one) for one in batches_of_ids(600)] == [256, 256, 88]
    assert [list(ids) for _, ids in numbered([[0] * 2, [0] * 2], 3)] == [[0, 1], [2]]


def test_threads_write_every_file_to_its_row(task):
    def read(path):
        return torch.full((3, SIZE, SIZE), int(path.stem) % 251, dtype=torch.uint8)

    got = list(in_threads(task, read))
    assert [len(ids) for _, ids in got] == [256, 44]
    for images, ids in got:
        assert images.shape == (len(ids), 3, SIZE, SIZE)
        assert images.permute(0, 2, 3, 1).is_contiguous()
        assert images[:, 0, 0, 0].tolist() == images[:, 2, 223, 223].tolist()
        assert images[:, 0, 0, 0].tolist() == [one % 251 for one in ids]


class Here:
    """A pool that calls at once, in this process."""

    def __init__(self, found):
        self.found = found

    def submit(self, _work, *_arguments):
        return self

    def result(self):
        found = self.found.pop(0)
        if isinstance(found, Exception):
            raise found
        return found


def racer_with(task, *epochs):
    entrant = Entrant(loader_of([]), dict)
    pool: Any = Here(list(epochs))
    return Racer(entrant=entrant, task=task, pool=pool)


def epoch_of(task, ids):
    session = Session()
    session.open(loader_of([[*ids]]), task)
    return session.run()


def errors_of(racer, turns):
    for _ in range(turns):
        racer.run(None)
        yield racer.check(None)


def test_a_loader_that_drops_or_repeats_or_changes_an_image_has_failed(task):
    whole, shifted = epoch_of(task, range(300)), epoch_of(task, range(1, 301))
    dropped, repeated = epoch_of(task, range(299)), epoch_of(task, [0, *range(299)])
    errors = [*errors_of(racer_with(task, whole, dropped, repeated, whole, shifted), 5)]
    assert errors[0] == errors[3] == ""
    assert "expected 300 images" in errors[1]
    assert "expected 300 images" in errors[2]
    assert "differ" in errors[4]


def test_what_a_peer_raises_is_its_failure_and_not_the_end(task):
    racer = racer_with(task, RuntimeError("no such\nthing"))
    assert [*errors_of(racer, 1)] == ["RuntimeError: no such"]


def test_the_best_peer_is_the_fastest_of_others():
    rows = [
        {"contender": "coreset", "role": "ours", "images_per_second": 9},
        {"contender": "slow", "role": "peer", "images_per_second": 1},
        {"contender": "quick", "role": "peer", "images_per_second": 2},
        {"contender": "gone", "role": "peer", "absent": "no wheel"},
    ]
    assert best_peer(rows)["contender"] == "quick"
    assert best_peer(rows[:1])["contender"] == "none"
