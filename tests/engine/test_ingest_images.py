"""Sets of images that others made: which class and slot an image gets, and what is refused."""

import io
import json
import tarfile
from collections import defaultdict

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from released_sets import (
    IMAGENETTE,
    LAYOUTS,
    d4m,
    folders,
    image_bytes,
    rded,
    sre2l,
    vlcp,
    wnid,
)
from torch import nn

from coreset.engine.artifacts.writer import lock
from coreset.engine.condensed import class_order
from coreset.engine.condensed.condensed_set import open_set
from coreset.engine.condensed.imported import ORDERS
from coreset.engine.models.teachers import Teacher
from coreset.shards.format.classes import IMAGENET_100_CMC_WNIDS, IMAGENET_100_WNIDS, class_list
from coreset.shards.format.dataset import Dataset
from coreset.shards.layouts import Wanted, find_set


def write(folder, files):
    for name, data in files:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def write_tar(path, files):
    with tarfile.open(path, "w") as tar:
        for name, data in files:
            member = tarfile.TarInfo(f"./{name}")
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return path


def slots_by_class(path):
    """The (class index, slot) that each image shows by its size, in the set's own order."""
    dataset = Dataset.open(path)
    table = dataset.table(["width", "height", "class"]).to_pylist()
    found = defaultdict(list)
    for row in table:
        found[row["class"]].append((row["width"] - 20, row["height"] - 30))
    return dict(found)


def as_made(classes, ipc, first=0):
    return {name: [(c, first + slot) for slot in range(ipc)] for c, name in enumerate(classes)}


@pytest.mark.parametrize("kind", ["folder", "tar"])
@pytest.mark.parametrize("name", LAYOUTS)
def test_every_layout_gives_its_classes_and_its_slots_in_numeric_order(
    *, name, kind, tmp_path, done, stored_samples
):
    generate, layout = LAYOUTS[name]
    files = list(generate(IMAGENETTE, 12))
    source = tmp_path / ("SRC" if kind == "folder" else "SRC.tar")
    (write if kind == "folder" else write_tar)(source, files)
    lines = done("ingest", source, tmp_path / "SET")
    assert lines[0] == f"layout {layout}"
    assert "short sides of 20 to 29 px" in " ".join(lines)
    assert slots_by_class(tmp_path / "SET") == as_made(IMAGENETTE, 12)
    stored = {data for _, data in stored_samples(tmp_path / "SET")}
    assert stored == {data for name, data in files if not name.endswith(".txt")}
    info = open_set(tmp_path / "SET").info
    assert (info.ipc, info.per_class, info.kind) == (12, (12,) * 10, "distilled")
    assert (info.source_name, info.source_identity) == ("imagenette", "")
    assert info.origin["layout"] == layout
    assert info.origin.get("archive_sha256", "").isalnum() is (kind == "tar")
    if layout != "folders":
        assert info.origin["slots"] == "0 to 11"


def test_the_same_again_does_nothing_and_another_part_is_refused(tmp_path, done, coreset):
    source = write(tmp_path / "SRC", wnid(IMAGENETTE, 3))
    done("ingest", source, tmp_path / "SET")
    assert "are there already" in done("ingest", source, tmp_path / "SET")[-2]
    ended = coreset("ingest", source, tmp_path / "SET", "--ipc", 2)
    assert ended.code == 2
    assert "was made by another configuration" in ended.err


@pytest.mark.parametrize("above", ["dataset_{}/", "imagenet1k_{}0ipc/", "x/y_{}/"])
def test_replicas_stay_apart(tmp_path, done, refused, above):
    files = [
        (name, data) for r in (1, 2) for name, data in wnid(IMAGENETTE, r, above=above.format(r))
    ]
    source = write(tmp_path / "SRC", files)
    first, second = (above.format(r).rstrip("/") for r in (1, 2))
    said = refused(tmp_path, "ingest", source, tmp_path / "SET")
    assert f"holds 2 sets ({first}, {second})" in said
    done("ingest", source, tmp_path / "SET", "--replica", second)
    assert slots_by_class(tmp_path / "SET") == as_made(IMAGENETTE, 2)
    assert open_set(tmp_path / "SET").info.origin["replica"] == second
    assert "holds no set third; it has" in refused(
        tmp_path, "ingest", source, tmp_path / "NEW", "--replica", "third"
    )


def test_the_seeds_of_vlcp_are_replicas(tmp_path, done):
    above = "imagenette_ipc10_10_s0.7_g10.0_kmexpand1"
    for seed, ipc in (("", 1), ("_seed1", 2)):
        write(tmp_path / "SRC", vlcp(IMAGENETTE, ipc, above=f"{above}{seed}/"))
    done("ingest", tmp_path / "SRC", tmp_path / "SET", "--replica", f"{above}_seed1")
    assert open_set(tmp_path / "SET").info.ipc == 2


def test_ipc_takes_the_first_slots_and_says_which(tmp_path, done, refused):
    source = write(tmp_path / "SRC", d4m(IMAGENETTE, 12))
    done("ingest", source, tmp_path / "SET", "--ipc", 11)
    assert slots_by_class(tmp_path / "SET") == as_made(IMAGENETTE, 11)
    assert open_set(tmp_path / "SET").info.origin["slots"] == "0 to 10"
    said = refused(tmp_path, "ingest", source, tmp_path / "NEW", "--ipc", 13)
    assert "got 13, but class n01440764 of" in said
    assert refused(tmp_path, "ingest", source, tmp_path / "NEW", "--ipc", 0)


@pytest.mark.parametrize("named", [False, True])
def test_a_part_of_imagenet_is_marked_as_such(tmp_path, done, named):
    """By numbers of 1,000 classes or by wnids."""
    wnids = class_list("imagenet-1k")
    source = write(tmp_path / "SRC", (wnid if named else sre2l)(wnids, 1))
    done("ingest", source, tmp_path / "SET", "--classes", "imagenette")
    indices = [wnids.index(name) for name in IMAGENETTE]
    found = slots_by_class(tmp_path / "SET")
    assert found == {n: [(i, 0)] for n, i in zip(IMAGENETTE, indices, strict=True)}
    info = open_set(tmp_path / "SET").info
    assert (info.source_name, info.origin["derived_from"]) == ("imagenette", "imagenet-1k")


def test_classes_may_be_numbered_as_in_the_list_of_cmc(tmp_path, done):
    source = write(tmp_path / "SRC", rded(IMAGENET_100_CMC_WNIDS, 1))
    done("ingest", source, tmp_path / "SET", "--order", "cmc")
    found = slots_by_class(tmp_path / "SET")
    assert found == as_made(IMAGENET_100_CMC_WNIDS, 1)
    assert tuple(sorted(found)) == Dataset.open(tmp_path / "SET").classes == IMAGENET_100_WNIDS


def test_classes_may_be_those_of_a_data_set(packed, tmp_path, done):
    source = write(tmp_path / "SRC", sre2l(range(3), 2))
    done("ingest", source, tmp_path / "SET", "--data", packed, "--method", "theirs")
    dataset, condensed = Dataset.open(packed), open_set(tmp_path / "SET")
    assert slots_by_class(tmp_path / "SET") == as_made(dataset.classes, 2)
    assert condensed.info.method == "theirs"
    assert condensed.info.source_name == dataset.manifest.name
    assert condensed.info.source_identity == dataset.manifest.identity


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_numbers_of_classes_and_slots_come_back(tmp_path_factory, data):
    generate, layout = data.draw(st.sampled_from([*LAYOUTS.values()][:7]))
    n, ipc = data.draw(st.integers(1, 13)), data.draw(st.integers(1, 12))
    names = [f"n{9_000_000 + 7 * c:08d}" for c in range(n)]
    files = list(generate(names, ipc))
    files = data.draw(st.permutations(files))
    taken = data.draw(st.none() | st.integers(1, ipc))
    root = write(tmp_path_factory.mktemp("sets"), files)
    laid = find_set(root, Wanted(numbering=lambda _: names, ipc=taken))
    assert laid is not None
    assert laid.layout == layout
    expected = [f"{name}/{slot:05d}" for name in names for slot in range(taken or ipc)]
    assert laid.source.keys == expected
    assert laid.source.labels.tolist() == np.repeat(range(n), taken or ipc).tolist()
    at = {name: stored for name, stored in files if not name.endswith(".txt")}
    slots = [(c, s) for c in range(n) for s in range(taken or ipc)]
    for sample, (c, s) in zip(laid.source.samples(range(len(slots))), slots, strict=True):
        with Image.open(io.BytesIO(at[sample.name])) as image:
            assert image.size == (20 + c, 30 + s)
        assert laid.source.contents.read(sample) == at[sample.name]


def test_an_exported_set_comes_back_as_the_same_set(packed, tmp_path, done):
    done("distill", packed, tmp_path / "MADE", "--ipc", 3, "--size", 9)
    done("export", tmp_path / "MADE", tmp_path / "OUT", "--to", "imagefolder")
    done("ingest", tmp_path / "OUT", tmp_path / "SET", "--data", packed)
    made, taken = (Dataset.open(tmp_path / name) for name in ("MADE", "SET"))
    assert (taken.manifest.identity, taken.manifest.content) == (
        made.manifest.identity,
        made.manifest.content,
    )
    assert open_set(tmp_path / "SET").labels.tolist() == open_set(tmp_path / "MADE").labels.tolist()


def test_parquet_of_the_hub_is_read_in_row_order(tmp_path, done):
    rows = [(c, s) for s in range(3) for c in range(10)]
    images = [{"bytes": image_bytes(c, s, "JPEG"), "path": None} for c, s in rows]
    (tmp_path / "SRC/data").mkdir(parents=True)
    table = pa.table({"image": images, "label": [c for c, _ in rows]})
    pq.write_table(table, tmp_path / "SRC/data/train-00000-of-00001.parquet")
    done("ingest", tmp_path / "SRC", tmp_path / "SET", "--classes", "imagenette", "--ipc", 2)
    assert slots_by_class(tmp_path / "SET") == as_made(IMAGENETTE, 2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["SET", "SRC"]


@pytest.mark.parametrize("levels", [False, True])
def test_tensors_are_read_where_they_are_named(tmp_path, done, refused, levels, stored_samples):
    images = torch.arange(20 * 3 * 8 * 8).reshape(20, 3, 8, 8).remainder(251)
    labels = torch.arange(10).repeat(2)
    pixels = images.to(torch.uint8) if levels else images / 255
    torch.save({"images": pixels, "labels": labels}, tmp_path / "SET.pt")
    assert refused(tmp_path, "ingest", tmp_path / "SET.pt", tmp_path / "A")
    command = ("ingest", tmp_path / "SET.pt", tmp_path / "A", "--layout", "tensors")
    done(*command, "--classes", "imagenette")
    samples = sorted(stored_samples(tmp_path / "A"), key=lambda sample: sample[0]["key"])
    found = [np.asarray(Image.open(io.BytesIO(data))) for _, data in samples]
    expected = images.permute(0, 2, 3, 1).numpy()[np.argsort(labels.numpy(), kind="stable")]
    assert np.array_equal(np.stack(found), expected)
    torch.save({"images": pixels * 1.0 - 2, "labels": labels}, tmp_path / "SET.pt")
    said = refused(tmp_path, *command[:2], tmp_path / "B", *command[3:])
    assert "expected uint8, or 0 to 1" in said
    info = open_set(tmp_path / "A").info
    assert (info.method, info.origin["layout"]) == ("imported", "tensors")
    assert info.origin["slots"] == "in the order of the rows"


BLACK = torch.zeros(10, 3, 8, 8, dtype=torch.uint8)
BAD_TENSORS = {
    "none": (BLACK[:0], torch.arange(0), "images of shape (0, 3, 8, 8)"),
    "no height": (BLACK[:, :, :0], torch.arange(10), "images of shape (10, 3, 0, 8)"),
    "complex": (BLACK * 1j, torch.arange(10), "(torch.complex64)"),
    "fractions": (BLACK, torch.arange(10) / 2, "labels such as 0.0; expected class numbers"),
    "negative": (BLACK, torch.arange(-1, 9), "labels such as -1; expected class numbers"),
    "endless": (BLACK, torch.arange(10) + 2**50, f"labels such as {2**50}; expected"),
    "NaN": (BLACK * torch.nan, torch.arange(10), "pixels from nan to nan"),
    "half": (BLACK[:9], torch.arange(9), "SRC.pt has no images of class n03888257"),
}


@pytest.mark.parametrize("fault", BAD_TENSORS)
def test_tensors_that_are_no_images_are_refused(tmp_path, refused, fault):
    images, labels, reason = BAD_TENSORS[fault]
    torch.save({"images": images, "labels": labels}, tmp_path / "SRC.pt")
    command = ("ingest", tmp_path / "SRC.pt", tmp_path / "SET", "--layout", "tensors")
    said = refused(tmp_path, *command, "--classes", "imagenette")
    assert reason in said
    assert "spool" not in said


@pytest.mark.parametrize("kind", ["parquet", "tensors"])
def test_the_copies_of_another_process_are_left_alone(tmp_path, coreset, kind):
    spool, out = tmp_path / ".SET.spool", tmp_path / "SET"
    if kind == "tensors":
        source, options, held = tmp_path / "SRC.pt", ("--layout", "tensors"), spool
        torch.save({"images": BLACK, "labels": torch.arange(10)}, source)
    else:
        source, options, held = tmp_path / "SRC.parquet", (), out
        images = [{"bytes": image_bytes(c, 0, "JPEG"), "path": None} for c in range(10)]
        pq.write_table(pa.table({"image": images, "label": range(10)}), source)
    spool.mkdir()
    (spool / "theirs").write_bytes(b"")
    command = ("ingest", source, out, "--classes", "imagenette", *options)
    with lock(held):
        ended = coreset(*command)
    assert ended.code == 5
    assert "is being written by process" in ended.err
    assert (spool / "theirs").is_file()
    assert coreset(*command).code == 0
    assert not spool.exists()


def test_remedies_name_options_of_this_command(tmp_path, refused):
    table = pa.table({"image": [{"bytes": NETTE[0][1], "path": None}], "label": [0]})
    pq.write_table(table, tmp_path / "SRC.parquet")
    command = ("ingest", tmp_path / "SRC.parquet", tmp_path / "SET")
    assert "without names; name a class list with --classes" in refused(tmp_path, *command)
    source = write(tmp_path / "SRC", BAD["twice"][0])
    assert "--duplicates" not in refused(tmp_path, "ingest", source, tmp_path / "SET")


@pytest.mark.parametrize("option", ["--ipc 1", "--classes imagenette", "--order text"])
def test_a_list_takes_no_options_of_images(packed, tmp_path, refused, option):
    (tmp_path / "LIST").write_text("0\n")
    command = ("ingest", tmp_path / "LIST", tmp_path / "SET", "--data", packed)
    said = refused(tmp_path, *command, *option.split())
    assert f"a list of samples takes no {option.split()[0]}; leave it out" in said


def test_classes_other_than_those_of_the_data_set_are_refused(packed, tmp_path, refused):
    names = Dataset.open(packed).classes
    source = write(tmp_path / "SRC", folders(names, 1))
    (tmp_path / "two.txt").write_text("\n".join(names[:2]))
    options = ("--data", packed, "--classes", tmp_path / "two.txt")
    said = refused(tmp_path, "ingest", source, tmp_path / "SET", *options)
    assert "leave out --classes or --data" in said


class Shades(nn.Module):
    """Sees the class in an image's brightness: 20 levels a class."""

    def forward(self, images):
        return -(images.mean(dim=(1, 2, 3)) * 255 / 20 - torch.arange(12.0)[:, None]).abs().T


def test_a_teacher_names_the_order_of_classes_that_fits(tmp_path, done, refused, monkeypatch):
    names = [f"n{c:08d}" for c in range(12)]
    (tmp_path / "classes.txt").write_text("\n".join(names))
    right = ORDERS["text"](names)
    for number, name in enumerate(right):
        folder = tmp_path / "SRC" / f"{number:05d}"
        folder.mkdir(parents=True)
        shade = 20 * names.index(name)
        Image.new("RGB", (64, 64), (shade,) * 3).save(folder / f"class{number:05d}_id00000.png")
    order = torch.arange(12)[None]
    teacher = Teacher(
        name="shades", source=tmp_path, digest="", network=Shades(), mean=(0, 0, 0), std=(1, 1, 1),
        orders=order,
    )  # fmt: skip
    monkeypatch.setattr(class_order, "load_teachers", lambda *_: (teacher,))
    command = ("ingest", tmp_path / "SRC", tmp_path / "SET", "--classes", tmp_path / "classes.txt")
    said = refused(tmp_path, *command, "--teacher", "shades", code=3)
    assert "numbered in the order text, not sorted; use --order text" in said
    lines = done(*command, "--teacher", "shades", "--order", "text")
    assert "teacher shades: top-1 100.0 % of 12 images" in lines
    assert lines[2] == "warning: 12 images are of nearly one colour, such as n00000000/00000"


def test_copies_are_told(tmp_path, done):
    files = list(wnid(IMAGENETTE, 2))
    files[5] = (files[5][0], files[0][1])
    lines = done("ingest", write(tmp_path / "SRC", files), tmp_path / "SET")
    assert "warning: 2 images have an exact copy in the set, such as n01440764/00000" in lines


def without(files, *names):
    return [(name, data) for name, data in files if name not in names]


NETTE = list(wnid(IMAGENETTE, 3))
BAD = {
    "unknown": ([("a.png", b""), ("b.png", b"")], "are of no known layout; expected new003/"),
    "no images": ([("readme.md", b"")], "holds no images; name a folder or tar with new003/"),
    "mixed": ([*NETTE, *rded(IMAGENETTE, 1)], "mixes layouts: 10 images as rded (00000/class"),
    "foreign": ([*NETTE, ("x/y.png", b"")], "30 images as wnid (n01440764/0.png) and 1 others (x/"),
    "hole": (
        without(NETTE, *(f"{name}/1.png" for name in IMAGENETTE)),
        "lacks image 1 of class n01440764, which has 0 to 2",
    ),
    "half": (NETTE[:-1], "got 2 of class n03888257 and 3 of n01440764"),
    "twice": ([*NETTE, ("n01440764/02.png", NETTE[2][1])], "have the same sample key"),
    "unicode digits": ([*NETTE, ("n01440764/٣.png", b"")], "and 1 others (n01440764/٣.png)"),
    "endless slot": (
        [*NETTE, (f"n01440764/{10**20 - 1}.png", b"")],
        "n01440764/99999999999999999999.png has slot 99999999999999999999, not below 100,000",
    ),
    "endless class": (
        [("new999999999/class999999999_id000.png", b"")],
        "numbers its classes 0 to 999999999, and no list says which",
    ),
    "numbers": (list(sre2l(range(12), 1)), "numbers its classes 0 to 11, and no list says which"),
}


@pytest.mark.parametrize("fault", BAD)
def test_sets_that_are_not_whole_are_refused(tmp_path, refused, fault):
    files, reason = BAD[fault]
    write(tmp_path / "SRC", files)
    assert reason in refused(tmp_path, "ingest", tmp_path / "SRC", tmp_path / "SET")


@pytest.mark.parametrize("name", ["0.png", "readme.md"])
def test_a_broken_link_beside_the_classes_is_refused(tmp_path, refused, name):
    (write(tmp_path / "SRC", NETTE) / name).symlink_to("nowhere")
    said = refused(tmp_path, "ingest", tmp_path / "SRC", tmp_path / "SET")
    assert f"SRC/{name} is a broken link or a device; remove it" in said


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ("--classes imagenet100", "has no images of class n01558993 (100 of 100 have none"),
        ("--layout sre2l", "which are of no known layout; expected new003/"),
        ("--layout dreams", "layout must be one of sre2l, rded"),
        ("--method ../x", "method must be letters"),
        (f"--seed {10**20}", "seed must be in [0, 9223372036854775808), got 1000"),
        ("--layout parquet", "SRC has no parquet file with images; leave out --layout"),
        ("--workers -1", "workers must be 0"),
    ],
)
def test_options_that_do_not_fit_are_refused(tmp_path, refused, options, reason):
    write(tmp_path / "SRC", NETTE)
    said = refused(tmp_path, "ingest", tmp_path / "SRC", tmp_path / "SET", *options.split())
    assert reason in said


def test_a_set_with_holes_is_taken_where_that_is_allowed(tmp_path, done):
    source = write(tmp_path / "SRC", without(NETTE, "n01440764/1.png"))
    done("ingest", source, tmp_path / "SET", "--allow-short")
    assert open_set(tmp_path / "SET").info.per_class == (2, *[3] * 9)


def test_damaged_archives_and_images_leave_nothing_behind(tmp_path, refused):
    whole = write_tar(tmp_path / "SRC.tar", NETTE).read_bytes()
    (tmp_path / "SRC.tar").write_bytes(whole[: len(whole) // 2])
    refused(tmp_path, "ingest", tmp_path / "SRC.tar", tmp_path / "SET", code=3)
    write_tar(tmp_path / "SRC.tar", [("../../n01440764/0.png", NETTE[0][1])])
    said = refused(tmp_path, "ingest", tmp_path / "SRC.tar", tmp_path / "SET", code=3)
    assert "has the part '..'" in said


def test_a_set_of_undecodable_images_is_refused(tmp_path, coreset):
    bad = [(name, b"no image" if name.startswith("n01440764") else data) for name, data in NETTE]
    ended = coreset("ingest", write(tmp_path / "SRC", bad), tmp_path / "SET")
    assert ended.code == 3
    assert "files cannot be packed" in ended.err
    listed = tmp_path / "SET.quarantine.csv"
    assert sorted(path.name for path in tmp_path.iterdir()) == [listed.name, "SRC"]


def test_students_and_report_read_an_imported_set(val, packed, tmp_path, done, refused):
    names = Dataset.open(packed).classes
    source = write(tmp_path / "SRC", folders(names, 2))
    done("ingest", source, tmp_path / "SET")
    info = json.loads((tmp_path / "SET" / "set.json").read_text())
    assert info["source_identity"] == info["source_content"] == ""
    results = tmp_path / "R"
    said = refused(tmp_path, "measure", tmp_path / "SET", val, results, "--reference", "train")
    assert "does not say what data set it is of" in said
    options = ("--size", 33, "--epochs", 1, "--evaluations", 1, "--repeats", 1)
    done("train", tmp_path / "SET", val, results, *options, "--student", "convnet")
    done("report", results, tmp_path / "report.html")
    assert "imported" in (tmp_path / "report.html").read_text()
