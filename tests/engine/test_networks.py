"""Students and proxies against torch's own layers, published sizes and initialisation."""

import pytest
import torch
from torch import nn

from coreset.engine.models.networks import build_network, instance_norm, memory_format_for
from coreset.engine.runtime.device import generator_for
from coreset.engine.stages.train import SMALLEST_SIZE

pytestmark = pytest.mark.usefixtures("one_thread")


def images(n, size):
    return torch.randn((n, 3, size, size), generator=generator_for(0))


@pytest.mark.parametrize(
    ("name", "n_classes", "parameters"),
    [  # MinimaxDiffusion's networks, which have torchvision's counts
        ("resnet18", 1000, 11_689_512),
        ("resnet50", 10, 23_528_522),
        ("convnet", 10, 24_714),  # by hand: three convolutions of 32 channels, 512 features
    ],
)
def test_students_have_the_published_number_of_parameters(name, n_classes, parameters):
    network = build_network(name, n_classes, norm="instance", seed=0)
    assert sum(one.numel() for one in network.parameters()) == parameters
    assert not list(network.buffers()), "instance norm keeps no running statistics"


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


def test_from_33_pixels_on_images_have_logits_of_their_own():
    network = build_network("resnet18", 5, norm="instance", seed=0).eval()
    with torch.inference_mode():
        alike, distinct = (network(images(4, size)) for size in (SMALLEST_SIZE - 1, SMALLEST_SIZE))
    # At 32 the last stage is one pixel, and its instance norm is its bias.
    torch.testing.assert_close(alike, alike[:1].expand_as(alike))
    assert torch.pdist(distinct).min() > 0.01


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
