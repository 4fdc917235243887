"""Artifacts forged on purpose, outputs in traps, and loaders left or used by other processes.

Only ``coreset`` is asked: the others keep no tables to forge, and open what they are told to open.
"""

import json
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from coreset.bench.robustness.cases import CORESET, N
from coreset.bench.robustness.faults import write_photos
from coreset.bench.robustness.findings import Command, Finding, ProcessCase, last_line, pack
from coreset.bench.robustness.outcomes import Outcome, run
from coreset.engine.cli import BUG
from coreset.shards.format.dataset import SAMPLES_NAME, Dataset
from coreset.shards.format.files import sha256_of_file
from coreset.shards.format.manifest import MANIFEST_NAME

_LOADERS = {
    "dropped": """
import os
for _ in range(15):
    next(iter(coreset.loader(DATA, batch=4)))
print("open files:", len(os.listdir("/proc/self/fd")))
assert len(os.listdir("/proc/self/fd")) < 30
""",
    "forked": """
import os
loader = coreset.loader(DATA, batch=4)
next(iter(loader))
child = os.fork()
if not child:
    next(iter(loader))
assert os.waitpid(child, 0)[1] == 0
""",
    "workers": """
from torch.utils.data import DataLoader
next(iter(DataLoader(coreset.loader(DATA), num_workers=2)))
""",
}


def _packed(work: Path) -> Path:
    data = work / "DATA"
    if (packed := run(pack(write_photos(work / "src", N), data))).code:
        raise ValueError(f"the photos cannot be packed: {packed.text}")
    return data


def _exchange_offsets(data: Path) -> None:
    first, second, *others = Dataset.open(data).samples["offset"].to_pylist()
    _replace_offsets(data, [second, first, *others])


def _move_offset_away(data: Path) -> None:
    _, *others = Dataset.open(data).samples["offset"].to_pylist()
    _replace_offsets(data, [1 << 62, *others])


def _replace_offsets(data: Path, offsets: list[int]) -> None:
    table = Dataset.open(data).samples
    at = table.schema.get_field_index("offset")
    forged = table.set_column(at, table.schema.field(at), pa.array(offsets, pa.int64()))
    pq.write_table(forged, data / SAMPLES_NAME)
    _edit_manifest(data, samples_sha256=sha256_of_file(data / SAMPLES_NAME))


def _edit_manifest(data: Path, **values: object) -> None:
    path = data / MANIFEST_NAME
    path.write_text(json.dumps(json.loads(path.read_bytes()) | values))


def _nest_manifest(data: Path) -> None:
    (data / MANIFEST_NAME).write_text("[" * 100_000)


def _verified(forge: Callable[[Path], None], words: tuple[str, ...], work: Path) -> Finding:
    data = _packed(work)
    forge(data)
    return _refused([*CORESET, "verify", data, "--deep"], words)


def _promised_ids(work: Path) -> Finding:
    """Write a header that promises 8 TB into a file of a few bytes."""
    data, ids = _packed(work), work / "SET" / "ids.npy"
    run([*CORESET, "select", data, ids.parent, "--ipc", "1"])
    promised = np.lib.format.header_data_from_array_1_0(np.zeros(1, np.int64))
    with ids.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, promised | {"shape": (10**12,)})
    return _refused(
        [*CORESET, "export", ids.parent, work / "OUT", "--to", "ids"], (str(ids.parent),)
    )


def _refused(command: Command, words: tuple[str, ...]) -> Finding:
    ran = run(command)
    named = ran.code != BUG and any(word in last_line(ran.text) for word in words)
    outcome = Outcome.WRONG if ran.code == 0 else Outcome.NAMED if named else Outcome.NAMELESS
    return outcome, f"exit {ran.code}, at most {ran.peak_mb} MB"


def _trapped(place: Callable[[Path], Path], work: Path) -> Finding:
    """Pack where something lies already; what a link points to must stay as it is."""
    precious = work / "precious"
    precious.write_text("kept")
    out = place(work)
    ran = run(pack(write_photos(work / "src", N), out))
    if precious.read_text() != "kept":
        return Outcome.WRONG, "a file elsewhere was overwritten"
    named = ran.code not in (0, BUG) and str(out.name) in last_line(ran.text)
    return (Outcome.NAMED if named else Outcome.NAMELESS), f"exit {ran.code}"


def _linked_lock(work: Path) -> Path:
    (work / ".DATA.lock").symlink_to(work / "precious")
    return work / "DATA"


def _dangling(work: Path) -> Path:
    (work / "DATA").symlink_to(work / "nowhere")
    return work / "DATA"


def _loaded(program: str, words: tuple[str, ...], work: Path) -> Finding:
    data = str(_packed(work))
    ran = run([sys.executable, "-c", f"import coreset\nDATA = {data!r}\n{_LOADERS[program]}"])
    if ran.code == 0:
        return Outcome.RIGHT, last_line(ran.text)
    named = any(word in ran.text for word in words)
    outcome = Outcome.NAMED if named else Outcome.NAMELESS if ran.in_time else Outcome.HANG
    return outcome, f"exit {ran.code}"


def _case(row: int, fault: str, injected: str, meet: Callable[[Path], Finding]) -> ProcessCase:
    return ProcessCase(
        row=row, fault=fault, injected=injected, coreset=meet, webdataset=None, packs=False
    )


CASES: tuple[ProcessCase, ...] = (
    _case(44, "exchanged offsets", "of two samples, digests made to fit",
          partial(_verified, _exchange_offsets, ("offset", "shard-000000"))),
    _case(44, "an offset beyond its shard", "2^62, digests made to fit",
          partial(_verified, _move_offset_away, ("offset",))),
    _case(44, "a manifest without shards", "12 samples in none",
          partial(_verified, partial(_edit_manifest, shards=[]), ("shards",))),
    _case(44, "a manifest nested deeply", "100,000 brackets",
          partial(_verified, _nest_manifest, (MANIFEST_NAME,))),
    _case(44, "ids that promise 8 TB", "a header alone", _promised_ids),
    _case(45, "a lock that is a link", "to a file elsewhere", partial(_trapped, _linked_lock)),
    _case(45, "an output that is a link", "to nothing", partial(_trapped, _dangling)),
    _case(45, "an output below a file", "precious/DATA",
          partial(_trapped, lambda work: work / "precious" / "DATA")),
    _case(45, "an output in /proc", "/proc/DATA", partial(_trapped, lambda _: Path("/proc/DATA"))),
    _case(46, "loaders that are dropped", "15, without a close", partial(_loaded, "dropped", ())),
    _case(46, "a loader in a forked process", "in the middle of an epoch",
          partial(_loaded, "forked", ("process",))),
    _case(46, "a loader below workers", "of torch's DataLoader",
          partial(_loaded, "workers", ("workers",))),
)  # fmt: skip
