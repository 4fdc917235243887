import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from coreset.kernels.margins import NonFiniteGuard, SampleStats, margins, per_sample_stats

LOGITS = st.lists(st.floats(-60, 60, width=32), min_size=2, max_size=9)


def by_definition(logits, label):
    """Every number of a presentation in double precision, from a softmax that is written out."""
    largest = max(logits)
    exponentials = [math.exp(z - largest) for z in logits]
    p = [e / math.fsum(exponentials) for e in exponentials]
    others = [value for c, value in enumerate(p) if c != label]
    rest = math.fsum(e for c, e in enumerate(exponentials) if c != label) / math.fsum(exponentials)
    return {
        "probability_margin": p[label] - max(others),
        "logit_margin": logits[label] - max(z for c, z in enumerate(logits) if c != label),
        "right": float(logits.index(largest) == label),
        "el2n": math.sqrt(math.fsum(q * q for q in others) + rest * rest),
        "loss": largest - logits[label] + math.log(math.fsum(exponentials)),
        "entropy": -math.fsum(q * math.log(q) for q in p if q > 0),
        "label_probability": p[label],
    }


@settings(max_examples=200)
@given(LOGITS, st.data())
def test_a_presentation_is_what_its_definitions_say(logits, data):
    label = data.draw(st.integers(0, len(logits) - 1))
    found = per_sample_stats(torch.tensor([logits]), torch.tensor([label]))
    expected = by_definition(logits, label)
    assert set(expected) == set(SampleStats._fields)
    for name, value in found._asdict().items():
        assert value.item() == pytest.approx(expected[name], rel=1e-4, abs=2e-5), name


def test_a_sample_of_which_the_network_is_certain_keeps_its_digits():
    logits = torch.tensor([[30.0, 0.0, 1.0]])
    found = per_sample_stats(logits, torch.tensor([0]))
    rest = math.exp(-30) + math.exp(-29)
    assert found.loss.item() == pytest.approx(rest, rel=1e-5)
    assert found.el2n.item() == pytest.approx(
        math.hypot(math.exp(-30), math.exp(-29), rest), rel=1e-5
    )


@pytest.mark.parametrize(("label", "right"), [(0, 1), (1, 0), (2, 0)])
def test_a_tie_counts_for_the_lowest_class_as_argmax_does(label, right):
    found = per_sample_stats(torch.tensor([[2.0, 2.0, 2.0]]), torch.tensor([label]))
    assert found.right == right


def test_the_margin_of_all_negative_logits_is_not_measured_against_zero():
    assert margins(torch.tensor([[-3.0, -1.0]]), torch.tensor([0])).item() == -2


def test_margins_are_those_of_presentations():
    logits = 3 * torch.randn((50, 7), generator=torch.Generator())
    labels = torch.arange(50) % 7
    presented = per_sample_stats(logits, labels)
    assert torch.equal(margins(logits, labels), presented.logit_margin)
    of_softmax = margins(logits.softmax(1), labels)
    torch.testing.assert_close(of_softmax, presented.probability_margin)


def test_margins_compile_as_one_graph():
    logits, labels = torch.randn((6, 4), generator=torch.Generator()), torch.arange(6) % 4
    compiled = torch.compile(margins, fullgraph=True, backend="eager")
    assert torch.equal(compiled(logits, labels), margins(logits, labels))


def test_the_margin_of_logits_is_that_of_the_aum_package(tmp_path):
    from aum import AUMCalculator

    logits, labels = torch.randn((20, 5), generator=torch.Generator()), torch.arange(20) % 5
    theirs = AUMCalculator(str(tmp_path)).update(logits, labels, list(range(20)))
    expected = [theirs[sample].margin for sample in range(20)]
    assert margins(logits, labels).tolist() == pytest.approx(expected, abs=1e-6)


def test_the_margin_of_probabilities_is_that_of_cleanlab_on_a_scale_from_minus_one_to_one():
    from cleanlab.rank import get_label_quality_scores

    probabilities = torch.randn((20, 5), generator=torch.Generator()).softmax(1)
    labels = torch.arange(20) % 5
    # cleanlab maps margins to [0, 1].
    theirs = get_label_quality_scores(
        labels.numpy(), probabilities.numpy(), method="normalized_margin"
    )
    np.testing.assert_allclose(margins(probabilities, labels), 2 * theirs - 1, atol=1e-6)


IDS = torch.tensor([7, 3, -1, 5])


def test_no_batch_is_recorded_while_all_is_finite_but_for_padding():
    guard = NonFiniteGuard(4, "cpu")
    guard.check(torch.tensor([0.0, 1e30, torch.nan, -2.0]), IDS, 0)
    assert guard.first() is None


def test_the_first_bad_batch_is_recorded_with_its_bad_samples_alone():
    guard = NonFiniteGuard(4, "cpu")
    guard.check(torch.zeros(4), IDS, 0)
    guard.check(torch.tensor([torch.nan, 1.0, torch.inf, -torch.inf]), IDS, 6)
    guard.check(torch.full((4,), torch.nan), IDS, 7)
    assert guard.first() == (6, [7, 5])


def test_a_short_batch_may_be_the_bad_one():
    guard = NonFiniteGuard(4, "cpu")
    guard.check(torch.tensor([1.0, torch.nan]), torch.tensor([9, 8]), 2)
    assert guard.first() == (2, [8])


def test_checking_reads_nothing_back_from_the_device():
    # A tensor on `meta` has no values: item() or nonzero() would raise here.
    guard = NonFiniteGuard(2, "meta")
    guard.check(torch.empty(2, device="meta"), torch.empty(2, dtype=torch.int64, device="meta"), 0)
