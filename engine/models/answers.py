"""Answers to what the classes of a data set look like: asked one by one, kept, and split up.

``answers.jsonl`` in a bank holds one line per class, in label order: the class, the prompt that the
model was given, its answer as it came, and if the model ended the answer itself.
"""

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from coreset.engine.artifacts.writer import ArtifactWriter
from coreset.engine.models.generation import load_model
from coreset.engine.runtime.fields import require_class_size
from coreset.engine.runtime.progress import progress
from coreset.shards.errors import ManifestError, UsageError
from coreset.shards.format.dataset import Dataset
from coreset.shards.format.files import build, fsync_path, parse
from coreset.shards.images.probe import as_rgb, opened
from coreset.shards.tables.table import wnids_in

if TYPE_CHECKING:
    import torch

    from coreset.engine.data.reader import ShardReader

ANSWERS_NAME = "answers.jsonl"
QUESTION = (
    "List distinct visual attributes of the class {}: short phrases, separated by commas, "
    "without the name of the class."
)
# Commas within numbers (1,000) separate nothing. "1." and "2)" do, also within a line.
_SEPARATOR = re.compile(r"(?<!\d),|,(?!\d)|[;\n]|(?<![^\s,;])\(?\d{1,2}[.)](?!\d)")
_HEAD = re.compile(r"^(?:[-\u2013\u2014\u2022+]\s*|and\s+)+", re.IGNORECASE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """One line of ``answers.jsonl``, where ``name`` is called class."""

    name: str
    prompt: str
    answer: str
    ended: bool
    """The model ended it; otherwise it was cut at the most tokens allowed."""

    def line(self) -> bytes:
        """Write it as a line of JSON."""
        columns = {"class": self.name, "prompt": self.prompt}
        columns |= {"answer": self.answer, "ended": self.ended}
        return json.dumps(columns, ensure_ascii=False).encode() + b"\n"

    @staticmethod
    def parse(line: bytes) -> "Answer":
        """Read a line; a ValueError says why it is none."""
        document = parse(line)
        return build(Answer, {"name" if key == "class" else key: document[key] for key in document})

    def phrases(self) -> list[str]:
        """Split the answer; the last phrase of one that was cut is left out, as it is not whole."""
        phrases = parse_answer(self.answer)
        return phrases if self.ended or len(phrases) == 1 else phrases[:-1]


def questions_of(
    dataset: Dataset, words: Mapping[str, str], question: str, images: int
) -> list[str]:
    """Put the words for each class, without underscores, into a question, in label order.

    Raises:
        UsageError: A class has fewer than ``images`` images, or a WordNet id for words.
    """
    require_class_size(dataset, "images", images)
    if nameless := [name for name in dataset.classes if wnids_in([words[name]])]:
        raise UsageError(
            f"class {nameless[0]} is a WordNet id outside ImageNet-1K ({len(nameless)} in all); "
            "pack the images again in folders that are named in words"
        )
    spoken = (words[name].replace("_", " ") for name in dataset.classes)
    return [question.replace("{}", name) for name in spoken]


def write_answers(
    work: ArtifactWriter,
    dataset: Dataset,
    questions: Sequence[str],
    model: Path,
    device: "torch.device",
) -> list[Answer]:
    """Ask a question about each class, showing as many images as recorded; commit every answer.

    Questions and answers are in label order. Answers that an interrupted run committed are kept.
    """
    from coreset.engine.data.reader import ShardReader

    path, classes = work.scratch / ANSWERS_NAME, dataset.classes
    images, longest = (work.provenance.config[name] for name in ("images", "max_new_tokens"))
    answers = _committed(path, classes)
    if len(answers) == len(classes):
        return answers
    asked = load_model(model, device)
    with progress("generate", len(classes), "classes") as bar, ShardReader(dataset) as reader:
        bar.resume(len(answers))
        for label in range(len(answers), len(classes)):
            prompt = asked.prompt(questions[label], images)
            shown = _images(dataset, reader, label, images)
            text, ended = asked.answer(prompt, shown, longest)
            answers.append(Answer(name=classes[label], prompt=prompt, answer=text, ended=ended))
            _commit(path, answers[-1])
            work.meter.images += images
            work.meter.checkpoint(work.scratch)
            bar.advance()
    return answers


def _commit(path: Path, answer: Answer) -> None:
    with path.open("ab") as file:
        file.write(answer.line())
        file.flush()
        os.fsync(file.fileno())
    fsync_path(path.parent)


def _committed(path: Path, classes: Sequence[str]) -> list[Answer]:
    """Read the answers up to the first line that is not whole, and cut the file there."""
    answers: list[Answer] = []
    lines = path.read_bytes().splitlines(keepends=True) if path.is_file() else []
    for line, name in zip(lines, classes, strict=False):
        try:
            answer = Answer.parse(line)
        except ValueError:
            break
        if answer.name != name or answer.line() != line:
            break
        answers.append(answer)
    if lines:
        os.truncate(path, sum(len(answer.line()) for answer in answers))
    return answers


def _images(dataset: Dataset, reader: "ShardReader", label: int, n: int) -> list[Image.Image]:
    """Decode n images of a class, evenly spread over its ids, to RGB at their stored size."""
    ids = np.flatnonzero(dataset.labels == label)
    chosen = ids[(2 * np.arange(n) + 1) * ids.size // max(1, 2 * n)].tolist()
    images: list[Image.Image] = []
    for sample in chosen:
        size = int(dataset.ints("width")[sample]), int(dataset.ints("height")[sample])
        try:
            with opened(reader.read_one(sample), size) as stored:
                images.append(as_rgb(stored))
        except ValueError as error:
            raise ManifestError(
                f"{reader.name_of(sample)} cannot be decoded ({error}); run `coreset verify "
                f"{dataset.path}`"
            ) from error
    return images


def parse_answer(text: str) -> list[str]:
    """Split an answer into phrases: at commas, semicolons, ends of lines, numbers of a list.

    Dashes before a phrase, "and" before the last, stars of Markdown, and headings, which end with a
    colon, are dropped.
    """
    pieces = (piece.strip() for piece in _SEPARATOR.split(text.replace("*", "")))
    phrases = [_HEAD.sub("", piece).strip() for piece in pieces]
    return [phrase for phrase in phrases if phrase and not phrase.endswith(":")]
