"""The study's Table 6, as printed: accuracies by misratio, of which the best one counts."""

import pytest

from engine.misratios import misratio_of_the_study
from shards.errors import UsageError

# Misratios 0.1, 0.3, 0.5, 0.7, 0.9; hard labels. The row's maximum is in bold there.
TABLE_6 = {
    ("aum", "imagenette", 10): (54.3, 50.9, 55.2, 57.2, 55.0),
}


@pytest.mark.parametrize(
    ("score", "ipc_10", "ipc_50"),
    [
        ("aum", {"imagenette": 0.7, "imagenet-100": 0.9, "imagenet-1k": 0.9},
         {"imagenette": 0.3, "imagenet-100": 0.7, "imagenet-1k": 0.5}),
        ("concept_aum", {"imagenette": 0.9, "imagenet-100": 0.7, "imagenet-1k": 0.9},
         {"imagenette": 0.9, "imagenet-100": 0.7, "imagenet-1k": 0.5}),
    ],
)  # fmt: skip
def test_placeholder(score, ipc_10, ipc_50):
    pass
