"""Benchmark table: means and standard deviations, published results, and the text of the page."""

import statistics

import pytest

from facelt.benchmarking.records import (
    PUBLISHED_SOURCES,
    PublishedMethod,
    RunRecord,
    SmokeRecord,
    read_published,
    read_records,
)
from facelt.benchmarking.table import PlannedRun, build_rows, plan_runs, planned_recipes, unmatched_results
from facelt.errors import UserError
from facelt.report.benchmarks import (
    BenchmarkRow,
    MeanStd,
    PublishedResult,
    bench_command,
    benchmarks_page,
    markdown_cell,
)


def run(seed=0, overall=0.4, **changes):
    values = {
        **{"suite": "s", "recipe": "r", "imbalance": 100, "config": "ab", "seed": seed, "machine": "M", "torch": "2"},
        **{"commit": "c1", "overall": overall, "many": 0.6, "medium": 0.3, "few": 0.1, "chosen": "last epoch"},
        "minutes": 10,
    }
    return RunRecord(**values | changes)


def smoke(**changes):
    values = {"suite": "s", "recipe": "r", "imbalance": 100, "config": "ab", "seed": 0, "machine": "M", "torch": "2"}
    return SmokeRecord(**values | {"commit": "c9", "losses": {"plain": (2, 1)}} | changes)


CE = PublishedMethod(suite="s", method="CE", recipe="r", source="R", accuracy={100: 38.3, 50: 43.9})
NOBODYS = PublishedMethod(suite="s", method="<Other>", source="M", selection="best on test", accuracy={100: 51.5})


WIDE = PublishedMethod(suite="s", method="CE", recipe="r", source="P", network="64-128-256", accuracy={20: 50})
REDRAWN = PublishedMethod(suite="s", method="CE2", recipe="r", source="P", subset="authors' draw", accuracy={100: 40})


def test_seeds_of_a_configuration_make_a_row():
    records = [run(2, 0.41, minutes=13, commit="c2"), run(0, 0.40), run(1, 0.45, many=0.7)]
    (row,) = build_rows(records, [], [CE])
    assert row.seeds == (0, 1, 2)
    assert row.overall.mean == pytest.approx((0.40 + 0.45 + 0.41) / 3)
    assert row.overall.std == pytest.approx(statistics.stdev([0.40, 0.45, 0.41]))
    assert row.bands["many"].mean == pytest.approx((0.6 + 0.7 + 0.6) / 3)
    assert row.minutes == 11
    assert (row.machines, row.commits) == (("M, torch 2",), ("c1", "c2"))
    assert [figure.accuracy for figure in row.published] == [38.3]


def test_one_seed_has_no_spread_and_what_is_missing_stays_missing():
    (row,) = build_rows([run(few=None, minutes=None)], [], [])
    assert (row.overall.std, row.bands["few"], row.minutes) == (None, None, None)


def test_the_later_of_two_records_of_a_seed_counts():
    (row,) = build_rows([run(0, 0.1), run(0, 0.3)], [], [])
    assert (row.seeds, row.overall.mean) == ((0,), 0.3)


def test_another_imbalance_configuration_or_setting_is_another_row():
    records = [run(), run(imbalance=50), run(config="cd"), run(config="ef", settings=("optim.lr=1",))]
    rows = build_rows(records, [], [CE])
    assert [(row.imbalance, row.settings) for row in rows] == [(100, ()), (100, ()), (100, ("optim.lr=1",)), (50, ())]
    assert [len(row.published) for row in rows] == [1, 1, 0, 1]


def test_a_run_of_another_precision_has_the_published_results():
    (row,) = build_rows([run(settings=("precision=bf16",))], [], [CE])
    assert [figure.accuracy for figure in row.published] == [38.3]


def test_a_command_that_gave_several_rows_is_listed_once():
    rows = build_rows([run(subset="train ab"), run(subset="train cd")], [], [])
    assert len(rows) == 2
    assert benchmarks_page(rows, [], {}).count("- `facelt bench s/r") == 1


def test_what_makes_rows_comparable_is_in_them_and_unknown_if_it_was_not_recorded():
    known = {"width": "16-32-64", "subset": "train ab", "epochs": (200, 30)}
    (row,) = build_rows([run(0, **known), run(1, **known)], [], [])
    assert (row.widths, row.subset, row.epochs) == (("16-32-64",), "train ab", (200, 30))
    (row,) = build_rows([run()], [], [])
    assert (row.widths, row.subset, row.epochs) == ((), None, None)
    # Runs on other images are another row.
    rows = build_rows([run(0, **known), run(1, **known | {"subset": "train cd"}), run(2)], [], [])
    assert sorted((row.seeds, row.subset or "") for row in rows) == [((0,), "train ab"), ((1,), "train cd"), ((2,), "")]


def test_results_of_another_network_or_subset_are_neither_planned_nor_next_to_a_recipe():
    recipes = [PlannedRun("s", "r", 100)]
    assert plan_runs(recipes, [CE, WIDE, REDRAWN]) == [*recipes, PlannedRun("s", "r", 50)]
    (row,) = build_rows([run()], [], [CE, WIDE, REDRAWN])
    assert [figure.method for figure in row.published] == ["CE"]
    apart = unmatched_results(recipes, [CE, WIDE, REDRAWN])
    assert [(figure.accuracy, figure.network, figure.subset) for _, figure in apart] == [
        (50, "64-128-256", None),
        (40, None, "authors' draw"),
    ]
    lines = benchmarks_page([], [*apart, ("s", PublishedResult("<Other>", 100, 51.5, "M"))], {}).splitlines()
    start = lines.index("## Published results with another network or subset")
    assert "| s | CE | 64-128-256 | the same | 20 | 50.0 (P) |" in lines[start:]
    assert "| s | CE2 | the same | authors' draw | 100 | 40.0 (P) |" in lines[start:]
    assert "| s | \\<Other\\> | 100 | 51.5 (M) |" in lines[:start]


def test_what_was_planned_and_not_run_has_a_row_without_figures():
    recipes = [PlannedRun("s", "r", 100), PlannedRun("s", "q", 100)]
    wanted = plan_runs(recipes, [CE, NOBODYS])
    assert wanted == [*recipes, PlannedRun("s", "r", 50)]
    rows = build_rows([run(), smoke(recipe="q"), smoke(imbalance=50, settings=("data.pad=2",))], wanted, [CE])
    by_name = {(row.recipe, row.imbalance, row.settings): row for row in rows}
    assert len(rows) == 4
    assert by_name["r", 100, ()].seeds == (0,)
    for key in (("q", 100, ()), ("r", 50, ()), ("r", 50, ("data.pad=2",))):
        assert (by_name[key].seeds, by_name[key].overall) == ((), None)
    assert (by_name["q", 100, ()].smoke, by_name["r", 50, ()].smoke) == ("c9", None)
    assert by_name["r", 50, ()].published[0].accuracy == 43.9


def test_a_smoke_test_never_becomes_a_result():
    (row,) = build_rows([smoke()], [PlannedRun("s", "r", 100)], [])
    assert (row.seeds, row.overall, row.smoke) == ((), None, "c9")


def test_published_figures_without_a_recipe_are_kept_apart():
    ((suite, figure),) = unmatched_results([PlannedRun("s", "r", 100)], [CE, NOBODYS])
    assert (suite, figure) == ("s", PublishedResult("<Other>", 100, 51.5, "M", "best on test"))
    assert len(unmatched_results([], [CE])) == 2


def test_the_page_says_what_the_rows_hold():
    done = BenchmarkRow(
        **{"suite": "s", "recipe": "ldam_drw", "imbalance": 100.0, "seeds": (0, 1), "minutes": 12.34},
        **{
            "overall": MeanStd(0.42125, 0.0031),
            "bands": {"many": MeanStd(0.6, 0.1), "medium": MeanStd(0.3), "few": None},
        },
        **{"machines": ("GPU | 1",), "commits": ("c1", "c2"), "chosen": ("last epoch",)},
        **{"widths": ("3 x 16-24-48",), "subset": "cifar-100-python/train ab", "epochs": (200, 30)},
        published=(
            PublishedResult("LDAM", 100, 42.04, "P", "best on test", 200),
            PublishedResult("LDAM", 100, 42.0, "S"),
        ),
    )
    missing = BenchmarkRow(suite="s", recipe="bbn", imbalance=50, settings=("optim.lr=[1, 2]",), smoke="c3")
    chosen = BenchmarkRow(suite="t", recipe="x", imbalance=None, seeds=(4,), chosen=("best validation, epoch 3",))
    text = benchmarks_page([done, missing, chosen], [("s", PublishedResult("<Other>", 100, 51.5, "M"))], {"P": "paper"})
    lines = text.splitlines()
    assert (
        "| ldam_drw | 100 | 42.12 ± 0.31 | 60.00 ± 10.00 | 30.00 | - | 3 x 16-24-48 | cifar-100-python/train ab "
        "| 200 + 30 | last epoch | 0, 1 | 12.3 | GPU \\| 1 | c1; c2 "
        "| 42.04 (P, best on test, 200 epochs); 42.0 (S) |"
    ) in lines
    assert "| `facelt bench s/bbn --imbalance 50 --seeds 0,1,2 --set 'optim.lr=[1, 2]'` | passed at c3 | - |" in lines
    assert "- `facelt bench s/ldam_drw --imbalance 100 --seeds 0,1`" in lines
    assert "| x | - | - | - | - | - | - | - | - | best validation, epoch 3 | 4 | - | - | - | - |" in lines
    assert "- `facelt bench t/x --seeds 4`" in lines
    assert "| s | \\<Other\\> | 100 | 51.5 (M) |" in lines
    assert [line for line in lines if line.startswith("## ")] == [
        "## s",
        "## t",
        "## Published results without a recipe here",
    ]
    assert "Sources of published results: P paper." in lines
    widths = {line.replace("\\|", "").count("|") for line in lines if line.startswith("|")}
    assert widths == {16, 5, 4}


def test_a_name_ends_no_cell_and_no_line():
    assert markdown_cell("a|b\n`c`<script>\\") == "a\\|b\ufffd\\`c\\`\\<script\\>\\\\"
    row = BenchmarkRow(suite="s", recipe="r", imbalance=None, settings=("a=`` `|",))
    assert (
        "| ``` facelt bench s/r --seeds 0,1,2 --set 'a=`` `\\|' ``` | - | - |"
        in benchmarks_page([row], [], {}).splitlines()
    )
    assert bench_command(row).endswith("'a=`` `|'")


def test_the_published_file_is_read_and_a_bad_source_is_named(tmp_path):
    figures = read_published()
    ldam = [figure for figure in figures if (figure.suite, figure.method) == ("cifar100_lt", "LDAM-DRW")]
    assert {imbalance: value for figure in ldam for imbalance, value in figure.accuracy.items()} == {
        **{100: 42.04, 50: 46.6, 10: 58.71}
    }
    assert {figure.source for figure in figures} <= set(PUBLISHED_SOURCES)
    path = tmp_path / "published.yaml"
    path.write_text("figures: [{suite: s, method: m, source: X, accuracy: {100: 1}}]")
    with pytest.raises(UserError, match=r"published\.yaml: figures\.0\.source"):
        read_published(path)


def test_a_published_result_is_listed_once():
    """A method has one result per imbalance and source, so that none is listed twice."""
    figures = read_published()
    results = [(row.suite, row.method, row.source, imbalance) for row in figures for imbalance in row.accuracy]
    assert len(results) == len(set(results))


def test_the_page_in_the_docs_is_what_its_records_make(root):
    """`facelt bench` without a name rewrites it."""
    docs, configs = root / "docs", root / "configs"
    recipes, published = planned_recipes(configs), read_published()
    rows = build_rows(read_records(docs / "benchmarks.jsonl"), plan_runs(recipes, published), published)
    assert (docs / "benchmarks.md").read_text() == benchmarks_page(
        rows, unmatched_results(recipes, published), PUBLISHED_SOURCES
    )


def test_published_figures_name_recipes_that_are_there(root):
    known = {(entry.suite, entry.recipe) for entry in planned_recipes(root / "configs")}
    suites = {suite for suite, _ in known}
    figures = read_published()
    assert {(entry.suite, entry.recipe) for entry in figures if entry.recipe and entry.suite in suites} <= known


def test_the_recipes_of_a_checkout_are_planned_at_their_imbalance(checkout):
    assert planned_recipes(checkout / "configs") == [PlannedRun("tiny", "slow", 4), PlannedRun("tiny", "softmax", 4)]
