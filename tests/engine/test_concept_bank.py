"""Banks of concepts on disk: round trip, damage, and the data sets that they fit."""

import json
from dataclasses import replace

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from coreset.engine.artifacts.provenance import PROVENANCE_NAME, Provenance
from coreset.engine.artifacts.writer import create_artifact, output_digest
from coreset.engine.models.concept_bank import (
    BANK_KIND,
    CONCEPTS_NAME,
    EMBEDDINGS_NAME,
    Concept,
    ConceptBank,
    Encoder,
    write_bank,
)
from coreset.shards.errors import StoreError, UsageError
from coreset.shards.format.dataset import Dataset
from coreset.shards.format.files import json_bytes

ENCODER = Encoder(backbone="clip:tiny", weights="ab" * 32, size=32, width=4, prompt="a {}")
CLASSES = ("n01440764", "n02102040", "n02979186")
CONCEPTS = (
    Concept(text="thick lips", classes=CLASSES[:1]),
    Concept(text="small eyes", classes=CLASSES[:2], nearest="n01440764/photo_000"),
    Concept(text="buttons", classes=CLASSES[2:]),
)
ROWS = np.eye(3, 4, dtype=np.float32)


def publish(out, concepts=CONCEPTS, rows=ROWS, *, visual=False):
    """Make a bank as the verbs do."""
    provenance = Provenance(kind=BANK_KIND, stage="concepts import", config={})
    with create_artifact(out, provenance) as work:
        write_bank(work.scratch, ENCODER, concepts, rows, visual=visual)
    return out


@pytest.fixture
def folder(tmp_path):
    return publish(tmp_path / "BANK")


def forge(folder):
    """Let the provenance say that these files were made."""
    forged = replace(Provenance.read(folder), digest=output_digest(folder))
    (folder / PROVENANCE_NAME).write_bytes(json_bytes(forged.document()))


def changed(rows, at, value):
    rows = rows.copy()
    rows[at] = value
    return rows


def test_a_bank_comes_back_as_it_was_written(folder):
    bank = ConceptBank.open(folder)
    assert (bank.path, bank.visual) == (folder, False)
    assert (bank.encoder, bank.concepts) == (ENCODER, CONCEPTS)
    assert bank.embeddings.dtype == np.float32
    assert np.array_equal(bank.embeddings, ROWS)


@pytest.mark.parametrize(
    ("concepts", "rows", "words"),
    [
        ((), ROWS[:0], "there is no concept"),
        (CONCEPTS[:1] * 2, ROWS[:2], "concept 'thick lips' comes twice"),
        (CONCEPTS, ROWS[:2], r"shape \(3, 4\), got float32 of shape \(2, 4\)"),
        (CONCEPTS, ROWS.astype(float), r"must be float32 .* got float64"),
        (CONCEPTS, changed(ROWS, 1, np.nan), "embedding of 'small eyes' has length nan"),
        (CONCEPTS, changed(ROWS, 2, 0), "embedding of 'buttons' has length 0, must be 1"),
        (CONCEPTS, 1.01 * ROWS, r"'thick lips' has length 1.01, must be 1 \(3 in all\)"),
    ],
)
def test_what_makes_no_bank_is_not_written(concepts, rows, words, tmp_path):
    with pytest.raises(UsageError, match=f"concepts make no bank: .*{words}"):
        write_bank(tmp_path, ENCODER, concepts, rows, visual=False)
    assert not list(tmp_path.iterdir())


def rewrite(folder, change):
    path = folder / CONCEPTS_NAME
    document = json.loads(path.read_bytes())
    change(document)
    path.write_text(json.dumps(document))


DAMAGE = {
    "NaN row": lambda folder: save_file(
        {"embeddings": changed(load_file(folder / EMBEDDINGS_NAME)["embeddings"], 0, np.nan)},
        folder / EMBEDDINGS_NAME,
    ),
    "other tensor": lambda folder: save_file({"rows": ROWS}, folder / EMBEDDINGS_NAME),
    "no rows": lambda folder: (folder / EMBEDDINGS_NAME).unlink(),
    "cut rows": lambda folder: (folder / EMBEDDINGS_NAME).write_bytes(b"\x10\0"),
    "concept twice": lambda folder: rewrite(
        folder, lambda document: document["concepts"][1].update(text="thick lips")
    ),
    "unknown field": lambda folder: rewrite(folder, lambda document: document.update(odd=1)),
    "width": lambda folder: rewrite(folder, lambda document: document["encoder"].update(width=5)),
    "no JSON": lambda folder: (folder / CONCEPTS_NAME).write_text("{"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_bank_is_refused(name, folder):
    DAMAGE[name](folder)
    with pytest.raises(StoreError, match="holds other files than were made; make the bank again"):
        ConceptBank.open(folder)
    forge(folder)
    with pytest.raises(StoreError, match=r"cannot be read .*; make the bank again"):
        ConceptBank.open(folder)


def test_rows_in_another_order_are_refused(folder):
    save_file({"embeddings": ROWS[::-1].copy()}, folder / EMBEDDINGS_NAME)
    with pytest.raises(StoreError, match="holds other files than were made"):
        ConceptBank.open(folder)


def test_what_is_no_bank_is_refused(folder, tmp_path):
    (folder / CONCEPTS_NAME).unlink()
    with pytest.raises(UsageError, match="is no bank of concepts; make one with"):
        ConceptBank.open(folder)
    with pytest.raises(UsageError, match="does not exist"):
        ConceptBank.open(tmp_path / "none")


def test_a_bank_fits_a_data_set_of_its_classes(folder, packed, tmp_path):
    dataset = Dataset.open(packed)
    ConceptBank.open(folder).require_classes(dataset)
    pooled = publish(tmp_path / "pooled", [Concept(text="prototype #1")], ROWS[:1], visual=True)
    ConceptBank.open(pooled).require_classes(dataset)


@pytest.mark.parametrize(
    ("classes", "words"),
    [
        (CLASSES[:2], "has no concept of class n02979186 .1 classes without, 0 classes foreign"),
        ((*CLASSES, "cat"), "has concepts of cat .0 classes without, 1 classes foreign"),
        (("cat",), "has no concept of class n01440764 but some of cat .3 .* 1 classes foreign"),
    ],
)
def test_a_bank_of_other_classes_is_refused(classes, words, packed, tmp_path):
    concepts = [Concept(text=f"a {name}", classes=(name,)) for name in classes]
    rows = np.eye(len(classes), 4, dtype=np.float32)
    bank = ConceptBank.open(publish(tmp_path / "BANK", concepts, rows))
    with pytest.raises(UsageError, match=f"{words}.*is another data set; make a bank"):
        bank.require_classes(Dataset.open(packed))
