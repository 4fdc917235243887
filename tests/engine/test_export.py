"""Exports as other programs see them: torchvision, timm, webdataset and pyarrow read them back."""

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import tyro

from coreset.engine.artifacts.ledger import read_ledger
from coreset.engine.condensed.condensed_set import open_set
from coreset.engine.condensed.methods.kmeans import KmeansParameters
from coreset.engine.stages.distill import Distill
from coreset.engine.stages.export import Export
from coreset.engine.stages.pack import Pack
from coreset.shards.errors import ManifestError, UsageError
from coreset.shards.export import FORMATS, ImageFormat, ListFormat
from coreset.shards.format.dataset import Dataset, Manifest
from coreset.shards.format.files import temporary_name


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


def files_of(images):
    return sorted((label, Path(path).read_bytes()) for path, label in images.samples)


def test_torchvision_and_timm_read_the_packed_images_under_their_labels(packed, exported):
    from timm.data.readers.reader_image_folder import ReaderImageFolder
    from torchvision.datasets import ImageFolder

    folder, dataset = exported / "imagefolder", Dataset.open(packed)
    images = ImageFolder(str(folder))
    assert tuple(images.classes) == dataset.classes
    assert files_of(images) == sorted(stored(dataset))
    reader = ReaderImageFolder(str(folder), class_map="classes.txt", input_key=".jpg;.png;.webp")
    assert len(reader.samples) == 60
    assert list(reader.class_to_idx) == list(dataset.classes)


def test_what_was_exported_packs_into_the_same_data_set(packed, exported, tmp_path):
    Pack(src=exported / "imagefolder", data=tmp_path / "DATA", samples_per_shard=16).run()
    again, before = Manifest.read(tmp_path / "DATA"), Manifest.read(packed)
    assert (again.identity, again.content) == (before.identity, before.content)


def test_relabelled_images_lie_in_the_folder_of_their_label_and_none_is_lost(photos, tmp_path):
    from torchvision.datasets import ImageFolder

    moved = {"n01440764": "n01440764", "n02102040": "n01440764", "n02979186": "n02102040"}
    rows = [f"{path.relative_to(photos)},{moved[path.parent.name]}" for path in photos.glob("*/*")]
    (tmp_path / "labels.csv").write_text("\n".join(["path,noisy", *rows]))
    data, out = tmp_path / "DATA", tmp_path / "OUT"
    lines = Pack(src=photos, data=data, labels=tmp_path / "labels.csv", column="noisy").run().lines
    assert lines[0].startswith("warning: 1 of 3 classes have no samples, such as n02979186: none")
    lines = export(data, out, "imagefolder")
    assert lines[0].startswith("warning: 1 classes have no images, such as n02979186; torchvision ")
    with pytest.raises(FileNotFoundError, match="n02979186"):
        ImageFolder(str(out))
    assert files_of(ImageFolder(str(out), allow_empty=True)) == sorted(stored(Dataset.open(data)))
    assert (out / "n01440764" / "%2Fn02102040%2Fphoto_000.png").is_file()


# webdataset leaves the tar files that it opens to the garbage collector.
@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_timm_finds_the_shards_by_the_info_and_reads_every_image(packed, exported):
    from timm.data.readers.reader_wds import ReaderWds

    shards = exported / "webdataset"
    reader = ReaderWds(str(shards), split="train")
    assert reader.split_info.shard_lengths == (25, 25, 10)
    assert reader.split_info.num_samples == reader.num_samples == 60
    images = [(label, image.size) for image, label in reader]
    rows = Dataset.open(packed).samples.to_pylist()
    assert images == [(row["label"], (row["width"], row["height"])) for row in rows]
    info = json.loads((shards / "_info.json").read_bytes())
    assert tuple(info["class_names"]) == Dataset.open(packed).classes
    assert info["num_classes"] == 3


def test_parquet_rows_are_the_stored_images(packed, exported):
    tables = exported / "parquet"
    files = sorted(path.relative_to(tables).as_posix() for path in tables.rglob("*.parquet"))
    assert files == [f"data/train-{number:05d}-of-00003.parquet" for number in range(3)]
    rows = [row for file in files for row in pq.read_table(tables / file).to_pylist()]
    dataset = Dataset.open(packed)
    assert [(row["label"], row["image"]["bytes"]) for row in rows] == stored(dataset)
    names = [row["image"]["path"] for row in rows]
    assert [name.rpartition(".")[0] for name in names] == dataset.keys


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
def test_an_export_of_a_coreset_is_made_once_and_twice_alike(
    packed, random_set, tmp_path, stored_bytes, to
):
    out = tmp_path / "OUT"
    assert export(random_set, out, to)[0] == f"6 images of 3 classes written as {to}: {out}"
    export(random_set, tmp_path / "AGAIN", to)
    assert stored_bytes(out) == stored_bytes(tmp_path / "AGAIN")
    condensed = open_set(random_set)
    packed_bytes = b"".join(path.read_bytes() for path in sorted(out.rglob("*")) if path.is_file())
    is_inside = [image in packed_bytes for _, image in stored(Dataset.open(packed))]
    assert np.flatnonzero(is_inside).tolist() == condensed.ids.tolist()
    assert [line["stage"] for line in read_ledger(out)] == ["pack", "select", "export"]
    assert read_ledger(out)[-1]["images"] == 6


@every_image_format
def test_a_damaged_image_is_named_and_nothing_is_left(damaged, tmp_path, to):
    key = Dataset.open(damaged).keys[20]
    with pytest.raises(ManifestError, match=f":{key} is not the image that was packed"):
        export(damaged, tmp_path / "OUT", to)
    assert not (tmp_path / "OUT").exists()
    assert not temporary_name(tmp_path / "OUT").exists()


@pytest.mark.parametrize("to", ["paths", "ids"])
def test_a_list_is_written_once_and_never_over_another(packed, random_set, tmp_path, to):
    out, condensed = tmp_path / "list.txt", open_set(random_set)
    sources = condensed.dataset.samples["source"].take(condensed.ids).to_pylist()
    first, last = export(random_set, out, to)
    assert first == f"6 images of 3 classes written as a list of {to}: {out}"
    assert last == f"next: coreset ingest {out} SET --data {condensed.dataset.path}"
    expected = sources if to == "paths" else list(map(str, condensed.ids))
    assert out.read_text().splitlines() == expected
    assert "are there already" in export(random_set, out, to)[0]
    with pytest.raises(UsageError, match=r"list\.txt exists with other content; remove it"):
        export(packed, out, to)
    assert out.read_text().splitlines() == expected
    assert [path.name for path in tmp_path.iterdir()] == ["list.txt"]


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
