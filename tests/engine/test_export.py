"""Exports as other programs see them: torchvision, timm, webdataset and pyarrow read them back."""

import csv
import io
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import tyro
from PIL import Image

from coreset.engine.artifacts.ledger import read_ledger
from coreset.engine.artifacts.provenance import Provenance
from coreset.engine.condensed.condensed_set import open_set
from coreset.engine.condensed.methods import KmeansParameters
from coreset.engine.stages.distill import Distill
from coreset.engine.stages.export import Export, stored_samples
from coreset.engine.stages.pack import Pack
from coreset.shards.errors import ManifestError, StoreError, UsageError
from coreset.shards.export.formats import FORMATS
from coreset.shards.export.names import ImageFormat, ListFormat
from coreset.shards.format.dataset import Dataset
from coreset.shards.format.files import temporary_name
from coreset.shards.format.manifest import Manifest

CHECKOUT = Path(__file__).parents[2]


def export(source, out, to, **options):
    """Run the command line's parser and the stage; returns the lines."""
    words = [str(source), str(out), "--to", to]
    for name, value in options.items():
        words += [f"--{name.replace('_', '-')}", str(value)]
    return tyro.cli(Export, args=words).run().lines


def stored(dataset, ids=None):
    """(label, stored bytes) of samples, read by offset from the tar files."""
    rows = dataset.samples.take(np.arange(len(dataset)) if ids is None else ids).to_pylist()
    tars = [path.read_bytes() for path in dataset.shard_paths()]
    return [
        (row["label"], tars[row["shard"]][row["offset"] : row["offset"] + row["bytes"]])
        for row in rows
    ]


every_image_format = pytest.mark.parametrize("to", ["imagefolder", "webdataset", "parquet"])


@pytest.fixture(scope="module")
def exported(packed, tmp_path_factory):
    """Folder of exports of ``packed`` in all image formats."""
    place = tmp_path_factory.mktemp("exported")
    for to in ("imagefolder", "webdataset", "parquet"):
        export(packed, place / to, to, samples_per_shard=25)
    return place


@pytest.fixture
def folder(exported):
    return exported / "imagefolder"


@pytest.fixture
def shards(exported):
    return exported / "webdataset"


@pytest.fixture
def tables(exported):
    return exported / "parquet"


@pytest.fixture(scope="module")
def relabelled(photos, tmp_path_factory):
    """The photos with photo_000 of every class, and all of the last class, moved to the first."""
    place = tmp_path_factory.mktemp("relabelled")
    classes = sorted(path.name for path in photos.iterdir())
    with (place / "labels.csv").open("w") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "noisy"])
        for path in photos.glob("*/*"):
            moved = path.stem == "photo_000" or path.parent.name == classes[-1]
            name = classes[0] if moved else path.parent.name
            writer.writerow([path.relative_to(photos).as_posix(), name])
    Pack(src=photos, data=place / "DATA", labels=place / "labels.csv", column="noisy").run()
    return place / "DATA"


def files_of(images):
    return sorted((label, Path(path).read_bytes()) for path, label in images.samples)


# a folder per class


def test_torchvision_reads_the_packed_images_under_their_labels(packed, folder):
    from torchvision.datasets import ImageFolder

    images, dataset = ImageFolder(str(folder)), Dataset.open(packed)
    assert tuple(images.classes) == dataset.classes
    assert files_of(images) == sorted(stored(dataset))


def test_files_are_named_as_they_were_in_the_source_but_for_the_extension(photos, folder):
    names = {path.relative_to(folder).with_suffix("") for path in folder.glob("*/*")}
    assert names == {path.relative_to(photos).with_suffix("") for path in photos.glob("*/*")}
    assert {path.suffix for path in folder.glob("*/*")} == {".jpg", ".png", ".webp"}


def test_what_was_exported_packs_into_the_same_data_set(packed, folder, tmp_path):
    Pack(src=folder, data=tmp_path / "DATA", samples_per_shard=16).run()
    again, before = Manifest.read(tmp_path / "DATA"), Manifest.read(packed)
    assert (again.identity, again.content) == (before.identity, before.content)


def test_timm_takes_the_class_list_as_its_class_map(packed, folder):
    from timm.data.readers.reader_image_folder import ReaderImageFolder

    reader = ReaderImageFolder(str(folder), class_map="classes.txt", input_key=".jpg;.png;.webp")
    assert len(reader.samples) == 60
    assert list(reader.class_to_idx) == list(Dataset.open(packed).classes)


def test_relabelled_images_lie_in_the_folder_of_their_label_and_none_is_lost(relabelled, tmp_path):
    from torchvision.datasets import ImageFolder

    lines = export(relabelled, tmp_path / "OUT", "imagefolder")
    assert lines[0].startswith("warning: 1 classes have no images, such as n02979186; torchvision ")
    with pytest.raises(FileNotFoundError, match="n02979186"):
        ImageFolder(str(tmp_path / "OUT"))
    images = ImageFolder(str(tmp_path / "OUT"), allow_empty=True)
    assert files_of(images) == sorted(stored(Dataset.open(relabelled)))
    assert (tmp_path / "OUT" / "n01440764" / "%2Fn02102040%2Fphoto_000.png").is_file()


# shards


def test_webdataset_reads_id_image_and_label(packed, shards):
    from webdataset.tariterators import group_by_keys, tar_file_expander

    dataset = Dataset.open(packed)
    samples = []
    for path in sorted(shards.glob("*.tar")):
        with path.open("rb") as stream:  # webdataset does not close the files that it opens
            samples += group_by_keys(tar_file_expander([{"url": path.name, "stream": stream}]))
    assert [int(sample["__key__"]) for sample in samples] == list(range(len(dataset)))
    images = [next(s[kind] for kind in ("jpg", "png", "webp") if kind in s) for s in samples]
    labels = [int(sample["cls"]) for sample in samples]
    assert list(zip(labels, images, strict=True)) == stored(dataset)


# webdataset leaves the tar files that it opens to the garbage collector.
@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_timm_finds_the_shards_by_the_info_and_reads_every_image(packed, shards):
    from timm.data.readers.reader_wds import ReaderWds

    reader = ReaderWds(str(shards), split="train")
    assert reader.split_info.shard_lengths == (25, 25, 10)
    assert reader.split_info.num_samples == reader.num_samples == 60
    images = [(label, image.size) for image, label in reader]
    rows = Dataset.open(packed).samples.to_pylist()
    assert images == [(row["label"], (row["width"], row["height"])) for row in rows]
    info = json.loads((shards / "_info.json").read_bytes())
    assert tuple(info["class_names"]) == Dataset.open(packed).classes
    assert info["num_classes"] == 3


# parquet


def test_parquet_rows_are_the_stored_images(packed, tables):
    files = sorted(path.relative_to(tables).as_posix() for path in tables.rglob("*.parquet"))
    assert files == [f"data/train-{number:05d}-of-00003.parquet" for number in range(3)]
    rows = [row for file in files for row in pq.read_table(tables / file).to_pylist()]
    dataset = Dataset.open(packed)
    assert [(row["label"], row["image"]["bytes"]) for row in rows] == stored(dataset)
    names = [row["image"]["path"] for row in rows]
    assert [name.rpartition(".")[0] for name in names] == dataset.keys
    for row in rows[:10]:
        with Image.open(io.BytesIO(row["image"]["bytes"])) as image:
            assert str(image.format).lower().replace("jpeg", "jpg") in row["image"]["path"]


# sets, all or nothing


@every_image_format
def test_a_coreset_exports_only_its_images(random_set, tmp_path, to):
    lines = export(random_set, tmp_path / "OUT", to)
    assert lines[0] == f"6 images of 3 classes written as {to}: {tmp_path / 'OUT'}"
    match to:
        case "imagefolder":
            n_images = len(list((tmp_path / "OUT").glob("*/*")))
        case "webdataset":
            info = json.loads((tmp_path / "OUT" / "_info.json").read_bytes())
            n_images = info["splits"]["train"]["num_samples"]
        case _:
            n_images = len(pq.read_table(tmp_path / "OUT" / "data"))
    assert n_images == 6


def test_a_coreset_is_listed_by_paths_or_ids(random_set, tmp_path):
    condensed = open_set(random_set)
    sources = condensed.dataset.samples["source"].take(condensed.ids).to_pylist()
    for to, expected in (("paths", sources), ("ids", [str(sample) for sample in condensed.ids])):
        lines = export(random_set, tmp_path / to, to)
        assert lines[0].startswith(f"6 images of 3 classes written as a list of {to}: ")
        assert (tmp_path / to).read_text().splitlines() == expected


def test_a_distilled_set_exports_its_own_images(packed, tmp_path):
    Distill(
        data=packed, condensed=tmp_path / "SET", ipc=2, parameters=KmeansParameters(size=8)
    ).run()
    export(tmp_path / "SET", tmp_path / "OUT", "imagefolder")
    files = sorted((tmp_path / "OUT").glob("*/*"))
    assert [path.name for path in files] == ["00000.png", "00001.png"] * 3
    images = sorted(path.read_bytes() for path in files)
    assert images == sorted(image for _, image in stored(Dataset.open(tmp_path / "SET")))


@every_image_format
def test_an_export_is_made_once_and_twice_alike_and_another_is_refused(
    packed, random_set, tmp_path, stored_bytes, to
):
    out = tmp_path / "OUT"
    for name in ("OUT", "AGAIN"):
        export(random_set, tmp_path / name, to)
    assert stored_bytes(out) == stored_bytes(tmp_path / "AGAIN")
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    assert "are there already as" in export(random_set, out, to)[0]
    with pytest.raises(UsageError, match="was made by another configuration"):
        export(packed, out, to)
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before


def test_the_export_knows_its_lineage_and_its_cost(random_set, tmp_path):
    export(random_set, tmp_path / "OUT", "parquet")
    provenance = Provenance.read(tmp_path / "OUT")
    assert (provenance.kind, provenance.inputs[0]["role"]) == ("export", "set")
    assert [ancestor["kind"] for ancestor in provenance.lineage()] == ["set", "dataset"]
    assert [line["stage"] for line in read_ledger(tmp_path / "OUT")] == ["pack", "select", "export"]
    assert read_ledger(tmp_path / "OUT")[-1]["images"] == 6


@every_image_format
def test_a_damaged_image_is_named_and_nothing_is_left(damaged, tmp_path, to):
    key = Dataset.open(damaged).keys[20]
    with pytest.raises(ManifestError, match=f":{key} is not the image that was packed"):
        export(damaged, tmp_path / "OUT", to)
    assert not (tmp_path / "OUT").exists()
    assert not temporary_name(tmp_path / "OUT").exists()


def test_a_list_is_written_once_and_never_over_another(packed, random_set, tmp_path):
    out = tmp_path / "list.txt"
    lines = export(random_set, out, "paths")
    assert lines[-1] == f"next: coreset ingest {out} SET --data {open_set(random_set).dataset.path}"
    before = out.read_bytes()
    assert "are there already" in export(random_set, out, "paths")[0]
    with pytest.raises(UsageError, match=r"list\.txt exists with other content; remove it"):
        export(packed, out, "paths")
    assert out.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["list.txt"]


def test_a_moved_data_set_is_named_by_data(packed, tmp_path):
    from coreset.engine.stages.selection import Select

    data = shutil.copytree(packed, tmp_path / "DATA")
    Select(source=data, condensed=tmp_path / "SET", ipc=1).run()
    data.rename(tmp_path / "MOVED")
    with pytest.raises(UsageError, match="name its place with --data"):
        export(tmp_path / "SET", tmp_path / "OUT", "imagefolder")
    export(tmp_path / "SET", tmp_path / "OUT", "imagefolder", data=tmp_path / "MOVED")
    assert len(list((tmp_path / "OUT").glob("*/*"))) == 3


def test_samples_come_in_the_order_asked_for(packed):
    dataset = Dataset.open(packed)
    ids = np.array([59, 3, 17, 0, 44, 8, 9, 10, 11, 58])
    samples = list(stored_samples(dataset, ids))
    assert [sample.sample_id for sample in samples] == ids.tolist()
    assert [(sample.label, sample.image) for sample in samples] == stored(dataset, ids)
    assert [sample.key for sample in samples] == [dataset.keys[sample_id] for sample_id in ids]


def test_a_class_that_is_called_like_a_file_of_the_artifact_is_refused(photos, tmp_path):
    for name in ("cat", "ledger.jsonl"):
        shutil.copytree(photos / "n01440764", tmp_path / "src" / name)
    Pack(src=tmp_path / "src", data=tmp_path / "DATA").run()
    with pytest.raises(
        UsageError, match=r"^class ledger\.jsonl has the name of a file that every export holds"
    ):
        export(tmp_path / "DATA", tmp_path / "OUT", "imagefolder")
    assert not (tmp_path / "OUT").exists()
    export(tmp_path / "DATA", tmp_path / "OUT", "webdataset")


def test_bad_arguments_are_refused(packed, random_set, tmp_path):
    with pytest.raises(UsageError, match=r"^samples_per_shard must be at least 1, got 0"):
        export(packed, tmp_path / "OUT", "parquet", samples_per_shard=0)
    with pytest.raises(UsageError, match="lies in source"):
        export(random_set, random_set / "OUT", "parquet")
    with pytest.raises(UsageError, match="does not exist; make one with `coreset select`"):
        export(tmp_path / "none", tmp_path / "OUT", "parquet")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="is neither a condensed set nor a packed data set"):
        export(tmp_path / "empty", tmp_path / "OUT", "ids")
    assert [path.name for path in tmp_path.iterdir()] == ["empty"]


def test_a_damaged_coreset_is_refused(random_set, tmp_path):
    copy = shutil.copytree(random_set, tmp_path / "SET")
    np.save(copy / "ids.npy", np.arange(6))
    with pytest.raises(StoreError, match="is not the file that was made"):
        export(copy, tmp_path / "OUT", "ids", data=open_set(random_set).dataset.path)


def write_toy(samples, out, plan):
    for sample in samples:
        (out / f"{plan.split}-{sample.sample_id}.{sample.extension}").write_bytes(sample.image)


def test_a_format_is_added_by_a_row_of_the_registry(
    packed, random_set, tmp_path, coreset, monkeypatch
):
    toy = ImageFormat(summary="toy", write=write_toy, reader='toy.read("{out}", "{split}")')
    keys = ListFormat(
        summary="keys", columns=("key",), content=lambda rows, _: repr(rows["key"]).encode()
    )
    for name, row in (("toy", toy), ("keys", keys)):
        monkeypatch.setitem(FORMATS, name, row)
    out = tmp_path / "OUT"
    assert coreset("export", random_set, out, "--to", "toy").out.splitlines() == [
        f"6 images of 3 classes written as toy: {out}",
        f'next: toy.read("{out}", "train")',
    ]
    condensed = open_set(random_set)
    images = {path.read_bytes() for path in out.glob("train-*")}
    assert images == {image for _, image in stored(condensed.dataset, condensed.ids)}
    coreset("export", packed, tmp_path / "keys.txt", "--to", "keys")
    assert Dataset.open(packed).keys[0] in (tmp_path / "keys.txt").read_text()
    assert "'toy', 'keys'" in coreset("export", packed, out, "--to", "none").err


IMPORTS = """
import sys
from pathlib import Path
from coreset.engine.stages.export import Export
for to in ("imagefolder", "webdataset", "parquet", "paths", "ids"):
    Export(source=Path(sys.argv[1]), out=Path(sys.argv[2]) / to, to=to).run()
assert not {"torch", "webdataset", "timm"} & set(sys.modules)
"""


def test_export_imports_nothing_heavy(random_set, tmp_path):
    command = [sys.executable, "-c", IMPORTS, str(random_set), str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True, check=False, cwd=CHECKOUT)
    assert (result.returncode, result.stderr) == (0, "")
