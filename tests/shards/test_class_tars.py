"""Tars of classes against the folder tree that tarfile unpacks from them."""

import io
import tarfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
import pytest

from coreset.shards.errors import DataError, UsageError
from coreset.shards.format.records import ShardRecord
from coreset.shards.packing.pack import pack
from coreset.shards.packing.plan import Plan
from coreset.shards.sources.base import Source, SourceOptions
from coreset.shards.sources.folder import find_folder
from coreset.shards.sources.names import split_of
from coreset.shards.sources.tars import find_class_tars, tar_layout

FORMATS = (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)
LINKS = {
    tarfile.SYMTYPE: "symbolic link",
    tarfile.LNKTYPE: "hard link",
    tarfile.CHRTYPE: "character device",
    tarfile.FIFOTYPE: "fifo",
}

Files = dict[str, bytes]


class Silent:
    def block(self, found: int, source_bytes: int, *, refused: int) -> None: ...
    def shard(self, record: ShardRecord, *, resumed: bool) -> None: ...


def tar_bytes(
    files: Files, kinds: Sequence[tuple[str, bytes]] = (), tar_format: int = tarfile.GNU_FORMAT
) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tar_format) as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
        for name, kind in kinds:
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "/etc/passwd"
            tar.addfile(info)
    return buffer.getvalue()


def some_files(class_name: str, n_files: int = 3) -> Files:
    return {
        f"{class_name}_{index}.JPEG": f"{class_name} {index} ".encode() * (40 * index + 1)
        for index in range(n_files)
    }


CLASSES = ("n01440764", "n02102040", "n02979186")
TREE = {name: some_files(name) for name in CLASSES}


def write_tree(root: Path, tree: dict[str, Files]) -> Path:
    for class_name, files in tree.items():
        for name, content in files.items():
            path = root / class_name / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
    return root


def write_tar_of_tars(path: Path, tree: dict[str, Files], *, prefix: str = "") -> Path:
    tars = {f"{prefix}{name}.tar": tar_bytes(files) for name, files in tree.items()}
    path.write_bytes(tar_bytes(tars))
    return path


def write_folder_of_tars(root: Path, tree: dict[str, Files], *, own_folder: bool = False) -> Path:
    root.mkdir()
    for name, files in tree.items():
        prefix = f"{name}/" if own_folder else ""
        content = tar_bytes({f"{prefix}{file}": data for file, data in files.items()})
        (root / f"{name}.tar").write_bytes(content)
    return root


def write_tree_tar(path: Path, tree: dict[str, Files], *, prefix: str = "") -> Path:
    files = {
        f"{prefix}{class_name}/{name}": content
        for class_name, files in tree.items()
        for name, content in files.items()
    }
    path.write_bytes(tar_bytes(files))
    return path


WRITERS: dict[str, Callable[[Path, dict[str, Files]], Path]] = {
    "tar of tars": write_tar_of_tars,
    "tar of tars in a folder": lambda path, tree: write_tar_of_tars(path, tree, prefix="./train/"),
    "folder of tars": write_folder_of_tars,
    "folder of tars with folders": lambda path, tree: write_folder_of_tars(
        path, tree, own_folder=True
    ),
    "tar of a tree": write_tree_tar,
    "tar of a tree below ./": lambda path, tree: write_tree_tar(path, tree, prefix="./"),
    "tar of a tree below train": lambda path, tree: write_tree_tar(path, tree, prefix="train/"),
    "tar of a tree far below": lambda path, tree: write_tree_tar(
        path, tree, prefix="./ILSVRC/Data/train/"
    ),
}
every_layout = pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS.keys())


def contents(source: Source) -> list[bytes]:
    return [source.contents.read(sample) for sample in source.samples(range(len(source)))]


def require_equal(found: Source, expected: Source) -> None:
    assert found.classes == expected.classes
    assert found.keys == expected.keys
    np.testing.assert_array_equal(found.labels, expected.labels)
    np.testing.assert_array_equal(found.sizes, expected.sizes)
    assert contents(found) == contents(expected)


@every_layout
def test_tars_are_found_as_the_folder_unpacked_from_them(
    tmp_path: Path, write: Callable[[Path, dict[str, Files]], Path]
):
    tree = TREE | {"n02979186": {"by night/ä b.c.png": b"night", **some_files("n02979186", 2)}}
    src = write(tmp_path / "src.tar", tree)
    assert tar_layout(src) == "classes"
    require_equal(find_class_tars(src), find_folder(write_tree(tmp_path / "unpacked", tree)))


@pytest.mark.parametrize("tar_format", FORMATS)
def test_every_format_of_tarfile_is_read(tmp_path: Path, tar_format: int):
    files = {f"{'long' * 23}/{name}": data for name, data in some_files("n01440764").items()}
    inner = {"n01440764.tar": tar_bytes(files, tar_format=tar_format)}
    (tmp_path / "a.tar").write_bytes(tar_bytes(inner, tar_format=tar_format))
    unpacked = write_tree(tmp_path / "unpacked", {"n01440764": files})
    require_equal(find_class_tars(tmp_path / "a.tar"), find_folder(unpacked))


def test_names_say_in_which_tar_an_image_lies(tmp_path: Path):
    nested = find_class_tars(write_tar_of_tars(tmp_path / "a.tar", TREE))
    assert nested.names[0] == "n01440764.tar/n01440764_0.JPEG"
    folder = find_class_tars(write_folder_of_tars(tmp_path / "tars", TREE))
    assert folder.names == nested.names
    tree = find_class_tars(write_tree_tar(tmp_path / "tree.tar", TREE, prefix="./train/"))
    assert tree.names[0] == "tree.tar/train/n01440764/n01440764_0.JPEG"


def test_a_damaged_class_that_is_not_asked_for_is_not_read(tmp_path: Path):
    src = write_folder_of_tars(tmp_path / "tars", TREE)
    (src / "n02102040.tar").write_bytes(b"no tar")
    assert len(find_class_tars(src, SourceOptions(only=("n01440764", "n02979186")))) == 6


@pytest.mark.parametrize("kind", LINKS)
def test_a_link_or_device_is_found_as_refused(tmp_path: Path, kind: bytes):
    inner = tar_bytes(some_files("n01440764"), [("n01440764_9.JPEG", kind)])
    (tmp_path / "a.tar").write_bytes(tar_bytes({"n01440764.tar": inner}))
    found = find_class_tars(tmp_path / "a.tar")
    assert len(found) == 4
    row = found.keys.index("n01440764/n01440764_9")
    assert found.unreadable == {row: LINKS[kind]}
    assert found.sample(row).size == 0


def test_a_refused_link_is_listed_by_packing(photos: Path, tmp_path: Path):
    names = sorted(photos.iterdir())[:2]
    (tmp_path / "src").mkdir()
    for folder in names:
        files = {file.name: file.read_bytes() for file in sorted(folder.iterdir())}
        links = [("link.JPEG", tarfile.SYMTYPE)] if folder == names[0] else []
        (tmp_path / "src" / f"{folder.name}.tar").write_bytes(tar_bytes(files, links))
    source = find_class_tars(tmp_path / "src")
    plan = Plan(
        source=source,
        labels=source.labels,
        samples_per_shard=50,
        name="a",
        split="b",
        settings={},
    )
    (tmp_path / "out").mkdir()
    made = pack(plan, tmp_path / "out", workers=1, listed=tmp_path / "l.csv", observer=Silent())
    assert (made.n_found, made.n_samples, made.n_quarantined) == (41, 40, 1)


def test_hidden_members_are_passed_over_and_counted(tmp_path: Path):
    hidden = {".DS_Store": b"x", "._n01440764_0.JPEG": b"y", ".git/a.JPEG": b"z"}
    src = write_folder_of_tars(
        tmp_path / "tars", {"n01440764": some_files("n01440764") | hidden, "b": {"b.png": b"b"}}
    )
    (src / "README").write_text("about")
    found = find_class_tars(src)
    assert len(found) == 4
    assert found.skipped == (
        f"1 files and folders of {src} that are no tars",
        f"3 hidden files and folders of {src}",
    )


def test_files_outside_class_folders_are_counted(tmp_path: Path):
    files = {"train/README": b"x", "train/cat/1.jpg": b"1", "train/dog/2.jpg": b"2"}
    (tmp_path / "a.tar").write_bytes(tar_bytes(files))
    found = find_class_tars(tmp_path / "a.tar")
    assert found.keys == ["cat/1", "dog/2"]
    assert found.skipped == (f"1 files of {tmp_path / 'a.tar'} that lie in no class folder",)


def test_one_class_in_a_tar_keeps_its_name(tmp_path: Path):
    for prefix in ("", "train/"):
        src = write_tree_tar(tmp_path / "a.tar", {"cat": some_files("cat")}, prefix=prefix)
        assert find_class_tars(src).keys == ["cat/cat_0", "cat/cat_1", "cat/cat_2"]


HOSTILE = ("../../etc/x.JPEG", "/etc/x.JPEG", "a/../../x.JPEG", "a\nb.JPEG", "a//b.JPEG")


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_name_is_refused_with_tar_and_member(tmp_path: Path, name: str):
    before = set(tmp_path.parent.rglob("*"))
    inner = tar_bytes(some_files("n01440764") | {name: b"x"}, tar_format=tarfile.PAX_FORMAT)
    path = tmp_path / "train.tar"
    path.write_bytes(tar_bytes({"n01440764.tar": inner}))
    with pytest.raises(DataError) as refused:
        find_class_tars(path)
    assert f"class tar n01440764.tar: {path}: member name" in str(refused.value)
    assert repr(name) in str(refused.value)
    (tmp_path / "tars").mkdir()
    (tmp_path / "tars/n01440764.tar").write_bytes(inner)
    with pytest.raises(DataError, match=r"tars/n01440764\.tar: member name"):
        find_class_tars(tmp_path / "tars")
    assert set(tmp_path.parent.rglob("*")) - before == {
        path, tmp_path / "tars", tmp_path / "tars/n01440764.tar",
    }  # fmt: skip


def test_a_cut_at_any_block_is_noticed(tmp_path: Path):
    whole = write_tar_of_tars(tmp_path / "whole.tar", TREE).read_bytes()
    stop = len(whole.rstrip(b"\0")) // 512 * 512 + 512
    cut = tmp_path / "cut.tar"
    for size in range(0, stop, 512):
        cut.write_bytes(whole[:size])
        with pytest.raises(DataError, match=r"cut\.tar"):
            find_class_tars(cut)


def test_a_cut_class_tar_is_noticed_where_the_outer_tar_is_whole(tmp_path: Path):
    inner = tar_bytes(some_files("n01440764"))
    for size in range(0, len(inner.rstrip(b"\0")), 512):
        (tmp_path / "a.tar").write_bytes(tar_bytes({"n01440764.tar": inner[:size]}))
        with pytest.raises(DataError, match=r"class tar n01440764\.tar: .*a\.tar"):
            find_class_tars(tmp_path / "a.tar")


@pytest.mark.parametrize("empty", [{}, {".DS_Store": b"x"}])
@pytest.mark.parametrize("write", [write_tar_of_tars, write_folder_of_tars])
def test_an_empty_class_tar_is_refused_by_name(
    tmp_path: Path, empty: Files, write: Callable[[Path, dict[str, Files]], Path]
):
    src = write(tmp_path / "src.tar", TREE | {"n09999999": empty})
    with pytest.raises(
        UsageError, match=r"class n09999999 .* holds no images; fill n09999999\.tar"
    ):
        find_class_tars(src)


def test_two_tars_of_one_class_are_refused(tmp_path: Path):
    inner = tar_bytes(some_files("n01"))
    (tmp_path / "a.tar").write_bytes(tar_bytes({"x/n01.tar": inner, "y/n01.tar": inner}))
    with pytest.raises(UsageError, match=r"x/n01.tar and y/n01.tar .* are tars of one class"):
        find_class_tars(tmp_path / "a.tar")


def test_a_link_in_place_of_a_class_tar_is_refused(tmp_path: Path):
    outer = tar_bytes({"n01.tar": tar_bytes(some_files("n01"))}, [("n02.tar", tarfile.SYMTYPE)])
    (tmp_path / "a.tar").write_bytes(outer)
    with pytest.raises(DataError, match=r"symbolic link in place of the class tar n02\.tar"):
        find_class_tars(tmp_path / "a.tar")


def test_splits_are_not_taken_for_classes(tmp_path: Path):
    tree = {"train/cat": some_files("cat"), "val/cat": some_files("cat")}
    src = write_tree_tar(tmp_path / "a.tar", tree, prefix="imagenette2/")
    with pytest.raises(UsageError, match="holds the splits train, val, not classes"):
        find_class_tars(src)


def peeked(path: Path, names: Iterable[str]) -> str | None:
    path.write_bytes(tar_bytes(dict.fromkeys(names, b"1")))
    return tar_layout(path)


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
def test_the_layout_of_a_tar_is_told_by_its_members(tmp_path: Path, names: list[str], layout: str):
    assert peeked(tmp_path / "a.tar", names) == layout


@pytest.mark.parametrize(
    ("tars", "layout"),
    [
        (["n01440764", "n02102040"], "classes"),
        (["cat", "dog"], "classes"),
        (["train-000000", "train-000001"], "webdataset"),
        (["00000", "00001", "00002"], "webdataset"),
    ],
)
def test_numbered_tars_are_shards_and_not_classes(tmp_path: Path, tars: list[str], layout: str):
    for name in tars:
        (tmp_path / f"{name}.tar").write_bytes(tar_bytes(some_files("x")))
    assert tar_layout(tmp_path) == layout


def test_what_is_no_tar_has_no_tar_layout(tmp_path: Path):
    (tmp_path / "list.csv").write_text("a,b")
    assert tar_layout(tmp_path) is None
    assert tar_layout(tmp_path / "list.csv") is None
    assert tar_layout(tmp_path / "nowhere") is None
    write_tar_of_tars(tmp_path / "a.tar", TREE)
    (tmp_path / "cat").mkdir()
    assert tar_layout(tmp_path) is None


def test_a_folder_that_holds_the_distributed_tar_is_refused_with_its_name(tmp_path: Path):
    write_tar_of_tars(tmp_path / "ILSVRC2012_img_train.tar", TREE)
    with pytest.raises(UsageError, match=r"ILSVRC2012_img_train\.tar holds a whole data set"):
        tar_layout(tmp_path)


def test_a_compressed_tar_is_refused_with_what_to_do(tmp_path: Path):
    with tarfile.open(tmp_path / "n01.tar.gz", "w:gz") as tar:
        tar.addfile(tarfile.TarInfo("a.jpg"))
    with pytest.raises(DataError, match="holds gzip data; decompress it"):
        tar_layout(tmp_path)


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("imagenet1k-train-0000", "train"),
        ("imagenet1k-validation-00", "validation"),
        ("VAL", "validation"),
        ("test_03", "test"),
        ("trainer", None),
        ("train-and-test", None),
    ],
)
def test_a_split_is_a_word_of_a_name(name: str, split: str | None):
    assert split_of(name) == split
