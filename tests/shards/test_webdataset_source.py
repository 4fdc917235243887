"""WebDataset shards made by tarfile, webdataset and this project, whole and broken."""

import io
import json
import tarfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coreset.shards.errors import DataError, UsageError
from coreset.shards.export.formats import ExportPlan, StoredSample, write_webdataset
from coreset.shards.format.dataset import Dataset
from coreset.shards.sources.base import Source, SourceOptions
from coreset.shards.sources.folder import find_folder
from coreset.shards.sources.tars import tar_layout
from coreset.shards.sources.webdataset import find_webdataset

NAMES = ("n01440764", "n02102040", "n02979186")
NAMED = SourceOptions(class_names=NAMES)
Members = Sequence[tuple[str, bytes]]


def write_shard(path: Path, members: Members, links: Iterable[str] = ()) -> Path:
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
        for name in links:
            info = tarfile.TarInfo(name)
            info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
            tar.addfile(info)
    return path


def sample(key: str, label: int, extension: str = "jpg") -> list[tuple[str, bytes]]:
    return [(f"{key}.{extension}", f"image {key}".encode()), (f"{key}.cls", b"%d" % label)]


def contents(source: Source) -> list[bytes]:
    return [source.contents.read(sample) for sample in source.samples(range(len(source)))]


def labelled(source: Source) -> dict[str, tuple[str, bytes]]:
    classes = [source.classes[label] for label in source.labels]
    return dict(zip(source.keys, zip(classes, contents(source), strict=True), strict=True))


def test_shards_of_imagenet_are_found_as_the_image_folder(tmp_path: Path):
    shards = tmp_path / "shards"
    shards.mkdir()
    for number in range(2):
        members: list[tuple[str, bytes]] = []
        for index in range(number, 12, 2):
            wnid = NAMES[index % 3]
            stem = f"{wnid}_{index}"
            members += sample(stem, index % 3)
            path = tmp_path / "folder" / wnid / f"{stem}.JPEG"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(members[-2][1])
        write_shard(shards / f"imagenet1k-train-{number:04d}.tar", members)
    assert tar_layout(shards) == "webdataset"
    found, expected = find_webdataset(shards, NAMED), find_folder(tmp_path / "folder")
    assert found.keys == expected.keys
    assert found.classes == expected.classes
    assert found.labels.tolist() == expected.labels.tolist()
    assert contents(found) == contents(expected)
    assert found.names[0] == "imagenet1k-train-0000.tar/n01440764_0.jpg"
    assert found.skipped == ()


def test_webdataset_reads_the_same_samples(tmp_path: Path):
    from webdataset.tariterators import group_by_keys, tar_file_iterator

    members = [
        part
        for number, key in enumerate(("a", "x/b", "ä ö", "__c__", "d-1_2", "z/e"))
        for part in [*sample(key, number % 3, "JPEG"), (f"{key}.txt", b"words")]
    ]
    path = write_shard(tmp_path / "a.tar", members)
    with path.open("rb") as stream:
        members_read = tar_file_iterator(cast("Any", stream))
        files = ({**member, "__url__": str(path)} for member in members_read)
        theirs = {
            f"{NAMES[int(one['cls'])]}/{Path(one['__key__']).name}": one["jpeg"]
            for one in group_by_keys(files)
        }
    ours = labelled(find_webdataset(path, NAMED))
    assert {key: data for key, (_, data) in ours.items()} == theirs


def test_exported_shards_of_this_project_are_read_with_their_class_names(
    packed: Path, tmp_path: Path
):
    dataset = Dataset.open(packed)
    images: list[StoredSample] = []
    for row in dataset.samples.to_pylist():
        with dataset.shard_paths()[row["shard"]].open("rb") as file:
            file.seek(row["offset"])
            data = file.read(row["bytes"])
        images.append(
            StoredSample(
                sample_id=row["id"],
                key=row["key"],
                label=row["label"],
                class_name=row["class"],
                extension=row["format"],
                image=data,
            )
        )
    plan = ExportPlan(
        name="photos",
        split="train",
        classes=dataset.classes,
        n_samples=len(images),
        samples_per_shard=25,
    )
    write_webdataset(images, tmp_path, plan)
    found = find_webdataset(tmp_path)
    assert found.skipped == ()
    assert labelled(found) == {
        f"{one.class_name}/{one.sample_id:09d}": (one.class_name, one.image) for one in images
    }


def test_shards_of_a_packed_data_set_are_read_without_its_manifest(packed: Path, tmp_path: Path):
    for shard in Dataset.open(packed).shard_paths():
        (tmp_path / shard.name).symlink_to(shard)
    found = find_webdataset(tmp_path, NAMED)
    assert len(found) == 60
    assert found.class_sizes().tolist() == [20, 20, 20]


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
def test_a_label_in_json_is_an_integer_or_a_name(tmp_path: Path, fields: object, name: str):
    members = [("a.png", b"image"), ("a.json", json.dumps(fields).encode())]
    found = find_webdataset(write_shard(tmp_path / "a.tar", members), NAMED)
    assert labelled(found) == {f"{name}/a": (name, b"image")}


def test_a_name_in_json_stands_in_where_integers_have_no_names(tmp_path: Path):
    members = [*sample("a", 7), ("a.json", b'{"wnid": "n01440764"}')]
    found = find_webdataset(write_shard(tmp_path / "a.tar", members))
    assert found.keys == ["n01440764/a"]


def test_integers_without_names_are_refused_with_what_to_name(tmp_path: Path):
    path = write_shard(tmp_path / "a.tar", sample("a", 0))
    with pytest.raises(UsageError, match="name a class list with --class-names"):
        find_webdataset(path)


def test_classes_without_samples_are_told(tmp_path: Path):
    found = find_webdataset(write_shard(tmp_path / "a.tar", sample("a", 1)), NAMED)
    assert found.classes == ("n02102040",)
    assert found.skipped == ("2 classes of the class list, which have no samples",)


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
def test_a_sample_key_is_the_class_and_the_last_part_of_the_key(
    tmp_path: Path, key: str, sample_key: str
):
    path = write_shard(tmp_path / "a.tar", sample(key, 0, "JPEG"))
    assert find_webdataset(path, NAMED).keys == [sample_key]


def test_members_of_a_sample_need_not_be_adjacent(tmp_path: Path):
    a, b = sample("a", 0), sample("b", 1, "webp")
    path = write_shard(tmp_path / "a.tar", [a[1], b[0], a[0], ("a.npy", b"x"), b[1]])
    assert labelled(find_webdataset(path, NAMED)) == {
        "n01440764/a": ("n01440764", b"image a"),
        "n02102040/b": ("n02102040", b"image b"),
    }


@given(order=st.permutations([*sample("a", 0), *sample("b", 1), *sample("c", 2)]))
def test_the_order_of_members_changes_nothing(
    order: Members, tmp_path_factory: pytest.TempPathFactory
):
    path = write_shard(tmp_path_factory.mktemp("wds") / "a.tar", order)
    assert find_webdataset(path, NAMED).keys == ["n01440764/a", "n02102040/b", "n02979186/c"]


REPEATED = {
    "adjacent": [*sample("a", 0), *sample("a", 0)],
    "far": [*sample("a", 0), *sample("b", 1), *sample("a", 0)],
    "upper case": [*sample("a", 0), ("a.JPG", b"again"), ("a.CLS", b"0")],
}


@pytest.mark.parametrize("members", REPEATED.values(), ids=REPEATED.keys())
def test_a_repeated_key_is_refused_or_the_first_is_kept(tmp_path: Path, members: Members):
    path = write_shard(tmp_path / "a.tar", members)
    with pytest.raises(UsageError, match=r"a\.tar/a\.jpg and a\.tar/a\.\w+ .* key n01440764/a;"):
        find_webdataset(path, NAMED)
    kept = find_webdataset(path, SourceOptions(class_names=NAMES, repeats="first"))
    assert labelled(kept)["n01440764/a"] == ("n01440764", b"image a")
    assert "1 samples whose key was there already" in kept.skipped


BROKEN = {
    "no label": ([("a.jpg", b"1")], r"no label among its members \(jpg\); expected is an integer"),
    "no image": ([("a.cls", b"1"), ("a.txt", b"x")], r"no image among its members \(cls, txt\)"),
    "two images": ([*sample("a", 0), ("a.png", b"2")], "2 images among its members"),
    "two views": ([("a.left.jpg", b"1"), ("a.right.jpg", b"2"), ("a.cls", b"0")], "2 images"),
    "a word": ([("a.jpg", b"1"), ("a.cls", b"cat")], "label b'cat' where an integer is expected"),
    "no digits": ([("a.jpg", b"1"), ("a.cls", b" ")], "label b' ' where an integer"),
    "empty label": ([("a.jpg", b"1"), ("a.cls", b"")], "0 bytes in cls where 1 to 32 bytes"),
    "long label": ([("a.jpg", b"1"), ("a.cls", b"1" * 33)], "33 bytes in cls"),
    "a fraction": ([("a.jpg", b"1"), ("a.cls", b"1.5")], "label b'1.5' where an integer"),
    "too large": (sample("a", 3), "label 3, but the class list has 3 names, for 0 to 2"),
    "negative": (sample("a", -1), "label -1, but the class list has 3 names"),
    "json list": ([("a.jpg", b"1"), ("a.json", b"[1]")], r"json b'\[1\]' where an object is"),
    "no json": ([("a.jpg", b"1"), ("a.json", b"\xff{")], r"json b'\\xff{' where an object is"),
    "deep json": ([("a.jpg", b"1"), ("a.json", b"[" * 99_999)], r"json b'\[+' where an object"),
    "long json": ([("a.jpg", b"1"), ("a.json", b" " * 2**20 + b"{}")], "1,048,578 bytes in json"),
    "bool": ([("a.jpg", b"1"), ("a.json", b'{"label": true}')], "json field label True where an"),
    "text": ([("a.jpg", b"1"), ("a.json", b'{"label": "1"}')], "json field label '1' where an int"),
    "number": ([("a.jpg", b"1"), ("a.json", b'{"wnid": 5}')], "json field wnid 5 where a name"),
    "no field": ([("a.jpg", b"1"), ("a.json", b'{"x": 5}')], "no label among its members"),
    "path": ([("a.jpg", b"1"), ("a.json", b'{"class": "../x"}')], r"class name '\.\./x'"),
    "hidden": ([("a.jpg", b"1"), ("a.json", b'{"class": ".x"}')], r"class name '\.x'"),
    "line": ([("a.jpg", b"1"), ("a.json", b'{"class": "a\\nb"}')], r"class name 'a\\nb'"),
}


@pytest.mark.parametrize(("members", "fact"), BROKEN.values(), ids=BROKEN.keys())
def test_a_broken_sample_is_refused_with_shard_key_and_offset(
    tmp_path: Path, members: Members, fact: str
):
    write_shard(tmp_path / "0.tar", sample("whole", 0))
    write_shard(tmp_path / "1.tar", [*sample("whole too", 0), *members])
    with pytest.raises(DataError, match=rf"1\.tar has sample 'a' at byte \d,\d{{3}} with {fact}"):
        find_webdataset(tmp_path, NAMED)


def test_a_link_in_place_of_an_image_is_found_as_refused(tmp_path: Path):
    path = write_shard(tmp_path / "a.tar", [*sample("b", 0), ("a.cls", b"0")], ["a.jpg"])
    found = find_webdataset(path, NAMED)
    assert found.unreadable == {0: "symbolic link"}


def test_a_link_in_place_of_a_label_is_refused(tmp_path: Path):
    path = write_shard(tmp_path / "a.tar", [("a.jpg", b"1")], ["a.cls"])
    with pytest.raises(DataError, match="with a symbolic link in cls"):
        find_webdataset(path, NAMED)


@pytest.mark.parametrize("extension", ["pyd", "pkl", "pickle", "pth", "pt", "PYD", "gif", "ten"])
def test_members_that_can_run_code_are_refused_and_never_run(tmp_path: Path, extension: str):
    canary = tmp_path / "canary"
    payload = f"cos\nsystem\n(S'touch {canary}'\ntR.".encode()
    members = [*sample("a", 0), (f"a.x0.{extension}", payload), ("a.npy", payload)]
    path = write_shard(tmp_path / "a.tar", members)
    with pytest.raises(DataError, match=rf"a\.tar has member 'a\.x0\.{extension}' at byte 2,560"):
        find_webdataset(path, NAMED)
    assert not canary.exists()


def test_ignored_members_are_not_decoded(tmp_path: Path):
    canary = tmp_path / "canary"
    payload = f"cos\nsystem\n(S'touch {canary}'\ntR.".encode()
    members = [*sample("a", 0), ("a.npy", payload), ("a.txt", payload)]
    assert len(find_webdataset(write_shard(tmp_path / "a.tar", members), NAMED)) == 1
    assert not canary.exists()


@pytest.mark.parametrize(
    "name", ["../a.jpg", "/a.jpg", "x/../a.jpg", "a\n.jpg", "k" * 300 + ".jpg"]
)
def test_a_hostile_name_is_refused_with_shard_and_member(tmp_path: Path, name: str):
    path = write_shard(tmp_path / "a.tar", [*sample("b", 0), (name, b"x")])
    with pytest.raises(DataError, match=r"a\.tar: member name '"):
        find_webdataset(path, NAMED)


def test_hidden_members_and_other_files_are_passed_over_and_counted(tmp_path: Path):
    write_shard(tmp_path / "0.tar", [*sample("a", 0), ("._a.jpg", b"x"), (".x/b.pkl", b"y")])
    (tmp_path / "0.idx").write_text("v1.2 1")
    (tmp_path / "README.md").write_text("about")
    found = find_webdataset(tmp_path, SourceOptions(class_names=NAMES[:1]))
    assert found.keys == ["n01440764/a"]
    assert found.skipped == (
        f"1 files of {tmp_path} that are no shards",
        f"2 hidden files and folders of {tmp_path}",
    )


def test_a_cut_at_any_block_of_any_shard_is_noticed(tmp_path: Path):
    whole = write_shard(tmp_path / "0.tar", [*sample("a", 0), *sample("b", 1)]).read_bytes()
    write_shard(tmp_path / "2.tar", sample("c", 2))
    stop = len(whole.rstrip(b"\0")) // 512 * 512 + 512
    for size in range(0, stop, 512):
        (tmp_path / "1.tar").write_bytes(whole[:size])
        with pytest.raises(DataError, match=r"1\.tar"):
            find_webdataset(tmp_path, NAMED)


def test_a_changed_byte_of_a_header_is_noticed(tmp_path: Path):
    whole = bytearray(write_shard(tmp_path / "a.tar", sample("a", 0)).read_bytes())
    whole[1024] ^= 1
    (tmp_path / "a.tar").write_bytes(whole)
    with pytest.raises(DataError, match=r"a\.tar has a damaged header at byte 1,024"):
        find_webdataset(tmp_path / "a.tar", NAMED)


def test_shards_of_two_splits_are_refused(tmp_path: Path):
    write_shard(tmp_path / "imagenet1k-train-0000.tar", sample("a", 0))
    write_shard(tmp_path / "imagenet1k-validation-00.tar", sample("b", 0))
    with pytest.raises(UsageError, match="holds the splits train, validation; move or link"):
        find_webdataset(tmp_path, NAMED)


def info(tmp_path: Path, filenames: list[str], lengths: list[int]) -> None:
    split = {"filenames": filenames, "shard_lengths": lengths, "name": "train", "num_samples": 9}
    fields = {"class_names": NAMES, "splits": {"train": split}}
    (tmp_path / "_info.json").write_text(json.dumps(fields))


def test_a_shard_that_the_info_lists_must_be_there(tmp_path: Path):
    write_shard(tmp_path / "0.tar", sample("a", 0))
    info(tmp_path, ["0.tar", "1.tar", "2.tar"], [1, 1, 1])
    with pytest.raises(DataError, match=r"lacks 2 of the 3 shards that _info.json lists, 1\.tar f"):
        find_webdataset(tmp_path)
    info(tmp_path, ["x.tar"], [1])  # of a split that was not downloaded
    assert len(find_webdataset(tmp_path)) == 1


def test_a_shard_must_hold_as_many_samples_as_the_info_says(tmp_path: Path):
    write_shard(tmp_path / "0.tar", sample("a", 0))
    info(tmp_path, ["0.tar"], [2])
    with pytest.raises(DataError, match=r"0\.tar holds 1 samples, but _info.json says 2"):
        find_webdataset(tmp_path)
    with pytest.raises(DataError, match=r"0\.tar holds 1 samples, but _info.json says 2"):
        find_webdataset(tmp_path / "0.tar")


@pytest.mark.parametrize(
    ("fields", "fact"),
    [
        ([], "where an object is expected"),
        ({"class_names": "abc"}, "class_names that are no list of str"),
        ({"class_names": [1, 2]}, "class_names that are no list of str"),
        ({"class_names": ["a", "a"]}, "a name twice in class_names"),
        ({"splits": []}, "splits where an object is expected"),
        ({"splits": {"train": 5}}, "a split where an object is expected"),
        ({"splits": {"train": {}}}, "filenames that are no list of str"),
        (
            {"splits": {"train": {"filenames": ["0.tar"], "shard_lengths": []}}},
            "1 filenames but 0 shard_lengths",
        ),
    ],
)
def test_an_info_file_that_is_none_is_refused(tmp_path: Path, fields: object, fact: str):
    write_shard(tmp_path / "0.tar", sample("a", 0))
    (tmp_path / "_info.json").write_text(json.dumps(fields))
    with pytest.raises(DataError, match=rf"_info\.json has .*{fact}.*; mend or remove it"):
        find_webdataset(tmp_path, NAMED)


def test_a_folder_without_tars_is_refused(tmp_path: Path):
    with pytest.raises(UsageError, match="holds no tar"):
        find_webdataset(tmp_path)
