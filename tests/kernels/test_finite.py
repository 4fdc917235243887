import torch

from coreset.kernels.dynamics import NonFiniteGuard

IDS = torch.tensor([7, 3, -1, 5])


def test_nothing_is_found_while_all_is_finite_and_padding_is_not_looked_at():
    guard = NonFiniteGuard(4, "cpu")
    guard.watch(torch.tensor([0.0, 1e30, torch.nan, -2.0]), IDS, 0)
    assert guard.found() is None


def test_the_first_bad_batch_is_kept_with_its_bad_samples_alone():
    guard = NonFiniteGuard(4, "cpu")
    guard.watch(torch.zeros(4), IDS, 0)
    guard.watch(torch.tensor([torch.nan, 1.0, torch.inf, -torch.inf]), IDS, 6)
    guard.watch(torch.full((4,), torch.nan), IDS, 7)
    assert guard.found() == (6, [7, 5])


def test_a_short_batch_may_follow_and_be_the_bad_one():
    guard = NonFiniteGuard(4, "cpu")
    guard.watch(torch.tensor([1.0, torch.nan]), torch.tensor([9, 8]), 2)
    assert guard.found() == (2, [8])


def test_watching_reads_nothing_back_from_the_device():
    # A tensor on `meta` has no values: item() or nonzero() would raise here.
    guard = NonFiniteGuard(2, "meta")
    guard.watch(torch.empty(2, device="meta"), torch.empty(2, dtype=torch.int64, device="meta"), 0)
