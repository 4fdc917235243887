"""The same questions to every layout that a source may have, of the same images."""

import csv
import io
import os
import shutil
import tarfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from coreset.bench.robustness.faults import encoded
from coreset.engine.stages.export import Export
from coreset.engine.stages.pack import Pack
from coreset.shards.errors import CoresetError, DataError, UsageError
from coreset.shards.format.dataset import Manifest
from coreset.shards.sources import detect
from coreset.shards.sources.base import Source, SourceOptions
from coreset.shards.sources.detect import find, find_folder, find_packed
from coreset.shards.sources.finder import FileContents, Finder, Found
from coreset.shards.sources.ilsvrc import find_validation
from coreset.shards.sources.parquet import find_parquet
from coreset.shards.sources.synthetic import Synthetic, synthetic_source
from coreset.shards.sources.table import find_table
from coreset.shards.sources.tars import find_class_tars
from coreset.shards.sources.webdataset import find_webdataset

CLASSES = ("n01440764", "n02102040", "n02979186")
ABSENT = "n09999999"
Files = dict[str, bytes]
Contents = list[tuple[str, str, int, bytes]]


def jpeg(number: int) -> bytes:
    return encoded(Image.new("RGB", (8 + number, 8), (20 * number, 80, 90)))


FILES: Files = {
    f"{name}/{name}_{index}.JPEG": jpeg(4 * label + index)
    for label, name in enumerate(CLASSES)
    for index in range(4)
}
FIRST = next(iter(FILES))
EXPECTED: Contents = [
    (name.removesuffix(".JPEG"), name.split("/")[0], len(data), data)
    for name, data in FILES.items()
]


def write_folder(root: Path, files: Files) -> Path:
    for name, data in files.items():
        write(root / name, data)
    return root


def tar_bytes(files: Files) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


def write(path: Path, data: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def class_tars(files: Files) -> Files:
    """Content of a tar by class."""
    classes = sorted({name.split("/")[0] for name in files})
    return {
        f"{name}.tar": tar_bytes(flat({path: files[path] for path in files if name in path}))
        for name in classes
    }


def shards(files: Files) -> Files:
    """Two WebDataset shards, every second image in each."""
    members: Sequence[Files] = ({}, {})
    for number, (name, data) in enumerate(files.items()):
        label = CLASSES.index(name.split("/")[0])
        members[number % 2][name] = data
        members[number % 2][f"{name.removesuffix('.JPEG')}.cls"] = b"%d" % label
    return {f"train-{number}.tar": tar_bytes(part) for number, part in enumerate(members)}


def write_parquet(root: Path, files: Files) -> Path:
    columns = {
        "image": pa.array(
            [{"bytes": data, "path": name.split("/")[1]} for name, data in files.items()],
            pa.struct([("bytes", pa.binary()), ("path", pa.string())]),
        ),
        "label": pa.array([name.split("/")[0] for name in files], pa.string()),
    }
    root.mkdir(exist_ok=True)
    half = len(files) // 2
    for number, rows in enumerate((slice(None, half), slice(half, None))):
        part = {name: column[rows] for name, column in columns.items()}
        pq.write_table(pa.table(part), root / f"train-{number:05}-of-00002.parquet")
    return root


def write_table(root: Path, files: Files) -> Path:
    write_folder(root, files)
    root.mkdir(exist_ok=True)
    with (root / "list.csv").open("w", newline="") as file:
        rows = [(name, name.split("/")[0]) for name in files]
        csv.writer(file).writerows([("path", "label"), *rows])
    return root / "list.csv"


def flat(files: Files) -> Files:
    return {name.split("/")[1]: data for name, data in files.items()}


def write_packed(root: Path, files: Files) -> Path:
    src = write_folder(root / "src", files)
    Pack(src=src, data=root / "DATA", samples_per_shard=5, order="source").run()
    return root / "DATA"


def copy(path: Path, name: str) -> None:
    shutil.copy(path, path.with_name(name))


def append_row(table: Path) -> None:
    with table.open("a") as file:
        file.write(f"{FIRST},{CLASSES[0]}\n")


def repeat_parquet(src: Path) -> None:
    for number, path in enumerate(sorted(src.iterdir())):
        path.rename(src / f"train-{number}.parquet")
    copy(src / "train-0.parquet", "train-2.parquet")


def hide(path: Path) -> None:
    """Put a link that leads nowhere in place of a file."""
    path.unlink()
    path.symlink_to("gone")


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


@dataclass(frozen=True)
class Layout:
    """How to make a source of this layout, and what may happen to it."""

    make: Callable[[Path, Files], Path]
    find: Callable[[Path, SourceOptions], Source]
    held_by: str
    """The file below the source, or beside it, that holds the first image."""
    repeat: Callable[[Path], object] | None = None
    """Add an image whose key is there already."""
    damage: Callable[[Path], None] = cut
    """Spoil the file that holds the first image."""

    def holder(self, src: Path) -> Path:
        return (src if src.is_dir() else src.parent) / self.held_by


REPEATED: Files = {**FILES, FIRST.replace(".JPEG", ".jpg"): FILES[FIRST]}
LAYOUTS = {
    "folder": Layout(
        write_folder, find_folder, FIRST,
        lambda src: copy(src / FIRST, f"{CLASSES[0]}_0.jpg"), hide,
    ),
    "tar of class tars": Layout(
        lambda root, files: write(root / "train.tar", tar_bytes(class_tars(files))),
        find_class_tars, "train.tar",
        lambda src: src.write_bytes(tar_bytes(class_tars(REPEATED))),
    ),
    "folder of class tars": Layout(
        lambda root, files: write_folder(root, class_tars(files)), find_class_tars,
        f"{CLASSES[0]}.tar",
        lambda src: write_folder(src, class_tars(REPEATED)),
    ),
    "tar of a tree": Layout(
        lambda root, files: write(root / "train.tar", tar_bytes(files)), find_class_tars,
        "train.tar", lambda src: src.write_bytes(tar_bytes(REPEATED)),
    ),
    "webdataset": Layout(
        lambda root, files: write_folder(root, shards(files)), find_webdataset, "train-0.tar",
        lambda src: copy(src / "train-0.tar", "train-2.tar"),
    ),
    "parquet": Layout(write_parquet, find_parquet, "train-00000-of-00002.parquet", repeat_parquet),
    "table": Layout(write_table, find_table, FIRST, append_row, hide),
    "ilsvrc folder": Layout(
        lambda root, files: write_folder(root, flat(files)), find_validation,
        f"{CLASSES[0]}_0.JPEG", damage=hide,
    ),
    "ilsvrc tar": Layout(
        lambda root, files: write(root / "val.tar", tar_bytes(flat(files))), find_validation,
        "val.tar",
    ),
    "packed": Layout(write_packed, find_packed, "shard-000000.tar"),
}  # fmt: skip
every_layout = pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS.keys())
# A data set is packed from images whose keys differ, and its manifest guards its shards.
found_elsewhere = pytest.mark.parametrize(
    "layout", [pytest.param(one, id=name) for name, one in LAYOUTS.items() if name != "packed"]
)
with_repeats = pytest.mark.parametrize(
    "layout", [pytest.param(one, id=name) for name, one in LAYOUTS.items() if one.repeat]
)


@pytest.fixture
def options(tmp_path: Path, request: pytest.FixtureRequest) -> SourceOptions:
    """What the layouts need to be read: names of labels, a spool, the labels of flat images."""
    named = SourceOptions(class_names=CLASSES, spool=tmp_path / "spool")
    if request.getfixturevalue("layout").find is not find_validation:
        return named
    lines = "".join(f"{name.split('/')[1]} {name.split('/')[0]}\n" for name in FILES)
    return replace(named, truth=write(tmp_path / "truth.txt", lines.encode()))


@pytest.fixture
def src(layout: Layout, tmp_path: Path) -> Path:
    return layout.make(tmp_path / "src", FILES)


def contents(source: Source) -> Contents:
    return [
        (sample.key, source.classes[sample.label], sample.size, source.contents.read(sample))
        for sample in source.samples(range(len(source)))
    ]


def refusal(layout: Layout, src: Path, options: SourceOptions) -> CoresetError:
    """The error of a source that is refused: one line of a fact and a remedy."""
    with pytest.raises((UsageError, DataError)) as caught:
        contents(layout.find(src, options))
    assert "\n" not in str(caught.value)
    assert ";" in str(caught.value)
    return caught.value


@every_layout
def test_the_images_of_a_folder_are_found_in_key_order_with_their_labels(layout, src, options):
    source = layout.find(src, options)
    assert contents(source) == EXPECTED
    assert (source.classes, source.skipped, source.unreadable) == (CLASSES, (), {})
    assert np.bincount(source.row_labels).tolist() == [4, 4, 4]
    again = find(src, options)
    assert contents(again) == EXPECTED
    assert again.list_sha256() == source.list_sha256()
    assert again.state_sha256() == source.state_sha256()


@every_layout
def test_a_file_that_is_written_again_changes_the_state_and_not_the_list(layout, src, options):
    before = layout.find(src, options)
    os.utime(layout.holder(src), (1, 1))
    after = layout.find(src, options)
    assert after.list_sha256() == before.list_sha256()
    assert after.state_sha256() != before.state_sha256()
    if layout.find is not find_parquet:  # whose images are read from the spool
        with pytest.raises(UsageError, match="changed while it was being packed; "):
            before.contents.read(before.sample(0))


@every_layout
def test_only_the_chosen_classes_are_found(layout, src, options):
    chosen = layout.find(src, replace(options, only=CLASSES[::2]))
    assert chosen.classes == CLASSES[::2]
    assert contents(chosen) == [row for row in EXPECTED if row[1] in CLASSES[::2]]
    error = refusal(layout, src, replace(options, only=(CLASSES[0], ABSENT)))
    assert f"class {ABSENT} is not in" in str(error)
    assert "(1 of 2 asked for are not); name another class list or source" in str(error)


@found_elsewhere
def test_a_single_class_is_taken_only_if_it_is_asked_for(layout, tmp_path, options):
    single = {name: data for name, data in FILES.items() if name.startswith(CLASSES[0])}
    src = layout.make(tmp_path / "src", single)
    if options.truth is not None:
        lines = [line for line in options.truth.read_text().splitlines() if CLASSES[0] in line]
        options.truth.write_text("\n".join(lines))
    assert contents(layout.find(src, options)) == EXPECTED[:4]
    error = refusal(layout, src, replace(options, one_class=False))
    assert f"holds a single class, {CLASSES[0]}; " in str(error)
    assert str(error).endswith("or pack one class with --one-class")
    asked = replace(options, one_class=False, only=(CLASSES[0],))
    assert len(layout.find(src, asked)) == 4


@with_repeats
def test_a_repeated_key_is_refused_or_its_first_image_is_kept(layout, src, options):
    assert layout.repeat is not None
    layout.repeat(src)
    error = refusal(layout, src, options)
    assert f"have the same sample key {EXPECTED[0][0]}; rename or remove one" in str(error)
    kept = layout.find(src, replace(options, repeats="first"))
    assert contents(kept) == EXPECTED
    assert any(phrase.endswith("whose key was there already") for phrase in kept.skipped)


@found_elsewhere
def test_a_source_without_images_is_refused(layout, tmp_path, options):
    src = layout.make(tmp_path / "src", {})
    if not src.exists():
        src.mkdir()
    error = refusal(layout, src, options)
    assert isinstance(error, UsageError)
    assert str(src) in str(error)


@every_layout
def test_a_damaged_source_is_refused_with_the_file(layout, src, options):
    layout.damage(layout.holder(src))
    assert Path(layout.held_by).name in str(refusal(layout, src, options))


def test_what_is_no_source_is_refused(tmp_path):
    for path, fact in (
        (tmp_path / "nowhere", "does not exist; "),
        (write(tmp_path / "notes.md", b"nothing"), "neither a folder, a tar"),
    ):
        with pytest.raises(UsageError, match=fact):
            find(path, SourceOptions())


def test_synthetic_images_are_a_source():
    synthetic = Synthetic(images=30, classes=3, size=16)
    first, second = synthetic_source(synthetic), synthetic_source(synthetic)
    images = {key: synthetic.jpeg(position) for position, key in enumerate(synthetic.keys)}
    assert first.keys == sorted(images)
    assert first.classes == synthetic.class_names
    assert [row[1] for row in contents(first)] == [key.split("/")[0] for key in first.keys]
    assert {key: data for key, _, _, data in contents(first)} == images
    assert second.list_sha256() == first.list_sha256()
    assert second.state_sha256() == first.state_sha256()
    np.testing.assert_array_equal(np.sort(first.labels), first.labels)


@pytest.mark.parametrize("name", ["tar of class tars", "parquet", "table", "packed"])
def test_every_layout_packs_to_the_same_shards(tmp_path, name):
    srcs = (LAYOUTS[name].make(tmp_path / "src", FILES), write_folder(tmp_path / "folder", FILES))
    for number, src in enumerate(srcs):
        Pack(src=src, data=tmp_path / f"DATA-{number}").run()
    packed, expected = (Manifest.read(tmp_path / f"DATA-{number}") for number in (0, 1))
    assert (packed.identity, packed.shards) == (expected.identity, expected.shards)
    assert not list(tmp_path.glob(".*"))  # no spool is left


@pytest.mark.parametrize("to", ["imagefolder", "webdataset", "parquet"])
def test_what_export_writes_is_found_again(packed, tmp_path, to):
    Export(source=packed, out=tmp_path / "OUT", to=to).run()
    options = SourceOptions(spool=tmp_path / "spool")
    again, expected = (find(src, options) for src in (tmp_path / "OUT", packed))
    assert sorted(row[1:] for row in contents(again)) == sorted(r[1:] for r in contents(expected))
    assert (again.keys == expected.keys) is (to != "webdataset")  # whose keys are the ids


def find_pairs(src: Path, options: SourceOptions) -> Source:
    """A format of its own: pairs of files, ``NAME.class`` and ``NAME.picture``."""
    finder = Finder(place=src, repeats=options.repeats)
    for path in sorted(src.glob("*.picture")):
        name, status = path.with_suffix(".class").read_text(), path.stat()
        state = status.st_size, status.st_mtime_ns
        finder.add([Found(name, f"{name}/{path.stem}", path.name, *state)])
    return finder.source(partial(FileContents, src))


def test_a_format_is_added_by_one_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    pairs = (lambda src, _: any(src.glob("*.picture")), find_pairs)
    monkeypatch.setattr(detect, "FORMATS", [pairs, *detect.FORMATS])
    for name, data in flat(FILES).items():
        write(tmp_path / "src" / name.replace(".JPEG", ".picture"), data)
        write(tmp_path / "src" / name.replace(".JPEG", ".class"), name.split("_")[0].encode())
    Pack(src=tmp_path / "src", data=tmp_path / "DATA").run()
    assert contents(find_packed(tmp_path / "DATA")) == EXPECTED
