"""Where the scores agree with published code, and where they differ from it on purpose.

Each formula is written anew from what the named repository computes, as a function of all recorded
logits, float32 of shape (epochs, n, classes).
"""

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from coreset.kernels.dynamics import Dynamics
from coreset.kernels.margins import per_sample_stats
from coreset.kernels.samplers import ccs_draw
from coreset.kernels.scores import easiness


def scores_of(logits, labels, **options):
    n_epochs, n, _ = logits.shape
    dynamics = Dynamics(n, "cpu", **options)
    for epoch in range(n_epochs):
        dynamics.begin_epoch(epoch)
        dynamics.update(logits[epoch], labels, torch.arange(n))
        dynamics.end_epoch(epoch)
    return dynamics.scores()


def recorded(*, n_epochs, n=40, n_classes=5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn((n_epochs, n, n_classes), generator=generator)
    return logits, torch.arange(n) % n_classes


def probability_margins(p, labels):
    one_hot = torch.nn.functional.one_hot(labels, p.shape[-1]).bool()
    return p[one_hot.expand_as(p)].reshape(p.shape[:-1]) - p.masked_fill(one_hot, 0).amax(dim=-1)


def errors(p, labels):
    return torch.linalg.vector_norm(p - torch.nn.functional.one_hot(labels, p.shape[-1]), dim=-1)


# CCS (Coverage-centric-coreset-selection): Trainer.py keeps log-softmax in half precision,
# generate_importance_score.py makes the scores of it.


def half_precision_softmax(logits):
    return logits.log_softmax(-1).half().float().exp()


def test_the_margin_of_ccs_is_summed_over_epochs_and_known_to_three_digits():
    logits, labels = recorded(n_epochs=8)
    theirs = probability_margins(half_precision_softmax(logits), labels).sum(dim=0)
    ours = scores_of(logits, labels)["aum"]
    np.testing.assert_allclose(8 * ours, theirs, atol=8 * 1e-3)
    exact = probability_margins(logits.double().softmax(-1), labels).mean(dim=0)
    np.testing.assert_allclose(ours, exact, atol=1e-6)
    assert abs(theirs / 8 - exact).max() > 1e-5


def test_a_sum_and_a_mean_over_epochs_select_the_same_samples():
    logits, labels = recorded(n_epochs=8)
    mean = scores_of(logits, labels)["aum"]
    from_mean, from_sum = (
        ccs_draw(easiness("aum", values), 12, misratio=0.2, n_bins=10, seed=3)
        for values in (mean, 8 * mean)
    )
    np.testing.assert_array_equal(from_mean.positions, from_sum.positions)


def test_margins_that_half_precision_makes_equal_stay_apart():
    """At log(0.5) half precision has steps of 5e-4: two samples tie, and neither is right."""
    logits, labels = torch.tensor([[[0.0, 2e-5], [0.0, 4e-5]]]), torch.tensor([1, 1])
    theirs = half_precision_softmax(logits)
    assert torch.equal(probability_margins(theirs, labels)[0], torch.zeros(2))
    assert theirs.argmax(dim=-1).tolist() == [[0, 0]]
    ours = scores_of(logits, labels)
    np.testing.assert_allclose(ours["aum"], [1e-5, 2e-5], rtol=1e-2)
    assert ours["correctness"].tolist() == [1, 1]


@pytest.mark.parametrize("n_epochs", [4, 10, 13])
def test_el2n_of_ccs_is_a_sum_that_stops_before_the_eleventh_epoch(n_epochs):
    logits, labels = recorded(n_epochs=n_epochs)
    theirs = errors(half_precision_softmax(logits[:10]), labels).sum(dim=0)
    ours = scores_of(logits, labels)["el2n"] * min(10, n_epochs)
    np.testing.assert_allclose(ours, theirs, atol=n_epochs * 1e-3)


def test_el2n_of_the_imagenet_script_of_ccs_leaves_out_the_first_epoch_and_ours_does_not():
    logits, labels = recorded(n_epochs=11)
    theirs = errors(logits[1:11].softmax(-1), labels).mean(dim=0)
    ours = scores_of(logits, labels)["el2n"]
    first_ten = errors(logits[:10].softmax(-1), labels).mean(dim=0)
    np.testing.assert_allclose(ours, first_ten, atol=1e-6)
    assert abs(ours - theirs.numpy()).max() > 0.01


def test_a_sample_of_which_the_network_is_certain_is_told_from_one_it_is_more_certain_of():
    """The distance of the probability to 1 is lost where softmax is subtracted from the label."""
    logits, labels = torch.tensor([[[18.0, 0.0], [25.0, 0.0]]]), torch.tensor([0, 0])
    as_a_difference = (1 - logits.softmax(-1)[0, :, 0]).tolist()
    assert as_a_difference == [0, 0]
    el2n = scores_of(logits, labels)["el2n"]
    np.testing.assert_allclose(el2n, np.sqrt(2) * np.exp([-18.0, -25.0]), rtol=1e-4)


# AUM as its authors publish it: the aum package.


def test_aum_logit_is_what_the_aum_package_keeps_of_all_epochs(tmp_path):
    from aum import AUMCalculator

    logits, labels = recorded(n_epochs=6)
    calculator, last = AUMCalculator(str(tmp_path)), {}
    for epoch in logits:
        last = calculator.update(epoch, labels, list(range(len(labels))))
    expected = [last[sample].aum for sample in range(len(labels))]
    np.testing.assert_allclose(scores_of(logits, labels)["aum_logit"], expected, atol=1e-5)


# Forgetting: three repositories, two readings of a sample that was never right.


def forgotten_as_in_ccs(right):
    """A running "was right" that starts at 0."""
    was, events = False, 0
    for now in right:
        events += was and not now
        was = now
    return events


def forgotten_as_in_dual(right):
    """Pairs of epochs, the first one right and the second one not."""
    return sum(before > after for before, after in pairwise(right))


def forgotten_as_by_toneva(right):
    """order_examples_by_forgetting.py: the number of presentations for what was never learned."""
    return forgotten_as_in_dual(right) if any(right) else len(right)


@given(st.lists(st.booleans(), min_size=1, max_size=12))
def test_forgetting_is_counted_as_in_each_repository(right):
    logits = torch.tensor([[[1.0, 0.0] if now else [0.0, 1.0]] for now in right])
    ours = scores_of(logits, torch.tensor([0]))
    assert ours["forgetting"][0] == forgotten_as_in_ccs(right) == forgotten_as_in_dual(right)
    assert ours["forgetting_toneva"][0] == forgotten_as_by_toneva(right)


# DUAL (dual-pruning), exp_cifar/importance_evaluation.py.


def aum_of_the_dual_repository(logits, labels):
    """The accumulator is zeroed in every epoch: what remains is the margin of the last one."""
    return probability_margins(logits[-1].softmax(-1), labels)


def test_every_epoch_counts_in_aum_where_the_dual_repository_keeps_the_last():
    logits, labels = recorded(n_epochs=5)
    theirs = aum_of_the_dual_repository(logits, labels)
    np.testing.assert_allclose(scores_of(logits[-1:], labels)["aum"], theirs, atol=1e-6)
    every_epoch = probability_margins(logits.softmax(-1), labels).mean(dim=0)
    np.testing.assert_allclose(scores_of(logits, labels)["aum"], every_epoch, atol=1e-6)


def test_a_wrong_label_that_was_learned_by_heart_at_last_still_looks_hard():
    """Sample 0 has a wrong label, which the last epoch alone no longer shows."""
    steady, by_heart = [2.0, 0.0, 0.0], [4.0, 0.0, 0.0]
    logits = torch.tensor([[[0.0, 3.0, 0.0], steady]] * 9 + [[by_heart, steady]])
    labels = torch.tensor([0, 0])
    assert aum_of_the_dual_repository(logits, labels).argmin() == 1
    assert easiness("aum", scores_of(logits, labels)["aum"]).argmin() == 0


def test_dyn_unc_and_dual_are_a_tenth_of_those_of_the_dual_repository():
    logits, labels = recorded(n_epochs=13)
    p = logits.softmax(-1).gather(2, labels.expand(13, -1)[..., None])[..., 0]
    windows = [p[start : start + 10] for start in range(4)]
    dyn_unc = torch.stack([10 * some.std(dim=0) for some in windows]).mean(dim=0)
    dual = torch.stack([10 * some.std(dim=0) * (1 - some.mean(dim=0)) for some in windows])
    ours = scores_of(logits, labels)
    np.testing.assert_allclose(10 * ours["dyn_unc"], dyn_unc, atol=1e-3)
    np.testing.assert_allclose(10 * ours["dual"], dual.mean(dim=0), atol=1e-3)


def test_el2n_of_the_dual_repository_is_that_of_a_single_epoch():
    logits, labels = recorded(n_epochs=23)
    ours = scores_of(logits, labels, el2n_epochs=21)
    theirs = errors(logits[20].softmax(-1), labels)
    np.testing.assert_allclose(ours["el2n_single"], theirs, atol=1e-6)
    assert abs(ours["el2n"] - ours["el2n_single"]).max() > 0.01


# DeepCore: uncertainty.py sorts confidences, grand.py takes gradients of a mean loss.


def least_confident(logits, budget, *, balance):
    """One class: ascending largest logits if balanced, and descending ones if not."""
    order = logits.amax(dim=-1).argsort()
    return (order if balance else order.flip(0))[:budget].tolist()


def test_the_uncertain_end_does_not_depend_on_whether_classes_are_balanced():
    logits = torch.tensor([[[0.1, 0.0], [5.0, 0.0], [1.0, 0.0], [9.0, 0.0]]])
    assert least_confident(logits[0], 1, balance=True) == [0]
    assert least_confident(logits[0], 1, balance=False) == [3]
    entropy = scores_of(logits, torch.zeros(4, dtype=torch.int64))["entropy_mean"]
    assert easiness("entropy_mean", entropy).argsort().tolist() == [0, 2, 1, 3]


def test_uncertainty_is_of_the_softmax_so_that_a_constant_in_the_logits_does_not_matter():
    """A largest logit is no confidence: the same distribution looks certain when it is raised."""
    logits = torch.tensor([[[2.0, 0.0], [2.5, 0.0]]])
    raised = logits + torch.tensor([[[20.0], [0.0]]])
    ends = [least_confident(values[0], 1, balance=True) for values in (logits, raised)]
    assert ends == [[0], [1]]
    labels = torch.tensor([0, 0])
    for name, values in scores_of(logits, labels).items():
        np.testing.assert_allclose(scores_of(raised, labels)[name], values, rtol=1e-4, err_msg=name)


def gradient_norms(logits, labels, batch, reduction):
    """Norm of each sample's gradient of the loss by its logits, in batches."""
    norms = []
    for some, their in zip(logits.split(batch), labels.split(batch), strict=True):
        leaf = some.clone().requires_grad_()
        torch.nn.functional.cross_entropy(leaf, their, reduction=reduction).backward()
        norms.append(torch.linalg.vector_norm(leaf.grad, dim=1))
    return torch.cat(norms)


def test_el2n_is_the_norm_of_the_gradient_of_a_samples_own_loss_in_any_batch():
    """Of the mean over a batch, as in DeepCore's GraNd, a short last batch has larger ones."""
    logits, labels = recorded(n_epochs=1, n=10)
    el2n = per_sample_stats(logits[0], labels).el2n
    for batch in (4, 10):
        torch.testing.assert_close(gradient_norms(logits[0], labels, batch, "sum"), el2n)
    of_mean = gradient_norms(logits[0], labels, 4, "mean")
    torch.testing.assert_close(of_mean, el2n / torch.tensor([4.0] * 8 + [2.0] * 2))
