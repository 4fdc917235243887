"""Claims of the study: its verdicts on its own values, the rule language, and cells of RESULTS."""

import json
from collections import Counter
from dataclasses import replace
from decimal import Decimal
from itertools import product
from statistics import fmean, pstdev

import pytest

from coreset.engine.condensed.systems import property_of
from coreset.engine.evaluation import published
from coreset.engine.evaluation.cells import (
    Accuracy,
    Cell,
    Cells,
    measured_cells,
    published_cells,
)
from coreset.engine.evaluation.claims import (
    NOT_CHECKABLE,
    NOT_RUN,
    Claim,
    _word,
    judge,
    read_claims,
)
from coreset.engine.evaluation.result_tables import STUDENTS
from coreset.engine.evaluation.rules import AbsentError, Rule
from coreset.shards.errors import UsageError

CLAIMS = read_claims()


def expected(claim):
    """The study's verdict; what needs other values than its tables is not run on them."""
    by_values = claim.from_published != NOT_CHECKABLE or claim.test.startswith("no rule")
    return claim.from_published if by_values else NOT_RUN


def test_published_values_give_the_published_verdicts():
    verdicts = {name: str(judge(claim, published_cells())) for name, claim in CLAIMS.items()}
    assert verdicts == {name: expected(claim) for name, claim in CLAIMS.items()}
    words = Counter(verdict.split()[0] for verdict in verdicts.values())
    assert len(verdicts) == 194
    assert {"holds", "fails", "mixed", "coreset", "distilled", "tau=0.270"} <= words.keys()


def test_published_tables_are_whole():
    tables = (published.rows("tables"), published.rows("cost"), published.rows("misratio"))
    assert [len(table) for table in tables] == [400, 12, 60]
    for place in {
        (row["dataset"], row["method"], row["ipc"]) for row in published.rows("misratio")
    }:
        rows = [
            row
            for row in published.rows("misratio")
            if (row["dataset"], row["method"], row["ipc"]) == place
        ]
        (best,) = [row for row in rows if row["is_best"] == "1"]
        assert float(best["accuracy"]) == max(float(row["accuracy"]) for row in rows)


def accuracies(text):
    """Read ``A 1.5 0.3, B 2 0``: mean and std by method."""
    words = (each.split() for each in text.split(", "))
    return {name: Accuracy(Decimal(mean), Decimal(std)) for name, mean, std in words}


TEN = "VLCP 1 1, D3HR 2 1, Minimax 3 1, DiT 4 1, MGD 5 1, ManifoldGD 6 1, FADRM+ 7 1, "
HERE, SOFT, OTHER = (
    Cell("D", "hard", "S", 10), Cell("D", "edc", "S", 10), Cell("E", "hard", "S", 10),
)  # fmt: skip
SMALL = Cells(
    accuracies={
        HERE: accuracies(f"{TEN}Random 8 3, AUM 8 4, Concepts 6.5 0.5"),
        # Concepts swap with the four from D3HR to MGD beyond noise.
        SOFT: accuracies(f"{TEN}Random 8 3, AUM 8 4, Concepts 0.5 0.5"),
        OTHER: accuracies(f"{TEN}Random 9 0, AUM 10 NaN, Concepts 11 0"),
    },
    values={
        ("hours", "D", "DiT", 10): Decimal(1), ("hours", "D", "DiT", 50): Decimal(5),
        ("hours", "D", "AUM", 10): Decimal(3), ("hours", "D", "AUM", 50): Decimal(3),
        ("div", "D", "AUM", 10): Decimal("0.5"), ("div", "D", "AUM", 10, "['n1']"): Decimal("0.7"),
        **{
            ("acc", "D", "AUM", 10, Decimal(beta)): Decimal(value)
            for beta, value in (("0.1", 5), ("0.3", 7), ("0.5", 6), ("0.7", 6), ("0.9", 1))
        },
    },
)  # fmt: skip


def rule(at=None, **options):
    return Rule(cells=SMALL, domain=(HERE, OTHER), at=at or HERE._asdict(), **options)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("mean('Concepts')", Decimal("6.5")),
        ("mean('Concepts', dataset='E')", 11),
        ("std('AUM')", 4),
        ("has('AUM')", True),
        ("has('AUM-hardest')", False),
        ("has('AUM', ipc=50)", False),
        ("best(DD)", 7),
        ("worst(DD)", 1),
        ("best(DD + CS, dataset='E')", 11),
        ("arg(CS)", {"Random", "AUM"}),
        ("arg(CS) & arg(['AUM'])", {"AUM"}),
        ("arg(DD) & arg(CS) == set()", True),
        ("arg(DD) == {'FADRM+'}", True),
        ("1.1180 < noise(['FADRM+'], ['Concepts']) < 1.1181", True),
        ("noise(CS, ['Random'])", 5),  # the larger std of the tied Random and AUM
        ("mean_of(mean(m) for m in SCORED)", Decimal("7.25")),
        ("count(mean(m) > 5 for m in DD)", 2),
        ("median(mean(m) for m in DD)", 4),
        ("spread(mean(m) for m in DD)", 6),
        ("max(mean(m) for m in SCORED) - min(mean('AUM'), 2)", 6),
        ("hours('DiT', 50)", 5),
        ("breakeven('DiT', 'AUM')", 30),  # 1 h and 0.1 h an image against 3 h
        ("div('AUM')", Decimal("0.5")),
        ("div('AUM', classes=['n1'])", Decimal("0.7")),
        ("acc('AUM', 0.7)", 6),
        ("acc('AUM', 0.7, ipc=10)", 6),
        ("best_beta('AUM') in [0.3]", True),
        ("max_acc('AUM')", 7),
        ("acc_range('AUM')", 6),
        ("tau_beta('AUM') < 0", True),
        ("tau('hard', 'hard') == 1", True),
        ("reversals('hard', 'edc')", 4),
        ("reversals(*['hard', 'hard'])", 0),
        ("registry('AUM', 'classifier')", "classifier of AUM"),
        ("0.1 + 0.2 == 0.3", True),
        ("3 - 1 * 2 / 4.0", Decimal("2.5")),
        ("1 < 2 <= 2 < 2", False),
        ("1 > 2 or not 1 >= 2 and 1 != 2", True),
        ("'AUM' in SCORED and 'AUM' not in DD", True),
        ("'yes' if mean('AUM') == 8 else nothing", "yes"),
        ("mean_of(count(a < b for b in [1, 2, 3]) for a in [1, 2])", Decimal("1.5")),
    ],
)
def test_an_expression_has_the_value_of_a_small_table(text, value):
    found = rule(registry=lambda method, name: f"{name} of {method}").value(text)
    assert found == value
    assert isinstance(found, type(value) if isinstance(value, bool | str | set) else int | Decimal)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("avg('mean(\"Concepts\")')", Decimal("8.75")),
        ("avg('mean(\"Concepts\")', dataset='E')", 11),
        ("avg('mean(\"Concepts\", dataset=\"D\")', dataset=['D', 'E'])", Decimal("6.5")),
        ("share('best(SCORED) > 8')", Decimal("0.5")),
        ("avg_mean('Random')", Decimal("8.5")),
    ],
)
def test_an_average_is_over_the_cells_in_scope(text, value):
    assert rule({"protocol": "hard"}).value(text) == value


@pytest.mark.parametrize(
    "text",
    [
        "mean('AUM', ipc=50)", "mean('Nobody')", "std('AUM', dataset='E')", "best(DD, student='T')",
        "noise(['AUM'], ['Random'], dataset='E')", "hours('MGD', 10)", "rep('AUM')", "fid('AUM')",
        "div('AUM', classes=['n2'])", "acc('AUM', 0.2)", "best_beta('DiT')", "tau('hard', 'rded')",
        "breakeven('AUM', 'AUM')", "registry('AUM', 'classifier')", "avg('1', dataset='F')",
        "mean_of(mean(m) for m in [])", "reversals('hard', 'hard', dataset='E')",
    ],
)  # fmt: skip
def test_what_is_absent_or_undefined_has_no_value(text):
    with pytest.raises(AbsentError):
        rule().value(text)


@pytest.mark.parametrize(
    "text",
    [
        "__import__('os').system('touch made')", "().__class__", "mean.__doc__", "(lambda: 1)()",
        "[mean(m) for m in DD]", "count(1 for m in DD if 0)", "count(a for a in DD for b in DD)",
        "eval('1')", "open('made', 'w')", "f'{DD}'", "DD[0]", "(x := 1)", "9 ** 9", "{'a': 1}",
        "-1", "1 is 1", "None", "b'a'", "1j", "nobody", "avg('open(1)')", "mean('AUM'", "", "a\nb",
        "(" * 1000, "\0", "mean(*'AUM', **{})", "avg(1)", "['A'] * 999999999", "mean('AUM') < 'a'",
        "mean()", "mean('AUM', nothing=1)", "best(1)", "1 +" * 9999 + "1",
    ],
)  # fmt: skip
def test_anything_else_is_refused_in_one_line_and_not_executed(text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError) as refused:
        judge(claim(text), published_cells())
    assert "\n" not in str(refused.value)
    assert not list(tmp_path.iterdir())


def claim(test, scope="dataset=ImageNette;protocol=hard;student=ResNet-18;ipc=10"):
    rest = dict.fromkeys(("section", "claim", "from_published", "note"), "")
    return Claim(id="x", scope=scope, test=test, **rest)


def complete_word(quantifier, outcomes):
    """The definition, without absent values."""
    k, n = sum(outcomes), len(outcomes)
    if quantifier == "each":
        return "holds" if k == n else "mixed" if k else "fails"
    return "holds" if (k >= 1 if quantifier == "some" else k > n / 2) else "fails"


@pytest.mark.parametrize("quantifier", ["each", "some", "most"])
def test_a_verdict_stands_only_if_no_absent_value_could_change_it(quantifier):
    for n in range(1, 5):
        for outcomes in product((True, False, None), repeat=n):
            choices = [(True, False) if each is None else (each,) for each in outcomes]
            words = {complete_word(quantifier, each) for each in product(*choices)}
            expected = words.pop() if len(words) == 1 else NOT_RUN
            assert _word(quantifier, outcomes) == expected, outcomes


@pytest.mark.parametrize(
    ("test", "verdict"),
    [
        ("mean('AUM') > 0", "holds"),
        ("each m in SCORED: mean(m) > 0", "holds 2/2"),
        ("each dataset, m in ['AUM', 'Nobody']: mean(m) > 0", "not run 1/1 (1 absent)"),
        ("some m in ['AUM', 'Nobody']: mean(m) > 0", "holds 1/1 (1 absent)"),
        ("each m in ['Nobody']: mean(m) > 0", NOT_RUN),
        ("each k in CLASSES: mean('AUM') > 0", NOT_RUN),
        ("each p in ['hard', 'rded'], i in [10, 50]: mean('AUM', protocol=p, ipc=i) > 60",
         "mixed 3/4"),
        ("value: mean('AUM')", "mean=57.000"),
        ("value: mean(m) for m in ['AUM', 'Concepts']", "AUM=57.0, Concepts=53.3"),
        ("value: mean('Nobody')", NOT_RUN),
        ("winner: a if best(CS) > best(DD), b if best(CS) < best(DD), else c", "b"),
        ("winner: a if 1 > 2, b if 1 < 1, else c", "c"),
        ("winner: a if mean('Nobody') > 2, b if 1 < 1, else c", NOT_RUN),
        ("no rule: of any kind", NOT_CHECKABLE),
    ],
)  # fmt: skip
def test_a_rule_has_a_verdict(test, verdict):
    assert str(judge(claim(test), published_cells())) == verdict


def test_an_instance_tells_what_it_read():
    found = judge(claim("each m in SCORED, i in [10, 99]: mean(m, ipc=i) > 0"), published_cells())
    assert [tuple(each) for each in found.instances[1:3]] == [
        ("ImageNette hard ResNet-18 10 AUM 99", None, "ImageNette hard ResNet-18 99 AUM", {}),
        ("ImageNette hard ResNet-18 10 Concepts 10", True, "",
         {"ImageNette hard ResNet-18 10 Concepts": "53.3 ± 1.10"}),
    ]  # fmt: skip


def test_nothing_holds_without_values():
    for each in CLAIMS.values():
        word = judge(each, Cells(accuracies={})).word
        assert word == (NOT_CHECKABLE if each.test.startswith("no rule") else NOT_RUN), each.id


def test_one_lost_cell_keeps_a_claim_over_all_from_holding():
    whole = published_cells()
    cell = Cell("ImageNet-1K", "edc", "ResNet-50", 50)
    lost = {name: row for name, row in whole.accuracies[cell].items() if name != "MGD"}
    cells = replace(whole, accuracies={**whole.accuracies, cell: lost})
    assert str(judge(CLAIMS["three-runs-std"], cells)) == "not run 399/399 (1 absent)"
    assert str(judge(CLAIMS["some-dd-below-random"], cells)) == "holds 157/279 (1 absent)"
    assert judge(CLAIMS["dd-wins-shrink-with-scale"], cells).word == NOT_RUN
    assert judge(CLAIMS["d-tau-protocol-below-student"], cells).word == NOT_RUN
    assert str(judge(CLAIMS["in1k-hard-cs"], cells)) == "holds 4/4"


def test_properties_of_methods_are_those_of_the_systems():
    verdicts = {
        name: str(judge(each, published_cells(), property_of))
        for name, each in CLAIMS.items()
        if "registry(" in each.test
    }
    assert verdicts == {
        "genmodel-dependence": "holds 8/8",
        "t1-training-based": "mixed 2/3",  # D3HR samples an unchanged model
        "t1-extension": "holds 9/9",
        "t1-guidance": "holds 2/2",
        **dict.fromkeys(
            ("t1-dit-sampling", "t1-decoupled", "t1-aum-classifier", "t1-concepts-small"), "holds"
        ),
    }


def student(**changes):
    row = {
        "key": "k", "data": "imagenette", "method": "ccs-aum", "ipc": 10, "protocol": "hard@1",
        "protocol_digest": "", "val_identity": "v", "epochs": 3, "size": 224, "evaluations": 1,
        "student": "resnet18", "seed": 0, "set_seed": 0, "parameters": "{}", "top1_best": 50.0,
    }  # fmt: skip
    return row | changes


def test_rows_with_the_published_means_give_the_published_verdicts():
    data = {
        "ImageNette": "imagenette",
        "ImageNet-100": "imagenet-100",
        "ImageNet-1K": "imagenet-1k",
    }
    ours = {"Random": "random", "AUM": "ccs-aum", "Concepts": "ccs-concept_aum"}
    rows = [
        student(
            data=data[cell.dataset], ipc=cell.ipc, protocol=f"{cell.protocol}@1", seed=seed,
            student=cell.student.replace("-", "").lower(), method=ours.get(method, f"x-{method}"),
            top1_best=float(mean) + step * float(std) * 1.5**0.5,
        )
        for cell, row in published_cells().accuracies.items()
        for method, (mean, std) in row.items()
        for seed, step in enumerate((-1, 0, 1))
    ]  # fmt: skip
    names = {f"x-{method}": method for method in published.DD}
    cells = measured_cells(rows, names=names, values=published_cells().values)
    assert cells.accuracies.keys() == published_cells().accuracies.keys()
    assert cells.shortened == []
    verdicts = {name: str(judge(each, cells)) for name, each in CLAIMS.items()}
    assert verdicts == {name: expected(each) for name, each in CLAIMS.items()}


def test_a_cell_has_the_population_std_and_the_mean_to_the_printed_digit():
    tops = [50.04, 51.33, 49.9]
    rows = [student(top1_best=top, seed=seed) for seed, top in enumerate(tops)]
    rows += [student(top1_best=top, data="mine", student="convnet", method="own") for top in tops]
    rows += [student(top1_best=top, protocol="edc@1") for top in tops]
    cells = measured_cells(rows)
    ours = cells.accuracies[Cell("ImageNette", "hard", "ResNet-18", 10)]["AUM"]
    assert str(ours.mean) == f"{fmean(tops):.1f}"
    assert float(ours.std) == pytest.approx(pstdev(tops), abs=1e-12)
    assert str(cells.accuracies[Cell("mine", "hard", "convnet", 10)]["own"].mean) == "50.4"
    # The study prints two digits of the soft labels of several teachers.
    soft = cells.accuracies[Cell("ImageNette", "edc", "ResNet-18", 10)]["AUM"]
    assert str(soft.mean) == f"{fmean(tops):.2f}"


def test_noise_of_a_single_training_is_not_known():
    cells = measured_cells([student(), student(method="random", top1_best=40.0)])
    assert judge(claim("mean('AUM') > mean('Random')"), cells).word == "holds"
    assert judge(claim("mean('AUM') > noise(['AUM'], ['Random'])"), cells).word == NOT_RUN
    assert judge(claim("std('AUM') >= 0"), cells).word == NOT_RUN


def test_a_cell_is_of_one_setting_and_the_best_parameters():
    short, varied = student(protocol="hard@1+bf16+short"), student(protocol="hard@1+bf16")
    cell = Cell("ImageNette", "hard", "ResNet-18", 10)

    def row(*rows):
        cells = measured_cells(rows)
        means = {name: float(each.mean) for name, each in cells.accuracies[cell].items()}
        return cells.stamps[cell], means, cells.shortened

    many = [short | {"method": name, "top1_best": 60.0} for name in ("ccs-aum", "random")]
    assert row(*many) == ("hard@1+bf16+short", {"AUM": 60, "Random": 60}, [cell])
    assert row(*many, varied) == ("hard@1+bf16", {"AUM": 50}, [])
    assert row(*many, varied, student(top1_best=40.0)) == ("hard@1", {"AUM": 40}, [])
    changed = student(protocol="hard@1+bf16+timm")
    assert row(changed, student(protocol="hard@1+short"))[0] == "hard@1+bf16+timm"
    longer = [each | {"epochs": 9, "top1_best": 70.0} for each in many[:1]]
    assert row(*longer, *many)[1] == {"AUM": 60, "Random": 60}  # the setting with more methods
    tuned = [
        student(parameters=f'{{"misratio": {value}}}', top1_best=value) for value in (3.0, 7.0)
    ]
    assert row(*tuned)[1] == {"AUM": 7}


def test_the_command_judges_all_claims_and_shows_one(done, refused, tmp_path, results):
    lines = done("claims")
    assert lines[0].split() == ["id", "published", "claim"]
    assert len(lines) == 2 + len(CLAIMS)
    assert lines[-1].startswith("194 claims: 53 holds, 4 fails, 37 mixed")
    detail = done("claims", "--id", "in1k-rded-50-r18-1pt")
    assert detail[1] == "rule: mean('Concepts') - best(DD) >= 1"
    assert detail[3] == "published: fails"
    assert "ImageNet-1K rded ResNet-18 50 Concepts 61.0 ± " in detail[4]
    said = refused(tmp_path, "claims", "--id", "nothing")
    assert said == "id nothing is no claim; `coreset claims` lists them"
    said = refused(tmp_path, "claims", results.path)
    assert said == f"{results.path} does not exist; train students into it: `coreset train`"


def test_the_command_sets_results_beside_the_published_values(done, coreset, results):
    described = {
        "key": "a", "data": "imagenette", "ipc": 10, "set_kind": "coreset", "set_digest": "d",
        "set_path": "s", "set_seed": 0, "parameters": "{}", "val": "v", "val_path": "v", "n_val": 9,
        "protocol": "hard@1+short", "student": "resnet18", "seed": 0, "val_identity": "v",
        "top1_last": 1.0, "epochs": 1, "evaluations": 1, "size": 64, "image_bytes": 1,
        "runtime": "{}",
    }  # fmt: skip
    tops = {"random": 30.0, "ccs-aum": 40.0, "ccs-concept_aum": 29.0}
    rows = [described | {"method": m, "top1_best": top, "key": m} for m, top in tops.items()]
    results.append(STUDENTS, rows, [])
    lines = done("claims", results.path, "--id", "ccs-beats-random")
    assert lines[3] == "published: mixed 64/80"
    assert "here: mixed 1/2 (78 absent)" in lines
    assert lines[-1] == "of shortened protocols: ImageNette hard ResNet-18 10"
    told = json.loads(coreset("claims", results.path, "--json").out)
    assert len(told["claims"]) == len(CLAIMS)
    verdicts = {each["id"]: (each["published"], each["here"]) for each in told["claims"]}
    assert verdicts["ccs-beats-random"] == ("mixed 64/80", "mixed 1/2 (78 absent)")
    assert verdicts["nette-dd-better"] == ("mixed 8/14", NOT_RUN)
    assert told["shortened"] == ["ImageNette hard ResNet-18 10"]
