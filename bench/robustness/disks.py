"""Faults of the machine while packing: full or read-only disk, too many files, no rights."""

import subprocess
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from coreset.bench.robustness.cases import ODD, N
from coreset.bench.robustness.contenders import write_shards
from coreset.bench.robustness.faults import class_name, write_photos
from coreset.bench.robustness.findings import (
    MANY,
    PER_SHARD,
    Finding,
    Packer,
    digests,
    last_line,
    output_of,
    pack,
    readable,
    refusal,
    refused,
)
from coreset.bench.robustness.outcomes import Outcome, run

FULL_MB = 3
# Root may read everything: these two rights are taken from it.
_WITHOUT_RIGHTS = ("setpriv", "--bounding-set=-dac_override,-dac_read_search")
# Standard streams take three of them; with one more, Python cannot even import as it goes.
_FEW_FILES = ("prlimit", "--nofile=5")


@contextmanager
def small_disk(place: Path, megabytes: int) -> Generator[None]:
    """Mount a file system of a few megabytes; needs root."""
    place.mkdir()
    options = f"size={megabytes}m"
    subprocess.run(["/bin/mount", "-t", "tmpfs", "-o", options, "tmpfs", place], check=True)
    try:
        yield
    finally:
        subprocess.run(["/bin/umount", place], check=True)


def full_disk_coreset(work: Path) -> Finding:
    """Pack onto a full disk, then again with more space."""
    src, whole = write_photos(work / "src", 2 * MANY), work / "WHOLE"
    run(pack(src, whole))
    with small_disk(work / "disk", FULL_MB):
        data = work / "disk" / "DATA"
        outcome, facts = refusal(pack(src, data), data, ("free",))
        _remount(work / "disk", "size=64m")
        again = run(pack(src, data))
        same = again.code == 0 and digests(data) == digests(whole)
    end = "the same bytes once there was room" if same else "not continued"
    return (outcome if same else Outcome.WRONG), f"{facts}, {end}"


def full_disk_webdataset(work: Path) -> Finding:
    """Write shards onto a full disk, then read what is left under final names."""
    src = write_photos(work / "src", 2 * MANY)
    with small_disk(work / "disk", FULL_MB):
        shards = work / "disk" / "shards"
        shards.mkdir()
        ran = write_shards(src, shards, PER_SHARD)
        left = len(list(shards.glob("*.tar")))
        samples, ended_well, _ = readable(shards, work)
    facts = f"exit {ran.code}, {left} shards left, {samples} of {2 * MANY} read"
    if ended_well:
        return Outcome.LEFT_SHORT if ran.code else Outcome.LOSS, f"{facts} without an error"
    return (Outcome.NAMED if "shard-" in last_line(ran.text) else Outcome.NAMELESS), facts


def few_files(packer: Packer, work: Path) -> Finding:
    """Pack with fewer open files than are needed."""
    src = write_photos(work / "src", N)
    return refused(packer, src, output_of(packer, work), work, ("open files",), prefix=_FEW_FILES)


def forbidden(packer: Packer, work: Path) -> Finding:
    """Pack a source with a file that may not be read."""
    src = write_photos(work / "src", N)
    odd = next((src / class_name(ODD)).iterdir())
    odd.chmod(0)
    return refused(packer, src, output_of(packer, work), work, (odd.name,), prefix=_WITHOUT_RIGHTS)


def read_only(packer: Packer, work: Path) -> Finding:
    """Pack onto a disk mounted read-only."""
    src = write_photos(work / "src", N)
    with small_disk(work / "disk", FULL_MB):
        out = output_of(packer, work / "disk")
        _remount(work / "disk", "ro")
        return refused(packer, src, out, work, ("/disk/",))


def _remount(place: Path, option: str) -> None:
    subprocess.run(["/bin/mount", "-o", f"remount,{option}", place], check=True)
