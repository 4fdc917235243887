"""Blocks of the documents: in step with the results, with failures and absences named."""

import pytest

from coreset.bench import docs, harness
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


ABOUT = {"input": "imagenet", "input_note": "some", "crop": "random", "pixels": "float32"}
TIMED = {
    "min_seconds": 1.0, "median_seconds": 2.0, "max_seconds": 3.0, "seconds": [2.0],
    "images_per_second": 1500.0, "mb_per_second": 160.0,
}  # fmt: skip


def test_races_tell_goals_speeds_failures_and_absences(record_rows):
    ours = TIMED | {"speed_over": {"peer": 1.25, "decode": 0.9}, "role": "ours"}
    peer = TIMED | {"contender": "peer", "role": "peer"}
    gone = {"contender": "gone", "role": "peer", "absent": "no wheel"}
    bad = {"contender": "bad", "role": "peer", "failed": "6 of 7 images"}
    ours_packs = ours | {"contender": "coreset pack", "targets": {"peer": 1.1}}
    rows = (ours_packs, peer, gone, bad)
    record_rows(*({"bench": "pack.resized"} | ABOUT | row for row in rows))
    table = blocks()["pack_resized"]()
    assert {line.count(" | ") for line in table.splitlines()} == {6}
    assert "| peer | 1,500 | 160 | 2.00 (1.00-3.00) | 1.25 | 1.10 |" in table
    assert "absent: no wheel" in table
    assert "failed: 6 of 7 images" in table

    targets = {"best peer": 1.2, "decode": 0.85}
    ours |= {"contender": "coreset", "targets": targets, "pixels_max": 1.0, "pixels_mean": 0.16}
    rows = (ours, peer, TIMED | {"contender": "decode", "role": "limit"}, gone)
    record_rows(*({"bench": "decode.rrc-original"} | ABOUT | row for row in rows))
    goals = blocks()["decode_goals"]().splitlines()
    assert goals[2].endswith("| coreset | 1,500 | peer (peer) | 1,500 | 1.25 | 1.20 |")
    assert goals[3].endswith("| coreset | 1,500 | decode (limit) | 1,500 | 0.90 | 0.85 |")
    lines = blocks()["decode_random"]().splitlines()
    assert lines[2].endswith("| coreset | 1,500 | 2.00 (1.00-3.00) |  | 0.90 | 1 / 0.16 |")
    assert "| gone | absent: no wheel |" in lines[5]
    assert "some. 2 threads" in blocks()["decode_circumstances"]()


def test_growth_tells_the_cost_of_each_further_image(record_rows):
    row = {
        "failed": "", "peak_bytes": 600_000_000, "peak_anonymous_bytes": 400_000_000,
        "artifact_bytes": 50_000_000,
        "verb": "synth", "bench": "score_scale.pixels",
    }  # fmt: skip
    score = row | {"verb": "score", "images": 100, "wall_seconds": 5.0, "scores_bytes": 6000}
    record_rows(
        row | {"images": 100, "wall_seconds": 2.0},
        score,
        row | {"images": 300, "wall_seconds": 3.0, "peak_bytes": 7e8},
        score | {"images": 300, "failed": "exit code 4: full"},
    )
    lines = blocks()["score_scale_pixels"]().splitlines()
    assert lines[3] == "| `synth` | 300 | 3.0 | 10,000 | 5,000 | 400 | 700 | 50.0 | 166,666.7 |"
    assert lines[4] == "| `score` | 100 | 5.0 | 50,000 |  | 400 | 600 | 0.0 | 60.0 |"
    assert lines[5] == "| `score` | 300 | failed: exit code 4: full |  |  |  |  |  |  |"
