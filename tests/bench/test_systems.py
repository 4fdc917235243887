"""Table of the systems in docs/methods.md: no empty cell, and costs where a record has them."""

import pytest

from coreset.bench.docs import blocks
from coreset.engine.condensed.systems import SYSTEMS


def rows():
    """Cells by system."""
    lines = blocks()["systems"]().splitlines()[2:]
    cells = ([cell.strip() for cell in line.strip("|").split("|")] for line in lines)
    return {name: others for name, *others in cells}


@pytest.mark.usefixtures("results")
def test_every_system_has_a_row_without_an_empty_cell():
    assert list(rows()) == list(SYSTEMS)
    assert all(len(cells) == 4 and all(cells) for cells in rows().values())
    assert rows()["RDED"][2] == "no, because no run is recorded here"
    assert rows()["EDC"][2] == "no, because it is not built"


def test_costs_are_those_of_recorded_sets_else_of_recorded_steps(record_rows):
    study = {"bench": "distilled_study.sets", "ipc": 10}
    step = {"bench": "distill.recover", "method": "sre2l", "milliseconds": 250.4}
    record_rows(
        study
        | {"set": "rded", "study_name": "", "stages": {"pack": [2, 3], "distill": [230, 400]}},
        study | {"set": "random", "study_name": "Random", "stages": {"select": [1, 1]}},
    )
    record_rows(step | {"role": "peer", "milliseconds": 300.0}, step | {"role": "ours"})
    costs = {name: cells[2] for name, cells in rows().items()}
    assert costs["RDED"] == "232 s for ImageNette at IPC 10, from photographs on"
    assert costs["Random"] == "1 s for ImageNette at IPC 10, from photographs on"
    assert costs["SRe2L"] == "250 ms a step (`sre2l`)"
    assert costs["AUM"] == "no, because no run is recorded here"
