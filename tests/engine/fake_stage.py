"""A stage that ends in every way a stage can; as a script, the command line with it as ``fake``."""

import errno
import os
import sys
import time
from dataclasses import dataclass
from importlib import import_module
from typing import Literal

from coreset.engine.runtime.fields import require_at_least
from coreset.engine.stages.options import Result, SetPath
from coreset.shards.errors import DataError, MachineError

MODULE = "fake"
ENTRY = ("SET", MODULE, "Fake", "end as asked")
ERRORS: dict[str, BaseException] = {
    "data": DataError("shard 3 is cut;\n   pack again"),
    "disk": OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "some/file"),
    "memory": MemoryError(),
    "absent": FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), "some/file"),
    "key": KeyboardInterrupt(),
    "bug": ZeroDivisionError("a bug of ours"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Fake:
    """End as asked."""

    out: SetPath
    """Where nothing is written."""
    ending: Literal[
        "done", "table", "data", "disk", "memory", "absent", "key", "bug", "wait", "import"
    ] = "done"
    """How to end."""
    epochs: int = 1
    """At least 1."""
    batch: int = 64
    """Images per step."""

    def __post_init__(self) -> None:
        require_at_least("epochs", self.epochs, 1)

    def run(self) -> Result:
        """End as asked."""
        if self.ending in ERRORS:
            raise ERRORS[self.ending]
        if self.ending == "table":
            return Result(("a table",), {"fit": False}, MachineError("the machine is unfit"))
        if self.ending == "import":
            import_module("half")
        if self.ending == "wait":
            print("waiting", flush=True)  # noqa: T201 - tells the test that the signal may come
            time.sleep(60)
        return Result(("made it", "next: `coreset ls`"), {"images": 7})


if __name__ == "__main__":
    from coreset.engine.cli import VERBS, run

    VERBS["fake"] = ENTRY
    sys.modules[f"coreset.engine.stages.{MODULE}"] = sys.modules["__main__"]
    run()
