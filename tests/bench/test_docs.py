"""Blocks of the documents: in step with the results, with failures and absences named."""

import pytest

from coreset.bench import docs, harness
from coreset.bench.decode_races import BEST, reached
from coreset.bench.docs import DOCUMENTS, PATTERN, Docs, Table, blocks, if_present, optional


def test_the_documents_are_in_step_with_the_results():
    Docs(check=True).run()


def test_every_block_is_in_a_document():
    texts = [(harness.ROOT / name).read_text() for name in DOCUMENTS]
    assert {match[2] for text in texts for match in PATTERN.finditer(text)} == set(blocks())


def test_a_document_out_of_step_is_refused_and_rewritten(tmp_path, monkeypatch):
    page = tmp_path / "page.md"
    page.write_text("<!-- bench:demo_time -->\nold\n<!-- /bench -->\n")
    monkeypatch.setattr(docs, "ROOT", tmp_path)
    monkeypatch.setattr(docs, "DOCUMENTS", ("page.md",))
    with pytest.raises(SystemExit, match=r"page\.md is out of step"):
        Docs(check=True).run()
    Docs().run()
    assert (
        page.read_text()
        == f"<!-- bench:demo_time -->\n{blocks()['demo_time']()}\n<!-- /bench -->\n"
    )
    Docs(check=True).run()


def test_cells_are_format_strings_or_functions_and_empty_without_a_value():
    rows = [{"a": 1, "b": {"c": 2.0}, "n": None}, {"a": 3, "b": {"c": 4.0}, "absent": "gone"}]
    columns = {
        "a": "{a}",
        "c": "{b[c]:.1f}",
        "n": optional("n", "{n}"),
        "ran": if_present(lambda row: str(row["a"] + 1)),
        "why": if_present("-", reason=True),
    }
    assert Table(lambda: rows, columns)().splitlines() == [
        "| a | c | n | ran | why |",
        "| --- | --- | --- | --- | --- |",
        "| 1 | 2.0 |  | 2 | - |",
        "| 3 | 4.0 |  |  | absent: gone |",
    ]


TIMES = {"min_seconds": 1.0, "median_seconds": 2.0, "max_seconds": 3.0}


@pytest.mark.parametrize("part", ["original", "resized", "open"])
def test_packing_tells_ratios_failures_and_absences(part, record_rows):
    row = {"bench": f"pack.{part}", "input": "imagenet", "role": "peer", "limit_seconds": None}
    timed = {"images_per_second": 1500.0, "mb_per_second": 160.0, "limit_seconds": 5.0, **TIMES}
    ours = {"speed_over": {"peer": 1.25, "gone": 9.0}, "targets": {"peer": 1.1}, "role": "ours"}
    record_rows(
        row | timed | ours | {"contender": "coreset pack"},
        row | timed | {"contender": "peer"},
        row | {"contender": "gone", "absent": "no wheel"},
        row | {"contender": "bad", "failed": "6 of 7 images"},
    )
    table = blocks()[f"pack_{part}"]()
    assert {line.count(" | ") for line in table.splitlines()} == {2 if part == "open" else 6}
    cells = ["2.00 (1.00-3.00) | 5 s |"] if part == "open" else ["| 1.25 | 1.10 |"]
    cells += ["2.00 (1.00-3.00)", "absent: no wheel", "failed: 6 of 7 images"]
    assert all(cell in table for cell in cells), table


def test_memory_of_packing_has_a_limit_or_a_failure(record_rows):
    row = {"bench": "pack.memory", "input": "tiny", "contender": "pack", "images": 2000}
    row |= {"peak_pss_bytes": 250e6, "allowed_bytes": 300e6, "failed": ""}
    record_rows(row, row | {"failed": "exit code 3"})
    table = blocks()["pack_memory"]()
    assert "| pack | 2,000 (tiny) | 250 MB | 300 MB |" in table
    assert "| exit code 3 | 300 MB |" in table


def test_loading_tells_goals_speeds_and_absences(raced, record_rows):
    raced[0] |= reached(raced, raced[0], {BEST: 1.2, "decode": 0.85})
    record_rows(*raced)
    goals = blocks()["decode_goals"]().splitlines()
    assert goals[2].endswith("| coreset | 2,000 | quick (peer) | 1,000 | 2.00 | 1.20 |")
    assert goals[3].endswith("| coreset | 2,000 | decode (limit) | 2,200 | 0.90 | 0.85 |")
    table = blocks()["decode_random"]()
    assert "| coreset | 2,000 | 0.50 (0.50-0.50) |  | 0.90 | 1 / 0.16 |" in table
    assert "| gone | absent: No module named 'gone' |" in table
    assert "1 rounds by turns (some, 2 cores, 8 GiB)" in blocks()["decode_circumstances"]()


def test_growth_tells_the_cost_of_each_further_image(record_rows):
    row = {
        "failed": "", "peak_above_bytes": 600_000_000, "peak_anonymous_bytes": 400_000_000,
        "peak_data_bytes": 0, "peak_scratch_bytes": 90_000_000, "artifact_bytes": 50_000_000,
        "verb": "synth", "bench": "score_scale.pixels",
    }  # fmt: skip
    score = row | {"verb": "score", "images": 100, "wall_seconds": 5.0, "scores_bytes": 6000}
    record_rows(
        row | {"images": 100, "wall_seconds": 2.0},
        score,
        row | {"images": 300, "wall_seconds": 3.0, "peak_above_bytes": 7e8},
        score | {"images": 300, "failed": "exit code 4: full"},
    )
    lines = blocks()["score_scale_pixels"]().splitlines()
    assert (
        lines[3]
        == "| `synth` | 300 | 3.0 | 10,000 | 5,000 | 400 | 700 | 0 | 90 | 50.0 | 166,666.7 |"
    )
    assert lines[4] == "| `score` | 100 | 5.0 | 50,000 |  | 400 | 600 | 0 | 90 | 0.0 | 60.0 |"
    assert lines[5] == "| `score` | 300 | failed: exit code 4: full |  |  |  |  |  |  |  |  |"


def test_a_projection_is_arithmetic_on_what_was_counted(record_rows):
    # A million images, ten epochs, 3 GFLOP and 48 MB each: 3e16 FLOP are 150 s at 0.2 PFLOP/s,
    # 4.8e14 bytes 120 s at 4 TB/s.
    row = {"bench": "dynamics.arithmetic", "samples": 1_000_000, "batch": 100}
    cost = {"flops_per_image": 3_000_000_000, "bytes_per_image": 48_000_000, "bytes_per_step": 0}
    vendor = {"gpu": "X1", "peak_flops": 1e15, "peak_bytes": 4e12, "shares": [0.2, 0.4]}
    record_rows(
        row | {"name": "arithmetic", "size": 128, "pixel_bytes": 49_152, **cost},
        row | {"name": "projection", "recipe": "fast@1", "sizes": [128] * 10, **vendor},
    )
    table = blocks()["dynamics_projection"]().splitlines()
    assert table[2] == "| fast@1 | 10 x 128 px | 3e+16 | 2 | 1 | 2 |"
    assert "| 128 px | 3.00 | 48 | 62 | 49.2 | 49 |" in blocks()["dynamics_arithmetic"]()
    assert "1000 TFLOP/s" in blocks()["dynamics_assumed"]()


def test_accumulation_tells_shares_speeds_and_failures(record_rows):
    row = {"bench": "dynamics.peers", "role": "ours", "contender": "AUM", "batch": 100}
    record_rows(
        row | {"contender": "aum", "role": "peer", "absent": "ImportError: no"},
        row | {"failed": "AUM differs"},
        row
        | {"seconds": [0.1, 0.3, 0.2], "images": 1000, "images_per_second": 5000.0}
        | {"speed_over": {"aum": 21.04}, "goal": 20.0},
    )
    assert blocks()["dynamics_peers"]().splitlines()[2:] == [
        "| aum (peer) | ImportError: no |  |  |  |",
        "| AUM (ours) | wrong: AUM differs |  |  |  |",
        "| AUM (ours) | 5,000 | 20.000 (10.000-30.000) | 21.0 | 20 |",
    ]
