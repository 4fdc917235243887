"""Faults of the packing process: kills, failing sources, rivals, changed inputs, surroundings."""

import shutil
import subprocess
import time
from functools import partial
from pathlib import Path

import numpy as np

from coreset.bench.processes import WITH_PARENT
from coreset.bench.robustness import disks
from coreset.bench.robustness.cases import CORESET, ODD, N
from coreset.bench.robustness.contenders import shards_command, write_shards
from coreset.bench.robustness.faults import FAILING_FILE, class_name, write_photos
from coreset.bench.robustness.findings import (
    MANY,
    PER_SHARD,
    Command,
    Finding,
    ProcessCase,
    digests,
    last_line,
    pack,
    readable,
    refusal,
)
from coreset.bench.robustness.outcomes import Outcome, kill_group, run

_KILLS = 12
_POLL_SECONDS = 0.002
_LONGEST_WAIT_SECONDS = 0.2  # about what packing or writing that many photos takes
_ENVIRONMENTS = (
    ({"TZ": "UTC", "LANG": "C", "PYTHONHASHSEED": "0"}, 0o022, "1"),
    ({"TZ": "Asia/Kolkata", "LANG": "tr_TR.UTF-8", "PYTHONHASHSEED": "7"}, 0o077, "2"),
    ({"TZ": "America/St_Johns", "LC_ALL": "C.UTF-8", "PYTHONHASHSEED": "random"}, 0o002, "5"),
)


def _started(command: Command) -> "subprocess.Popen[bytes]":
    return subprocess.Popen(
        [*WITH_PARENT, *command],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def _kill_at_random(command: Command, seen: Path, rng: np.random.Generator) -> bool:
    """Kill a program some time after the folder ``seen`` has a file; tell if it still ran."""
    with _started(command) as process:
        while process.poll() is None and not (seen.is_dir() and any(seen.iterdir())):
            time.sleep(_POLL_SECONDS)
        time.sleep(rng.uniform(0, _LONGEST_WAIT_SECONDS))
        running = process.poll() is None
        if running:
            kill_group(process.pid)
    return running


def _killed_coreset(work: Path) -> Finding:
    src, rng, whole = write_photos(work / "src", MANY), np.random.default_rng(0), work / "WHOLE"
    run(pack(src, whole))
    same = hit = 0
    for kill in range(_KILLS):
        data = work / f"DATA-{kill}"
        hit += _kill_at_random(pack(src, data), data.with_name(f".{data.name}.partial"), rng)
        finished_right = not data.exists() or digests(data) == digests(whole)
        again = run(pack(src, data))
        same += finished_right and again.code == 0 and digests(data) == digests(whole)
    facts = f"{hit} of {_KILLS} kills hit, {same} of {_KILLS} ended in the same bytes when repeated"
    return (Outcome.RIGHT if same == _KILLS else Outcome.WRONG), facts


def _killed_webdataset(work: Path) -> Finding:
    src, rng = write_photos(work / "src", MANY), np.random.default_rng(0)
    hit = short = named = 0
    for kill in range(_KILLS):
        shards = work / f"shards-{kill}"
        shards.mkdir()
        if _kill_at_random(shards_command(src, shards, PER_SHARD), shards, rng):
            hit += 1
            samples, ended_well, text = readable(shards, work)
            short += ended_well and samples % PER_SHARD != 0
            named += not ended_well and "shard-" in text
    facts = (
        f"{hit} of {_KILLS} kills hit, {short} left a cut shard that reads without an error, "
        f"{named} one that gives an error"
    )
    if short:
        return Outcome.LOSS, facts
    return (Outcome.NAMED if named else Outcome.NAMELESS), facts


def _with_failing_file(work: Path) -> Path:
    """Write photos, one of which links to a file whose every read fails."""
    src = write_photos(work / "src", N)
    next((src / class_name(ODD)).iterdir()).unlink()
    (src / class_name(ODD) / "odd.JPEG").symlink_to(FAILING_FILE)
    return src


def _failing_source_coreset(work: Path) -> Finding:
    return refusal(pack(_with_failing_file(work), work / "DATA"), work / "DATA", ("odd.JPEG",))


def _failing_source_webdataset(work: Path) -> Finding:
    src, shards = _with_failing_file(work), work / "shards"
    shards.mkdir()
    ran = write_shards(src, shards, N)
    samples, ended_well, _ = readable(shards, work)
    left = f"exit {ran.code}, left a shard of {samples} of {N} samples under its final name"
    if ended_well:
        return Outcome.LEFT_SHORT if ran.code else Outcome.LOSS, left
    return (Outcome.NAMED if "odd.JPEG" in last_line(ran.text) else Outcome.NAMELESS), left


def _both(first: Command, second: Command) -> list[int]:
    """Return the exit codes of two programs started together."""
    return [process.wait() for process in [_started(first), _started(second)]]


def _rivals_coreset(work: Path) -> Finding:
    src, data = write_photos(work / "src", MANY), work / "DATA"
    codes = sorted(_both(pack(src, data), pack(src, data)))
    whole = run([*CORESET, "verify", data]).code == 0
    facts = f"exits {codes[0]} and {codes[1]}, DATA is {'whole' if whole else 'not whole'}"
    if not whole or codes not in ([0, 5], [0, 0]):
        return Outcome.WRONG, facts
    return (Outcome.NAMED if 5 in codes else Outcome.RIGHT), facts


def _rivals_webdataset(work: Path) -> Finding:
    first, second = _two_sources(work, MANY, MANY)
    shards = work / "shards"
    shards.mkdir()
    codes = _both(*(shards_command(src, shards, PER_SHARD) for src in (first, second)))
    counts, facts = _of_two_sources(shards, work, first, second)
    facts = f"exits {codes[0]} and {codes[1]}, {facts}"
    if codes != [0, 0]:
        return Outcome.NAMELESS, facts
    return (Outcome.WRONG if all(counts) else Outcome.LOSS), facts


def _two_sources(work: Path, n_first: int, n_second: int) -> tuple[Path, Path]:
    first = write_photos(work / "a", n_first)
    return first, write_photos(work / "b", n_second, first_seed=5000)


def _of_two_sources(shards: Path, work: Path, *sources: Path) -> tuple[list[int], str]:
    """Count the images of each source in the shards."""
    samples, ended_well, _ = readable(shards, work)
    stored = b"".join(path.read_bytes() for path in sorted(shards.glob("*.tar")))
    counts = [
        sum(path.read_bytes() in stored for path in sorted(src.glob("*/*"))) for src in sources
    ]
    reads = "without an error" if ended_well else "until an error"
    facts = f"{counts[0]} images of one and {counts[1]} of the other are left, {samples} read"
    return counts, f"{facts} {reads}"


def _changed_coreset(work: Path) -> Finding:
    src, data = write_photos(work / "src", N), work / "DATA"
    run(pack(src, data))
    before = digests(data)
    shutil.rmtree(src / class_name(ODD))
    ran = run(pack(src, data))
    kept = digests(data) == before
    facts = f"exit {ran.code}, {'nothing' if kept else 'something'} changed"
    if ran.code == 0 or not kept:
        return Outcome.WRONG, facts
    said_so = "n_found: 12 there, 11 here" in ran.text
    return (Outcome.NAMED if said_so else Outcome.NAMELESS), facts


def _changed_webdataset(work: Path) -> Finding:
    first, second = _two_sources(work, N, ODD)
    shards = work / "shards"
    shards.mkdir()
    codes = [write_shards(src, shards, 2).code for src in (first, second)]
    counts, facts = _of_two_sources(shards, work, first, second)
    if codes != [0, 0]:
        return Outcome.NAMELESS, facts
    return (Outcome.WRONG if all(counts) else Outcome.RIGHT), facts


def _environments_coreset(work: Path) -> Finding:
    src = write_photos(work / "src", N)
    outputs: list[dict[str, str]] = []
    for number, (env, umask, workers) in enumerate(_ENVIRONMENTS):
        data = work / f"DATA-{number}"
        run(pack(src, data, "--workers", workers), env=env, umask=umask)
        outputs.append(digests(data))
    return _same(outputs)


def _environments_webdataset(work: Path) -> Finding:
    src = write_photos(work / "src", N)
    outputs: list[dict[str, str]] = []
    for number, (env, umask, _) in enumerate(_ENVIRONMENTS):
        shards = work / f"shards-{number}"
        shards.mkdir()
        run(shards_command(src, shards, N), env=env, umask=umask)
        outputs.append(digests(shards))
    return _same(outputs)


def _same(outputs: list[dict[str, str]]) -> Finding:
    names = {name for one in outputs for name in one}
    differ = [name for name in names if len({one.get(name) for one in outputs}) > 1]
    facts = f"{len(differ)} of {len(names)} files differ between {len(outputs)} environments"
    return (Outcome.DIFFERS if differ or not names else Outcome.RIGHT), facts


def _leaked_coreset(work: Path) -> Finding:
    src, val = write_photos(work / "train", N), write_photos(work / "val", N, first_seed=99)
    for label in (1, ODD):
        leaked = src / class_name(label) / f"photo-{label:02d}.JPEG"
        shutil.copy(leaked, val / class_name(label) / "leaked.JPEG")
    for folder in (src, val):
        run(pack(folder, work / f"DATA-{folder.name}"))
    listed = work / "pairs.csv"
    words = ["--against", work / "DATA-val", "--pairs", listed]
    ran = run([*CORESET, "verify", work / "DATA-train", *words])
    found = len(listed.read_text().splitlines()) - 1 if listed.exists() else 0
    facts = f"{found} of 2 leaked images listed, exit {ran.code}"
    return (Outcome.TOLD if found == 2 and "warning: 2 of" in ran.text else Outcome.LOSS), facts


CASES: tuple[ProcessCase, ...] = (
    ProcessCase(
        row=1, fault="kill -9 while packing", injected=f"{_KILLS} kills at random instants",
        coreset=_killed_coreset, webdataset=_killed_webdataset,
    ),
    ProcessCase(
        row=2, fault="the source fails while packing", injected="a file whose reads fail",
        coreset=_failing_source_coreset, webdataset=_failing_source_webdataset,
    ),
    ProcessCase(
        row=24, fault="disk full while packing", injected=f"a disk of {disks.FULL_MB} MB",
        coreset=disks.full_disk_coreset, webdataset=disks.full_disk_webdataset,
        needs_root=True,
    ),
    ProcessCase(
        row=25, fault="too many open files", injected="two may be open beside the three streams",
        coreset=partial(disks.few_files, "coreset"),
        webdataset=partial(disks.few_files, "webdataset"),
    ),
    ProcessCase(
        row=25, fault="a file that may not be read", injected="mode 0, without root's rights",
        coreset=partial(disks.forbidden, "coreset"),
        webdataset=partial(disks.forbidden, "webdataset"),
    ),
    ProcessCase(
        row=25, fault="read-only disk", injected="the output's disk is mounted read-only",
        coreset=partial(disks.read_only, "coreset"),
        webdataset=partial(disks.read_only, "webdataset"),
        needs_root=True,
    ),
    ProcessCase(
        row=26, fault="two packers at once", injected="one output, started together",
        coreset=_rivals_coreset, webdataset=_rivals_webdataset,
    ),
    ProcessCase(
        row=29, fault="one output, another source", injected="packed again, from a smaller source",
        coreset=_changed_coreset, webdataset=_changed_webdataset,
    ),
    ProcessCase(
        row=36, fault="other surroundings",
        injected="time zone, locale, umask, hash seed, threads",
        coreset=_environments_coreset, webdataset=_environments_webdataset,
    ),
    ProcessCase(
        row=39, fault="validation images among the training images", injected="two copies",
        coreset=_leaked_coreset, webdataset=None, packs=False,
    ),
)  # fmt: skip
