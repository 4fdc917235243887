"""Samples that a reader delivered, written one by one: a crash leaves what came before it."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

_KEPT_BYTES = 1 << 24
LIST_NAME = "samples.jsonl"


@dataclass(frozen=True, slots=True)
class Found:
    """Folder with ``samples.jsonl`` and an array of pixels per sample."""

    folder: Path

    def add(self, label: object, image: Any, *, key: str = "") -> None:  # noqa: ANN401 - whatever a reader gives
        """Note one sample: its label, its pixels if it has any, its key if the reader knows it."""
        self.folder.mkdir(exist_ok=True)
        path = self.folder / LIST_NAME
        row: dict[str, Any] = {"label": label if isinstance(label, int) else None, "key": key}
        with path.open("a") as file:
            if image is not None:
                row["shape"] = list(image.shape)
                if image.nbytes <= _KEPT_BYTES:
                    row["pixels"] = f"{file.tell():09d}.npy"
                    np.save(self.folder / row["pixels"], image)
            file.write(json.dumps(row) + "\n")
