import pytest

from coreset.bench import harness


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
