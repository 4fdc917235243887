"""The study's Table 6, as printed: of the accuracies by misratio, the best one counts."""

import numpy as np
import pytest

from coreset.engine.condensed.selection import default_misratio, misratio_by_share

MISRATIOS = (0.1, 0.3, 0.5, 0.7, 0.9)
TABLE_6 = [
    ("imagenette", 10, (54.3, 50.9, 55.2, 57.2, 54.5)),
    ("imagenet-100", 10, (19.2, 21.9, 25.0, 25.3, 27.2)),
    ("imagenet-1k", 10, (10.1, 12.0, 15.1, 17.0, 18.4)),
    ("imagenette", 50, (73.6, 75.6, 75.2, 73.7, 68.7)),
    ("imagenet-100", 50, (45.3, 48.2, 50.8, 51.3, 49.0)),
    ("imagenet-1k", 50, (40.9, 42.6, 43.5, 43.0, 40.4)),
]
IMAGENET = 1281.167


@pytest.mark.parametrize(("data", "ipc", "accuracies"), TABLE_6)
def test_the_misratio_is_the_one_of_the_largest_accuracy(data, ipc, accuracies):
    best = max(zip(accuracies, MISRATIOS, strict=True))[1]
    assert default_misratio("aum", data, ipc, IMAGENET) == (best, "")


@pytest.mark.parametrize("ipc", [10, 50])
def test_elsewhere_it_is_the_one_of_the_largest_mean_accuracy_at_this_share_of_a_class(ipc):
    accuracies = [row for _, at, row in TABLE_6 if at == ipc]
    best = MISRATIOS[np.mean(accuracies, axis=0).argmax()]
    for data, score in ((None, "aum"), ("imagenette", "el2n"), ("imagenet-1k", "aum_logit")):
        assert default_misratio(score, data, ipc, IMAGENET)[0] == best
    value, assumption = default_misratio("aum", "imagenette", ipc // 2, IMAGENET / 2)
    assert value == best  # not in the table
    assert assumption == (
        f"assumed: misratio {best}, by a rule from the study's Table 6 for {ipc // 2} of 641 "
        "images a class; --misratio sets another"
    )


def test_the_rule_falls_with_the_share_and_is_near_what_ccs_publishes():
    values = [misratio_by_share(share) for share in np.geomspace(1e-6, 1, 200)]
    assert values == sorted(values, reverse=True)
    assert (values[0], values[-1]) == (0.9, 0.0)
    assert misratio_by_share(0.1) == 0.3  # ImageNet, 90 % pruned
    assert misratio_by_share(0.2) == pytest.approx(0.2, abs=0.1)  # 80 % pruned
    assert default_misratio("aum", None, 10, 0)[0] == 0  # a class without images
