"""What lists call samples, against a search through all samples for each entry."""

from collections.abc import Sequence

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from coreset.shards.tables.sample_names import SEVERAL, UNKNOWN, SampleNames

part = st.sampled_from(["cat", "dog", "old", "1", "1.jpg", "2.b", "x y"])
path = st.lists(part, min_size=1, max_size=4).map("/".join)
key = st.lists(part, min_size=2, max_size=3).map("/".join)
FOLDER = "old"
EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp")


def without_extension(name: str) -> str:
    return name[: name.rindex(".")] if name.lower().endswith(EXTENSIONS) else name


def found_one_by_one(entry: str, keys: Sequence[str], sources: Sequence[str]) -> int:
    """Slow reference: try every end of a path, the longest first, on every sample."""
    parts = entry.split("/")
    last = 1 if len(parts) == 1 or parts[-2] == FOLDER else 2
    ends = ["/".join(parts[at:]) for at in range(len(parts) - last + 1)]
    for end in ends:
        for names, name in ((sources, end), (keys, end), (keys, without_extension(end))):
            there = [at for at, other in enumerate(names) if other == name]
            if there:
                return there[0] if len(there) == 1 else SEVERAL
    if len(parts) > 1:
        return UNKNOWN
    files = [at for at, name in enumerate(keys) if name.split("/")[-1] == without_extension(entry)]
    return UNKNOWN if not files else files[0] if len(files) == 1 else SEVERAL


@given(st.lists(st.tuples(key, path), unique_by=lambda pair: pair[0], max_size=8), st.lists(path))
def test_entries_mean_what_a_search_through_all_samples_finds(
    samples: list[tuple[str, str]], entries: list[str]
):
    keys, sources = [sample[0] for sample in samples], [sample[1] for sample in samples]
    names = SampleNames(
        pa.array(keys, pa.string()), pa.array(sources, pa.large_string()), folder=FOLDER
    )
    expected = [found_one_by_one(entry, keys, sources) for entry in entries]
    assert names.positions(entries).tolist() == expected
    named = {entry for entry, at in zip(entries, expected, strict=True) if at != UNKNOWN}
    assert names.known(entries) == {entry for entry in named if not entry.isdigit()}


@pytest.mark.parametrize(
    ("entry", "position"),
    [
        ("cat/1.JPEG", 0), ("cat/1", 0), ("./cat//1.png", 0), (" /data/train/cat/1.JPEG ", 0),
        ("C:\\data\\cat\\1.JPEG", 0), ("../train/dog/old/1", 1), ("2.b", 2), ("2.b.jpg", 2),
        ("fish/2.b", UNKNOWN), ("cat", UNKNOWN), ("1", SEVERAL), ("cat/1.b", UNKNOWN),
        ("", UNKNOWN), ("/", UNKNOWN), ("..", UNKNOWN),
    ],
)  # fmt: skip
def test_paths_of_all_kinds_end_in_a_name(entry: str, position: int):
    names = SampleNames(
        pa.array(["cat/1", "dog/old/1", "dog/2.b"]),
        pa.chunked_array([["cat/1.JPEG"], ["dog/old/1.JPEG", "dog/2.b.png"]]),
    )
    assert names.positions([entry]).tolist() == [position]


def test_a_folder_of_another_class_is_not_passed_over():
    names = SampleNames(pa.array(["cat/1", "cat/2"]), pa.array(["1.jpg", "2.jpg"]), folder="val")
    entries = ["dog/1.jpg", "/data/val/1.jpg", "val/2.jpg", "1.jpg", "train/1.jpg"]
    assert names.positions(entries).tolist() == [UNKNOWN, 0, 1, 0, UNKNOWN]
