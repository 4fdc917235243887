"""WebDataset shards made elsewhere: labels, keys, what is refused, and what lies beside them."""

import json
import tarfile
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coreset.bench.robustness.faults import TarMember, pickle_that_touches, write_tar
from coreset.shards.errors import DataError, UsageError
from coreset.shards.sources.base import Source, SourceOptions
from coreset.shards.sources.webdataset import find_webdataset

Members = Sequence[tuple[str, bytes]]
CLASSES = ("n01440764", "n02102040", "n02979186")
NAMED = SourceOptions(class_names=CLASSES)


def write_shard(path: Path, members: Members, link: str = "") -> Path:
    links = [TarMember(link, kind=tarfile.SYMTYPE, link="/etc/passwd")] * bool(link)
    return write_tar(path, [*(TarMember(*member) for member in members), *links])


def contents(source: Source) -> list[tuple[str, str, bytes]]:
    samples = source.samples(range(len(source)))
    return [(s.key, source.classes[s.label], source.contents.read(s)) for s in samples]


def sample(key: str, label: int, extension: str = "jpg") -> list[tuple[str, bytes]]:
    return [(f"{key}.{extension}", f"image {key}".encode()), (f"{key}.cls", b"%d" % label)]


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ({"label": 1}, "n02102040"),
        ({"cls": 2}, "n02979186"),
        ({"label": 1, "wnid": "n01440764"}, "n02102040"),
        ({"wnid": "n02102040", "class": "dog"}, "n02102040"),
        ({"class": "dog"}, "dog"),
    ],
)
def test_a_label_in_json_is_an_integer_or_a_name(tmp_path, fields, name):
    members = [("a.png", b"image"), ("a.json", json.dumps(fields).encode())]
    found = find_webdataset(write_shard(tmp_path / "a.tar", members), NAMED)
    assert contents(found) == [(f"{name}/a", name, b"image")]


def test_a_name_in_json_stands_in_where_integers_have_no_names(tmp_path):
    members = [*sample("a", 7), ("a.json", b'{"wnid": "n01440764"}')]
    assert find_webdataset(write_shard(tmp_path / "a.tar", members)).keys == ["n01440764/a"]
    with pytest.raises(UsageError, match="name a class list with --class-names"):
        find_webdataset(write_shard(tmp_path / "a.tar", members[:2]))


@pytest.mark.parametrize(
    ("key", "sample_key"),
    [
        ("n01440764_10026", "n01440764/n01440764_10026"),
        ("n01440764/n01440764_10026", "n01440764/n01440764_10026"),
        ("./train/n01440764/by night/7", "n01440764/by night/7"),
        ("00001/000010042", "n01440764/000010042"),
        ("ünï cødé/日本 語", "n01440764/日本 語"),
        ("__x__", "n01440764/__x__"),
        ("a.b/c", "n01440764/c"),
        ("x" * 120 + "/" + "y" * 180, "n01440764/" + "y" * 180),
    ],
)
def test_a_sample_key_is_the_class_and_the_last_part_of_the_key(tmp_path, key, sample_key):
    path = write_shard(tmp_path / "a.tar", sample(key, 0, "JPEG"))
    assert find_webdataset(path, NAMED).keys == [sample_key]


@given(order=st.permutations([*sample("a", 0), *sample("b", 1, "webp"), ("a.npy", b"x")]))
def test_the_order_of_members_changes_nothing(order, tmp_path_factory):
    path = write_shard(tmp_path_factory.mktemp("wds") / "a.tar", order)
    found = find_webdataset(path, NAMED)
    assert contents(found) == [
        ("n01440764/a", "n01440764", b"image a"),
        ("n02102040/b", "n02102040", b"image b"),
    ]
    assert found.classes == CLASSES[:2]
    assert found.skipped == ("1 classes of the class list, which have no samples",)


REPEATED = {
    "far": [*sample("a", 0), *sample("b", 1), *sample("a", 0)],
    "upper case": [*sample("a", 0), ("a.JPG", b"again"), ("a.CLS", b"0")],
}


@pytest.mark.parametrize("members", REPEATED.values(), ids=REPEATED.keys())
def test_a_repeated_key_is_refused_or_the_first_is_kept(tmp_path, members):
    path = write_shard(tmp_path / "a.tar", members)
    with pytest.raises(UsageError, match=r"a\.tar/a\.jpg and a\.tar/a\.\w+ .* key n01440764/a;"):
        find_webdataset(path, NAMED)
    kept = find_webdataset(path, SourceOptions(class_names=CLASSES, repeats="first"))
    assert contents(kept)[0] == ("n01440764/a", "n01440764", b"image a")
    assert "1 samples whose key was there already" in kept.skipped


BROKEN_SAMPLES = {
    "no label": ([("a.jpg", b"1")], r"no label among its members \(jpg\); expected is an integer"),
    "no image": ([("a.cls", b"1"), ("a.txt", b"x")], r"no image among its members \(cls, txt\)"),
    "two images": ([*sample("a", 0), ("a.png", b"2")], "2 images among its members"),
    "two views": ([("a.left.jpg", b"1"), ("a.right.jpg", b"2"), ("a.cls", b"0")], "2 images"),
    "a word": ([("a.jpg", b"1"), ("a.cls", b"cat")], "label b'cat' where an integer is expected"),
    "empty label": ([("a.jpg", b"1"), ("a.cls", b"")], "0 bytes in cls where 1 to 32 bytes"),
    "long label": ([("a.jpg", b"1"), ("a.cls", b"1" * 33)], "33 bytes in cls"),
    "too large": (sample("a", 3), "label 3, but the class list has 3 names, for 0 to 2"),
    "json list": ([("a.jpg", b"1"), ("a.json", b"[1]")], r"an object was expected, not \[1\]"),
    "deep json": ([("a.jpg", b"1"), ("a.json", b"[" * 99_999)], "nested too deeply"),
    "long json": ([("a.jpg", b"1"), ("a.json", b" " * 2**20 + b"{}")], "1,048,578 bytes in json"),
    "bool": ([("a.jpg", b"1"), ("a.json", b'{"label": true}')], "json field label True where an"),
    "number": ([("a.jpg", b"1"), ("a.json", b'{"wnid": 5}')], "json field wnid 5 where a name"),
    "no field": ([("a.jpg", b"1"), ("a.json", b'{"x": 5}')], "no label among its members"),
    "path": ([("a.jpg", b"1"), ("a.json", b'{"class": "../x"}')], r"class name '\.\./x'"),
    "hidden": ([("a.jpg", b"1"), ("a.json", b'{"class": ".x"}')], r"class name '\.x'"),
    "line": ([("a.jpg", b"1"), ("a.json", b'{"class": "a\\nb"}')], r"class name 'a\\nb'"),
}


@pytest.mark.parametrize(("members", "fact"), BROKEN_SAMPLES.values(), ids=BROKEN_SAMPLES.keys())
def test_a_broken_sample_is_refused_with_shard_key_and_offset(tmp_path, members, fact):
    write_shard(tmp_path / "0.tar", sample("whole", 0))
    write_shard(tmp_path / "1.tar", [*sample("whole too", 0), *members])
    with pytest.raises(DataError, match=rf"1\.tar has sample 'a' at byte \d,\d{{3}} with .*{fact}"):
        find_webdataset(tmp_path, NAMED)


def test_a_link_is_refused_as_image_later_and_as_label_at_once(tmp_path):
    path = write_shard(tmp_path / "a.tar", [*sample("b", 0), ("a.cls", b"0")], "a.jpg")
    assert find_webdataset(path, NAMED).unreadable == {0: "symbolic link"}
    path = write_shard(tmp_path / "a.tar", [("a.jpg", b"1")], "a.cls")
    with pytest.raises(DataError, match="with a symbolic link in cls"):
        find_webdataset(path, NAMED)


@pytest.mark.parametrize("extension", ["pyd", "pkl", "pickle", "pth", "pt", "PYD", "gif", "ten"])
def test_members_that_can_run_code_are_refused_and_never_run(tmp_path, extension):
    canary = tmp_path / "canary"
    payload = pickle_that_touches(canary)
    ignored = [*sample("a", 0), ("a.npy", payload), ("a.txt", payload)]
    assert len(find_webdataset(write_shard(tmp_path / "0.tar", ignored), NAMED)) == 1
    members = [*sample("a", 0), (f"a.x0.{extension}", payload)]
    path = write_shard(tmp_path / "a.tar", members)
    with pytest.raises(DataError, match=rf"a\.tar has member 'a\.x0\.{extension}' at byte 2,560"):
        find_webdataset(path, NAMED)
    assert not canary.exists()


def test_a_hostile_name_is_refused_with_shard_and_member(tmp_path):
    path = write_shard(tmp_path / "a.tar", [*sample("b", 0), ("../a.jpg", b"x")])
    with pytest.raises(DataError, match=r"a\.tar: member name '\.\./a"):
        find_webdataset(path, NAMED)


def test_hidden_members_and_other_files_are_passed_over_and_counted(tmp_path):
    write_shard(tmp_path / "0.tar", [*sample("a", 0), ("._a.jpg", b"x"), (".x/b.pkl", b"y")])
    (tmp_path / "0.idx").write_text("v1.2 1")
    (tmp_path / "README.md").write_text("about")
    found = find_webdataset(tmp_path, SourceOptions(class_names=CLASSES[:1]))
    assert found.keys == ["n01440764/a"]
    assert found.skipped == (
        f"1 files of {tmp_path} that are no shards",
        f"2 hidden files and folders of {tmp_path}",
    )


def test_shards_of_two_splits_are_refused(tmp_path):
    write_shard(tmp_path / "imagenet1k-train-0000.tar", sample("a", 0))
    write_shard(tmp_path / "imagenet1k-validation-00.tar", sample("b", 0))
    with pytest.raises(UsageError, match="holds the splits train, validation; move or link"):
        find_webdataset(tmp_path, NAMED)


def info(tmp_path: Path, filenames: list[str], lengths: list[int]) -> None:
    split = {"filenames": filenames, "shard_lengths": lengths, "name": "train", "num_samples": 9}
    fields = {"class_names": CLASSES, "splits": {"train": split}}
    (tmp_path / "_info.json").write_text(json.dumps(fields))


def test_a_shard_that_the_info_lists_must_be_there_and_hold_its_samples(tmp_path):
    write_shard(tmp_path / "0.tar", sample("a", 0))
    info(tmp_path, ["0.tar", "1.tar", "2.tar"], [1, 1, 1])
    with pytest.raises(DataError, match=r"lacks 2 of the 3 shards that _info.json lists, 1\.tar f"):
        find_webdataset(tmp_path)
    info(tmp_path, ["x.tar"], [1])  # of a split that was not downloaded
    assert len(find_webdataset(tmp_path)) == 1
    info(tmp_path, ["0.tar"], [2])
    for src in (tmp_path, tmp_path / "0.tar"):
        with pytest.raises(DataError, match=r"0\.tar holds 1 samples, but _info.json says 2"):
            find_webdataset(src)


@pytest.mark.parametrize(
    ("fields", "fact"),
    [
        ([], "an object was expected"),
        ({"class_names": "abc"}, "class_names has 'abc'"),
        ({"class_names": ["a", 5]}, "class_names has 5, expected str"),
        ({"class_names": ["a", "a"]}, "a name twice in class_names"),
        ({"splits": []}, "no attribute 'items'"),
        ({"splits": {"train": 5}}, "not subscriptable"),
        ({"splits": {"train": {}}}, "KeyError.'filenames'"),
        ({"splits": {"x": {"filenames": ["0.tar"], "shard_lengths": []}}}, "shorter than"),
        ({"splits": {"x": {"filenames": ["0.tar"], "shard_lengths": ["1"]}}}, "splits has '1'"),
    ],
)
def test_an_info_file_that_is_none_is_refused(tmp_path, fields, fact):
    write_shard(tmp_path / "0.tar", sample("a", 0))
    (tmp_path / "_info.json").write_text(json.dumps(fields))
    with pytest.raises(DataError, match=rf"_info\.json has not .*{fact}.*; mend or remove it"):
        find_webdataset(tmp_path, NAMED)
