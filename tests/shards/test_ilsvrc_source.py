"""Validation images of ILSVRC in a flat folder or tar, with their labels in every known form.

The real development kit of ILSVRC may not be passed on, so ``kit_files`` makes one like it.
"""

import gzip
import hashlib
import tarfile
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest

from coreset.bench.robustness.faults import TarMember, write_tar
from coreset.shards.errors import DataError, UsageError
from coreset.shards.format.classes import class_list
from coreset.shards.sources.base import Source, SourceOptions
from coreset.shards.sources.detect import find_folder
from coreset.shards.sources.ilsvrc import find_validation, ilsvrc_wnids, is_validation
from coreset.shards.sources.tars import tar_layout

Files = dict[str, bytes]
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


def write(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def write_files(root: Path, files: Files) -> Path:
    for name, content in files.items():
        write(root / name, content)
    return root


def tar_of(path: Path, files: Files, link: str = "") -> Path:
    links = [TarMember(link, kind=tarfile.SYMTYPE, link="/etc/passwd")] * bool(link)
    return write_tar(path, [*(TarMember(*member) for member in files.items()), *links])


def zipped_tar(path: Path, files: Files) -> Path:
    return write(path, gzip.compress(tar_of(path, files).read_bytes()))


def contents(source: Source) -> list[tuple[str, str, bytes]]:
    samples = source.samples(range(len(source)))
    return [(s.key, source.classes[s.label], source.contents.read(s)) for s in samples]


def kit_folder(path: Path) -> Path:
    return write_files(path, kit_files()) / "ILSVRC2012_devkit_t12"


TRUTHS: dict[str, Callable[[Path], Path]] = {
    "kit": kit_folder,
    "ground truth in the kit": lambda path: kit_folder(path) / "data" / TRUTH_NAME,
    "data of the kit": lambda path: kit_folder(path) / "data",
    "kit.tar.gz": lambda path: zipped_tar(path, kit_files()),
    "kit.tar": lambda path: tar_of(path.with_suffix(".tar"), kit_files()),
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
    return tar_of(tmp_path / "ILSVRC2012_img_val.tar", IMAGES)


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
    below = find_validation(tar_of(tmp_path / "a.tar", members), wanted(named))
    assert contents(below) == contents(expected)
    assert below.sample(0).name == f"a.tar/val/{STEMS[0]}.JPEG"


def test_missing_ground_truth_is_refused_with_what_to_name(folder, tmp_path):
    with pytest.raises(UsageError, match="name their labels with --ground-truth"):
        find_validation(folder, wanted(None))
    with pytest.raises(UsageError, match=r"nowhere does not exist; name ILSVRC2012_devkit_t12"):
        find_validation(folder, wanted(tmp_path / "nowhere"))
    with pytest.raises(UsageError, match=r"integer labels without names; .* --class-names"):
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
        (b"a n01440764\nb\n", DataError, "'' in label 2 where a WordNet id"),
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


BROKEN_KITS: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "100 bytes": (lambda kit: kit[:100], "is cut or damaged"),
    "last byte": (lambda kit: kit[:-1], "is cut or damaged"),
    "a byte": (lambda kit: kit[:200] + bytes([kit[200] ^ 255]) + kit[201:], "is cut or damaged"),
    "no tar": (lambda _: gzip.compress(b"no tar" * 200), "is cut or damaged"),
    "bomb": (lambda _: gzip.compress(bytes(1 << 28), 1), "holds more than 67,108,864 bytes"),
}


@pytest.mark.parametrize(("spoil", "words"), BROKEN_KITS.values(), ids=BROKEN_KITS.keys())
def test_a_broken_kit_is_refused(folder, tmp_path, spoil, words):
    path = zipped_tar(tmp_path / "kit.tar.gz", kit_files())
    write(path, spoil(path.read_bytes()))
    tracemalloc.start()
    try:
        with pytest.raises(DataError, match=words):
            find_validation(folder, wanted(path))
        assert tracemalloc.get_traced_memory()[1] < 5 << 25
    finally:
        tracemalloc.stop()


def test_a_kit_without_labels_is_refused_and_nothing_of_it_is_extracted(folder, tmp_path):
    files = {name: data for name, data in kit_files().items() if not name.endswith(TRUTH_NAME)}
    kit = write_files(tmp_path / "kit", files) / "ILSVRC2012_devkit_t12"
    hostile = {"../outside": b"x", f"{tmp_path}/outside": b"x"}
    tar = zipped_tar(tmp_path / "kit.tar.gz", files | hostile)
    before = set(tmp_path.parent.rglob("*"))
    for truth in (kit, tar):
        with pytest.raises(UsageError, match=r"does not hold data/ILSVRC2012_validation_ground"):
            find_validation(folder, wanted(truth))
    find_validation(folder, wanted(zipped_tar(tar, kit_files() | hostile)))
    assert set(tmp_path.parent.rglob("*")) == before


def test_other_files_are_counted_and_two_images_of_one_name_refused(folder, tmp_path):
    write_files(folder, {"LOC_val_solution.csv": b"x", ".DS_Store": b"y"})
    options = wanted(kit_folder(tmp_path / "kit"))
    found = find_validation(folder, options)
    assert (found.skipped, len(found)) == ((f"1 files of {folder}, no images",), N_IMAGES)
    write(folder / f"{STEMS[0]}.png", b"x")
    with pytest.raises(UsageError, match="have the same name but for folder and extension"):
        find_validation(folder, options)


def test_a_link_in_the_tar_is_found_as_refused(tmp_path):
    path = tar_of(tmp_path / "a.tar", {}, f"{STEMS[0]}.JPEG")
    found = find_validation(path, wanted(write(tmp_path / "truth", lines(LABELS[:1]))))
    assert found.unreadable == {0: "symbolic link"}


def test_a_folder_of_classes_is_no_validation_folder(tmp_path):
    write_files(tmp_path, {"ILSVRC2012_val_00000001.JPEG": b"x", "n01440764/a.JPEG": b"y"})
    assert not is_validation(tmp_path)
