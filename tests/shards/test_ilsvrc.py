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
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
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
    path.write_bytes(content)
    return path


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
    "names": lambda path: write(
        path, lines([f"{name} {wnid}" for name, wnid in zip(IMAGES, LABELS, strict=True)][::-1])
    ),
    "names with commas": lambda path: write(
        path, lines([f"val/{stem},{wnid}" for stem, wnid in zip(STEMS, LABELS, strict=True)])
    ),
    "Kaggle": lambda path: write(
        path,
        lines(
            [
                "ImageId,PredictionString",
                *(
                    f"{stem},{wnid} 110 62 390 205 {wnid} 1 2 3 4 "
                    for stem, wnid in zip(STEMS, LABELS, strict=True)
                ),
            ]
        ),
    ),
    "Caffe": lambda path: write(
        path,
        lines([f"{n} {WNIDS.index(wnid)}" for n, wnid in zip(IMAGES, LABELS, strict=True)]),
    ),
}
every_truth = pytest.mark.parametrize("truth", TRUTHS.values(), ids=TRUTHS.keys())


def wanted(truth: Path | None, only: tuple[str, ...] | None = None) -> SourceOptions:
    return SourceOptions(truth=truth, class_names=WNIDS, only=only)


def contents(source: Source) -> list[bytes]:
    return [source.contents.read(sample) for sample in source.samples(range(len(source)))]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_files(tmp_path / "val", IMAGES)


@pytest.fixture
def tar(tmp_path: Path) -> Path:
    return write(tmp_path / "ILSVRC2012_img_val.tar", tar_bytes(IMAGES))


def test_the_ilsvrc_ids_are_those_of_the_development_kit():
    wnids = ilsvrc_wnids()
    assert sorted(wnids) == list(WNIDS)
    # As published: the ids of the first and last validation images, and what these images show.
    first = {490: "n01751748", 361: "n09193705", 171: "n02105855", 822: "n04263257"}
    last = {10: "n02123394", 495: "n01630670", 128: "n02106166", 848: "n10148035"}
    for number, wnid in {1: "n02119789", 1000: "n03255030", **first, **last}.items():
        assert wnids[number - 1] == wnid
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
        found = find_validation(src, wanted(named))
        assert found.keys == expected.keys
        assert found.classes == expected.classes
        assert found.labels.tolist() == expected.labels.tolist()
        assert contents(found) == contents(expected)


def test_members_below_a_folder_in_any_order_are_found(tmp_path: Path):
    files = {f"./val/{name}": IMAGES[name] for name in reversed(IMAGES)}
    tar = write(tmp_path / "a.tar", tar_bytes(files))
    found = find_validation(tar, wanted(kit_folder(tmp_path / "kit")))
    assert dict(zip(found.keys, contents(found), strict=True)) == {
        f"{wnid}/{stem}": content
        for stem, wnid, content in zip(STEMS, LABELS, IMAGES.values(), strict=True)
    }
    assert found.names[0] == f"a.tar/val/{STEMS[0]}.JPEG"


def test_missing_ground_truth_is_refused_with_what_to_name(folder: Path, tmp_path: Path):
    with pytest.raises(UsageError, match="name their labels with --ground-truth"):
        find_validation(folder, wanted(None))
    with pytest.raises(UsageError, match=r"nowhere does not exist; name ILSVRC2012_devkit_t12"):
        find_validation(folder, wanted(tmp_path / "nowhere"))


def test_numbers_without_the_kit_are_refused(folder: Path, tmp_path: Path):
    truth = write(tmp_path / TRUTH_NAME, kit_files()[f"ILSVRC2012_devkit_t12/data/{TRUTH_NAME}"])
    with pytest.raises(UsageError, match=r"numbers alone, .*; name ILSVRC2012_devkit_t12"):
        find_validation(folder, wanted(truth))


def test_positions_without_class_names_are_refused(folder: Path, tmp_path: Path):
    truth = TRUTHS["Caffe"](tmp_path / "val.txt")
    with pytest.raises(UsageError, match="--class-names imagenet-1k"):
        find_validation(folder, SourceOptions(truth=truth))


def test_a_position_that_is_no_class_is_refused(folder: Path, tmp_path: Path):
    truth = write(tmp_path / "val.txt", lines([f"{name} 1000" for name in IMAGES]))
    with pytest.raises(UsageError, match=r"label 1000 .* is not in \[0, 1000\)"):
        find_validation(folder, wanted(truth))


@pytest.mark.parametrize("form", ["kit", "ids in order", "names"])
def test_an_image_without_a_label_is_refused(folder: Path, tmp_path: Path, form: str):
    truth = TRUTHS[form](tmp_path / "truth")
    write_files(folder, {"ILSVRC2012_val_00000099.JPEG": b"x"})
    with pytest.raises(UsageError) as refused:
        find_validation(folder, wanted(truth))
    expected = "1 of the 13 images of" if form == "names" else "has 12 labels for the 13 images"
    assert expected in str(refused.value)


@pytest.mark.parametrize("form", ["kit", "ids in order", "names"])
def test_a_label_without_an_image_is_refused(folder: Path, tmp_path: Path, form: str):
    truth = TRUTHS[form](tmp_path / "truth")
    (folder / "ILSVRC2012_val_00000003.JPEG").unlink()
    with pytest.raises(UsageError) as refused:
        find_validation(folder, wanted(truth))
    expected = (
        f"1 of the 12 labels of ground truth {truth} have no image in {folder}, {STEMS[2]} first"
        if form == "names"
        else "has 12 labels for the 11 images"
    )
    assert expected in str(refused.value)


@pytest.mark.parametrize("form", ["kit", "ids in order"])
def test_a_gap_in_the_numbers_is_refused_although_the_counts_agree(
    folder: Path, tmp_path: Path, form: str
):
    truth = TRUTHS[form](tmp_path / "truth")
    (folder / "ILSVRC2012_val_00000003.JPEG").rename(folder / "ILSVRC2012_val_00000013.JPEG")
    with pytest.raises(UsageError, match="ILSVRC2012_val_00000013 first"):
        find_validation(folder, wanted(truth))


@pytest.mark.parametrize(
    ("content", "error", "fact"),
    [
        (b"", UsageError, "is empty"),
        (b"ImageId,PredictionString\n", UsageError, "is empty"),
        (b"\xff\xfe", UsageError, "save it as UTF-8 text"),
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


def test_a_cut_kit_is_refused(folder: Path, tmp_path: Path):
    whole = gzip.compress(tar_bytes(kit_files()))
    for size in (2, 10, 100, len(whole) // 2, len(whole) - 1):
        truth = write(tmp_path / "kit.tar.gz", whole[:size])
        with pytest.raises(DataError, match=r"kit\.tar\.gz is cut"):
            find_validation(folder, wanted(truth))


def test_a_damaged_kit_is_refused(folder: Path, tmp_path: Path):
    whole = bytearray(gzip.compress(tar_bytes(kit_files())))
    whole[len(whole) // 2] ^= 255
    with pytest.raises(DataError, match=r"kit\.tar\.gz is damaged|is no whole tar"):
        find_validation(folder, wanted(write(tmp_path / "kit.tar.gz", bytes(whole))))
    no_tar = write(tmp_path / "kit.tar.gz", gzip.compress(b"no tar" * 200))
    with pytest.raises(DataError, match="is no whole tar"):
        find_validation(folder, wanted(no_tar))


def test_a_kit_that_decompresses_without_end_is_refused(folder: Path, tmp_path: Path):
    bomb = gzip.compress(bytes(1 << 27), compresslevel=1)
    with pytest.raises(DataError, match="holds more than 67,108,864 bytes"):
        find_validation(folder, wanted(write(tmp_path / "kit.tar.gz", bomb)))


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


def test_a_cut_tar_of_images_is_noticed(tar: Path, tmp_path: Path):
    whole = tar.read_bytes()
    truth = wanted(kit_folder(tmp_path / "kit"))
    for size in range(0, len(whole.rstrip(b"\0")), 512):
        tar.write_bytes(whole[:size])
        with pytest.raises(DataError, match=r"ILSVRC2012_img_val\.tar"):
            find_validation(tar, truth)


def test_a_folder_of_classes_is_no_validation_folder(photos: Path, tmp_path: Path):
    assert not is_validation(photos)
    assert not is_validation(tmp_path)
    assert not is_validation(tmp_path / "nowhere")
    write_files(tmp_path, {"ILSVRC2012_val_00000001.JPEG": b"x", "n01440764/a.JPEG": b"y"})
    assert not is_validation(tmp_path)
