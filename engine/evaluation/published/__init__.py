"""Values that the study published, digits as printed, and what it claims about them.

Source: "Rethinking Dataset Distillation for Classification: Do Distilled Sets Outperform Coresets?"
(2026). ``tables.csv``: accuracies of Tables 2, 3, 4 and 7, mean and std of top-1 in percent over
three trainings. ``cost.csv``: hours of construction, Table 5. ``misratio.csv``: accuracies by
misratio, Table 6. ``claims.csv``: claims in words of our own, each with its scope, the rule that
tests it (`coreset.engine.evaluation.rules`) and the rule's verdict on these values.
"""

import csv
from collections.abc import Sequence
from decimal import Decimal
from itertools import combinations
from pathlib import Path
from typing import Any, Literal

TRAINED, FREE = ["VLCP", "D3HR", "Minimax"], ["DiT", "MGD", "ManifoldGD"]
DD, SCORED = [*TRAINED, *FREE, "FADRM+"], ["AUM", "Concepts"]
CS = ["Random", *SCORED]
ALL = DD + CS
BETAS = [Decimal(beta) for beta in ("0.1", "0.3", "0.5", "0.7", "0.9")]
LISTS: dict[str, Sequence[Any]] = {
    "TRAINED": TRAINED, "FREE": FREE, "DD": DD, "SCORED": SCORED, "CS": CS, "ALL": ALL,
    "TIMED": ["ManifoldGD", "MGD", "DiT", "FADRM+"], "BETAS": BETAS,
    "PLOTTED": ["VLCP", "ManifoldGD", "FADRM+", "AUM"],
    "PAIRS": list(combinations(("hard", "rded", "edc"), 2)),
    "CLASSES": [],  # those shown in figures: nothing says which
}  # fmt: skip
"""Methods, misratios and pairs of protocols that rules name."""


def rows(name: Literal["tables", "cost", "misratio", "claims"]) -> list[dict[str, str]]:
    """Read one of the tables, every value as text."""
    with Path(__file__).with_name(f"{name}.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))
