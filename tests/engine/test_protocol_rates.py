"""Rates, evaluations and batches of all protocols against torch and the published rules."""

from math import cos, pi

import pytest
import torch
from torch.optim.lr_scheduler import LambdaLR, MultiStepLR

from coreset.engine.evaluation.protocols import named_protocol

COLUMNS = [(n_classes, ipc) for n_classes in (10, 100, 1000) for ipc in (10, 50)]
NAMES = ["hard", "hard+rule-epochs", "rded", "rded+epochs500", "edc", "edc+linear", "edc+ssrs"]


def published(name, optimiser, epochs):
    def cosine(epoch):
        return 0.5 * (1 + cos(pi * epoch / (2 * epochs)))

    def ssrs(epoch):
        late = 0.5 * (1 + cos(pi * 5 / (6 * 2))) * (6 * epochs - 6 * epoch) / (6 * epochs)
        return cosine(epoch) if epoch <= epochs * 5 / 6 else late

    if name.startswith("hard"):
        return MultiStepLR(optimiser, [int(2 * epochs / 3), int(5 * epochs / 6)], gamma=0.2)
    laws = {"edc+linear": lambda epoch: 1 - epoch / (2 * epochs), "edc+ssrs": ssrs}
    return LambdaLR(optimiser, laws.get(name, cosine))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("n_classes", "ipc"), COLUMNS)
def test_every_rate_of_a_run_is_that_of_torchs_schedule(name, n_classes, ipc):
    protocol = named_protocol(name, n_classes, ipc)
    first = (0.1 if n_classes == 1000 else 0.01) if name.startswith("hard") else 1e-3
    optimiser = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=first)
    scheduler, rate = published(name, optimiser, protocol.epochs), protocol.schedule(3)
    ours, theirs = [], []
    for epoch in range(protocol.epochs):
        ours += [rate(3 * epoch + step) for step in range(3)]
        theirs += [optimiser.param_groups[0]["lr"]] * 3
        optimiser.step()
        scheduler.step()
    assert ours == pytest.approx(theirs, rel=1e-9)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("n_classes", "ipc"), COLUMNS)
def test_evaluations_come_when_the_published_loops_have_them(name, n_classes, ipc):
    protocol = named_protocol(name, n_classes, ipc)
    epochs, last = protocol.epochs, protocol.epochs - 1
    rules = {
        "hard": lambda e: (e + 1) % (epochs // 100) == 0 or e == last,
        "rded": lambda e: (e % 10 == 9 or e == last) and e > epochs * 0.8,
        "edc": lambda e: e % 30 == 0 or e == last,
    }
    rule = rules[name.partition("+")[0]]
    ours = [e for e in range(epochs) if protocol.evaluates_after(e + 1)]
    assert ours == [e for e in range(epochs) if rule(e)]


@pytest.mark.parametrize(
    ("name", "epochs", "batches"),
    [
        ("hard", [2000, 1500, 1300, 1000, 300, 300], [64] * 4 + [128] * 2),
        ("hard+rule-epochs", [2000, 1500, 1300, 1000, 2000, 1500], [64] * 4 + [128] * 2),
        ("rded", [300] * 6, [50, 100, 100, 200, 100, 200]),
        ("rded+epochs500", [500] * 6, [50, 100, 100, 200, 100, 200]),
        ("edc", [300] * 6, [50, 100, 100, 100, 100, 100]),
    ],
)
def test_epochs_and_batches_are_those_of_the_tables(name, epochs, batches):
    protocols = [named_protocol(name, *column) for column in COLUMNS]
    assert [one.epochs for one in protocols] == epochs
    assert [one.batch for one in protocols] == batches
