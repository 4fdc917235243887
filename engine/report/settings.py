"""Conditions of a comparison, in words."""

from dataclasses import dataclass

from coreset.engine.evaluation.result_tables import PUBLISHED_PRECISION, teacher_names


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Setting:
    """Conditions that must be equal for accuracies to be comparable."""

    data: str
    val: str
    val_identity: str
    n_val: int
    protocol: str
    student: str
    ipc: int
    epochs: int
    size: int
    evaluations: int
    precision: str = PUBLISHED_PRECISION
    protocol_digest: str = ""
    teachers: str = ""
    """JSON as in the column of ``students``; empty where there are none."""

    @property
    def training(self) -> str:
        """Protocol and student, with teachers and precision."""
        return ", ".join((self.protocol, self.student, *self.unusual))

    @property
    def unusual(self) -> list[str]:
        """Precision where it is not float32, and teachers where there are any, in words."""
        precisions = [] if self.precision == PUBLISHED_PRECISION else [self.precision]
        names = teacher_names(self.teachers)
        return [*precisions, f"taught by {' + '.join(names)}"] if names else precisions

    @property
    def title(self) -> str:
        """Name the setting and, where the protocol was shortened, how."""
        how = f", {self.epochs} epochs, {self.pixels_and_evaluations}" if self.short else ""
        return f"{self.data}, IPC {self.ipc}, {self.training}{how}"

    @property
    def digest(self) -> str:
        """Start of the protocol's digest; empty where it was not recorded."""
        return self.protocol_digest and f"digest {self.protocol_digest[:8]}"

    @property
    def short(self) -> bool:
        """Test whether the protocol was shortened: not comparable with published numbers."""
        return self.protocol.endswith("+short")

    @property
    def of_timm(self) -> bool:
        """Test whether the students kept norm layers of their own: not the published protocol."""
        return "+timm" in self.protocol

    @property
    def pixels_and_evaluations(self) -> str:
        """Image size and number of evaluations, in words."""
        return f"{self.size} px, {self.evaluations} evaluations"
