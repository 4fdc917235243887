import pytest

from coreset.bench import harness
from coreset.bench.harness import Absent


@pytest.fixture
def results(tmp_path, monkeypatch):
    """An empty folder in place of ``bench/results``."""
    monkeypatch.setattr(harness, "RESULTS", tmp_path / "results")
    return tmp_path / "results"


@pytest.fixture
def record_rows(results):
    """Writes rows as records of their parts, with circumstances; returns the folder."""
    about = {
        "hardware": {"processor": "some", "bfloat16": ["amx"], "cores": 2, "memory_gib": 8},
        "versions": {"torch": "2"},
        "date": "2026-01-01",
        "commit": "abc",
        "threads": 2,
    }

    def write(*rows):
        harness.write(rows[0]["bench"].partition(".")[0], [about | row for row in rows])
        return results

    return write


def _raced(name, role, rate, **fields):
    seconds = 1000 / rate
    return {
        "bench": "decode.rrc-original", "input": "imagenet", "input_note": "some",
        "crop": "random", "pixels": "float32", "contender": name, "role": role, "images": 1000,
        "images_per_second": rate, "seconds": [seconds], "median_seconds": seconds,
        "min_seconds": seconds, "max_seconds": seconds, "peer_versions": {}, **fields,
    }  # fmt: skip


@pytest.fixture
def raced():
    """Rows of a race: ours, two peers, a part of ours, a limit, and an absent peer."""
    over = {"slow": 4.0, "quick": 2.0, "parts": 1.5, "decode": 0.9}
    about = {"bench", "input", "input_note", "crop", "pixels"}
    gone = {key: value for key, value in _raced("", "", 1).items() if key in about}
    return [
        _raced("coreset", "ours", 2000, speed_over=over, pixels_max=1.0, pixels_mean=0.16),
        _raced("slow", "peer", 500),
        _raced("quick", "peer", 1000),
        _raced("parts", "ours", 1300),
        _raced("decode", "limit", 2200),
        gone | Absent(name="gone", reason="No module named 'gone'").row(),
    ]
