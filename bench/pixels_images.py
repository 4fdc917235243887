"""Images, transforms, decoders, features and scores of the pixel contract."""

from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch.nn.functional import cross_entropy, interpolate

from coreset.engine.data.decoders import make_decoder
from coreset.engine.data.decoders.base import DecoderName, EncodedBatch
from coreset.engine.data.geometry import Box, Crops, Geometry
from coreset.engine.models.backbones import Backbone
from coreset.engine.models.feature_rows import FeatureRows
from coreset.engine.scoring.proxy import linear_proxy
from coreset.engine.scoring.recipes import RECIPES
from coreset.engine.training.trainer import Trainer, cosine_schedule, sgd
from coreset.kernels.augment import normalised
from coreset.kernels.dynamics import Dynamics
from coreset.kernels.seeds import permutation
from coreset.shards.images.probe import glance
from coreset.shards.packing.encode import reencode

Pixels: TypeAlias = NDArray[np.uint8]
Boxes: TypeAlias = NDArray[np.int64] | None
SEED, BATCH = 0, 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Images:
    """Encoded images."""

    name: str
    data: Sequence[bytes]
    widths: NDArray[np.int64]
    heights: NDArray[np.int64]
    labels: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.data)

    def where(self, chosen: NDArray[np.bool_]) -> "Images":
        """Select some of the images."""
        data = [one for one, keep in zip(self.data, chosen, strict=True) if keep]
        columns = {name: getattr(self, name)[chosen] for name in ("widths", "heights", "labels")}
        return Images(name=self.name, data=data, **columns)


@dataclass(frozen=True, slots=True)
class Transform:
    """Transform of a stored image to a square."""

    name: str
    geometry: Geometry
    boxes: Callable[[Images], Boxes] = lambda _: None
    """Region of each image to squash to the square instead of what the geometry says."""
    smallest: int = 1
    """Short side in pixels of the images that it is measured on."""


def central_boxes(images: Images) -> NDArray[np.int64]:
    """Return the central 224 x 224 pixels, which need no resize."""
    left, top = (images.widths - 224) // 2, (images.heights - 224) // 2
    return np.stack([left, top, left + 224, top + 224], axis=1)


def random_boxes(images: Images) -> NDArray[np.int64]:
    """Draw a random resized crop of each image."""
    ids = np.arange(len(images), dtype=np.int64)
    return Crops().boxes(ids, images.widths, images.heights, seed=SEED, epoch=0)


WHOLE = (
    Transform("resize 256, centre 224", Geometry(224, 256)),
    *(Transform(f"short side and centre {size}", Geometry(size, size)) for size in (176, 128, 64)),
    *(Transform(f"squash to {size}", Geometry(size)) for size in (224, 64)),
)
REGIONS = (
    Transform("no resize, centre 224", Geometry(224), central_boxes, smallest=224),
    Transform("random resized crop 224", Geometry(224), random_boxes),
)


def read_images(name: str, folder: Path, n: int | None = None) -> Images:
    """Read the images in class folders, or ``n`` of them drawn with a fixed seed."""
    paths = sorted(folder.glob("*/*"))
    files = [paths[row] for row in np.sort(permutation(len(paths), SEED)[:n])]
    classes = np.array([file.parent.name for file in files])
    return _sized(name, [file.read_bytes() for file in files], np.unique_inverse(classes)[1])


def packed_small(images: Images) -> Images:
    """Encode the images as ``coreset pack --store resized`` does by default."""
    data = [reencode(one, glance(one), short_side=256, quality=90)[0] for one in images.data]
    return _sized(f"{images.name}, packed resized", data, images.labels)


def _sized(name: str, data: Sequence[bytes], labels: NDArray[np.int64]) -> Images:
    sizes = np.array([Image.open(BytesIO(one)).size for one in data], dtype=np.int64)
    return Images(name=name, data=data, widths=sizes[:, 0], heights=sizes[:, 1], labels=labels)


def reference(images: Images, geometry: Geometry, boxes: Boxes = None) -> Pixels:
    """Decode and transform the images with torchvision, uint8 of shape (n, s, s, 3)."""
    regions = [None] * len(images) if boxes is None else map(tuple, boxes.tolist())
    pairs = zip(images.data, regions, strict=True)
    return np.stack([reference_pixels(one, geometry, region) for one, region in pairs])


def reference_pixels(data: bytes, geometry: Geometry, region: Box | None = None) -> Pixels:
    """Decode and transform one image or a region of it with torchvision, uint8 (s, s, 3)."""
    from torchvision.transforms.v2 import functional

    size = [geometry.size, geometry.size]
    with Image.open(BytesIO(data)) as opened:
        image: Any = opened.convert("RGB")  # torchvision's annotations know tensors alone
    if region is not None:
        left, top, right, bottom = region
        placed = functional.resized_crop(image, top, left, bottom - top, right - left, size)
    elif geometry.resize is None:
        placed = functional.resize(image, size)
    else:
        placed = functional.center_crop(functional.resize(image, [geometry.resize]), size)
    return np.asarray(placed)


def resized_exactly(data: bytes, size: int) -> NDArray[np.float32]:
    """Squash to ``size`` in floating point, never rounded to a level; shape (s, s, 3)."""
    with Image.open(BytesIO(data)) as opened:
        pixels_hwc = np.array(opened.convert("RGB"))
    image_1chw = torch.from_numpy(pixels_hwc).permute(2, 0, 1)[None].double()
    resized = interpolate(image_1chw, size=(size, size), mode="bilinear", antialias=True)
    return resized[0].permute(1, 2, 0).float().numpy()


def decoded(name: DecoderName, geometry: Geometry, images: Images, boxes: Boxes = None) -> Pixels:
    """Decode the images with one of our decoders, uint8 of shape (n, s, s, 3)."""
    pixels = np.empty((len(images), geometry.size, geometry.size, 3), np.uint8)
    exact = name is DecoderName.PILLOW
    with closing(make_decoder(name, geometry, device="cpu", workers=0, exact=exact)) as decoder:
        for first in range(0, len(images), BATCH):
            some = slice(first, first + BATCH)
            crops = None if boxes is None else boxes[some]
            sizes = images.widths[some], images.heights[some]
            batch = decoder.decode(EncodedBatch(images.data[some], *sizes, crops))
            pixels[some] = batch.permute(0, 2, 3, 1).numpy()
    return pixels


def features_of(pixels: Pixels, backbone: Backbone) -> NDArray[np.float16]:
    """Compute features as ``coreset embed`` does, of shape (n, d)."""
    with torch.inference_mode():
        parts = [
            backbone.features(normalised(part.permute(0, 3, 1, 2), backbone.mean, backbone.std))
            for part in torch.from_numpy(pixels).split(BATCH)
        ]
    return torch.cat(parts).half().numpy()


def aum(features: NDArray[np.float16], labels: NDArray[np.int64], seed: int) -> NDArray[np.float32]:
    """Compute AUM as ``coreset score --proxy linear`` does by default, of shape (n,)."""
    recipe, device = RECIPES["linear"], torch.device("cpu")
    n_classes = int(labels.max()) + 1
    rows = FeatureRows(features, device)
    proxy = linear_proxy(rows, labels, n_classes, batch=recipe.batch, seed=seed, device=device)
    steps = recipe.epochs * -(-len(labels) // recipe.batch)
    optimiser = sgd(proxy.network, lr=recipe.lr, weight_decay=recipe.weight_decay)
    schedule = cosine_schedule(recipe.lr, recipe.min_lr, steps)
    trainer = Trainer(proxy.network, optimiser, schedule, device)
    dynamics = Dynamics(len(labels), device)
    for epoch in range(recipe.epochs):
        dynamics.begin_epoch(epoch)
        for inputs, targets, ids in proxy.examples(epoch):
            logits = trainer.step(inputs, partial(cross_entropy, target=targets))
            dynamics.update(logits, targets, ids)
        dynamics.end_epoch(epoch)
    return dynamics.scores()["aum"]
