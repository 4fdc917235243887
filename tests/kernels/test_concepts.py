"""The concept layer: both forms are one linear layer on standardised similarities."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from coreset.kernels.concepts import ConceptLayer, standardisation
from coreset.kernels.frechet import Moments
from coreset.kernels.neighbours import unit_rows

N, CLASSES = 200, 4
# (width, concepts): fewer concepts than entries, and more.
SHAPES = [(24, 7), (6, 30)]


def planted(width, n_concepts, seed=0):
    """Rows around their class's centre, concepts of which one repeats, and labels."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(CLASSES, size=N)
    rows = unit_rows(rng.normal(size=(CLASSES, width))[labels] + rng.normal(size=(N, width)) + 2)
    concepts = unit_rows(rng.normal(size=(n_concepts, width)))
    concepts[1] = concepts[0]
    return rows, concepts, labels


def standardised(rows, concepts):
    """By definition, in float64; a constant column is 0."""
    similarities = rows.astype(np.float64) @ concepts.astype(np.float64).T
    spread = similarities.std(axis=0, ddof=1)
    centred = similarities - similarities.mean(axis=0)
    return np.where(spread > 1e-6, centred / np.where(spread > 1e-6, spread, 1), 0)


@pytest.mark.parametrize(("width", "n_concepts"), SHAPES)
def test_standardisation_by_moments_is_that_of_the_similarities(width, n_concepts):
    rows, concepts, _ = planted(width, n_concepts)
    mean, scale = standardisation(concepts, Moments.of(rows))
    similarities = rows.astype(np.float64) @ concepts.T
    assert np.abs((similarities - mean) * scale - standardised(rows, concepts)).max() < 1e-6
    parts = Moments.of(rows[:50])
    parts.merge(Moments.of(rows[50:]))
    for one, other in zip(standardisation(concepts, parts), (mean, scale), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-9, atol=1e-12)


def test_a_constant_concept_is_nothing_for_every_image():
    rng = np.random.default_rng(0)
    angles = rng.uniform(0, 6, N)  # rows on a circle at one height: their third entry is constant
    rows = unit_rows(np.stack([np.cos(angles), np.sin(angles), np.full(N, 0.5)], axis=1))
    mean, scale = standardisation(np.eye(3, dtype=np.float32), Moments.of(rows))
    assert scale[2] == 0
    np.testing.assert_allclose(((rows - mean) * scale)[:, :2].std(axis=0, ddof=1), 1, 1e-6)


def both_forms(width, n_concepts):
    rows, concepts, labels = planted(width, n_concepts)
    numbers = standardisation(concepts, Moments.of(rows))
    layers = [ConceptLayer(CLASSES, concepts, *numbers, folded=folded) for folded in (False, True)]
    weights = torch.randn((CLASSES, n_concepts), generator=torch.Generator().manual_seed(1))
    for layer in layers:
        with torch.no_grad():
            layer.linear.weight.copy_(weights)
            layer.linear.bias.copy_(torch.arange(CLASSES))
    inputs = layers[0].standardised(torch.from_numpy(rows)), torch.from_numpy(rows)
    return layers, inputs, torch.from_numpy(labels)


@pytest.mark.parametrize(("width", "n_concepts"), SHAPES)
def test_both_forms_give_the_logits_and_gradients_of_a_linear_layer(width, n_concepts):
    layers, inputs, labels = both_forms(width, n_concepts)
    plain = nn.Linear(n_concepts, CLASSES).double()
    plain.load_state_dict(layers[0].linear.state_dict())
    rows, concepts, _ = planted(width, n_concepts)
    expected = plain(torch.from_numpy(standardised(rows, concepts)))
    cross_entropy(expected, labels).backward()
    for layer, x in zip(layers, inputs, strict=True):
        logits = layer(x)
        cross_entropy(logits, labels).backward()
        torch.testing.assert_close(logits.double(), expected, rtol=1e-5, atol=1e-5)
        for ours, theirs in zip(layer.parameters(), plain.parameters(), strict=True):
            assert ours.grad is not None
            torch.testing.assert_close(ours.grad.double(), theirs.grad, rtol=1e-4, atol=1e-6)


def test_the_parameters_of_one_form_are_those_of_the_other():
    (direct, folded), _, _ = both_forms(*SHAPES[0])
    assert set(direct.state_dict()) == {"linear.weight", "linear.bias", "mean_k", "scale_k"}
    folded.load_state_dict(direct.state_dict())


@pytest.mark.parametrize("folded", [False, True])
def test_a_layer_is_one_graph(folded):
    layers, inputs, _ = both_forms(*SHAPES[0])
    layer, x = layers[folded], inputs[folded]
    compiled = torch.compile(layer, fullgraph=True, backend="eager", dynamic=False)
    assert torch.equal(compiled(x), layer(x))


def test_a_cpu_computes_in_float32_whatever_is_around():
    (_, folded), (_, rows), _ = both_forms(*SHAPES[0])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert folded(rows).dtype == torch.float32
