"""torchvision's transforms of a task, for the loaders that decode with Pillow or torchvision."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Any

from PIL import Image

from coreset.bench.peers.loaders import BATCH, MEAN, SHORT_SIDE, SIZE, STD, Task

Transform = Callable[[Any], Any]


def transform_of(task: Task) -> Transform:
    """Return the transform of a Pillow image or uint8 tensor to a tensor (3, s, s)."""
    import torch
    from torchvision.transforms import v2

    steps: list[Any] = {
        "centre": [v2.Resize(SHORT_SIDE, antialias=True), v2.CenterCrop(SIZE)],
        "whole": [],
        "random": [v2.RandomResizedCrop(SIZE, antialias=True)],
    }[task.crop]
    if task.pixels == "float32":
        ending = [v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)]
    else:
        ending = []
    return v2.Compose([*steps, v2.ToImage(), *ending, v2.ToPureTensor()])


@dataclass(frozen=True, slots=True)
class DecodeSample:
    """Decode the stored bytes of a sample with Pillow; for workers, so it can be sent to them."""

    transform: Transform

    def __call__(self, sample: dict[str, Any]) -> tuple[Any, int]:
        """Return image and sample id of ``{"id": ..., "image": stored bytes}``."""
        with Image.open(BytesIO(sample["image"])) as image:
            return self.transform(image.convert("RGB")), sample["id"]


def loader_options(task: Task) -> dict[str, Any]:
    """Return options of torch's ``DataLoader``: forked workers that stay from epoch to epoch."""
    return {
        "batch_size": BATCH,
        "num_workers": task.threads,
        "persistent_workers": True,
        "multiprocessing_context": "fork",
    }


def stored_samples(task: Task) -> Sequence[tuple[int, str]]:
    """List sample ids and paths, for loaders that first write a file format of their own."""
    return [(position, str(path)) for position, path in enumerate(task.files)]
