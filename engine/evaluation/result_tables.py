"""Tables of RESULTS: their names, their columns, and what rows of older versions lack."""

import json
from contextlib import suppress
from typing import Any, TypeAlias

import pyarrow as pa

from coreset.shards.format.files import parse

STUDENTS, METRICS = "students", "metrics"
CURVES, PER_CLASS = "curves", "per_class"
"""Tables with several rows for a row of ``students``, by its key."""
CLASSES, DUPLICATES = "classes", "duplicates"
"""Tables with several rows for a row of ``metrics``, by its key."""
PUBLISHED_PRECISION = "float32"
Row: TypeAlias = dict[str, Any]

_INPUT_COLUMNS: list[tuple[str, pa.DataType]] = [
    ("key", pa.string()),  # digest of everything that went in: one row per key
    ("data", pa.string()),  # name of the data set that the set condenses
    ("method", pa.string()),
    ("ipc", pa.int64()),
    ("set_kind", pa.string()),
    ("set_digest", pa.string()),
    ("set_path", pa.string()),  # relative to RESULTS
    ("set_seed", pa.int64()),
    ("parameters", pa.string()),  # JSON of the method's parameters
    ("val", pa.string()),
    ("val_path", pa.string()),
    ("val_identity", pa.string()),
    ("n_val", pa.int64()),
]
STUDENTS_SCHEMA = pa.schema(
    [
        *_INPUT_COLUMNS,
        ("protocol", pa.string()),  # name@version, +variant, +short where it is not comparable
        ("protocol_digest", pa.string()),  # sha256 of all its values, precision, teachers; or ""
        ("precision", pa.string()),  # float32, bfloat16
        ("teachers", pa.string()),  # JSON: [[name, sha256 of the weights], ...]; null: none
        ("epoch_best", pa.int64()),  # epochs done at the best evaluation
        ("top5_best", pa.float64()),  # percent, at that evaluation
        ("student", pa.string()),
        ("seed", pa.int64()),
        ("top1_best", pa.float64()),  # percent
        ("top1_last", pa.float64()),
        ("top5_last", pa.float64()),
        ("epochs", pa.int64()),
        ("evaluations", pa.int64()),
        ("size", pa.int64()),
        ("batch", pa.int64()),
        ("steps", pa.int64()),
        ("train_seconds", pa.float64()),
        ("evaluation_seconds", pa.float64()),
        ("peak_rss_bytes", pa.int64()),
        ("image_bytes", pa.int64()),
        ("label_bytes", pa.int64()),
        ("device", pa.string()),
        ("runtime", pa.string()),  # JSON: precision, threads, versions
    ]
)
CURVES_SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("epoch", pa.int64()),  # epochs done
        ("loss", pa.float64()),  # mean over the training of the epoch
        ("top1", pa.float64()),  # percent; null where there was no evaluation
        ("lr", pa.float64()),  # learning rate of the epoch's last step
    ]
)
PER_CLASS_SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("class", pa.string()),
        ("top1", pa.float64()),  # percent
        ("n", pa.int64()),  # validation images
    ]
)
METRICS_SCHEMA = pa.schema(
    [
        *_INPUT_COLUMNS,
        ("metric", pa.string()),  # name@version
        ("value", pa.float64()),  # mean over classes
        ("backbone", pa.string()),  # name@pixels
        ("weights", pa.string()),  # sha256 of the backbone's weights
        ("n_classes", pa.int64()),
        ("runtime", pa.string()),
    ]
)
CLASSES_SCHEMA = pa.schema(
    [("key", pa.string()), ("class", pa.string()), ("metric", pa.string()), ("value", pa.float64())]
)
DUPLICATES_SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("kind", pa.string()),  # exact: the same bytes; near: by the cosine
        ("place", pa.string()),  # of the copy: set or reference
        ("image", pa.string()),  # keys
        ("copy", pa.string()),
        ("cosine", pa.float64()),
    ]
)
SCHEMAS = {
    STUDENTS: STUDENTS_SCHEMA,
    CURVES: CURVES_SCHEMA,
    PER_CLASS: PER_CLASS_SCHEMA,
    METRICS: METRICS_SCHEMA,
    CLASSES: CLASSES_SCHEMA,
    DUPLICATES: DUPLICATES_SCHEMA,
}
_ALWAYS = [name for name, _ in _INPUT_COLUMNS]
_REQUIRED = {
    STUDENTS: (*_ALWAYS, "protocol", "student", "seed", "top1_best", "top1_last", "epochs",
               "evaluations", "size", "image_bytes"),
    CURVES: ("epoch",),
    METRICS: (*_ALWAYS, "metric", "backbone", "weights"),
}  # fmt: skip
_OBJECTS = ("parameters", "runtime")
"""Columns that hold a JSON object."""


def missing_columns(table: str, row: Row) -> list[str]:
    """Return the columns without which a row cannot be compared or shown, damaged ones too."""
    missing = [name for name in _REQUIRED[table] if row[name] is None]
    missing += [name for name in _OBJECTS if name in row and json_object(row[name]) is None]
    return missing + (["teachers"] if teacher_names(row.get("teachers")) is None else [])


def completed(row: Row) -> Row:
    """Fill the columns of a student that older versions did not write.

    They kept the precision in the runtime, and some of them in the stamp: it is in both from here.
    """
    row = row | {"protocol_digest": row["protocol_digest"] or ""}
    if row["precision"]:
        return row
    runtime = json_object(row["runtime"]) or {}  # a damaged one is refused by `missing_columns`
    precision = str(runtime.get("precision", PUBLISHED_PRECISION))
    stamp = str(row["protocol"] or "").replace("+bfloat16", "+bf16")
    if "bf16" in stamp.split("+"):
        precision = "bfloat16"
    elif precision == "bfloat16" and stamp:
        name, plus, changes = stamp.partition("+")
        stamp = f"{name}+bf16{plus}{changes}"
    return row | {"protocol": stamp or None, "precision": precision}


def json_object(text: str | None) -> dict[str, Any] | None:
    """Parse the JSON object in a cell; None where there is none."""
    with suppress(ValueError):
        return parse((text or "").encode())
    return None


def teacher_names(text: str | None) -> list[str] | None:
    """Parse the names in a cell of ``teachers``, none where it is empty; None if it is damaged."""
    try:
        return [str(name) for name, _digest in json.loads(text or "[]")]
    except (ValueError, TypeError, RecursionError):
        return None
