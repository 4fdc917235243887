"""Settings of the protocols and their variants: what they are, where from, and what they digest."""

import json
from dataclasses import asdict, fields, replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import cross_entropy
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from coreset.engine.evaluation.protocols import PROTOCOLS, named_protocol, split_name
from coreset.engine.evaluation.protocols.base import MARKS, told_settings
from coreset.engine.evaluation.protocols.edc import Edc
from coreset.engine.evaluation.protocols.rded import Rded
from coreset.engine.evaluation.protocols.soft import mixed_of, randaugmented
from coreset.engine.evaluation.protocols.variants import VARIANTS
from coreset.engine.models.networks import build_network
from coreset.engine.runtime.device import generator_for
from coreset.engine.training.averaging import AveragedWeights
from coreset.shards.errors import UsageError

CHANGES: dict[str, dict[str, Any]] = {
    "hard@1+bf16": {"precision": "bfloat16"},
    "hard@1+bn": {"norm": "batch"},
    "hard@1+rule-epochs": {},  # it is the rule for ten classes anyway
    "rded@1+factor1": {"shuffle": 1, "crop_scale": 1.0},
    "rded@1+epochs500": {"epochs": 500, "evaluations": 10},
    "edc@1+linear": {"rates": "linear"},
    "edc@1+ssrs": {"rates": "ssrs"},
    "edc@1+alexnet": {
        "teachers": ("resnet18", "mobilenet_v2", "shufflenet_v2_x0_5", "alexnet"),
    },
    "edc@1+randaugment": {"randaugment": True},
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_variant_changes_what_it_says_and_no_more(name):
    published = named_protocol(name.partition("+")[0], 10, 10)
    assert named_protocol(name, 10, 10) == replace(published, stamp=name, **CHANGES[name])


def test_every_variant_is_tested_here_and_the_rule_for_epochs_counts_for_many_classes():
    assert {name.partition("+")[2] for name in CHANGES} == set(VARIANTS)
    for ipc, epochs in ((10, 2000), (50, 1500)):
        assert named_protocol("hard+rule-epochs", 1000, ipc).epochs == epochs


def test_variants_add_up_in_any_order():
    one, other = (named_protocol(f"edc+{order}", 10, 10) for order in ("bf16+ssrs", "ssrs+bf16"))
    assert one == other
    assert (one.stamp, one.precision) == ("edc@1+bf16+ssrs", "bfloat16")


@pytest.mark.parametrize(
    ("name", "known"),
    [
        ("soft", "hard@1, rded@1, edc@1, got soft"),
        ("hard@2", "hard@1, rded@1, edc@1, got hard@2"),
        ("hard@1+linear", "hard@1 has the variants bf16, bn, rule-epochs, got hard@1+linear"),
        ("rded+", "rded@1 has the variants bf16, factor1, epochs500, got rded+"),
        ("edc+factor1", "edc@1 has the variants bf16, linear, ssrs, alexnet, randaugment"),
    ],
)
def test_what_is_no_protocol_is_refused(name, known):
    with pytest.raises(UsageError) as refusal:
        split_name(name)
    assert known in str(refusal.value)


@pytest.mark.parametrize("name", PROTOCOLS)
def test_every_setting_has_a_mark_and_a_source(name):
    protocol = named_protocol(name, 10, 10)
    told = {
        setting: (value, mark, source) for setting, value, mark, source in told_settings(protocol)
    }
    assert told.keys() == {one.name for one in fields(protocol)} - {"stamp", "n_classes", "ipc"}
    for _, mark, source in told.values():
        assert mark in MARKS
        assert source


def test_a_changed_setting_says_what_is_published():
    told = told_settings(named_protocol("rded+factor1", 100, 10))
    assert ("shuffle", "1", "", "changed; published: 2") in told
    assert ("batch", "100", "C") in [row[:3] for row in told]


@pytest.mark.parametrize("name", PROTOCOLS)
def test_a_digest_covers_every_setting_and_the_teachers(name):
    protocol: Any = named_protocol(name, 10, 10)
    digests = {protocol.digest([]), protocol.digest(["a"]), protocol.digest(["a", "b"])}
    for setting, value in asdict(protocol).items():
        digests.add(replace(protocol, **{setting: json.dumps(value)}).digest([]))
    assert len(digests) == 3 + len(fields(protocol))
    assert protocol.digest([]) == named_protocol(name, 10, 10).digest([])


def test_smaller_students_have_teachers_that_see_enough():
    for size, seen in ((64, 128), (127, 128), (128, 0), (224, 0)):
        protocol = named_protocol("edc", 10, 10).shortened(size=size, epochs=30)
        assert (protocol.teacher_size, protocol.resize) == (seen, round(size * 256 / 224))  # pyright: ignore[reportAttributeAccessIssue] - of soft labels


# losses and averages


def logits_of(n, seed):
    draws = generator_for(seed)
    ours, theirs = (5 * torch.randn((n, 7), generator=draws) for _ in range(2))
    return ours.requires_grad_(), theirs, torch.randint(7, (n,), generator=draws)


def test_rdeds_loss_is_the_divergence_at_its_temperature_without_the_square():
    ours, theirs, labels = logits_of(6, 1)
    loss = Rded.published(7, 10).loss_of(ours, theirs, labels)
    p, q = (torch.exp(each.double() / 20) for each in (theirs, ours))
    p, q = p / p.sum(1, keepdim=True), q / q.sum(1, keepdim=True)
    expected = (p * (p.log() - q.log())).sum() / 6
    torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=1e-9)
    (own,) = torch.autograd.grad(loss, ours)
    soft = cross_entropy(ours / 20, (theirs / 20).softmax(1))  # the same gradient
    torch.testing.assert_close(own, torch.autograd.grad(soft, ours)[0])


def test_edcs_loss_is_the_squared_error_and_a_little_cross_entropy():
    ours, theirs, labels = logits_of(6, 2)
    loss = Edc.published(7, 10).loss_of(ours, theirs, labels)
    squared = sum((a - b) ** 2 for a, b in zip(ours.flatten(), theirs.flatten(), strict=True)) / 42
    wanted = -ours.log_softmax(1)[range(6), labels].mean()
    torch.testing.assert_close(loss, squared + 0.025 * wanted)


def test_averaged_weights_are_torchs_and_leave_the_network_as_it_was():
    network = build_network("convnet", 3, norm="batch", seed=0)
    ours, theirs = (
        AveragedWeights(network, 0.99),
        AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(0.99)),
    )
    theirs.update_parameters(network)  # the first update copies
    for step in range(20):
        with torch.no_grad():
            for one in network.parameters():
                one.add_(torch.randn(one.shape, generator=generator_for(step)))
        ours.update(network)
        theirs.update_parameters(network)
    live = {name: one.clone() for name, one in network.state_dict().items()}
    with ours.in_place(network):
        averaged = dict(theirs.module.named_parameters())
        for name, one in network.named_parameters():
            torch.testing.assert_close(one, averaged[name])
            assert not torch.equal(one, live[name])
    assert all(torch.equal(one, live[name]) for name, one in network.state_dict().items())


# augmentations


@given(seed=st.integers(0, 2**32), n=st.integers(1, 5))
def test_draws_of_soft_labels_depend_on_the_generator_alone(seed, n):
    protocol = Rded.published(3, 10).shortened(size=8)
    images = torch.randint(0, 256, (n, 3, 8, 8), dtype=torch.uint8)
    seen: list[torch.Tensor] = []

    def labeller(mixed):
        seen.append(mixed)
        return torch.zeros(n, 3)

    inputs = [
        protocol.training_batch(images, torch.zeros(n).long(), generator_for(seed), labeller)[0]
        for _ in range(2)
    ]
    assert torch.equal(*inputs)
    assert torch.equal(*seen)
    assert seen[0].min() >= 0
    assert seen[0].max() <= 1


def test_crops_are_mirrored_and_then_mixed():
    images = torch.arange(2 * 3 * 4 * 4, dtype=torch.uint8).view(2, 3, 4, 4)
    flips, partner = torch.tensor([True, False]), torch.tensor([1, 0])
    mixed = mixed_of(images, flips, partner, torch.tensor((1, 3, 0, 2)))
    expected = images.float() / 255
    expected[0] = expected[0].flip(2)
    swapped = expected[[1, 0]]
    expected[:, :, 1:3, 0:2] = swapped[:, :, 1:3, 0:2]
    assert torch.equal(mixed, expected)


def test_randaugment_follows_from_its_seed_and_keeps_the_shape():
    draws = generator_for(0)
    image = torch.randint(0, 256, (20, 31, 3), dtype=torch.uint8, generator=draws).numpy()
    before = torch.random.get_rng_state()
    changed = [randaugmented(image, seed) for seed in (1, 1, 2, 3, 4)]
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(one.shape == image.shape and one.dtype == image.dtype for one in changed)
    assert (changed[0] == changed[1]).all()
    assert len({one.tobytes() for one in changed}) > 2
