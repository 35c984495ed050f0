"""From records to the rows of the table: runs of one recipe with one configuration make a row."""

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from facelt.benchmarking.records import BenchmarkRecord, PublishedMethod, RunRecord, SmokeRecord
from facelt.benchmarking.run import all_recipes, imbalance_of
from facelt.config.loading import load_config
from facelt.config.train import TrainConfig
from facelt.report.benchmarks import BenchmarkRow, MeanStd, PublishedResult

_BANDS = ("many", "medium", "few")


@dataclass(frozen=True)
class PlannedRun:
    """A recipe as it stands in the table whether it was run or not."""

    suite: str
    recipe: str
    imbalance: float | None


def planned_recipes(configs: Path) -> list[PlannedRun]:
    """Every recipe of every suite at the imbalance it names. Raises UserError where one is no recipe."""
    return [
        PlannedRun(one.suite, one.name, imbalance_of(load_config(one.path, TrainConfig)))
        for one in all_recipes(configs)
    ]


def plan_runs(recipes: Iterable[PlannedRun], published: Iterable[PublishedMethod]) -> list[PlannedRun]:
    """Each recipe at its own imbalance, and at those of published figures."""
    recipes = list(recipes)
    known = {(one.suite, one.recipe) for one in recipes}
    at_published = [
        PlannedRun(one.suite, one.recipe, imbalance)
        for one in published
        if one.recipe is not None and (one.suite, one.recipe) in known
        for imbalance in one.accuracy
    ]
    return list(dict.fromkeys([*recipes, *at_published]))


def build_rows(
    records: Sequence[BenchmarkRecord], planned: Iterable[PlannedRun], published: Sequence[PublishedMethod]
) -> list[BenchmarkRow]:
    """A row for every configuration that was run, and for every planned recipe that was not.

    Of two records of one configuration and seed the later counts. The published figures stand beside the recipe as it
    is, not beside one with settings of the user's own.
    """
    runs: dict[tuple, dict[int, RunRecord]] = {}
    smokes: dict[tuple, SmokeRecord] = {}
    for record in records:
        key = (record.suite, record.recipe, record.imbalance, record.settings)
        if isinstance(record, SmokeRecord):
            smokes[key] = record
        else:
            runs.setdefault((*key, record.config), {})[record.seed] = record
    found = [_run_row(list(by_seed.values()), published) for by_seed in runs.values()]
    done = {key[:4] for key in runs}
    wanted = [(one.suite, one.recipe, one.imbalance, ()) for one in planned]
    missing = [key for key in dict.fromkeys([*wanted, *smokes]) if key not in done]
    found += [_missing_row(key, smokes.get(key), published) for key in missing]
    return sorted(found, key=lambda row: (row.suite, -(row.imbalance or 0), row.recipe, row.settings))


def unmatched_figures(
    recipes: Iterable[PlannedRun], published: Iterable[PublishedMethod]
) -> list[tuple[str, PublishedResult]]:
    """(suite, figure) of every published figure without a recipe of ours."""
    known = {(one.suite, one.recipe) for one in recipes}
    return [
        (one.suite, figure) for one in published if (one.suite, one.recipe) not in known for figure in _figures(one)
    ]


def _run_row(records: list[RunRecord], published: Sequence[PublishedMethod]) -> BenchmarkRow:
    records = sorted(records, key=lambda record: record.seed)
    first = records[0]
    times = [record.minutes for record in records]
    return BenchmarkRow(
        suite=first.suite,
        recipe=first.recipe,
        imbalance=first.imbalance,
        settings=first.settings,
        seeds=tuple(record.seed for record in records),
        overall=_figure([record.overall for record in records]),
        bands={band: _figure([getattr(record, band) for record in records]) for band in _BANDS},
        minutes=None if None in times else statistics.fmean(times),
        machines=_each(f"{record.machine}, torch {record.torch}" for record in records),
        commits=_each(record.commit for record in records),
        chosen=_each(record.chosen for record in records),
        published=_beside(first.suite, first.recipe, first.imbalance, first.settings, published),
    )


def _missing_row(key: tuple, smoke: SmokeRecord | None, published: Sequence[PublishedMethod]) -> BenchmarkRow:
    suite, recipe, imbalance, settings = key
    return BenchmarkRow(
        suite=suite,
        recipe=recipe,
        imbalance=imbalance,
        settings=settings,
        smoke=None if smoke is None else smoke.commit,
        published=_beside(suite, recipe, imbalance, settings, published),
    )


def _figure(values: list[float | None]) -> MeanStd | None:
    """Mean and sample standard deviation, which one value alone has not."""
    if None in values:
        return None
    return MeanStd(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None)


def _beside(
    suite: str, recipe: str, imbalance: float | None, settings: tuple, published: Sequence[PublishedMethod]
) -> tuple[PublishedResult, ...]:
    if settings:
        return ()
    own = [one for one in published if (one.suite, one.recipe) == (suite, recipe)]
    return tuple(figure for one in own for figure in _figures(one) if figure.imbalance == imbalance)


def _figures(one: PublishedMethod) -> list[PublishedResult]:
    return [
        PublishedResult(one.method, imbalance, accuracy, one.source, one.selection)
        for imbalance, accuracy in one.accuracy.items()
    ]


def _each(values: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(values))
