"""Speed of building condensed sets, beside the published structure on the same images and draws.

    python -m coreset.bench.distill [--part crops rded recover]

- ``crops``: processor time of RDED's crops, from files to pixels, with one thread of torch.
- ``rded``: a class of RDED from files to mosaics, and the teacher's share of it.
- ``recover``: steps of SRe2L and FADRM+ from images to updated images.

Published code is restated with the calls that it makes (``peers/distill.py``). Writes
``bench/results/distill.jsonl``.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Literal, TypeAlias, get_args

import torch
import tyro

from coreset.bench.distill_rded import class_rows, crops_rows
from coreset.bench.distill_recover import RECOVER_COLUMNS, recover_rows
from coreset.bench.docs import Block, Table, contender, if_present, machine, optional
from coreset.bench.harness import Options, records_of

Part: TypeAlias = Literal["crops", "rded", "recover"]


@dataclass(frozen=True, slots=True, kw_only=True)
class DistillBench(Options):
    """Measure the building of condensed sets."""

    part: tuple[Part, ...] = get_args(Part)
    """Parts to measure."""
    images: int = 100
    """Candidates of the class that RDED draws from."""
    size: int = 128
    """Side of recovered images."""

    def run(self) -> None:
        """Run the parts in turn, print and record the results."""
        torch.set_num_threads(self.threads)
        parts = {
            "crops": partial(crops_rows, self, self.images),
            "rded": partial(class_rows, self, self.images),
            "recover": partial(recover_rows, self, self.size),
        }
        self.record_parts("distill", {part: parts[part] for part in self.part})


_TIMES = {
    "times the speed of": optional("times", "{times:.2f} ({rival})"),
    "goal": optional("goal", "at least {goal:g}"),
}
BLOCKS: Mapping[str, Block] = {
    "distill_machine": lambda: "".join(map(machine, records_of("distill.rded")[:1])),
    "distill_crops": Table(
        "distill.crops",
        {
            "images": "{source}",
            "way": contender,
            "processor ms a crop": if_present("{milliseconds:.2f}", reason=True),
            **_TIMES,
        },
    ),
    "distill_rded": Table(
        "distill.rded",
        {
            "way": contender,
            "images/s": if_present("{images_per_second:.1f}", reason=True),
            **_TIMES,
            "teacher's share": optional("share", "{share:.0%}"),
            "same crops": optional("same", "{same:.1%}"),
        },
    ),
    "distill_recover": Table("distill.recover", RECOVER_COLUMNS),
}

if __name__ == "__main__":
    tyro.cli(DistillBench).run()
