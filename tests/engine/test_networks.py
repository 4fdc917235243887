"""Students and proxies against torch's own layers, published sizes and initialisation."""

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from coreset.engine.models.networks import (
    build_network,
    instance_norm,
    memory_format_for,
    require_trainable,
)
from coreset.engine.models.student_names import SMALLEST_SIZE, require_student
from coreset.engine.runtime.device import generator_for
from coreset.shards.errors import UsageError

pytestmark = pytest.mark.usefixtures("one_thread")


NORMS = {"batch": nn.BatchNorm2d, "instance": instance_norm}


def images(n, size):
    return torch.randn((n, 3, size, size), generator=generator_for(0))


def mean_of_squares(maps):
    """Average pooling of kernel 2 by its definition; an odd last row or column is left out."""
    height, width = (side // 2 * 2 for side in maps.shape[-2:])
    maps = maps[..., :height, :width]
    return (
        maps[..., ::2, ::2] + maps[..., 1::2, ::2] + maps[..., ::2, 1::2] + maps[..., 1::2, 1::2]
    ) / 4


def torchvisions_resnet10(n_classes, norm):
    """torchvision's ResNet of one basic block a stage, pooled where it has strides of its own."""
    from torchvision.models.resnet import BasicBlock, ResNet

    network: Any = ResNet(BasicBlock, [1] * 4, num_classes=n_classes, norm_layer=NORMS[norm])
    strided = [layer for layer in network.modules() if getattr(layer, "stride", 1) == (2, 2)]
    assert len(strided) == 1 + 3 * 2, "the stem; the first convolution and the shortcut of a stage"
    for layer in strided:
        layer.stride = (1, 1)
    network.maxpool = nn.Identity()
    network.maxpool.register_forward_hook(lambda *to: mean_of_squares(mean_of_squares(to[-1])))
    for stage in (network.layer2, network.layer3, network.layer4):
        # What conv2 gets has passed conv1, its norm and the ReLU.
        stage[0].conv2.register_forward_pre_hook(lambda _, maps: mean_of_squares(maps[0]))
        stage[0].downsample[0].register_forward_hook(lambda *to: mean_of_squares(to[-1]))
    return network


@pytest.mark.parametrize(
    ("name", "n_classes", "parameters"),
    [  # MinimaxDiffusion's networks, which have torchvision's counts
        ("resnet18", 1000, 11_689_512),
        ("resnet50", 10, 23_528_522),
        ("resnetap10", 10, 4_910_922),
        ("resnetap10", 100, 4_957_092),
        ("resnetap10", 1000, 5_418_792),
        ("convnet", 10, 24_714),  # by hand: three convolutions of 32 channels, 512 features
    ],
)
def test_students_have_the_published_number_of_parameters(name, n_classes, parameters):
    network = build_network(name, n_classes, norm="instance", seed=0)
    assert sum(one.numel() for one in network.parameters()) == parameters
    assert not list(network.buffers()), "instance norm keeps no running statistics"
    with_batch_norm = build_network(name, n_classes, norm="batch", seed=0)
    assert sum(one.numel() for one in with_batch_norm.parameters()) == parameters


@pytest.mark.parametrize("norm", ["batch", "instance"])
@pytest.mark.parametrize("size", [64, 75])  # 75: maps of 18, 9, 4 and 2 pixels
def test_resnetap10_is_torchvisions_with_pooling_for_strides(norm, size):
    ours, theirs = build_network("resnetap10", 5, norm=norm, seed=0), torchvisions_resnet10(5, norm)
    with torch.no_grad():
        for own, copy in zip(ours.parameters(), theirs.parameters(), strict=True):
            copy.copy_(own)
    batch, labels = images(3, size), torch.tensor([0, 4, 2])
    logits, expected = ours(batch), theirs(batch)
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)
    gradients = [
        torch.autograd.grad(cross_entropy(scores, labels), list(network.parameters()))
        for network, scores in ((ours, logits), (theirs, expected))
    ]
    for own, other in zip(*gradients, strict=True):
        assert other.norm() > 0
        assert (own - other).norm() <= 1e-3 * other.norm()


def test_resnetap10_begins_with_the_published_draws():
    network = build_network("resnetap10", 10, norm="instance", seed=0)
    convolutions = [layer for layer in network.modules() if isinstance(layer, nn.Conv2d)]
    assert len(convolutions) == 1 + 4 * 2 + 3
    for layer in convolutions:
        spread = (2 / (layer.kernel_size[0] ** 2 * layer.out_channels)) ** 0.5
        assert layer.weight.std().item() == pytest.approx(spread, rel=0.05)
        assert abs(layer.weight.mean().item()) < 0.1 * spread


def test_instance_norm_is_torchs_with_an_affine_map():
    ours, theirs = instance_norm(6), nn.InstanceNorm2d(6, affine=True)
    for layer in (ours, theirs):
        with torch.no_grad():
            layer.weight.copy_(torch.linspace(0.5, 2, 6))
            layer.bias.copy_(torch.linspace(-1, 1, 6))
    batch = torch.randn((3, 6, 5, 7), generator=generator_for(2)) * 3 + 1
    torch.testing.assert_close(ours(batch), theirs(batch), atol=1e-5, rtol=1e-5)


def test_training_and_evaluation_of_a_student_are_alike():
    network = build_network("resnet18", 4, norm="instance", seed=1)
    batch = images(3, 64)
    with torch.inference_mode():
        trained = network.train()(batch)
        assert torch.equal(network.eval()(batch), trained)
        torch.testing.assert_close(network(batch[1:2]), trained[1:2], atol=1e-4, rtol=1e-4)


def test_the_seed_alone_decides_the_weights_and_the_global_stream_is_left_alone():
    before = torch.random.get_rng_state()
    first, other = (
        build_network("resnet18", 3, norm="instance", seed=seed).state_dict() for seed in (7, 8)
    )
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.rand(3)
    again = build_network("resnet18", 3, norm="instance", seed=7).state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["conv1.weight"], other["conv1.weight"])


@pytest.mark.parametrize("name", SMALLEST_SIZE)
def test_from_the_smallest_size_on_images_have_logits_of_their_own(name):
    network, smallest = build_network(name, 5, norm="instance", seed=0).eval(), SMALLEST_SIZE[name]
    with torch.inference_mode():
        assert torch.pdist(network(images(4, smallest))).min() > 0.01
        if name == "convnet":  # which pools that pixel once more
            with pytest.raises(RuntimeError, match=r"32x1x1.*too small"):
                network(images(4, smallest - 1))
            return
        # The last feature map is one pixel, and its instance norm is its bias.
        alike = network(images(4, smallest - 1))
    torch.testing.assert_close(alike, alike[:1].expand_as(alike), atol=1e-4, rtol=0)


def test_every_student_of_our_own_has_a_smallest_size():
    for name, least in SMALLEST_SIZE.items():
        require_student(name, least)
        require_student(name, None)
        with pytest.raises(UsageError, match=f"^size of --student {name} must be at least {least}"):
            require_student(name, least - 1)


def test_a_student_of_timm_is_timms_model_for_our_classes():
    import timm

    network = build_network("timm:test_resnet", 7, norm="instance", seed=3)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(3)
        model = timm.create_model("test_resnet", num_classes=7)
    theirs = model.state_dict()
    assert any("running_mean" in name for name in theirs), "batch norm, which timm gave it"
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, theirs.pop(name))
    assert not theirs


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("timm:test_resnit", "got timm:test_resnit; near it: timm:test_resnet"),
        ("timm:resnet18.a1_in1k", "got timm:resnet18.a1_in1k; near it: timm:"),  # names weights
        ("timm:hf-hub:some/model", "got timm:hf-hub:some/model; near it: timm:"),
        ("timm:", "got timm:; near it: timm:resnet18"),
    ],
)
def test_names_that_timm_does_not_know_are_refused_with_near_ones(name, reason):
    with pytest.raises(UsageError) as refusal:
        build_network(name, 3, norm="batch", seed=0)
    assert str(refusal.value).startswith(f"student must be a timm model, {reason}")


@pytest.mark.parametrize(
    ("name", "images", "size", "reason"),
    [
        ("vit_tiny_patch16_224", 2, 96, r"2 images of 96 pixels \(Input height \(96\) doesn't"),
        ("test_resnet", 1, 32, r"1 images of 32 pixels \(Expected more than 1 value per channel"),
        ("test_convnext", 2, 3, r"2 images of 3 pixels \(.+\); choose another --size or --student"),
    ],
)
def test_models_of_timm_refuse_images_that_they_cannot_train_on(name, images, size, reason):
    with pytest.raises(UsageError, match=rf"^student timm:{name} does not train on {reason}"):
        require_trainable(f"timm:{name}", 3, images=images, size=size)


def test_models_of_timm_that_can_train_pass():
    before = torch.random.get_rng_state()
    for name, size in (
        ("timm:vit_tiny_patch16_224", 224),
        ("timm:test_resnet", 64),
        ("resnet18", 1),
    ):
        require_trainable(name, 3, images=2, size=size)
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize(
    ("norm", "device", "layout"),
    [
        ("batch", "cpu", torch.channels_last),
        ("instance", "cpu", torch.contiguous_format),
        ("instance", "cuda", torch.channels_last),
    ],
)
def test_the_layout_suits_the_norm(norm, device, layout):
    assert memory_format_for(norm, torch.device(device)) == layout
