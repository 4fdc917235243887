"""Source of synthetic images, which are generated when they are read."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from coreset.shards.sources.base import Sample, Source
from coreset.shards.sources.finder import Finder
from coreset.shards.sources.synthetic import Synthetic

# Bytes of an image, for the check of the disk; what is generated is known only afterwards.
_BYTES_PER_IMAGENET_IMAGE = 115_000


_ROWS_AT_ONCE = 1 << 16


class _Generated:
    """Generator of samples, whose keys end in their positions among the synthetic images."""

    def __init__(self, synthetic: Synthetic) -> None:
        self._synthetic = synthetic

    def read(self, sample: Sample) -> bytes:
        """Generate one sample."""
        return self._synthetic.jpeg(position_of(sample.key))

    def state(self) -> Iterator[str]:
        """Yield nothing: synthetic images cannot change."""
        return iter(())


def position_of(key: str) -> int:
    """Return the position among the synthetic images that a sample key names."""
    return int(key.rpartition("/")[2])


def synthetic_source(synthetic: Synthetic) -> Source:
    """Return all images of a synthetic set as samples of their observed classes."""
    finder = Finder(place=Path("synthetic images"))
    keys, classes = synthetic.keys, np.array(synthetic.class_names)
    size = _bytes_per_image(synthetic)
    for first in range(0, len(keys), _ROWS_AT_ONCE):
        some = keys[first : first + _ROWS_AT_ONCE]
        names = [f"{key}.jpg" for key in some]
        of_class = classes[synthetic.labels[first : first + len(some)]].tolist()
        finder.add(of_class, some, names, [size] * len(some))
    samples = finder.sorted()
    return samples.source(_Generated(synthetic), classes=synthetic.class_names)


def _bytes_per_image(synthetic: Synthetic) -> int:
    if synthetic.size == "imagenet":
        return _BYTES_PER_IMAGENET_IMAGE
    return max(len(synthetic.jpeg(position)) for position in range(min(8, synthetic.images)))
