"""`facelt bench`: benchmark runs of a recipe over seeds, and the table of results."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from facelt.config.recipes import CHECKOUT, RECIPES_FOLDER
from facelt.errors import UserError
from facelt.utils.cli import set_openmp_wait_policy
from facelt.utils.folder_lock import lock_folder

if TYPE_CHECKING:
    from facelt.benchmarking.run import BenchmarkRun

_RECORDS, _PAGE = "benchmarks.jsonl", "benchmarks.md"


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
    smoke: Annotated[
        bool, typer.Option("--smoke", help="Only test the recipe: one epoch per stage, on the CPU; writes nothing.")
    ] = False,
    record: Annotated[bool, typer.Option("--record", help="With --smoke: note in the table that it passed.")] = False,
    commit: Annotated[str | None, typer.Option(help="Commit of the sources, for a copy without git.")] = None,
) -> None:
    """Train and test a recipe, record the results, and write the table of all results.

    Runs are written to OUT/SUITE/RECIPE. Each adds a line to benchmarks.jsonl, the source of benchmarks.md; both are in
    the docs of a checkout, or else in OUT.
    """
    results = out if CHECKOUT is None else CHECKOUT / "docs"
    if record and not smoke:
        raise UserError("--record: only applies to --smoke; full runs are always recorded")
    if os.environ.get("WORLD_SIZE", "1") != "1":
        raise UserError("bench: runs in one process; under torchrun use facelt train")
    if name is not None:
        set_openmp_wait_policy("cpu" if smoke else device or "cuda")
        from facelt.benchmarking.records import source_commit
        from facelt.benchmarking.run import BenchmarkRun, find_recipe

        recipe, device = find_recipe(RECIPES_FOLDER, name), "cpu" if smoke else device
        benchmark = BenchmarkRun(recipe, tuple(set_), imbalance, device, out, commit or source_commit(CHECKOUT))
        if smoke:
            _run_smoke_test(benchmark, _parse_seeds(seeds)[0], results / _RECORDS if record else None)
            if not record:
                return
        else:
            _run_seeds(benchmark, _parse_seeds(seeds), results / _RECORDS, resume)
    typer.echo(f"table: {_write_page(results)}")


def _parse_seeds(text: str) -> list[int]:
    parts = text.split(",")
    if not all(part.isascii() and part.isdecimal() for part in parts):
        raise UserError(f"--seeds {text}: expected numbers separated by commas, such as 0,1,2")
    return list(dict.fromkeys(map(int, parts)))


def _run_smoke_test(benchmark: "BenchmarkRun", seed: int, records: Path | None) -> None:
    from facelt.benchmarking.records import append_record
    from facelt.benchmarking.run import run_smoke_test

    result = run_smoke_test(benchmark, benchmark.config(seed), typer.echo)
    if records is not None:
        append_record(records, result)
    typer.echo(f"{benchmark.recipe.title}: smoke test passed; the full recipe was not run")


def _run_seeds(benchmark: "BenchmarkRun", seeds: list[int], records: Path, resume: bool) -> None:
    """Runs the recipe once per seed and records the results."""
    from facelt.benchmarking.records import append_record, read_records
    from facelt.benchmarking.run import read_result, require_fresh, run_benchmark

    configs = [benchmark.config(seed) for seed in seeds]
    if not resume:
        require_fresh(configs)
    stored_records = read_records(records)
    for config in configs:
        with lock_folder(config.out):
            record = read_result(config) or run_benchmark(benchmark, config)
        if record not in stored_records:
            append_record(records, record)
        typer.echo(
            f"{benchmark.recipe.title}, seed {config.seed}: accuracy {100 * record.overall:.2f}% on the test split"
        )


def _write_page(results: Path) -> Path:
    from facelt.benchmarking.records import PUBLISHED_SOURCES, read_published, read_records
    from facelt.benchmarking.table import build_rows, plan_runs, planned_recipes, unmatched_results
    from facelt.report.benchmarks import benchmarks_page
    from recordio_tools.atomic_io import write_text

    recipes, published = planned_recipes(RECIPES_FOLDER), read_published()
    rows = build_rows(read_records(results / _RECORDS), plan_runs(recipes, published), published)
    results.mkdir(parents=True, exist_ok=True)
    write_text(results / _PAGE, benchmarks_page(rows, unmatched_results(recipes, published), PUBLISHED_SOURCES))
    return results / _PAGE
