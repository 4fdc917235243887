"""The study's Table 6, as printed: of the accuracies by misratio, the best one counts."""

import pytest

from engine.misratios import misratio_of_the_study
from shards.errors import UsageError

MISRATIOS = (0.1, 0.3, 0.5, 0.7, 0.9)
TABLE_6 = [
    ("aum", "imagenette", 10, (54.3, 50.9, 55.2, 57.2, 54.5)),
    ("aum", "imagenet-100", 10, (19.2, 21.9, 25.0, 25.3, 27.2)),
    ("aum", "imagenet-1k", 10, (10.1, 12.0, 15.1, 17.0, 18.4)),
    ("aum", "imagenette", 50, (73.6, 75.6, 75.2, 73.7, 68.7)),
    ("aum", "imagenet-100", 50, (45.3, 48.2, 50.8, 51.3, 49.0)),
    ("aum", "imagenet-1k", 50, (40.9, 42.6, 43.5, 43.0, 40.4)),
    ("concept_aum", "imagenette", 10, (51.6, 51.5, 49.8, 51.1, 53.6)),
    ("concept_aum", "imagenet-100", 10, (18.4, 18.2, 20.4, 21.5, 20.8)),
    ("concept_aum", "imagenet-1k", 10, (9.9, 11.4, 13.7, 14.1, 14.5)),
    ("concept_aum", "imagenette", 50, (72.9, 74.3, 74.2, 74.3, 75.7)),
    ("concept_aum", "imagenet-100", 50, (45.4, 48.6, 49.3, 50.3, 50.1)),
    ("concept_aum", "imagenet-1k", 50, (40.8, 42.4, 42.7, 42.4, 41.0)),
]


@pytest.mark.parametrize(("score", "data", "ipc", "accuracies"), TABLE_6)
def test_the_misratio_is_the_one_of_the_largest_accuracy(score, data, ipc, accuracies):
    best = max(zip(accuracies, MISRATIOS, strict=True))[1]
    assert misratio_of_the_study(score, data, ipc) == best


@pytest.mark.parametrize(
    ("score", "data", "ipc", "fact"),
    [
        ("aum", "imagenette", 20, "score aum, data set imagenette, ipc 20"),
        ("aum", None, 10, "score aum, data set of other classes, ipc 10"),
        ("el2n", "imagenet-1k", 50, "score el2n, data set imagenet-1k, ipc 50"),
        ("aum_logit", "imagenette", 10, "score aum_logit"),
    ],
)
def test_where_the_study_has_none_it_must_be_given(score, data, ipc, fact):
    with pytest.raises(UsageError, match=f"misratio is not known for {fact}.*give --misratio"):
        misratio_of_the_study(score, data, ipc)
