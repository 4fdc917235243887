"""How long the demo takes from nothing, and what it prints.

    python -m coreset.bench.demo

Runs ``coreset demo`` in a fresh folder with an empty feature cache, as a user would, and writes
``bench/results/demo.jsonl`` (one run: the demo's own table already tells the spread over students).
"""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from coreset.bench.record import record, write


def main() -> None:
    """Run the demo once and record wall time, output and the report's size."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        started = time.perf_counter()
        finished = subprocess.run(
            [sys.executable, "-m", "coreset.engine.cli", "demo", "--out", str(out / "demo-run")],
            env=os.environ | {"CORESET_CACHE": str(out / "cache")},
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
        measured = {
            "wall_seconds": round(time.perf_counter() - started, 1),
            "output": finished.stdout.replace(str(out) + "/", "").strip(),
            "report_bytes": (out / "demo-run" / "report.html").stat().st_size,
        }
    print(f"written: {write('demo', [record('demo', measured)])}")


if __name__ == "__main__":
    main()
