"""Sources in tars: classes against the unpacked tree, WebDataset shards, images of ILSVRC.

The real development kit of ILSVRC may not be passed on, so ``kit_files`` makes one like it.
"""

import gzip
import hashlib
import io
import json
import tarfile
import tracemalloc
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coreset.engine.stages.pack import Pack
from coreset.shards.errors import DataError, UsageError
from coreset.shards.format.classes import class_list
from coreset.shards.format.dataset import Manifest
from coreset.shards.sources.base import Source, SourceOptions
from coreset.shards.sources.folder import find_folder
from coreset.shards.sources.ilsvrc import find_validation, ilsvrc_wnids, is_validation
from coreset.shards.sources.tars import find_class_tars, tar_layout
from coreset.shards.sources.webdataset import find_webdataset

Files = dict[str, bytes]
Members = Sequence[tuple[str, bytes]]
Tree = dict[str, Files]
CLASSES = ("n01440764", "n02102040", "n02979186")


def tar_bytes(files: Files | Members, links: Sequence[tuple[str, bytes]] = ()) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name, content in files.items() if isinstance(files, dict) else files:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
        for name, kind in links:
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "/etc/passwd"
            tar.addfile(info)
    return buffer.getvalue()


def write(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def write_files(root: Path, files: Files) -> Path:
    for name, content in files.items():
        write(root / name, content)
    return root


def contents(source: Source) -> list[tuple[str, str, bytes]]:
    samples = source.samples(range(len(source)))
    return [(s.key, source.classes[s.label], source.contents.read(s)) for s in samples]


def some_files(name: str, n_files: int = 3) -> Files:
    return {f"{name}_{at}.JPEG": f"{name} {at} ".encode() * (40 * at + 1) for at in range(n_files)}


TREE: Tree = {name: some_files(name) for name in CLASSES}


def flat(tree: Tree, prefix: str = "") -> Files:
    return {
        f"{prefix}{name}/{file}": data for name, fs in tree.items() for file, data in fs.items()
    }


def tar_of_tars(path: Path, tree: Tree, prefix: str = "") -> Path:
    return write(path, tar_bytes({f"{prefix}{name}.tar": tar_bytes(tree[name]) for name in tree}))


def folder_of_tars(root: Path, tree: Tree, own_folder: str = "") -> Path:
    for name, files in tree.items():
        inner = {own_folder.format(name) + file: data for file, data in files.items()}
        write(root / f"{name}.tar", tar_bytes(inner))
    return root


def tree_tar(path: Path, tree: Tree, prefix: str = "") -> Path:
    return write(path, tar_bytes(flat(tree, prefix)))


WRITERS: dict[str, Callable[[Path, Tree], Path]] = {
    "tar of tars": tar_of_tars,
    "tar of tars in a folder": lambda path, tree: tar_of_tars(path, tree, "./train/"),
    "folder of tars": folder_of_tars,
    "folder of tars with folders": lambda path, tree: folder_of_tars(path, tree, "{}/"),
    "tar of a tree": tree_tar,
    "tar of a tree below ./": lambda path, tree: tree_tar(path, tree, "./"),
    "tar of a tree below train": lambda path, tree: tree_tar(path, tree, "train/"),
    "tar of a tree far below": lambda path, tree: tree_tar(path, tree, "./ILSVRC/Data/train/"),
}


@pytest.mark.parametrize("writer", WRITERS.values(), ids=WRITERS.keys())
def test_tars_are_found_as_the_folder_unpacked_from_them(tmp_path, writer):
    odd = {"by night/ä b.c.png": b"night", f"{'long' * 23}/x.JPEG": b"long"}
    tree = TREE | {"n02979186": odd | some_files("n02979186", 2)}
    src = writer(tmp_path / "src.tar", tree)
    unpacked = write_files(tmp_path / "unpacked", flat(tree))
    assert tar_layout(src) == "classes"
    assert contents(find_class_tars(src)) == contents(find_folder(unpacked))
    single = writer(tmp_path / "one.tar", {"n01440764": TREE["n01440764"]})
    assert find_class_tars(single).keys == [f"n01440764/n01440764_{at}" for at in range(3)]


def test_names_say_in_which_tar_an_image_lies(tmp_path):
    nested = find_class_tars(tar_of_tars(tmp_path / "a.tar", TREE))
    assert nested.names[0] == "n01440764.tar/n01440764_0.JPEG"
    assert find_class_tars(folder_of_tars(tmp_path / "tars", TREE)).names == nested.names
    tree = find_class_tars(tree_tar(tmp_path / "tree.tar", TREE, "./train/"))
    assert tree.names[0] == "tree.tar/train/n01440764/n01440764_0.JPEG"


def test_a_damaged_class_that_is_not_asked_for_is_not_read(tmp_path):
    src = folder_of_tars(tmp_path / "tars", TREE)
    write(src / "n02102040.tar", b"no tar")
    assert len(find_class_tars(src, SourceOptions(only=("n01440764", "n02979186")))) == 6


def test_links_and_devices_are_found_and_refused_by_packing(photos, tmp_path):
    kinds = {"symbolic link": b"2", "hard link": b"1", "character device": b"3", "fifo": b"6"}
    inner = tar_bytes(some_files("n01"), list(kinds.items()))
    found = find_class_tars(write(tmp_path / "a.tar", tar_bytes({"n01.tar": inner})))
    told = {found.keys[row].split("/")[1]: kind for row, kind in found.unreadable.items()}
    assert told == {kind: kind for kind in kinds}
    assert {found.sample(row).size for row in found.unreadable} == {0}
    for folder in sorted(photos.iterdir())[:2]:
        files = {file.name: file.read_bytes() for file in folder.iterdir()}
        write(tmp_path / "src" / f"{folder.name}.tar", tar_bytes(files, [("link.JPEG", b"2")]))
    Pack(src=tmp_path / "src", data=tmp_path / "DATA").run()
    manifest = Manifest.read(tmp_path / "DATA")
    assert (manifest.n_found, manifest.n_samples, manifest.n_quarantined) == (42, 40, 2)


def test_what_is_passed_over_is_counted(tmp_path):
    hidden = {".DS_Store": b"x", "._n01440764_0.JPEG": b"y", ".git/a.JPEG": b"z"}
    tars = folder_of_tars(tmp_path / "tars", TREE | {"cat": hidden | some_files("cat")})
    write(tars / "README", b"about")
    assert find_class_tars(tars).skipped == (
        f"1 files and folders of {tars} that are no tars",
        f"3 hidden files and folders of {tars}",
    )
    files = {"train/README": b"x", "train/cat/1.jpg": b"1", "train/dog/2.jpg": b"2"}
    found = find_class_tars(write(tmp_path / "a.tar", tar_bytes(files)))
    assert found.keys == ["cat/1", "dog/2"]
    assert found.skipped == (f"1 files of {tmp_path / 'a.tar'} that lie in no class folder",)


@pytest.mark.parametrize(
    "name", ["../../etc/x.JPEG", "/etc/x.JPEG", "a/../../x.JPEG", "a\nb.JPEG", "a//b.JPEG"]
)
def test_a_hostile_name_is_refused_with_tar_and_member(tmp_path, name):
    inner = tar_bytes(some_files("n01440764") | {name: b"x"})
    path = write(tmp_path / "train.tar", tar_bytes({"n01440764.tar": inner}))
    folder = write(tmp_path / "tars/n01440764.tar", inner).parent
    before = set(tmp_path.parent.rglob("*"))
    with pytest.raises(DataError) as refused:
        find_class_tars(path)
    assert f"class tar n01440764.tar: {path}: member name {name!r}" in str(refused.value)
    with pytest.raises(DataError, match=r"tars/n01440764\.tar: member name"):
        find_class_tars(folder)
    assert set(tmp_path.parent.rglob("*")) == before


def test_a_cut_class_tar_is_noticed_where_the_outer_tar_is_whole(tmp_path):
    inner = tar_bytes(some_files("n01440764"))
    for size in range(0, len(inner.rstrip(b"\0")), 512):
        path = write(tmp_path / "a.tar", tar_bytes({"n01440764.tar": inner[:size]}))
        with pytest.raises(DataError, match=r"class tar n01440764\.tar: .*a\.tar"):
            find_class_tars(path)


INNER = tar_bytes(some_files("n01"))


@pytest.mark.parametrize(
    ("stored", "error", "words"),
    [
        (tar_bytes({"n01.tar": INNER, "n09.tar": tar_bytes({})}), UsageError,
         r"class n09 .* holds no images; fill n09\.tar"),
        (tar_bytes({"n01.tar": INNER, "n09.tar": tar_bytes({".DS_Store": b"x"})}), UsageError,
         r"class n09 .* holds no images; fill n09\.tar"),
        (tar_bytes({"x/n01.tar": INNER, "y/n01.tar": INNER}), UsageError,
         r"x/n01.tar and y/n01.tar .* are tars of one class"),
        (tar_bytes({"n01.tar": INNER}, [("n02.tar", tarfile.SYMTYPE)]), DataError,
         r"symbolic link in place of the class tar n02\.tar"),
        (tar_bytes({"net/train/cat/1.jpg": b"1", "net/val/cat/2.jpg": b"2"}), UsageError,
         "holds the splits train, val, not classes"),
    ],
)  # fmt: skip
def test_what_is_no_tar_of_classes_is_refused(tmp_path, stored, error, words):
    with pytest.raises(error, match=words):
        find_class_tars(write(tmp_path / "a.tar", stored))


@pytest.mark.parametrize(
    ("names", "layout"),
    [
        (["n01.tar"], "classes"),
        (["cat/1.jpg", "cat/meta.json"], "classes"),
        (["cat/1.jpg", "cat/1.cls"], "webdataset"),
        (["1.jpg", "1.json"], "webdataset"),
        (["1.jpg", "2.jpg", "1.cls", "2.cls"], "webdataset"),
        (["ILSVRC2012_val_00000001.JPEG"], "validation"),
        (["./val/ILSVRC2012_val_00000001.JPEG"], "validation"),
        (["ILSVRC2012_val_00000001.JPEG", "ILSVRC2012_val_00000001.cls"], "webdataset"),
    ],
)
def test_the_layout_of_a_tar_is_told_by_its_members(tmp_path, names, layout):
    assert tar_layout(write(tmp_path / "a.tar", tar_bytes(dict.fromkeys(names, b"1")))) == layout


def test_numbered_tars_are_shards_and_not_classes(tmp_path):
    def layout_of(*names: str):
        return tar_layout(
            folder_of_tars(tmp_path / names[0], dict.fromkeys(names, some_files("x")))
        )

    assert layout_of("n01440764", "n02102040") == layout_of("cat", "dog") == "classes"
    assert layout_of("train-000000", "train-000001") == "webdataset"
    assert layout_of("00000", "00001", "00002") == "webdataset"


def test_what_is_no_tar_has_no_tar_layout(tmp_path):
    write(tmp_path / "list.csv", b"a,b")
    assert [tar_layout(tmp_path / name) for name in ("", "list.csv", "nowhere")] == [None] * 3
    tar_of_tars(tmp_path / "ILSVRC2012_img_train.tar", TREE)
    with pytest.raises(UsageError, match=r"ILSVRC2012_img_train\.tar holds a whole data set"):
        tar_layout(tmp_path)
    (tmp_path / "cat").mkdir()
    assert tar_layout(tmp_path) is None
    with pytest.raises(DataError, match="holds gzip data; decompress it"):
        tar_layout(write(tmp_path / "n01.tar.gz", b"\x1f\x8b" + bytes(600)))


# WebDataset shards.

NAMED = SourceOptions(class_names=CLASSES)


def write_shard(path: Path, members: Members, links: Sequence[tuple[str, bytes]] = ()) -> Path:
    return write(path, tar_bytes(members, links))


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
    "adjacent": [*sample("a", 0), *sample("a", 0)],
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
    "json list": ([("a.jpg", b"1"), ("a.json", b"[1]")], r"json b'\[1\]' where an object is"),
    "deep json": ([("a.jpg", b"1"), ("a.json", b"[" * 99_999)], r"json b'\[+' where an object"),
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
    with pytest.raises(DataError, match=rf"1\.tar has sample 'a' at byte \d,\d{{3}} with {fact}"):
        find_webdataset(tmp_path, NAMED)


def test_a_link_is_refused_as_image_later_and_as_label_at_once(tmp_path):
    path = write_shard(
        tmp_path / "a.tar", [*sample("b", 0), ("a.cls", b"0")], [("a.jpg", tarfile.SYMTYPE)]
    )
    assert find_webdataset(path, NAMED).unreadable == {0: "symbolic link"}
    path = write_shard(tmp_path / "a.tar", [("a.jpg", b"1")], [("a.cls", tarfile.SYMTYPE)])
    with pytest.raises(DataError, match="with a symbolic link in cls"):
        find_webdataset(path, NAMED)


@pytest.mark.parametrize("extension", ["pyd", "pkl", "pickle", "pth", "pt", "PYD", "gif", "ten"])
def test_members_that_can_run_code_are_refused_and_never_run(tmp_path, extension):
    canary = tmp_path / "canary"
    payload = f"cos\nsystem\n(S'touch {canary}'\ntR.".encode()
    ignored = [*sample("a", 0), ("a.npy", payload), ("a.txt", payload)]
    assert len(find_webdataset(write_shard(tmp_path / "0.tar", ignored), NAMED)) == 1
    members = [*sample("a", 0), (f"a.x0.{extension}", payload)]
    path = write_shard(tmp_path / "a.tar", members)
    with pytest.raises(DataError, match=rf"a\.tar has member 'a\.x0\.{extension}' at byte 2,560"):
        find_webdataset(path, NAMED)
    assert not canary.exists()


@pytest.mark.parametrize(
    "name", ["../a.jpg", "/a.jpg", "x/../a.jpg", "a\n.jpg", "k" * 300 + ".jpg"]
)
def test_a_hostile_name_is_refused_with_shard_and_member(tmp_path, name):
    path = write_shard(tmp_path / "a.tar", [*sample("b", 0), (name, b"x")])
    with pytest.raises(DataError, match=r"a\.tar: member name '"):
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
        ([], "where an object is expected"),
        ({"class_names": "abc"}, "class_names that are no list of str"),
        ({"class_names": ["a", "a"]}, "a name twice in class_names"),
        ({"splits": []}, "splits where an object is expected"),
        ({"splits": {"train": 5}}, "a split where an object is expected"),
        ({"splits": {"train": {}}}, "filenames that are no list of str"),
        ({"splits": {"x": {"filenames": ["0.tar"], "shard_lengths": []}}}, "1 filenames but 0 sh"),
    ],
)
def test_an_info_file_that_is_none_is_refused(tmp_path, fields, fact):
    write_shard(tmp_path / "0.tar", sample("a", 0))
    (tmp_path / "_info.json").write_text(json.dumps(fields))
    with pytest.raises(DataError, match=rf"_info\.json has .*{fact}.*; mend or remove it"):
        find_webdataset(tmp_path, NAMED)


# Validation images of ILSVRC in a flat folder or tar, with their labels in every known form.

WNIDS = class_list("imagenet-1k")
N_IMAGES = 12
ID_OF = {wnid: number for number, wnid in enumerate(ilsvrc_wnids(), 1)}
LABELS = [WNIDS[(7 * index) % 5] for index in range(N_IMAGES)]
TRUTH_NAME = "ILSVRC2012_validation_ground_truth.txt"

IMAGES: Files = {
    f"ILSVRC2012_val_{number:08d}.JPEG": f"image {number} ".encode() * number
    for number in range(1, N_IMAGES + 1)
}
STEMS = [name.removesuffix(".JPEG") for name in IMAGES]


def lines(words: list[str]) -> bytes:
    return "".join(f"{word}\n" for word in words).encode()


def kit_files(labels: list[str] = LABELS) -> Files:
    numbers = lines([str(ID_OF[wnid]) for wnid in labels])
    return {
        "ILSVRC2012_devkit_t12/readme.txt": b"about",
        f"ILSVRC2012_devkit_t12/data/{TRUTH_NAME}": numbers,
        "ILSVRC2012_devkit_t12/data/meta.mat": b"never read",
    }


def rows(form: str) -> bytes:
    """A line for each image, the last first."""
    pairs = list(zip(IMAGES, STEMS, LABELS, strict=True))[::-1]
    return lines(
        [form.format(name=n, stem=s, wnid=wnid, index=WNIDS.index(wnid)) for n, s, wnid in pairs]
    )


def kit_folder(path: Path) -> Path:
    return write_files(path, kit_files()) / "ILSVRC2012_devkit_t12"


TRUTHS: dict[str, Callable[[Path], Path]] = {
    "kit": kit_folder,
    "ground truth in the kit": lambda path: kit_folder(path) / "data" / TRUTH_NAME,
    "data of the kit": lambda path: kit_folder(path) / "data",
    "kit.tar.gz": lambda path: write(path, gzip.compress(tar_bytes(kit_files()))),
    "kit.tar": lambda path: write(path.with_suffix(".tar"), tar_bytes(kit_files())),
    "ids in order": lambda path: write(path, lines(LABELS)),
    "ids in order, Windows": lambda path: write(
        path, b"\xef\xbb\xbf" + lines(LABELS).replace(b"\n", b"\r\n")
    ),
    "names": lambda path: write(path, rows("{name} {wnid}")),
    "names with commas": lambda path: write(path, rows("val/{stem},{wnid}")),
    "Kaggle": lambda path: write(
        path, b"ImageId,PredictionString\n" + rows("{stem},{wnid} 110 62 390 205 {wnid} 1 2 3 4 ")
    ),
    "Caffe": lambda path: write(path, rows("{name} {index}")),
}


def wanted(truth: Path | None, only: tuple[str, ...] | None = None) -> SourceOptions:
    return SourceOptions(truth=truth, class_names=WNIDS, only=only)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_files(tmp_path / "val", IMAGES)


@pytest.fixture
def tar(tmp_path: Path) -> Path:
    return write(tmp_path / "ILSVRC2012_img_val.tar", tar_bytes(IMAGES))


def test_the_ilsvrc_ids_are_those_of_the_development_kit():
    wnids = ilsvrc_wnids()
    assert sorted(wnids) == list(WNIDS)
    # Of the whole list, which was compared with the development kits of 2012 and of CLS-LOC.
    digest = hashlib.sha256("\n".join(wnids).encode()).hexdigest()
    assert digest == "930a31901625f2149f8bab016254025ad225daf9efafa3f00011daf6f5f919f9"


@pytest.mark.parametrize("truth", TRUTHS.values(), ids=TRUTHS.keys())
def test_labelled_images_are_found_as_the_sorted_folder(folder, tar, tmp_path, truth):
    for (name, content), wnid in zip(IMAGES.items(), LABELS, strict=True):
        write_files(tmp_path / "sorted", {f"{wnid}/{name}": content})
    expected = find_folder(tmp_path / "sorted")
    named = truth(tmp_path / "truth")
    assert tar_layout(tar) == "validation"
    assert is_validation(folder)
    for src in (folder, tar):
        assert contents(find_validation(src, wanted(named))) == contents(expected)
    members = {f"./val/{name}": IMAGES[name] for name in reversed(IMAGES)}
    below = find_validation(write(tmp_path / "a.tar", tar_bytes(members)), wanted(named))
    assert contents(below) == contents(expected)
    assert below.names[0] == f"a.tar/val/{STEMS[0]}.JPEG"


def test_missing_ground_truth_is_refused_with_what_to_name(folder, tmp_path):
    with pytest.raises(UsageError, match="name their labels with --ground-truth"):
        find_validation(folder, wanted(None))
    with pytest.raises(UsageError, match=r"nowhere does not exist; name ILSVRC2012_devkit_t12"):
        find_validation(folder, wanted(tmp_path / "nowhere"))
    with pytest.raises(UsageError, match="--class-names imagenet-1k"):
        find_validation(folder, SourceOptions(truth=TRUTHS["Caffe"](tmp_path / "val.txt")))


@pytest.mark.parametrize("form", ["kit", "ids in order", "names"])
def test_images_and_labels_must_be_the_same(folder, tmp_path, form):
    truth = TRUTHS[form](tmp_path / "truth")
    by_name = form == "names"
    write(folder / "ILSVRC2012_val_00000013.JPEG", b"x")
    words = "1 of the 13 images of .* no label" if by_name else "has 12 labels for the 13 images"
    with pytest.raises(UsageError, match=words):
        find_validation(folder, wanted(truth))
    (folder / f"{STEMS[2]}.JPEG").unlink()
    with pytest.raises(UsageError, match="ILSVRC2012_val_00000013 first"):  # the counts agree
        find_validation(folder, wanted(truth))
    (folder / "ILSVRC2012_val_00000013.JPEG").unlink()
    words = f"1 of the 12 labels .* no image in .*, {STEMS[2]} first" if by_name else "12 labels f"
    with pytest.raises(UsageError, match=words):
        find_validation(folder, wanted(truth))


@pytest.mark.parametrize(
    ("content", "error", "fact"),
    [
        (b"", UsageError, "is empty"),
        (b"\xff\xfe", UsageError, "save it as UTF-8 text"),
        (b"1\n" * 12, UsageError, "numbers alone, .*; name ILSVRC"),
        (rows("{name} 1000"), UsageError, r"label 1000 .* is not in \[0, 1000\)"),
        (b"tench\nshark\n", DataError, "'tench' in label 1 where a WordNet id"),
        (b"a n01440764\nb 5\n", DataError, "'5' in label 2 where a WordNet id"),
        (b"a 5\nb n01440764\n", DataError, "'n01440764' in label 2 where an integer"),
        (b"a n01440764\nb\n", DataError, "'b alone' in label 2 where a name and a label"),
        (b"a n01440764\na.JPEG n01440764\n", UsageError, "names a twice"),
    ],
)
def test_a_ground_truth_of_no_known_form_is_refused(folder, tmp_path, content, error, fact):
    with pytest.raises(error, match=fact):
        find_validation(folder, wanted(write(tmp_path / "truth.txt", content)))


@pytest.mark.parametrize("line", ["0", "1001", "-1", "x", "1.0", "²"])
def test_an_id_that_is_no_class_is_refused(folder, tmp_path, line):
    files = kit_files()
    files[f"ILSVRC2012_devkit_t12/data/{TRUTH_NAME}"] = lines(["1"] * 11 + [line])
    truth = write_files(tmp_path / "kit", files) / "ILSVRC2012_devkit_t12"
    with pytest.raises(DataError, match="in line 12 where an ILSVRC id"):
        find_validation(folder, wanted(truth))


def test_an_incomplete_kit_is_refused(folder, tmp_path):
    files = {name: data for name, data in kit_files().items() if not name.endswith(TRUTH_NAME)}
    kit = write_files(tmp_path / "kit", files) / "ILSVRC2012_devkit_t12"
    tar = write(tmp_path / "kit.tar.gz", gzip.compress(tar_bytes(files)))
    for truth in (kit, tar):
        with pytest.raises(UsageError, match=r"does not hold data/ILSVRC2012_validation_ground"):
            find_validation(folder, wanted(truth))


WHOLE = gzip.compress(tar_bytes(kit_files()))
BROKEN_KITS = {
    **{f"{size} bytes": (WHOLE[:size], r"kit\.tar\.gz is cut") for size in (2, 10, 100)},
    "last byte": (WHOLE[:-1], r"kit\.tar\.gz is cut"),
    "a byte": (WHOLE[:200] + bytes([WHOLE[200] ^ 255]) + WHOLE[201:], "is damaged|is no whole tar"),
    "no tar": (gzip.compress(b"no tar" * 200), "is no whole tar"),
    "bomb": (gzip.compress(bytes(1 << 28), 1), "holds more than 67,108,864 bytes"),
}


@pytest.mark.parametrize(("stored", "words"), BROKEN_KITS.values(), ids=BROKEN_KITS.keys())
def test_a_broken_kit_is_refused(folder, tmp_path, stored, words):
    tracemalloc.start()
    with pytest.raises(DataError, match=words):
        find_validation(folder, wanted(write(tmp_path / "kit.tar.gz", stored)))
    assert tracemalloc.get_traced_memory()[1] < 5 << 25
    tracemalloc.stop()


def test_nothing_of_the_kit_is_extracted(folder, tmp_path):
    files = kit_files() | {"../outside": b"x", f"{tmp_path}/outside": b"x"}
    truth = write(tmp_path / "kit.tar.gz", gzip.compress(tar_bytes(files)))
    before = set(tmp_path.rglob("*"))
    find_validation(folder, wanted(truth))
    assert set(tmp_path.rglob("*")) == before
    assert not (tmp_path.parent / "outside").exists()


def test_other_files_are_counted(folder, tmp_path):
    write_files(folder, {"LOC_val_solution.csv": b"x", ".DS_Store": b"y"})
    found = find_validation(folder, wanted(kit_folder(tmp_path / "kit")))
    assert found.skipped == (f"1 files of {folder}, no images",)
    assert len(found) == N_IMAGES


def test_a_link_in_the_tar_is_found_as_refused(tmp_path):
    linked = [(f"{STEMS[0]}.JPEG", tarfile.SYMTYPE)]
    path = write(tmp_path / "a.tar", tar_bytes({}, linked))
    found = find_validation(path, wanted(write(tmp_path / "truth", lines(LABELS[:1]))))
    assert found.unreadable == {0: "symbolic link"}


def test_two_images_of_one_name_are_refused(folder, tmp_path):
    write_files(folder, {f"{STEMS[0]}.png": b"x"})
    with pytest.raises(UsageError, match="have the same name but for folder and extension"):
        find_validation(folder, wanted(kit_folder(tmp_path / "kit")))


def test_a_folder_of_classes_is_no_validation_folder(photos, tmp_path):
    assert not is_validation(photos)
    assert not is_validation(tmp_path)
    assert not is_validation(tmp_path / "nowhere")
    write_files(tmp_path, {"ILSVRC2012_val_00000001.JPEG": b"x", "n01440764/a.JPEG": b"y"})
    assert not is_validation(tmp_path)
