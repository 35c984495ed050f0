"""Benchmark table: a row for each recipe and configuration, from records and published results."""

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from facelt.benchmarking.records import BenchmarkRecord, PublishedMethod, RunRecord, SmokeRecord
from facelt.benchmarking.run import all_recipes, imbalance_of
from facelt.config.loading import load_config
from facelt.config.train import TrainConfig
from facelt.report.benchmarks import BenchmarkRow, MeanStd, PublishedResult
from facelt.report.schema import SHOT_BAND_NAMES


@dataclass(frozen=True)
class PlannedRun:
    """A recipe and an imbalance that the table lists even without a run."""

    suite: str
    recipe: str
    imbalance: float | None


def planned_recipes(configs: Path) -> list[PlannedRun]:
    """Returns the recipes of all suites at their imbalance. Raises UserError for an invalid recipe."""
    return [
        PlannedRun(recipe.suite, recipe.name, imbalance_of(load_config(recipe.path, TrainConfig)))
        for recipe in all_recipes(configs)
    ]


def plan_runs(recipes: Sequence[PlannedRun], published: Iterable[PublishedMethod]) -> list[PlannedRun]:
    """Returns each recipe at its own imbalance and at those of published results."""
    titles = {(recipe.suite, recipe.recipe) for recipe in recipes}
    at_published = [
        PlannedRun(method.suite, method.recipe, result.imbalance)
        for method in published
        if (method.suite, method.recipe) in titles
        for result in _results(method)
        if result.is_comparable
    ]
    return list(dict.fromkeys([*recipes, *at_published]))


def build_rows(
    records: Sequence[BenchmarkRecord], planned: Iterable[PlannedRun], published: Sequence[PublishedMethod]
) -> list[BenchmarkRow]:
    """Returns a row for each configuration and subset that was run, and for each planned run without records.

    The last record of a row and seed counts. Published results are listed with recipes that are unchanged but for the
    precision.
    """
    runs: dict[tuple, dict[int, RunRecord]] = {}
    smokes: dict[tuple, SmokeRecord] = {}
    for record in records:
        key = (record.suite, record.recipe, record.imbalance, record.settings)
        if isinstance(record, SmokeRecord):
            smokes[key] = record
        else:
            runs.setdefault((*key, record.config, record.subset), {})[record.seed] = record
    rows = [_run_row(list(by_seed.values()), published) for by_seed in runs.values()]
    done = {key[:4] for key in runs}
    planned_keys = [(run.suite, run.recipe, run.imbalance, ()) for run in planned]
    missing = [key for key in dict.fromkeys([*planned_keys, *smokes]) if key not in done]
    rows += [_missing_row(key, smokes.get(key), published) for key in missing]
    return sorted(rows, key=lambda row: (row.suite, -(row.imbalance or 0), row.recipe, row.settings))


def unmatched_results(
    recipes: Iterable[PlannedRun], published: Iterable[PublishedMethod]
) -> list[tuple[str, PublishedResult]]:
    """Returns (suite, result) for each published result without a recipe, or of another network or subset."""
    titles = {(recipe.suite, recipe.recipe) for recipe in recipes}
    return [
        (method.suite, result)
        for method in published
        for result in _results(method)
        if not result.is_comparable or (method.suite, method.recipe) not in titles
    ]


def _run_row(records: list[RunRecord], published: Sequence[PublishedMethod]) -> BenchmarkRow:
    records = sorted(records, key=lambda record: record.seed)
    first = records[0]
    reused = [stage for record in records for stage in record.reused]
    return BenchmarkRow(
        suite=first.suite,
        recipe=first.recipe,
        imbalance=first.imbalance,
        settings=first.settings,
        seeds=tuple(record.seed for record in records),
        overall=_mean_and_std([record.overall for record in records]),
        bands={band: _mean_and_std([getattr(record, band) for record in records]) for band in SHOT_BAND_NAMES},
        minutes=_mean([record.minutes for record in records], len(records)),
        reused=_distinct(f"{stage.stage} of {stage.recipe.removeprefix(f'{first.suite}/')}" for stage in reused),
        reused_minutes=_mean([stage.minutes for stage in reused], len(records)),
        machines=_distinct(f"{record.machine}, torch {record.torch}" for record in records),
        commits=_distinct(record.commit for record in records),
        chosen=_distinct(record.chosen for record in records),
        widths=_distinct(record.width for record in records if record.width),
        subset=first.subset,
        epochs=first.epochs,
        published=_published_results(first.suite, first.recipe, first.imbalance, first.settings, published),
    )


def _missing_row(key: tuple, smoke: SmokeRecord | None, published: Sequence[PublishedMethod]) -> BenchmarkRow:
    suite, recipe, imbalance, settings = key
    return BenchmarkRow(
        suite=suite,
        recipe=recipe,
        imbalance=imbalance,
        settings=settings,
        smoke=None if smoke is None else smoke.commit,
        published=_published_results(suite, recipe, imbalance, settings, published),
    )


def _mean(minutes: list[float | None], runs: int) -> float | None:
    """Returns the minutes per run; None if some of them are not known."""
    return None if None in minutes else sum(minutes) / runs


def _mean_and_std(values: list[float | None]) -> MeanStd | None:
    if None in values:
        return None
    return MeanStd(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None)


def _published_results(
    suite: str, recipe: str, imbalance: float | None, settings: tuple, published: Sequence[PublishedMethod]
) -> tuple[PublishedResult, ...]:
    """Published results of a recipe at this imbalance, if nothing of it is changed but the precision."""
    is_unchanged = all(setting.startswith("precision=") for setting in settings)
    return tuple(
        result
        for method in published
        if is_unchanged and (method.suite, method.recipe) == (suite, recipe)
        for result in _results(method)
        if result.is_comparable and result.imbalance == imbalance
    )


def _results(method: PublishedMethod) -> list[PublishedResult]:
    return [
        PublishedResult(
            *(method.method, imbalance, accuracy, method.source, method.selection),
            *(method.epochs, method.network, method.subset),
        )
        for imbalance, accuracy in method.accuracy.items()
    ]


def _distinct(values: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(values))
