"""One epoch of each protocol against the published loops, written as their reader would write them.

The loops here take PIL images one by one through torchvision's functions, a DataLoader and torch's
own optimisers and schedules. They share with the product the initial weights and everything that is
drawn, and nothing else. The product rounds its crops to whole levels on a CPU; here it may not.
"""

import io
from contextlib import closing
from math import cos, pi
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.nn.functional import cross_entropy
from torch.optim.lr_scheduler import LambdaLR, MultiStepLR
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from coreset.engine.data import whole_images
from coreset.engine.data.images import DecodedImages
from coreset.engine.data.order import BatchOrder
from coreset.engine.evaluation.protocols import hard
from coreset.engine.evaluation.protocols.edc import Edc
from coreset.engine.evaluation.protocols.hard import HardLabels
from coreset.engine.evaluation.protocols.rded import Rded
from coreset.engine.evaluation.soft_labels import SoftLabels
from coreset.engine.evaluation.students import Images, Student
from coreset.engine.models.networks import build_network
from coreset.engine.models.teachers import Teacher
from coreset.engine.runtime.device import generator_for
from coreset.kernels.augment import (
    draw_crops,
    draw_cutmix,
    draw_flips,
    draw_jitter,
    draw_lighting,
    resized_crops,
    unit_range,
)
from coreset.kernels.seeds import Stream, crop_boxes, derived_seed, patch_orders
from coreset.shards.format.dataset import Dataset

pytestmark = pytest.mark.usefixtures("one_thread")

CPU = torch.device("cpu")
SIZE, CLASSES, EPOCHS, BATCH = 33, 3, 4, 6
SEED, EPOCH = 7, 2
MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
ORDERS = ("bcs", "bsc", "cbs", "csb", "sbc", "scb")
"""In which brightness, contrast and saturation may come."""


# the published loops


class Published(TorchDataset[Any]):
    """PIL images, each through ``transform(position, float image)``."""

    def __init__(self, images, labels, transform):
        self.images, self.labels, self.transform = images, labels, transform

    def __getitem__(self, at):
        from torchvision.transforms.functional import normalize, to_tensor

        image = self.transform(at, to_tensor(self.images[at]))
        return normalize(image, MEAN, STD), int(self.labels[at])


def batches_of(n):
    """Positions of each batch: the last one is short."""
    order = BatchOrder(batch=BATCH, seed=SEED, epoch=EPOCH, shuffle=True)
    return [rows.tolist() for rows in order.batches(n)]


def cropped(image, box, *, flip):
    from torchvision.transforms import functional

    left, top, right, bottom = box.tolist()
    image = functional.resized_crop(
        image, top, left, bottom - top, right - left, [SIZE, SIZE], antialias=True
    )
    return functional.hflip(image) if flip else image


def coloured(image, amounts, order):
    """ColorJitter of MinimaxDiffusion: each change blends the image as it is with a reference."""

    def grey(image):
        red, green, blue = image
        return (0.299 * red + 0.587 * green + 0.114 * blue).expand(3, -1, -1)

    references = {
        "b": torch.zeros_like,
        "c": lambda image: torch.full_like(image, grey(image).mean().item()),
        "s": grey,
    }
    amount = dict(zip("bcs", amounts.tolist(), strict=True))
    for which in order:
        share, reference = amount[which], references[which](image)
        image = (1 - share) * image + share * reference
    return image


def shuffled(image, orders):
    """ShufflePatches(2): the halves of all columns, then of all rows."""
    columns, rows = orders
    halves = image.tensor_split([image.shape[2] // 2], dim=2)
    image = torch.cat([halves[at] for at in columns], dim=2)
    halves = image.tensor_split([image.shape[1] // 2], dim=1)
    return torch.cat([halves[at] for at in rows], dim=1)


def pasted(images, partner, box):
    """CutMix in place, as the published codes do it."""
    top, bottom, left, right = box.tolist()
    images[:, :, top:bottom, left:right] = images[partner, :, top:bottom, left:right]
    return images


def published_epoch(network, loader, mixes, scheduler, loss_of, *, after_step=lambda: None):
    """Train for the epoch ``EPOCH``; ``loss_of(images, labels, partner, share)`` runs networks."""
    optimiser = scheduler.optimizer
    for _ in range(EPOCH):  # epochs before, without gradients
        optimiser.step()
        scheduler.step()
    network.train()
    for (images, labels), (partner, box, share) in zip(loader, mixes, strict=True):
        mixed = pasted(images, partner, box).contiguous(memory_format=torch.channels_last)
        optimiser.zero_grad()
        loss_of(mixed, labels, partner, share).backward()
        optimiser.step()
        after_step()


def published_hard(network, source):
    """``train.py`` of MinimaxDiffusion on decoded squares."""
    batches, draws = batches_of(len(source)), generator_for(SEED, EPOCH)
    drawn, mixes = {}, []
    for rows in batches:
        n = len(rows)
        of_batch = (
            draw_crops(n, SIZE, SIZE, draws, scale=(0.5, 1.0)),
            draw_flips(n, draws),
            draw_jitter(n, draws, 0.4),
            draw_lighting(n, draws, 0.1),
        )
        drawn |= dict(zip(rows, zip(*of_batch, strict=True), strict=True))
        mixes.append(draw_cutmix(n, (SIZE, SIZE), draws))

    def transform(at, image):
        box, flip, amounts, light = drawn[at]
        image = coloured(cropped(image, box, flip=flip), amounts, ORDERS[at % len(ORDERS)])
        return image + light[:, None, None]

    def loss_of(images, labels, partner, share):
        logits = network(images)
        return share * cross_entropy(logits, labels) + (1 - share) * cross_entropy(
            logits, labels[partner]
        )

    images = [Image.fromarray(one.permute(1, 2, 0).numpy()) for one in source.images]
    data = Published(images, source.labels, transform)
    optimiser = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)
    scheduler = MultiStepLR(optimiser, [int(2 * EPOCHS / 3), int(5 * EPOCHS / 6)], gamma=0.2)
    published_epoch(network, DataLoader(data, batch_sampler=batches), mixes, scheduler, loss_of)


def published_soft(network, stored, loss_of, *, shuffle, **more):
    """Loops of RDED and EDC on stored images, with AdamW as both set it up."""
    ids, images, labels = stored
    batches, draws = batches_of(len(ids)), generator_for(SEED, EPOCH)
    flips, mixes = {}, []
    for rows in batches:
        flips |= dict(zip(rows, draw_flips(len(rows), draws), strict=True))
        mixes.append(draw_cutmix(len(rows), (SIZE, SIZE), draws))
    widths, heights = (np.array(sides) for sides in zip(*(one.size for one in images), strict=True))
    seed = derived_seed(SEED, EPOCH)
    boxes = crop_boxes(ids, widths, heights, seed, (0.5, 1.0), (3 / 4, 4 / 3))
    orders = patch_orders(ids, 2, derived_seed(seed, Stream.PATCHES))

    def transform(at, image):
        image = shuffled(image, orders[at]) if shuffle else image
        return cropped(image, boxes[at], flip=flips[at])

    decayed, others = [], []
    for name, parameter in network.named_parameters():
        (decayed if "weight" in name and parameter.ndim > 1 else others).append(parameter)
    groups = [{"params": decayed}, {"params": others, "weight_decay": 0.0}]
    optimiser = torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.999), weight_decay=0.01)
    scheduler = LambdaLR(optimiser, lambda epoch: 0.5 * (1 + cos(pi * epoch / EPOCHS / 2)))
    loader = DataLoader(Published(images, labels, transform), batch_sampler=batches)
    published_epoch(network, loader, mixes, scheduler, loss_of, **more)


# what is trained


@pytest.fixture
def stored(packed, stored_samples):
    """Ids, PIL images and labels of 16 photos of all sizes, which are plain JPEG."""
    samples = stored_samples(packed)
    rows = [(at, *sample) for at, sample in enumerate(samples) if sample[1].startswith(b"\xff\xd8")]
    some = rows[:48:3]
    images = [Image.open(io.BytesIO(data)).convert("RGB") for _, _, data in some]
    labels = Dataset.open(packed).labels
    ids = np.array([at for at, _, _ in some])
    return ids, images, labels[ids]


@pytest.fixture
def whole(packed, stored, monkeypatch):
    """``whole(protocol)``: the photos as the product reads them, with unrounded crops."""

    def crop_into(out, image_hwc, box):
        image = torch.from_numpy(image_hwc.copy()).permute(2, 0, 1).float().div(255)
        out[...] = cropped(image, box, flip=False).permute(1, 2, 0)

    def opened(protocol):
        source = whole_images.WholeImages(
            Dataset.open(packed), stored[0], size=SIZE, device=CPU, shuffle_factor=protocol.shuffle
        )
        floats = SimpleNamespace(
            take=lambda shape, _: np.empty(shape, np.float32), forget=lambda: None
        )
        monkeypatch.setattr(source, "_memory", floats)
        return closing(source)

    monkeypatch.setattr(whole_images, "crop_into", crop_into)
    return opened


def squares(n, seed):
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (n, 3, SIZE, SIZE), np.uint8)
    return DecodedImages(torch.from_numpy(images), np.arange(n) % CLASSES, np.arange(n))


def teacher_of(seed, outputs):
    """A random network; its last outputs are the set's classes, the other way round."""
    network = build_network("convnet", outputs, norm="batch", seed=seed).eval()
    order = torch.arange(outputs - 1, outputs - 1 - CLASSES, -1)
    return Teacher(
        name="convnet", source=Path("convnet.pth"), digest=str(seed), network=network,
        mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), orders=order[None],
    )  # fmt: skip


def student_of(protocol, train, name, teachers=()):
    """A student before the epoch ``EPOCH``, and a network with its weights for the loop here."""
    labels = SoftLabels(teachers, CPU, 0) if teachers else None
    images = Images(train, squares(40, seed=1), labels)
    student = Student(images, protocol, name, seed=SEED, device=CPU)
    student.trainer.steps = EPOCH * -(-len(train) // BATCH)
    theirs = build_network(name, CLASSES, norm=protocol.norm, seed=SEED)
    # AdamW's first steps are little but signs, which the rounding of another layout would turn.
    return student, theirs.to(memory_format=student.layout)


def vector(network):
    return torch.cat([one.detach().flatten() for one in network.parameters()])


def require_same_training(student, theirs, start):
    """Weights differ by rounding alone, beside their size and beside what the epoch changed."""
    ours, reference = vector(student.trainer.network), vector(theirs)
    difference = (ours - reference).norm()
    assert difference <= 1e-5 * reference.norm()
    assert difference <= 1e-3 * (reference - start).norm()


def statistics_of(network):
    return [
        one
        for layer in network.modules()
        if isinstance(layer, nn.BatchNorm2d)
        for one in (layer.running_mean, layer.running_var)
    ]


# the comparisons


def test_an_epoch_of_hard_labels_is_the_published_one(monkeypatch):
    monkeypatch.setattr(
        hard, "crops_on_cpu", lambda images, boxes, side, **_: resized_crops(images, boxes, side)
    )
    protocol = HardLabels(n_classes=CLASSES, ipc=5, epochs=EPOCHS, size=SIZE, batch=BATCH)
    # Instance norm of the four last pixels of a ResNet would amplify rounding beyond all bounds.
    student, theirs = student_of(protocol, squares(16, seed=0), "convnet")
    start = vector(theirs)
    assert torch.equal(vector(student.trainer.network), start)
    student.train_epoch(EPOCH)
    published_hard(theirs, squares(16, seed=0))
    require_same_training(student, theirs, start)


def test_an_epoch_of_rded_is_the_published_one_with_its_second_forward_pass(whole, stored):
    protocol = Rded(n_classes=CLASSES, ipc=5, epochs=EPOCHS, size=SIZE, batch=BATCH)
    teacher = teacher_of(11, 5)
    with whole(protocol) as train:
        student, theirs = student_of(protocol, train, "resnet18", [teacher])
        start = vector(theirs)
        student.train_epoch(EPOCH)

    def loss_of(images, _labels, _partner, _share):
        with torch.no_grad():
            theirs(images)  # for the training accuracy that is printed
            soft = teacher.network(images)[:, teacher.orders[0]]
        soft = (soft / 20).softmax(dim=1)
        return nn.KLDivLoss(reduction="batchmean")((theirs(images) / 20).log_softmax(dim=1), soft)

    published_soft(theirs, stored, loss_of, shuffle=True)
    require_same_training(student, theirs, start)
    pairs = zip(*map(statistics_of, (student.trainer.network, theirs)), strict=True)
    for ours, reference in pairs:
        assert (ours - reference).norm() <= 2e-6 * reference.norm()


def test_an_epoch_of_edc_is_the_published_one_and_so_is_the_evaluation_of_its_average(
    whole, stored
):
    protocol = Edc(n_classes=CLASSES, ipc=5, epochs=EPOCHS, size=SIZE, batch=BATCH)
    teachers = [teacher_of(11, 5), teacher_of(12, CLASSES)]
    with whole(protocol) as train:
        student, theirs = student_of(protocol, train, "resnet18", teachers)
        start = vector(theirs)
        student.train_epoch(EPOCH)
    average = AveragedModel(theirs, multi_avg_fn=get_ema_multi_avg_fn(0.99))
    average.update_parameters(theirs)  # the first update copies: both start from the same weights

    def loss_of(images, labels, _partner, _share):
        with torch.no_grad():
            soft = torch.stack([one.network(images)[:, one.orders[0]] for one in teachers]).mean(0)
        logits = theirs(images)
        return nn.MSELoss()(logits, soft) + 0.025 * cross_entropy(logits, labels)

    published_soft(
        theirs, stored, loss_of, shuffle=False,
        after_step=lambda: average.update_parameters(theirs),
    )  # fmt: skip
    require_same_training(student, theirs, start)
    require_same_evaluation(student, theirs, average.module)


def require_same_evaluation(student, theirs, average):
    """The averaged weights with the live running statistics, and the student's own after that."""
    network, seen = student.trainer.network, []
    before = network.state_dict()
    before = {name: one.clone() for name, one in before.items()}
    hook = network.register_forward_hook(lambda _module, _inputs, logits: seen.append(logits))
    accuracy = student.evaluate()
    hook.remove()
    average.load_state_dict(dict(theirs.named_buffers()), strict=False)
    inputs, labels = evaluated(student.images.val)
    with torch.no_grad():
        logits, of_live = average.eval()(inputs), theirs.eval()(inputs)
    (ours,) = seen
    torch.testing.assert_close(ours, logits, rtol=1e-4, atol=1e-5)
    assert (of_live - logits).abs().max() > 1e-2, "the student's own weights are others"
    right = logits.argmax(dim=1) == labels
    assert accuracy.top1 == 100 * right.sum().item() / len(labels)
    assert all(torch.equal(one, network.state_dict()[name]) for name, one in before.items())


def evaluated(source):
    from torchvision.transforms.functional import normalize

    images = torch.stack([normalize(unit_range(one), MEAN, STD) for one in source.images])
    return images, torch.from_numpy(source.labels)
