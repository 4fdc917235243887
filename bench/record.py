"""One JSON line per measurement, with what is needed to judge it: hardware, versions, commit."""

import json
import os
import platform
import re
import subprocess
import sysconfig
import tempfile
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from coreset.engine.artifacts.provenance import versions
from coreset.engine.doctor.machine import check_gpu

RESULTS = Path(__file__).resolve().parent / "results"


def hardware() -> dict[str, Any]:
    """Processor, usable cores, memory in GiB, GPU if any."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    flags = next((line.split() for line in lines if line.startswith("flags")), [])
    return {
        "processor": models[0] if models else platform.machine(),
        "bfloat16": [name for name in ("avx512_bf16", "amx_bf16") if name in flags],
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(pages / 2**30, 1),
        "gpu": dict(next(check_gpu(RESULTS)).facts) or None,
    }


def commit() -> str:
    """Commit of the checkout, with ``+`` if the tree differs from it."""
    root = Path(__file__).resolve().parent.parent
    git = ["git", "-C", str(root)]
    try:
        name = subprocess.run(
            [*git, "rev-parse", "--short", "HEAD"], capture_output=True, check=True
        )
        dirty = subprocess.run(
            [*git, "status", "--porcelain", "-uno"], capture_output=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return name.stdout.decode().strip() + ("+" if dirty.stdout.strip() else "")


def record(bench: str, measured: Mapping[str, Any]) -> dict[str, Any]:
    """A measurement with its circumstances."""
    return {
        "bench": bench,
        **measured,
        "date": datetime.now(UTC).date().isoformat(),
        "commit": commit(),
        "hardware": hardware(),
        "versions": versions(),
    }


def write(name: str, records: Iterable[Mapping[str, Any]]) -> Path:
    """Replace ``bench/results/NAME.jsonl`` by these records, without places of this machine."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.jsonl"
    path.write_text("".join(portable(json.dumps(one)) + "\n" for one in records))
    return path


def portable(text: str) -> str:
    """The text with names in place of this machine's folders, which programs print in messages."""
    places = {
        sysconfig.get_path("purelib"): "SITE-PACKAGES",
        sysconfig.get_path("stdlib"): "PYTHON",
        str(Path(__file__).resolve().parents[1]): "CHECKOUT",
        tempfile.gettempdir(): "TMP",
    }
    for place, name in places.items():  # site-packages may lie in the checkout: the inner first
        text = re.sub(rf"(?<![\w.-]){re.escape(place)}(?=/|\b)", name, text)
    return text


def read(name: str) -> list[dict[str, Any]]:
    """Records of ``bench/results/NAME.jsonl``."""
    path = RESULTS / f"{name}.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()]
