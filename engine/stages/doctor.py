"""``coreset doctor``: check the machine, and compare its device with the CPU."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from coreset.engine.doctor.machine import Check, Verdict, findings
from coreset.engine.runtime.fields import require_at_least, require_between
from coreset.engine.runtime.progress import show
from coreset.engine.stages.options import DeviceChoice, Result
from coreset.shards.errors import MachineError, UsageError
from coreset.shards.format.dataset import Dataset

if TYPE_CHECKING:
    from coreset.engine.doctor.speeds import Context

MOST_SAMPLES = 1000
"""All are compared at once: as float32 they take 0.6 GB, a few times over."""
_LINE = "{:<36}  {:<7}  {}"
_HEADER = _LINE.format("check", "verdict", "value; remedy")


@dataclass(frozen=True, slots=True, kw_only=True)
class Doctor:
    """Look at cores, memory, disk, file system, packages and GPU; exit 4 if they are unfit.

    With DATA also prove on some of its samples, in about two minutes, that decoding, augmentations
    and scores on the device are those of the CPU, measure speeds, and project them to ImageNet.
    """

    data: Annotated[Path | None, tyro.conf.Positional, tyro.conf.arg(metavar="DATA")] = None
    """Packed data set to prove the device on."""
    path: Path = Path()
    """Folder where artifacts will be written; its disk and file system are probed."""
    device: DeviceChoice = "auto"
    """Device to check; auto: a GPU if there is one."""
    samples: int = 256
    """Images of DATA, spread evenly over it, that the proofs use; they are held in memory."""
    seconds: float = 5.0
    """Seconds for which each speed is measured."""

    def __post_init__(self) -> None:
        require_between("samples", self.samples, 1, MOST_SAMPLES + 1)
        require_at_least("seconds", self.seconds, 0)

    def run(self) -> Result:
        """Run every check and show its line as it ends; the result carries the failure."""
        if not self.path.is_dir():
            raise UsageError(f"path {self.path} is not a folder; make it or name another one")
        context = self._context()
        table = [] if show(_HEADER) else [_HEADER]  # what machines read comes at the end
        checks, proofs = _shown(findings(self.path), table), list[Check]()
        data: dict[str, Any] = {"checks": _by_name(checks)}
        last = "this machine is fit; `coreset demo` tries it out"
        if context is not None:
            from coreset.engine.doctor.proofs import prove

            proofs = _shown(prove(context), table)
            data |= {"device": str(context.device), "samples": context.ids.size}
            data |= {"seconds": context.seconds, "proofs": _by_name(proofs)}
            last = f"every proof holds on {context.device}; projections are arithmetic"
        failed = [check for check in (*checks, *proofs) if check.verdict is Verdict.FAIL]
        data = {"fit": not failed, **data}
        if not failed:
            return Result((*table, last), data)
        reasons = "; ".join(f"{check.name}: {check.value}, {check.remedy}" for check in failed)
        return Result(tuple(table), data, MachineError(f"this machine is unfit: {reasons}"))

    def _context(self) -> "Context | None":
        if self.data is None and self.device == "auto":
            return None
        from coreset.engine.runtime.device import resolve_device

        device = resolve_device(self.device)
        if self.data is None:
            raise UsageError(f"device {self.device} is proved on DATA; name a packed data set")
        from coreset.engine.doctor.speeds import context_of

        dataset = Dataset.open(self.data)
        return context_of(dataset, device, samples=self.samples, seconds=self.seconds)


def _shown(checks: Iterable[Check], table: list[str]) -> list[Check]:
    """Show each check as soon as it ends, or add its line to ``table``; return them all."""
    shown: list[Check] = []
    for check in checks:
        shown.append(check)
        value = "; ".join(filter(None, (check.value, check.remedy)))
        line = _LINE.format(check.name, check.verdict.value, value)
        if not show(line):
            table.append(line)
    return shown


def _by_name(checks: Iterable[Check]) -> dict[str, dict[str, Any]]:
    return {check.name: asdict(check) for check in checks}
