import csv
from pathlib import Path

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
    ("counts", "sizes"),
    [
        ({"cat": 2, "dog": 2}, [10, 10]),
        ({"cat": 10}, [200, 10]),
        ({"cat": 15, "dog": 15}, [15_000, 15_000]),
        ({}, [1, 1]),
    ],
)
def test_few_refused_files_are_tolerated(tmp_path: Path, counts: dict[str, int], sizes: list[int]):
    require_few(refused(**counts), ["cat", "dog"], np.array(sizes), tmp_path / "list.csv")
    assert not (tmp_path / "list.csv").exists()


@pytest.mark.parametrize(
    ("counts", "sizes", "message"),
    [
        ({"cat": 1, "dog": 3}, [10, 10], r"4 of 20 files .* dog with 3 of 10 \(limit 2\)"),
        ({"cat": 6, "dog": 5}, [500, 500], r"11 of 1,000 files cannot be packed \(limit 10\)"),
        ({"cat": 31}, [15_000, 15_000], r"31 of 30,000 files cannot be packed \(limit 30\)"),
        ({"dog": 11}, [10_000, 200], r"dog with 11 of 200 \(limit 10\)"),
        ({"dog": 2}, [10, 2], r"dog with 2 of 2 \(limit 1\), such as dog/0.jpg \(truncated\)"),
        ({"dog": 1}, [10, 1], r"dog with 1 of 1 \(limit 0\)"),
    ],
)
def test_too_many_refused_files_stop_the_packing_and_are_listed(tmp_path, counts, sizes, message):
    listed = tmp_path / "list.csv"
    with pytest.raises(DataError, match=message) as caught:
        require_few(refused(**counts), ["cat", "dog"], np.array(sizes), listed)
    assert str(listed) in str(caught.value)
    with listed.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["class"] for row in rows] == [name for name, n in counts.items() for _ in range(n)]
    assert rows[0]["detail"] == "Premature, end"
