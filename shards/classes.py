"""Data sets that are known by their class lists, so that protocols can be looked up by name."""

import re
from collections.abc import Sequence

from shards.manifest import classes_digest

IMAGENETTE_WNIDS = (
    "n01440764", "n02102040", "n02979186", "n03000684", "n03028079",
    "n03394916", "n03417042", "n03425413", "n03445777", "n03888257",
)  # fmt: skip
# ``classes_digest`` of the sorted WordNet ids of ImageNet-100 (Tian et al., CMC, ECCV 2020).
IMAGENET_100_SHA256 = "5ee5db69d488bb799a286d8e181801c3d02798776c1ce9203e5450f64e086e07"
_WNID = re.compile(r"n\d{8}")


def recognise(classes: Sequence[str]) -> str | None:
    """Name of the data set with this class list: imagenette, imagenet-100, imagenet-1k, or None.

    The order of ``classes`` does not matter. Any 1000 WordNet ids count as ImageNet-1K.
    """
    ordered = sorted(classes)
    if tuple(ordered) == IMAGENETTE_WNIDS:
        return "imagenette"
    if classes_digest(ordered) == IMAGENET_100_SHA256:
        return "imagenet-100"
    if len(ordered) == 1000 and all(_WNID.fullmatch(name) for name in ordered):
        return "imagenet-1k"
    return None
