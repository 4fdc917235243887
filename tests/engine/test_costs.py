"""Costs by part, and the lines through them: ledgers with known numbers, sets with known slopes."""

import json
from dataclasses import asdict

import pytest

from coreset.engine.artifacts.costs import (
    LinearCost,
    gpu_and_core_seconds,
    part_seconds,
    unrecorded,
)
from coreset.engine.artifacts.ledger import append_lines
from coreset.engine.artifacts.provenance import Provenance
from coreset.engine.artifacts.writer import create_artifact
from coreset.engine.condensed.condensed_set import SET_NAME, SetInfo
from coreset.engine.condensed.systems import SYSTEMS
from coreset.shards.format.files import json_bytes


def line(stage, wall_seconds, **more):
    return {
        "stage": stage,
        "config_digest": "c",
        "started": f"{stage} {wall_seconds}",
        "host": "h",
        "wall_seconds": wall_seconds,
        "cpu_seconds": 2 * wall_seconds,
        "images": 100,
        "peak_rss_bytes": 2**30,
        "device": "cpu",
        "interrupted": False,
        **more,
    }


def test_stages_are_parts_and_a_synthesis_tells_its_own():
    lines = [
        line("pack", 1.0),
        line("teach", 20.0),
        line("concepts visual", 300.0),
        line("score", 5.0),
        line("embed", 60.0),
        line("unheard of", 700.0),
        line("select", 0.5),
        line("distill", 100.0, parts={"classes": 30.0, "images": 50.0, "passes": 4.0}),
    ]
    # What distill did not time, 100 - 84, is counted with the images.
    own = {"assets": 321.0, "passes": 5 + 60 + 700 + 4.0, "classes": 30.5, "images": 50 + 16.0}
    assert part_seconds([*lines, *lines]) == own
    assert sum(own.values()) == 1 + 20 + 300 + 5 + 60 + 700 + 0.5 + 100


def test_parts_that_ranks_summed_exceed_the_wall_time_and_count_whole():
    parts = {"classes": 90.0, "images": 60.0}
    assert part_seconds([line("distill", 100.0, parts=parts)])["images"] == 60.0
    by_two = part_seconds([line("distill", 100.0, parts=parts, ranks=2)])
    assert (by_two["classes"], by_two["images"]) == (90.0, 110.0)


@pytest.mark.parametrize("parts", [None, [1], {"images": "x"}, {"coffee": 5.0}])
def test_parts_of_a_wrong_form_are_as_if_there_were_none(parts):
    assert part_seconds([line("distill", 7.0, parts=parts)])["images"] == 7.0


def test_gpu_time_is_of_devices_and_core_time_of_processors():
    lines = [line("score", 10.0, device="cuda", ranks=4), line("select", 1.0)]
    assert gpu_and_core_seconds(lines) == (40.0, 2.0)


def test_two_sets_give_the_planted_line_exactly_and_have_no_residual():
    fit = LinearCost.fit([100, 500], [12.0 + 0.25 * 100, 12.0 + 0.25 * 500])
    assert (fit.fixed, fit.per_image) == (pytest.approx(12.0), pytest.approx(0.25))
    assert (fit.residual, fit.n) == (0.0, 2)


def test_three_sets_give_the_line_of_least_squares_and_its_largest_distance():
    # By hand: means 2 and 4, slope (1 * 3 + 1 * 2) / 2, distances 1/2, 1 and 1/2.
    fit = LinearCost.fit([1, 2, 3], [1.0, 5.0, 6.0])
    assert (fit.fixed, fit.per_image) == (pytest.approx(-1.0), pytest.approx(2.5))
    assert fit.residual == pytest.approx(1.0)
    with pytest.raises(ValueError, match="two numbers of images, got \\[100\\]"):
        LinearCost.fit([100, 100], [1.0, 2.0])


@pytest.fixture
def planted(tmp_path):
    """``planted(NAME, METHOD, IPC, LINES)``: a condensed set of ten classes with such a ledger."""

    def plant(name, method, ipc, lines, *, stage="distill", config=None):
        provenance = Provenance(kind="set", stage=stage, config={"name": name} | (config or {}))
        with create_artifact(tmp_path / name, provenance) as work:
            info = SetInfo(
                kind="distilled",
                method=method,
                parameters={"ipc": ipc},
                seed=0,
                source_name="photos",
                source_identity="i",
                source_content="c",
                n_classes=10,
                ipc=ipc,
                per_class=(ipc,) * 10,
            )
            (work.scratch / SET_NAME).write_bytes(json_bytes(asdict(info)))
        (tmp_path / name / "ledger.jsonl").unlink()
        append_lines(tmp_path / name, lines)
        return tmp_path / name

    return plant


def ledger_of(ipc):
    """8 s of assets, 3 s of a start, 6 s for ten classes and 0.5 s for each of their images."""
    parts = {"classes": 2.0, "images": 0.5 * 10 * ipc}
    wall = 3.0 + sum(parts.values())
    return [line("pack", 8.0), line("score", 4.0), line("distill", wall, parts=parts)]


def test_costs_of_several_sets_stand_side_by_side(planted, done):
    few = planted("few", "rded", 10, ledger_of(10))
    many = planted("many", "rded", 50, ledger_of(50))
    _, first, second, *_ = done("cost", few, many)
    assert first.split() == [
        str(few), "rded", "10", "8.00", "s", "4.00", "s", "2.00", "s", "53.0", "s", "59.0", "s",
        "1", "min", "07", "s", "0.000", "0.037",
    ]  # fmt: skip
    assert "4 min 19 s" in second


def test_the_table_fits_each_method_projects_and_prints_its_arithmetic(planted, done):
    sets = [planted(f"r{ipc}", "rded", ipc, ledger_of(ipc)) for ipc in (10, 50)]
    sets.append(planted("m", "fadrm+", 10, ledger_of(10)))
    text = "\n".join(done("cost", *sets, "--table"))
    # A hundred times the classes and no second start: 5,603 s, and 25,603 s at IPC 50.
    assert "(3 s + 6 s x 1,000 / 10 classes + 0.5 s x 10,000 images) / 3600 = 1.56 h" in text
    assert "(3 s + 6 s x 1,000 / 10 classes + 0.5 s x 50,000 images) / 3600 = 7.11 h" in text
    rows = {row.split("  ")[0]: row for row in text.splitlines()}
    assert "0, of two sets" in rows["rded"]
    assert rows["rded"].endswith("training of the teacher")
    assert "needs two IPCs" in rows["fadrm+"]
    assert "2.5 / 12.5" in rows["fadrm+"]
    assert "FADRM+ (printed)" not in rows
    assert "17.28" in rows["G-VBSM (printed)"]
    assert "12.8 / 51.7" in rows["ManifoldGD (printed)"]
    told = json.loads(done("cost", *sets, "--table", "--json")[0])
    fit = told["fits"]["rded, photos"]
    assert (fit["fixed"], fit["per_image"]) == (pytest.approx(9.0), pytest.approx(0.5))
    assert [entry["own"] for entry in told["sets"]] == [59.0, 259.0, 59.0]


def test_runs_that_took_less_for_more_images_are_told(planted, done):
    sets = [planted(f"r{ipc}", "rded", ipc, [line("distill", 500.0 / ipc)]) for ipc in (10, 50)]
    text = "\n".join(done("cost", *sets, "--table"))
    assert "warning: rded, photos took less for more images" in text


@pytest.mark.parametrize("seconds", [float("nan"), float("inf"), -1.0])
def test_lines_of_impossible_times_are_left_out(planted, done, seconds):
    lines = [line("pack", 8.0), line("score", seconds)]
    text = "\n".join(done("cost", planted("set", "rded", 10, lines)))
    assert "8.00 s wall time" in text
    assert "score" not in text


def test_coresets_are_fitted_by_the_same_rules(planted, done):
    lines = [line("pack", 8.0), line("score", 40.0), line("select", 2.0)]
    sets = [planted(f"a{ipc}", "ccs-aum", ipc, lines, stage="select") for ipc in (10, 50)]
    fit = json.loads(done("cost", *sets, "--table", "--json")[0])["fits"]["ccs-aum, photos"]
    assert (fit["fixed"], fit["per_image"]) == (pytest.approx(42), pytest.approx(0, abs=1e-9))
    rows = {row.split("  ")[0]: row for row in done("cost", *sets, "--table")}
    assert "6.0 / 6.0" in rows["ccs-aum"]
    assert SYSTEMS["AUM"].left_out in rows["ccs-aum"]


def test_what_no_ledger_has_is_named(planted, done, tmp_path):
    teachers = {"teachers": ["a" * 64, "b" * 64]}
    built = planted("built", "fadrm+", 10, ledger_of(10), config=teachers)
    taken = planted("taken", "minimax", 10, [line("ingest", 1.0)], stage="ingest")
    embedded = planted("f", "k", 1, [], config={"backbone": "net", "weights": "w"})
    assert unrecorded(built) == ("training of 2 teachers",)
    assert unrecorded(taken) == ("the work of others",)
    assert unrecorded(embedded) == ("training of net",)
    assert unrecorded(tmp_path / "nothing") == ()
    text = "\n".join(done("cost", built, taken, "--table"))
    assert f"* not recorded of {built}: training of 2 teachers" in text
    taken_row = next(row for row in text.splitlines() if row.startswith(f"{taken} "))
    assert taken_row.count("not recorded") == 2
    assert not any(row.startswith("minimax") for row in text.splitlines())


def test_several_artifacts_must_be_sets(planted, tmp_path, refused):
    known = planted("known", "rded", 10, ledger_of(10))
    other = tmp_path / "other"
    other.mkdir()
    append_lines(other, [line("pack", 1.0)])
    assert "is not a condensed set" in refused(tmp_path, "cost", known, other)
    assert "has no ledger" in refused(tmp_path, "cost", known, tmp_path)
    assert "got none; name condensed sets" in refused(tmp_path, "cost")
