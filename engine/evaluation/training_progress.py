"""Training of a student with its progress shown and its image passes counted."""

from pathlib import Path

from coreset.engine.artifacts.ledger import Meter
from coreset.engine.evaluation.students import History, Student
from coreset.engine.runtime.device import memory_shortage
from coreset.engine.runtime.progress import progress
from coreset.shards.errors import MachineError


def train_with_progress(
    student: Student, title: str, meter: Meter, scratch: Path, *, paid: Path | None = None
) -> History:
    """Run ``Student.train``, and raise ``MachineError`` where memory runs out.

    The cost so far is kept in the artifact folder ``paid``, if there is one, after every epoch.
    """
    protocol, n = student.protocol, len(student.images.train)
    with progress(title, protocol.epochs, "epochs") as bar:

        def tell(history: History) -> None:
            if history.epochs == student.resumed_epochs:
                bar.resume(history.epochs)
                return
            best = {"best": f"{history.best.top1:.1f} %"} if history.epoch_best else {}
            bar.advance(1, **best, loss=f"{history.curve[-1].loss:.3g}")
            meter.images += n
            if paid is not None:
                meter.checkpoint(paid)

        try:
            return student.train(scratch, tell)
        except (MemoryError, RuntimeError) as error:
            if (shortage := memory_shortage(error)) is None:
                raise
            raise MachineError(  # a smaller batch would be another protocol
                f"{shortage[0]}; the batch of {protocol.batch} is the protocol's and stays: use a "
                "smaller --size, --precision bf16, or another device"
            ) from error
