"""The hard-label protocol against its published numbers, and its training against plain torch."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from coreset.engine.data.crops import crops_on_cpu
from coreset.engine.data.images import DecodedImages
from coreset.engine.evaluation.protocols import hard
from coreset.engine.evaluation.protocols.hard import HardLabels
from coreset.engine.evaluation.students import Images, Student
from coreset.engine.models.networks import IMAGENET_MEAN, IMAGENET_STD
from coreset.engine.runtime.device import generator_for
from coreset.engine.training.trainer import Accuracy, evaluate
from coreset.kernels.augment import (
    cutmix,
    draw_crops,
    draw_cutmix,
    draw_flips,
    draw_jitter,
    draw_lighting,
    horizontal_flip,
    normalised,
    recoloured,
)

pytestmark = pytest.mark.usefixtures("one_thread")

CPU = torch.device("cpu")
SIZE = 33


def stripes(per_class, seed, size=SIZE):
    """Noisy stripes, lying for class 0 and upright for class 1: no augmentation turns them."""
    rng = np.random.default_rng(seed)
    labels = np.arange(2 * per_class) % 2
    images = rng.integers(0, 60, size=(2 * per_class, size, size, 3))
    band = (np.arange(size) // 3 % 2)[:, None] * 180
    images += np.where(labels[:, None, None, None] == 0, band[None, :, :, None], band.T[..., None])
    images_nhwc = torch.from_numpy(images.astype(np.uint8))
    return DecodedImages(images_nhwc.permute(0, 3, 1, 2), labels, np.arange(2 * per_class))


def short(epochs, **values):
    return HardLabels(n_classes=2, ipc=10, epochs=epochs, size=SIZE, **values)


def student_of(train, protocol, *, seed, val=None, name="resnet18"):
    images = Images(train, train if val is None else val)
    return Student(images, protocol, name, seed=seed, device=CPU)


@pytest.mark.parametrize(
    ("n_classes", "ipc", "epochs"),
    [
        # ImageNette and ImageNet-100 of the study
        (10, 10, 2000), (10, 50, 1500), (100, 10, 1300), (100, 50, 1000),
        # ImageNet-1K: the study's one number for both
        (1000, 10, 300), (1000, 50, 300), (101, 1, 300),
        # the limits of ``ipc_epoch``
        (10, 1, 3000), (10, 2, 2000), (10, 11, 1500), (10, 51, 1000), (10, 200, 1000),
        (10, 201, 500), (10, 500, 500), (10, 501, 300), (99, 10, 2000),
        # two thirds, rounded down to hundreds
        (100, 1, 2000), (100, 200, 600), (100, 500, 300), (100, 1000, 200),
    ],
)  # fmt: skip
def test_epochs_are_those_of_the_published_rule(n_classes, ipc, epochs):
    assert HardLabels.published(n_classes, ipc).epochs == epochs


@pytest.mark.parametrize(
    ("protocol", "first", "second"),
    [
        (HardLabels.published(10, 10), 1333, 1666),
        (HardLabels.published(100, 50), 666, 833),
        (HardLabels.published(1000, 10), 200, 250),
        (short(200), 133, 166),
    ],
)
def test_the_rate_falls_to_a_fifth_at_two_thirds_and_five_sixths(protocol, first, second):
    rate = protocol.schedule(2)
    steps = (0, 2 * first - 1, 2 * first, 2 * second - 1, 2 * second)
    shares = [rate(step) / protocol.lr for step in steps]
    assert shares == pytest.approx([1, 1, 0.2, 0.2, 0.04])


@pytest.mark.parametrize(
    ("n_classes", "lr", "weight_decay", "batch"),
    [(10, 0.01, 5e-4, 64), (100, 0.01, 5e-4, 64), (101, 0.1, 1e-4, 128), (1000, 0.1, 1e-4, 128)],
)
def test_large_data_sets_have_settings_of_their_own(n_classes, lr, weight_decay, batch):
    protocol = HardLabels.published(n_classes, 10)
    (group,) = protocol.optimiser(torch.nn.Linear(1, 1)).param_groups
    assert (group["lr"], group["momentum"], group["weight_decay"]) == (lr, 0.9, weight_decay)
    assert (protocol.lr, protocol.batch, protocol.size) == (lr, batch, 224)


@pytest.mark.parametrize(
    ("protocol", "chosen"),
    [
        (HardLabels.published(10, 10), range(20, 2001, 20)),
        (HardLabels.published(100, 10), range(13, 1301, 13)),
        (short(7, evaluations=100), [1, 2, 3, 4, 5, 6, 7]),
        (short(7, evaluations=2), [3, 6, 7]),
        (short(10, evaluations=1), [10]),
        (short(10, evaluations=3), [3, 6, 9, 10]),
    ],
)
def test_evaluations_are_even_and_the_last_epoch_is_always_evaluated(protocol, chosen):
    epochs = range(1, protocol.epochs + 1)
    assert [epoch for epoch in epochs if protocol.evaluates_after(epoch)] == list(chosen)


def test_a_changed_protocol_is_stamped_and_an_unchanged_one_is_not():
    protocol = HardLabels.published(10, 10)
    assert protocol.stamp == "hard@1"
    unchanged = {"epochs": None, "size": None, "evaluations": None}
    assert protocol.shortened(**unchanged) == protocol
    assert protocol.shortened(epochs=2000, size=224, evaluations=100) == protocol
    for name, value in {"epochs": 5, "size": 64, "evaluations": 10}.items():
        changed = protocol.shortened(**unchanged | {name: value})
        own = {"resize": 64} if name == "size" else {}
        assert changed == replace(protocol, stamp="hard@1+short", **{name: value}, **own)


def plain_input(images, labels, size, draws):
    """A training batch, kernel by kernel: images, the share of their own labels, the others."""
    n, _, height, width = images.shape
    boxes = draw_crops(n, height, width, draws, scale=(0.5, 1.0))
    crops = crops_on_cpu(images, boxes, size, workers=1)
    flipped = horizontal_flip(crops, draw_flips(n, draws, 0.5)).float() / 255
    jitter, light = draw_jitter(n, draws, 0.4), draw_lighting(n, draws, 0.1)
    partner, box, share = draw_cutmix(n, (size, size), draws, 1.0)
    coloured = recoloured(flipped, jitter, light, IMAGENET_MEAN, IMAGENET_STD)
    return cutmix(coloured, partner, box), share, labels[partner]


def test_a_batch_is_what_the_kernels_make_of_it_and_its_loss_goes_by_the_shares():
    images, labels = stripes(4, seed=0, size=48).images, torch.arange(8) % 5
    inputs, loss = short(1).training_batch(images, labels, generator_for(3))
    expected, share, partners = plain_input(images, labels, SIZE, generator_for(3))
    torch.testing.assert_close(inputs, expected)
    assert inputs.shape == (8, 3, SIZE, SIZE)
    assert abs(share - 0.5) > 0.1  # so that shares the other way round are another loss
    assert not torch.equal(partners, labels)
    logits = torch.randn((8, 5), generator=generator_for(4))
    torch.testing.assert_close(loss(logits), plain_loss(logits, share, labels, partners))


def test_the_augmentation_of_a_student_on_a_gpu_is_one_whole_graph_for_all_batches():
    graphs = []

    def counted(graph, _example_inputs):
        graphs.append(graph)
        return graph.forward

    whole = torch.compile(hard.augmented, fullgraph=True, dynamic=False, backend=counted)
    images, protocol = stripes(4, seed=0, size=48).images, short(1)
    for seed in range(3):
        draws = generator_for(seed)
        boxes = draw_crops(8, 48, 48, draws, scale=(0.5, 1.0))
        of_images = draw_flips(8, draws), draw_jitter(8, draws), draw_lighting(8, draws)
        *pasting, _ = draw_cutmix(8, (SIZE, SIZE), draws)
        inputs = whole(images, [boxes, *of_images, *pasting], size=SIZE)
        on_cpu, _ = protocol.training_batch(images, torch.arange(8), generator_for(seed))
        # On a CPU crops are rounded to whole levels.
        assert (inputs - on_cpu).abs().max() < 1.4**3 * 0.55 / 255 / min(IMAGENET_STD)
    assert len(graphs) == 1


def plain_loss(logits, share, labels, partners):
    """r * CE(y) + (1 - r) * CE(y_perm), from the logarithms of the probabilities."""
    logp, picked = logits.float().log_softmax(dim=1), torch.arange(len(labels))
    own, partner = -logp[picked, labels].mean(), -logp[picked, partners].mean()
    return share * own + (1 - share) * partner


def test_a_student_tells_every_epoch_and_keeps_the_best_accuracy_when_it_falls(monkeypatch):
    measured = iter([Accuracy(50, 100), Accuracy(80, 90), Accuracy(20, 70)])
    monkeypatch.setattr(
        "coreset.engine.evaluation.students.evaluate", lambda *_, **__: next(measured)
    )
    told = []
    student = student_of(stripes(1, seed=0), short(6, evaluations=3), seed=2)
    history = student.train(on_epoch=lambda h: told.append((h.epochs, h.best.top1)))
    assert told == [(1, 0), (2, 50), (3, 50), (4, 80), (5, 80), (6, 80)]
    assert (history.best, history.last) == (Accuracy(80, 90), Accuracy(20, 70))
    assert (history.epoch_best, history.steps) == (4, 6)
    assert [epoch.top1 for epoch in history.curve] == [None, 50, None, 80, None, 20]
    assert [epoch.lr for epoch in history.curve] == pytest.approx([0.01] * 4 + [0.002] + [0.0004])
    assert 0 < history.evaluation_seconds < history.train_seconds


def test_a_student_repeats_to_the_bit_and_another_seed_is_another_student():
    images, trained = stripes(3, seed=0), []
    for seed in (0, 0, 1):
        student = student_of(images, short(1), seed=seed)
        student.train()
        parameters = student.trainer.network.parameters()
        trained.append(torch.nn.utils.parameters_to_vector(parameters).detach())
    first, again, other = trained
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_dropout_of_a_student_follows_from_seed_and_epoch_and_from_nothing_before():
    class Dropout(torch.nn.Flatten):
        """Draw as dropout does, from torch's global generator, which takes no other."""

        def forward(self, input):  # noqa: A002 - torch's name
            drawn.append(torch.rand(()).item())
            return super().forward(input)

    drawn, train, protocol = [], stripes(33, seed=0), short(2)  # 66 images: two batches
    network = torch.nn.Sequential(Dropout(), torch.nn.Linear(3 * SIZE**2, 2))
    for seed, epoch in ((4, 1), (4, 1), (5, 1), (4, 2)):
        torch.rand(1 + epoch)  # somebody else's
        student = student_of(train, protocol, seed=seed, name="convnet")
        student.trainer.network = network
        student.trainer.optimiser = protocol.optimiser(network)
        before = torch.random.get_rng_state()
        student.train_epoch(epoch)
        assert torch.equal(torch.random.get_rng_state(), before)
    assert drawn[:2] == drawn[2:4]
    assert len(set(drawn)) == 6


def test_a_student_is_evaluated_on_images_that_are_normalised_and_no_more():
    train, val = stripes(2, seed=0), stripes(30, seed=1)
    student = student_of(train, short(1), seed=3, val=val)
    history = student.train()
    batch = (
        normalised(val.images, IMAGENET_MEAN, IMAGENET_STD),
        torch.from_numpy(val.labels),
        torch.empty(0),
    )
    expected = evaluate(student.trainer.network, iter([batch]), CPU, half=False)
    assert history.last == history.best == expected
