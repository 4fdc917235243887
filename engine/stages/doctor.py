"""``coreset doctor``: what this machine has, and whether it is fit."""

from dataclasses import asdict, dataclass
from pathlib import Path

from engine.config import Outcome
from engine.machine import Check, Verdict, findings
from engine.tables import aligned
from shards.errors import MachineError, UsageError

_HEADER = ("check", "value", "verdict", "remedy")


@dataclass(frozen=True, slots=True, kw_only=True)
class Doctor:
    """Look at cores, memory, disk, file system, packages and GPU; exit 4 if they are unfit."""

    path: Path = Path()
    """Folder where artifacts will be written; its disk and file system are probed."""

    def run(self) -> Outcome:
        """Run every check; the outcome carries the failure, so that the table goes out first."""
        if not self.path.is_dir():
            raise UsageError(f"path {self.path} is not a folder; make it or name another one")
        found = findings(self.path)
        failed = [check for check in found if check.verdict is Verdict.FAIL]
        facts = {"fit": not failed, "checks": {check.name: asdict(check) for check in found}}
        table = aligned(_HEADER, [_row(check) for check in found])
        if not failed:
            return Outcome((*table, "this machine is fit; `coreset demo` tries it out"), facts)
        reasons = "; ".join(f"{check.name}: {check.value}, {check.remedy}" for check in failed)
        return Outcome(table, facts, MachineError(f"this machine is unfit: {reasons}"))


def _row(check: Check) -> tuple[str, str, str, str]:
    return check.name, check.value, check.verdict.value, check.remedy
