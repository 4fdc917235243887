"""Validation images in a flat folder or tar, with their labels in every known form.

The real development kit may not be passed on, so ``kit_files`` makes one of the same structure.
"""

import gzip
import hashlib
import io
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from coreset.shards.errors import DataError, UsageError
from coreset.shards.format.classes import class_list
from coreset.shards.sources.base import Source, SourceOptions
from coreset.shards.sources.folder import find_folder
from coreset.shards.sources.ilsvrc import find_validation, ilsvrc_wnids, is_validation
from coreset.shards.sources.tars import tar_layout

WNIDS = class_list("imagenet-1k")
N_IMAGES = 12
ID_OF = {wnid: number for number, wnid in enumerate(ilsvrc_wnids(), 1)}
LABELS = [WNIDS[(7 * index) % 5] for index in range(N_IMAGES)]
TRUTH_NAME = "ILSVRC2012_validation_ground_truth.txt"

Files = dict[str, bytes]
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


def write_files(root: Path, files: Files) -> Path:
    for name, content in files.items():
        write(root / name, content)
    return root


def tar_bytes(files: Files) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def write(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


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
every_truth = pytest.mark.parametrize("truth", TRUTHS.values(), ids=TRUTHS.keys())


def wanted(truth: Path | None, only: tuple[str, ...] | None = None) -> SourceOptions:
    return SourceOptions(truth=truth, class_names=WNIDS, only=only)


def contents(source: Source) -> list[tuple[str, str, bytes]]:
    samples = source.samples(range(len(source)))
    return [(s.key, source.classes[s.label], source.contents.read(s)) for s in samples]


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


@every_truth
def test_labelled_images_are_found_as_the_sorted_folder(
    folder: Path, tar: Path, tmp_path: Path, truth: Callable[[Path], Path]
):
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


def test_missing_ground_truth_is_refused_with_what_to_name(folder: Path, tmp_path: Path):
    with pytest.raises(UsageError, match="name their labels with --ground-truth"):
        find_validation(folder, wanted(None))
    with pytest.raises(UsageError, match=r"nowhere does not exist; name ILSVRC2012_devkit_t12"):
        find_validation(folder, wanted(tmp_path / "nowhere"))
    with pytest.raises(UsageError, match="--class-names imagenet-1k"):
        find_validation(folder, SourceOptions(truth=TRUTHS["Caffe"](tmp_path / "val.txt")))


@pytest.mark.parametrize("form", ["kit", "ids in order", "names"])
def test_images_and_labels_must_be_the_same(folder: Path, tmp_path: Path, form: str):
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
    words = (
        rf"1 of the 12 labels .* no image in .*, {STEMS[2]} first" if by_name else "12 labels for"
    )
    with pytest.raises(UsageError, match=words):
        find_validation(folder, wanted(truth))


@pytest.mark.parametrize(
    ("content", "error", "fact"),
    [
        (b"", UsageError, "is empty"),
        (b"ImageId,PredictionString\n", UsageError, "is empty"),
        (b"\xff\xfe", UsageError, "save it as UTF-8 text"),
        (
            b"".join(b"%d\n" % at for at in range(1, 13)),
            UsageError,
            "numbers alone, .*; name ILSVRC",
        ),
        (rows("{name} 1000"), UsageError, r"label 1000 .* is not in \[0, 1000\)"),
        (b"tench\nshark\n", DataError, "'tench' in label 1 where a WordNet id"),
        (b"n01440764\n5\n", DataError, "'5' in label 2 where a WordNet id"),
        (b"a n01440764\nb 5\n", DataError, "'5' in label 2 where a WordNet id"),
        (b"a 5\nb n01440764\n", DataError, "'n01440764' in label 2 where an integer"),
        (b"a n01440764\nb\n", DataError, "'b alone' in label 2 where a name and a label"),
        (b"a n01440764\na.JPEG n01440764\n", UsageError, "names a twice"),
    ],
)
def test_a_ground_truth_of_no_known_form_is_refused(
    folder: Path, tmp_path: Path, content: bytes, error: type[Exception], fact: str
):
    with pytest.raises(error, match=fact):
        find_validation(folder, wanted(write(tmp_path / "truth.txt", content)))


@pytest.mark.parametrize("line", ["0", "1001", "-1", "x", "1.0", "²"])
def test_an_id_that_is_no_class_is_refused(folder: Path, tmp_path: Path, line: str):
    files = kit_files()
    files[f"ILSVRC2012_devkit_t12/data/{TRUTH_NAME}"] = lines(["1"] * 11 + [line])
    truth = write_files(tmp_path / "kit", files) / "ILSVRC2012_devkit_t12"
    with pytest.raises(DataError, match="in line 12 where an ILSVRC id"):
        find_validation(folder, wanted(truth))


def test_an_incomplete_kit_is_refused(folder: Path, tmp_path: Path):
    files = {name: data for name, data in kit_files().items() if not name.endswith(TRUTH_NAME)}
    kit = write_files(tmp_path / "kit", files) / "ILSVRC2012_devkit_t12"
    tar = write(tmp_path / "kit.tar.gz", gzip.compress(tar_bytes(files)))
    for truth in (kit, tar):
        with pytest.raises(UsageError, match=r"does not hold data/ILSVRC2012_validation_ground"):
            find_validation(folder, wanted(truth))


WHOLE = gzip.compress(tar_bytes(kit_files()))
BROKEN = {
    **{f"{size} bytes": (WHOLE[:size], r"kit\.tar\.gz is cut") for size in (2, 10, 100)},
    "last byte": (WHOLE[:-1], r"kit\.tar\.gz is cut"),
    "a byte": (WHOLE[:200] + bytes([WHOLE[200] ^ 255]) + WHOLE[201:], "is damaged|is no whole tar"),
    "no tar": (gzip.compress(b"no tar" * 200), "is no whole tar"),
    "bomb": (gzip.compress(bytes(1 << 27), 1), "holds more than 67,108,864 bytes"),
}


@pytest.mark.parametrize(("stored", "words"), BROKEN.values(), ids=BROKEN.keys())
def test_a_broken_kit_is_refused(folder: Path, tmp_path: Path, stored: bytes, words: str):
    with pytest.raises(DataError, match=words):
        find_validation(folder, wanted(write(tmp_path / "kit.tar.gz", stored)))


def test_nothing_of_the_kit_is_extracted(folder: Path, tmp_path: Path):
    files = kit_files() | {"../outside": b"x", f"{tmp_path}/outside": b"x"}
    truth = write(tmp_path / "kit.tar.gz", gzip.compress(tar_bytes(files)))
    before = set(tmp_path.rglob("*"))
    find_validation(folder, wanted(truth))
    assert set(tmp_path.rglob("*")) == before
    assert not (tmp_path.parent / "outside").exists()


def test_other_files_are_counted(folder: Path, tmp_path: Path):
    write_files(folder, {"LOC_val_solution.csv": b"x", ".DS_Store": b"y"})
    found = find_validation(folder, wanted(kit_folder(tmp_path / "kit")))
    assert found.skipped == (f"1 files of {folder}, no images",)
    assert len(found) == N_IMAGES


def test_a_link_in_the_tar_is_found_as_refused(tmp_path: Path):
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as tar:
        info = tarfile.TarInfo(f"{STEMS[0]}.JPEG")
        info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(info)
    found = find_validation(path, wanted(write(tmp_path / "truth", lines(LABELS[:1]))))
    assert found.unreadable == {0: "symbolic link"}


def test_two_images_of_one_name_are_refused(folder: Path, tmp_path: Path):
    write_files(folder, {f"{STEMS[0]}.png": b"x"})
    with pytest.raises(UsageError, match="have the same name but for folder and extension"):
        find_validation(folder, wanted(kit_folder(tmp_path / "kit")))


def test_a_folder_of_classes_is_no_validation_folder(photos: Path, tmp_path: Path):
    assert not is_validation(photos)
    assert not is_validation(tmp_path)
    assert not is_validation(tmp_path / "nowhere")
    write_files(tmp_path, {"ILSVRC2012_val_00000001.JPEG": b"x", "n01440764/a.JPEG": b"y"})
    assert not is_validation(tmp_path)
