"""`facelt bench`: benchmark runs of a recipe over seeds, the plan of missing runs, and the table of results."""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from facelt.config.recipes import CHECKOUT, RECIPES_FOLDER
from facelt.errors import UserError
from facelt.utils.cli import print_notice, set_openmp_wait_policy
from facelt.utils.folder_lock import lock_folder, require_writable, wait_for_folder

if TYPE_CHECKING:
    from facelt.benchmarking.records import BenchmarkRecord
    from facelt.benchmarking.run import BenchmarkRun

_RECORDS, _PAGE = "benchmarks.jsonl", "benchmarks.md"
_BUDGET = re.compile(r"(?:(?P<hours>\d+(?:\.\d+)?)h)?(?:(?P<minutes>\d+(?:\.\d+)?)m)?", re.ASCII)


def bench(
    name: Annotated[
        str | None, typer.Argument(help="SUITE/RECIPE or a YAML file; by default only the table is written.")
    ] = None,
    seeds: Annotated[str, typer.Option(help="One run per seed: 0,1,2.")] = "0",
    imbalance: Annotated[float | None, typer.Option(min=1, help="Size of the largest class over the smallest.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu or cuda; by default that of the recipe.")] = None,
    set_: Annotated[list[str], typer.Option("--set", help="Override a key of the recipe.")] = [],  # noqa: B006
    out: Annotated[Path, typer.Option(help="Folder for the runs.")] = Path("runs/bench"),
    resume: Annotated[bool, typer.Option("--resume", help="Keep finished runs and continue interrupted ones.")] = False,
    reuse: Annotated[
        bool, typer.Option(help="Take first stages from runs in --out that trained equal ones with that seed.")
    ] = True,
    plan: Annotated[
        bool, typer.Option("--plan", help="List the runs that are missing in the table, with estimated minutes.")
    ] = False,
    all_: Annotated[
        bool,
        typer.Option("--all", help="Run all that --plan lists, the cheapest first; continue what was interrupted."),
    ] = False,
    budget: Annotated[
        str | None, typer.Option(help="With --all: start no run that is estimated to end later, such as 150m or 2h.")
    ] = None,
    processes: Annotated[
        int | None, typer.Option(help="With --all: runs at a time, which share the cores. [default: 1]")
    ] = None,
    nice: Annotated[bool, typer.Option("--nice", help="With --all: run at a low priority.")] = False,
    smoke: Annotated[
        bool, typer.Option("--smoke", help="Only test the recipe: one epoch per stage, on the CPU; writes nothing.")
    ] = False,
    record: Annotated[bool, typer.Option("--record", help="With --smoke: note in the table that it passed.")] = False,
    commit: Annotated[str | None, typer.Option(help="Commit of the sources, for a copy without git.")] = None,
) -> None:
    """Train and test a recipe, record the results, and write the table of all results.

    Runs are written to OUT/SUITE/RECIPE. Each adds a line to benchmarks.jsonl, the source of benchmarks.md; both are in
    the docs of a checkout, or else in OUT. --plan and --all take all recipes of all suites, with the given seeds,
    imbalance and settings.
    """
    results = out if CHECKOUT is None else CHECKOUT / "docs"
    if record and not smoke:
        raise UserError("--record: only applies to --smoke; full runs are always recorded")
    if os.environ.get("WORLD_SIZE", "1") != "1":
        raise UserError("bench: runs in one process; under torchrun use facelt train")
    _refuse_mixtures(name, {"--plan": plan, "--all": all_, "--smoke": smoke})
    if not all_:
        _refuse_without_all({"--budget": budget, "--processes": processes, "--nice": nice or None})
    minutes, seed_list = _parse_budget(budget), _parse_seeds(seeds)
    if processes is not None and processes < 1:
        raise UserError(f"--processes {processes}: expected 1 or more")
    if name is None and not (plan or all_):
        typer.echo(f"table: {_publish(results)}")
        return
    device = "cpu" if smoke else device
    set_openmp_wait_policy(device or "cuda")
    from facelt.benchmarking.records import source_commit
    from facelt.benchmarking.run import BenchmarkRun, all_recipes, find_recipe

    recipes = all_recipes(RECIPES_FOLDER) if name is None else [find_recipe(RECIPES_FOLDER, name)]
    source = commit or source_commit(CHECKOUT)
    benchmarks = [BenchmarkRun(recipe, tuple(set_), imbalance, device, out, source) for recipe in recipes]
    if smoke:
        _run_smoke_test(benchmarks[0], seed_list[0], results if record else None)
    elif name is not None:
        _run_seeds(benchmarks[0], seed_list, results, resume, reuse)
    elif plan:
        _print_plan(benchmarks, seed_list, results, reuse)
    else:
        options = _options(device, imbalance, set_, out, reuse, commit)
        _run_all(benchmarks, seed_list, results, reuse, options, processes or 1, minutes, nice)


def _refuse_mixtures(name: str | None, modes: Mapping[str, bool]) -> None:
    chosen = [mode for mode, is_chosen in modes.items() if is_chosen]
    if len(chosen) > 1:
        raise UserError(f"{' '.join(chosen)}: use one of these options at a time")
    if chosen and name is not None and chosen != ["--smoke"]:
        raise UserError(f"{chosen[0]}: takes all recipes; remove {name}, or run it without {chosen[0]}")
    if chosen == ["--smoke"] and name is None:
        raise UserError("--smoke: tests one recipe; name it, such as cifar100_lt/softmax")


def _refuse_without_all(options: Mapping[str, object]) -> None:
    for option, value in options.items():
        if value is not None:
            raise UserError(f"{option}: only applies to --all")


def _parse_budget(text: str | None) -> float | None:
    """Returns the minutes of a time such as 150m, 2h or 1h30m."""
    if text is None:
        return None
    match = _BUDGET.fullmatch(text)
    minutes = 60 * float(match["hours"] or 0) + float(match["minutes"] or 0) if match else 0.0
    if not minutes:
        raise UserError(f"--budget {text}: expected a time in hours and minutes, such as 150m, 2h or 1h30m")
    return minutes


def _parse_seeds(text: str) -> list[int]:
    parts = text.split(",")
    if not all(part.isascii() and part.isdecimal() for part in parts):
        raise UserError(f"--seeds {text}: expected numbers separated by commas, such as 0,1,2")
    return list(dict.fromkeys(map(int, parts)))


def _run_smoke_test(benchmark: "BenchmarkRun", seed: int, results: Path | None) -> None:
    from facelt.benchmarking.run import run_smoke_test

    result = run_smoke_test(benchmark, benchmark.config(seed), typer.echo)
    page = None if results is None else _publish(results, result)
    typer.echo(f"{benchmark.recipe.title}: smoke test passed; the full recipe was not run")
    if page is not None:
        typer.echo(f"table: {page}")


def _run_seeds(benchmark: "BenchmarkRun", seeds: list[int], results: Path, resume: bool, reuse: bool) -> None:
    """Runs the recipe once per seed, and records each result as soon as there is one."""
    from facelt.benchmarking.run import read_result, require_fresh, run_benchmark

    configs = [benchmark.config(seed) for seed in seeds]
    if not resume:
        require_fresh(configs)
    for config in configs:
        with lock_folder(config.out):
            record = read_result(config) or run_benchmark(benchmark, config, reuse, typer.echo)
        page = _publish(results, record)
        typer.echo(
            f"{benchmark.recipe.title}, seed {config.seed}: accuracy {100 * record.overall:.2f}% on the test split"
        )
    typer.echo(f"table: {page}")


def _print_plan(benchmarks: list["BenchmarkRun"], seeds: list[int], results: Path, reuse: bool) -> None:
    from facelt.benchmarking.plan import Planner
    from facelt.benchmarking.records import read_records

    planner = Planner(benchmarks, seeds, reuse=reuse, echo=print_notice)
    typer.echo("\n".join(planner.plan(read_records(results / _RECORDS)).lines()))


def _run_all(
    benchmarks: list["BenchmarkRun"],
    seeds: list[int],
    results: Path,
    reuse: bool,
    options: tuple[str, ...],
    processes: int,
    budget: float | None,
    nice: bool,
) -> None:
    from facelt.benchmarking.plan import Planner
    from facelt.benchmarking.records import read_records
    from facelt.benchmarking.workers import Workers

    planner = Planner(benchmarks, seeds, reuse=reuse, echo=print_notice)
    workers = Workers(
        lambda ended: planner.plan(read_records(results / _RECORDS), ended),
        processes,
        budget,
        nice,
        options,
        typer.echo,
    )
    workers.run()


def _options(
    device: str | None, imbalance: float | None, settings: list[str], out: Path, reuse: bool, commit: str | None
) -> tuple[str, ...]:
    """Returns the options of the command of one row."""
    values = {"--device": device, "--imbalance": imbalance, "--out": out, "--commit": commit}
    words = [word for option, value in values.items() if value is not None for word in (option, str(value))]
    words += [word for setting in settings for word in ("--set", setting)]
    return (*words, "--reuse" if reuse else "--no-reuse")


def _publish(results: Path, record: "BenchmarkRecord | None" = None) -> Path:
    """Adds a record that is not there yet, and writes the table of all records; one process at a time does so."""
    from facelt.benchmarking.records import PUBLISHED_SOURCES, append_record, read_published, read_records
    from facelt.benchmarking.table import build_rows, plan_runs, planned_recipes, unmatched_results
    from facelt.report.benchmarks import benchmarks_page
    from recordio_tools.atomic_io import write_text

    recipes, published = planned_recipes(RECIPES_FOLDER), read_published()
    require_writable(results)
    results.mkdir(parents=True, exist_ok=True)
    with wait_for_folder(results):
        records = read_records(results / _RECORDS)
        if record is not None and record not in records:
            append_record(results / _RECORDS, record)
            records.append(record)
        rows = build_rows(records, plan_runs(recipes, published), published)
        write_text(results / _PAGE, benchmarks_page(rows, unmatched_results(recipes, published), PUBLISHED_SOURCES))
    return results / _PAGE
