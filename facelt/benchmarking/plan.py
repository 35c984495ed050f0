"""Plan of missing benchmark rows: the minutes of each by estimate, cheapest first."""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from facelt.benchmarking.records import RESULT_FILE, BenchmarkRecord, RunRecord, changed_settings, machine_name
from facelt.benchmarking.reuse import finished_stages, stage_keys
from facelt.benchmarking.run import BenchmarkRun
from facelt.benchmarking.work import RecipeWork, WorkTable, time_training
from facelt.config.train import TrainConfig
from facelt.errors import UserError
from facelt.training.run_folder import RunFolder

_START_MINUTES = 0.3

# A stage of a seed: the seed and the key of the stage's settings.
StageId = tuple[int, str]


@dataclass(frozen=True)
class PlannedRow:
    """A run that is missing: its estimate, and the stages that it trains, reuses, and waits for.

    It `waits_for` the stages that an earlier row of the plan has yet to train.
    """

    benchmark: BenchmarkRun
    config: TrainConfig
    minutes: float
    trains: frozenset[StageId] = frozenset()
    waits_for: frozenset[StageId] = frozenset()
    reused: tuple[str, ...] = ()

    @property
    def title(self) -> str:
        """The row in words."""
        return f"{self.benchmark.recipe.title}, seed {self.config.seed}"


@dataclass(frozen=True)
class Plan:
    """Missing rows in the order in which they are run, recipes that cannot be run, and the basis of the estimates."""

    rows: tuple[PlannedRow, ...]
    left_out: tuple[str, ...]
    basis: str

    def lines(self) -> list[str]:
        """Returns the plan as text, a row in each line."""
        lines = [f"{'minutes':>8}  row" if self.rows else "no row is missing"]
        for row in self.rows:
            note = f" (reuses {', '.join(row.reused)})" if row.reused else ""
            lines.append(f"{row.minutes:8.1f}  {row.title}{note}")
        if self.rows:
            total = sum(row.minutes for row in self.rows)
            lines.append(f"{total:8.1f}  in all, {len(self.rows)} rows one after the other")
        lines += [f"left out: {reason}" for reason in self.left_out]
        return [*lines, f"estimates: {self.basis}"]


class Planner:
    """Plans of the same recipes and seeds, as runs finish; the settings of all recipes are the same.

    With `reuse` rows that share first stages train them once.
    """

    def __init__(
        self,
        benchmarks: Sequence[BenchmarkRun],
        seeds: Sequence[int],
        *,
        reuse: bool,
        echo: Callable[[str], None],
    ) -> None:
        self._benchmarks, self._seeds = benchmarks, seeds
        self._reuse = reuse
        self._notice = cache(echo)  # each line once, in all plans
        self._works = WorkTable()
        self._timed: tuple[float, str] | None = None

    def plan(self, records: Sequence[BenchmarkRecord], ended: Collection[Path] = ()) -> Plan:
        """Returns the plan of the rows without a record; those whose folder is in `ended` are left out.

        Raises UserError if no recipe can be run.
        """
        runs = [record for record in records if isinstance(record, RunRecord)]
        rows, left_out = self._missing(runs, ended)
        if not rows:
            return Plan((), tuple(left_out), "none are needed")
        self._works.measure(config for _, config in rows)
        states = []
        for benchmark, config in rows:
            try:
                states.append(_RowState.read(benchmark, config, self._works[config]))
            except UserError as error:
                left_out.append(f"{benchmark.recipe.title}, seed {config.seed}: {error}")
        speed, basis = self._speed(runs, states[0])
        known = self._finished() if self._reuse else {}
        return Plan(tuple(_order(states, known, speed, self._reuse)), tuple(left_out), basis)

    def _missing(
        self, runs: Sequence[RunRecord], ended: Collection[Path]
    ) -> tuple[list[tuple[BenchmarkRun, TrainConfig]], list[str]]:
        done = {(run.suite, run.recipe, run.imbalance, run.settings, run.config, run.seed) for run in runs}
        rows, left_out = [], []
        for benchmark in self._benchmarks:
            try:
                configs = [benchmark.config(seed) for seed in self._seeds]
            except UserError as error:
                left_out.append(" ".join(str(error).split()))
                continue
            for config in configs:
                if config.out not in ended and tuple(benchmark.identity(config).values()) not in done:
                    rows.append((benchmark, config))
        if not rows and len(left_out) == len(self._benchmarks):
            raise UserError(left_out[0])
        return rows, left_out

    def _finished(self) -> dict[StageId, str]:
        return {
            (seed, key): f"{stage.folder.name} of {stage.origin.recipe}"
            for seed in self._seeds
            for key, stage in finished_stages(self._benchmarks[0].out, seed, self._notice).items()
        }

    def _speed(self, runs: Sequence[RunRecord], row: "_RowState") -> tuple[float, str]:
        """Returns minutes per operation and their basis in words: recorded runs of this machine, or a short timing."""
        machine, precision = machine_name(row.config.device), row.config.precision
        recorded = self._recorded_minutes(runs, machine, precision)
        note = f"operations of all steps and branches of each network; {_START_MINUTES} minutes a row to start"
        minutes, operations = map(sum, zip((0.0, 0.0), *recorded, strict=True))
        if minutes:
            what = f"{len(recorded)} recorded run" + ("s" if len(recorded) > 1 else "")
            return minutes / operations, f"{note}; speed of {what} in {precision} on {machine}"
        if self._timed is None:
            seconds, rate = time_training(row.config)
            title = row.benchmark.recipe.title
            basis = f"no run in {precision} on {machine} is recorded, {title} now made {rate:.0f} images/s"
            self._timed = seconds / 60, f"{note}; {basis}"
        return self._timed

    def _recorded_minutes(self, runs: Sequence[RunRecord], machine: str, precision: str) -> list[tuple[float, float]]:
        """Returns (minutes, operations) of the runs on this machine that the present recipes would repeat."""
        recipes = {(benchmark.recipe.suite, benchmark.recipe.name): benchmark for benchmark in self._benchmarks}
        settings = self._benchmarks[0].settings
        paths = tuple(setting for setting in settings if setting not in changed_settings(settings))
        usable: list[tuple[RunRecord, TrainConfig]] = []
        for run in runs:
            benchmark = recipes.get((run.suite, run.recipe))
            if benchmark is None or run.machine != machine or run.minutes is None:
                continue
            measured = replace(benchmark, settings=(*run.settings, *paths), imbalance=run.imbalance)
            with suppress(UserError):  # settings of an earlier version
                config = measured.config(run.seed)
                if config.precision == precision and measured.identity(config)["config"] == run.config:
                    usable.append((run, config))
        self._works.measure(config for _, config in usable)
        times = []
        for run, config in usable:
            reused = {stage.stage for stage in run.reused}
            with suppress(UserError):  # on data that are not here
                work = self._works[config]
                stages = zip(config.stages, work.stages, strict=True)
                own = sum(stage_work.operations for stage, stage_work in stages if stage.name not in reused)
                times.append((max(run.minutes - _START_MINUTES, 0.0), work.testing + own))
        return times


@dataclass(frozen=True)
class _RowState:
    """A missing run with its work, the keys of its stages, and what its folder holds of each stage."""

    benchmark: BenchmarkRun
    config: TrainConfig
    work: RecipeWork
    stages: tuple[StageId, ...]
    trained_steps: tuple[int, ...]
    finished: tuple[bool, ...]
    has_result: bool

    @classmethod
    def read(cls, benchmark: BenchmarkRun, config: TrainConfig, work: RecipeWork) -> "_RowState":
        folder = RunFolder(config.out)
        names = [stage.name for stage in config.stages]
        return cls(
            benchmark,
            config,
            work,
            tuple((config.seed, key) for key in stage_keys(config)),
            tuple(map(folder.trained_steps, names)),
            tuple(map(folder.is_finished, names)),
            (config.out / RESULT_FILE).exists(),
        )

    def first_stage(self, known: Collection[StageId]) -> int:
        """Returns the position of the first stage to train if the `known` stages can be reused."""
        for number, is_finished in enumerate(self.finished):
            is_known = number < len(self.stages) and self.stages[number] in known
            if not is_finished and (self.trained_steps[number] or not is_known):
                return number
        return len(self.finished)

    def next_stage(self, known: Collection[StageId]) -> StageId | None:
        """Returns the first stage to train; None if there is none that others could share."""
        return next(iter(self.stages[self.first_stage(known) :]), None)

    def operations(self, first: int) -> float:
        """Returns the work that is left from the stage `first` on."""
        if self.has_result:
            return 0.0
        left = self.work.testing
        for stage, steps in zip(self.work.stages[first:], self.trained_steps[first:], strict=True):
            left += stage.operations * (1 - min(steps / max(stage.steps, 1), 1.0))
        return left


def _order(
    states: Sequence[_RowState], finished: Mapping[StageId, str], speed: float, reuse: bool
) -> Iterator[PlannedRow]:
    """Yields the rows, each time the cheapest if the stages of the rows before it are reused.

    A row that trains the next stage of others counts for a share of its work, so that shared stages come early.
    """
    known, left = dict(finished), list(states)

    def share(state: _RowState) -> float:
        first = state.first_stage(known)
        trained = set(state.stages[first:]) if reuse else set()
        sharing = sum(other is not state and other.next_stage(known) in trained for other in left)
        return state.operations(first) / (1 + sharing)

    while left:
        state = min(left, key=lambda state: (share(state), state.benchmark.recipe.title))
        left.remove(state)
        first = state.first_stage(known)
        reused = [stage for number, stage in enumerate(state.stages[:first]) if not state.finished[number]]
        yield PlannedRow(
            state.benchmark,
            state.config,
            state.operations(first) * speed + _START_MINUTES,
            trains=frozenset(state.stages[first:] if reuse else ()),
            waits_for=frozenset(reused) - finished.keys(),
            reused=tuple(dict.fromkeys(known[stage] for stage in reused)),
        )
        if reuse:
            names = [stage.name for stage in state.config.stages]
            for stage, name in zip(state.stages[first:], names[first:], strict=False):
                known.setdefault(stage, f"{name} of {state.benchmark.recipe.title}")
