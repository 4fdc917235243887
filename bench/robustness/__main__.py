"""Run the scoreboard of faults: ``python -m bench.robustness``."""

import tyro

from coreset.bench.robustness.scoreboard import Robustness

if __name__ == "__main__":
    tyro.cli(Robustness).run()
