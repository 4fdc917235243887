"""Tars of classes, against the unpacked tree."""

import io
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from coreset.engine.stages.pack import Pack
from coreset.shards.errors import DataError, UsageError
from coreset.shards.format.dataset import Manifest
from coreset.shards.sources.base import Source, SourceOptions
from coreset.shards.sources.detect import find_folder
from coreset.shards.sources.tars import find_class_tars, tar_layout

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
    in_folder = find_class_tars(folder_of_tars(tmp_path / "tars", TREE))
    for found in (nested, in_folder):
        assert found.sample(0).name == "n01440764.tar/n01440764_0.JPEG"
    tree = find_class_tars(tree_tar(tmp_path / "tree.tar", TREE, "./train/"))
    assert tree.sample(0).name == "tree.tar/train/n01440764/n01440764_0.JPEG"


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
