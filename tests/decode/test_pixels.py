import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.decode.geometry import Geometry
from engine.decode.memory import available_bytes
from engine.decode.pixels import Pixels, epochs_source, pixel_bytes, resident
from engine.decode.source import Source
from shards.errors import MachineError

GEOMETRY = Geometry(16, 20)


@pytest.fixture(scope="module")
def streamed(numbered):
    with Source(numbered, GEOMETRY, ids=np.arange(22, 2, -1)) as source:
        yield source


@pytest.fixture(scope="module")
def pixels(streamed):
    return resident(streamed)


@settings(max_examples=20, deadline=None)
@given(
    place=st.fixed_dictionaries(
        {
            "batch": st.integers(1, 25),
            "epoch": st.integers(0, 3),
            "seed": st.integers(0, 3),
            "start_batch": st.integers(0, 3),
            "shuffle": st.booleans(),
        }
    ),
    world=st.integers(1, 3),
)
def test_resident_batches_equal_streamed_batches(streamed, pixels, place, world):
    for rank in range(world):
        one = streamed.epoch(**place, rank=rank, world=world)
        other = pixels.epoch(**place, rank=rank, world=world)
        for a, b in zip(one, other, strict=True):
            assert torch.equal(a.images, b.images)
            assert a.images.stride() == b.images.stride()
            assert torch.equal(a.labels, b.labels)
            assert torch.equal(a.ids, b.ids)


def test_resident_pixels_keep_ids_labels_and_layout(streamed, pixels):
    np.testing.assert_array_equal(pixels.ids, streamed.ids)
    np.testing.assert_array_equal(pixels.labels, streamed.labels)
    assert pixels.images.shape == (20, 3, 16, 16)
    assert pixels.images.is_contiguous(memory_format=torch.channels_last)
    assert pixels.images.nbytes == pixel_bytes(streamed)


def test_decoding_reports_every_image(numbered):
    counts = []
    with Source(numbered, GEOMETRY) as source:
        resident(source, on_images=counts.append)
    assert sum(counts) == 23


def test_pixels_that_do_not_fit_are_refused_before_decoding(streamed):
    with pytest.raises(
        MachineError, match=r"20 images of 16 pixels need .* GB, .*choose a smaller"
    ):
        resident(streamed, limit_share=1e-9)


def test_what_does_not_fit_is_streamed(streamed):
    assert isinstance(epochs_source(streamed), Pixels)
    assert epochs_source(streamed, limit_share=1e-9) is streamed


def machine(root, cgroup, **files):
    """A made-up /proc and /sys with 1000 kB available."""
    contents = {
        "proc/meminfo": "MemTotal: 9000 kB\nMemAvailable: 1000 kB\n",
        "proc/self/cgroup": cgroup,
    }
    for name, text in (contents | files).items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def unified(group, limit, used, droppable):
    folder = f"sys/fs/cgroup{group}"
    return {
        f"{folder}/memory.max": limit,
        f"{folder}/memory.current": used,
        f"{folder}/memory.stat": f"anon 1\ninactive_file {droppable}\n",
    }


def test_without_limits_the_kernels_estimate_counts(tmp_path):
    files = unified("/job", "max", "5", "0")
    assert available_bytes(machine(tmp_path, "0::/job\n", **files)) == 1_024_000


def test_a_cgroup_limit_counts_and_its_droppable_cache_is_free(tmp_path):
    files = unified("/job", "500000", "400000", "150000")
    assert available_bytes(machine(tmp_path, "0::/job\n", **files)) == 250_000


def test_the_limit_of_a_parent_group_counts(tmp_path):
    files = unified("/a/b", "500000", "0", "0") | unified("/a", "70000", "10000", "0")
    assert available_bytes(machine(tmp_path, "0::/a/b\n", **files)) == 60_000


def test_a_group_that_the_container_cannot_see_falls_back_to_its_root(tmp_path):
    files = unified("", "300000", "0", "0")
    assert available_bytes(machine(tmp_path, "0::/host/path\n", **files)) == 300_000


def test_limits_of_cgroup_version_1_count(tmp_path):
    folder = "sys/fs/cgroup/memory/job"
    files = {
        f"{folder}/memory.limit_in_bytes": "200000",
        f"{folder}/memory.usage_in_bytes": "150000",
        f"{folder}/memory.stat": "total_inactive_file 20000\n",
    }
    cgroup = "5:cpu:/\n4:memory:/job\n0::/\n"
    assert available_bytes(machine(tmp_path, cgroup, **files)) == 70_000


def test_a_group_over_its_limit_has_nothing_left(tmp_path):
    files = unified("/job", "1000", "5000", "0")
    assert available_bytes(machine(tmp_path, "0::/job\n", **files)) == 0


def test_this_machine_has_memory_left():
    assert available_bytes() > 0
