"""Teachers: logits of the right classes, of pixels that they normalise themselves."""

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn
from torch.nn.functional import interpolate

from coreset.engine.artifacts.provenance import Provenance
from coreset.engine.artifacts.writer import create_artifact
from coreset.engine.models.backbones import HALF, OFFLINE_BACKBONE
from coreset.engine.models.classifiers import weights_here
from coreset.engine.models.networks import IMAGENET_MEAN, IMAGENET_STD
from coreset.engine.models.teachers import (
    TEACHER_NAME,
    Teacher,
    check_teachers,
    load_teachers,
    mean_logits,
)
from coreset.engine.runtime.device import generator_for, seeded_torch
from coreset.shards.errors import DataError, MachineError, StoreError, UsageError
from coreset.shards.format.classes import (
    IMAGENET_100_CMC_WNIDS,
    IMAGENET_100_WNIDS,
    IMAGENETTE_WNIDS,
    class_list,
)
from coreset.shards.format.files import sha256_of_file

pytestmark = pytest.mark.usefixtures("one_thread")

CPU = torch.device("cpu")
SHUFFLENET, MOBILENET = "shufflenet_v2_x0_5", "mobilenetv3_small_050"
DATA = Path(os.environ.get("CORESET_DATA", Path(__file__).parents[3] / "shared" / "data"))
IMAGES = torch.rand((4, 3, 64, 64), generator=generator_for(0))
LETTERS = ("a", "b", "c")


def network_of(name, n_outputs) -> Any:
    """Build a network with random weights by its own library."""
    import timm
    from torchvision import models

    with seeded_torch(0, CPU), torch.no_grad():
        if name == SHUFFLENET:
            network = models.shufflenet_v2_x0_5(weights=None, num_classes=n_outputs)
        else:
            network = timm.create_model(name, pretrained=False, num_classes=n_outputs)
        for layer in network.modules():
            if isinstance(layer, nn.BatchNorm2d):
                layer.momentum = None  # the statistics of the one batch: logits tell images apart
        network(IMAGES)
    return network.eval()


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """``saved(name, n_outputs)``: a network and the file of its weights, made once."""
    folder, made = tmp_path_factory.mktemp("weights"), {}

    def save(name, n_outputs):
        if (name, n_outputs) not in made:
            file = folder / f"{name}-{n_outputs}.safetensors"
            network = network_of(name, n_outputs)
            save_file(network.state_dict(), file)
            # As teachers lie, so that their sums are rounded alike.
            made[name, n_outputs] = network.to(memory_format=torch.channels_last), file
        return made[name, n_outputs]

    return save


def normalised(images, mean, std):
    return (images - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]


# classes


@pytest.mark.parametrize(
    "classes",
    [IMAGENETTE_WNIDS, IMAGENETTE_WNIDS[::-1], IMAGENET_100_CMC_WNIDS, class_list("imagenet")],
    ids=["ten", "in reverse", "a hundred", "all"],
)
def test_a_head_of_imagenet_is_cut_to_the_classes_by_their_wordnet_ids(saved, classes):
    network, file = saved(SHUFFLENET, 1000)
    (teacher,) = load_teachers([f"{SHUFFLENET}={file}"], classes, CPU)
    logits = teacher.logits(IMAGES, size=64)
    with torch.inference_mode():
        outputs = network(normalised(IMAGES, IMAGENET_MEAN, IMAGENET_STD))
    places = {wnid: at for at, wnid in enumerate(sorted(class_list("imagenet")))}
    for column, wnid in enumerate(classes):
        torch.testing.assert_close(logits[:, column], outputs[:, places[wnid]])
    assert (logits.dtype, logits.requires_grad) == (torch.float32, False)
    assert (teacher.name, teacher.digest) == (SHUFFLENET, sha256_of_file(file))
    assert len(teacher.orders) == 1


@pytest.mark.parametrize("name", [SHUFFLENET, f"timm:{MOBILENET}", MOBILENET])
def test_a_head_of_the_sets_own_classes_has_their_order(tmp_path, name, saved):
    """In a checkpoint as RDED's, of torchvision or timm."""
    network, _ = saved(name.removeprefix("timm:"), 3)
    torch.save({"model": network.state_dict(), "epoch": 9}, tmp_path / "w.pth")
    (teacher,) = load_teachers([f"{name}={tmp_path / 'w.pth'}"], LETTERS, CPU)
    with torch.inference_mode():
        expected = network(normalised(IMAGES, IMAGENET_MEAN, IMAGENET_STD))
    torch.testing.assert_close(teacher.logits(IMAGES, size=64), expected)
    assert not any(parameter.requires_grad for parameter in teacher.network.parameters())


class Reader(nn.Module):
    """Reads the sorted number of an ImageNet-100 class from grey images; outputs as in a list."""

    def __init__(self, order):
        super().__init__()
        self.places = torch.tensor([order.index(wnid) for wnid in IMAGENET_100_WNIDS])

    def forward(self, images):
        numbers = (images.mean(dim=(1, 2, 3)) * 100).round().long()
        return torch.nn.functional.one_hot(self.places[numbers], 100)


@pytest.mark.parametrize("heads", [IMAGENET_100_WNIDS, IMAGENET_100_CMC_WNIDS])
@pytest.mark.parametrize("classes", [IMAGENET_100_WNIDS, IMAGENET_100_CMC_WNIDS])
def test_of_both_orders_of_imagenet_100_the_right_one_is_found(saved, heads, classes):
    _, file = saved(SHUFFLENET, 100)
    (loaded,) = load_teachers([f"{SHUFFLENET}={file}"], classes, CPU)
    assert torch.equal(loaded.orders[0], torch.arange(100)), "the set's order until it is checked"
    teacher = replace(loaded, network=Reader(heads), mean=(0.0,) * 3, std=(1.0,) * 3)
    numbers = torch.randint(100, (50,), generator=generator_for(3))
    images = (numbers / 100)[:, None, None, None].expand(-1, 3, 8, 8)
    labels = torch.tensor([classes.index(IMAGENET_100_WNIDS[number]) for number in numbers])
    labels[:10] = (labels[:10] + 1) % 100  # in which the teacher is wrong
    batches = [(images[at : at + 20], labels[at : at + 20]) for at in (0, 20, 40)]
    (checked,) = check_teachers([teacher], batches, size=8)
    assert checked.accuracy == 80.0
    assert (checked.logits(images, size=8).argmax(dim=1) == labels)[10:].all()
    assert teacher.accuracy is None


# pixels


def taught(folder, weights, classes, **changes):
    """Write what `coreset teach` publishes."""
    provenance = Provenance(kind="teacher", stage="teach", config={})
    with create_artifact(folder, provenance) as work:
        shutil.copy(weights, work.scratch / "model.safetensors")
        document = {"arch": SHUFFLENET, "classes": classes, "accuracy": 88.5} | changes
        (work.scratch / TEACHER_NAME).write_text(json.dumps(document | {"format_version": 1}))
    return folder


def test_teachers_see_enlarged_pixels_in_their_own_normalisation_and_are_averaged(tmp_path, saved):
    first, file = saved(OFFLINE_BACKBONE, 3)
    second, weights = saved(SHUFFLENET, 3)
    folder = taught(tmp_path / "TEACHER", weights, ["c", "a", "b"])
    teachers = load_teachers([f"{OFFLINE_BACKBONE}={file}", str(folder)], LETTERS, CPU)
    assert [teacher.mean for teacher in teachers] == [HALF, IMAGENET_MEAN]
    small = IMAGES[:, :, :40, :40]
    large = interpolate(small, size=(64, 64), mode="bilinear", align_corners=False)
    with torch.inference_mode():
        expected = first(normalised(large, HALF, HALF))
        others = second(normalised(large, IMAGENET_MEAN, IMAGENET_STD))[:, [1, 2, 0]]
    torch.testing.assert_close(teachers[1].logits(small, size=64), others)
    mean = mean_logits(teachers, small, size=64)
    torch.testing.assert_close(mean, (expected + others) / 2, rtol=1e-4, atol=1e-5)
    assert (others[0] - others[1]).abs().max() > 0.01
    # Larger ones are not shrunk.
    assert torch.equal(teachers[1].logits(IMAGES, size=40), teachers[1].logits(IMAGES, size=64))


def real_images(per_class):
    """Validation images of ImageNette in 0..1 and their labels."""
    files = [
        sorted((DATA / "imagenette/val" / wnid).glob("*"))[:per_class] for wnid in IMAGENETTE_WNIDS
    ]
    if not all(files):
        pytest.skip(f"{DATA} holds no images of ImageNette; set CORESET_DATA")
    pixels = [
        np.asarray(Image.open(file).convert("RGB").resize((224, 224)))
        for row in files
        for file in row
    ]
    images = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2) / 255
    return images, torch.arange(10).repeat_interleave(per_class)


def test_packaged_and_other_real_weights_know_the_classes_of_imagenette():
    images, labels = real_images(5)
    mobilenet = DATA / "weights/mobilenetv2_100_same_in1k.safetensors"
    specs = [OFFLINE_BACKBONE, f"mobilenetv2_100_same={mobilenet}"]
    teachers = load_teachers(specs, IMAGENETTE_WNIDS, CPU)
    examples = [(images[at::2], labels[at::2]) for at in (0, 1)]
    accuracies = [teacher.accuracy for teacher in check_teachers(teachers, examples, size=224)]
    assert min(float(accuracy or 0) for accuracy in accuracies) > 90


# what is refused


@pytest.fixture
def in_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_a_teacher_that_is_mostly_wrong_is_asked_for_its_class_order(saved):
    _, file = saved(SHUFFLENET, 3)
    (teacher,) = load_teachers([f"{SHUFFLENET}={file}"], LETTERS, CPU)
    labels = teacher.logits(IMAGES, size=64).argmax(dim=1)
    labels[:2] = (labels[:2] + 1) % 3
    (checked,) = check_teachers([teacher], [(IMAGES, labels)], size=64)
    assert checked.accuracy == 50.0
    labels[2] = (labels[2] + 1) % 3
    with pytest.raises(
        DataError, match=r"is right for 25\.0 % of 4 .* class order\? Name"
    ) as error:
        check_teachers([teacher], [(IMAGES, labels)], size=64)
    assert error.value.exit_code == 3
    with pytest.raises(DataError, match=r"0\.0 % of 0 images"):
        check_teachers([teacher], [], size=64)


def test_images_of_a_size_that_a_network_does_not_take_are_refused():
    class Picky(nn.Module):
        def forward(self, images):
            raise AssertionError(f"needs 224,\ngot {images.shape[-1]}")  # as timm's

    teacher = Teacher(
        name="vit",
        source=Path("w"),
        digest="",
        network=Picky(),
        mean=HALF,
        std=HALF,
        orders=torch.zeros((1, 2), dtype=torch.int64),
    )
    fact = r"teacher vit does not take images of 80 pixels \(needs 224, got 80\)"
    with pytest.raises(UsageError, match=fact):
        check_teachers([teacher], [(IMAGES, torch.zeros(4))], size=80)


@pytest.mark.parametrize(
    ("spec", "classes", "message"),
    [
        ("SHUFFLENET-3", "abcd", "has 3 outputs, the set 4 classes; name weights of these"),
        ("SHUFFLENET-1000", ("n01440764", "cat"), "set's class 'cat' is none; train one of"),
        ("SHUFFLENET-1000", ("n00000000",), "set's class 'n00000000' is none"),
        (f"{SHUFFLENET}=none.pth", "abc", r"weights none\.pth of teacher .* do not exist"),
        (f"{SHUFFLENET}=", "abc", r"weights \. of teacher .* do not exist"),
        ("resnet18=SHUFFLENET", "abc", r"network resnet18 of torchvision; timm:resnet18 is timm's"),
        ("resnet19", "abc", r"^resnet19 does not exist; .* or a network \(.*near it: .*resnet18"),
        ("clip:RN50", "abc", "is no network of torchvision or timm"),
        ("FOLDER", "abc", r"FOLDER is no teacher; name a teacher made by `coreset teach`"),
        ("TEACHER", ("a", "d", "e"), r"has no class 'd' \(it lacks 2 of the set's 3\)"),
    ],
)
@pytest.mark.usefixtures("in_folder")
def test_teachers_of_other_classes_names_and_files_are_refused(saved, spec, classes, message):
    Path("FOLDER").mkdir()
    _, file = saved(SHUFFLENET, 3)
    if spec == "TEACHER":
        taught(Path(spec), file, LETTERS)
    for n_outputs in (3, 1000):
        known = f"SHUFFLENET-{n_outputs}"
        spec = spec.replace(known, f"{SHUFFLENET}={saved(SHUFFLENET, n_outputs)[1]}")
    spec = spec.replace("=SHUFFLENET", f"={file}")
    with pytest.raises(UsageError, match=message) as error:
        load_teachers([spec], tuple(classes), CPU)
    assert str(error.value).isprintable()


@pytest.mark.parametrize(("change", "message"), [("file", "holds other files"), ("field", "is no")])
def test_a_damaged_teacher_is_refused(tmp_path, saved, change, message):
    _, weights = saved(SHUFFLENET, 3)
    more = {"colour": "red"} if change == "field" else {}
    folder = taught(tmp_path / "TEACHER", weights, LETTERS, **more)
    if change == "file":
        (folder / "model.safetensors").write_bytes(b"")
    with pytest.raises(StoreError, match=message):
        load_teachers([str(folder)], LETTERS, CPU)


def test_weights_that_torchvision_downloaded_are_found_and_others_never_fetched(
    tmp_path, monkeypatch, saved
):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(MachineError, match=r"nothing is downloaded\); name a file such as shuffle"):
        load_teachers([SHUFFLENET], LETTERS, CPU)
    network, _ = saved(SHUFFLENET, 3)
    file = tmp_path / "hub/checkpoints/shufflenetv2_x0.5-f707e7126e.pth"  # torchvision's own name
    file.parent.mkdir(parents=True)
    torch.save(network.state_dict(), file)
    (teacher,) = load_teachers([SHUFFLENET], LETTERS, CPU)
    assert teacher.source == file


def test_timms_downloads_serve_torchvisions_networks_only_where_their_names_agree(
    tmp_path, monkeypatch
):
    import timm

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    (tmp_path / "hub/checkpoints").mkdir(parents=True)
    files = {
        name: tmp_path / "hub/checkpoints" / Path(str(timm.get_pretrained_cfg(name).url)).name  # pyright: ignore[reportOptionalMemberAccess]
        for name in ("resnet18", "efficientnet_b0")
    }
    for file in files.values():
        file.touch()
    assert weights_here("resnet18") == files["resnet18"]
    assert weights_here("timm:efficientnet_b0") == files["efficientnet_b0"]
    with pytest.raises(MachineError, match=r"name a file such as efficientnet_b0_rwightman-7f58"):
        weights_here("efficientnet_b0")
