"""Commands of the cases about the packing process, and checks of what they leave behind.

Where others write shards with ``webdataset.ShardWriter``, a reader then tells what they left: a
shard under its final name that reads to its end without an error counts as whole.
"""

import hashlib
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple, TypeAlias

from coreset.bench.robustness.cases import CORESET, N
from coreset.bench.robustness.contenders import shards_command
from coreset.bench.robustness.outcomes import Outcome, read_found, run
from coreset.engine.cli import BUG

Command: TypeAlias = Sequence[str | Path]
Finding: TypeAlias = tuple[Outcome, str]
"""Outcome, and the facts that it was told by."""
Packer: TypeAlias = Literal["coreset", "webdataset"]
Meet: TypeAlias = Callable[[Path], Finding]
"""Meets the fault in an empty folder."""
MANY = 600
"""Photos where a packing must last a while."""
PER_SHARD = 60


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessCase:
    """Fault of a process, and how each contender meets it."""

    row: int
    fault: str
    injected: str
    coreset: Meet
    webdataset: Meet | None
    packs: bool = True
    """Whether every packer could meet it."""
    needs_root: bool = False

    def cannot_run(self) -> str | None:
        """Return why it cannot be run here, None if it can."""
        without_root = self.needs_root and os.geteuid()
        return "needs root, to mount a small file system" if without_root else None


class Readable(NamedTuple):
    """Samples that the plain reader finds in shards."""

    samples: int
    ended_well: bool
    text: str


def pack(src: Path, data: Path, *options: str) -> Command:
    """Return the command that packs ``src`` under one name, whatever it is called."""
    return [*CORESET, "pack", src, data, "--name", "src",
            "--samples-per-shard", str(PER_SHARD), *options]  # fmt: skip


def digests(folder: Path) -> dict[str, str]:
    """Return sha256 of every file but the ledger, which alone holds times."""
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.iterdir())
        if path.is_file() and path.name != "ledger.jsonl"
    }


def readable(shards: Path, work: Path) -> Readable:
    """Read all shards of a folder with webdataset's plain loop."""
    found = Path(tempfile.mkdtemp(dir=work))
    words = ["read", found, *sorted(shards.glob("*.tar"))]
    ran = run([sys.executable, "-m", "coreset.bench.peers.faults_webdataset", *words])
    return Readable(len(read_found(found)), ran.code == 0, ran.text)


def output_of(packer: Packer, place: Path) -> Path:
    """Return where a packer writes below ``place``; ``ShardWriter`` wants an existing folder."""
    if packer == "coreset":
        return place / "DATA"
    (place / "shards").mkdir()
    return place / "shards"


def refused(
    packer: Packer, src: Path, out: Path, work: Path, names: Sequence[str], *, prefix: Command = ()
) -> Finding:
    """Run a packer on ``N`` photos, which it should refuse by one of ``names``."""
    if packer == "coreset":
        return refusal([*prefix, *pack(src, out)], out, names)
    return shard_refusal([*prefix, *shards_command(src, out, N)], out, work, names)


def refusal(command: Command, data: Path, names: Sequence[str]) -> Finding:
    """Test how ``coreset`` refuses: exit code, its one line, and nothing under the final name."""
    ran = run(command)
    there = "DATA exists" if data.exists() else "no DATA"
    said = last_line(ran.text)
    outcome = (
        Outcome.WRONG if ran.code == 0 or data.exists()
        else Outcome.NAMED if ran.code != BUG and any(name in said for name in names)
        else Outcome.NAMELESS
    )  # fmt: skip
    return outcome, f"exit {ran.code}, {there}"


def shard_refusal(command: Command, shards: Path, work: Path, names: Sequence[str]) -> Finding:
    """Test how ``ShardWriter`` ends, and whether what it leaves passes for whole."""
    ran = run(command)
    left = len(list(shards.glob("*.tar")))
    facts = f"exit {ran.code}, {left} shards left"
    if left:
        samples, ended_well, _ = readable(shards, work)
        if ended_well and samples < N:
            silent = Outcome.LEFT_SHORT if ran.code else Outcome.LOSS
            return silent, f"{facts}, {samples} of {N} samples read without an error"
    if ran.code == 0:
        return Outcome.RIGHT, facts
    named = any(name in last_line(ran.text) for name in names)
    return (Outcome.NAMED if named else Outcome.NAMELESS), facts


def last_line(text: str) -> str:
    """Return the last line that is not empty."""
    lines = [line for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else ""
