"""Time of the demo from nothing, and what it prints.

    python -m coreset.bench.demo

Runs ``coreset demo`` in a fresh folder with an empty feature cache, as a user would, and writes
``bench/results/demo.jsonl`` (one run: the demo's own table shows the spread over students).
"""

import os
import subprocess
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

from coreset.bench.docs import Block, machine
from coreset.bench.harness import read, record, write
from coreset.bench.processes import CORESET
from coreset.engine.runtime.text import readable_seconds


def main() -> None:
    """Run the demo once and record wall time, output and the report's size."""
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder, "demo-run")
        started = time.perf_counter()
        finished = subprocess.run(
            [*CORESET, "demo", "--out", str(run)],
            env=os.environ | {"CORESET_CACHE": f"{folder}/cache"},
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
        measured = {
            "wall_seconds": round(time.perf_counter() - started, 1),
            "output": finished.stdout.replace(f"{folder}/", "").strip(),
            "report_bytes": (run / "report.html").stat().st_size,
        }
    print(f"written: {write('demo', [record('demo', measured)])}")


def _time() -> str:
    (row,) = read("demo")
    return f"{readable_seconds(row['wall_seconds'])} on {machine(row)}."


BLOCKS: Mapping[str, Block] = {
    "demo_output": lambda: f"```\n{read('demo')[0]['output']}\n```",
    "demo_time": _time,
}


if __name__ == "__main__":
    main()
