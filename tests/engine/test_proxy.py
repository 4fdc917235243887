"""Proxies: what they are trained on, once per image and epoch, in an order fixed by the seed."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import cross_entropy

from coreset.engine.data.images import DecodedImages
from coreset.engine.data.order import BatchOrder, fixed_share
from coreset.engine.models.feature_rows import StandardRows, UnitRows
from coreset.engine.models.networks import IMAGENET_MEAN, IMAGENET_STD
from coreset.engine.runtime.device import generator_for
from coreset.engine.runtime.distributed import ALONE, Distributed
from coreset.engine.scoring.feature_proxies import concept_proxy, linear_proxy
from coreset.engine.scoring.proxy import (
    augmented,
    convolutional_proxy,
    inputs_on,
    last_batch,
)
from coreset.engine.scoring.recipes import RECIPES
from coreset.engine.training.trainer import Trainer, adam
from coreset.kernels.augment import draw_crops, draw_flips, horizontal_flip, normalised
from coreset.kernels.jpeg.resize import resize
from coreset.kernels.logits import per_sample_stats
from coreset.kernels.neighbours import unit_rows
from coreset.shards.errors import UsageError

pytestmark = pytest.mark.usefixtures("one_thread")

CPU = torch.device("cpu")
N, SIDE, SIZE = 37, 20, 16
IDS = np.arange(N) * 3 + 100  # of a subset of a larger data set
LABELS = np.arange(N) % 4


@pytest.fixture(scope="module")
def pixels():
    rng = np.random.default_rng(0)
    images = torch.from_numpy(rng.integers(0, 256, (N, SIDE, SIDE, 3), dtype=np.uint8))
    return DecodedImages(images.permute(0, 3, 1, 2), np.arange(N) % 4, IDS)


def convolutional(pixels, *, seed=5, ranks=ALONE, **values):
    recipe = replace(RECIPES["full"], **{"size": SIZE, "crop_scale": 0.3, "batch": 8} | values)
    if ranks.world > 1:
        share = fixed_share(N, seed=seed, rank=ranks.rank, world=ranks.world)
        pixels = DecodedImages(pixels.images, LABELS[share], IDS[share], rows=share)
    return convolutional_proxy(pixels, 4, recipe, seed=seed, device=CPU, total=N, ranks=ranks)


def linear(features, labels, **values):
    settings: dict[str, Any] = {"batch": 8, "seed": 5} | values
    return linear_proxy(StandardRows(features, CPU), labels, 4, device=CPU, **settings)


def made(pixels, kind, **values):
    if kind == "convolutional":
        return convolutional(pixels, **values)
    return linear(feature_table(), LABELS, **values)


def feature_table(n=N, width=6, seed=0):
    rng = np.random.default_rng(seed)
    spread, centre = rng.uniform(0.1, 20, width), rng.uniform(-50, 50, width)
    return (rng.normal(size=(n, width)) * spread + centre).astype(np.float16)


@pytest.mark.parametrize("make", ["convolutional", "linear"])
@pytest.mark.parametrize("start", [1, 4])
def test_an_epoch_goes_on_at_any_batch(pixels, make, start):
    proxy = made(pixels, make)
    rest = list(proxy.examples(3, 0))[start:]
    for one, other in zip(proxy.examples(3, start), rest, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("make", ["convolutional", "linear"])
@pytest.mark.parametrize(("world", "batch"), [(1, 8), (2, 8), (3, 5), (5, 9), (4, 37)])
def test_ranks_share_an_epoch_in_equally_many_batches_without_padding_but_for_the_last(
    pixels, make, world, batch
):
    shares = []
    for rank in range(world):
        settings = {"batch": batch, "ranks": Distributed(rank, world)}
        proxy = made(pixels, make, **settings)
        shares.append(list(proxy.examples(1, 0)))
        ids = torch.cat([ids for _, _, ids in proxy.originals()])
        assert torch.equal(ids, ids.sort().values)
    assert len({len(share) for share in shares}) == 1
    assert last_batch(N, batch, world) == min(len(share[-1][2]) for share in shares)
    for share in shares:
        for inputs, labels, ids in share:
            assert len(inputs) == len(labels) == len(ids)
            padding = ids < 0
            assert not padding.any() or len(ids) == 1
            assert (labels[padding] == -1).all()
    ids = torch.cat([ids for share in shares for _, _, ids in share])
    assert sorted(ids[ids >= 0].tolist()) == sorted(ids_of(made(pixels, make), 1))


def test_inputs_on_a_cpu_are_within_a_level_of_those_on_a_gpu_which_are_one_whole_graph():
    """By the code of the GPU, which runs on a CPU too."""
    graphs = []

    def counted(graph, _example_inputs):
        graphs.append(graph)
        return graph.forward

    whole = torch.compile(augmented, fullgraph=True, dynamic=False, backend=counted)
    draws = generator_for(3)
    for _ in range(3):
        images = torch.randint(0, 256, (6, 24, 24, 3), generator=draws, dtype=torch.uint8)
        images = images.permute(0, 3, 1, 2)
        boxes, flips = draw_crops(6, 24, 24, draws, scale=(0.2, 1.0)), draw_flips(6, draws)
        of_cpu = inputs_on(CPU, images, boxes, flips, 15)
        drawn = torch.cat((boxes, flips[:, None]), dim=1)
        of_gpu = augmented(images, drawn, side=15)
        assert (of_cpu - of_gpu).abs().max() <= 1.01 / 255 / min(IMAGENET_STD)
        assert torch.equal(whole(images, drawn, side=15), of_gpu)
    assert len(graphs) == 1


def test_originals_are_the_centres_of_all_images_in_order(pixels):
    found = list(convolutional(pixels).originals())
    assert torch.cat([ids for _, _, ids in found]).tolist() == IDS.tolist()
    centres = pixels.images[..., 2:18, 2:18]
    expected = normalised(centres, IMAGENET_MEAN, IMAGENET_STD)
    assert torch.equal(torch.cat([inputs for inputs, _, _ in found]), expected)


def ids_of(proxy, epoch):
    return torch.cat([ids for _, _, ids in proxy.examples(epoch, 0)]).tolist()


def side_at(epoch, epochs, start_size, size):
    recipe = replace(RECIPES["fast"], epochs=epochs, start_size=start_size, size=size)
    return recipe.side_at(epoch)


def side_by_ffcv(epoch, epochs, start_size, size):
    """``get_resolution`` of FFCV's recipe with its ramp from epoch 0 to half of the epochs."""
    if epoch <= 0:
        return start_size
    if epoch >= epochs / 2:
        return size
    (linear,) = np.interp([epoch], [0, epochs / 2], [start_size, size])
    return int(np.round(linear / 32)) * 32


@given(
    epochs=st.integers(2, 100), start_size=st.integers(1, 8), steps=st.integers(0, 8),
)  # fmt: skip
def test_sides_are_those_of_ffcv_between_multiples_of_32(epochs, start_size, steps):
    start, size = 32 * start_size, 32 * (start_size + steps)
    for epoch in range(epochs):
        assert side_at(epoch, epochs, start, size) == side_by_ffcv(epoch, epochs, start, size)


def test_a_schedule_by_hand():
    sides = [side_at(epoch, 16, 96, 224) for epoch in range(16)]
    assert sides == [96, 128, 128, 128, 160, 192, 192, 192, *[224] * 8]
    assert [side_at(epoch, 5, 17, 24) for epoch in range(5)] == [17, 24, 24, 24, 24]
    assert {side_at(epoch, 7, 0, 225) for epoch in range(7)} == {225}
    assert side_at(2, 4, 96, 225) == 225  # from half of the epochs on, whatever a step would be


# the convolutional proxy


@pytest.mark.parametrize(("seed", "epoch"), [(5, 0), (5, 2), (6, 0)])
def test_an_epoch_is_what_the_kernels_make_of_the_images_one_by_one(pixels, seed, epoch):
    order = BatchOrder(batch=8, seed=seed, epoch=epoch, shuffle=True).batches(N)
    examples = zip(convolutional(pixels, seed=seed).examples(epoch, 0), order, strict=True)
    for number, ((inputs, labels, ids), rows) in enumerate(examples):
        draws = generator_for(seed, epoch, number, 0)
        boxes = draw_crops(len(rows), SIDE, SIDE, draws, scale=(0.3, 1.0))
        crops = [
            resize(
                pixels.images[row].permute(1, 2, 0).numpy(), SIZE, SIZE,
                region=tuple(box),
            )
            for row, box in zip(rows, boxes.tolist(), strict=True)
        ]  # fmt: skip
        crops = torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2)
        flipped = horizontal_flip(crops, draw_flips(len(rows), draws, 0.5))
        assert torch.equal(inputs, normalised(flipped, IMAGENET_MEAN, IMAGENET_STD))
        assert ids.tolist() == IDS[rows].tolist()
        assert labels.tolist() == LABELS[rows].tolist()


def test_crops_grow_with_the_epochs_and_every_image_is_still_shown(pixels):
    proxy = convolutional(pixels, size=20, start_size=17, epochs=4)
    for epoch, side in enumerate([17, 20, 20, 20]):
        shapes = {inputs.shape[1:] for inputs, _, _ in proxy.examples(epoch, 0)}
        assert shapes == {(3, side, side)}
        assert sorted(ids_of(proxy, epoch)) == IDS.tolist()


def test_images_that_cannot_be_decoded_are_not_shown_and_are_told(pixels):
    lost = DecodedImages(pixels.images, pixels.labels, pixels.ids, undecodable={103: "cut"})
    proxy = convolutional(lost)
    assert sorted(ids_of(proxy, 0)) == [one for one in IDS.tolist() if one != 103]
    assert proxy.undecodable == {103: "cut"}


@pytest.mark.parametrize(("batch", "size", "fails"), [
    (36, 32, True), (12, 16, True), (1, 32, True), (36, 33, False), (37, 32, False), (8, 32, False),
])  # fmt: skip
def test_a_batch_of_one_image_of_one_last_pixel_is_refused_before_it_is_trained(
    pixels, batch, size, fails
):
    if fails:
        fact = f"batch {batch} leaves a batch of one of 37 images, .* size {size}; use another"
        with pytest.raises(UsageError, match=fact):
            convolutional(pixels, batch=batch, size=size)
        return
    proxy = convolutional(pixels, batch=batch, size=size)
    smallest = min(proxy.examples(0, 0), key=lambda example: len(example[2]))[0]
    assert proxy.network.train()(smallest).isfinite().all()


# the linear proxy


def test_the_linear_proxy_shows_every_row_once_in_an_order_of_the_seed():
    features = feature_table()
    rows = StandardRows(features, CPU)
    orders = []
    for seed, epoch in ((0, 0), (0, 1), (1, 0), (1, 1)):
        proxy = linear(features, LABELS, seed=seed)
        for inputs, labels, ids in proxy.examples(epoch, 0):
            assert torch.equal(inputs, rows.rows(ids.numpy()))
            assert labels.tolist() == LABELS[ids].tolist()
        orders.append(ids_of(proxy, epoch))
    assert all(sorted(order) == list(range(N)) for order in orders)
    assert len(set(map(tuple, orders))) == 4


def test_flipped_labels_have_the_lowest_margins_by_concepts():
    from sklearn.metrics import roc_auc_score

    rng = np.random.default_rng(0)
    truth, n_concepts = np.arange(400) % 4, 12
    centres = rng.normal(size=(4, 16))
    features = (centres[truth] + 0.5 * rng.normal(size=(400, 16))).astype(np.float16)
    labels = np.where(is_flipped := rng.random(400) < 0.2, (truth + 1) % 4, truth)
    concepts = unit_rows(rng.normal(size=(n_concepts, 16)))  # of no class in particular
    proxy = concept_proxy(
        UnitRows(features, CPU), labels, 4, embeddings=concepts, scaled=True, batch=50, seed=0,
        device=CPU,
    )  # fmt: skip
    trainer = Trainer(
        proxy.network, adam(proxy.network, lr=1e-2, weight_decay=0), lambda _: 1e-2, CPU
    )
    margins = torch.zeros(400)
    for epoch in range(10):
        for inputs, of_batch, ids in proxy.examples(epoch, 0):
            logits = trainer.step(inputs, lambda out, y=of_batch: cross_entropy(out, y))
            margins[ids] += per_sample_stats(logits, of_batch).probability_margin
    assert roc_auc_score(is_flipped, -margins.numpy()) > 0.98
