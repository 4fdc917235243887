"""Synthetic sets as a user sees them: which images, how many, and what is refused."""

import io
import json
from collections import defaultdict
from dataclasses import dataclass, replace
from typing import Annotated

import numpy as np
import tyro
from PIL import Image

from coreset.engine.artifacts.ledger import read_ledger
from coreset.engine.artifacts.provenance import Provenance
from coreset.engine.condensed.methods import METHODS
from coreset.engine.condensed.methods.base import Method, Synthesis
from coreset.engine.data.geometry import Geometry
from coreset.engine.data.images import load_into_memory
from coreset.engine.data.stream import ImageStream
from coreset.kernels.seeds import derived_seed
from coreset.shards.format.dataset import Dataset, Manifest


def decoded(data, size):
    """Pixels of every image, uint8 (n, size, size, 3), and the labels."""
    with ImageStream(Dataset.open(data), Geometry(size, size)) as source:
        return load_into_memory(source).images.permute(0, 2, 3, 1).numpy(), source.labels


def images_by_class(samples):
    """The stored PNG files, read by Pillow from their places in the shards."""
    found = defaultdict(list)
    for row, stored in sorted(samples, key=lambda sample: sample[0]["class"]):
        with Image.open(io.BytesIO(stored)) as image:
            assert image.format == "PNG"
            found[row["class"]].append(np.asarray(image))
    return {name: np.stack(images) for name, images in found.items()}


def sorted_rows(images):
    return sorted(map(tuple, images.reshape(len(images), -1).tolist()))


def test_centroids_are_those_of_scikit_learn(packed, tmp_path, done, stored_samples):
    from sklearn.cluster import KMeans

    done("distill", packed, tmp_path / "SET", "--ipc", 4, "--size", 12, "--seed", 3)
    pixels, labels = decoded(packed, 12)
    for label, images in enumerate(images_by_class(stored_samples(tmp_path / "SET")).values()):
        rows = pixels[labels == label].reshape(20, -1).astype(np.float32)
        seed = derived_seed(3, label) % 2**32
        centres = KMeans(4, random_state=seed).fit(rows).cluster_centers_
        assert images.shape == (4, 12, 12, 3)
        assert sorted_rows(images) == sorted_rows(np.rint(centres).astype(int))


def test_the_set_is_a_data_set_that_verifies_and_tells_where_it_comes_from(packed, tmp_path, done):
    out = tmp_path / "SET"
    done("distill", packed, out, "--ipc", 2, "--size", 8)
    (line,) = done("verify", out, "--deep")
    assert line.startswith(f"{out} is whole: 6 samples in 1 shards")
    manifest = Manifest.read(packed)
    assert Dataset.open(out).classes == manifest.classes
    facts = json.loads((out / "set.json").read_text())
    assert (facts["kind"], facts["method"], facts["seed"]) == ("distilled", "kmeans", 0)
    assert (facts["ipc"], facts["per_class"]) == (2, [2, 2, 2])
    assert facts["parameters"] == {"ipc": 2, "size": 8}
    assert facts["source_identity"] == manifest.identity
    assert Provenance.read(out).inputs[0]["digest"] == manifest.digest
    pack, distill = read_ledger(out)
    assert (pack["stage"], distill["stage"], distill["images"]) == ("pack", "distill", 60)


def test_medoids_are_the_members_next_to_the_centroids(packed, tmp_path, done, stored_samples):
    for method in ("kmeans", "kmedoid"):
        done("distill", packed, tmp_path / method, "--ipc", 4, "--size", 12, "--method", method)
    pixels, labels = decoded(packed, 12)
    centroids, medoids = (
        images_by_class(stored_samples(tmp_path / method)) for method in ("kmeans", "kmedoid")
    )
    for label, name in enumerate(Dataset.open(packed).classes):
        rows = pixels[labels == label].reshape(20, -1).astype(np.float64)
        taken = []
        for image, centre in zip(medoids[name], centroids[name], strict=True):
            distances = ((rows - centre.reshape(-1)) ** 2).sum(axis=1)
            nearest = min(set(range(20)) - set(taken), key=lambda row: distances[row])
            assert image.reshape(-1).tolist() == rows[nearest].tolist()
            taken.append(nearest)


def test_ranks_share_the_classes_and_make_the_set_of_one_process(
    packed, tmp_path, done, start_ranks, stored_bytes
):
    command = ("distill", packed, tmp_path / "SET", "--ipc", 2, "--size", 8)
    done(*command[:2], tmp_path / "ALONE", *command[3:])
    ranks = start_ranks(
        "import sys; from coreset.engine.cli import main; main(sys.argv[1:])", *command
    )
    assert [rank.code for rank in ranks] == [0, 0], [rank.said for rank in ranks]
    assert stored_bytes(tmp_path / "SET") == stored_bytes(tmp_path / "ALONE")
    alone, together = (read_ledger(tmp_path / name)[-1] for name in ("ALONE", "SET"))
    assert together["images"] == alone["images"] == 60
    assert set(together["parts"]) == {"classes", "images"}


def test_nothing_but_the_seed_changes_the_bytes(packed, tmp_path, done, stored_bytes):
    command = ("--ipc", 3, "--size", 8)
    for name, options in {"A": (), "B": ("--workers", 1), "C": ("--seed", 1)}.items():
        done("distill", packed, tmp_path / name, *command, *options)
    assert stored_bytes(tmp_path / "A") == stored_bytes(tmp_path / "B")
    digests = {Manifest.read(tmp_path / name).content for name in "AC"}
    assert len(digests) == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["A", "B", "C"]


def test_a_seed_that_no_set_can_hold_is_refused(packed, tmp_path, refused):
    command = ("distill", packed, tmp_path / "SET", "--ipc", 1, "--seed", 2**63)
    assert "seed must be in [0, 9223372036854775808)" in refused(tmp_path, *command)


def test_patches_that_are_no_set_leave_nothing_behind(*, packed, tmp_path, refused, monkeypatch):
    monkeypatch.setitem(METHODS, "kmeans", replace(METHODS["kmeans"], patches=True))
    command = ("distill", packed, tmp_path / "SET", "--ipc", 1, "--patches", packed)
    assert "is not a condensed set" in refused(tmp_path, *command)


def test_more_centroids_than_different_images_are_refused(tmp_path, done, refused):
    for name, shades in {"bird": (0, 90, 200), "fish": (5, 5, 70)}.items():
        (tmp_path / "src" / name).mkdir(parents=True)
        for number, shade in enumerate(shades):
            image = Image.new("RGB", (8, 8), (shade, shade, shade))
            image.save(tmp_path / "src" / name / f"{number}.png")
    done("pack", tmp_path / "src", tmp_path / "DATA")
    command = ("distill", tmp_path / "DATA", tmp_path / "SET", "--size", 8)
    said = refused(tmp_path, *command, "--ipc", 3)
    assert "got 3, but class fish has 2 at size 8; lower --ipc or raise --size" in said
    done(*command, "--ipc", 2)


def test_a_method_is_registered_in_one_place(
    *, packed, tmp_path, coreset, done, monkeypatch, stored_samples
):
    @dataclass(frozen=True, kw_only=True)
    class GreyParameters:
        shade: Annotated[int, tyro.conf.arg(help="Level of every pixel.")] = 128

    def grey(task, parameters):
        def build(part):
            task.advance(1)
            shade = parameters.shade + part.labels[0]
            return np.full((1, len(part.slots), 4, 6, 3), shade, np.uint8)

        return Synthesis(parts=task.class_parts(), build=build)

    toy = Method(summary="one grey", prepare=grey, parameters=GreyParameters)
    monkeypatch.setitem(METHODS, "grey", toy)
    assert "Level of every pixel." in coreset("distill", "--help").out
    out = tmp_path / "SET"
    done("distill", packed, out, "--ipc", 2, "--method", "grey", "--shade", 9)
    for label, images in enumerate(images_by_class(stored_samples(out)).values()):
        assert (images == 9 + label).all()
        assert images.shape == (2, 4, 6, 3)
    facts = json.loads((out / "set.json").read_text())
    assert (facts["method"], facts["parameters"]) == ("grey", {"ipc": 2, "shade": 9})
    assert read_ledger(out)[-1]["images"] == 3
