import subprocess
import sys

import pytest
import torch

from coreset.engine.training.sgd import Sgd


def network_of():
    return torch.nn.Sequential(torch.nn.Linear(5, 4), torch.nn.Tanh(), torch.nn.Linear(4, 3))


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("weight_decay", [0.0, 1e-2])
def test_updates_have_the_bits_of_those_of_torch(nesterov, momentum, weight_decay):
    if nesterov and not momentum:
        pytest.skip("torch refuses it")
    settings = {"momentum": momentum, "weight_decay": weight_decay, "nesterov": nesterov}
    ours, theirs = network_of(), network_of()
    theirs.load_state_dict(ours.state_dict())
    optimiser = Sgd(lr=9.0, **settings).build(ours)
    reference = torch.optim.SGD(theirs.parameters(), lr=9.0, **settings)
    for step in range(6):
        for network in (ours, theirs):
            frozen = step == 3  # a parameter without a gradient stays, as does its momentum
            network[0].requires_grad_(not frozen)
            network(torch.full((2, 5), step + 1.0)).square().sum().backward()
        for group in reference.param_groups:
            group["lr"] = 0.1 / (step + 1)
        optimiser.step(0.1 / (step + 1))
        reference.step()
        optimiser.forget_gradients()
        reference.zero_grad()
        assert all(one.grad is None for one in ours.parameters())
        for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
            assert torch.equal(one, other)


def test_the_momentum_of_another_network_is_refused():
    network = network_of()
    optimiser = Sgd(lr=0.1, weight_decay=0.0).build(network)
    network(torch.ones(2, 5)).sum().backward()
    optimiser.step(0.1)
    other = Sgd(lr=0.1, weight_decay=0.0).build(torch.nn.Linear(5, 3))
    with pytest.raises(ValueError, match=r"momentum 0 is \(4, 5\), not \(3, 5\)"):
        other.load_state(optimiser.state())


def test_training_uncompiled_leaves_the_compiler_alone():
    """Importing it costs every process a second and some 200 MB."""
    program = """
import sys, torch
from coreset.engine.models.networks import build_network
from coreset.engine.training.sgd import Sgd
from coreset.engine.training.trainer import Trainer
network = build_network("resnet18", 2, norm="batch", seed=0)
optimiser = Sgd(lr=0.1, weight_decay=0.1).build(network)
trainer = Trainer(network, optimiser, lambda _: 0.1, torch.device("cpu"))
trainer.step(torch.ones(2, 3, 64, 64), torch.sum)
print("torch._dynamo" in sys.modules)
"""
    found = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert found.stdout.strip() == "False"
