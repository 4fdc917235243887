"""Contenders by turns: order, medians, and outputs that are not what they should be."""

import json
import sys
import tarfile
from io import BytesIO
from itertools import count
from statistics import median

import PIL
import pytest
from PIL import Image

from coreset.bench import pack_tables
from coreset.bench import record as recording
from coreset.bench.contenders import Absent, Contender, interleave, measurements
from coreset.bench.pack_contenders import words
from coreset.bench.pack_inputs import (
    complaint_of_bytes,
    complaint_of_sizes,
    fingerprint,
    repeated_tree,
    samples_of_tars,
    sizes_at,
    sizes_of_tars,
    tiny_tree,
)
from coreset.bench.pack_memory import watch
from coreset.bench.pack_open import write_dataset
from coreset.bench.peers import img2dataset_resize, pillow_resize
from coreset.bench.peers.pools import MissingPeerError, pool_of
from coreset.bench.peers.shard_writer import check_in_full, no_check, write_files
from coreset.bench.record import write
from coreset.shards.format.dataset import Dataset
from coreset.shards.format.manifest import content_digest, identity_digest
from coreset.shards.images.probe import Refusal, probe


class Clock:
    """Seconds that pass only when a contender says so."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now

    def taking(self, *seconds):
        left = iter(seconds)

        def run(_out):
            self.now += next(left)

        return run


def quiet(_line):
    return None


def test_contenders_take_turns_and_the_warm_up_is_not_counted(tmp_path):
    clock, order, ticks = Clock(), [], count()

    def turn(name, *seconds):
        take = clock.taking(*seconds)

        def run(out):
            order.append((next(ticks), name))
            take(out)

        return Contender(name=name, run=run)

    slow, fast = turn("slow", 100, 6, 4, 5), turn("fast", 50, 2, 1, 3)
    measured = interleave([slow, fast], repeats=3, work=tmp_path, clock=clock, tell=quiet)
    assert [name for _, name in order] == ["slow", "fast"] * 4
    assert [one.seconds for one in measured] == [(6, 4, 5), (2, 1, 3)]
    assert [one.median_seconds for one in measured] == [5, 2]


def test_a_ratio_is_the_median_of_the_ratios_within_a_round(tmp_path):
    clock = Clock()
    # The machine slows down threefold in the second round; the ratio of medians would say 2.5.
    steady = Contender(name="steady", run=clock.taking(9, 2, 6, 2))
    other = Contender(name="other", run=clock.taking(9, 4, 18, 5))
    one, two = interleave([steady, other], repeats=3, work=tmp_path, clock=clock, tell=quiet)
    assert one.speed_over(two) == median([4 / 2, 18 / 6, 5 / 2]) == 2.5
    row = measurements([one, two], images=10, source_bytes=4_000_000)[0]
    assert row["speed_over"] == {"other": 2.5}
    assert (row["seconds"], row["median_seconds"]) == ([2, 6, 2], 2)
    assert (row["min_seconds"], row["max_seconds"]) == (2, 6)
    assert (row["images_per_second"], row["mb_per_second"]) == (5, 2)
    assert json.loads(json.dumps(row))["images"] == 10
    (without, _) = measurements([one, two], images=0, source_bytes=0)
    assert without["median_seconds"] == 2
    assert "images_per_second" not in without


def test_every_run_gets_an_empty_folder_that_is_removed(tmp_path):
    seen = []

    def run(out):
        seen.append(list(out.iterdir()))
        (out / "left").touch()

    interleave([Contender(name="a", run=run)], repeats=2, work=tmp_path, tell=quiet)
    assert seen == [[], [], []]
    assert list(tmp_path.iterdir()) == []


def test_a_wrong_output_in_any_round_is_a_failure_without_a_speed(tmp_path):
    outputs = iter(["right", "right", "wrong"])
    told = []

    def run(out):
        (out / "result").write_text(next(outputs))

    def complaint(out):
        found = (out / "result").read_text()
        return "" if found == "right" else f"expected right, found {found}"

    entries = [
        Contender(name="wrong once", run=run, complaint=complaint),
        Contender(name="fine", run=lambda _out: None),
    ]
    measured = interleave(entries, repeats=2, work=tmp_path, tell=told.append)
    failed, fine = measurements(measured, images=1, source_bytes=1)
    assert failed["failed"] == "expected right, found wrong"
    assert "images_per_second" not in failed
    assert "failed" not in fine
    assert fine["speed_over"] == {}
    assert sum("FAILED: expected right" in line for line in told) == 1


def test_two_contenders_of_one_name_are_refused(tmp_path):
    twice = [Contender(name="a", run=lambda _out: None)] * 2
    with pytest.raises(ValueError, match="different names"):
        interleave(twice, repeats=1, work=tmp_path, tell=quiet)


@pytest.fixture
def tree(tmp_path):
    source = tmp_path / "source"
    for label, size in enumerate([(40, 30), (30, 60), (20, 20)]):
        folder = source / f"class-{label}"
        folder.mkdir(parents=True)
        Image.new("RGB", size, (label * 80, 90, 10)).save(folder / "image.jpg")
    return repeated_tree("tree", source, tmp_path / "tree", 7, copies=False)


def test_a_tree_repeats_its_images_as_hard_links(tree):
    files = tree.files()
    assert [label for _, label in files] == [0, 0, 0, 1, 1, 2, 2]
    assert all(path.stat().st_nlink > 1 and not path.is_symlink() for path, _ in files)
    contents = tree.contents()
    assert contents == [path.read_bytes() for path, _ in files]
    assert len(set(map(id, contents))) == 3
    assert tree.source_bytes() == sum(map(len, contents))


def test_tiny_trees_hold_valid_images_of_every_size(tmp_path):
    tiny = tiny_tree(tmp_path / "tiny", 300, classes=7)
    found = [probe(path.read_bytes()) for path, _ in tiny.files()]
    assert len(found) == 300
    assert {(one.width, one.height) for one in found} == {
        (width, height) for width in range(1, 17) for height in range(1, 17)
    }
    assert {label for _, label in tiny.files()} == set(range(7))


def test_shards_are_compared_with_the_bytes_and_labels_of_the_source(tree, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    write_files(tree.files(), out, no_check, 3)
    assert len(list(out.glob("*.tar"))) == 3
    right = [(label, path.read_bytes()) for path, label in tree.files()]
    assert sorted(samples_of_tars(out)) == sorted(right)
    assert complaint_of_bytes(out, fingerprint(reversed(right))) == ""
    relabelled = [(label + 1, data) for label, data in right]
    changed = [*right[1:], (right[0][0], right[0][1] + b"\0")]
    for wrong in (relabelled, changed, right[1:]):
        assert "found 7 samples" in complaint_of_bytes(out, fingerprint(wrong))


def test_a_check_that_fails_stops_the_loop(tree, tmp_path):
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(tree.contents()[0][:-20])
    with pytest.raises((ValueError, Refusal)):
        write_files([(broken, 0)], tmp_path, check_in_full, 3)


def test_sizes_may_differ_by_rounding_and_by_nothing_else(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name, data in (("0.jpg", _jpeg(341, 256)), ("0.cls", b"5")):
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, BytesIO(data))
    found = sizes_of_tars(tmp_path)
    assert found == [(5, 341, 256)]
    assert complaint_of_sizes(found, [(5, 342, 256)]) == ""
    assert "found (5, 341, 256)" in complaint_of_sizes(found, [(5, 343, 256)])
    assert "found (5, 341, 256)" in complaint_of_sizes(found, [(4, 341, 256)])
    assert "expected 2 images" in complaint_of_sizes(found, found * 2)


def test_sizes_are_bounded_on_one_side_and_never_enlarged():
    samples = [(0, _jpeg(500, 375)), (1, _jpeg(375, 500)), (2, _jpeg(100, 80))]
    assert sizes_at(256, min, samples) == [(0, 341, 256), (1, 256, 341), (2, 100, 80)]
    assert sizes_at(250, max, samples) == [(0, 250, 188), (1, 188, 250), (2, 100, 80)]


def test_fields_become_options():
    fields = {"check": False, "short_side": 256, "store": "resized", "deep": True}
    assert words(fields) == ["--no-check", "--short-side", "256", "--store", "resized", "--deep"]


def test_a_peer_that_cannot_be_imported_is_absent_with_the_reason(tmp_path):
    opened = pool_of(tmp_path, 1, img2dataset_resize.versions)
    with pytest.raises(MissingPeerError, match="No module named 'img2dataset'") as raised, opened:
        pytest.fail("the pool opened without the peer")
    row = Absent(name="img2dataset", reason=str(raised.value)).measured()
    assert "No module named 'img2dataset'" in row["absent"]


def test_a_peer_that_is_there_says_its_version():
    with pool_of(None, 1, pillow_resize.versions) as (pool, versions):
        assert versions == {"pillow": PIL.__version__}
        assert pool.submit(pillow_resize.reencode, [], 256, 90).result() == []


@pytest.mark.parametrize("name", ["original", "resized", "memory", "open"])
def test_records_become_tables_with_failures_and_absences_named(name, tmp_path, monkeypatch):
    monkeypatch.setattr(recording, "RESULTS", tmp_path)
    timed = {
        "images_per_second": 1500.0,
        "mb_per_second": 160.0,
        "min_seconds": 1.0,
        "median_seconds": 2.0,
        "max_seconds": 3.0,
        "role": "peer",
        "limit_seconds": 5.0,
    }
    ours = {"role": "ours", "speed_over": {"peer": 1.25, "gone": 9.0}, "targets": {"peer": 1.1}}
    rows = [
        timed | ours | {"contender": "coreset pack"},
        timed | {"contender": "peer"},
        {"contender": "gone", "role": "peer", "absent": "no wheel", "limit_seconds": None},
        {"contender": "bad", "role": "peer", "failed": "6 of 7 images", "limit_seconds": None},
    ]
    if name == "memory":
        memory = {"images": 2000, "peak_pss_bytes": 250e6, "allowed_bytes": 300e6}
        rows = [memory | {"contender": "pack", "failed": ""}]
        rows.append(memory | {"contender": "verify", "failed": "exit code 3"})
    write("pack", [{"bench": f"pack.{name}", "input": "imagenet", **one} for one in rows])
    table = getattr(pack_tables, f"pack_{name}")()
    assert all(
        line.count(" | ") == table.splitlines()[0].count(" | ") for line in table.splitlines()
    )
    expected = {
        "original": ["| 1.25 | 1.10 |", "2.00 (1.00-3.00)", "absent: no wheel", "6 of 7 images"],
        "resized": ["| 1.25 | 1.10 |", "2.00 (1.00-3.00)", "absent: no wheel", "6 of 7 images"],
        "memory": ["| 250 MB | 300 MB |", "| exit code 3 | 300 MB |"],
        "open": ["| 2.00 (1.00-3.00) | 5 s |", "absent: no wheel", "6 of 7 images"],
    }
    assert all(cell in table for cell in expected[name]), table


def test_the_memory_of_a_command_counts_its_children(tmp_path):
    child = "import time; block = bytearray(b'x' * 60_000_000); time.sleep(1)"
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    watched = watch([sys.executable, "-c", parent], tmp_path / "errors")
    assert watched.failed == ""
    assert watched.most_processes == 2
    assert 60e6 < watched.peak_pss_bytes < 160e6


def test_a_command_that_fails_says_so(tmp_path):
    watched = watch([sys.executable, "-c", "raise SystemExit('no disk')"], tmp_path / "errors")
    assert watched.failed == "exit code 1: no disk"


def test_a_large_data_set_of_sparse_files_opens_and_has_the_recorded_sizes(tmp_path):
    manifest = write_dataset(tmp_path / "data", shards=3, samples=10)
    dataset = Dataset.open(tmp_path / "data")
    assert dataset.manifest == manifest
    assert [entry.samples for entry in manifest.shards] == [3, 3, 4]
    assert identity_digest(dataset.keys, dataset.labels.tolist()) == manifest.identity
    assert content_digest(dataset.samples["content_hash"].to_pylist()) == manifest.content
    assert dataset.ints("id").tolist() == list(range(10))
    ends = dataset.ints("offset") + dataset.ints("bytes")
    for shard, (entry, path) in enumerate(zip(manifest.shards, dataset.shard_paths(), strict=True)):
        sizes = path.stat().st_size, path.with_suffix(".idx").stat().st_size
        assert sizes == (entry.bytes, entry.index_bytes)
        assert ends[dataset.ints("shard") == shard].max() < entry.bytes


def _jpeg(width, height):
    encoded = BytesIO()
    Image.new("RGB", (width, height)).save(encoded, "JPEG")
    return encoded.getvalue()
