"""A synthetic data set as a user makes it: packed, whole, with its truth in id order."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from coreset.engine.stages.synth import TRUTH_NAME, Synth
from coreset.engine.stages.verify import Verify
from coreset.shards.format.dataset import Dataset
from coreset.shards.sources.synthetic import Synthetic


def make(data: Path, **options: Any) -> Dataset:
    settings: dict[str, Any] = {"images": 60, "classes": 4, "size": "24", "samples_per_shard": 16}
    Synth(data=data, **settings | options).run()
    return Dataset.open(data)


def test_the_truth_lies_beside_the_samples_in_their_order(tmp_path: Path):
    dataset = make(tmp_path / "DATA", label_noise=0.2, workers=3)
    Verify(data=dataset.path, deep=True).run()
    truth = pq.read_table(dataset.path / TRUTH_NAME).to_pydict()
    synthetic = Synthetic(images=60, classes=4, size=24, label_noise=0.2)
    assert truth["key"] == dataset.keys
    assert truth["label"] == dataset.labels.tolist()
    assert sum(truth["flipped"]) == 12
    assert sorted(truth["key"]) == sorted(synthetic.keys)
    wrong = np.array(truth["label"]) != np.array(truth["true_label"])
    np.testing.assert_array_equal(wrong, truth["flipped"])
