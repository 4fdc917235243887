"""Limits of refused files, and the list of them."""

import csv

import numpy as np
import pytest

from coreset.shards.errors import DataError
from coreset.shards.packing.pack import require_few


def refused(**classes: int) -> list[dict[str, object]]:
    return [
        {"position": at, "source": f"{name}/{at}.jpg", "key": f"{name}/{at}", "class": name,
         "bytes": 3, "content_hash": bytes(16), "reason": "truncated", "detail": "Premature, end"}
        for name, count in classes.items()
        for at in range(count)
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("counts", "sizes", "message"),
    [
        ({"cat": 2, "dog": 2}, [10, 10], ""),
        ({"cat": 10}, [200, 10], ""),
        ({"cat": 15, "dog": 15}, [15_000, 15_000], ""),
        ({}, [1, 1], ""),
        ({"cat": 1, "dog": 3}, [10, 10], r"4 of 20 files .* dog with 3 of 10 \(limit 2\)"),
        ({"cat": 6, "dog": 5}, [500, 500], r"11 of 1,000 files cannot be packed \(limit 10\)"),
        ({"cat": 31}, [15_000, 15_000], r"31 of 30,000 files cannot be packed \(limit 30\)"),
        ({"dog": 11}, [10_000, 200], r"dog with 11 of 200 \(limit 10\)"),
        ({"dog": 2}, [10, 2], r"dog with 2 of 2 \(limit 1\), such as dog/0.jpg \(truncated\)"),
        ({"dog": 1}, [10, 1], r"dog with 1 of 1 \(limit 0\)"),
    ],
)
def test_too_many_refused_files_stop_the_packing_and_are_listed(tmp_path, counts, sizes, message):
    listed, rows = tmp_path / "list.csv", refused(**counts)
    if not message:
        require_few(rows, ["cat", "dog"], np.array(sizes), listed)
        assert not listed.exists()
        return
    with pytest.raises(DataError, match=f"{message}.*{listed}"):
        require_few(rows, ["cat", "dog"], np.array(sizes), listed)
    with listed.open(newline="") as file:
        told = list(csv.DictReader(file))
    assert [row["source"] for row in told] == [row["source"] for row in rows]
    assert told[0]["detail"] == "Premature, end"
