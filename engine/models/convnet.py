"""A small convolutional network: three blocks of convolution, norm, ReLU and pooling.

The layout is that of the ConvNet-3 which papers on data set distillation train (Gidaris and
Komodakis, "Dynamic few-shot visual learning without forgetting", 2018), with a quarter of its
width: a student of seconds, for demonstrations and tests.
"""

from collections.abc import Callable

from torch import nn

WIDTH, DEPTH, POOLED_SIDE = 32, 3, 4


def convnet(num_classes: int, norm_layer: Callable[[int], nn.Module]) -> nn.Sequential:
    """Build the network, randomly initialised; arguments are named as torchvision names them."""
    layers: list[nn.Module] = []
    for channels in (3, *[WIDTH] * (DEPTH - 1)):
        layers += [nn.Conv2d(channels, WIDTH, 3, padding=1), norm_layer(WIDTH), nn.ReLU()]
        layers += [nn.AvgPool2d(2)]
    pool = nn.AdaptiveAvgPool2d(POOLED_SIDE)
    return nn.Sequential(
        *layers, pool, nn.Flatten(), nn.Linear(WIDTH * POOLED_SIDE**2, num_classes)
    )
